//! Tasks: prompt pairs with roles and answers, under one tokenizer.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::metric::{Metric, Target};

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
}
