//! How alike two circuits are, and how well scores find a circuit.
//!
//! Overlap is what is in both over what is in either; recall is the share of a reference that the other has. A larger circuit
//! recalls more of anything, so circuits of which one knows its scores are also compared at equal size: the larger is cut to
//! its strongest edges. Scores are held against a circuit at every threshold at once: the area under the curve of recall
//! against the share of other edges taken (AUROC) is the chance that an edge of the circuit scores above one that is not in it,
//! ties counted half.
//!
//! Sources: Conmy et al. 2023, arXiv 2304.14997 (edges and nodes against a published circuit); Hanna et al. 2024, arXiv
//! 2403.17806 (overlap against faithfulness).

use std::collections::BTreeSet;
use std::fmt;

use super::{Circuit, EdgeSet, Graph, ScoredGraph};
use crate::error::{Error, Result};
use crate::hooks::{Edge, Node};

/// How many things two circuits have, and how many they share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlap {
    pub first: usize,
    pub second: usize,
    pub both: usize,
}

/// Two circuits side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Comparison {
    pub edges: Overlap,
    /// Heads and MLPs at either end of an edge.
    pub nodes: Overlap,
}

impl Overlap {
    fn of<T: Ord>(first: &BTreeSet<T>, second: &BTreeSet<T>) -> Self {
        Overlap {
            first: first.len(),
            second: second.len(),
            both: first.intersection(second).count(),
        }
    }

    /// What is in both over what is in either (Jaccard); 1 for two empty sets.
    pub fn intersection_over_union(&self) -> f64 {
        share(self.both, self.first + self.second - self.both)
    }

    /// The share of the second that the first has.
    pub fn recall(&self) -> f64 {
        share(self.both, self.second)
    }

    /// The share of the first that is in the second.
    pub fn precision(&self) -> f64 {
        share(self.both, self.first)
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 {
        1.0
    } else {
        part as f64 / whole as f64
    }
}

impl Comparison {
    /// # Errors
    /// [`Error::Invalid`] for circuits of two models.
    pub fn of(first: &EdgeSet, second: &EdgeSet) -> Result<Self> {
        first.graph().check_same(second.graph())?;
        let edges = |set: &EdgeSet| -> BTreeSet<Edge> { set.edges().collect() };
        Ok(Comparison {
            edges: Overlap::of(&edges(first), &edges(second)),
            nodes: Overlap::of(&components(first), &components(second)),
        })
    }

    /// The circuits with as many edges as the smaller has, the larger by the size of its scores. `None` where the larger has
    /// edges without a score.
    /// # Errors
    /// [`Error::Invalid`] for circuits of two models.
    pub fn at_equal_size(first: &Circuit, second: &Circuit) -> Result<Option<Self>> {
        let size = first.edges.len().min(second.edges.len());
        let (Some(first), Some(second)) = (strongest(first, size), strongest(second, size)) else {
            return Ok(None);
        };
        Comparison::of(&first, &second).map(Some)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { edges, nodes } = self;
        let one = |f: &mut fmt::Formatter<'_>, what: &str, overlap: &Overlap| {
            write!(
                f,
                "{} of {} and {} {what} in both: intersection over union {:.3}, recall {:.3}, precision {:.3}",
                overlap.both,
                overlap.first,
                overlap.second,
                overlap.intersection_over_union(),
                overlap.recall(),
                overlap.precision()
            )
        };
        one(f, "edges", edges)?;
        f.write_str("; ")?;
        one(f, "nodes", nodes)
    }
}

/// The heads and MLPs of a circuit.
fn components(edges: &EdgeSet) -> BTreeSet<Node> {
    let nodes = edges.nodes().into_iter();
    nodes
        .filter(|node| !matches!(node, Node::Input | Node::Logits))
        .collect()
}

/// The edges of the largest scores, the earlier of equal ones.
fn strongest(circuit: &Circuit, n: usize) -> Option<EdgeSet> {
    if circuit.edges.len() <= n {
        return Some(circuit.edges.clone());
    }
    let score = |edge: Edge| Some((circuit.scores.get(&edge)?.abs(), edge));
    let mut edges: Vec<(f64, Edge)> = circuit.edges.edges().map(score).collect::<Option<_>>()?;
    edges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let kept = edges.iter().take(n).map(|(_, edge)| edge);
    Some(EdgeSet::of(*circuit.graph(), kept).expect("edges of the circuit's graph"))
}

/// How well scores tell a circuit from the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct Roc {
    /// From nothing taken to everything: each value of the scores from the largest down, and last what has no score.
    pub points: Vec<RocPoint>,
    /// The area under the curve, 0.5 by chance.
    pub area: f64,
    /// What is in the circuit, and what is not.
    pub positives: usize,
    pub negatives: usize,
}

/// What is taken at a threshold.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RocPoint {
    /// All that scores at least this is taken; NaN for the last point, where what has no score is taken too.
    pub threshold: f64,
    pub true_positive_rate: f64,
    pub false_positive_rate: f64,
}

impl Roc {
    /// The edges of a graph by the size of their scores, against those of a circuit. An edge without a score comes last.
    /// # Errors
    /// [`Error::Invalid`] for a circuit of another model, or one that is empty or everything.
    pub fn of_edges(scored: &ScoredGraph, reference: &EdgeSet) -> Result<Self> {
        scored.graph().check_same(reference.graph())?;
        let edges = scored.edges().map(|(edge, score, _)| {
            let is_in = reference.contains(&edge)?;
            Ok((score.map(f64::abs), is_in))
        });
        Roc::of(edges.collect::<Result<_>>()?, "edge")
    }

    /// Heads and MLPs by their own scores' size, or, where the graph has none, by the largest size among the edges that they
    /// write; against the heads and MLPs of a circuit.
    /// # Errors
    /// [`Error::Invalid`] for a circuit of another model, or one that has no node or every node.
    pub fn of_nodes(scored: &ScoredGraph, reference: &EdgeSet) -> Result<Self> {
        let graph = scored.graph();
        graph.check_same(reference.graph())?;
        let wanted = components(reference);
        let scores = node_scores(scored, graph)?;
        let nodes = scores.into_iter();
        let ranked = nodes.map(|(node, score)| (score, wanted.contains(&node)));
        Roc::of(ranked.collect(), "node")
    }

    fn of(mut ranked: Vec<(Option<f64>, bool)>, what: &str) -> Result<Self> {
        let positives = ranked.iter().filter(|(_, is_in)| *is_in).count();
        let negatives = ranked.len() - positives;
        if positives == 0 || negatives == 0 {
            return Err(Error::invalid(format!(
                "the circuit to find has {positives} of {} {what}s, and scores cannot tell it from the rest; take one that has some \
                 and not all",
                ranked.len()
            )));
        }
        // What has no score is below all that has one.
        let key = |score: &Option<f64>| score.unwrap_or(f64::NEG_INFINITY);
        ranked.sort_by(|a, b| key(&b.0).total_cmp(&key(&a.0)));
        let (mut taken, mut wrong, mut area) = (0usize, 0usize, 0.0);
        let mut points = Vec::new();
        for equal in ranked.chunk_by(|a, b| key(&a.0) == key(&b.0)) {
            let hits = equal.iter().filter(|(_, is_in)| *is_in).count();
            let misses = equal.len() - hits;
            // Among equal scores half of the pairs are in the right order.
            area += misses as f64 * (taken as f64 + hits as f64 / 2.0);
            taken += hits;
            wrong += misses;
            points.push(RocPoint {
                threshold: equal[0].0.unwrap_or(f64::NAN),
                true_positive_rate: taken as f64 / positives as f64,
                false_positive_rate: wrong as f64 / negatives as f64,
            });
        }
        Ok(Roc {
            points,
            area: area / (positives as f64 * negatives as f64),
            positives,
            negatives,
        })
    }
}

/// Every head and MLP with the size of its score.
fn node_scores(scored: &ScoredGraph, graph: &Graph) -> Result<Vec<(Node, Option<f64>)>> {
    let nodes = (0..graph.n_src()).filter_map(|row| graph.source(row));
    let nodes: Vec<Node> = nodes.filter(|node| *node != Node::Input).collect();
    let own: Vec<Option<f64>> = (nodes.iter())
        .map(|&node| scored.node_score(node))
        .collect::<Result<_>>()?;
    if own.iter().any(Option::is_some) {
        let sizes = own.into_iter().map(|score| score.map(f64::abs));
        return Ok(nodes.into_iter().zip(sizes).collect());
    }
    let mut largest = vec![None::<f64>; graph.n_src()];
    for (edge, score, _) in scored.edges() {
        if let Some(score) = score {
            let most = &mut largest[graph.row(edge.src)?];
            *most = Some(most.unwrap_or(0.0).max(score.abs()));
        }
    }
    let of = |node: Node| Ok((node, largest[graph.row(node)?]));
    nodes.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph() -> Graph {
        Graph::tiny(1, 2)
    }

    fn edge(text: &str) -> Edge {
        text.parse().expect(text)
    }

    fn set(names: &[&str]) -> EdgeSet {
        let edges: Vec<Edge> = names.iter().map(|name| edge(name)).collect();
        EdgeSet::of(graph(), &edges).expect("its edges")
    }

    fn circuit(edges: &[(&str, f64)]) -> Circuit {
        let names: Vec<&str> = edges.iter().map(|(name, _)| *name).collect();
        let mut circuit = Circuit::new(set(&names));
        circuit.scores = edges
            .iter()
            .map(|(name, score)| (edge(name), *score))
            .collect();
        circuit
    }

    #[test]
    fn overlaps_are_counted_by_edges_and_by_nodes() {
        let first = set(&["input->a0.h0<v>", "a0.h0->logits", "m0->logits"]);
        let second = set(&["input->a0.h0<v>", "a0.h0->m0", "m0->logits", "a0.h1->m0"]);
        let found = Comparison::of(&first, &second).expect("one model");
        assert_eq!(
            found.edges,
            Overlap {
                first: 3,
                second: 4,
                both: 2
            }
        );
        assert_eq!(found.edges.intersection_over_union(), 0.4);
        assert_eq!(
            (found.edges.recall(), found.edges.precision()),
            (0.5, 2.0 / 3.0)
        );
        // a0.h0 and m0, against those and a0.h1: input and logits are in every circuit and count for nothing.
        assert_eq!(
            found.nodes,
            Overlap {
                first: 2,
                second: 3,
                both: 2
            }
        );
        let same = Comparison::of(&first, &first).expect("one model");
        assert_eq!(same.edges.intersection_over_union(), 1.0);
        let nothing = EdgeSet::empty(graph());
        let empty = Comparison::of(&nothing, &nothing).expect("one model");
        assert_eq!(empty.edges.intersection_over_union(), 1.0);
        let none = Comparison::of(&nothing, &first).expect("one model");
        assert_eq!(
            (none.edges.recall(), none.edges.intersection_over_union()),
            (0.0, 0.0)
        );
        let other = EdgeSet::empty(Graph {
            n_heads: 3,
            ..graph()
        });
        assert!(Comparison::of(&first, &other).is_err());
    }

    #[test]
    fn at_equal_size_the_larger_is_cut_to_its_strongest_edges() {
        let large = circuit(&[
            ("input->a0.h0<v>", -5.0),
            ("a0.h0->logits", 1.0),
            ("m0->logits", 3.0),
        ]);
        let small = circuit(&[("input->a0.h0<v>", 1.0), ("m0->logits", 1.0)]);
        let found = Comparison::at_equal_size(&large, &small).expect("one model");
        let found = found.expect("it has scores");
        assert_eq!(
            found.edges,
            Overlap {
                first: 2,
                second: 2,
                both: 2
            }
        );
        let unscored = Circuit::new(large.edges.clone());
        assert_eq!(
            Comparison::at_equal_size(&unscored, &small).expect("one model"),
            None
        );
        // The smaller one is not cut, and needs no scores.
        let small = Circuit::new(small.edges);
        assert!(
            Comparison::at_equal_size(&large, &small)
                .expect("one model")
                .is_some()
        );
    }

    #[test]
    fn the_area_is_the_chance_that_an_edge_of_the_circuit_scores_above_another() {
        let mut scored = ScoredGraph::new(graph());
        let scores = [
            ("input->a0.h0<v>", Some(-4.0)),
            ("a0.h0->logits", Some(3.0)),
            ("m0->logits", Some(3.0)),
            ("a0.h1->logits", Some(2.0)),
            ("input->logits", Some(0.0)),
        ];
        for (name, score) in scores {
            scored
                .set_score(&edge(name), score.expect("a score"))
                .expect(name);
        }
        // All other edges have no score.
        let negatives = graph().n_edges() - 3;
        let reference = set(&["input->a0.h0<v>", "m0->logits", "a0.h1->m0"]);
        let roc = Roc::of_edges(&scored, &reference).expect("a curve");
        assert_eq!((roc.positives, roc.negatives), (3, negatives));
        // Of pairs in the right order: the first is above all; the second above all but the one it ties with; the third has no score
        // and ties with all that have none.
        let without = negatives as f64 - 3.0;
        let right = negatives as f64 + (negatives as f64 - 1.0 + 0.5) + without / 2.0;
        assert!((roc.area - right / (3.0 * negatives as f64)).abs() < 1e-12);
        let last = roc.points.last().expect("a point");
        assert!(last.threshold.is_nan());
        assert_eq!(
            (last.true_positive_rate, last.false_positive_rate),
            (1.0, 1.0)
        );
        assert_eq!(roc.points[0].threshold, 4.0);
        assert_eq!(roc.points[0].true_positive_rate, 1.0 / 3.0);
        assert_eq!(roc.points[1].false_positive_rate, 1.0 / negatives as f64);
        // By the trapezoids of the curve.
        let mut before = (0.0, 0.0);
        let mut area = 0.0;
        for point in &roc.points {
            let here = (point.false_positive_rate, point.true_positive_rate);
            area += (here.0 - before.0) * (here.1 + before.1) / 2.0;
            before = here;
        }
        assert!((roc.area - area).abs() < 1e-12);
    }

    #[test]
    fn a_perfect_ranking_has_area_one_and_no_ranking_a_half() {
        let reference = set(&["input->a0.h0<v>", "a0.h0->logits"]);
        let mut perfect = ScoredGraph::new(graph());
        for name in graph().edges() {
            let is_in = reference.contains(&name).expect("an edge");
            perfect
                .set_score(&name, if is_in { -2.0 } else { 1.0 })
                .expect("an edge");
        }
        assert_eq!(
            Roc::of_edges(&perfect, &reference).expect("a curve").area,
            1.0
        );
        assert_eq!(
            Roc::of_nodes(&perfect, &reference).expect("a curve").area,
            1.0
        );
        let none = ScoredGraph::new(graph());
        assert_eq!(Roc::of_edges(&none, &reference).expect("a curve").area, 0.5);
        for reference in [EdgeSet::empty(graph()), EdgeSet::full(graph())] {
            let message = Roc::of_edges(&perfect, &reference).expect_err("nothing to tell");
            assert!(
                message.to_string().contains("some and not all"),
                "{message}"
            );
        }
        // Scores of nodes come before those of edges.
        let mut own = perfect.clone();
        own.set_node_score(Node::Mlp(0), 1.0).expect("a node");
        assert_eq!(Roc::of_nodes(&own, &reference).expect("a curve").area, 0.25);
    }
}
