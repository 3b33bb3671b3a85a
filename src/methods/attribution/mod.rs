//! Estimates of patch effects from gradients: one forward and one backward pass stand in for a sweep.
//!
//! To first order, putting another run's value at a site moves the metric by `<other - base, d metric / d site>`. All methods here
//! are that inner product; they differ in where along the way from one run to the other the gradient is taken ([`GradientPath`]), by
//! what rules it is computed ([`Rules`]), and whether the site is a node ([`NodeAttributionConfig`]) or an edge ([`EdgeAttributionConfig`]).
//! An estimate can be far off, even in sign, where attention saturates: verification ([`super::verify`]) patches the largest exactly.
//!
//! Sources: Nanda 2023 (attribution patching); Syed et al. 2023 (EAP); Hanna et al. 2024, arXiv 2403.17806 (EAP-IG); Kramár et al.
//! 2024, arXiv 2403.00745 (AtP*); Jafari et al. 2025 (RelP); Wu et al. 2026, arXiv 2606.16920 (CEAP).

mod dims;
mod edges;
mod inner;
mod latents;
mod nodes;
mod qk_fix;
mod runs;
mod setting;

use std::fmt;

use serde::Serialize;

pub use dims::DimAttributionConfig;
pub use edges::{EdgeAttributionConfig, EdgePath};
pub use latents::{LatentConfig, LatentEstimate};
pub use nodes::NodeAttributionConfig;

use crate::error::{Error, Result};
use crate::nn::rules::Rules;

/// Where gradients are taken, between the base run and the run that is put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum GradientPath {
    /// At the base run.
    Base,
    /// Averaged over points on the line between the two runs' embeddings; everything above runs freely (integrated gradients).
    Inputs { steps: usize, rule: StepRule },
    /// The mean of both ends (clean-corrupted).
    Ends,
}

/// Where on the line from the corrupted run (0) to the clean run (1) the points of an integral stand, whichever of the two is
/// changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum StepRule {
    /// `(k - 1/2) / steps`: the error falls with the square of the steps.
    #[default]
    Midpoint,
    /// `k / steps` from 0, as EAP-IG's code has it for edges.
    Left,
    /// `k / steps` up to 1, as its paper has it.
    Right,
    /// `k / steps` from 0 to 1: one point more than steps, the two ends with half a share.
    Trapezoid,
}

impl GradientPath {
    /// Integrated gradients over the embeddings, at midpoints.
    pub fn inputs(steps: usize) -> Self {
        GradientPath::Inputs {
            steps,
            rule: StepRule::Midpoint,
        }
    }

    /// The points on the line from the other run (0) to the base run (1), and the share of each; shares sum to 1.
    pub fn points(self, base_is_clean: bool) -> Vec<(f32, f32)> {
        match self {
            GradientPath::Base => vec![(1.0, 1.0)],
            GradientPath::Ends => vec![(1.0, 0.5), (0.0, 0.5)],
            GradientPath::Inputs { steps, rule } => {
                let (shift, count) = match rule {
                    StepRule::Midpoint => (0.5, steps),
                    StepRule::Left => (0.0, steps),
                    StepRule::Right => (1.0, steps),
                    StepRule::Trapezoid => (0.0, steps + 1),
                };
                let point = |k: usize| {
                    let from_corrupted = (k as f32 + shift) / steps as f32;
                    let is_end = rule == StepRule::Trapezoid && (k == 0 || k == steps);
                    let point = if base_is_clean {
                        from_corrupted
                    } else {
                        1.0 - from_corrupted
                    };
                    (point, if is_end { 0.5 } else { 1.0 } / steps as f32)
                };
                (0..count).map(point).collect()
            }
        }
    }

    /// # Errors
    /// [`Error::Invalid`] for an integral without points.
    pub fn check(self) -> Result<()> {
        match self {
            GradientPath::Inputs { steps, .. } => check_steps(steps),
            _ => Ok(()),
        }
    }
}

/// More points than an integral is ever taken from.
const MOST_STEPS: usize = 100_000;

/// # Errors
/// [`Error::Invalid`] for an integral without points, and for more than anybody waits for.
pub(super) fn check_steps(steps: usize) -> Result<()> {
    match steps {
        0 => Err(no_steps()),
        1..=MOST_STEPS => Ok(()),
        _ => Err(Error::invalid(format!(
            "{steps} steps of an integral; take at most {MOST_STEPS} (`GradientPath::steps`)"
        ))),
    }
}

pub(super) fn no_steps() -> Error {
    Error::invalid("integrated gradients need at least one step; use `GradientPath::steps = 5`")
}

/// Between two models' runs there is no line of embeddings to go along.
pub(super) fn no_line_between_models(instead: &str) -> Error {
    Error::invalid(format!(
        "an integral over the embeddings goes from one run of a model to another run of it; with another model's values use {instead}, or \
         leave the source model out"
    ))
}

impl fmt::Display for GradientPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GradientPath::Base => f.write_str("base"),
            GradientPath::Ends => f.write_str("ends"),
            GradientPath::Inputs { steps, rule } => {
                write!(f, "inputs:{steps}:{}", format!("{rule:?}").to_lowercase())
            }
        }
    }
}

/// A set of rules and its name.
type NamedRules = (&'static str, fn() -> Rules);

/// The sets of rules that have a name.
const NAMED_RULES: [NamedRules; 5] = [
    ("gradient", Rules::gradient),
    ("relp", Rules::relp),
    ("relp-frozen-pattern", Rules::relp_frozen_pattern),
    ("attn-lrp", Rules::attn_lrp),
    ("cp-lrp", Rules::cp_lrp),
];

/// Reads the name of a set of rules.
/// # Errors
/// [`Error::Parse`] naming the sets that there are.
pub fn parse_rules(text: &str) -> Result<Rules> {
    match NAMED_RULES.iter().find(|(name, _)| *name == text) {
        Some((_, rules)) => Ok(rules()),
        None => Err(Error::Parse {
            what: "a set of rules",
            text: text.into(),
            reason: format!("rules are {}", NAMED_RULES.map(|(name, _)| name).join(", ")),
        }),
    }
}

/// The name of a method whose backward pass goes by some rules: its own name where they are the plain gradient's, else both:
/// `layer-ig:relp`.
fn name_with_rules(name: &str, rules: &Rules) -> String {
    if *rules == Rules::gradient() {
        return name.into();
    }
    match NAMED_RULES.iter().find(|(_, named)| named() == *rules) {
        Some((of_rules, _)) => format!("{name}:{of_rules}"),
        None => format!("{name}:other-rules"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_by_name_and_stand_in_the_methods_name() {
        for (name, rules) in NAMED_RULES {
            assert_eq!(parse_rules(name).unwrap(), rules());
        }
        let message = parse_rules("lrp").unwrap_err().to_string();
        assert!(message.contains("attn-lrp, cp-lrp"), "{message}");
        assert_eq!(name_with_rules("eap", &Rules::gradient()), "eap");
        assert_eq!(name_with_rules("eap", &Rules::cp_lrp()), "eap:cp-lrp");
        let stopped = Rules::gradient().stopping([1]);
        assert_eq!(name_with_rules("eap", &stopped), "eap:other-rules");
    }

    #[test]
    fn the_points_of_a_path() {
        let inputs = |steps, rule| GradientPath::Inputs { steps, rule };
        let points = |rule| inputs(2, rule).points(true);
        assert_eq!(points(StepRule::Midpoint), [(0.25, 0.5), (0.75, 0.5)]);
        assert_eq!(points(StepRule::Left), [(0.0, 0.5), (0.5, 0.5)]);
        assert_eq!(points(StepRule::Right), [(0.5, 0.5), (1.0, 0.5)]);
        let trapezoid = [(0.0, 0.25), (0.5, 0.5), (1.0, 0.25)];
        assert_eq!(points(StepRule::Trapezoid), trapezoid);
        // Where the corrupted run is changed it is the base run, at 1, and the line is the same one.
        assert_eq!(inputs(1, StepRule::Left).points(false), [(1.0, 1.0)]);
        assert_eq!(
            inputs(2, StepRule::Right).points(false),
            [(0.5, 0.5), (0.0, 0.5)]
        );
        assert_eq!(GradientPath::Ends.points(true), [(1.0, 0.5), (0.0, 0.5)]);
        assert!(inputs(0, StepRule::Left).check().is_err());
    }
}
