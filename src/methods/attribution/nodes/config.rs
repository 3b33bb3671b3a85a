//! The node methods as values, and the names that follow from what they do.

use super::super::{GradientPath, name_with_rules};
use crate::methods::activation_patching::PatchConfig;
use crate::nn::rules::Rules;

/// Which nodes, and how their effects are estimated.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeAttributionConfig {
    /// What would be patched exactly.
    pub patch: PatchConfig,
    pub rules: Rules,
    pub path: GradientPath,
    /// Sum the gradient times the value's own change from point to point (trapezoid), instead of the mean gradient times the whole
    /// change.
    pub conductance: bool,
    /// Recompute the softmax exactly at queries and keys.
    pub qk_fix: bool,
    /// Average the size of the estimate over passes that each leave one layer's writes out, so that paths that cancel show. The
    /// score is then a size, without sign.
    pub grad_drop: bool,
}

impl NodeAttributionConfig {
    /// AtP of what would be patched.
    pub fn atp(patch: PatchConfig) -> Self {
        NodeAttributionConfig {
            patch,
            rules: Rules::gradient(),
            path: GradientPath::Base,
            conductance: false,
            qk_fix: false,
            grad_drop: false,
        }
    }

    /// AtP*: both corrections.
    pub fn atp_star(patch: PatchConfig) -> Self {
        NodeAttributionConfig {
            qk_fix: true,
            grad_drop: true,
            ..NodeAttributionConfig::atp(patch)
        }
    }

    /// RelP with its authors' default rules.
    pub fn relp(patch: PatchConfig) -> Self {
        NodeAttributionConfig {
            rules: Rules::relp(),
            ..NodeAttributionConfig::atp(patch)
        }
    }

    /// Integrated gradients over the embeddings, at midpoints.
    pub fn layer_ig(patch: PatchConfig, steps: usize) -> Self {
        NodeAttributionConfig {
            path: GradientPath::inputs(steps),
            ..NodeAttributionConfig::atp(patch)
        }
    }

    /// The integral of the gradient along each node's own change.
    pub fn conductance(patch: PatchConfig, steps: usize) -> Self {
        NodeAttributionConfig {
            conductance: true,
            ..NodeAttributionConfig::layer_ig(patch, steps)
        }
    }

    /// The method's name, which follows from what it does.
    pub fn name(&self) -> String {
        let name = match (self.path, self.qk_fix, self.grad_drop) {
            _ if self.conductance => "conductance",
            (GradientPath::Inputs { .. }, ..) => "layer-ig",
            (GradientPath::Ends, ..) => "atp-clean-corrupted",
            (GradientPath::Base, true, true) => "atp-star",
            (GradientPath::Base, true, false) => "atp-qk-fix",
            (GradientPath::Base, false, true) => "atp-grad-drop",
            (GradientPath::Base, false, false) if self.rules == Rules::relp() => {
                return "relp".into();
            }
            (GradientPath::Base, false, false) => "atp",
        };
        name_with_rules(name, &self.rules)
    }
}
