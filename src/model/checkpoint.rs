//! What the loader asks of a weight file, whatever its format.

use std::path::Path;

use candle_core::DType;

pub use super::bytes::{Bytes, check_not_a_stand_in, hex, map, read_at_most};
use super::weight_hash::WeightHash;
use crate::error::{Error, Result};

/// Named tensors on disk, decoded to f32 a run of rows at a time.
pub trait Checkpoint: Sync {
    /// Every tensor with its shape, outermost axis first.
    fn tensors(&self) -> Vec<(&str, &[usize])>;

    /// Decodes entries `start..start + out.len()` of a tensor, in stored order.
    /// `start` and the length are multiples of the innermost axis, so that no quantised block is cut.
    fn decode(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()>;

    /// The number format in which a tensor is stored, if it is one of floating-point numbers that are not quantised.
    fn dtype(&self, name: &str) -> Option<DType>;

    /// How the weights are stored, for the provenance.
    fn storage(&self) -> String;

    /// Begins to hash the weight files, in name order.
    fn hash(&self) -> WeightHash;
}

/// Refuses a pickle under the name of another format.
/// # Errors
/// [`Error::Pickle`].
pub fn check_not_a_pickle(path: &Path, bytes: &[u8]) -> Result<()> {
    // A zip of pickles (torch >= 1.6), or a bare pickle of protocol 2 and later.
    let is_pickle = bytes.starts_with(b"PK\x03\x04")
        || matches!(bytes, [0x80, 2..=5, b'c' | b'}' | b'\x8a' | b'\x95', ..]);
    match is_pickle {
        false => Ok(()),
        true => Err(Error::Pickle {
            path: path.to_path_buf(),
        }),
    }
}

/// The plain number formats of weights on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Float {
    F32,
    F16,
    BF16,
}

impl From<Float> for DType {
    fn from(float: Float) -> Self {
        match float {
            Float::F32 => DType::F32,
            Float::F16 => DType::F16,
            Float::BF16 => DType::BF16,
        }
    }
}

/// Little-endian numbers as f32, as many as `out` takes.
pub(super) fn decode_floats(bytes: &[u8], float: Float, out: &mut [f32]) {
    let halves = bytes.as_chunks::<2>().0;
    match float {
        Float::F32 => fill(out, bytes.as_chunks::<4>().0, f32::from_le_bytes),
        Float::F16 => fill(out, halves, |half| half::f16::from_le_bytes(half).to_f32()),
        Float::BF16 => fill(out, halves, |half| half::bf16::from_le_bytes(half).to_f32()),
    }
}

fn fill<const N: usize>(out: &mut [f32], numbers: &[[u8; N]], read: impl Fn([u8; N]) -> f32) {
    for (x, number) in out.iter_mut().zip(numbers) {
        *x = read(*number);
    }
}
