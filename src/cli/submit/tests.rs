//! The scripts, as a real shell reads them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::folder::{Job, Round, Submission};
use super::script::{SlurmOptions, Template, scripts};

/// A submission of ten units in a folder whose name a shell would take apart.
fn submission(below: &Path) -> Submission {
    let path = below.join("it's $(touch wrong) \"a\"\n#SBATCH --array=1-99\nb`c`");
    fs::create_dir_all(&path).expect("a place to write");
    Submission {
        path,
        build: candlewick::BUILD.into(),
        jobs: vec![Job {
            name: "patch".into(),
            keys: None,
            command: ["candlewick", "patch"].map(String::from).into(),
            out: "scores.parquet".into(),
            shards: 10,
            seconds: None,
            force: false,
        }],
        ..Submission::default()
    }
}

/// A program that writes down its arguments and then does what `body` says.
fn program(folder: &Path, name: &str, body: &str) -> PathBuf {
    let path = folder.join(name);
    let told = folder.join("told");
    let text = format!(
        "#!/usr/bin/env bash\nprintf '%s\\0' \"$(basename \"$0\")\" \"$@\" >> '{}'\n{body}\n",
        told.display()
    );
    fs::write(&path, text).expect("a place to write");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }
    path
}

/// Runs the array script of a round as Slurm would, and gives its exit code and what was called with which arguments.
#[cfg(unix)]
fn run(
    submission: &Submission,
    round: &Round,
    template: &Template,
    body: &str,
    before: &str,
) -> (Option<i32>, Vec<String>) {
    let bin = tempfile::tempdir().expect("a folder");
    let work = program(bin.path(), "candle wick", body);
    program(bin.path(), "scontrol", "exit 1");
    let made = scripts(submission, round, 1, &work, template).expect("its name is text");
    let script = bin.path().join("array.sbatch");
    fs::write(&script, format!("{before}\n{}", made.array)).expect("a place to write");
    let path = std::env::var("PATH").expect("a PATH");
    let status = Command::new("bash")
        .arg(&script)
        .current_dir(bin.path())
        .env("PATH", format!("{}:{path}", bin.path().display()))
        .env("SLURM_ARRAY_TASK_ID", "2")
        .env("SLURM_CPUS_PER_TASK", "3")
        .env("SLURM_JOB_ID", "77")
        .status()
        .expect("bash runs");
    assert!(!bin.path().join("wrong").exists(), "a name was run");
    let told = fs::read_to_string(bin.path().join("told")).unwrap_or_default();
    let told = told.split_terminator('\0').map(String::from).collect();
    (status.code(), told)
}

fn round(units: &[usize], per_task: usize) -> Round {
    Round {
        units: units.to_vec(),
        per_task,
        slurm: None,
    }
}

#[cfg(unix)]
#[test]
fn a_task_runs_its_units_in_a_folder_of_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let submission = submission(folder.path());
    let path = submission.path.display().to_string();
    for (units, per_task, mine) in [
        (&[1, 2, 3][..], 1, &["2"][..]),
        (&[4, 7, 9], 2, &["9"]),
        (&[1, 2, 3, 4, 5, 6, 7], 3, &["4", "5", "6"]),
    ] {
        let round = round(units, per_task);
        let (code, told) = run(&submission, &round, &Template::default(), "exit 3", "");
        assert_eq!(code, Some(3));
        let wanted = [
            "candle wick",
            "--threads",
            "3",
            "submit",
            "unit",
            "--time-limit",
            &path,
        ];
        assert_eq!(told, [&wanted, mine].concat());
    }
}

#[cfg(unix)]
#[test]
fn a_signal_stops_the_work_once_and_what_was_stopped_is_queued_again() {
    let folder = tempfile::tempdir().unwrap();
    let submission = submission(folder.path());
    // Slurm sends the signal to the script, here more than once; the work needs a while to stop.
    let before = "me=$$; (sleep 0.5; kill -USR1 $me; sleep 0.2; kill -USR1 $me) &";
    // (A shell lets its children ignore SIGINT, and so no shell can play the work.)
    let body = "exec python3 -c 'import signal, sys, time
n = [0]
def stop(*_): n[0] += 1
signal.signal(signal.SIGINT, stop)
time.sleep(1.2)
sys.exit(130 if n[0] == 1 else 9)'";
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 to play the work");
        return;
    }
    let (code, told) = run(
        &submission,
        &round(&[1, 2], 1),
        &Template::default(),
        body,
        before,
    );
    assert_eq!(code, Some(130));
    assert!(
        told.ends_with(&["scontrol", "requeue", "77"].map(String::from)),
        "{told:?}"
    );
    // Work that ends well in spite of it is done.
    let body = "trap '' INT; sleep 0.9";
    let (code, told) = run(
        &submission,
        &round(&[1, 2], 1),
        &Template::default(),
        body,
        before,
    );
    assert_eq!(code, Some(0));
    assert!(!told.contains(&"scontrol".to_string()), "{told:?}");
}

#[test]
fn the_head_holds_what_was_asked_for_and_the_lines_of_a_template() {
    let folder = tempfile::tempdir().unwrap();
    let mut submission = submission(folder.path());
    submission.slurm = SlurmOptions {
        time: Some("2:00".into()),
        mem: Some("4G".into()),
        cpus: Some(4),
        partition: Some("gpu".into()),
        account: Some("lab-1".into()),
        array_throttle: Some(5),
        template: None,
    };
    let template = folder.path().join("template.sh");
    fs::write(
        &template,
        "#!/bin/sh\n#SBATCH --gres=gpu:1\nmodule load cuda\n",
    )
    .unwrap();
    let template = Template::read(&template).unwrap();
    let made = scripts(
        &submission,
        &round(&[1, 2, 3], 1),
        2,
        Path::new("/bin/c"),
        &template,
    )
    .unwrap();
    // What Slurm reads of it: comments up to the first other line.
    let head: Vec<&str> = (made.array.lines().skip(1))
        .take_while(|line| line.starts_with('#') || line.is_empty())
        .filter_map(|line| line.strip_prefix("#SBATCH "))
        .collect();
    assert_eq!(
        head,
        [
            "--job-name=candlewick",
            "--array=1-3%5",
            "--output=logs/round-2-task-%a.log",
            "--open-mode=append",
            "--requeue",
            "--signal=B:USR1@30",
            "--time=2:00",
            "--mem=4G",
            "--cpus-per-task=4",
            "--partition=gpu",
            "--account=lab-1",
            "--gres=gpu:1",
        ]
    );
    let setup = made.array.find("module load cuda").expect("it is there");
    assert!(setup < made.array.find("--threads").expect("it is there"));
    let of_merge = |flag: &str| made.merge.lines().any(|line| line.starts_with(flag));
    assert!(of_merge("#SBATCH --gres=gpu:1") && !of_merge("#SBATCH --array"));
}

#[test]
fn a_template_cannot_take_over_the_array() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t");
    for line in [
        "#SBATCH --array=1-3",
        "#SBATCH -o x",
        "#SBATCH -a1",
        "#SBATCH --dependency x",
    ] {
        fs::write(&path, format!("# mine\n{line}\n")).unwrap();
        let error = Template::read(&path).unwrap_err().to_string();
        assert!(error.contains("line 2"), "{error}");
    }
    assert!(Template::read(Path::new("/nowhere/t")).is_err());
}
