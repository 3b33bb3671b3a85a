//! The tokens that a metric compares, where in a prompt they are read, and how a model does on them whatever the metric.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The tokens that a metric compares, for one example, and where they are read.
///
/// An answer of several tokens is measured whole, each token where it would be written (teacher forcing): the prompt that is run ends
/// with all of the answer but its last token, and the metric is a function of the logits at as many positions as the answer has tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Target {
    pub answers: Vec<u32>,
    /// Empty for metrics that need none.
    pub wrong: Vec<u32>,
    /// What follows the first token of an answer of several. There is one answer then, and no wrong one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<u32>,
    /// How many tokens of the prompt stand behind the last position that is read: those after the mask of an encoder, 0 in a decoder.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub after: usize,
}

fn is_nothing(after: &usize) -> bool {
    *after == 0
}

impl Target {
    /// How many tokens the answer has.
    pub fn n_tokens(&self) -> usize {
        1 + self.then.len()
    }

    /// The positions whose logits are read in a prompt of `length` tokens, one for each token of the answer.
    pub fn positions(&self, length: usize) -> Range<usize> {
        let end = length.saturating_sub(self.after);
        end.saturating_sub(self.n_tokens())..end
    }

    /// What is read at each of these positions: the tokens of the answer one by one.
    pub fn steps(&self) -> impl Iterator<Item = Target> + '_ {
        let first = Target {
            answers: self.answers.clone(),
            wrong: self.wrong.clone(),
            ..Target::default()
        };
        let later = self.then.iter().map(|&token| Target {
            answers: vec![token],
            ..Target::default()
        });
        std::iter::once(first).chain(later)
    }

    /// Every token that it names.
    pub fn tokens(&self) -> impl Iterator<Item = u32> + '_ {
        let lists = [&self.answers, &self.wrong, &self.then];
        lists.into_iter().flatten().copied()
    }

    /// Refuses a prompt that does not have the positions that are read.
    /// # Errors
    /// [`Error::Invalid`].
    pub fn check_length(&self, length: usize) -> Result<()> {
        if self.n_tokens() + self.after <= length {
            return Ok(());
        }
        Err(Error::invalid(format!(
            "an answer of {} is read {} tokens before the end of a prompt of {length}, which is outside of it; `after` counts the tokens \
             that stand behind the answer",
            match self.n_tokens() {
                1 => "one token".to_string(),
                n => format!("{n} tokens"),
            },
            self.n_tokens() + self.after,
        )))
    }

    /// The columns of W_U that a [`Reads::Answers`](super::Reads::Answers) metric needs: `answers`, then `wrong`.
    pub fn columns(&self) -> Vec<u32> {
        self.answers.iter().chain(&self.wrong).copied().collect()
    }
}

/// How a model does on one pair, whatever the metric.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Whether the best answer's logit is above the best wrong answer's; `None` without a wrong answer.
    pub beats: Option<bool>,
    /// Whether the likeliest token of all is an answer, at every position of an answer of several tokens; `None` without an answer.
    pub top1: Option<bool>,
}

impl Target {
    /// How the model does, from the logits of the whole vocabulary at each of [`Target::positions`].
    pub fn judge_whole(&self, logits: &[&[f32]]) -> Judgement {
        let mut steps = self.steps().zip(logits).map(|(step, at)| step.judge(at));
        let Some(first) = steps.next() else {
            return Judgement::default();
        };
        let top1 = steps.fold(first.top1, |all, step| Some(all? && step.top1?));
        Judgement { top1, ..first }
    }

    /// How the model does, from the logits of the whole vocabulary where the answer's first token is read.
    pub fn judge(&self, logits: &[f32]) -> Judgement {
        let best = |ids: &[u32]| {
            let logits = ids.iter().filter_map(|&id| logits.get(id as usize));
            logits.copied().reduce(f32::max)
        };
        let Some(answer) = best(&self.answers) else {
            return Judgement::default();
        };
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Judgement {
            beats: best(&self.wrong).map(|wrong| answer > wrong),
            top1: Some(answer >= most),
        }
    }
}
