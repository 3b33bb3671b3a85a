//! The activation of an MLP, plain or gated.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::host::{exp, host, is_host, room, simd, tensor};
use crate::error::Result;
use crate::model::spec::Activation;

/// `act(pre)`, elementwise.
pub fn forward(pre: &Tensor, activation: Activation) -> Result<Tensor> {
    if !is_host(pre) {
        return composed(pre, activation);
    }
    let pre = pre.contiguous()?;
    let x = host(&pre)?;
    let mut post = room(x.len());
    post.par_chunks_mut(BLOCK)
        .zip(x.par_chunks(BLOCK))
        .for_each(|(post, x)| match activation {
            Activation::Gelu => map(post, x, gelu),
            Activation::GeluTanh => map(post, x, gelu_tanh),
            Activation::Silu => map(post, x, silu),
            Activation::Relu => map(post, x, relu),
        });
    tensor(post, pre.shape())
}

/// `act(gate) * linear` for a matrix that holds both branches side by side.
/// # Shapes
/// `both [tokens, 2 d_mlp]`; gives `[tokens, d_mlp]`.
pub fn gated(both: &Tensor, activation: Activation) -> Result<Tensor> {
    let (rows, width) = both.dims2()?;
    let half = width / 2;
    if !is_host(both) {
        return Ok(
            (composed(&both.narrow(1, 0, half)?, activation)? * both.narrow(1, half, half)?)?
        );
    }
    let both = both.contiguous()?;
    let x = host(&both)?;
    let mut post = room(rows * half);
    post.par_chunks_mut(ROWS * half)
        .zip(x.par_chunks(ROWS * width))
        .for_each(|(post, x)| match activation {
            Activation::Gelu => map_gated(post, x, half, gelu),
            Activation::GeluTanh => map_gated(post, x, half, gelu_tanh),
            Activation::Silu => map_gated(post, x, half, silu),
            Activation::Relu => map_gated(post, x, half, relu),
        });
    tensor(post, (rows, half))
}

const ROWS: usize = 16;
const BLOCK: usize = 16 * 1024;

fn map(post: &mut [f32], x: &[f32], act: impl Fn(f32) -> f32) {
    simd(
        #[inline(always)]
        || {
            for (post, &x) in post.iter_mut().zip(x) {
                *post = act(x);
            }
        },
    )
}

fn map_gated(post: &mut [f32], x: &[f32], half: usize, act: impl Fn(f32) -> f32) {
    simd(
        #[inline(always)]
        || {
            for (post, x) in post.chunks_exact_mut(half).zip(x.chunks_exact(2 * half)) {
                let (gate, linear) = x.split_at(half);
                for ((post, &gate), &linear) in post.iter_mut().zip(gate).zip(linear) {
                    *post = act(gate) * linear;
                }
            }
        },
    )
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x/2 (1 + tanh(u)) = x / (1 + e^(-2u))`
#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let u = SQRT_2_OVER_PI * x * (0.044_715 * x).mul_add(x, 1.0);
    x / (1.0 + exp(-2.0 * u))
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

#[inline(always)]
fn relu(x: f32) -> f32 {
    x.max(0.0)
}

/// The same in tensor operations, for any device.
fn composed(pre: &Tensor, activation: Activation) -> Result<Tensor> {
    let x = pre.to_dtype(DType::F32)?;
    let y = match activation {
        Activation::Gelu => x.gelu_erf()?,
        Activation::GeluTanh => x.gelu()?,
        Activation::Silu => candle_nn::ops::silu(&x)?,
        Activation::Relu => x.relu()?,
    };
    Ok(y.to_dtype(pre.dtype())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fast_forms_agree_with_tensor_operations() {
        let x = tensor(
            (0..40 * 30).map(|i| (i as f32 - 600.0) / 60.0).collect(),
            (40, 30),
        )
        .expect("shape");
        let gap = |a: &Tensor, b: &Tensor| {
            let gap = (a - b)
                .expect("same shape")
                .abs()
                .expect("abs")
                .max_all()
                .expect("max");
            gap.to_scalar::<f32>().expect("scalar")
        };
        for activation in [
            Activation::Gelu,
            Activation::GeluTanh,
            Activation::Silu,
            Activation::Relu,
        ] {
            let slow = composed(&x, activation).expect("runs");
            assert!(
                gap(&forward(&x, activation).expect("runs"), &slow) < 2e-6,
                "{activation:?}"
            );
            let (gate, linear) = (
                x.narrow(1, 0, 15).expect("narrow"),
                x.narrow(1, 15, 15).expect("narrow"),
            );
            let slow = (composed(&gate, activation).expect("runs") * linear).expect("mul");
            assert!(
                gap(&gated(&x, activation).expect("runs"), &slow) < 2e-5,
                "{activation:?}"
            );
        }
    }
}
