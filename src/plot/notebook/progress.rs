//! Progress as lines under a cell: a notebook's kernel passes on whole lines, so there is no bar.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::run::Progress;
use crate::text::{duration, one_line};

/// Whether this process runs the cells of an evcxr kernel, which says so to it.
pub fn is_cell() -> bool {
    std::env::var_os("EVCXR_IS_RUNTIME").is_some()
}

/// How long a stage is silent, and then how often a line comes.
const EVERY: Duration = Duration::from_secs(5);

/// Says every few seconds how far a stage is; of a short one nothing.
#[derive(Debug, Default)]
pub struct CellProgress {
    stage: Mutex<Option<Stage>>,
}

#[derive(Debug)]
struct Stage {
    what: String,
    done: u64,
    all: u64,
    began: Instant,
    said: Instant,
}

impl Stage {
    /// What has been done, where a line is due.
    fn line(&mut self, now: Instant) -> Option<String> {
        if now.duration_since(self.said) < EVERY {
            return None;
        }
        self.said = now;
        let spent = now.duration_since(self.began).as_secs_f64();
        let left = spent * self.all.saturating_sub(self.done) as f64 / self.done.max(1) as f64;
        let (what, spent, left) = (one_line(&self.what), duration(spent), duration(left));
        Some(format!(
            "{what}: {} of {} after {spent}, about {left} left",
            self.done, self.all
        ))
    }
}

impl Progress for CellProgress {
    fn start(&self, what: &str, steps: u64) {
        let now = Instant::now();
        if let Ok(mut stage) = self.stage.lock() {
            *stage = Some(Stage {
                what: what.into(),
                done: 0,
                all: steps,
                began: now,
                said: now,
            });
        }
    }

    fn advance(&self, steps: u64) {
        let Ok(mut stage) = self.stage.lock() else {
            return;
        };
        let Some(stage) = stage.as_mut() else { return };
        stage.done += steps;
        if let Some(line) = stage.line(Instant::now()) {
            eprintln!("{line}");
        }
    }

    fn note(&self, message: &str) {
        eprintln!("{}", one_line(message));
    }

    fn finish(&self) {
        if let Ok(mut stage) = self.stage.lock() {
            *stage = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_when_a_stage_is_long() {
        let began = Instant::now();
        let mut stage = Stage {
            what: "patching".into(),
            done: 25,
            all: 100,
            began,
            said: began,
        };
        let at = |seconds| began + Duration::from_secs(seconds);
        assert_eq!(stage.line(at(4)), None);
        let line = stage.line(at(10));
        assert_eq!(
            line.as_deref(),
            Some("patching: 25 of 100 after 10 s, about 30 s left")
        );
        assert_eq!(stage.line(at(14)), None);
        assert!(stage.line(at(15)).is_some());
    }
}
