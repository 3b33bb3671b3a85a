//! GGUF, llama.cpp's format: metadata and tensor descriptions in front, then aligned tensor data, often quantised.
//!
//! The header is parsed here, every count, length and offset against the bytes that are there, so that a hostile file
//! can neither overflow nor allocate. candle takes the quantised blocks apart; the values are f32 from then on.

mod header;
#[cfg(test)]
pub(crate) mod tests;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::{CpuStorage, DType};
pub use header::{Array, Value};
use header::{Entry, STRING, read_header};
use sha2::{Digest, Sha256};

use super::checkpoint::{Bytes, Checkpoint, Float, decode_floats, hex, map};
use super::weight_hash::WeightHash;
use crate::error::{Error, Result};
use crate::text::shortened;

/// A mapped GGUF file with its checked header.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes<'static>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

impl Gguf {
    /// Maps a file and checks its header.
    /// # Errors
    /// [`Error::Missing`], [`Error::Malformed`].
    pub fn open(path: &Path) -> Result<Self> {
        Self::new(path, map(path)?)
    }

    /// Reads a file that is in memory. `name` stands for its path in messages.
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::new(Path::new(name), Bytes::Owned(bytes))
    }

    fn new(path: &Path, bytes: Bytes<'static>) -> Result<Self> {
        let header = read_header(&bytes).map_err(|reason| Error::Malformed {
            path: path.to_path_buf(),
            format: "GGUF",
            reason,
        })?;
        let (metadata, tensors) = header;
        Ok(Gguf {
            path: path.to_path_buf(),
            bytes,
            metadata,
            tensors,
        })
    }

    /// All metadata, in key order.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.metadata
            .iter()
            .map(|(key, value)| (key.as_str(), value))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, tensor: &str) -> bool {
        self.tensors.contains_key(tensor)
    }

    /// The number of rows of a matrix.
    /// # Errors
    /// [`Error::MissingTensors`] if it is not there or no matrix.
    pub fn rows(&self, tensor: &str) -> Result<usize> {
        match self.tensors.get(tensor).map(|entry| entry.shape.as_slice()) {
            Some([rows, _]) => Ok(*rows),
            _ => Err(Error::MissingTensors {
                family: self.string("general.architecture")?.to_string(),
                count: 1,
                first: format!("`{tensor}`"),
            }),
        }
    }

    /// A vector that belongs to the spec and not to the weights.
    /// # Errors
    /// [`Error::TensorShape`] unless it has `n` entries; [`Error::NotFinite`].
    pub fn small_vector(&self, tensor: &str, n: usize) -> Result<Vec<f64>> {
        let found = self
            .tensors
            .get(tensor)
            .map_or(Vec::new(), |entry| entry.shape.clone());
        if found != [n] {
            let name = tensor.to_string();
            return Err(Error::TensorShape {
                name,
                found,
                expected: vec![n],
            });
        }
        let mut out = vec![0.0; n];
        self.decode(tensor, 0, &mut out)?;
        if !out.iter().all(|x| x.is_finite()) {
            return Err(Error::NotFinite {
                name: tensor.to_string(),
            });
        }
        Ok(out.into_iter().map(f64::from).collect())
    }

    /// A size that must be there.
    /// # Errors
    /// [`Error::BadConfig`].
    pub fn size(&self, key: &str) -> Result<usize> {
        self.maybe_size(key)?.ok_or_else(|| missing(key))
    }

    /// A size that may be absent.
    /// # Errors
    /// [`Error::BadConfig`] if it is no size.
    pub fn maybe_size(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "no size", |value| match value {
            Value::Integer(n) => usize::try_from(*n).ok(),
            _ => None,
        })
    }

    /// A number that must be there.
    /// # Errors
    /// [`Error::BadConfig`].
    pub fn number(&self, key: &str) -> Result<f64> {
        self.maybe_number(key)?.ok_or_else(|| missing(key))
    }

    /// A number that may be absent.
    /// # Errors
    /// [`Error::BadConfig`] if it is no number.
    pub fn maybe_number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "no number", Value::number)
    }

    /// A boolean that may be absent.
    /// # Errors
    /// [`Error::BadConfig`] if it is no boolean.
    pub fn maybe_bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "neither true nor false", |value| match value {
            Value::Bool(b) => Some(*b),
            _ => None,
        })
    }

    /// A text that must be there.
    /// # Errors
    /// [`Error::BadConfig`].
    pub fn string(&self, key: &str) -> Result<&str> {
        self.maybe_string(key)?.ok_or_else(|| missing(key))
    }

    /// A text that may be absent.
    /// # Errors
    /// [`Error::BadConfig`] if it is no text.
    pub fn maybe_string(&self, key: &str) -> Result<Option<&str>> {
        self.get(key, "no text", Value::text)
    }

    /// An array of texts.
    /// # Errors
    /// [`Error::BadConfig`] if it is absent or something else.
    pub fn texts(&self, key: &str) -> Result<Vec<String>> {
        let array = self.array(key, "no array of texts", |kind| kind == STRING)?;
        let mut reader = array.reader(&self.bytes);
        let texts: Result<_, String> = (0..array.count).map(|_| reader.text()).collect();
        texts.map_err(|reason| Error::BadConfig {
            key: key.to_string(),
            reason,
        })
    }

    /// An array of numbers.
    /// # Errors
    /// [`Error::BadConfig`] if it is absent or something else.
    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let array = self.array(key, "no array of numbers", |kind| kind != STRING)?;
        let mut reader = array.reader(&self.bytes);
        let mut numbers = Vec::with_capacity(array.count);
        for _ in 0..array.count {
            let value = reader
                .value(array.kind)
                .map_err(|reason| Error::BadConfig {
                    key: key.to_string(),
                    reason,
                })?;
            numbers.extend(value.number());
        }
        Ok(numbers)
    }

    /// SHA-256 of all metadata under a prefix, in key order, in hex.
    pub fn digest(&self, prefix: &str) -> String {
        let mut hash = Sha256::new();
        for (key, value) in self.metadata.range(prefix.to_string()..) {
            if !key.starts_with(prefix) {
                break;
            }
            let text = value.to_string();
            let bytes = match value {
                Value::Array(array) => &self.bytes[array.start..array.end],
                _ => text.as_bytes(),
            };
            for part in [key.as_bytes(), bytes] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part);
            }
        }
        hex(&hash.finalize())
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn get<'s, T>(
        &'s self,
        key: &str,
        not: &str,
        read: impl Fn(&'s Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else {
            return Ok(None);
        };
        match read(value) {
            Some(read) => Ok(Some(read)),
            None => Err(Error::BadConfig {
                key: key.to_string(),
                reason: format!("`{}` is {not}", shortened(&value.to_string())),
            }),
        }
    }

    fn array(&self, key: &str, not: &str, is_kind: fn(u32) -> bool) -> Result<Array> {
        let array = self.get(key, not, |value| match value {
            Value::Array(array) if is_kind(array.kind) => Some(*array),
            _ => None,
        })?;
        array.ok_or_else(|| missing(key))
    }
}

fn missing(key: &str) -> Error {
    Error::BadConfig {
        key: key.to_string(),
        reason: "is missing from the GGUF metadata".into(),
    }
}

impl Checkpoint for Gguf {
    fn tensors(&self) -> Vec<(&str, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
            .collect()
    }

    fn decode(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let entry = &self.tensors[name];
        let (block, width) = (entry.dtype.block_size(), entry.dtype.type_size());
        let begin = entry.start + start / block * width;
        let range = begin..begin + out.len() / block * width;
        let bytes = &self.bytes[range.clone()];
        match entry.dtype {
            GgmlDType::F32 => decode_floats(bytes, Float::F32, out),
            GgmlDType::F16 => decode_floats(bytes, Float::F16, out),
            GgmlDType::BF16 => decode_floats(bytes, Float::BF16, out),
            quantised => dequantise(quantised, bytes, out)?,
        }
        self.bytes.let_go(range);
        Ok(())
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        match self.tensors[name].dtype {
            GgmlDType::F32 => Some(DType::F32),
            GgmlDType::F16 => Some(DType::F16),
            GgmlDType::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    fn storage(&self) -> String {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for entry in self.tensors.values() {
            *counts.entry(format!("{:?}", entry.dtype)).or_default() += 1;
        }
        let mut counts: Vec<(usize, String)> = counts.into_iter().map(|(n, c)| (c, n)).collect();
        counts.sort_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        let names: Vec<&str> = counts.iter().map(|(_, name)| name.as_str()).collect();
        format!("gguf {} (dequantised to f32)", names.join(", "))
    }

    fn hash(&self) -> WeightHash {
        WeightHash::begin(std::slice::from_ref(&self.bytes))
    }
}

/// Takes quantised blocks apart, some thousand values at a time, which stay in cache. They are aligned as candle asks: data begin at a
/// multiple of 8 in memory that is aligned by more, and blocks have even sizes.
fn dequantise(dtype: GgmlDType, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    let blocks = 4096 / dtype.block_size();
    let parts = bytes.chunks(blocks * dtype.type_size());
    for (bytes, out) in parts.zip(out.chunks_mut(blocks * dtype.block_size())) {
        let values = dtype
            .from_data(Cow::Borrowed(bytes))
            .dequantize(out.len())?;
        let CpuStorage::F32(values) = values else {
            unreachable!("blocks are taken apart to f32");
        };
        out.copy_from_slice(&values);
    }
    Ok(())
}
