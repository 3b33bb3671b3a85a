//! A sweep that is killed goes on where it stopped: no finished part is lost, none is computed twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// A sweep over enough pairs that it has many parts, on one thread so that it takes a while.
fn patch(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    command.args([
        "patch",
        "--sites",
        "z:pos,resid_pre",
        "--n-pairs",
        "64",
        "--threads",
        "1",
        "--per-example",
    ]);
    command
        .arg("--out")
        .arg(out)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// The finished parts, and when each was written.
fn parts(out: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let folder = out.with_file_name(format!(
        "{}.parts",
        out.file_name().expect("a name").to_string_lossy()
    ));
    // A folder for each piece of work.
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten();
    let works: Vec<PathBuf> = entries(&folder)
        .map(|entry| entry.expect("readable").path())
        .collect();
    let entries = works.iter().flat_map(|work| entries(work));
    let is_part = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "parquet")
    };
    let paths = entries
        .map(|entry| entry.expect("readable").path())
        .filter(is_part);
    paths
        .map(|path| {
            (
                path.clone(),
                path.metadata()
                    .and_then(|meta| meta.modified())
                    .expect("a time"),
            )
        })
        .collect()
}

/// Waits until `count` parts are there, then kills the process without warning. Returns what was there afterwards.
fn kill_after(mut child: Child, out: &Path, count: usize) -> BTreeMap<PathBuf, SystemTime> {
    let began = Instant::now();
    while parts(out).len() < count {
        assert!(
            child.try_wait().expect("a child").is_none(),
            "it ended before {count} parts were written"
        );
        assert!(
            began.elapsed() < Duration::from_secs(300),
            "no {count} parts in five minutes"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    // SIGKILL on Unix.
    child.kill().expect("killed");
    child.wait().expect("reaped");
    parts(out)
}

fn rows(path: &Path) -> Vec<String> {
    let scores = candlewick::scores::Scores::read_parquet(path).expect("a table");
    let mut csv = Vec::new();
    scores.to_csv(&mut csv).expect("text");
    String::from_utf8(csv)
        .expect("text")
        .lines()
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_killed_sweep_goes_on_and_gives_the_same_table() {
    let dir = tempfile::tempdir().expect("a folder");
    let (whole, killed) = (
        dir.path().join("whole.parquet"),
        dir.path().join("killed.parquet"),
    );
    let first = kill_after(patch(&killed).spawn().expect("starts"), &killed, 2);
    assert!(first.len() >= 2 && !killed.exists());
    let second = kill_after(
        patch(&killed).spawn().expect("starts"),
        &killed,
        first.len() + 1,
    );
    for (path, written) in &first {
        assert_eq!(
            second.get(path),
            Some(written),
            "{} was lost or written again",
            path.display()
        );
    }
    let end = patch(&killed).output().expect("runs");
    assert!(
        end.status.success(),
        "{}",
        String::from_utf8_lossy(&end.stderr)
    );
    assert!(
        parts(&killed).is_empty(),
        "the parts are removed when the table is written"
    );
    assert!(patch(&whole).output().expect("runs").status.success());
    assert_eq!(rows(&killed), rows(&whole));
}

#[test]
fn parts_of_other_work_are_neither_gone_on_with_nor_in_the_way() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("scores.parquet");
    let before = kill_after(patch(&out).spawn().expect("starts"), &out, 1);
    let other = patch(&out)
        .args(["--direction", "noise", "--layers", "3"])
        .output()
        .expect("runs");
    let message = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(0), "{message}");
    assert!(
        message.contains("unfinished") && message.contains("candlewick clean"),
        "{message}"
    );
    assert!(!message.contains("going on"), "{message}");
    assert_eq!(parts(&out), before, "they are left as they were");
}

#[cfg(unix)]
#[test]
fn ctrl_c_keeps_finished_parts_and_exits_130() {
    let dir = tempfile::tempdir().expect("a folder");
    let out = dir.path().join("scores.parquet");
    let mut child = patch(&out).spawn().expect("starts");
    let began = Instant::now();
    while parts(&out).is_empty() && began.elapsed() < Duration::from_secs(300) {
        assert!(
            child.try_wait().expect("a child").is_none(),
            "it ended before a part was written"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .expect("kill runs");
    assert!(sent.success());
    let end = child.wait_with_output().expect("ends");
    let message = String::from_utf8_lossy(&end.stderr).into_owned();
    assert_eq!(end.status.code(), Some(130), "{message}");
    assert!(message.contains("kept"), "{message}");
    assert!(!parts(&out).is_empty() && !out.exists());
}
