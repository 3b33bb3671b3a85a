//! What is ablated, and whose logit is watched.

use std::str::FromStr;

use super::effects::Removed;
use crate::error::{Error, Result};
use crate::hooks::Kind;
use crate::methods::choice::{Heads, Layers};
use crate::methods::logits::readout::DirectTarget;
use crate::spec::ModelSpec;
use crate::task::Task;

/// What is ablated, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum RepairParts {
    /// The attention output of each layer.
    #[default]
    Attention,
    /// The MLP output of each layer.
    Mlp,
    /// Each head.
    Heads,
}

/// Whose logit.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairTarget {
    /// The token that the clean run prefers, less the mean over the vocabulary.
    #[default]
    Top,
    Of(DirectTarget),
}

/// What to measure.
#[derive(Debug, Clone, PartialEq)]
pub struct RepairConfig {
    pub parts: RepairParts,
    pub target: RepairTarget,
    /// Other prompts that each prompt takes values from, at most.
    pub donors: usize,
    /// Only these layers, if any are named.
    pub layers: Layers,
    /// Only these heads, if any are named; of [`RepairParts::Heads`].
    pub heads: Heads,
    /// Of the donors [default: the task's].
    pub seed: Option<u64>,
}

impl Default for RepairConfig {
    fn default() -> Self {
        RepairConfig {
            parts: RepairParts::Attention,
            target: RepairTarget::Top,
            donors: 15,
            layers: Layers::default(),
            heads: Heads::default(),
            seed: None,
        }
    }
}

impl RepairConfig {
    /// Every one of these parts, by the logit of the clean run's own top token.
    pub fn of(parts: RepairParts) -> Self {
        RepairConfig {
            parts,
            ..RepairConfig::default()
        }
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    /// The hook that parts are replaced at.
    pub(super) fn kind(&self) -> Kind {
        match self.parts {
            RepairParts::Attention => Kind::AttnOut,
            RepairParts::Mlp => Kind::MlpOut,
            RepairParts::Heads => Kind::Z,
        }
    }

    pub(super) fn removed(&self, spec: &ModelSpec) -> Vec<Removed> {
        let layers = (0..spec.n_layers).filter(|&layer| self.layers.has(layer));
        let of_layer = |layer: usize| -> Vec<Removed> {
            let part = |head| Removed { layer, head };
            if self.parts == RepairParts::Heads {
                let heads = (0..spec.n_heads).filter(|&head| self.heads.has(layer, head));
                heads.map(|head| part(Some(head))).collect()
            } else {
                vec![part(None)]
            }
        };
        layers.flat_map(of_layer).collect()
    }
}

impl FromStr for RepairTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "top" => RepairTarget::Top,
            "difference" => RepairTarget::Of(DirectTarget::Difference),
            "answer" => RepairTarget::Of(DirectTarget::Answer),
            "centred" => RepairTarget::Of(DirectTarget::Centred),
            _ => {
                return Err(Error::Parse {
                    what: "a target",
                    text: text.into(),
                    reason: "it is `top`, `difference`, `answer` or `centred`".into(),
                });
            }
        })
    }
}
