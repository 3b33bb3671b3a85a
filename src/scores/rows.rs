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
use super::interval::{Bootstrap, RESAMPLES, ROWS, interval};
use super::report::Estimate;
use super::statistics::mean;

/// Measurements aggregated at once: 32 MB.
const MOST_VALUES: usize = 1 << 22;

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
    ) -> Self {
        let mut rows = Rows {
            cells,
            examples,
            meta,
            of: [""; 2],
            normalise,
            aggregates: None,
        };
        if detail == Detail::Mean {
            rows.aggregates = Some(rows.aggregated());
        }
        rows
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

    fn aggregated(&self) -> Vec<Aggregate> {
        let all = self.examples.len();
        let block = (MOST_VALUES / all.max(1)).max(1);
        let mut cursors = vec![0; all];
        let mut draws: BTreeMap<usize, Bootstrap> = BTreeMap::new();
        let mut rows = Vec::new();
        for first in (0..self.cells.len()).step_by(block) {
            let last = self.cells.len().min(first + block);
            // What was measured of each cell of the block, and on whom: `[cell, example]`.
            let mut values = vec![0.0; (last - first) * all];
            let mut has = vec![false; values.len()];
            for (index, example) in self.examples.iter().enumerate() {
                let cursor = &mut cursors[index];
                while let Some(&cell) =
                    (example.cells.get(*cursor)).filter(|&&cell| (cell as usize) < last)
                {
                    let at = (cell as usize - first) * all + index;
                    (values[at], has[at]) = (example.values[*cursor], true);
                    *cursor += 1;
                }
            }
            let mut groups: BTreeMap<&[bool], Vec<usize>> = BTreeMap::new();
            for (offset, has) in has.chunks(all).enumerate() {
                groups.entry(has).or_default().push(offset);
            }
            let mut of_block = vec![None; last - first];
            for (has, offsets) in groups {
                let who: Vec<usize> = (0..all).filter(|&example| has[example]).collect();
                if who.is_empty() {
                    continue;
                }
                let of_cell = |&offset: &usize| {
                    let row = &values[offset * all..][..all];
                    who.iter().map(move |&example| row[example])
                };
                let values: Vec<f64> = offsets.iter().flat_map(of_cell).collect();
                let seed = self.meta.seed;
                let draws = draws
                    .entry(who.len())
                    .or_insert_with(|| Bootstrap::new(seed, who.len()));
                let numbers = self.aggregate(&who, &values, draws);
                for (offset, numbers) in offsets.into_iter().zip(numbers) {
                    of_block[offset] = Some(numbers);
                }
            }
            let with_labels = |(offset, numbers): (usize, Option<Numbers>)| {
                let cell = first + offset;
                let has = &has[offset * all..][..all];
                let (token, role) = self.shared_labels(&self.cells[cell], has);
                Some(Aggregate {
                    cell: cell as u32,
                    numbers: numbers?,
                    token,
                    role,
                })
            };
            let of_block = of_block.into_par_iter().enumerate();
            rows.par_extend(of_block.filter_map(with_labels));
        }
        rows
    }

    /// The numbers of cells that the same examples (`who`) have; `values` has a row for each cell.
    fn aggregate(&self, who: &[usize], values: &[f64], draws: &Bootstrap) -> Vec<Numbers> {
        let n = who.len();
        let ends = who.iter().map(|&e| {
            (self.meta.direction).ends(self.examples[e].clean, self.examples[e].corrupted)
        });
        let (bases, fulls): (Vec<f64>, Vec<Option<f64>>) = ends.unzip();
        // The gap that scores are shares of, and one over it in each resample.
        let gaps = fulls
            .iter()
            .zip(&bases)
            .map(|(full, base)| Some((*full)? - base));
        let gaps: Option<Vec<f64>> = gaps.collect();
        let gap = gaps.filter(|_| self.normalise).map(|gaps| {
            let mut of_gap = vec![0.0; RESAMPLES];
            draws.resampled_means(&gaps, &mut of_gap);
            let gap = Estimate {
                mean: mean(&gaps),
                interval: (n > 1).then(|| interval(&mut of_gap.clone())),
            };
            of_gap.iter_mut().for_each(|gap| *gap = 1.0 / *gap);
            (gap, of_gap)
        });
        let gap = gap.filter(|(gap, _)| gap.is_not_zero(n));
        let rows = values.par_chunks(ROWS * n).flat_map_iter(|values| {
            let rows = values.chunks(n);
            let score = |row: &[f64]| -> Vec<f64> {
                row.iter()
                    .zip(&bases)
                    .map(|(value, base)| value - base)
                    .collect()
            };
            let scores: Vec<f64> = rows.clone().flat_map(score).collect();
            let mut means = (n > 1).then(|| {
                let mut means = vec![0.0; values.len() / n * RESAMPLES];
                draws.resampled_means(&scores, &mut means);
                means
            });
            let numbers = rows.zip(scores.chunks(n)).enumerate();
            let numbers = numbers.map(|(at, (values, scores))| {
                let score = mean(scores);
                let sizes = scores.iter().map(|score| score.abs());
                let mut row = Numbers {
                    n,
                    value: mean(values),
                    score,
                    normalised: gap.as_ref().map(|(gap, _)| score / gap.mean),
                    contribution: Some(sizes.sum::<f64>() / n as f64),
                    ..Numbers::default()
                };
                if let Some(means) = &mut means {
                    let means = &mut means[at * RESAMPLES..][..RESAMPLES];
                    row.normalised_interval =
                        gap.as_ref().and_then(|(_, of_gap)| share(means, of_gap));
                    row.interval = Some(interval(means));
                }
                row
            });
            numbers.collect::<Vec<_>>()
        });
        rows.collect()
    }

    /// The token and the role of a cell's position, where all its examples agree on them.
    fn shared_labels(&self, cell: &Cell, has: &[bool]) -> (Option<String>, Option<String>) {
        let examples = self.examples.iter().zip(has);
        let mut examples = examples
            .filter(|(_, has)| **has)
            .map(|(example, _)| example);
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

/// The 95% interval of a ratio of means; `of_gap` is one over the gap in each resample.
fn share(means: &[f64], of_gap: &[f64]) -> Option<(f64, f64)> {
    let mut shares: Vec<f64> = means
        .iter()
        .zip(of_gap)
        .map(|(mean, gap)| mean * gap)
        .collect();
    // 0/0, where a resample has neither effect nor gap, says nothing.
    if shares.iter().any(|share| share.is_nan()) {
        shares.retain(|share| !share.is_nan());
    }
    Some(interval(&mut shares)).filter(|(low, high)| low.is_finite() && high.is_finite())
}
