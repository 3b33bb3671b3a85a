//! Which rows are the strongest: a few of each component, each place once.

use std::collections::HashMap;

use polars::prelude::{IdxCa, NewChunkedArray};

use crate::plot::columns::Columns;
use crate::scores::Scores;

/// Rows in all, when nobody says how many of each component.
const ROWS: usize = 12;
/// Rows of a table that has one component.
const ROWS_OF_ONE: usize = 10;
/// Rows of one place among those of a component.
const OF_A_PLACE: usize = 3;

/// The strongest `each` rows of each component (and target, and template), by magnitude of `score`; of equals, the earlier
/// first. Rows of the table's own metric, if it has any.
pub fn strongest(scores: &Scores, each: usize) -> Scores {
    let columns = Columns::of(scores);
    let mut groups = groups(&columns);
    groups.iter_mut().for_each(|group| group.truncate(each));
    with_rows(scores, &groups.concat())
}

pub(super) fn with_rows(scores: &Scores, rows: &[u32]) -> Scores {
    let index = IdxCa::from_slice("row".into(), rows);
    let table = scores
        .table
        .take(&index)
        .expect("the rows were counted from this table");
    Scores {
        table,
        provenance: scores.provenance.clone(),
        sides: Vec::new(),
    }
}

/// A few rows of each component. A component that is measured at several places shows the strongest layer of each place before a
/// second layer of the strongest place, and no place more than three times. Also says whether this passed over a stronger row.
pub(super) fn suggested(columns: &Columns) -> (Vec<u32>, bool) {
    let mut groups = groups(columns);
    // A table of a row each, such as one of methods, is shown whole as far as a page goes.
    let is_of_single_rows = groups.iter().all(|group| group.len() == 1);
    let most = if is_of_single_rows { 2 * ROWS } else { ROWS };
    if groups.len() > most {
        let first = |group: &Vec<u32>| strength(columns, group[0]);
        groups.sort_by(|a, b| first(b).total_cmp(&first(a)));
        groups.truncate(ROWS);
    }
    let each = (ROWS / groups.len().max(1)).clamp(1, ROWS_OF_ONE);
    let mut chosen = Vec::new();
    let mut passed_over = false;
    for group in groups {
        let rows = one_of_each_place(columns, &group, each);
        passed_over |= rows != group[..rows.len()];
        chosen.extend(rows);
    }
    (chosen, passed_over)
}

/// The first `each` rows of a sorted group, but no place twice while there are others that are not weak beside the first.
pub(super) fn one_of_each_place(columns: &Columns, group: &[u32], each: usize) -> Vec<u32> {
    const WEAK: f64 = 0.1;
    const NOTHING: f64 = 0.001;
    let place = |row: u32| {
        let row = row as usize;
        let role = columns.role[row].filter(|_| columns.pos[row].is_none());
        (columns.pos[row], role)
    };
    let has_places = group.iter().any(|&row| place(row) != (None, None));
    let has_heads = group
        .iter()
        .any(|&row| columns.head[row as usize].is_some());
    let least = WEAK * strength(columns, group[0]);
    let nothing = NOTHING * strength(columns, group[0]);
    let mut known: HashMap<_, usize> = HashMap::new();
    let mut rank = |row: u32| {
        let so_far = known.entry(place(row)).or_default();
        *so_far += 1;
        *so_far - 1
    };
    // Heads, and what has no places, are ranked as they are.
    let counts = has_places && !has_heads;
    let (first, second): (Vec<_>, Vec<_>) = (group.iter().map(|&row| (rank(row), row)))
        .filter(|&(rank, row)| !counts || rank < OF_A_PLACE && strength(columns, row) >= nothing)
        .partition(|&(rank, row)| !counts || rank == 0 && strength(columns, row) >= least);
    let chosen = first.into_iter().chain(second).take(each);
    let mut rows: Vec<u32> = chosen.map(|(_, row)| row).collect();
    rows.sort_by(|&a, &b| strength(columns, b).total_cmp(&strength(columns, a)));
    rows
}

fn strength(columns: &Columns, row: u32) -> f64 {
    let score = columns.score[row as usize].unwrap_or(f64::NAN);
    if score.is_nan() { -1.0 } else { score.abs() }
}

/// Rows, component by component in the order of the table, each with its strongest first.
pub(super) fn groups(columns: &Columns) -> Vec<Vec<u32>> {
    let has_own = (0..columns.height).any(|row| columns.is_own(row));
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut known = HashMap::new();
    for row in (0..columns.height).filter(|&row| !has_own || columns.is_own(row)) {
        let key = (
            columns.metric[row],
            columns.component[row],
            columns.target[row],
            columns.template[row],
        );
        let next = groups.len();
        let at = *known.entry(key).or_insert(next);
        if at == next {
            groups.push(Vec::new());
        }
        groups[at].push(row as u32);
    }
    for group in &mut groups {
        group.sort_by(|&a, &b| strength(columns, b).total_cmp(&strength(columns, a)));
    }
    groups
}
