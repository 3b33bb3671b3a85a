//! Whether what a head writes at a source raises the source's own token above others.

use candle_core::{D, DType, Tensor};

use crate::error::Result;
use crate::model::{Model, ModelSpec};
use crate::spec::{NormKind, NormPlacement};

/// What is written about some tokens from some positions, and which of the tokens stands at each.
pub(super) struct Sources<'a> {
    pub positions: Vec<u32>,
    pub tokens: &'a [u32],
    pub own: Vec<usize>,
}

/// For each head of a layer and each source, how far up the source's own token stands in what the head writes there: -1 to 1.
/// # Shapes
/// `v [pos, n_kv_heads, d_head]`; gives `[head][source]`.
pub(super) fn copying(
    model: &Model,
    layer: usize,
    v: &Tensor,
    sources: &Sources<'_>,
) -> Result<Vec<Vec<f64>>> {
    let spec = &model.spec;
    let weights = &model.weights.blocks[layer];
    let mut readers = readers(model, sources.tokens)?;
    if let Some(norm) = &weights.ln1_post {
        // Its scale is positive and common to all tokens, so it changes no order.
        let scaled = readers.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?;
        readers = centred(&scaled, spec)?;
    }
    let w_o = weights.w_o.to_dtype(DType::F32)?;
    let folded = w_o.matmul(&readers.t()?)?; // [n_heads * d_head, token]
    let folded = folded.reshape((spec.n_heads, spec.d_head, sources.tokens.len()))?;
    let positions = Tensor::new(sources.positions.as_slice(), &model.device)?;
    let v = v
        .to_dtype(DType::F32)?
        .index_select(&positions, 0)?
        .transpose(0, 1)?;
    let (n, kv) = (sources.positions.len(), spec.n_kv_heads);
    let v = v
        .unsqueeze(1)?
        .broadcast_as((kv, spec.group(), n, spec.d_head))?;
    let v = v.reshape((spec.n_heads, n, spec.d_head))?;
    let logits = v.contiguous()?.matmul(&folded)?; // [head, source, token]
    let logits = logits.broadcast_sub(&logits.mean_keepdim(1)?)?;
    let logits: Vec<Vec<Vec<f32>>> = logits.to_vec3()?;
    let of_head = |head: &Vec<Vec<f32>>| {
        let rows = head.iter().zip(&sources.own);
        rows.map(|(row, &own)| order_of(row, own)).collect()
    };
    Ok(logits.iter().map(of_head).collect())
}

/// How far up one entry stands: 1 above all others, -1 below all.
fn order_of(logits: &[f32], own: usize) -> f64 {
    let below = logits.iter().filter(|&&logit| logit < logits[own]).count() as f64;
    let above = logits.iter().filter(|&&logit| logit > logits[own]).count() as f64;
    (below - above) / (logits.len() - 1) as f64
}

/// Directions that the final norm and the unembedding read tokens by, without the norm's scale: `[token, d_model]`.
pub(super) fn readers(model: &Model, tokens: &[u32]) -> Result<Tensor> {
    let ids = Tensor::new(tokens, &model.device)?;
    let u = model
        .weights
        .w_u
        .index_select(&ids, 0)?
        .to_dtype(DType::F32)?;
    let u = match &model.weights.ln_final {
        Some(norm) => u.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?,
        None => u,
    };
    centred(&u, &model.spec)
}

fn centred(t: &Tensor, spec: &ModelSpec) -> Result<Tensor> {
    let is_centred = spec.norm == NormKind::Layer && spec.norm_placement != NormPlacement::None;
    if is_centred {
        Ok(t.broadcast_sub(&t.mean_keepdim(D::Minus1)?)?)
    } else {
        Ok(t.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_is_the_order_of_the_own_token() {
        assert_eq!(order_of(&[3.0, 2.0, 1.0], 0), 1.0);
        assert_eq!(order_of(&[3.0, 2.0, 1.0], 1), 0.0);
        assert_eq!(order_of(&[3.0, 2.0, 1.0], 2), -1.0);
        assert_eq!(order_of(&[2.0, 2.0, 2.0], 1), 0.0);
    }
}
