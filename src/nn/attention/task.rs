//! How attention is cut into tasks, and what a task gathers: its keys and values, and its query rows.

use candle_core::Tensor;

use super::shape::{SegmentPlace, Shape, visible};
use crate::error::Result;
use crate::nn::host::{Host, host};
use crate::nn::lines::Lines;

/// Some query rows of one segment, and the query heads that share one pair of key head and value head.
#[derive(Debug, Clone)]
pub(super) struct HeadTask {
    pub segment: usize,
    /// First query head and how many.
    pub head: usize,
    pub heads: usize,
    /// Query rows, counted inside the segment.
    pub rows: std::ops::Range<usize>,
    /// Keys that its last row can see, counted from position 0.
    pub keys: usize,
}

/// Query rows that are worked on at a time: enough to share the gathered keys, few enough to keep their scores in cache.
pub(super) const BLOCK: usize = 64;

pub(super) fn head_tasks(segments: &[SegmentPlace<'_>], shape: &Shape) -> Vec<HeadTask> {
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

/// The lines of `[query rows, n_heads, width]` that each task writes: its heads' of each of its rows.
pub(super) fn lines_of<'a>(
    out: &'a mut [f32],
    width: usize,
    tasks: &[HeadTask],
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Lines<'a> {
    let heads = tasks.first().map_or(1, |task| task.heads);
    let blocks = tasks.iter().filter(|task| task.head == 0).map(|task| {
        let start = segments[task.segment].query_start;
        start + task.rows.start..start + task.rows.end
    });
    Lines::new(out, shape.n_heads * width, heads * width, blocks)
}

#[derive(Default)]
pub(super) struct Scratch {
    pub kt: Vec<f32>,
    pub v: Vec<f32>,
    pub scores: Vec<f32>,
    pub z: Vec<f32>,
}

/// Where the keys (or values) of a segment lie.
pub(super) struct Gather<'a> {
    own: Host<'a>,
    base: Option<Host<'a>>,
    own_heads: usize,
    base_heads: usize,
}

impl<'a> Gather<'a> {
    pub fn new(
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
    pub fn visit(
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
    pub fn transposed(
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
    pub fn rows(
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
pub(super) struct Queries<'a> {
    pub data: &'a [f32],
    pub segment: &'a SegmentPlace<'a>,
    pub task: &'a HeadTask,
    pub shape: &'a Shape,
}

impl Queries<'_> {
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.task.rows.len() * self.task.heads
    }

    /// Where query `i` starts in `[query rows, n_heads, d_head]`.
    #[inline(always)]
    pub fn offset(&self, i: usize) -> usize {
        let row = self.segment.query_start + self.task.rows.start + i / self.task.heads;
        (row * self.shape.n_heads + self.task.head + i % self.task.heads) * self.shape.d_head
    }

    #[inline(always)]
    pub fn get(&self, i: usize) -> &[f32] {
        &self.data[self.offset(i)..][..self.shape.d_head]
    }

    /// The position of query `i`.
    #[inline(always)]
    pub fn position(&self, i: usize) -> usize {
        self.segment.query_positions[self.task.rows.start + i / self.task.heads] as usize
    }

    /// The key positions that query `i` sees.
    #[inline(always)]
    pub fn visible(&self, i: usize) -> (usize, usize) {
        visible(self.shape, self.position(i))
    }
}
