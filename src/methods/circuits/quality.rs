//! What a circuit must be held against before it is believed: the circuits that a full evaluation runs beside it, and what they say.
//!
//! Completeness: what is knocked out of the circuit should cost it what it costs the model. Minimality: every edge should be worth
//! something. Controls: random circuits of the same size should do less. And an edge that was left out should matter less in the
//! model than one that was kept.
//!
//! Sources: Wang et al. 2022 (arXiv 2211.00593), section 4, for completeness and minimality; Shi et al. 2024 (arXiv 2410.13032)
//! for random circuits as a control.

use std::collections::BTreeMap;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::evaluation::NamedCircuit;
use crate::circuit::{
    Circuit, EdgeSet, Part, Parts, Pruning, Rule, ScoredGraph, Selection, select,
};
use crate::error::Result;
use crate::hooks::{Edge, Node};
use crate::scores::Scores;
use crate::scores::statistics::mean;

/// Edges that are taken out one at a time, where not all are: half of them the weakest, half drawn.
const EDGES: usize = 200;
/// Random circuits, and random sets of nodes that are knocked out.
const RANDOM: usize = 10;
/// Edges on either side of the border of the circuit that are patched in the model.
const BORDER: usize = 3;

/// How thorough a full evaluation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct QualityConfig {
    /// Take out every edge, not 200 at most.
    pub every_edge: bool,
    pub seed: u64,
}

const SELF: &str = "circuit";
const WITHOUT: &str = "circuit without an edge";
const CONTROL: &str = "random circuit";
const TOP_NODES: &str = "top nodes";
const KNOCKED: &str = "circuit without nodes";
const MODEL_KNOCKED: &str = "model without nodes";
const KEPT: &str = "model without a kept edge";
const DROPPED: &str = "model without a dropped edge";

/// The circuits that a full evaluation of one runs. The scores, if there are any, say which edges and nodes are weak or strong;
/// else those of the circuit's own file do.
/// # Errors
/// Scores of another graph.
pub fn quality_circuits(
    circuit: &Circuit,
    scored: Option<&ScoredGraph>,
    config: &QualityConfig,
) -> Result<Vec<NamedCircuit>> {
    let (edges, graph) = (&circuit.edges, *circuit.graph());
    let full = EdgeSet::full(graph);
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let parts = circuit.parts()?;
    let own = |name: &str, edges: EdgeSet| NamedCircuit::new(name, edges).in_parts(&parts);
    let mut all = vec![own(SELF, edges.clone()).of_class(SELF)];

    let size = |edge: &Edge| circuit.scores.get(edge).map_or(0.0, |score| score.abs());
    let mut weakest: Vec<Edge> = edges.edges().collect();
    weakest.sort_by(|a, b| size(a).total_cmp(&size(b)));
    let mut tried = weakest.clone();
    if !config.every_edge && tried.len() > EDGES {
        let mut drawn = tried.split_off(EDGES / 2);
        drawn.shuffle(&mut rng);
        tried.extend(drawn.into_iter().take(EDGES - EDGES / 2));
    }
    for edge in &tried {
        let rest = without(edges, edge)?.pruned(Pruning::Fixpoint);
        all.push(own(&format!("without {edge}"), rest).of_class(WITHOUT));
    }

    for i in 1..=RANDOM {
        let random = random_circuit(&full, edges.len(), &mut rng)?;
        let parts = random_parts(&parts, edges, &random, &mut rng);
        let random = NamedCircuit::new(format!("random {i}"), random).in_parts(&parts);
        all.push(random.of_class(CONTROL));
    }

    let nodes: Vec<Node> = edges
        .nodes()
        .into_iter()
        .filter(|node| !matches!(node, Node::Input | Node::Logits))
        .collect();
    for (name, out) in knocked_out(circuit, &nodes, &mut rng) {
        let rest = |of: &EdgeSet| of.clone().minus(&leaving(&full, &out)?);
        let in_circuit = rest(edges)?.pruned(Pruning::Fixpoint);
        all.push(own(&format!("circuit without {name}"), in_circuit).of_class(KNOCKED));
        all.push(
            NamedCircuit::new(format!("model without {name}"), rest(&full)?)
                .of_class(MODEL_KNOCKED),
        );
    }

    if let Some(scored) = scored {
        let strongest = |best: Vec<(f64, Node)>| {
            best.into_iter()
                .take(nodes.len())
                .map(|(_, node)| node)
                .collect::<Vec<_>>()
        };
        let top = EdgeSet::between(graph, &strongest(by_strength(scored)?))?;
        all.push(NamedCircuit::new(TOP_NODES, top).of_class(TOP_NODES));
    }
    let in_model = |edge: &Edge, class: &str| -> Result<NamedCircuit> {
        Ok(
            NamedCircuit::new(format!("model without {edge}"), without(&full, edge)?)
                .of_class(class),
        )
    };
    for edge in weakest.iter().take(BORDER) {
        all.push(in_model(edge, KEPT)?);
    }
    if let Some(scored) = scored {
        let outside = scored
            .edges()
            .filter_map(|(edge, score, _)| Some((score?.abs(), edge)));
        let mut outside: Vec<(f64, Edge)> = outside
            .filter(|(_, edge)| matches!(edges.contains(edge), Ok(false)))
            .collect();
        outside.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (_, edge) in outside.iter().take(BORDER) {
            all.push(in_model(edge, DROPPED)?);
        }
    }
    Ok(all)
}

fn without(edges: &EdgeSet, edge: &Edge) -> Result<EdgeSet> {
    let (row, column) = edges.graph().place(edge)?;
    let mut rest = edges.clone();
    rest.remove(row, column);
    Ok(rest)
}

/// Every edge out of some nodes.
fn leaving(full: &EdgeSet, nodes: &[Node]) -> Result<EdgeSet> {
    let edges: Vec<Edge> = full
        .edges()
        .filter(|edge| nodes.contains(&edge.src))
        .collect();
    EdgeSet::of(*full.graph(), &edges)
}

/// Which nodes are knocked out together: each class of the circuit, and random halves of its nodes.
fn knocked_out(
    circuit: &Circuit,
    nodes: &[Node],
    rng: &mut ChaCha8Rng,
) -> Vec<(String, Vec<Node>)> {
    let mut classes: BTreeMap<&str, Vec<Node>> = BTreeMap::new();
    for (&node, note) in &circuit.nodes {
        if let Some(class) = &note.class {
            classes.entry(class).or_default().push(node);
        }
    }
    let named = classes
        .into_iter()
        .map(|(class, nodes)| (class.to_string(), nodes));
    let mut sets: Vec<(String, Vec<Node>)> = named.collect();
    if nodes.len() > 1 {
        for i in 1..=RANDOM / 2 {
            let half: Vec<Node> = nodes
                .iter()
                .filter(|_| rng.random_bool(0.5))
                .copied()
                .collect();
            sets.push((format!("random half {i}"), half));
        }
    }
    sets
}

/// A circuit without dead ends of at least so many edges, chosen from the logits by random scores.
fn random_circuit(full: &EdgeSet, size: usize, rng: &mut ChaCha8Rng) -> Result<EdgeSet> {
    let mut scored = ScoredGraph::new(*full.graph());
    for edge in full.edges() {
        scored.set_score(&edge, rng.random())?;
    }
    let mut n = size.max(1);
    loop {
        let found = select(&scored, &Selection::of(Rule::Greedy(n)))?.edges;
        if found.len() >= size || n >= full.len() {
            return Ok(found);
        }
        n = (n + n / 20 + 1).min(full.len());
    }
}

/// The parts of a circuit's nodes dealt out among those of a random one, dimensions drawn anew.
fn random_parts(parts: &Parts, own: &EdgeSet, random: &EdgeSet, rng: &mut ChaCha8Rng) -> Parts {
    if parts.is_empty() {
        return Parts::new();
    }
    let writes = |node: &Node| *node != Node::Logits;
    let mut dealt: Vec<Option<&Part>> = (own.nodes().iter().filter(|node| writes(node)))
        .map(|node| parts.get(node))
        .collect();
    dealt.shuffle(rng);
    let d_model = own.graph().d_model;
    let nodes = random.nodes().into_iter().filter(writes);
    let part = |(node, part): (Node, Option<&Part>)| {
        let mut part = part?.clone();
        if let Some(dims) = &mut part.dims {
            let mut drawn: Vec<usize> = (0..d_model).collect();
            drawn.shuffle(rng);
            drawn.truncate(dims.len());
            drawn.sort_unstable();
            *dims = drawn;
        }
        Some((node, part))
    };
    nodes
        .zip(dealt.into_iter().cycle())
        .filter_map(part)
        .collect()
}

/// Nodes by the sum of the sizes of the scores of their edges out, the greatest first.
fn by_strength(scored: &ScoredGraph) -> Result<Vec<(f64, Node)>> {
    let mut strength: BTreeMap<Node, f64> = BTreeMap::new();
    for (edge, score, _) in scored.edges() {
        *strength.entry(edge.src).or_default() += score.map_or(0.0, f64::abs);
    }
    let mut nodes: Vec<(f64, Node)> = strength
        .into_iter()
        .filter(|(node, _)| *node != Node::Input)
        .map(|(node, strength)| (strength, node))
        .collect();
    nodes.sort_by(|a, b| b.0.total_cmp(&a.0));
    Ok(nodes)
}

/// What the rows of a full evaluation say together, in lines.
pub fn quality_lines(table: &Scores) -> Vec<String> {
    let (Some(values), Some(names), Some(classes)) = (
        table.floats("value"),
        table.texts("src"),
        table.texts("class"),
    ) else {
        return Vec::new();
    };
    let faithful = table.floats("normalised");
    let unit = &table.provenance.unit;
    // Shares of the gap where there is one.
    let numbers = faithful.as_ref().unwrap_or(&values);
    let said = |x: f64| match faithful {
        Some(_) => format!("{x:.3}"),
        None => format!("{x:.3} {unit}"),
    };
    let of = |class: &str| -> Vec<(&str, f64)> {
        let rows = names.iter().zip(&classes).zip(numbers);
        rows.filter(|((_, is), _)| **is == Some(class))
            .filter_map(|((name, _), value)| Some(((*name)?, (*value)?)))
            .collect()
    };
    let Some(&(_, own)) = of(SELF).first() else {
        return Vec::new();
    };
    let what = if faithful.is_some() {
        "faithfulness"
    } else {
        "metric"
    };
    let mut lines = vec![own_line(table, what, &said(own))];
    let spread = |rows: &[(&str, f64)]| {
        let values: Vec<f64> = rows.iter().map(|(_, value)| *value).collect();
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        format!(
            "mean {}, {} to {}",
            said(mean(&values)),
            said(least),
            said(most)
        )
    };
    let random = of(CONTROL);
    if !random.is_empty() {
        let above = random.iter().filter(|(_, value)| *value >= own).count();
        lines.push(format!(
            "controls: {} random circuits of its size have {what} {}; {above} of them reach the circuit's",
            random.len(),
            spread(&random)
        ));
    }
    if let Some((_, value)) = of(TOP_NODES).first() {
        lines.push(format!(
            "the same number of top nodes, with all edges between them: {}",
            said(*value)
        ));
    }
    let mut drops: Vec<(&str, f64)> = of(WITHOUT)
        .iter()
        .map(|(name, value)| (*name, own - value))
        .collect();
    if !drops.is_empty() {
        drops.sort_by(|a, b| a.1.abs().total_cmp(&b.1.abs()));
        let idle = drops
            .iter()
            .filter(|(_, drop)| drop.abs() < 0.01 * own.abs())
            .count();
        let (weakest, least) = drops[0];
        let (strongest, most) = drops[drops.len() - 1];
        lines.push(format!(
            "minimality: of {} edges taken out one at a time, {idle} change it by less than a hundredth; most {} ({strongest}), least {} ({weakest})",
            drops.len(),
            said(most),
            said(least)
        ));
    }
    let (circuit, model) = (of(KNOCKED), of(MODEL_KNOCKED));
    let gaps = circuit
        .iter()
        .zip(&model)
        .map(|((name, a), (_, b))| (*name, *a, *b));
    if let Some((name, a, b)) = gaps.max_by(|x, y| (x.1 - x.2).abs().total_cmp(&(y.1 - y.2).abs()))
    {
        lines.push(format!(
            "completeness: of {} sets of nodes knocked out, the circuit and the model differ most {name}: {} against {}",
            circuit.len(),
            said(a),
            said(b)
        ));
    }
    for (class, word) in [(KEPT, "weakest kept"), (DROPPED, "strongest dropped")] {
        let full = 1.0;
        let effects: Vec<String> = of(class)
            .iter()
            .map(|(name, value)| {
                let edge = name.trim_start_matches("model without ");
                let effect = if faithful.is_some() {
                    value - full
                } else {
                    *value
                };
                format!("{edge} {effect:+.4}")
            })
            .collect();
        if !effects.is_empty() {
            let scale = if faithful.is_some() {
                "as a share of the gap"
            } else {
                "the metric without it"
            };
            lines.push(format!(
                "{word} edges patched in the model, {scale}: {}",
                effects.join(", ")
            ));
        }
    }
    lines
}

/// The circuit's own number, with its interval and how many pairs it is of.
fn own_line(table: &Scores, what: &str, own: &str) -> String {
    let row = (table.texts("class").into_iter().flatten()).position(|class| class == Some(SELF));
    let at = |column: &str| {
        let values = table.floats(column)?;
        values.get(row?).copied().flatten()
    };
    let interval = match at("normalised_low").zip(at("normalised_high")) {
        Some((low, high)) => format!(" [{low:.3}, {high:.3}]"),
        None => String::new(),
    };
    let n = table
        .integers("n")
        .and_then(|n| n.get(row?).copied().flatten());
    let pairs = match n {
        Some(1) => " on 1 pair".to_string(),
        Some(n) => format!(" on {n} pairs"),
        None => String::new(),
    };
    format!("circuit: {what} {own}{interval}{pairs}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::Graph;

    #[test]
    fn a_full_evaluation_holds_a_circuit_against_its_neighbours_and_controls() {
        let graph = Graph {
            n_layers: 2,
            n_heads: 2,
            d_model: 8,
            has_mlp: true,
            parallel: false,
        };
        let edges = [
            "input->a0.h0<v>",
            "a0.h0->m1",
            "m1->logits",
            "input->m0",
            "m0->logits",
        ];
        let edges: Vec<Edge> = edges.iter().map(|edge| edge.parse().expect(edge)).collect();
        let mut circuit = Circuit::new(EdgeSet::of(graph, &edges).expect("edges"));
        let mut scored = ScoredGraph::new(graph);
        for (i, edge) in graph.edges().enumerate() {
            scored.set_score(&edge, i as f64).expect("an edge");
        }
        circuit = circuit.scored_by(&scored).expect("one graph");
        let found =
            quality_circuits(&circuit, Some(&scored), &QualityConfig::default()).expect("circuits");
        let of = |class: &str| -> Vec<&NamedCircuit> {
            found
                .iter()
                .filter(|one| one.class.as_deref() == Some(class))
                .collect()
        };
        assert_eq!(of(WITHOUT).len(), 5);
        // Without its first edge the path through a0.h0 and m1 is dead, and the other is left.
        let cut = of(WITHOUT)
            .into_iter()
            .find(|one| one.name == "without input->a0.h0<v>");
        assert_eq!(cut.expect("it was taken out").edges.len(), 2);
        assert!(of(CONTROL).iter().all(|one| one.edges.len() >= 5 && one.edges == one.edges.pruned(Pruning::Fixpoint)));
        assert_eq!(of(KNOCKED).len(), of(MODEL_KNOCKED).len());
        assert_eq!(of(DROPPED).len(), 3);
        assert!(
            of(KEPT)
                .iter()
                .all(|one| one.edges.len() == graph.n_edges() - 1)
        );
        let mut names: Vec<&str> = found.iter().map(|one| one.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|two| two[0] != two[1]), "{names:?}");
    }
}
