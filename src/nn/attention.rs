//! Attention over packed tokens, with grouped heads, windows and soft-caps.
//!
//! Each segment (a prompt, or a variant of one in a sweep) asks with its own query rows. Its keys and values come from its own
//! rows where it has them and from the base run elsewhere, so a variant carries only the tokens that its edit can have changed.
//!
//! The fast form gathers the keys of one key head, transposed, and works on four query rows and sixteen columns at a time.
//! [`scores`], [`softmax`] and [`mix`] are the same steps one by one, for runs in which somebody reads or edits scores or patterns.

mod backward;
mod composed;
mod kernel;
mod shape;
mod task;
#[cfg(test)]
mod tests;

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

pub use backward::{AttentionGradients, Forward, backward, softcap_slope};
pub use composed::repeat;
use composed::{composed_mix, composed_scores};
use kernel::{fill_scores, multiply, softmax_row};
pub use shape::{KeysValues, SegmentPlace, Shape, Slopes, visible};
use task::{Gather, HeadTask, Queries, Scratch, head_tasks, lines_of};

use super::host::{host, is_host, simd, tensor};
use crate::error::Result;

/// Attention from scores to z in one go.
/// # Shapes
/// `q [query rows, n_heads, d_head]`, rotated; gives the same shape.
pub fn forward(
    q: &Tensor,
    sources: KeysValues<'_>,
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Result<Tensor> {
    if !is_host(q) {
        let pattern = softmax(&scores(q, sources, segments, shape)?)?;
        return mix(&pattern, sources, segments, shape);
    }
    let q = q.contiguous()?;
    let keys = Gather::new(
        sources.k,
        sources.base.map(|base| base.0),
        shape.key_heads,
        shape,
    )?;
    let values = Gather::new(
        sources.v,
        sources.base.map(|base| base.1),
        shape.value_heads,
        shape,
    )?;
    let data = host(&q)?;
    let mut z = vec![0.0; q.elem_count()];
    let tasks = head_tasks(segments, shape);
    let mut lines = lines_of(&mut z, shape.d_head, &tasks, segments, shape);
    let shared = tasks.into_par_iter().zip(lines.tasks());
    shared.for_each_init(Scratch::default, |scratch, (task, lines)| {
        simd(
            #[inline(always)]
            || {
                let Scratch {
                    kt,
                    v,
                    scores,
                    z: block,
                } = scratch;
                let segment = &segments[task.segment];
                let width = keys.transposed(kt, segment, task.head, &task, shape);
                let padded = values.rows(v, segment, task.head, &task, shape);
                let queries = Queries {
                    data: &data,
                    segment,
                    task: &task,
                    shape,
                };
                fill_scores(scores, &queries, kt, width, shape);
                for i in 0..queries.len() {
                    let (low, high) = queries.visible(i);
                    softmax_row(&mut scores[i * width..(i + 1) * width], low, high);
                }
                multiply(block, scores, width, v, padded, queries.len(), task.keys);
                write_heads(lines, block, padded, &task, shape);
            },
        )
    });
    tensor(z, q.shape())
}

/// Query-key products after scale, soft-cap and mask.
/// # Shapes
/// `q [query rows, n_heads, d_head]`; gives `[query rows, n_heads, length]`, minus infinity where a query sees no key.
pub fn scores(
    q: &Tensor,
    sources: KeysValues<'_>,
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Result<Tensor> {
    if !is_host(q) {
        return composed_scores(q, sources, segments, shape);
    }
    let q = q.contiguous()?;
    let keys = Gather::new(
        sources.k,
        sources.base.map(|base| base.0),
        shape.key_heads,
        shape,
    )?;
    let data = host(&q)?;
    let mut out = vec![f32::NEG_INFINITY; q.dim(0)? * shape.n_heads * shape.length];
    let tasks = head_tasks(segments, shape);
    let mut lines = lines_of(&mut out, shape.length, &tasks, segments, shape);
    let shared = tasks.into_par_iter().zip(lines.tasks());
    shared.for_each_init(Scratch::default, |scratch, (task, lines)| {
        simd(
            #[inline(always)]
            || {
                let segment = &segments[task.segment];
                let width = keys.transposed(&mut scratch.kt, segment, task.head, &task, shape);
                let queries = Queries {
                    data: &data,
                    segment,
                    task: &task,
                    shape,
                };
                fill_scores(&mut scratch.scores, &queries, &scratch.kt, width, shape);
                let rows = lines
                    .iter_mut()
                    .flat_map(|line| line.chunks_exact_mut(shape.length));
                for (i, row) in rows.enumerate() {
                    let (low, high) = queries.visible(i);
                    row[low..high]
                        .copy_from_slice(&scratch.scores[i * width + low..i * width + high]);
                }
            },
        )
    });
    tensor(out, (q.dim(0)?, shape.n_heads, shape.length))
}

/// Softmax over keys, in f32.
/// # Shapes
/// `scores [query rows, n_heads, length]`; gives the same.
pub fn softmax(scores: &Tensor) -> Result<Tensor> {
    if !is_host(scores) {
        let wide = scores.to_dtype(DType::F32)?;
        return Ok(candle_nn::ops::softmax(&wide, D::Minus1)?.to_dtype(scores.dtype())?);
    }
    let scores = scores.contiguous()?;
    let length = scores.dim(2)?;
    let mut pattern = host(&scores)?.to_vec();
    pattern.par_chunks_mut(64 * length).for_each(|rows| {
        simd(
            #[inline(always)]
            || {
                for row in rows.chunks_exact_mut(length) {
                    // Outside of what a query sees, the scores are minus infinity and come out as zero.
                    softmax_row(row, 0, length);
                }
            },
        )
    });
    tensor(pattern, scores.shape())
}

/// Pattern times values.
/// # Shapes
/// `pattern [query rows, n_heads, length]`; gives `[query rows, n_heads, d_head]`.
pub fn mix(
    pattern: &Tensor,
    sources: KeysValues<'_>,
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Result<Tensor> {
    if !is_host(pattern) || !is_host(sources.v) {
        return composed_mix(pattern, sources, segments, shape);
    }
    let pattern = pattern.contiguous()?;
    let values = Gather::new(
        sources.v,
        sources.base.map(|base| base.1),
        shape.value_heads,
        shape,
    )?;
    let data = host(&pattern)?;
    let rows = pattern.dim(0)?;
    let mut z = vec![0.0; rows * shape.n_heads * shape.d_head];
    let tasks = head_tasks(segments, shape);
    let mut lines = lines_of(&mut z, shape.d_head, &tasks, segments, shape);
    let shared = tasks.into_par_iter().zip(lines.tasks());
    shared.for_each_init(Scratch::default, |scratch, (task, lines)| {
        simd(
            #[inline(always)]
            || {
                let segment = &segments[task.segment];
                // An edited pattern may look anywhere in the prompt.
                let task = HeadTask {
                    keys: shape.length,
                    ..task
                };
                let padded = values.rows(&mut scratch.v, segment, task.head, &task, shape);
                let queries = Queries {
                    data: &data,
                    segment,
                    task: &task,
                    shape,
                };
                scratch.scores.clear();
                for i in 0..queries.len() {
                    let at = queries.offset(i) / shape.d_head * shape.length;
                    scratch
                        .scores
                        .extend_from_slice(&data[at..at + shape.length]);
                }
                multiply(
                    &mut scratch.z,
                    &scratch.scores,
                    shape.length,
                    &scratch.v,
                    padded,
                    queries.len(),
                    shape.length,
                );
                write_heads(lines, &scratch.z, padded, &task, shape);
            },
        )
    });
    tensor(z, (rows, shape.n_heads, shape.d_head))
}

/// Writes a task's z, `[rows, its heads, padded]`, without the padding.
#[inline(always)]
fn write_heads(
    lines: &mut [&mut [f32]],
    block: &[f32],
    padded: usize,
    task: &HeadTask,
    shape: &Shape,
) {
    for (line, block) in lines
        .iter_mut()
        .zip(block.chunks_exact(task.heads * padded))
    {
        let heads = line.chunks_exact_mut(shape.d_head);
        for (z, padded) in heads.zip(block.chunks_exact(padded)) {
            z.copy_from_slice(&padded[..shape.d_head]);
        }
    }
}
