//! The one long table: what every method returns, and what a file of results holds.
//!
//! A row is one cell (a site or an edge), aggregated over examples or for one example. [`Cell`] and [`ExampleScores`] are what
//! an engine measures; [`Scores::assemble`] makes the table, with one sign everywhere: `score` is the metric with the change
//! minus the metric without. [`Provenance`] travels in the parquet footer. A column that applies to no row is absent.
//! Left out on purpose: any drawing (`crate::plot` does that).

mod assemble;
mod cell;
mod extra;
mod file;
mod interval;
mod parquet;
pub mod parts;
mod provenance;
mod text;

use polars::prelude::DataFrame;

pub use crate::text::{visible, width as visible_width};
pub use cell::{Cell, Detail, Direction, ExampleScores, ScoresMeta};
pub(crate) use extra::rows;
pub use file::{check_writable, write_whole};
pub use parts::PartStore;
pub use provenance::{Baseline, FOOTER_KEY, PromptTokens, Provenance};

/// A table of scores and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Columns, where they apply: `method, metric, direction, component, layer, head, pos, key, token, role, neuron, src,
    /// dst, target, class, example, value, score, normalised, base, ci_low, ci_high, contribution, exact, checked`.
    pub table: DataFrame,
    pub provenance: Provenance,
}

impl Scores {
    /// What a reader should know before believing the numbers.
    pub fn warnings(&self) -> &[String] {
        &self.provenance.warnings
    }

    /// The strongest rows, by magnitude of `score`; of equals, the earlier first. Where a table measures several things, which
    /// no one order compares, rows of its own metric come first.
    pub fn top(&self, n: usize) -> Scores {
        let scores = self.floats("score").unwrap_or_default();
        let metrics = self.texts("metric").unwrap_or_default();
        let own = Some(self.provenance.metric.as_str());
        let strength = |row: &u32| {
            let row = *row as usize;
            match scores.get(row).copied().flatten() {
                Some(score) if metrics.get(row).copied().flatten() == own => score.abs(),
                _ => -1.0,
            }
        };
        let mut rows: Vec<u32> = (0..self.table.height() as u32).collect();
        rows.sort_by(|a, b| strength(b).total_cmp(&strength(a)));
        rows.truncate(n);
        let rows = polars::prelude::IdxCa::from_vec("row".into(), rows);
        let table = self
            .table
            .take(&rows)
            .expect("the rows were counted from this table");
        Scores {
            table,
            provenance: self.provenance.clone(),
        }
    }

    /// The floats of a column, if it is there.
    pub fn floats(&self, column: &str) -> Option<Vec<Option<f64>>> {
        Some(self.table.column(column).ok()?.f64().ok()?.iter().collect())
    }

    /// The whole numbers of a column (`layer`, `head`, `pos`, ...), if it is there.
    pub fn integers(&self, column: &str) -> Option<Vec<Option<i64>>> {
        let column = self.table.column(column).ok()?;
        match column.i32() {
            Ok(values) => Some(values.iter().map(|v| v.map(i64::from)).collect()),
            Err(_) => Some(
                column
                    .u32()
                    .ok()?
                    .iter()
                    .map(|v| v.map(i64::from))
                    .collect(),
            ),
        }
    }

    /// The texts of a column, if it is there.
    pub fn texts(&self, column: &str) -> Option<Vec<Option<&str>>> {
        Some(self.table.column(column).ok()?.str().ok()?.iter().collect())
    }
}
