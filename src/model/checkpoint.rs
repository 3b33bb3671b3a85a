//! What the loader asks of a weight file, whatever its format, and the bytes under it.

use std::fs::File;
use std::io::Read;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Named tensors on disk, decoded to f32 a run of rows at a time.
pub trait Checkpoint: Sync {
    /// Every tensor with its shape, outermost axis first.
    fn tensors(&self) -> Vec<(&str, &[usize])>;

    /// Decodes entries `start..start + out.len()` of a tensor, in stored order.
    /// `start` and the length are multiples of the innermost axis, so that no quantised block is cut.
    fn decode(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()>;

    /// How the weights are stored, for the provenance.
    fn storage(&self) -> String;

    /// SHA-256 of the weight files, in name order, in hex.
    fn hash(&self) -> String;
}

/// A file's bytes: mapped, part of the binary, or from somewhere else.
#[derive(Debug)]
pub enum Bytes<'a> {
    Mapped(Mmap),
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

/// Maps a weight file into memory.
/// # Errors
/// [`Error::Missing`], [`Error::Read`]; [`Error::LfsPointer`] for what is often found in its place.
pub fn map(path: &Path) -> Result<Bytes<'static>> {
    let read = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    if !path.exists() {
        return Err(Error::Missing {
            path: path.to_path_buf(),
            hint: "give a model folder, a `.gguf` file or a hub id such as `org/name`".to_string(),
        });
    }
    let file = File::open(path).map_err(read)?;
    let is_empty_or_folder =
        !file.metadata().map_err(read)?.is_file() || file.metadata().map_err(read)?.len() == 0;
    if is_empty_or_folder {
        return Err(Error::Malformed {
            path: path.to_path_buf(),
            format: "weight",
            reason: "it is empty or no file".to_string(),
        });
    }
    // SAFETY: the map is read-only and private to this process; every read of it is bounds-checked against its length.
    // Another process that truncates the file meanwhile would end us, as for every program that maps files.
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    check_not_a_stand_in(path, &map)?;
    Ok(Bytes::Mapped(map))
}

/// Reads a small file of a model whole; one larger than `limit` bytes, or without an end, is not read.
/// # Errors
/// [`Error::Read`], [`Error::Malformed`].
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let read = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(read)?;
    match bytes.len() as u64 <= limit {
        true => Ok(bytes),
        false => Err(Error::Malformed {
            path: path.to_path_buf(),
            format: "text",
            reason: format!("it has more than {limit} bytes"),
        }),
    }
}

/// Refuses a git-LFS pointer under another file's name.
/// # Errors
/// [`Error::LfsPointer`].
pub fn check_not_a_stand_in(path: &Path, bytes: &[u8]) -> Result<()> {
    const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";
    match bytes.starts_with(LFS) {
        false => Ok(()),
        true => Err(Error::LfsPointer {
            path: path.to_path_buf(),
        }),
    }
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

/// A digest in hex.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The plain number formats of weights on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Float {
    F32,
    F16,
    BF16,
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
