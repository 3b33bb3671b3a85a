//! The table as text: CSV and JSON lines for pipes, and an aligned table of chosen rows for people.

use std::fmt;
use std::io::{self, Write};

use polars::prelude::{AnyValue, Column as Filled};
use serde_json::{Map, Value};

use super::{Column, Direction, Scores};
use crate::text::{Align, aligned, visible};

impl Scores {
    /// Writes the table as CSV (RFC 4180). Text that a spreadsheet would run as a formula (it begins with `=`, `+`, `-`, `@`,
    /// a tab or a carriage return) gets a `'` in front; JSON and parquet hold the text as it is.
    pub fn to_csv(&self, out: &mut impl Write) -> io::Result<()> {
        let mut csv = csv::Writer::from_writer(out);
        let names = self.table.get_column_names();
        csv.write_record(names.iter().map(|name| name.as_str()))
            .map_err(io_error)?;
        for row in 0..self.table.height() {
            let record = self.row(row).map(|(_, value)| match value {
                AnyValue::String(text) => inert(text),
                AnyValue::StringOwned(text) => inert(&text),
                value => plain(&value),
            });
            csv.write_record(record).map_err(io_error)?;
        }
        csv.flush()
    }

    /// Writes a JSON object a line; absent and non-finite values are `null`.
    pub fn to_json(&self, out: &mut impl Write) -> io::Result<()> {
        for row in 0..self.table.height() {
            let object: Map<String, Value> = self
                .row(row)
                .map(|(name, value)| (name.to_string(), json(&value)))
                .collect();
            serde_json::to_writer(&mut *out, &object)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// The rows as an aligned table, without the columns that all rows share, each line ended; numbers to four places.
    pub fn to_text(&self) -> String {
        let columns: Vec<(Vec<String>, Align)> = self
            .table
            .columns()
            .iter()
            .filter(|column| self.is_shown(column.name(), column))
            .map(|column| {
                let rows =
                    (0..column.len()).map(|row| short(&column.get(row).unwrap_or(AnyValue::Null)));
                let texts = std::iter::once(column.name().to_string())
                    .chain(rows)
                    .collect();
                let align = if column.dtype().is_primitive_numeric() {
                    Align::Right
                } else {
                    Align::Left
                };
                (texts, align)
            })
            .collect();
        let rows: Vec<Vec<&str>> = (0..=self.table.height())
            .map(|row| {
                columns
                    .iter()
                    .map(|(texts, _)| texts[row].as_str())
                    .collect()
            })
            .collect();
        let align: Vec<Align> = columns.iter().map(|(_, align)| *align).collect();
        aligned(&rows, &align)
    }

    /// Whether a column tells a person something: not what applies to no row or is the same in all of them, nor the value
    /// where it is the score itself.
    fn is_shown(&self, name: &str, column: &Filled) -> bool {
        if column.null_count() == column.len() {
            return false;
        }
        match Column::from_name(name) {
            Some(Column::Method | Column::Direction | Column::Base | Column::Contribution) => false,
            Some(Column::Metric | Column::N) => column.n_unique().is_ok_and(|n| n > 1),
            Some(Column::Value) => self.provenance.direction != Direction::Direct,
            _ => true,
        }
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (&str, AnyValue<'_>)> {
        let columns = self.table.columns().iter();
        columns.map(move |column| {
            (
                column.name().as_str(),
                column.get(row).unwrap_or(AnyValue::Null),
            )
        })
    }
}

/// A line that says what the table is, then its ten strongest rows.
impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let about = &self.provenance;
        let (method, metric) = (visible(&about.method), visible(&about.metric));
        let rows = self.table.height();
        writeln!(
            f,
            "{method}, {metric}, {}: {rows} rows from {} examples",
            about.direction, about.examples
        )?;
        write!(f, "{}", self.top(10).to_text())
    }
}

/// The I/O error inside, so that a caller can tell a closed pipe.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

fn inert(text: &str) -> String {
    if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{text}")
    } else {
        text.to_string()
    }
}

fn plain(value: &AnyValue) -> String {
    match value {
        AnyValue::Null => String::new(),
        AnyValue::Float64(number) => number.to_string(),
        AnyValue::Int32(number) => number.to_string(),
        other => other.str_value().into_owned(),
    }
}

fn json(value: &AnyValue) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        // JSON knows no NaN and no infinity: `From<f64>` makes them null.
        AnyValue::Float64(number) => Value::from(*number),
        AnyValue::Int32(number) => Value::from(*number),
        other => Value::from(other.str_value().into_owned()),
    }
}

fn short(value: &AnyValue) -> String {
    match value {
        AnyValue::Null => String::new(),
        AnyValue::Float64(number) => format!("{number:.4}"),
        other => visible(&plain(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cell, Detail, ExampleScores, Provenance, ScoresMeta};
    use super::*;

    /// One row whose token is `token`.
    fn scores(token: &str, value: f64) -> Scores {
        let cell = Cell {
            component: "hook_resid_pre".into(),
            layer: Some(0),
            pos: Some(0),
            ..Cell::default()
        };
        let example = ExampleScores {
            clean: 1.0,
            tokens: vec![token.to_string()],
            cells: [0].into(),
            values: vec![value],
            ..ExampleScores::default()
        };
        Scores::assemble(
            &[cell],
            &[example],
            &ScoresMeta::default(),
            Detail::Mean,
            Provenance::default(),
        )
        .unwrap()
    }

    fn csv_of(scores: &Scores) -> String {
        let mut out = Vec::new();
        scores.to_csv(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn csv_quotes_what_would_break_a_row_and_disarms_formulas() {
        for (token, written) in [
            ("a,b", r#""a,b""#),
            ("say \"x\"\n", "\"say \"\"x\"\"\n\""),
            ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
            ("@a", "'@a"),
            (" -1", " -1"),
        ] {
            let csv = csv_of(&scores(token, 0.25));
            assert!(
                csv.contains(&format!(",0,,{written},,")),
                "{token:?}: {csv}"
            );
        }
    }

    #[test]
    fn json_keeps_text_as_it_is_and_has_no_infinity() {
        let mut out = Vec::new();
        scores("\u{1b}\"\n", f64::NEG_INFINITY)
            .to_json(&mut out)
            .unwrap();
        let row: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(row["token"], "\u{1b}\"\n");
        assert_eq!(row["score"], Value::Null);
        assert_eq!(out.iter().filter(|&&byte| byte == b'\n').count(), 1);
    }

    #[test]
    fn the_text_table_lets_no_escape_sequence_through() {
        let shown = scores("\x1b[2J", 0.5).to_string();
        assert!(
            shown.contains("\\u{1b}[2J") && !shown.contains('\x1b'),
            "{shown}"
        );
    }
}
