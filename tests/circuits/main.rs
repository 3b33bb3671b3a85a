//! A circuit evaluated by what is alive in it has the metric that one whole forward pass with full masks has, on models of every
//! kind; and circuits keep their identities.

mod acdc;
mod known;
#[path = "../models/mod.rs"]
mod models;
mod parts;
mod prune;
mod soft;

use candle_core::DType;
use candlewick::circuit::{EdgeSet, Graph, Pruning};
use candlewick::hooks::{Edge, Node};
use candlewick::methods::{
    CircuitEval, CircuitMode, EdgeConfig, NamedCircuit, Reference, Running, Subject, Watch,
    circuit_values_plain, exact_edge_effects_plain, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::task::Task;
use models::task::{changed, task};
use models::{cast, every_kind, two_kinds};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sums of other orders, through a few layers; f32 keeps about seven digits, and norms of what is left of a stream magnify it.
const TOLERANCE: f64 = 1e-4;
const REFERENCES: [Reference; 3] = [Reference::Pair, Reference::Zero, Reference::Mean];

/// Each edge with this probability.
fn random(graph: Graph, share: f64, rng: &mut ChaCha8Rng) -> EdgeSet {
    let edges: Vec<Edge> = graph.edges().filter(|_| rng.random_bool(share)).collect();
    EdgeSet::of(graph, &edges).expect("edges of the graph")
}

fn eval(circuits: &[EdgeSet]) -> CircuitEval {
    let named = circuits.iter().enumerate();
    CircuitEval {
        circuits: named
            .map(|(i, edges)| NamedCircuit::new(i.to_string(), edges.clone()))
            .collect(),
        ..CircuitEval::of([])
    }
}

/// For each pair the metric of the model, of the empty circuit, and of each circuit.
fn values(model: &Model, task: &Task, config: &CircuitEval) -> Vec<(f64, f64, Vec<f64>)> {
    let on = Subject { model, task };
    let measured = measurements(on, config, &Running::default(), &Watch::default());
    let examples = measured.expect("it evaluates").examples;
    let n = config.circuits.len();
    let of = |one: candlewick::scores::ExampleScores| {
        (one.clean, one.corrupted, one.values[..n].to_vec())
    };
    examples.into_iter().map(of).collect()
}

#[track_caller]
fn near(found: f64, expected: f64, what: &str) {
    let gap = (found - expected).abs();
    assert!(gap <= TOLERANCE, "{what}: {found} against {expected}");
}

#[test]
fn what_is_alive_has_the_metric_of_a_whole_forward_with_full_masks() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for model in every_kind() {
        let (name, task, graph) = (&model.spec.family, task(), Graph::new(&model.spec));
        let mut circuits = vec![EdgeSet::empty(graph), EdgeSet::full(graph)];
        for share in [0.03, 0.1, 0.3, 0.6, 0.9, 0.98] {
            let circuit = random(graph, share, &mut rng);
            // Dead ends change nothing where the reference is a run; elsewhere they do, and are computed.
            circuits.push(circuit.pruned(Pruning::Fixpoint));
            // A neighbour, which takes over what it shares.
            let mut other = circuit.clone();
            let (row, column) = circuit.places().last().unwrap_or((0, 0));
            other.remove(row, column);
            circuits.extend([circuit, other]);
        }
        // Against zero a stream that nothing is written to is rounding alone, which one norm after another makes as large as anything:
        // there every stream has the input.
        let with_input = |circuit: &EdgeSet| {
            let inputs: Vec<Edge> = graph
                .edges()
                .filter(|edge| edge.src == Node::Input)
                .collect();
            let inputs = EdgeSet::of(graph, &inputs).expect("edges of the model");
            circuit.clone().or(&inputs).expect("one graph")
        };
        let mut against_zero = circuits.clone();
        against_zero[2..]
            .iter_mut()
            .for_each(|circuit| *circuit = with_input(circuit));
        for reference in REFERENCES {
            let circuits = match reference {
                Reference::Zero => &against_zero,
                Reference::Pair | Reference::Mean | Reference::Same => &circuits,
            };
            let config = CircuitEval {
                reference,
                ..eval(circuits)
            };
            let on = Subject {
                model: &model,
                task: &task,
            };
            let slow = circuit_values_plain(on, &config).expect("it evaluates");
            let mut largest: f64 = 0.0;
            for (slow, (clean, empty, fast)) in slow.iter().zip(values(&model, &task, &config)) {
                for (i, (fast, slow)) in fast.iter().zip(slow).enumerate() {
                    let what = format!("{name}, {reference:?}, {:?}", circuits[i]);
                    near(*fast, *slow, &what);
                    largest = largest.max((slow - clean).abs());
                }
                near(fast[0], empty, &format!("{name}, {reference:?}, empty"));
                near(fast[1], clean, &format!("{name}, {reference:?}, full"));
            }
            assert!(
                largest > 1e-2,
                "{name}, {reference:?}: nothing happened, {largest}"
            );
        }
    }
}

#[test]
fn the_empty_circuit_is_the_corrupted_run_and_the_full_one_the_clean_run() {
    for model in every_kind() {
        let (task, graph) = (task(), Graph::new(&model.spec));
        for mode in [CircuitMode::Complement, CircuitMode::Edge] {
            let config = CircuitEval {
                mode,
                ..eval(&[EdgeSet::empty(graph), EdgeSet::full(graph)])
            };
            let on = Subject {
                model: &model,
                task: &task,
            };
            let exact = measurements(
                on,
                &EdgeConfig::of(["input->logits"]).expect("an edge"),
                &Running::default(),
                &Watch::default(),
            );
            let exact = exact.expect("it patches").examples;
            for ((clean, empty, found), exact) in
                values(&model, &task, &config).into_iter().zip(exact)
            {
                let what = format!("{} {mode:?}", model.spec.family);
                near(clean, exact.clean, &what);
                near(empty, exact.corrupted, &what);
                near(found[0], exact.corrupted, &what);
                near(found[1], exact.clean, &what);
            }
        }
    }
}

#[test]
fn all_edges_but_one_is_that_edge_patched() {
    for model in every_kind() {
        let (task, graph) = (task(), Graph::new(&model.spec));
        for reference in REFERENCES {
            let edges: Vec<Edge> = graph.edges().step_by(5).collect();
            let without = |edge: &Edge| {
                let (row, column) = graph.place(edge).expect("an edge");
                let mut rest = EdgeSet::full(graph);
                rest.remove(row, column);
                rest
            };
            let circuits: Vec<EdgeSet> = edges.iter().map(without).collect();
            let config = CircuitEval {
                reference,
                ..eval(&circuits)
            };
            let patched = EdgeConfig {
                reference,
                ..EdgeConfig::these(edges.clone())
            };
            let on = Subject {
                model: &model,
                task: &task,
            };
            let patched = exact_edge_effects_plain(on, &patched).expect("it patches");
            for ((clean, _, found), patched) in
                values(&model, &task, &config).into_iter().zip(patched)
            {
                for ((found, effect), edge) in found.iter().zip(patched).zip(&edges) {
                    let what = format!("{} {reference:?} {edge}", model.spec.family);
                    near(*found, clean + effect, &what);
                }
            }
        }
    }
}

#[test]
fn two_query_heads_of_one_group_may_keep_different_keys() {
    let models = every_kind();
    let model = models
        .iter()
        .find(|m| m.spec.family == "llama")
        .expect("it is there");
    assert_eq!(model.spec.group(), 3, "heads 0 to 2 share keys and values");
    let graph = Graph::new(&model.spec);
    let of = |edges: &[&str]| {
        let edges: Vec<Edge> = edges.iter().map(|edge| edge.parse().expect(edge)).collect();
        EdgeSet::of(graph, &edges).expect("edges of the model")
    };
    let ends = [
        "input->m0",
        "input->a0.h4<v>",
        "a1.h0->logits",
        "a1.h1->logits",
        "input->a1.h0<v>",
        "input->a1.h1<v>",
    ];
    let with = |more: &[&str]| of(&[&ends[..], more].concat());
    let circuits = [
        with(&["m0->a1.h0<k>", "a0.h4->a1.h1<k>"]),
        with(&["m0->a1.h1<k>", "a0.h4->a1.h0<k>"]),
        with(&["m0->a1.h0<k>", "m0->a1.h1<k>"]),
        with(&[]),
    ];
    let (task, config) = (task(), eval(&circuits));
    let slow = circuit_values_plain(Subject { model, task: &task }, &config).expect("it evaluates");
    for ((_, _, fast), slow) in values(model, &task, &config).iter().zip(slow) {
        for (fast, slow) in fast.iter().zip(&slow) {
            near(*fast, *slow, "two heads of a group");
        }
        let apart = |a: usize, b: usize| assert!((fast[a] - fast[b]).abs() > 1e-4, "{fast:?}");
        apart(0, 1);
        apart(0, 2);
        apart(2, 3);
    }
}

#[test]
fn other_metrics_dtypes_and_equal_prompts_do_as_they_should() {
    let same = changed(&task(), |pair| pair.corrupted = pair.clean.clone());
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for model in two_kinds() {
        let graph = Graph::new(&model.spec);
        let circuits = [
            random(graph, 0.3, &mut rng),
            EdgeSet::full(graph),
            EdgeSet::empty(graph),
        ];
        for (clean, _, found) in values(&model, &same, &eval(&circuits)) {
            found
                .iter()
                .for_each(|&value| near(value, clean, "equal prompts"));
        }
        let divergence = CircuitEval {
            metric: Some(Metric::Kl),
            ..eval(&circuits)
        };
        let on = Subject {
            model: &model,
            task: &task(),
        };
        let slow = circuit_values_plain(on, &divergence).expect("it evaluates");
        for ((clean, empty, fast), slow) in
            values(&model, &task(), &divergence).into_iter().zip(slow)
        {
            near(fast[0], slow[0], "kl");
            near(clean, 0.0, "kl of the clean run");
            near(fast[1], 0.0, "kl of all edges");
            near(fast[2], empty, "kl of no edge");
            assert!(empty > 1e-3, "{empty}");
        }
        // Half precision takes the plain way; its sums are good to a hundredth or so.
        let half = cast(&model, DType::BF16);
        for (clean, empty, found) in values(&half, &task(), &eval(&circuits)) {
            assert!(
                (found[1] - clean).abs() < 0.1 && (found[2] - empty).abs() < 0.1,
                "{found:?}"
            );
        }
    }
}

#[test]
fn what_cannot_be_evaluated_is_refused_before_anything_runs() {
    let model = &two_kinds()[0];
    let graph = Graph::new(&model.spec);
    let task = task();
    let refused = |config: &CircuitEval| {
        let on = Subject { model, task: &task };
        let measured = measurements(on, config, &Running::default(), &Watch::default());
        measured.expect_err("refused").to_string()
    };
    assert!(refused(&eval(&[])).contains("no circuit to evaluate"));
    let other = Graph {
        n_layers: 7,
        ..graph
    };
    assert!(refused(&eval(&[EdgeSet::full(other)])).contains("n_layers 3 and 7"));
    let twice = CircuitEval::of([("x", EdgeSet::full(graph)), ("x", EdgeSet::empty(graph))]);
    assert!(refused(&twice).contains("two circuits are called `x`"));
    let mixed = CircuitEval {
        mode: CircuitMode::Edge,
        reference: Reference::Zero,
        ..eval(&[EdgeSet::full(graph)])
    };
    assert!(refused(&mixed).contains("take the reference `pair`"));
}
