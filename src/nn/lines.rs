//! A buffer that several tasks write at once, each the lines that are its own: the borrow checker sees that no two share one.

use std::ops::Range;

/// The lines of a row-major matrix, shared out.
pub(super) struct Lines<'a> {
    lines: Vec<&'a mut [f32]>,
    /// How many lines each task has.
    counts: Vec<usize>,
}

impl<'a> Lines<'a> {
    /// A task for each of `blocks`, which are ranges of rows, and in it for each `piece` of columns; a buffer without room gives each
    /// task no lines.
    /// # Panics
    /// If a row is in two blocks: a mistake of the caller.
    pub fn new(
        data: &'a mut [f32],
        width: usize,
        piece: usize,
        blocks: impl IntoIterator<Item = Range<usize>>,
    ) -> Self {
        let pieces = width.div_ceil(piece.max(1));
        let n_rows = data.len().checked_div(width).unwrap_or(0);
        // Where the first piece of each row goes, and how far on each next one.
        let mut places = vec![None; n_rows];
        let (mut counts, mut end) = (Vec::new(), 0);
        for rows in blocks {
            let n = if n_rows > 0 { rows.len() } else { 0 };
            for (i, row) in rows.take(n).enumerate() {
                assert_eq!(places[row], None, "a row has one writer");
                places[row] = Some((end + i, n));
            }
            counts.extend(std::iter::repeat_n(n, pieces));
            end += n * pieces;
        }
        let mut lines: Vec<&mut [f32]> = (0..end).map(|_| &mut [][..]).collect();
        for (row, place) in data.chunks_mut(width.max(1)).zip(places) {
            let Some((first, apart)) = place else {
                continue;
            };
            for (i, part) in row.chunks_mut(piece.max(1)).enumerate() {
                lines[first + i * apart] = part;
            }
        }
        Lines { lines, counts }
    }

    /// What each task writes: its piece of each of its rows, in order.
    pub fn tasks(&mut self) -> Vec<&mut [&'a mut [f32]]> {
        let mut rest = self.lines.as_mut_slice();
        let of_task = |&count: &usize| rest.split_off_mut(..count).expect("counted");
        self.counts.iter().map(of_task).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_has_its_piece_of_its_rows() {
        let mut data = vec![0.0; 4 * 5];
        let mut lines = Lines::new(&mut data, 5, 2, [2..4, 0..1]);
        for (task, lines) in lines.tasks().into_iter().enumerate() {
            for (i, line) in lines.iter_mut().enumerate() {
                line.fill((10 * (task + 1) + i) as f32);
            }
        }
        let rows = [
            [40.0, 40.0, 50.0, 50.0, 60.0],
            [0.0; 5],
            [10.0, 10.0, 20.0, 20.0, 30.0],
            [11.0, 11.0, 21.0, 21.0, 31.0],
        ];
        assert_eq!(data, rows.concat());
    }

    #[test]
    fn nothing_to_write_is_nothing_for_each_task() {
        let mut lines = Lines::new(&mut [], 4, 2, [0..3, 3..6]);
        assert_eq!(lines.tasks().len(), 4);
        assert!(lines.tasks().iter().all(|lines| lines.is_empty()));
    }

    #[test]
    #[should_panic(expected = "a row has one writer")]
    fn no_row_has_two_writers() {
        Lines::new(&mut [0.0; 4], 2, 2, [0..2, 1..2]);
    }
}
