//! Token methods keep their identities on models of every kind: sums close, gradients are slopes, shares are shares.

mod answers;
mod attention;
mod context;
mod contract;
mod flow;
mod gradient;
mod integrated;
mod mixing;
#[path = "../models/mod.rs"]
mod models;
mod noise;
mod rationale;
mod relevance;
mod removal;
mod score;

use candle_core::Tensor;
use candlewick::methods::tokens::{Baseline, Completeness, Quadrature, TokenConfig, TokenMethod};
use candlewick::methods::{Running, Subject, Watch, measurements};
use candlewick::model::Model;
use candlewick::scores::Measured;
use candlewick::task::Task;

use models::task::task;

/// Sums of products in f32, relative to the size of what is summed: logits here are of order 1 to 10.
const SUMS: f64 = 2e-4;

fn config(method: TokenMethod) -> TokenConfig {
    TokenConfig::new(method)
}

fn measure_so(model: &Model, task: &Task, config: &TokenConfig, running: &Running) -> Measured {
    let on = Subject { model, task };
    measurements(on, config, running, &Watch::default())
        .unwrap_or_else(|error| panic!("{} {}: {error}", model.spec.family, config.method))
}

fn measure(model: &Model, config: &TokenConfig) -> Measured {
    let running = Running {
        memory: Some(1 << 30),
        ..Running::default()
    };
    measure_so(model, &task(), config, &running)
}

/// How well the shares of each prompt account for what they should sum to.
fn completeness(measured: &Measured) -> Vec<Completeness> {
    let found = measured
        .found
        .get("completeness")
        .expect("it promises a sum");
    serde_json::from_value(found.clone()).expect("it reads back")
}

fn ig(steps: usize, rule: Quadrature, baseline: Baseline) -> TokenMethod {
    TokenMethod::IntegratedGradients {
        steps,
        rule,
        baseline,
        via: Vec::new(),
    }
}

/// The shares of one prompt with a component, in order.
fn shares(measured: &Measured, example: usize, component: &str) -> Vec<f64> {
    let one = &measured.examples[example];
    let rows = one.cells.iter().zip(&one.values);
    rows.filter(|(cell, _)| measured.cells[**cell as usize].component == component)
        .map(|(_, value)| *value)
        .collect()
}

fn near(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len(), "{what}");
    let size = b.iter().fold(1.0f64, |size, x| size.max(x.abs()));
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= tolerance * size,
            "{what} [{i}]: {a} against {b}"
        );
    }
}

/// Over the prompts of the task, so that no one of them is right by chance.
fn delta(model: &Model, steps: usize, rule: Quadrature, baseline: &Baseline) -> f64 {
    let measured = measure(model, &config(ig(steps, rule, baseline.clone())));
    let squares = completeness(&measured)
        .into_iter()
        .map(|one| one.delta.powi(2));
    squares.sum::<f64>().sqrt()
}

fn flat(t: &Tensor) -> Vec<f32> {
    let flat = t.flatten_all().expect("flat");
    flat.to_vec1::<f32>().expect("reads")
}
