//! The backward pass against an oracle that shares nothing with it: candle's autograd over a twin of the engine.

mod answers;
mod case;
mod conservation;
mod differences;
mod edits;
mod exact;
mod invariance;
#[path = "../models/mod.rs"]
mod models;
mod refusals;
mod trust;
mod twin;
mod variations;

use candle_core::{DType, Tensor};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::logits;
use models::Pairs;

/// The metrics that have a gradient.
const DIFFERENTIABLE: [Metric; 6] = [
    Metric::LogitDiff,
    Metric::Prob,
    Metric::LogProb,
    Metric::ProbDiff,
    Metric::Kl,
    Metric::Js,
];

type MakeRules = fn() -> Rules;

/// Every rule set that has a name, and stops.
const RULES: [(&str, MakeRules); 6] = [
    ("gradient", Rules::gradient),
    ("relp", Rules::relp),
    ("relp with frozen patterns", Rules::relp_frozen_pattern),
    ("attn_lrp", Rules::attn_lrp),
    ("cp_lrp", Rules::cp_lrp),
    ("stops", || Rules::gradient().stopping([0, 2])),
];

/// What the divergences compare with.
fn clean_logits(model: &Model) -> Tensor {
    logits(model, &Pairs::new().clean).expect("runs")
}

fn flat(t: &Tensor) -> Vec<f64> {
    let t = t.to_dtype(DType::F64).expect("f64");
    t.flatten_all().expect("flat").to_vec1().expect("values")
}

/// The largest difference, relative to the largest value of the second.
fn gap(ours: &Tensor, theirs: &Tensor) -> f64 {
    assert_eq!(ours.dims(), theirs.dims());
    let (ours, theirs) = (flat(ours), flat(theirs));
    let size = theirs.iter().fold(1e-12f64, |max, x| max.max(x.abs()));
    let far = |(a, b): (&f64, &f64)| (a - b).abs();
    let gaps = ours.iter().zip(&theirs).map(far);
    // A NaN is not lost among maxima.
    gaps.fold(
        0.0,
        |max, gap| if gap > max || gap.is_nan() { gap } else { max },
    ) / size
}
