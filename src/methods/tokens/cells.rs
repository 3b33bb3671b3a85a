//! The rows of a table of tokens: each token, and what is of no token.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch::{Batch, Shares};
use super::config::Prompts;
use super::relevance::{self, BIAS};
use crate::error::{Error, Result};
use crate::methods::method::{Subject, unmeasured};
use crate::methods::sites::Extent;
use crate::scores::{Cell, ExampleScores};

/// What stands between the final stream and the metric.
const OF_END: [&str; 2] = [BIAS, relevance::METRIC];
pub(super) const EMBED: &str = "hook_embed";
const POS_EMBED: &str = "hook_pos_embed";

/// Every row that a method can give: tokens by position, position embeddings, then components. Those that it does not give are
/// dropped at the end.
pub(super) struct Cells {
    pub all: Vec<Cell>,
    places: HashMap<Cell, u32>,
    extent: Extent,
}

impl Cells {
    pub fn new(on: Subject<'_>) -> Self {
        let Subject { model, task } = on;
        let extent = Extent::new(task, &Default::default(), &Default::default());
        let mut all = extent.positions(EMBED);
        if model.weights.w_pos.is_some() {
            all.extend(extent.positions(POS_EMBED));
        }
        for layer in 0..model.spec.n_layers {
            let of_layer = ["attn.hook_pattern", "hook_mlp_out", BIAS];
            all.extend(of_layer.map(|name| component(name, Some(layer))));
        }
        all.extend(OF_END.map(|name| component(name, None)));
        let places = all.iter().cloned().zip(0..).collect();
        Cells {
            all,
            places,
            extent,
        }
    }

    fn place(&self, cell: &Cell) -> Result<u32> {
        self.places
            .get(cell)
            .copied()
            .ok_or_else(|| Error::NothingMeasured {
                cell: cell.to_string(),
            })
    }

    pub fn example(
        &self,
        batch: &Batch<'_>,
        i: usize,
        item: usize,
        shares: &Shares,
    ) -> Result<ExampleScores> {
        let pair = batch.pairs[i];
        let mut rows: Vec<(u32, f64)> = Vec::new();
        for (name, of_positions) in [(EMBED, &shares.tokens), (POS_EMBED, &shares.positions)] {
            for (pos, &share) in of_positions.iter().enumerate() {
                let cell = Cell {
                    component: name.into(),
                    pos: Some(pos as i32),
                    template: self.extent.label(pair),
                    ..Cell::default()
                };
                rows.push((self.place(&cell)?, share));
            }
        }
        for &(name, layer, share) in &shares.parts {
            rows.push((self.place(&component(name, layer))?, share));
        }
        rows.sort_by_key(|row| row.0);
        let (own, other) = (batch.values[i], batch.other_values[i]);
        let (clean, corrupted) = match batch.config.prompts {
            Prompts::Clean => (own, other),
            Prompts::Corrupted => (other, own),
        };
        Ok(ExampleScores {
            tokens: batch.task.texts(&batch.prompts[i]),
            cells: rows.iter().map(|row| row.0).collect::<Arc<[u32]>>(),
            values: rows.iter().map(|row| row.1).collect(),
            ..unmeasured(batch.task, item, clean, corrupted)
        })
    }
}

fn component(name: &str, layer: Option<usize>) -> Cell {
    Cell {
        component: name.into(),
        layer: layer.map(|layer| layer as u32),
        ..Cell::default()
    }
}
