//! Ablations and self-repair keep their identities, on models of every kind.

mod components;
mod heads;
mod knockouts;
#[path = "../models/mod.rs"]
mod models;
mod negative_heads;
mod refusals;
mod safety_heads;
mod self_repair;
mod sets;
mod source_model;
mod values;

use candlewick::hooks::Node;
use candlewick::methods::{
    AblationConfig, Method, PatchConfig, PatchSource, Running, Subject, Watch, measure, parse_sites,
};
use candlewick::model::Model;
use candlewick::scores::{Detail, Scores};
use candlewick::task::Task;

/// f32 sums of some thirty parts of order 1, in two orders.
const TOLERANCE: f64 = 2e-4;

fn config(sites: &str, source: PatchSource) -> AblationConfig {
    let sites = match sites {
        "" => Vec::new(),
        _ => parse_sites(sites).expect("known sites"),
    };
    AblationConfig::new(PatchConfig {
        source,
        ..PatchConfig::new(sites)
    })
}

fn run_method(model: &Model, task: &Task, method: &dyn Method, detail: Detail) -> Scores {
    let running = Running {
        detail,
        ..Running::default()
    };
    let on = Subject { model, task };
    let scores = measure(on, method, &running, &Watch::default()).expect("measures");
    // Measures of one table, as its own metric and beside it.
    scores.with_sides().expect("the same columns")
}

/// A row for each pair.
fn ablate(model: &Model, task: &Task, config: &AblationConfig) -> Scores {
    run_method(model, task, config, Detail::PerExample)
}

fn column(scores: &Scores, name: &str) -> Vec<f64> {
    let values = scores.floats(name).expect("a column of numbers");
    values
        .into_iter()
        .map(|value| value.expect("no gaps"))
        .collect()
}

/// The scores of the rows of one measure.
fn measured(scores: &Scores, measure: &str) -> Vec<f64> {
    let metrics = scores.texts("metric").expect("every table has it");
    let rows = metrics.iter().zip(column(scores, "score"));
    rows.filter(|(metric, _)| **metric == Some(measure))
        .map(|(_, score)| score)
        .collect()
}

fn near(a: &[f64], b: &[f64], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE * b.abs().max(1.0),
            "{what}, row {i}: {a} against {b}"
        );
    }
}

fn nodes(names: &str) -> Vec<Node> {
    names
        .split(',')
        .map(|name| name.parse().expect(name))
        .collect()
}
