//! Reading tensors as plain slices, and the vector arithmetic that the kernels share.
//!
//! A kernel body is an `#[inline(always)]` closure over slices, run through [`simd`]: it is compiled once for each instruction
//! set, and the best that the processor has is chosen at run time. Without the attribute it is compiled once, for the oldest
//! processor, where every `mul_add` is a call of the C library.

use std::ops::Deref;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use parking_lot::RwLockReadGuard;

use crate::error::{Error, Result};

/// Whether the fast forms apply: f32 in host memory.
pub fn is_host(t: &Tensor) -> bool {
    t.dtype() == DType::F32 && matches!(t.device(), Device::Cpu)
}

/// The elements of a contiguous f32 host tensor, borrowed.
pub struct Host<'a> {
    guard: RwLockReadGuard<'a, Storage>,
    start: usize,
    len: usize,
}

/// Borrows the elements of `t` in row-major order.
/// # Errors
/// If `t` is not contiguous f32 host memory: a mistake of the caller, who asks [`is_host`] first.
pub fn host(t: &Tensor) -> Result<Host<'_>> {
    let (guard, layout) = t.storage_and_layout();
    let is_f32 = matches!(&*guard, Storage::Cpu(CpuStorage::F32(_)));
    match layout.contiguous_offsets() {
        Some((start, end)) if is_f32 => Ok(Host {
            guard,
            start,
            len: end - start,
        }),
        _ => Err(Error::invalid(
            "a kernel was given a tensor that is not contiguous f32 host memory",
        )),
    }
}

/// Borrows an f32 host matrix whose rows may lie apart, as a view of some columns does: the elements from the first to the last, and how
/// far apart rows begin.
/// # Errors
/// If the elements of a row do not follow each other: a mistake of the caller.
pub fn host_rows(t: &Tensor) -> Result<(Host<'_>, usize)> {
    let (guard, layout) = t.storage_and_layout();
    let is_f32 = matches!(&*guard, Storage::Cpu(CpuStorage::F32(_)));
    match (layout.dims(), layout.stride()) {
        (&[rows, width], &[apart, 1]) if is_f32 && rows > 0 => Ok((
            Host {
                guard,
                start: layout.start_offset(),
                len: (rows - 1) * apart + width,
            },
            apart,
        )),
        _ => Err(Error::invalid(
            "a kernel was given a tensor that is not a matrix of f32 rows in host memory",
        )),
    }
}

impl Deref for Host<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.start + self.len],
            _ => unreachable!("checked when borrowed"),
        }
    }
}

/// An f32 tensor on the CPU that owns `data`.
pub fn tensor(data: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(data, shape.into(), &Device::Cpu)?)
}

/// Any tensor's elements as f32 on the host, copied.
pub fn to_host(t: &Tensor) -> Result<Vec<f32>> {
    Ok(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// The same tensor as contiguous f32 in host memory: itself where it is that already.
pub fn on_host(t: &Tensor) -> Result<Tensor> {
    if is_host(t) {
        Ok(t.contiguous()?)
    } else {
        tensor(to_host(t)?, t.shape())
    }
}

/// The widest instructions that this processor has, and so those that kernels run with.
pub fn instructions() -> String {
    let arch = format!("{:?}", pulp::Arch::new());
    match arch.split('(').next() {
        Some("V4") => "x86-64 v4 (AVX-512)".into(),
        Some("V3") => "x86-64 v3 (AVX2, FMA)".into(),
        other => other.unwrap_or_default().to_lowercase(),
    }
}

/// Runs a kernel body with the widest instructions that this processor has.
#[inline]
pub fn simd<R>(body: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(body)
}

/// `e^x` to about one unit in the last place, without branches so that loops over it vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, so that `x - n ln 2` keeps its low bits.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.3, 88.7);
    // Adding 1.5 * 2^23 rounds to the nearest integer and leaves it in the low bits.
    let shifted = clamped.mul_add(LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_6e-1);
    let p = p.mul_add(r, 5.000_000_3e-1);
    let p = (p * r).mul_add(r, r) + 1.0;
    let power = f32::from_bits(((shifted.to_bits() as i32).wrapping_add(127) << 23) as u32);
    let value = p * power;
    if x < -87.3 { 0.0 } else { value }
}

/// Sum of products, in sixteen partial sums. Inside of a kernel body call [`dot_inline`], which is compiled with it.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    simd(
        #[inline(always)]
        || dot_inline(a, b),
    )
}

/// [`dot`] in a body that [`simd`] runs. Anywhere else each of its multiply-adds is a call of the C library.
#[inline(always)]
pub fn dot_inline(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (whole_a, rest_a) = a.as_chunks::<16>();
    let (whole_b, rest_b) = b.as_chunks::<16>();
    for (x, y) in whole_a.iter().zip(whole_b) {
        for i in 0..16 {
            sums[i] = x[i].mul_add(y[i], sums[i]);
        }
    }
    let tail: f32 = rest_a.iter().zip(rest_b).map(|(x, y)| x * y).sum();
    fold(sums) + tail
}

/// Sum, in sixteen partial sums; in a body that [`simd`] runs.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut sums = [0f32; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for chunk in whole {
        for i in 0..16 {
            sums[i] += chunk[i];
        }
    }
    fold(sums) + rest.iter().sum::<f32>()
}

/// Adds sixteen partial sums, pairwise.
#[inline(always)]
pub fn fold(sums: [f32; 16]) -> f32 {
    let mut eight = [0f32; 8];
    for i in 0..8 {
        eight[i] = sums[i] + sums[i + 8];
    }
    let four = [
        eight[0] + eight[4],
        eight[1] + eight[5],
        eight[2] + eight[6],
        eight[3] + eight[7],
    ];
    (four[0] + four[2]) + (four[1] + four[3])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_agrees_with_the_library_to_a_few_units_in_the_last_place() {
        let mut worst = 0f64;
        for i in -8_700..8_800 {
            let x = i as f32 * 0.01 + 0.0037;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 3e-7, "{worst}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn dot_counts_the_tail() {
        let ones = vec![1f32; 37];
        let steps: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(dot(&ones, &steps), 666.0);
    }
}
