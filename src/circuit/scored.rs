//! Scores of edges and nodes, and which of them are in a circuit: what a method says of a graph.

mod json;

use super::{Graph, Helps};
use crate::error::Result;
use crate::hooks::{Edge, Node};

/// A graph with what a method found of it: a score for each edge and node, and which of them are in the circuit.
#[derive(Debug, Clone)]
pub struct ScoredGraph {
    graph: Graph,
    /// `[n_src, n_dst]`, row by row; NaN is no score.
    scores: Vec<f64>,
    in_graph: Vec<bool>,
    /// By row, `logits` last.
    node_scores: Vec<f64>,
    nodes_in_graph: Vec<bool>,
    /// Which scores are those of parts that help, where it is known.
    helps: Option<Helps>,
}

impl ScoredGraph {
    /// A graph without any score, and with nothing in the circuit.
    pub fn new(graph: Graph) -> Self {
        let (places, nodes) = (graph.n_src() * graph.n_dst(), graph.n_src() + 1);
        ScoredGraph {
            graph,
            scores: vec![f64::NAN; places],
            in_graph: vec![false; places],
            node_scores: vec![f64::NAN; nodes],
            nodes_in_graph: vec![false; nodes],
            helps: None,
        }
    }

    /// These scores of edges.
    /// # Shapes
    /// `[n_src, n_dst]`, row by row; NaN is no score, as is whatever stands where no edge is.
    pub fn of_matrix(graph: Graph, scores: Vec<f64>) -> Self {
        ScoredGraph {
            scores,
            ..ScoredGraph::new(graph)
        }
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Which scores are those of parts that help. Files of other tools do not say; theirs are positive, as of a loss.
    pub fn helps(&self) -> Option<Helps> {
        self.helps
    }

    /// Says which scores are those of parts that help.
    pub fn with_helps(mut self, helps: Helps) -> Self {
        self.helps = Some(helps);
        self
    }

    /// The score of an edge, if it has one.
    /// # Errors
    /// Those of [`Graph::place`].
    pub fn score(&self, edge: &Edge) -> Result<Option<f64>> {
        let score = self.scores[self.place(edge)?];
        Ok((!score.is_nan()).then_some(score))
    }

    /// # Errors
    /// Those of [`Graph::place`].
    pub fn set_score(&mut self, edge: &Edge, score: f64) -> Result<()> {
        let place = self.place(edge)?;
        self.scores[place] = score;
        Ok(())
    }

    /// Whether an edge is in the circuit.
    /// # Errors
    /// Those of [`Graph::place`].
    pub fn contains(&self, edge: &Edge) -> Result<bool> {
        Ok(self.in_graph[self.place(edge)?])
    }

    /// Takes an edge into the circuit, or out of it. Its nodes are left as they are.
    /// # Errors
    /// Those of [`Graph::place`].
    pub fn set_contains(&mut self, edge: &Edge, is_in: bool) -> Result<()> {
        let place = self.place(edge)?;
        self.in_graph[place] = is_in;
        Ok(())
    }

    /// The score of a node, if it has one.
    /// # Errors
    /// [`crate::Error::UnknownNode`]
    pub fn node_score(&self, node: Node) -> Result<Option<f64>> {
        let score = self.node_scores[self.node_place(node)?];
        Ok((!score.is_nan()).then_some(score))
    }

    /// # Errors
    /// [`crate::Error::UnknownNode`]
    pub fn set_node_score(&mut self, node: Node, score: f64) -> Result<()> {
        let place = self.node_place(node)?;
        self.node_scores[place] = score;
        Ok(())
    }

    /// Whether a node is in the circuit.
    /// # Errors
    /// [`crate::Error::UnknownNode`]
    pub fn contains_node(&self, node: Node) -> Result<bool> {
        Ok(self.nodes_in_graph[self.node_place(node)?])
    }

    /// Takes a node into the circuit, or out of it.
    /// # Errors
    /// [`crate::Error::UnknownNode`]
    pub fn set_contains_node(&mut self, node: Node, is_in: bool) -> Result<()> {
        let place = self.node_place(node)?;
        self.nodes_in_graph[place] = is_in;
        Ok(())
    }

    /// The scores of edges, NaN where there is none.
    /// # Shapes
    /// `[n_src, n_dst]`, row by row.
    pub fn matrix(&self) -> &[f64] {
        &self.scores
    }

    /// Every edge with its score and whether it is in the circuit, in the order of [`Graph::edges`].
    pub fn edges(&self) -> impl Iterator<Item = (Edge, Option<f64>, bool)> + '_ {
        let columns = self.graph.n_dst();
        (0..self.scores.len()).filter_map(move |place| {
            let edge = self.graph.edge(place / columns, place % columns)?;
            let score = self.scores[place];
            Some((
                edge,
                (!score.is_nan()).then_some(score),
                self.in_graph[place],
            ))
        })
    }

    fn place(&self, edge: &Edge) -> Result<usize> {
        let (row, column) = self.graph.place(edge)?;
        Ok(row * self.graph.n_dst() + column)
    }

    fn node_place(&self, node: Node) -> Result<usize> {
        match node {
            Node::Logits => Ok(self.graph.n_src()),
            _ => self.graph.row(node),
        }
    }
}

impl PartialEq for ScoredGraph {
    /// No score equals no score.
    fn eq(&self, other: &Self) -> bool {
        let bits = |scores: &[f64]| -> Vec<Option<u64>> {
            let bits = |score: &f64| (!score.is_nan()).then_some(score.to_bits());
            scores.iter().map(bits).collect()
        };
        self.graph == other.graph
            && bits(&self.scores) == bits(&other.scores)
            && self.in_graph == other.in_graph
            && bits(&self.node_scores) == bits(&other.node_scores)
            && self.nodes_in_graph == other.nodes_in_graph
            && self.helps == other.helps
    }
}
