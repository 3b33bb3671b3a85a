//! Where a subspace is looked for, and how it is found.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::hooks::Kind;
use crate::methods::choice::{Heads, Layers};
use crate::task::END;

/// How a subspace is found. All but [`SubspaceMethod::Random`] and [`SubspaceMethod::Full`] look at the training pairs, and at nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubspaceMethod {
    /// Distributed alignment search: trained so that the interchange makes the source's answer likely.
    Das,
    /// The same, and how many dimensions is trained too, by a mask whose edge sharpens.
    BoundlessDas,
    /// The difference of the two classes' means.
    MeanDifference,
    /// The directions along which activations vary the most.
    Pca,
    /// Fisher's discriminant, the covariance within classes shrunk by a tenth towards a sphere.
    Lda,
    /// The difference of two clusters' centres.
    KMeans,
    /// The weights of a logistic probe with an L2 penalty, features z-scored.
    Logistic,
    /// Drawn from a normal distribution; the mean of so many draws.
    Random,
    /// Everything: the whole activation is exchanged, as in activation patching.
    Full,
}

impl SubspaceMethod {
    pub const ALL: [SubspaceMethod; 9] = [
        SubspaceMethod::Full,
        SubspaceMethod::Das,
        SubspaceMethod::BoundlessDas,
        SubspaceMethod::MeanDifference,
        SubspaceMethod::Lda,
        SubspaceMethod::Logistic,
        SubspaceMethod::KMeans,
        SubspaceMethod::Pca,
        SubspaceMethod::Random,
    ];

    pub fn name(self) -> &'static str {
        match self {
            SubspaceMethod::Das => "das",
            SubspaceMethod::BoundlessDas => "boundless-das",
            SubspaceMethod::MeanDifference => "mean-difference",
            SubspaceMethod::Pca => "pca",
            SubspaceMethod::Lda => "lda",
            SubspaceMethod::KMeans => "kmeans",
            SubspaceMethod::Logistic => "logistic",
            SubspaceMethod::Random => "random",
            SubspaceMethod::Full => "full",
        }
    }

    /// Whether it is trained by gradients.
    pub fn is_trained(self) -> bool {
        matches!(self, SubspaceMethod::Das | SubspaceMethod::BoundlessDas)
    }

    /// Whether it finds a direction, which can be written and taken apart. The whole activation is none, and a random one is not found.
    pub fn has_direction(self) -> bool {
        !matches!(self, SubspaceMethod::Full | SubspaceMethod::Random)
    }

    /// Whether it can have several dimensions that are asked for.
    pub fn takes_dims(self) -> bool {
        matches!(
            self,
            SubspaceMethod::Das | SubspaceMethod::Pca | SubspaceMethod::Random
        )
    }
}

impl fmt::Display for SubspaceMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SubspaceMethod {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut all = SubspaceMethod::ALL.into_iter();
        all.find(|method| method.name() == text).ok_or_else(|| {
            let names = SubspaceMethod::ALL.map(SubspaceMethod::name);
            Error::Parse {
                what: "a way to find a subspace",
                text: text.into(),
                reason: format!("write one of {}, or `all`", names.join(", ")),
            }
        })
    }
}

/// How directions are trained.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Training {
    /// Steps of two pairs and their swaps, at most 100000.
    pub steps: usize,
    /// Adam's rate at its highest: after a warm-up of a tenth of the steps, from where it falls to zero in a straight line.
    pub rate: f64,
    /// The most dimensions that [`SubspaceMethod::BoundlessDas`] may take.
    pub most_dims: usize,
}

impl Default for Training {
    fn default() -> Self {
        Training {
            steps: 100,
            rate: 5e-3,
            most_dims: 32,
        }
    }
}

/// The matrix that a direction is taken apart by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SplitBy {
    /// The output matrix behind the hook: of neurons W_out, of `z` W_O.
    Output,
    /// Of a stream the query matrices of the heads that read it, side by side, each behind its norm: the weights, and of a LayerNorm
    /// that it takes the mean out.
    Readers(Heads),
}

/// Which subspaces, where, and on what they are judged.
#[derive(Debug, Clone, PartialEq)]
pub struct SubspaceConfig {
    /// A stream, what attention or an MLP writes, `z` of all heads, or the neurons.
    pub kind: Kind,
    pub layers: Layers,
    /// The edit is made at the last token of each of these roles, each by itself.
    pub roles: Vec<String>,
    pub methods: Vec<SubspaceMethod>,
    /// Dimensions of what can have several.
    pub dims: usize,
    /// Pairs that subspaces are found on; the others judge them [default: half].
    pub train: Option<usize>,
    pub training: Training,
    /// Draws of a random subspace, at most 1000.
    pub draws: usize,
    /// Everything again for two arbitrary tokens as labels.
    pub control: bool,
    /// Each direction is taken apart by what the matrix behind it reads, and each part is judged too.
    pub split: Option<SplitBy>,
    /// Where the directions are written, as safetensors.
    pub save: Option<PathBuf>,
}

impl SubspaceConfig {
    /// The kinds of hook that a subspace can be exchanged at.
    pub const KINDS: [Kind; 7] = [
        Kind::ResidPre,
        Kind::ResidMid,
        Kind::ResidPost,
        Kind::AttnOut,
        Kind::MlpOut,
        Kind::Z,
        Kind::MlpPost,
    ];

    /// At the stream after each layer, where the answer is read.
    pub fn new(methods: impl Into<Vec<SubspaceMethod>>) -> Self {
        SubspaceConfig {
            kind: Kind::ResidPost,
            layers: Layers::default(),
            roles: vec![END.into()],
            methods: methods.into(),
            dims: 1,
            train: None,
            training: Training::default(),
            draws: 10,
            control: false,
            split: None,
            save: None,
        }
    }
}
