//! Where answers are read: several positions for an answer of several tokens, a position before the last in an encoder.

use candle_core::{DType, Tensor};
use candlewick::hooks::{Hook, Kind};
use candlewick::metric::{Metric, Target};
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::{GradientRequest, gradients};

use crate::models::{Pairs, encoder, every_kind};
use crate::twin::{self, Changes};
use crate::{RULES, flat, gap};

/// What f32 keeps of a gradient, relative to the largest at its hook.
const TOLERANCE: f64 = 1e-4;

/// Answers of three, two and one tokens.
fn whole_answers() -> Vec<Target> {
    let of = |tokens: &[u32]| Target {
        answers: vec![tokens[0]],
        then: tokens[1..].to_vec(),
        ..Target::default()
    };
    vec![of(&[3, 17, 8]), of(&[20, 4]), of(&[11])]
}

/// The metric of a target from the oracle's logits, by its definition.
fn oracle(metric: Metric, all: &Tensor, targets: &[Target]) -> Tensor {
    let length = all.dim(1).expect("positions");
    let of = |(i, target): (usize, &Target)| -> candle_core::Result<Tensor> {
        let tokens = target.answers.iter().chain(&target.then);
        let mut sum = Tensor::zeros((), DType::F64, all.device())?;
        for (pos, &token) in target.positions(length).zip(tokens) {
            let row = all.narrow(0, i, 1)?.narrow(1, pos, 1)?.flatten_all()?;
            let log_total = row.exp()?.sum_all()?.log()?;
            sum = ((sum + row.get(token as usize)?)? - log_total)?;
        }
        match metric {
            Metric::Prob => sum.exp(),
            _ => Ok(sum),
        }
    };
    let each: candle_core::Result<Vec<Tensor>> = targets.iter().enumerate().map(of).collect();
    Tensor::stack(&each.expect("in range"), 0).expect("one for each")
}

fn check(model: &Model, metric: Metric, targets: &[Target], rules: &Rules, what: &str) {
    let (hooks, prompts) = (Hook::all(&model.spec), Pairs::new().corrupted);
    let request = GradientRequest {
        rules: rules.clone(),
        ..GradientRequest::new(metric, targets, &hooks)
    };
    let ours = gradients(model, &prompts, &request).expect("differentiates");
    let run = twin::run(model, &prompts, rules, &Changes::new());
    let wanted = oracle(metric, &run.all, targets);
    let what = format!("{} {metric} {what}", model.spec.family);
    for (ours, theirs) in ours.values.iter().zip(flat(&wanted)) {
        let far = (ours - theirs).abs() / theirs.abs().max(1e-3);
        assert!(far < TOLERANCE, "{what}: value {ours}, oracle {theirs}");
    }
    let theirs = run.gradients(&wanted);
    let size = |t: &Tensor| flat(t).into_iter().fold(0.0f64, |max, x| max.max(x.abs()));
    let largest = theirs.values().map(size).fold(0.0, f64::max);
    for hook in hooks {
        // Of a norm's divisor terms cancel that are as large as any; `exact.rs` holds it by its own measure.
        if matches!(hook.kind, Kind::Scale(_)) {
            continue;
        }
        let mut theirs = theirs[&hook].clone();
        if hook.kind == Kind::Pattern {
            let layer = hook.layer.expect("a pattern has a layer");
            let visible = twin::visible(&model.spec, layer, prompts[0].len());
            theirs = theirs.broadcast_mul(&visible).expect("a mask");
        }
        let ours = ours.cache.get(hook).expect("asked for");
        let own = size(&theirs);
        let far = gap(&ours, &theirs) * own.max(1e-12) / own.max(1e-5 * largest);
        assert!(far < TOLERANCE, "{what} at {hook}: {far:.1e}");
    }
}

#[test]
fn the_gradient_of_a_whole_answer_is_the_oracles() {
    for model in every_kind() {
        for metric in [Metric::LogProb, Metric::Prob] {
            check(
                &model,
                metric,
                &whole_answers(),
                &Rules::gradient(),
                "gradient",
            );
        }
    }
}

#[test]
fn an_encoder_is_read_before_its_last_tokens() {
    let target = |after: usize| Target {
        answers: vec![5 + after as u32],
        after,
        ..Target::default()
    };
    let targets = [target(3), target(0), target(9)];
    for (name, rules) in RULES {
        check(&encoder(), Metric::LogProb, &targets, &rules(), name);
    }
}

#[test]
fn an_answer_of_one_token_is_measured_beside_longer_ones_as_alone() {
    for model in every_kind() {
        let (hooks, prompts) = (Hook::all(&model.spec), Pairs::new().clean);
        let plain = whole_answers().into_iter().map(|target| Target {
            then: Vec::new(),
            ..target
        });
        let plain: Vec<Target> = plain.collect();
        let alone = gradients(
            &model,
            &prompts,
            &GradientRequest::new(Metric::LogProb, &plain, &hooks),
        )
        .expect("differentiates");
        // The third answer has one token in both.
        let beside = gradients(
            &model,
            &prompts,
            &GradientRequest::new(Metric::LogProb, &whole_answers(), &hooks),
        )
        .expect("differentiates");
        // More rows make a product of another shape, which adds in another order.
        assert!((alone.values[2] - beside.values[2]).abs() < 1e-6);
        let last = Hook::at(Kind::ResidPost, model.spec.n_layers - 1);
        let row = |of: &candlewick::run::Gradients| {
            let t = of.cache.get(last).expect("asked for");
            t.get(2).expect("the third prompt")
        };
        assert!(gap(&row(&alone), &row(&beside)) < 1e-5);
    }
}

#[test]
fn what_cannot_be_read_is_refused_by_name() {
    let model = every_kind().remove(0);
    let prompts = Pairs::new().clean;
    let refused = |metric: Metric, targets: &[Target]| {
        let request = GradientRequest::new(metric, targets, &[]);
        let refused = gradients(&model, &prompts, &request).expect_err("refused");
        refused.to_string()
    };
    let message = refused(Metric::Kl, &whole_answers());
    assert!(message.contains("compares single tokens"), "{message}");
    let far = vec![
        Target {
            after: 10,
            ..whole_answers().remove(2)
        };
        3
    ];
    let message = refused(Metric::LogProb, &far);
    assert!(message.contains("outside"), "{message}");
}
