//! What `candlewick attribute` lets one choose, and what is scored by each choice.

use candlewick::methods::{Players, TokenMethod};
use clap::ValueEnum;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MethodChoice {
    /// Attribution patching: the gradient at the changed run.
    Atp,
    /// With the exact softmax of queries and keys, and GradDrop.
    AtpStar,
    /// Relevance patching: norm, identity and half rule.
    Relp,
    /// Integrated gradients over the embeddings, at each node.
    LayerIg,
    /// The integral of the gradient along the node's own change, by the trapezoid rule.
    Conductance,
    /// Edge attribution patching.
    Eap,
    /// Its integral over the embeddings.
    EapIg,
    /// Conductance of edges: the integral of the gradient along what the source itself writes on the way.
    Ceap,
    /// Its mean at both ends.
    CleanCorrupted,
    /// Its integral over what each component writes.
    EapIgActivations,
    /// Edges by the rules of RelP.
    RelpEdges,
    /// Every edge patched for real.
    ExactEdges,
    GradXInput,
    SaliencyL1,
    SaliencyL2,
    SmoothGrad,
    /// Integrated gradients of the tokens.
    Ig,
    ExpectedGradients,
    /// Expected gradients to a noisy prompt.
    GradientShap,
    /// Layer-wise relevance propagation, conservative (CP-LRP).
    Lrp,
    AttnLrp,
    AltiLogit,
    AltiRollout,
    /// Where the answer's position looks in the last layer, the mean over heads.
    LastAttention,
    /// Attention followed down to the tokens.
    AttentionRollout,
    /// Attention times the metric's slope at it.
    AttentionXGrad,
    /// Shares of tokens drawn at random, which every method has to beat.
    Random,
    /// What is lost without a part: feature ablation; with `--removal permute` feature permutation.
    LeaveOneOut,
    /// What a part does alone.
    IncludeOne,
    /// What is lost without neighbours, the mean over the windows that a part is in.
    Occlusion,
    /// Shapley values.
    Shapley,
    /// Shapley values, as a weighted fit.
    KernelShap,
    /// A linear model near the whole prompt.
    Lime,
    /// Total Sobol indices: shares of the variance.
    Sobol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlayersChoice {
    /// The tokens of the prompt.
    Tokens,
    /// The spans that are roles of the task.
    Roles,
    Heads,
    Mlps,
    /// Heads and MLPs.
    Components,
}

impl From<PlayersChoice> for Players {
    fn from(choice: PlayersChoice) -> Self {
        match choice {
            PlayersChoice::Tokens => Players::Tokens,
            PlayersChoice::Roles => Players::Roles,
            PlayersChoice::Heads => Players::Heads,
            PlayersChoice::Mlps => Players::Mlps,
            PlayersChoice::Components => Players::Components,
        }
    }
}

/// What is put in place of what a circuit leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceChoice {
    /// The pair's other run.
    Pair,
    Zero,
    /// The mean over the corrupted prompts, per position within each template.
    Mean,
}

/// What a method scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scored {
    Nodes,
    Edges,
    ExactEdges,
    Tokens,
    Removal,
}

impl MethodChoice {
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no method is hidden");
        value.get_name().to_string()
    }

    /// Whether it is a method of tokens that a noise tunnel may lead through.
    pub fn goes_through_noise(self) -> bool {
        let method = self.name().parse::<TokenMethod>();
        method.is_ok_and(|method| method.goes_through_noise())
    }

    pub fn scored(self) -> Scored {
        match self {
            MethodChoice::Atp
            | MethodChoice::AtpStar
            | MethodChoice::Relp
            | MethodChoice::LayerIg
            | MethodChoice::Conductance => Scored::Nodes,
            MethodChoice::Eap
            | MethodChoice::EapIg
            | MethodChoice::Ceap
            | MethodChoice::CleanCorrupted
            | MethodChoice::EapIgActivations
            | MethodChoice::RelpEdges => Scored::Edges,
            MethodChoice::ExactEdges => Scored::ExactEdges,
            MethodChoice::GradXInput
            | MethodChoice::SaliencyL1
            | MethodChoice::SaliencyL2
            | MethodChoice::SmoothGrad
            | MethodChoice::Ig
            | MethodChoice::ExpectedGradients
            | MethodChoice::GradientShap
            | MethodChoice::Lrp
            | MethodChoice::AttnLrp
            | MethodChoice::AltiLogit
            | MethodChoice::AltiRollout
            | MethodChoice::LastAttention
            | MethodChoice::AttentionRollout
            | MethodChoice::AttentionXGrad
            | MethodChoice::Random => Scored::Tokens,
            MethodChoice::LeaveOneOut
            | MethodChoice::IncludeOne
            | MethodChoice::Occlusion
            | MethodChoice::Shapley
            | MethodChoice::KernelShap
            | MethodChoice::Lime
            | MethodChoice::Sobol => Scored::Removal,
        }
    }
}
