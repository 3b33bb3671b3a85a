//! Promises of the binary: help, exit codes, one-line errors, and quiet pipes.

use std::fs;
use std::io::Read;
use std::process::{Command, Output, Stdio};

use candlewick::scores::{Cell, Column, Detail, ExampleScores, Provenance, Scores, ScoresMeta};

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

/// The names of the subcommands, as `--help` lists them.
fn subcommands() -> Vec<String> {
    let help = text(&candlewick(&["--help"]).stdout);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(String::from)
        .collect()
}

/// The commands under `Examples:` at the end of a subcommand's help.
fn examples(subcommand: &str) -> Vec<Vec<String>> {
    let help = text(&candlewick(&[subcommand, "--help"]).stdout);
    let (_, examples) = help
        .split_once("Examples:\n")
        .unwrap_or_else(|| panic!("`{subcommand} --help` has no examples: {help}"));
    let lines = examples.lines().map(str::trim);
    lines.filter(|line| !line.is_empty()).map(words).collect()
}

/// The words that a shell makes of a line: what stands in quotes is one.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            ('\'' | '"', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[test]
fn every_subcommand_explains_itself() {
    let found = subcommands();
    for known in ["tokens", "hooks", "models", "show"] {
        assert!(found.iter().any(|name| name == known), "{known}: {found:?}");
    }
    for name in &found {
        let output = candlewick(&[name, "--help"]);
        assert!(output.status.success(), "{name}");
        let shown = text(&output.stdout);
        assert!(shown.contains("Usage: candlewick"), "{name}: {shown}");
        assert!(!examples(name).is_empty(), "{name}");
    }
    assert!(text(&candlewick(&["--version"]).stdout).starts_with("candlewick "));
}

#[test]
fn every_example_in_the_help_runs() {
    let folder = tempfile::tempdir().unwrap();
    scores()
        .write_parquet(&folder.path().join("scores.parquet"))
        .unwrap();
    for subcommand in subcommands() {
        for example in examples(&subcommand) {
            assert_eq!(example[0], "candlewick", "{example:?}");
            let output = Command::new(env!("CARGO_BIN_EXE_candlewick"))
                .args(&example[1..])
                .current_dir(folder.path())
                .env("HF_HUB_OFFLINE", "1")
                .env("HF_HOME", folder.path())
                .output()
                .unwrap();
            let stderr = text(&output.stderr);
            assert!(output.status.success(), "{example:?}: {stderr}");
            assert!(!output.stdout.is_empty(), "{example:?}");
            assert!(!stderr.contains("error:"), "{example:?}: {stderr}");
        }
    }
    let mut tables = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        // A shard is no table yet.
        let is_shard = path.to_string_lossy().contains("shard-");
        if path.extension().is_some_and(|ending| ending == "parquet") && !is_shard {
            check_table(&path);
            tables += 1;
        }
    }
    assert!(
        tables > 30,
        "each command that measures wrote one: {tables}"
    );
}

/// Every table has the same columns, one metric, and one row for a site and an example.
fn check_table(path: &std::path::Path) {
    let scores = Scores::read_parquet(path).unwrap();
    let found = scores.table.get_column_names();
    let found: Vec<&str> = found.iter().map(|name| name.as_str()).collect();
    let names: Vec<&str> = Column::ALL.iter().map(|column| column.name()).collect();
    assert_eq!(found, names, "{path:?}");
    let about = &scores.provenance;
    let doubled = about
        .warnings
        .iter()
        .find(|text| text.contains("are one site"));
    assert_eq!(doubled, None, "{path:?}: {:?}", about.command);
    let is_side = about.side.is_some();
    let metrics = scores.table.column("metric").unwrap().n_unique().unwrap();
    assert!(is_side || metrics == 1, "{path:?}: {:?}", about.command);
}

#[test]
fn wrong_usage_exits_with_2() {
    check_failure(&["show"], 2, "FILE");
    check_failure(&["show", "a.parquet", "--colour"], 2, "--colour");
    check_failure(&["no-such-verb"], 2, "no-such-verb");
    check_failure(&["show", "a.parquet", "--csv", "--json"], 2, "--json");
    check_failure(
        &["tokens", "--task", "ioi", "--pairs", "a.csv"],
        2,
        "--pairs",
    );
    check_failure(&["tokens", "--n-pairs", "0"], 2, "--n-pairs");
    check_failure(&["tokens", "--seed", "-1"], 2, "-1");
    check_failure(&["tokens", "--bos", "maybe"], 2, "--bos");
    check_failure(&["hooks", "--dtype", "int4"], 2, "--dtype");
    check_failure(&["hooks", "--device", "tpu"], 2, "--device");
    check_failure(&["hooks", "--batch", "3"], 2, "--pos");
    check_failure(&["models", "--threads", "0"], 2, "--threads");
    check_failure(&["path", "--senders", ","], 2, "name nodes");
    check_failure(&["path", "--receivers", "a3.h0"], 2, "--receivers");
    check_failure(&["ablate", "--source", "scale"], 2, "scale:0.5");
    check_failure(&["ablate", "--layers", "3-0"], 2, "--layers");
    check_failure(&["scale"], 2, "--heads");
}

#[test]
fn means_are_taken_over_a_file_of_pairs_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    let prompt =
        |name: &str| format!("then Mary and John went to the store . {name} gave a drink to");
    let (one, other) = (prompt("John"), prompt("Mary"));
    let pairs = |clean: &str, corrupted: &str, answer: &str, wrong: &str| {
        format!("clean,corrupted,answer,wrong\n{clean},{corrupted},{answer},{wrong}\n")
    };
    let (own, file) = (at("own.csv"), at("reference.csv"));
    fs::write(&own, pairs(&one, &other, "Mary", "John")).unwrap();
    // What is clean there is corrupted here: its mean is that of the task's own corrupted prompts.
    fs::write(&file, pairs(&other, &one, "John", "Mary")).unwrap();
    let out = at("ablation.parquet");
    let ablate = |more: &[&str]| {
        let mut args = vec!["ablate", "--pairs", &own, "--csv", "--force", "--out", &out];
        args.extend(more);
        let output = candlewick(&args);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let given = ablate(&["--reference", &file]);
    assert_eq!(given, ablate(&[]));
    // The prompt's own mean changes nothing; another's does.
    assert_ne!(given, ablate(&["--reference", &own]));
    // Where means do nothing, a reference does nothing.
    check_failure(
        &["ablate", "--source", "zero", "--reference", &file],
        1,
        "`--reference` does nothing",
    );
}

#[test]
fn tokens_shows_pairs_side_by_side() {
    let output = candlewick(&["tokens", "--limit", "1", "--seed", "3"]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    for says in [
        "task embedded: 32 pairs",
        "seed 3",
        "clean",
        "corrupted",
        "S1+1",
        "<bos>",
    ] {
        assert!(shown.contains(says), "{says}: {shown}");
    }
    // Without a seed the file's own holds.
    assert!(text(&candlewick(&["tokens"]).stdout).contains("seed 0"));
    let json = text(&candlewick(&["tokens", "--json"]).stdout);
    assert!(
        serde_json::from_str::<serde_json::Value>(&json).is_ok(),
        "{json}"
    );
}

#[test]
fn hooks_lists_what_is_there_and_what_is_not() {
    let shown = text(&candlewick(&["hooks", "--layer", "1", "--batch", "2", "--pos", "9"]).stdout);
    let row = |name: &str| {
        let found = shown.lines().find(|line| line.starts_with(name));
        found.unwrap_or_else(|| panic!("no {name}: {shown}"))
    };
    assert!(
        row("blocks.1.attn.hook_z ").contains("[2, 9, 4, 16]"),
        "{shown}"
    );
    assert!(
        row("blocks.1.attn.hook_pattern ").contains("[2, 4, 9, 9]"),
        "{shown}"
    );
    assert!(row("hook_pos_embed ").contains("not learned"), "{shown}");
    let json = text(&candlewick(&["hooks", "--json"]).stdout);
    let rows: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        rows.iter()
            .any(|row| row["short"] == "z" && row["axes"][2] == "4")
    );
}

#[test]
fn show_refuses_what_is_not_a_table_of_scores() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_string();
    check_failure(&["show", &at("absent.parquet")], 1, "no such file");
    check_failure(&["show", &at("")], 1, "cannot read");
    fs::write(at("empty"), "").unwrap();
    check_failure(&["show", &at("empty")], 1, "not a readable scores file");
    fs::write(
        at("garbage"),
        [b"PAR1".as_slice(), &[0xff; 300], b"PAR1"].concat(),
    )
    .unwrap();
    check_failure(&["show", &at("garbage")], 1, "damaged");
    scores().write_parquet(at("whole").as_ref()).unwrap();
    let whole = fs::read(at("whole")).unwrap();
    fs::write(at("cut"), &whole[..whole.len() - 100]).unwrap();
    check_failure(&["show", &at("cut")], 1, "its end is missing");
}

#[test]
fn show_says_what_a_file_is_and_how_to_make_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder
        .path()
        .join("scores.parquet")
        .to_str()
        .unwrap()
        .to_string();
    let picture = folder.path().join("scores.svg");
    scores().write_parquet(file.as_ref()).unwrap();
    let output = candlewick(&[
        "show",
        &file,
        "--top",
        "3",
        "--svg",
        picture.to_str().unwrap(),
    ]);
    let shown = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(
        shown.contains("hook_resid_pre") && shown.contains("position"),
        "{shown}"
    );
    assert!(
        shown.contains(r"made by: candlewick patch --task 'it'\''s.toml'"),
        "{shown}"
    );
    assert!(
        !shown.contains('\x1b'),
        "a pipe gets no escape sequences, not even from a token: {shown}"
    );
    assert!(fs::read_to_string(picture).unwrap().starts_with("<svg"));
    let csv = text(&candlewick(&["show", &file, "--csv"]).stdout);
    assert_eq!(csv.lines().count(), 13, "{csv}");
    let some = ["show", &file, "--csv", "--where", "layer=2-3,pos=0"];
    let csv = text(&candlewick(&some).stdout);
    assert_eq!(csv.lines().count(), 3, "{csv}");
    check_failure(
        &["show", &file, "--where", "layer=9"],
        1,
        "runs from 0 to 3",
    );
    check_failure(&["show", &file, "--panel", "z"], 1, "hook_resid_pre");
    let json = text(&candlewick(&["show", &file, "--json", "--top", "2"]).stdout);
    let rows: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["layer"], 3);
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

/// Runs in a folder; gives whether it went well, what it printed, and what it said on stderr.
fn candlewick_in(folder: &std::path::Path, args: &[&str]) -> (bool, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_candlewick"))
        .args(args)
        .current_dir(folder)
        .output()
        .unwrap();
    let is_fine = output.status.success();
    (is_fine, text(&output.stdout), text(&output.stderr))
}

#[test]
fn results_are_replaced_by_their_own_command_alone() {
    let folder = tempfile::tempdir().unwrap();
    let patch = |more: &[&str]| {
        let args = ["patch", "--sites", "z", "--layers", "0", "--n-pairs"];
        candlewick_in(folder.path(), &[&args, more].concat())
    };
    let bytes = |name: &str| fs::read(folder.path().join(name)).unwrap();
    let out = ["2", "--out", "a.parquet"];
    assert!(patch(&out).0);
    assert!(patch(&[&out[..], &["--quiet"]].concat()).0);
    let before = bytes("a.parquet");
    let (is_fine, _, stderr) = patch(&["3", "--out", "a.parquet"]);
    let holds = "holds other results (`candlewick patch --sites z --layers 0 --n-pairs 2";
    assert!(
        !is_fine && stderr.contains(holds) && stderr.contains("--force"),
        "{stderr}"
    );
    assert!(bytes("a.parquet") == before);
    assert!(patch(&["3", "--out", "a.parquet", "--force"]).0);
    assert!(bytes("a.parquet") != before);
    // A file of somebody else's stays too, and a name without a format is none.
    fs::write(folder.path().join("notes.csv"), "mine").unwrap();
    let (_, _, stderr) = patch(&["2", "--out", "notes.csv"]);
    assert!(stderr.contains("was not written by candlewick"), "{stderr}");
    let (_, _, stderr) = patch(&["2", "--out", "notes.txt"]);
    assert!(
        stderr.contains("`.parquet`, `.csv` or `.jsonl`"),
        "{stderr}"
    );
    assert_eq!(bytes("notes.csv"), b"mine");
}

#[test]
fn default_names_are_numbered_where_they_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    for (pairs, name) in [
        ("2", "scores.parquet"),
        ("3", "scores-2.parquet"),
        ("2", "scores.parquet"),
    ] {
        let args = ["patch", "--sites", "z", "--layers", "0", "--n-pairs", pairs];
        let (is_fine, stdout, stderr) = candlewick_in(folder.path(), &args);
        assert!(
            is_fine && stdout.trim_end().ends_with(&format!(" {name}")),
            "{stdout}"
        );
        assert_eq!(
            stderr.contains("is kept as it is"),
            name != "scores.parquet",
            "{stderr}"
        );
    }
    let (_, shown, _) = candlewick_in(folder.path(), &["show", "scores-2.parquet"]);
    let folder_name = folder.path().canonicalize().unwrap();
    assert!(
        shown.contains(&format!("made in: {}", folder_name.display())),
        "{shown}"
    );
}

#[test]
fn text_files_are_written_with_how_they_were_made_beside_them() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a.csv", "a.jsonl"] {
        let args = [
            "heads",
            "--samples",
            "1",
            "--n-pairs",
            "2",
            "--force",
            "--out",
            name,
        ];
        let (is_fine, _, stderr) = candlewick_in(folder.path(), &args);
        assert!(is_fine, "{stderr}");
        let table = fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(table.lines().count() > 10 && table.contains("induction"));
        let beside = fs::read_to_string(folder.path().join("a.provenance.json")).unwrap();
        let about: serde_json::Value = serde_json::from_str(&beside).unwrap();
        assert_eq!(about["table"], name);
        assert_eq!(about["method"], "head_statistics");
        let (is_fine, _, stderr) = candlewick_in(folder.path(), &["show", name]);
        assert!(
            !is_fine && stderr.contains("candlewick heads --samples 1"),
            "{stderr}"
        );
    }
}

#[test]
fn what_killed_runs_left_is_listed_and_removed_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let parts = folder.path().join("scores.parquet.parts");
    fs::create_dir(&parts).unwrap();
    for name in ["plan.json", "lock", "part-00000.parquet", "notes.txt"] {
        fs::write(parts.join(name), "1234").unwrap();
    }
    let (_, listed, _) = candlewick_in(folder.path(), &["clean"]);
    assert!(
        listed.contains("scores.parquet.parts: 1 finished part, 12 bytes\n"),
        "{listed}"
    );
    assert!(parts.join("plan.json").exists());
    let (_, removed, _) = candlewick_in(folder.path(), &["clean", "--remove"]);
    assert!(removed.contains("removed\n12 bytes freed"), "{removed}");
    assert_eq!(
        fs::read_dir(&parts).unwrap().count(),
        1,
        "what is not ours stays"
    );
    let (_, listed, _) = candlewick_in(folder.path(), &["clean"]);
    assert_eq!(listed, "nothing is left over\n");
}
