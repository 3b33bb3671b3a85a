//! Queries, keys and values that are cut off at a largest size: `clip_qkv` of OLMo 1 and MPT.

use candle_core::{DType, Tensor};

use super::host::{host, is_host, on_host, simd, tensor};
use super::rules::{ActivationRule, ratio};
use crate::error::Result;

/// `x` between `-most` and `most`; without a limit, `x`.
pub fn forward(x: Tensor, most: Option<f32>) -> Result<Tensor> {
    let Some(most) = most else { return Ok(x) };
    if !is_host(&x) {
        return Ok(x.clamp(-most, most)?);
    }
    let x = x.contiguous()?;
    let mut y = vec![0.0; x.elem_count()];
    let data = host(&x)?;
    simd(
        #[inline(always)]
        || {
            for (y, x) in y.iter_mut().zip(data.iter()) {
                *y = x.min(most).max(-most);
            }
        },
    );
    tensor(y, x.shape())
}

/// The gradient at the input of [`forward`]: nothing where it cut off, or under the ratio rule the share that was left.
/// # Shapes
/// `dy` and `x`, what was read before it was cut off, alike; f32 on the host.
pub fn backward(dy: &Tensor, x: &Tensor, most: f32, rule: ActivationRule) -> Result<Tensor> {
    let (dy, x) = (dy.contiguous()?, on_host(&x.to_dtype(DType::F32)?)?);
    let mut dx = vec![0.0; dy.elem_count()];
    {
        let (dy, x) = (host(&dy)?, host(&x)?);
        for ((dx, dy), &x) in dx.iter_mut().zip(dy.iter()).zip(x.iter()) {
            *dx = match (x.abs() <= most, rule) {
                (true, _) => *dy,
                (false, ActivationRule::Exact) => 0.0,
                (false, ActivationRule::Ratio) => dy * ratio(x.min(most).max(-most), x),
            };
        }
    }
    tensor(dx, dy.shape())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_large_is_cut_off_and_has_no_slope() {
        let x = tensor(vec![-8.0, -1.0, 2.0, 4.0], 4).unwrap();
        let dy = tensor(vec![1.0, 2.0, 3.0, 4.0], 4).unwrap();
        let values = |t: Tensor| t.to_vec1::<f32>().unwrap();
        let y = forward(x.clone(), Some(2.0)).unwrap();
        assert_eq!(values(y), [-2.0, -1.0, 2.0, 2.0]);
        let exact = backward(&dy, &x, 2.0, ActivationRule::Exact).unwrap();
        assert_eq!(values(exact), [0.0, 2.0, 3.0, 0.0]);
        let shared = values(backward(&dy, &x, 2.0, ActivationRule::Ratio).unwrap());
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-5, "{a} {b}");
        near(shared[0], 0.25);
        near(shared[3], 2.0);
        assert_eq!(values(forward(x.clone(), None).unwrap()), values(x));
    }
}
