//! Why the twin can be believed: its forward pass is the engine's at every hook, and its gradients are the differences of its own
//! values.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use candlewick::hooks::{Hook, Kind};
use candlewick::metric::Metric;
use candlewick::nn::rules::Rules;
use candlewick::run::{Logits, Request, run};
use candlewick::spec::Activation;

use crate::models::Pairs;
use crate::twin::{self, Change, Changes};
use crate::{DIFFERENTIABLE, RULES, clean_logits, flat, gap, variations};

/// The engine works in f32, the twin in f64.
const ROUNDING: f64 = 2e-5;
/// Central differences in f64, whose error is that of the third derivative over a step of 1e-5.
const DIFFERENCE: f64 = 1e-6;
/// What f64 leaves of a metric of size 1, over that step.
const ROUNDING_64: f64 = 1e-9;

#[test]
fn the_twin_has_the_engines_value_at_every_hook() {
    let prompts = Pairs::new().corrupted;
    for model in variations::all() {
        let family = &model.spec.family;
        let hooks = Hook::all(&model.spec);
        let request = Request {
            capture: &hooks,
            logits: Logits::Last,
            ..Request::default()
        };
        let ours = run(&model, &prompts, &request).expect("runs");
        let theirs = twin::run(&model, &prompts, &Rules::gradient(), &Changes::new());
        let far = gap(&ours.logits.expect("asked for"), &theirs.logits);
        assert!(far < ROUNDING, "{family} logits: {far}");
        assert_eq!(theirs.values.len(), hooks.len());
        for hook in hooks {
            let ours = ours.cache.get(hook).expect("captured");
            let theirs = &theirs.values[&hook];
            assert_eq!(ours.dims(), theirs.dims(), "{family} {hook}");
            let far = match hook.kind {
                Kind::AttnScores => gap(&unmasked(&ours), &unmasked(theirs)),
                _ => gap(&ours, theirs),
            };
            assert!(far < ROUNDING, "{family} {hook}: {far}");
        }
    }
}

/// Scores with a number of their own where they are masked, by infinity or nearly so.
fn unmasked(scores: &Tensor) -> Tensor {
    let mark = |score: f64| if score < -1e9 { 7.0 } else { score };
    let marked: Vec<f64> = flat(scores).into_iter().map(mark).collect();
    Tensor::from_vec(marked, scores.shape(), &Device::Cpu).expect("the same shape")
}

#[test]
fn the_twins_metrics_are_the_librarys() {
    let pairs = Pairs::new();
    for model in variations::all() {
        let theirs = twin::run(
            &model,
            &pairs.corrupted,
            &Rules::gradient(),
            &Changes::new(),
        );
        let reference = clean_logits(&model);
        for metric in DIFFERENTIABLE {
            let values = flat(&twin::metric(
                metric,
                &theirs.logits,
                &pairs.targets,
                Some(&reference),
            ));
            for (i, (value, target)) in values.into_iter().zip(&pairs.targets).enumerate() {
                let row = |t: &Tensor| -> Vec<f32> {
                    let row = t.get(i).expect("a prompt");
                    flat(&row).into_iter().map(|x| x as f32).collect()
                };
                let all = row(&theirs.logits);
                let logits = match metric {
                    Metric::LogitDiff => {
                        let read = target.columns().into_iter();
                        read.map(|token| all[token as usize]).collect()
                    }
                    _ => all,
                };
                let ours = metric
                    .value(&logits, target, Some(&row(&reference)))
                    .expect("a value");
                assert!((ours - value).abs() < 1e-5, "{metric}: {ours} {value}");
            }
        }
    }
}

/// A fused operation anywhere in the twin would fail this: its gradient would be missing, most plainly at `hook_embed`.
#[test]
fn the_twins_gradients_are_its_central_differences() {
    for model in variations::all() {
        let prompts: Vec<Vec<u32>> = Pairs::new().clean[..1]
            .iter()
            .map(|prompt| prompt[..5].to_vec())
            .collect();
        let value = |changes: &Changes| {
            let run = twin::run(&model, &prompts, &Rules::gradient(), changes);
            let metric = metric_of(&run);
            (run, metric)
        };
        let (run, metric) = value(&Changes::new());
        let gradients = run.gradients(&metric);
        for (seed, hook) in Hook::all(&model.spec).into_iter().enumerate() {
            let gradient = flat(&gradients[&hook]);
            let direction = direction(&run.values[&hook], seed);
            let slope: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
            // A short step, so that no neuron crosses the corner of its ReLU on the way.
            let step = match model.spec.activation {
                Activation::Relu => 1e-7,
                _ => 1e-5,
            };
            let at = |sign: f64| {
                let shape = run.values[&hook].shape();
                let plus: Vec<f64> = direction.iter().map(|d| sign * step * d).collect();
                let change = Change {
                    times: Tensor::ones(shape, DType::F64, &Device::Cpu).expect("ones"),
                    plus: Tensor::from_vec(plus, shape, &Device::Cpu).expect("a shape"),
                };
                let (_, metric) = value(&HashMap::from([(hook, change)]));
                flat(&metric).iter().sum::<f64>()
            };
            let difference = (at(1.0) - at(-1.0)) / (2.0 * step);
            // Terms that cancel leave their rounding.
            let terms = gradient.iter().zip(&direction).map(|(g, d)| (g * d).abs());
            let size: f64 = terms.sum();
            assert!(
                (slope - difference).abs() < DIFFERENCE * size + ROUNDING_64,
                "{} {hook}: {slope} {difference}",
                model.spec.family
            );
            assert!(size > 0.0 || hook.kind != Kind::Embed);
        }
    }
}

fn metric_of(run: &twin::Run) -> Tensor {
    twin::metric(
        Metric::LogProb,
        &run.logits,
        &Pairs::new().targets[..1],
        None,
    )
}

/// A direction of entries about 1, the same for the same seed.
pub fn direction(like: &Tensor, seed: usize) -> Vec<f64> {
    (0..like.elem_count())
        .map(|i| 1.4 * ((i * i + 37 * seed + i) as f64 * 0.731).sin())
        .collect()
}

#[test]
fn a_rule_changes_no_value() {
    let prompts = Pairs::new().corrupted;
    for model in variations::all() {
        let values = |rules: &Rules| twin::run(&model, &prompts, rules, &Changes::new());
        let plain = values(&Rules::gradient());
        for (name, rules) in RULES {
            let far = gap(&values(&rules()).logits, &plain.logits);
            assert!(far < 1e-12, "{} {name}: {far}", model.spec.family);
        }
    }
}
