//! The gradient at every hook of every kind of model is the oracle's, under every rule and for every metric.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Ln, Op, Pos, Site, Value};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::{GradientRequest, Gradients, gradients};

use crate::models::Pairs;
use crate::twin::{self, Change, Changes};
use crate::{DIFFERENTIABLE, RULES, clean_logits, flat, gap, variations};

/// Of the largest gradient at a hook: what f32 keeps after some forty operations on terms that cancel.
const TOLERANCE: f64 = 1e-4;

/// Products of other shapes round in another order. At a norm's divisor the terms of the gradient cancel, and leave more of it.
fn rounding(hook: Hook) -> f64 {
    match hook.kind {
        Kind::Scale(_) => 1e-4,
        _ => 5e-6,
    }
}

/// A base run and a metric whose gradient is asked for.
struct Case {
    prompts: Vec<Vec<u32>>,
    metric: Metric,
    rules: Rules,
    edits: Vec<Edit>,
    /// The same edits for the twin.
    changes: Changes,
    memory: Option<usize>,
}

impl Case {
    /// The corrupted prompts, so that divergences from the clean run have a gradient.
    fn new(metric: Metric, rules: Rules) -> Self {
        Case {
            prompts: Pairs::new().corrupted,
            metric,
            rules,
            edits: Vec::new(),
            changes: Changes::new(),
            memory: None,
        }
    }

    fn ours(&self, model: &Model, hooks: &[Hook]) -> Gradients {
        let pairs = Pairs::new();
        let reference: Vec<Vec<f32>> = clean_logits(model).to_vec2().expect("rows");
        let count = self.prompts.len();
        let request = GradientRequest {
            reference: Some(&reference),
            rules: self.rules.clone(),
            edits: &self.edits,
            memory: self.memory,
            ..GradientRequest::new(self.metric, &pairs.targets[..count], hooks)
        };
        gradients(model, &self.prompts, &request).expect("differentiates")
    }
}

/// Holds the engine's values and gradients at all hooks against the oracle's.
fn check(model: &Model, case: &Case, what: &str) {
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
    assert!(wrong.is_empty(), "{what}: {}", wrong.join(", "));
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

#[test]
fn the_gradient_at_every_hook_is_the_oracles() {
    for model in variations::all() {
        check(
            &model,
            &Case::new(Metric::LogitDiff, Rules::gradient()),
            "gradient",
        );
    }
}

#[test]
fn every_rule_is_the_oracles() {
    for model in variations::all() {
        for (name, rules) in RULES {
            check(&model, &Case::new(Metric::LogitDiff, rules()), name);
        }
    }
}

#[test]
fn every_metric_has_the_oracles_gradient() {
    for model in crate::models::every_kind() {
        for metric in DIFFERENTIABLE {
            let case = Case::new(metric, Rules::gradient());
            check(&model, &case, &metric.to_string());
        }
    }
}

#[test]
fn prompts_of_every_length_have_the_oracles_gradient() {
    for model in crate::models::every_kind() {
        let mut spec = model.spec.clone();
        spec.n_ctx = 200;
        let model = Model::random(spec, 7).expect("a spec of the engine");
        // One token, more than a register has lanes, more than a block of queries.
        for length in [1, 2, 29, 150] {
            let token = |i: u32| (i * i * 5 + i * 3 + 1) % crate::models::VOCAB as u32;
            let case = Case {
                prompts: vec![(0..length).map(token).collect()],
                ..Case::new(Metric::LogProb, Rules::gradient())
            };
            check(&model, &case, &format!("{length} tokens"));
        }
    }
}

#[test]
fn gradients_pass_through_edits_as_values_do() {
    for model in crate::models::every_kind() {
        let spec = &model.spec;
        let layer = spec.n_layers - 1;
        let at = |kind| Hook::at(kind, layer);
        let values: Vec<f32> = (0..spec.d_head).map(|i| (i as f32).sin()).collect();
        let mut edits = vec![
            Edit::new(Site::all(at(Kind::Z)).at(4).heads([1]), Op::Zero),
            Edit::new(Site::all(at(Kind::AttnOut)), Op::Scale(0.5)),
            Edit::new(Site::all(at(Kind::ResidPre)).at(6), Op::Scale(-1.5)),
            Edit::new(Site::all(at(Kind::K)).at(3), Op::Scale(2.0)),
            Edit::new(Site::all(at(Kind::Q)), Op::Add(Value::Scalar(0.3))),
            Edit::new(
                Site::all(at(Kind::V)).at(5),
                Op::Replace(Value::Vector(values)),
            ),
            Edit::new(Site::all(at(Kind::RotQ)).heads([0]), Op::Scale(0.2)),
            Edit::new(Site::all(at(Kind::ResidPost)), Op::Scale(1.5)),
            Edit::new(Site::all(Hook::global(Kind::Embed)).at(2), Op::Scale(3.0)),
        ];
        if Kind::MlpPost.absent(spec).is_none() {
            edits.push(Edit::new(
                Site::all(at(Kind::MlpPost)).at(9),
                Op::Scale(0.1),
            ));
            edits.push(Edit::new(Site::all(at(Kind::MlpIn)).at(7), Op::Scale(4.0)));
            edits.push(Edit::new(Site::all(at(Kind::MlpPre)).at(1), Op::Zero));
        }
        // Each alone, then all together.
        for edits in edits
            .iter()
            .map(std::slice::from_ref)
            .chain([edits.as_slice()])
        {
            let case = Case {
                edits: edits.to_vec(),
                changes: edits.iter().map(|edit| change(&model, edit)).collect(),
                ..Case::new(Metric::LogitDiff, Rules::gradient())
            };
            let names: Vec<String> = edits.iter().map(Edit::to_string).collect();
            check(&model, &case, &names.join(", "));
        }
    }
}

/// An edit of positions and heads, as a factor and a summand.
fn change(model: &Model, edit: &Edit) -> (Hook, Change) {
    let site = &edit.site;
    let shape = site.hook.shape(&model.spec, 3, Pairs::LENGTH);
    let positions = site.positions.resolve(Pairs::LENGTH, &Default::default());
    let positions = positions.expect("in range");
    let (heads, width) = match shape[..] {
        [_, _, heads, width] => (heads, width),
        [.., width] => (1, width),
        [] => unreachable!("a hook has axes"),
    };
    let taken = |row: usize, head: usize| {
        positions.contains(&(row % Pairs::LENGTH))
            && site
                .heads
                .as_ref()
                .is_none_or(|heads| heads.contains(&head))
    };
    let mut times = Vec::new();
    let mut plus = Vec::new();
    for row in 0..3 * Pairs::LENGTH {
        for head in 0..heads {
            for i in 0..width {
                let (factor, summand) = match &edit.op {
                    _ if !taken(row, head) => (1.0, 0.0),
                    Op::Zero => (0.0, 0.0),
                    Op::Scale(factor) => (f64::from(*factor), 0.0),
                    Op::Add(Value::Scalar(value)) => (1.0, f64::from(*value)),
                    Op::Replace(Value::Vector(values)) => (0.0, f64::from(values[i])),
                    other => unreachable!("{other:?} is not tried here"),
                };
                times.push(factor);
                plus.push(summand);
            }
        }
    }
    let make = |values| Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).expect("a shape");
    let (times, plus) = (make(times), make(plus));
    (site.hook, Change { times, plus })
}

#[test]
fn knocked_out_attention_gets_no_gradient() {
    for model in crate::models::every_kind() {
        let scores = Hook::at(Kind::AttnScores, 1);
        let keys = [2, 3];
        let site = Site::all(scores).heads([0]);
        let edit = Edit::block(site, [Pos::FromEnd(1), Pos::Index(5)], keys.map(Pos::Index));
        let length = Pairs::LENGTH;
        let heads = model.spec.n_heads;
        let mut times = vec![1.0; 3 * heads * length * length];
        let mut plus = vec![0.0; 3 * heads * length * length];
        for prompt in 0..3 {
            for (query, key) in [5, 9].into_iter().flat_map(|q| keys.map(|k| (q, k))) {
                let at = (prompt * heads * length + query) * length + key;
                (times[at], plus[at]) = (0.0, twin::MASKED);
            }
        }
        let shape = scores.shape(&model.spec, 3, length);
        let make =
            |values| Tensor::from_vec(values, shape.as_slice(), &Device::Cpu).expect("a shape");
        let change = Change {
            times: make(times),
            plus: make(plus),
        };
        let case = Case {
            edits: vec![edit],
            changes: HashMap::from([(scores, change)]),
            ..Case::new(Metric::LogitDiff, Rules::gradient())
        };
        check(&model, &case, "knocked out");
    }
}

#[test]
fn a_gradient_is_the_same_whatever_else_is_asked_for() {
    for model in crate::models::every_kind() {
        for (name, rules) in RULES {
            let case = Case::new(Metric::LogitDiff, rules());
            let all = case.ours(&model, &Hook::all(&model.spec)).cache;
            for hook in Hook::all(&model.spec) {
                let alone = case.ours(&model, &[hook]).cache;
                let far = gap(
                    &alone.get(hook).expect("asked for"),
                    &all.get(hook).expect("asked for"),
                );
                assert!(
                    far < rounding(hook),
                    "{} {name} {hook}: {far}",
                    model.spec.family
                );
            }
        }
    }
}

#[test]
fn neither_batch_nor_memory_changes_a_gradient() {
    for model in crate::models::every_kind() {
        let hooks = Hook::all(&model.spec);
        let case = Case::new(Metric::Kl, Rules::gradient());
        let whole = case.ours(&model, &hooks);
        for memory in [1, 10_000, 40_000, 200_000] {
            let case = Case {
                memory: Some(memory),
                ..Case::new(Metric::Kl, Rules::gradient())
            };
            let small = case.ours(&model, &hooks);
            assert_eq!(small.values.len(), whole.values.len());
            for &hook in &hooks {
                let [small, whole] =
                    [&small, &whole].map(|g| g.cache.get(hook).expect("asked for"));
                let far = gap(&small, &whole);
                assert!(
                    far < rounding(hook),
                    "{} {hook} in {memory} bytes: {far}",
                    model.spec.family
                );
            }
        }
        // Prompts do not meet, so one alone has the gradient that it has among others.
        let first = Case {
            prompts: Pairs::new().corrupted[..1].to_vec(),
            ..Case::new(Metric::LogProb, Rules::gradient())
        };
        let alone = first.ours(&model, &hooks);
        let among = Case::new(Metric::LogProb, Rules::gradient()).ours(&model, &hooks);
        assert!((alone.values[0] - among.values[0]).abs() < 1e-6);
        for &hook in &hooks {
            let among = among.cache.get(hook).expect("asked for");
            let among = among.narrow(0, 0, 1).expect("a prompt");
            let far = gap(&alone.cache.get(hook).expect("asked for"), &among);
            assert!(
                far < rounding(hook),
                "{} {hook} alone: {far}",
                model.spec.family
            );
        }
    }
}

#[test]
fn a_gradient_is_the_central_difference_of_the_engines_own_runs() {
    let mut wrong = Vec::new();
    for model in crate::models::every_kind() {
        let pairs = Pairs::new();
        let case = Case::new(Metric::LogProb, Rules::gradient());
        let hooks = Hook::all(&model.spec);
        let cache = case.ours(&model, &hooks).cache;
        let (_, values) =
            candlewick::run::run_with_cache(&model, &case.prompts, &hooks).expect("runs");
        for (seed, &hook) in hooks.iter().enumerate() {
            let shape = hook.shape(&model.spec, 3, Pairs::LENGTH);
            let gradient = cache.get(hook).expect("asked for");
            // Along the gradient and across it: along it alone, a wrong sign of a small part would hide.
            let across = crate::trust::direction(&gradient, seed);
            let across = Tensor::from_vec(across, shape.as_slice(), &Device::Cpu).expect("a shape");
            let mut direction = unit(&gradient.to_dtype(DType::F64).expect("f64"));
            direction = (direction + unit(&across)).expect("a sum");
            if matches!(hook.kind, Kind::Pattern | Kind::AttnScores) {
                let layer = hook.layer.expect("a pattern has a layer");
                let visible = twin::visible(&model.spec, layer, Pairs::LENGTH);
                direction = direction.broadcast_mul(&visible).expect("a mask");
            }
            let slope: f64 = (flat(&gradient).iter().zip(flat(&direction)))
                .map(|(g, d)| g * d)
                .sum();
            // Far enough to move the metric by much more than its rounding, but no farther than a part of the value.
            let step =
                (0.02 / slope.abs()).min(0.002 * finite_norm(&values.get(hook).expect("captured")));
            let metric_at = |step: f64| -> f64 {
                let by = (&direction * step)
                    .and_then(|t| t.to_dtype(DType::F32))
                    .expect("f32");
                let edit = if hook.kind == Kind::Pattern || hook.kind == Kind::AttnScores {
                    by.transpose(1, 2)
                        .and_then(|t| t.contiguous())
                        .expect("rows by query")
                } else {
                    by
                };
                let edits = [Edit::new(Site::all(hook), Op::Add(Value::Tensor(edit)))];
                let request = candlewick::run::Request {
                    edits: &edits,
                    ..Default::default()
                };
                let run = candlewick::run::run(&model, &case.prompts, &request).expect("runs");
                let logits = run.logits.expect("asked for");
                flat(&twin::metric(
                    case.metric,
                    &logits.to_dtype(DType::F64).expect("f64"),
                    &pairs.targets,
                    None,
                ))
                .iter()
                .sum()
            };
            let difference = (metric_at(step) - metric_at(-step)) / (2.0 * step);
            let tolerance = 1e-2 * norm(&gradient) + 1e-5 / step;
            if (slope - difference).abs() >= tolerance {
                wrong.push(format!(
                    "{} {hook}: {slope} {difference}",
                    model.spec.family
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Of the values that are not masked.
fn finite_norm(t: &Tensor) -> f64 {
    let finite = flat(t).into_iter().filter(|x| x.is_finite());
    finite.map(|x| x * x).sum::<f64>().sqrt()
}

fn norm(t: &Tensor) -> f64 {
    flat(t).iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn unit(t: &Tensor) -> Tensor {
    (t / norm(t).max(1e-12)).expect("a quotient")
}
