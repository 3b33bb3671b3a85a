//! GGUF, llama.cpp's format: metadata and tensor descriptions in front, then aligned tensor data, often quantised.
//!
//! The header is parsed here, every count, length and offset against the bytes that are there, so that a hostile file
//! can neither overflow nor allocate. candle takes the quantised blocks apart; the values are f32 from then on.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::quantized::GgmlDType;
use candle_core::quantized::k_quants::{
    BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K, BlockQ6K,
    BlockQ8_0, GgmlType,
};
use sha2::{Digest, Sha256};

use super::checkpoint::{Bytes, Checkpoint, Float, decode_floats, hex, map};
use super::weight_hash::WeightHash;
use crate::error::{Error, Result};
use crate::text::shortened;

/// ggml's own limit on axes.
const MOST_DIMS: u32 = 4;
/// Alignment of tensor data where the metadata names none.
const DEFAULT_ALIGNMENT: usize = 32;
/// The least bytes that a metadata entry and a tensor description take: they bound both counts.
const LEAST_ENTRY: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// A mapped GGUF file with its checked header.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes<'static>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Entry>,
}

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Left in the file until asked for: [`Gguf::texts`], [`Gguf::numbers`].
    Array(Array),
}

/// Where an array lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Array {
    kind: u32,
    count: usize,
    start: usize,
    end: usize,
}

#[derive(Debug)]
struct Entry {
    dtype: GgmlDType,
    /// Outermost axis first (the file has it the other way round).
    shape: Vec<usize>,
    start: usize,
}

impl Value {
    /// As a number, if it is one; a boolean is 0 or 1.
    pub fn number(&self) -> Option<f64> {
        match self {
            Value::Integer(n) => Some(*n as f64),
            Value::Float(x) => Some(*x),
            Value::Bool(b) => Some(f64::from(*b)),
            Value::Text(_) | Value::Array(_) => None,
        }
    }

    /// As text, if it is text.
    pub fn text(&self) -> Option<&str> {
        match self {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Value::Integer(n) => write!(f, "{n}"),
            Value::Float(x) => write!(f, "{x}"),
            Value::Bool(b) => write!(f, "{b}"),
            Value::Text(text) => write!(f, "{text}"),
            Value::Array(array) => write!(f, "array of {}", array.count),
        }
    }
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
        let mut reader = Reader {
            bytes: &self.bytes,
            at: array.start,
        };
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
        let mut reader = Reader {
            bytes: &self.bytes,
            at: array.start,
        };
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
            GgmlDType::Q4_0 => dequantise::<BlockQ4_0>(bytes, out),
            GgmlDType::Q4_1 => dequantise::<BlockQ4_1>(bytes, out),
            GgmlDType::Q5_0 => dequantise::<BlockQ5_0>(bytes, out),
            GgmlDType::Q5_1 => dequantise::<BlockQ5_1>(bytes, out),
            GgmlDType::Q8_0 => dequantise::<BlockQ8_0>(bytes, out),
            GgmlDType::Q2K => dequantise::<BlockQ2K>(bytes, out),
            GgmlDType::Q3K => dequantise::<BlockQ3K>(bytes, out),
            GgmlDType::Q4K => dequantise::<BlockQ4K>(bytes, out),
            GgmlDType::Q5K => dequantise::<BlockQ5K>(bytes, out),
            GgmlDType::Q6K => dequantise::<BlockQ6K>(bytes, out),
            GgmlDType::Q8_1 | GgmlDType::Q8K => unreachable!("refused with the header"),
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

/// Takes quantised blocks apart.
fn dequantise<B: GgmlType>(bytes: &[u8], out: &mut [f32]) {
    // SAFETY: these blocks are half floats and bytes, for which every bit pattern is a value.
    let (before, blocks, after) = unsafe { bytes.align_to::<B>() };
    // The header was checked: data begin at a multiple of 8 in a mapped file, and blocks have even sizes.
    if before.is_empty() && after.is_empty() {
        return B::to_float(blocks, out);
    }
    let mut copied = vec![B::zeros(); bytes.len() / size_of::<B>()];
    // SAFETY: as above; `copied` has room for as many bytes, and it is a copy of plain memory.
    unsafe { copied.align_to_mut::<u8>() }
        .1
        .copy_from_slice(bytes);
    B::to_float(&copied, out);
}

// Type numbers of metadata values.
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a metadata value of fixed size.
fn fixed_width(kind: u32) -> Option<usize> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// The ggml types that candle dequantises.
fn dtype(number: u32) -> Result<GgmlDType, String> {
    Ok(match number {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => {
            return Err(format!(
                "ggml type {number} is not handled; we read F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 and Q2_K to Q6_K"
            ));
        }
    })
}

type Header = (BTreeMap<String, Value>, BTreeMap<String, Entry>);

/// Checks a whole header against the file; the reason of a failure has no path yet.
fn read_header(file: &[u8]) -> Result<Header, String> {
    let mut reader = Reader { bytes: file, at: 0 };
    if reader.take(4)? != b"GGUF" {
        return Err("it does not begin with `GGUF`".to_string());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!(
            "version {version} is not handled; we read little-endian 2 and 3"
        ));
    }
    let n_tensors = reader.count("tensors", LEAST_TENSOR)?;
    let n_entries = reader.count("metadata entries", LEAST_ENTRY)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..n_entries {
        let key = reader.text()?;
        let kind = reader.u32()?;
        let value = reader
            .value(kind)
            .map_err(|why| format!("`{}`: {why}", shortened(&key)))?;
        if let Some(_twice) = metadata.insert(key.clone(), value) {
            return Err(format!("metadata `{}` is there twice", shortened(&key)));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        // ggml asks for a multiple of 8; candle's blocks rely on it.
        Some(Value::Integer(n @ 8..=0x10000)) if n % 8 == 0 => *n as usize,
        Some(other) => {
            return Err(format!(
                "alignment {} is not a multiple of 8",
                shortened(&other.to_string())
            ));
        }
    };
    let mut described = Vec::new();
    for _ in 0..n_tensors {
        described.push(reader.tensor()?);
    }
    let data_start = reader.at.next_multiple_of(alignment);
    let tensors = place(described, data_start, alignment, file.len())?;
    Ok((metadata, tensors))
}

/// Finds each tensor's bytes: aligned, inside the file, overlapping no other.
fn place(
    mut described: Vec<(String, GgmlDType, Vec<usize>, u64)>,
    data_start: usize,
    alignment: usize,
    file_len: usize,
) -> Result<BTreeMap<String, Entry>, String> {
    described.sort_by_key(|(_, _, _, offset)| *offset);
    let mut tensors = BTreeMap::new();
    let mut free_from = data_start;
    for (name, dtype, shape, offset) in described {
        let shown = shortened(&name);
        let inner = *shape.last().unwrap_or(&0);
        let elements = shape
            .iter()
            .try_fold(1usize, |product, n| product.checked_mul(*n));
        let bytes = elements
            .filter(|_| inner.is_multiple_of(dtype.block_size()))
            .and_then(|n| (n / dtype.block_size()).checked_mul(dtype.type_size()))
            .ok_or(format!(
                "tensor `{shown}` of shape {shape:?} cannot be {dtype:?}"
            ))?;
        let start = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(data_start));
        let end = start.and_then(|start| start.checked_add(bytes));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(format!(
                "tensor `{shown}` has offset {offset}, which overflows"
            ));
        };
        if end > file_len {
            return Err(format!(
                "tensor `{shown}` ends at byte {end}, the file at {file_len}; it was cut short, download it again"
            ));
        }
        if start < free_from || !(start - data_start).is_multiple_of(alignment) {
            return Err(format!(
                "tensor `{shown}` at offset {offset} overlaps another or is not aligned to {alignment}"
            ));
        }
        free_from = end;
        let entry = Entry {
            dtype,
            shape,
            start,
        };
        if let Some(_twice) = tensors.insert(name, entry) {
            return Err(format!("tensor `{shown}` is there twice"));
        }
    }
    Ok(tensors)
}

/// A place in the file; nothing is taken that is not there.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let end = self
            .at
            .checked_add(n)
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return Err(format!(
                "{n} bytes are claimed at byte {}, the file has {}",
                self.at,
                self.bytes.len()
            ));
        };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self
            .take(N)?
            .try_into()
            .expect("`take` gives as many bytes as asked for"))
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `least` bytes each.
    fn count(&mut self, what: &str, least: usize) -> Result<usize, String> {
        let count = self.u64()?;
        let room = (self.bytes.len() - self.at) / least;
        match usize::try_from(count) {
            Ok(count) if count <= room => Ok(count),
            _ => Err(format!(
                "{count} {what} are claimed, the file has room for {room}"
            )),
        }
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.count("characters", 1)?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    fn value(&mut self, kind: u32) -> Result<Value, String> {
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.array()?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.array()?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Integer(self.u32()?.into()),
            5 => Value::Integer(i32::from_le_bytes(self.array()?).into()),
            // Shortest decimal, so that an f32 written from 1e-5 is 1e-5 again and not 9.99999974e-6.
            6 => {
                let x = f32::from_le_bytes(self.array()?);
                Value::Float(x.to_string().parse().unwrap_or(f64::from(x)))
            }
            7 => Value::Bool(self.take(1)? != [0]),
            STRING => Value::Text(self.text()?),
            ARRAY => self.skip_array()?,
            10 => Value::Integer(self.u64()?.into()),
            11 => Value::Integer(i64::from_le_bytes(self.array()?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            _ => return Err(format!("value type {kind} is not known")),
        })
    }

    fn skip_array(&mut self) -> Result<Value, String> {
        let kind = self.u32()?;
        if kind == STRING {
            let count = self.count("texts", 8)?;
            let start = self.at;
            for _ in 0..count {
                let length = self.count("characters", 1)?;
                self.take(length)?;
            }
            let end = self.at;
            return Ok(Value::Array(Array {
                kind,
                count,
                start,
                end,
            }));
        }
        let width = fixed_width(kind).ok_or(format!("arrays of type {kind} are not handled"))?;
        let count = self.count("array entries", width)?;
        let start = self.at;
        self.take(count * width)?;
        let end = self.at;
        Ok(Value::Array(Array {
            kind,
            count,
            start,
            end,
        }))
    }

    fn tensor(&mut self) -> Result<(String, GgmlDType, Vec<usize>, u64), String> {
        let name = self.text()?;
        let shown = shortened(&name);
        let dims = self.u32()?;
        if !(1..=MOST_DIMS).contains(&dims) {
            return Err(format!("tensor `{shown}` claims {dims} axes"));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            let n = self.u64()?;
            shape.push(
                usize::try_from(n).map_err(|_| format!("tensor `{shown}` has an axis of {n}"))?,
            );
        }
        shape.reverse();
        let dtype = dtype(self.u32()?).map_err(|why| format!("tensor `{shown}`: {why}"))?;
        Ok((name, dtype, shape, self.u64()?))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A GGUF written by hand.
    #[derive(Default)]
    pub(crate) struct Writer {
        entries: Vec<Vec<u8>>,
        tensors: Vec<(String, Vec<usize>, u32, u64)>,
        data: Vec<u8>,
    }

    fn text_bytes(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    impl Writer {
        pub(crate) fn raw(&mut self, key: &str, kind: u32, value: &[u8]) -> &mut Self {
            self.entries
                .push([&text_bytes(key), &kind.to_le_bytes()[..], value].concat());
            self
        }
        pub(crate) fn text(&mut self, key: &str, text: &str) -> &mut Self {
            self.raw(key, STRING, &text_bytes(text))
        }
        pub(crate) fn size(&mut self, key: &str, n: u32) -> &mut Self {
            self.raw(key, 4, &n.to_le_bytes())
        }
        pub(crate) fn float(&mut self, key: &str, x: f32) -> &mut Self {
            self.raw(key, 6, &x.to_le_bytes())
        }
        pub(crate) fn texts(&mut self, key: &str, texts: &[&str]) -> &mut Self {
            let mut bytes = STRING.to_le_bytes().to_vec();
            bytes.extend((texts.len() as u64).to_le_bytes());
            texts.iter().for_each(|text| bytes.extend(text_bytes(text)));
            self.raw(key, ARRAY, &bytes)
        }
        pub(crate) fn integers(&mut self, key: &str, numbers: &[i32]) -> &mut Self {
            let mut bytes = 5u32.to_le_bytes().to_vec();
            bytes.extend((numbers.len() as u64).to_le_bytes());
            numbers.iter().for_each(|n| bytes.extend(n.to_le_bytes()));
            self.raw(key, ARRAY, &bytes)
        }
        pub(crate) fn floats(&mut self, key: &str, numbers: &[f64]) -> &mut Self {
            let mut bytes = 6u32.to_le_bytes().to_vec();
            bytes.extend((numbers.len() as u64).to_le_bytes());
            numbers
                .iter()
                .for_each(|x| bytes.extend((*x as f32).to_le_bytes()));
            self.raw(key, ARRAY, &bytes)
        }
        pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) -> &mut Self {
            let offset = self.data.len() as u64;
            self.tensors
                .push((name.to_string(), shape.to_vec(), 0, offset));
            values
                .iter()
                .for_each(|x| self.data.extend(x.to_le_bytes()));
            self.data.resize(self.data.len().next_multiple_of(32), 0);
            self
        }
        /// A tensor in any ggml type, by its number.
        pub(crate) fn stored(
            &mut self,
            name: &str,
            shape: &[usize],
            dtype: u32,
            bytes: &[u8],
        ) -> &mut Self {
            let offset = self.data.len() as u64;
            self.data.extend(bytes);
            self.data.resize(self.data.len().next_multiple_of(32), 0);
            self.claim(name, shape, dtype, offset)
        }
        /// A tensor description that need not be true.
        fn claim(&mut self, name: &str, shape: &[usize], dtype: u32, offset: u64) -> &mut Self {
            self.tensors
                .push((name.to_string(), shape.to_vec(), dtype, offset));
            self
        }
        pub(crate) fn bytes(&self) -> Vec<u8> {
            let mut bytes = b"GGUF".to_vec();
            bytes.extend(3u32.to_le_bytes());
            bytes.extend((self.tensors.len() as u64).to_le_bytes());
            bytes.extend((self.entries.len() as u64).to_le_bytes());
            bytes.extend(self.entries.concat());
            for (name, shape, dtype, offset) in &self.tensors {
                bytes.extend(text_bytes(name));
                bytes.extend((shape.len() as u32).to_le_bytes());
                shape
                    .iter()
                    .rev()
                    .for_each(|n| bytes.extend((*n as u64).to_le_bytes()));
                bytes.extend(dtype.to_le_bytes());
                bytes.extend(offset.to_le_bytes());
            }
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(&self.data);
            bytes
        }
    }

    fn open(bytes: &[u8]) -> Result<Gguf> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, bytes).unwrap();
        Gguf::open(&path)
    }

    fn refused(bytes: &[u8], word: &str) {
        let message = open(bytes).unwrap_err().to_string();
        assert!(message.contains(word), "`{message}` does not say `{word}`");
    }

    #[test]
    fn a_sound_file_reads() {
        let mut writer = Writer::default();
        writer
            .text("general.architecture", "llama")
            .float("eps", 1e-5)
            .size("n", 7);
        writer
            .texts("words", &["a", "b"])
            .integers("kinds", &[1, -3]);
        writer.tensor("x", &[2, 1], &[1.5, -2.0]);
        let gguf = open(&writer.bytes()).unwrap();
        assert_eq!(gguf.number("eps").unwrap(), 1e-5);
        assert_eq!(gguf.size("n").unwrap(), 7);
        assert_eq!(gguf.texts("words").unwrap(), ["a", "b"]);
        assert_eq!(gguf.numbers("kinds").unwrap(), [1.0, -3.0]);
        assert_eq!(gguf.tensors(), [("x", [2, 1].as_slice())]);
        let mut out = [0.0; 2];
        gguf.decode("x", 0, &mut out).unwrap();
        assert_eq!(out, [1.5, -2.0]);
        assert!(gguf.size("eps").is_err() && gguf.size("gone").is_err());
        assert_eq!(gguf.storage(), "gguf F32 (dequantised to f32)");
    }

    #[test]
    fn hostile_headers_are_refused() {
        let head = |tensors: u64, entries: u64| {
            let mut bytes = b"GGUF\x03\0\0\0".to_vec();
            bytes.extend(tensors.to_le_bytes());
            bytes.extend(entries.to_le_bytes());
            bytes
        };
        refused(b"GGUF", "claimed");
        refused(b"GGML\x03\0\0\0", "does not begin");
        refused(b"GGUF\0\0\0\x03", "version");
        refused(&head(0, 4_000_000_000), "room for 0");
        refused(&head(u64::MAX, 0), "room for 0");
        let long_key = [head(0, 1), u64::MAX.to_le_bytes().to_vec(), vec![0; 32]].concat();
        refused(&long_key, "room for");
        let huge = |kind: u32, count: u64| [&kind.to_le_bytes()[..], &count.to_le_bytes()].concat();
        let entry = |kind, value: &[u8]| Writer::default().raw("k", kind, value).bytes();
        refused(&entry(ARRAY, &huge(4, 1 << 62)), "room for");
        refused(&entry(ARRAY, &huge(STRING, 1 << 40)), "room for");
        refused(&entry(ARRAY, &huge(ARRAY, 1)), "arrays of type 9");
        refused(&entry(99, &[]), "value type 99");
        refused(
            &Writer::default().size("general.alignment", 0).bytes(),
            "alignment 0",
        );
        refused(
            &Writer::default().size("general.alignment", 3).bytes(),
            "alignment 3",
        );
        refused(
            &Writer::default().size("a", 0).size("a", 0).bytes(),
            "twice",
        );
    }

    #[test]
    fn hostile_tensors_are_refused() {
        let claim = |shape: &[usize], dtype, offset| {
            Writer::default().claim("x", shape, dtype, offset).bytes()
        };
        refused(&claim(&[4], 0, 0), "cut short");
        refused(&claim(&[4], 0, u64::MAX), "overflows");
        refused(&claim(&[1 << 40, 1 << 40], 0, 0), "cannot be F32");
        refused(&claim(&[33], 8, 0), "cannot be Q8_0");
        refused(&claim(&[1], 77, 0), "ggml type 77");
        refused(&claim(&[1; 5], 0, 0), "5 axes");
        refused(&claim(&[], 0, 0), "0 axes");
        let mut overlapping = Writer::default();
        overlapping
            .tensor("x", &[16], &[0.0; 16])
            .claim("y", &[8], 0, 32);
        refused(&overlapping.bytes(), "overlaps");
        let mut skewed = Writer::default();
        skewed
            .tensor("x", &[4], &[0.0; 4])
            .tensor("z", &[8], &[0.0; 8])
            .claim("y", &[1], 0, 20);
        refused(&skewed.bytes(), "aligned");
        let mut whole = Writer::default();
        whole
            .text("general.architecture", "llama")
            .tensor("x", &[64], &[1.0; 64]);
        let whole = whole.bytes();
        for length in 0..whole.len() {
            assert!(open(&whole[..length]).is_err(), "cut to {length} bytes");
        }
    }
}
