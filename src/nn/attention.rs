//! Attention over packed tokens, with grouped heads, windows and soft-caps.
//!
//! Each segment (a prompt, or a variant of one in a sweep) asks with its own query rows. Its keys and values come from its own
//! rows where it has them and from the base run elsewhere, so a variant carries only the tokens that its edit can have changed.
//!
//! The fast form gathers the keys of one key head, transposed, and works on four query rows and sixteen columns at a time.
//! [`scores`], [`softmax`] and [`mix`] are the same steps one by one, for runs in which somebody reads or edits scores or patterns.

mod backward;

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;

use super::host::{exp, host, is_host, room, simd, tensor};
use crate::error::Result;
use crate::spec::{Alibi, ModelSpec, Position};

pub use backward::{AttentionGradients, Forward, backward, softcap_slope};

/// What attention needs to know of the model at one layer.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub n_heads: usize,
    /// Heads of the segments' own keys: the model's key/value heads, or one for each query head after an edit of `hook_k_input`.
    pub key_heads: usize,
    pub value_heads: usize,
    /// Heads of the base run's keys and values.
    pub n_kv_heads: usize,
    pub d_head: usize,
    pub scale: f32,
    pub softcap: Option<f32>,
    pub window: Option<usize>,
    pub alibi: Option<Slopes>,
    /// Whether a query sees no later key.
    pub causal: bool,
    /// Tokens in each prompt.
    pub length: usize,
}

/// The slopes of ALiBi for the heads of a [`Shape`], which may be some of the model's only.
#[derive(Debug, Clone, Copy)]
pub struct Slopes {
    alibi: Alibi,
    n_heads: usize,
    first: usize,
}

impl Slopes {
    /// For heads from `first` on.
    pub fn new(spec: &ModelSpec, first: usize) -> Option<Self> {
        match spec.position {
            Position::Alibi(alibi) => Some(Slopes {
                alibi,
                n_heads: spec.n_heads,
                first,
            }),
            Position::None | Position::Learned | Position::Rotary(_) => None,
        }
    }

    /// What a score of `head` loses for each position between key and query.
    fn of(self, head: usize) -> f32 {
        self.alibi.slope(self.first + head, self.n_heads)
    }

    /// Takes it off one query's scores, those of keys `0..`.
    #[inline(always)]
    fn take_off(self, scores: &mut [f32], head: usize, pos: usize) {
        let slope = self.of(head);
        for (key, score) in scores.iter_mut().enumerate() {
            *score += slope * (key as f32 - pos as f32);
        }
    }
}

/// One segment's place in the packed rows.
#[derive(Debug, Clone)]
pub struct SegmentPlace<'a> {
    /// First query row, and the position of each query row.
    pub query_start: usize,
    pub query_positions: &'a [u32],
    /// First row of its own keys and values, and the position of each.
    pub key_start: usize,
    pub key_positions: &'a [u32],
    /// Which prompt of the base run the other positions come from.
    pub example: usize,
}

/// Keys and values: the segments' own, and those of the base run.
#[derive(Debug, Clone, Copy)]
pub struct KeysValues<'a> {
    /// `[key rows, key_heads, d_head]`, rotated.
    pub k: &'a Tensor,
    /// `[key rows, value_heads, d_head]`
    pub v: &'a Tensor,
    /// `[examples * length, n_kv_heads, d_head]`, rotated keys and values; `None` if every segment has all its positions.
    pub base: Option<(&'a Tensor, &'a Tensor)>,
}

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
    let z = Output::new(q.elem_count());
    head_tasks(segments, shape)
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, task| {
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
                    for i in 0..queries.len() {
                        z.write(
                            queries.offset(i),
                            &block[i * padded..i * padded + shape.d_head],
                        );
                    }
                },
            )
        });
    tensor(z.data, q.shape())
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
    let out = Output::new(q.dim(0)? * shape.n_heads * shape.length);
    head_tasks(segments, shape)
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, task| {
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
                    let mut row = vec![f32::NEG_INFINITY; shape.length];
                    for i in 0..queries.len() {
                        let (low, high) = queries.visible(i);
                        row.fill(f32::NEG_INFINITY);
                        row[low..high]
                            .copy_from_slice(&scratch.scores[i * width + low..i * width + high]);
                        out.write(queries.offset(i) / shape.d_head * shape.length, &row);
                    }
                },
            )
        });
    tensor(out.data, (q.dim(0)?, shape.n_heads, shape.length))
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
    let z = Output::new(rows * shape.n_heads * shape.d_head);
    head_tasks(segments, shape)
        .into_par_iter()
        .for_each_init(Scratch::default, |scratch, task| {
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
                    for i in 0..queries.len() {
                        z.write(
                            queries.offset(i),
                            &scratch.z[i * padded..i * padded + shape.d_head],
                        );
                    }
                },
            )
        });
    tensor(z.data, (rows, shape.n_heads, shape.d_head))
}

/// Some query rows of one segment, and the query heads that share one pair of key head and value head.
#[derive(Debug, Clone)]
struct HeadTask {
    segment: usize,
    /// First query head and how many.
    head: usize,
    heads: usize,
    /// Query rows, counted inside the segment.
    rows: std::ops::Range<usize>,
    /// Keys that its last row can see, counted from position 0.
    keys: usize,
}

/// Query rows that are worked on at a time: enough to share the gathered keys, few enough to keep their scores in cache.
const BLOCK: usize = 64;

fn head_tasks(segments: &[SegmentPlace<'_>], shape: &Shape) -> Vec<HeadTask> {
    let group = shape.n_heads / shape.key_heads.max(shape.value_heads);
    let mut tasks = Vec::with_capacity(segments.len() * shape.n_heads / group);
    for (index, segment) in segments.iter().enumerate() {
        let rows = segment.query_positions.len();
        for start in (0..rows).step_by(BLOCK) {
            let end = rows.min(start + BLOCK);
            let keys = if shape.causal {
                segment.query_positions[end - 1] as usize + 1
            } else {
                shape.length
            };
            for head in (0..shape.n_heads).step_by(group) {
                tasks.push(HeadTask {
                    segment: index,
                    head,
                    heads: group,
                    rows: start..end,
                    keys,
                });
            }
        }
    }
    tasks
}

#[derive(Default)]
struct Scratch {
    kt: Vec<f32>,
    v: Vec<f32>,
    scores: Vec<f32>,
    z: Vec<f32>,
}

/// Where the keys (or values) of a segment lie.
struct Gather<'a> {
    own: super::host::Host<'a>,
    base: Option<super::host::Host<'a>>,
    own_heads: usize,
    base_heads: usize,
}

impl<'a> Gather<'a> {
    fn new(
        own: &'a Tensor,
        base: Option<&'a Tensor>,
        own_heads: usize,
        shape: &Shape,
    ) -> Result<Self> {
        Ok(Gather {
            own: host(own)?,
            base: base.map(host).transpose()?,
            own_heads,
            base_heads: shape.n_kv_heads,
        })
    }

    /// Calls `each(position, its d_head values)` for positions `0..keys`, the base run's first and the segment's own over them.
    #[inline(always)]
    fn visit(
        &self,
        segment: &SegmentPlace<'_>,
        head: usize,
        keys: usize,
        shape: &Shape,
        mut each: impl FnMut(usize, &[f32]),
    ) {
        let d = shape.d_head;
        let own_head = head / (shape.n_heads / self.own_heads);
        let mut own = segment.key_positions.iter().enumerate().peekable();
        let base_head = head / (shape.n_heads / self.base_heads);
        for pos in 0..keys {
            match own.next_if(|&(_, &own)| own as usize == pos) {
                Some((row, _)) => {
                    let at = ((segment.key_start + row) * self.own_heads + own_head) * d;
                    each(pos, &self.own[at..at + d]);
                }
                None => {
                    let base = self
                        .base
                        .as_ref()
                        .expect("a segment without all its positions has a base run");
                    let at =
                        ((segment.example * shape.length + pos) * self.base_heads + base_head) * d;
                    each(pos, &base[at..at + d]);
                }
            }
        }
    }

    /// Fills `kt` with `[d_head, width]`, `width` the number of keys rounded up to sixteen; returns `width`.
    #[inline(always)]
    fn transposed(
        &self,
        kt: &mut Vec<f32>,
        segment: &SegmentPlace<'_>,
        head: usize,
        task: &HeadTask,
        shape: &Shape,
    ) -> usize {
        let width = task.keys.next_multiple_of(16);
        kt.clear();
        kt.resize(width * shape.d_head, 0.0);
        self.visit(segment, head, task.keys, shape, |pos, key| {
            for (d, value) in key.iter().enumerate() {
                kt[d * width + pos] = *value;
            }
        });
        width
    }

    /// Fills `rows` with `[keys, padded]`, `padded` being `d_head` rounded up to sixteen; returns `padded`.
    #[inline(always)]
    fn rows(
        &self,
        rows: &mut Vec<f32>,
        segment: &SegmentPlace<'_>,
        head: usize,
        task: &HeadTask,
        shape: &Shape,
    ) -> usize {
        let padded = shape.d_head.next_multiple_of(16);
        rows.clear();
        rows.resize(task.keys * padded, 0.0);
        self.visit(segment, head, task.keys, shape, |pos, value| {
            rows[pos * padded..pos * padded + shape.d_head].copy_from_slice(value);
        });
        padded
    }
}

/// The query rows of a task: all its heads for the first row, then for the second, ...
struct Queries<'a> {
    data: &'a [f32],
    segment: &'a SegmentPlace<'a>,
    task: &'a HeadTask,
    shape: &'a Shape,
}

impl Queries<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        self.task.rows.len() * self.task.heads
    }

    /// Where query `i` starts in `[query rows, n_heads, d_head]`.
    #[inline(always)]
    fn offset(&self, i: usize) -> usize {
        let row = self.segment.query_start + self.task.rows.start + i / self.task.heads;
        (row * self.shape.n_heads + self.task.head + i % self.task.heads) * self.shape.d_head
    }

    #[inline(always)]
    fn get(&self, i: usize) -> &[f32] {
        &self.data[self.offset(i)..][..self.shape.d_head]
    }

    /// The position of query `i`.
    #[inline(always)]
    fn position(&self, i: usize) -> usize {
        self.segment.query_positions[self.task.rows.start + i / self.task.heads] as usize
    }

    /// The key positions that query `i` sees.
    #[inline(always)]
    fn visible(&self, i: usize) -> (usize, usize) {
        visible(self.shape, self.position(i))
    }
}

/// The key positions that a query at `pos` sees.
#[inline(always)]
fn visible(shape: &Shape, pos: usize) -> (usize, usize) {
    let low = shape
        .window
        .map_or(0, |window| (pos + 1).saturating_sub(window));
    (low, if shape.causal { pos + 1 } else { shape.length })
}

/// Scores of all queries of a task, scaled and capped, `[queries, width]`.
#[inline(always)]
fn fill_scores(
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
fn multiply(
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
fn softmax_row(row: &mut [f32], low: usize, high: usize) {
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
    let inverse = 1.0 / super::host::fold(sums);
    row[low..high].iter_mut().for_each(|x| *x *= inverse);
}

/// A buffer whose disjoint parts are written by several tasks.
struct Output {
    data: Vec<f32>,
    /// Where `data` starts, taken while it was borrowed mutably: what the tasks write through.
    start: *mut f32,
}

// SAFETY: tasks only `write`, each to places of its own, and `data` is read after all of them have ended.
unsafe impl Sync for Output {}

impl Output {
    fn new(len: usize) -> Self {
        let mut data = room(len);
        let start = data.as_mut_ptr();
        Output { data, start }
    }

    /// Sets `len` places to one value; as with [`Output::write`], no two tasks share a place.
    fn fill(&self, at: usize, len: usize, value: f32) {
        assert!(at + len <= self.data.len(), "inside the output");
        // SAFETY: as in `write`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len).fill(value) }
    }

    /// Tasks cover disjoint (row, head) pairs, so no two of them write the same place.
    #[inline(always)]
    fn write(&self, at: usize, values: &[f32]) {
        assert!(at + values.len() <= self.data.len(), "inside the output");
        // SAFETY: in bounds by the assertion; `head_tasks` gives each (row, head) to one task, and nobody reads before all have ended.
        unsafe {
            std::ptr::copy_nonoverlapping(values.as_ptr(), self.start.add(at), values.len());
        }
    }
}

/// The keys or values of one segment in tensor operations, `[length, heads, d_head]`.
fn assemble(
    own: &Tensor,
    base: Option<&Tensor>,
    segment: &SegmentPlace<'_>,
    heads: usize,
    shape: &Shape,
) -> Result<Tensor> {
    let own = own.narrow(0, segment.key_start, segment.key_positions.len())?;
    let Some(base) = base else { return Ok(own) };
    let base = base.narrow(0, segment.example * shape.length, shape.length)?;
    let base = if heads == shape.n_kv_heads {
        base
    } else {
        repeat(&base, heads / shape.n_kv_heads)?
    };
    let mut index: Vec<u32> = (0..shape.length as u32)
        .map(|pos| pos + segment.key_positions.len() as u32)
        .collect();
    for (row, &pos) in segment.key_positions.iter().enumerate() {
        index[pos as usize] = row as u32;
    }
    Ok(Tensor::cat(&[&own, &base], 0)?.index_select(&Tensor::new(index, own.device())?, 0)?)
}

/// Repeats each head `times` times.
/// # Shapes
/// `x [rows, heads, d]`; gives `[rows, heads * times, d]`.
pub fn repeat(x: &Tensor, times: usize) -> Result<Tensor> {
    let (rows, heads, d) = x.dims3()?;
    Ok(x.unsqueeze(2)?
        .broadcast_as((rows, heads, times, d))?
        .reshape((rows, heads * times, d))?)
}

fn composed_scores(
    q: &Tensor,
    sources: KeysValues<'_>,
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Result<Tensor> {
    let mut all = Vec::with_capacity(segments.len());
    for segment in segments {
        let k = assemble(
            sources.k,
            sources.base.map(|base| base.0),
            segment,
            shape.key_heads,
            shape,
        )?;
        let k = repeat(&k, shape.n_heads / shape.key_heads)?;
        let q = q.narrow(0, segment.query_start, segment.query_positions.len())?;
        let q = q.transpose(0, 1)?.contiguous()?; // [head, query, d_head]
        let kt = k.transpose(0, 1)?.transpose(1, 2)?.contiguous()?; // [head, d_head, key]
        let scores = (q.matmul(&kt)?.to_dtype(DType::F32)? * f64::from(shape.scale))?;
        let scores = match shape.softcap {
            Some(cap) => ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?,
            None => scores,
        };
        // With ALiBi what is added differs from head to head.
        let heads = if shape.alibi.is_some() {
            shape.n_heads
        } else {
            1
        };
        let queries = segment.query_positions.len();
        let mut mask = vec![f32::NEG_INFINITY; heads * queries * shape.length];
        for (i, mask) in mask.chunks_exact_mut(shape.length).enumerate() {
            let pos = segment.query_positions[i % queries] as usize;
            let (low, high) = visible(shape, pos);
            mask[low..high].fill(0.0);
            if let Some(slopes) = shape.alibi {
                slopes.take_off(mask, i / queries, pos);
            }
        }
        let mask = Tensor::from_vec(mask, (heads, queries, shape.length), &Device::Cpu)?;
        let scores = scores.broadcast_add(&mask.to_device(q.device())?)?;
        all.push(scores.transpose(0, 1)?); // [query, head, key]
    }
    Ok(Tensor::cat(&all, 0)?)
}

fn composed_mix(
    pattern: &Tensor,
    sources: KeysValues<'_>,
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Result<Tensor> {
    let mut all = Vec::with_capacity(segments.len());
    for segment in segments {
        let v = assemble(
            sources.v,
            sources.base.map(|base| base.1),
            segment,
            shape.value_heads,
            shape,
        )?;
        let v = repeat(&v, shape.n_heads / shape.value_heads)?
            .transpose(0, 1)?
            .contiguous()?; // [head, key, d_head]
        let pattern = pattern.narrow(0, segment.query_start, segment.query_positions.len())?;
        let pattern = pattern.transpose(0, 1)?.contiguous()?.to_dtype(v.dtype())?; // [head, query, key]
        all.push(pattern.matmul(&v)?.transpose(0, 1)?); // [query, head, d_head]
    }
    Ok(Tensor::cat(&all, 0)?.contiguous()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(shape: (usize, usize, usize), seed: f32) -> Tensor {
        let n = shape.0 * shape.1 * shape.2;
        tensor(
            (0..n)
                .map(|i| (i as f32 * 12.9898 + seed).sin() * 1.5)
                .collect(),
            shape,
        )
        .expect("shape")
    }

    fn gap(a: &Tensor, b: &Tensor) -> f32 {
        let gap = (a - b)
            .expect("same shape")
            .abs()
            .expect("abs")
            .max_all()
            .expect("max");
        gap.to_scalar::<f32>().expect("scalar")
    }

    #[test]
    fn the_fast_form_agrees_with_tensor_operations() {
        let length = 70;
        let everywhere: Vec<u32> = (0..length as u32).collect();
        let (some, tail) = (vec![3u32, 9, 40, 68], vec![9u32, 69]);
        let slopes = Slopes {
            alibi: Alibi { max_bias: 5.0 },
            n_heads: 9,
            first: 2,
        };
        for (window, softcap, key_heads, causal, alibi) in [
            (None, None, 2, true, None),
            (Some(5), Some(4.0), 2, true, None),
            (None, None, 6, true, Some(slopes)),
            (None, None, 2, false, None),
        ] {
            let shape = Shape {
                n_heads: 6,
                key_heads,
                value_heads: 2,
                n_kv_heads: 2,
                d_head: 20,
                scale: 0.3,
                softcap,
                window,
                alibi,
                causal,
                length,
            };
            // One whole prompt; one variant with its own keys at four places and queries at two.
            let segments = [
                SegmentPlace {
                    query_start: 0,
                    query_positions: &everywhere,
                    key_start: 0,
                    key_positions: &everywhere,
                    example: 0,
                },
                SegmentPlace {
                    query_start: length,
                    query_positions: &tail,
                    key_start: length,
                    key_positions: &some,
                    example: 1,
                },
            ];
            let q = noise((length + 2, 6, 20), 0.1);
            let (k, v) = (
                noise((length + 4, key_heads, 20), 0.2),
                noise((length + 4, 2, 20), 0.3),
            );
            let (base_k, base_v) = (
                noise((2 * length, 2, 20), 0.4),
                noise((2 * length, 2, 20), 0.5),
            );
            let sources = KeysValues {
                k: &k,
                v: &v,
                base: Some((&base_k, &base_v)),
            };
            let fast = forward(&q, sources, &segments, &shape).expect("runs");
            let raw = composed_scores(&q, sources, &segments, &shape).expect("runs");
            let pattern = candle_nn::ops::softmax(&raw, D::Minus1).expect("runs");
            let slow = composed_mix(&pattern, sources, &segments, &shape).expect("runs");
            assert!(gap(&fast, &slow) < 1e-5, "{}", gap(&fast, &slow));
            let steps =
                softmax(&scores(&q, sources, &segments, &shape).expect("runs")).expect("runs");
            assert!(gap(&steps, &pattern) < 1e-6);
            let steps = mix(&steps, sources, &segments, &shape).expect("runs");
            assert!(gap(&steps, &slow) < 1e-5);
        }
    }
}
