//! What readers see in a circuit: the stream at the reference, and what the kept sources write more.

use std::sync::Arc;

use rayon::prelude::*;

use crate::nn::host::simd;

/// What a source writes in a run, less what it writes at the reference.
#[derive(Debug)]
pub(super) struct Delta {
    /// `[rows, d_model]`, or of the answers alone.
    pub data: Vec<f32>,
    pub at_answers: bool,
}

/// The rows that a reader is looked at for.
#[derive(Debug, Clone, Copy)]
pub(super) enum At<'a> {
    Every(usize),
    /// The row of each prompt's answer.
    Answers(&'a [usize]),
}

impl At<'_> {
    pub fn len(self) -> usize {
        match self {
            At::Every(n) => n,
            At::Answers(rows) => rows.len(),
        }
    }

    pub fn is_answers(self) -> bool {
        matches!(self, At::Answers(_))
    }

    /// The row of the `i`-th that is looked at.
    pub fn row(self, i: usize) -> usize {
        match self {
            At::Every(_) => i,
            At::Answers(rows) => rows[i],
        }
    }

    /// The looked-at rows of a matrix of all rows.
    pub fn of(self, all: &[f32], width: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.len() * width);
        for i in 0..self.len() {
            out.extend_from_slice(&all[self.row(i) * width..][..width]);
        }
        out
    }
}

impl Delta {
    fn row(&self, i: usize, at: At<'_>, d: usize) -> &[f32] {
        let row = if self.at_answers { i } else { at.row(i) };
        &self.data[row * d..][..d]
    }
}

/// What every source so far writes, by its row in the graph, and the sum of it.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// `None`: as at the reference.
    pub of: Vec<Option<Arc<Delta>>>,
    /// The rows whose deltas are in the total, ascending; the first so many are added up, the others once somebody asks.
    in_total: Vec<usize>,
    added: usize,
    total: Vec<f32>,
    /// Floats of a delta of every row.
    len: usize,
}

impl Written {
    pub fn new(n_src: usize, len: usize) -> Self {
        Written {
            of: vec![None; n_src],
            in_total: Vec::new(),
            added: 0,
            total: Vec::new(),
            len,
        }
    }

    /// Takes what a source writes into the total, which readers of nearly everything begin with.
    pub fn add_to_total(&mut self, row: usize) {
        if (self.of[row].as_ref()).is_some_and(|delta| !delta.at_answers) {
            self.in_total.push(row);
        }
    }

    fn add_up(&mut self) {
        self.total.resize(self.len, 0.0);
        for &row in &self.in_total[self.added..] {
            let delta = self.of[row].as_deref().expect("it writes something");
            simd(
                #[inline(always)]
                || add(&mut self.total, &delta.data, 1.0),
            );
        }
        self.added = self.in_total.len();
    }

    /// For each reader, by the sources that it sees (those that write something, ascending), its stream.
    /// # Shapes
    /// `base [rows, d_model]`; gives `[at, readers, d_model]`.
    pub fn streams(
        &mut self,
        base: &[f32],
        at: At<'_>,
        readers: &[&[usize]],
        always: &[Arc<Delta>],
        d: usize,
    ) -> Vec<f32> {
        if readers
            .iter()
            .any(|sources| self.begins_with_total(sources))
        {
            self.add_up();
        }
        let sums: Vec<Sum<'_>> = readers.iter().map(|sources| self.sum(sources)).collect();
        let mut out = vec![0.0; at.len() * readers.len() * d];
        let rows = out.par_chunks_exact_mut((readers.len() * d).max(1));
        rows.enumerate().with_min_len(2).for_each(|(i, out)| {
            simd(
                #[inline(always)]
                || {
                    let row = at.row(i) * d;
                    for (out, sum) in out.chunks_exact_mut(d).zip(&sums) {
                        out.copy_from_slice(&base[row..][..d]);
                        for delta in always {
                            add(out, delta.row(i, at, d), 1.0);
                        }
                        if sum.from_total {
                            add(out, &self.total[row..][..d], 1.0);
                        }
                        for (delta, sign) in &sum.terms {
                            add(out, delta.row(i, at, d), *sign);
                        }
                    }
                },
            )
        });
        out
    }

    /// Whether everything less what is not seen is the shorter way to a sum.
    fn begins_with_total(&self, sources: &[usize]) -> bool {
        let inside = |row: &&usize| self.in_total.binary_search(row).is_ok();
        2 * sources.iter().filter(inside).count() > self.in_total.len() + 1
    }

    /// The shorter way to a sum: what is seen, or everything less what is not.
    fn sum(&self, sources: &[usize]) -> Sum<'_> {
        let delta = |row: usize| {
            self.of[row]
                .as_deref()
                .expect("a source that writes something")
        };
        let (inside, outside): (Vec<usize>, Vec<usize>) = sources
            .iter()
            .partition(|row| self.in_total.binary_search(row).is_ok());
        let from_total = self.begins_with_total(sources);
        let mut terms: Vec<(&Delta, f32)> = outside.iter().map(|&row| (delta(row), 1.0)).collect();
        if from_total {
            let mut seen = inside.iter().peekable();
            for &row in &self.in_total {
                if seen.next_if(|&&inside| inside == row).is_none() {
                    terms.push((delta(row), -1.0));
                }
            }
        } else {
            terms.extend(inside.iter().map(|&row| (delta(row), 1.0)));
        }
        Sum { from_total, terms }
    }
}

struct Sum<'a> {
    from_total: bool,
    terms: Vec<(&'a Delta, f32)>,
}

/// Adds a share of one row to another.
#[inline(always)]
pub(super) fn add(sum: &mut [f32], more: &[f32], share: f32) {
    for (sum, more) in sum.iter_mut().zip(more) {
        *sum = share.mul_add(*more, *sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_the_reference_and_what_is_seen_whichever_way_it_is_summed() {
        let deltas = [[1.0, 0.0], [0.0, 2.0], [4.0, 0.0], [0.0, 8.0]];
        let mut written = Written::new(6, 2);
        for (row, data) in deltas.iter().enumerate() {
            let (data, at_answers) = (data.to_vec(), false);
            written.of[row] = Some(Arc::new(Delta { data, at_answers }));
            written.add_to_total(row);
        }
        // Row 4 writes as at the reference; row 5 is of the answers alone, and in no total.
        written.add_to_total(4);
        let (data, at_answers) = (vec![16.0], true);
        written.of[5] = Some(Arc::new(Delta { data, at_answers }));
        written.add_to_total(5);
        let base = [100.0, 200.0];
        let every = written.streams(
            &base,
            At::Every(2),
            &[&[], &[0], &[0, 1, 3], &[0, 1, 2, 3]],
            &[],
            1,
        );
        assert_eq!(
            every,
            [100.0, 101.0, 101.0, 105.0, 200.0, 200.0, 210.0, 210.0]
        );
        let answers = At::Answers(&[1]);
        assert_eq!(
            written.streams(&base, answers, &[&[1, 3, 5]], &[], 1),
            [226.0]
        );
        let shift = Arc::new(Delta {
            data: vec![0.5, 0.25],
            at_answers: false,
        });
        assert_eq!(
            written.streams(&base, answers, &[&[]], &[shift], 1),
            [200.25]
        );
    }
}
