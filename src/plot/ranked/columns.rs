//! The columns of some rows, as they are shown.

use std::collections::{BTreeMap, HashMap};

use polars::prelude::{AnyValue, Column};

use super::fit::Shown;
use super::rows::with_rows;
use crate::plot::columns::Columns;
use crate::plot::places::Places;
use crate::scores::Scores;
use crate::text::{Align, visible};

/// What all rows of a table share, or what stands elsewhere in it.
const HIDDEN: [&str; 9] = [
    "method",
    "direction",
    "base",
    "value",
    "ci_low",
    "ci_high",
    "normalised_low",
    "normalised_high",
    "example",
];
/// These follow the coordinates and their intervals, whatever stands between them in the table.
const LAST: [&str; 4] = ["n", "exact", "checked", "contribution"];

/// The columns of some rows that tell them apart or measure something.
pub(super) fn shown_columns(scores: &Scores, whole: &Scores, rows: &[u32]) -> Vec<Shown> {
    let chosen = with_rows(scores, rows);
    let mut shown = coordinates(scores, &chosen);
    for (name, low, high) in [
        ("score", "ci_low", "ci_high"),
        ("normalised", "normalised_low", "normalised_high"),
    ] {
        shown.extend(number_with_interval(&chosen, name, low, high));
    }
    let last = LAST.iter().filter_map(|name| chosen.column(name));
    shown.extend(last.filter_map(plain_column));
    shown.extend(other_measures(&Columns::of(whole), rows));
    shown
}

/// Some columns of some rows, as they are; of one that is empty there, its title.
pub(super) fn named_columns(scores: &Scores, rows: &[u32], names: &[String]) -> Vec<Shown> {
    let chosen = with_rows(scores, rows);
    let column = |name: &String| {
        let shown = chosen.table.column(name).ok().and_then(plain_column);
        shown.unwrap_or_else(|| Shown {
            title: visible(name),
            cells: vec![String::new(); rows.len()],
            align: Align::Left,
        })
    };
    names.iter().map(column).collect()
}

/// Columns that say which cell a row is.
fn coordinates(scores: &Scores, chosen: &Scores) -> Vec<Shown> {
    let is_number = |name: &str| ["score", "normalised"].contains(&name) || LAST.contains(&name);
    let columns = chosen.table.columns().iter();
    columns
        .filter(|column| {
            let name = column.name().as_str();
            let is_per_example = name == "example" && column.null_count() < column.len();
            let is_shared = match name {
                "metric" | "model" | "task" | "seed" => column.n_unique().is_ok_and(|n| n == 1),
                name => HIDDEN.contains(&name),
            };
            (!is_shared || is_per_example) && !is_number(name)
        })
        .filter_map(|column| match column.name().as_str() {
            "token" => token_column(scores, chosen).or_else(|| plain_column(column)),
            _ => plain_column(column),
        })
        .collect()
}

/// The tokens of both runs where they differ.
fn token_column(scores: &Scores, chosen: &Scores) -> Option<Shown> {
    let columns = Columns::of(chosen);
    if !columns.is_averaged() {
        return None;
    }
    let places = Places::of(&scores.provenance);
    let token = |row: usize| {
        let token = columns.token[row];
        match columns.pos[row] {
            Some(pos) => places.token(pos, columns.template[row], token),
            None => token.map(visible),
        }
    };
    let cells: Vec<String> = (0..columns.height)
        .map(|row| token(row).unwrap_or_default())
        .collect();
    let is_filled = cells.iter().any(|cell| !cell.is_empty());
    is_filled.then(|| Shown {
        title: "token".into(),
        cells,
        align: Align::Left,
    })
}

/// A column as it is, if anything stands in it.
fn plain_column(column: &Column) -> Option<Shown> {
    if column.null_count() == column.len() {
        return None;
    }
    let values = || (0..column.len()).map(|row| column.get(row).unwrap_or(AnyValue::Null));
    let floats = values().filter_map(|value| match value {
        AnyValue::Float64(number) => Some(number),
        _ => None,
    });
    let places = decimals(floats);
    let text = |value: AnyValue| match value {
        AnyValue::Null => String::new(),
        AnyValue::Float64(number) => fixed(number, places),
        other => visible(&other.str_value()),
    };
    let is_number = column.dtype().is_primitive_numeric();
    Some(Shown {
        title: column.name().to_string(),
        cells: values().map(text).collect(),
        align: if is_number { Align::Right } else { Align::Left },
    })
}

/// A number, and its interval where there is one.
fn number_with_interval(scores: &Scores, name: &str, low: &str, high: &str) -> Vec<Shown> {
    let column = |name: &str| scores.floats(name).unwrap_or_default();
    let (values, low, high) = (column(name), column(low), column(high));
    if values.iter().all(Option::is_none) {
        return Vec::new();
    }
    let places = decimals(values.iter().flatten().copied());
    let number = |value: &Option<f64>| value.map_or(String::new(), |v| fixed(v, places));
    let mut shown = vec![Shown {
        title: name.into(),
        cells: values.iter().map(number).collect(),
        align: Align::Right,
    }];
    if low.iter().any(Option::is_some) {
        let interval = |ends: (&Option<f64>, &Option<f64>)| match ends {
            (Some(low), Some(high)) => {
                format!("[{}, {}]", fixed(*low, places), fixed(*high, places))
            }
            _ => String::new(),
        };
        shown.push(Shown {
            title: "95% interval".into(),
            cells: low.iter().zip(&high).map(interval).collect(),
            align: Align::Right,
        });
    }
    shown
}

/// A number without the sign of a zero.
pub(super) fn fixed(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    match text.strip_prefix('-') {
        Some(magnitude) if magnitude.chars().all(|c| matches!(c, '0' | '.')) => magnitude.into(),
        _ => text,
    }
}

/// Places after the point that give the largest of these numbers four digits.
pub(super) fn decimals(numbers: impl Iterator<Item = f64>) -> usize {
    let largest = numbers
        .filter(|number| number.is_finite())
        .fold(0.0, |most: f64, number| most.max(number.abs()));
    if largest == 0.0 {
        return 3;
    }
    (3 - largest.log10().floor() as i32).clamp(1, 8) as usize
}

/// What else was measured of the same cells, a column a measure.
fn other_measures(columns: &Columns, rows: &[u32]) -> Vec<Shown> {
    let cells: HashMap<_, usize> = (rows.iter().enumerate())
        .map(|(at, &row)| {
            (
                (columns.cell(row as usize), columns.example[row as usize]),
                at,
            )
        })
        .collect();
    let own: Vec<Option<&str>> = rows
        .iter()
        .map(|&row| columns.metric[row as usize])
        .collect();
    let mut order: Vec<&str> = Vec::new();
    let mut measures: BTreeMap<&str, Vec<Option<f64>>> = BTreeMap::new();
    for row in 0..columns.height {
        let Some(measure) = columns.metric[row].filter(|&measure| !own.contains(&Some(measure)))
        else {
            continue;
        };
        if let Some(&at) = cells.get(&(columns.cell(row), columns.example[row])) {
            let values = measures.entry(measure).or_insert_with(|| {
                order.push(measure);
                vec![None; rows.len()]
            });
            values[at] = columns.score[row];
        }
    }
    let column = |measure: &str| {
        let values = &measures[measure];
        let places = decimals(values.iter().flatten().copied());
        let number = |value: &Option<f64>| value.map_or(String::new(), |v| fixed(v, places));
        Shown {
            title: visible(measure),
            cells: values.iter().map(number).collect(),
            align: Align::Right,
        }
    };
    order.into_iter().map(column).collect()
}
