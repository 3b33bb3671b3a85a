//! Sources that are in a circuit in part: at some positions, in some dimensions of the stream.

use std::collections::{BTreeMap, BTreeSet};

use super::streams::At;
use crate::circuit::{Graph, Part, Parts};
use crate::error::Result;
use crate::methods::sites::{OTHER, roles_with_other};
use crate::run::rows::Rows;
use crate::task::{Pair, Task};

/// What of each source's write the circuit has, for the rows of a batch; sources without an entry are whole in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Limits(BTreeMap<usize, Limit>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Limit {
    /// By row of the batch.
    rows: Vec<bool>,
    dims: Option<Vec<bool>>,
}

/// The positions of a pair at which a node is in a circuit; none at a role that only other pairs have (`of_others`).
/// # Errors
/// Positions that its prompts do not have, and roles that no pair has.
pub(super) fn positions(
    part: &Part,
    pair: &Pair,
    of_others: &BTreeSet<&String>,
) -> Result<Vec<usize>> {
    let length = pair.clean.len();
    let mut roles = roles_with_other(&pair.roles, length);
    roles.entry(OTHER.into()).or_default();
    for &role in of_others {
        roles.entry(role.clone()).or_default();
    }
    part.positions.resolve(length, &roles)
}

/// The roles that any of some pairs has.
pub(super) fn roles_of<'p>(pairs: impl IntoIterator<Item = &'p Pair>) -> BTreeSet<&'p String> {
    let roles = pairs.into_iter().flat_map(|pair| pair.roles.keys());
    roles.collect()
}

impl Limits {
    /// # Errors
    /// Positions and roles that a prompt does not have, nodes that the model does not have.
    pub fn new(
        parts: &Parts,
        graph: &Graph,
        rows: &Rows,
        (task, pairs): (&Task, &[&Pair]),
    ) -> Result<Self> {
        if parts.is_empty() {
            return Ok(Limits::default());
        }
        let roles = roles_of(task.pairs());
        let mut limits = BTreeMap::new();
        for (&node, part) in parts {
            let mut at_rows = Vec::with_capacity(rows.total);
            for segment in &rows.segments {
                let pair = pairs[segment.example];
                let kept = positions(part, pair, &roles)?;
                let is_kept = |pos: &u32| kept.binary_search(&(*pos as usize)).is_ok();
                at_rows.extend(segment.positions.iter().map(is_kept));
            }
            let dims = part.dims.as_ref().map(|dims| {
                let mut kept = vec![false; graph.d_model];
                dims.iter().for_each(|&dim| kept[dim] = true);
                kept
            });
            let rows = at_rows;
            limits.insert(graph.row(node)?, Limit { rows, dims });
        }
        Ok(Limits(limits))
    }

    pub fn has(&self, source: usize) -> bool {
        self.0.contains_key(&source)
    }

    /// Leaves of what a source writes otherwise what is in the circuit.
    /// # Shapes
    /// `change [at, d_model]`
    pub fn keep(&self, source: usize, at: At<'_>, change: &mut [f32]) {
        let Some(Limit { rows, dims }) = self.0.get(&source) else {
            return;
        };
        let width = change.len() / at.len().max(1);
        for (i, row) in change.chunks_exact_mut(width.max(1)).enumerate() {
            if !rows[at.row(i)] {
                row.fill(0.0);
            } else if let Some(dims) = dims {
                let dims = row.iter_mut().zip(dims);
                dims.filter(|(_, kept)| !**kept).for_each(|(x, _)| *x = 0.0);
            }
        }
    }
}
