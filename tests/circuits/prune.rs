//! Pruning by gradients finds what was planted, reports what it left, and refuses what cannot be.

use std::collections::BTreeSet;

use candlewick::circuit::{EdgeSet, Graph, Roc};
use candlewick::hooks::{Edge, Node};
use candlewick::methods::circuits::{PruneConfig, PrunedCircuit, prune_circuit};
use candlewick::methods::{Reference, Running, Subject, Watch};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::prelude::Lab;

use crate::models::made::{PLANTED, planted};
use crate::models::task::{first, task};
use crate::models::two_kinds;

fn prune(
    model: &Model,
    candidates: &EdgeSet,
    config: &PruneConfig,
) -> candlewick::Result<PrunedCircuit> {
    let on = Subject {
        model,
        task: &task(),
    };
    prune_circuit(
        on,
        candidates,
        config,
        &Running::default(),
        &Watch::default(),
    )
}

fn wanted(model: &Model) -> EdgeSet {
    let edges: Vec<Edge> = PLANTED
        .iter()
        .map(|edge| edge.parse().expect(edge))
        .collect();
    EdgeSet::of(Graph::new(&model.spec), &edges).expect("edges of the model")
}

#[test]
fn a_planted_circuit_is_what_pruning_leaves() {
    let model = planted();
    let (all, wanted) = (EdgeSet::full(Graph::new(&model.spec)), wanted(&model));
    for metric in [Metric::Kl, Metric::LogitDiff] {
        for reference in [Reference::Pair, Reference::Mean] {
            let config = PruneConfig {
                metric,
                reference,
                ..PruneConfig::edges(3)
            };
            let found = prune(&model, &all, &config).expect("it prunes");
            let what = format!("{metric} {reference:?}");
            assert_eq!(found.circuit.edges, wanted, "{what}");
            assert_eq!(
                Roc::of_edges(&found.scored, &wanted)
                    .expect("some of all")
                    .area,
                1.0,
                "{what}"
            );
            assert_eq!(found.parts, [1, 2]);
            assert_eq!(found.reported_edges.is_some(), reference == Reference::Pair);
        }
    }
    let found = prune(&model, &all, &PruneConfig::nodes(2)).expect("it prunes");
    let nodes: BTreeSet<Node> = found.circuit.edges.nodes().into_iter().collect();
    let heads: BTreeSet<Node> = wanted.nodes().into_iter().collect();
    assert_eq!(nodes, heads);
    assert_eq!(
        Roc::of_nodes(&found.scored, &wanted)
            .expect("some of all")
            .area,
        1.0
    );
}

#[test]
fn what_is_left_of_a_trained_model_beats_the_gates_that_were_closed() {
    let lab = Lab::open("embedded", "embedded")
        .expect("it is part of the library")
        .first(8);
    let on = Subject {
        model: &lab.model,
        task: &lab.task,
    };
    let all = EdgeSet::full(Graph::new(&lab.model.spec));
    let config = PruneConfig {
        steps: 60,
        ..PruneConfig::edges(40)
    };
    let run = || prune_circuit(on, &all, &config, &Running::default(), &Watch::default());
    let found = run().expect("it prunes");
    assert!(found.chosen == 40 && found.circuit.edges.len() <= 40);
    let faithfulness = found.reported.floats("normalised").expect("a gap")[0].expect("a number");
    assert!(faithfulness > 0.6, "{faithfulness}");
    assert_eq!(
        run().expect("it prunes").circuit.edges,
        found.circuit.edges,
        "the same seed"
    );
}

#[test]
fn pruning_that_cannot_be_is_refused() {
    let model = &two_kinds()[0];
    let all = EdgeSet::full(Graph::new(&model.spec));
    let refused = |candidates: &EdgeSet, config| {
        prune(model, candidates, &config)
            .expect_err("refused")
            .to_string()
    };
    assert!(refused(&all, PruneConfig::edges(0)).contains("one at least"));
    assert!(refused(&all, PruneConfig::edges(all.len())).contains("fewer than there are"));
    assert!(
        refused(
            &all,
            PruneConfig {
                metric: Metric::Rank,
                ..PruneConfig::edges(3)
            }
        )
        .contains("gradient")
    );
    assert!(
        refused(
            &all,
            PruneConfig {
                learning_rate: f64::NAN,
                ..PruneConfig::edges(3)
            }
        )
        .contains("learning rate")
    );
    let other = EdgeSet::full(Graph::new(&planted().spec));
    assert!(refused(&other, PruneConfig::edges(3)).contains("two models"));
    let one = first(&task(), 1);
    let on = Subject { model, task: &one };
    let found = prune_circuit(
        on,
        &all,
        &PruneConfig::edges(3),
        &Running::default(),
        &Watch::default(),
    );
    assert!(found.expect_err("one pair").to_string().contains("1 pair"));
}
