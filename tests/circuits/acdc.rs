//! ACDC gives what its definition gives.

use candlewick::circuit::{EdgeSet, Graph};
use candlewick::hooks::{Letter, Node};
use candlewick::methods::circuits::{AcdcConfig, acdc};
use candlewick::methods::{CircuitEval, Reference, Running, Subject, circuit_values_plain};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::Quiet;
use candlewick::task::Task;

use crate::eval;
use crate::models::task::{first, task};
use crate::models::{every_kind, two_kinds};

/// ACDC as its definition says it, with one whole forward pass for each edge: what is left, and the smallest distance of a rise from the
/// threshold.
fn acdc_slowly(model: &Model, task: &Task, config: &AcdcConfig) -> (EdgeSet, f64) {
    let graph = Graph::new(&model.spec);
    let distance = |edges: &EdgeSet| {
        let eval = CircuitEval {
            metric: Some(config.metric),
            reference: config.reference,
            ..eval(std::slice::from_ref(edges))
        };
        let values = circuit_values_plain(Subject { model, task }, &eval).expect("it evaluates");
        let mean = values.iter().map(|of_pair| of_pair[0]).sum::<f64>() / values.len() as f64;
        if config.metric == Metric::Kl {
            mean
        } else {
            -mean
        }
    };
    let mut readers = vec![(Node::Logits, None)];
    for layer in (0..graph.n_layers).rev() {
        if graph.has_mlp {
            readers.push((Node::Mlp(layer), None));
        }
        for letter in [Letter::V, Letter::K, Letter::Q] {
            let heads = (0..graph.n_heads).rev();
            readers.extend(heads.map(|head| (Node::Head { layer, head }, Some(letter))));
        }
    }
    let mut kept = EdgeSet::full(graph);
    let (mut current, mut closest) = (distance(&kept), f64::INFINITY);
    for (node, letter) in readers {
        let column = graph.column(node, letter).expect("a reader");
        let is_read = node == Node::Logits || kept.edges().any(|edge| edge.src == node);
        for row in kept.sources(column).into_iter().rev() {
            kept.remove(row, column);
            if !is_read {
                continue;
            }
            let new = distance(&kept);
            let rise = new - current;
            closest = closest.min((rise - config.threshold).abs());
            if rise < config.threshold {
                current = new;
            } else {
                kept.insert(row, column);
            }
        }
        if !is_read {
            current = distance(&kept);
        }
    }
    (kept, closest)
}

#[test]
fn acdc_in_chains_is_acdc_one_by_one() {
    let wanted = ["gpt2", "phi", "gemma2"];
    for model in every_kind() {
        if !wanted.contains(&model.spec.family.as_str()) {
            continue;
        }
        let task = first(&task(), 2);
        for (metric, threshold) in [(Metric::Kl, 0.003), (Metric::LogitDiff, 0.02)] {
            for reference in [Reference::Pair, Reference::Zero] {
                let config = AcdcConfig {
                    threshold,
                    metric,
                    reference,
                };
                let on = Subject {
                    model: &model,
                    task: &task,
                };
                let found = acdc(on, &config, &Running::default(), &Quiet).expect("it searches");
                let (slow, closest) = acdc_slowly(&model, &task, &config);
                let what = format!("{} {metric} {reference:?}", model.spec.family);
                assert!(closest > 1e-7, "{what}: a tie, {closest}");
                assert_eq!(found.edges, slow, "{what}");
                let all = slow.graph().n_edges();
                assert!(
                    (1..all).contains(&found.edges.len()),
                    "{what}: {}",
                    found.edges.len()
                );
                assert!(found.tried <= all && found.evaluated < 2 * all, "{found:?}");
            }
        }
    }
}

#[test]
fn acdc_keeps_everything_or_nothing_at_the_ends() {
    for model in two_kinds() {
        let task = task();
        let on = Subject {
            model: &model,
            task: &task,
        };
        let search = |threshold| {
            acdc(on, &AcdcConfig::new(threshold), &Running::default(), &Quiet).expect("it searches")
        };
        let (none, all) = (search(f64::INFINITY), search(f64::NEG_INFINITY));
        assert!(
            none.edges.is_empty() && none.distance > 1e-3,
            "{}",
            none.distance
        );
        assert_eq!(all.edges, EdgeSet::full(*all.edges.graph()));
        assert!(all.distance.abs() < 1e-6, "{}", all.distance);
        assert!(acdc(on, &AcdcConfig::new(f64::NAN), &Running::default(), &Quiet).is_err());
    }
}

#[test]
fn a_search_with_little_memory_finds_the_same_and_with_too_little_is_refused() {
    let model = &two_kinds()[0];
    let task = first(&task(), 2);
    let on = Subject { model, task: &task };
    let config = AcdcConfig::new(0.003);
    let with = |memory| {
        let running = Running {
            memory,
            ..Running::default()
        };
        acdc(on, &config, &running, &Quiet)
    };
    let whole = with(None).expect("it searches");
    // Room for the runs and a chain of one or two.
    let little = with(Some(520_000)).expect("it searches");
    assert_eq!(little.edges, whole.edges);
    assert!(
        little.evaluated <= whole.evaluated,
        "{} {}",
        little.evaluated,
        whole.evaluated
    );
    let message = with(Some(1000)).expect_err("no room").to_string();
    assert!(
        message.contains("`ExpandOptions::n_pairs`") && message.contains("MB"),
        "{message}"
    );
}

#[test]
fn a_rise_that_is_the_threshold_is_counted_as_a_tie() {
    // Heads write nothing at all, so that no edge out of one is worth anything.
    let mut model = two_kinds().remove(0);
    for block in &mut model.weights.blocks {
        block.w_o = block.w_o.zeros_like().expect("zeros");
    }
    let task = first(&task(), 1);
    let on = Subject {
        model: &model,
        task: &task,
    };
    let found = acdc(on, &AcdcConfig::new(0.0), &Running::default(), &Quiet).expect("it searches");
    assert!(found.ties > 0);
    // A rise of nothing is not less than nothing.
    assert!(
        found
            .edges
            .edges()
            .any(|edge| matches!(edge.src, Node::Head { .. }))
    );
}
