//! The logits of some streams and some tokens at a time, and the sums over them.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::Result;
use crate::model::Model;
use crate::nn::embed::unembed;
use crate::nn::host::{exp, fold, host, room, simd, to_host};
use crate::nn::linear::{View, small_product};

/// Tokens whose logits are made at once.
pub(super) const TILE: usize = 512;

/// Logits that are made at once where products are not ours.
const WHOLE_LOGITS: usize = 1 << 24;

/// What is looked for at one place of a prompt.
#[derive(Debug, Clone, Copy)]
pub(in crate::methods::logits) struct Look<'a> {
    /// Tokens whose logits are wanted.
    pub columns: &'a [u32],
    /// The first so many of them are what others are compared with.
    pub watched: usize,
    /// Whether the probabilities there are added up ([`Sums`](super::Sums)).
    pub is_end: bool,
}

/// What is asked of all tiles.
pub(super) struct Work<'a> {
    pub streams: usize,
    pub looks: &'a [Look<'a>],
    /// Of each row the logit that others are compared with.
    pub levels: Vec<f32>,
    pub adds: bool,
}

impl Work<'_> {
    /// The rows whose probabilities are added up.
    pub fn end_rows(&self) -> Vec<usize> {
        let is_end = |row: &usize| self.adds && self.looks[row / self.streams].is_end;
        (0..self.levels.len()).filter(is_end).collect()
    }
}

/// Some tokens of the vocabulary, as all rows see them.
pub(super) struct Tile {
    pub tokens: Range<usize>,
    pub rows: Vec<Partial>,
    /// `exp(l - largest)` of the rows at ends.
    pub exps: Vec<f32>,
}

/// Sums over some tokens, relative to the largest logit among them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Partial {
    pub largest: f32,
    /// `sum exp(l - largest)`
    pub sum: f64,
    /// `sum exp(l - largest) (l - largest)`
    pub moment: f64,
    /// `sum exp(l_r - largest_r) (l_r - l)`, where `r` is the last row of the place.
    pub cross: f64,
    pub above: usize,
}

/// The largest logit of a row, and the sum of exponentials relative to it.
pub(super) fn together(tiles: &[Tile], row: usize) -> (f64, f64) {
    let of = |tile: &Tile| f64::from(tile.rows[row].largest);
    let largest = tiles.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
    let term = |tile: &Tile| (of(tile) - largest).exp() * tile.rows[row].sum;
    (largest, tiles.iter().map(term).sum())
}

/// Tile by tile, on all threads.
pub(super) fn tiles(model: &Model, normed: &Tensor, work: &Work<'_>) -> Result<Vec<Tile>> {
    let (spec, weights) = (&model.spec, &model.weights);
    let normed = normed.contiguous()?;
    let (x, w) = (host(&normed)?, host(&weights.w_u)?);
    let (x, w): (&[f32], &[f32]) = (&x, &w);
    let bias = weights.b_u.as_ref().map(to_host).transpose()?;
    let (rows, d) = (work.levels.len(), spec.d_model);
    let one = |logits: &mut Vec<f32>, tile: usize| {
        let tokens = tile * TILE..((tile + 1) * TILE).min(spec.d_vocab);
        let width = tokens.len();
        let logits = &mut logits[..rows * width];
        small_product(
            (logits, View::rows(width)),
            (x, View::rows(d)),
            (w, View::rows(d).from(tokens.start * d).t()),
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
    Ok(tiles.map_init(|| room(rows * TILE), one).collect())
}

/// All logits of a few places at a time, as the model makes them: for other devices and number formats.
pub(super) fn whole(model: &Model, normed: &Tensor, work: &Work<'_>) -> Result<Vec<Tile>> {
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
