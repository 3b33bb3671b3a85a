//! The strongest rows of a table, a few of each component, as a table for people.
//!
//! Each number stands beside its own interval, and other measures of the same cell beside the table's own metric. Columns in
//! which nothing differs or nothing stands are left out.

mod columns;
mod fit;
mod rows;
#[cfg(test)]
mod tests;

use columns::{named_columns, shown_columns};
pub(super) use fit::Shown;
use fit::fit;
pub use rows::strongest;
use rows::{groups, suggested};

use super::columns::Columns;
use crate::scores::Scores;
use crate::text::cut;

/// The strongest rows of each component as aligned text, no wider than `most`; a last line names columns that did not fit.
/// `whole` is the table with its side tables behind it.
pub(super) fn ranked_table(
    scores: &Scores,
    whole: &Scores,
    each: Option<usize>,
    most: usize,
) -> String {
    let columns = Columns::of(scores);
    let (rows, passed_over) = match each {
        Some(each) => {
            let mut groups = groups(&columns);
            groups.iter_mut().for_each(|group| group.truncate(each));
            (groups.concat(), false)
        }
        None => suggested(&columns),
    };
    if rows.is_empty() {
        return String::new();
    }
    let shown = shown_columns(scores, whole, &rows);
    let mut text = String::new();
    if passed_over {
        let heading = "the strongest rows, one layer of each place first and three at most (`--top N` takes them strictly)";
        text = cut(heading, most) + "\n";
    }
    text + &fit(shown, most)
}

/// The first rows of a table in its own order, no wider than `most`: some columns, or those that tell the rows apart.
pub fn listed(scores: &Scores, columns: &[String], rows: usize, most: usize) -> String {
    let n = scores.table.height().min(rows) as u32;
    let first: Vec<u32> = (0..n).collect();
    let shown = if columns.is_empty() {
        shown_columns(scores, scores, &first)
    } else {
        named_columns(scores, &first, columns)
    };
    let mut text = fit(shown, most);
    let more = scores.table.height() - n as usize;
    if more > 0 {
        text += &format!("... and {more} more rows (`--top`)\n");
    }
    text
}

/// The suggested rows, column by column.
pub(super) fn suggested_columns(scores: &Scores, whole: &Scores) -> Vec<Shown> {
    let (rows, _) = suggested(&Columns::of(scores));
    shown_columns(scores, whole, &rows)
}
