//! Where results go: names, replacement, what killed runs left.

use std::fs;
use std::process::Command;

use candlewick::circuit::{Circuit, EdgeSet, Graph};
use candlewick::hooks::Edge;

use crate::{scores, text};

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
fn no_result_replaces_what_its_command_reads() {
    let folder = tempfile::tempdir().unwrap();
    let ablate = [
        "ablate",
        "--n-pairs",
        "2",
        "--layers",
        "0",
        "--quiet",
        "-o",
        "a.parquet",
    ];
    assert!(candlewick_in(folder.path(), &ablate).0);
    let before = fs::read(folder.path().join("a.parquet")).unwrap();
    for args in [
        &["compare", "a.parquet", "a.parquet"][..],
        &["scale", "--by", "a.parquet", "--seed", "8"],
        &["ablate", "--ranked", "./a.parquet", "--sizes", "1"],
        &["merge", "a.parquet"],
    ] {
        let (is_fine, _, stderr) = candlewick_in(
            folder.path(),
            &[args, &["-o", "a.parquet", "--force"]].concat(),
        );
        assert!(
            !is_fine && stderr.contains("is what this command reads"),
            "{stderr}"
        );
    }
    assert!(fs::read(folder.path().join("a.parquet")).unwrap() == before);
    let questions = "context,question,answer\nthen Mary met Olga .,then Mary went to,the\n";
    fs::write(folder.path().join("q.csv"), questions).unwrap();
    for command in ["context", "pine"] {
        let args = [command, "--questions", "q.csv", "-o", "q.csv", "--force"];
        let (is_fine, _, stderr) = candlewick_in(folder.path(), &args);
        assert!(
            !is_fine && stderr.contains("is what this command reads"),
            "{stderr}"
        );
    }
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
        let beside =
            fs::read_to_string(folder.path().join(format!("{name}.provenance.json"))).unwrap();
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
        listed.contains("scores.parquet.parts: 1 finished part, 12 B\n"),
        "{listed}"
    );
    assert!(parts.join("plan.json").exists());
    let (_, removed, _) = candlewick_in(folder.path(), &["clean", "--remove"]);
    assert!(removed.contains("removed\n12 B freed"), "{removed}");
    assert_eq!(
        fs::read_dir(&parts).unwrap().count(),
        1,
        "what is not ours stays"
    );
    let (_, listed, _) = candlewick_in(folder.path(), &["clean"]);
    assert_eq!(listed, "nothing is left over\n");
}

#[test]
fn a_report_is_one_page_of_many_results_and_replaces_no_other_file() {
    let folder = tempfile::tempdir().unwrap();
    scores()
        .write_parquet(&folder.path().join("one.parquet"))
        .unwrap();
    let mut other = scores();
    other.provenance.model.id = "another".into();
    other
        .write_parquet(&folder.path().join("two.parquet"))
        .unwrap();
    fs::write(folder.path().join("notes.html"), "<p>mine</p>").unwrap();
    fs::write(folder.path().join("text.txt"), "no table").unwrap();
    let report = |arguments: &str| {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        candlewick_in(folder.path(), &[&["report"], &arguments[..]].concat())
    };
    let (is_fine, said, _) = report("one.parquet two.parquet");
    assert!(is_fine && said.starts_with("report.html"), "{said}");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("These are results of 2 models"), "{page}");
    assert!(!page.contains('\x1b') && page.contains("\\\\u{1b}[31mMary"));
    // `*.parquet` has tables that belong beside another one, and are shown with it.
    let mut with_side = scores();
    with_side.sides.push(("measures".into(), scores()));
    with_side.provenance.sides.push("measures".into());
    with_side
        .write_parquet(&folder.path().join("has.parquet"))
        .unwrap();
    assert!(folder.path().join("has.measures.parquet").exists());
    let (is_fine, said, stderr) = report("has.measures.parquet has.parquet two.parquet");
    assert!(is_fine, "{said}{stderr}");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(page.contains("has.parquet") && !page.contains("has.measures.parquet"));
    let (is_fine, ..) = report("has.measures.parquet two.parquet");
    let page = fs::read_to_string(folder.path().join("report.html")).unwrap();
    assert!(is_fine && page.contains("has.measures.parquet"));
    for (arguments, says) in [
        (
            "one.parquet --out notes.html",
            "was not written by candlewick",
        ),
        ("one.parquet --out page.txt", "end it in `.html`"),
        (
            "one.parquet --out no/page.html",
            "no such file or folder: `no`",
        ),
        ("text.txt --out page.html", "not a readable scores file"),
        ("none.parquet --out page.html", "no such file"),
        ("report.html --out page.html", "not a readable scores file"),
    ] {
        let (is_fine, _, stderr) = report(arguments);
        assert!(!is_fine && stderr.contains(says), "{arguments}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{arguments}: {stderr}");
    }
    assert!(!folder.path().join("page.html").exists());
    // A circuit is drawn like a table of its edges.
    let graph = Graph {
        n_layers: 1,
        n_heads: 2,
        d_model: 8,
        has_mlp: true,
        parallel: false,
    };
    let edges = ["input->m0", "m0->logits"].map(|edge| edge.parse::<Edge>().unwrap());
    let circuit = Circuit::new(EdgeSet::of(graph, &edges).unwrap());
    circuit.write(&folder.path().join("c.toml")).unwrap();
    assert!(report("one.parquet c.toml --out both.html").0);
    let page = fs::read_to_string(folder.path().join("both.html")).unwrap();
    assert!(page.contains("a circuit of 2 edges between 3 nodes"));
    assert!(page.contains(r#""nodes":[["input""#));
    // Our own page is replaced, another file only by force.
    assert!(report("one.parquet").0);
    assert!(report("one.parquet --out notes.html --force").0);
}

/// The embedded model with one matrix made larger, as a folder.
fn tuned_copy(folder: &std::path::Path) {
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/embedded");
    for name in ["config.json", "tokenizer.json"] {
        fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let device = candle_core::Device::Cpu;
    let weights = from.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(weights, &device).unwrap();
    let last = tensors.keys().filter(|name| name.contains(".3."));
    let name = last.filter(|name| name.contains("o_proj")).max().cloned();
    let matrix = tensors.get_mut(&name.expect("it has that matrix")).unwrap();
    *matrix = matrix.affine(1.5, 0.0).unwrap();
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors")).unwrap();
}

#[test]
fn another_models_values_are_patched_in_and_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let tuned = folder.path().join("tuned");
    fs::create_dir(&tuned).unwrap();
    tuned_copy(&tuned);
    let patch = ["patch", "--source-model", "tuned", "--n-pairs", "4"];
    let ask = |more: &[&str]| candlewick_in(folder.path(), &[&patch, more].concat());
    let (is_fine, stdout, stderr) =
        ask(&["--sites", "attn_out:all,mlp_out:all", "--out", "a.parquet"]);
    assert!(is_fine, "{stderr}");
    assert!(
        stdout.contains("the values are those of `tuned`"),
        "{stdout}"
    );
    let scores = candlewick::scores::Scores::read_parquet(&folder.path().join("a.parquet"));
    let about = scores.unwrap().provenance;
    let weights = about.config["source_model"]["weights"].as_str().unwrap();
    assert_eq!(weights.len(), 64);
    assert_ne!(weights, about.model.weight_hash.get());
    // Only attention of the last layer is another.
    let shown = [
        "show",
        "a.parquet",
        "--csv",
        "--columns",
        "component,layer,score",
    ];
    let (_, csv, _) = candlewick_in(folder.path(), &shown);
    for line in csv.lines().skip(1) {
        let score: f64 = line.rsplit(',').next().unwrap().parse().unwrap();
        let is_changed = line.starts_with("hook_attn_out,3,");
        assert!(
            (score.abs() > 1e-3) == is_changed || line.starts_with("hook_mlp_out,3,"),
            "{line}"
        );
    }
    // The same by `ablate`, and estimated by `attribute`, which is held against it.
    let run = |words: &str| {
        let words: Vec<&str> = words.split(' ').collect();
        candlewick_in(folder.path(), &words)
    };
    let common = "--source-model tuned --n-pairs 4 --sites attn_out:all";
    let (is_fine, stdout, stderr) = run(&format!("ablate {common} -o b.parquet"));
    assert!(is_fine && stdout.contains("those of `tuned`"), "{stderr}");
    let (is_fine, stdout, stderr) = run(&format!("attribute {common} --verify 2 -o c.parquet"));
    assert!(is_fine && stdout.contains("those of `tuned`"), "{stderr}");
    let of = |file: &str, more: &str| {
        let (is_fine, csv, stderr) = run(&format!("show {file} --csv --columns layer,{more}"));
        assert!(is_fine, "{stderr}");
        csv.lines().skip(1).map(String::from).collect::<Vec<_>>()
    };
    assert_eq!(of("b.parquet", "score"), {
        let show = "show a.parquet --where component=attn_out --csv --columns layer,score";
        let (_, csv, _) = run(show);
        csv.lines().skip(1).map(String::from).collect::<Vec<_>>()
    });
    let (is_fine, stdout, stderr) =
        run("attribute --method eap --source-model tuned --n-pairs 2 --verify 2 -o d.parquet");
    assert!(is_fine && stdout.contains("those of `tuned`"), "{stderr}");
    let (_, plain, _) = run("attribute --n-pairs 4 --sites attn_out:all --dry-run");
    let (is_fine, planned, _) = run(&format!("attribute {common} --dry-run"));
    let passes = |plan: &str| -> f64 {
        let line = plan
            .lines()
            .find(|line| line.starts_with("forward-equivalents"));
        line.and_then(|line| line.split_whitespace().last()?.parse().ok())
            .expect("a number")
    };
    assert!(
        is_fine && passes(&planned) == passes(&plain) + 12.0,
        "{planned}"
    );
    assert!(
        planned.contains("as much again for the source model's"),
        "{planned}"
    );
    let (is_fine, _, stderr) = run("attribute --method eap-ig --source-model tuned --n-pairs 2");
    assert!(!is_fine && stderr.contains("--method eap"), "{stderr}");
    let (is_fine, _, stderr) = run("attribute --source same --n-pairs 2");
    assert!(!is_fine && stderr.contains("--source-model"), "{stderr}");
    // A file of one source is no file of another.
    let (is_fine, _, stderr) = candlewick_in(
        folder.path(),
        &["patch", "--n-pairs", "4", "--out", "a.parquet"],
    );
    assert!(!is_fine && stderr.contains("other results"), "{stderr}");
    let (is_fine, _, stderr) = ask(&["--source", "zero"]);
    assert!(!is_fine && stderr.contains("takes no values"), "{stderr}");
    let gpt2 = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/gpt2-tiny-random"
    );
    let other = ["patch", "--n-pairs", "4", "--source-model", gpt2];
    let (is_fine, _, stderr) = candlewick_in(folder.path(), &other);
    assert!(!is_fine && stderr.contains("cannot be written"), "{stderr}");
}
