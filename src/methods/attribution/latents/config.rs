//! The methods of latents as values.

use std::sync::Arc;

use super::super::{GradientPath, StepRule};
use crate::methods::activation_patching::PatchSource;
use crate::methods::sites::Along;
use crate::metric::Metric;
use crate::sae::Sae;
use crate::scores::{Cell, Direction};
use crate::task::Task;

/// How effects of latents are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub enum LatentEstimate {
    /// The gradient at the run that is changed.
    Atp,
    /// The mean gradient over the line of the hook's value from one end to the other.
    IntegratedGradients { steps: usize, rule: StepRule },
    /// Every latent patched for real.
    Exact,
}

/// Which latents, and what is put in their place.
#[derive(Debug, Clone, PartialEq)]
pub struct LatentConfig {
    pub sae: Arc<Sae>,
    pub estimate: LatentEstimate,
    /// The pair's other run ([`PatchSource::Pair`]) or nothing ([`PatchSource::Zero`]).
    pub source: PatchSource,
    /// `Denoise` or `Noise` with [`PatchSource::Pair`], else `Ablate`.
    pub direction: Direction,
    /// All positions together, each, or those of each role.
    pub along: Along,
    /// Only these latents [default: all].
    pub latents: Option<Vec<usize>>,
    /// Only these cells, where they are named.
    pub only: Option<Vec<Cell>>,
    /// [default: the task's]
    pub metric: Option<Metric>,
}

impl LatentConfig {
    /// AtP of all latents at all positions, the corrupted values in the clean run.
    pub fn atp(sae: Arc<Sae>) -> Self {
        LatentConfig {
            sae,
            estimate: LatentEstimate::Atp,
            source: PatchSource::Pair,
            direction: Direction::Noise,
            along: Along::All,
            latents: None,
            only: None,
            metric: None,
        }
    }

    /// The same by integrated gradients, at midpoints.
    pub fn integrated(sae: Arc<Sae>, steps: usize) -> Self {
        LatentConfig {
            estimate: LatentEstimate::IntegratedGradients {
                steps,
                rule: StepRule::Midpoint,
            },
            ..LatentConfig::atp(sae)
        }
    }

    /// The exact effects.
    pub fn exact(sae: Arc<Sae>) -> Self {
        LatentConfig {
            estimate: LatentEstimate::Exact,
            ..LatentConfig::atp(sae)
        }
    }

    pub(super) fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    pub(super) fn path(&self) -> GradientPath {
        match self.estimate {
            LatentEstimate::IntegratedGradients { steps, rule } => {
                GradientPath::Inputs { steps, rule }
            }
            LatentEstimate::Atp | LatentEstimate::Exact => GradientPath::Base,
        }
    }

    pub(super) fn is_exact(&self) -> bool {
        self.estimate == LatentEstimate::Exact
    }
}
