//! The slots of the canonical weights: which a spec asks for, and in what shape. One list, so that loading, checking and random
//! weights cannot differ in it.

use candle_core::{DType, Tensor};

use super::transformer::{Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm};
use super::weights::{NormWeights, Weights};

/// One tensor of [`Weights`]; those from [`Slot::Ln1`] on exist once per block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    Embed,
    LnEmbed,
    LnEmbedBias,
    Positions,
    LnFinal,
    LnFinalBias,
    Unembed,
    UnembedBias,
    Segments,
    Head,
    HeadBias,
    LnHead,
    LnHeadBias,
    Ln1,
    Ln1Bias,
    Qkv,
    QkvBias,
    QNorm,
    QNormBias,
    KNorm,
    KNormBias,
    O,
    OBias,
    Ln1Post,
    Ln1PostBias,
    Ln2,
    Ln2Bias,
    MlpIn,
    MlpInBias,
    MlpOut,
    MlpOutBias,
    Ln2Post,
    Ln2PostBias,
}

/// Whether a spec asks for a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Required,
    /// Biases: the spec leaves them open, the checkpoint decides.
    Optional,
    Absent,
}

impl Slot {
    /// The slots that a model has once.
    pub const MODEL: [Slot; 13] = [
        Slot::Embed,
        Slot::LnEmbed,
        Slot::LnEmbedBias,
        Slot::Positions,
        Slot::LnFinal,
        Slot::LnFinalBias,
        Slot::Unembed,
        Slot::UnembedBias,
        Slot::Segments,
        Slot::Head,
        Slot::HeadBias,
        Slot::LnHead,
        Slot::LnHeadBias,
    ];

    /// The slots of each block.
    pub const BLOCK: [Slot; 20] = [
        Slot::Ln1,
        Slot::Ln1Bias,
        Slot::Qkv,
        Slot::QkvBias,
        Slot::QNorm,
        Slot::QNormBias,
        Slot::KNorm,
        Slot::KNormBias,
        Slot::O,
        Slot::OBias,
        Slot::Ln1Post,
        Slot::Ln1PostBias,
        Slot::Ln2,
        Slot::Ln2Bias,
        Slot::MlpIn,
        Slot::MlpInBias,
        Slot::MlpOut,
        Slot::MlpOutBias,
        Slot::Ln2Post,
        Slot::Ln2PostBias,
    ];

    /// Whether it is a factor of large products, which may be kept in 16 bits beside activations in f32.
    pub fn is_matrix(self) -> bool {
        matches!(
            self,
            Slot::Embed
                | Slot::Unembed
                | Slot::Head
                | Slot::Qkv
                | Slot::O
                | Slot::MlpIn
                | Slot::MlpOut
        )
    }

    /// The canonical shape under a spec: `[in, out]` for matrices, `[n]` for vectors.
    pub fn shape(self, spec: &ModelSpec) -> Vec<usize> {
        let heads = spec.n_heads * spec.d_head;
        let kv_heads = spec.n_kv_heads * spec.d_head;
        let mlp_in = match spec.mlp {
            Mlp::Gated => 2 * spec.d_mlp,
            Mlp::None | Mlp::Plain => spec.d_mlp,
        };
        let by_head = spec.qk_norm.has_weights_by_head();
        match self {
            Slot::Embed | Slot::Unembed => vec![spec.d_vocab, spec.d_model],
            Slot::Positions => vec![spec.n_ctx, spec.d_model],
            Slot::UnembedBias => vec![spec.d_vocab],
            Slot::Segments => {
                let rows = spec.encoder.and_then(|encoder| encoder.n_segments);
                vec![rows.unwrap_or(0), spec.d_model]
            }
            Slot::Head => vec![spec.d_model, spec.d_model],
            Slot::Qkv => vec![spec.d_model, heads + 2 * kv_heads],
            Slot::QkvBias => vec![heads + 2 * kv_heads],
            Slot::QNorm | Slot::QNormBias => vec![if by_head { heads } else { spec.d_head }],
            Slot::KNorm | Slot::KNormBias => vec![if by_head { kv_heads } else { spec.d_head }],
            Slot::O => vec![heads, spec.d_model],
            Slot::MlpIn => vec![spec.d_model, mlp_in],
            Slot::MlpInBias => vec![mlp_in],
            Slot::MlpOut => vec![spec.d_mlp, spec.d_model],
            Slot::LnEmbed
            | Slot::LnEmbedBias
            | Slot::LnFinal
            | Slot::LnFinalBias
            | Slot::HeadBias
            | Slot::LnHead
            | Slot::LnHeadBias
            | Slot::Ln1
            | Slot::Ln1Bias
            | Slot::OBias
            | Slot::Ln1Post
            | Slot::Ln1PostBias
            | Slot::Ln2
            | Slot::Ln2Bias
            | Slot::MlpOutBias
            | Slot::Ln2Post
            | Slot::Ln2PostBias => vec![spec.d_model],
        }
    }

    /// Whether a spec asks for this slot in a layer, allows it, or has no place for it; `layer` is ignored by the slots that a model has
    /// once.
    pub fn need(self, spec: &ModelSpec, layer: usize) -> Need {
        let required = |wanted: bool| if wanted { Need::Required } else { Need::Absent };
        let optional = |allowed: bool| {
            if allowed {
                Need::Optional
            } else {
                Need::Absent
            }
        };
        let layer_norm = spec.norm == NormKind::Layer;
        let has_mlp = spec.mlp != Mlp::None;
        let shares_norm = spec.block == Block::Parallel { shared_norm: true };
        let has_ln2 = has_mlp && spec.has_pre_norm() && !shares_norm;
        match self {
            Slot::Embed | Slot::Unembed | Slot::Qkv | Slot::O => Need::Required,
            Slot::LnEmbed => required(spec.embed_norm),
            Slot::LnEmbedBias => optional(layer_norm && spec.embed_norm),
            Slot::Positions => required(spec.position == Position::Learned),
            Slot::LnFinal => required(spec.norm_placement != NormPlacement::None),
            Slot::LnFinalBias => optional(layer_norm && spec.norm_placement != NormPlacement::None),
            Slot::UnembedBias | Slot::QkvBias | Slot::OBias => Need::Optional,
            Slot::Segments => required(
                spec.encoder
                    .is_some_and(|encoder| encoder.n_segments.is_some()),
            ),
            Slot::Head | Slot::LnHead => required(spec.encoder.is_some()),
            Slot::HeadBias | Slot::LnHeadBias => optional(spec.encoder.is_some()),
            Slot::Ln1 => required(spec.has_ln1(layer)),
            Slot::Ln1Bias => optional(layer_norm && spec.has_ln1(layer)),
            Slot::QNorm | Slot::KNorm => required(spec.qk_norm != QkNorm::None),
            Slot::QNormBias | Slot::KNormBias => optional(spec.qk_norm.kind() == NormKind::Layer),
            Slot::Ln1Post => required(spec.has_post_norm()),
            Slot::Ln1PostBias => optional(layer_norm && spec.has_post_norm()),
            Slot::Ln2 => required(has_ln2),
            Slot::Ln2Bias => optional(layer_norm && has_ln2),
            Slot::MlpIn | Slot::MlpOut => required(has_mlp),
            Slot::MlpInBias | Slot::MlpOutBias => optional(has_mlp),
            Slot::Ln2Post => required(has_mlp && spec.has_post_norm()),
            Slot::Ln2PostBias => optional(layer_norm && has_mlp && spec.has_post_norm()),
        }
    }

    /// The tensor in this slot; `layer` is ignored by the slots that a model has once.
    pub fn get(self, weights: &Weights, layer: usize) -> Option<&Tensor> {
        fn scale(norm: &Option<NormWeights>) -> Option<&Tensor> {
            norm.as_ref().map(|norm| &norm.w)
        }
        fn shift(norm: &Option<NormWeights>) -> Option<&Tensor> {
            norm.as_ref().and_then(|norm| norm.b.as_ref())
        }
        let block = weights.blocks.get(layer);
        let mlp = block.and_then(|block| block.mlp.as_ref());
        let encoder = weights.encoder.as_ref();
        match self {
            Slot::Embed => Some(&weights.w_e),
            Slot::LnEmbed => scale(&weights.ln_embed),
            Slot::LnEmbedBias => shift(&weights.ln_embed),
            Slot::Positions => weights.w_pos.as_ref(),
            Slot::LnFinal => scale(&weights.ln_final),
            Slot::LnFinalBias => shift(&weights.ln_final),
            Slot::Unembed => Some(&weights.w_u),
            Slot::UnembedBias => weights.b_u.as_ref(),
            Slot::Segments => encoder?.segments.as_ref(),
            Slot::Head => Some(&encoder?.w_head),
            Slot::HeadBias => encoder?.b_head.as_ref(),
            Slot::LnHead => Some(&encoder?.ln_head.w),
            Slot::LnHeadBias => encoder?.ln_head.b.as_ref(),
            Slot::Ln1 => scale(&block?.ln1),
            Slot::Ln1Bias => shift(&block?.ln1),
            Slot::Qkv => Some(&block?.w_qkv),
            Slot::QkvBias => block?.b_qkv.as_ref(),
            Slot::QNorm => scale(&block?.q_norm),
            Slot::QNormBias => shift(&block?.q_norm),
            Slot::KNorm => scale(&block?.k_norm),
            Slot::KNormBias => shift(&block?.k_norm),
            Slot::O => Some(&block?.w_o),
            Slot::OBias => block?.b_o.as_ref(),
            Slot::Ln1Post => scale(&block?.ln1_post),
            Slot::Ln1PostBias => shift(&block?.ln1_post),
            Slot::Ln2 => scale(&block?.ln2),
            Slot::Ln2Bias => shift(&block?.ln2),
            Slot::MlpIn => Some(&mlp?.w_in),
            Slot::MlpInBias => mlp?.b_in.as_ref(),
            Slot::MlpOut => Some(&mlp?.w_out),
            Slot::MlpOutBias => mlp?.b_out.as_ref(),
            Slot::Ln2Post => scale(&block?.ln2_post),
            Slot::Ln2PostBias => shift(&block?.ln2_post),
        }
    }
}

impl Weights {
    /// The number format of activations: that of norms and biases. Matrices of a model on the CPU may be in 16 bits beside f32.
    pub fn dtype(&self) -> DType {
        let once = Slot::MODEL.into_iter().chain(Slot::BLOCK);
        let mut others = once.filter(|slot| !slot.is_matrix());
        let own = self.w_e.dtype();
        match others.find_map(|slot| slot.get(self, 0)) {
            Some(other) => other.dtype(),
            None if self.w_e.device().is_cpu() && own.size_in_bytes() == 2 => DType::F32,
            None => own,
        }
    }

    /// The number format of matrices, where it is another than that of activations.
    pub fn matrix_dtype(&self) -> Option<DType> {
        let matrices = Slot::MODEL.into_iter().chain(Slot::BLOCK);
        let mut matrices = matrices.filter(|slot| slot.is_matrix());
        let other =
            |slot: Slot| Some(slot.get(self, 0)?.dtype()).filter(|own| *own != self.dtype());
        matrices.find_map(other)
    }
}
