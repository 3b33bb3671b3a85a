//! The rows of a file of pairs, under our names of columns and those of others who publish such files.

use std::collections::HashMap;
use std::path::Path;

use polars::prelude::{Column, DataFrame, DataType, StringChunked};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::parquet::{self, Schema};
use crate::task::checked::MAX_PAIRS;
use crate::text::one_line;

/// Larger files are refused.
const FILE_LIMIT: u64 = 256 << 20;

/// One row of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileRow {
    pub clean: String,
    pub corrupted: String,
    pub answers: Given,
    pub wrong: Given,
    /// The year, of two digits, that EAP-IG's greater-than task asks to exceed.
    pub exceeds: Option<u32>,
}

/// Answers as texts or as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    Texts(Vec<String>),
    Ids(Vec<u32>),
}

impl Given {
    pub fn is_empty(&self) -> bool {
        match self {
            Given::Texts(texts) => texts.is_empty(),
            Given::Ids(ids) => ids.is_empty(),
        }
    }
}

/// The columns of ours, and what AutoCircuit (`corrupt`, `answers`, `wrong_answers`) and EAP-IG (the ids) call them.
const CLEAN: &[&str] = &["clean"];
const CORRUPTED: &[&str] = &["corrupted", "corrupt"];
const ANSWER: &[&str] = &["answer", "answers"];
const WRONG: &[&str] = &["wrong", "wrong_answers"];
const ANSWER_IDS: &[&str] = &[
    "answer_id",
    "answer_ids",
    "correct_idx",
    "clean_answer_idx",
    "answers_idx",
    "country_idx",
];
const WRONG_IDS: &[&str] = &[
    "wrong_id",
    "wrong_ids",
    "incorrect_idx",
    "corrupted_answer_idx",
    "corrupted_answers_idx",
    "corrupted_country_idx",
];
const LABEL: &[&str] = &["label"];

/// What a cell holds.
#[derive(Debug, Clone, PartialEq)]
enum Cell {
    Nothing,
    Text(String),
    Texts(Vec<String>),
    Numbers(Vec<i64>),
    Other,
}

/// Which name of each column a file has, if any.
#[derive(Debug, Clone)]
struct Columns<'a> {
    clean: &'a str,
    corrupted: &'a str,
    answer: Option<&'a str>,
    wrong: Option<&'a str>,
    answer_ids: Option<&'a str>,
    wrong_ids: Option<&'a str>,
    label: Option<&'a str>,
}

impl<'a> Columns<'a> {
    fn find(found: &[&'a str]) -> Result<Self, String> {
        if let Some(name) =
            (1..found.len()).find_map(|i| found[..i].contains(&found[i]).then_some(found[i]))
        {
            return Err(format!("there are two columns `{name}`; rename one"));
        }
        let one = |names: &[&str]| {
            let mut known = names.iter();
            known.find_map(|name| found.iter().copied().find(|column| column == name))
        };
        let needed = |names: &[&str]| one(names).ok_or_else(|| missing_column(names[0], found));
        let columns = Columns {
            clean: needed(CLEAN)?,
            corrupted: needed(CORRUPTED)?,
            answer: one(ANSWER),
            wrong: one(WRONG),
            answer_ids: one(ANSWER_IDS),
            wrong_ids: one(WRONG_IDS),
            label: one(LABEL),
        };
        match columns.answer.or(columns.answer_ids).or(columns.label) {
            None => Err(missing_column("answer", found)),
            Some(_) => Ok(columns),
        }
    }

    fn all(&self) -> Vec<&'a str> {
        let ours = [
            self.answer,
            self.wrong,
            self.answer_ids,
            self.wrong_ids,
            self.label,
        ];
        let texts = [self.clean, self.corrupted];
        texts
            .into_iter()
            .chain(ours.into_iter().flatten())
            .collect()
    }

    /// A row from its cells.
    fn row(&self, cell: impl Fn(&str) -> Cell) -> Result<FileRow, String> {
        let text = |name: &str| match cell(name) {
            Cell::Text(text) => Ok(text),
            Cell::Nothing => Err(format!("`{name}` is empty")),
            _ => Err(format!("`{name}` is not a text")),
        };
        let given = |texts: Option<&str>, ids: Option<&str>| match (texts, ids) {
            (Some(name), _) => texts_of(cell(name), name).map(Given::Texts),
            (None, Some(name)) => ids_of(cell(name), name).map(Given::Ids),
            (None, None) => Ok(Given::Texts(Vec::new())),
        };
        let label = self
            .label
            .filter(|_| self.answer.or(self.answer_ids).is_none());
        let exceeds = match label {
            None => None,
            Some(name) => match ids_of(cell(name), name)?[..] {
                [year] if year < 100 => Some(year),
                _ => {
                    return Err(format!(
                        "`{name}` is no year of two digits, which is the only kind of label that is read; name the right answers in \
                         `answer`"
                    ));
                }
            },
        };
        Ok(FileRow {
            clean: text(self.clean)?,
            corrupted: text(self.corrupted)?,
            answers: given(self.answer, self.answer_ids)?,
            wrong: given(self.wrong, self.wrong_ids)?,
            exceeds,
        })
    }
}

fn texts_of(cell: Cell, name: &str) -> Result<Vec<String>, String> {
    match cell {
        Cell::Nothing => Ok(Vec::new()),
        Cell::Text(text) => Ok(vec![text]),
        Cell::Texts(texts) => Ok(texts),
        Cell::Numbers(_) | Cell::Other => Err(format!(
            "`{name}` is neither a text nor a list of texts; token ids go into `answer_id` and `wrong_id`"
        )),
    }
}

fn ids_of(cell: Cell, name: &str) -> Result<Vec<u32>, String> {
    let bad = || format!("`{name}` holds something that is no whole number");
    let numbers = match cell {
        Cell::Nothing => Vec::new(),
        Cell::Numbers(numbers) => numbers,
        // A list of numbers, as pandas writes it into a CSV.
        Cell::Text(text) => numbers_in(&text).ok_or_else(bad)?,
        Cell::Texts(texts) => {
            let each: Option<Vec<Vec<i64>>> = texts.iter().map(|text| numbers_in(text)).collect();
            each.ok_or_else(bad)?.concat()
        }
        Cell::Other => return Err(bad()),
    };
    let ids: Option<Vec<u32>> = numbers.into_iter().map(|n| u32::try_from(n).ok()).collect();
    ids.ok_or_else(bad)
}

/// `7`, `7.0`, `[7, 8]`.
fn numbers_in(text: &str) -> Option<Vec<i64>> {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let whole = |part: &str| {
        let number: f64 = part.trim().parse().ok()?;
        (number.fract() == 0.0 && number.abs() < 1e15).then_some(number as i64)
    };
    inner.split(',').map(whole).collect()
}

/// Reads the rows of a CSV, JSON, JSONL or parquet file.
/// # Errors
/// [`Error::Missing`], [`Error::Read`], [`Error::Malformed`].
pub fn read(path: &Path) -> Result<Vec<FileRow>> {
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            path: path.to_owned(),
            hint: "pairs are a CSV, JSON, JSONL or parquet file with columns clean, corrupted, answer, wrong".into(),
        },
        _ => Error::Read { path: path.to_owned(), source },
    })?;
    let ending = path.extension().and_then(|e| e.to_str());
    let format = match ending.map(str::to_ascii_lowercase).as_deref() {
        Some("csv") => "CSV",
        Some("json") => "JSON",
        Some("jsonl" | "ndjson") => "JSONL",
        Some("parquet") => "parquet",
        _ => {
            return Err(malformed(
                path,
                "pairs",
                "its name must end in .csv, .json, .jsonl or .parquet",
            ));
        }
    };
    if metadata.is_dir() {
        return Err(malformed(path, format, "it is a folder"));
    }
    if metadata.len() > FILE_LIMIT {
        let bytes = metadata.len();
        let reason = format!("it has {bytes} bytes, at most {FILE_LIMIT} are read");
        return Err(malformed(path, format, reason));
    }
    let rows = match format {
        "parquet" => read_parquet(path)?,
        _ => {
            let bytes = std::fs::read(path).map_err(|source| Error::Read {
                path: path.to_owned(),
                source,
            })?;
            let text = String::from_utf8(bytes)
                .map_err(|_| malformed(path, format, "it is not UTF-8 text; save it as UTF-8"))?;
            // Spreadsheets put a byte-order mark in front.
            let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
            let rows = match format {
                "CSV" => read_csv(text),
                "JSON" => read_json(text),
                _ => read_jsonl(text),
            };
            rows.map_err(|reason| malformed(path, format, reason))?
        }
    };
    if rows.len() > MAX_PAIRS {
        let reason = format!(
            "it has {} pairs, at most {MAX_PAIRS} are read; split it",
            rows.len()
        );
        return Err(malformed(path, format, reason));
    }
    Ok(rows)
}

fn malformed(path: &Path, format: &'static str, reason: impl Into<String>) -> Error {
    Error::Malformed {
        path: path.to_owned(),
        format,
        reason: reason.into(),
    }
}

fn missing_column(name: &str, found: &[&str]) -> String {
    one_line(&format!(
        "it has no column `{name}`; columns needed are clean, corrupted, answer (and wrong), found {}",
        found.join(", ")
    ))
}

fn read_csv(text: &str) -> Result<Vec<FileRow>, String> {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let headers = reader
        .headers()
        .map_err(|e| one_line(&e.to_string()))?
        .clone();
    let names: Vec<&str> = headers.iter().map(str::trim).collect();
    let columns = Columns::find(&names)?;
    let prompts = [columns.clean, columns.corrupted];
    let at: HashMap<&str, usize> = names.iter().copied().zip(0..).collect();
    let mut rows = Vec::new();
    for (row, record) in reader.records().enumerate() {
        let record = record.map_err(|e| one_line(&e.to_string()))?;
        let cell = |name: &str| {
            let text = &record[at[name]];
            if prompts.contains(&name) {
                return Cell::Text(text.to_owned());
            }
            // A stray space is no answer, a line break is one.
            let several = text
                .split('|')
                .filter(|one| !one.trim_matches(' ').is_empty());
            Cell::Texts(several.map(str::to_owned).collect())
        };
        rows.push(
            columns
                .row(cell)
                .map_err(|reason| format!("row {row}: {reason}"))?,
        );
    }
    Ok(rows)
}

fn read_jsonl(text: &str) -> Result<Vec<FileRow>, String> {
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let mut rows = Vec::new();
    for (at, line) in lines {
        let line_number = at + 1;
        let in_line = |reason: String| format!("line {line_number}: {reason}");
        let value: Value =
            serde_json::from_str(line).map_err(|e| in_line(one_line(&e.to_string())))?;
        if !value.is_object() {
            return Err(format!(
                "line {line_number} is not an object; write {{\"clean\": ..., \"corrupted\": ..., \"answer\": ...}}"
            ));
        }
        rows.push(row_of_object(&value).map_err(in_line)?);
    }
    Ok(rows)
}

/// An array of objects, or AutoCircuit's object with such an array under `prompts`.
fn read_json(text: &str) -> Result<Vec<FileRow>, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| one_line(&e.to_string()))?;
    let Some(objects) = value.as_array().or_else(|| value["prompts"].as_array()) else {
        return Err(
            "it is neither an array of pairs nor an object with such an array under `prompts`"
                .into(),
        );
    };
    let numbered = objects.iter().enumerate();
    numbered
        .map(|(at, object)| row_of_object(object).map_err(|reason| format!("pair {at}: {reason}")))
        .collect()
}

fn row_of_object(value: &Value) -> Result<FileRow, String> {
    let object = value.as_object().ok_or("it is not an object")?;
    let names: Vec<&str> = object.keys().map(String::as_str).collect();
    Columns::find(&names)?.row(|name| match &value[name] {
        Value::Null => Cell::Nothing,
        Value::String(text) if text.is_empty() => Cell::Nothing,
        Value::String(text) => Cell::Text(text.clone()),
        Value::Number(number) => number
            .as_i64()
            .map_or(Cell::Other, |n| Cell::Numbers(vec![n])),
        Value::Array(several) if several.iter().all(Value::is_string) => {
            let texts = several.iter().filter_map(Value::as_str);
            Cell::Texts(texts.map(str::to_owned).collect())
        }
        Value::Array(several) => {
            let numbers: Option<Vec<i64>> = several.iter().map(Value::as_i64).collect();
            numbers.map_or(Cell::Other, Cell::Numbers)
        }
        Value::Bool(_) | Value::Object(_) => Cell::Other,
    })
}

fn read_parquet(path: &Path) -> Result<Vec<FileRow>> {
    let frame = parquet::read(path, "parquet", Schema::AsStored, |footer| {
        if footer.rows > MAX_PAIRS {
            let rows = footer.rows;
            return Err(format!(
                "it has {rows} pairs, at most {MAX_PAIRS} are read; split it"
            ));
        }
        let found: Vec<&str> = footer.columns.iter().map(String::as_str).collect();
        let columns = Columns::find(&found)?.all();
        Ok(columns.into_iter().map(str::to_owned).collect())
    })?;
    rows_of(&frame).map_err(|reason| malformed(path, "parquet", reason))
}

fn rows_of(frame: &DataFrame) -> Result<Vec<FileRow>, String> {
    let names: Vec<&str> = frame
        .get_column_names()
        .iter()
        .map(|name| name.as_str())
        .collect();
    let columns = Columns::find(&names)?;
    let mut cells: HashMap<&str, Vec<Cell>> = HashMap::new();
    for name in columns.all() {
        let column = frame.column(name).map_err(|e| one_line(&e.to_string()))?;
        cells.insert(name, cells_of(column)?);
    }
    let row = |row: usize| {
        let cell = |name: &str| cells[name][row].clone();
        columns
            .row(cell)
            .map_err(|reason| format!("row {row}: {reason}"))
    };
    (0..frame.height()).map(row).collect()
}

/// The cells of a column of texts, whole numbers, or lists of either; one that is empty throughout may be of no type at all.
fn cells_of(column: &Column) -> Result<Vec<Cell>, String> {
    let refused = || {
        format!(
            "column `{}` is {}, neither text nor lists",
            column.name(),
            column.dtype()
        )
    };
    match column.dtype() {
        DataType::Null => Ok(vec![Cell::Nothing; column.len()]),
        DataType::String => {
            let strings = column.str().map_err(|_| refused())?;
            check_size(strings)?;
            let cell = |text: Option<&str>| match text {
                None | Some("") => Cell::Nothing,
                Some(text) => Cell::Text(text.to_owned()),
            };
            Ok(strings.iter().map(cell).collect())
        }
        kind if kind.is_integer() => {
            let numbers = column.cast(&DataType::Int64).map_err(|_| refused())?;
            let numbers = numbers.i64().map_err(|_| refused())?;
            let cell =
                |number: Option<i64>| number.map_or(Cell::Nothing, |n| Cell::Numbers(vec![n]));
            Ok(numbers.iter().map(cell).collect())
        }
        DataType::List(_) => {
            let lists = column.list().map_err(|e| one_line(&e.to_string()))?;
            if let Ok(strings) = lists.get_inner().str() {
                check_size(strings)?;
            }
            let cell = |row: usize| match lists.get_as_series(row) {
                None => Ok(Cell::Nothing),
                Some(series) => {
                    let (mut texts, mut numbers) = (Vec::new(), Vec::new());
                    for cell in cells_of(&series.into())? {
                        match cell {
                            Cell::Text(text) => texts.push(text),
                            Cell::Numbers(more) => numbers.extend(more),
                            _ => {
                                return Err(format!(
                                    "a list of column `{}` has a hole in row {row}",
                                    column.name()
                                ));
                            }
                        }
                    }
                    Ok(if numbers.is_empty() {
                        Cell::Texts(texts)
                    } else {
                        Cell::Numbers(numbers)
                    })
                }
            };
            (0..lists.len()).map(cell).collect()
        }
        _ => Err(refused()),
    }
}

/// A file may say one long text many times over in few bytes; in memory each would be a copy.
fn check_size(strings: &StringChunked) -> Result<(), String> {
    let bytes = strings.iter().flatten().map(str::len);
    let total = bytes.fold(0usize, usize::saturating_add) as u64;
    if total <= FILE_LIMIT {
        Ok(())
    } else {
        Err(format!(
            "column `{}` unpacks to {total} bytes, at most {FILE_LIMIT} are read",
            strings.name()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_that_is_there_twice_is_refused() {
        let text = "clean,corrupted,answer,answer\na,b,c,d\n";
        assert_eq!(
            read_csv(text).unwrap_err(),
            "there are two columns `answer`; rename one"
        );
    }
}
