//! Circuits that are known beforehand: solved by hand, of models in which everything is linear, and planted.

use std::collections::BTreeSet;

use candlewick::circuit::{EdgeSet, Graph, Pruning, Roc};
use candlewick::hooks::{Edge, Node};
use candlewick::methods::attribution::{EdgeAttributionConfig, NodeAttributionConfig};
use candlewick::methods::circuits::{
    AcdcConfig, FindConfig, FindRule, FindSize, FoundCircuit, acdc, find_circuit,
};
use candlewick::methods::{
    CircuitEval, CircuitMode, EdgeConfig, Method, PatchConfig, Reference, Running, Subject, Watch,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::Quiet;
use candlewick::scores::Direction;
use candlewick::task::Pair;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::models::made::{PLANTED, affine, by_hand, planted};
use crate::models::task::{task, task_of};
use crate::{eval, near, random, values};

fn set(model: &Model, edges: &[&str]) -> EdgeSet {
    let edges: Vec<Edge> = edges.iter().map(|edge| edge.parse().expect(edge)).collect();
    EdgeSet::of(Graph::new(&model.spec), &edges).expect("edges of the model")
}

#[test]
fn circuits_solved_by_hand_have_the_metric_that_was_worked_out() {
    // Tokens 0, 1, 2 are 2, 0 and 1. Clean `2 1`: a0 writes 2 and then 1.5; a1 writes 3 (4 + 2.5) / 2 = 9.75; with the last token's 1 the
    // stream ends at 12.25. Corrupted `0 1`: a0 writes 0 and 0.5, a1 2.25, and the stream ends at 3.75. Of the gap of 8.5, 1 goes through a0
    // alone, 3 through a1 alone, 4.5 through both, and none past them, since the last tokens are equal.
    let model = by_hand([2.0, 0.0, 1.0]);
    let pair = Pair::new(vec![0, 2], vec![1, 2]).answer(3).wrong(4);
    let task = task_of(vec![pair]);
    let a0 = ["input->a0.h0<v>"];
    let a1 = ["input->a1.h0<v>", "a1.h0->logits"];
    let both = ["input->a0.h0<v>", "a0.h0->a1.h0<v>", "a1.h0->logits"];
    // What it does with the rest at the corrupted run, given to the corrupted run, and with the rest at zero.
    let cases: [(&[&str], [f64; 3]); 9] = [
        (&[], [0.0, 0.0, 0.0]),
        (&["input->logits"], [0.0, 0.0, 1.0]),
        // Given its clean input, a0 writes what it does in the clean run, for everybody.
        (&a0, [0.0, 5.5, 0.0]),
        (&[a0[0], "a0.h0->logits"], [1.0, 5.5, 1.5]),
        // a1 is given to the logits as it is in the clean run, with what it has from a0.
        (&a1, [3.0, 7.5, 4.5]),
        (&["a0.h0->a1.h0<v>"], [0.0, 4.5, 0.0]),
        (&["a0.h0->a1.h0<v>", "a1.h0->logits"], [0.0, 7.5, 0.0]),
        (&both, [4.5, 8.5, 5.25]),
        // Attention does not look: what queries and keys see is nothing to it.
        (&["input->a1.h0<q>", "input->a1.h0<k>"], [0.0, 0.0, 0.0]),
    ];
    let mut circuits: Vec<EdgeSet> = cases.iter().map(|(edges, _)| set(&model, edges)).collect();
    circuits.push(EdgeSet::full(Graph::new(&model.spec)));
    let whole = [8.5, 8.5, 12.25];
    for (way, (mode, reference)) in [
        (CircuitMode::Complement, Reference::Pair),
        (CircuitMode::Edge, Reference::Pair),
        (CircuitMode::Complement, Reference::Zero),
    ]
    .into_iter()
    .enumerate()
    {
        let config = CircuitEval {
            mode,
            reference,
            ..eval(&circuits)
        };
        let (clean, empty, found) = values(&model, &task, &config).remove(0);
        near(clean, 12.25, "the clean run");
        near(
            empty,
            if reference == Reference::Zero {
                0.0
            } else {
                3.75
            },
            "no edge",
        );
        let expected = cases.iter().map(|(_, of)| of[way]).chain([whole[way]]);
        for ((found, expected), edges) in found.iter().zip(expected).zip(&circuits) {
            near(
                found - empty,
                expected,
                &format!("{mode:?} {reference:?} {edges:?}"),
            );
        }
    }
}

/// Every path from `input` to `logits` within a set, as a set.
fn paths(edges: &EdgeSet) -> Vec<EdgeSet> {
    let all: Vec<Edge> = edges.edges().collect();
    let mut open: Vec<Vec<Edge>> = vec![vec![]];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        let end = path.last().map_or(Node::Input, |edge| edge.dst);
        if end == Node::Logits {
            found.push(EdgeSet::of(*edges.graph(), &path).expect("edges of the set"));
            continue;
        }
        for &edge in all.iter().filter(|edge| edge.src == end) {
            open.push([&path[..], &[edge]].concat());
        }
    }
    found
}

#[test]
fn where_a_model_is_linear_a_circuit_does_what_its_paths_do() {
    let (mut model, task) = (affine(3), task());
    // A bias is on no path.
    for block in &mut model.weights.blocks {
        block.b_qkv = None;
        block.b_o = None;
    }
    let graph = Graph::new(&model.spec);
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    for reference in [Reference::Pair, Reference::Zero, Reference::Mean] {
        let circuit = random(graph, 0.5, &mut rng);
        let alone = paths(&circuit);
        assert!(alone.len() > 10, "{circuit:?}");
        let mut circuits = vec![circuit.pruned(Pruning::Fixpoint), EdgeSet::full(graph)];
        circuits.extend(alone);
        let n_paths = circuits.len() - 2;
        circuits.extend(paths(&circuits[1]));
        let config = CircuitEval {
            reference,
            ..eval(&circuits)
        };
        for (clean, empty, found) in values(&model, &task, &config) {
            let sum = |of: &[f64]| of.iter().map(|value| value - empty).sum::<f64>();
            let what = format!("{reference:?}");
            near(found[0] - empty, sum(&found[2..2 + n_paths]), &what);
            near(clean - empty, sum(&found[2 + n_paths..]), &what);
        }
    }
}

fn find(model: &Model, method: &dyn Method, n: usize) -> FoundCircuit {
    let on = Subject {
        model,
        task: &task(),
    };
    let config = FindConfig {
        rule: FindRule::Greedy,
        size: FindSize::N(n),
        ..FindConfig::default()
    };
    let (running, watch) = (Running::default(), Watch::default());
    find_circuit(on, method, &config, &running, &watch).expect("it finds")
}

#[test]
fn a_planted_circuit_is_found_by_the_scores_of_every_edge_method() {
    let model = planted();
    let planted = set(&model, &PLANTED);
    let mut methods: Vec<Box<dyn Method>> = vec![Box::new(EdgeConfig::all())];
    for config in [
        EdgeAttributionConfig::eap(),
        EdgeAttributionConfig::eap_ig(5),
        EdgeAttributionConfig::ceap(3),
        EdgeAttributionConfig::clean_corrupted(),
        EdgeAttributionConfig::relp(),
        EdgeAttributionConfig::eap_ig_activations(3),
    ] {
        methods.push(Box::new(config));
    }
    for method in &methods {
        let found = find(&model, &**method, 3);
        let what = found
            .circuit
            .about
            .method
            .clone()
            .expect("it was found by one");
        assert_eq!(found.circuit.edges, planted, "{what}");
        let roc = Roc::of_edges(&found.scored, &planted).expect("some edges of all");
        assert_eq!(roc.area, 1.0, "{what}");
    }
    for (clean, empty, found) in values(&model, &task(), &eval(std::slice::from_ref(&planted))) {
        let share = (found[0] - empty) / (clean - empty);
        assert!((share - 1.0).abs() < 0.2, "it does the whole task: {share}");
    }
}

#[test]
fn the_heads_of_a_planted_circuit_are_found_by_every_node_method() {
    let model = planted();
    let heads: BTreeSet<Node> = set(&model, &PLANTED).nodes().into_iter().collect();
    let patch = PatchConfig {
        direction: Direction::Noise,
        ..PatchConfig::sites("z").expect("a site")
    };
    let methods: [Box<dyn Method>; 4] = [
        Box::new(NodeAttributionConfig::atp(patch.clone())),
        Box::new(NodeAttributionConfig::atp_star(patch.clone())),
        Box::new(NodeAttributionConfig::relp(patch.clone())),
        Box::new(patch),
    ];
    for method in &methods {
        let found = find(&model, &**method, 2);
        let nodes: BTreeSet<Node> = found.circuit.edges.nodes().into_iter().collect();
        assert_eq!(nodes, heads, "{:?}", found.circuit.about.method);
        let roc = Roc::of_nodes(&found.scored, &set(&model, &PLANTED)).expect("some nodes of all");
        assert_eq!(roc.area, 1.0, "{:?}", found.circuit.about.method);
    }
}

#[test]
fn a_planted_circuit_is_what_acdc_leaves() {
    let (model, task) = (planted(), task());
    let on = Subject {
        model: &model,
        task: &task,
    };
    for (metric, reference) in [
        (Metric::Kl, Reference::Pair),
        (Metric::LogitDiff, Reference::Pair),
    ] {
        // Whatever the unit, the planted edges are worth nearly the whole distance.
        let with = |threshold| AcdcConfig {
            threshold,
            metric,
            reference,
        };
        let search = |threshold| {
            acdc(on, &with(threshold), &Running::default(), &Quiet).expect("it searches")
        };
        let (all, none) = (
            search(f64::NEG_INFINITY).distance,
            search(f64::INFINITY).distance,
        );
        let found = search((none - all).abs() / 10.0);
        assert_eq!(found.edges, set(&model, &PLANTED), "{metric}");
    }
}
