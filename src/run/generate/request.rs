//! What a generation is asked for, and what it gives.

use std::sync::LazyLock;

use candle_core::Tensor;

use super::super::{Roles, Sources};
use super::sampling::{Chooser, Sampling};
use crate::hooks::Edit;

/// What a generation is asked for, besides its prompts.
#[derive(Debug, Clone, Default)]
pub struct GenerateRequest<'a> {
    /// In force all the while; [`generate`](super::generate) says at which positions.
    pub edits: &'a [Edit],
    /// Where edits find the values that they name.
    pub sources: Sources,
    /// Positions of each role, per prompt; empty if no edit names a role.
    pub roles: &'a [Roles],
    /// At most so many tokens for each prompt.
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Tokens that end a prompt's generation.
    pub stop: &'a [u32],
    /// Of the draws. Each prompt draws from a stream of its own, whatever else is in the batch before or after it.
    pub seed: u64,
    /// The number of each prompt's stream; empty: its place in the batch.
    pub streams: &'a [u64],
    /// Whether to keep the logits that each token was chosen from.
    pub keep_logits: bool,
}

impl GenerateRequest<'_> {
    pub(super) fn roles_of(&self, prompt: usize) -> &Roles {
        static NONE: LazyLock<Roles> = LazyLock::new(Roles::new);
        self.roles.get(prompt).unwrap_or(&NONE)
    }

    pub(super) fn stream_of(&self, prompt: usize) -> u64 {
        self.streams.get(prompt).copied().unwrap_or(prompt as u64)
    }

    /// What chooses the tokens as the sampling says.
    pub(super) fn choosers(&self, prompts: usize) -> Vec<Chooser> {
        let chooser = |prompt| Chooser::new(self.sampling, self.seed, self.stream_of(prompt));
        (0..prompts).map(chooser).collect()
    }
}

/// What was generated, for each prompt.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// The generated tokens, without the prompt; the stop token, where one ended it, is the last.
    pub tokens: Vec<Vec<u32>>,
    /// The log probability of each of them under the edited model, in nats, before temperature and cut-offs.
    pub log_probs: Vec<Vec<f64>>,
    /// f32, `[generated, d_vocab]` for each prompt; empty if they were not kept.
    pub logits: Vec<Tensor>,
}

/// The prompts on their way.
pub(super) struct Unfinished<'a> {
    /// Tokens of every prompt.
    pub prompt_length: usize,
    /// Prompts that no stop token has ended yet.
    pub active: &'a [usize],
    /// Each prompt with what was generated so far.
    pub sequences: &'a [Vec<u32>],
}
