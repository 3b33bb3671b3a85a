//! Sets of questions from files: TOML or JSON with `questions`, or CSV with a question a row.

use std::path::Path;

use serde::Deserialize;
use unicode_segmentation::UnicodeSegmentation;

use super::set::{MAX_ANSWER, Question, QuestionSet};
use crate::error::{Error, Result};
use crate::model::checkpoint::read_at_most;
use crate::text::{likeness, nearest, one_line, visible};

/// A larger file is refused: all of it is held.
const FILE_LIMIT: u64 = 16 << 20;

/// The sets that are part of the library.
const SHIPPED: [(&str, &str); 2] = [
    (
        "embedded",
        include_str!("../../../models/embedded/questions.toml"),
    ),
    (
        "invented",
        include_str!("../../../examples/data/questions.toml"),
    ),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "about")]
    _about: String,
    layout: Option<String>,
    questions: Vec<WrittenQuestion>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenQuestion {
    context: Context,
    question: String,
    answer: Option<String>,
    gold: Option<usize>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "`context` is a list of sentences, or a text")]
enum Context {
    Sentences(Vec<String>),
    Text(String),
}

#[derive(Deserialize)]
struct Row {
    context: String,
    question: String,
    #[serde(default)]
    answer: Option<String>,
    #[serde(default)]
    gold: Option<usize>,
}

impl QuestionSet {
    /// A file, or the name of a set that ships.
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] for what it says; those of [`QuestionSet::check`].
    pub fn open(name_or_path: &str) -> Result<QuestionSet> {
        if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return QuestionSet::parse(Path::new(&format!("{name}.toml")), text);
        }
        let path = Path::new(name_or_path);
        if !path.exists() {
            let names = SHIPPED.map(|(name, _)| format!("`{name}`")).join(", ");
            let like = nearest(name_or_path, SHIPPED.iter().map(|(name, _)| *name));
            return Err(Error::Missing {
                path: path.into(),
                hint: format!(
                    "give a file of questions (.toml, .json, .csv), or a set that ships: {names} (most like it: {like})"
                ),
            });
        }
        QuestionSet::parse(path, &text_of(path)?)
    }

    /// What a file says, by its ending.
    /// # Errors
    /// [`Error::Malformed`]; those of [`QuestionSet::check`].
    pub fn parse(path: &Path, text: &str) -> Result<QuestionSet> {
        let malformed = |format: &'static str, reason: &dyn ToString| Error::Malformed {
            path: path.into(),
            format,
            reason: one_line(&reason.to_string()),
        };
        let text = text.trim_start_matches('\u{feff}');
        let ending = path.extension().and_then(|ending| ending.to_str());
        let written: Written = match ending {
            Some("toml") => toml::from_str(text).map_err(|e| malformed("TOML", &e))?,
            Some("json") => serde_json::from_str(text).map_err(|e| malformed("JSON", &e))?,
            Some("csv") => rows(text).map_err(|e| malformed("CSV", &e))?,
            _ => {
                let reason = "its name must end in .toml, .json or .csv";
                return Err(malformed("questions", &reason));
            }
        };
        let stem = path.file_stem().map(|stem| stem.to_string_lossy());
        let question = |one: WrittenQuestion| Question {
            context: match one.context {
                Context::Sentences(sentences) => sentences,
                Context::Text(text) => sentences(&text),
            },
            question: one.question,
            answer: one.answer,
            gold: one.gold,
        };
        let set = QuestionSet {
            name: match written.name {
                name if name.is_empty() => stem.unwrap_or_default().into_owned(),
                name => name,
            },
            questions: written.questions.into_iter().map(question).collect(),
            layout: written.layout,
            own_answers: false,
            max_answer: MAX_ANSWER,
            source: text.to_string(),
        };
        set.check()?;
        Ok(set)
    }
}

/// A context of several lines has a sentence a line, one of a single line is split; an answer or a number that is empty is none.
fn rows(text: &str) -> Result<Written, String> {
    const COLUMNS: [&str; 4] = ["context", "question", "answer", "gold"];
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    // Columns of one's own are let be, but one of ours that is misspelt would be taken for none.
    for column in reader.headers().map_err(|e| e.to_string())? {
        let like = |known: &&str| likeness(column, known) > 740_000;
        if let Some(meant) = (COLUMNS.into_iter().find(like)).filter(|known| *known != column) {
            return Err(format!(
                "column `{}`: did you mean `{meant}`?",
                visible(column)
            ));
        }
    }
    let question = |row: Row| WrittenQuestion {
        context: match row.context.trim().contains('\n') {
            true => Context::Sentences(lines(&row.context)),
            false => Context::Text(row.context),
        },
        question: row.question,
        answer: row.answer.filter(|answer| !answer.trim().is_empty()),
        gold: row.gold,
    };
    let questions = reader.deserialize().map(|row| match row {
        Ok(row) => Ok(question(row)),
        Err(error) => Err(error.to_string()),
    });
    Ok(Written {
        name: String::new(),
        _about: String::new(),
        layout: None,
        questions: questions.collect::<Result<_, _>>()?,
    })
}

/// The sentences of a file of text: found by Unicode's rules, or a line each.
/// # Errors
/// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] if it is no UTF-8.
pub fn read_sentences(path: &Path, one_a_line: bool) -> Result<Vec<String>> {
    if !path.exists() {
        return Err(Error::Missing {
            path: path.into(),
            hint: "give a file of text, whose sentences are the context".into(),
        });
    }
    let text = text_of(path)?;
    let text = text.trim_start_matches('\u{feff}');
    Ok(match one_a_line {
        true => lines(text),
        false => sentences(text),
    })
}

/// The sentences of a text, by Unicode's rules (UAX 29), which know no abbreviations: `Dr. Smith` is two. An empty line ends one, a line
/// break inside of a paragraph does not.
pub fn sentences(text: &str) -> Vec<String> {
    let text = text.replace("\r\n", "\n");
    let mut found = Vec::new();
    for paragraph in text.split("\n\n") {
        let line = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        for sentence in line.split_sentence_bounds() {
            if !sentence.trim().is_empty() {
                found.push(sentence.trim().to_string());
            }
        }
    }
    found
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty())
        .map(String::from)
        .collect()
}

fn text_of(path: &Path) -> Result<String> {
    String::from_utf8(read_at_most(path, FILE_LIMIT)?).map_err(|_| Error::Malformed {
        path: path.into(),
        format: "text",
        reason: "it is not UTF-8; save it as UTF-8".into(),
    })
}
