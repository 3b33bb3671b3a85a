//! Tokens into the stream, and the stream into logits.

use candle_core::{DType, Tensor};

use super::attention::softcap_slope;
use super::host::{dot, host, is_host, on_host, tensor, to_host};
use super::linear::{Right, product};
use super::matrix::{host_matrix, is_host_matrix};
use super::norm;
use super::rules::SoftcapRule;
use crate::error::Result;
use crate::spec::{ModelSpec, Weights};

/// The token embeddings, after a norm on them and any multiplier.
/// # Shapes
/// `tokens [n]`; gives `[n, d_model]`.
pub fn embed(spec: &ModelSpec, weights: &Weights, tokens: &[u32]) -> Result<Tensor> {
    let ids = Tensor::new(tokens, weights.w_e.device())?;
    let x = weights.w_e.index_select(&ids, 0)?;
    let x = x.to_dtype(weights.dtype())?;
    let x = match &weights.ln_embed {
        Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
        None => x,
    };
    Ok(match spec.embed_scale {
        Some(scale) => (x * f64::from(scale))?,
        None => x,
    })
}

/// The logits of every token, f32.
/// # Shapes
/// `x [n, d_model]`, after the final norm; gives `[n, d_vocab]`.
pub fn unembed(spec: &ModelSpec, weights: &Weights, x: &Tensor) -> Result<Tensor> {
    let logits = times_unembedding(weights, x)?;
    let logits = match &weights.b_u {
        Some(b) => logits.broadcast_add(&b.to_dtype(DType::F32)?)?,
        None => logits,
    };
    let logits = match spec.logit_scale {
        Some(scale) => (logits * f64::from(scale))?,
        None => logits,
    };
    Ok(match spec.final_softcap {
        Some(cap) => ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => logits,
    })
}

/// `x @ w_u^T`, f32, without what the model does to it.
/// # Shapes
/// `x [n, d_model]`; gives `[n, d_vocab]`.
pub fn times_unembedding(weights: &Weights, x: &Tensor) -> Result<Tensor> {
    let w_u = &weights.w_u;
    if !is_host(x) {
        return Ok(x.matmul(&w_u.t()?)?.to_dtype(DType::F32)?);
    }
    let x = x.contiguous()?;
    let (n, d) = x.dims2()?;
    let vocab = w_u.dim(0)?;
    let mut logits = vec![0.0; n * vocab];
    let w_u = host_matrix(w_u)?;
    let sizes = [n, d, vocab];
    product(
        &mut logits,
        &host(&x)?,
        w_u.numbers(),
        sizes,
        Right::OutIn,
        false,
    );
    tensor(logits, (n, vocab))
}

/// The logits of a few tokens, each row its own.
/// # Shapes
/// `x [n, d_model]`, after the final norm; `columns`: for each row the tokens wanted; gives as many values for each row.
pub fn unembed_columns(
    spec: &ModelSpec,
    weights: &Weights,
    x: &Tensor,
    columns: &[&[u32]],
) -> Result<Vec<Vec<f32>>> {
    let bias = weights.b_u.as_ref().map(to_host).transpose()?;
    let finish = |token: u32, product: f32| {
        let logit = product + bias.as_ref().map_or(0.0, |b| b[token as usize]);
        let logit = logit * spec.logit_scale.unwrap_or(1.0);
        spec.final_softcap
            .map_or(logit, |cap| cap * (logit / cap).tanh())
    };
    let d = x.dim(1)?;
    // A token that many rows ask for is fetched once.
    let mut wanted: Vec<u32> = columns.iter().flat_map(|row| row.iter().copied()).collect();
    wanted.sort_unstable();
    wanted.dedup();
    if wanted.is_empty() {
        return Ok(vec![Vec::new(); columns.len()]);
    }
    let rows = weights
        .w_u
        .index_select(&Tensor::new(wanted.as_slice(), weights.w_e.device())?, 0)?;
    let (rows, x) = (to_host(&rows)?, to_host(x)?);
    let value = |row: usize, token: u32| {
        let at = wanted.binary_search(&token).expect("collected above") * d;
        finish(token, dot(&x[row * d..(row + 1) * d], &rows[at..at + d]))
    };
    Ok(columns
        .iter()
        .enumerate()
        .map(|(row, tokens)| tokens.iter().map(|&token| value(row, token)).collect())
        .collect())
}

/// From the gradient at the logits of every token to that at the unembedding's input.
/// # Shapes
/// `dlogits`, `logits [n, d_vocab]`; gives `[n, d_model]`, f32 on the host.
pub fn unembed_backward(
    spec: &ModelSpec,
    weights: &Weights,
    dlogits: &[Vec<f32>],
    logits: &[Vec<f32>],
    rule: SoftcapRule,
) -> Result<Tensor> {
    let (n, vocab) = (dlogits.len(), spec.d_vocab);
    let slopes: Vec<f32> = dlogits
        .iter()
        .zip(logits)
        .flat_map(|(dlogits, logits)| {
            let each = dlogits.iter().zip(logits);
            each.map(|(d, &logit)| d * logit_slope(spec, logit, rule))
        })
        .collect();
    let w_u = &weights.w_u;
    if !is_host_matrix(w_u) {
        let slopes = Tensor::from_vec(slopes, (n, vocab), w_u.device())?;
        return on_host(&slopes.matmul(&w_u.to_dtype(DType::F32)?)?);
    }
    let d = w_u.dim(1)?;
    let mut dx = vec![0.0; n * d];
    let sizes = [n, vocab, d];
    let w_u = host_matrix(w_u)?;
    product(&mut dx, &slopes, w_u.numbers(), sizes, Right::InOut, false);
    tensor(dx, (n, d))
}

/// From the gradient at the logits of a few tokens, as [`unembed_columns`] gives them, to that at the unembedding's input.
/// # Shapes
/// `columns`, `dlogits`, `logits`: one list for each row; gives `[rows, d_model]`, f32 on the host.
pub fn unembed_columns_backward(
    spec: &ModelSpec,
    weights: &Weights,
    columns: &[&[u32]],
    dlogits: &[Vec<f32>],
    logits: &[Vec<f32>],
    rule: SoftcapRule,
) -> Result<Tensor> {
    let d = spec.d_model;
    let mut dx = vec![0.0; columns.len() * d];
    for (row, dx) in dx.chunks_exact_mut(d).enumerate() {
        if columns[row].is_empty() {
            continue;
        }
        let ids = Tensor::new(columns[row], weights.w_e.device())?;
        let rows = to_host(&weights.w_u.index_select(&ids, 0)?)?;
        for (i, w_u) in rows.chunks_exact(d).enumerate() {
            let slope = dlogits[row][i] * logit_slope(spec, logits[row][i], rule);
            for (dx, w) in dx.iter_mut().zip(w_u) {
                *dx += slope * w;
            }
        }
    }
    tensor(dx, (columns.len(), d))
}

/// How much a logit moves with the product that it is made of.
fn logit_slope(spec: &ModelSpec, logit: f32, rule: SoftcapRule) -> f32 {
    let capped = spec.final_softcap.map_or(1.0, |cap| {
        // Products above nine times the cap all have the logit of the largest that f32 can tell from it.
        let limit = 1.0 - f32::EPSILON / 2.0;
        softcap_slope((logit / cap).clamp(-limit, limit).atanh(), rule)
    });
    capped * spec.logit_scale.unwrap_or(1.0)
}
