//! Promises of the binary: help, exit codes, one-line errors, and quiet pipes.

mod circuits;
mod docs;
mod help;
mod results;
mod show;
mod submit;

use std::io::Read;
use std::process::{Command, Output, Stdio};

use candlewick::scores::{Cell, Detail, ExampleScores, Provenance, Scores, ScoresMeta};

fn candlewick(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(args)
        .output()
        .expect("the binary was built for this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Fails with `code`, says `what` in one line on stderr, and nothing on stdout.
fn check_failure(args: &[&str], code: i32, what: &str) {
    let output = candlewick(args);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    assert!(stderr.contains(what), "{args:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{args:?}");
    if code == 1 {
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}

/// A table of four layers by three positions, over two examples.
fn scores() -> Scores {
    let cells: Vec<Cell> = (0..12)
        .map(|i| Cell {
            component: "hook_resid_pre".into(),
            layer: Some(i / 3),
            pos: Some((i % 3) as i32),
            ..Cell::default()
        })
        .collect();
    let example = |example: usize| ExampleScores {
        example,
        clean: 2.0,
        corrupted: -2.0,
        tokens: vec!["When".into(), " \x1b[31mMary".into(), ",".into()],
        cells: (0..12).collect(),
        values: (0..12)
            .map(|cell| cell as f64 / 3.0 - 2.0 + example as f64 / 10.0)
            .collect(),
        ..ExampleScores::default()
    };
    let meta = ScoresMeta {
        method: "activation_patching".into(),
        metric: "logit_diff".into(),
        unit: "logits".into(),
        ..ScoresMeta::default()
    };
    let provenance = Provenance {
        command: ["candlewick", "patch", "--task", "it's.toml"]
            .map(String::from)
            .to_vec(),
        ..Provenance::default()
    };
    Scores::assemble(
        &cells,
        &[example(0), example(1)],
        &meta,
        Detail::Mean,
        provenance,
    )
    .unwrap()
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("scores.parquet");
    let mut big = scores();
    for _ in 0..12 {
        let again = big.table.clone();
        big.table.vstack_mut(&again).unwrap();
    }
    big.write_parquet(&file).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(["show", file.to_str().unwrap(), "--csv"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(output.stderr.is_empty());
}
