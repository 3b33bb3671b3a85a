use std::collections::BTreeSet;

use candlewick::methods::{Running, check};
use candlewick::model::LoadOptions;
use candlewick::prelude::Lab;
use candlewick::scores::{Cell, Detail, ExampleScores, Provenance, ScoresMeta};
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

use super::*;
use crate::cli::session;

#[derive(Debug, Parser)]
struct Only {
    #[command(flatten)]
    args: AttributeArgs,
}

/// The arguments, and which flags were typed.
fn parsed(words: &[&str]) -> (AttributeArgs, Vec<String>) {
    let words = ["attribute"].iter().chain(words);
    let matches = Only::command().try_get_matches_from(words).expect("usage");
    let only = Only::from_arg_matches(&matches).expect("usage");
    (only.args, crate::cli::typed(&Only::command(), &matches))
}

/// A table of one edge, whatever measured it.
fn one_edge() -> Scores {
    let cell = Cell {
        component: "edge".into(),
        src: Some("m0".into()),
        dst: Some("logits".into()),
        ..Cell::default()
    };
    let example = ExampleScores {
        cells: [0].into(),
        values: vec![0.5],
        ..ExampleScores::default()
    };
    let (meta, about) = (ScoresMeta::default(), Provenance::default());
    Scores::assemble(&[cell], &[example], &meta, Detail::Mean, about).expect("a table")
}

/// Everything that a command line decides, or why it is refused.
fn outcome(lab: &Lab, words: &[&str]) -> anyhow::Result<String> {
    let (args, typed) = parsed(words);
    args.mode().check(&typed)?;
    let (spec, task) = (&lab.model.spec, &lab.task);
    let asked = Asked {
        tokenizer: &lab.tokenizer,
        spec,
        task,
        task_args: &args.common.task,
        options: &LoadOptions::default(),
    };
    let method = args.method(&asked)?;
    check(&*method, spec, task)?;
    args.check_files(spec)?;
    let running = Running::default();
    let prepared = method.prepare(lab.subject(), &running)?;
    let cells: Vec<String> = prepared.cells().iter().map(Cell::to_string).collect();
    let mut scores = one_edge();
    args.finish(&mut scores, spec)?;
    let draws = args.common.running.verify.map(|_| args.bound_draws());
    let written = args.graph.as_ref().map(|path| path.is_file());
    Ok(format!(
        "{:?} {} {cells:?} {draws:?} {written:?} {:?}",
        method.header(task),
        method.settings(),
        scores.provenance.notes
    ))
}

#[test]
fn a_flag_acts_with_a_method_or_is_refused() {
    let lab = Lab::open("embedded", "embedded").expect("it is part of the binary");
    let lab = lab.first(2);
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (written, theirs) = (path("written.json"), path("theirs.json"));
    let mut graph = ScoredGraph::new(Graph::new(&lab.model.spec));
    let edge = "m0->logits".parse().expect("an edge");
    graph.set_score(&edge, 0.25).expect("an edge of the model");
    graph.write(theirs.as_ref()).expect("writes");
    let own: [(&str, &[&str]); 29] = [
        ("sites", &["--sites", "resid_pre"]),
        ("direction", &["--direction", "denoise"]),
        ("source", &["--source", "zero"]),
        ("source_model", &["--source-model", "embedded"]),
        (
            "source_revision",
            &["--source-model", "embedded", "--source-revision", "main"],
        ),
        ("baseline", &["--baseline", "zero"]),
        ("steps", &["--steps", "3"]),
        ("step_rule", &["--step-rule", "left"]),
        ("draws", &["--draws", "3"]),
        ("via", &["--via", "pair"]),
        ("tunnel", &["--tunnel", "vargrad"]),
        (
            "tunnel_draws",
            &["--tunnel", "vargrad", "--tunnel-draws", "3"],
        ),
        ("noise", &["--noise", "0.3"]),
        ("rules", &["--rules", "cp-lrp"]),
        ("no_qk_fix", &["--no-qk-fix"]),
        ("no_grad_drop", &["--no-grad-drop"]),
        ("by_position", &["--by-position"]),
        ("every_edge", &["--every-edge"]),
        ("edges", &["--edges", "m0->logits"]),
        ("bound_draws", &["--bound-draws", "16"]),
        ("graph", &["--graph", &written]),
        ("compare", &["--compare", &theirs]),
        ("players", &["--players", "heads"]),
        ("removal", &["--removal", "zero"]),
        ("window", &["--window", "2"]),
        ("stride", &["--stride", "2"]),
        ("score", &["--score"]),
        ("gold", &["--score", "--gold", "IO"]),
        ("by", &["--score", "--by", "complexity"]),
    ];
    let command = Only::command();
    let all: BTreeSet<&str> = (command.get_arguments())
        .map(|argument| argument.get_id().as_str())
        .filter(|id| !session::COMMON.contains(id) && *id != "method")
        .collect();
    let tried: BTreeSet<&str> = own.iter().map(|(flag, _)| *flag).collect();
    assert_eq!(tried, all, "every flag of the command is tried");
    let mut acting = BTreeSet::new();
    for method in MethodChoice::value_variants() {
        let name = method.name();
        for verify in [&[] as &[&str], &["--verify", "2"]] {
            let without = [&["--method", &name], verify].concat();
            let plain = outcome(&lab, &without).expect("it can be asked for");
            for (flag, words) in &own {
                let with = [&without[..], words].concat();
                if let Ok(found) = outcome(&lab, &with) {
                    assert_ne!(found, plain, "{with:?} does nothing");
                    acting.insert(*flag);
                }
                let _ = std::fs::remove_file(&written);
            }
        }
    }
    // The embedded model has no revisions, so that one is refused here.
    acting.insert("source_revision");
    assert_eq!(acting, all, "every flag acts with some method");
}

#[test]
fn a_flag_that_does_nothing_names_what_does() {
    let message = |words: &[&str]| {
        let (args, typed) = parsed(words);
        let refused = args.mode().check(&typed).expect_err("refused");
        refused.to_string()
    };
    for (words, remedy) in [
        (["--method=ig", "--source=zero"], "--baseline zero"),
        (["--method=smooth-grad", "--steps=3"], "--draws"),
        (["--method=shapley", "--source=zero"], "--removal"),
        (["--method=ig", "--noise=0.1"], "--tunnel smoothgrad"),
        (["--method=lrp", "--tunnel-draws=3"], "--tunnel smoothgrad"),
        (["--method=atp-star", "--bound-draws=16"], "--verify K"),
        (["--method=conductance", "--step-rule=left"], "layer-ig"),
        (
            ["--method=alti-rollout", "--metric=prob"],
            "`--metric` does nothing with `--method alti-rollout`",
        ),
    ] {
        let message = message(&words);
        assert!(message.contains(remedy), "{words:?}: {message}");
    }
}
