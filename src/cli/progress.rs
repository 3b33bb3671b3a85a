//! The library's [`Progress`] as a bar on stderr, and Ctrl-C as its way to stop.

use std::io::IsTerminal;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use candlewick::run::progress::Progress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

static STOP: AtomicBool = AtomicBool::new(false);

/// A bar with rate and remaining time; hidden unless stderr is a terminal.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    quiet: bool,
}

impl Bar {
    pub(super) fn new(quiet: bool) -> Bar {
        catch_interrupts();
        let shown = !quiet && std::io::stderr().is_terminal();
        let target = if shown {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        bar.set_style(
            ProgressStyle::with_template(
                "{msg} {wide_bar} {human_pos}/{human_len}, {per_sec}, {eta} left",
            )
            .expect("the template is a constant that the tests draw"),
        );
        Bar { bar, quiet }
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, steps: u64) {
        self.bar.reset();
        self.bar.set_length(steps);
        self.bar.set_message(what.to_string());
    }

    fn advance(&self, steps: u64) {
        self.bar.inc(steps);
    }

    fn note(&self, message: &str) {
        if !self.quiet {
            self.bar.suspend(|| eprintln!("{message}"));
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn cancelled(&self) -> bool {
        STOP.load(Ordering::Relaxed)
    }
}

/// The first Ctrl-C asks the work to stop where it loses nothing; the second ends the process at once.
fn catch_interrupts() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let handler = || {
            if STOP.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
            eprintln!("stopping after this wave; Ctrl-C again to stop at once");
        };
        if let Err(error) = ctrlc::set_handler(handler) {
            eprintln!("warning: Ctrl-C will end the work at once: {error}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_and_starts_again() {
        let bar = Bar::new(true);
        bar.start("sweep", 10);
        bar.advance(3);
        assert_eq!((bar.bar.position(), bar.bar.length()), (3, Some(10)));
        bar.start("bootstrap", 4);
        assert_eq!((bar.bar.position(), bar.bar.length()), (0, Some(4)));
        assert!(!bar.cancelled());
    }
}
