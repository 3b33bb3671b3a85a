//! What can be asked of a token method.

use serde::Serialize;

/// What is asked of a method. Ranks go by signed share, the highest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "cli", value(rename_all = "snake_case"))]
pub enum TokenScore {
    /// One over the rank of the best known token (its mean over prompts is MRR).
    Mrr,
    /// The known tokens' part of all positive shares.
    Rma,
    /// Whether the top token is a known one.
    Pta,
    /// Whether one of the top three is.
    PgAt3,
    /// What the metric loses without the top 5, 10, 20 and 50% of tokens, the mean.
    Comprehensiveness,
    /// What it loses with these alone; less is better.
    Sufficiency,
    /// `E[(<e, shares> - (F(x) - F(x - e x)))^2]` for a small random share `e` of each token's embedding `x`.
    Infidelity,
    /// The same with shares scaled as fits best, over `E[(F(x) - F(..))^2]`: 0 where they say all, 1 where they say nothing.
    InfidelityScaled,
    /// The largest relative change of the shares under small changes of the embeddings.
    MaxSensitivity,
    /// Entropy of the shares' sizes, in nats: 0 if one token has all.
    Complexity,
}

impl TokenScore {
    pub const ALL: [TokenScore; 10] = [
        TokenScore::Mrr,
        TokenScore::Rma,
        TokenScore::Pta,
        TokenScore::PgAt3,
        TokenScore::Comprehensiveness,
        TokenScore::Sufficiency,
        TokenScore::Infidelity,
        TokenScore::InfidelityScaled,
        TokenScore::MaxSensitivity,
        TokenScore::Complexity,
    ];

    pub fn name(self) -> &'static str {
        match self {
            TokenScore::Mrr => "mrr",
            TokenScore::Rma => "rma",
            TokenScore::Pta => "pta",
            TokenScore::PgAt3 => "pg_at3",
            TokenScore::Comprehensiveness => "comprehensiveness",
            TokenScore::Sufficiency => "sufficiency",
            TokenScore::Infidelity => "infidelity",
            TokenScore::InfidelityScaled => "infidelity_scaled",
            TokenScore::MaxSensitivity => "max_sensitivity",
            TokenScore::Complexity => "complexity",
        }
    }

    /// Whether it takes a role for the truth.
    pub fn needs_gold(self) -> bool {
        use TokenScore::{Mrr, PgAt3, Pta, Rma};
        matches!(self, Mrr | Rma | Pta | PgAt3)
    }
}
