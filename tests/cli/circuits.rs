//! Circuits on the command line: converted, compared, held against scores, and refused in one line.

use crate::{candlewick, check_failure, text};

/// What a command prints; it must end well.
fn printed(args: &[&str]) -> String {
    let output = candlewick(args);
    let stderr = text(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    text(&output.stdout)
}

#[test]
fn a_circuit_goes_through_the_formats_and_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let mut from = "published/ioi".to_string();
    for name in ["a.dot", "b.graphml", "c.toml", "d.gv"] {
        let to = at(name);
        let shown = printed(&["circuit", "convert", &from, &to]);
        assert!(shown.contains("963 edges between 40 nodes"), "{shown}");
        from = to;
    }
    for name in ["e.json", "f.csv", "g.txt"] {
        let to = at(name);
        printed(&["circuit", "convert", &from, &to, "--without-notes"]);
        let again = at(&format!("{name}.toml"));
        printed(&["circuit", "convert", &to, &again, "--like", "published/ioi"]);
        let table = printed(&["circuit", "compare", "published/ioi", &again, "--csv"]);
        let row = table.lines().nth(1).expect("a row");
        assert!(
            row.contains(",963,963,963,1.000,1.000,1.000,1.000,38,38,38,"),
            "{row}"
        );
    }
}

#[test]
fn scores_are_held_against_a_circuit() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (table, graph, roc) = (at("s.parquet"), at("s.json"), at("roc.csv"));
    let attribute = [
        "attribute",
        "--method",
        "ceap",
        "--n-pairs",
        "4",
        "--graph",
        &graph,
    ];
    printed(&[&attribute[..], &["--out", &table]].concat());
    let shown = printed(&[
        "circuit",
        "compare",
        "measured/embedded",
        "--scores",
        &table,
        "--scores",
        &graph,
        "--roc",
        &roc,
        "--csv",
    ]);
    let areas: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("measured/embedded"))
        .map(|line| line.split_once("measured/embedded,").expect("a row").1)
        .collect();
    // One table, in two formats.
    assert_eq!(areas.len(), 2, "{shown}");
    assert_eq!(areas[0], areas[1], "{shown}");
    let area: f64 = areas[0]
        .split(',')
        .nth(1)
        .expect("edges")
        .parse()
        .expect("a number");
    // The circuit was chosen by EAP-IG on other pairs, from the logits down.
    assert!(area > 0.8 && area <= 1.0, "{area}");
    let curve = std::fs::read_to_string(&roc).unwrap();
    assert!(
        curve.starts_with("scores,circuit,of,threshold,true_positive_rate,false_positive_rate\n")
    );
    assert!(
        curve.lines().count() > 100 && curve.contains(",nodes,"),
        "{curve}"
    );
    // A folder of shares of the edges, each against the circuit.
    let shares = at("shares");
    let made = printed(&["circuit", "convert", &graph, &shares]);
    assert!(made.contains("1.json: 479 edges"), "{made}");
    let table = printed(&["circuit", "compare", "measured/embedded", &shares, "--csv"]);
    assert!(table.contains("shares/0.1,52,"), "{table}");
}

#[test]
fn what_cannot_be_compared_or_converted_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let (there, list, huge) = (at("there.dot"), at("list.csv"), at("huge.dot"));
    std::fs::write(&there, "digraph { a -> b }").unwrap();
    std::fs::write(&list, "src,dst\ninput,m0\n").unwrap();
    std::fs::write(
        &huge,
        "digraph { n_layers=99999999 n_heads=12 d_model=8; input -> m0 }",
    )
    .unwrap();
    let (to_csv, to_png) = (at("x.csv"), at("x.png"));
    let cases: [(&[&str], &str); 9] = [
        (&["compare", "published/ioi"], "nothing to compare it with"),
        (
            &["compare", "published/ioi", "published/docstring"],
            "is of a model with",
        ),
        (
            &["compare", "published/ioi", "published/none"],
            "published/greater_than",
        ),
        (
            &["convert", "published/ioi", &to_csv],
            "has a class, positions or dimensions",
        ),
        (&["convert", "published/ioi", &to_png], "end the name in"),
        (&["convert", "published/ioi", &there], "stays as it is"),
        (&["convert", &list, &at("l.toml")], "--like"),
        (&["convert", &there, &at("t.toml")], "--like"),
        (&["convert", &huge, &at("h.toml")], "no model has"),
    ];
    for (args, says) in cases {
        check_failure(&[&["circuit"], args].concat(), 1, says);
    }
    check_failure(
        &["circuit", "compare", "published/ioi", "--roc", "r.csv"],
        2,
        "--scores",
    );
    assert!(!folder.path().join("x.csv").exists());
}

#[test]
fn circuits_are_pruned_and_held_against_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    let pruned = at("pruned.toml");
    let prune = [
        "circuit",
        "prune",
        "measured/embedded",
        "--n",
        "30",
        "--n-pairs",
        "8",
        "--steps",
        "30",
    ];
    let shown = printed(&[&prune[..], &["--out", &pruned]].concat());
    assert!(
        shown.contains("30 edges requested") && shown.contains("4 pairs that trained nothing"),
        "{shown}"
    );
    let cross = [
        "circuit",
        "cross",
        &pruned,
        "measured/embedded",
        "--tasks",
        "embedded",
        "--n-pairs",
        "4",
        "--csv",
    ];
    let table = printed(&cross);
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 3, "{table}");
    let faithfulness: f64 = rows[2]
        .split(',')
        .nth(3)
        .expect("a number")
        .parse()
        .expect("a number");
    assert!(faithfulness > 0.5, "{table}");
    for (args, says) in [
        (
            vec!["circuit", "prune", "--n", "900"],
            "fewer than there are",
        ),
        (
            vec!["circuit", "prune", "published/ioi", "--n", "9"],
            "12 layers",
        ),
        (
            vec!["circuit", "cross", "published/none", "--tasks", "embedded"],
            "no circuit of that name",
        ),
        (
            vec![
                "circuit",
                "cross",
                "measured/embedded",
                "--tasks",
                "embedded,embedded",
            ],
            "twice",
        ),
        (
            vec!["circuit", "acdc", "--threshold", "1", "--memory", "1MB"],
            "--n-pairs",
        ),
    ] {
        check_failure(&args, 1, says);
    }
}

#[test]
fn compare_is_of_tables_of_circuits_and_of_edges_with_their_json() {
    let folder = tempfile::tempdir().unwrap();
    let run = |args: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_candlewick"))
            .args(args.split(' '))
            .current_dir(folder.path())
            .output()
            .unwrap();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    // One command and another say the same of circuits.
    let (_, of_circuits, _) = run("circuit compare published/ioi published/greater_than");
    let (is_fine, of_any, _) = run("compare published/ioi published/greater_than");
    assert!(
        is_fine && of_any == of_circuits && of_any.contains("iou"),
        "{of_any}"
    );
    let (is_fine, _, stderr) = run("compare published/ioi published/ioi --json");
    assert!(
        !is_fine && stderr.contains("`--json` does nothing with circuits"),
        "{stderr}"
    );
    // A table of edges against the field's JSON of itself.
    assert!(run("attribute --method eap --n-pairs 2 --graph eap.json --out eap.parquet").0);
    let (is_fine, stdout, stderr) = run("compare eap.parquet eap.json");
    let says = "edges have a score in both; correlation of score 1.000, rank correlation 1.000; of the 10 strongest of each 10 are shared";
    assert!(is_fine && stdout.contains(says), "{stdout}{stderr}");
    let (is_fine, stdout, _) =
        run("attribute --method eap --n-pairs 2 --compare eap.json --out b.parquet");
    assert!(is_fine && stdout.contains(says), "{stdout}");
    std::fs::write(folder.path().join("c.toml"), "").unwrap();
    let (is_fine, _, stderr) = run("compare eap.parquet c.toml");
    assert!(
        !is_fine && stderr.contains("candlewick circuit compare"),
        "{stderr}"
    );
}
