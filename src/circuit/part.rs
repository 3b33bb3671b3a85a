//! `Part`: at which positions, and in which dimensions of the stream, what a node writes is in a circuit.

use std::collections::BTreeMap;

use super::{Circuit, Graph, NodeNote};
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
    /// Which of its nodes are in it in part, as its notes say.
    /// # Errors
    /// [`Error::Invalid`] naming the node, for what is no position or role and for dimensions that the stream does not have.
    pub fn parts(&self) -> Result<Parts> {
        let mut parts = Parts::new();
        for (&node, note) in &self.nodes {
            let part = Part::of(note, node, self.graph())?;
            if part != Part::default() {
                parts.insert(node, part);
            }
        }
        Ok(parts)
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
            let is_number = text.parse::<i64>().is_ok();
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
