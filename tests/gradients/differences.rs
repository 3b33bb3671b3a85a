//! Gradients against differences of the engine's own values, which need no oracle.

use candle_core::{DType, Device, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Op, Site, Value};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::{Request, run, run_with_cache};
use candlewick::spec::Activation;

use crate::case::Case;
use crate::models::{Pairs, encoders, every_kind};
use crate::{flat, trust, twin};

#[test]
fn a_gradient_is_the_central_difference_of_the_engines_own_runs() {
    let mut wrong = Vec::new();
    for model in every_kind().into_iter().chain(encoders()) {
        let case = Case::new(Metric::LogProb, Rules::gradient());
        let mut hooks = Hook::all(&model.spec);
        // Where norms stand on the stream, what they make of it goes two ways and is not edited.
        let is_edited = |hook: &Hook| Edit::new(Site::all(*hook), Op::Zero).check(&model.spec);
        hooks.retain(|hook| is_edited(hook).is_ok());
        let gradients = case.ours(&model, &hooks).cache;
        let (_, values) = run_with_cache(&model, &case.prompts, &hooks).expect("runs");
        let has_corners =
            model.spec.activation == Activation::Relu || model.spec.qkv_clip.is_some();
        for (seed, &hook) in hooks.iter().enumerate() {
            let gradient = gradients.get(hook).expect("asked for");
            let direction = direction(&model, hook, &gradient, seed);
            let terms = flat(&gradient).into_iter().zip(flat(&direction));
            let slope: f64 = terms.map(|(g, d)| g * d).sum();
            // Far enough to move the metric by much more than its rounding, but no farther than a part of the value.
            let part = 0.002 * finite_norm(&values.get(hook).expect("captured"));
            let step = part.min(0.02 / slope.abs());
            let at = |step| metric_at(&model, &case, hook, &direction, step);
            let difference = |step: f64| (at(step) - at(-step)) / (2.0 * step);
            let is_near = |step: f64| {
                let tolerance = 1e-2 * finite_norm(&gradient) + 1e-5 / step;
                (slope - difference(step)).abs() < tolerance
            };
            // Where the metric bends, half the way has a quarter of its part in the difference; where it has corners, shorter ways have
            // fewer.
            let mut steps = vec![step, step / 4.0];
            if has_corners {
                steps.push(step / 16.0);
            }
            if !steps.iter().any(|&step| is_near(step)) {
                let family = &model.spec.family;
                let differences: Vec<f64> = steps.into_iter().map(difference).collect();
                wrong.push(format!("{family} {hook}: {slope} {differences:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

/// Along the gradient and across it: along it alone, a wrong sign of a small part would hide. Never towards masked keys.
fn direction(model: &Model, hook: Hook, gradient: &Tensor, seed: usize) -> Tensor {
    let unit = |t: &Tensor| (t / finite_norm(t).max(1e-12)).expect("a quotient");
    let across = trust::direction(gradient, seed);
    let across = Tensor::from_vec(across, gradient.shape(), &Device::Cpu).expect("a shape");
    let along = gradient.to_dtype(DType::F64).expect("f64");
    let direction = (unit(&along) + unit(&across)).expect("a sum");
    match (hook.kind, hook.layer) {
        (Kind::Pattern | Kind::AttnScores, Some(layer)) => {
            let visible = twin::visible(&model.spec, layer, Pairs::LENGTH);
            direction.broadcast_mul(&visible).expect("a mask")
        }
        _ => direction,
    }
}

/// The metric, summed over prompts, with `step` times `direction` added at a hook.
fn metric_at(model: &Model, case: &Case, hook: Hook, direction: &Tensor, step: f64) -> f64 {
    let by = (direction * step).and_then(|t| t.to_dtype(DType::F32));
    let by = match hook.kind {
        // An edit of a pattern has a row for each position, and in it the heads.
        Kind::Pattern | Kind::AttnScores => by.and_then(|t| t.transpose(1, 2)?.contiguous()),
        _ => by,
    };
    let value = Value::Tensor(by.expect("f32"));
    let edits = [Edit::new(Site::all(hook), Op::Add(value))];
    let request = Request {
        edits: &edits,
        ..Request::default()
    };
    let run = run(model, &case.prompts, &request).expect("runs");
    let logits = run.logits.expect("asked for").to_dtype(DType::F64);
    let targets = &Pairs::new().targets;
    let values = twin::metric(case.metric, &logits.expect("f64"), targets, None);
    flat(&values).into_iter().sum()
}

/// Of the values that are not masked.
fn finite_norm(t: &Tensor) -> f64 {
    let finite = flat(t).into_iter().filter(|x| x.is_finite());
    finite.map(|x| x * x).sum::<f64>().sqrt()
}
