//! A task that was checked: what a method runs on.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sha2::{Digest, Sha256};

use super::pair::Pair;
use crate::error::{Dropped, Error, Result};
use crate::hooks::Roles;
use crate::metric::{Metric, Target};
use crate::model::Tokenizer;
use crate::spec::ModelSpec;

/// More pairs than this are refused: a task lives in memory, and nobody reads the mean of more.
pub const MAX_PAIRS: usize = 100_000;

/// A task under one tokenizer: what a method runs on.
///
/// It has at least one pair. In each of them the prompts have tokens, every role has tokens inside both prompts, as many in one as
/// in the other, no answer is also wrong, and there is what the metric needs. Prompts of a pair have equal length unless the pair
/// says where its roles are in each ([`Pair::shifted_roles`]). Whether a model has its tokens: [`Task::check_fits`].
#[derive(Debug, Clone)]
pub struct Task {
    pub name: String,
    pub(super) pairs: Vec<Pair>,
    pub(super) tokenizer: Tokenizer,
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
    /// What is lawful but doubtful about it, each in a sentence.
    pub notes: Vec<String>,
}

impl Task {
    /// A task of one's own token ids. The pairs are numbered in the order given; a pair that is there twice is dropped.
    ///
    /// ```no_run
    /// # use candlewick::metric::Metric;
    /// # use candlewick::task::{Pair, Task};
    /// # let tokenizer: candlewick::model::Tokenizer = unimplemented!();
    /// let pair = Pair::new([1, 5, 9], [1, 6, 9]).role("NAME", [1]).answer(5).wrong(6);
    /// let task = Task::new("names", &tokenizer, Metric::LogitDiff, [pair])?;
    /// # Ok::<(), candlewick::Error>(())
    /// ```
    /// # Errors
    /// [`Error::EmptyTask`] without a pair; [`Error::BadTask`] naming a pair that is not as a [`Task`] promises, or for more than
    /// [`MAX_PAIRS`]; [`Error::LengthMismatch`] for prompts of unequal length without [`Pair::shifted_role`]s;
    /// [`Error::BadMetric`] for a pair without what the metric needs.
    pub fn new(
        name: impl Into<String>,
        tokenizer: &Tokenizer,
        metric: Metric,
        pairs: impl IntoIterator<Item = Pair>,
    ) -> Result<Self> {
        let numbered = pairs.into_iter().enumerate();
        let pairs: Vec<Pair> = numbered
            .map(|(index, pair)| Pair { index, ..pair })
            .collect();
        Task::of_numbered(name.into(), tokenizer, metric, pairs, Vec::new())
    }

    /// The same task with other pairs, which keep their numbers.
    /// # Errors
    /// As [`Task::new`]; [`Error::BadTask`] if the numbers do not ascend.
    pub fn with_pairs(&self, pairs: impl IntoIterator<Item = Pair>) -> Result<Self> {
        let pairs = pairs.into_iter().collect();
        let checked = Task::of_numbered(
            self.name.clone(),
            &self.tokenizer,
            self.metric,
            pairs,
            vec![],
        )?;
        Ok(Task {
            pairs: checked.pairs,
            asked: checked.asked,
            dropped: checked.dropped,
            ..self.clone()
        })
    }

    /// The one way to a task: checks every pair, and drops those that are there twice. `dropped` are pairs that did not become
    /// tokens.
    pub(super) fn of_numbered(
        name: String,
        tokenizer: &Tokenizer,
        metric: Metric,
        pairs: Vec<Pair>,
        mut dropped: Vec<Dropped>,
    ) -> Result<Self> {
        let asked = pairs.len() + dropped.len();
        if pairs.len() > MAX_PAIRS {
            return Err(Error::BadTask {
                task: name,
                reason: format!(
                    "it has {} pairs, at most {MAX_PAIRS} are taken; split it",
                    pairs.len()
                ),
            });
        }
        let mut kept: Vec<Pair> = Vec::with_capacity(pairs.len());
        let mut seen = Repeats::default();
        for mut pair in pairs {
            check(&name, &pair, tokenizer)?;
            if kept.last().is_some_and(|last| last.index >= pair.index) {
                return Err(Error::BadTask {
                    task: name,
                    reason: format!(
                        "pair {} comes after one of the same or a larger number; number pairs in ascending order",
                        pair.index
                    ),
                });
            }
            if let Some(reason) = seen.reason(&pair) {
                dropped.push(pair.dropped(reason));
                continue;
            }
            for (text, tokens) in [
                (&mut pair.clean_text, &pair.clean),
                (&mut pair.corrupted_text, &pair.corrupted),
            ] {
                if text.is_empty() {
                    *text = tokenizer.decode(tokens)?;
                }
            }
            kept.push(pair);
        }
        dropped.sort_by_key(|dropped| dropped.index);
        let task = Task {
            name,
            pairs: kept,
            tokenizer: tokenizer.clone(),
            dropped,
            metric,
            seed: 0,
            bos: false,
            chat: false,
            source: String::new(),
            corruption: "given".into(),
            asked,
            notes: Vec::new(),
        };
        task.check_not_empty()?;
        task.check_metric(metric)?;
        Ok(task)
    }

    /// The pairs, at least one, by ascending number.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    pub fn into_pairs(self) -> Vec<Pair> {
        self.pairs
    }

    /// What its token ids are ids of.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// One token as text, e.g. ` Mary`, safe to show; an id outside the vocabulary shows as `[id]`.
    pub fn text(&self, token: u32) -> String {
        self.tokenizer.token(token)
    }

    /// Each token of a prompt as text.
    pub fn texts(&self, tokens: &[u32]) -> Vec<String> {
        tokens.iter().map(|&token| self.text(token)).collect()
    }

    /// Refuses a task that was made for another model: whether it fits one can be said before any weight is read.
    /// # Errors
    /// [`Error::OutOfRange`] for a token of a prompt or an answer that the embedding has no row for; [`Error::TooLong`].
    pub fn check_fits(&self, spec: &ModelSpec) -> Result<()> {
        for pair in &self.pairs {
            let Target {
                answers,
                wrong,
                then,
                ..
            } = &pair.target;
            for (side, tokens) in [
                ("clean", &pair.clean),
                ("corrupted", &pair.corrupted),
                ("answer", answers),
                ("answer", then),
                ("wrong", wrong),
            ] {
                if let Some(token) = tokens.iter().find(|&&id| id as usize >= spec.d_vocab) {
                    return Err(Error::OutOfRange {
                        hook: "the vocabulary of the model".into(),
                        what: "token",
                        value: format!("{token} ({side} of pair {})", pair.index),
                        limit: format!("{} tokens", spec.d_vocab),
                    });
                }
            }
            let tokens = pair.clean.len().max(pair.corrupted.len());
            if tokens > spec.n_ctx {
                return Err(Error::TooLong {
                    index: pair.index,
                    tokens,
                    limit: spec.n_ctx,
                });
            }
        }
        Ok(())
    }

    /// Whether the prompts of every pair can be compared position by position.
    pub fn is_aligned(&self) -> bool {
        self.pairs.iter().all(Pair::is_aligned)
    }

    /// Refuses a task with pairs that do not align position by position: what every method asks that puts activations of one
    /// prompt at the same positions of the other.
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::RoleMismatch`], naming the first such pair.
    pub fn check_aligned(&self) -> Result<()> {
        self.pairs.iter().try_for_each(Pair::check_aligned)
    }

    /// Indices into `pairs`, in batches that need no padding: one template and one length of either
    /// prompt each, at most `max_pairs` long.
    pub fn batches(&self, max_pairs: usize) -> Vec<Vec<usize>> {
        let mut groups: BTreeMap<(usize, usize, usize), Vec<usize>> = BTreeMap::new();
        for (i, pair) in self.pairs.iter().enumerate() {
            let key = (pair.template, pair.clean.len(), pair.corrupted.len());
            groups.entry(key).or_default().push(i);
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

    /// The token positions of a role in the clean prompt of one pair.
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

    /// Refuses answers of several tokens, for methods that read one.
    /// # Errors
    /// [`Error::Invalid`] naming the method and the first pair with such an answer.
    pub fn check_single_tokens(&self, method: &str) -> Result<()> {
        match self.pairs.iter().find(|pair| !pair.target.then.is_empty()) {
            None => Ok(()),
            Some(pair) => Err(Error::invalid(format!(
                "`{method}` reads one token, and the answer of pair {} of task `{}` has {}; give answers of one token, or measure all of \
                 it by `candlewick patch`, `ablate`, `path` or `attribute`",
                pair.index,
                self.name,
                pair.target.n_tokens()
            ))),
        }
    }

    /// Checks that every pair has what a metric needs.
    /// # Errors
    /// [`Error::BadMetric`] naming the first pair that does not.
    pub fn check_metric(&self, metric: Metric) -> Result<()> {
        // Another metric than the task's is what a method measures by, and nobody can choose it.
        let is_chosen = metric == self.metric;
        for pair in &self.pairs {
            let checked = metric.check_tokens(&pair.target);
            checked.map_err(|error| match is_chosen {
                true => error,
                false => Error::BadMetric {
                    metric: metric.to_string(),
                    reason: format!(
                        "compares single tokens here, and the answer of pair {} of task `{}` has {}; give answers of one token",
                        pair.index,
                        self.name,
                        pair.target.n_tokens()
                    ),
                },
            })?;
            pair.check_metric(metric)
                .map_err(|lacks| Error::BadMetric {
                    metric: metric.to_string(),
                    reason: format!(
                        "needs {lacks}, and pair {} of task `{}` has none; {}",
                        pair.index,
                        self.name,
                        match is_chosen {
                            true => "add it, or choose `ExpandOptions::metric = kl`",
                            false => "add it to the pairs, for it is what is measured here",
                        }
                    ),
                })?;
        }
        Ok(())
    }

    /// All token ids of prompts, answers and wrong answers.
    pub fn tokens(&self) -> BTreeSet<u32> {
        let ids = self.pairs.iter().flat_map(|pair| {
            let prompts = [&pair.clean, &pair.corrupted].into_iter().flatten();
            prompts.copied().chain(pair.target.tokens())
        });
        ids.collect()
    }

    /// SHA-256 over all token ids and targets, and how pairs are numbered and their positions named: two runs with one hash
    /// measured the same places of the same prompts.
    pub fn token_hash(&self) -> String {
        let mut hash = Hasher(Sha256::new());
        for pair in &self.pairs {
            hash.numbers([pair.index, pair.template]);
            for ids in [
                &pair.clean,
                &pair.corrupted,
                &pair.target.answers,
                &pair.target.wrong,
            ] {
                hash.numbers(ids.iter().map(|&id| id as usize));
            }
            let Target { then, after, .. } = &pair.target;
            if !then.is_empty() || *after > 0 {
                hash.numbers(then.iter().map(|&id| id as usize));
                hash.numbers([usize::MAX, *after]);
            }
            for roles in [&pair.roles, pair.corrupted_roles()] {
                hash.roles(roles);
            }
        }
        hash.hex()
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

    fn check_not_empty(&self) -> Result<()> {
        if !self.pairs.is_empty() {
            return Ok(());
        }
        let reason = match self.dropped.first() {
            None => "it has no pairs at all".to_owned(),
            Some(first) => {
                let counts: Vec<String> = self
                    .drop_counts()
                    .iter()
                    .map(|(kind, n)| format!("{n} x {kind}"))
                    .collect();
                let remedy = match first.reason.starts_with("lengths differ") {
                    true => {
                        "; give both prompts of a pair as many tokens, or keep pairs whose roles correspond (`ExpandOptions::unequal`)"
                    }
                    false => "",
                };
                format!(
                    "{}; the first was dropped for: {}{remedy}",
                    counts.join(", "),
                    first.reason
                )
            }
        };
        Err(Error::EmptyTask {
            task: self.name.clone(),
            reason,
            dropped: self.dropped.clone(),
        })
    }
}

/// Pairs that were seen before: the same tokens and answers.
#[derive(Default)]
pub(super) struct Repeats(HashMap<([Vec<u32>; 2], Target), usize>);

impl Repeats {
    /// Remembers a pair, or says which earlier one it repeats.
    pub fn reason(&mut self, pair: &Pair) -> Option<String> {
        let prompts = [&pair.clean, &pair.corrupted].map(Vec::clone);
        match self.0.entry((prompts, pair.target.clone())) {
            std::collections::hash_map::Entry::Occupied(first) => {
                Some(format!("repeated: as pair {}", first.get()))
            }
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(pair.index);
                None
            }
        }
    }
}

/// Hashes lists so that no two different sequences of lists give the same bytes.
struct Hasher(Sha256);

impl Hasher {
    fn numbers<Numbers>(&mut self, numbers: Numbers)
    where
        Numbers: IntoIterator<Item = usize, IntoIter: ExactSizeIterator>,
    {
        let numbers = numbers.into_iter();
        self.0.update((numbers.len() as u64).to_le_bytes());
        for number in numbers {
            self.0.update((number as u64).to_le_bytes());
        }
    }

    fn roles(&mut self, roles: &Roles) {
        self.0.update((roles.len() as u64).to_le_bytes());
        for (role, positions) in roles {
            self.numbers(role.bytes().map(usize::from));
            self.numbers(positions.iter().copied());
        }
    }

    fn hex(self) -> String {
        let bytes = self.0.finalize();
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn check(task: &str, pair: &Pair, tokenizer: &Tokenizer) -> Result<()> {
    if pair.shifted_roles.is_none() && !pair.clean.is_empty() && !pair.corrupted.is_empty() {
        pair.check_aligned()?;
    }
    pair.check(tokenizer).map_err(|reason| Error::BadTask {
        task: task.to_owned(),
        reason: format!("pair {}: {reason}", pair.index),
    })
}
