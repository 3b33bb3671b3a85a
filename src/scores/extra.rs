//! Columns that some methods fill after their table is made.

use polars::prelude::{Column as Filled, IntoColumn, NewChunkedArray, StringChunked};

use super::{Column, Detail, ExampleScores, Scores};
use crate::error::Result;

/// Which cell each row of a table is, and whose it is where rows are not aggregated.
pub(crate) fn rows(
    n_cells: usize,
    examples: &[ExampleScores],
    detail: Detail,
) -> Vec<(u32, Option<usize>)> {
    match detail {
        Detail::PerExample => (examples.iter().enumerate())
            .flat_map(|(index, example)| example.cells.iter().map(move |&cell| (cell, Some(index))))
            .collect(),
        Detail::Mean => {
            let mut any = vec![false; n_cells];
            for example in examples {
                example
                    .cells
                    .iter()
                    .for_each(|&cell| any[cell as usize] = true);
            }
            let cells = (0..n_cells as u32).filter(|&cell| any[cell as usize]);
            cells.map(|cell| (cell, None)).collect()
        }
    }
}

impl Scores {
    /// Fills a column of numbers, one for each row.
    /// # Errors
    /// [`crate::Error::Polars`] if there are not as many as rows.
    pub(crate) fn set_floats(&mut self, column: Column, values: &[Option<f64>]) -> Result<()> {
        self.table
            .with_column(Filled::new(column.name().into(), values))?;
        Ok(())
    }

    /// Fills a column of text, one for each row.
    /// # Errors
    /// Those of [`Scores::set_floats`].
    pub(crate) fn set_texts(&mut self, column: Column, values: &[Option<&str>]) -> Result<()> {
        let texts = StringChunked::from_iter_options(column.name().into(), values.iter().copied());
        self.table.with_column(texts.into_column())?;
        Ok(())
    }
}
