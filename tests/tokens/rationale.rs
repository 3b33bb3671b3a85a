//! ReAGent and soft scores: the batch against one prompt at a time, models that say nothing, prompts of one token, refusals.

use candlewick::lab::Lab;
use candlewick::methods::rationale::rationale_plain;
use candlewick::methods::tokens::TokenMethod;
use candlewick::methods::{
    Keep, RationaleConfig, Replacer, Running, SourceModel, Subject, Watch, check, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::{Loaded, Model};
use candlewick::scores::Measured;
use candlewick::task::{Pair, Task};

use crate::models::task::{task, tokenizer};
use crate::models::{VOCAB, encoder, every_kind, two_kinds};
use crate::{near, shares};

/// Nearly any answer will do of a random model, and half of its tokens.
fn quick() -> RationaleConfig {
    RationaleConfig {
        within: 30,
        runs: 3,
        steps: 6,
        against: vec![TokenMethod::GradientTimesInput],
        draws: 2,
        ..RationaleConfig::new(Replacer::Uniform)
    }
}

fn explained(model: &Model, task: &Task, config: &RationaleConfig, batch: usize) -> Measured {
    let running = Running {
        batch,
        ..Running::default()
    };
    measurements(Subject { model, task }, config, &running, &Watch::default())
        .unwrap_or_else(|error| panic!("{}: {error}", model.spec.family))
}

/// A side quantity of a method on one prompt.
fn side(measured: &Measured, example: usize, method: &str, name: &str) -> Option<f64> {
    let is_it = |cell: &candlewick::scores::Cell| {
        cell.component == method && cell.measure.as_deref() == Some(name)
    };
    let cell = measured.cells.iter().position(is_it)?;
    measured.examples[example].value(cell)
}

#[test]
fn runs_together_are_runs_one_by_one() {
    let config = RationaleConfig {
        within: 9,
        steps: 2,
        keep: Keep::Share(0.1),
        ..quick()
    };
    let mut models = every_kind();
    models.push(encoder());
    let (mut stopped, mut given_up) = (0, 0);
    for model in models {
        let family = model.spec.family.clone();
        let config = match model.spec.encoder {
            Some(_) => RationaleConfig {
                replacer: Replacer::SameClass,
                ..config.clone()
            },
            None => config.clone(),
        };
        let task = task();
        let plain: Vec<_> = (0..task.pairs().len())
            .map(|item| {
                let on = Subject {
                    model: &model,
                    task: &task,
                };
                rationale_plain(on, &config, item).expect("it runs")
            })
            .collect();
        let all = plain.iter().flatten();
        if all.clone().all(|run| !run.stopped) {
            continue;
        }
        let measured = explained(&model, &task, &config, 2);
        for (example, runs) in plain.iter().enumerate() {
            let ended: Vec<_> = runs.iter().filter(|run| run.stopped).collect();
            stopped += ended.len();
            given_up += runs.len() - ended.len();
            let found = shares(&measured, example, "hook_embed");
            let Some(first) = ended.first() else {
                assert!(found.is_empty(), "{family}");
                continue;
            };
            let n = ended.len() as f64;
            let mean = |at: usize| ended.iter().map(|run| run.importance[at]).sum::<f64>() / n;
            let means: Vec<f64> = (0..first.importance.len()).map(mean).collect();
            near(&family, &found, &means, 1e-3);
            assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{family}");
            let steps = ended.iter().map(|run| run.steps as f64).sum::<f64>() / n;
            assert_eq!(side(&measured, example, "reagent", "steps"), Some(steps));
            let share = n / runs.len() as f64;
            assert_eq!(side(&measured, example, "reagent", "stopped"), Some(share));
        }
    }
    // Both ends of a run were seen.
    assert!(stopped > 20 && given_up > 4, "{stopped} {given_up}");
}

#[test]
fn the_batch_is_no_part_of_a_number() {
    for model in two_kinds() {
        let [one, all] = [1, 8].map(|batch| explained(&model, &task(), &quick(), batch));
        for (one, all) in one.examples.iter().zip(&all.examples) {
            assert_eq!(one.cells, all.cells);
            near(&model.spec.family, &one.values, &all.values, 1e-3);
        }
    }
}

#[test]
fn a_model_that_always_says_the_same_moves_nothing() {
    // The second has no biases.
    let mut model = two_kinds().remove(1);
    let mut weights = model.weights.clone();
    weights.w_u = weights.w_u.zeros_like().expect("zeros");
    model = Model::new(model.spec.clone(), weights, model.origin.clone()).expect("same shapes");
    let config = RationaleConfig { runs: 1, ..quick() };
    // Every token is among the likeliest, so a run ends after its first step, and nothing was learnt in it.
    let longer = RationaleConfig {
        ratio: 0.9,
        ..config.clone()
    };
    let measured = explained(&model, &task(), &config, 8);
    let again = explained(&model, &task(), &longer, 8);
    for example in 0..measured.examples.len() {
        assert_eq!(side(&measured, example, "reagent", "steps"), Some(1.0));
        let found = shares(&measured, example, "hook_embed");
        near(
            "same",
            &found,
            &shares(&again, example, "hook_embed"),
            1e-12,
        );
        // A start between 0 and 1 makes importances of at most e to 1.
        let most = found.iter().copied().fold(0.0, f64::max);
        let least = found.iter().copied().fold(1.0, f64::min);
        assert!(most > least && most / least < std::f64::consts::E);
        // Nothing moves the distribution, so there is no score of it.
        assert_eq!(side(&measured, example, "reagent", "soft_ns"), None);
    }
}

/// One ordinary token behind the special ones has all importance: it is kept whole, or nothing is.
#[test]
fn all_importance_in_one_token_is_sufficient_and_comprehensive() {
    let start = 0;
    assert!(tokenizer().is_special(start));
    let pair = Pair::new(vec![start, start, 5], vec![start, start, 6]).answer(3);
    let mut models = every_kind();
    models.push(encoder());
    let mut seen = 0;
    for model in models {
        let mut pair = pair.clone();
        if model.spec.encoder.is_some() {
            pair.clean.reverse();
            pair.corrupted.reverse();
        }
        let task = Task::new("one", tokenizer(), Metric::LogProb, [pair]).expect("a task");
        let config = RationaleConfig {
            within: VOCAB,
            ..quick()
        };
        let measured = explained(&model, &task, &config, 8);
        assert_eq!(shares(&measured, 0, "hook_embed"), [1.0]);
        for method in ["reagent", "reagent:shuffled", "grad-x-input", "random"] {
            for name in ["soft_ns", "soft_nc", "soft_ns_max_released", "soft_nc_max"] {
                let score = side(&measured, 0, method, name).expect("measured");
                assert!(
                    (score - 1.0).abs() < 2e-2,
                    "{} {method} {name}: {score}",
                    model.spec.family
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 100);
}

#[test]
fn scores_lie_between_nothing_and_their_most() {
    for model in two_kinds() {
        let measured = explained(&model, &task(), &quick(), 8);
        let mut seen = 0;
        for (cell, of) in measured.cells.iter().enumerate() {
            let Some(name) = of
                .measure
                .as_deref()
                .filter(|name| name.starts_with("soft"))
            else {
                continue;
            };
            for one in &measured.examples {
                let value = one.value(cell).unwrap_or(0.0);
                assert!(value >= 0.0, "{of}: {value}");
                if name.starts_with("soft_ns") {
                    assert!(value <= 1.0, "{of}: {value}");
                }
                seen += 1;
            }
        }
        assert!(seen > 0);
    }
}

/// The answer is copied from one token, whose importance grows.
#[test]
fn the_token_that_is_copied_has_more_than_its_part() {
    let lab = Lab::open("embedded", "embedded")
        .expect("it is in the library")
        .first(6);
    let config = RationaleConfig {
        against: Vec::new(),
        draws: 1,
        ..RationaleConfig::new(Replacer::Uniform)
    };
    let measured = explained(&lab.model, &lab.task, &config, 8);
    let (mut of_answer, mut all) = (0.0, 0.0);
    for (example, one) in measured.examples.iter().enumerate() {
        let pair = &lab.task.pairs()[example];
        let (Some(at), false) = (pair.roles.get("IO"), one.cells.is_empty()) else {
            continue;
        };
        for (cell, value) in one.cells.iter().zip(&one.values) {
            let cell = &measured.cells[*cell as usize];
            if cell.component != "hook_embed" {
                continue;
            }
            let pos = cell.pos.expect("a position") as usize;
            all += value;
            if at.contains(&pos) {
                of_answer += value;
            }
        }
    }
    // One token of fourteen has more than twice its part.
    assert!(
        all > 3.0 && of_answer / all > 2.0 / 14.0,
        "{of_answer} of {all}"
    );
}

#[test]
fn what_cannot_be_explained_is_refused() {
    let model = two_kinds().remove(0);
    let refused = |config: RationaleConfig| -> String {
        check(&config, &model.spec, &task())
            .expect_err("refused")
            .to_string()
    };
    for ratio in [0.0, 1.0, f64::NAN] {
        assert!(refused(RationaleConfig { ratio, ..quick() }).contains("ratio"));
    }
    let all = refused(RationaleConfig {
        keep: Keep::Tokens(10),
        ..quick()
    });
    assert!(all.contains("end at once"), "{all}");
    for none in [
        RationaleConfig { runs: 0, ..quick() },
        RationaleConfig {
            steps: 0,
            ..quick()
        },
        RationaleConfig {
            draws: 0,
            ..quick()
        },
        RationaleConfig {
            within: 0,
            ..quick()
        },
    ] {
        assert!(refused(none).contains("take from 1"));
    }
    let random = vec![TokenMethod::Random];
    assert!(
        refused(RationaleConfig {
            against: random,
            ..quick()
        })
        .contains("anyway")
    );
    let twice = vec![TokenMethod::Lrp, TokenMethod::Lrp];
    assert!(
        refused(RationaleConfig {
            against: twice,
            ..quick()
        })
        .contains("twice")
    );
    // A decoder fills no masks.
    let decoder = SourceModel::from(Loaded {
        model: model.clone(),
        tokenizer: tokenizer().clone(),
    });
    let masked = refused(RationaleConfig {
        replacer: Replacer::Masked(decoder),
        ..quick()
    });
    assert!(masked.contains("no masked-language model"), "{masked}");
    // Where the answer is never near, there is nothing to say.
    let on = Subject {
        model: &model,
        task: &task(),
    };
    let never = RationaleConfig {
        within: 1,
        steps: 1,
        ..quick()
    };
    let found = measurements(on, &never, &Running::default(), &Watch::default());
    let message = found.expect_err("no answer is the likeliest").to_string();
    assert!(message.contains("none of 3 prompts"), "{message}");
}
