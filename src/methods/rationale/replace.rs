//! Which tokens stand in the place of others.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::masked::{Filler, begins_word};
use crate::error::{Error, Result};
use crate::methods::activation_patching::SourceModel;
use crate::spec::ModelSpec;
use crate::task::Task;

/// Where the tokens come from that are put in the place of others.
#[derive(Debug, Clone, PartialEq)]
pub enum Replacer {
    /// All ordinary tokens of the vocabulary alike.
    Uniform,
    /// Those of the same class alike: whether a word begins there, and whether it is made of digits, of punctuation, of letters with a
    /// capital in front or without, or of something else.
    SameClass,
    /// What a masked-language model (a BERT) expects there, the likeliest 256 that are one token here.
    Masked(SourceModel),
}

impl Replacer {
    pub fn name(&self) -> &'static str {
        match self {
            Replacer::Uniform => "uniform",
            Replacer::SameClass => "same-class",
            Replacer::Masked(_) => "masked",
        }
    }

    pub(super) fn settings(&self) -> Value {
        match self {
            Replacer::Masked(model) => json!({ "masked": model.settings() }),
            other => json!(other.name()),
        }
    }
}

/// A token's class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    begins_word: bool,
    made_of: MadeOf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum MadeOf {
    Letters { capital: bool },
    Digits,
    Punctuation,
    Other,
}

fn class_of(text: &str) -> Class {
    let inner = text.trim_start_matches("##").trim();
    let all = |is: fn(char) -> bool| !inner.is_empty() && inner.chars().all(is);
    let made_of = if all(char::is_alphabetic) {
        MadeOf::Letters {
            capital: inner.starts_with(char::is_uppercase),
        }
    } else if all(char::is_numeric) {
        MadeOf::Digits
    } else if all(|c| !c.is_alphanumeric() && !c.is_whitespace()) {
        MadeOf::Punctuation
    } else {
        MadeOf::Other
    };
    Class {
        begins_word: begins_word(text),
        made_of,
    }
}

/// The ordinary tokens of a vocabulary.
pub(super) fn ordinary(task: &Task, spec: &ModelSpec) -> Vec<u32> {
    let tokenizer = task.tokenizer();
    let unknown = tokenizer.unknown();
    let end = (spec.d_vocab as u32).min(tokenizer.max_id().saturating_add(1));
    let is_ordinary =
        |&id: &u32| tokenizer.has_id(id) && !tokenizer.is_special(id) && Some(id) != unknown;
    (0..end).filter(is_ordinary).collect()
}

/// A replacer that is ready for a subject.
pub(super) enum Replacing {
    Uniform(Arc<[u32]>),
    Classes {
        members: BTreeMap<Class, Arc<[u32]>>,
        all: Arc<[u32]>,
    },
    Masked(Box<Filler>),
}

/// What may stand at one position.
pub(super) enum Choices {
    Alike(Arc<[u32]>),
    Weighted {
        tokens: Vec<u32>,
        /// Sums of the weights up to each token, the last of them 1.
        up_to: Vec<f64>,
    },
}

impl Replacing {
    pub fn new(replacer: &Replacer, task: &Task, spec: &ModelSpec) -> Result<Self> {
        let all = ordinary(task, spec);
        if all.is_empty() {
            return Err(Error::invalid(
                "the vocabulary has no ordinary token that could stand in the place of another",
            ));
        }
        Ok(match replacer {
            Replacer::Uniform => Replacing::Uniform(all.into()),
            Replacer::SameClass => {
                let mut members: BTreeMap<Class, Vec<u32>> = BTreeMap::new();
                for &id in &all {
                    members
                        .entry(class_of(&task.text(id)))
                        .or_default()
                        .push(id);
                }
                let members = members.into_iter().map(|(class, ids)| (class, ids.into()));
                Replacing::Classes {
                    members: members.collect(),
                    all: all.into(),
                }
            }
            Replacer::Masked(model) => {
                let by_text: HashMap<String, u32> =
                    all.iter().rev().map(|&id| (task.text(id), id)).collect();
                Replacing::Masked(Box::new(Filler::new(model.clone(), &by_text)?))
            }
        })
    }

    /// What may stand at each of these places of a prompt.
    /// # Errors
    /// Those of running a masked-language model.
    pub fn choices(&self, task: &Task, prompt: &[u32], places: &[usize]) -> Result<Vec<Choices>> {
        match self {
            Replacing::Uniform(all) => Ok(places
                .iter()
                .map(|_| Choices::Alike(Arc::clone(all)))
                .collect()),
            Replacing::Classes { members, all } => {
                let of = |&at: &usize| {
                    let class = class_of(&task.text(prompt[at]));
                    // A prompt may hold the unknown token, whose class may have no other.
                    Choices::Alike(Arc::clone(members.get(&class).unwrap_or(all)))
                };
                Ok(places.iter().map(of).collect())
            }
            Replacing::Masked(filler) => {
                let all = filler.fill(task, prompt, places)?;
                Ok(all
                    .into_iter()
                    .map(|(tokens, weights)| weighted(tokens, &weights))
                    .collect())
            }
        }
    }

    /// Passes of a masked-language model over a prompt with so many places.
    pub fn passes(&self, places: usize) -> usize {
        match self {
            Replacing::Masked(_) => places,
            _ => 0,
        }
    }
}

fn weighted(tokens: Vec<u32>, weights: &[f64]) -> Choices {
    let sum: f64 = weights.iter().sum();
    let mut so_far = 0.0;
    let up_to = weights.iter().map(|weight| {
        so_far += weight / sum;
        so_far
    });
    let up_to = up_to.collect();
    Choices::Weighted { tokens, up_to }
}

impl Choices {
    pub fn draw(&self, rng: &mut ChaCha8Rng) -> u32 {
        match self {
            Choices::Alike(tokens) => tokens[rng.random_range(0..tokens.len())],
            Choices::Weighted { tokens, up_to } => {
                let drawn: f64 = rng.random();
                let at = up_to.partition_point(|&sum| sum <= drawn);
                tokens[at.min(tokens.len() - 1)]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_class_is_where_a_word_begins_and_what_it_is_made_of() {
        let alike = [
            (" Mary", " John"),
            ("ing", "ed"),
            ("##ing", "##ed"),
            ("7", "42"),
            (".", ","),
        ];
        for (a, b) in alike {
            assert_eq!(class_of(a), class_of(b), "{a} {b}");
        }
        let apart = [" Mary", "Mary", " mary", " 7", "7", ".", " .", "a1", "mary"];
        for (i, a) in apart.iter().enumerate() {
            for b in &apart[i + 1..] {
                assert_ne!(class_of(a), class_of(b), "{a} {b}");
            }
        }
    }

    #[test]
    fn weighted_choices_are_drawn_as_often_as_they_weigh() {
        let choices = weighted(vec![5, 6, 7], &[1.0, 0.0, 3.0]);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0; 8];
        (0..4000).for_each(|_| counts[choices.draw(&mut rng) as usize] += 1);
        assert_eq!(counts[6], 0);
        assert!((counts[5] - 1000i32).abs() < 120, "{counts:?}");
    }
}
