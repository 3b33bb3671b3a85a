//! Results of two runs, joined on what was changed or read: how far they agree, and the difference of each row with its interval.
//!
//! Two models, two revisions, two tasks or two methods. Rows are joined by all columns that say which cell they are. Where both tables
//! hold a row for each pair, differences are taken pair by pair and their interval is a bootstrap over pairs; of means the interval is
//! that of two independent estimates, which is too wide where both are of the same pairs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use polars::prelude::{Column as Filled, DataFrame, IntoColumn, NewChunkedArray, StringChunked};

use super::interval::Bootstrap;
use super::provenance::Provenance;
use super::statistics::{correlation, rank_correlation};
use super::{Column, Direction, Scores};
use crate::error::{Error, Result};

/// Columns that say which cell a row is.
const CELL: [Column; 12] = [
    Column::Template,
    Column::Component,
    Column::Layer,
    Column::Head,
    Column::Pos,
    Column::Key,
    Column::Role,
    Column::Neuron,
    Column::Src,
    Column::Dst,
    Column::Target,
    Column::Token,
];
/// Of the strongest rows of each, so many are looked for in the other.
const STRONGEST: usize = 10;

/// Which number is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ComparedBy {
    /// In the metric's own unit.
    Score,
    /// As shares of the gap between the two runs, whatever the metric and the direction.
    Normalised,
}

impl fmt::Display for ComparedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ComparedBy::Score => "score",
            ComparedBy::Normalised => "normalised",
        })
    }
}

/// Two results, joined.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// A row for each cell that both have: `value` is the second's number, `score` the second's less the first's.
    pub table: Scores,
    pub by: ComparedBy,
    /// Cells of both, of the first alone, of the second alone.
    pub cells: (usize, usize, usize),
    /// Pearson's and Spearman's over the cells of both; `None` where one of them does not vary.
    pub correlation: Option<f64>,
    pub rank_correlation: Option<f64>,
    /// Of the strongest rows of each, how many are among the strongest of the other, and of how many.
    pub shared_strongest: (usize, usize),
    /// Whether differences were taken pair by pair.
    pub is_paired: bool,
}

/// One cell of one table.
#[derive(Debug, Default)]
struct Measured {
    /// The row that it was read from, or the first of them.
    row: usize,
    /// By pair; of a table of means one number, under pair 0.
    values: BTreeMap<i64, f64>,
    interval: Option<(f64, f64)>,
    n: i64,
}

/// A cell of both, compared.
struct Row {
    value: f64,
    difference: f64,
    interval: Option<(f64, f64)>,
    n: i32,
}

/// Joins two results. Without `by`, scores are compared where both measure one metric in one direction, else shares of the gap.
/// # Errors
/// [`Error::Invalid`] if they have no cell in common, or one of them has no such number.
pub fn compare(first: &Scores, second: &Scores, by: Option<ComparedBy>) -> Result<Compared> {
    let (a, b) = (&first.provenance, &second.provenance);
    let is_one_measure = a.metric == b.metric && a.direction == b.direction;
    let by = by.unwrap_or(if is_one_measure {
        ComparedBy::Score
    } else {
        ComparedBy::Normalised
    });
    let pairs = |scores: &Scores| scores.integers(Column::Example.name());
    let is_paired = pairs(first).is_some() && pairs(second).is_some() && by == ComparedBy::Score;
    if pairs(first).is_some() != pairs(second).is_some() {
        return Err(Error::invalid(
            "one of them has a row for each pair and the other has means; measure both with `--per-example` or both without",
        ));
    }
    if pairs(first).is_some() && by == ComparedBy::Normalised {
        return Err(Error::invalid(
            "shares of the gap are ratios of means, which rows of single pairs do not have; compare tables of means, or scores",
        ));
    }
    let texts = |about: &Provenance| -> Vec<String> {
        about
            .prompts
            .iter()
            .map(|one| format!("{} {}", one.example, one.clean_text))
            .collect()
    };
    if is_paired && texts(a) != texts(b) {
        return Err(Error::invalid(
            "rows of single pairs are compared pair by pair, and the two are of different prompts; compare means (without `--per-example`)",
        ));
    }
    // What only one of the tables tells apart says which cell a row is in that one alone, as roles do in two tasks.
    let labels = |scores: &Scores| -> HashSet<Column> {
        let is_filled = |column: &Column| {
            scores
                .table
                .column(column.name())
                .is_ok_and(|filled| filled.null_count() < filled.len())
        };
        CELL.into_iter().filter(is_filled).collect()
    };
    let shared: HashSet<Column> = labels(first)
        .intersection(&labels(second))
        .copied()
        .collect();
    let (ours, theirs) = (cells(first, by, &shared)?, cells(second, by, &shared)?);
    let mut joined: Vec<(&Measured, &Measured)> = (ours.iter())
        .filter_map(|(key, one)| Some((one, theirs.get(key)?)))
        .collect();
    joined.sort_by_key(|(one, _)| one.row);
    if joined.is_empty() {
        return Err(Error::invalid(format!(
            "they have no row in common: of the first a row is {}, of the second {}",
            example_of(&ours),
            example_of(&theirs)
        )));
    }
    let numbers: Vec<(f64, f64)> = joined.iter().map(|(a, b)| (a.mean(), b.mean())).collect();
    let n = joined.len();
    Ok(Compared {
        table: table(first, second, &joined, by, is_paired)?,
        by,
        cells: (n, ours.len() - n, theirs.len() - n),
        correlation: correlation(&numbers),
        rank_correlation: rank_correlation(&numbers),
        shared_strongest: shared_strongest(&numbers),
        is_paired,
    })
}

impl Compared {
    /// What a person should read first, a line each.
    pub fn lines(&self) -> Vec<String> {
        let (both, first, second) = self.cells;
        let mut rows = format!("{both} rows in both");
        if first + second > 0 {
            rows += &format!("; {first} only in the first, {second} only in the second");
        }
        let number =
            |value: Option<f64>| value.map_or("none".into(), |value| format!("{value:.3}"));
        let (shared, of) = self.shared_strongest;
        let intervals = if self.is_paired {
            "differences are pair by pair, their intervals a bootstrap over pairs"
        } else {
            "intervals are those of two independent estimates, too wide where both are of the same pairs"
        };
        vec![
            rows,
            format!(
                "correlation of {} {}, rank correlation {}; of the {of} strongest of each {shared} are shared",
                self.by,
                number(self.correlation),
                number(self.rank_correlation)
            ),
            intervals.into(),
        ]
    }
}

impl Measured {
    fn mean(&self) -> f64 {
        self.values.values().sum::<f64>() / self.values.len() as f64
    }
}

/// The cells of a table's own metric, by what says which cell they are.
fn cells(
    scores: &Scores,
    by: ComparedBy,
    labels: &HashSet<Column>,
) -> Result<HashMap<Vec<String>, Measured>> {
    let missing = || {
        Error::invalid(format!(
            "the results of `{}` have no `{by}`{}",
            scores.provenance.method,
            if by == ComparedBy::Normalised {
                ": its method gives none, or the gap between the two runs could be zero; `--by score` compares scores, each in its own unit and direction"
            } else {
                ""
            }
        ))
    };
    let (low, high) = match by {
        ComparedBy::Score => (Column::CiLow, Column::CiHigh),
        ComparedBy::Normalised => (Column::NormalisedLow, Column::NormalisedHigh),
    };
    let height = scores.table.height();
    let floats = |column: Column| {
        scores
            .floats(column.name())
            .unwrap_or_else(|| vec![None; height])
    };
    let integers = |column: Column| {
        scores
            .integers(column.name())
            .unwrap_or_else(|| vec![None; height])
    };
    let values = scores.floats(&by.to_string()).ok_or_else(missing)?;
    let (low, high, n) = (floats(low), floats(high), integers(Column::N));
    let (examples, positions) = (integers(Column::Example), integers(Column::Pos));
    let columns: Vec<(Column, Vec<String>)> = CELL
        .into_iter()
        .filter(|column| labels.contains(column))
        .map(|column| (column, texts(scores, column)))
        .collect();
    let mut found: HashMap<Vec<String>, Measured> = HashMap::new();
    for row in 0..height {
        let Some(value) = values[row] else { continue };
        // A token, and at a position a role, is a label of it and no more.
        let is_label = |column: Column| {
            column == Column::Token || column == Column::Role && positions[row].is_some()
        };
        let key = columns
            .iter()
            .filter(|(column, _)| !is_label(*column))
            .map(|(_, texts)| texts[row].clone())
            .collect();
        let cell = found.entry(key).or_insert_with(|| Measured {
            row,
            interval: low[row].zip(high[row]),
            n: n[row].unwrap_or(1),
            ..Measured::default()
        });
        if cell
            .values
            .insert(examples[row].unwrap_or(0), value)
            .is_some()
        {
            return Err(Error::invalid(format!(
                "several rows of the results of `{}` are one and the same in the other: these are taken apart further, or hold several \
                 quantities; measure both alike",
                scores.provenance.method
            )));
        }
    }
    if found.is_empty() {
        return Err(missing());
    }
    Ok(found)
}

/// A column as text, empty where it is null.
fn texts(scores: &Scores, column: Column) -> Vec<String> {
    let name = column.name();
    if let Some(texts) = scores.texts(name) {
        return texts
            .into_iter()
            .map(|text| text.unwrap_or_default().to_string())
            .collect();
    }
    let numbers = scores.integers(name).unwrap_or_default();
    numbers
        .into_iter()
        .map(|n| n.map_or(String::new(), |n| n.to_string()))
        .collect()
}

fn example_of(cells: &HashMap<Vec<String>, Measured>) -> String {
    let first = cells.iter().min_by_key(|(_, cell)| cell.row);
    let words = first.map_or(Vec::new(), |(key, _)| {
        key.iter().filter(|word| !word.is_empty()).collect()
    });
    let words: Vec<String> = words
        .into_iter()
        .map(|word| crate::text::visible(word))
        .collect();
    format!("`{}`", words.join(" "))
}

fn shared_strongest(numbers: &[(f64, f64)]) -> (usize, usize) {
    let of = STRONGEST.min(numbers.len());
    let strongest = |number: fn(&(f64, f64)) -> f64| -> HashSet<usize> {
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by(|&i, &j| {
            number(&numbers[j])
                .abs()
                .total_cmp(&number(&numbers[i]).abs())
        });
        order.into_iter().take(of).collect()
    };
    let (ours, theirs) = (strongest(|pair| pair.0), strongest(|pair| pair.1));
    (ours.intersection(&theirs).count(), of)
}

fn table(
    first: &Scores,
    second: &Scores,
    joined: &[(&Measured, &Measured)],
    by: ComparedBy,
    is_paired: bool,
) -> Result<Scores> {
    let height = joined.len();
    let mut bootstraps: HashMap<usize, Bootstrap> = HashMap::new();
    let seed = first.provenance.seed;
    let mut rows: Vec<Row> = Vec::with_capacity(height);
    for (one, other) in joined {
        if !is_paired {
            let half = |cell: &Measured| cell.interval.map(|(low, high)| (high - low) / 2.0);
            let difference = other.mean() - one.mean();
            let half = half(one).zip(half(other)).map(|(a, b)| a.hypot(b));
            let interval = half.map(|half| (difference - half, difference + half));
            rows.push(Row {
                value: other.mean(),
                difference,
                interval,
                n: one.n.min(other.n) as i32,
            });
            continue;
        }
        let differences: Vec<f64> = (one.values.iter())
            .filter_map(|(pair, value)| Some(other.values.get(pair)? - value))
            .collect();
        let n = differences.len();
        let bootstrap = bootstraps
            .entry(n)
            .or_insert_with(|| Bootstrap::new(seed, n));
        let mean = differences.iter().sum::<f64>() / n as f64;
        rows.push(Row {
            value: other.mean(),
            difference: mean,
            interval: bootstrap.interval_of_mean(&differences),
            n: n as i32,
        });
    }
    let metric = match by {
        ComparedBy::Score => format!("difference of {}", second.provenance.metric),
        ComparedBy::Normalised => "difference of normalised".into(),
    };
    let once = |column: Column, text: &str| {
        StringChunked::from_iter_values(column.name().into(), std::iter::repeat_n(text, height))
            .into_column()
    };
    let float =
        |column: Column, values: Vec<Option<f64>>| Filled::new(column.name().into(), values);
    let places = polars::prelude::IdxCa::from_vec(
        "row".into(),
        joined.iter().map(|(one, _)| one.row as u32).collect(),
    );
    let of_first = first.table.take(&places)?;
    let columns = Column::ALL.iter().map(|&column| {
        Ok(match column {
            Column::Method => once(column, "compare"),
            Column::Metric => once(column, &metric),
            Column::Direction => once(column, &Direction::Direct.to_string()),
            Column::N => Filled::new(
                column.name().into(),
                rows.iter().map(|row| row.n).collect::<Vec<_>>(),
            ),
            Column::Value => float(column, rows.iter().map(|row| Some(row.value)).collect()),
            Column::Score => float(
                column,
                rows.iter().map(|row| Some(row.difference)).collect(),
            ),
            Column::CiLow => float(
                column,
                rows.iter().map(|row| Some(row.interval?.0)).collect(),
            ),
            Column::CiHigh => float(
                column,
                rows.iter().map(|row| Some(row.interval?.1)).collect(),
            ),
            Column::Model => once(column, &second.provenance.model.id),
            Column::Task => once(column, &second.provenance.task),
            column if CELL.contains(&column) => of_first.column(column.name())?.clone(),
            column => column.empty(height),
        })
    });
    let columns: Vec<Filled> = columns.collect::<Result<_>>()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let unit = match by {
        ComparedBy::Score => second.provenance.unit.clone(),
        ComparedBy::Normalised => "of the gap".into(),
    };
    Ok(Scores {
        table: DataFrame::new(height, columns)?,
        provenance: Provenance {
            version: crate::BUILD.into(),
            created: now.map_or(0, |time| time.as_secs()),
            dtype: second.provenance.dtype.clone(),
            device: second.provenance.device.clone(),
            bos: second.provenance.bos,
            chat: second.provenance.chat,
            task_text: second.provenance.task_text.clone(),
            dropped: second.provenance.dropped,
            drops: second.provenance.drops.clone(),
            method: "compare".into(),
            metric,
            unit,
            direction: Direction::Direct,
            seed,
            model: second.provenance.model.clone(),
            spec: second.provenance.spec.clone(),
            task: second.provenance.task.clone(),
            prompts: second.provenance.prompts.clone(),
            token_texts: second.provenance.token_texts.clone(),
            examples: rows.iter().map(|row| row.n).max().unwrap_or(0) as usize,
            mean_clean: f64::NAN,
            mean_corrupted: f64::NAN,
            ..Provenance::default()
        },
        sides: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Cell, Detail, ExampleScores, ScoresMeta};

    /// Heads of one layer, with values by pair.
    fn scores(heads: &[u32], values: &[&[f64]], detail: Detail) -> Scores {
        let cells: Vec<Cell> = (heads.iter())
            .map(|&head| Cell {
                head: Some(head),
                ..Cell::in_layer("attn.hook_z", 1)
            })
            .collect();
        let examples: Vec<ExampleScores> = (values.iter().enumerate())
            .map(|(example, values)| ExampleScores {
                example,
                clean: 0.0,
                corrupted: 10.0,
                cells: (0..heads.len() as u32).collect(),
                values: values.to_vec(),
                ..ExampleScores::default()
            })
            .collect();
        let meta = ScoresMeta {
            metric: "logit_diff".into(),
            direction: Direction::Denoise,
            ..ScoresMeta::default()
        };
        Scores::assemble(&cells, &examples, &meta, detail, Provenance::default()).unwrap()
    }

    const A: [&[f64]; 3] = [&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0], &[3.0, 4.0, 8.0]];
    const B: [&[f64]; 3] = [&[3.0, 1.5, 0.0], &[4.0, 2.5, 0.0], &[5.0, 3.5, 0.0]];

    #[test]
    fn rows_are_joined_by_cell_and_differences_are_taken_pair_by_pair() {
        let first = scores(&[0, 1, 2], &A, Detail::PerExample);
        // The same cells in another order, one missing and one more.
        let second = scores(&[2, 0, 7], &B, Detail::PerExample);
        let found = compare(&first, &second, None).unwrap();
        assert_eq!(
            (found.cells, found.is_paired, found.by),
            ((2, 1, 1), true, ComparedBy::Score)
        );
        let column = |name: &str| found.table.floats(name).unwrap();
        // Head 0: 1.5 - 1, 2.5 - 2, 3.5 - 3; head 2: 3 - 3, 4 - 4, 5 - 8.
        assert_eq!(column("score"), [Some(0.5), Some(-1.0)]);
        assert_eq!(column("value"), [Some(-7.5), Some(-6.0)]);
        assert_eq!(
            (column("ci_low")[0], column("ci_high")[0]),
            (Some(0.5), Some(0.5))
        );
        assert_eq!(column("ci_low")[1], Some(-3.0));
        assert_eq!(found.table.integers("head").unwrap(), [Some(0), Some(2)]);
        assert_eq!(found.table.integers("n").unwrap(), [Some(3), Some(3)]);
    }

    #[test]
    fn means_are_compared_as_independent_estimates() {
        let first = scores(&[0, 1, 2], &A, Detail::Mean);
        let found = compare(&first, &first, None).unwrap();
        assert!(!found.is_paired);
        assert_eq!(
            (found.correlation, found.rank_correlation),
            (Some(1.0), Some(1.0))
        );
        assert_eq!((found.cells, found.shared_strongest), ((3, 0, 0), (3, 3)));
        let column = |scores: &Scores, name: &str| scores.floats(name).unwrap();
        for row in 0..3 {
            assert_eq!(column(&found.table, "score")[row], Some(0.0));
            let half = (column(&first, "ci_high")[row].unwrap()
                - column(&first, "ci_low")[row].unwrap())
                / 2.0;
            let high = column(&found.table, "ci_high")[row].unwrap();
            assert!((high - half * 2f64.sqrt()).abs() < 1e-12, "{high} {half}");
        }
        let by_share = compare(&first, &first, Some(ComparedBy::Normalised)).unwrap();
        assert_eq!(column(&by_share.table, "score")[0], Some(0.0));
        assert_eq!(by_share.table.provenance.metric, "difference of normalised");
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let means = scores(&[0, 1, 2], &A, Detail::Mean);
        let pairs = scores(&[0, 1, 2], &A, Detail::PerExample);
        let others = scores(&[5, 6, 7], &A, Detail::Mean);
        let refused = |a: &Scores, b: &Scores, by, says: &str| {
            let error = compare(a, b, by).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused(&means, &pairs, None, "--per-example");
        refused(
            &pairs,
            &pairs,
            Some(ComparedBy::Normalised),
            "ratios of means",
        );
        refused(&means, &others, None, "no row in common");
        let mut other_prompts = pairs.clone();
        other_prompts.provenance.prompts = vec![Default::default()];
        refused(&pairs, &other_prompts, None, "different prompts");
        // A table that is taken apart by position, which the other does not know.
        let cells: Vec<Cell> = [0, 1]
            .map(|pos| Cell {
                head: Some(0),
                pos: Some(pos),
                ..Cell::in_layer("attn.hook_z", 1)
            })
            .into();
        let example = ExampleScores {
            cells: [0, 1].into(),
            values: vec![1.0, 2.0],
            ..ExampleScores::default()
        };
        let meta = ScoresMeta::default();
        let about = Provenance::default();
        let finer = Scores::assemble(&cells, &[example], &meta, Detail::Mean, about).unwrap();
        refused(
            &means,
            &finer,
            Some(ComparedBy::Score),
            "taken apart further",
        );
    }
}
