//! `EdgeSet`: some edges of a graph, a bit for each place of its matrix, and what pruning leaves of them.

use std::fmt;

use super::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Edge, Node};

/// A matrix of bits with more places than this would be of no model: that of 126 layers and 128 heads has fewer.
const MOST_PLACES: usize = 1 << 30;

/// A set of edges of one graph.
#[derive(Clone, PartialEq, Eq)]
pub struct EdgeSet {
    graph: Graph,
    /// Place `row * n_dst + column` is bit `place % 64` of word `place / 64`. What is no edge is never set.
    words: Vec<u64>,
    n_dst: usize,
}

/// How dead ends are dropped from a set of edges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pruning {
    /// Until every node has an edge in and an edge out.
    #[default]
    Fixpoint,
    /// The nodes that are dead at first, and no others: what the MIB release did, which differs by an edge now and then.
    Once,
    /// Not at all.
    Never,
}

impl EdgeSet {
    pub fn empty(graph: Graph) -> Self {
        let n_dst = graph.n_dst();
        EdgeSet {
            graph,
            words: vec![0; (graph.n_src() * n_dst).div_ceil(64)],
            n_dst,
        }
    }

    /// Every edge of the graph.
    pub fn full(graph: Graph) -> Self {
        let mut set = EdgeSet::empty(graph);
        for column in 0..set.n_dst {
            for row in 0..graph.n_sources(column) {
                set.insert(row, column);
            }
        }
        set
    }

    /// # Errors
    /// Those of [`Graph::place`].
    pub fn of<'e>(graph: Graph, edges: impl IntoIterator<Item = &'e Edge>) -> Result<Self> {
        let mut set = EdgeSet::empty(graph);
        for edge in edges {
            let (row, column) = graph.place(edge)?;
            set.insert(row, column);
        }
        Ok(set)
    }

    /// Every edge from one of these nodes to another: the circuit that a set of nodes stands for. `input` and `logits` are
    /// always among them.
    /// # Errors
    /// [`Error::UnknownNode`]
    pub fn between(graph: Graph, nodes: &[Node]) -> Result<Self> {
        let mut is_in = vec![false; graph.n_src()];
        is_in[0] = true;
        for &node in nodes.iter().filter(|&&node| node != Node::Logits) {
            is_in[graph.row(node)?] = true;
        }
        let mut set = EdgeSet::empty(graph);
        for column in 0..set.n_dst {
            if graph.reader_row(column).is_none_or(|row| is_in[row]) {
                for row in (0..graph.n_sources(column)).filter(|&row| is_in[row]) {
                    set.insert(row, column);
                }
            }
        }
        Ok(set)
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    fn bit(&self, row: usize, column: usize) -> (usize, u64) {
        let place = row * self.n_dst + column;
        (place / 64, 1 << (place % 64))
    }

    /// Whether the edge at a place of the matrix is in the set.
    pub fn has(&self, row: usize, column: usize) -> bool {
        let (word, bit) = self.bit(row, column);
        self.words[word] & bit != 0
    }

    /// Takes the edge at a place in. The place must be one of an edge.
    pub fn insert(&mut self, row: usize, column: usize) {
        debug_assert!(self.graph.edge_exists(row, column));
        let (word, bit) = self.bit(row, column);
        self.words[word] |= bit;
    }

    pub fn remove(&mut self, row: usize, column: usize) {
        let (word, bit) = self.bit(row, column);
        self.words[word] &= !bit;
    }

    /// # Errors
    /// Those of [`Graph::place`].
    pub fn contains(&self, edge: &Edge) -> Result<bool> {
        let (row, column) = self.graph.place(edge)?;
        Ok(self.has(row, column))
    }

    pub fn len(&self) -> usize {
        let ones = self.words.iter().map(|word| word.count_ones() as usize);
        ones.sum()
    }

    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// The places of the edges, by row and then by column.
    pub fn places(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let bits = |(index, &word): (usize, &u64)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = (rest != 0).then(|| rest.trailing_zeros() as usize)?;
                rest &= rest - 1;
                Some(index * 64 + bit)
            })
        };
        let places = self.words.iter().enumerate().flat_map(bits);
        places.map(|place| (place / self.n_dst, place % self.n_dst))
    }

    /// The edges, in the order of [`Graph::edges`].
    pub fn edges(&self) -> impl Iterator<Item = Edge> + '_ {
        let edge = |(row, column)| self.graph.edge(row, column);
        self.places().filter_map(edge)
    }

    /// The rows of the sources of a column that are in the set, ascending.
    pub fn sources(&self, column: usize) -> Vec<usize> {
        let rows = 0..self.graph.n_sources(column);
        rows.filter(|&row| self.has(row, column)).collect()
    }

    /// The nodes at either end of an edge, in the order of the forward pass.
    pub fn nodes(&self) -> Vec<Node> {
        let ends = self.edges().flat_map(|edge| [edge.src, edge.dst]);
        let nodes: std::collections::BTreeSet<Node> = ends.collect();
        nodes.into_iter().collect()
    }

    fn with(mut self, other: &EdgeSet, join: fn(u64, u64) -> u64) -> Result<Self> {
        self.graph.check_same(&other.graph)?;
        for (own, theirs) in self.words.iter_mut().zip(&other.words) {
            *own = join(*own, *theirs);
        }
        Ok(self)
    }

    /// # Errors
    /// [`Error::Invalid`] if the other set is of another graph.
    pub fn and(self, other: &EdgeSet) -> Result<Self> {
        self.with(other, |a, b| a & b)
    }

    /// # Errors
    /// [`Error::Invalid`] if the other set is of another graph.
    pub fn or(self, other: &EdgeSet) -> Result<Self> {
        self.with(other, |a, b| a | b)
    }

    /// # Errors
    /// [`Error::Invalid`] if the other set is of another graph.
    pub fn minus(self, other: &EdgeSet) -> Result<Self> {
        self.with(other, |a, b| a & !b)
    }

    /// The edges in both over the edges in either (Jaccard); 1 for two empty sets.
    /// # Errors
    /// [`Error::Invalid`] if the other set is of another graph.
    pub fn overlap(&self, other: &EdgeSet) -> Result<f64> {
        self.graph.check_same(&other.graph)?;
        let (mut both, mut either) = (0, 0);
        for (a, b) in self.words.iter().zip(&other.words) {
            both += (a & b).count_ones();
            either += (a | b).count_ones();
        }
        Ok(if either == 0 {
            1.0
        } else {
            f64::from(both) / f64::from(either)
        })
    }

    /// What is left without dead ends. A node is alive if it reads and is read inside of the set; `input` needs no edge in,
    /// and `logits` none out.
    pub fn pruned(&self, pruning: Pruning) -> EdgeSet {
        let (fed, read) = match pruning {
            Pruning::Never => return self.clone(),
            Pruning::Once => self.touched(),
            Pruning::Fixpoint => self.reached(),
        };
        let mut kept = self.clone();
        for (row, column) in self.places() {
            let is_alive = |row: usize| fed[row] && read[row];
            if !is_alive(row) || !self.graph.reader_row(column).is_none_or(is_alive) {
                kept.remove(row, column);
            }
        }
        kept
    }

    /// For each row, whether its node has an edge in, and an edge out.
    fn touched(&self) -> (Vec<bool>, Vec<bool>) {
        let mut fed = vec![false; self.graph.n_src()];
        let mut read = fed.clone();
        fed[0] = true;
        for (row, column) in self.places() {
            read[row] = true;
            if let Some(reader) = self.graph.reader_row(column) {
                fed[reader] = true;
            }
        }
        (fed, read)
    }

    /// For each row, whether a path leads to its node from `input`, and from it to `logits`. As the graph has no circles, these
    /// are the nodes that dropping dead ends one after another leaves.
    fn reached(&self) -> (Vec<bool>, Vec<bool>) {
        let mut fed = vec![false; self.graph.n_src()];
        let mut read = fed.clone();
        fed[0] = true;
        // Columns stand in the order of the forward pass, so a source is settled before its readers are looked at.
        for column in 0..self.n_dst {
            if let Some(reader) = self.graph.reader_row(column) {
                fed[reader] |= self.sources(column).into_iter().any(|row| fed[row]);
            }
        }
        for column in (0..self.n_dst).rev() {
            if self
                .graph
                .reader_row(column)
                .is_none_or(|reader| read[reader])
            {
                self.sources(column)
                    .into_iter()
                    .for_each(|row| read[row] = true);
            }
        }
        (fed, read)
    }
}

impl fmt::Debug for EdgeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let edges = self.edges().map(|edge| edge.to_string());
        f.debug_set().entries(edges).finish()
    }
}

impl Graph {
    /// # Errors
    /// [`Error::Invalid`] naming the first size that differs.
    pub fn check_same(&self, other: &Graph) -> Result<()> {
        let sizes = |graph: &Graph| {
            [
                ("n_layers", graph.n_layers),
                ("n_heads", graph.n_heads),
                ("d_model", graph.d_model),
                ("mlp", usize::from(graph.has_mlp)),
                ("parallel", usize::from(graph.parallel)),
            ]
        };
        let mut sizes = sizes(self).into_iter().zip(sizes(other));
        match sizes.find(|(a, b)| a != b) {
            None => Ok(()),
            Some(((what, a), (_, b))) => Err(Error::invalid(format!(
                "they are of two models, with {what} {a} and {b}; give the model that the circuit was made with"
            ))),
        }
    }

    /// Refuses sizes, which may come from a file, that no model has.
    /// # Errors
    /// [`Error::Invalid`]
    pub(super) fn check_sizes(&self) -> Result<()> {
        let most = 1 << 12;
        let fits = (1..=most).contains(&self.n_layers)
            && (1..=most).contains(&self.n_heads)
            && self.d_model >= 1
            && self.n_src().saturating_mul(self.n_dst()) <= MOST_PLACES
            && (self.has_mlp || !self.parallel);
        match fits {
            true => Ok(()),
            false => Err(Error::invalid(format!(
                "no model has n_layers {}, n_heads {} and d_model {} with mlp {} and parallel {}; give the sizes of its model",
                self.n_layers, self.n_heads, self.d_model, self.has_mlp, self.parallel
            ))),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use rand::{Rng, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    /// Small graphs of every kind.
    pub fn graphs() -> Vec<Graph> {
        let kinds = [(true, false), (true, true), (false, false)];
        let sizes = [(1, 1), (2, 3), (4, 2)];
        let of = |(n_layers, n_heads)| {
            kinds.map(|(has_mlp, parallel)| Graph {
                n_layers,
                n_heads,
                d_model: 8,
                has_mlp,
                parallel,
            })
        };
        sizes.into_iter().flat_map(of).collect()
    }

    /// Each edge with this probability.
    pub fn random(graph: Graph, share: f64, rng: &mut ChaCha8Rng) -> EdgeSet {
        let mut set = EdgeSet::full(graph);
        for (row, column) in EdgeSet::full(graph).places() {
            if !rng.random_bool(share) {
                set.remove(row, column);
            }
        }
        set
    }

    /// Drops edges at dead nodes, as the definition says it, until nothing changes.
    fn pruned_slowly(edges: &[Edge], once: bool) -> Vec<Edge> {
        let mut edges = edges.to_vec();
        loop {
            let reads = |node: Node| node == Node::Input || edges.iter().any(|e| e.dst == node);
            let is_read = |node: Node| node == Node::Logits || edges.iter().any(|e| e.src == node);
            let alive = |node: Node| reads(node) && is_read(node);
            let kept: Vec<Edge> = edges
                .iter()
                .filter(|edge| alive(edge.src) && alive(edge.dst))
                .copied()
                .collect();
            if once || kept.len() == edges.len() {
                return kept;
            }
            edges = kept;
        }
    }

    #[test]
    fn pruning_is_dropping_dead_ends_until_nothing_changes() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for graph in graphs() {
            for share in [0.0, 0.1, 0.3, 0.6, 1.0] {
                let set = random(graph, share, &mut rng);
                let edges: Vec<Edge> = set.edges().collect();
                for (pruning, once) in [(Pruning::Fixpoint, false), (Pruning::Once, true)] {
                    let found: Vec<Edge> = set.pruned(pruning).edges().collect();
                    assert_eq!(found, pruned_slowly(&edges, once), "{graph:?} {set:?}");
                }
                assert_eq!(set.pruned(Pruning::Never), set);
            }
            let full = EdgeSet::full(graph);
            assert_eq!(full.len(), graph.n_edges());
            assert_eq!(full.pruned(Pruning::Fixpoint), full);
        }
    }

    #[test]
    fn sets_are_those_of_their_edges() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for graph in graphs() {
            let (a, b) = (random(graph, 0.4, &mut rng), random(graph, 0.5, &mut rng));
            let list = |set: &EdgeSet| -> Vec<Edge> { set.edges().collect() };
            let (in_a, in_b) = (list(&a), list(&b));
            let both: Vec<Edge> = (in_a.iter().filter(|e| in_b.contains(e)).copied()).collect();
            let either: Vec<Edge> = graph
                .edges()
                .filter(|e| in_a.contains(e) || in_b.contains(e))
                .collect();
            assert_eq!(list(&a.clone().and(&b).expect("one graph")), both);
            assert_eq!(list(&a.clone().or(&b).expect("one graph")), either);
            let rest = a.clone().minus(&b).expect("one graph");
            assert_eq!(rest.len(), a.len() - both.len());
            if !either.is_empty() {
                let overlap = a.overlap(&b).expect("one graph");
                assert_eq!(overlap, both.len() as f64 / either.len() as f64);
            }
            assert_eq!(EdgeSet::of(graph, &in_a).expect("its edges"), a);
        }
    }

    #[test]
    fn nodes_stand_for_the_edges_between_them() {
        let graph = graphs()[3];
        let nodes = ["a0.h1", "m1"].map(|node| node.parse().expect(node));
        let set = EdgeSet::between(graph, &nodes).expect("its nodes");
        let edges: Vec<String> = set.edges().map(|edge| edge.to_string()).collect();
        assert_eq!(
            edges,
            [
                "input->a0.h1<q>",
                "input->a0.h1<k>",
                "input->a0.h1<v>",
                "input->m1",
                "input->logits",
                "a0.h1->m1",
                "a0.h1->logits",
                "m1->logits"
            ]
        );
    }

    #[test]
    fn sets_of_two_models_are_not_compared() {
        let (a, b) = (EdgeSet::full(graphs()[0]), EdgeSet::full(graphs()[3]));
        let message = a.overlap(&b).expect_err("two models").to_string();
        assert!(message.contains("n_layers 1 and 2"), "{message}");
    }
}
