//! The library's [`Progress`] as a bar on stderr, and Ctrl-C as its way to stop.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use candlewick::run::progress::Progress;
use candlewick::text::duration;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

static STOP: AtomicBool = AtomicBool::new(false);

/// How often a line is written where there is no terminal for a bar.
const EVERY: Duration = Duration::from_secs(30);

/// A bar with rate and remaining time on a terminal; elsewhere a line every half minute.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    quiet: bool,
    is_drawn: bool,
    /// When the stage began, and when a line was last written.
    times: Mutex<(Instant, Instant)>,
}

impl Bar {
    pub(super) fn new(quiet: bool) -> Bar {
        catch_interrupts();
        let is_drawn = !quiet && std::io::stderr().is_terminal();
        let target = if is_drawn {
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
        let now = Instant::now();
        Bar {
            bar,
            quiet,
            is_drawn,
            times: Mutex::new((now, now)),
        }
    }

    /// Does something on the terminal while the bar is not drawn.
    pub fn suspend<R>(&self, what: impl FnOnce() -> R) -> R {
        self.bar.suspend(what)
    }

    /// What has been done, where a line is due.
    fn line(&self, now: Instant) -> Option<String> {
        let mut times = self.times.lock().ok()?;
        if self.quiet || self.is_drawn || now.duration_since(times.1) < EVERY {
            return None;
        }
        times.1 = now;
        let (done, all) = (self.bar.position(), self.bar.length().unwrap_or(0));
        let spent = now.duration_since(times.0).as_secs_f64();
        let left = spent * (all.saturating_sub(done)) as f64 / done.max(1) as f64;
        Some(format!(
            "{}: {done} of {all} after {}, about {} left",
            self.bar.message(),
            duration(spent),
            duration(left)
        ))
    }
}

impl Progress for Bar {
    fn start(&self, what: &str, steps: u64) {
        self.bar.reset();
        self.bar.set_length(steps);
        self.bar.set_message(what.to_string());
        if let Ok(mut times) = self.times.lock() {
            let now = Instant::now();
            *times = (now, now);
        }
    }

    fn advance(&self, steps: u64) {
        self.bar.inc(steps);
        if let Some(line) = self.line(Instant::now()) {
            eprintln!("{line}");
        }
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

    #[test]
    fn without_a_terminal_a_line_comes_every_half_minute() {
        let bar = Bar {
            is_drawn: false,
            ..Bar::new(false)
        };
        bar.start("patching", 100);
        bar.bar.inc(25);
        let begun = Instant::now();
        assert_eq!(bar.line(begun + Duration::from_secs(20)), None);
        let line = bar
            .line(begun + Duration::from_secs(40))
            .expect("it is due");
        assert!(
            line.starts_with("patching: 25 of 100 after 40 s, about 2 minutes left"),
            "{line}"
        );
        assert_eq!(bar.line(begun + Duration::from_secs(60)), None);
    }
}
