//! LRP conserves what it shares out.

use candlewick::hooks::{Hook, Kind};
use candlewick::methods::tokens::TokenMethod;
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::{GradientRequest, Request, gradients, run};

use crate::models::{Pairs, every_kind};
use crate::{SUMS, completeness, config, flat, measure, near, shares};

fn without_biases() -> Vec<Model> {
    every_kind()
        .into_iter()
        .enumerate()
        .map(|(i, model)| {
            Model::random_without_biases(model.spec, 300 + i as u64).expect("a model")
        })
        .collect()
}

#[test]
fn lrp_conserves_the_logit_without_biases() {
    for model in without_biases() {
        let measured = measure(&model, &config(TokenMethod::Lrp));
        assert!(
            measured.cells.iter().all(|cell| cell.pos.is_some()),
            "{}: every row is a token's or a position's",
            model.spec.family
        );
        for one in &completeness(&measured) {
            assert!(
                one.delta.abs() < SUMS * one.total.abs().max(1.0),
                "{}: {one:?}",
                model.spec.family
            );
        }
    }
}

#[test]
fn what_biases_bring_is_accounted_for() {
    for model in every_kind() {
        let biased = model.weights.blocks[0].b_o.is_some();
        for method in [
            TokenMethod::Lrp,
            TokenMethod::AttnLrp,
            TokenMethod::AltiLogit,
        ] {
            let measured = measure(&model, &config(method.clone()));
            for (example, one) in completeness(&measured).iter().enumerate() {
                let size = measured.examples[example].values.iter().map(|v| v.abs());
                assert!(
                    one.delta.abs() < SUMS * size.sum::<f64>().max(1.0),
                    "{} {method}: {one:?}",
                    model.spec.family
                );
                let bias: f64 = shares(&measured, example, "bias")
                    .iter()
                    .map(|b| b.abs())
                    .sum();
                assert_eq!(
                    bias > 1e-3,
                    biased,
                    "{} {method}: {bias}",
                    model.spec.family
                );
            }
        }
    }
}

/// `bias . (mean of the answers' columns - mean of the wrong ones')`, and the unembedding's own.
#[test]
fn the_last_bias_row_is_the_final_norms_and_the_unembeddings() {
    let pairs = Pairs::new();
    for model in every_kind() {
        let Some(norm_bias) = model.weights.ln_final.as_ref().and_then(|n| n.b.as_ref()) else {
            continue;
        };
        assert!(model.spec.final_softcap.is_none() && model.spec.logit_scale.is_none());
        let columns = model
            .weights
            .w_u
            .matmul(&norm_bias.unsqueeze(1).expect("shape"));
        let mut each = flat(&columns.expect("product"));
        if let Some(b_u) = &model.weights.b_u {
            each.iter_mut()
                .zip(flat(b_u))
                .for_each(|(sum, b)| *sum += b);
        }
        for method in [
            TokenMethod::Lrp,
            TokenMethod::AttnLrp,
            TokenMethod::AltiLogit,
        ] {
            let measured = measure(&model, &config(method));
            for (example, target) in pairs.targets.iter().enumerate() {
                let mean = |ids: &[u32]| {
                    let sum: f64 = ids.iter().map(|&id| f64::from(each[id as usize])).sum();
                    sum / ids.len() as f64
                };
                let expected = mean(&target.answers) - mean(&target.wrong);
                let last = shares(&measured, example, "bias").pop().expect("a row");
                near(&model.spec.family, &[last], &[expected], SUMS);
            }
        }
    }
}

#[test]
fn the_softmax_row_is_what_enters_the_pattern_less_what_leaves_the_scores() {
    let pairs = Pairs::new();
    for model in every_kind() {
        // The slopes of ALiBi are a bias of the scores, and stand in the row of biases.
        if model.spec.alibi_slope(0).is_some() {
            continue;
        }
        let measured = measure(&model, &config(TokenMethod::AttnLrp));
        let layers = 0..model.spec.n_layers;
        let hooks: Vec<Hook> = layers
            .flat_map(|layer| [Kind::Pattern, Kind::AttnScores].map(|kind| Hook::at(kind, layer)))
            .collect();
        let request = GradientRequest {
            rules: Rules::attn_lrp(),
            ..GradientRequest::new(Metric::LogitDiff, &pairs.targets, &hooks)
        };
        let slopes = gradients(&model, &pairs.clean, &request).expect("a gradient");
        let request = Request {
            capture: &hooks,
            ..Request::default()
        };
        let values = run(&model, &pairs.clean, &request).expect("runs").cache;
        for example in 0..pairs.clean.len() {
            // Half of `value . gradient`; a masked score is minus infinity and has none.
            let half = |hook: Hook| -> f64 {
                let of = |cache: &candlewick::run::Cache| {
                    let t = cache.get(hook).expect("asked for");
                    flat(&t.get(example).expect("in the batch"))
                };
                let pairs = of(&values).into_iter().zip(of(&slopes.cache));
                let finite = pairs.filter(|(value, _)| value.is_finite());
                finite
                    .map(|(value, slope)| 0.5 * f64::from(value) * f64::from(slope))
                    .sum()
            };
            let leaks: Vec<f64> = hooks
                .chunks(2)
                .map(|of_layer| half(of_layer[0]) - half(of_layer[1]))
                .collect();
            let rows = shares(&measured, example, "attn.hook_pattern");
            assert!(leaks.iter().any(|leak| leak.abs() > 1e-2), "{leaks:?}");
            near(&model.spec.family, &rows, &leaks, SUMS);
        }
    }
}
