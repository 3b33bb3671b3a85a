//! From measurements to rows: one for each cell and example, or one for each cell, aggregated over the examples that have it.
//!
//! Cells are taken in blocks, and each example keeps a cursor into its own ascending list, so that no copy of all measurements
//! is made. Inside a block, cells with the same examples form one group: its means and bootstrap intervals are matrix products
//! ([`super::interval`]).
//!
//! The normalised effect is a ratio of means over the same examples, never a mean of ratios: denoising
//! `(patched - corrupted) / (clean - corrupted)`, noising `(patched - clean) / (corrupted - clean)`. Its interval is that of the
//! ratio in each resample.

use std::collections::BTreeMap;

use rayon::prelude::*;

use super::cell::{Cell, Detail, ExampleScores, ScoresMeta};
use super::column::{Numbers, Row};
use super::interval::{Bootstrap, RESAMPLES, interval};
use super::report::Estimate;
use super::statistics::mean;
use crate::error::Result;

/// Measurements aggregated at once: 32 MB.
const MOST_VALUES: usize = 1 << 22;
/// Cells aggregated at once: their resampled means take 16 MB.
const MOST_CELLS: usize = 2048;

/// The rows of a table.
pub(super) struct Rows<'a> {
    cells: &'a [Cell],
    examples: &'a [ExampleScores],
    meta: &'a ScoresMeta,
    /// The model and the task.
    of: [&'a str; 2],
    /// Whether effects are given as shares of the gap.
    normalise: bool,
    aggregates: Option<Vec<Aggregate>>,
}

/// A cell over the examples that have it.
struct Aggregate {
    cell: u32,
    numbers: Numbers,
    token: Option<String>,
    role: Option<String>,
}

impl<'a> Rows<'a> {
    pub fn new(
        cells: &'a [Cell],
        examples: &'a [ExampleScores],
        meta: &'a ScoresMeta,
        detail: Detail,
        normalise: bool,
    ) -> Result<Self> {
        let mut rows = Rows {
            cells,
            examples,
            meta,
            of: [""; 2],
            normalise,
            aggregates: None,
        };
        if detail == Detail::Mean {
            rows.aggregates = Some(rows.aggregated()?);
        }
        Ok(rows)
    }

    /// The same rows, with the model and the task that they are of.
    pub fn of_run(self, of: &'a [String; 2]) -> Self {
        let of = [of[0].as_str(), of[1].as_str()];
        Rows { of, ..self }
    }

    /// All rows: by cell, or by example and then by cell.
    pub fn iter(&self) -> Box<dyn Iterator<Item = Row<'_>> + '_> {
        match &self.aggregates {
            Some(aggregates) => Box::new(aggregates.iter().map(|aggregate| Row {
                meta: self.meta,
                model: self.of[0],
                task: self.of[1],
                cell: &self.cells[aggregate.cell as usize],
                example: None,
                token: aggregate.token.as_deref(),
                role: aggregate.role.as_deref(),
                numbers: aggregate.numbers,
            })),
            None => Box::new(self.examples.iter().flat_map(|example| self.of(example))),
        }
    }

    /// Fewest and most examples behind one aggregated row.
    pub fn examples_per_row(&self) -> Option<(usize, usize)> {
        let counts = || self.aggregates.iter().flatten().map(|row| row.numbers.n);
        counts().min().zip(counts().max())
    }

    fn of(&self, example: &'a ExampleScores) -> impl Iterator<Item = Row<'a>> {
        let (cells, meta, [model, task]) = (self.cells, self.meta, self.of);
        let (base, full) = meta.direction.ends(example.clean, example.corrupted);
        let gap = full.filter(|_| self.normalise).map(|full| Estimate {
            mean: full - base,
            interval: None,
        });
        let gap = gap.filter(|gap| gap.is_not_zero(1));
        let measured = example.cells.iter().zip(&example.values);
        measured.map(move |(&cell, &value)| Row {
            meta,
            model,
            task,
            cell: &cells[cell as usize],
            example: Some(example),
            token: None,
            role: None,
            numbers: Numbers {
                n: 1,
                value,
                score: value - base,
                normalised: gap.map(|gap| (value - base) / gap.mean),
                ..Numbers::default()
            },
        })
    }

    fn aggregated(&self) -> Result<Vec<Aggregate>> {
        let block = (MOST_VALUES / self.examples.len().max(1)).clamp(1, MOST_CELLS);
        let mut cursors = vec![0; self.examples.len()];
        let mut rows = Vec::new();
        for first in (0..self.cells.len()).step_by(block) {
            let last = self.cells.len().min(first + block);
            // Who has each cell of the block, and what was measured there.
            let mut having: Vec<(Vec<usize>, Vec<f64>)> = vec![Default::default(); last - first];
            for (index, example) in self.examples.iter().enumerate() {
                let cursor = &mut cursors[index];
                while let Some(&cell) =
                    (example.cells.get(*cursor)).filter(|&&cell| (cell as usize) < last)
                {
                    let (who, values) = &mut having[cell as usize - first];
                    who.push(index);
                    values.push(example.values[*cursor]);
                    *cursor += 1;
                }
            }
            let mut groups: BTreeMap<&[usize], Vec<usize>> = BTreeMap::new();
            let measured = having.iter().enumerate();
            for (offset, (who, _)) in measured.filter(|(_, (who, _))| !who.is_empty()) {
                groups.entry(who).or_default().push(offset);
            }
            let mut of_block: Vec<(usize, Numbers)> = Vec::new();
            for (who, offsets) in groups {
                let values: Vec<&[f64]> = offsets
                    .iter()
                    .map(|&offset| having[offset].1.as_slice())
                    .collect();
                of_block.extend(offsets.into_iter().zip(self.aggregate(who, &values)?));
            }
            of_block.sort_by_key(|(offset, _)| *offset);
            for (offset, numbers) in of_block {
                let cell = first + offset;
                let (token, role) = self.shared_labels(&self.cells[cell], &having[offset].0);
                rows.push(Aggregate {
                    cell: cell as u32,
                    numbers,
                    token,
                    role,
                });
            }
        }
        Ok(rows)
    }

    /// The numbers of cells that the same examples (`who`) have; `values` has a row for each cell.
    fn aggregate(&self, who: &[usize], values: &[&[f64]]) -> Result<Vec<Numbers>> {
        let n = who.len();
        let ends: Vec<(f64, Option<f64>)> = who
            .iter()
            .map(|&e| {
                (self.meta.direction).ends(self.examples[e].clean, self.examples[e].corrupted)
            })
            .collect();
        // A row of scores for each cell, and one more: the gap that they are shares of.
        let mut scores: Vec<f64> = values
            .iter()
            .flat_map(|row| row.iter().zip(&ends).map(|(value, (base, _))| value - base))
            .collect();
        let gaps: Option<Vec<f64>> = ends
            .iter()
            .map(|(base, full)| Some((*full)? - base))
            .collect();
        let gaps = gaps.filter(|_| self.normalise);
        scores.extend(gaps.iter().flatten());
        let mut means = match n {
            1 => Vec::new(),
            _ => Bootstrap::new(self.meta.seed).resampled_means(&scores, n)?,
        };
        let gap_means = means.split_off(if n == 1 { 0 } else { values.len() * RESAMPLES });
        let gap = gaps.map(|gaps| Estimate {
            mean: mean(&gaps),
            interval: (n > 1).then(|| interval(&mut gap_means.clone())),
        });
        let gap = gap.filter(|gap| gap.is_not_zero(n));
        let numbers = |(values, scores): (&&[f64], &[f64])| {
            let score = mean(scores);
            Numbers {
                n,
                value: mean(values),
                score,
                normalised: gap.map(|gap| score / gap.mean),
                contribution: Some(scores.iter().map(|score| score.abs()).sum::<f64>() / n as f64),
                ..Numbers::default()
            }
        };
        let mut rows: Vec<Numbers> = values.iter().zip(scores.chunks(n)).map(numbers).collect();
        rows.par_iter_mut()
            .zip(means.par_chunks_mut(RESAMPLES))
            .for_each(|(row, means)| {
                if gap.is_some() {
                    let ratios = means.iter().zip(&gap_means).map(|(mean, gap)| mean / gap);
                    // 0/0, where a resample has neither effect nor gap, says nothing.
                    let mut ratios: Vec<f64> = ratios.filter(|ratio| !ratio.is_nan()).collect();
                    let (low, high) = interval(&mut ratios);
                    row.normalised_interval =
                        (low.is_finite() && high.is_finite()).then_some((low, high));
                }
                row.interval = Some(interval(means));
            });
        Ok(rows)
    }

    /// The token and the role of a cell's position, where all its examples agree on them.
    fn shared_labels(&self, cell: &Cell, who: &[usize]) -> (Option<String>, Option<String>) {
        let mut examples = who.iter().map(|&e| &self.examples[e]);
        let Some(first) = examples.next() else {
            return (None, None);
        };
        let (mut token, mut role) = (cell.token_in(first), cell.role_in(first));
        for example in examples {
            token = token.filter(|&token| cell.token_in(example) == Some(token));
            role = role.filter(|role| cell.role_in(example).as_ref() == Some(role));
        }
        (token.map(String::from), cell.role.clone().or(role))
    }
}
