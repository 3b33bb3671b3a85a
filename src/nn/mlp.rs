//! The activation of an MLP, plain or gated.

use candle_core::{DType, Tensor};
use rayon::prelude::*;

use super::host::{exp, host, host_rows, is_host, on_host, simd, tensor};
use super::rules::{ActivationRule, GateRule, Rules, ratio};
use crate::error::Result;
use crate::spec::Activation;

/// `act(pre)`, elementwise.
pub fn forward(pre: &Tensor, activation: Activation) -> Result<Tensor> {
    if !is_host(pre) {
        return composed(pre, activation);
    }
    let pre = pre.contiguous()?;
    let x = host(&pre)?;
    let mut post = vec![0.0; x.len()];
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
    let mut post = vec![0.0; rows * half];
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

/// The gradient at the input of [`forward`].
/// # Shapes
/// `dpost`, `pre [tokens, d_mlp]`; gives the same.
pub fn backward(
    dpost: &Tensor,
    pre: &Tensor,
    activation: Activation,
    rules: &Rules,
) -> Result<Tensor> {
    let (dpost, pre) = (dpost.contiguous()?, on_host(pre)?);
    let mut dpre = vec![0.0; pre.elem_count()];
    {
        let (dy, x) = (host(&dpost)?, host(&pre)?);
        dpre.par_chunks_mut(BLOCK)
            .zip(dy.par_chunks(BLOCK))
            .zip(x.par_chunks(BLOCK))
            .for_each(|((dx, dy), x)| {
                with_slope(activation, rules.activation, Backward { dx, dy, x });
            });
    }
    tensor(dpre, pre.shape())
}

/// The gradient at the input of [`gated`]: of the gate, then of the linear branch.
/// # Shapes
/// `dpost`, `gate`, `linear [tokens, d_mlp]`; gives `[tokens, 2 d_mlp]`.
pub fn gated_backward(
    dpost: &Tensor,
    gate: &Tensor,
    linear: &Tensor,
    activation: Activation,
    rules: &Rules,
) -> Result<Tensor> {
    let dpost = dpost.contiguous()?;
    // The branches are columns of one product: their rows are read where they lie.
    let in_place = |t: &Tensor| {
        if is_host(t) {
            Ok(t.clone())
        } else {
            on_host(t)
        }
    };
    let (gate, linear) = (in_place(gate)?, in_place(linear)?);
    let (rows, width) = gate.dims2()?;
    let share = match rules.gate {
        GateRule::Exact => [1.0, 1.0],
        GateRule::Half => [0.5, 0.5],
        GateRule::LinearOnly => [0.0, 1.0],
    };
    let mut dboth = vec![0.0; 2 * rows * width];
    if rows > 0 {
        let dy = host(&dpost)?;
        let ((gate, apart), (linear, linear_apart)) = (host_rows(&gate)?, host_rows(&linear)?);
        let (dy, gate, linear) = (&*dy, &*gate, &*linear);
        dboth
            .par_chunks_mut(2 * ROWS * width)
            .zip(dy.par_chunks(ROWS * width))
            .enumerate()
            .for_each(|(block, (dboth, dy))| {
                let gated = GatedBackward {
                    dboth,
                    dy,
                    gate: &gate[block * ROWS * apart..],
                    linear: &linear[block * ROWS * linear_apart..],
                    apart: [apart, linear_apart],
                    width,
                    share,
                };
                with_slope(activation, rules.activation, gated);
            });
    }
    tensor(dboth, (rows, 2 * width))
}

/// A loop over an activation's values and slopes, compiled once for each activation.
trait SlopeLoop {
    /// `act` gives the value and what stands for the derivative.
    fn run(self, act: impl Fn(f32) -> (f32, f32));
}

struct Backward<'a> {
    dx: &'a mut [f32],
    dy: &'a [f32],
    x: &'a [f32],
}

impl SlopeLoop for Backward<'_> {
    #[inline(always)]
    fn run(self, act: impl Fn(f32) -> (f32, f32)) {
        simd(
            #[inline(always)]
            || {
                for ((dx, dy), &x) in self.dx.iter_mut().zip(self.dy).zip(self.x) {
                    *dx = dy * act(x).1;
                }
            },
        )
    }
}

struct GatedBackward<'a> {
    dboth: &'a mut [f32],
    dy: &'a [f32],
    gate: &'a [f32],
    linear: &'a [f32],
    /// How far apart the rows of the two branches begin.
    apart: [usize; 2],
    width: usize,
    /// What the gate and the linear branch get of the product's gradient.
    share: [f32; 2],
}

impl SlopeLoop for GatedBackward<'_> {
    #[inline(always)]
    fn run(self, act: impl Fn(f32) -> (f32, f32)) {
        simd(
            #[inline(always)]
            || {
                let width = self.width;
                for (i, dboth) in self.dboth.chunks_exact_mut(2 * width).enumerate() {
                    let dy = &self.dy[i * width..(i + 1) * width];
                    let gate = &self.gate[i * self.apart[0]..][..width];
                    let linear = &self.linear[i * self.apart[1]..][..width];
                    let (dgate, dlinear) = dboth.split_at_mut(width);
                    for j in 0..width {
                        let (value, slope) = act(gate[j]);
                        dgate[j] = self.share[0] * dy[j] * linear[j] * slope;
                        dlinear[j] = self.share[1] * dy[j] * value;
                    }
                }
            },
        )
    }
}

fn with_slope(activation: Activation, rule: ActivationRule, body: impl SlopeLoop) {
    match (activation, rule) {
        (Activation::Relu, _) => body.run(
            #[inline(always)]
            |x| (relu(x), if x > 0.0 { 1.0 } else { 0.0 }),
        ),
        (Activation::Gelu, ActivationRule::Exact) => body.run(
            #[inline(always)]
            |x| {
                let below = gelu_share(x);
                let density = 0.398_942_3 * exp(-0.5 * x * x);
                (x * below, x.mul_add(density, below))
            },
        ),
        (Activation::GeluTanh, ActivationRule::Exact) => body.run(
            #[inline(always)]
            |x| {
                let below = 1.0 / (1.0 + exp(-2.0 * gelu_tanh_argument(x)));
                let slope = SQRT_2_OVER_PI * (3.0 * 0.044_715 * x).mul_add(x, 1.0);
                (x * below, below + 2.0 * x * below * (1.0 - below) * slope)
            },
        ),
        (Activation::Silu, ActivationRule::Exact) => body.run(
            #[inline(always)]
            |x| {
                let below = 1.0 / (1.0 + exp(-x));
                (x * below, below + x * below * (1.0 - below))
            },
        ),
        (Activation::Gelu, ActivationRule::Ratio) => body.run(
            #[inline(always)]
            |x| with_ratio(x, gelu(x)),
        ),
        (Activation::GeluTanh, ActivationRule::Ratio) => body.run(
            #[inline(always)]
            |x| with_ratio(x, gelu_tanh(x)),
        ),
        (Activation::Silu, ActivationRule::Ratio) => body.run(
            #[inline(always)]
            |x| with_ratio(x, silu(x)),
        ),
    }
}

#[inline(always)]
fn with_ratio(x: f32, value: f32) -> (f32, f32) {
    (value, ratio(value, x))
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
    x / (1.0 + exp(-2.0 * gelu_tanh_argument(x)))
}

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

#[inline(always)]
fn gelu_tanh_argument(x: f32) -> f32 {
    SQRT_2_OVER_PI * x * (0.044_715 * x).mul_add(x, 1.0)
}

#[inline(always)]
fn gelu(x: f32) -> f32 {
    x * gelu_share(x)
}

/// The standard normal distribution function.
#[inline(always)]
fn gelu_share(x: f32) -> f32 {
    0.5 * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
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

    #[test]
    fn slopes_agree_with_central_differences() {
        let step = 1e-2f32;
        let xs: Vec<f32> = (0..200).map(|i| (i as f32 - 100.3) / 20.0).collect();
        let at =
            |by: f32| tensor(xs.iter().map(|x| x + by).collect(), (1, xs.len())).expect("shape");
        let ones = tensor(vec![1.0; xs.len()], (1, xs.len())).expect("shape");
        for activation in [Activation::Gelu, Activation::GeluTanh, Activation::Silu] {
            let value = |by: f32| to_vec(&forward(&at(by), activation).expect("runs"));
            let slope = backward(&ones, &at(0.0), activation, &Rules::gradient()).expect("runs");
            let relp = backward(&ones, &at(0.0), activation, &Rules::relp()).expect("runs");
            let (up, down, here) = (value(step), value(-step), value(0.0));
            for (i, (slope, ratio)) in to_vec(&slope).into_iter().zip(to_vec(&relp)).enumerate() {
                let difference = (up[i] - down[i]) / (2.0 * step);
                assert!(
                    (slope - difference).abs() < 1e-4,
                    "{activation:?} at {}",
                    xs[i]
                );
                assert!((ratio * xs[i] - here[i]).abs() < 1e-5);
            }
        }
    }

    fn to_vec(t: &Tensor) -> Vec<f32> {
        t.flatten_all().expect("flat").to_vec1().expect("reads")
    }
}
