//! The user's own prompt pairs: a CSV, JSON, JSONL or parquet file with columns `clean`, `corrupted`, `answer` and, where the metric
//! compares, `wrong`; or under the names that AutoCircuit and EAP-IG give them, with token ids as well. Other columns are left alone.
//!
//! Several answers stand as a JSON array (JSON, JSONL), a list column (parquet), or with `|` between them (CSV). An answer is what comes
//! next, exactly as it is written: ` Mary` begins with a space, `array` after `np.` does not, and no space is put in front of one unless
//! the options ask for it.

mod read;

use std::path::Path;

use super::checked::{MAX_PAIRS, Task};
use super::options::ExpandOptions;
use super::pair::Pair;
use super::template::PromptText;
use super::tokenise::{Continuation, Draft, TokeniseSetting, tokenise};
use crate::error::{Dropped, Error, Result};
use crate::metric::Metric;
use crate::model::Tokenizer;
use crate::text::printable;
use read::{FileRow, Given, read};

/// Reads pairs from a file and makes a task of them; `Pair::index` is the row, and a row that repeats another is dropped. Without a
/// metric in the options it is `logit_diff` if every row has a wrong answer, `prob_diff` for EAP-IG's greater-than, else `log_prob`.
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
    let metric = options.metric.unwrap_or_else(|| usual_metric(&rows));
    let bos = options.bos.resolve(tokenizer)?;
    let setting = TokeniseSetting {
        tokenizer,
        bos,
        chat: options.chat,
        max_tokens: options.max_tokens,
        metric,
        unequal: options.unequal,
        may_melt: true,
        derived_roles: &[],
    };
    let asked = rows.len();
    let mut notes = Vec::new();
    if !options.answer_space {
        notes.extend(hint(&rows));
    }
    let (mut pairs, mut dropped): (Vec<Pair>, Vec<Dropped>) = (Vec::new(), Vec::new());
    for (index, row) in rows.into_iter().enumerate() {
        if row.answers.is_empty() && row.exceeds.is_none() && !metric.needs_reference() {
            dropped.push(Dropped {
                index,
                clean_text: row.clean,
                corrupted_text: row.corrupted,
                reason: format!("no answer: `{metric}` needs one"),
            });
            continue;
        }
        match tokenise(row.draft(index, options.answer_space), &setting)? {
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
        notes,
        ..Task::of_numbered(name, tokenizer, metric, pairs, dropped)?
    })
}

/// What rows are measured by where nothing else is asked for.
fn usual_metric(rows: &[FileRow]) -> Metric {
    if rows.iter().all(|row| row.exceeds.is_some()) && !rows.is_empty() {
        Metric::ProbDiff
    } else if rows.iter().all(|row| !row.wrong.is_empty()) {
        Metric::LogitDiff
    } else {
        Metric::LogProb
    }
}

/// Says so if most answers would run into the prompt's last word: then their space was probably left out of the file.
fn hint(rows: &[FileRow]) -> Option<String> {
    let joins = |row: &&FileRow| {
        let word_ends = row
            .clean
            .ends_with(|c: char| is_of_words(c) || ",;:!?)".contains(c));
        let first = match &row.answers {
            Given::Texts(texts) => texts.first()?,
            Given::Ids(_) => return None,
        };
        (word_ends && first.starts_with(is_of_words)).then(|| (row.clean.clone(), first.clone()))
    };
    let joined: Vec<(String, String)> = rows.iter().filter_map(|row| joins(&row)).collect();
    let (clean, answer) = joined.first().filter(|_| 2 * joined.len() > rows.len())?;
    let last = clean.rsplit(' ').next().unwrap_or(clean);
    Some(format!(
        "answers are taken as they are written, and in {} of {} pairs one begins right behind a word (`{}` + `{}`); if a space stands \
         between, write it in front of the answers or ask for one (`ExpandOptions::answer_space`)",
        joined.len(),
        rows.len(),
        printable(last),
        printable(answer)
    ))
}

/// A letter of a script that puts spaces between words.
fn is_of_words(c: char) -> bool {
    let is_without_spaces = matches!(c,
        '\u{0e00}'..='\u{0eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
        | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}');
    c.is_alphabetic() && !is_without_spaces
}

impl FileRow {
    fn draft(self, index: usize, answer_space: bool) -> Draft {
        let ends_in_space = self.clean.ends_with(char::is_whitespace);
        let as_asked = |answer: String| {
            let begins_in_space = answer.starts_with(char::is_whitespace);
            if answer_space && !ends_in_space && !begins_in_space {
                format!(" {answer}")
            } else {
                answer
            }
        };
        let given = |given: Given| -> Vec<Continuation> {
            match given {
                Given::Texts(texts) => texts
                    .into_iter()
                    .map(as_asked)
                    .map(Continuation::Text)
                    .collect(),
                Given::Ids(ids) => ids.into_iter().map(Continuation::Id).collect(),
            }
        };
        let years = |years: std::ops::Range<u32>| -> Vec<Continuation> {
            years
                .map(|year| Continuation::Text(format!("{year:02}")))
                .collect()
        };
        let (answers, wrong) = match self.exceeds {
            Some(year) => (years(year + 1..100), years(0..year + 1)),
            None => (given(self.answers), given(self.wrong)),
        };
        Draft {
            index,
            template: 0,
            answers,
            wrong,
            clean: PromptText {
                text: self.clean,
                roles: Vec::new(),
            },
            corrupted: PromptText {
                text: self.corrupted,
                roles: Vec::new(),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::tests::{byte_level, word_level};
    use polars::prelude::{DataFrame, IntoColumn, NamedFrom, ParquetWriter, Series};

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
                "clean,corrupted,answer,wrong\nAl met,Bo met,he saw,it\n",
                "answer is not one token",
            ),
            (
                "a.csv",
                "clean,corrupted,answer\nAl met,Bo met,\n",
                "no answer",
            ),
            (
                "a.jsonl",
                "{\"clean\": 1, \"corrupted\": \"x\", \"answer\": \"y\"}",
                "`clean` is not a text",
            ),
            ("a.jsonl", "[1]", "line 1 is not an object"),
            ("a.jsonl", "{}\n{", "line 1: it has no column `clean`"),
            (
                "a.jsonl",
                "{\"clean\": \"x\", \"corrupted\": \"y\", \"answer\": [1]}",
                "neither a text",
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

    fn read_under(tokenizer: &Tokenizer, name: &str, text: &str, space: bool) -> Result<Task> {
        let (_folder, path) = write(name, text.as_bytes());
        let options = ExpandOptions {
            answer_space: space,
            ..ExpandOptions::default()
        };
        from_pairs_file(&path, tokenizer, &options)
    }

    #[test]
    fn an_answer_is_taken_as_it_is_written() {
        let tokenizer = byte_level(None);
        let answers = |text: &str, space: bool| {
            let task = read_under(&tokenizer, "x.jsonl", text, space).unwrap();
            (task.pairs()[0].target.answers.clone(), task.notes.len())
        };
        let of = |clean: &str, answer: &str| {
            let corrupted = clean.replace('1', "2");
            serde_json::json!({"clean": clean, "corrupted": corrupted, "answer": answer})
                .to_string()
        };
        // ` a` is one token, 256; `a` is 97.
        assert_eq!(answers(&of("np1.", "a"), false), (vec![97], 0));
        assert_eq!(
            answers(&of("1 cat", "s"), false),
            (vec![u32::from(b's')], 1)
        );
        assert_eq!(answers(&of("1 cat", "a"), true), (vec![256], 0));
        assert_eq!(answers(&of("1 cat", " a"), true), (vec![256], 0));
        assert_eq!(answers(&of("1 cat ", "a"), true), (vec![97], 0));
        assert_eq!(answers(&of("1 ends.", "\n"), false), (vec![10], 0));
        assert_eq!(
            answers(&of("the 1", "r"), false),
            (vec![u32::from(b'r')], 0)
        );
        // Scripts without spaces between words are not asked for one.
        assert_eq!(
            hint(&read_rows(&of("1 \u{6cd5}\u{56fd}", "\u{5df4}"))),
            None
        );
    }

    fn read_rows(jsonl: &str) -> Vec<FileRow> {
        let (_folder, path) = write("x.jsonl", jsonl.as_bytes());
        read(&path).unwrap()
    }

    #[test]
    fn an_answer_that_would_melt_into_the_prompt_is_the_token_that_it_is_alone() {
        // `cat` and `cats` are tokens: together they would be another one.
        let tokenizer = word_level(["cat", "dog", "cats", "s", "met"]);
        let jsonl = r#"{"clean": "met cat", "corrupted": "met dog", "answer": "s"}"#;
        let task = read_under(&tokenizer, "x.jsonl", jsonl, false).unwrap();
        assert_eq!(task.pairs()[0].target.answers, [5]);
    }

    #[test]
    fn columns_of_other_programs_are_read() {
        let tokenizer = tokenizer();
        let autocircuit = r#"{"prompts": [{"clean": "Al met", "corrupt": "Bo met", "answers": [" he"], "wrong_answers": [" it"]}]}"#;
        let ours = r#"[{"clean": "Al met", "corrupted": "Bo met", "answer": "he", "wrong": "it"}]"#;
        let ids =
            "clean,corrupted,corrupted_hard,correct_idx,incorrect_idx\nAl met,Bo met,x,6,10\n";
        let lists =
            "clean,corrupted,answers_idx,corrupted_answers_idx\nAl met,Bo met,\"[6, 7]\",[10]\n";
        for (name, text) in [
            ("a.json", autocircuit),
            ("b.json", ours),
            ("c.csv", ids),
            ("d.csv", lists),
        ] {
            let task = read_under(&tokenizer, name, text, false).unwrap();
            let target = &task.pairs()[0].target;
            assert_eq!(
                (target.answers[0], &target.wrong[..]),
                (6, &[10][..]),
                "{name}"
            );
            assert_eq!(task.metric, Metric::LogitDiff);
        }
        for (name, text, says) in [
            (
                "a.csv",
                "clean,corrupted,correct_idx\nAl met,Bo met,99\n",
                "99",
            ),
            (
                "a.csv",
                "clean,corrupted,correct_idx\nAl met,Bo met,0\n",
                "special",
            ),
            (
                "a.csv",
                "clean,corrupted,correct_idx\nAl met,Bo met,he\n",
                "no whole number",
            ),
            (
                "a.csv",
                "clean,corrupted,label\nAl met,Bo met,True\n",
                "whole number",
            ),
            (
                "a.csv",
                "clean,corrupted,label\nAl met,Bo met,1352\n",
                "two digits",
            ),
            ("a.json", "{}", "neither an array"),
            (
                "a.json",
                r#"[{"clean": "Al met", "corrupted": "Bo met", "answer": 7}]"#,
                "answer_id",
            ),
        ] {
            let error = read_under(&tokenizer, name, text, false)
                .unwrap_err()
                .to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn the_label_of_greater_than_is_a_year_to_exceed() {
        let years: Vec<String> = (0..100).map(|year| format!("{year:02}")).collect();
        let tokenizer = word_level(years.iter().map(String::as_str).chain(["from", "till"]));
        let csv = "clean,corrupted,label\nfrom 52 till,from 01 till,52\n";
        let task = read_under(&tokenizer, "a.csv", csv, false).unwrap();
        let target = &task.pairs()[0].target;
        assert_eq!((target.answers.len(), target.wrong.len()), (47, 53));
        assert_eq!(tokenizer.token(target.answers[0]), "53");
        assert_eq!(task.metric, Metric::ProbDiff);
    }

    #[test]
    fn a_column_without_a_type_has_no_answers() {
        let columns = vec![
            Series::new("clean".into(), ["Al met"]).into_column(),
            Series::new("corrupted".into(), ["Bo met"]).into_column(),
            Series::new("answer_id".into(), [6i64]).into_column(),
            Series::new_null("wrong".into(), 1).into_column(),
        ];
        let mut frame = DataFrame::new(1, columns).unwrap();
        let mut bytes = Vec::new();
        ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
        let task = task("mine.parquet", &bytes).unwrap();
        assert_eq!(task.pairs()[0].target.answers, [6]);
        assert_eq!(task.metric, Metric::LogProb);
    }
}
