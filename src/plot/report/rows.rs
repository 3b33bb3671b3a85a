//! The rows of a table as the page holds them: by column, a text once.

use std::collections::HashMap;

use polars::prelude::{AnyValue, Column, DataType};
use serde_json::{Map, Value, json};

use crate::plot::columns::Columns;
use crate::scores::Scores;
use crate::text::visible;

/// More rows than this make a page that a browser is slow to open.
pub(super) const MOST_ROWS: usize = 20_000;

/// Which rows of a table (with its side tables behind it) are on the page.
pub(super) struct Rows {
    /// Ascending.
    kept: Vec<u32>,
    n_all: usize,
}

impl Rows {
    /// All rows, or the strongest if they are too many, those of the table's own metric first.
    pub fn of(whole: &Scores) -> Rows {
        let n_all = whole.table.height();
        let mut kept: Vec<u32> = (0..n_all as u32).collect();
        if n_all > MOST_ROWS {
            let columns = Columns::of(whole);
            let strength = |row: u32| {
                let row = row as usize;
                let score = columns.score[row].map_or(0.0, f64::abs);
                (
                    columns.is_own(row),
                    if score.is_nan() { 0.0 } else { score },
                )
            };
            kept.sort_by(|&a, &b| {
                let ((a_own, a), (b_own, b)) = (strength(a), strength(b));
                b_own.cmp(&a_own).then(b.total_cmp(&a))
            });
            kept.truncate(MOST_ROWS);
            kept.sort_unstable();
        }
        Rows { kept, n_all }
    }

    pub fn n_kept(&self) -> usize {
        self.kept.len()
    }

    /// Rows of the table that are on the page, ascending.
    pub fn kept(&self) -> impl Iterator<Item = usize> {
        self.kept.iter().map(|&row| row as usize)
    }

    /// Where a row of the table stands on the page.
    pub fn place(&self, row: usize) -> Option<usize> {
        self.kept.binary_search(&(row as u32)).ok()
    }

    /// `{all, n, columns}`, where a column that is the same in all rows has one value.
    pub fn json(&self, whole: &Scores) -> Value {
        let columns: Vec<Value> = whole
            .table
            .columns()
            .iter()
            .filter_map(|column| self.column(column))
            .collect();
        json!({ "all": self.n_all, "n": self.n_kept(), "columns": columns })
    }

    /// Nothing for a column that applies to no row.
    fn column(&self, column: &Column) -> Option<Value> {
        if column.null_count() == column.len() {
            return None;
        }
        let name = column.name().as_str();
        let values = || {
            self.kept()
                .map(|row| column.get(row).unwrap_or(AnyValue::Null))
        };
        let number = |value: AnyValue| match value {
            AnyValue::Float64(number) => Value::from(number),
            AnyValue::Int32(number) => Value::from(number),
            _ => Value::Null,
        };
        if !matches!(column.dtype(), DataType::String) {
            let values: Vec<Value> = values().map(number).collect();
            return Some(json!({ "name": name, "values": values }));
        }
        let mut texts: Vec<String> = Vec::new();
        let mut known: HashMap<String, usize> = HashMap::new();
        let at: Vec<Option<usize>> = values()
            .map(|value| match value {
                AnyValue::Null => None,
                value => {
                    let text = value.str_value().into_owned();
                    Some(*known.entry(text).or_insert_with_key(|text| {
                        texts.push(text.clone());
                        texts.len() - 1
                    }))
                }
            })
            .collect();
        // What is shown of a text, where it is not the text itself.
        let shown: Map<String, Value> = texts
            .iter()
            .enumerate()
            .filter_map(|(index, text)| {
                let shown = visible(text);
                (shown != *text).then(|| (index.to_string(), shown.into()))
            })
            .collect();
        Some(json!({ "name": name, "texts": texts, "shown": shown, "at": at }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::test_scores;

    #[test]
    fn the_strongest_of_very_many_rows_are_kept_in_their_order() {
        // Scores count up to -1: the first rows are the strongest.
        let scores = test_scores(&["a", "b"], 15_000);
        let rows = Rows::of(&scores);
        assert_eq!((rows.n_kept(), rows.n_all), (MOST_ROWS, 30_000));
        assert_eq!(rows.place(0), Some(0));
        assert_eq!(rows.place(MOST_ROWS - 1), Some(MOST_ROWS - 1));
        assert_eq!(rows.place(MOST_ROWS), None);
        let json = rows.json(&scores);
        let layer = json["columns"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"] == "layer");
        assert_eq!(
            layer.unwrap()["values"].as_array().unwrap().len(),
            MOST_ROWS
        );
    }

    #[test]
    fn a_text_is_there_once_as_it_is_and_as_it_is_shown() {
        let scores = test_scores(&[" a", "\u{202e}"], 2);
        let json = Rows::of(&scores).json(&scores);
        let token = json["columns"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["name"] == "token");
        let token = token.unwrap();
        assert_eq!(token["texts"], json!([" a", "\u{202e}"]));
        assert_eq!(token["shown"], json!({ "0": "·a", "1": "\\u{202e}" }));
        assert_eq!(token["at"], json!([0, 1, 0, 1]));
    }
}
