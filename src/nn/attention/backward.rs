//! Backwards through attention: from the gradient at z to those at queries, keys and values.
//!
//! The pattern is not kept but made again from queries and keys, a block of queries at a time, so memory grows with the length
//! of a prompt and not with its square. Keys and values come out for each QUERY head: what reads a shared key through one
//! query head is a path of its own; whoever wants the gradient of the shared key sums over its heads.

use candle_core::Tensor;
use rayon::prelude::*;

use super::kernel::softmax_row;
use super::shape::{KeysValues, SegmentPlace, Shape, visible};
use super::task::Gather;
use crate::error::Result;
use crate::nn::host::{dot_inline, host, on_host, simd, tensor};
use crate::nn::linear::{View, small_product};
use crate::nn::lines::Lines;
use crate::nn::rules::{PatternRule, Rules, SoftcapRule};

/// AttentionGradients at what attention reads. All f32 on the host.
pub struct AttentionGradients {
    /// At the rotated queries, `[query rows, n_heads, d_head]`.
    pub q: Tensor,
    /// At the rotated keys of each query head, `[key rows, n_heads, d_head]`.
    pub k: Tensor,
    /// `[key rows, n_heads, d_head]`
    pub v: Tensor,
    /// At pattern and scores, `[query rows, n_heads, length]`, where they are asked for.
    pub pattern: Option<[Tensor; 2]>,
}

/// Query rows worked on at a time.
const BLOCK: usize = 128;

/// What a forward pass through attention had, for the way back.
#[derive(Clone, Copy)]
pub struct Forward<'a> {
    /// Rotated, `[query rows, n_heads, d_head]`.
    pub q: &'a Tensor,
    pub sources: KeysValues<'a>,
    /// `[query rows, n_heads, length]`, where an edit has changed them.
    pub scores: Option<&'a Tensor>,
    pub segments: &'a [SegmentPlace<'a>],
    pub shape: &'a Shape,
}

/// The gradients at rotated queries and keys, and at values, of the rows that the segments carry themselves; positions that come
/// from the base run get none.
/// # Shapes
/// `dz [query rows, n_heads, d_head]`.
pub fn backward(
    dz: &Tensor,
    forward: Forward<'_>,
    rules: &Rules,
    with_pattern: bool,
) -> Result<AttentionGradients> {
    let Forward {
        q,
        sources,
        scores,
        segments,
        shape,
    } = forward;
    let (dz, q) = (dz.contiguous()?, on_host(q)?);
    let (own_k, own_v) = (on_host(sources.k)?, on_host(sources.v)?);
    let base = match sources.base {
        Some((k, v)) => Some((on_host(k)?, on_host(v)?)),
        None => None,
    };
    let keys = Gather::new(&own_k, base.as_ref().map(|b| &b.0), shape.key_heads, shape)?;
    let values = Gather::new(
        &own_v,
        base.as_ref().map(|b| &b.1),
        shape.value_heads,
        shape,
    )?;
    let given = scores.map(on_host).transpose()?;
    let given = given.as_ref().map(host).transpose()?;
    let (queries, rows) = (q.dim(0)?, own_k.dim(0)?);
    let width = shape.n_heads * shape.d_head;
    let of_pattern = if with_pattern {
        queries * shape.n_heads * shape.length
    } else {
        0
    };
    let (mut dq, mut dk, mut dv) = (
        vec![0.0; queries * width],
        vec![0.0; rows * width],
        vec![0.0; rows * width],
    );
    let (mut pattern, mut slope) = (vec![0.0; of_pattern], vec![0.0; of_pattern]);
    {
        let (dz, q) = (host(&dz)?, host(&q)?);
        let walk = Walk {
            dz: &dz,
            q: &q,
            keys: &keys,
            values: &values,
            scores: given.as_deref(),
            segments,
            shape,
            rules,
            with_pattern,
        };
        let tasks: Vec<(usize, usize)> = (0..segments.len())
            .flat_map(|segment| (0..shape.n_heads).map(move |head| (segment, head)))
            .collect();
        // The lines of each (segment, head), in the order of `tasks`.
        let of_queries = || {
            let rows = |place: &SegmentPlace| {
                place.query_start..place.query_start + place.query_positions.len()
            };
            segments.iter().map(rows)
        };
        let of_keys = || {
            let rows =
                |place: &SegmentPlace| place.key_start..place.key_start + place.key_positions.len();
            segments.iter().map(rows)
        };
        let (d, along) = (shape.d_head, shape.n_heads * shape.length);
        let mut dq = Lines::new(&mut dq, width, d, of_queries());
        let mut dk = Lines::new(&mut dk, width, d, of_keys());
        let mut dv = Lines::new(&mut dv, width, d, of_keys());
        let mut pattern = Lines::new(&mut pattern, along, shape.length, of_queries());
        let mut slope = Lines::new(&mut slope, along, shape.length, of_queries());
        tasks
            .into_par_iter()
            .zip(dq.tasks())
            .zip(dk.tasks().into_par_iter().zip(dv.tasks()))
            .zip(pattern.tasks().into_par_iter().zip(slope.tasks()))
            .for_each_init(
                Scratch::default,
                |scratch, (((task, q), (k, v)), (pattern, slope))| {
                    let out = HeadLines {
                        q,
                        k,
                        v,
                        pattern,
                        slope,
                    };
                    walk.head(task, scratch, out);
                },
            );
    }
    let dims = |rows: usize| (rows, shape.n_heads, shape.d_head);
    let of_pattern = (queries, shape.n_heads, shape.length);
    Ok(AttentionGradients {
        q: tensor(dq, dims(queries))?,
        k: tensor(dk, dims(rows))?,
        v: tensor(dv, dims(rows))?,
        pattern: if with_pattern {
            Some([tensor(pattern, of_pattern)?, tensor(slope, of_pattern)?])
        } else {
            None
        },
    })
}

/// The lines that one head of one segment writes, a line a row; those of pattern and scores where they are asked for.
struct HeadLines<'t, 'a> {
    q: &'t mut [&'a mut [f32]],
    k: &'t mut [&'a mut [f32]],
    v: &'t mut [&'a mut [f32]],
    /// At the pattern.
    pattern: &'t mut [&'a mut [f32]],
    /// At the scores.
    slope: &'t mut [&'a mut [f32]],
}

#[derive(Default)]
struct Scratch {
    k: Vec<f32>,
    v: Vec<f32>,
    pattern: Vec<f32>,
    /// Of the pattern, then of the scores.
    slope: Vec<f32>,
    /// Scores before the soft-cap, where there is one.
    uncapped: Vec<f32>,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// What all heads of all segments share.
struct Walk<'a> {
    dz: &'a [f32],
    q: &'a [f32],
    keys: &'a Gather<'a>,
    values: &'a Gather<'a>,
    scores: Option<&'a [f32]>,
    segments: &'a [SegmentPlace<'a>],
    shape: &'a Shape,
    rules: &'a Rules,
    with_pattern: bool,
}

impl Walk<'_> {
    /// One query head of one segment.
    fn head(&self, (index, head): (usize, usize), scratch: &mut Scratch, out: HeadLines) {
        let (shape, segment) = (self.shape, &self.segments[index]);
        let (d, width) = (shape.d_head, shape.n_heads * shape.d_head);
        let last = segment.query_positions.last();
        let seen = last.map_or(0, |&pos| visible(shape, pos as usize).1);
        let all = View::rows(d);
        scratch.k.resize(shape.length * d, 0.0);
        scratch.v.resize(shape.length * d, 0.0);
        let (k, v) = (&mut scratch.k, &mut scratch.v);
        self.keys.visit(segment, head, seen, shape, |pos, key| {
            k[pos * d..(pos + 1) * d].copy_from_slice(key)
        });
        self.values.visit(segment, head, seen, shape, |pos, value| {
            v[pos * d..(pos + 1) * d].copy_from_slice(value)
        });
        for sums in [&mut scratch.dk, &mut scratch.dv] {
            sums.clear();
            sums.resize(shape.length * d, 0.0);
        }
        let count = segment.query_positions.len();
        for first in (0..count).step_by(BLOCK) {
            let n = BLOCK.min(count - first);
            let positions = &segment.query_positions[first..first + n];
            let keys = visible(shape, positions[n - 1] as usize).1;
            let row = segment.query_start + first;
            // Views of this head's rows in `[query rows, n_heads, d_head]`.
            let of_head = View::rows(width).from(row * width + head * d);
            let block = View::rows(keys);
            for buffer in [&mut scratch.pattern, &mut scratch.slope] {
                buffer.resize(n * keys, 0.0);
            }
            self.fill_pattern(scratch, positions, row, head, keys, of_head);
            let (pattern, slope) = (&mut scratch.pattern, &mut scratch.slope);
            // At the values: pattern^T dz. At the pattern: dz v^T.
            small_product(
                (&mut scratch.dv, all),
                (pattern, block.t()),
                (self.dz, of_head),
                [keys, n, d],
                self.rules.value,
                true,
            );
            if self.rules.pattern == PatternRule::Frozen && !self.with_pattern {
                continue;
            }
            small_product(
                (slope, block),
                (self.dz, of_head),
                (&scratch.v, all.t()),
                [n, d, keys],
                1.0,
                false,
            );
            if self.with_pattern {
                self.write_visible(&mut out.pattern[first..], slope, positions, keys);
            }
            if self.rules.pattern == PatternRule::Frozen {
                slope.fill(0.0);
            }
            through_softmax(slope, pattern, keys);
            if self.with_pattern {
                self.write_visible(&mut out.slope[first..], slope, positions, keys);
            }
            self.through_softcap(scratch);
            let slope = &scratch.slope;
            let factor = shape.scale * self.rules.query_key;
            scratch.dq.resize(n * d, 0.0);
            small_product(
                (&mut scratch.dq, all),
                (slope, block),
                (&scratch.k, all),
                [n, keys, d],
                factor,
                false,
            );
            small_product(
                (&mut scratch.dk, all),
                (slope, block.t()),
                (self.q, of_head),
                [keys, n, d],
                factor,
                true,
            );
            for (line, dq) in out.q[first..]
                .iter_mut()
                .zip(scratch.dq.chunks_exact(d))
                .take(n)
            {
                line.copy_from_slice(dq);
            }
        }
        for (i, &pos) in segment.key_positions.iter().enumerate() {
            let from = pos as usize * d;
            out.k[i].copy_from_slice(&scratch.dk[from..from + d]);
            out.v[i].copy_from_slice(&scratch.dv[from..from + d]);
        }
    }

    /// The pattern of some query rows, `[n, keys]`, and its scores before the soft-cap.
    fn fill_pattern(
        &self,
        scratch: &mut Scratch,
        positions: &[u32],
        row: usize,
        head: usize,
        keys: usize,
        of_head: View,
    ) {
        let shape = self.shape;
        let (n, d) = (positions.len(), shape.d_head);
        let pattern = &mut scratch.pattern;
        if self.scores.is_none() || shape.softcap.is_some() {
            small_product(
                (pattern, View::rows(keys)),
                (self.q, of_head),
                (&scratch.k, View::rows(d).t()),
                [n, d, keys],
                shape.scale,
                false,
            );
        }
        if let Some(cap) = shape.softcap {
            scratch.uncapped.clear();
            scratch.uncapped.extend_from_slice(pattern);
            pattern
                .iter_mut()
                .for_each(|score| *score = cap * (*score / cap).tanh());
        }
        if let Some(slopes) = shape.alibi {
            for (&pos, row) in positions.iter().zip(pattern.chunks_exact_mut(keys)) {
                slopes.take_off(row, head, pos as usize);
            }
        }
        if let Some(scores) = self.scores {
            for (i, pattern) in pattern.chunks_exact_mut(keys).enumerate() {
                let at = ((row + i) * shape.n_heads + head) * shape.length;
                pattern.copy_from_slice(&scores[at..at + keys]);
            }
        }
        simd(
            #[inline(always)]
            || {
                for (&pos, row) in positions.iter().zip(pattern.chunks_exact_mut(keys)) {
                    let (low, high) = visible(shape, pos as usize);
                    softmax_row(row, low, high);
                }
            },
        )
    }

    /// From the gradient at capped scores to that before the cap.
    fn through_softcap(&self, scratch: &mut Scratch) {
        let Some(cap) = self.shape.softcap else {
            return;
        };
        // What nobody attends to has no slope at its score, and so none before the cap.
        for (slope, &score) in scratch.slope.iter_mut().zip(&scratch.uncapped) {
            *slope *= softcap_slope(score / cap, self.rules.softcap);
        }
    }

    /// Writes what each query sees; the rest stays zero.
    fn write_visible(
        &self,
        lines: &mut [&mut [f32]],
        block: &[f32],
        positions: &[u32],
        keys: usize,
    ) {
        let rows = positions.iter().zip(block.chunks_exact(keys));
        for (line, (&pos, row)) in lines.iter_mut().zip(rows) {
            let (low, high) = visible(self.shape, pos as usize);
            line[low..high].copy_from_slice(&row[low..high]);
        }
    }
}

/// What stands for the derivative of `cap tanh(x / cap)` at `u = x / cap`. It is not told by the capped value, which far out is the
/// cap itself for every `x`.
pub fn softcap_slope(u: f32, rule: SoftcapRule) -> f32 {
    match rule {
        SoftcapRule::Exact => u.cosh().recip().powi(2),
        // tanh(u) / u, whose limit at zero is one.
        SoftcapRule::Ratio if u.abs() < 1e-3 => 1.0 - u * u / 3.0,
        SoftcapRule::Ratio => u.tanh() / u,
    }
}

/// `slope <- pattern (slope - sum pattern slope)`, row by row.
fn through_softmax(slope: &mut [f32], pattern: &[f32], keys: usize) {
    simd(
        #[inline(always)]
        || {
            for (slope, pattern) in slope.chunks_exact_mut(keys).zip(pattern.chunks_exact(keys)) {
                let along = dot_inline(slope, pattern);
                for (slope, weight) in slope.iter_mut().zip(pattern) {
                    *slope = weight * (*slope - along);
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_of_a_soft_cap_holds_at_zero_and_far_out() {
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-6 * b.abs(), "{a} {b}");
        near(softcap_slope(0.0, SoftcapRule::Exact), 1.0);
        near(softcap_slope(0.0, SoftcapRule::Ratio), 1.0);
        near(softcap_slope(1e-3, SoftcapRule::Ratio), 1.0);
        near(
            softcap_slope(-0.5, SoftcapRule::Exact),
            1.0 - 0.5f32.tanh().powi(2),
        );
        // The capped value is the cap itself in f32.
        near(softcap_slope(20.0, SoftcapRule::Ratio), 0.05);
        near(
            softcap_slope(-20.0, SoftcapRule::Exact),
            4.0 * (-40f32).exp(),
        );
    }
}
