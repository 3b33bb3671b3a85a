//! Matrix products of packed tokens with weights in canonical layout.

use candle_core::{DType, Tensor};

use super::host::{host, is_host, on_host, simd, tensor};
use super::matrix::{host_matrix, is_host_matrix};
pub use super::product::{Right, View, product, small_product};
use crate::error::Result;

/// `x @ w + b`.
/// # Shapes
/// `x [tokens, in]`, `w [in, out]`, which may be in 16 bits where `x` is f32 on the host, `b [out]`; gives `[tokens, out]`.
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
    let mut y = vec![0.0; rows * outer];
    if let Some(b) = b {
        let b = host(b)?;
        y.chunks_exact_mut(outer)
            .for_each(|row| row.copy_from_slice(&b));
    }
    product(
        &mut y,
        &host(&x)?,
        host_matrix(w)?.numbers(),
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
    if !is_host_matrix(w) {
        let dx = dy
            .to_device(w.device())?
            .matmul(&w.to_dtype(DType::F32)?.t()?)?;
        return on_host(&dx);
    }
    let dy = dy.contiguous()?;
    let (rows, inner, outer) = (dy.dim(0)?, w.dim(0)?, w.dim(1)?);
    let mut dx = vec![0.0; rows * inner];
    let sizes = [rows, outer, inner];
    let w = host_matrix(w)?;
    product(
        &mut dx,
        &host(&dy)?,
        w.numbers(),
        sizes,
        Right::OutIn,
        false,
    );
    tensor(dx, (rows, inner))
}

/// `a + b`, elementwise.
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    if !is_host(a) {
        return Ok((a + b)?);
    }
    let (a, b) = (a.contiguous()?, b.contiguous()?);
    let (x, y) = (host(&a)?, host(&b)?);
    let mut sum = vec![0.0; x.len()];
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
    }

    #[test]
    fn the_backward_product_is_the_transposed_one() {
        let dy = tensor(vec![1.0, 10.0, 100.0], (1, 3)).expect("shape");
        let w = tensor(vec![1.0, 0.0, -1.0, 0.0, 1.0, 2.0], (2, 3)).expect("shape");
        let dx = backward(&dy, &w).expect("runs").to_vec2::<f32>();
        assert_eq!(dx.expect("reads"), [[-99.0, 210.0]]);
    }
}
