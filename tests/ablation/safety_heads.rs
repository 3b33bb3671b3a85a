//! Heads that move the model's next token (Ships) and turn it together (Sahara), against whole runs, on models of every kind.

use candlewick::hooks::{Edit, Hook, Kind, Ln, Node, Op, Site, Value};
use candlewick::methods::{HeadChange, Search, ShipsConfig};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{Request, run, run_with_cache};
use candlewick::scores::Detail;
use candlewick::spec::{NormPlacement, Position};
use candlewick::task::{Pair, Task};

use crate::heads::logits;
use crate::models::task::{first, task};
use crate::{column, measured, models, near, run_method};

#[test]
fn ships_is_the_divergence_of_whole_runs_with_the_head_changed() {
    let task = first(&task(), 2);
    for model in models::every_kind() {
        let what = &model.spec.family;
        for (change, hook) in [
            (HeadChange::Undifferentiated, "rot_q"),
            (HeadChange::Scaled, "z"),
        ] {
            let config = ShipsConfig::new(change);
            let found = run_method(&model, &task, &config, Detail::PerExample);
            let mut expected = Vec::new();
            for pair in task.pairs() {
                let clean = logits(&model, pair, &[]);
                for (layer, head) in model.spec.heads() {
                    let edit = format!("{hook}{layer}[head={head}] *= 0.00001");
                    let row = logits(&model, pair, &[edit.parse().expect("an edit")]);
                    let kl = Metric::Kl.value(&row, &pair.target, Some(&clean));
                    expected.push(kl.expect("a value"));
                }
            }
            near(&column(&found, "score"), &expected, what);
            // A factor of one changes nothing.
            let same = ShipsConfig {
                factor: 1.0,
                ..config
            };
            let found = run_method(&model, &task, &same, Detail::PerExample);
            let scores = column(&found, "score");
            // What is read in another order may round.
            assert!(
                scores.iter().all(|kl| kl.abs() < 1e-10),
                "{what}: {scores:?}"
            );
        }
    }
}

#[test]
fn the_mean_of_a_head_is_over_all_positions_of_all_prompts() {
    let task = first(&task(), 2);
    for model in models::two_kinds() {
        let config = ShipsConfig::new(HeadChange::Mean);
        let found = run_method(&model, &task, &config, Detail::PerExample);
        let mut expected = Vec::new();
        for pair in task.pairs() {
            let clean = logits(&model, pair, &[]);
            for (layer, head) in model.spec.heads() {
                let hook = Hook::at(Kind::Z, layer);
                let mut sum = vec![0.0; model.spec.d_head];
                let mut n = 0.0;
                for other in task.pairs() {
                    let (_, cache) =
                        run_with_cache(&model, std::slice::from_ref(&other.clean), &[hook])
                            .expect("runs");
                    let z: Vec<Vec<Vec<f32>>> = cache
                        .get(hook)
                        .and_then(|z| Ok(z.get(0)?.to_vec3()?))
                        .expect("z");
                    for heads in &z {
                        sum.iter_mut()
                            .zip(&heads[head])
                            .for_each(|(sum, z)| *sum += f64::from(*z));
                        n += 1.0;
                    }
                }
                let mean = sum.iter().map(|sum| (sum / n) as f32).collect();
                let edit = Edit::new(
                    Site::all(hook).heads([head]),
                    Op::Replace(Value::Vector(mean)),
                );
                let row = logits(&model, pair, &[edit]);
                expected.push(
                    Metric::Kl
                        .value(&row, &pair.target, Some(&clean))
                        .expect("a value"),
                );
            }
        }
        near(&column(&found, "score"), &expected, &model.spec.family);
    }
}

/// Without a query there is nothing to prefer: every key that is seen weighs the same.
#[test]
fn attention_without_queries_is_even() {
    let task = task();
    let pair = &task.pairs()[0];
    for model in models::every_kind() {
        if matches!(model.spec.position, Position::Alibi(_)) {
            continue;
        }
        for layer in 0..model.spec.n_layers {
            let hook = Hook::at(Kind::Pattern, layer);
            let edit = format!("rot_q{layer}[head=1] *= 0.00001")
                .parse()
                .expect("an edit");
            let request = Request {
                edits: &[edit],
                capture: &[hook],
                ..Request::default()
            };
            let run = run(&model, std::slice::from_ref(&pair.clean), &request).expect("runs");
            let pattern = run
                .cache
                .get(hook)
                .and_then(|t| Ok(t.get(0)?.get(1)?.to_vec2::<f32>()?));
            for (query, row) in pattern.expect("a pattern").iter().enumerate() {
                let seen = model.spec.windows[layer]
                    .unwrap_or(usize::MAX)
                    .min(query + 1);
                for (key, weight) in row.iter().enumerate() {
                    let even = if key <= query && key + seen > query {
                        1.0 / seen as f32
                    } else {
                        0.0
                    };
                    // Without a norm scores are large.
                    let near = match model.spec.norm_placement {
                        NormPlacement::None => 2e-5,
                        _ => 1e-5,
                    };
                    assert!(
                        (weight - even).abs() < near,
                        "{} {layer} {query} {key}: {weight}",
                        model.spec.family
                    );
                }
            }
        }
    }
}

/// States at the ends of all prompts after the last norm, in whole runs.
fn states(model: &Model, task: &Task, edits: &[Edit]) -> Vec<Vec<f64>> {
    let last = [
        Hook::global(Kind::Normalized(Ln::Final)),
        Hook::at(Kind::ResidPost, model.spec.n_layers - 1),
    ];
    let hook = last
        .into_iter()
        .find(|hook| hook.check(&model.spec).is_ok())
        .expect("a stream");
    let state = |pair: &Pair| -> Vec<f64> {
        let request = Request {
            edits,
            capture: &[hook],
            ..Request::default()
        };
        let run = run(model, std::slice::from_ref(&pair.clean), &request).expect("runs");
        let last = run
            .cache
            .get(hook)
            .and_then(|t| Ok(t.get(0)?.get(pair.clean.len() - 1)?.to_vec1::<f32>()?));
        last.expect("a state").into_iter().map(f64::from).collect()
    };
    task.pairs().iter().map(state).collect()
}

/// The first left singular vector, by power iteration.
fn left(states: &[Vec<f64>]) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
    let gram: Vec<Vec<f64>> = states
        .iter()
        .map(|row| states.iter().map(|other| dot(row, other)).collect())
        .collect();
    let mut u = vec![1.0; states.len()];
    for _ in 0..20_000 {
        let next: Vec<f64> = gram.iter().map(|row| dot(row, &u)).collect();
        let length = dot(&next, &next).sqrt();
        u = next.into_iter().map(|of| of / length).collect();
    }
    u
}

#[test]
fn each_step_adds_the_head_that_turns_the_states_most() {
    let task = task();
    for model in models::every_kind() {
        let what = &model.spec.family;
        let search = Search {
            draws: 2,
            ..Search::steps(2)
        };
        let config = ShipsConfig {
            group: Some(search),
            ..ShipsConfig::new(HeadChange::Scaled)
        };
        let found = run_method(&model, &task, &config, Detail::Mean);
        let before = left(&states(&model, &task, &[]));
        let edit = |(layer, head): &(usize, usize)| -> Edit {
            format!("z{layer}[head={head}] *= 0.00001")
                .parse()
                .expect("an edit")
        };
        let angle = |heads: &[(usize, usize)]| -> f64 {
            let edits: Vec<Edit> = heads.iter().map(edit).collect();
            let after = left(&states(&model, &task, &edits));
            let cosine: f64 = before.iter().zip(&after).map(|(a, b)| a * b).sum();
            cosine.abs().min(1.0).acos().to_degrees()
        };
        let all: Vec<(usize, usize)> = model.spec.heads().collect();
        let alone: Vec<f64> = all.iter().map(|&head| angle(&[head])).collect();
        // Angles of a hundredth of a degree are cosines that differ in the eighth place.
        let close = |a: &[f64], b: &[f64]| {
            assert_eq!(a.len(), b.len(), "{what}");
            for (a, b) in a.iter().zip(b) {
                assert!((a - b).abs() < 0.02 + 1e-3 * b, "{what}: {a} against {b}");
            }
        };
        close(&measured(&found, "angle"), &alone);
        let chosen: Vec<(usize, usize)> = (found.provenance.config["chosen"]
            .as_array()
            .expect("a list")
            .iter())
        .map(|name| match name.as_str().expect("a name").parse() {
            Ok(Node::Head { layer, head }) => (layer, head),
            other => panic!("{other:?}"),
        })
        .collect();
        let most = |angles: &[f64]| angles.iter().copied().fold(0.0, f64::max);
        assert!(
            alone[all
                .iter()
                .position(|head| *head == chosen[0])
                .expect("a head")]
                > most(&alone) - 0.02,
            "{what}"
        );
        let beside: Vec<f64> = all
            .iter()
            .filter(|head| **head != chosen[0])
            .map(|&head| angle(&[chosen[0], head]))
            .collect();
        let group = measured(&found, "group_angle");
        // Chosen and random, step by step.
        close(
            &[group[0], group[2]],
            &[angle(&chosen[..1]), angle(&chosen)],
        );
        assert!(group[2] > most(&beside) - 0.03, "{what}: {group:?}");
        let kl = measured(&found, "group_kl");
        let edits: Vec<Edit> = chosen.iter().map(edit).collect();
        let expected: f64 = (task.pairs().iter())
            .map(|pair| {
                let (clean, row) = (logits(&model, pair, &[]), logits(&model, pair, &edits));
                Metric::Kl
                    .value(&row, &pair.target, Some(&clean))
                    .expect("a value")
                    / 3.0
            })
            .sum();
        near(&[kl[2]], &[expected], what);
    }
}
