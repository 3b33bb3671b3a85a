//! PyTorch checkpoints (`pytorch_model.bin`, `.pt`, `.pth`): a zip of one pickle, which says what the tensors are, and one entry per
//! storage, which is mapped and read in place.
//!
//! The pickle is read as data (`machine.rs`): no name in it is looked up and no call in it is made. A file that holds a model object
//! instead of its state dict is refused by the class it names. Left out on purpose: the format before PyTorch 1.6, which was no zip.
//! candle has a reader of its own, `candle_core::pickle`; the tests compare with it. We do not load through it, because it allocates what a
//! header claims, copies shared values without bound, prints and skips what it cannot read, and panics on short argument lists.

mod machine;
mod zip;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::PathBuf;

use candle_core::DType;

use super::checkpoint::{Bytes, Checkpoint, Float, decode_floats, map};
use super::weight_hash::WeightHash;
use crate::error::{Error, Result};
use crate::text::shortened;
use machine::{Id, Pickle, Value};

/// Larger pickles are refused; a thousand tensors take 150 kB.
const PICKLE_LIMIT: usize = 16 << 20;
/// Where training scripts put the state dict when they save more than it.
const WRAPPERS: [&str; 3] = ["state_dict", "model_state_dict", "model"];

/// One or several PyTorch checkpoints as one.
#[derive(Debug)]
pub struct StateDict {
    shards: Vec<Bytes<'static>>,
    tensors: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    shard: usize,
    tensor: Tensor,
}

/// A tensor as the pickle describes it, checked against the bytes of its storage.
#[derive(Debug)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    /// In elements; `None` if the elements lie in order.
    strides: Option<Vec<usize>>,
    /// First byte in the file.
    start: usize,
}

/// Element types that PyTorch has storages of. Only the first three can be weights; the others may stand in tensors that we skip.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Dtype {
    F32,
    F16,
    BF16,
    F64,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

impl Dtype {
    fn of_storage(class: &str) -> Option<Self> {
        Some(match class {
            "FloatStorage" => Dtype::F32,
            "HalfStorage" => Dtype::F16,
            "BFloat16Storage" => Dtype::BF16,
            "DoubleStorage" => Dtype::F64,
            "LongStorage" => Dtype::I64,
            "IntStorage" => Dtype::I32,
            "ShortStorage" => Dtype::I16,
            "CharStorage" => Dtype::I8,
            "ByteStorage" => Dtype::U8,
            "BoolStorage" => Dtype::Bool,
            _ => return None,
        })
    }

    fn bytes(self) -> usize {
        match self {
            Dtype::F64 | Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::BF16 | Dtype::I16 => 2,
            Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
        }
    }

    fn float(self) -> Option<Float> {
        match self {
            Dtype::F32 => Some(Float::F32),
            Dtype::F16 => Some(Float::F16),
            Dtype::BF16 => Some(Float::BF16),
            _ => None,
        }
    }
}

impl StateDict {
    /// Opens the shards of a checkpoint.
    /// # Errors
    /// [`Error::ObjectPickle`] for a whole model, [`Error::OldPickle`], [`Error::Missing`], [`Error::Malformed`].
    pub fn open(paths: Vec<PathBuf>) -> Result<Self> {
        let files = paths.into_iter().map(|path| Ok((map(&path)?, path)));
        Self::new(files.collect::<Result<_>>()?)
    }

    /// Reads a checkpoint that is in memory. `name` stands for its path in messages.
    /// # Errors
    /// As [`StateDict::open`].
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Result<Self> {
        Self::new(vec![(Bytes::Owned(bytes), PathBuf::from(name))])
    }

    fn new(files: Vec<(Bytes<'static>, PathBuf)>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        let mut shards = Vec::with_capacity(files.len());
        for (shard, (bytes, path)) in files.into_iter().enumerate() {
            let malformed = |reason| Error::Malformed {
                path: path.clone(),
                format: "PyTorch",
                reason,
            };
            let found = read_tensors(&bytes).map_err(|refusal| match refusal {
                Refusal::Malformed(reason) => malformed(reason),
                Refusal::Old => Error::OldPickle { path: path.clone() },
                Refusal::Object(class) => Error::ObjectPickle {
                    path: path.clone(),
                    class,
                },
            })?;
            for (name, tensor) in found {
                let shown = shortened(&name);
                if tensors.insert(name, Entry { shard, tensor }).is_some() {
                    return Err(malformed(format!("tensor `{shown}` is there twice")));
                }
            }
            shards.push(bytes);
        }
        Ok(StateDict { shards, tensors })
    }
}

impl Checkpoint for StateDict {
    fn tensors(&self) -> Vec<(&str, &[usize])> {
        self.tensors
            .iter()
            .map(|(name, entry)| (name.as_str(), entry.tensor.shape.as_slice()))
            .collect()
    }

    fn decode(&self, name: &str, start: usize, out: &mut [f32]) -> Result<()> {
        let Entry { shard, tensor } = &self.tensors[name];
        let Some(float) = tensor.dtype.float() else {
            return Err(Error::WeightType {
                name: name.to_string(),
                found: format!("{:?}", tensor.dtype),
                known: "F32, F16, BF16".to_string(),
            });
        };
        let width = tensor.dtype.bytes();
        let shard = &self.shards[*shard];
        match &tensor.strides {
            None => {
                let begin = tensor.start + start * width;
                let range = begin..begin + out.len() * width;
                decode_floats(&shard[range.clone()], float, out);
                shard.let_go(range);
            }
            Some(strides) => {
                for (i, x) in out.iter_mut().enumerate() {
                    let at = tensor.start + strided(start + i, &tensor.shape, strides) * width;
                    decode_floats(&shard[at..at + width], float, std::slice::from_mut(x));
                }
            }
        }
        Ok(())
    }

    fn dtype(&self, name: &str) -> Option<DType> {
        self.tensors[name].tensor.dtype.float().map(DType::from)
    }

    fn storage(&self) -> String {
        let dtypes: BTreeSet<Dtype> = self
            .tensors
            .values()
            .map(|entry| entry.tensor.dtype)
            .collect();
        let names: Vec<String> = dtypes.iter().map(|dtype| format!("{dtype:?}")).collect();
        format!("pytorch {}", names.join(", "))
    }

    fn hash(&self) -> WeightHash {
        WeightHash::begin(&self.shards)
    }
}

/// Where the `i`-th entry of a tensor lies in its storage, counted from the first.
fn strided(mut i: usize, shape: &[usize], strides: &[usize]) -> usize {
    let mut at = 0;
    for (n, stride) in shape.iter().zip(strides).rev() {
        at += i % n * stride;
        i /= n;
    }
    at
}

/// Why a file is not read.
#[derive(Debug, PartialEq)]
enum Refusal {
    Malformed(String),
    /// Written before PyTorch 1.6.
    Old,
    /// It holds an object of this class.
    Object(String),
}

impl From<String> for Refusal {
    fn from(reason: String) -> Self {
        Refusal::Malformed(reason)
    }
}

/// All tensors of one file, checked against its bytes.
fn read_tensors(file: &[u8]) -> Result<Vec<(String, Tensor)>, Refusal> {
    // The magic number that the format before the zip begins with, itself a pickled integer.
    const OLD: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
    if file.starts_with(OLD) {
        return Err(Refusal::Old);
    }
    if !file.starts_with(b"PK") {
        return Err("it is no zip, which `torch.save` writes".to_string().into());
    }
    let entries = zip::entries(file)?;
    let mut roots = entries
        .keys()
        .filter_map(|name| name.strip_suffix("data.pkl"));
    let (Some(root), None) = (roots.next(), roots.next()) else {
        return Err("it does not hold one `data.pkl`".to_string().into());
    };
    let byte_order = entries.get(&format!("{root}byteorder"));
    if byte_order.is_some_and(|range| &file[range.clone()] != b"little") {
        return Err("its numbers are big-endian, which we do not read"
            .to_string()
            .into());
    }
    let program = &file[entries[&format!("{root}data.pkl")].clone()];
    if program.len() > PICKLE_LIMIT {
        let size = program.len();
        return Err(format!("its pickle has {size} bytes, we read at most {PICKLE_LIMIT}").into());
    }
    let pickle = Pickle::read(program)?;
    let storage = |key: &str| entries.get(&format!("{root}data/{key}")).cloned();
    state_dict(&pickle)?
        .into_iter()
        .map(|(name, id)| {
            let tensor = tensor(&pickle, id, &storage)
                .map_err(|why| format!("tensor `{}`: {why}", shortened(name)))?;
            Ok((name.to_string(), tensor))
        })
        .collect()
}

/// The names and values of the state dict, which is the whole pickle or lies in one of the usual places.
fn state_dict<'a>(pickle: &Pickle<'a>) -> Result<Vec<(&'a str, Id)>, Refusal> {
    let top = named(pickle, pickle.top)?;
    let is_tensor = |id: Id| rebuilt(pickle, id).is_some();
    let wrapped = || {
        let inner = top.iter().find(|(name, _)| WRAPPERS.contains(name))?;
        Some(named(pickle, inner.1))
    };
    let found = match top.iter().any(|(_, id)| is_tensor(*id)) {
        true => top,
        false => wrapped().unwrap_or(Ok(top))?,
    };
    match found.iter().find(|(_, id)| !is_tensor(*id)) {
        None if found.is_empty() => Err("it holds no tensor".to_string().into()),
        None => Ok(found),
        Some((name, id)) => Err(match class(pickle, *id) {
            Some(class) => Refusal::Object(class),
            None => Refusal::Malformed(format!(
                "its entry `{}` is no tensor; save the state dict alone",
                shortened(name)
            )),
        }),
    }
}

/// A dictionary with texts as keys.
fn named<'a>(pickle: &Pickle<'a>, id: Id) -> Result<Vec<(&'a str, Id)>, Refusal> {
    let Value::Dict(pairs) = pickle.get(id) else {
        return Err(match class(pickle, id) {
            Some(class) => Refusal::Object(class),
            None => Refusal::Malformed("it holds no dictionary of tensors".to_string()),
        });
    };
    let named = pairs.iter().map(|(key, value)| {
        let name = pickle
            .text(*key)
            .ok_or("a name of a tensor is no text".to_string())?;
        Ok((name, *value))
    });
    named.collect()
}

/// What is called to make a value, for messages.
fn class(pickle: &Pickle, id: Id) -> Option<String> {
    match pickle.get(id) {
        Value::Call { callable, .. } => match pickle.get(*callable) {
            Value::Global { module, name } => Some(shortened(&format!("{module}.{name}"))),
            // An object that gets its state is a call of the call that makes it.
            Value::Call { callable, .. } => {
                let (module, name) = pickle.global(*callable)?;
                Some(shortened(&format!("{module}.{name}")))
            }
            _ => None,
        },
        _ => None,
    }
}

/// The arguments of `_rebuild_tensor_v2`, if a value is such a call, also inside a parameter or a typed tensor.
fn rebuilt<'p>(pickle: &'p Pickle, id: Id) -> Option<&'p [Id]> {
    let Value::Call {
        callable,
        arguments,
    } = pickle.get(id)
    else {
        return None;
    };
    let arguments = pickle.tuple(*arguments)?;
    match pickle.global(*callable)? {
        ("torch._utils", "_rebuild_tensor_v2") => Some(arguments),
        ("torch._utils", "_rebuild_parameter") => {
            let Value::Call {
                callable,
                arguments,
            } = pickle.get(*arguments.first()?)
            else {
                return None;
            };
            let is_tensor = pickle.global(*callable)? == ("torch._utils", "_rebuild_tensor_v2");
            is_tensor.then(|| pickle.tuple(*arguments)).flatten()
        }
        ("torch._tensor", "_rebuild_from_type_v2") => {
            let is_tensor =
                pickle.global(*arguments.first()?)? == ("torch._utils", "_rebuild_tensor_v2");
            is_tensor
                .then(|| pickle.tuple(*arguments.get(2)?))
                .flatten()
        }
        _ => None,
    }
}

/// Reads `_rebuild_tensor_v2(storage, offset, size, stride, ...)` and checks that it stays inside its storage.
fn tensor(
    pickle: &Pickle,
    id: Id,
    storage: &dyn Fn(&str) -> Option<Range<usize>>,
) -> Result<Tensor, String> {
    let arguments = rebuilt(pickle, id).unwrap_or_default();
    let [source, offset, size, stride, ..] = arguments else {
        return Err(format!(
            "{} arguments do not make a tensor",
            arguments.len()
        ));
    };
    let (dtype, bytes) = read_storage(pickle, *source, storage)?;
    let (Some(offset), Some(shape), Some(strides)) = (
        pickle.size(*offset),
        pickle.sizes(*size),
        pickle.sizes(*stride),
    ) else {
        return Err("its offset, shape or strides are no sizes".to_string());
    };
    let room = bytes.len() / dtype.bytes();
    let fits = (shape.len() == strides.len())
        .then(|| last_entry(offset, &shape, &strides, room))
        .flatten();
    if fits.is_none() {
        return Err(format!(
            "shape {shape:?} with strides {strides:?} from {offset} does not fit into a storage of {room}"
        ));
    }
    let in_order = is_in_order(&shape, &strides);
    Ok(Tensor {
        dtype,
        shape,
        strides: (!in_order).then_some(strides),
        start: bytes.start + offset * dtype.bytes(),
    })
}

/// A storage's element type and bytes: `("storage", class, key, location, count)`.
fn read_storage(
    pickle: &Pickle,
    id: Id,
    storage: &dyn Fn(&str) -> Option<Range<usize>>,
) -> Result<(Dtype, Range<usize>), String> {
    let Value::Persistent(id) = pickle.get(id) else {
        return Err("it has no storage".to_string());
    };
    let Some([_, class, key, _, count]) = pickle.tuple(*id) else {
        return Err("its storage is not described as PyTorch does".to_string());
    };
    let (Some(("torch", class)), Some(key), Some(count)) = (
        pickle.global(*class),
        pickle.text(*key),
        pickle.size(*count),
    ) else {
        return Err("its storage is not described as PyTorch does".to_string());
    };
    let dtype = Dtype::of_storage(class)
        .ok_or_else(|| format!("storage type `{}` is not handled", shortened(class)))?;
    let bytes = storage(key).ok_or_else(|| format!("there is no storage `{}`", shortened(key)))?;
    match count.checked_mul(dtype.bytes()) {
        Some(needed) if needed <= bytes.len() => Ok((dtype, bytes)),
        _ => Err(format!(
            "its storage of {count} numbers has {} bytes; the file was cut short, download it again",
            bytes.len()
        )),
    }
}

/// The index after the last entry of a tensor, if it lies inside its storage and has no more entries than that (a tensor expanded
/// over a small storage would be as large as it says it is).
fn last_entry(offset: usize, shape: &[usize], strides: &[usize], room: usize) -> Option<usize> {
    let count = shape
        .iter()
        .try_fold(1usize, |product, n| product.checked_mul(*n))?;
    if count == 0 {
        return (offset <= room).then_some(offset);
    }
    let mut last = offset;
    for (n, stride) in shape.iter().zip(strides) {
        last = last.checked_add((n - 1).checked_mul(*stride)?)?;
    }
    (count <= room && last < room).then_some(last + 1)
}

/// Whether the entries lie one after the other; the stride of an axis of one entry says nothing.
fn is_in_order(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    for (n, stride) in shape.iter().zip(strides).rev() {
        if *n != 1 && *stride != expected {
            return false;
        }
        // A tensor without entries may have axes whose product is no number.
        expected = expected.saturating_mul(*n);
    }
    true
}

#[cfg(test)]
pub(crate) mod tests;
