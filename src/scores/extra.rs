//! Columns that some methods add to their table after it is made.

use polars::prelude::*;

use super::{Detail, ExampleScores, Scores};
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
    /// Adds a column of numbers, one for each row; those that a row does not have stay empty.
    pub(crate) fn add_floats(&mut self, name: &str, values: &[Option<f64>]) -> Result<()> {
        self.table.with_column(Column::new(name.into(), values))?;
        Ok(())
    }

    /// Adds a column of text.
    pub(crate) fn add_texts(&mut self, name: &str, values: &[Option<&str>]) -> Result<()> {
        let column = StringChunked::from_iter_options(name.into(), values.iter().copied());
        self.table.with_column(column.into_column())?;
        Ok(())
    }

    /// Adds `contribution` to an aggregated table: the mean over examples of the score's size. The mean of signed scores can hide
    /// what helps some examples and hurts others.
    pub(crate) fn add_contribution(
        &mut self,
        n_cells: usize,
        examples: &[ExampleScores],
    ) -> Result<()> {
        let (mut sums, mut counts) = (vec![0.0; n_cells], vec![0usize; n_cells]);
        let direction = self.provenance.direction;
        for example in examples {
            let (base, _) = direction.ends(example.clean, example.corrupted);
            for (&cell, value) in example.cells.iter().zip(&example.values) {
                sums[cell as usize] += (value - base).abs();
                counts[cell as usize] += 1;
            }
        }
        let mean = |cell: usize| sums[cell] / counts[cell] as f64;
        let values: Vec<Option<f64>> = rows(n_cells, examples, Detail::Mean)
            .into_iter()
            .map(|(cell, _)| Some(mean(cell as usize)))
            .collect();
        self.add_floats("contribution", &values)
    }
}
