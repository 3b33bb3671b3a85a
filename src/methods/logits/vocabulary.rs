//! Whole distributions over the vocabulary, read without being kept: the logits of some hundred streams and some hundred tokens
//! at a time are made, summed up and forgotten, while they are still in the processor's cache. Making them is a product with
//! the whole unembedding, by far the dearest thing that a lens does; the sums cost little beside it.
//!
//! Each piece of the vocabulary gives its largest logit and sums relative to that; pieces are put together in f64. Entropy and
//! divergence follow from
//! `H = ln S - T / S` with `S = sum exp(l - m)`, `T = sum exp(l - m) (l - m)`, and
//! `KL(r || p) = sum r (l_r - l_p) + lse_p - lse_r`, which is exactly zero where the two are one.

#[cfg(test)]
mod tests;
mod tile;

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

pub(super) use tile::Look;
use tile::{Work, tiles, together, whole};

use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::embed::unembed_columns;
use crate::nn::host::is_host;
use crate::nn::norm;

/// Streams that are read together.
const ROWS: usize = 768;
/// Bytes of exponentials that are kept for sums of probabilities.
const ENDS_BYTES: usize = 32 << 20;

/// What one stream says.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Distribution {
    /// Of the columns that were asked for.
    pub logits: Vec<f32>,
    /// The logarithm of the sum of the exponentials of all logits.
    pub lse: f64,
    /// In nats.
    pub entropy: f64,
    /// `KL(last stream of the place || this)`, in nats.
    pub kl: f64,
    /// Tokens, but for the watched ones, whose logit is above theirs.
    pub above: usize,
}

impl Distribution {
    /// The probability of a logit.
    pub fn prob(&self, logit: f32) -> f64 {
        (f64::from(logit) - self.lse).exp()
    }
}

/// Sums of probabilities over places, `[stream][token]`.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums(pub Vec<f64>);

/// The streams as the unembedding reads them: `x [rows, d_model]` through the final norm with its own scale.
pub(super) fn normed(model: &Model, x: &Tensor) -> Result<Tensor> {
    match &model.weights.ln_final {
        Some(w) => norm::forward(x, w, model.spec.norm, model.spec.norm_eps),
        None => Ok(x.clone()),
    }
}

/// Places in stretches that are read together; `is_end` says of which probabilities are added up.
pub(super) fn stretches(is_end: &[bool], streams: usize, d_vocab: usize) -> Vec<Range<usize>> {
    let of_end = 4 * streams * d_vocab;
    let (mut stretches, mut start, mut kept) = (Vec::new(), 0, 0);
    for (place, &is_end) in is_end.iter().enumerate() {
        let more = if is_end { of_end } else { 0 };
        let is_full = (place - start + 1) * streams > ROWS || kept + more > ENDS_BYTES;
        if is_full && place > start {
            stretches.push(start..place);
            (start, kept) = (place, 0);
        }
        kept += more;
    }
    stretches.push(start..is_end.len());
    stretches
}

/// Reads the distributions of some streams at some places.
/// # Shapes
/// `normed [place * stream, d_model]`, the streams of a place after each other; gives one for each row. `level` makes of the
/// watched logits the one that others are compared with. Probabilities at ends are added to `sums [stream, d_vocab]`.
/// # Errors
/// [`Error::BadMetric`] if a logit is not a number.
pub(super) fn read(
    model: &Model,
    normed: &Tensor,
    streams: usize,
    looks: &[Look<'_>],
    level: fn(&[f32]) -> f32,
    sums: Option<&mut Sums>,
) -> Result<Vec<Distribution>> {
    let columns: Vec<&[u32]> = (looks.iter())
        .flat_map(|look| std::iter::repeat_n(look.columns, streams))
        .collect();
    let logits = unembed_columns(&model.spec, &model.weights, normed, &columns)?;
    let level = |(row, logits): (usize, &Vec<f32>)| level(&logits[..looks[row / streams].watched]);
    let levels: Vec<f32> = logits.iter().enumerate().map(level).collect();
    let work = Work {
        streams,
        looks,
        levels,
        adds: sums.is_some(),
    };
    let is_ours = is_host(normed) && is_host(&model.weights.w_u);
    let read = if is_ours {
        tiles(model, normed, &work)?
    } else {
        whole(model, normed, &work)?
    };
    let ends: Vec<(f64, f64)> = (0..logits.len()).map(|row| together(&read, row)).collect();
    let mut all = Vec::with_capacity(logits.len());
    for (row, logits) in logits.into_iter().enumerate() {
        let reference = row - row % streams + streams - 1;
        let (largest, sum) = ends[row];
        let (of_reference, reference_sum) = ends[reference];
        let (mut moment, mut cross, mut above) = (0.0, 0.0, 0);
        for tile in &read {
            let (own, other) = (&tile.rows[row], &tile.rows[reference]);
            let shift = f64::from(own.largest) - largest;
            moment += shift.exp() * (own.moment + shift * own.sum);
            cross += (f64::from(other.largest) - of_reference).exp() * own.cross;
            above += own.above;
        }
        let lse = largest + sum.ln();
        let distribution = Distribution {
            logits,
            lse,
            entropy: sum.ln() - moment / sum,
            // Rounding can put it a hair below zero, where it cannot be.
            kl: (cross / reference_sum + lse - (of_reference + reference_sum.ln())).max(0.0),
            above,
        };
        if !(distribution.entropy + cross).is_finite() {
            return Err(Error::BadMetric {
                metric: "entropy".into(),
                reason: "has no value, because a logit is not finite; if the model is run in f16 or bf16, try `--dtype f32`".into(),
            });
        }
        all.push(distribution);
    }
    if let Some(Sums(sums)) = sums {
        let d_vocab = model.spec.d_vocab;
        sums.resize(streams * d_vocab, 0.0);
        let end_rows = work.end_rows();
        let each = sums.par_chunks_mut(d_vocab).enumerate();
        each.for_each(|(stream, sums)| {
            for tile in &read {
                let width = tile.tokens.len();
                let own = end_rows.iter().enumerate();
                for (at, &row) in own.filter(|(_, row)| *row % streams == stream) {
                    let factor = (f64::from(tile.rows[row].largest) - all[row].lse).exp();
                    let exps = &tile.exps[at * width..(at + 1) * width];
                    let sums = sums[tile.tokens.clone()].iter_mut();
                    sums.zip(exps)
                        .for_each(|(sum, &exp)| *sum += factor * f64::from(exp));
                }
            }
        });
    }
    Ok(all)
}
