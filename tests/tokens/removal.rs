//! Removals against whole runs of each coalition, written out; sums, dummies, refusals.

use std::collections::BTreeSet;

use candlewick::Error;
use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
use candlewick::methods::removal::{EXACT, Players, Removal, RemovalConfig, Summary};
use candlewick::methods::{Method, Running, Subject, Watch, check, measurements};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::scores::{Detail, Measured};
use candlewick::task::{Pair, Task};

use crate::models::task::{changed, first, logit_diff, task, tokenizer};
use crate::models::{encoder, every_kind, two_kinds};
use crate::{SUMS, completeness, near};

const SHAPLEY: Summary = Summary::Shapley { draws: 4 };

fn config(summary: Summary, players: Players, removal: Removal) -> RemovalConfig {
    RemovalConfig {
        players,
        removal,
        ..RemovalConfig::new(summary)
    }
}

fn measure(model: &Model, task: &Task, config: &RemovalConfig) -> Measured {
    let on = Subject { model, task };
    let running = Running {
        memory: Some(1 << 30),
        ..Running::default()
    };
    measurements(on, config, &running, &Watch::default())
        .unwrap_or_else(|error| panic!("{}: {error}", model.spec.family))
}

/// What stands for a pair's clean prompt, run whole.
fn whole(model: &Model, pair: &Pair, prompt: Vec<u32>) -> f64 {
    let with = Pair {
        clean: prompt,
        roles: Default::default(),
        ..pair.clone()
    };
    logit_diff(model, &with, &[])
}

#[test]
fn leaving_a_token_out_is_a_run_of_the_prompt_without_it() {
    let task = task();
    let filler = tokenizer().token(7);
    for model in every_kind() {
        for removal in [
            Removal::Pair,
            Removal::Delete,
            Removal::Token(filler.clone()),
        ] {
            if model.spec.encoder.is_some() && removal != Removal::Pair {
                continue;
            }
            let config = config(Summary::LeaveOneOut, Players::Tokens, removal.clone());
            let measured = measure(&model, &task, &config);
            for (one, pair) in measured.examples.iter().zip(task.pairs()) {
                let mut wanted = Vec::new();
                let rows = one.cells.iter().map(|&cell| &measured.cells[cell as usize]);
                for cell in rows {
                    let pos = cell.pos.expect("a token") as usize;
                    let mut prompt = pair.clean.clone();
                    match &removal {
                        Removal::Delete if pos + 1 == prompt.len() => {}
                        Removal::Delete => drop(prompt.remove(pos)),
                        Removal::Pair => prompt[pos] = pair.corrupted[pos],
                        _ => prompt[pos] = 7,
                    }
                    wanted.push(one.clean - whole(&model, pair, prompt));
                }
                let what = format!("{} {removal}", model.spec.family);
                near(&what, &one.values, &wanted, SUMS);
                assert!(wanted.iter().any(|share| share.abs() > 1e-3), "{what}");
            }
        }
    }
}

#[test]
fn a_permutation_gives_each_prompt_the_tokens_of_another() {
    let task = task();
    let config = config(Summary::LeaveOneOut, Players::Tokens, Removal::Permute);
    for model in two_kinds() {
        let measured = measure(&model, &task, &config);
        let mut taken = BTreeSet::new();
        for (one, pair) in measured.examples.iter().zip(task.pairs()) {
            let with = |other: &Pair| -> Vec<f64> {
                let places = one
                    .cells
                    .iter()
                    .map(|&cell| measured.cells[cell as usize].pos);
                let lost = places.map(|pos| {
                    let pos = pos.expect("a token") as usize;
                    let mut prompt = pair.clean.clone();
                    prompt[pos] = other.clean[pos];
                    one.clean - whole(&model, pair, prompt)
                });
                lost.collect()
            };
            let is_it = |other: &&Pair| {
                let wanted = with(other);
                let each = one.values.iter().zip(wanted);
                other.index != pair.index && each.into_iter().all(|(a, b)| (a - b).abs() < 1e-3)
            };
            let other = task.pairs().iter().find(is_it).expect("another prompt");
            taken.insert(other.index);
        }
        assert_eq!(taken.len(), 3, "each is taken once");
    }
    let on = check(&config, &two_kinds()[0].spec, &first(&task, 1));
    let message = on.expect_err("refused").to_string();
    assert!(message.contains("more pairs"), "{message}");
}

/// Shapley values by the formula, from a value for every set of three.
fn shapley_of_three(v: impl Fn([bool; 3]) -> f64) -> [f64; 3] {
    let orders = [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ];
    let mut shares = [0.0; 3];
    for order in orders {
        let mut there = [false; 3];
        for player in order {
            let before = v(there);
            there[player] = true;
            shares[player] += (v(there) - before) / 6.0;
        }
    }
    shares
}

#[test]
fn shapley_values_are_those_of_whole_runs_and_tokens_that_stay_are_dummies() {
    let task = task();
    for model in every_kind() {
        let measured = measure(
            &model,
            &task,
            &config(SHAPLEY, Players::Tokens, Removal::Pair),
        );
        for (one, pair) in measured.examples.iter().zip(task.pairs()) {
            let differ: Vec<usize> = (0..pair.clean.len())
                .filter(|&pos| pair.clean[pos] != pair.corrupted[pos])
                .collect();
            let v = |there: [bool; 3]| {
                let mut prompt = pair.clean.clone();
                for (&pos, there) in differ.iter().zip(there) {
                    if !there {
                        prompt[pos] = pair.corrupted[pos];
                    }
                }
                whole(&model, pair, prompt)
            };
            let mut wanted = vec![0.0; pair.clean.len()];
            for (&pos, share) in differ.iter().zip(shapley_of_three(v)) {
                wanted[pos] = share;
            }
            near(&model.spec.family, &one.values, &wanted, SUMS);
        }
        for sum in completeness(&measured) {
            assert!(sum.delta.abs() < SUMS * sum.total.abs().max(1.0), "{sum:?}");
        }
    }
}

#[test]
fn heads_and_mlps_are_removed_as_edits_say() {
    let task = task();
    for model in every_kind() {
        let config = config(Summary::IncludeOne, Players::Components, Removal::Zero);
        let measured = measure(&model, &task, &config);
        let zero = |layer: usize, head: usize| {
            Edit::new(Site::all(Hook::at(Kind::Z, layer)).heads([head]), Op::Zero)
        };
        let out = |layer: usize| Edit::new(Site::all(Hook::at(Kind::MlpOut, layer)), Op::Zero);
        let edits = |but: usize| -> Vec<Edit> {
            let nodes = measured
                .cells
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != but);
            let edit = |(_, cell): (usize, &candlewick::scores::Cell)| {
                let layer = cell.layer.expect("a layer") as usize;
                match cell.head {
                    Some(head) => zero(layer, head as usize),
                    None => out(layer),
                }
            };
            nodes.map(edit).collect()
        };
        for (one, pair) in measured.examples.iter().zip(task.pairs()) {
            let none = logit_diff(&model, pair, &edits(usize::MAX));
            let wanted: Vec<f64> = (0..measured.cells.len())
                .map(|node| logit_diff(&model, pair, &edits(node)) - none)
                .collect();
            near(&model.spec.family, &one.values, &wanted, SUMS);
        }
    }
}

#[test]
fn spans_play_whole_and_sums_close_for_every_removal() {
    let task = task();
    for model in two_kinds() {
        for removal in [Removal::Pair, Removal::Zero, Removal::Mean, Removal::Delete] {
            for summary in [SHAPLEY, Summary::KernelShap { draws: 4 }] {
                let measured = measure(
                    &model,
                    &task,
                    &config(summary, Players::Roles, removal.clone()),
                );
                let roles: Vec<_> = measured
                    .cells
                    .iter()
                    .map(|cell| cell.role.clone())
                    .collect();
                assert_eq!(roles, [Some("S1".into()), Some("S2".into())]);
                let sums = completeness(&measured);
                assert_eq!(sums.len(), task.pairs().len());
                for sum in sums {
                    assert!(sum.delta.abs() < SUMS * sum.total.abs().max(1.0), "{sum:?}");
                }
            }
        }
        // A span is removed as one.
        let alone = measure(
            &model,
            &task,
            &config(Summary::LeaveOneOut, Players::Roles, Removal::Delete),
        );
        let pair = &task.pairs()[0];
        let kept = |at: &usize| !pair.roles["S2"].contains(at);
        let prompt = (0..pair.clean.len())
            .filter(kept)
            .map(|at| pair.clean[at])
            .collect();
        let wanted = alone.examples[0].clean - whole(&model, pair, prompt);
        near("a span", &alone.examples[0].values[1..], &[wanted], SUMS);
    }
}

#[test]
fn sampled_shares_have_errors_and_add_up() {
    // Ten tokens, and four more in front: more than all coalitions are run of.
    let longer = |pair: &mut Pair| {
        for prompt in [&mut pair.clean, &mut pair.corrupted] {
            prompt.splice(0..0, [3, 4, 5, 6]);
        }
        pair.roles.clear();
    };
    let task = changed(&first(&task(), 1), longer);
    let n = task.pairs()[0].clean.len();
    assert!(n > EXACT);
    for model in two_kinds() {
        let measured = |summary| {
            measure(
                &model,
                &task,
                &config(summary, Players::Tokens, Removal::Zero),
            )
        };
        let precise = measured(Summary::Shapley { draws: 400 });
        let errors = precise.examples[0].values[n..].to_vec();
        assert!(errors.iter().all(|&error| error > 0.0), "{errors:?}");
        for summary in [
            Summary::Shapley { draws: 40 },
            Summary::KernelShap { draws: 300 },
        ] {
            let rough = measured(summary);
            let (shares, own) = rough.examples[0].values.split_at(n);
            for i in 0..n {
                let slack = 4.0 * (own[i].powi(2) + errors[i].powi(2)).sqrt() + 1e-6;
                let off = (shares[i] - precise.examples[0].values[i]).abs();
                assert!(
                    off < slack,
                    "{} {summary:?} {i}: {off} of {slack}",
                    model.spec.family
                );
            }
            let sum = completeness(&rough)[0];
            assert!(sum.delta.abs() < SUMS * sum.total.abs().max(1.0), "{sum:?}");
        }
        let sobol = measured(Summary::Sobol { draws: 16 });
        assert!(sobol.examples[0].values.iter().all(|&share| share >= 0.0));
    }
}

#[test]
fn errors_stand_in_a_table_beside() {
    let model = two_kinds().swap_remove(0);
    let task = task();
    let config = config(SHAPLEY, Players::Tokens, Removal::Pair);
    let table = |config: &RemovalConfig| {
        let on = Subject {
            model: &model,
            task: &task,
        };
        let running = Running {
            detail: Detail::PerExample,
            ..Running::default()
        };
        candlewick::methods::measure(on, config, &running, &Watch::default()).expect("a table")
    };
    let exact = table(&config);
    assert!(exact.side(candlewick::scores::MEASURES).is_none());
    assert_eq!(exact.provenance.method, "shapley");
    assert_eq!(
        exact.texts("component").expect("a column")[0],
        Some("hook_embed")
    );
}

#[test]
fn what_cannot_be_removed_is_refused_before_anything_runs() {
    let model = two_kinds().swap_remove(0);
    let task = task();
    let refused = |model: &Model, config: &RemovalConfig| -> Error {
        config.header(&task);
        check(config, &model.spec, &task).expect_err("refused")
    };
    for (wrong, says) in [
        (
            config(SHAPLEY, Players::Heads, Removal::Delete),
            "pieces of the prompt",
        ),
        (
            config(
                SHAPLEY,
                Players::Tokens,
                Removal::Token("no such token".into()),
            ),
            "not in its vocabulary",
        ),
        (
            config(
                Summary::Shapley { draws: 1 },
                Players::Tokens,
                Removal::Zero,
            ),
            "at least 2 draws",
        ),
        (
            config(
                Summary::Lime {
                    draws: 9,
                    width: 0.0,
                    ridge: 1.0,
                },
                Players::Tokens,
                Removal::Zero,
            ),
            "a width above 0",
        ),
    ] {
        let message = refused(&model, &wrong).to_string();
        assert!(message.contains(says), "{message}");
    }
    let without = changed(&task, |pair| {
        pair.roles = [("END".to_string(), vec![pair.clean.len() - 1])].into();
    });
    let error = check(
        &config(SHAPLEY, Players::Roles, Removal::Zero),
        &model.spec,
        &without,
    );
    let message = error.expect_err("no game").to_string();
    assert!(message.contains("no roles"), "{message}");
    let message = refused(
        &encoder(),
        &config(SHAPLEY, Players::Tokens, Removal::Delete),
    )
    .to_string();
    assert!(message.contains("taken out or replaced"), "{message}");
    assert!(Summary::LeaveOneOut.with_draws(3).is_err());
    assert!("shapely".parse::<Summary>().is_err() && "token:".parse::<Removal>().is_err());
    let metric = RemovalConfig {
        metric: Some(Metric::Prob),
        ..RemovalConfig::new(SHAPLEY)
    };
    assert_eq!(metric.header(&task).unit, "probability");
}
