//! Questions about a context: sentences, a question, an answer, and the prompts of it in which some sentences are left out.
//!
//! A set of questions is written down without a tokenizer (`questions/read.rs`) and becomes a [`Task`] whose prompts hold the whole context and whose
//! roles are its sentences, `s0`, `s1`, ... A prompt with sentences left out is laid out and goes through the chat template anew
//! ([`QuestionSet::prompt`]): nothing is cut out of tokens.

mod prompt;
mod read;
mod set;

pub use prompt::AskedPrompt;
pub use read::{read_sentences, sentences};
pub use set::{MAX_ANSWER, Question, QuestionSet};

use std::collections::BTreeSet;

use super::checked::{MAX_PAIRS, Task};
use super::options::ExpandOptions;
use super::pair::Pair;
use crate::error::{Dropped, Result};
use crate::metric::Metric;
use crate::model::Tokenizer;

impl QuestionSet {
    /// How many different contexts the questions of a task have whose right sentence is known.
    pub fn known_contexts(&self, task: &Task) -> usize {
        let asked = task
            .pairs()
            .iter()
            .filter_map(|pair| self.questions.get(pair.index));
        let known = asked.filter(|one| one.gold.is_some());
        known.map(|one| &one.context).collect::<BTreeSet<_>>().len()
    }

    /// The prompts with the whole context, under a tokenizer: both of a pair are the same, and the roles are the sentences. An answer that
    /// is given is measured whole. `Pair::index` is the question. Of the options `bos`, `chat`, `seed`, `n_pairs` and `max_tokens` count; a
    /// question that is too long, or is otherwise no prompt, is dropped with the reason.
    /// # Errors
    /// [`crate::Error::Invalid`] for a question that lacks something, or a layout that does; [`crate::Error::Tokenizer`];
    /// [`crate::Error::EmptyTask`] if no question is left.
    pub fn task(&self, tokenizer: &Tokenizer, options: &ExpandOptions) -> Result<Task> {
        self.check()?;
        let bos = options.bos.resolve(tokenizer)?;
        let asked = options.n_pairs.unwrap_or(MAX_PAIRS).min(MAX_PAIRS);
        let (mut pairs, mut dropped) = (Vec::new(), Vec::new());
        for (index, question) in self.questions.iter().enumerate().take(asked) {
            let all = vec![true; question.context.len()];
            let prompt = match self.prompt(index, &all, tokenizer, options.chat, bos)? {
                Ok(prompt) => prompt,
                Err(reason) => {
                    dropped.push(left_out(index, question.question.clone(), reason));
                    continue;
                }
            };
            let answer = match question.answer.as_ref().filter(|_| !self.own_answers) {
                None => Ok(Vec::new()),
                Some(answer) => prompt.answer(answer, tokenizer, options.chat, bos)?,
            };
            let length = prompt.ids.len().saturating_add(match &answer {
                Ok(answer) if answer.is_empty() => self.max_answer,
                Ok(answer) => answer.len(),
                Err(_) => 0,
            });
            let most = options.max_tokens.unwrap_or(usize::MAX);
            let reason = match answer {
                Ok(answer) if length <= most => {
                    pairs.push(pair(index, prompt, answer));
                    continue;
                }
                Ok(answer) if answer.is_empty() => format!(
                    "too long: {} tokens and an answer of up to {}, the model takes at most {most}; shorten the context, or the answer \
                     (`QuestionSet::max_answer`)",
                    prompt.ids.len(),
                    self.max_answer
                ),
                Ok(_) => format!(
                    "too long: {length} tokens with the answer, the model takes at most {most}; shorten the context"
                ),
                Err(reason) => reason,
            };
            dropped.push(left_out(index, prompt.text, reason));
        }
        let mut notes = Vec::new();
        if tokenizer.has_chat_template() && !options.chat {
            notes.push(
                "the tokenizer has a chat template, and the prompts do not go through it (`ExpandOptions::chat`)".into(),
            );
        }
        // The metric is one that the answers have: of several tokens, or none at all.
        let metric = match self.own_answers || self.questions.iter().all(|one| one.answer.is_none())
        {
            true => Metric::Js,
            false => Metric::LogProb,
        };
        let name = self.name.clone();
        Ok(Task {
            seed: options.seed.unwrap_or(0),
            bos,
            chat: options.chat,
            source: self.source.clone(),
            asked: pairs.len() + dropped.len(),
            notes,
            ..Task::of_numbered(name, tokenizer, metric, pairs, dropped)?
        })
    }
}

fn pair(index: usize, prompt: AskedPrompt, answer: Vec<u32>) -> Pair {
    let AskedPrompt {
        text,
        ids,
        sentences,
    } = prompt;
    let mut pair = Pair::new(ids.clone(), ids);
    for (sentence, positions) in sentences.into_iter().enumerate() {
        pair = pair.role(QuestionSet::role(sentence), positions);
    }
    Pair {
        index,
        clean_text: text.clone(),
        corrupted_text: text,
        ..pair.whole_answer(answer)
    }
}

fn left_out(index: usize, text: String, reason: String) -> Dropped {
    Dropped {
        index,
        clean_text: text.clone(),
        corrupted_text: text,
        reason,
    }
}
