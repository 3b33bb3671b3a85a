//! What the backward pass does at each place that is not linear, as a value.
//!
//! Calculus is one set of rules among others: a relevance method replaces the derivative at a norm, an activation, a gate or a
//! softmax by something that it holds to be fairer, and leaves the rest of the walk as it is. Forward values never change.
//!
//! Sources: Jafari et al. 2025 (RelP); Ali et al. 2022 (CP-LRP); Achtibat et al. 2024 (AttnLRP); Kramár et al. 2024 (the stops of
//! GradDrop).

use serde::Serialize;

/// The rules of one backward pass. A new attribution method is a new value of this, not a new walk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rules {
    /// At every norm: around the branches, before the unembedding, on queries and keys.
    pub norm: NormRule,
    /// At the activation of the MLP, and where queries, keys and values are cut off.
    pub activation: ActivationRule,
    pub gate: GateRule,
    pub pattern: PatternRule,
    /// At the soft-caps of scores and logits.
    pub softcap: SoftcapRule,
    /// Factor on the gradient that arrives at queries and keys.
    pub query_key: f32,
    /// Factor on the gradient that arrives at values.
    pub value: f32,
    /// Layers whose two branches give no gradient to what they read: what they write counts as a constant.
    pub stop: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NormRule {
    Exact,
    /// The divisor counts as a constant; centring keeps its gradient.
    FrozenScale,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum ActivationRule {
    Exact,
    /// `act(x) / x` in place of `act'(x)`. ReLU is the same under both.
    Ratio,
}

/// At the product `act(gate) * linear` of a gated MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum GateRule {
    Exact,
    /// Half to each branch.
    Half,
    /// The gate counts as a constant: all goes to the linear branch.
    LinearOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum PatternRule {
    Exact,
    /// The pattern counts as a constant: gradient flows through the values alone.
    Frozen,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum SoftcapRule {
    Exact,
    /// `f(x) / x` in place of `f'(x)`.
    Ratio,
}

impl Rules {
    /// Calculus.
    pub fn gradient() -> Self {
        Rules {
            norm: NormRule::Exact,
            activation: ActivationRule::Exact,
            gate: GateRule::Exact,
            pattern: PatternRule::Exact,
            softcap: SoftcapRule::Exact,
            query_key: 1.0,
            value: 1.0,
            stop: Vec::new(),
        }
    }

    /// RelP with the rules that its authors have on by default: norm, identity and half rule. Soft-caps keep their gradient, since
    /// the paper has no rule for them.
    pub fn relp() -> Self {
        Rules {
            norm: NormRule::FrozenScale,
            activation: ActivationRule::Ratio,
            gate: GateRule::Half,
            ..Rules::gradient()
        }
    }

    /// RelP with its attention-head rule as well, which gives no credit to what acts through queries and keys.
    pub fn relp_frozen_pattern() -> Self {
        Rules {
            pattern: PatternRule::Frozen,
            ..Rules::relp()
        }
    }

    /// AttnLRP: the plain gradient of the softmax, with the relevance of each product shared by its factors. It does not conserve: the
    /// softmax leaks what [`crate::methods`] reports as a ledger.
    pub fn attn_lrp() -> Self {
        Rules {
            softcap: SoftcapRule::Ratio,
            query_key: 0.25,
            value: 0.5,
            ..Rules::relp()
        }
    }

    /// Conservative propagation: pattern and gate are constants, so relevance is conserved up to biases.
    pub fn cp_lrp() -> Self {
        Rules {
            gate: GateRule::LinearOnly,
            pattern: PatternRule::Frozen,
            softcap: SoftcapRule::Ratio,
            ..Rules::relp()
        }
    }

    /// These, with the branches of some layers stopped.
    pub fn stopping(mut self, layers: impl IntoIterator<Item = usize>) -> Self {
        self.stop.extend(layers);
        self
    }

    pub fn stops(&self, layer: usize) -> bool {
        self.stop.contains(&layer)
    }
}

impl Default for Rules {
    fn default() -> Self {
        Rules::gradient()
    }
}

/// `value / x` with a divisor that is never zero: what stands for a derivative under the ratio rules.
#[inline(always)]
pub fn ratio(value: f32, x: f32) -> f32 {
    value / (x + if x < 0.0 { -RATIO_FLOOR } else { RATIO_FLOOR })
}

const RATIO_FLOOR: f32 = 1e-6;
