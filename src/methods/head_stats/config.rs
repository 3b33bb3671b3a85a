//! What to measure of every head, and the sequences of repeated tokens that it is measured on.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::hooks::Node;
use crate::model::{ModelSpec, Tokenizer};
use crate::task::Task;

/// What to measure of every head.
///
/// Rows with a `role`, on the task's clean prompts: `attention_from_end`, from the last position to that role, and
/// `copying_at_role`, the copying score there among the tokens at all roles. Rows with `src` and `dst`: the
/// strongest entries of the circuits asked for. `attn.ov` is what the head writes for token `dst` when it attends to token
/// `src`, `attn.qk` how much a query at token `src` wants a key at token `dst` (before the softmax, at distance zero where
/// positions are rotary); both read the token's embedding alone, which is all that layer 0 reads and less than later
/// layers do. `class` says what a head looks like, with the numbers behind it.
///
/// The examples are the task's pairs, and after them the sequences of repeated tokens.
/// # Units
/// `score`: attention (mean over queries) for the first five, none for `copying`, nats for `entropy`, tokens for `distance`;
/// `attn.ov` logits at a final scale of 1, less their mean over the vocabulary.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadConfig {
    /// Different random tokens in a sequence, each of which comes twice [default: 24, or as many as the context takes].
    pub repeat_length: Option<usize>,
    /// Sequences.
    pub samples: usize,
    /// Heads whose OV and QK circuits are read out.
    pub circuits: Vec<Node>,
    /// Tokens that the circuits start from; if none is given, those at the roles of the task's first pair.
    pub from: Vec<u32>,
    /// Tokens listed for each of them.
    pub tokens: usize,
    /// Of the sequences and the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl Default for HeadConfig {
    /// Eight sequences; no circuits.
    fn default() -> Self {
        HeadConfig {
            repeat_length: None,
            samples: 8,
            circuits: Vec::new(),
            from: Vec::new(),
            tokens: 5,
            seed: None,
        }
    }
}

impl HeadConfig {
    pub(super) fn repeat_length(&self, spec: &ModelSpec) -> usize {
        let fits = spec.n_ctx.saturating_sub(1) / 2;
        self.repeat_length.unwrap_or(24.min(fits))
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    /// Random tokens, then the same ones again, behind a BOS where the tokenizer puts one.
    pub(super) fn sequences(&self, spec: &ModelSpec, task: &Task) -> Vec<Vec<u32>> {
        let tokenizer = task.tokenizer();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed(task));
        let mut ordinary = ordinary(tokenizer, spec);
        let bos = tokenizer.bos().filter(|_| tokenizer.adds_bos());
        let length = self.repeat_length(spec);
        let mut draw = |_| {
            let (repeated, _) = ordinary.partial_shuffle(&mut rng, length);
            let twice = repeated.iter().copied().cycle().take(2 * length);
            bos.into_iter().chain(twice).collect()
        };
        (0..self.samples).map(&mut draw).collect()
    }

    /// Layer and head of the circuits asked for.
    pub(super) fn heads(&self) -> Result<Vec<[usize; 2]>> {
        let head = |node: &Node| match *node {
            Node::Head { layer, head } => Ok([layer, head]),
            Node::Input | Node::Mlp(_) | Node::Logits => Err(Error::invalid(format!(
                "circuits are those of heads, such as `a3.h1`; `{node}` is none"
            ))),
        };
        self.circuits.iter().map(head).collect()
    }
}

/// Tokens that can stand anywhere in text.
pub(super) fn ordinary(tokenizer: &Tokenizer, spec: &ModelSpec) -> Vec<u32> {
    let largest = (spec.d_vocab as u32).min(tokenizer.max_id().saturating_add(1));
    let is_ordinary = |&id: &u32| {
        tokenizer.has_id(id) && !tokenizer.is_special(id) && tokenizer.unknown() != Some(id)
    };
    (0..largest).filter(is_ordinary).collect()
}
