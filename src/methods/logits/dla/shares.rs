//! What the parts of one layer contribute, as a reader of the stream reads it.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::logits::readout::{Ends, rowwise_dot};
use crate::model::Model;

/// Whether attention writes something that is of no head.
pub(in crate::methods::logits) fn has_attention_bias(model: &Model, layer: usize) -> bool {
    let block = &model.weights.blocks[layer];
    let of_norm = block.ln1_post.as_ref().and_then(|norm| norm.b.as_ref());
    block.b_o.is_some() || of_norm.is_some()
}

/// Whether the MLP writes something that is of no neuron.
pub(super) fn has_mlp_bias(model: &Model, layer: usize) -> bool {
    let block = &model.weights.blocks[layer];
    let of_norm = block.ln2_post.as_ref().and_then(|norm| norm.b.as_ref());
    let mlp = block.mlp.as_ref();
    of_norm.is_some() || mlp.is_some_and(|mlp| mlp.b_out.is_some())
}

/// What each head of a layer contributes: `z_h . (W_O[h] reader)`.
/// # Shapes
/// `reader [batch, d_model]`; gives `[n_heads][batch]`.
pub(super) fn heads(ends: &mut Ends<'_>, reader: &Tensor, layer: usize) -> Result<Vec<Vec<f64>>> {
    let per_head = head_readers(ends, reader, layer)?; // [batch, n_heads, d_head]
    let z = ends.at_end(Hook::at(Kind::Z, layer))?;
    let products = (z * per_head)?.to_dtype(DType::F64)?.sum(2)?; // [batch, n_heads]
    Ok(products.t()?.to_vec2()?)
}

/// What a reader of the stream reads from each head's `z`: `[batch, n_heads, d_head]`.
pub(crate) fn head_readers(ends: &mut Ends<'_>, reader: &Tensor, layer: usize) -> Result<Tensor> {
    let spec = &ends.model.spec;
    let (before, _) = ends.before_post_norm(reader, layer, Ln::OnePost)?;
    let w_o = &ends.model.weights.blocks[layer].w_o;
    let folded = before.matmul(&w_o.to_dtype(DType::F32)?.t()?)?; // [batch, n_heads * d_head]
    Ok(folded.reshape((ends.batch, spec.n_heads, spec.d_head))?)
}

/// What the output bias of attention contributes, and the bias of the norm after it, where there are any.
pub(in crate::methods::logits) fn attention_bias(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
) -> Result<Vec<f64>> {
    let bias = ends.model.weights.blocks[layer].b_o.clone();
    branch_bias(ends, reader, layer, Ln::OnePost, bias.as_ref())
}

fn branch_bias(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
    ln: Ln,
    bias: Option<&Tensor>,
) -> Result<Vec<f64>> {
    let (before, of_norm) = ends.before_post_norm(reader, layer, ln)?;
    let mut sums = of_norm.unwrap_or_else(|| vec![0.0; ends.batch]);
    if let Some(b) = bias {
        let b = b.to_dtype(DType::F32)?.broadcast_as(before.shape())?;
        let products = rowwise_dot(&b, &before)?;
        sums.iter_mut().zip(products).for_each(|(sum, p)| *sum += p);
    }
    Ok(sums)
}

/// What each head contributes by what it reads at each position: `pattern[end, k] v_k . (W_O[h] reader)`.
/// # Shapes
/// Gives `[n_heads][key position][batch]`.
pub(in crate::methods::logits) fn sources(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
) -> Result<Vec<Vec<Vec<f64>>>> {
    let spec = &ends.model.spec;
    let (batch, length, groups) = (ends.batch, ends.length, spec.n_kv_heads);
    let per_head = head_readers(ends, reader, layer)?
        .reshape((batch, groups, spec.group(), spec.d_head))?
        .transpose(2, 3)?
        .contiguous()?; // [batch, n_kv_heads, d_head, group]
    let v = ends
        .cache
        .get(Hook::at(Kind::V, layer))?
        .to_dtype(DType::F32)?;
    let v = v.transpose(1, 2)?.contiguous()?; // [batch, n_kv_heads, key, d_head]
    let read = v.matmul(&per_head)?.transpose(2, 3)?.contiguous()?; // [batch, n_kv_heads, group, key]
    let read = read.reshape((batch, spec.n_heads, length))?;
    let pattern = ends.at_end(Hook::at(Kind::Pattern, layer))?; // [batch, n_heads, key]
    let products = (read * pattern)?.to_dtype(DType::F64)?;
    Ok(products.permute((1, 2, 0))?.to_vec3()?)
}

/// What each neuron contributes, `post_n (W_out[n] . reader)`, and what the output bias does.
/// # Shapes
/// Gives `[d_mlp][batch]` and `[batch]`.
pub(super) fn neurons(
    ends: &mut Ends<'_>,
    reader: &Tensor,
    layer: usize,
) -> Result<(Vec<Vec<f64>>, Vec<f64>)> {
    let mlp = ends.model.weights.blocks[layer].mlp.as_ref();
    let mlp = mlp.expect("checked before anything ran");
    let (before, _) = ends.before_post_norm(reader, layer, Ln::TwoPost)?;
    let folded = before.matmul(&mlp.w_out.to_dtype(DType::F32)?.t()?)?; // [batch, d_mlp]
    let post = ends.at_end(Hook::at(Kind::MlpPost, layer))?;
    let products = (post * folded)?.to_dtype(DType::F64)?;
    let bias = branch_bias(ends, reader, layer, Ln::TwoPost, mlp.b_out.as_ref())?;
    Ok((products.t()?.to_vec2()?, bias))
}
