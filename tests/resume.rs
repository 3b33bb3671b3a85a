//! A sweep that is killed goes on where it stopped: no finished part is lost, none is computed twice.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

/// A sweep over enough pairs that it has many parts, on one thread so that it takes longer than the seconds before parts are kept.
fn patch(out: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    command.args([
        "patch",
        "--sites",
        "z:pos,resid_pre",
        "--n-pairs",
        "480",
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

/// A plan of two methods and two seeds on the embedded model, in `folder`.
fn plan(folder: &Path, heads: &str) -> Command {
    let text = format!(
        "models = [\"embedded\"]\ntasks = [{{ task = \"embedded\", flags = \"--template 0\" }}]\nn_pairs = 3\nseeds = [0, 1]\n\
         [methods]\nheads = \"{heads}\"\nwrites = \"logits --by head\"\n"
    );
    std::fs::write(folder.join("plan.toml"), text).expect("a place to write");
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    command.args(["run", "plan.toml"]).current_dir(folder);
    command
}

fn said(command: &mut Command) -> (bool, String, String) {
    let output = command.output().expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.success(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_plan_runs_what_is_not_finished_and_says_what_is_stale() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let file = |method: &str, part: usize| {
        folder.join(format!(
            "plan/run_model=embedded/run_task=embedded/run_method={method}/part-{part:05}.parquet"
        ))
    };
    let (ok, listed, _) = said(plan(folder, "patch --sites z").arg("--dry-run"));
    assert!(ok && listed.contains("4 (0 finished)"), "{listed}");
    assert!(!folder.join("plan").exists(), "a dry run writes nothing");

    let (ok, _, errors) = said(&mut plan(folder, "patch --sites z"));
    assert!(ok, "{errors}");
    // The same table as the command alone.
    let alone = folder.join("alone.parquet");
    let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
    command.args(["patch", "--sites", "z", "--template", "0", "--n-pairs", "3"]);
    command
        .args(["--seed", "1", "--task", "embedded", "--out"])
        .arg(&alone);
    assert!(said(&mut command).0);
    let read = |path: &Path| candlewick::scores::Scores::read_parquet(path).expect("a table");
    assert!(
        read(&alone)
            .table
            .equals_missing(&read(&file("heads", 1)).table)
    );

    // What is there is not run again; what is gone is.
    let written = |method| {
        file(method, 0)
            .metadata()
            .and_then(|about| about.modified())
            .expect("a time")
    };
    let before = written("writes");
    std::fs::remove_file(file("heads", 0)).expect("it was there");
    let (ok, told, _) = said(&mut plan(folder, "patch --sites z"));
    assert!(ok && told.matches("was finished").count() == 3, "{told}");
    assert!(file("heads", 0).exists() && written("writes") == before);

    // A name that means something else now is no finished run, and nothing is lost by asking.
    let (ok, _, errors) = said(&mut plan(folder, "patch --sites mlp_out"));
    assert!(
        !ok && errors.contains("2 of its 4 runs have results of other settings"),
        "{errors}"
    );
    assert!(
        read(&file("heads", 1))
            .table
            .equals_missing(&read(&alone).table)
    );
    let (ok, _, errors) = said(plan(folder, "patch --sites mlp_out").arg("--replace-stale"));
    assert!(ok, "{errors}");
    let component = read(&file("heads", 1))
        .texts("component")
        .expect("a column")[0]
        .map(String::from);
    assert_eq!(component.as_deref(), Some("hook_mlp_out"));

    // One that cannot be done is found before anything runs.
    let (ok, told, errors) = said(&mut plan(folder, "patch --sites z --heads 99"));
    assert!(
        !ok && told.is_empty() && errors.contains("2 of its 4 runs"),
        "{errors}"
    );
}

#[test]
fn a_dry_run_of_a_plan_reads_no_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let model = folder.join("model");
    std::fs::create_dir(&model).expect("a place to write");
    for name in ["config.json", "tokenizer.json"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/embedded");
        std::fs::copy(from.join(name), model.join(name)).expect("a file of the model");
    }
    std::fs::write(model.join("model.safetensors"), "no weights").expect("a place to write");
    let plan = "models = [\"model\"]\ntasks = [{ task = \"embedded\", flags = \"--template 0\" }]\nn_pairs = 3\n\
                [methods]\nheads = \"patch --sites z\"\nedges = \"attribute --method eap\"\n";
    std::fs::write(folder.join("plan.toml"), plan).expect("a place to write");
    let run = |flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
        command.args(["run", "plan.toml"]).args(flags);
        said(command.current_dir(folder))
    };
    let (ok, listed, errors) = run(&["--dry-run"]);
    assert!(ok, "{errors}");
    assert!(
        listed.contains("1  model embedded heads  3 pairs, 16 cells, about"),
        "{listed}"
    );
    let (ok, _, _) = run(&[]);
    assert!(!ok, "these are no weights");

    // They are found before the model of an earlier run is measured.
    let two = plan.replace("[\"model\"]", "[\"embedded\", \"model\"]");
    std::fs::write(folder.join("plan.toml"), two).expect("a place to write");
    let (ok, told, errors) = run(&[]);
    let says = "2 of its 4 runs cannot be done, the first `model embedded heads`";
    assert!(
        !ok && told.is_empty() && errors.contains(says) && errors.contains("model.safetensors"),
        "{errors}"
    );
    assert!(!folder.join("plan").exists());
    let (ok, told, errors) = run(&["--keep-going"]);
    assert!(!ok && told.contains("2 of 4 runs are there"), "{errors}");
    let page = std::fs::read_to_string(folder.join("plan/summary.html")).expect("a page");
    assert!(
        page.contains("4 runs, 2 of them without a result"),
        "{page}"
    );
}

#[cfg(unix)]
#[test]
fn the_summary_of_a_plan_that_was_stopped_says_what_is_there_of_every_run() {
    use candlewick::polars::prelude::SerReader;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let plan = |slow: &str| {
        let text = format!(
            "models = [\"embedded\"]\ntasks = [{{ task = \"embedded\", flags = \"--template 0\" }}]\nn_pairs = 480\n\
             [methods]\nheads = \"patch --sites z\"\n{slow}writes = \"logits --by head\"\n"
        );
        std::fs::write(folder.join("plan.toml"), text).expect("a place to write");
        let mut command = Command::new(env!("CARGO_BIN_EXE_candlewick"));
        command.args(["--threads", "1", "run", "plan.toml"]);
        command
            .current_dir(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    };
    assert!(plan("").status().expect("it runs").success());
    let mut child = plan("slow = \"patch --sites z:pos,resid_pre\"\n")
        .spawn()
        .expect("starts");
    let slow =
        folder.join("plan/run_model=embedded/run_task=embedded/run_method=slow/part-00000.parquet");
    let began = Instant::now();
    while parts(&slow).is_empty() {
        assert!(child.try_wait().expect("a child").is_none(), "it ended");
        assert!(began.elapsed() < Duration::from_secs(300));
        std::thread::sleep(Duration::from_millis(2));
    }
    let sent = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status();
    assert!(sent.expect("kill runs").success());
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    let file = std::fs::File::open(folder.join("plan/summary.parquet")).expect("it is there");
    let table = polars_io::prelude::ParquetReader::new(file)
        .finish()
        .expect("a table");
    let errors: Vec<Option<&str>> = table
        .column("error")
        .and_then(|column| column.str())
        .expect("texts")
        .iter()
        .collect();
    assert_eq!(errors.len(), 3);
    assert!(errors[0].is_none() && errors[2].is_none(), "{errors:?}");
    assert!(
        errors[1].is_some_and(|why| why.contains("stopped")),
        "{errors:?}"
    );
}
