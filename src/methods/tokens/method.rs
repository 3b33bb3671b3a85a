//! The token methods as values: names, knobs, and how each is printed and read.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use super::baseline::{Baseline, ReferenceSet};
use super::noise::{check_draws, check_noise};
use super::quadrature::{Quadrature, names};
use crate::error::{Error, Result};

/// How a metric is shared out over the input tokens. Prints as its name, and a name reads back as the method with its knobs at
/// their defaults.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum TokenMethod {
    /// `x . dF/dx`; signed.
    GradientTimesInput,
    /// `|dF/dx|`, the sum of magnitudes; never negative, so it says how much a token matters and not which way.
    SaliencyL1,
    /// `|dF/dx|`, the Euclidean length.
    SaliencyL2,
    /// Gradient times input with the mean gradient of noisy copies of the embeddings.
    SmoothGrad {
        draws: usize,
        /// Standard deviation of the noise, in units of the span (largest minus smallest entry) of the prompt's embeddings.
        noise: f64,
    },
    /// The gradient averaged along the path from a baseline, times the way.
    IntegratedGradients {
        /// Points of the quadrature on each leg, each a forward and a backward pass.
        steps: usize,
        rule: Quadrature,
        baseline: Baseline,
        /// What the path leads through, in order, on straight legs. With none it is one straight line; with one midpoint a leg it
        /// is the sum over any list of points `y` of `grad((y_k + y_{k+1}) / 2) . (y_{k+1} - y_k)`.
        via: Vec<Baseline>,
    },
    /// Integrated gradients averaged over baselines from a reference set, one random point of the line for each draw.
    ExpectedGradients {
        draws: usize,
        reference: ReferenceSet,
    },
    /// Expected gradients with noise on the prompt, drawn anew for each draw.
    GradientShap {
        draws: usize,
        /// As of SmoothGrad.
        noise: f64,
        reference: ReferenceSet,
    },
    /// Layer-wise relevance propagation as CP-LRP: pattern and gate count as constants.
    Lrp,
    AttnLrp,
    /// Direct contributions of attention to the logits, handed down to the tokens by ALTI rollout.
    AltiLogit,
    /// ALTI rollout alone: how much of each token the last position is a mixture of. Knows no metric.
    AltiRollout,
    /// Where the answer's position looks in the last layer, the mean over heads. Knows no metric.
    LastAttention,
    /// Attention followed down to the tokens, half of each position kept as itself. Knows no metric.
    AttentionRollout,
    /// Attention times the metric's slope at it, over all layers, heads and queries.
    AttentionTimesGradient,
    /// Shares drawn at random, which every method has to beat. Knows no metric.
    Random,
}

impl TokenMethod {
    /// Every method, its knobs at their defaults.
    pub fn all() -> Vec<TokenMethod> {
        vec![
            TokenMethod::GradientTimesInput,
            TokenMethod::SaliencyL1,
            TokenMethod::SaliencyL2,
            TokenMethod::SmoothGrad {
                draws: 50,
                noise: 0.15,
            },
            TokenMethod::IntegratedGradients {
                steps: 50,
                rule: Quadrature::GaussLegendre,
                baseline: Baseline::Mean,
                via: Vec::new(),
            },
            TokenMethod::ExpectedGradients {
                draws: 200,
                reference: ReferenceSet::Corrupted,
            },
            TokenMethod::GradientShap {
                draws: 200,
                noise: 0.05,
                reference: ReferenceSet::Corrupted,
            },
            TokenMethod::Lrp,
            TokenMethod::AttnLrp,
            TokenMethod::AltiLogit,
            TokenMethod::AltiRollout,
            TokenMethod::LastAttention,
            TokenMethod::AttentionRollout,
            TokenMethod::AttentionTimesGradient,
            TokenMethod::Random,
        ]
    }

    pub fn name(&self) -> &'static str {
        match self {
            TokenMethod::GradientTimesInput => "grad-x-input",
            TokenMethod::SaliencyL1 => "saliency-l1",
            TokenMethod::SaliencyL2 => "saliency-l2",
            TokenMethod::SmoothGrad { .. } => "smooth-grad",
            TokenMethod::IntegratedGradients { .. } => "ig",
            TokenMethod::ExpectedGradients { .. } => "expected-gradients",
            TokenMethod::GradientShap { .. } => "gradient-shap",
            TokenMethod::Lrp => "lrp",
            TokenMethod::AttnLrp => "attn-lrp",
            TokenMethod::AltiLogit => "alti-logit",
            TokenMethod::AltiRollout => "alti-rollout",
            TokenMethod::LastAttention => "last-attention",
            TokenMethod::AttentionRollout => "attention-rollout",
            TokenMethod::AttentionTimesGradient => "attention-x-grad",
            TokenMethod::Random => "random",
        }
    }

    /// Whether it is a share of a metric, and not of what a position is made of or looks at.
    pub fn knows_metric(&self) -> bool {
        !matches!(
            self,
            TokenMethod::AltiRollout
                | TokenMethod::LastAttention
                | TokenMethod::AttentionRollout
                | TokenMethod::Random
        )
    }

    /// Whether it takes the stream for a sum of what looks back alone.
    pub fn needs_decoder(&self) -> bool {
        matches!(self, TokenMethod::AltiLogit | TokenMethod::AltiRollout)
    }

    /// Whether it reads one position, and so knows answers of one token.
    pub(super) fn reads_one_position(&self) -> bool {
        (!self.knows_metric() && *self != TokenMethod::Random) || *self == TokenMethod::AltiLogit
    }

    /// Whether a noise tunnel may lead through it: it takes gradients at the embeddings, and no noise of its own.
    pub fn goes_through_noise(&self) -> bool {
        match self {
            TokenMethod::GradientTimesInput
            | TokenMethod::SaliencyL1
            | TokenMethod::SaliencyL2
            | TokenMethod::IntegratedGradients { .. }
            | TokenMethod::ExpectedGradients { .. }
            | TokenMethod::Lrp
            | TokenMethod::AttnLrp => true,
            TokenMethod::SmoothGrad { .. }
            | TokenMethod::GradientShap { .. }
            | TokenMethod::AltiLogit
            | TokenMethod::AltiRollout
            | TokenMethod::LastAttention
            | TokenMethod::AttentionRollout
            | TokenMethod::AttentionTimesGradient
            | TokenMethod::Random => false,
        }
    }

    /// The baselines that it looks up, in the order of the path.
    pub(super) fn baselines(&self) -> Vec<&Baseline> {
        match self {
            TokenMethod::IntegratedGradients { baseline, via, .. } => {
                [baseline].into_iter().chain(via).collect()
            }
            TokenMethod::ExpectedGradients { reference, .. }
            | TokenMethod::GradientShap { reference, .. } => match reference {
                ReferenceSet::One(baseline) => vec![baseline],
                ReferenceSet::Corrupted | ReferenceSet::Clean => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    /// Whether it looks at the metric's slope at the explained prompt itself, and so has nothing to say where that is zero.
    pub(super) fn at_the_prompt(&self) -> bool {
        match self {
            TokenMethod::GradientTimesInput
            | TokenMethod::SaliencyL1
            | TokenMethod::SaliencyL2
            | TokenMethod::SmoothGrad { .. }
            | TokenMethod::Lrp
            | TokenMethod::AttnLrp
            | TokenMethod::AltiLogit
            | TokenMethod::AttentionTimesGradient => true,
            TokenMethod::IntegratedGradients { .. }
            | TokenMethod::ExpectedGradients { .. }
            | TokenMethod::GradientShap { .. }
            | TokenMethod::AltiRollout
            | TokenMethod::LastAttention
            | TokenMethod::AttentionRollout
            | TokenMethod::Random => false,
        }
    }

    /// Forward passes with a gradient for each prompt, about.
    pub(super) fn passes(&self) -> usize {
        match self {
            TokenMethod::SmoothGrad { draws, .. }
            | TokenMethod::ExpectedGradients { draws, .. }
            | TokenMethod::GradientShap { draws, .. } => *draws,
            TokenMethod::IntegratedGradients { steps, via, .. } => steps * (1 + via.len()),
            _ => 1,
        }
    }

    /// # Errors
    /// [`Error::Invalid`] for knobs with which there would be nothing to compute.
    pub fn check(&self) -> Result<()> {
        match self {
            TokenMethod::ExpectedGradients { draws, .. } => check_draws(self.name(), *draws),
            TokenMethod::SmoothGrad { draws, noise }
            | TokenMethod::GradientShap { draws, noise, .. } => {
                check_draws(self.name(), *draws)?;
                check_noise(self.name(), *noise)
            }
            TokenMethod::IntegratedGradients { steps, rule, .. } => rule.points(*steps).map(drop),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for TokenMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TokenMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let name = match text {
            "cp-lrp" => "lrp",
            "integrated-gradients" => "ig",
            other => other,
        };
        let mut all = TokenMethod::all();
        match all.iter().position(|method| method.name() == name) {
            Some(at) => Ok(all.swap_remove(at)),
            None => Err(Error::Parse {
                what: "a token method",
                text: text.into(),
                reason: format!("methods are {}", names(&all)),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::noise::MAX_DRAWS;
    use super::*;

    #[test]
    fn names_read_back() {
        for method in TokenMethod::all() {
            assert_eq!(method.to_string().parse::<TokenMethod>().unwrap(), method);
            assert!(method.check().is_ok());
        }
        let message = "gradcam".parse::<TokenMethod>().unwrap_err().to_string();
        assert!(message.contains("grad-x-input, saliency-l1"), "{message}");
    }

    #[test]
    fn knobs_without_anything_to_compute_are_refused() {
        for draws in [0, MAX_DRAWS + 1] {
            let reference = ReferenceSet::Corrupted;
            let drawn = TokenMethod::ExpectedGradients { draws, reference };
            assert!(drawn.check().is_err());
        }
        let noise = f64::NAN;
        assert!(TokenMethod::SmoothGrad { draws: 1, noise }.check().is_err());
    }
}
