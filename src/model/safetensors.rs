//! The safetensors format: eight bytes of length, a JSON header, then the tensors one after the other.
//!
//! The `safetensors` crate reads the header, and believes it only where it agrees with itself and with the file: tensors back to back and
//! all of the data, sizes that are the product of their shape. Here stand the shards, and how values are decoded.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use candle_core::DType;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;

use super::checkpoint::{Bytes, Checkpoint, Float, check_not_a_pickle, decode_floats, map};
use super::weight_hash::WeightHash;
use crate::error::{Error, Result};
use crate::panics::caught;
use crate::text::{clipped, shortened};

/// One or several safetensors files as one checkpoint.
#[derive(Debug)]
pub struct SafeTensors<'a> {
    shards: Vec<Bytes<'a>>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// First byte in the shard's file.
    start: usize,
}

impl SafeTensors<'static> {
    /// Opens the shards of a checkpoint.
    /// # Errors
    /// [`Error::Missing`], [`Error::Pickle`] for a pickle under the name of one, [`Error::Malformed`].
    pub fn open(paths: Vec<PathBuf>) -> Result<Self> {
        let mut shards = Vec::with_capacity(paths.len());
        for path in paths {
            let bytes = map(&path)?;
            check_not_a_pickle(&path, &bytes)?;
            shards.push((bytes, path));
        }
        Self::new(shards)
    }
}

impl<'a> SafeTensors<'a> {
    /// Reads a checkpoint that is part of the binary. `name` stands for its path in messages.
    /// # Errors
    /// [`Error::Malformed`].
    pub fn from_bytes(name: &str, bytes: &'a [u8]) -> Result<Self> {
        Self::new(vec![(Bytes::Borrowed(bytes), PathBuf::from(name))])
    }

    fn new(files: Vec<(Bytes<'a>, PathBuf)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut shards = Vec::with_capacity(files.len());
        for (shard, (bytes, path)) in files.into_iter().enumerate() {
            let malformed = |reason| Error::Malformed {
                path: path.clone(),
                format: "safetensors",
                reason,
            };
            for (name, info, start) in read_header(&bytes).map_err(malformed)? {
                let entry = Entry {
                    shard,
                    dtype: info.dtype,
                    shape: info.shape,
                    start,
                };
                if tensors.insert(name.clone(), entry).is_some() {
                    let name = shortened(&name);
                    return Err(malformed(format!("tensor `{name}` is in two shards")));
                }
            }
            shards.push(bytes);
        }
        Ok(SafeTensors { shards, tensors })
    }
}

impl Checkpoint for SafeTensors<'_> {
    fn tensors(&self) -> Vec<(&str, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.shape.as_slice()))
            .collect()
    }

    fn decode(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let entry = &self.tensors[name];
        let width = entry.dtype.bitsize() / 8;
        let begin = entry.start + start * width;
        let (shard, range) = (&self.shards[entry.shard], begin..begin + out.len() * width);
        let float = match entry.dtype {
            Dtype::F32 => Float::F32,
            Dtype::F16 => Float::F16,
            Dtype::BF16 => Float::BF16,
            other => {
                return Err(Error::WeightType {
                    name: name.to_string(),
                    found: format!("{other:?}"),
                    known: "F32, F16, BF16".to_string(),
                });
            }
        };
        decode_floats(&shard[range.clone()], float, out);
        shard.let_go(range);
        Ok(())
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        match self.tensors[name].dtype {
            Dtype::F32 => Some(DType::F32),
            Dtype::F16 => Some(DType::F16),
            Dtype::BF16 => Some(DType::BF16),
            _ => None,
        }
    }

    fn storage(&self) -> String {
        let dtypes: BTreeSet<Dtype> = self.tensors.values().map(|entry| entry.dtype).collect();
        let names: Vec<String> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
        format!("safetensors {}", names.join(", "))
    }

    fn hash(&self) -> WeightHash {
        WeightHash::begin(&self.shards)
    }
}

/// The tensors of a file and where each begins; the reason of a failure has no path yet.
fn read_header(file: &[u8]) -> Result<Vec<(String, TensorInfo, usize)>, String> {
    // The crate adds up what a header claims: where overflows are checked, that may panic.
    let read = caught(|| safetensors::SafeTensors::read_metadata(file));
    let (length, header) = read
        .ok_or_else(|| "its header claims more bytes than there can be".to_string())?
        .map_err(|error| {
            let reason = clipped(&error.to_string(), 300);
            format!("{reason}; if it was cut short, download it again")
        })?;
    let placed = |(name, info): (String, &TensorInfo)| {
        let start = 8 + length + info.data_offsets.0;
        (name, info.clone(), start)
    };
    Ok(header.tensors().into_iter().map(placed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn tensor(shape: &str, begin: &str, end: &str) -> String {
        format!(r#""a": {{"dtype": "F32", "shape": {shape}, "data_offsets": [{begin}, {end}]}}"#)
    }

    fn refused(bytes: &[u8], word: &str) {
        let message = SafeTensors::from_bytes("x.safetensors", bytes)
            .unwrap_err()
            .to_string();
        assert!(message.contains(word), "`{message}` does not say `{word}`");
    }

    #[test]
    fn a_sound_file_decodes() {
        let mut bytes = file(&format!("{{{}}}", tensor("[2, 1]", "0", "8")), 8);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&2.5f32.to_le_bytes());
        let checkpoint = SafeTensors::from_bytes("x", &bytes).unwrap();
        assert_eq!(checkpoint.tensors(), [("a", [2, 1].as_slice())]);
        let mut out = [9.0];
        checkpoint.decode("a", 1, &mut out).unwrap();
        assert_eq!(out, [2.5]);
    }

    #[test]
    fn hostile_headers_are_refused() {
        refused(b"1234", "too small");
        refused(&u64::MAX.to_le_bytes(), "too large");
        refused(&file("{}", 0)[..9], "header");
        refused(&file("[1", 0), "header");
        let one = |shape, begin, end| file(&format!("{{{}}}", tensor(shape, begin, end)), 8);
        refused(&one("[1024]", "0", "4096"), "not fully covered");
        refused(&one("[2]", "8", "0"), "offset");
        refused(&one("[2]", "0", "18446744073709551616"), "header");
        refused(&one("[2]", "-8", "0"), "header");
        refused(&one("[4294967296, 4294967296, 2]", "0", "8"), "overflow");
        refused(&one("[3]", "0", "8"), "data type");
        refused(&one("[1]", "0", "4"), "not fully covered");
        // A name that is given twice is one tensor, the last; if that leaves a hole, it is refused.
        let other = tensor("[1]", "8", "12");
        let twice = format!("{{{}, {other}}}", tensor("[2]", "0", "8"));
        refused(&file(&twice, 12), "offset");
        let nested = "[".repeat(100_000);
        refused(&file(&format!("{{\"a\": {nested}"), 0), "header");
    }

    #[test]
    fn tensors_of_all_there_could_be_are_refused() {
        // Eight of 2^61 bytes: the last ends beyond what a 64-bit number counts to.
        let size = 1u64 << 61;
        let one = |i: u64| {
            let end = size.wrapping_mul(i + 1).wrapping_sub(u64::from(i == 7));
            format!(
                r#""{i}": {{"dtype": "U8", "shape": [{}], "data_offsets": [{}, {end}]}}"#,
                end.wrapping_sub(size * i),
                size * i
            )
        };
        let all: Vec<String> = (0..8).map(one).collect();
        let header = file(&format!("{{{}}}", all.join(", ")), 8);
        assert!(SafeTensors::from_bytes("x.safetensors", &header).is_err());
    }

    #[test]
    fn element_types_that_are_no_weights_do_not_stand_in_the_way() {
        let header = r#"{"a": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
                         "b": {"dtype": "BF16", "shape": [1], "data_offsets": [2, 4]}}"#;
        let bytes = file(header, 4);
        let checkpoint = SafeTensors::from_bytes("x", &bytes).unwrap();
        assert!(checkpoint.decode("b", 0, &mut [0.0]).is_ok());
        let error = checkpoint.decode("a", 0, &mut [0.0; 4]).unwrap_err();
        assert!(matches!(error, Error::WeightType { .. }), "{error}");
    }

    #[test]
    fn overlapping_tensors_are_refused() {
        let header = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                         "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
        refused(&file(header, 8), "offset");
    }
}
