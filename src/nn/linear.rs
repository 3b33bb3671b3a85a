//! Matrix products of packed tokens with weights in canonical layout.

use candle_core::{DType, Tensor};

use super::host::{host, is_host, on_host, room, simd, tensor};
use crate::error::Result;

/// `x @ w + b`.
/// # Shapes
/// `x [tokens, in]`, `w [in, out]`, `b [out]`; gives `[tokens, out]`.
pub fn forward(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    if !is_host(x) {
        let y = x.contiguous()?.matmul(w)?;
        return Ok(match b {
            Some(b) => y.broadcast_add(b)?,
            None => y,
        });
    }
    let x = x.contiguous()?;
    let (rows, inner, outer) = (x.dim(0)?, w.dim(0)?, w.dim(1)?);
    let mut y = room(rows * outer);
    if let Some(b) = b {
        let b = host(b)?;
        y.chunks_exact_mut(outer)
            .for_each(|row| row.copy_from_slice(&b));
    }
    product(
        &mut y,
        &host(&x)?,
        &host(w)?,
        [rows, inner, outer],
        Right::InOut,
        b.is_some(),
    );
    tensor(y, (rows, outer))
}

/// The gradient at the input of [`forward`]: `dy @ w^T`.
/// # Shapes
/// `dy [tokens, out]`, f32 on the host; `w [in, out]`; gives `[tokens, in]`.
pub fn backward(dy: &Tensor, w: &Tensor) -> Result<Tensor> {
    if !is_host(w) {
        let dx = dy
            .to_device(w.device())?
            .matmul(&w.to_dtype(DType::F32)?.t()?)?;
        return on_host(&dx);
    }
    let dy = dy.contiguous()?;
    let (rows, inner, outer) = (dy.dim(0)?, w.dim(0)?, w.dim(1)?);
    let mut dx = room(rows * inner);
    let sizes = [rows, outer, inner];
    product(&mut dx, &host(&dy)?, &host(w)?, sizes, Right::OutIn, false);
    tensor(dx, (rows, inner))
}

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
    (y, y_view): (&mut [f32], View),
    (a, a_view): (&[f32], View),
    (b, b_view): (&[f32], View),
    [rows, inner, columns]: [usize; 3],
    scale: f32,
    accumulate: bool,
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
    // SAFETY: the largest index of each view lies inside its slice, as asserted above, and `y` is borrowed mutably.
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
            gemm::Parallelism::None,
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
pub fn product(
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    sizes: [usize; 3],
    right: Right,
    accumulate: bool,
) {
    let [rows, inner, outer] = sizes;
    assert_eq!(
        (y.len(), x.len(), w.len()),
        (rows * outer, rows * inner, inner * outer),
        "slices match their sizes"
    );
    if y.is_empty() {
        return;
    }
    let threads = rayon::current_num_threads();
    let parallelism = match threads {
        1 => gemm::Parallelism::None,
        _ => gemm::Parallelism::Rayon(threads),
    };
    let (w_cs, w_rs) = match right {
        Right::InOut => (1, outer as isize),
        Right::OutIn => (inner as isize, 1),
    };
    // SAFETY: the three slices have the sizes that the strides walk over, as asserted above, and `y` is borrowed mutably.
    unsafe {
        gemm::gemm(
            rows,
            outer,
            inner,
            y.as_mut_ptr(),
            1,
            outer as isize,
            accumulate,
            x.as_ptr(),
            1,
            inner as isize,
            w.as_ptr(),
            w_cs,
            w_rs,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `a + b`, elementwise.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_host(a) {
        return Ok((a + b)?);
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (x, y) = (host(&a)?, host(&b)?);
    let mut sum = room(x.len());
    simd(
        #[inline(always)]
        || {
            for ((sum, x), y) in sum.iter_mut().zip(x.iter()).zip(y.iter()) {
                *sum = x + y;
            }
        },
    );
    tensor(sum, a.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_agree_with_hand_computed_ones() {
        let x = tensor(vec![1.0, 2.0, 3.0, 4.0], (2, 2)).expect("shape");
        let w = tensor(vec![1.0, 0.0, -1.0, 0.0, 1.0, 2.0], (2, 3)).expect("shape");
        let b = tensor(vec![10.0, 20.0, 30.0], 3).expect("shape");
        let y = forward(&x, &w, Some(&b))
            .expect("runs")
            .to_vec2::<f32>()
            .expect("reads");
        assert_eq!(y, [[11.0, 22.0, 33.0], [13.0, 24.0, 35.0]]);
        let mut z = vec![0.0; 2];
        product(
            &mut z,
            &[1.0, 2.0],
            &[3.0, 4.0, 5.0, 6.0],
            [1, 2, 2],
            Right::OutIn,
            false,
        );
        assert_eq!(z, [11.0, 17.0]);
    }

    #[test]
    fn the_backward_product_is_the_transposed_one() {
        let dy = tensor(vec![1.0, 10.0, 100.0], (1, 3)).expect("shape");
        let w = tensor(vec![1.0, 0.0, -1.0, 0.0, 1.0, 2.0], (2, 3)).expect("shape");
        let dx = backward(&dy, &w).expect("runs").to_vec2::<f32>();
        assert_eq!(dx.expect("reads"), [[-99.0, 210.0]]);
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
}
