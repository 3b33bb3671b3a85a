//! Scores of edges or nodes from what any method measured.

use crate::circuit::{Graph, PairScores, Piece, PieceScores, ScoredGraph};
use crate::error::{Error, Result};
use crate::hooks::{Kind, Node, Pos};
use crate::scores::{Cell, Direction, Measured};
use crate::task::Task;

/// What has a score of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Edges,
    Nodes,
    /// A node at each position or role.
    Positions,
    /// Each dimension of what a node writes.
    Dims,
}

/// What a method says of a model's parts.
pub(super) enum Scored {
    /// Pair by pair.
    Edges(PairScores),
    /// The means.
    Nodes(ScoredGraph),
    /// The means of nodes in pieces.
    Pieces(PieceScores),
}

/// The scores of every edge or node.
/// # Errors
/// [`Error::Invalid`] for what is neither; nodes and edges of another model.
pub(super) fn scored(
    measured: &Measured,
    direction: Direction,
    task: &Task,
    graph: Graph,
) -> Result<Scored> {
    if measured.cells.iter().any(|cell| cell.component == "edge") {
        let scores = PairScores::measured(measured, direction, task, graph)?;
        return Ok(Scored::Edges(scores));
    }
    if measured.cells.iter().all(|cell| piece_of(cell).is_some()) {
        let scores = measured.cells.iter().zip(measured.means(direction, false));
        let scores = scores.filter_map(|(cell, score)| {
            let (node, piece) = piece_of(cell)?;
            Some((node, piece, score))
        });
        return Ok(Scored::Pieces(PieceScores::new(graph, scores.collect())?));
    }
    let mut scored = ScoredGraph::new(graph);
    for (cell, score) in measured.cells.iter().zip(measured.means(direction, false)) {
        let Some(node) = node_of(cell) else {
            return Err(Error::invalid(format!(
                "a circuit is made of edges, heads and MLPs, and `{cell}` is none of them; take an edge method such as `eap-ig`, or \
                 a node method with the sites `z,mlp_out`"
            )));
        };
        scored.set_node_score(node, score)?;
    }
    Ok(Scored::Nodes(scored))
}

/// The node that a cell is about, wherever it is changed.
fn node_of(cell: &Cell) -> Option<Node> {
    let is_whole = cell.pos.is_none() && cell.role.is_none() && cell.neuron.is_none();
    writer_of(cell).filter(|_| is_whole)
}

/// The node that writes what a cell is about.
fn writer_of(cell: &Cell) -> Option<Node> {
    let is = |kind: Kind| cell.component == kind.name();
    let layer = cell.layer? as usize;
    match cell.head {
        Some(head) if is(Kind::Z) => Some(Node::Head {
            layer,
            head: head as usize,
        }),
        None if is(Kind::MlpOut) => Some(Node::Mlp(layer)),
        _ => None,
    }
}

/// The piece of a node that a cell is about.
fn piece_of(cell: &Cell) -> Option<(Node, Piece)> {
    if let (Some(src), Some(dim)) = (&cell.src, cell.neuron) {
        return Some((src.parse().ok()?, Piece::Dim(dim as usize)));
    }
    let pos = match (&cell.role, cell.pos) {
        (Some(role), None) => Pos::Role(role.clone()),
        (None, Some(pos)) if pos < 0 => Pos::FromEnd(pos.unsigned_abs() as usize),
        (None, Some(pos)) => Pos::Index(pos as usize),
        _ => return None,
    };
    let node = writer_of(cell).filter(|_| cell.template.is_none())?;
    Some((node, Piece::At(pos)))
}
