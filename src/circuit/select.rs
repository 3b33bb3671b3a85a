//! From scores of edges or nodes to a set of edges: which of them make the circuit.
//!
//! Of equal scores the edge of the earlier source comes first, and of one source the earlier reader. An edge without a score is never chosen;
//! a node without one always is, since a method that scores no `input` still means the circuit to begin there.
//!
//! Sources: Hanna, Pezzelle and Belinkov 2024 (arXiv 2403.17806) for greedy selection from the logits; Mueller et al. 2025,
//! "MIB" (arXiv 2504.13151), for the rest.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::{EdgeSet, Graph, Helps, Pruning, ScoredGraph};
use crate::error::{Error, Result};

/// How many edges or nodes, and which.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// The best `n` edges.
    TopN(usize),
    /// Every edge that ranks at this value or above.
    Threshold(f64),
    /// `n` edges, best first among those that lead to what is in the circuit already, from the logits on.
    Greedy(usize),
    /// `n` edges: this share of them by how much they help, the rest by the size of their score.
    Ratio { n: usize, helpful: f64 },
    /// Every edge between the best `n` nodes.
    TopNodes(usize),
}

/// What ranks a score.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ranking {
    /// Its size.
    Absolute,
    /// How much the edge helps: the score itself, or its negative.
    Signed(Helps),
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Selection {
    pub rule: Rule,
    pub ranking: Ranking,
    /// Which scores help; for [`Rule::Ratio`] also where the ranking is absolute.
    pub helps: Helps,
    pub pruning: Pruning,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    pub edges: EdgeSet,
    /// Edges (for [`Rule::TopNodes`] nodes) that were asked for; `None` for a threshold.
    pub requested: Option<usize>,
    /// Edges before dead ends were dropped.
    pub chosen: usize,
}

impl Selection {
    /// By size of score, dead ends dropped.
    pub fn of(rule: Rule) -> Self {
        Selection {
            rule,
            ranking: Ranking::Absolute,
            helps: Helps::Negative,
            pruning: Pruning::Fixpoint,
        }
    }

    /// By how much an edge helps.
    pub fn signed(mut self, helps: Helps) -> Self {
        self.ranking = Ranking::Signed(helps);
        self.helps = helps;
        self
    }

    pub fn pruning(mut self, pruning: Pruning) -> Self {
        self.pruning = pruning;
        self
    }

    fn check(&self) -> Result<()> {
        let refused = |reason: &str| Err(Error::invalid(reason.to_string()));
        match self.rule {
            Rule::TopN(0) | Rule::Greedy(0) | Rule::TopNodes(0) | Rule::Ratio { n: 0, .. } => {
                refused("a circuit of 0 was asked for; ask for one edge or more")
            }
            Rule::Threshold(threshold) if threshold.is_nan() => {
                refused("a threshold must be a number")
            }
            Rule::Ratio { helpful, .. } if !(0.0..=1.0).contains(&helpful) => {
                refused("the share of helpful edges lies between 0 and 1")
            }
            _ => Ok(()),
        }
    }
}

/// Chooses edges by the scores of a graph.
/// # Errors
/// [`Error::Invalid`] for a rule that asks for nothing, and where nothing has a score that the rule looks at.
pub fn select(scored: &ScoredGraph, selection: &Selection) -> Result<Selected> {
    match selection.rule {
        Rule::TopNodes(n) => select_nodes(scored, n, selection),
        _ => select_from(*scored.graph(), scored.matrix(), selection),
    }
}

/// [`select`] from a plain matrix of edge scores.
/// # Shapes
/// `scores [n_src, n_dst]`, row by row; NaN is no score.
/// # Errors
/// Those of [`select`]; node scores, which are no matrix.
pub fn select_from(graph: Graph, scores: &[f64], selection: &Selection) -> Result<Selected> {
    selection.check()?;
    let by = |ranking| ranked(&graph, scores, ranking);
    let own = by(selection.ranking);
    if own.is_empty() {
        return Err(Error::invalid(
            "no edge has a score to choose it by; take the scores of an edge method, such as `eap-ig`",
        ));
    }
    let mut edges = EdgeSet::empty(graph);
    match selection.rule {
        Rule::TopN(n) => insert(&mut edges, own.iter().take(n)),
        Rule::Threshold(threshold) => {
            insert(&mut edges, own.iter().take_while(|e| e.rank >= threshold));
        }
        Rule::Greedy(n) => edges = greedy(graph, own, n),
        Rule::Ratio { n, helpful } => {
            let first = (helpful * n as f64).round() as usize;
            let helping = by(Ranking::Signed(selection.helps));
            insert(&mut edges, helping.iter().take(first));
            let rest = by(Ranking::Absolute);
            let rest = rest.iter().filter(|e| !edges.has(e.row, e.column));
            let rest: Vec<&Candidate> = rest.take(n.saturating_sub(first)).collect();
            insert(&mut edges, rest.into_iter());
        }
        Rule::TopNodes(_) => {
            return Err(Error::invalid(
                "nodes are chosen by scores of nodes, and these are of edges",
            ));
        }
    }
    let requested = match selection.rule {
        Rule::TopN(n) | Rule::Greedy(n) | Rule::Ratio { n, .. } | Rule::TopNodes(n) => Some(n),
        Rule::Threshold(_) => None,
    };
    Ok(Selected {
        requested,
        chosen: edges.len(),
        edges: edges.pruned(selection.pruning),
    })
}

fn select_nodes(scored: &ScoredGraph, n: usize, selection: &Selection) -> Result<Selected> {
    selection.check()?;
    let graph = *scored.graph();
    let mut ranked: Vec<(f64, usize)> = Vec::new();
    let mut nodes = Vec::new();
    for row in 0..graph.n_src() {
        let node = graph.source(row).expect("a row of the graph");
        match scored.node_score(node)? {
            Some(score) => ranked.push((rank(score, selection.ranking), row)),
            None => nodes.push(node),
        }
    }
    if ranked.is_empty() {
        return Err(Error::invalid(
            "no node has a score to choose it by; take the scores of a node method, such as `atp`",
        ));
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let best = ranked
        .iter()
        .take(n)
        .filter_map(|&(_, row)| graph.source(row));
    nodes.extend(best);
    let edges = EdgeSet::between(graph, &nodes)?;
    Ok(Selected {
        requested: Some(n),
        chosen: edges.len(),
        edges: edges.pruned(selection.pruning),
    })
}

/// An edge and what ranks it. The greatest is the one to take first.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    rank: f64,
    row: usize,
    column: usize,
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        let places = (other.row, other.column).cmp(&(self.row, self.column));
        self.rank.total_cmp(&other.rank).then(places)
    }
}

pub(super) fn rank(score: f64, ranking: Ranking) -> f64 {
    match ranking {
        Ranking::Absolute => score.abs(),
        Ranking::Signed(Helps::Positive) => score,
        Ranking::Signed(Helps::Negative) => -score,
    }
}

/// The edges that have a score, best first.
fn ranked(graph: &Graph, scores: &[f64], ranking: Ranking) -> Vec<Candidate> {
    let n_dst = graph.n_dst();
    let mut found = Vec::new();
    for column in 0..n_dst {
        for row in 0..graph.n_sources(column) {
            let score = scores[row * n_dst + column];
            if !score.is_nan() {
                // A zero has no sign that would order it.
                let rank = rank(score, ranking) + 0.0;
                found.push(Candidate { rank, row, column });
            }
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    found
}

fn insert<'c>(edges: &mut EdgeSet, candidates: impl Iterator<Item = &'c Candidate>) {
    candidates.for_each(|candidate| edges.insert(candidate.row, candidate.column));
}

/// Best first from the logits: an edge can be taken once what it leads to is in the circuit.
fn greedy(graph: Graph, candidates: Vec<Candidate>, n: usize) -> EdgeSet {
    let mut edges = EdgeSet::empty(graph);
    // By the row of the node that an edge leads into; `logits` is one past the last.
    let mut into: Vec<Vec<Candidate>> = vec![Vec::new(); graph.n_src() + 1];
    for candidate in candidates {
        let node = graph.reader_row(candidate.column).unwrap_or(graph.n_src());
        into[node].push(candidate);
    }
    let mut open: BinaryHeap<Candidate> = std::mem::take(&mut into[graph.n_src()]).into();
    for _ in 0..n {
        let Some(best) = open.pop() else { break };
        edges.insert(best.row, best.column);
        open.extend(std::mem::take(&mut into[best.row]));
    }
    edges
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::super::edge_set::tests::graphs;
    use super::*;
    use crate::hooks::{Edge, Node};

    /// Scores with ties, zeros of both signs, and edges without a score.
    fn random_scores(graph: Graph, rng: &mut ChaCha8Rng) -> ScoredGraph {
        let mut scored = ScoredGraph::new(graph);
        for edge in graph.edges() {
            if rng.random_bool(0.9) {
                let score = f64::from(rng.random_range(-6..=6)) / 4.0;
                let score = if score == 0.0 && rng.random_bool(0.5) {
                    -0.0
                } else {
                    score
                };
                scored.set_score(&edge, score).expect("an edge");
            }
        }
        scored
    }

    /// All scored edges, best first, by a stable sort of the list in its order.
    fn in_order(scored: &ScoredGraph, rank: impl Fn(f64) -> f64) -> Vec<(Edge, f64)> {
        let scored = scored
            .edges()
            .filter_map(|(edge, score, _)| Some((edge, rank(score?))));
        let mut list: Vec<(Edge, f64)> = scored.collect();
        list.sort_by(|a, b| b.1.partial_cmp(&a.1).expect("numbers"));
        list
    }

    /// Greedy as the definition says it, by looking through all edges at every step.
    fn greedy_slowly(list: &[(Edge, f64)], n: usize) -> Vec<Edge> {
        let mut chosen: Vec<Edge> = Vec::new();
        while chosen.len() < n {
            let nodes: Vec<Node> = chosen
                .iter()
                .map(|edge| edge.src)
                .chain([Node::Logits])
                .collect();
            let open =
                |(edge, _): &&(Edge, f64)| nodes.contains(&edge.dst) && !chosen.contains(edge);
            let Some((edge, _)) = list.iter().find(open) else {
                break;
            };
            chosen.push(*edge);
        }
        chosen.sort();
        chosen
    }

    #[test]
    fn every_rule_selects_what_its_naive_form_does() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        for graph in graphs() {
            let scored = random_scores(graph, &mut rng);
            let selected = |selection: Selection| -> Vec<Edge> {
                let found = select(&scored, &selection.pruning(Pruning::Never)).expect("selects");
                assert_eq!(found.chosen, found.edges.len());
                found.edges.edges().collect()
            };
            let sorted = |list: &[(Edge, f64)]| {
                let mut edges: Vec<Edge> = list.iter().map(|(edge, _)| *edge).collect();
                edges.sort();
                edges
            };
            let orders = [
                (Selection::of(Rule::TopN(1)), in_order(&scored, f64::abs)),
                (
                    Selection::of(Rule::TopN(1)).signed(Helps::Negative),
                    in_order(&scored, |s| -s),
                ),
                (
                    Selection::of(Rule::TopN(1)).signed(Helps::Positive),
                    in_order(&scored, |s| s),
                ),
            ];
            for (selection, list) in orders {
                for n in [1, 3, 10, list.len(), list.len() + 5] {
                    let by = |rule| selected(Selection { rule, ..selection });
                    assert_eq!(
                        by(Rule::TopN(n)),
                        sorted(&list[..n.min(list.len())]),
                        "{graph:?}"
                    );
                    assert_eq!(by(Rule::Greedy(n)), greedy_slowly(&list, n), "{graph:?}");
                }
                for threshold in [-0.5, 0.0, 0.75] {
                    let above: Vec<_> = list.iter().filter(|e| e.1 >= threshold).copied().collect();
                    let found = selected(Selection {
                        rule: Rule::Threshold(threshold),
                        ..selection
                    });
                    assert_eq!(found, sorted(&above), "{graph:?}");
                }
            }
            let (helping, sizes) = (in_order(&scored, |s| -s), in_order(&scored, f64::abs));
            let found = selected(Selection::of(Rule::Ratio { n: 4, helpful: 0.5 }));
            let mut expected = helping[..2.min(helping.len())].to_vec();
            let rest = sizes.iter().filter(|(edge, _)| {
                !helping[..2.min(helping.len())]
                    .iter()
                    .any(|(e, _)| e == edge)
            });
            expected.extend(rest.take(2));
            assert_eq!(found, sorted(&expected), "{graph:?}");
        }
    }

    #[test]
    fn nodes_bring_the_edges_between_them() {
        let graph = graphs()[3];
        let mut scored = ScoredGraph::new(graph);
        for (node, score) in [("a0.h0", 0.1), ("a0.h1", -3.0), ("m0", 0.2), ("m1", 2.0)] {
            let node = node.parse().expect("a node");
            scored.set_node_score(node, score).expect("a node");
        }
        // Nodes without a score are always kept: input, a0.h2 and the heads of layer 1.
        let selection = Selection::of(Rule::TopNodes(2));
        let found = select(&scored, &selection).expect("selects");
        let out: Vec<String> = ["a0.h0", "m0"].map(String::from).to_vec();
        let nodes: Vec<String> = found.edges.nodes().iter().map(Node::to_string).collect();
        assert!(out.iter().all(|node| !nodes.contains(node)), "{nodes:?}");
        assert!(nodes.contains(&"a0.h1".to_string()) && nodes.contains(&"a1.h2".to_string()));
        let signed = select(
            &scored,
            &Selection::of(Rule::TopNodes(1)).signed(Helps::Positive),
        );
        let nodes = signed.expect("selects").edges.nodes();
        assert!(nodes.contains(&Node::Mlp(1)) && !nodes.contains(&Node::Mlp(0)));
    }

    #[test]
    fn what_asks_for_nothing_or_has_nothing_is_refused() {
        let scored = ScoredGraph::new(graphs()[0]);
        let message = |rule| {
            select(&scored, &Selection::of(rule))
                .expect_err("refused")
                .to_string()
        };
        assert!(message(Rule::TopN(0)).contains("one edge or more"));
        assert!(message(Rule::TopN(3)).contains("no edge has a score"));
        assert!(message(Rule::TopNodes(3)).contains("no node has a score"));
        assert!(message(Rule::Threshold(f64::NAN)).contains("must be a number"));
        assert!(message(Rule::Ratio { n: 3, helpful: 1.5 }).contains("between 0 and 1"));
    }
}
