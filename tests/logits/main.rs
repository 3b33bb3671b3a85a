//! Read-outs keep their promises: contributions sum to the logit in every kind of model, the lens ends at the model, and
//! references computed elsewhere agree.

mod attention;
mod command;
mod dla;
mod early;
mod heads;
mod lens;
#[path = "../models/mod.rs"]
mod models;
mod sources;
mod token_lens;

use std::collections::HashMap;

use candlewick::methods::{
    DirectTarget, DlaConfig, Method, Part, Running, Subject, Watch, measure,
};
use candlewick::model::Model;
use candlewick::scores::{Detail, Scores};
use candlewick::task::{Pair, Task};
use candlewick::{Error, Result};

/// f32 sums of some thirty parts of order 1.
const TOLERANCE: f64 = 1e-4;

#[track_caller]
fn near(a: f64, b: f64, what: &str) {
    assert!(
        (a - b).abs() <= TOLERANCE * b.abs().max(1.0),
        "{what}: {a} against {b}"
    );
}

fn measured(model: &Model, task: &Task, method: &dyn Method, detail: Detail) -> Result<Scores> {
    let running = Running {
        detail,
        ..Running::default()
    };
    let on = Subject { model, task };
    measure(on, method, &running, &Watch::default())?.with_sides()
}

/// A row for each cell and example, side quantities after the others.
#[track_caller]
fn per_example(model: &Model, task: &Task, method: &dyn Method) -> Scores {
    measured(model, task, method, Detail::PerExample).expect("measures")
}

/// A row for each cell.
#[track_caller]
fn means(model: &Model, task: &Task, method: &dyn Method) -> Scores {
    measured(model, task, method, Detail::Mean).expect("measures")
}

#[track_caller]
fn refusal(model: &Model, task: &Task, method: &dyn Method) -> Error {
    measured(model, task, method, Detail::Mean).expect_err("refused")
}

fn attribute(model: &Model, task: &Task, by: Part, target: DirectTarget) -> Scores {
    let config = DlaConfig {
        target,
        ..DlaConfig::by(by)
    };
    per_example(model, task, &config)
}

/// The rows of a table with the table's own metric, as (component, layer, head, example) and score.
type Key = (String, Option<i64>, Option<i64>, i64);

fn rows_of(scores: &Scores, metric: &str) -> Vec<(Key, f64)> {
    let height = scores.table.height();
    let numbers = |name: &str| scores.integers(name).unwrap_or_else(|| vec![None; height]);
    let (layer, head, example) = (numbers("layer"), numbers("head"), numbers("example"));
    let component = scores.texts("component").expect("every table has it");
    let metrics = scores.texts("metric").expect("every table has it");
    let score = scores.floats("score").expect("every table has it");
    (0..height)
        .filter(|&row| metrics[row] == Some(metric))
        .map(|row| {
            let component = component[row].expect("named").to_string();
            let key = (component, layer[row], head[row], example[row].unwrap_or(0));
            (key, score[row].expect("a number"))
        })
        .collect()
}

/// Sums over everything that shares a key.
fn sums(scores: &Scores, of: impl Fn(&Key) -> Option<Key>) -> HashMap<Key, f64> {
    let mut sums = HashMap::new();
    for (key, score) in rows_of(scores, &scores.provenance.metric) {
        if let Some(key) = of(&key) {
            *sums.entry(key).or_insert(0.0) += score;
        }
    }
    sums
}

/// The same prompts with the role `S2` taken from the second pair, which they run in one batch with.
fn with_a_role_missing(task: &Task) -> Task {
    models::task::changed(task, |pair: &mut Pair| {
        if pair.index == 1 {
            pair.roles.remove("S2");
        }
    })
}
