//! Which tokens the rows of a packed matrix are.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::Result;
use crate::metric::Target;
use crate::nn::attention::SegmentPlace;
use crate::nn::host::{host, is_host, tensor};

/// The tokens of one prompt, or of one variant of a prompt: some of its positions, in consecutive rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Index of the variant in its sweep; in a plain run, of the prompt.
    pub variant: usize,
    /// Index of the prompt in the base run.
    pub example: usize,
    /// Ascending.
    pub positions: Vec<u32>,
    /// First row.
    pub start: usize,
}

/// All rows of a packed matrix.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rows {
    pub segments: Vec<Segment>,
    pub total: usize,
    /// Tokens in each prompt.
    pub length: usize,
}

impl Rows {
    pub fn new(length: usize) -> Self {
        Rows {
            segments: Vec::new(),
            total: 0,
            length,
        }
    }

    /// Every position of each prompt; prompt `i` is `examples[i]` of the runs that edits take values from.
    pub fn whole_as(examples: &[usize], length: usize) -> Self {
        let mut rows = Rows::new(length);
        for (prompt, &example) in examples.iter().enumerate() {
            rows.push(prompt, example, (0..length as u32).collect());
        }
        rows
    }

    /// The rows where the answer of each segment's example is read, of those that are there.
    pub fn answers(&self, targets: &[Target]) -> Self {
        let mut answers = Rows::new(self.length);
        for segment in &self.segments {
            let read = targets[segment.example].positions(self.length);
            let positions = segment.positions.iter().copied();
            answers.push(
                segment.variant,
                segment.example,
                positions
                    .filter(|&pos| read.contains(&(pos as usize)))
                    .collect(),
            );
        }
        answers
    }

    /// The last row of each segment.
    pub fn last_of_each(&self) -> Self {
        let mut last = Rows::new(self.length);
        for segment in &self.segments {
            last.push(
                segment.variant,
                segment.example,
                segment.positions.last().copied().into_iter().collect(),
            );
        }
        last
    }

    pub fn push(&mut self, variant: usize, example: usize, positions: Vec<u32>) {
        let start = self.total;
        self.total += positions.len();
        self.segments.push(Segment {
            variant,
            example,
            positions,
            start,
        });
    }

    pub fn append(&mut self, other: Rows) {
        for segment in other.segments {
            self.push(segment.variant, segment.example, segment.positions);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// The position of each row.
    pub fn positions(&self) -> Vec<u32> {
        self.segments
            .iter()
            .flat_map(|segment| segment.positions.iter().copied())
            .collect()
    }

    /// Where attention finds each segment: these rows ask, and `keys`, other rows of the same segments, bring keys and values.
    pub fn places<'a>(&'a self, keys: &'a Rows) -> Vec<SegmentPlace<'a>> {
        let both = self.segments.iter().zip(&keys.segments);
        both.map(|(queries, keys)| SegmentPlace {
            query_start: queries.start,
            query_positions: &queries.positions,
            key_start: keys.start,
            key_positions: &keys.positions,
            example: keys.example,
        })
        .collect()
    }

    /// The last row of each segment, by its number.
    pub fn last_rows(&self) -> Vec<usize> {
        let last = |segment: &Segment| segment.start + segment.positions.len() - 1;
        self.segments.iter().map(last).collect()
    }

    /// For each row, its row in a matrix that holds every position of every prompt.
    pub fn in_whole(&self) -> Vec<u32> {
        let row = |segment: &Segment, pos: &u32| (segment.example * self.length) as u32 + pos;
        self.segments
            .iter()
            .flat_map(|segment| segment.positions.iter().map(move |pos| row(segment, pos)))
            .collect()
    }
}

/// The rows of `whole` (every position of every prompt) that `rows` names.
/// # Shapes
/// `whole [examples * length, ..]`; gives `[rows, ..]`.
pub fn pick(whole: &Tensor, rows: &Rows) -> Result<Tensor> {
    Ok(whole.index_select(&Tensor::new(rows.in_whole(), whole.device())?, 0)?)
}

/// The rows `to`: from `own` (whose rows are `from`) where it has them, from `whole` elsewhere. Segments of `to` stand in the
/// order of those of `from`.
/// # Shapes
/// `own [from, ..]`, `whole [examples * length, ..]`; gives `[to, ..]`.
pub fn regather(own: &Tensor, from: &Rows, to: &Rows, whole: Option<&Tensor>) -> Result<Tensor> {
    let index = regather_index(from, to);
    let Some(whole) = whole else {
        let index: Vec<u32> = index
            .iter()
            .map(|row| row.expect("without a base run every row is there"))
            .collect();
        return Ok(own
            .contiguous()?
            .index_select(&Tensor::new(index, own.device())?, 0)?);
    };
    let width: usize = own.dims()[1..].iter().product();
    let mut dims = own.dims().to_vec();
    dims[0] = to.total;
    if !is_host(own) {
        let in_whole = to.in_whole();
        let joint = index
            .iter()
            .zip(in_whole)
            .map(|(own, whole)| own.unwrap_or(from.total as u32 + whole))
            .collect();
        let joint: Vec<u32> = joint;
        return Ok(
            Tensor::cat(&[own, whole], 0)?.index_select(&Tensor::new(joint, own.device())?, 0)?
        );
    }
    let own = own.contiguous()?;
    let (a, b) = (host(&own)?, host(whole)?);
    let in_whole = to.in_whole();
    let mut out = vec![0.0; to.total * width];
    out.par_chunks_exact_mut(width)
        .zip(index)
        .zip(in_whole)
        .with_min_len(64)
        .for_each(|((out, own), whole)| match own {
            Some(row) => out.copy_from_slice(&a[row as usize * width..][..width]),
            None => out.copy_from_slice(&b[whole as usize * width..][..width]),
        });
    tensor(out, dims)
}

/// For each row of `to`, its row in `from` if it is there.
fn regather_index(from: &Rows, to: &Rows) -> Vec<Option<u32>> {
    let mut index = Vec::with_capacity(to.total);
    for (from, to) in from.segments.iter().zip(&to.segments) {
        debug_assert_eq!(from.variant, to.variant, "segments keep their order");
        for pos in &to.positions {
            index.push(
                from.positions
                    .binary_search(pos)
                    .ok()
                    .map(|row| (from.start + row) as u32),
            );
        }
    }
    index
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regathering_takes_own_rows_first() {
        let whole = tensor((0..8).map(|i| i as f32).collect(), (8, 1)).expect("shape");
        let mut from = Rows::new(4);
        from.push(7, 1, vec![1, 3]);
        let own = tensor(vec![100.0, 300.0], (2, 1)).expect("shape");
        let mut to = Rows::new(4);
        to.push(7, 1, vec![1, 2, 3]);
        let out = regather(&own, &from, &to, Some(&whole)).expect("runs");
        assert_eq!(
            out.flatten_all()
                .expect("flat")
                .to_vec1::<f32>()
                .expect("reads"),
            [100.0, 6.0, 300.0]
        );
        let picked = pick(&whole, &to)
            .expect("runs")
            .flatten_all()
            .expect("flat")
            .to_vec1::<f32>()
            .expect("reads");
        assert_eq!(picked, [5.0, 6.0, 7.0]);
    }
}
