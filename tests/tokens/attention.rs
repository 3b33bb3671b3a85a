//! Attention baselines: rows of patterns and of their product, written out.

use candlewick::hooks::{Hook, Kind};
use candlewick::methods::tokens::TokenMethod;
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{GradientRequest, Request, gradients, run};

use crate::models::{Pairs, encoder, every_kind};
use crate::{SUMS, config, flat, measure, near, shares};

/// The mean over heads of each layer's pattern, of one prompt. `[layers][query * key]`
fn patterns(model: &Model, example: usize) -> Vec<Vec<f64>> {
    let hooks: Vec<Hook> = (0..model.spec.n_layers)
        .map(|layer| Hook::at(Kind::Pattern, layer))
        .collect();
    let request = Request {
        capture: &hooks,
        ..Request::default()
    };
    let cache = run(model, &Pairs::new().clean, &request)
        .expect("runs")
        .cache;
    let size = Pairs::LENGTH * Pairs::LENGTH;
    let mean = |&hook: &Hook| {
        let pattern = flat(
            &cache
                .get(hook)
                .expect("captured")
                .get(example)
                .expect("there"),
        );
        let heads = pattern.len() / size;
        let of = |at: usize| {
            (0..heads)
                .map(|head| f64::from(pattern[head * size + at]))
                .sum::<f64>()
        };
        (0..size).map(|at| of(at) / heads as f64).collect()
    };
    hooks.iter().map(mean).collect()
}

fn with_encoder() -> Vec<Model> {
    let mut models = every_kind();
    models.push(encoder());
    models
}

#[test]
fn rollout_is_the_product_of_the_halved_patterns_and_sums_to_one() {
    let n = Pairs::LENGTH;
    for model in with_encoder() {
        let family = &model.spec.family;
        let rollout = measure(&model, &config(TokenMethod::AttentionRollout));
        let last = measure(&model, &config(TokenMethod::LastAttention));
        for example in 0..3 {
            let patterns = patterns(&model, example);
            let mut product: Vec<f64> = (0..n * n)
                .map(|at| f64::from(u8::from(at / n == at % n)))
                .collect();
            for pattern in &patterns {
                let half =
                    |i: usize, k: usize| 0.5 * pattern[i * n + k] + if i == k { 0.5 } else { 0.0 };
                product = (0..n * n)
                    .map(|at| {
                        (0..n)
                            .map(|k| half(at / n, k) * product[k * n + at % n])
                            .sum()
                    })
                    .collect();
            }
            let row = shares(&rollout, example, "hook_embed");
            near(family, &row, &product[Pairs::ANSWER * n..], 1e-6);
            assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{family}");
            let looked = &patterns[model.spec.n_layers - 1][Pairs::ANSWER * n..];
            near(family, &shares(&last, example, "hook_embed"), looked, 1e-6);
        }
    }
}

/// What comes through the weights of a layer's attention comes through its z, which is linear in them.
#[test]
fn attention_times_gradient_sums_to_that_of_z() {
    let pairs = Pairs::new();
    for model in with_encoder() {
        let measured = measure(&model, &config(TokenMethod::AttentionTimesGradient));
        let hooks: Vec<Hook> = (0..model.spec.n_layers)
            .map(|layer| Hook::at(Kind::Z, layer))
            .collect();
        let request = GradientRequest::new(Metric::LogitDiff, &pairs.targets, &hooks);
        let slopes = gradients(&model, &pairs.clean, &request)
            .expect("a gradient")
            .cache;
        let request = Request {
            capture: &hooks,
            ..Request::default()
        };
        let values = run(&model, &pairs.clean, &request).expect("runs").cache;
        for example in 0..3 {
            let mut sum = 0.0;
            for &hook in &hooks {
                let of = |cache: &candlewick::run::Cache| {
                    flat(
                        &cache
                            .get(hook)
                            .expect("there")
                            .get(example)
                            .expect("in the batch"),
                    )
                };
                let each = of(&values).into_iter().zip(of(&slopes));
                sum += each.map(|(z, g)| f64::from(z) * f64::from(g)).sum::<f64>();
            }
            let share: f64 = shares(&measured, example, "hook_embed").iter().sum();
            near(&model.spec.family, &[share], &[sum], SUMS);
        }
    }
}
