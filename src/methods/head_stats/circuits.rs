//! What a head's weights alone say, token by token: for which tokens it writes when it attends to one (OV), and which tokens a
//! query at one looks for (QK).

use candle_core::{DType, Tensor};

use super::copying::readers;
use crate::error::Result;
use crate::methods::logits::distinct_texts;
use crate::methods::method::Subject;
use crate::model::Model;
use crate::nn::{clip, embed::embed, linear, norm};
use crate::scores::Cell;
use crate::spec::NormWeights;

/// Rows of the embedding read at once: a vocabulary of keys is not made in one piece.
const ROWS: usize = 4096;

/// The strongest entries of a head's OV and QK circuits from each of some tokens.
pub(super) fn circuits(
    Subject { model, task }: Subject<'_>,
    [layer, head]: [usize; 2],
    from: &[u32],
    tokens: usize,
) -> Result<Vec<(Cell, f64)>> {
    let spec = &model.spec;
    let (d_head, group) = (spec.d_head, spec.group());
    let [q, _, v] = read(model, layer, from)?;
    let own = |t: &Tensor, head: usize| -> Result<Tensor> {
        Ok(t.narrow(1, head, 1)?.squeeze(1)?.contiguous()?) // [token, d_head]
    };
    let w_o = &model.weights.blocks[layer].w_o;
    let w_o = w_o.narrow(0, head * d_head, d_head)?.to_dtype(DType::F32)?;
    let mut out = own(&v, head / group)?.matmul(&w_o)?; // [token, d_model]
    if let Some(norm) = &model.weights.blocks[layer].ln1_post {
        out = norm::forward(&out.to_dtype(model.dtype)?, norm, spec.norm, spec.norm_eps)?;
        out = out.to_dtype(DType::F32)?;
    }
    let q = own(&q, head)?;
    let (mut ov, mut qk) = (vec![Vec::new(); from.len()], vec![Vec::new(); from.len()]);
    let vocabulary: Vec<u32> = (0..spec.d_vocab as u32).collect();
    for ids in vocabulary.chunks(ROWS) {
        let logits: Vec<Vec<f32>> = out.matmul(&readers(model, ids)?.t()?)?.to_vec2()?;
        let [_, k, _] = read(model, layer, ids)?;
        let scores = q.matmul(&own(&k, head / group)?.t()?)?;
        let scores = (scores * f64::from(spec.attn_scale[layer]))?;
        let scores: Vec<Vec<f32>> = scores.to_vec2()?;
        for (all, part) in ov.iter_mut().zip(logits).chain(qk.iter_mut().zip(scores)) {
            all.extend(part);
        }
    }
    let sources = distinct_texts(task, from);
    let mut rows = Vec::new();
    for (component, measure, all, is_centred) in [
        ("attn.ov", "ov_logit", ov, true),
        ("attn.qk", "qk_score", qk, false),
    ] {
        for (source, values) in sources.iter().zip(all) {
            let mean = values.iter().sum::<f32>() / values.len() as f32;
            let shift = if is_centred { mean } else { 0.0 };
            let mut order: Vec<u32> = vocabulary.clone();
            order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
            order.truncate(tokens);
            for (&token, name) in order.iter().zip(distinct_texts(task, &order)) {
                let cell = Cell {
                    head: Some(head as u32),
                    src: Some(source.clone()),
                    dst: Some(name),
                    measure: Some(measure.into()),
                    ..Cell::in_layer(component, layer)
                };
                rows.push((cell, f64::from(values[token as usize] - shift)));
            }
        }
    }
    Ok(rows)
}

/// Queries, keys and values of tokens' embeddings in some layer, without positions, f32 `[token, heads, d_head]`.
fn read(model: &Model, layer: usize, tokens: &[u32]) -> Result<[Tensor; 3]> {
    let spec = &model.spec;
    let block = &model.weights.blocks[layer];
    let x = embed(&model.spec, &model.weights, tokens)?;
    let x = match &block.ln1 {
        Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
        None => x,
    };
    let qkv = linear::forward(&x, &block.w_qkv, block.b_qkv.as_ref())?;
    let qkv = clip::forward(qkv, spec.qkv_clip)?;
    let counts = [spec.n_heads, spec.n_kv_heads, spec.n_kv_heads];
    let norms: [Option<&NormWeights>; 3] = [block.q_norm.as_ref(), block.k_norm.as_ref(), None];
    let mut start = 0;
    let mut out = Vec::with_capacity(3);
    for (count, w) in counts.into_iter().zip(norms) {
        let width = count * spec.d_head;
        let t = qkv.narrow(1, start, width)?.contiguous()?;
        let t = t.reshape((tokens.len(), count, spec.d_head))?;
        start += width;
        let t = match w {
            None => t,
            Some(w) => norm::heads(&t, w, spec.qk_norm, spec.norm_eps)?,
        };
        out.push(t.to_dtype(DType::F32)?);
    }
    Ok(out.try_into().expect("three letters"))
}
