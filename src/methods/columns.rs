//! Values of a batch, filled in cell by cell in the order of the table: each cell has a value for every example that has it.

use std::sync::Arc;

use super::method::unmeasured;
use crate::metric::Judgement;
use crate::scores::ExampleScores;
use crate::task::Task;

/// What was measured of a batch so far.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// Index of the next cell.
    next: u32,
    /// Of each example its cells and their values.
    examples: Vec<(Vec<u32>, Vec<f64>)>,
}

impl Columns {
    pub fn new(examples: usize) -> Self {
        Columns {
            next: 0,
            examples: vec![Default::default(); examples],
        }
    }

    /// The next cell, which every example has.
    /// # Shapes
    /// `values [example]`.
    pub fn push(&mut self, values: &[f64]) {
        self.push_some(|i| Some(values[i]));
    }

    /// The next cell, for the examples that have it.
    pub fn push_some(&mut self, value: impl Fn(usize) -> Option<f64>) {
        for (i, (cells, values)) in self.examples.iter_mut().enumerate() {
            if let Some(value) = value(i) {
                cells.push(self.next);
                values.push(value);
            }
        }
        self.next += 1;
    }

    /// So many cells that no example of this batch has.
    pub fn skip(&mut self, cells: usize) {
        self.next += cells as u32;
    }

    /// How many cells were filled in or passed over.
    pub fn len(&self) -> usize {
        self.next as usize
    }

    /// What was measured of each example.
    pub fn into_cells(self) -> impl Iterator<Item = (Arc<[u32]>, Vec<f64>)> {
        let examples = self.examples.into_iter();
        examples.map(|(cells, values)| (Arc::from(cells), values))
    }

    /// The pairs of a batch with what was measured of them; `metric` is that of their clean runs.
    pub fn into_examples(self, task: &Task, items: &[usize], metric: &[f64]) -> Vec<ExampleScores> {
        let examples = items.iter().zip(metric).zip(self.into_cells());
        examples
            .map(|((&item, &metric), (cells, values))| ExampleScores {
                cells,
                values,
                ..unmeasured(task, item, metric, metric)
            })
            .collect()
    }

    /// The same, where what is measured is no change of a metric: there is no clean value to report.
    pub fn into_examples_without_metric(self, task: &Task, items: &[usize]) -> Vec<ExampleScores> {
        self.into_examples(task, items, &vec![f64::NAN; items.len()])
    }
}

/// Examples with how the model does on their clean prompts, in the same order.
pub(super) fn judged(
    mut examples: Vec<ExampleScores>,
    judged: Vec<Judgement>,
) -> Vec<ExampleScores> {
    for (example, judged) in examples.iter_mut().zip(judged) {
        example.judged(judged);
    }
    examples
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_has_the_cells_that_were_measured_of_it() {
        let mut columns = Columns::new(2);
        columns.push(&[1.0, 2.0]);
        columns.skip(3);
        columns.push_some(|i| (i == 1).then_some(5.0));
        assert_eq!(columns.len(), 5);
        let examples: Vec<_> = columns.into_cells().collect();
        assert_eq!(*examples[0].0, [0]);
        assert_eq!(*examples[1].0, [0, 4]);
        assert_eq!(examples[1].1, [2.0, 5.0]);
    }
}
