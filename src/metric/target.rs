//! The tokens that a metric compares, and how a model does on them whatever the metric.

use serde::{Deserialize, Serialize};

/// The tokens that a metric compares, for one example.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    pub answers: Vec<u32>,
    /// Empty for metrics that need none.
    pub wrong: Vec<u32>,
}

impl Target {
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
    /// Whether the likeliest token of all is an answer; `None` without an answer.
    pub top1: Option<bool>,
}

impl Target {
    /// How the model does, from the logits of the whole vocabulary.
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
