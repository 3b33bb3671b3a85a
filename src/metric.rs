//! Logits and answers to one number per example.

use serde::{Deserialize, Serialize};

/// A metric on the logits at the answer position of one prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// `mean(logits of answers) - mean(logits of wrong answers)`; logits.
    LogitDiff,
    /// `sum p(answers) - sum p(wrong)`; probability.
    ProbDiff,
    /// `ln sum p(answers)`; nats.
    LogProb,
    /// `sum p(answers)`; probability.
    Prob,
    /// `KL(reference || here)`, summed over the vocabulary; nats. The reference is the clean run.
    Kl,
    /// Jensen-Shannon divergence to the reference; nats, 0 to ln 2.
    Js,
    /// `1 + #{v: logit v > logit of the answer}`, best answer if several.
    Rank,
    /// 1 if the rank is at most k.
    TopK(usize),
    /// 1 if the answer's logit is above the wrong answer's (means, with several).
    Accuracy,
}

/// Which logits at the answer position a metric reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// Only the logits of `answers` followed by `wrong`.
    Answers,
    /// The whole vocabulary.
    Vocabulary,
}

/// The tokens that a metric compares, for one example.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub answers: Vec<u32>,
    /// Empty for metrics that need none.
    pub wrong: Vec<u32>,
}

impl Target {
    /// The columns of W_U that a [`Reads::Answers`] metric needs: `answers`, then `wrong`.
    pub fn columns(&self) -> Vec<u32> {
        self.answers.iter().chain(&self.wrong).copied().collect()
    }
}
