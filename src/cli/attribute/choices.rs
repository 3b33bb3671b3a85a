//! What `candlewick attribute` lets one choose, and what is scored by each choice.

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
    /// Layer-wise relevance propagation, conservative (CP-LRP).
    Lrp,
    AttnLrp,
    AltiLogit,
    AltiRollout,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SourceChoice {
    /// The pair's other run.
    Pair,
    Zero,
    /// The mean over the corrupted prompts, per position within each template.
    Mean,
    /// The mean over all positions of the corrupted prompts (nodes only).
    MeanAll,
}

/// What a method scores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scored {
    Nodes,
    Edges,
    ExactEdges,
    Tokens,
}

impl MethodChoice {
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no method is hidden");
        value.get_name().to_string()
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
            | MethodChoice::Lrp
            | MethodChoice::AttnLrp
            | MethodChoice::AltiLogit
            | MethodChoice::AltiRollout => Scored::Tokens,
        }
    }
}
