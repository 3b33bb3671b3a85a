//! Submissions: shards of a command or a plan in processes of their own, with everything that can happen to them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use candlewick::scores::Scores;
use candlewick::scores::parts::{read_shard, write_shard};

use crate::text;

/// Runs a command line in a folder, as a shell would: exit code, stdout, stderr.
fn run(folder: &Path, line: &str) -> (i32, String, String) {
    let words = shlex::split(line).expect("a command line");
    let output = Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(words)
        .current_dir(folder)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", folder)
        .output()
        .expect("it runs");
    let code = output.status.code().expect("it ended by itself");
    (code, text(&output.stdout), text(&output.stderr))
}

/// As [`run`], where it has to succeed; gives stdout.
fn ok(folder: &Path, line: &str) -> String {
    let (code, out, errors) = run(folder, line);
    assert_eq!(code, 0, "{line}: {out}{errors}");
    out
}

/// As [`run`], where it has to fail with one line that says something.
fn refused(folder: &Path, line: &str, says: &str) -> String {
    let (code, out, errors) = run(folder, line);
    assert_eq!(code, 1, "{line}: {out}{errors}");
    assert!(errors.contains(says), "{line}: {errors}");
    let lines = errors.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(lines.count(), 1, "{line}: {errors}");
    out
}

/// Every column equal, nulls and all.
fn check_same(one: &Path, other: &Path) {
    let read = |path: &Path| Scores::read_parquet(path).expect("a table");
    let (one, other) = (read(one), read(other));
    assert!(one.table.equals_missing(&other.table));
    assert_eq!(one.provenance.prompts, other.provenance.prompts);
}

/// The file of a unit's part, in a submission of one command.
fn part(submission: &Path, shard: &str) -> PathBuf {
    let manifest = fs::read_to_string(submission.join("submission.json")).expect("it is there");
    assert!(manifest.contains("\"build\""));
    let log = fs::read_dir(submission.join("parts")).expect("a folder");
    let names = log.map(|entry| entry.expect("an entry").path());
    let ending = format!(".shard-{}.parquet", shard.replace('/', "-of-"));
    let mut named = names.filter(|path| path.to_string_lossy().ends_with(&ending));
    named.next().expect("a part of this shard")
}

/// Long enough on one thread that it can be killed.
const LONG: &str = "patch --sites z:pos,resid_pre --n-pairs 240";

#[test]
fn shards_in_processes_of_their_own_give_the_table_of_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    ok(
        folder,
        "patch --sites z --n-pairs 6 --per-example --out whole.parquet",
    );
    let line = "submit local --jobs 2 --shards 3 -- candlewick patch --sites z --n-pairs 6 --per-example -o \"it's \\$x.parquet\"";
    let told = ok(folder, line);
    assert_eq!(told.matches(": finished").count(), 3, "{told}");
    check_same(
        &folder.join("it's $x.parquet"),
        &folder.join("whole.parquet"),
    );
    let told = ok(folder, "submit status \"it's \\$x.submission\"");
    assert!(told.contains("3 merged; 1 of 1 tables are there"), "{told}");
    // It is what the command itself would have made.
    let about = Scores::read_parquet(&folder.join("it's $x.parquet"))
        .unwrap()
        .provenance;
    assert_eq!(
        about.command.join(" "),
        "candlewick patch --sites z --n-pairs 6 --per-example --out it's $x.parquet"
    );
    assert_eq!(about.version, candlewick::BUILD);
    // Nothing is left to do, and nothing is done again.
    let told = ok(folder, line);
    assert!(!told.contains("unit"), "{told}");
}

#[cfg(unix)]
#[test]
fn what_fails_is_named_and_exactly_that_is_run_again() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let submission = folder.join("s");
    let command = format!("{LONG} --out merged.parquet");
    let told = ok(
        folder,
        &format!("submit slurm --shards 6 --folder s -- {command}"),
    );
    assert!(told.contains("6 units in 6 tasks"), "{told}");
    // The first shard is finished.
    let told = ok(folder, "--threads 1 submit unit s 1");
    assert!(told.starts_with("unit 1, patch 1/6: finished"), "{told}");
    let first = part(&submission, "1/6");
    let place = |shard: usize| {
        PathBuf::from(
            first
                .to_string_lossy()
                .replace("shard-1-of-6", &format!("shard-{shard}-of-6")),
        )
    };
    // The second is killed while it runs.
    let mut child = Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(["--threads", "1", "submit", "unit", "s", "2"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !submission.join("units/2.json").exists() {
        assert!(began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!place(2).exists());
    // The third cannot be written.
    fs::create_dir(place(3)).unwrap();
    let (code, _, errors) = run(folder, "--threads 1 submit unit s 3 1");
    assert_eq!(code, 1, "{errors}");
    assert!(
        errors.contains("units failed: 3") && errors.contains("it is a folder"),
        "{errors}"
    );
    // The fourth is of another command, the fifth of another build, the sixth of other weights.
    ok(
        folder,
        &format!("{LONG} --seed 9 --shard 4/6 --out '{}'", place(4).display()),
    );
    let (note, fragments) = read_shard(&first).unwrap();
    for (shard, key) in [(5, "build"), (6, "weights")] {
        let mut plan: serde_json::Value = serde_json::from_str(&note.plan).unwrap();
        plan[key] = "another".into();
        let mut other = note.clone();
        other.plan = candlewick::scores::parts::plan_text(&plan);
        other.shard = format!("{shard}/6").parse().unwrap();
        other.command = (note.command.iter())
            .map(|word| {
                if word == "1/6" {
                    format!("{shard}/6")
                } else {
                    word.clone()
                }
            })
            .collect();
        write_shard(&place(shard), &fragments, &other).unwrap();
    }
    let told = ok(folder, "submit status s");
    for line in [
        "1  1/6    finished",
        "2  2/6    killed",
        "3  3/6    failed",
        "4  4/6    stale",
        "5  5/6    stale",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    fs::remove_dir(place(3)).unwrap();

    let told = refused(
        folder,
        "submit merge s",
        "lack units 2, 3, 4, 5, 6; `candlewick submit slurm s --run` runs exactly these",
    );
    for line in [
        "2/6 was killed",
        "3/6 failed",
        "4/6 is stale (it was made by `candlewick patch",
        "5/6 is stale (it was made by candlewick another)",
        "6/6 is stale (here and there `weights` is",
    ] {
        assert!(told.contains(line), "{line}: {told}");
    }
    assert!(!folder.join("merged.parquet").exists() && first.exists());

    let told = ok(folder, "submit local s");
    assert_eq!(told.matches(": finished").count(), 5, "{told}");
    assert!(!told.contains("unit 1,"), "{told}");
    ok(folder, &format!("{LONG} --out whole.parquet"));
    check_same(
        &folder.join("merged.parquet"),
        &folder.join("whole.parquet"),
    );
    assert!(!first.exists(), "parts go when the table is there");
}

#[cfg(unix)]
#[test]
fn what_is_stopped_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = format!("--threads 1 submit local --shards 2 --folder s -- {LONG} --out a.parquet");
    let mut child = Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(shlex::split(&line).unwrap())
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !folder.join("s/units/1.json").exists() {
        assert!(began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    refused(folder, "submit local s", "is at work on it");
    refused(folder, "submit merge s", "`candlewick submit cancel s`");
    let told = ok(folder, "submit cancel s");
    assert!(told.contains("was asked to stop"), "{told}");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let told = ok(folder, "submit cancel s");
    assert!(told.contains("nothing of it runs or waits"), "{told}");
    ok(folder, "submit local s");
    ok(folder, &format!("{LONG} --out whole.parquet"));
    check_same(&folder.join("a.parquet"), &folder.join("whole.parquet"));
}

/// A unit that is stopped at once, with these flags.
#[cfg(unix)]
fn stopped_at_once(folder: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let _ = fs::remove_file(folder.join("s/units/1.json"));
    let child = Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(["--threads", "1", "submit", "unit"])
        .args(flags)
        .args(["s", "1"])
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !folder.join("s/units/1.json").exists() {
        assert!(began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-INT", &id]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), text(&output.stderr))
}

#[cfg(unix)]
#[test]
fn a_stop_is_a_time_limit_only_where_a_script_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    // One part for the whole shard, so that none is finished when the stop comes.
    let long = "patch --sites z:pos,q:pos,k:pos,v:pos --n-pairs 240 --memory 64GB";
    ok(
        folder,
        &format!("submit slurm --shards 1 --folder s -- {long} --out a.parquet"),
    );
    let (code, errors) = stopped_at_once(folder, &[]);
    assert_eq!(code, Some(130), "{errors}");
    assert!(!errors.contains("time"), "{errors}");
    let (code, errors) = stopped_at_once(folder, &["--time-limit"]);
    assert_eq!(code, Some(1), "{errors}");
    let says = "`candlewick submit slurm s --run` with more `--time`";
    assert!(errors.contains(says), "{errors}");
}

#[test]
fn a_process_of_another_machine_is_named_and_not_signalled() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    ok(
        folder,
        "submit slurm --shards 1 --folder s -- patch --n-pairs 2 --out a.parquet",
    );
    let lock = fs::File::options()
        .read(true)
        .write(true)
        .open(folder.join("s/lock"));
    let mut lock = lock.unwrap();
    lock.lock().unwrap();
    lock.set_len(0).unwrap();
    let owner = format!(
        "{{\"process\":{},\"host\":\"node3\",\"job\":[\"12\",0]}}",
        std::process::id()
    );
    std::io::Write::write_all(&mut lock, owner.as_bytes()).unwrap();
    let who = format!(
        "process {} on node3 (job 12) is at work on it",
        std::process::id()
    );
    for line in ["submit cancel s", "submit local s", "submit merge s"] {
        refused(folder, line, &who);
    }
}

/// A file system of its own that holds little, gone when it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path) -> Option<Small> {
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]);
        let output = command.arg(at).output().ok()?;
        output.status.success().then(|| Small(at.to_path_buf()))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_is_said_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let small = folder.join("small");
    fs::create_dir(&small).unwrap();
    let Some(mounted) = Small::mount(&small) else {
        eprintln!("skipped: nobody may mount a small file system here");
        return;
    };
    let filler = small.join("filler");
    let fill = || {
        let mut file = fs::File::create(&filler).unwrap();
        while std::io::Write::write_all(&mut file, &[0; 4096]).is_ok() {}
    };
    let command = "patch --sites z --n-pairs 6 --out whole.parquet";
    ok(folder, command);
    let submit = "submit local --shards 2 --folder small/s -- patch --sites z --n-pairs 6 --out table.parquet";
    // There is no room for the submission, then none for its parts, then none for the table.
    fill();
    refused(folder, submit, "no room is left");
    fs::remove_file(&filler).unwrap();
    ok(folder, &submit.replace("local", "slurm"));
    fill();
    let (code, _, errors) = run(folder, "submit unit small/s 1");
    assert!(code == 1 && errors.contains("no room is left"), "{errors}");
    fs::remove_file(&filler).unwrap();
    ok(folder, "submit local small/s");
    check_same(&folder.join("table.parquet"), &folder.join("whole.parquet"));
    fill();
    refused(
        folder,
        "patch --sites z --n-pairs 6 --out small/table.parquet",
        "no room is left",
    );
    drop(mounted);
}

#[test]
fn a_time_for_a_shard_is_kept_and_estimated_for_the_threads_it_gets() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = "submit slurm --minutes-per-shard 0.0001 --cpus 1 --folder s -- patch --sites z:pos --n-pairs 40 --memory 1MB --out a.parquet";
    let first = ok(folder, line);
    assert!(!first.starts_with("1 unit"), "{first}");
    let manifest = || fs::read_to_string(folder.join("s/submission.json")).unwrap();
    assert!(manifest().contains("\"minutes\": 0.0001"), "{}", manifest());
    // The same again is the same submission, however long an estimate would be now; and so is its folder.
    let units = |told: &str| told.split(' ').next().map(String::from);
    assert_eq!(units(&ok(folder, line)), units(&first));
    assert_eq!(units(&ok(folder, "submit slurm s")), units(&first));
    assert!(manifest().contains("\"minutes\": 0.0001"));
}

#[test]
fn force_is_asked_anew_each_time() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = "submit local --shards 2 --folder s -- patch --sites z --n-pairs 4 --out a.parquet";
    assert!(ok(folder, line).contains("merged"));
    assert!(!ok(folder, line).contains("merged"));
    assert!(ok(folder, &format!("{line} --force")).contains("merged"));
}

#[test]
fn a_shard_that_is_there_is_not_measured_again_and_one_of_another_index_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let line = "patch --sites z --n-pairs 4 --shard 1/2 --out one.parquet";
    ok(folder, line);
    let before = fs::metadata(folder.join("one.parquet"))
        .unwrap()
        .modified()
        .unwrap();
    ok(folder, line);
    let after = fs::metadata(folder.join("one.parquet"))
        .unwrap()
        .modified()
        .unwrap();
    assert_eq!(before, after);
    refused(folder, &line.replace("1/2", "2/2"), "holds other results");
}

#[test]
fn shards_that_were_cut_in_different_places_make_no_table() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    for (shard, memory) in [(1, "1MB"), (2, "4GB")] {
        ok(
            folder,
            &format!(
                "patch --sites z:pos --n-pairs 24 --memory {memory} --shard {shard}/2 --out {shard}.parquet"
            ),
        );
    }
    refused(
        folder,
        "merge 1.parquet 2.parquet --out all.parquet",
        "--memory",
    );
}

const PLAN: &str = "models = [\"embedded\"]\ntasks = [{ task = \"embedded\", flags = \"--template 0\" }, \"induction\"]\n\
                    n_pairs = 4\n[methods]\nheads = \"patch --sites z\"\nwrites = \"logits --by head\"\n";

#[test]
fn a_plan_gives_the_tables_of_its_runs_and_what_is_finished_stays() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("alone.toml"), PLAN).unwrap();
    fs::write(folder.join("sharded.toml"), PLAN).unwrap();
    ok(folder, "run alone.toml");
    let told = ok(folder, "submit local sharded.toml --shards 2");
    assert!(told.contains("all 4 tables are there"), "{told}");
    let mut tables = 0;
    for task in ["embedded", "induction"] {
        for method in ["heads", "writes"] {
            let file = format!(
                "run_model=embedded/run_task={task}/run_method={method}/part-00000.parquet"
            );
            check_same(
                &folder.join("alone").join(&file),
                &folder.join("sharded").join(&file),
            );
            tables += 1;
        }
    }
    assert_eq!(tables, 4);
    assert!(folder.join("sharded/summary.parquet").is_file());
    let told = ok(folder, "run sharded.toml");
    assert_eq!(told.matches("was finished").count(), 4, "{told}");

    // A plan that was changed after it ran.
    let more = PLAN.replace("[methods]", "[methods]\nmlps = \"patch --sites mlp_out\"");
    fs::write(folder.join("sharded.toml"), &more).unwrap();
    refused(
        folder,
        "submit local sharded.toml --shards 2",
        "4 of 6 runs are the same in both; `--replace` keeps",
    );
    let told = ok(folder, "submit local sharded.toml --shards 2 --replace");
    assert_eq!(told.matches(": finished").count(), 4, "{told}");
    let other = PLAN.replace("--sites z", "--sites attn_out");
    fs::write(folder.join("sharded.toml"), other).unwrap();
    refused(
        folder,
        "submit local sharded.toml --shards 2",
        "results of other settings",
    );
}

#[test]
fn what_cannot_be_submitted_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    fs::write(folder.join("plan.toml"), PLAN).unwrap();
    fs::write(
        folder.join("wrong.toml"),
        PLAN.replace("--sites z", "--layers 99"),
    )
    .unwrap();
    fs::write(
        folder.join("away.toml"),
        PLAN.replace("\"embedded\"]\nt", "\"nobody/nothing\"]\nt"),
    )
    .unwrap();
    fs::write(folder.join("notes.txt"), "mine").unwrap();
    fs::write(folder.join("template"), "#SBATCH --array=1\n").unwrap();
    fs::create_dir(folder.join("full")).unwrap();
    fs::write(folder.join("full/mine"), "mine").unwrap();
    ok(folder, "patch --out taken.parquet --n-pairs 2");
    let patch = "patch --sites z --n-pairs 2 --out a.parquet";
    for (line, says) in [
        ("submit local --shards 2 -- pach", "did you mean `patch`?"),
        (
            "submit local --shards 2 -- show a.parquet",
            "no command that measures",
        ),
        ("submit local --shards 2 -- patch --sitez z", "--sitez"),
        ("submit local --shards 2 -- patch --layers 99", "99"),
        (
            "submit local --shards 2 -- patch --shard 1/2",
            "`--shards` says how many",
        ),
        (
            "submit local --shards 2 -- patch --dry-run",
            "`--dry-run` does nothing",
        ),
        (
            "submit local --shards 2 -- patch --threads 3",
            "`--threads` does nothing",
        ),
        ("submit local --shards 2 -- patch --csv", "candlewick show"),
        (
            "submit local --shards 2 -- path --composition",
            "measures no prompts",
        ),
        (
            "submit local --shards 2 -- patch --out nowhere/a.parquet",
            "nowhere",
        ),
        (
            "submit local --shards 2 -- patch --out taken.parquet --n-pairs 3",
            "other results",
        ),
        ("submit local --shards 2 -- patch --out notes.txt", "format"),
        (
            "submit local --shards 2 -- patch --model nobody/nothing",
            "nobody/nothing",
        ),
        ("submit local nowhere.toml", "nowhere.toml"),
        ("submit local notes.txt", "name a plan"),
        ("submit local full", "there is no `submission.json`"),
        (
            "submit local plan.toml --shards 2 --folder full",
            "it holds other files",
        ),
        (
            "submit local wrong.toml --shards 2",
            "2 of its 4 runs cannot be done",
        ),
        ("submit local away.toml --shards 2", "runs cannot be done"),
        (
            &format!("submit slurm --shards 2 --template template -- {patch}"),
            "line 1",
        ),
        (
            &format!("submit slurm --shards 2 --template nothing -- {patch}"),
            "nothing",
        ),
        ("submit status nowhere", "there is no `submission.json`"),
        ("submit unit nowhere 1", "there is no `submission.json`"),
    ] {
        refused(folder, line, says);
        assert!(
            !folder.join("a.submission").exists(),
            "{line} left a folder"
        );
    }
    for line in [
        "submit local",
        "submit local plan.toml -- patch",
        "submit local --shards 0 -- patch",
        "submit local --jobs 0 -- patch",
        "submit local --shards 2 --minutes-per-shard 2 -- patch",
        "submit slurm --time tomorrow -- patch",
        "submit slurm --time 0 -- patch",
        "submit slurm --mem lots -- patch",
        "submit slurm --cpus 0 -- patch",
        "submit slurm --partition \"a b\" -- patch",
        "submit slurm --account \"x\n#SBATCH -A y\" -- patch",
        "submit slurm --array-throttle 0 -- patch",
    ] {
        assert_eq!(run(folder, line).0, 2, "{line}");
    }
    ok(
        folder,
        &format!("submit slurm --shards 2 --folder two -- {patch}"),
    );
    refused(folder, "submit unit two 3", "they are 1 to 2");
    refused(
        folder,
        "submit slurm two --shards 3",
        "`--shards` does nothing",
    );
    refused(
        folder,
        &format!("submit slurm --shards 3 --folder two -- {patch}"),
        "cut into 2 shards",
    );
    // Of another build.
    let manifest = folder.join("two/submission.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace(candlewick::BUILD, "0.0.9")).unwrap();
    for line in ["submit merge two", "submit unit two 1", "submit local two"] {
        refused(folder, line, "0.0.9");
    }
    refused(
        folder,
        &format!("submit local --shards 2 --folder two -- {patch}"),
        "`--replace` measures all of it again",
    );
    fs::write(
        &manifest,
        text.replace("\"partition\": null", "\"partition\": \"a\\n#SBATCH -A b\""),
    )
    .unwrap();
    refused(folder, "submit slurm two", "its options for Slurm are none");
    fs::write(&manifest, "{").unwrap();
    refused(
        folder,
        "submit status two",
        "not a readable submission file",
    );
    fs::write(
        &manifest,
        text.replace("\"shards\": 2", "\"shards\": 99999999999"),
    )
    .unwrap();
    refused(folder, "submit status two", "too many");
}

/// Programs of Slurm that answer as a test wants.
#[cfg(unix)]
#[test]
fn a_slurm_that_is_not_there_or_refuses_loses_nothing() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    let program = |name: &str, body: &str| {
        let path = bin.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let submit = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_candlewick"))
            .args(["submit"])
            .args(arguments)
            .current_dir(folder)
            .env("PATH", &bin)
            .output()
            .unwrap();
        (
            output.status.success(),
            text(&output.stdout) + &text(&output.stderr),
        )
    };
    let first = [
        "slurm",
        "--run",
        "--shards",
        "3",
        "--folder",
        "s",
        "--",
        "patch",
        "--sites",
        "z",
        "--n-pairs",
        "3",
        "--out",
        "a.parquet",
    ];
    let (done, told) = submit(&first);
    assert!(
        !done
            && told.contains("there is no `sbatch` here")
            && told.contains("candlewick submit local"),
        "{told}"
    );
    assert!(!folder.join("s").exists());

    program(
        "sbatch",
        "[ \"$1\" = --version ] && exit 0; echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1",
    );
    program("scontrol", "echo 'MaxArraySize            = 3'");
    let (done, told) = submit(&first);
    assert!(
        !done && told.contains("QOSMaxSubmitJobPerUserLimit"),
        "{told}"
    );
    assert!(
        told.contains("`candlewick submit slurm s --run` submits it"),
        "{told}"
    );

    // Three units do not fit an array of two: two of them share a task.
    program(
        "sbatch",
        "[ \"$1\" = --version ] && exit 0; echo \"$@\" >> calls; case $* in *afterany*) echo 13;; *) echo '12;cluster';; esac",
    );
    program(
        "squeue",
        "echo '12|2|RUNNING|0:07|node3'; echo '12|1|PENDING|0:00|(Priority)'; echo '99|1|RUNNING|0:07|x'",
    );
    program("scancel", "echo \"scancel $@\" >> calls");
    fs::write(folder.join("template"), "#SBATCH --gres=gpu:1\n").unwrap();
    let (done, told) = submit(&[
        "slurm",
        "s",
        "--run",
        "--template",
        "template",
        "--time",
        "7",
    ]);
    assert!(
        done && told.contains("3 units in 2 tasks") && told.contains("job 12"),
        "{told}"
    );
    let script = fs::read_to_string(folder.join("s/array-1.sbatch")).unwrap();
    assert!(
        script.contains("#SBATCH --array=1-2\n") && script.contains("per_task=2"),
        "{script}"
    );
    let calls = fs::read_to_string(folder.join("calls")).unwrap();
    assert!(
        calls.contains("--dependency=afterany:12") && calls.lines().count() == 2,
        "{calls}"
    );

    let (done, told) = submit(&["status", "s"]);
    assert!(
        done && told.contains("waiting  0:00  patch  (Priority)") && told.contains("node3"),
        "{told}"
    );
    for again in [&["slurm", "s", "--run"][..], &["local", "s"], &first] {
        let (done, told) = submit(again);
        assert!(
            !done && told.contains("2 of its tasks are in the queue"),
            "{told}"
        );
    }
    let (done, told) = submit(&["cancel", "s"]);
    assert!(
        done && told.contains("2 tasks were taken out of the queue"),
        "{told}"
    );
    let calls = fs::read_to_string(folder.join("calls")).unwrap();
    assert!(calls.contains("scancel 12 13"), "{calls}");
    // Slurm itself has forgotten the job, but not its accounting.
    program("squeue", "true");
    program("sacct", "echo '12_1|FAILED|3:0'; echo '12_2|RUNNING|0:0'");
    let (done, told) = submit(&["status", "s"]);
    assert!(done && told.contains("Slurm: FAILED, exit 3"), "{told}");
    // What is submitted again has the options that it had.
    let (done, told) = submit(&["slurm", "s", "--run"]);
    assert!(done, "{told}");
    let script = fs::read_to_string(folder.join("s/array-2.sbatch")).unwrap();
    assert!(
        script.contains("--time=7\n") && script.contains("--gres=gpu:1"),
        "{script}"
    );
}
