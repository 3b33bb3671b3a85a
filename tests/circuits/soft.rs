//! Soft masks: with masks of 0 and 1 they are circuits, and their slopes are those of finite differences.

use candlewick::circuit::{EdgeSet, Graph};
use candlewick::hooks::{Edge, Node};
use candlewick::methods::circuits::mask_gradient;
use candlewick::methods::{CircuitEval, Reference, Subject, circuit_values_plain};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::task::Task;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::models::made::{affine, by_hand};
use crate::models::task::{task, task_of};
use crate::models::{every_kind, two_kinds};
use crate::{REFERENCES, eval, near, random};

/// Relative to the slope itself. The step is as small as f32 allows, and streams next to nothing bend a norm within it.
const SLOPE: f64 = 0.03;
const STEP: f32 = 4e-3;

fn masks(edges: &EdgeSet, rng: &mut ChaCha8Rng, mask: impl Fn(f32) -> f32) -> Vec<(Edge, f32)> {
    let masks = edges.edges().map(|edge| (edge, mask(rng.random())));
    masks.collect()
}

/// Where a stream is nothing at all, one norm after another makes rounding as large as anything; so every one has the input.
fn with_input(edges: EdgeSet) -> EdgeSet {
    let graph = *edges.graph();
    let inputs: Vec<Edge> = graph
        .edges()
        .filter(|edge| edge.src == Node::Input)
        .collect();
    let inputs = EdgeSet::of(graph, &inputs).expect("edges of the model");
    edges.or(&inputs).expect("one graph")
}

#[test]
fn masks_of_zero_and_one_are_a_circuit() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for model in every_kind() {
        let (task, graph) = (task(), Graph::new(&model.spec));
        let on = Subject {
            model: &model,
            task: &task,
        };
        for reference in REFERENCES {
            let candidates = random(graph, 0.5, &mut rng);
            let masks: Vec<(Edge, f32)> = masks(&candidates, &mut rng, |_| 0.0)
                .into_iter()
                .map(|(edge, _)| {
                    (
                        edge,
                        f32::from(u8::from(edge.src == Node::Input || rng.random_bool(0.6))),
                    )
                })
                .collect();
            let kept = masks
                .iter()
                .filter(|(_, mask)| *mask == 1.0)
                .map(|(edge, _)| edge);
            let mut circuit = EdgeSet::of(graph, kept).expect("edges of the model");
            let mut masks = masks.clone();
            if reference == Reference::Zero {
                circuit = with_input(circuit);
                masks = circuit.edges().map(|edge| (edge, 1.0)).collect();
                let others = candidates
                    .edges()
                    .filter(|edge| !circuit.contains(edge).expect("ours"));
                masks.extend(others.map(|edge| (edge, 0.0)));
            }
            let config = CircuitEval {
                reference,
                ..eval(&[circuit])
            };
            let slow = circuit_values_plain(on, &config).expect("it evaluates");
            let soft = mask_gradient(on, &masks, Metric::LogitDiff, reference).expect("it runs");
            for (value, slow) in soft.values.iter().zip(slow) {
                near(
                    *value,
                    slow[0],
                    &format!("{} {reference:?}", model.spec.family),
                );
            }
        }
    }
}

/// The mean over pairs where each mask is moved along a direction.
fn moved(
    on: Subject<'_>,
    masks: &[(Edge, f32)],
    along: &[f32],
    by: f32,
    metric: Metric,
    reference: Reference,
) -> f64 {
    let moved: Vec<(Edge, f32)> = masks
        .iter()
        .zip(along)
        .map(|(&(edge, mask), along)| (edge, mask + by * along))
        .collect();
    let values = mask_gradient(on, &moved, metric, reference)
        .expect("it runs")
        .values;
    values.iter().sum::<f64>() / values.len() as f64
}

fn check(model: &Model, task: &Task, metric: Metric, reference: Reference, rng: &mut ChaCha8Rng) {
    let on = Subject { model, task };
    let graph = Graph::new(&model.spec);
    let candidates = with_input(random(graph, 0.4, rng));
    let masks = masks(&candidates, rng, |x| 0.2 + 0.8 * x);
    let found = mask_gradient(on, &masks, metric, reference)
        .expect("it runs")
        .slopes;
    let size = found.iter().map(|slope| slope * slope).sum::<f64>().sqrt();
    assert!(size > 1e-3, "nothing happens: {size}");
    // Along the slope itself, along others, and along that of a few single edges.
    let steepest: Vec<f32> = found.iter().map(|slope| (slope / size) as f32).collect();
    let mut directions = vec![steepest];
    for share in [1.0, 0.1, 0.02] {
        let signs = (0..masks.len()).map(|_| {
            let sign = if rng.random_bool(0.5) { 1.0 } else { -1.0 };
            if rng.random_bool(share) {
                sign / (share as f32 * masks.len() as f32).sqrt().max(1.0)
            } else {
                0.0
            }
        });
        directions.push(signs.collect());
    }
    for along in directions {
        let slope: f64 = found
            .iter()
            .zip(&along)
            .map(|(slope, along)| slope * f64::from(*along))
            .sum();
        let difference = moved(on, &masks, &along, STEP, metric, reference)
            - moved(on, &masks, &along, -STEP, metric, reference);
        let difference = difference / f64::from(2.0 * STEP);
        let gap = (slope - difference).abs();
        let what = format!("{} {metric} {reference:?}", model.spec.family);
        assert!(
            gap < SLOPE * slope.abs() + 0.005 * size,
            "{what}: {slope} against {difference}, of {size}"
        );
    }
}

#[test]
fn slopes_at_masks_are_finite_differences() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    for model in every_kind() {
        for reference in REFERENCES {
            check(&model, &task(), Metric::LogitDiff, reference, &mut rng);
        }
    }
    for model in two_kinds() {
        check(&model, &task(), Metric::Kl, Reference::Pair, &mut rng);
    }
}

#[test]
fn slopes_of_a_model_solved_by_hand() {
    // The model and pair of `known.rs`: 1 through a0 alone, 3 through a1 alone, 4.5 through both.
    let model = by_hand([2.0, 0.0, 1.0]);
    let task = task_of(vec![
        candlewick::task::Pair::new(vec![0, 2], vec![1, 2])
            .answer(3)
            .wrong(4),
    ]);
    let on = Subject {
        model: &model,
        task: &task,
    };
    let masks = [
        ("input->a0.h0<v>", 0.5),
        ("a0.h0->logits", 1.0),
        ("input->a1.h0<v>", 0.25),
        ("a0.h0->a1.h0<v>", 0.5),
        ("a1.h0->logits", 0.5),
    ];
    let masks: Vec<(Edge, f32)> = masks
        .iter()
        .map(|(edge, mask)| (edge.parse().expect("an edge"), *mask))
        .collect();
    let found = mask_gradient(on, &masks, Metric::LogitDiff, Reference::Pair).expect("it runs");
    // 3.75 + 1 (1/2 1) + 3 (1/4 1/2) + 4.5 (1/2 1/2 1/2)
    near(found.values[0], 3.75 + 0.5 + 0.375 + 0.5625, "the metric");
    let expected = [
        1.0 + 4.5 * 0.25,
        0.5,
        3.0 * 0.5,
        4.5 * 0.25,
        3.0 * 0.25 + 4.5 * 0.25,
    ];
    for (found, expected) in found.slopes.iter().zip(expected) {
        near(*found, expected, "a slope");
    }
}

#[test]
fn masks_that_mean_nothing_are_refused() {
    let (model, task) = (affine(2), task());
    let on = Subject {
        model: &model,
        task: &task,
    };
    let refused = |masks: &[(&str, f32)], metric| {
        let masks: Vec<(Edge, f32)> = masks
            .iter()
            .map(|(edge, mask)| (edge.parse().expect("an edge"), *mask))
            .collect();
        mask_gradient(on, &masks, metric, Reference::Pair)
            .expect_err("refused")
            .to_string()
    };
    let edge = "input->logits";
    assert!(refused(&[(edge, 1.0), (edge, 0.5)], Metric::LogitDiff).contains("two masks"));
    assert!(refused(&[(edge, f32::NAN)], Metric::LogitDiff).contains("no number"));
    assert!(refused(&[("input->m0", 1.0)], Metric::LogitDiff).contains("m0"));
    assert!(refused(&[(edge, 1.0)], Metric::Rank).contains("gradient"));
}
