//! What walks through the layers, where it can be joined, and who watches.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::attention;
use crate::run::rows::Rows;
use crate::spec::{Block, BlockWeights, ModelSpec};

/// The places of a block where variants can join, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    ResidPre,
    Qkv,
    Z,
    AttnOut,
    /// The stream between attention and MLP, where the MLP begins.
    ResidMid,
    MlpPost,
    MlpOut,
    ResidPost,
}

impl Stage {
    /// The stage of a block at which a variant that edits this hook can start; `None` for hooks outside of blocks.
    pub(crate) fn of(kind: Kind) -> Option<Stage> {
        Some(match kind {
            Kind::Embed | Kind::PosEmbed | Kind::Scale(Ln::Final) | Kind::Normalized(Ln::Final) => {
                return None;
            }
            Kind::ResidPre | Kind::Scale(Ln::One) | Kind::Normalized(Ln::One) => Stage::ResidPre,
            Kind::QInput | Kind::KInput | Kind::VInput => Stage::ResidPre,
            Kind::Q
            | Kind::K
            | Kind::V
            | Kind::RotQ
            | Kind::RotK
            | Kind::AttnScores
            | Kind::Pattern => Stage::Qkv,
            Kind::Z | Kind::Result | Kind::Scale(Ln::OnePost) | Kind::Normalized(Ln::OnePost) => {
                Stage::Z
            }
            Kind::AttnOut => Stage::AttnOut,
            Kind::ResidMid | Kind::MlpIn | Kind::Scale(Ln::Two) | Kind::Normalized(Ln::Two) => {
                Stage::ResidMid
            }
            Kind::MlpPre | Kind::MlpPreLinear => Stage::ResidMid,
            Kind::MlpPost | Kind::Scale(Ln::TwoPost) | Kind::Normalized(Ln::TwoPost) => {
                Stage::MlpPost
            }
            Kind::MlpOut => Stage::MlpOut,
            Kind::ResidPost => Stage::ResidPost,
        })
    }

    /// What the rows that join here take from the base run, as it was after the base run's own edits.
    pub(crate) fn takes(self, block: Block) -> &'static [Kind] {
        match self {
            Stage::ResidPre => &[Kind::ResidPre],
            Stage::Qkv => &[Kind::ResidPre, Kind::Q, Kind::K, Kind::V],
            Stage::Z => &[Kind::ResidPre, Kind::Z],
            Stage::AttnOut => &[Kind::ResidPre, Kind::AttnOut],
            Stage::ResidMid if block == Block::Sequential => &[Kind::ResidMid],
            Stage::ResidMid => &[Kind::ResidMid, Kind::ResidPre],
            Stage::MlpPost => &[Kind::ResidMid, Kind::MlpPost],
            Stage::MlpOut => &[Kind::ResidMid, Kind::MlpOut],
            Stage::ResidPost => &[Kind::ResidPost],
        }
    }
}

/// What watches and steers a walk.
pub(crate) trait Tap {
    /// Whether a hook is read or edited. What nobody wants need not be computed on its own.
    fn wants(&self, hook: Hook) -> bool;

    /// Whether a hook is edited.
    fn edits(&self, hook: Hook) -> bool;

    /// Intervenes at a hook, then captures it.
    /// # Shapes
    /// Packed: `[rows, ..]`; scores and patterns `[rows, n_heads, length]`.
    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor>;

    /// The rows that join at a stage.
    fn joining(&mut self, _stage: Stage, _layer: usize) -> Option<Rows> {
        None
    }

    /// The base run's values of a hook, every position of every prompt.
    fn base(&self, hook: Hook) -> Result<&Tensor> {
        Err(Error::invalid(format!(
            "there is no base run to take `{hook}` from"
        )))
    }

    /// The rows that go on after attention, if they differ from those that came in; `rows`' segments in the same order.
    fn attended(&mut self, _layer: usize, _rows: &Rows) -> Option<Rows> {
        None
    }

    /// Rotated keys and values of the base run, for positions that a segment does not carry itself.
    fn base_keys(&self, _layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        Ok(None)
    }
}

/// Tensors that share their rows.
pub(super) struct Packed {
    pub rows: Rows,
    pub parts: Vec<Tensor>,
}

impl Packed {
    /// Lets rows join, with what the base run has for them.
    pub fn join(self, tap: &mut dyn Tap, stage: Stage, layer: &Layer<'_>) -> Result<Self> {
        let Some(new) = tap.joining(stage, layer.index) else {
            return Ok(self);
        };
        let kinds = stage.takes(layer.spec.block);
        let mut parts = Vec::with_capacity(kinds.len());
        for (i, &kind) in kinds.iter().enumerate() {
            let joined = crate::run::rows::pick(tap.base(layer.hook(kind))?, &new)?;
            parts.push(match self.parts.get(i) {
                None => joined,
                Some(own) if own.rank() == 3 && own.dim(1)? > joined.dim(1)? => {
                    // Other rows have a key for each query head, after an edit of a reader's input.
                    let times = own.dim(1)? / joined.dim(1)?;
                    Tensor::cat(&[own, &attention::repeat(&joined, times)?], 0)?
                }
                Some(own) => Tensor::cat(&[own, &joined], 0)?,
            });
        }
        let mut rows = self.rows;
        rows.append(new);
        Ok(Packed { rows, parts })
    }

    pub fn take<const N: usize>(self) -> (Rows, [Tensor; N]) {
        (
            self.rows,
            self.parts.try_into().expect("as many parts as were packed"),
        )
    }
}

/// The stream between blocks. Without rows there is no tensor.
pub(crate) struct Stream {
    pub rows: Rows,
    pub x: Option<Tensor>,
}

impl Stream {
    pub fn empty(length: usize) -> Self {
        Stream {
            rows: Rows::new(length),
            x: None,
        }
    }
}

/// The parts of the model that one layer's walk needs.
pub(super) struct Layer<'a> {
    pub model: &'a Model,
    pub spec: &'a ModelSpec,
    pub weights: &'a BlockWeights,
    pub index: usize,
}

impl Layer<'_> {
    pub fn hook(&self, kind: Kind) -> Hook {
        Hook::at(kind, self.index)
    }
}
