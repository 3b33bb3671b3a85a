//! What plays, how it is removed, and how the outcomes are summed up.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::methods::activation_patching::{PatchConfig, PatchSource, SiteSet};
use crate::metric::Metric;
use crate::scores::Direction;
use crate::task::Task;

/// The parts that are there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Players {
    /// The tokens of the prompt, but for a BOS in front.
    #[default]
    Tokens,
    /// The spans that are roles of the task; what is of no role is always there.
    Roles,
    /// All heads.
    Heads,
    /// All MLPs.
    Mlps,
    /// All heads and MLPs.
    Components,
}

impl Players {
    pub const ALL: [Players; 5] = [
        Players::Tokens,
        Players::Roles,
        Players::Heads,
        Players::Mlps,
        Players::Components,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Players::Tokens => "tokens",
            Players::Roles => "roles",
            Players::Heads => "heads",
            Players::Mlps => "mlps",
            Players::Components => "components",
        }
    }

    /// Whether players are pieces of the prompt.
    pub fn are_in_the_prompt(self) -> bool {
        matches!(self, Players::Tokens | Players::Roles)
    }
}

/// What becomes of a player that is not there.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Removal {
    /// It has its value in the pair's corrupted run: of a token that is the token which stands there.
    #[default]
    Pair,
    /// Zero: an embedding, a head's `z`, what an MLP writes.
    Zero,
    /// The mean over the corrupted prompts, per position within each template.
    Mean,
    /// Its tokens are taken out and the others move together. The last token stays, since it is where the answer is read.
    Delete,
    /// This token of the vocabulary stands in its place.
    Token(String),
    /// What stands there in the clean prompt of another pair of the same template and length: the prompts are permuted, once, so that none
    /// stays itself.
    Permute,
}

impl Removal {
    /// Whether it makes other prompts, and not other activations.
    pub(in crate::methods) fn edits_the_prompt(&self) -> bool {
        matches!(self, Removal::Delete | Removal::Token(_) | Removal::Permute)
    }

    /// The patching whose runs and values removals of some sets are made of; of zeros, where it makes other prompts.
    pub(in crate::methods) fn patching(
        &self,
        sets: Vec<SiteSet>,
        metric: Option<Metric>,
        seed: Option<u64>,
    ) -> PatchConfig {
        let (source, direction) = match self {
            Removal::Pair => (PatchSource::Pair, Direction::Noise),
            Removal::Mean => (PatchSource::Mean, Direction::Ablate),
            Removal::Zero | Removal::Delete | Removal::Token(_) | Removal::Permute => {
                (PatchSource::Zero, Direction::Ablate)
            }
        };
        PatchConfig {
            sets,
            source,
            direction,
            metric,
            seed,
            ..PatchConfig::new(Vec::new())
        }
    }
}

impl fmt::Display for Removal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Removal::Pair => f.write_str("pair"),
            Removal::Zero => f.write_str("zero"),
            Removal::Mean => f.write_str("mean"),
            Removal::Delete => f.write_str("delete"),
            Removal::Permute => f.write_str("permute"),
            Removal::Token(token) => write!(f, "token:{token}"),
        }
    }
}

impl FromStr for Removal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "pair" => Ok(Removal::Pair),
            "zero" => Ok(Removal::Zero),
            "mean" => Ok(Removal::Mean),
            "delete" => Ok(Removal::Delete),
            "permute" => Ok(Removal::Permute),
            _ => match text.strip_prefix("token:") {
                Some(token) if !token.is_empty() => Ok(Removal::Token(token.into())),
                _ => Err(Error::Parse {
                    what: "a removal",
                    text: text.into(),
                    reason: "it is `pair`, `zero`, `mean`, `delete`, `permute`, or `token:` and a token as the vocabulary writes it".into(),
                }),
            },
        }
    }
}

/// How the outcomes of coalitions are summed up for each player. With at most [`EXACT`] players every coalition is measured, and
/// draws play no part.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub enum Summary {
    /// What is lost without it: `v(all) - v(all but it)`.
    LeaveOneOut,
    /// What it does alone: `v(it) - v(none)`.
    IncludeOne,
    /// What is lost without neighbours, `v(all) - v(all but the window)`, the mean over the windows that it is in (occlusion).
    Occlusion {
        /// Players of a window.
        window: usize,
        /// From one window to the next; the last one ends with the last player.
        stride: usize,
    },
    /// The mean over all orders of what it adds to those before it.
    Shapley {
        /// Orders that are drawn, each with its reverse.
        draws: usize,
    },
    /// The same, as the additive model that fits coalitions best under the weights of Shapley's kernel.
    KernelShap {
        /// Coalitions that are drawn, each with its complement.
        draws: usize,
    },
    /// The linear model that fits coalitions best near the whole prompt.
    Lime {
        draws: usize,
        /// Of the kernel `exp(-D^2 / w^2)`, where `D` is the square root of the share that is removed.
        width: f64,
        /// On the weights, not on the intercept.
        ridge: f64,
    },
    /// The total Sobol index: the share of the variance of `v` over coalitions that is left where only the player is not
    /// known.
    Sobol { draws: usize },
}

/// More draws than anybody would wait for.
const MOST_DRAWS: usize = 100_000;

/// So many players have all their coalitions measured.
pub const EXACT: usize = 12;

impl Summary {
    /// Every summary, its knobs at their defaults.
    pub const ALL: [Summary; 7] = [
        Summary::LeaveOneOut,
        Summary::IncludeOne,
        Summary::Shapley { draws: 100 },
        Summary::KernelShap { draws: 1024 },
        Summary::Lime {
            draws: 1024,
            width: 0.75,
            ridge: 1.0,
        },
        Summary::Sobol { draws: 128 },
        Summary::Occlusion {
            window: 3,
            stride: 1,
        },
    ];

    pub fn name(self) -> &'static str {
        match self {
            Summary::LeaveOneOut => "leave-one-out",
            Summary::IncludeOne => "include-one",
            Summary::Occlusion { .. } => "occlusion",
            Summary::Shapley { .. } => "shapley",
            Summary::KernelShap { .. } => "kernel-shap",
            Summary::Lime { .. } => "lime",
            Summary::Sobol { .. } => "sobol",
        }
    }

    /// With so many draws.
    /// # Errors
    /// [`Error::Invalid`] for a summary that draws nothing.
    pub fn with_draws(self, n: usize) -> Result<Summary> {
        match self {
            Summary::Shapley { .. } => Ok(Summary::Shapley { draws: n }),
            Summary::KernelShap { .. } => Ok(Summary::KernelShap { draws: n }),
            Summary::Lime { width, ridge, .. } => Ok(Summary::Lime {
                draws: n,
                width,
                ridge,
            }),
            Summary::Sobol { .. } => Ok(Summary::Sobol { draws: n }),
            Summary::LeaveOneOut | Summary::IncludeOne | Summary::Occlusion { .. } => {
                Err(Error::invalid(format!(
                    "`{}` draws nothing; leave the draws out",
                    self.name()
                )))
            }
        }
    }

    fn draws(self) -> Option<usize> {
        match self {
            Summary::LeaveOneOut | Summary::IncludeOne | Summary::Occlusion { .. } => None,
            Summary::Shapley { draws }
            | Summary::KernelShap { draws }
            | Summary::Lime { draws, .. }
            | Summary::Sobol { draws } => Some(draws),
        }
    }

    /// Whether shares of so many players are estimates, with standard errors.
    pub(super) fn samples(self, players: usize) -> bool {
        self.draws().is_some() && players > EXACT
    }

    /// Refuses draws that say little of so many players: a fit that follows them all would seem to have no error.
    /// # Errors
    /// [`Error::Invalid`] with how many to take.
    pub(super) fn check_players(self, players: usize) -> Result<()> {
        let least = match self {
            Summary::KernelShap { .. } | Summary::Lime { .. } => 2 * (players + 1),
            Summary::Sobol { .. } => 16,
            _ => return Ok(()),
        };
        match self.draws() {
            Some(draws) if self.samples(players) && draws < least => Err(Error::invalid(format!(
                "{draws} draws say little of {players} players; `{}` takes {least} or more (`Summary::draws`)",
                self.name()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether shares add up to `v(all) - v(none)`.
    pub fn is_efficient(self) -> bool {
        matches!(self, Summary::Shapley { .. } | Summary::KernelShap { .. })
    }

    pub(super) fn check(self) -> Result<()> {
        if self.draws().is_some_and(|draws| draws < 2) {
            return Err(Error::invalid(format!(
                "`{}` takes at least 2 draws, which a standard error needs",
                self.name()
            )));
        }
        if self.draws().is_some_and(|draws| draws > MOST_DRAWS) {
            return Err(Error::invalid(format!(
                "`{}` takes at most {MOST_DRAWS} draws; its error falls with their root",
                self.name()
            )));
        }
        if let Summary::Occlusion { window, stride } = self
            && !(1..=window).contains(&stride)
        {
            return Err(Error::invalid(format!(
                "windows of {window} parts, {stride} apart, would leave parts out; a stride is from 1 to the window (`Summary::window`, \
                 `Summary::stride`)"
            )));
        }
        if let Summary::Lime { width, ridge, .. } = self
            && !(width > 0.0 && width.is_finite() && ridge >= 0.0 && ridge.is_finite())
        {
            return Err(Error::invalid(format!(
                "the kernel of `lime` has a width above 0, not {width}, and a ridge of 0 or more, not {ridge}"
            )));
        }
        Ok(())
    }
}

impl FromStr for Summary {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut all = Summary::ALL.into_iter();
        all.find(|summary| summary.name() == text)
            .ok_or_else(|| Error::Parse {
                what: "a summary of removals",
                text: text.into(),
                reason: format!(
                    "it is one of {}",
                    Summary::ALL.map(Summary::name).join(", ")
                ),
            })
    }
}

/// Which parts are credited with the metric, by what happens without them.
#[derive(Debug, Clone, PartialEq)]
pub struct RemovalConfig {
    pub summary: Summary,
    pub players: Players,
    pub removal: Removal,
    /// [default: the task's]
    pub metric: Option<Metric>,
    /// Of draws and bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl RemovalConfig {
    /// The tokens of the clean prompts, with those of the corrupted ones in their place.
    pub fn new(summary: Summary) -> Self {
        RemovalConfig {
            summary,
            players: Players::default(),
            removal: Removal::default(),
            metric: None,
            seed: None,
        }
    }

    pub(super) fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }
}
