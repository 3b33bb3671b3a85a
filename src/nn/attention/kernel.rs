//! The arithmetic of attention on the host: scores, softmax and products.

use super::shape::Shape;
use super::task::Queries;
use crate::nn::host::{exp, fold};

/// Scores of all queries of a task, scaled and capped, `[queries, width]`.
#[inline(always)]
pub(super) fn fill_scores(
    scores: &mut Vec<f32>,
    queries: &Queries<'_>,
    kt: &[f32],
    width: usize,
    shape: &Shape,
) {
    let n = queries.len();
    scores.clear();
    scores.resize(n * width, 0.0);
    let mut i = 0;
    while i < n {
        let out = &mut scores[i * width..];
        if i + 4 <= n {
            tile::<4>(
                out,
                [
                    queries.get(i),
                    queries.get(i + 1),
                    queries.get(i + 2),
                    queries.get(i + 3),
                ],
                kt,
                width,
                width,
            );
            i += 4;
        } else {
            tile::<1>(out, [queries.get(i)], kt, width, width);
            i += 1;
        }
    }
    match shape.softcap {
        None => scores.iter_mut().for_each(|score| *score *= shape.scale),
        Some(cap) => scores.iter_mut().for_each(|score| {
            // tanh(u) = 1 - 2 / (e^(2u) + 1)
            let doubled = 2.0 * *score * shape.scale / cap;
            *score = cap * (1.0 - 2.0 / (exp(doubled) + 1.0));
        }),
    }
    if let Some(slopes) = shape.alibi {
        for (i, scores) in scores.chunks_exact_mut(width).enumerate() {
            let head = queries.task.head + i % queries.task.heads;
            slopes.take_off(scores, head, queries.position(i));
        }
    }
}

/// `out [n, columns] = rows [n, stride] @ right [depth, columns]`, the first `depth` entries of each row.
#[inline(always)]
pub(super) fn multiply(
    out: &mut Vec<f32>,
    rows: &[f32],
    stride: usize,
    right: &[f32],
    columns: usize,
    n: usize,
    depth: usize,
) {
    out.clear();
    out.resize(n * columns, 0.0);
    let row = |i: usize| &rows[i * stride..i * stride + depth];
    let mut i = 0;
    while i < n {
        let out = &mut out[i * columns..];
        if i + 4 <= n {
            tile::<4>(
                out,
                [row(i), row(i + 1), row(i + 2), row(i + 3)],
                right,
                columns,
                columns,
            );
            i += 4;
        } else {
            tile::<1>(out, [row(i)], right, columns, columns);
            i += 1;
        }
    }
}

/// `R` rows times a matrix, sixteen columns at a time, held in registers.
#[inline(always)]
fn tile<const R: usize>(
    out: &mut [f32],
    rows: [&[f32]; R],
    right: &[f32],
    columns: usize,
    stride: usize,
) {
    let depth = rows[0].len();
    let rows = rows.map(|row| &row[..depth]);
    for column in (0..columns).step_by(16) {
        let mut sums = [[0f32; 16]; R];
        for d in 0..depth {
            let right: &[f32; 16] = right[d * columns + column..][..16]
                .try_into()
                .expect("sixteen columns");
            for r in 0..R {
                let x = rows[r][d];
                for j in 0..16 {
                    sums[r][j] = x.mul_add(right[j], sums[r][j]);
                }
            }
        }
        for r in 0..R {
            out[r * stride + column..][..16].copy_from_slice(&sums[r]);
        }
    }
}

/// Softmax over `row[low..high]`; the rest becomes zero. Each key is added in the lane of its position, however long the row and
/// wherever the window begins, so that a run in which somebody reads the pattern is the same run to the last bit.
#[inline(always)]
pub(super) fn softmax_row(row: &mut [f32], low: usize, high: usize) {
    row[..low].fill(0.0);
    row[high..].fill(0.0);
    let seen = &mut row[low..high];
    let max = seen.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    seen.iter_mut().for_each(|x| *x = exp(*x - max));
    let mut sums = [0f32; 16];
    let (whole, rest) = row[..high].as_chunks::<16>();
    for chunk in whole {
        for i in 0..16 {
            sums[i] += chunk[i];
        }
    }
    for (sum, x) in sums.iter_mut().zip(rest) {
        *sum += x;
    }
    let inverse = 1.0 / fold(sums);
    row[low..high].iter_mut().for_each(|x| *x *= inverse);
}
