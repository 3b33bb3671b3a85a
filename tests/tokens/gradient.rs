//! Gradients are slopes.

use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site};
use candlewick::methods::tokens::TokenMethod;
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{GradientRequest, Request, gradients, run};

use crate::models::{Pairs, every_kind, two_kinds};
use crate::{SUMS, config, measure, near, shares};

/// The metric of the clean prompts under an edit.
fn edited(model: &Model, edit: &Edit) -> Vec<f64> {
    let (pairs, edits) = (Pairs::new(), [edit.clone()]);
    let request = Request {
        edits: &edits,
        ..Request::default()
    };
    let logits = run(model, &pairs.clean, &request).expect("runs").logits;
    let logits = logits.expect("asked for").to_vec2::<f32>().expect("reads");
    let each = logits.iter().zip(&pairs.targets);
    each.map(|(logits, target)| {
        let mean = |ids: &[u32]| {
            let sum: f64 = ids.iter().map(|&id| f64::from(logits[id as usize])).sum();
            sum / ids.len() as f64
        };
        mean(&target.answers) - mean(&target.wrong)
    })
    .collect()
}

#[test]
fn gradient_times_input_is_the_slope_along_the_input() {
    for model in every_kind() {
        // What is cut off makes corners, which a shorter way meets less often.
        let step = if model.spec.qkv_clip.is_some() {
            5e-4
        } else {
            4e-3
        };
        let measured = measure(&model, &config(TokenMethod::GradientTimesInput));
        for kind in [Kind::Embed, Kind::PosEmbed] {
            if kind.absent(&model.spec).is_some() {
                continue;
            }
            for pos in 0..Pairs::LENGTH {
                let scaled = |factor| {
                    let site = Site::all(Hook::global(kind)).at_positions([Pos::Index(pos)]);
                    edited(&model, &Edit::new(site, Op::Scale(factor)))
                };
                let (up, down) = (scaled(1.0 + step), scaled(1.0 - step));
                for example in 0..up.len() {
                    let slope = (up[example] - down[example]) / (2.0 * f64::from(step));
                    let share = shares(&measured, example, kind.name())[pos];
                    assert!(
                        (share - slope).abs() < 1e-2 * slope.abs().max(1.0),
                        "{} {} {pos}: {share} against {slope}",
                        model.spec.family,
                        kind.name()
                    );
                }
            }
        }
    }
}

#[test]
fn saliency_is_the_length_of_the_gradient() {
    let (pairs, embed) = (Pairs::new(), [Hook::global(Kind::Embed)]);
    for model in two_kinds() {
        let request = GradientRequest::new(Metric::LogitDiff, &pairs.targets, &embed);
        let of = gradients(&model, &pairs.clean, &request).expect("a gradient");
        let gradient = of.cache.get(embed[0]).expect("asked for");
        let gradient = gradient.to_vec3::<f32>().expect("reads");
        let l1 = measure(&model, &config(TokenMethod::SaliencyL1));
        let l2 = measure(&model, &config(TokenMethod::SaliencyL2));
        for (example, rows) in gradient.iter().enumerate() {
            let sum = |of: fn(f64) -> f64| -> Vec<f64> {
                let row = |row: &Vec<f32>| row.iter().map(|&g| of(f64::from(g))).sum();
                rows.iter().map(row).collect()
            };
            near("L1", &l1.examples[example].values, &sum(f64::abs), 1e-6);
            let length: Vec<f64> = sum(|g| g * g).iter().map(|g| g.sqrt()).collect();
            near("L2", &l2.examples[example].values, &length, 1e-6);
        }
    }
}

#[test]
fn smooth_grad_without_noise_is_gradient_times_input() {
    for model in two_kinds() {
        let plain = measure(&model, &config(TokenMethod::GradientTimesInput));
        let smooth = |noise, seed| {
            let mut config = config(TokenMethod::SmoothGrad { draws: 3, noise });
            config.seed = Some(seed);
            measure(&model, &config)
        };
        for example in 0..3 {
            let tokens = shares(&plain, example, "hook_embed");
            near(
                "noiseless",
                &shares(&smooth(0.0, 0), example, "hook_embed"),
                &tokens,
                SUMS,
            );
        }
        assert_eq!(smooth(0.1, 1), smooth(0.1, 1));
        assert_ne!(smooth(0.1, 1).examples, smooth(0.1, 2).examples);
    }
}
