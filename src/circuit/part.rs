//! `Part`: at which positions, and in which dimensions of the stream, what a node writes is in a circuit.

use std::collections::{BTreeMap, BTreeSet};

use super::select::rank;
use super::{Circuit, EdgeSet, Graph, NodeNote, Pruning, Ranking, Selected};
use crate::error::{Error, Result};
use crate::hooks::{Node, Pos, Positions};
use crate::text::shortened;

/// What of a node's write is in a circuit; the rest is at the reference, whoever reads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Part {
    pub positions: Positions,
    /// Dimensions of the stream, ascending; `None`: all. (What MIB calls neurons of a node.)
    pub dims: Option<Vec<usize>>,
}

/// The nodes of a circuit that are not whole in it.
pub type Parts = BTreeMap<Node, Part>;

impl Circuit {
    /// Which of the nodes that write in it are in it in part, as its notes say.
    /// # Errors
    /// [`Error::Invalid`] naming the node, for what is no position or role and for dimensions that the stream does not have.
    pub fn parts(&self) -> Result<Parts> {
        let mut parts = Parts::new();
        let writes: BTreeSet<Node> = self.edges.edges().map(|edge| edge.src).collect();
        let noted = self.nodes.iter().filter(|(node, _)| writes.contains(node));
        for (&node, note) in noted {
            let part = Part::of(note, node, self.graph())?;
            if part != Part::default() {
                parts.insert(node, part);
            }
        }
        Ok(parts)
    }

    /// Takes its nodes whole, whatever its notes say.
    pub fn in_whole_nodes(&mut self) {
        for note in self.nodes.values_mut() {
            note.positions.clear();
            note.dims.clear();
        }
    }

    /// How many edges it has, each counted by the share of its source's dimensions that are in the circuit.
    /// # Errors
    /// Those of [`Circuit::parts`].
    pub fn weighted_edges(&self) -> Result<f64> {
        let parts = self.parts()?;
        let weight = |node: Node| {
            let dims = parts.get(&node).and_then(|part| part.dims.as_ref());
            dims.map_or(1.0, |dims| dims.len() as f64 / self.graph().d_model as f64)
        };
        Ok(self.edges.edges().map(|edge| weight(edge.src)).sum())
    }
}

impl Part {
    fn of(note: &NodeNote, node: Node, graph: &Graph) -> Result<Self> {
        let bad = |what: String| Err(Error::invalid(format!("`{node}` of the circuit: {what}")));
        let mut positions = Vec::with_capacity(note.positions.len());
        for text in &note.positions {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
            let pos = match is_number || text.starts_with('@') {
                true => text.parse::<Pos>(),
                false => format!("@{text}").parse::<Pos>(),
            };
            match pos {
                Ok(pos) => positions.push(pos),
                Err(_) => {
                    return bad(format!(
                        "`{}` is no position; write a role such as `END`, or a number such as `-1`",
                        shortened(text)
                    ));
                }
            }
        }
        let mut dims = note.dims.clone();
        dims.sort_unstable();
        dims.dedup();
        if let Some(last) = dims.last().filter(|&&dim| dim >= graph.d_model) {
            return bad(format!(
                "its stream has no dimension {last}; they are 0 to {}",
                graph.d_model - 1
            ));
        }
        Ok(Part {
            positions: match positions.is_empty() {
                true => Positions::All,
                false => Positions::These(positions),
            },
            dims: (!dims.is_empty()).then_some(dims),
        })
    }
}

/// A piece of a node that has a score of its own.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Piece {
    /// What it writes at a position, or at the positions of a role.
    At(Pos),
    /// One dimension of what it writes.
    Dim(usize),
}

/// Scores of pieces of nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct PieceScores {
    graph: Graph,
    scores: Vec<(Node, Piece, f64)>,
}

impl PieceScores {
    /// # Errors
    /// Nodes that the model does not have or that write nothing, scores that are no numbers, dimensions past the stream's.
    pub fn new(graph: Graph, scores: Vec<(Node, Piece, f64)>) -> Result<Self> {
        for (node, piece, score) in &scores {
            graph.row(*node)?;
            if score.is_nan() {
                return Err(Error::invalid(format!("a score of `{node}` is no number")));
            }
            if matches!(piece, Piece::Dim(dim) if *dim >= graph.d_model) {
                return Err(Error::invalid(format!(
                    "`{node}` has a score of a dimension that the stream does not have"
                )));
            }
        }
        Ok(PieceScores { graph, scores })
    }

    pub fn len(&self) -> usize {
        self.scores.len()
    }

    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }

    /// The sum of each node's scores.
    pub fn of_nodes(&self) -> BTreeMap<Node, f64> {
        let mut sums = BTreeMap::new();
        for (node, _, score) in &self.scores {
            *sums.entry(*node).or_default() += score;
        }
        sums
    }

    /// The best `n` pieces, or with a threshold all that rank there or above, and every edge between the nodes that have one of
    /// them; nodes without scores are whole. Of equal scores the piece that was named first comes first.
    /// # Errors
    /// [`Error::Invalid`] where nothing has a score.
    pub fn select(
        &self,
        n: usize,
        threshold: Option<f64>,
        ranking: Ranking,
        pruning: Pruning,
    ) -> Result<(Selected, Parts)> {
        if self.is_empty() {
            return Err(Error::invalid(
                "no part of a node has a score to choose it by",
            ));
        }
        let mut ranked: Vec<(f64, usize)> = (self.scores.iter().enumerate())
            .map(|(i, (.., score))| (rank(*score, ranking) + 0.0, i))
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let enough = ranked
            .iter()
            .take(n)
            .take_while(|(rank, _)| threshold.is_none_or(|least| *rank >= least));
        let mut kept: Vec<usize> = enough.map(|(_, i)| *i).collect();
        kept.sort_unstable();
        let mut parts = Parts::new();
        for i in kept {
            let (node, piece, _) = &self.scores[i];
            let part = parts.entry(*node).or_default();
            match piece {
                Piece::Dim(dim) => part.dims.get_or_insert_default().push(*dim),
                Piece::At(pos) => match &mut part.positions {
                    Positions::These(list) => list.push(pos.clone()),
                    all => *all = Positions::These(vec![pos.clone()]),
                },
            }
        }
        parts.values_mut().for_each(|part| {
            if let Some(dims) = &mut part.dims {
                dims.sort_unstable();
            }
        });
        let scored: BTreeSet<Node> = self.scores.iter().map(|(node, ..)| *node).collect();
        let whole = (0..self.graph.n_src()).filter_map(|row| self.graph.source(row));
        let whole = whole.filter(|node| !scored.contains(node));
        let nodes: Vec<Node> = parts.keys().copied().chain(whole).collect();
        // `between` takes input and logits in; an input of which nothing was chosen writes nothing.
        let mut edges = EdgeSet::between(self.graph, &nodes)?;
        if scored.contains(&Node::Input) && !parts.contains_key(&Node::Input) {
            for column in 0..self.graph.n_dst() {
                edges.remove(self.graph.row(Node::Input)?, column);
            }
        }
        let chosen = edges.len();
        let edges = edges.pruned(pruning);
        let left = edges.nodes();
        parts.retain(|node, _| left.contains(node));
        let selected = Selected {
            requested: threshold.is_none().then_some(n),
            chosen,
            edges,
        };
        Ok((selected, parts))
    }
}

impl Circuit {
    /// Notes which of its nodes are in it in part.
    pub fn in_parts(mut self, parts: &Parts) -> Self {
        for (&node, part) in parts {
            let note = self.nodes.entry(node).or_default();
            note.positions = match &part.positions {
                Positions::All => Vec::new(),
                Positions::These(list) => list
                    .iter()
                    .map(|pos| match pos {
                        Pos::Role(role) => role.clone(),
                        pos => pos.to_string(),
                    })
                    .collect(),
            };
            note.dims = part.dims.clone().unwrap_or_default();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(text: &str) -> Node {
        text.parse().expect(text)
    }

    #[test]
    fn the_best_pieces_make_parts_and_the_edges_between_their_nodes() {
        let graph = Graph::tiny(2, 2);
        let scores = vec![
            (node("a0.h1"), Piece::Dim(3), -2.0),
            (node("a0.h1"), Piece::Dim(1), 1.0),
            (node("m1"), Piece::Dim(0), 0.5),
            (node("m0"), Piece::Dim(0), 0.0),
        ];
        let scores = PieceScores::new(graph, scores).expect("its nodes");
        let select = |n, threshold| {
            let found = scores.select(n, threshold, Ranking::Absolute, Pruning::Fixpoint);
            found.expect("a selection")
        };
        let (selected, parts) = select(3, None);
        assert_eq!(parts[&node("a0.h1")].dims, Some(vec![1, 3]));
        assert_eq!(parts[&node("m1")].dims, Some(vec![0]));
        assert_eq!(parts.len(), 2);
        // Nodes without a score are whole: input, and the heads that no method scored.
        assert!(selected.edges.nodes().contains(&node("a1.h0")));
        assert!(!selected.edges.nodes().contains(&node("m0")));
        let (_, parts) = select(usize::MAX, Some(0.6));
        assert_eq!(parts.len(), 1);
        assert_eq!(scores.of_nodes()[&node("a0.h1")], -1.0);
    }

    #[test]
    fn parts_stand_in_the_notes_and_come_back_from_them() {
        let graph = Graph::tiny(2, 2);
        let parts = Parts::from([
            (
                node("a0.h1"),
                Part {
                    positions: Positions::These(vec![Pos::Role("S1+1".into()), Pos::FromEnd(2)]),
                    dims: None,
                },
            ),
            (
                node("m1"),
                Part {
                    positions: Positions::All,
                    dims: Some(vec![0, 7]),
                },
            ),
        ]);
        let circuit = Circuit::new(EdgeSet::full(graph)).in_parts(&parts);
        let read = Circuit::from_toml(&circuit.to_toml().expect("text")).expect("a circuit");
        assert_eq!(read.parts().expect("its parts"), parts);
        let of_m1 = 1.0 - 2.0 / 8.0;
        let out = read
            .edges
            .edges()
            .filter(|edge| edge.src == node("m1"))
            .count();
        let weighted = read.weighted_edges().expect("its parts");
        assert!((weighted - (graph.n_edges() as f64 - of_m1 * out as f64)).abs() < 1e-9);
    }

    #[test]
    fn notes_that_name_no_part_are_refused() {
        let graph = Graph::tiny(2, 2);
        let refused = |note: NodeNote| {
            let mut circuit = Circuit::new(EdgeSet::full(graph));
            circuit.nodes.insert(node("m1"), note);
            circuit.parts().expect_err("no part").to_string()
        };
        let dims = refused(NodeNote {
            dims: vec![8],
            ..NodeNote::default()
        });
        assert!(dims.contains("`m1`") && dims.contains("0 to 7"), "{dims}");
        let positions = refused(NodeNote {
            positions: vec!["a b".into()],
            ..NodeNote::default()
        });
        assert!(positions.contains("`a b` is no position"), "{positions}");
    }
}
