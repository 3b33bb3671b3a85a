//! Tasks: prompt pairs with roles and answers, under one tokenizer.
//!
//! A task is written down without a tokenizer, as a file of `circuits/` ([`file`]) or as the user's own pairs ([`pairs`]), and
//! becomes token ids here. Whatever does not survive that, a pair whose prompts differ in length, an answer of two tokens,
//! is dropped, and the list of what was dropped and why belongs to the task. The ways in:
//!
//! - [`TaskFile::open`] (a path or the name of a shipped task), then [`expand`]: templates, filled by a seed;
//! - [`from_pairs_file`]: CSV, JSONL or parquet.
//!
//! [`render`] shows the result: what `candlewick tokens` prints.

mod expand;
pub mod file;
mod fill;
pub mod pairs;
mod render;
mod repeated;
mod template;
mod tokenise;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::metric::{Metric, Target};
use crate::model::Tokenizer;

pub use expand::expand;
pub use file::{TaskFile, shipped};
pub use pairs::from_pairs_file;
pub use render::{render, render_json};

/// More pairs than this are refused: a task lives in memory, and nobody reads the mean of more.
pub const MAX_PAIRS: usize = 100_000;

/// One prompt pair, tokenised. `clean` and `corrupted` have equal length and aligned roles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Index of the pair in the task as written (before any was dropped): the `example` of result rows.
    pub index: usize,
    pub clean: Vec<u32>,
    pub corrupted: Vec<u32>,
    pub clean_text: String,
    pub corrupted_text: String,
    pub target: Target,
    /// Token positions of each role (`IO`, `S1`, `S2`, `END`, ...), ascending, the same in both prompts.
    pub roles: BTreeMap<String, Vec<usize>>,
    /// Which template made it; pairs of one template and length align position by position.
    pub template: usize,
}

/// A pair that was not usable, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dropped {
    pub index: usize,
    pub clean_text: String,
    pub corrupted_text: String,
    /// The kind of reason, a colon, and the values seen.
    pub reason: String,
}

/// A task under one tokenizer: what a method runs on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub name: String,
    pub pairs: Vec<Pair>,
    pub dropped: Vec<Dropped>,
    pub metric: Metric,
    pub seed: u64,
    /// Whether a BOS token was put in front of every prompt.
    pub bos: bool,
    /// The chat template was applied.
    pub chat: bool,
    /// The task file as it was read, for the provenance.
    pub source: String,
    /// Which corruption made the corrupted prompts; `given` for the user's own pairs.
    pub corruption: String,
    /// How many pairs were asked for; there can be fewer.
    pub asked: usize,
}

/// How a task is turned into tokens; the default follows the task file and the tokenizer.
#[derive(Debug, Clone, Default)]
pub struct ExpandOptions {
    /// Usable pairs wanted. For the user's own pairs: at most so many, from the top of the file.
    pub n_pairs: Option<usize>,
    pub seed: Option<u64>,
    pub bos: BosChoice,
    /// Wrap each prompt as one user message of the tokenizer's chat template.
    pub chat: bool,
    /// Name of a corruption of the task.
    pub corruption: Option<String>,
    /// `n_ctx` of the model; longer prompts are dropped.
    pub max_tokens: Option<usize>,
    pub metric: Option<Metric>,
    /// Only these templates of the task file, numbered from 0; all if none is named. Prompts of one template align position
    /// by position, so rows by position then mean one thing.
    pub templates: Vec<usize>,
}

/// Whether BOS goes in front of every prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BosChoice {
    /// As the model's own tokenizer does.
    #[default]
    Auto,
    Yes,
    No,
}

impl BosChoice {
    /// # Errors
    /// [`Error::Tokenizer`] if BOS is asked for and the tokenizer has none.
    pub fn resolve(self, tokenizer: &Tokenizer) -> Result<bool> {
        match self {
            BosChoice::Auto => Ok(tokenizer.adds_bos()),
            BosChoice::No => Ok(false),
            BosChoice::Yes if tokenizer.bos().is_some() => Ok(true),
            BosChoice::Yes => Err(Error::Tokenizer {
                reason: "it has no BOS token to put in front; run without one (`--bos no`)".into(),
            }),
        }
    }
}

impl std::str::FromStr for BosChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(BosChoice::Auto),
            "yes" => Ok(BosChoice::Yes),
            "no" => Ok(BosChoice::No),
            _ => Err(Error::Parse {
                what: "a BOS choice",
                text: text.into(),
                reason: "it is auto, yes or no".into(),
            }),
        }
    }
}

impl Dropped {
    /// The reason without the values seen: what drops are counted by.
    pub fn kind(&self) -> &str {
        self.reason.split(':').next().unwrap_or(&self.reason)
    }
}

impl Task {
    /// Indices into `pairs`, in batches that need no padding: one template and one length each, at most `max_pairs` long.
    pub fn batches(&self, max_pairs: usize) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
        for (i, pair) in self.pairs.iter().enumerate() {
            groups
                .entry((pair.template, pair.clean.len()))
                .or_default()
                .push(i);
        }
        groups
            .values()
            .flat_map(|group| group.chunks(max_pairs.max(1)).map(<[usize]>::to_vec))
            .collect()
    }

    /// The roles that every pair has.
    pub fn roles(&self) -> Vec<String> {
        let mut pairs = self.pairs.iter();
        let Some(first) = pairs.next() else {
            return Vec::new();
        };
        let mut common: BTreeSet<&String> = first.roles.keys().collect();
        for pair in pairs {
            common.retain(|role| pair.roles.contains_key(*role));
        }
        common.into_iter().cloned().collect()
    }

    /// The token positions of a role in one pair, the same in both prompts.
    /// # Errors
    /// [`Error::UnknownRole`] if the pair does not have it.
    pub fn positions(&self, pair: usize, role: &str) -> Result<&[usize]> {
        self.pairs
            .get(pair)
            .and_then(|pair| pair.roles.get(role))
            .map(Vec::as_slice)
            .ok_or_else(|| Error::UnknownRole {
                role: role.to_owned(),
                known: self.roles().join(", "),
            })
    }

    /// Checks that every pair has what a metric needs.
    /// # Errors
    /// [`Error::BadMetric`] naming the first pair that does not.
    pub fn check_metric(&self, metric: Metric) -> Result<()> {
        for pair in &self.pairs {
            let lacks = if pair.target.answers.is_empty() && !metric.needs_reference() {
                "an answer"
            } else if pair.target.wrong.is_empty() && metric.needs_wrong() {
                "a wrong answer"
            } else {
                continue;
            };
            return Err(Error::BadMetric {
                metric: metric.to_string(),
                reason: format!(
                    "needs {lacks}, and pair {} of task `{}` has none; add it, or choose `--metric kl`",
                    pair.index, self.name
                ),
            });
        }
        Ok(())
    }

    /// SHA-256 over all token ids and targets: two runs with one hash saw the same prompts.
    pub fn token_hash(&self) -> String {
        let mut hash = Sha256::new();
        for pair in &self.pairs {
            for ids in [
                &pair.clean,
                &pair.corrupted,
                &pair.target.answers,
                &pair.target.wrong,
            ] {
                hash.update((ids.len() as u64).to_le_bytes());
                for id in ids {
                    hash.update(id.to_le_bytes());
                }
            }
        }
        hash.finalize()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// How often each kind of reason made a pair unusable, most frequent first.
    pub fn drop_counts(&self) -> Vec<(String, usize)> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for dropped in &self.dropped {
            *counts.entry(dropped.kind()).or_default() += 1;
        }
        let mut counts: Vec<(String, usize)> = counts
            .into_iter()
            .map(|(kind, n)| (kind.to_owned(), n))
            .collect();
        counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        counts
    }

    /// The task itself, if it has a pair to run on.
    /// # Errors
    /// [`Error::EmptyTask`] with the reasons counted and the first one in full.
    pub(crate) fn unless_empty(self) -> Result<Self> {
        if !self.pairs.is_empty() {
            return Ok(self);
        }
        let reason = match self.dropped.first() {
            None => "it has no pairs at all".to_owned(),
            Some(first) => {
                let counts: Vec<String> = self
                    .drop_counts()
                    .iter()
                    .map(|(kind, n)| format!("{n} x {kind}"))
                    .collect();
                format!(
                    "{}; the first was dropped for: {}",
                    counts.join(", "),
                    first.reason
                )
            }
        };
        Err(Error::EmptyTask {
            task: self.name,
            reason,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(index: usize, template: usize, length: usize) -> Pair {
        Pair {
            index,
            clean: vec![1; length],
            corrupted: vec![2; length],
            clean_text: String::new(),
            corrupted_text: String::new(),
            target: Target {
                answers: vec![3],
                wrong: vec![],
            },
            roles: BTreeMap::from([
                ("END".to_owned(), vec![length - 1]),
                (format!("R{template}"), vec![0]),
            ]),
            template,
        }
    }

    fn task(pairs: Vec<Pair>) -> Task {
        Task {
            name: "test".into(),
            pairs,
            dropped: Vec::new(),
            metric: Metric::LogProb,
            seed: 0,
            bos: false,
            chat: false,
            source: String::new(),
            corruption: "given".into(),
            asked: 0,
        }
    }

    #[test]
    fn batches_hold_one_template_and_one_length() {
        let task = task(vec![
            pair(0, 0, 5),
            pair(1, 1, 5),
            pair(2, 0, 5),
            pair(3, 0, 6),
            pair(4, 0, 5),
        ]);
        assert_eq!(task.batches(2), [vec![0, 2], vec![4], vec![3], vec![1]]);
        assert_eq!(task.batches(0).len(), 5);
    }

    #[test]
    fn roles_are_those_of_every_pair() {
        let task = task(vec![pair(0, 0, 5), pair(1, 1, 5)]);
        assert_eq!(task.roles(), ["END"]);
        assert_eq!(task.positions(0, "END").unwrap(), [4]);
        assert!(
            task.positions(0, "S2")
                .unwrap_err()
                .to_string()
                .contains("it has: END")
        );
    }

    #[test]
    fn the_hash_depends_on_ids_and_targets_alone() {
        let one = task(vec![pair(0, 0, 5)]);
        let mut other = one.clone();
        other.pairs[0].clean_text = "shown otherwise".into();
        assert_eq!(one.token_hash(), other.token_hash());
        other.pairs[0].target.wrong.push(4);
        assert_ne!(one.token_hash(), other.token_hash());
        assert_eq!(one.token_hash().len(), 64);
    }

    #[test]
    fn a_metric_that_a_pair_cannot_serve_is_named() {
        let task = task(vec![pair(7, 0, 5)]);
        assert!(task.check_metric(Metric::LogProb).is_ok());
        assert!(
            task.check_metric(Metric::LogitDiff)
                .unwrap_err()
                .to_string()
                .contains("pair 7")
        );
    }

    #[test]
    fn an_empty_task_tells_its_reasons() {
        let mut empty = task(vec![]);
        assert!(
            empty
                .clone()
                .unless_empty()
                .unwrap_err()
                .to_string()
                .contains("no pairs at all")
        );
        for reason in [
            "lengths differ: 5 and 6 tokens",
            "lengths differ: 5 and 7 tokens",
            "repeated: as pair 0",
        ] {
            empty.dropped.push(Dropped {
                index: 0,
                clean_text: String::new(),
                corrupted_text: String::new(),
                reason: reason.into(),
            });
        }
        let message = empty.unless_empty().unwrap_err().to_string();
        assert!(
            message.contains("2 x lengths differ, 1 x repeated") && message.contains("5 and 6"),
            "{message}"
        );
    }
}
