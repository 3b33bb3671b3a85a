//! Every subcommand explains itself, and its examples run.

use std::fs;
use std::process::Command;

use candlewick::scores::{Column, Scores};

use crate::{candlewick, check_failure, scores, text};

/// The names of the subcommands, as `--help` lists them; of one that has subcommands of its own, theirs behind its name.
fn subcommands() -> Vec<String> {
    let names = listed(&[]).into_iter();
    names
        .flat_map(|name| match listed(&[name.as_str()]) {
            below if below.is_empty() => vec![name],
            below => below.iter().map(|last| format!("{name} {last}")).collect(),
        })
        .collect()
}

/// The commands that the help of a command lists.
fn listed(command: &[&str]) -> Vec<String> {
    let help = text(&candlewick(&[command, &["--help"]].concat()).stdout);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(String::from)
        .collect()
}

/// What `--help` says of a subcommand.
fn help_of(subcommand: &str) -> String {
    let words: Vec<&str> = subcommand.split(' ').chain(["--help"]).collect();
    let output = candlewick(&words);
    assert!(output.status.success(), "{subcommand}");
    text(&output.stdout)
}

/// The commands under `Examples:` at the end of a subcommand's help.
fn examples(subcommand: &str) -> Vec<Vec<String>> {
    let help = help_of(subcommand);
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
        let shown = help_of(name);
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
    let plan = "models = [\"embedded\"]\ntasks = [\"embedded\"]\nn_pairs = 2\n[methods]\nheads = \"patch --sites z --template 0\"\n";
    fs::write(folder.path().join("plan.toml"), plan).unwrap();
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
        if path.ends_with("acts.parquet") {
            continue; // Activations are no table of scores.
        }
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
