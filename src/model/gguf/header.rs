//! The header of a GGUF file, every count, length and offset checked against the bytes that are there.
//!
//! candle has a reader of it, `candle_core::quantized::gguf_file`, through which we do not read: it divides by the alignment that a file
//! claims, cuts zeros off the end of a text, which makes the token `\0` one without a name, and makes 32 bytes of each entry of an array,
//! where ours stays in the file. A test holds that this is so still.

use std::collections::BTreeMap;
use std::fmt;

use candle_core::quantized::GgmlDType;

use crate::text::shortened;

/// ggml's own limit on axes.
const MOST_DIMS: u32 = 4;
/// Alignment of tensor data where the metadata names none.
const DEFAULT_ALIGNMENT: usize = 32;
/// The least bytes that a metadata entry and a tensor description take: they bound both counts.
const LEAST_ENTRY: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Integer(i128),
    Float(f64),
    Bool(bool),
    Text(String),
    /// Left in the file until asked for: [`super::Gguf::texts`], [`super::Gguf::numbers`].
    Array(Array),
}

/// Where an array lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Array {
    pub kind: u32,
    pub count: usize,
    pub start: usize,
    pub end: usize,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub dtype: GgmlDType,
    /// Outermost axis first (the file has it the other way round).
    pub shape: Vec<usize>,
    pub start: usize,
}

impl Array {
    /// A reader of the file that stands at the array's first item.
    pub(super) fn reader(self, file: &[u8]) -> Reader<'_> {
        Reader {
            bytes: file,
            at: self.start,
        }
    }
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

// Type numbers of metadata values.
pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;

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

pub(super) type Header = (BTreeMap<String, Value>, BTreeMap<String, Entry>);

/// Checks a whole header against the file; the reason of a failure has no path yet.
pub(super) fn read_header(file: &[u8]) -> Result<Header, String> {
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
pub(super) struct Reader<'a> {
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

    pub fn text(&mut self) -> Result<String, String> {
        let length = self.count("characters", 1)?;
        Ok(String::from_utf8_lossy(self.take(length)?).into_owned())
    }

    pub fn value(&mut self, kind: u32) -> Result<Value, String> {
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
