//! Estimates of patch effects from gradients: one forward and one backward pass stand in for a sweep.
//!
//! To first order, putting another run's value at a site moves the metric by `<other - base, d metric / d site>`. All methods here
//! are that inner product; they differ in where along the way from one run to the other the gradient is taken ([`Path`]), by
//! what rules it is computed ([`Rules`]), and whether the site is a node ([`attribute_nodes`]) or an edge ([`attribute_edges`]).
//! An estimate can be far off, even in sign, where attention saturates: [`verify`] patches the largest exactly.
//!
//! Sources: Nanda 2023 (attribution patching); Syed et al. 2023 (EAP); Hanna et al. 2024, arXiv 2403.17806 (EAP-IG); Kramár et al.
//! 2024, arXiv 2403.00745 (AtP*); Jafari et al. 2025 (RelP).

mod edges;
mod nodes;
mod qk_fix;
mod runs;
pub mod verify;

use std::fmt;

use serde::Serialize;

pub use edges::{
    EdgeAttributionConfig, EdgeExample, EdgePath, EdgeScores, attribute_edges, edge_scores,
};
pub use nodes::{NodeAttributionConfig, VerifyOptions, attribute_nodes, node_scores};

use crate::error::{Error, Result};
use crate::nn::rules::Rules;

/// Where gradients are taken, between the base run and the run that is put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Path {
    /// At the base run.
    Base,
    /// Averaged over points on the line between the two runs' embeddings; everything above runs freely (integrated gradients).
    Inputs { steps: usize, rule: StepRule },
    /// The mean of both ends (clean-corrupted).
    Ends,
}

/// Where on the line the points of an integral stand. The base run is at 1, the other run at 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub enum StepRule {
    /// `(k - 1/2) / steps`: the error falls with the square of the steps.
    #[default]
    Midpoint,
    /// `k / steps` from 0, as EAP-IG's code has it for edges.
    Left,
    /// `k / steps` up to 1, as its paper has it.
    Right,
}

impl Path {
    /// The points: 1 is the base run, 0 the other.
    pub fn points(self) -> Vec<f32> {
        match self {
            Path::Base => vec![1.0],
            Path::Ends => vec![1.0, 0.0],
            Path::Inputs { steps, rule } => {
                let shift = match rule {
                    StepRule::Midpoint => 0.5,
                    StepRule::Left => 0.0,
                    StepRule::Right => 1.0,
                };
                (0..steps)
                    .map(|k| (k as f32 + shift) / steps as f32)
                    .collect()
            }
        }
    }

    /// # Errors
    /// [`Error::Invalid`] for an integral without points.
    pub fn check(self) -> Result<()> {
        match self {
            Path::Inputs { steps: 0, .. } => Err(no_steps()),
            _ => Ok(()),
        }
    }
}

pub(super) fn no_steps() -> Error {
    Error::invalid("integrated gradients need at least one step; use `--steps 5`")
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Base => f.write_str("base"),
            Path::Ends => f.write_str("ends"),
            Path::Inputs { steps, rule } => {
                write!(f, "inputs:{steps}:{}", format!("{rule:?}").to_lowercase())
            }
        }
    }
}

/// Reads the name of a set of rules.
/// # Errors
/// [`Error::Parse`] naming the sets that there are.
pub fn parse_rules(text: &str) -> Result<Rules> {
    Ok(match text {
        "gradient" => Rules::gradient(),
        "relp" => Rules::relp(),
        "relp-frozen-pattern" => Rules::relp_frozen_pattern(),
        "attn-lrp" => Rules::attn_lrp(),
        "cp-lrp" => Rules::cp_lrp(),
        _ => {
            return Err(Error::Parse {
                what: "a set of rules",
                text: text.into(),
                reason: "rules are gradient, relp, relp-frozen-pattern, attn-lrp, cp-lrp".into(),
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_points_of_a_path() {
        let inputs = |steps, rule| Path::Inputs { steps, rule }.points();
        assert_eq!(inputs(2, StepRule::Midpoint), [0.25, 0.75]);
        assert_eq!(inputs(2, StepRule::Left), [0.0, 0.5]);
        assert_eq!(inputs(2, StepRule::Right), [0.5, 1.0]);
        assert_eq!(Path::Ends.points(), [1.0, 0.0]);
        let none = Path::Inputs {
            steps: 0,
            rule: StepRule::Left,
        };
        assert!(none.check().is_err());
    }
}
