//! The gradient at every hook of every kind of model is the oracle's, under every rule and for every metric.

use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;

use crate::case::{Case, check};
use crate::models::{VOCAB, encoders, every_kind};
use crate::{DIFFERENTIABLE, RULES, variations};

#[test]
fn the_gradient_at_every_hook_is_the_oracles() {
    for model in variations::all().into_iter().chain(encoders()) {
        check(
            &model,
            &Case::new(Metric::LogitDiff, Rules::gradient()),
            "gradient",
        );
    }
}

#[test]
fn every_rule_is_the_oracles() {
    for model in variations::all().into_iter().chain(encoders()) {
        for (name, rules) in RULES {
            check(&model, &Case::new(Metric::LogitDiff, rules()), name);
        }
    }
}

#[test]
fn every_metric_has_the_oracles_gradient() {
    for model in every_kind() {
        for metric in DIFFERENTIABLE {
            let case = Case::new(metric, Rules::gradient());
            check(&model, &case, &metric.to_string());
        }
    }
}

#[test]
fn prompts_of_every_length_have_the_oracles_gradient() {
    for model in every_kind() {
        let mut spec = model.spec.clone();
        spec.n_ctx = 200;
        let model = Model::random(spec, 7).expect("a spec of the engine");
        // One token, more than a register has lanes, more than a block of queries.
        for length in [1, 2, 29, 150] {
            let token = |i: u32| (i * i * 5 + i * 3 + 1) % VOCAB as u32;
            let case = Case {
                prompts: vec![(0..length).map(token).collect()],
                ..Case::new(Metric::LogProb, Rules::gradient())
            };
            check(&model, &case, &format!("{length} tokens"));
        }
    }
}
