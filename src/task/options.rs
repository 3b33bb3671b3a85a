//! How a task is turned into tokens.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::model::Tokenizer;

/// How a task is turned into tokens; the default follows the task file and the tokenizer.
#[derive(Debug, Clone, Default)]
pub struct ExpandOptions {
    /// Usable pairs wanted. For the user's own pairs: at most so many, from the top of the file.
    pub n_pairs: Option<usize>,
    pub seed: Option<u64>,
    pub bos: BosChoice,
    /// Wrap each prompt as one user message of the tokenizer's chat template.
    pub chat: bool,
    /// Name of a corruption of the task.
    pub corruption: Option<String>,
    /// `n_ctx` of the model; longer prompts are dropped.
    pub max_tokens: Option<usize>,
    pub metric: Option<Metric>,
    /// Only these templates of the task file, numbered from 0; all if none is named. Prompts of one template align position
    /// by position, so rows by position then mean one thing.
    pub templates: Vec<usize>,
    /// Keep pairs whose prompts differ in length, or whose roles stand at different positions, if the tokens of every role
    /// correspond one to one. Methods that compare position by position refuse a task that has them.
    pub unequal: bool,
    /// Put a space in front of the answers of the user's own pairs that begin without one.
    pub answer_space: bool,
}

/// Whether BOS goes in front of every prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum BosChoice {
    /// As the model's own tokenizer does.
    #[default]
    Auto,
    Yes,
    No,
}

impl BosChoice {
    /// # Errors
    /// [`Error::Tokenizer`] if BOS is asked for and the tokenizer has none.
    pub fn resolve(self, tokenizer: &Tokenizer) -> Result<bool> {
        match self {
            BosChoice::Auto => Ok(tokenizer.adds_bos()),
            BosChoice::No => Ok(false),
            BosChoice::Yes if tokenizer.bos().is_some() => Ok(true),
            BosChoice::Yes => Err(Error::Tokenizer {
                reason: "it has no BOS token to put in front; run without one (`ExpandOptions::bos = no`)".into(),
            }),
        }
    }
}

impl std::str::FromStr for BosChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(BosChoice::Auto),
            "yes" => Ok(BosChoice::Yes),
            "no" => Ok(BosChoice::No),
            _ => Err(Error::Parse {
                what: "a BOS choice",
                text: text.into(),
                reason: "it is auto, yes or no".into(),
            }),
        }
    }
}
