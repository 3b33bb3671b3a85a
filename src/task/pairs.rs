//! The user's own prompt pairs: a CSV, JSONL or parquet file with columns `clean`, `corrupted`, `answer` and, where the metric
//! compares, `wrong`. Other columns are left alone.
//!
//! Several answers stand as a JSON array (JSONL), a list column (parquet), or with `|` between them (CSV). An answer is what
//! comes next: where a word follows a word, the space between them may be left out of the file, since nobody means `to` + `Mary`
//! to be `toMary`.

use std::collections::HashMap;
use std::path::Path;

use polars::prelude::{Column, DataFrame, DataType, StringChunked};

use super::checked::{MAX_PAIRS, Task};
use super::options::ExpandOptions;
use super::pair::{Dropped, Pair};
use super::template::PromptText;
use super::tokenise::{Draft, TokeniseSetting, tokenise};
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::model::Tokenizer;
use crate::parquet;
use crate::text::one_line;

/// Larger files are refused.
const FILE_LIMIT: u64 = 256 << 20;

/// What a file may say that we read.
const COLUMNS: [&str; 4] = ["clean", "corrupted", "answer", "wrong"];

/// One row of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct FileRow {
    clean: String,
    corrupted: String,
    answers: Vec<String>,
    wrong: Vec<String>,
}

/// Reads pairs from a file and makes a task of them; `Pair::index` is the row, and a row that repeats another is dropped. Without a metric in the options it is
/// `logit_diff` if every row has a wrong answer, else `log_prob`.
/// # Errors
/// [`Error::Missing`], [`Error::Read`], [`Error::Malformed`] for the file; [`Error::EmptyTask`] if no row is usable;
/// [`Error::BadTask`] if a corruption is asked for, which such a file has none of.
pub fn from_pairs_file(
    path: &Path,
    tokenizer: &Tokenizer,
    options: &ExpandOptions,
) -> Result<Task> {
    let name = path.file_stem().map_or_else(
        || "pairs".to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    );
    if let Some(corruption) = &options.corruption {
        return Err(Error::BadTask {
            task: name,
            reason: format!(
                "the corrupted prompts are given in the file, so there is no corruption `{corruption}` to choose"
            ),
        });
    }
    let mut rows = read(path)?;
    rows.truncate(options.n_pairs.unwrap_or(MAX_PAIRS));
    let all_compare = rows.iter().all(|row| !row.wrong.is_empty());
    let metric = options.metric.unwrap_or(if all_compare {
        Metric::LogitDiff
    } else {
        Metric::LogProb
    });
    let bos = options.bos.resolve(tokenizer)?;
    let setting = TokeniseSetting {
        tokenizer,
        bos,
        chat: options.chat,
        max_tokens: options.max_tokens,
        needs_wrong: metric.needs_wrong(),
        unequal: options.unequal,
        derived_roles: &[],
    };
    let asked = rows.len();
    let (mut pairs, mut dropped): (Vec<Pair>, Vec<Dropped>) = (Vec::new(), Vec::new());
    for (index, row) in rows.into_iter().enumerate() {
        if row.answers.is_empty() && !metric.needs_reference() {
            dropped.push(Dropped {
                index,
                clean_text: row.clean,
                corrupted_text: row.corrupted,
                reason: format!("no answer: `{metric}` needs one"),
            });
            continue;
        }
        match tokenise(row.draft(index), &setting)? {
            Ok(pair) => pairs.push(pair),
            Err(drop) => dropped.push(drop),
        }
    }
    Ok(Task {
        seed: options.seed.unwrap_or(0),
        bos,
        chat: options.chat,
        source: path.display().to_string(),
        asked,
        ..Task::of_numbered(name, tokenizer, metric, pairs, dropped)?
    })
}

impl FileRow {
    fn draft(self, index: usize) -> Draft {
        let continuation = |answer: String| {
            let word_ends = self
                .clean
                .ends_with(|c: char| c.is_alphanumeric() || ",.;:!?)".contains(c));
            let word_begins = answer.starts_with(char::is_alphabetic);
            if word_ends && word_begins {
                format!(" {answer}")
            } else {
                answer
            }
        };
        Draft {
            index,
            template: 0,
            answers: self.answers.into_iter().map(continuation).collect(),
            wrong: self.wrong.into_iter().map(continuation).collect(),
            clean: PromptText {
                text: self.clean.clone(),
                roles: Vec::new(),
            },
            corrupted: PromptText {
                text: self.corrupted,
                roles: Vec::new(),
            },
        }
    }
}

fn read(path: &Path) -> Result<Vec<FileRow>> {
    let metadata = std::fs::metadata(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            path: path.to_owned(),
            hint: "`--pairs` takes a CSV, JSONL or parquet file with columns clean, corrupted, answer, wrong".into(),
        },
        _ => Error::Read { path: path.to_owned(), source },
    })?;
    let format = match path
        .extension()
        .and_then(|e| e.to_str())
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        Some("csv") => "CSV",
        Some("jsonl" | "ndjson") => "JSONL",
        Some("parquet") => "parquet",
        _ => {
            return Err(malformed(
                path,
                "pairs",
                "its name must end in .csv, .jsonl or .parquet",
            ));
        }
    };
    if metadata.is_dir() {
        return Err(malformed(path, format, "it is a folder"));
    }
    if metadata.len() > FILE_LIMIT {
        return Err(malformed(
            path,
            format,
            format!(
                "it has {} bytes, at most {FILE_LIMIT} are read",
                metadata.len()
            ),
        ));
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
            if format == "CSV" {
                read_csv(text)
            } else {
                read_jsonl(text)
            }
            .map_err(|reason| malformed(path, format, reason))?
        }
    };
    if rows.len() > MAX_PAIRS {
        return Err(malformed(
            path,
            format,
            format!(
                "it has {} pairs, at most {MAX_PAIRS} are read; split it",
                rows.len()
            ),
        ));
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

fn missing_column<'a>(name: &str, found: impl IntoIterator<Item = &'a str>) -> String {
    let found: Vec<&str> = found.into_iter().collect();
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
    let column: HashMap<&str, usize> = headers
        .iter()
        .enumerate()
        .map(|(at, name)| (name.trim(), at))
        .collect();
    let find = |name: &str| {
        column
            .get(name)
            .copied()
            .ok_or_else(|| missing_column(name, headers.iter()))
    };
    let (clean, corrupted, answer) = (find("clean")?, find("corrupted")?, find("answer")?);
    let wrong = column.get("wrong").copied();
    let split = |cell: &str| {
        cell.split('|')
            .filter(|one| !one.trim().is_empty())
            .map(str::to_owned)
            .collect()
    };
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| one_line(&e.to_string()))?;
        rows.push(FileRow {
            clean: record[clean].to_owned(),
            corrupted: record[corrupted].to_owned(),
            answers: split(&record[answer]),
            wrong: wrong.map(|wrong| split(&record[wrong])).unwrap_or_default(),
        });
    }
    Ok(rows)
}

fn read_jsonl(text: &str) -> Result<Vec<FileRow>, String> {
    use serde_json::Value;
    let mut rows = Vec::new();
    for (at, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let line_number = at + 1;
        let value: Value = serde_json::from_str(line)
            .map_err(|e| format!("line {line_number}: {}", one_line(&e.to_string())))?;
        let Value::Object(object) = &value else {
            return Err(format!(
                "line {line_number} is not an object; write {{\"clean\": ..., \"corrupted\": ..., \"answer\": ...}}"
            ));
        };
        let text = |name: &str| match object.get(name) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(format!("line {line_number}: `{name}` is not a text")),
            None => Err(format!(
                "line {line_number}: {}",
                missing_column(name, object.keys().map(String::as_str))
            )),
        };
        let texts = |name: &str| match object.get(name) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::String(text)) if text.trim().is_empty() => Ok(Vec::new()),
            Some(Value::String(text)) => Ok(vec![text.clone()]),
            Some(Value::Array(several)) => several
                .iter()
                .map(|one| one.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    format!("line {line_number}: `{name}` holds something that is not a text")
                }),
            Some(_) => Err(format!(
                "line {line_number}: `{name}` is neither a text nor an array of texts"
            )),
        };
        rows.push(FileRow {
            clean: text("clean")?,
            corrupted: text("corrupted")?,
            answers: texts("answer")?,
            wrong: texts("wrong")?,
        });
    }
    Ok(rows)
}

fn read_parquet(path: &Path) -> Result<Vec<FileRow>> {
    let frame = parquet::read(path, "parquet", |footer| {
        if footer.rows > MAX_PAIRS {
            return Err(format!(
                "it has {} pairs, at most {MAX_PAIRS} are read; split it",
                footer.rows
            ));
        }
        let has_column = |name: &str| footer.columns.iter().any(|one| one == name);
        let columns = footer.columns.iter().map(String::as_str);
        match ["clean", "corrupted", "answer"]
            .iter()
            .find(|n| !has_column(n))
        {
            Some(name) => Err(missing_column(name, columns)),
            None => Ok(columns
                .filter(|name| COLUMNS.contains(name))
                .map(str::to_owned)
                .collect()),
        }
    })?;
    rows(&frame).map_err(|reason| malformed(path, "parquet", reason))
}

fn rows(frame: &DataFrame) -> Result<Vec<FileRow>, String> {
    let column = |name: &str| frame.column(name).map_err(|e| one_line(&e.to_string()));
    let (clean, corrupted) = (texts(column("clean")?)?, texts(column("corrupted")?)?);
    let answers = lists(column("answer")?)?;
    let wrong = match frame.column("wrong") {
        Ok(wrong) => lists(wrong)?,
        Err(_) => vec![Vec::new(); clean.len()],
    };
    let prompts = clean.into_iter().zip(corrupted);
    Ok(prompts
        .zip(answers.into_iter().zip(wrong))
        .map(|((clean, corrupted), (answers, wrong))| FileRow {
            clean,
            corrupted,
            answers,
            wrong,
        })
        .collect())
}

/// A text column; no cell may be empty.
fn texts(column: &Column) -> Result<Vec<String>, String> {
    let strings = column
        .str()
        .map_err(|_| format!("column `{}` is {}, not text", column.name(), column.dtype()))?;
    check_size(strings)?;
    strings
        .iter()
        .enumerate()
        .map(|(row, text)| {
            text.map(str::to_owned)
                .ok_or_else(|| format!("column `{}` is empty in row {row}", column.name()))
        })
        .collect()
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

/// A text or list column; an empty cell is an empty list.
fn lists(column: &Column) -> Result<Vec<Vec<String>>, String> {
    if !matches!(column.dtype(), DataType::List(_)) {
        let strings = column.str().map_err(|_| {
            format!(
                "column `{}` is {}, neither text nor lists",
                column.name(),
                column.dtype()
            )
        })?;
        check_size(strings)?;
        return Ok(strings
            .iter()
            .map(|text| {
                text.filter(|t| !t.trim().is_empty())
                    .map(str::to_owned)
                    .into_iter()
                    .collect()
            })
            .collect());
    }
    let lists = column.list().map_err(|e| one_line(&e.to_string()))?;
    if let Ok(strings) = lists.get_inner().str() {
        check_size(strings)?;
    }
    (0..lists.len())
        .map(|row| match lists.get_as_series(row) {
            None => Ok(Vec::new()),
            Some(cell) => texts(&cell.into()),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::tests::word_level;
    use polars::prelude::{IntoColumn, NamedFrom, ParquetWriter, Series};

    fn tokenizer() -> Tokenizer {
        word_level(["Al", "Bo", "met", "saw", "he", "they", ",", "\"", "it"])
    }

    fn write(name: &str, bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn task(name: &str, bytes: &[u8]) -> Result<Task> {
        let (_folder, path) = write(name, bytes);
        from_pairs_file(&path, &tokenizer(), &ExpandOptions::default())
    }

    #[test]
    fn csv_rows_become_pairs_with_one_or_several_answers() {
        let csv = "clean,corrupted,answer,wrong,note\nAl met,Bo met,he|they,it,x\n\"Al met, he\",\"Bo met, he\",saw,it,\nAl met,Bo,he,it,\n";
        let task = task("mine.csv", csv.as_bytes()).unwrap();
        assert_eq!(
            (task.name.as_str(), task.metric, task.corruption.as_str()),
            ("mine", Metric::LogitDiff, "given")
        );
        assert_eq!(task.pairs().len(), 2);
        assert_eq!(task.pairs()[0].target.answers, [6, 7]);
        assert_eq!(task.pairs()[0].target.wrong, [10]);
        assert_eq!(task.pairs()[1].clean, [0, 2, 4, 8, 6]);
        assert_eq!(task.pairs()[1].roles["END"], [4]);
        assert_eq!(
            (task.dropped[0].index, task.dropped[0].kind()),
            (2, "lengths differ")
        );
    }

    #[test]
    fn a_row_that_repeats_another_is_dropped_and_counted() {
        let rows = [
            "Al met,Bo met,he,it",
            "Al saw,Bo saw,he,it",
            "Al met,Bo met,he,it",
            "Al met,Bo met,they,it",
        ];
        let csv = format!("clean,corrupted,answer,wrong\n{}\n", rows.join("\n"));
        let task = task("mine.csv", csv.as_bytes()).unwrap();
        let kept: Vec<usize> = task.pairs().iter().map(|pair| pair.index).collect();
        assert_eq!((kept, task.asked), (vec![0, 1, 3], 4));
        assert_eq!(task.dropped[0].reason, "repeated: as pair 0");
    }

    #[test]
    fn jsonl_without_wrong_answers_is_measured_by_log_prob() {
        let jsonl = "{\"clean\": \"Al met\", \"corrupted\": \"Bo met\", \"answer\": [\"he\", \" they\"]}\n\n\
                     {\"clean\": \"Al saw\", \"corrupted\": \"Bo saw\", \"answer\": \"he\", \"wrong\": null}\n";
        let task = task("mine.jsonl", jsonl.as_bytes()).unwrap();
        assert_eq!(task.metric, Metric::LogProb);
        assert_eq!(task.pairs()[0].target.answers, [6, 7]);
        assert_eq!(task.pairs()[1].index, 1);
    }

    #[test]
    fn parquet_holds_texts_or_lists() {
        let answers = Series::new(
            "answer".into(),
            [
                Series::new("".into(), ["he", "they"]),
                Series::new("".into(), ["he"]),
            ],
        );
        let columns = vec![
            Series::new("clean".into(), ["Al met", "Al saw"]).into_column(),
            Series::new("corrupted".into(), ["Bo met", "Bo saw"]).into_column(),
            answers.into_column(),
            Series::new("wrong".into(), [Some("it"), None]).into_column(),
        ];
        let mut frame = DataFrame::new(2, columns).unwrap();
        let mut bytes = Vec::new();
        ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
        let read = task("mine.parquet", &bytes).unwrap();
        assert_eq!(read.metric, Metric::LogProb);
        assert_eq!(read.pairs()[0].target.answers, [6, 7]);
        assert_eq!(
            (
                read.pairs()[0].target.wrong.len(),
                read.pairs()[1].target.wrong.len()
            ),
            (1, 0)
        );

        // Damaged at every place in turn, it may be an error but never a panic.
        for at in (0..bytes.len()).step_by(7) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0xff;
            let _ = task("mine.parquet", &damaged);
            let _ = task("mine.parquet", &bytes[..at]);
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_in_one_line() {
        for (name, text, says) in [
            ("a.txt", "", "must end in .csv"),
            ("a.csv", "clean,answer\nx,y\n", "no column `corrupted`"),
            ("a.csv", "clean,corrupted,answer\nx,y\n", "record"),
            ("a.csv", "", "no column `clean`"),
            ("a.csv", "clean,corrupted,answer,wrong\n", "no pairs at all"),
            (
                "a.csv",
                "clean,corrupted,answer,wrong\nAl met,Bo,he,it\n",
                "clean has 3 tokens, corrupted has 2",
            ),
            (
                "a.csv",
                "clean,corrupted,answer\nAl met,Bo met,he saw\n",
                "answer is not one token",
            ),
            (
                "a.csv",
                "clean,corrupted,answer\nAl met,Bo met,\n",
                "no answer",
            ),
            ("a.jsonl", "{\"clean\": 1}", "`clean` is not a text"),
            ("a.jsonl", "[1]", "line 1 is not an object"),
            ("a.jsonl", "{}\n{", "line 1: it has no column `clean`"),
            (
                "a.jsonl",
                "{\"clean\": \"x\", \"corrupted\": \"y\", \"answer\": [1]}",
                "not a text",
            ),
            (
                "a.parquet",
                "PAR1 and then nothing",
                "not a readable parquet file",
            ),
        ] {
            let message = task(name, text.as_bytes()).unwrap_err().to_string();
            assert!(
                message.contains(says) && !message.contains('\n'),
                "{message}"
            );
        }
        assert!(
            task("a.csv", &[0xff, 0xfe])
                .unwrap_err()
                .to_string()
                .contains("not UTF-8")
        );
        let missing = from_pairs_file(
            Path::new("no/such.csv"),
            &tokenizer(),
            &ExpandOptions::default(),
        );
        assert!(matches!(missing, Err(Error::Missing { .. })));
    }
}
