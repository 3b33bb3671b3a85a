//! Panics of the libraries under us. Parsers of other people's files give up on hostile input with a panic here and there; what we
//! catch becomes an error of ours.
//!
//! The message of a caught panic goes to the process's panic hook all the same. That hook belongs to the program: one that wants
//! nothing on its terminal asks [`is_caught`] in a hook of its own, as our binary does.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};

thread_local!(static CAUGHT: Cell<bool> = const { Cell::new(false) });

/// Whether a panic on this thread, now, becomes an error of ours.
pub fn is_caught() -> bool {
    CAUGHT.get()
}

/// Runs `work`; a panic in it, on this thread, gives `None`.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    let outer = CAUGHT.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    CAUGHT.set(outer);
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::{caught, is_caught};

    #[test]
    fn a_panic_becomes_none_however_deep() {
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(
            caught(|| (caught(|| panic!("within")), 2)),
            Some((None::<()>, 2))
        );
        assert_eq!(caught(|| panic!("here")), None::<()>);
        assert_eq!((is_caught(), caught(is_caught)), (false, Some(true)));
    }
}
