//! The exact effect of one query or one key on its own softmax, for AtP*.
//!
//! A saturated softmax has almost no slope, so the gradient at a query or key misses effects that a patch would have. The fix
//! recomputes the row of the pattern that a patched query (or each row that a patched key) gives, and takes the gradient at the
//! pattern, past the softmax: `sum (pattern' - pattern) g`. For keys the recomputed rows have a closed form: changing one score
//! by `d` moves its weight `p` to `p e^d / (1 + p (e^d - 1))` and scales the others down.
//!
//! Source: Kramár et al. 2024, arXiv 2403.00745, section 3.2.

use rayon::prelude::*;

use crate::model::ModelSpec;
use crate::nn::attention::{Shape, visible};
use crate::nn::host::dot;
use crate::scores::statistics::softmax;

/// One layer's attention in the base run, and the queries and keys that are put in place.
pub(super) struct Layer<'a> {
    pub spec: &'a ModelSpec,
    pub layer: usize,
    /// Tokens in each prompt.
    pub length: usize,
    /// Rotated queries of the base run and of the other, `[rows, n_heads, d_head]`.
    pub q: [&'a [f32]; 2],
    /// Rotated keys of the base run, every position, `[prompts * length, n_kv_heads, d_head]`.
    pub k: &'a [f32],
    /// Rotated keys of the other run, `[rows, n_kv_heads, d_head]`.
    pub k_other: &'a [f32],
    /// Gradient at the pattern, `[rows, n_heads, length]`.
    pub slope: &'a [f32],
}

/// The rows of one prompt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Prompt {
    pub index: usize,
    pub first_row: usize,
    /// Position of the first row; the others follow up to the last position.
    pub first_pos: usize,
}

/// The corrected estimates of every query and key of one prompt: `[rows, n_heads]` and `[rows, n_kv_heads]`.
pub(super) fn estimates(of: &Layer<'_>, prompt: Prompt) -> (Vec<f64>, Vec<f64>) {
    let (heads, kv) = (of.spec.n_heads, of.spec.n_kv_heads);
    let rows = of.length - prompt.first_pos;
    let by_head: Vec<(Vec<f64>, Vec<f64>)> = (0..heads)
        .into_par_iter()
        .map(|head| one_head(of, prompt, head, rows))
        .collect();
    let (mut queries, mut keys) = (vec![0.0; rows * heads], vec![0.0; rows * kv]);
    for (head, (of_queries, of_keys)) in by_head.into_iter().enumerate() {
        for (row, (query, key)) in of_queries.into_iter().zip(of_keys).enumerate() {
            queries[row * heads + head] = query;
            // One key serves all query heads of its group.
            keys[row * kv + head / (heads / kv)] += key;
        }
    }
    (queries, keys)
}

fn one_head(of: &Layer<'_>, prompt: Prompt, head: usize, rows: usize) -> (Vec<f64>, Vec<f64>) {
    let (spec, d) = (of.spec, of.spec.d_head);
    let (heads, kv) = (spec.n_heads, spec.n_kv_heads);
    let key_head = head / (heads / kv);
    let scale = spec.attn_scale[of.layer];
    let query = |run: usize, row: usize| {
        let at = ((prompt.first_row + row) * heads + head) * d;
        &of.q[run][at..at + d]
    };
    let key = |pos: usize| {
        let at = ((prompt.index * of.length + pos) * kv + key_head) * d;
        &of.k[at..at + d]
    };
    let key_other = |row: usize| {
        let at = ((prompt.first_row + row) * kv + key_head) * d;
        &of.k_other[at..at + d]
    };
    let cap = |score: f32| {
        let score = f64::from(score * scale);
        spec.attn_softcap.map_or(score, |cap| {
            let cap = f64::from(cap);
            cap * (score / cap).tanh()
        })
    };
    let slope_of_alibi = f64::from(spec.alibi_slope(head).unwrap_or(0.0));
    let shape = Shape::of(spec, of.layer, of.length);
    let (mut of_queries, mut of_keys) = (vec![0.0; rows], vec![0.0; rows]);
    for (row, of_query) in of_queries.iter_mut().enumerate() {
        let pos = prompt.first_pos + row;
        let bias = |key_pos: usize| slope_of_alibi * (key_pos as f64 - pos as f64);
        let (low, high) = visible(&shape, pos);
        let seen = low..high;
        let scores = |run: usize| -> Vec<f64> {
            let q = query(run, row);
            seen.clone()
                .map(|pos| cap(dot(q, key(pos))) + bias(pos))
                .collect()
        };
        let base_scores = scores(0);
        let (pattern, patched) = (softmax(&base_scores), softmax(&scores(1)));
        let at = ((prompt.first_row + row) * heads + head) * of.length;
        let slope = &of.slope[at + low..at + seen.end];
        let weights = pattern.iter().zip(&patched).zip(slope);
        *of_query = weights
            .map(|((was, is), slope)| (is - was) * f64::from(*slope))
            .sum();
        let mean: f64 = pattern
            .iter()
            .zip(slope)
            .map(|(weight, slope)| weight * f64::from(*slope))
            .sum();
        let changed = prompt.first_pos.max(low)..seen.end;
        for pos in changed {
            let patched = cap(dot(query(0, row), key_other(pos - prompt.first_pos))) + bias(pos);
            let moved = (patched - base_scores[pos - low]).exp_m1();
            let weight = pattern[pos - low] * moved;
            let share = if weight.is_infinite() {
                1.0
            } else {
                weight / (1.0 + weight)
            };
            let gain = f64::from(slope[pos - low]) - mean;
            // A key that nobody looks at and that stays so moves nothing.
            if share.is_finite() {
                of_keys[pos - prompt.first_pos] += share * gain;
            }
        }
    }
    (of_queries, of_keys)
}
