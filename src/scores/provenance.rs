//! What a table of scores knows of its own making: enough to judge it and to make it again.

use serde::{Deserialize, Serialize};

use super::cell::Direction;
use crate::model::Origin;

/// The provenance of a table, kept as JSON in the parquet footer under [`FOOTER_KEY`].
/// The caller fills in what it knows of model, task and command; [`super::Scores::assemble`] fills in what the measurements say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// Version of this crate.
    pub version: String,
    /// The arguments that make the table again, program first.
    pub command: Vec<String>,
    /// Seconds since 1970, UTC.
    pub created: u64,
    /// How long the measurement took.
    pub seconds: f64,

    pub method: String,
    /// The method's own configuration.
    pub config: serde_json::Value,
    pub metric: String,
    pub unit: String,
    pub direction: Direction,
    pub seed: u64,

    pub model: Origin,
    /// Family and sizes of the model.
    pub spec: serde_json::Value,
    pub dtype: String,
    pub device: String,

    pub task: String,
    /// The task file as it was read.
    pub task_text: String,
    pub bos: bool,
    pub chat: bool,
    pub prompts: Vec<PromptTokens>,
    /// Pairs of the task that were not usable.
    pub dropped: usize,

    /// Mean metric of the clean and the corrupted runs.
    pub mean_clean: f64,
    pub mean_corrupted: f64,
    pub baselines: Vec<Baseline>,
    /// Examples behind the table.
    pub examples: usize,
    /// Fewest and most examples behind one aggregated row (prompts of different lengths share only some positions).
    pub examples_per_row: Option<(usize, usize)>,
    /// What else was found that has no row: how well sums close, what is left out.
    pub notes: Vec<String>,
    /// What a reader should know before believing the numbers.
    pub warnings: Vec<String>,
}

/// Key of the provenance in the parquet footer.
pub const FOOTER_KEY: &str = "candlewick";

/// The token ids of one pair.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PromptTokens {
    pub example: usize,
    pub clean: Vec<u32>,
    pub corrupted: Vec<u32>,
    pub answers: Vec<u32>,
    pub wrong: Vec<u32>,
}

/// The metric of one pair without any change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub example: usize,
    pub clean: f64,
    pub corrupted: f64,
}
