//! Weight processing: functions from model to model that rewrite weights and leave every logit difference where it was.
//!
//! Loading never does any of this, so that logits equal the reference. Some analyses of weights want it: with norms folded in,
//! a reading matrix says by itself what it reads; with writing matrices centred, nothing is written that no norm lets through.
//! The usual order is [`fold_ln`], [`center_writing`], [`center_unembed`], [`fold_value_biases`]. Each is recorded in
//! [`Origin::processing`](super::Origin::processing), and so in the provenance of every result.
//!
//! Left out on purpose: the factored matrices of TransformerLens (`refactor_factored_attn_matrices`), which turn each head's
//! own basis and so change what single entries of `z` mean.

use candle_core::{D, DType, Tensor};

use super::spec::{Block, NormKind, NormPlacement};
use super::{Model, ModelSpec};
use crate::error::{Error, Result};
use crate::spec::{NormWeights, Weights};

/// Moves weight and bias of every norm that stands before a matrix into that matrix: the norms before attention, before the
/// MLP and before the unembedding. Their weights become 1 and their biases go. Under LayerNorm, whose output has mean 0
/// before its weight, each reading matrix is then centred over `d_model`. The logits themselves do not change.
///
/// Norms on the output of a branch (Gemma 2, OLMo 2) stand before no matrix and stay as they are.
/// # Errors
/// Those of tensor arithmetic.
pub fn fold_ln(model: &Model) -> Result<Model> {
    model.spec.check_decoder("folded norms")?;
    let spec = &model.spec;
    let centred = spec.norm == NormKind::Layer;
    // What is computed is not rounded to the 16 bits that a matrix came in.
    let dtype = model.dtype;
    let mut weights = model.weights.clone();
    for block in &mut weights.blocks {
        let shares_norm = spec.block == (Block::Parallel { shared_norm: true });
        let before_mlp = if shares_norm { &block.ln1 } else { &block.ln2 };
        if let (Some(mlp), Some(norm)) = (&mut block.mlp, before_mlp) {
            (mlp.w_in, mlp.b_in) = folded(&mlp.w_in, mlp.b_in.as_ref(), norm, centred, dtype)?;
        }
        if let Some(norm) = &block.ln1 {
            let b_qkv = block.b_qkv.as_ref();
            (block.w_qkv, block.b_qkv) = folded(&block.w_qkv, b_qkv, norm, centred, dtype)?;
        }
        for norm in [&mut block.ln1, &mut block.ln2].into_iter().flatten() {
            *norm = plain(norm)?;
        }
    }
    if let Some(norm) = &mut weights.ln_final {
        // The unembedding keeps a row for each token.
        let columns = weights.w_u.t()?.contiguous()?; // [d_model, d_vocab]
        let (w_u, b_u) = folded(&columns, weights.b_u.as_ref(), norm, centred, dtype)?;
        weights.w_u = w_u.t()?.contiguous()?; // [d_vocab, d_model]
        weights.b_u = b_u;
        *norm = plain(norm)?;
    }
    processed(model, untied(spec), weights, "fold_ln")
}

/// Takes the mean over `d_model` out of everything that is written to the stream: embeddings, the outputs of heads and MLPs,
/// and their biases. Every reader is a LayerNorm, which takes that mean out itself, so logits do not change; the streams do,
/// by an amount that nothing reads.
/// # Errors
/// [`Error::Unprocessable`] where a reader would see the mean: under RMSNorm, and in models without a norm before each
/// branch; and where a norm stands between a matrix and the stream, which then decides what is written.
pub fn center_writing(model: &Model) -> Result<Model> {
    let refuse = |reason: &str| {
        Err(Error::Unprocessable {
            processing: "center_writing",
            reason: reason.into(),
        })
    };
    match (model.spec.norm, model.spec.norm_placement) {
        (_, NormPlacement::None) => return refuse("its stream is read without any norm"),
        (NormKind::Rms, _) => {
            return refuse("its norms are RMSNorm, which read the mean of the stream");
        }
        (NormKind::Layer, NormPlacement::Stream) => {
            return refuse("the norms on its stream write to it themselves");
        }
        (NormKind::Layer, NormPlacement::Post | NormPlacement::Sandwich) => {
            return refuse("norms on the outputs of its branches write to the stream themselves");
        }
        (NormKind::Layer, NormPlacement::Pre) => {}
    }
    if model.spec.embed_norm {
        return refuse("a norm on its embeddings writes to the stream itself");
    }
    if !model.spec.has_ln1(0) {
        return refuse("its first attention reads the stream without a norm");
    }
    let mut weights = model.weights.clone();
    let center = |t: &mut Tensor| -> Result<()> {
        *t = centred_over_last(t, model.dtype)?;
        Ok(())
    };
    center(&mut weights.w_e)?;
    weights.w_pos.iter_mut().try_for_each(center)?;
    for block in &mut weights.blocks {
        center(&mut block.w_o)?;
        block.b_o.iter_mut().try_for_each(center)?;
        if let Some(mlp) = &mut block.mlp {
            center(&mut mlp.w_out)?;
            mlp.b_out.iter_mut().try_for_each(center)?;
        }
    }
    processed(model, untied(&model.spec), weights, "center_writing")
}

/// Takes the mean over the vocabulary out of the unembedding and its bias. All logits of a position move by one common
/// amount: logit differences, probabilities and ranks stay, single logits do not.
/// # Errors
/// [`Error::Unprocessable`] under a soft-cap on the logits, whose tanh turns a common amount into different ones.
pub fn center_unembed(model: &Model) -> Result<Model> {
    if let Some(cap) = model.spec.final_softcap {
        return Err(Error::Unprocessable {
            processing: "center_unembed",
            reason: format!(
                "its logits are soft-capped at {cap}, so a shift common to all of them changes their differences"
            ),
        });
    }
    let mut weights = model.weights.clone();
    let w_u = wide(&weights.w_u)?;
    weights.w_u = w_u
        .broadcast_sub(&w_u.mean_keepdim(0)?)?
        .to_dtype(model.dtype)?;
    if let Some(b) = &weights.b_u {
        weights.b_u = Some(centred_over_last(b, model.dtype)?);
    }
    processed(model, untied(&model.spec), weights, "center_unembed")
}

/// Moves the value biases into the output bias: attention weights sum to 1, so every `z` holds `b_V` whole, and
/// `b_O + b_V W_O` says the same. Logits do not change, but zero ablation of `z` does, because `z` no longer holds the bias.
/// # Errors
/// [`Error::Unprocessable`] where values have biases and are cut off with them; those of tensor arithmetic.
pub fn fold_value_biases(model: &Model) -> Result<Model> {
    let spec = &model.spec;
    let has_biases = model
        .weights
        .blocks
        .iter()
        .any(|block| block.b_qkv.is_some());
    if let Some(most) = spec.qkv_clip.filter(|_| has_biases) {
        return Err(Error::Unprocessable {
            processing: "fold_value_biases",
            reason: format!("its values are cut off at {most}, their biases with them"),
        });
    }
    let mut weights = model.weights.clone();
    for block in &mut weights.blocks {
        let Some(b_qkv) = &block.b_qkv else { continue };
        let (queries_keys, values) = (
            (spec.n_heads + spec.n_kv_heads) * spec.d_head,
            spec.n_kv_heads * spec.d_head,
        );
        let b = wide(b_qkv)?;
        let b_v = b.narrow(0, queries_keys, values)?;
        let each = b_v
            .reshape((spec.n_kv_heads, 1, spec.d_head))?
            .broadcast_as((spec.n_kv_heads, spec.group(), spec.d_head))?
            .reshape((1, spec.n_heads * spec.d_head))?; // a row, for every query head its value bias
        let mut b_o = each.matmul(&wide(&block.w_o)?)?.squeeze(0)?; // [d_model]
        if let Some(b) = &block.b_o {
            b_o = (b_o + wide(b)?)?;
        }
        let kept = b.narrow(0, 0, queries_keys)?;
        block.b_o = Some(b_o.to_dtype(model.dtype)?);
        block.b_qkv = Some(Tensor::cat(&[kept, b_v.zeros_like()?], 0)?.to_dtype(model.dtype)?);
    }
    processed(model, spec.clone(), weights, "fold_value_biases")
}

/// A reading matrix `[d_model, out]` and its bias with a norm's weight and bias inside.
fn folded(
    w: &Tensor,
    b: Option<&Tensor>,
    norm: &NormWeights,
    centred: bool,
    dtype: DType,
) -> Result<(Tensor, Option<Tensor>)> {
    let w = wide(w)?;
    let shift = match &norm.b {
        None => None,
        Some(shift) => Some(wide(shift)?.unsqueeze(0)?.matmul(&w)?.squeeze(0)?), // [out]
    };
    let b = match (b, shift) {
        (None, None) => None,
        (Some(b), None) => Some(wide(b)?),
        (None, Some(shift)) => Some(shift),
        (Some(b), Some(shift)) => Some((wide(b)? + shift)?),
    };
    let mut w = w.broadcast_mul(&wide(&norm.w)?.unsqueeze(1)?)?;
    if centred {
        w = w.broadcast_sub(&w.mean_keepdim(0)?)?;
    }
    let b = b.map(|b| b.to_dtype(dtype)).transpose()?;
    Ok((w.to_dtype(dtype)?, b))
}

/// A norm that only normalises.
fn plain(norm: &NormWeights) -> Result<NormWeights> {
    Ok(NormWeights {
        w: norm.w.ones_like()?,
        b: None,
    })
}

fn centred_over_last(t: &Tensor, dtype: DType) -> Result<Tensor> {
    let values = wide(t)?;
    let centred = values.broadcast_sub(&values.mean_keepdim(D::Minus1)?)?;
    Ok(centred.to_dtype(dtype)?)
}

/// Sums of a thousand products are taken in f32, whatever the weights are kept in.
fn wide(t: &Tensor) -> Result<Tensor> {
    Ok(t.to_dtype(DType::F32)?)
}

/// The spec of a model whose unembedding has become a matrix of its own.
fn untied(spec: &ModelSpec) -> ModelSpec {
    ModelSpec {
        tied: false,
        ..spec.clone()
    }
}

fn processed(model: &Model, spec: ModelSpec, weights: Weights, name: &str) -> Result<Model> {
    let mut origin = model.origin.clone();
    origin.processing.push(name.into());
    Model::new(spec, weights, origin)
}
