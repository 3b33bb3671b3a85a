//! Runs that are stopped go on, from their own parts alone.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use candlewick::Error;
use candlewick::prelude::*;
use candlewick::run::Progress;

use crate::every_method::every_run;
use crate::{measured, mixed, rows};

/// Stops when it was asked so often whether to stop.
struct StopAfter(AtomicU64);

impl Progress for StopAfter {
    fn cancelled(&self) -> bool {
        let left = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                Some(left.saturating_sub(1))
            });
        left == Ok(0)
    }
}

/// Where finished parts of a file are kept.
fn part_files(out: &Path) -> usize {
    let folder = PathBuf::from(format!("{}.parts", out.display()));
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    entries(&folder)
        .flat_map(|work| entries(&work.path()).collect::<Vec<_>>())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("part-"))
        .count()
}

#[test]
fn stopped_twice_at_any_moment_and_gone_on_with_every_method_gives_the_same_table() {
    for (name, lab, method) in every_run(6) {
        let whole = measured(&lab, &*method);
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("scores.parquet");
        let mut kept = 0;
        for stop in [1, 3] {
            let keeping = Keeping::beside(&out);
            let progress = StopAfter(AtomicU64::new(stop));
            let watch = Watch {
                progress: &progress,
                keeping: Some(&keeping),
            };
            let stopped = measure(lab.subject(), &*method, &lab.running, &watch);
            if let Err(error) = stopped {
                assert!(
                    matches!(error, Error::Interrupted { .. }),
                    "{name}: {error}"
                );
            }
            assert!(part_files(&out) >= kept, "{name}: a finished part is gone");
            kept = part_files(&out);
        }
        let keeping = Keeping::beside(&out);
        let watch = Watch {
            keeping: Some(&keeping),
            ..Watch::default()
        };
        let again = measure(lab.subject(), &*method, &lab.running, &watch).expect("goes on");
        assert_eq!(rows(&again), rows(&whole), "{name}");
        keeping.remove().expect("removes");
        assert_eq!(part_files(&out), 0, "{name}");
        assert_eq!(
            std::fs::read_dir(folder.path()).expect("a folder").count(),
            0,
            "{name}"
        );
    }
}

/// Remembers what it was told.
#[derive(Default)]
struct Notes(std::sync::Mutex<Vec<String>>);

impl Progress for Notes {
    fn note(&self, message: &str) {
        self.0.lock().expect("one thread").push(message.into());
    }
}

#[test]
fn a_factor_that_is_no_binary_fraction_goes_on_from_its_own_parts() {
    let lab = mixed(6).running(Running {
        batch: 2,
        ..Running::default()
    });
    let by = |factor| {
        AblationConfig::new(PatchConfig {
            source: PatchSource::Scale(factor),
            ..PatchConfig::sites("z").expect("sites")
        })
    };
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("scores.parquet");
    let run = |factor: f32, progress: &dyn Progress| {
        let keeping = Keeping::beside(&out);
        let watch = Watch {
            progress,
            keeping: Some(&keeping),
        };
        measure(lab.subject(), &by(factor), &lab.running, &watch)
    };
    run(0.49, &StopAfter(AtomicU64::new(12))).expect_err("stopped");
    let finished = part_files(&out);
    assert!(finished > 0);
    let notes = Notes::default();
    let scores = run(0.49, &notes).expect("goes on");
    assert_eq!(rows(&scores), rows(&measured(&lab, &by(0.49))));
    let notes = notes.0.into_inner().expect("one thread");
    let said = format!("going on from {finished} of");
    assert!(notes.iter().any(|note| note.contains(&said)), "{notes:?}");
    // Another factor is other work, and neither takes these parts nor is blocked by them.
    let other = Notes::default();
    run(0.48, &other).expect("begins");
    let other = other.0.into_inner().expect("one thread");
    assert!(
        other.iter().all(|note| !note.contains("going on")),
        "{other:?}"
    );
}
