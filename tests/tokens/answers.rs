//! Shares of answers of several tokens, and of what an encoder says at its mask.

use candlewick::methods::tokens::{Baseline, Quadrature, TokenMethod};
use candlewick::methods::{Running, Subject, Watch, measurements};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::scores::Measured;
use candlewick::task::{Pair, Task};

use crate::models::task::{pairs, task_of, tokenizer};
use crate::models::{encoder, encoders, every_kind, two_kinds};
use crate::{SUMS, completeness, config, ig, measure_so};

fn masked(after: usize) -> Task {
    let read = |pair: Pair| pair.read_before(after);
    task_of(pairs().into_iter().map(read).collect())
}

/// Answers of two and three tokens.
fn whole() -> Task {
    let whole = |pair: Pair| {
        let tokens = [vec![3, 8], vec![20, 5, 11]][pair.index % 2].clone();
        Pair::new(pair.clean, pair.corrupted).whole_answer(tokens)
    };
    let pairs = pairs().into_iter().map(whole);
    Task::new("whole", tokenizer(), Metric::LogProb, pairs).expect("a task")
}

fn measured(model: &Model, task: &Task, method: TokenMethod) -> Measured {
    measure_so(model, task, &config(method), &Running::default())
}

#[track_caller]
fn closes(model: &Model, task: &Task, method: TokenMethod, tolerance: f64) {
    let what = format!("{} {method}", model.spec.family);
    let measured = measured(model, task, method);
    for (example, one) in completeness(&measured).iter().enumerate() {
        let size = measured.examples[example].values.iter().map(|v| v.abs());
        let limit = tolerance * size.sum::<f64>().max(1.0);
        assert!(one.delta.abs() < limit, "{what}: {one:?}");
        assert!(one.total.abs() > 1e-3, "{what}: {one:?}");
    }
}

#[test]
fn relevances_of_an_encoder_sum_to_the_metric_at_its_mask() {
    let plain = |model: Model| Model::random_without_biases(model.spec, 5).expect("a model");
    for model in encoders().into_iter().chain(encoders().map(plain)) {
        for after in [0, 4] {
            for method in [TokenMethod::Lrp, TokenMethod::AttnLrp] {
                closes(&model, &masked(after), method, SUMS);
            }
        }
    }
}

#[test]
fn integrated_gradients_of_an_encoder_sum_to_the_change() {
    for baseline in [Baseline::Pair, Baseline::Mean] {
        let method = ig(100, Quadrature::GaussLegendre, baseline);
        for model in encoders() {
            closes(&model, &masked(3), method.clone(), 1e-2);
        }
    }
}

#[test]
fn shares_of_whole_answers_sum_to_what_they_promise() {
    for model in every_kind() {
        for method in [TokenMethod::Lrp, TokenMethod::AttnLrp] {
            closes(&model, &whole(), method, SUMS);
        }
    }
    for model in two_kinds() {
        let method = ig(100, Quadrature::GaussLegendre, Baseline::Pair);
        closes(&model, &whole(), method, 1e-2);
    }
}

#[test]
fn mixtures_refuse_both_by_name() {
    for method in [TokenMethod::AltiLogit, TokenMethod::AltiRollout] {
        let refused = |model: &Model, task: &Task| {
            let on = Subject { model, task };
            let running = Running::default();
            let refused = measurements(on, &config(method.clone()), &running, &Watch::default());
            refused.expect_err("refused").to_string()
        };
        let message = refused(&encoder(), &masked(2));
        assert!(message.contains("ALTI"), "{message}");
        let message = refused(&two_kinds()[0], &whole());
        assert!(
            message.contains(method.name()) && message.contains("reads one token"),
            "{message}"
        );
    }
}
