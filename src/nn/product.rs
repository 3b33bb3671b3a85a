//! Matrix products of slices: small ones of views inside a parallel loop, large ones on all threads. A right side in 16 bits is widened
//! a panel at a time, so that all arithmetic is in f32 and a weight is read once.

use rayon::prelude::*;

use super::lines::Lines;
use super::matrix::{Half, Numbers};

/// A matrix inside a slice: where it begins, and how far apart its rows and columns are.
#[derive(Debug, Clone, Copy)]
pub struct View {
    pub start: usize,
    pub row: usize,
    pub column: usize,
}

impl View {
    /// A row-major matrix with `width` columns.
    pub fn rows(width: usize) -> Self {
        View {
            start: 0,
            row: width,
            column: 1,
        }
    }

    pub fn from(mut self, start: usize) -> Self {
        self.start = start;
        self
    }

    /// The same matrix transposed.
    pub fn t(self) -> Self {
        View {
            start: self.start,
            row: self.column,
            column: self.row,
        }
    }

    fn fits(self, rows: usize, columns: usize, len: usize) -> bool {
        rows == 0
            || columns == 0
            || self.start + (rows - 1) * self.row + (columns - 1) * self.column < len
    }
}

/// `y (+)= scale * a @ b` for views of slices, on the calling thread: for the many small products inside a parallel loop.
/// # Shapes
/// `sizes = [rows, inner, columns]`.
pub fn small_product(
    y: (&mut [f32], View),
    a: (&[f32], View),
    b: (&[f32], View),
    sizes: [usize; 3],
    scale: f32,
    accumulate: bool,
) {
    multiply(y, a, b, sizes, scale, accumulate, 1);
}

/// [`small_product`] on some threads.
fn multiply(
    (y, y_view): (&mut [f32], View),
    (a, a_view): (&[f32], View),
    (b, b_view): (&[f32], View),
    [rows, inner, columns]: [usize; 3],
    scale: f32,
    accumulate: bool,
    threads: usize,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(
        y_view.fits(rows, columns, y.len())
            && a_view.fits(rows, inner, a.len())
            && b_view.fits(inner, columns, b.len()),
        "views lie inside their slices"
    );
    let parallelism = match threads {
        1 => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(threads),
    };
    // SAFETY: the largest index of each view lies inside its slice, as asserted above, and `y` is borrowed mutably.
    #[allow(unsafe_code)]
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            y.as_mut_ptr().add(y_view.start),
            y_view.column as isize,
            y_view.row as isize,
            accumulate,
            a.as_ptr().add(a_view.start),
            a_view.column as isize,
            a_view.row as isize,
            b.as_ptr().add(b_view.start),
            b_view.column as isize,
            b_view.row as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// How the right-hand matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// `[in, out]`
    InOut,
    /// `[out, in]`
    OutIn,
}

/// `y (+)= x @ w` for row-major slices, on all threads of the current rayon pool.
/// # Shapes
/// `sizes = [rows, in, out]`.
pub fn product<'a>(
    y: &mut [f32],
    x: &[f32],
    w: impl Into<Numbers<'a>>,
    sizes: [usize; 3],
    right: Right,
    accumulate: bool,
) {
    let [rows, inner, outer] = sizes;
    let w = w.into();
    assert_eq!(
        (y.len(), x.len(), w.count()),
        (rows * outer, rows * inner, inner * outer),
        "slices match their sizes"
    );
    if y.is_empty() {
        return;
    }
    match w {
        Numbers::F32(w) => {
            let threads = rayon::current_num_threads();
            into_columns(y, [outer, 0], x, w, sizes, right, accumulate, threads);
        }
        Numbers::Bf16(w) => widened(y, x, w, sizes, right, accumulate),
        Numbers::F16(w) => widened(y, x, w, sizes, right, accumulate),
    }
}

/// Writes `x @ w` into as many columns of `y` as `w` has, or adds it.
/// # Shapes
/// `y [rows, width]`, of which the columns from `first` on are written; `sizes = [rows, in, out]`.
#[expect(clippy::too_many_arguments, reason = "a product and where it goes")]
fn into_columns(
    y: &mut [f32],
    [width, first]: [usize; 2],
    x: &[f32],
    w: &[f32],
    sizes: [usize; 3],
    right: Right,
    accumulate: bool,
    threads: usize,
) {
    let [rows, inner, outer] = sizes;
    let x = (x, View::rows(inner));
    let w = match right {
        Right::InOut => (w, View::rows(outer)),
        Right::OutIn => (w, View::rows(inner).t()),
    };
    if right == Right::InOut || rows < TURNED_ROWS {
        let columns = View::rows(width).from(first);
        return multiply((y, columns), x, w, sizes, 1.0, accumulate, threads);
    }
    let mut turned = vec![0.0; rows * outer]; // [out, rows]
    let view = View::rows(rows).t();
    multiply((&mut turned, view), x, w, sizes, 1.0, false, threads);
    let back = |(block, lines): (usize, &mut [f32])| {
        for (i, line) in lines.chunks_exact_mut(width).enumerate() {
            let row = block * TILE + i;
            let line = &mut line[first..first + outer];
            for (y, column) in line.iter_mut().zip(turned.chunks_exact(rows)) {
                *y = column[row] + if accumulate { *y } else { 0.0 };
            }
        }
    };
    match threads {
        1 => y.chunks_mut(TILE * width).enumerate().for_each(back),
        _ => y.par_chunks_mut(TILE * width).enumerate().for_each(back),
    }
}

/// Rows from which a product with `[out, in]` is formed with its sides exchanged and turned round: the kernel wants its left side packed,
/// and then that is not the large matrix, whose lines the right side can be read from where they lie.
const TURNED_ROWS: usize = 24;
/// Rows that one thread turns at a time: a cache line of each column.
const TILE: usize = 16;

/// Fewest rows for which a panel is worth being shared by all threads: with fewer, each thread has panels of its own.
const MANY_ROWS: usize = 64;
/// Numbers of a thread's own panel: 512 KB of f32, which the second-level cache holds.
const OWN_PANEL: usize = 1 << 17;
/// Numbers of a shared panel: 8 MB of f32.
const SHARED_PANEL: usize = 1 << 21;
/// Fewest columns of a shared panel: the left side is packed again for each.
const SHARED_COLUMNS: usize = 512;

/// `y (+)= x @ w` with `w` in 16 bits.
/// # Shapes
/// `sizes = [rows, in, out]`; checked by the caller.
fn widened<H: Half>(
    y: &mut [f32],
    x: &[f32],
    w: &[H],
    sizes: [usize; 3],
    right: Right,
    accumulate: bool,
) {
    let [rows, inner, outer] = sizes;
    let columns = |numbers: usize, least: usize| (numbers / inner.max(1)).max(least).min(outer);
    let threads = rayon::current_num_threads();
    if rows >= MANY_ROWS {
        let width = columns(SHARED_PANEL, SHARED_COLUMNS);
        let mut panel = vec![0.0; inner * width];
        for first in (0..outer).step_by(width) {
            let width = width.min(outer - first);
            let panel = &mut panel[..inner * width];
            let lines = line(right, inner, width).max(1);
            // A few lines at a time, so that threads share the work.
            let at_once = (panel.len() / lines / (4 * threads)).max(1);
            panel
                .par_chunks_mut(at_once * lines)
                .enumerate()
                .for_each(|(i, part)| {
                    widen_lines(part, w, i * at_once, first, width, sizes, right)
                });
            let of_panel = [rows, inner, width];
            let columns = [outer, first];
            into_columns(y, columns, x, panel, of_panel, right, accumulate, threads);
        }
        return;
    }
    let width = columns(OWN_PANEL, 16).min(outer.div_ceil(threads)).max(1);
    let mut lines = Lines::new(y, outer, width, std::iter::once(0..rows));
    let panels = lines.tasks().into_par_iter().enumerate();
    panels.for_each_init(
        || (vec![0.0; inner * width], vec![0.0; rows * width]),
        |(panel, out), (i, lines)| {
            let first = i * width;
            let width = width.min(outer - first);
            let panel = &mut panel[..inner * width];
            widen_lines(panel, w, 0, first, width, sizes, right);
            let out = &mut out[..rows * width];
            if accumulate {
                for (out, line) in out.chunks_exact_mut(width).zip(&*lines) {
                    out.copy_from_slice(line);
                }
            }
            let (columns, of_panel) = ([width, 0], [rows, inner, width]);
            into_columns(out, columns, x, panel, of_panel, right, accumulate, 1);
            for (line, out) in lines.iter_mut().zip(out.chunks_exact(width)) {
                line.copy_from_slice(out);
            }
        },
    );
}

/// How long a line of a panel is: it follows the matrix as it lies.
fn line(right: Right, inner: usize, width: usize) -> usize {
    match right {
        Right::InOut => width,
        Right::OutIn => inner,
    }
}

/// Widens lines of the panel of columns `first..first + width`, from the line `from` on, as many as `part` takes.
fn widen_lines<H: Half>(
    part: &mut [f32],
    w: &[H],
    from: usize,
    first: usize,
    width: usize,
    [_, inner, outer]: [usize; 3],
    right: Right,
) {
    match right {
        Right::InOut => {
            for (i, line) in part.chunks_exact_mut(width.max(1)).enumerate() {
                H::widen(&w[(from + i) * outer + first..][..width], line);
            }
        }
        Right::OutIn => H::widen(&w[(first + from) * inner..][..part.len()], part),
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn products_read_matrices_either_way() {
        let mut z = vec![0.0; 2];
        product(
            &mut z,
            &[1.0, 2.0],
            [3.0, 4.0, 5.0, 6.0].as_slice(),
            [1, 2, 2],
            Right::OutIn,
            false,
        );
        assert_eq!(z, [11.0, 17.0]);
    }

    #[test]
    fn small_products_read_views() {
        // The middle columns of a, times b transposed, doubled and added.
        let a = [9.0, 1.0, 2.0, 9.0, 9.0, 3.0, 4.0, 9.0];
        let b = [1.0, 10.0, 100.0, 1000.0];
        let mut y = [1.0; 4];
        small_product(
            (&mut y, View::rows(2)),
            (&a, View::rows(4).from(1)),
            (&b, View::rows(2).t()),
            [2, 2, 2],
            2.0,
            true,
        );
        assert_eq!(y, [43.0, 4201.0, 87.0, 8601.0].map(|x: f32| x));
    }

    #[test]
    fn products_with_sixteen_bits_are_those_with_the_same_numbers_in_f32() {
        // Few rows and many, panels that are cut short, both ways to lie, added or not.
        for [rows, inner, outer] in [
            [1, 40, 700],
            [5, 3, 1],
            [70, 90, 1100],
            [64, 5000, 530],
            [3, 0, 4],
        ] {
            let number = |i: usize| ((i * 7919) % 1013) as f32 / 500.0 - 1.0;
            let x: Vec<f32> = (0..rows * inner).map(number).collect();
            let w: Vec<f32> = (0..inner * outer).map(|i| number(i + 5)).collect();
            let as_bf16: Vec<bf16> = w.iter().map(|x| bf16::from_f32(*x)).collect();
            let as_f16: Vec<f16> = w.iter().map(|x| f16::from_f32(*x)).collect();
            let wide_bf16: Vec<f32> = as_bf16.iter().map(|x| x.to_f32()).collect();
            let wide_f16: Vec<f32> = as_f16.iter().map(|x| x.to_f32()).collect();
            for right in [Right::InOut, Right::OutIn] {
                for accumulate in [false, true] {
                    let of = |w: Numbers| {
                        let mut y = vec![0.5; rows * outer];
                        product(&mut y, &x, w, [rows, inner, outer], right, accumulate);
                        y
                    };
                    let pairs = [
                        (Numbers::Bf16(&as_bf16), &wide_bf16),
                        (Numbers::F16(&as_f16), &wide_f16),
                    ];
                    for (narrow, wide) in pairs {
                        let (found, expected) = (of(narrow), of(wide.as_slice().into()));
                        let least = (inner as f32).sqrt().max(1.0);
                        for (found, expected) in found.iter().zip(&expected) {
                            assert!(
                                (found - expected).abs() < 2e-6 * expected.abs().max(least),
                                "{found} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}
