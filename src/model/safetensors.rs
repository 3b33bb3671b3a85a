//! The safetensors format: eight bytes of length, a JSON header, then the tensors one after the other.
//!
//! The header is believed only where it agrees with itself and with the file: offsets inside the data, tensors back to back,
//! sizes that are the product of their shape. Nothing is allocated by a number that the header declares.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use candle_core::DType;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};

use super::checkpoint::{Bytes, Checkpoint, Float, check_not_a_pickle, decode_floats, map};
use super::weight_hash::WeightHash;
use crate::error::{Error, Result};
use crate::text::shortened;

/// The format's own limit on a header.
const MOST_HEADER: u64 = 100_000_000;

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

/// Element types of the format. Only the first three can be weights; the others may stand in tensors that we skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
enum Dtype {
    F32,
    F16,
    BF16,
    F64,
    I64,
    U64,
    I32,
    U32,
    I16,
    U16,
    I8,
    U8,
    #[serde(rename = "BOOL")]
    Bool,
    #[serde(rename = "F8_E4M3")]
    F8E4M3,
    #[serde(rename = "F8_E5M2")]
    F8E5M2,
}

impl Dtype {
    fn bytes(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 | Dtype::U64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool | Dtype::F8E4M3 | Dtype::F8E5M2 => 1,
        }
    }
}

#[derive(Debug, Deserialize)]
struct Written {
    dtype: Dtype,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
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
            for (name, dtype, shape, start) in read_header(&bytes).map_err(malformed)? {
                let entry = Entry {
                    shard,
                    dtype,
                    shape,
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
        let width = entry.dtype.bytes();
        let begin = entry.start + start * width;
        let (shard, range) = (&self.shards[entry.shard], begin..begin + out.len() * width);
        let bytes = &shard[range.clone()];
        match entry.dtype {
            Dtype::F32 => decode_floats(bytes, Float::F32, out),
            Dtype::F16 => decode_floats(bytes, Float::F16, out),
            Dtype::BF16 => decode_floats(bytes, Float::BF16, out),
            other => {
                return Err(Error::WeightType {
                    name: name.to_string(),
                    found: format!("{other:?}"),
                    known: "F32, F16, BF16".to_string(),
                });
            }
        }
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

type Tensor = (String, Dtype, Vec<usize>, usize);

/// Checks a whole header against the file; the reason of a failure has no path yet.
fn read_header(file: &[u8]) -> Result<Vec<Tensor>, String> {
    let (length, rest) = file
        .split_first_chunk::<8>()
        .ok_or(format!("{} bytes are no header", file.len()))?;
    let length = u64::from_le_bytes(*length);
    if length > MOST_HEADER || length > rest.len() as u64 {
        return Err(format!(
            "the header claims {length} bytes, {} follow",
            rest.len()
        ));
    }
    let (header, data) = rest.split_at(length as usize);
    let Header(mut entries) =
        serde_json::from_slice(header).map_err(|source| format!("header: {source}"))?;
    entries.sort_by_key(|(_, written)| written.data_offsets);
    let data_start = file.len() - data.len();
    let mut expected = 0;
    let mut tensors = Vec::with_capacity(entries.len());
    for (
        name,
        Written {
            dtype,
            shape,
            data_offsets: [begin, end],
        },
    ) in entries
    {
        let shown = shortened(&name);
        let size = shape
            .iter()
            .try_fold(dtype.bytes(), |product, n| product.checked_mul(*n));
        if begin != expected || end < begin || end > data.len() {
            return Err(format!(
                "tensor `{shown}` claims bytes {begin} to {end}, but must begin at {expected} and end within {}",
                data.len()
            ));
        }
        if size != Some(end - begin) {
            return Err(format!(
                "tensor `{shown}` of {dtype:?} {} cannot have {} bytes",
                shortened(&format!("{shape:?}")),
                end - begin
            ));
        }
        expected = end;
        tensors.push((name, dtype, shape, data_start + begin));
    }
    if expected != data.len() {
        return Err(format!(
            "{} bytes of data, the header accounts for {expected}",
            data.len()
        ));
    }
    Ok(tensors)
}

/// The JSON object as a list, so that a name given twice is seen.
struct Header(Vec<(String, Written)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = Vec::new();
                let mut seen = BTreeSet::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    if !seen.insert(name.clone()) {
                        let name = shortened(&name);
                        return Err(serde::de::Error::custom(format!(
                            "tensor `{name}` is there twice"
                        )));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
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
        refused(b"1234", "no header");
        refused(&u64::MAX.to_le_bytes(), "claims");
        refused(&file("{}", 0)[..9], "claims");
        refused(&file("[1", 0), "header");
        let one = |shape, begin, end| file(&format!("{{{}}}", tensor(shape, begin, end)), 8);
        refused(&one("[2]", "0", "4096"), "within 8");
        refused(&one("[2]", "8", "0"), "must begin at 0");
        refused(&one("[2]", "0", "18446744073709551616"), "header");
        refused(&one("[2]", "-8", "0"), "header");
        refused(
            &one("[4294967296, 4294967296, 2]", "0", "8"),
            "cannot have 8 bytes",
        );
        refused(&one("[3]", "0", "8"), "cannot have 8 bytes");
        refused(&one("[1]", "0", "4"), "accounts for 4");
        let twice = format!("{{{0}, {0}}}", tensor("[2]", "0", "8"));
        refused(&file(&twice, 8), "twice");
        let nested = "[".repeat(100_000);
        refused(&file(&format!("{{\"a\": {nested}"), 0), "header");
    }

    #[test]
    fn overlapping_tensors_are_refused() {
        let header = r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                         "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#;
        refused(&file(header, 8), "must begin at 8");
    }
}
