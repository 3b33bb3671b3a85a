//! What has no gradient, and requests that do not fit, are errors that say why.

use candle_core::Tensor;
use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
use candlewick::metric::{Metric, Target};
use candlewick::model::Model;
use candlewick::run::{GradientRequest, gradients};

use crate::models::{Pairs, two_kinds};
use crate::{DIFFERENTIABLE, clean_logits};

fn check(model: &Model, request: &GradientRequest<'_>, says: &str) {
    let message = match gradients(model, &Pairs::new().clean, request) {
        Ok(_) => panic!("expected an error that says `{says}`"),
        Err(error) => error.to_string(),
    };
    assert!(
        message.contains(says) && !message.contains('\n'),
        "{message}"
    );
}

#[test]
fn a_metric_that_moves_in_steps_has_no_gradient() {
    let targets = Pairs::new().targets;
    for metric in [Metric::Rank, Metric::TopK(3), Metric::Accuracy] {
        assert!(!DIFFERENTIABLE.contains(&metric));
        let request = GradientRequest::new(metric, &targets, &[]);
        let result = gradients(&two_kinds()[0], &Pairs::new().clean, &request);
        assert!(matches!(result, Err(Error::NoGradient { .. })), "{metric}");
    }
}

#[test]
fn what_does_not_fit_is_an_error_that_says_why() {
    let model = two_kinds().remove(0); // GPT-2: 3 layers, 37 tokens
    let targets = Pairs::new().targets;
    let z = Hook::at(Kind::Z, 1);
    let new = |metric, targets| GradientRequest::new(metric, targets, &[]);
    check(&model, &new(Metric::LogitDiff, &targets[..2]), "3 prompts");
    let beyond = vec![
        Target {
            answers: vec![crate::models::VOCAB as u32],
            wrong: vec![0],
            ..Target::default()
        };
        3
    ];
    for metric in [Metric::LogitDiff, Metric::LogProb] {
        check(&model, &new(metric, &beyond), "37 tokens");
    }
    let reference: Vec<Vec<f32>> = clean_logits(&model).to_vec2().expect("rows");
    check(&model, &new(Metric::Kl, &targets), "not given");
    let two = GradientRequest {
        reference: Some(&reference[..2]),
        ..new(Metric::Kl, &targets)
    };
    check(&model, &two, "3 prompts");
    let hooks = [Hook::at(Kind::Z, 3)];
    let missing = GradientRequest::new(Metric::LogitDiff, &targets, &hooks);
    check(&model, &missing, "3 layers, 0 to 2");
    let closure = Edit::with(Site::all(z), "squared", |t: &Tensor| Ok(t.sqr()?));
    let pattern = Edit::new(Site::all(Hook::at(Kind::Pattern, 0)), Op::Scale(0.5));
    let normalized = "ln2.normalized1".parse().expect("a hook");
    let normalized = Edit::new(Site::all(normalized), Op::Zero);
    for (edit, says) in [
        (closure, "no known gradient"),
        (pattern, "hook_attn_scores"),
        (normalized, "exactly"),
        (
            Edit::new(Site::all(z), Op::FromRun("clean".into())),
            "no sources",
        ),
    ] {
        let edits = [edit];
        let request = GradientRequest {
            edits: &edits,
            ..new(Metric::LogitDiff, &targets)
        };
        check(&model, &request, says);
    }
}
