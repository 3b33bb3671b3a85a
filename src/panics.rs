//! Panics of the libraries under us. Parsers of other people's files give up on hostile input with a panic here and there; what we
//! catch becomes an error of ours, and must not reach the terminal as well.

use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

/// Runs `work`; a panic in it, on this thread, gives `None` without a word on stderr.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static SILENT: Cell<bool> = const { Cell::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                loud(info);
            }
        }));
    });
    let outer = SILENT.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    SILENT.set(outer);
    outcome.ok()
}

#[cfg(test)]
mod tests {
    use super::caught;

    #[test]
    fn a_panic_becomes_none_however_deep() {
        assert_eq!(caught(|| 1), Some(1));
        assert_eq!(
            caught(|| (caught(|| panic!("within")), 2)),
            Some((None::<()>, 2))
        );
        assert_eq!(caught(|| panic!("here")), None::<()>);
    }
}
