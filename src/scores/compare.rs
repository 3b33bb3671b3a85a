//! Results of two runs, joined on what was changed or read: how far they agree, and the difference of each row with its interval.
//!
//! Two models, two revisions, two tasks or two methods. Rows are joined by all columns that say which cell they are. Where both tables
//! hold a row for each pair, differences are taken pair by pair and their interval is a bootstrap over pairs; of means the interval is
//! that of two independent estimates, which is too wide where both are of the same pairs.

mod by;
mod cells;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

pub use by::ComparedBy;
use cells::{Measured, cells, example_of, labels};
use table::table;

use super::agreement::Agreement;
use super::provenance::Provenance;
use super::{Column, Scores};
use crate::error::{Error, Result};

/// Two results, joined.
#[derive(Debug, Clone, PartialEq)]
pub struct Compared {
    /// A row for each cell that both have: `value` is the second's number, `score` the second's less the first's.
    pub table: Scores,
    pub by: ComparedBy,
    /// Cells of both, of the first alone, of the second alone.
    pub cells: (usize, usize, usize),
    /// Over the cells of both.
    pub agreement: Agreement,
    /// Whether differences were taken pair by pair.
    pub is_paired: bool,
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
            "one of them has a row for each pair and the other has means; measure both with `Running::detail = PerExample` or both without",
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
            "rows of single pairs are compared pair by pair, and the two are of different prompts; compare means (without `Running::detail = PerExample`)",
        ));
    }
    // What only one of the tables tells apart says which cell a row is in that one alone, as roles do in two tasks.
    let shared: HashSet<Column> = labels(first)
        .intersection(&labels(second))
        .copied()
        .collect();
    let (ours, theirs) = (cells(first, by, &shared)?, cells(second, by, &shared)?);
    let mut joined: Vec<(&Measured, &Measured)> = (ours.iter())
        .filter_map(|(key, one)| Some((one, theirs.get(key)?)))
        .collect();
    joined.sort_by_key(|(one, _)| one.row);
    for (scores, several) in [
        (first, joined.iter().any(|(one, _)| one.more > 0)),
        (second, joined.iter().any(|(_, other)| other.more > 0)),
    ] {
        if several {
            return Err(Error::invalid(format!(
                "several rows of the results of `{}` are one and the same in the other: these are taken apart further, or hold several \
                 quantities; measure both alike",
                scores.provenance.method
            )));
        }
    }
    if joined.is_empty() {
        return Err(Error::invalid(format!(
            "they have no row in common: of the first a row is {}, of the second {}",
            example_of(&ours),
            example_of(&theirs)
        )));
    }
    let numbers: Vec<(f64, f64)> = joined.iter().map(|(a, b)| (a.mean(), b.mean())).collect();
    let n = joined.len();
    let rows = |cells: &HashMap<Vec<String>, Measured>| {
        cells.values().map(|cell| 1 + cell.more).sum::<usize>()
    };
    Ok(Compared {
        table: table(first, second, &joined, by, is_paired)?,
        by,
        cells: (n, rows(&ours) - n, rows(&theirs) - n),
        agreement: Agreement::of(&numbers),
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
        let intervals = if self.is_paired {
            "differences are pair by pair, their intervals a bootstrap over pairs"
        } else {
            "intervals are those of two independent estimates, too wide where both are of the same pairs"
        };
        vec![
            rows,
            self.agreement.line(&self.by.to_string()),
            intervals.into(),
        ]
    }
}
