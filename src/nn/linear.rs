//! Matrix products of packed tokens with weights in canonical layout.

use candle_core::Tensor;

use super::host::{host, is_host, room, simd, tensor};
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
}
