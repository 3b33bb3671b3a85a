//! What a method measured, before it is a table.

use std::collections::BTreeMap;
use std::sync::Arc;

use polars::prelude::Column as Filled;
use serde_json::Value;

use super::cell::{Cell, Detail, Direction, ExampleScores, ScoresMeta};
use super::{Column, Provenance, Scores, rows};
use crate::error::{Error, Result};
use crate::metric::Judgement;

/// Cells, what was measured of each on each example, and what else was found.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    pub cells: Vec<Cell>,
    pub examples: Vec<ExampleScores>,
    /// What was found that has no row: how well sums close, what is left out.
    pub notes: Vec<String>,
    /// What a reader should know before believing the numbers, each with a remedy.
    pub warnings: Vec<String>,
    /// Facts for the provenance that only measuring told (a noise's standard deviation, the largest residual).
    pub found: BTreeMap<String, Value>,
    /// 95% intervals of scores by cell, where a method knows better than the bootstrap: those of shares, or none for a number that
    /// all examples make together.
    pub intervals: BTreeMap<usize, Option<(f64, f64)>>,
    /// Scores are sizes without sign, and so are their shares of the gap.
    pub sizes: bool,
}

impl Measured {
    /// Adds cells that follow from what is measured, in one go: `values` gives for each example a value for each of them, or
    /// `None` where the example has no such value. Gives the index of the first.
    pub fn append(
        &mut self,
        cells: Vec<Cell>,
        mut values: impl FnMut(usize, &ExampleScores) -> Vec<Option<f64>>,
    ) -> usize {
        let first = self.cells.len();
        // Examples that shared a list of cells go on sharing one.
        let mut shared: Option<[Arc<[u32]>; 3]> = None;
        for (i, example) in self.examples.iter_mut().enumerate() {
            let mut more = Vec::new();
            for (n, value) in values(i, example).into_iter().enumerate() {
                if let Some(value) = value {
                    more.push((first + n) as u32);
                    example.values.push(value);
                }
            }
            let [before, added, after] = match shared.take() {
                Some(same) if Arc::ptr_eq(&same[0], &example.cells) && *same[1] == *more => same,
                _ => {
                    let after: Arc<[u32]> = example.cells.iter().chain(&more).copied().collect();
                    [Arc::clone(&example.cells), more.into(), after]
                }
            };
            example.cells = Arc::clone(&after);
            shared = Some([before, added, after]);
        }
        self.cells.extend(cells);
        first
    }

    /// The mean score of each cell over the examples that have it, 0 where none has; of the scores' sizes where `sizes`.
    pub fn means(&self, direction: Direction, sizes: bool) -> Vec<f64> {
        let (mut sums, mut counts) = (vec![0.0; self.cells.len()], vec![0usize; self.cells.len()]);
        for example in &self.examples {
            let base = example.base(direction);
            for (&cell, value) in example.cells.iter().zip(&example.values) {
                let score = value - base;
                sums[cell as usize] += if sizes { score.abs() } else { score };
                counts[cell as usize] += 1;
            }
        }
        let mean = |(sum, count): (f64, usize)| sum / count.max(1) as f64;
        sums.into_iter().zip(counts).map(mean).collect()
    }

    /// Drops the cells that no example has, with their intervals: what a method might have given and did not.
    pub fn drop_unmeasured(&mut self) {
        let mut place = vec![None; self.cells.len()];
        for &cell in self
            .examples
            .iter()
            .flat_map(|example| example.cells.iter())
        {
            place[cell as usize] = Some(0);
        }
        if place.iter().all(Option::is_some) {
            return;
        }
        for (at, place) in place.iter_mut().flatten().enumerate() {
            *place = at as u32;
        }
        let mut shared: Option<[Arc<[u32]>; 2]> = None;
        for example in &mut self.examples {
            let [before, after] = match shared.take() {
                Some(same) if Arc::ptr_eq(&same[0], &example.cells) => same,
                _ => {
                    let cells = example.cells.iter();
                    let after = cells.filter_map(|&cell| place[cell as usize]).collect();
                    [Arc::clone(&example.cells), after]
                }
            };
            example.cells = Arc::clone(&after);
            shared = Some([before, after]);
        }
        let intervals = std::mem::take(&mut self.intervals).into_iter();
        let kept = intervals.filter_map(|(cell, of)| Some(((*place.get(cell)?)? as usize, of)));
        self.intervals = kept.collect();
        let mut kept = place.iter();
        self.cells
            .retain(|_| kept.next().is_some_and(Option::is_some));
    }

    /// # Errors
    /// [`Error::NothingMeasured`] for a cell that no example has: a table never drops a row without a word.
    pub fn check(&self) -> Result<()> {
        let mut has = vec![false; self.cells.len()];
        for example in &self.examples {
            for &cell in example.cells.iter() {
                if let Some(has) = has.get_mut(cell as usize) {
                    *has = true;
                }
            }
        }
        match has.iter().position(|has| !has) {
            None if self.cells.is_empty() => Err(Error::NothingMeasured {
                cell: "anything".into(),
            }),
            None => Ok(()),
            Some(cell) => Err(Error::NothingMeasured {
                cell: self.cells[cell].to_string(),
            }),
        }
    }

    /// The table.
    /// # Errors
    /// Those of [`Measured::check`] and of [`Scores::assemble`].
    pub fn table(&self, meta: &ScoresMeta, detail: Detail, about: Provenance) -> Result<Scores> {
        self.check()?;
        let mut scores = Scores::assemble(&self.cells, &self.examples, meta, detail, about)?;
        if self.sizes {
            without_sign(&mut scores)?;
        }
        if detail == Detail::Mean && !self.intervals.is_empty() {
            let is_side = |cell: &Cell| cell.metric(meta) != meta.metric;
            self.set_intervals(&mut scores, |cell| !is_side(cell))?;
            for (_, side) in &mut scores.sides {
                self.set_intervals(side, is_side)?;
            }
        }
        Ok(scores)
    }

    /// Puts the method's own intervals in the place of the bootstrap's, in a table of some of the cells.
    fn set_intervals(&self, table: &mut Scores, has_row: impl Fn(&Cell) -> bool) -> Result<()> {
        let cells: Vec<usize> = (rows(self.cells.len(), &self.examples, Detail::Mean).iter())
            .map(|&(cell, _)| cell as usize)
            .filter(|&cell| has_row(&self.cells[cell]))
            .collect();
        for (column, is_high) in [(Column::CiLow, false), (Column::CiHigh, true)] {
            let own = table.floats(column.name()).unwrap_or_default();
            let of_row = |(row, cell): (usize, &usize)| match self.intervals.get(cell) {
                Some(interval) => interval.map(|(low, high)| if is_high { high } else { low }),
                None => own.get(row).copied().flatten(),
            };
            let values: Vec<_> = cells.iter().enumerate().map(of_row).collect();
            table.set_floats(column, &values)?;
        }
        Ok(())
    }
}

impl ExampleScores {
    /// Notes how the model does on the clean prompt.
    pub fn judged(&mut self, judgement: Judgement) {
        (self.beats, self.top1) = (judgement.beats, judgement.top1);
    }

    /// The metric that scores are taken against: that of the run which is changed.
    pub fn base(&self, direction: Direction) -> f64 {
        direction.ends(self.clean, self.corrupted).0
    }

    /// The value of one cell, if the example has it.
    pub fn value(&self, cell: usize) -> Option<f64> {
        let at = self.cells.binary_search(&u32::try_from(cell).ok()?).ok()?;
        Some(self.values[at])
    }
}

/// The least and the largest size of what lies between two ends.
fn sizes_between(low: f64, high: f64) -> (f64, f64) {
    let least = match low < 0.0 && high > 0.0 {
        true => 0.0,
        false => low.abs().min(high.abs()),
    };
    (least, low.abs().max(high.abs()))
}

/// Makes shares of the gap sizes, as the scores are; a gap below 0 turns an interval round.
fn without_sign(scores: &mut Scores) -> Result<()> {
    let [share, low, high] = [
        Column::Normalised,
        Column::NormalisedLow,
        Column::NormalisedHigh,
    ];
    let values = |column: Column| scores.floats(column.name());
    let size = |value: &Option<f64>| value.map(f64::abs);
    if let Some(shares) = values(share) {
        let sizes: Vec<Option<f64>> = shares.iter().map(size).collect();
        let ends = values(low).zip(values(high));
        scores
            .table
            .with_column(Filled::new(share.name().into(), sizes))?;
        if let Some((lows, highs)) = ends {
            let turned = |pick: fn((f64, f64)) -> f64| -> Vec<Option<f64>> {
                let end = |(low, high): (&Option<f64>, &Option<f64>)| {
                    Some(pick(sizes_between((*low)?, (*high)?)))
                };
                lows.iter().zip(&highs).map(end).collect()
            };
            for (column, ends) in [(low, turned(|ends| ends.0)), (high, turned(|ends| ends.1))] {
                scores
                    .table
                    .with_column(Filled::new(column.name().into(), ends))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured() -> Measured {
        let example = |example: usize, cells: &[u32], values: &[f64]| ExampleScores {
            example,
            clean: 5.0,
            corrupted: 1.0,
            cells: cells.into(),
            values: values.to_vec(),
            ..ExampleScores::default()
        };
        Measured {
            cells: vec![Cell::default(); 3],
            examples: vec![
                example(0, &[0, 2], &[4.0, 6.0]),
                example(1, &[0, 1], &[7.0, 0.0]),
            ],
            ..Measured::default()
        }
    }

    #[test]
    fn sizes_of_an_interval_on_both_sides_of_zero_begin_at_zero() {
        assert_eq!(sizes_between(-1.881, 1.760), (0.0, 1.881));
        assert_eq!(sizes_between(-3.0, -2.0), (2.0, 3.0));
        assert_eq!(sizes_between(1.0, 4.0), (1.0, 4.0));
    }

    #[test]
    fn means_are_over_the_examples_that_have_a_cell() {
        let measured = measured();
        assert_eq!(measured.means(Direction::Noise, false), [0.5, -5.0, 1.0]);
        assert_eq!(measured.means(Direction::Noise, true), [1.5, 5.0, 1.0]);
        assert_eq!(measured.means(Direction::Denoise, false), [4.5, -1.0, 5.0]);
    }

    #[test]
    fn intervals_of_the_method_stand_in_the_place_of_the_bootstrap() {
        let mut measured = measured();
        measured.cells[1].measure = Some("beside".into());
        measured.cells[2].layer = Some(2);
        measured.intervals.insert(1, None);
        measured.intervals.insert(2, Some((-7.0, 7.0)));
        let meta = ScoresMeta {
            metric: "logit_diff".into(),
            ..ScoresMeta::default()
        };
        let table = measured.table(&meta, Detail::Mean, Provenance::default());
        let table = table.unwrap();
        // The first cell keeps its own; the second is beside the table.
        let [low, high] = ["ci_low", "ci_high"].map(|name| table.floats(name).unwrap());
        assert_eq!((low[1], high[1]), (Some(-7.0), Some(7.0)));
        assert!(low[0].is_some_and(|low| low > -7.0) && low.len() == 2);
        let beside = table.side(crate::scores::MEASURES).unwrap();
        assert!(beside.floats("ci_low").is_none());
    }

    #[test]
    fn an_interval_goes_where_its_cell_goes_and_with_it() {
        let mut measured = measured();
        // Nobody has the second cell now.
        measured.examples.truncate(1);
        measured.cells[2].layer = Some(2);
        measured.intervals = [(1, None), (2, Some((-7.0, 7.0)))].into();
        measured.drop_unmeasured();
        assert_eq!(measured.cells.len(), 2);
        assert_eq!(measured.cells[1].layer, Some(2));
        assert_eq!(measured.intervals, [(1, Some((-7.0, 7.0)))].into());
    }

    #[test]
    fn appended_cells_stand_after_the_others() {
        let mut measured = measured();
        let sum = |_: usize, example: &ExampleScores| {
            vec![None, example.value(0).map(|value| 10.0 * value)]
        };
        assert_eq!(measured.append(vec![Cell::default(); 2], sum), 3);
        assert_eq!(measured.cells.len(), 5);
        assert_eq!(measured.examples[1].value(4), Some(70.0));
        assert_eq!(measured.examples[1].value(3), None);
        // Nobody has cell 3.
        assert!(measured.check().is_err());
    }
}
