//! Tokens into the stream, and the stream into logits.

use candle_core::{DType, Tensor};

use super::host::{dot, host, is_host, room, simd, tensor, to_host};
use super::linear::{Right, product};
use crate::error::Result;
use crate::model::Model;

/// The token embeddings, after any multiplier.
/// # Shapes
/// `tokens [n]`; gives `[n, d_model]`.
pub fn embed(model: &Model, tokens: &[u32]) -> Result<Tensor> {
    let ids = Tensor::new(tokens, &model.device)?;
    let x = model.weights.w_e.index_select(&ids, 0)?;
    Ok(match model.spec.embed_scale {
        Some(scale) => (x * f64::from(scale))?,
        None => x,
    })
}

/// The logits of every token, f32.
/// # Shapes
/// `x [n, d_model]`, after the final norm; gives `[n, d_vocab]`.
pub fn unembed(model: &Model, x: &Tensor) -> Result<Tensor> {
    let w_u = &model.weights.w_u;
    let logits = if is_host(x) {
        let x = x.contiguous()?;
        let (n, d) = x.dims2()?;
        let vocab = w_u.dim(0)?;
        let mut logits = room(n * vocab);
        product(
            &mut logits,
            &host(&x)?,
            &host(w_u)?,
            [n, d, vocab],
            Right::OutIn,
            false,
        );
        tensor(logits, (n, vocab))?
    } else {
        x.matmul(&w_u.t()?)?.to_dtype(DType::F32)?
    };
    let logits = match &model.weights.b_u {
        Some(b) => logits.broadcast_add(&b.to_dtype(DType::F32)?)?,
        None => logits,
    };
    let logits = match model.spec.logit_scale {
        Some(scale) => (logits * f64::from(scale))?,
        None => logits,
    };
    Ok(match model.spec.final_softcap {
        Some(cap) => ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?,
        None => logits,
    })
}

/// The logits of a few tokens, each row its own.
/// # Shapes
/// `x [n, d_model]`, after the final norm; `columns`: for each row the tokens wanted; gives as many values for each row.
pub fn unembed_columns(model: &Model, x: &Tensor, columns: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
    let bias = model.weights.b_u.as_ref().map(to_host).transpose()?;
    let finish = |token: u32, product: f32| {
        let logit = product + bias.as_ref().map_or(0.0, |b| b[token as usize]);
        let logit = logit * model.spec.logit_scale.unwrap_or(1.0);
        model
            .spec
            .final_softcap
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
    let rows = model
        .weights
        .w_u
        .index_select(&Tensor::new(wanted.as_slice(), &model.device)?, 0)?;
    let (rows, x) = (to_host(&rows)?, to_host(x)?);
    let value = |row: usize, token: u32| {
        let at = wanted.binary_search(&token).expect("collected above") * d;
        finish(
            token,
            simd(
                #[inline(always)]
                || dot(&x[row * d..(row + 1) * d], &rows[at..at + d]),
            ),
        )
    };
    Ok(columns
        .iter()
        .enumerate()
        .map(|(row, tokens)| tokens.iter().map(|&token| value(row, token)).collect())
        .collect())
}
