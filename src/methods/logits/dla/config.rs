//! What to take apart, and by what.

use crate::methods::logits::readout::DirectTarget;

/// How far the stream is taken apart. Every choice sums to the same logit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// The output of each attention and each MLP.
    Component,
    /// Each head, with the output bias of its layer, where there is one, in a row of its own.
    #[default]
    Head,
    /// Each neuron, with the output bias of its layer, where there is one, in a row of its own.
    Neuron,
    /// Each head and the position that it reads. A value already mixes earlier tokens: this is where a head looks, not which word
    /// it is about.
    HeadSource,
    /// The same summed over the positions of each role of the task; the rest is `other`.
    HeadRole,
}

/// What to attribute, and how.
///
/// The rows take the target's logit in each clean run apart. Beside them stand, for components and heads, `share`: the part's
/// share of the sum of magnitudes over all parts of its prompt, with its sign; and for the strongest parts `written_logit`:
/// what the part (`src`) adds to the logit of a token (`dst`), less the mean over the vocabulary.
/// # Units
/// `score`: logits, before any soft-cap.
#[derive(Debug, Clone, PartialEq)]
pub struct DlaConfig {
    pub by: Part,
    pub target: DirectTarget,
    /// For so many of the strongest parts: which tokens they write for.
    pub writes: usize,
    /// Tokens listed for each of them, most promoted first, and as many most suppressed.
    pub tokens: usize,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl Default for DlaConfig {
    fn default() -> Self {
        DlaConfig {
            by: Part::Head,
            target: DirectTarget::Difference,
            writes: 0,
            tokens: 5,
            seed: None,
        }
    }
}

impl DlaConfig {
    /// The difference of answer and wrong answer, taken apart by these parts.
    pub fn by(by: Part) -> Self {
        DlaConfig {
            by,
            ..DlaConfig::default()
        }
    }
}
