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

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::embed::{unembed, unembed_columns};
use crate::nn::host::{exp, fold, host, is_host, simd, to_host};
use crate::nn::linear::{View, small_product};
use crate::nn::matrix::{Numbers, host_matrix, is_host_matrix};
use crate::nn::norm;

/// Tokens whose logits are made at once.
const TILE: usize = 512;
/// Streams that are read together.
const ROWS: usize = 768;
/// Bytes of exponentials that are kept for sums of probabilities.
const ENDS_BYTES: usize = 32 << 20;
/// Logits that are made at once where products are not ours.
const WHOLE_LOGITS: usize = 1 << 24;

/// What is looked for at one place of a prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    /// Tokens whose logits are wanted.
    pub columns: &'a [u32],
    /// The first so many of them are what others are compared with.
    pub watched: usize,
    /// Whether the probabilities there are added up ([`Sums`]).
    pub is_end: bool,
}

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
    let is_ours = is_host(normed) && is_host_matrix(&model.weights.w_u);
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
                reason: "has no value, because a logit is not finite; if the model is run in f16 or bf16, try `LoadOptions::dtype = f32`".into(),
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

/// What is asked of all tiles.
struct Work<'a> {
    streams: usize,
    looks: &'a [Look<'a>],
    /// Of each row the logit that others are compared with.
    levels: Vec<f32>,
    adds: bool,
}

impl Work<'_> {
    /// The rows whose probabilities are added up.
    fn end_rows(&self) -> Vec<usize> {
        let is_end = |row: &usize| self.adds && self.looks[row / self.streams].is_end;
        (0..self.levels.len()).filter(is_end).collect()
    }
}

/// Some tokens of the vocabulary, as all rows see them.
struct Tile {
    tokens: Range<usize>,
    rows: Vec<Partial>,
    /// `exp(l - largest)` of the rows at ends.
    exps: Vec<f32>,
}

/// Sums over some tokens, relative to the largest logit among them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Partial {
    largest: f32,
    /// `sum exp(l - largest)`
    sum: f64,
    /// `sum exp(l - largest) (l - largest)`
    moment: f64,
    /// `sum exp(l_r - largest_r) (l_r - l)`, where `r` is the last row of the place.
    cross: f64,
    above: usize,
}

/// The largest logit of a row, and the sum of exponentials relative to it.
fn together(tiles: &[Tile], row: usize) -> (f64, f64) {
    let of = |tile: &Tile| f64::from(tile.rows[row].largest);
    let largest = tiles.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
    let term = |tile: &Tile| (of(tile) - largest).exp() * tile.rows[row].sum;
    (largest, tiles.iter().map(term).sum())
}

/// Tile by tile, on all threads.
fn tiles(model: &Model, normed: &Tensor, work: &Work<'_>) -> Result<Vec<Tile>> {
    let (spec, weights) = (&model.spec, &model.weights);
    let normed = normed.contiguous()?;
    let (x, w) = (host(&normed)?, host_matrix(&weights.w_u)?);
    let (x, w): (&[f32], Numbers) = (&x, w.numbers());
    let bias = weights.b_u.as_ref().map(to_host).transpose()?;
    let (rows, d) = (work.levels.len(), spec.d_model);
    let one = |(logits, wide): &mut (Vec<f32>, Vec<f32>), tile: usize| {
        let tokens = tile * TILE..((tile + 1) * TILE).min(spec.d_vocab);
        let width = tokens.len();
        let logits = &mut logits[..rows * width];
        small_product(
            (logits, View::rows(width)),
            (x, View::rows(d)),
            (
                w.range(tokens.start * d..tokens.end * d, wide),
                View::rows(d).t(),
            ),
            [rows, d, width],
            spec.logit_scale.unwrap_or(1.0),
            false,
        );
        let bias = bias.as_ref().map(|bias| &bias[tokens.clone()]);
        simd(
            #[inline(always)]
            || {
                for row in logits.chunks_exact_mut(width) {
                    finish(row, bias, spec.logit_scale, spec.final_softcap);
                }
                read_tile(logits, tokens, work)
            },
        )
    };
    let tiles = (0..spec.d_vocab.div_ceil(TILE)).into_par_iter();
    Ok(tiles
        .map_init(|| (vec![0.0; rows * TILE], Vec::new()), one)
        .collect())
}

/// All logits of a few places at a time, as the model makes them: for other devices and number formats.
fn whole(model: &Model, normed: &Tensor, work: &Work<'_>) -> Result<Vec<Tile>> {
    let d_vocab = model.spec.d_vocab;
    let mut all = Tile {
        tokens: 0..d_vocab,
        rows: Vec::new(),
        exps: Vec::new(),
    };
    let few = (WHOLE_LOGITS / (work.streams * d_vocab)).max(1);
    for (at, looks) in work.looks.chunks(few).enumerate() {
        let (start, rows) = (at * few * work.streams, looks.len() * work.streams);
        let logits = unembed(&model.spec, &model.weights, &normed.narrow(0, start, rows)?)?;
        let work = Work {
            looks,
            levels: work.levels[start..start + rows].to_vec(),
            ..*work
        };
        let logits = to_host(&logits)?;
        let tile = simd(
            #[inline(always)]
            || read_tile(&logits, 0..d_vocab, &work),
        );
        all.rows.extend(tile.rows);
        all.exps.extend(tile.exps);
    }
    Ok(vec![all])
}

/// What follows the product; the scale is in it already.
#[inline(always)]
fn finish(row: &mut [f32], bias: Option<&[f32]>, scale: Option<f32>, cap: Option<f32>) {
    if let Some(bias) = bias {
        let scale = scale.unwrap_or(1.0);
        for (x, b) in row.iter_mut().zip(bias) {
            *x += scale * b;
        }
    }
    if let Some(cap) = cap {
        for x in row {
            // tanh(u) = 1 - 2 / (e^(2u) + 1)
            *x = cap * (1.0 - 2.0 / (exp(2.0 * *x / cap) + 1.0));
        }
    }
}

/// # Shapes
/// `logits [row, token]`.
#[inline(always)]
fn read_tile(logits: &[f32], tokens: Range<usize>, work: &Work<'_>) -> Tile {
    let width = tokens.len();
    let mut tile = Tile {
        tokens,
        rows: Vec::with_capacity(work.levels.len()),
        exps: Vec::new(),
    };
    let mut weights = vec![0.0; width];
    let places = logits.chunks_exact(work.streams * width);
    for ((place, look), levels) in places.zip(work.looks).zip(work.levels.chunks(work.streams)) {
        let reference = &place[(work.streams - 1) * width..];
        write_exps(reference, largest(reference), &mut weights);
        for (row, &level) in place.chunks_exact(width).zip(levels) {
            let mut partial = sum_up(row, reference, &weights, level);
            for &id in &look.columns[..look.watched] {
                let is_counted = |at: usize| row[at] > level;
                if tile.tokens.contains(&(id as usize))
                    && is_counted(id as usize - tile.tokens.start)
                {
                    partial.above -= 1;
                }
            }
            if work.adds && look.is_end {
                let start = tile.exps.len();
                tile.exps.resize(start + width, 0.0);
                write_exps(row, partial.largest, &mut tile.exps[start..]);
            }
            tile.rows.push(partial);
        }
    }
    tile
}

#[inline(always)]
fn largest(row: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; 16];
    let (whole, rest) = row.as_chunks::<16>();
    for x in whole {
        for i in 0..16 {
            most[i] = if x[i] > most[i] { x[i] } else { most[i] };
        }
    }
    let all = most.iter().chain(rest).copied();
    all.fold(f32::NEG_INFINITY, f32::max)
}

#[inline(always)]
fn write_exps(row: &[f32], largest: f32, exps: &mut [f32]) {
    for (to, &x) in exps.iter_mut().zip(row) {
        *to = exp(x - largest);
    }
}

#[inline(always)]
fn sum_up(row: &[f32], reference: &[f32], weights: &[f32], level: f32) -> Partial {
    let mut partial = Partial {
        largest: largest(row),
        sum: 0.0,
        moment: 0.0,
        cross: 0.0,
        above: 0,
    };
    // A few hundred terms at a time in f32, their sums in f64.
    let pieces = row.chunks(TILE).zip(reference.chunks(TILE));
    for ((row, reference), weights) in pieces.zip(weights.chunks(TILE)) {
        add_piece(&mut partial, row, reference, weights, level);
    }
    partial
}

#[inline(always)]
fn add_piece(partial: &mut Partial, row: &[f32], reference: &[f32], weights: &[f32], level: f32) {
    let [mut sum, mut moment, mut cross, mut above] = [[0f32; 16]; 4];
    let (rows, rest) = row.as_chunks::<16>();
    let (references, last_references) = reference.as_chunks::<16>();
    let (weights, last_weights) = weights.as_chunks::<16>();
    for ((x, r), w) in rows.iter().zip(references).zip(weights) {
        for i in 0..16 {
            let below = x[i] - partial.largest;
            let e = exp(below);
            sum[i] += e;
            moment[i] = e.mul_add(below, moment[i]);
            cross[i] = w[i].mul_add(r[i] - x[i], cross[i]);
            above[i] += if x[i] > level { 1.0 } else { 0.0 };
        }
    }
    partial.sum += f64::from(fold(sum));
    partial.moment += f64::from(fold(moment));
    partial.cross += f64::from(fold(cross));
    partial.above += fold(above) as usize;
    for ((&x, &r), &w) in rest.iter().zip(last_references).zip(last_weights) {
        let e = exp(x - partial.largest);
        partial.sum += f64::from(e);
        partial.moment += f64::from(e * (x - partial.largest));
        partial.cross += f64::from(w * (r - x));
        partial.above += usize::from(x > level);
    }
}
