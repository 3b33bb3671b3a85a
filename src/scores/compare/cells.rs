//! The rows of a table by what says which cell they are.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::by::ComparedBy;
use crate::error::{Error, Result};
use crate::scores::{Column, Scores};

/// Columns that say which cell a row is.
pub(super) const CELL: [Column; 12] = [
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
/// One cell of one table.
#[derive(Debug, Default)]
pub(super) struct Measured {
    /// The row that it was read from, or the first of them.
    pub row: usize,
    /// By pair; of a table of means one number, under pair 0.
    pub values: BTreeMap<i64, f64>,
    pub interval: Option<(f64, f64)>,
    pub n: i64,
    /// Rows beyond the first of each pair, which only columns of this table alone tell apart.
    pub more: usize,
}

impl Measured {
    pub fn mean(&self) -> f64 {
        self.values.values().sum::<f64>() / self.values.len() as f64
    }
}

/// The columns that tell the cells of a table apart.
pub(super) fn labels(scores: &Scores) -> HashSet<Column> {
    let is_filled = |column: &Column| {
        scores
            .table
            .column(column.name())
            .is_ok_and(|filled| filled.null_count() < filled.len())
    };
    CELL.into_iter().filter(is_filled).collect()
}

/// The cells of a table's own metric, by what says which cell they are.
pub(super) fn cells(
    scores: &Scores,
    by: ComparedBy,
    labels: &HashSet<Column>,
) -> Result<HashMap<Vec<String>, Measured>> {
    let missing = || {
        Error::invalid(format!(
            "the results of `{}` have no `{by}`{}",
            scores.provenance.method,
            if by == ComparedBy::Normalised {
                ": its method gives none, or the gap between the two runs could be zero; `ComparedBy::Score` compares scores, each in its own unit and direction"
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
            cell.more += 1;
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

/// The first of them in words.
pub(super) fn example_of(cells: &HashMap<Vec<String>, Measured>) -> String {
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
