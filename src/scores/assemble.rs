//! From measurements to the table.
//!
//! Cells are taken in blocks, and each example keeps a cursor into its own ascending list, so that the table is built
//! without a copy of all measurements. Inside a block, cells with the same examples form one group: its means and
//! bootstrap intervals are matrix products ([`super::interval`]).
//!
//! The normalised effect is a ratio of means over the same examples, never a mean of ratios: denoising
//! `(patched - corrupted) / (clean - corrupted)`, noising `(patched - clean) / (corrupted - clean)`.

use std::collections::BTreeMap;

use polars::prelude::*;

use super::Scores;
use super::cell::{Cell, Detail, ExampleScores, ScoresMeta};
use super::interval::Bootstrap;
use super::provenance::{Baseline, Provenance};
use crate::error::{Error, Result};

/// Below this difference of clean and corrupted metric a normalised value would be noise.
const LEAST_GAP: f64 = 1e-6;
/// Cells aggregated at once: bounds the memory of the bootstrap to some tens of megabytes.
const BLOCK: usize = 2048;

impl Scores {
    /// Builds the table from what was measured.
    /// # Units
    /// `value` and `score` are in the metric's unit; `score` is the metric with the change minus the metric without, and
    /// `base` names the run that was changed; `normalised` has no unit.
    /// # Errors
    /// [`Error::Invalid`] if there is no example, or an example's lists do not fit the cells.
    pub fn assemble(
        cells: &[Cell],
        examples: &[ExampleScores],
        meta: &ScoresMeta,
        detail: Detail,
        provenance: Provenance,
    ) -> Result<Scores> {
        check(cells, examples)?;
        let mut provenance = describe(examples, meta, provenance);
        let rows = match detail {
            Detail::PerExample => per_example(examples, meta),
            Detail::Mean => aggregated(cells, examples, meta)?,
        };
        if detail == Detail::Mean {
            let counts = || rows.examples.iter().copied();
            provenance.examples_per_row = counts().min().zip(counts().max());
        }
        let gap = (provenance.mean_clean - provenance.mean_corrupted).abs();
        let normalise = rows.normalised.iter().any(Option::is_some) && gap >= LEAST_GAP;
        if gap < LEAST_GAP && meta.direction.ends(0.0, 0.0).1.is_some() {
            provenance.warnings.push(format!(
                "the mean {} is {} on clean and {} on corrupted prompts, too close to normalise by; scores are raw, \
                 and the corruption may not touch what the metric measures",
                meta.metric, provenance.mean_clean, provenance.mean_corrupted
            ));
        }
        let table = table(cells, examples, meta, detail, rows, normalise)?;
        Ok(Scores { table, provenance })
    }
}

/// The rows of a table, one entry a row in every list.
#[derive(Default)]
struct Rows {
    cell: Vec<u32>,
    /// Index into the examples of the row's labels: the row's own example, or the first one aggregated.
    label: Vec<usize>,
    /// How many examples stand behind the row.
    examples: Vec<usize>,
    token: Vec<Option<String>>,
    role: Vec<Option<String>>,
    value: Vec<f64>,
    score: Vec<f64>,
    normalised: Vec<Option<f64>>,
    interval: Vec<Option<(f64, f64)>>,
}

fn check(cells: &[Cell], examples: &[ExampleScores]) -> Result<()> {
    if examples.is_empty() {
        return Err(Error::invalid(
            "a table of scores needs at least one example",
        ));
    }
    for example in examples {
        let ascending = example.cells.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = example
            .cells
            .last()
            .is_none_or(|&last| (last as usize) < cells.len());
        if !ascending || !inside || example.cells.len() != example.values.len() {
            return Err(Error::invalid(format!(
                "example {}: {} values for {} cells, which must be ascending indices below {}",
                example.example,
                example.values.len(),
                example.cells.len(),
                cells.len()
            )));
        }
    }
    Ok(())
}

fn describe(examples: &[ExampleScores], meta: &ScoresMeta, provenance: Provenance) -> Provenance {
    let mean = |of: fn(&ExampleScores) -> f64| {
        examples.iter().map(of).sum::<f64>() / examples.len() as f64
    };
    Provenance {
        version: env!("CARGO_PKG_VERSION").to_string(),
        method: meta.method.clone(),
        metric: meta.metric.clone(),
        unit: meta.unit.clone(),
        direction: meta.direction,
        seed: meta.seed,
        mean_clean: mean(|e| e.clean),
        mean_corrupted: mean(|e| e.corrupted),
        baselines: examples
            .iter()
            .map(|e| Baseline {
                example: e.example,
                clean: e.clean,
                corrupted: e.corrupted,
            })
            .collect(),
        examples: examples.len(),
        ..provenance
    }
}

fn per_example(examples: &[ExampleScores], meta: &ScoresMeta) -> Rows {
    let mut rows = Rows::default();
    for (label, example) in examples.iter().enumerate() {
        let (base, full) = meta.direction.ends(example.clean, example.corrupted);
        for (&cell, &value) in example.cells.iter().zip(&example.values) {
            rows.cell.push(cell);
            rows.label.push(label);
            rows.examples.push(1);
            rows.value.push(value);
            rows.score.push(value - base);
            rows.normalised.push(normalised(value - base, base, full));
            rows.interval.push(None);
        }
    }
    rows
}

fn aggregated(cells: &[Cell], examples: &[ExampleScores], meta: &ScoresMeta) -> Result<Rows> {
    let mut rows = Rows::default();
    let mut bootstrap = Bootstrap::new(meta.seed);
    let mut cursors = vec![0; examples.len()];
    for first in (0..cells.len()).step_by(BLOCK) {
        let last = cells.len().min(first + BLOCK);
        // Who has each cell of the block, and what was measured there.
        let mut having: Vec<(Vec<usize>, Vec<f64>)> = vec![Default::default(); last - first];
        for (index, example) in examples.iter().enumerate() {
            let cursor = &mut cursors[index];
            while let Some(&cell) = example
                .cells
                .get(*cursor)
                .filter(|&&cell| (cell as usize) < last)
            {
                let (who, values) = &mut having[cell as usize - first];
                who.push(index);
                values.push(example.values[*cursor]);
                *cursor += 1;
            }
        }
        let mut groups: BTreeMap<&[usize], Vec<usize>> = BTreeMap::new();
        for (offset, (who, _)) in having
            .iter()
            .enumerate()
            .filter(|(_, (who, _))| !who.is_empty())
        {
            groups.entry(who).or_default().push(offset);
        }
        let mut block: Vec<(usize, Aggregate)> = Vec::new();
        for (who, offsets) in groups {
            let values: Vec<&[f64]> = offsets
                .iter()
                .map(|&offset| having[offset].1.as_slice())
                .collect();
            block.extend(offsets.into_iter().zip(aggregate(
                examples,
                who,
                &values,
                meta,
                &mut bootstrap,
            )?));
        }
        block.sort_by_key(|(offset, _)| *offset);
        for (offset, row) in block {
            let who = &having[offset].0;
            let (token, role) = shared_labels(&cells[first + offset], examples, who);
            rows.cell.push((first + offset) as u32);
            rows.label.push(who[0]);
            rows.examples.push(who.len());
            rows.token.push(token);
            rows.role.push(role);
            rows.value.push(row.value);
            rows.score.push(row.score);
            rows.normalised.push(row.normalised);
            rows.interval.push(row.interval);
        }
    }
    Ok(rows)
}

struct Aggregate {
    value: f64,
    score: f64,
    normalised: Option<f64>,
    interval: Option<(f64, f64)>,
}

/// The aggregates of cells that the same examples (`who`) have; `values` has a row for each cell.
fn aggregate(
    examples: &[ExampleScores],
    who: &[usize],
    values: &[&[f64]],
    meta: &ScoresMeta,
    bootstrap: &mut Bootstrap,
) -> Result<Vec<Aggregate>> {
    let n = who.len() as f64;
    let ends: Vec<_> = who
        .iter()
        .map(|&e| {
            meta.direction
                .ends(examples[e].clean, examples[e].corrupted)
        })
        .collect();
    let base = ends.iter().map(|(base, _)| base).sum::<f64>() / n;
    let full = ends
        .iter()
        .map(|(_, full)| *full)
        .sum::<Option<f64>>()
        .map(|sum| sum / n);
    let scores: Vec<f64> = values
        .iter()
        .flat_map(|row| row.iter().zip(&ends).map(|(value, (base, _))| value - base))
        .collect();
    let intervals = match who.len() {
        1 => vec![None; values.len()],
        examples => bootstrap
            .intervals(&scores, examples)?
            .into_iter()
            .map(Some)
            .collect(),
    };
    let rows = values.iter().zip(scores.chunks(who.len())).zip(intervals);
    Ok(rows
        .map(|((values, scores), interval)| {
            let score = scores.iter().sum::<f64>() / n;
            let value = values.iter().sum::<f64>() / n;
            Aggregate {
                value,
                score,
                normalised: normalised(score, base, full),
                interval,
            }
        })
        .collect())
}

fn normalised(score: f64, base: f64, full: Option<f64>) -> Option<f64> {
    let gap = full? - base;
    (gap.abs() >= LEAST_GAP).then(|| score / gap)
}

/// The token and the role of a cell, where all its examples agree on them.
fn shared_labels(
    cell: &Cell,
    examples: &[ExampleScores],
    who: &[usize],
) -> (Option<String>, Option<String>) {
    let shared = |label: &dyn Fn(&ExampleScores) -> Option<String>| {
        let first = label(&examples[who[0]])?;
        who.iter()
            .all(|&e| label(&examples[e]).as_deref() == Some(&first))
            .then_some(first)
    };
    (
        shared(&|e| token_at(cell, e)),
        cell.role.clone().or_else(|| shared(&|e| role_at(cell, e))),
    )
}

fn index_of(cell: &Cell, example: &ExampleScores) -> Option<usize> {
    match cell.pos? {
        pos @ 0.. => Some(pos as usize),
        pos => example
            .tokens
            .len()
            .checked_sub(pos.unsigned_abs() as usize),
    }
}

fn token_at(cell: &Cell, example: &ExampleScores) -> Option<String> {
    example.tokens.get(index_of(cell, example)?).cloned()
}

/// The roles of a position, joined by commas if it has several.
fn role_at(cell: &Cell, example: &ExampleScores) -> Option<String> {
    let pos = index_of(cell, example)?;
    let roles: Vec<&str> = example
        .roles
        .iter()
        .filter(|(_, at)| at.contains(&pos))
        .map(|(role, _)| role.as_str())
        .collect();
    (!roles.is_empty()).then(|| roles.join(","))
}

fn table(
    cells: &[Cell],
    examples: &[ExampleScores],
    meta: &ScoresMeta,
    detail: Detail,
    rows: Rows,
    normalise: bool,
) -> Result<DataFrame> {
    let height = rows.cell.len();
    let cell = |row: usize| &cells[rows.cell[row] as usize];
    let mut columns: Vec<Column> = Vec::new();
    let constant = |name: &str, text: &str| {
        let scalar = Scalar::new(DataType::String, AnyValue::StringOwned(text.into()));
        Column::new_scalar(name.into(), scalar, height)
    };
    columns.push(constant("method", &meta.method));
    let measures =
        (0..height).map(|row| Some(cell(row).measure.as_deref().unwrap_or(&meta.metric)));
    columns.push(StringChunked::from_iter_options("metric".into(), measures).into_column());
    columns.push(constant("direction", &meta.direction.to_string()));
    columns.push(
        texts("component", height, |row| Some(&cell(row).component))
            .expect("every cell has a component"),
    );
    columns.extend(numbers("layer", height, |row| cell(row).layer));
    columns.extend(numbers("head", height, |row| cell(row).head));
    if (0..height).any(|row| cell(row).pos.is_some()) {
        columns.push(
            Int32Chunked::from_iter_options("pos".into(), (0..height).map(|row| cell(row).pos))
                .into_column(),
        );
    }
    columns.extend(numbers("key", height, |row| cell(row).key));
    match detail {
        Detail::Mean => {
            columns.extend(texts("token", height, |row| rows.token[row].as_deref()));
            columns.extend(texts("role", height, |row| rows.role[row].as_deref()));
        }
        Detail::PerExample => {
            let example = |row: usize| &examples[rows.label[row]];
            let role = |row: usize| {
                cell(row)
                    .role
                    .clone()
                    .or_else(|| role_at(cell(row), example(row)))
            };
            columns.extend(texts("token", height, |row| {
                token_at(cell(row), example(row))
            }));
            columns.extend(texts("role", height, role));
        }
    }
    columns.extend(numbers("neuron", height, |row| cell(row).neuron));
    columns.extend(texts("src", height, |row| cell(row).src.as_deref()));
    columns.extend(texts("dst", height, |row| cell(row).dst.as_deref()));
    columns.extend(texts("target", height, |row| cell(row).target.as_deref()));
    columns.extend(texts("class", height, |row| cell(row).class.as_deref()));
    if detail == Detail::PerExample {
        columns.extend(numbers("example", height, |row| {
            Some(examples[rows.label[row]].example as u32)
        }));
    }
    columns.push(Column::new("value".into(), &rows.value));
    columns.push(Column::new("score".into(), &rows.score));
    if normalise {
        columns.push(Column::new("normalised".into(), &rows.normalised));
    }
    columns.push(constant("base", meta.direction.base()));
    if rows.interval.iter().any(Option::is_some) {
        let end =
            |of: fn((f64, f64)) -> f64| rows.interval.iter().map(|i| i.map(of)).collect::<Vec<_>>();
        columns.push(Column::new("ci_low".into(), end(|(low, _)| low)));
        columns.push(Column::new("ci_high".into(), end(|(_, high)| high)));
    }
    Ok(DataFrame::new(height, columns)?)
}

/// A column of numbers, or none if no row has one.
fn numbers(name: &str, height: usize, of: impl Fn(usize) -> Option<u32>) -> Option<Column> {
    (0..height)
        .any(|row| of(row).is_some())
        .then(|| UInt32Chunked::from_iter_options(name.into(), (0..height).map(of)).into_column())
}

/// A column of text, or none if no row has one.
fn texts<S: AsRef<str>>(
    name: &str,
    height: usize,
    of: impl Fn(usize) -> Option<S>,
) -> Option<Column> {
    (0..height)
        .any(|row| of(row).is_some())
        .then(|| StringChunked::from_iter_options(name.into(), (0..height).map(of)).into_column())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::scores::Direction;

    fn cell(layer: u32, pos: i32) -> Cell {
        Cell {
            component: "hook_resid_pre".into(),
            layer: Some(layer),
            pos: Some(pos),
            ..Cell::default()
        }
    }

    fn example(
        example: usize,
        clean: f64,
        corrupted: f64,
        cells: &[u32],
        values: &[f64],
    ) -> ExampleScores {
        ExampleScores {
            example,
            clean,
            corrupted,
            tokens: ["When", if example == 0 { " Mary" } else { " Tom" }, " gave"]
                .map(String::from)
                .to_vec(),
            roles: BTreeMap::from([("IO".to_string(), vec![1])]),
            cells: Arc::from(cells),
            values: values.to_vec(),
        }
    }

    fn assembled(
        cells: &[Cell],
        examples: &[ExampleScores],
        direction: Direction,
        detail: Detail,
    ) -> Scores {
        let meta = ScoresMeta {
            method: "m".into(),
            metric: "logit_diff".into(),
            direction,
            ..ScoresMeta::default()
        };
        Scores::assemble(cells, examples, &meta, detail, Provenance::default()).unwrap()
    }

    fn column(scores: &Scores, name: &str) -> Vec<Option<f64>> {
        scores
            .floats(name)
            .unwrap_or_else(|| panic!("no column {name}"))
    }

    #[test]
    fn normalised_is_a_ratio_of_means_in_either_direction() {
        // Means: clean 3, corrupted -1, patched 1. Denoising restores 2 of 4, noising destroys 2 of 4.
        let examples = [
            example(0, 4.0, 0.0, &[0], &[3.0]),
            example(1, 2.0, -2.0, &[0], &[-1.0]),
        ];
        for (direction, score) in [(Direction::Denoise, 2.0), (Direction::Noise, -2.0)] {
            let scores = assembled(&[cell(0, 0)], &examples, direction, Detail::Mean);
            assert_eq!(column(&scores, "value"), [Some(1.0)]);
            assert_eq!(column(&scores, "score"), [Some(score)]);
            assert_eq!(column(&scores, "normalised"), [Some(0.5)]);
            assert_eq!(scores.texts("base").unwrap(), [Some(direction.base())]);
        }
        let ablated = assembled(&[cell(0, 0)], &examples, Direction::Ablate, Detail::Mean);
        assert!(ablated.floats("normalised").is_none() && ablated.warnings().is_empty());
    }

    #[test]
    fn a_cell_that_some_examples_lack_is_measured_on_the_others() {
        let examples = [
            example(0, 4.0, 0.0, &[0, 1], &[1.0, 2.0]),
            example(1, 8.0, 0.0, &[1, 2], &[6.0, 7.0]),
        ];
        let scores = assembled(
            &[cell(0, 0), cell(0, 1), cell(0, -1)],
            &examples,
            Direction::Denoise,
            Detail::Mean,
        );
        assert_eq!(column(&scores, "score"), [Some(1.0), Some(4.0), Some(7.0)]);
        // 1 of 4, 4 of 6, 7 of 8.
        assert_eq!(
            column(&scores, "normalised"),
            [Some(0.25), Some(4.0 / 6.0), Some(0.875)]
        );
        let low = column(&scores, "ci_low");
        assert_eq!(
            (low[0], low[2]),
            (None, None),
            "one example has no interval"
        );
        assert_eq!(
            low[1],
            Some(2.0),
            "of two examples the lower end is the lower one"
        );
        assert_eq!(column(&scores, "ci_high")[1], Some(6.0));
        // The two examples have different names at position 1, and one role.
        assert_eq!(
            scores.texts("token").unwrap(),
            [Some("When"), None, Some(" gave")]
        );
        assert_eq!(scores.texts("role").unwrap(), [None, Some("IO"), None]);
        assert_eq!(scores.provenance.examples_per_row, Some((1, 2)));
    }

    #[test]
    fn columns_that_apply_to_no_row_are_absent() {
        let names = |detail| {
            let examples = [example(3, 1.0, 0.0, &[0], &[0.5])];
            let scores = assembled(&[cell(0, 1)], &examples, Direction::Denoise, detail);
            scores
                .table
                .get_column_names()
                .iter()
                .map(|name| name.to_string())
                .collect::<Vec<_>>()
        };
        let shared = [
            "method",
            "metric",
            "direction",
            "component",
            "layer",
            "pos",
            "token",
            "role",
        ];
        let measured = ["value", "score", "normalised", "base"];
        assert_eq!(names(Detail::Mean), [&shared[..], &measured].concat());
        assert_eq!(
            names(Detail::PerExample),
            [&shared[..], &["example"], &measured].concat()
        );
    }

    #[test]
    fn a_metric_that_the_corruption_does_not_move_gives_a_warning_instead_of_a_ratio() {
        let scores = assembled(
            &[cell(0, 0)],
            &[example(0, 1.0, 1.0 + 1e-9, &[0], &[2.0])],
            Direction::Noise,
            Detail::Mean,
        );
        assert!(scores.floats("normalised").is_none());
        assert_eq!(scores.warnings().len(), 1);
    }

    #[test]
    fn blocks_and_groups_keep_the_order_of_the_cells() {
        let cells: Vec<Cell> = (0..BLOCK as u32 + 10).map(|layer| cell(layer, 0)).collect();
        let all: Vec<u32> = (0..cells.len() as u32).collect();
        let even: Vec<u32> = all.iter().copied().filter(|i| i % 2 == 0).collect();
        let values = |cells: &[u32]| cells.iter().map(|&i| i as f64).collect::<Vec<_>>();
        let examples = [
            example(0, 1.0, 0.0, &all, &values(&all)),
            example(1, 1.0, 0.0, &even, &values(&even)),
        ];
        let scores = assembled(&cells, &examples, Direction::Denoise, Detail::Mean);
        assert_eq!(
            column(&scores, "value"),
            all.iter().map(|&i| Some(i as f64)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn lists_that_do_not_fit_are_refused() {
        for (cells, values) in [
            (vec![1, 0], vec![0.0, 0.0]),
            (vec![0], vec![]),
            (vec![9], vec![0.0]),
        ] {
            let examples = [example(0, 1.0, 0.0, &cells, &values)];
            let refused = Scores::assemble(
                &[cell(0, 0), cell(0, 1)],
                &examples,
                &ScoresMeta::default(),
                Detail::Mean,
                Provenance::default(),
            );
            assert!(matches!(refused, Err(Error::Invalid(_))));
        }
    }
}
