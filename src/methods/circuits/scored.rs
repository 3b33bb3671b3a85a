//! Scores of edges or nodes from what any method measured.

use crate::circuit::{Graph, PairScores, ScoredGraph};
use crate::error::{Error, Result};
use crate::hooks::{Kind, Node};
use crate::scores::{Cell, Direction, Measured};
use crate::task::Task;

/// Whether single edges have scores, or nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Edges,
    Nodes,
}

/// What a method says of a model's parts.
pub(super) enum Scored {
    /// Pair by pair.
    Edges(PairScores),
    /// The means.
    Nodes(ScoredGraph),
}

/// The scores of every edge or node.
/// # Errors
/// [`Error::Invalid`] for what is neither, and for nodes taken apart by position; nodes and edges of another model.
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
    let is = |kind: Kind| cell.component == kind.name();
    let is_whole = cell.pos.is_none() && cell.role.is_none() && cell.neuron.is_none();
    let layer = cell.layer.filter(|_| is_whole)? as usize;
    match cell.head {
        Some(head) if is(Kind::Z) => Some(Node::Head {
            layer,
            head: head as usize,
        }),
        None if is(Kind::MlpOut) => Some(Node::Mlp(layer)),
        _ => None,
    }
}
