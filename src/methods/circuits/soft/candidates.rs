//! The edges that have masks.

use std::collections::HashMap;

use crate::circuit::{EdgeSet, Graph};
use crate::hooks::Letter;

/// What a reader sees: the row of each source, and which mask stands on it.
pub(super) type Seen = [(usize, usize)];

/// The edges that have masks: for each reader its sources, and the mask of each.
pub(in super::super) struct Candidates {
    pub(super) graph: Graph,
    /// By column: the row of a source and its mask. The mask past the last is always 1.
    columns: Vec<Vec<(usize, usize)>>,
    pub n_masks: usize,
    /// By row, whether a candidate edge leaves it.
    pub(super) is_source: Vec<bool>,
}

impl Candidates {
    /// A mask for each edge, in the order of the set.
    pub fn edges(edges: &EdgeSet) -> Self {
        let places = edges.places().enumerate();
        Candidates::of(
            edges,
            places.map(|(mask, (row, column))| (row, column, mask)),
        )
    }

    /// A mask for each node that writes, in the order of the graph, on all its edges; `input` has none and always writes.
    pub fn nodes(edges: &EdgeSet) -> Self {
        let mut rows: Vec<usize> = edges.places().map(|(row, _)| row).collect();
        rows.dedup();
        rows.retain(|&row| row != 0);
        let mask = |row: usize| rows.binary_search(&row).unwrap_or(rows.len());
        let places = edges.places();
        let mut candidates =
            Candidates::of(edges, places.map(|(row, column)| (row, column, mask(row))));
        candidates.n_masks = rows.len();
        candidates
    }

    fn of(edges: &EdgeSet, masks: impl Iterator<Item = (usize, usize, usize)>) -> Self {
        let graph = *edges.graph();
        let mut candidates = Candidates {
            graph,
            columns: vec![Vec::new(); graph.n_dst()],
            n_masks: edges.len(),
            is_source: vec![false; graph.n_src()],
        };
        for (row, column, mask) in masks {
            candidates.columns[column].push((row, mask));
            candidates.is_source[row] = true;
        }
        candidates
    }

    /// What the MLP of a layer sees.
    pub(super) fn mlp(&self, layer: usize) -> &Seen {
        &self.columns[self.graph.mlp_column(layer)]
    }

    pub(super) fn logits(&self) -> &Seen {
        &self.columns[self.graph.n_dst() - 1]
    }

    /// The lists of sources that some readers of a layer see, each once, and for each reader which of them.
    pub(super) fn lists(&self, layer: usize, letters: &[Letter]) -> (Vec<&Seen>, Vec<usize>) {
        let (mut lists, mut known) = (Vec::new(), HashMap::new());
        let readers = letters.iter().flat_map(|&letter| {
            (0..self.graph.n_heads).map(move |head| self.graph.head_column(layer, letter, head))
        });
        let which = readers.map(|column| {
            let list = &self.columns[column][..];
            *known.entry(list).or_insert_with(|| {
                lists.push(list);
                lists.len() - 1
            })
        });
        let which = which.collect();
        (lists, which)
    }
}
