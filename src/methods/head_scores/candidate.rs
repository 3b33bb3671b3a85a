//! Where a prompt names an answer, and how much more a pattern looks at one of two than at the other.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::task::{Pair, Task};

/// The least weight that a logarithm is taken of.
const FLOOR: f64 = 1e-9;

/// Where an answer stands in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Candidate {
    /// The tokens of a role of the task.
    Role(String),
    /// The last token of the prompt that is this word, a space in front or not.
    Word(String),
}

impl FromStr for Candidate {
    type Err = Error;

    /// `@ROLE`, or a word.
    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix('@') {
            Some(role) if !role.is_empty() => Ok(Candidate::Role(role.into())),
            None if !text.trim().is_empty() => Ok(Candidate::Word(text.trim().into())),
            _ => Err(Error::Parse {
                what: "an answer that the prompt names",
                text: text.into(),
                reason: "write a role, such as `@YES`, or a word of the prompt, such as `yes`"
                    .into(),
            }),
        }
    }
}

impl fmt::Display for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Candidate::Role(role) => write!(f, "@{role}"),
            Candidate::Word(word) => f.write_str(word),
        }
    }
}

impl Candidate {
    /// Its positions in a pair's clean prompt; empty if it is not there.
    pub(super) fn positions(&self, task: &Task, pair: &Pair) -> Vec<usize> {
        match self {
            Candidate::Role(role) => pair.roles.get(role).cloned().unwrap_or_default(),
            Candidate::Word(word) => {
                let is_it = |&token: &u32| task.text(token).trim() == word;
                let at = pair.clean.iter().rposition(is_it);
                at.into_iter().collect()
            }
        }
    }
}

/// What is looked at in a prompt.
pub(super) struct Looked {
    pub positive: Vec<usize>,
    pub negative: Vec<usize>,
    /// Those behind both answers.
    pub queries: Range<usize>,
}

/// The score of one pattern, `[query][key]`.
/// # Units
/// Attention times nats.
pub(super) fn score(pattern: &[Vec<f32>], looked: &Looked) -> f64 {
    let of = |query: usize| {
        let weight = |keys: &[usize]| -> f64 {
            let sum: f64 = keys.iter().map(|&key| f64::from(pattern[query][key])).sum();
            sum.max(FLOOR)
        };
        let (no, yes) = (weight(&looked.negative), weight(&looked.positive));
        (no + yes) * (no / yes).ln()
    };
    looked.queries.clone().map(of).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looked(positive: usize, negative: usize) -> Looked {
        Looked {
            positive: vec![positive],
            negative: vec![negative],
            queries: 2..4,
        }
    }

    #[test]
    fn equal_weights_score_nothing_and_exchanged_answers_the_opposite() {
        let even = vec![vec![0.25; 4]; 4];
        assert_eq!(score(&even, &looked(0, 1)), 0.0);
        let mut pattern = even;
        pattern[2] = vec![0.1, 0.7, 0.2, 0.0];
        pattern[3] = vec![0.0, 0.5, 0.25, 0.25];
        let found = score(&pattern, &looked(0, 1));
        let floored = (0.5 + 1e-9) * (0.5f64 / 1e-9).ln();
        assert!(
            (found - (0.8 * 7f64.ln() + floored)).abs() < 1e-5,
            "{found}"
        );
        assert!((score(&pattern, &looked(1, 0)) + found).abs() < 1e-9);
    }

    #[test]
    fn a_candidate_is_a_role_or_a_word() {
        let parse = |text: &str| text.parse::<Candidate>();
        assert_eq!(parse("@YES").unwrap(), Candidate::Role("YES".into()));
        assert_eq!(parse(" yes").unwrap().to_string(), "yes");
        for text in ["", "@", "  "] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
