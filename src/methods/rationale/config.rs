//! What is explained, how its tokens are replaced, and when a run ends.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::replace::Replacer;
use crate::error::{Error, Result};
use crate::methods::tokens::{TokenConfig, TokenMethod};
use crate::metric::Metric;
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// Runs of one prompt, steps of a run and draws of a soft score that anybody would wait for, and ranks that say anything of an answer.
const MOST_RUNS: usize = 1000;
const MOST_STEPS: usize = 100_000;
const MOST_DRAWS: usize = 1000;
const MOST_WITHIN: usize = 1000;

/// How many of a prompt's most important tokens are its rationale. Prints and reads back as `8`, or as `0.5` for a share.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
#[serde(into = "String")]
pub enum Keep {
    Tokens(usize),
    /// Of the tokens that can be replaced, rounded up.
    Share(f64),
}

impl Keep {
    pub(super) fn of(self, tokens: usize) -> usize {
        match self {
            Keep::Tokens(n) => n,
            Keep::Share(share) => (share * tokens as f64).ceil() as usize,
        }
    }
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Keep::Tokens(n) => write!(f, "{n}"),
            Keep::Share(share) => write!(f, "{share}"),
        }
    }
}

impl From<Keep> for String {
    fn from(keep: Keep) -> String {
        keep.to_string()
    }
}

impl FromStr for Keep {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (text.parse::<usize>(), text.parse::<f64>()) {
            (Ok(n), _) if n > 0 => Ok(Keep::Tokens(n)),
            (Err(_), Ok(share)) if share > 0.0 && share < 1.0 => Ok(Keep::Share(share)),
            _ => Err(Error::Parse {
                what: "a number of tokens",
                text: text.into(),
                reason: "it is a count such as `8`, or a share between 0 and 1 such as `0.5`"
                    .into(),
            }),
        }
    }
}

/// ReAGent on the clean prompts of a task, and soft scores of it and of other token methods.
#[derive(Debug, Clone, PartialEq)]
pub struct RationaleConfig {
    pub replacer: Replacer,
    /// The chance of each token to be replaced in a step.
    pub ratio: f64,
    /// A run ends once these tokens alone, all others replaced, leave the answer among the likeliest [`RationaleConfig::within`].
    pub keep: Keep,
    pub within: usize,
    /// Runs of each prompt; importance is the mean of those that ended.
    pub runs: usize,
    /// A run that has not ended by then is given up.
    pub steps: usize,
    /// The methods that it is compared with, each name once. Random importances always stand beside.
    pub against: Vec<TokenMethod>,
    /// Random choices of dimensions behind a soft score.
    pub draws: usize,
    /// [default: the task's]
    pub seed: Option<u64>,
}

impl RationaleConfig {
    /// Half of the tokens ought to leave the answer among the likeliest 3; 5 runs of at most 200 steps, beside seven methods.
    pub fn new(replacer: Replacer) -> Self {
        let named = [
            "grad-x-input",
            "saliency-l2",
            "ig",
            "attn-lrp",
            "alti-logit",
            "last-attention",
            "attention-rollout",
        ];
        let mut against = TokenMethod::all();
        against.retain(|method| named.contains(&method.name()));
        RationaleConfig {
            replacer,
            ratio: 0.3,
            keep: Keep::Share(0.5),
            within: 3,
            runs: 5,
            steps: 200,
            against,
            draws: 4,
            seed: None,
        }
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    /// The other methods and random shares, which explain the log probability of the answer.
    pub(super) fn others(&self) -> Vec<TokenConfig> {
        let random = [TokenMethod::Random];
        let config = |method: &TokenMethod| TokenConfig {
            metric: Some(Metric::LogProb),
            seed: self.seed,
            ..TokenConfig::new(method.clone())
        };
        self.against.iter().chain(&random).map(config).collect()
    }

    pub(super) fn check_numbers(&self) -> Result<()> {
        if !(self.ratio > 0.0 && self.ratio < 1.0) {
            return Err(Error::invalid(format!(
                "a token is replaced with a chance between 0 and 1, not {} (`RationaleConfig::ratio`)",
                self.ratio
            )));
        }
        let counts = [
            (
                "runs of a prompt (`RationaleConfig::runs`)",
                self.runs,
                MOST_RUNS,
            ),
            (
                "steps of a run (`RationaleConfig::steps`)",
                self.steps,
                MOST_STEPS,
            ),
            (
                "draws of a soft score (`RationaleConfig::draws`)",
                self.draws,
                MOST_DRAWS,
            ),
            (
                "likeliest tokens (`RationaleConfig::within`)",
                self.within,
                MOST_WITHIN,
            ),
        ];
        for (what, count, most) in counts {
            if count == 0 || count > most {
                return Err(Error::invalid(format!(
                    "{count} {what}: take from 1 to {most}"
                )));
            }
        }
        let names: BTreeSet<&str> = self.against.iter().map(TokenMethod::name).collect();
        if names.len() < self.against.len() {
            return Err(Error::invalid(
                "a method stands twice among those that are compared, and rows could not be told apart; name each once (`RationaleConfig::against`)",
            ));
        }
        if names.contains(TokenMethod::Random.name()) {
            return Err(Error::invalid(
                "`random` stands beside the other methods anyway; leave it out (`RationaleConfig::against`)",
            ));
        }
        Ok(())
    }

    /// Each prompt has more tokens that can be replaced than are kept.
    pub(super) fn check_prompts(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        for pair in task.pairs() {
            let n = places(spec, task, pair).len();
            if n == 0 {
                return Err(Error::invalid(format!(
                    "pair {} of task `{}` has special tokens alone, and there is nothing to replace; leave it out",
                    pair.index, task.name
                )));
            }
            let kept = self.keep.of(n);
            if kept >= n && matches!(self.keep, Keep::Tokens(_)) {
                return Err(Error::invalid(format!(
                    "{kept} tokens are to be kept, and pair {} of task `{}` has {n} that can be replaced, so every run would end at once; keep fewer, \
                     or a share such as 0.5 (`RationaleConfig::keep`)",
                    pair.index, task.name
                )));
            }
        }
        Ok(())
    }
}

/// The positions of a clean prompt whose tokens can be replaced: not special ones, and in an encoder not where the answer is read.
pub(super) fn places(spec: &ModelSpec, task: &Task, pair: &Pair) -> Vec<usize> {
    let read = pair.target.positions(pair.clean.len());
    let tokens = pair.clean.iter().enumerate();
    let can = |&(at, &token): &(usize, &u32)| {
        !task.tokenizer().is_special(token) && (spec.encoder.is_none() || !read.contains(&at))
    };
    tokens.filter(can).map(|(at, _)| at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_reads_back() {
        for text in ["8", "0.5"] {
            assert_eq!(text.parse::<Keep>().unwrap().to_string(), text);
        }
        for text in ["0", "1.0", "-1", "half", "NaN", "0.0"] {
            let message = text.parse::<Keep>().unwrap_err().to_string();
            assert!(message.contains("such as `8`"), "{message}");
        }
        assert_eq!(Keep::Share(0.5).of(13), 7);
        assert_eq!(Keep::Tokens(3).of(13), 3);
    }
}
