//! What a table of scores knows of its own making: enough to judge it and to make it again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cell::Direction;
use super::report::{TaskReport, finite_or_nan};
use super::view::View;
use crate::model::Origin;

/// The provenance of a table, kept as JSON in the parquet footer under [`FOOTER_KEY`].
/// The caller fills in what it knows of model, task and command; [`super::Scores::assemble`] fills in what the measurements say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// The build of candlewick that measured it: version and commit.
    pub version: String,
    /// The arguments that make the table again, program first.
    pub command: Vec<String>,
    /// The folder that it was run in: what relative paths of the command start from.
    pub folder: String,
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
    /// The text of every token id in `prompts`, as far as it is known.
    pub token_texts: BTreeMap<u32, String>,
    /// Pairs of the task that were not usable.
    pub dropped: usize,
    /// The same, counted by the kind of reason.
    pub drops: Vec<(String, usize)>,

    /// How well the model does the task.
    pub report: Option<TaskReport>,
    /// Mean metric of the clean and the corrupted runs.
    #[serde(deserialize_with = "finite_or_nan")]
    pub mean_clean: f64,
    #[serde(deserialize_with = "finite_or_nan")]
    pub mean_corrupted: f64,
    pub baselines: Vec<Baseline>,
    /// Examples behind the table.
    pub examples: usize,
    /// Fewest and most examples behind one aggregated row (prompts of different lengths share only some positions).
    pub examples_per_row: Option<(usize, usize)>,
    /// Kinds of the tables that belong beside this one: `measures` stands in `NAME.measures.parquet`.
    pub sides: Vec<String>,
    /// The kind of this table, if it is such a side table.
    pub side: Option<String>,
    /// What else was found that has no row: how well sums close, what is left out.
    pub notes: Vec<String>,
    /// What a reader should know before believing the numbers.
    pub warnings: Vec<String>,
    /// What is shown of the table; what its columns suggest, if this is empty.
    pub views: Vec<View>,
}

/// Key of the provenance in the parquet footer.
pub const FOOTER_KEY: &str = "candlewick";

/// One pair as the model saw it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptTokens {
    pub example: usize,
    /// Which template of the task made it.
    pub template: usize,
    /// The prompts as text, without what the tokenizer puts in front.
    pub clean_text: String,
    pub corrupted_text: String,
    pub clean: Vec<u32>,
    pub corrupted: Vec<u32>,
    pub answers: Vec<u32>,
    pub wrong: Vec<u32>,
    /// What follows the answer's first token, in one of several tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<u32>,
    /// How many tokens stand behind the position where the answer is read.
    #[serde(default, skip_serializing_if = "is_nothing")]
    pub after: usize,
    /// Positions of each role, the same in both prompts.
    pub roles: BTreeMap<String, Vec<usize>>,
}

fn is_nothing(after: &usize) -> bool {
    *after == 0
}

/// The metric of one pair without any change.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    pub example: usize,
    #[serde(deserialize_with = "finite_or_nan")]
    pub clean: f64,
    #[serde(deserialize_with = "finite_or_nan")]
    pub corrupted: f64,
}

impl Provenance {
    /// That of a table beside this one, which holds prompts and baselines for both.
    pub(super) fn of_side(&self, kind: &str) -> Provenance {
        Provenance {
            side: Some(kind.into()),
            sides: Vec::new(),
            prompts: Vec::new(),
            token_texts: BTreeMap::new(),
            baselines: Vec::new(),
            ..self.clone()
        }
    }
}
