//! Weight matrices as they are kept in host memory: in f32, or in 16 bits. Products widen 16 bits a panel at a time, so that all
//! arithmetic is in f32, with the numbers that the same matrix in f32 gives, and memory holds and moves half the bytes.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, Storage, Tensor};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use parking_lot::RwLockReadGuard;

use super::host::simd;
use crate::error::{Error, Result};

/// Whether a matrix is in host memory in a form that products read.
pub fn is_host_matrix(t: &Tensor) -> bool {
    let is_read = matches!(t.dtype(), DType::F32 | DType::BF16 | DType::F16);
    is_read && matches!(t.device(), Device::Cpu)
}

/// The elements of a contiguous host matrix, borrowed.
pub struct HostMatrix<'a> {
    guard: RwLockReadGuard<'a, Storage>,
    range: Range<usize>,
}

/// Borrows the elements of `t` in row-major order.
/// # Errors
/// If `t` is not contiguous, or not [`is_host_matrix`]: a mistake of the caller.
pub fn host_matrix(t: &Tensor) -> Result<HostMatrix<'_>> {
    let (guard, layout) = t.storage_and_layout();
    match layout.contiguous_offsets() {
        Some((start, end)) if is_host_matrix(t) => Ok(HostMatrix {
            guard,
            range: start..end,
        }),
        _ => Err(Error::invalid(
            "a kernel was given a matrix that is not contiguous host memory of f32, bf16 or f16",
        )),
    }
}

impl HostMatrix<'_> {
    pub fn numbers(&self) -> Numbers<'_> {
        let range = self.range.clone();
        match &*self.guard {
            Storage::Cpu(CpuStorage::F32(all)) => Numbers::F32(&all[range]),
            Storage::Cpu(CpuStorage::BF16(all)) => Numbers::Bf16(&all[range]),
            Storage::Cpu(CpuStorage::F16(all)) => Numbers::F16(&all[range]),
            _ => unreachable!("checked when borrowed"),
        }
    }
}

/// The numbers of a matrix, row-major.
#[derive(Debug, Clone, Copy)]
pub enum Numbers<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

impl<'a> From<&'a [f32]> for Numbers<'a> {
    fn from(all: &'a [f32]) -> Self {
        Numbers::F32(all)
    }
}

impl<'a> Numbers<'a> {
    /// Some of the numbers as f32: those in 16 bits are widened into `room`.
    pub fn range<'s>(self, range: Range<usize>, room: &'s mut Vec<f32>) -> &'s [f32]
    where
        'a: 's,
    {
        room.resize(room.len().max(range.len()), 0.0);
        let wide = &mut room[..range.len()];
        match self {
            Numbers::F32(all) => return &all[range],
            Numbers::Bf16(all) => bf16::widen(&all[range], wide),
            Numbers::F16(all) => f16::widen(&all[range], wide),
        }
        wide
    }

    pub fn count(self) -> usize {
        match self {
            Numbers::F32(all) => all.len(),
            Numbers::Bf16(all) => all.len(),
            Numbers::F16(all) => all.len(),
        }
    }
}

/// Numbers of 16 bits.
pub trait Half: Copy + Send + Sync {
    /// Each as f32, without loss.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Half for bf16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        simd(
            #[inline(always)]
            || {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = f32::from_bits(u32::from(from.to_bits()) << 16);
                }
            },
        );
    }
}

impl Half for f16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}
