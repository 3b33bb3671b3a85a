//! A task as written: a TOML file of `circuits/`, described in `circuits/README.md`. Reading one needs no tokenizer.
//!
//! The files of `circuits/` and the embedded model's own task are compiled into the library, so that `--task ioi` works from anywhere. A key that we do not know
//! is an error: a misspelt `corruption` must not silently give the default one.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::causal_gym::CONTRASTS;
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::model::checkpoint::read_at_most;
use crate::text::one_line;

/// Larger task files are refused; a list of ten thousand words has a tenth of it.
const FILE_LIMIT: u64 = 4 << 20;

/// The task that the embedded model was trained for.
pub const EMBEDDED: &str = "embedded";

/// The tasks that are part of the library: name and text.
const SHIPPED: [(&str, &str); 8] = [
    (EMBEDDED, include_str!("../../models/embedded/task.toml")),
    ("ioi", include_str!("../../circuits/ioi.toml")),
    (
        "greater_than",
        include_str!("../../circuits/greater_than.toml"),
    ),
    (
        "gendered_pronoun",
        include_str!("../../circuits/gendered_pronoun.toml"),
    ),
    (
        "subject_verb",
        include_str!("../../circuits/subject_verb.toml"),
    ),
    (
        "country_capital",
        include_str!("../../circuits/country_capital.toml"),
    ),
    ("induction", include_str!("../../circuits/induction.toml")),
    ("docstring", include_str!("../../circuits/docstring.toml")),
];

/// A task file.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFile {
    /// The file's own name without `.toml`, unless it says another.
    #[serde(default)]
    pub name: String,
    /// What the model is asked to do, in a sentence.
    #[serde(default)]
    pub about: String,
    /// The paper, and how this file differs from it.
    #[serde(default)]
    pub source: String,
    /// What the paper claims about a model on this task, in its own terms. Not what we measured.
    #[serde(default)]
    pub claim: String,
    #[serde(default)]
    pub kind: TaskKind,
    #[serde(default)]
    #[cfg_attr(feature = "cli", schemars(with = "String"))]
    pub metric: Metric,
    #[serde(default)]
    pub seed: u64,
    #[serde(default = "default_n_pairs")]
    pub n_pairs: usize,
    /// The corruption that is used unless another is asked for; the only one, where there is one.
    #[serde(default)]
    pub corruption: String,
    /// What the model should say, as it continues the prompt: with its leading space.
    pub answer: Option<Answer>,
    pub wrong: Option<Answer>,
    /// Whether a space is put in front of each answer that does not begin with one; as written otherwise.
    #[serde(default)]
    pub answer_space: bool,
    /// Roles beside those of the slots and `END`: `S1+1` is the token after `S1`.
    #[serde(default)]
    pub roles: Vec<String>,
    /// Which list each slot is drawn from. Slots of one list are filled with different entries.
    #[serde(default)]
    pub slots: BTreeMap<String, String>,
    #[serde(default)]
    pub lists: BTreeMap<String, List>,
    #[serde(default)]
    pub templates: Vec<TemplateEntry>,
    #[serde(default)]
    pub corruptions: BTreeMap<String, Corruption>,
    pub repeated_tokens: Option<RepeatedTokens>,
    /// The file as it was read.
    #[serde(skip)]
    pub text: String,
}

/// How prompts are made.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// From `templates`, `slots` and `lists`.
    #[default]
    Templates,
    /// Random tokens, then the same ones again ([`RepeatedTokens`]).
    RepeatedTokens,
}

/// Words, all of which may fill a slot; with columns if more is known about each.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "ListEntry")]
pub struct List {
    /// Of equal length; [`List::TEXT`] is what a slot shows.
    pub columns: BTreeMap<String, Vec<String>>,
}

#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a list is an array of texts, or a table of such arrays, one of them `text`"
)]
enum ListEntry {
    Words(Vec<String>),
    Columns(BTreeMap<String, Vec<String>>),
}

/// One or several texts, or the part of a list above or up to an entry.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "an answer is a text, an array of texts, or a table of `above` or `upto`, and `list`"
)]
pub enum Answer {
    One(String),
    Several(Vec<String>),
    /// The entries that come after this one in a list.
    Above {
        above: String,
        list: String,
    },
    /// The entries up to this one, itself included.
    UpTo {
        upto: String,
        list: String,
    },
}

/// A prompt text, possibly with answers of its own.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "a template is a text, or a table of `text`, `answer` and `wrong`"
)]
pub enum TemplateEntry {
    Text(String),
    WithAnswer {
        text: String,
        answer: Option<Answer>,
        wrong: Option<Answer>,
    },
}

/// How the corrupted prompt differs: which occurrences (roles) change, or all occurrences of a slot at once.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Corruption {
    pub about: String,
    /// Becomes what this text says, which may name slots of the clean prompt.
    #[serde(default)]
    pub set: BTreeMap<String, String>,
    /// Becomes another entry, unlike all that the prompt has from the same list.
    #[serde(default)]
    pub draw: BTreeMap<String, Draw>,
}

/// Where a corruption's new word comes from.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(
    untagged,
    expecting = "a draw is the name of a list, or a table of `list` and `unlike`"
)]
pub enum Draw {
    List(String),
    /// Only entries that differ from the clean one in a column.
    Unlike {
        list: String,
        unlike: String,
    },
}

/// `r0 r1 ... r(block-1)`, then `r0 ... r(repeated-1)` again; the answer is `r(repeated)`.
#[cfg_attr(feature = "cli", derive(schemars::JsonSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepeatedTokens {
    pub block: usize,
    pub repeated: usize,
}

fn default_n_pairs() -> usize {
    100
}

impl List {
    /// The column that a slot shows.
    pub const TEXT: &str = "text";

    pub fn len(&self) -> usize {
        self.columns[Self::TEXT].len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn words(&self) -> &[String] {
        &self.columns[Self::TEXT]
    }
}

impl TryFrom<ListEntry> for List {
    type Error = String;

    fn try_from(entry: ListEntry) -> Result<Self, String> {
        let columns = match entry {
            ListEntry::Words(words) => BTreeMap::from([(List::TEXT.to_owned(), words)]),
            ListEntry::Columns(columns) => columns,
        };
        let Some(words) = columns.get(List::TEXT) else {
            return Err("a list with columns needs one called `text`".into());
        };
        if words.is_empty() {
            return Err("a list needs at least one word".into());
        }
        match columns
            .iter()
            .find(|(_, column)| column.len() != words.len())
        {
            Some((name, column)) => Err(format!(
                "column `{name}` of a list has {} entries where `text` has {}",
                column.len(),
                words.len()
            )),
            None => Ok(List { columns }),
        }
    }
}

impl TemplateEntry {
    pub fn text(&self) -> &str {
        match self {
            TemplateEntry::Text(text) | TemplateEntry::WithAnswer { text, .. } => text,
        }
    }

    pub fn answer(&self) -> Option<&Answer> {
        match self {
            TemplateEntry::Text(_) => None,
            TemplateEntry::WithAnswer { answer, .. } => answer.as_ref(),
        }
    }

    pub fn wrong(&self) -> Option<&Answer> {
        match self {
            TemplateEntry::Text(_) => None,
            TemplateEntry::WithAnswer { wrong, .. } => wrong.as_ref(),
        }
    }
}

/// The names of the shipped tasks.
pub fn shipped() -> impl Iterator<Item = &'static str> {
    SHIPPED.iter().map(|(name, _)| *name)
}

impl TaskFile {
    /// What `--task` means: the name of a shipped task, or else the path of a file.
    /// # Errors
    /// [`Error::BadTask`] listing the shipped tasks if it is neither; and as [`TaskFile::parse`].
    pub fn open(name_or_path: &str) -> Result<Self> {
        let mut known = SHIPPED.iter().chain(CONTRASTS);
        if let Some((name, text)) = known.find(|(name, _)| *name == name_or_path) {
            return Self::parse(text, name);
        }
        let path = Path::new(name_or_path);
        let metadata = match std::fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let names: Vec<&str> = shipped().collect();
                return Err(bad(
                    name_or_path,
                    format!(
                        "there is no such file, and no shipped task of that name; shipped are {}, and `{}` and its like",
                        names.join(", "),
                        CONTRASTS[0].0
                    ),
                ));
            }
            Err(source) => {
                return Err(Error::Read {
                    path: path.to_owned(),
                    source,
                });
            }
        };
        if metadata.is_dir() {
            return Err(bad(
                name_or_path,
                "this is a folder; name a task file in it, e.g. `circuits/ioi.toml`",
            ));
        }
        if metadata.len() > FILE_LIMIT {
            return Err(bad(
                name_or_path,
                format!(
                    "the file has {} bytes, at most {FILE_LIMIT} are read; give large data as a table (`task::from_pairs_file`)",
                    metadata.len()
                ),
            ));
        }
        // What has no length, such as a device or a pipe, may have no end.
        let bytes = read_at_most(path, FILE_LIMIT)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| bad(name_or_path, "the file is not UTF-8 text; a task is a TOML file (tables of pairs go with `task::from_pairs_file`)"))?;
        Self::parse(&text, name_or_path)
    }

    /// Reads a task from its text; `origin` is how errors call it.
    /// # Errors
    /// [`Error::BadTask`] if it is not TOML, has an unknown or missing key, or contradicts itself.
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let mut file: TaskFile = toml::from_str(text).map_err(|e| {
            let line = e
                .span()
                .map(|span| text[..span.start.min(text.len())].lines().count().max(1));
            let line = line
                .map(|line| format!(" (line {line})"))
                .unwrap_or_default();
            bad(
                origin,
                format!(
                    "{}{line}; the format is described in circuits/README.md",
                    one_line(e.message())
                ),
            )
        })?;
        file.text = text.to_owned();
        if file.name.is_empty() {
            let stem = Path::new(origin).file_stem().unwrap_or_default();
            file.name = stem.to_string_lossy().into_owned();
        }
        if file.corruption.is_empty() && file.corruptions.len() == 1 {
            file.corruption = file.corruptions.keys().next().cloned().unwrap_or_default();
        }
        file.check().map_err(|reason| bad(origin, reason))?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if self.kind == TaskKind::RepeatedTokens {
            let Some(RepeatedTokens { block, repeated }) = self.repeated_tokens else {
                return Err("kind `repeated_tokens` needs a table `[repeated_tokens]` with `block` and `repeated`".into());
            };
            if repeated == 0 || repeated >= block || block > 4096 {
                return Err(format!(
                    "`repeated` = {repeated} must be at least 1 and below `block` = {block}, which may be at most 4096"
                ));
            }
            return Ok(());
        }
        let missing: Vec<&str> = [
            (self.templates.is_empty(), "`templates = [\"...\"]`"),
            (
                self.corruptions.is_empty(),
                "a corruption, such as `[corruptions.other]` with `draw = { SLOT = \"list\" }`",
            ),
            (
                self.corruption.is_empty() && self.corruptions.len() > 1,
                "`corruption = \"NAME\"`, which of its corruptions is used",
            ),
        ]
        .into_iter()
        .filter_map(|(lacks, what)| lacks.then_some(what))
        .collect();
        if !missing.is_empty() {
            return Err(format!("it lacks {}", missing.join("; and ")));
        }
        if !self.corruptions.contains_key(&self.corruption) {
            return Err(self.unknown_corruption(&self.corruption));
        }
        for (slot, list) in &self.slots {
            if !self.lists.contains_key(list) {
                return Err(format!(
                    "slot `{slot}` is drawn from list `{list}`, which is not there; it has {}",
                    names(&self.lists)
                ));
            }
        }
        Ok(())
    }

    pub(super) fn unknown_corruption(&self, name: &str) -> String {
        format!(
            "it has no corruption `{name}`; it has {}",
            names(&self.corruptions)
        )
    }
}

pub(super) fn names<T>(map: &BTreeMap<String, T>) -> String {
    map.keys().cloned().collect::<Vec<_>>().join(", ")
}

pub(super) fn bad(task: &str, reason: impl Into<String>) -> Error {
    Error::BadTask {
        task: task.to_owned(),
        reason: reason.into(),
    }
}
