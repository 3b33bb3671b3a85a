//! The one long table: what every method returns, and what a file of results holds.
//!
//! A row is one cell (a site or an edge), aggregated over examples or for one example. [`Cell`] and [`ExampleScores`] are what
//! an engine measures; [`Scores::assemble`] makes the table, with one sign everywhere: `score` is the metric with the change
//! minus the metric without. [`Provenance`] travels in the parquet footer. Every table has the columns of [`Column::ALL`], null
//! where they do not apply, and one row for a site and an example: quantities beside the table's own metric are tables of their
//! own ([`Scores::sides`]).
//! Left out on purpose: any drawing (`crate::plot` does that).

mod agreement;
mod assemble;
mod cell;
mod column;
mod compare;
mod condition;
mod extra;
mod file;
pub(crate) mod interval;
pub mod leftover;
mod lock;
mod measured;
mod order;
mod output;
mod parquet;
pub mod parts;
mod provenance;
#[cfg(feature = "lazy")]
mod query;
mod report;
mod rows;
pub mod statistics;
mod summary;
mod text;
mod view;

use polars::prelude::DataFrame;

use crate::error::Result;
pub use crate::text::{visible, width as visible_width};

pub use agreement::Agreement;
pub use cell::{Cell, Detail, Direction, ExampleScores, ScoresMeta};
pub use column::{Column, ColumnType};
pub use compare::{Compared, ComparedBy, compare};
pub use condition::Conditions;
pub(crate) use extra::rows;
pub use file::{check_writable, write_whole};
pub use lock::{Lock, Owner};
pub use measured::Measured;
pub use order::SortKeys;
pub use output::{OutFormat, check_out, is_same_command, provenance_path, side_path, write_out};
pub(crate) use parquet::ACTIVATIONS_KEY;
pub use parts::{PartStore, Shard};
pub use provenance::{Baseline, FOOTER_KEY, PromptTokens, Provenance};
#[cfg(feature = "lazy")]
pub use query::Query;
pub use report::{Estimate, Share, TaskReport};
pub use summary::{RunSummary, memory_of_runs, summary_table, write_summary};

/// The kind of the side table that holds what a method measures beside its own metric: several quantities, told apart by the
/// column `metric`.
pub const MEASURES: &str = "measures";
pub use view::{Bars, LayerColumn, Layers, Lists, View};

/// A table of scores and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The columns of [`Column::ALL`].
    pub table: DataFrame,
    pub provenance: Provenance,
    /// Tables of other quantities, by their kind: files `NAME.KIND.parquet` beside `NAME.parquet`.
    pub sides: Vec<(String, Scores)>,
}

impl Scores {
    /// What a reader should know before believing the numbers.
    pub fn warnings(&self) -> &[String] {
        &self.provenance.warnings
    }

    /// Notes the arguments that made the table, program first, and the folder that it was made in.
    pub fn made_by(&mut self, command: &[String], folder: &str) {
        let sides = self.sides.iter_mut().map(|(_, side)| &mut side.provenance);
        for about in std::iter::once(&mut self.provenance).chain(sides) {
            about.command = command.to_vec();
            about.folder = folder.to_string();
        }
    }

    /// Rows of the table and of those beside it.
    pub fn n_rows(&self) -> usize {
        let sides = self.sides.iter().map(|(_, side)| side.table.height());
        self.table.height() + sides.sum::<usize>()
    }

    /// The side table of a kind.
    pub fn side(&self, kind: &str) -> Option<&Scores> {
        let found = self.sides.iter().find(|(name, _)| name == kind);
        found.map(|(_, scores)| scores)
    }

    /// This table with the rows of its side tables after its own.
    /// # Errors
    /// [`crate::Error::Polars`] if a table was given other columns.
    pub fn with_sides(&self) -> Result<Scores> {
        let mut table = self.table.clone();
        for (_, side) in &self.sides {
            table.vstack_mut(&side.table)?;
        }
        Ok(Scores {
            table,
            provenance: self.provenance.clone(),
            sides: Vec::new(),
        })
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
            sides: Vec::new(),
        }
    }

    /// A column by its name. A frame's own index of names is not asked: in a notebook it holds only in the cell that made it.
    pub(crate) fn column(&self, name: &str) -> Option<&polars::prelude::Column> {
        let mut columns = self.table.columns().iter();
        columns.find(|column| column.name() == name)
    }

    /// A column, if it applies to any row.
    fn applying(&self, column: &str) -> Option<&polars::prelude::Column> {
        let column = self.column(column)?;
        (column.null_count() < column.len()).then_some(column)
    }

    /// The floats of a column; `None` if it applies to no row.
    pub fn floats(&self, column: &str) -> Option<Vec<Option<f64>>> {
        Some(self.applying(column)?.f64().ok()?.iter().collect())
    }

    /// The whole numbers of a column (`layer`, `head`, `pos`, ...); `None` if it applies to no row.
    pub fn integers(&self, column: &str) -> Option<Vec<Option<i64>>> {
        let values = self.applying(column)?.i32().ok()?;
        Some(values.iter().map(|value| value.map(i64::from)).collect())
    }

    /// The texts of a column; `None` if it applies to no row.
    pub fn texts(&self, column: &str) -> Option<Vec<Option<&str>>> {
        Some(self.applying(column)?.str().ok()?.iter().collect())
    }
}
