//! One question to the backward pass, put to the engine and to the oracle.

use std::collections::HashMap;

use candle_core::{D, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Ln};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::{GradientRequest, Gradients, gradients};

use crate::models::Pairs;
use crate::twin::{self, Changes};
use crate::{clean_logits, flat, gap};

/// Of the largest gradient at a hook: what f32 keeps after some forty operations on terms that cancel.
const TOLERANCE: f64 = 1e-4;

/// A base run and a metric whose gradient is asked for.
pub struct Case {
    pub prompts: Vec<Vec<u32>>,
    pub metric: Metric,
    pub rules: Rules,
    pub edits: Vec<Edit>,
    /// The same edits for the twin.
    pub changes: Changes,
    pub memory: Option<usize>,
}

impl Case {
    /// The corrupted prompts, so that divergences from the clean run have a gradient.
    pub fn new(metric: Metric, rules: Rules) -> Self {
        Case {
            prompts: Pairs::new().corrupted,
            metric,
            rules,
            edits: Vec::new(),
            changes: Changes::new(),
            memory: None,
        }
    }

    pub fn ours(&self, model: &Model, hooks: &[Hook]) -> Gradients {
        let pairs = Pairs::new();
        let reference: Vec<Vec<f32>> = clean_logits(model).to_vec2().expect("rows");
        let count = self.prompts.len();
        let request = GradientRequest {
            reference: Some(&reference[..count]),
            rules: self.rules.clone(),
            edits: &self.edits,
            memory: self.memory,
            ..GradientRequest::new(self.metric, &pairs.targets[..count], hooks)
        };
        gradients(model, &self.prompts, &request).expect("differentiates")
    }
}

/// Holds the engine's values and gradients at all hooks against the oracle's.
pub fn check(model: &Model, case: &Case, what: &str) {
    let hooks = Hook::all(&model.spec);
    let ours = case.ours(model, &hooks);
    let run = twin::run(model, &case.prompts, &case.rules, &case.changes);
    let targets = &Pairs::new().targets[..case.prompts.len()];
    let reference = clean_logits(model);
    let metric = twin::metric(case.metric, &run.logits, targets, Some(&reference));
    let what = format!("{}, {what}", model.spec.family);
    for (ours, theirs) in ours.values.iter().zip(flat(&metric)) {
        let far = (ours - theirs).abs() / theirs.abs().max(1e-3);
        assert!(far < TOLERANCE, "{what}: value {ours}, oracle {theirs}");
    }
    let gradients = run.gradients(&metric);
    let largest = gradients
        .values()
        .flat_map(flat)
        .fold(0.0, |max: f64, x| max.max(x.abs()));
    let mut wrong = Vec::new();
    // From the logits down, so that the first that differs is where the walk went wrong.
    for &hook in hooks.iter().rev() {
        let ours = ours.cache.get(hook).expect("asked for");
        let mut theirs = gradients[&hook].clone();
        if hook.kind == Kind::Pattern {
            // No model puts weight where a query does not see, and the engine leaves the gradient out there.
            let layer = hook.layer.expect("a pattern has a layer");
            let visible = twin::visible(&model.spec, layer, case.prompts[0].len());
            theirs = theirs.broadcast_mul(&visible).expect("a mask");
        }
        // Where calculus says zero, f32 says nearly zero.
        let mut least = 1e-6 * largest;
        if let Kind::Scale(ln) = hook.kind {
            least = least.max(slope_terms(&run, &gradients, hook, ln));
        }
        let far = gap_above(&ours, &theirs, least);
        if far.is_nan() || far > TOLERANCE {
            wrong.push(format!("{hook} {far:.1e}"));
        }
    }
    let first = wrong.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
    assert!(
        wrong.is_empty(),
        "{what}: {} hooks, from {first}",
        wrong.len()
    );
}

/// The largest sum of absolute terms that make up the gradient at a norm's divisor. They cancel where another norm follows, which
/// takes back any change of scale.
fn slope_terms(run: &twin::Run, gradients: &HashMap<Hook, Tensor>, scale: Hook, ln: Ln) -> f64 {
    let normalized = Hook {
        kind: Kind::Normalized(ln),
        ..scale
    };
    let terms = (&run.values[&normalized] * &gradients[&normalized]).and_then(|t| t.abs());
    let sums = terms.and_then(|t| t.sum_keepdim(D::Minus1));
    let slopes = (sums.expect("sums") / &run.values[&scale]).expect("one for each row");
    flat(&slopes).into_iter().fold(0.0, f64::max)
}

/// The largest difference, relative to the largest value of the second, or to `least`.
fn gap_above(ours: &Tensor, theirs: &Tensor, least: f64) -> f64 {
    let size = flat(theirs)
        .into_iter()
        .fold(0.0, |max: f64, x| max.max(x.abs()));
    gap(ours, theirs) * size.max(1e-12) / size.max(least)
}
