//! Arrays of an `.npz` or `.npy`, through candle's reader; what it would believe of a header is held against the file first.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_core::Tensor;
use candle_core::npy::NpzTensors;

/// Bytes that a byte of a deflated file can become.
const DEFLATE: u64 = 1032;

/// # Errors
/// What is wrong with the file, in words.
pub fn read(path: &Path, names: &[&str]) -> Result<HashMap<String, Tensor>, String> {
    let most = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len()
        .saturating_mul(DEFLATE);
    let archive = NpzTensors::new(path).map_err(of_candle)?;
    let mut tensors = HashMap::new();
    for &name in names {
        if !archive.names().iter().any(|known| *known == name) {
            continue;
        }
        let (shape, dtype) = archive.get_shape_and_dtype(name).map_err(of_candle)?;
        let size = (shape.dims().iter()).try_fold(dtype.size_in_bytes() as u64, |size, &dim| {
            size.checked_mul(dim as u64)
        });
        if size.is_none_or(|size| size > most) {
            return Err(format!(
                "`{name}` claims to be {:?}, which is more than the file can hold",
                shape.dims()
            ));
        }
        if let Some(tensor) = archive.get(name).map_err(of_candle)? {
            tensors.insert(name.to_string(), tensor);
        }
    }
    Ok(tensors)
}

/// Bytes of a header that are looked at.
const HEADER: u64 = 1 << 16;

/// The array of an `.npy`.
/// # Errors
/// What is wrong with the file, in words.
pub fn read_npy(path: &Path) -> Result<Tensor, String> {
    let size = std::fs::metadata(path)
        .map_err(|error| error.to_string())?
        .len();
    let mut header = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(HEADER)
        .read_to_end(&mut header)
        .map_err(|error| error.to_string())?;
    let (length, numbers) = claims(&header).ok_or("its header is not that of an `.npy` file")?;
    if length > size || numbers > size {
        return Err(format!(
            "it claims {numbers} numbers behind a header of {length} bytes, and has {size} bytes"
        ));
    }
    Tensor::read_npy(path).map_err(of_candle)
}

/// How long the header of an `.npy` says that it is, and how many numbers it says that there are.
fn claims(header: &[u8]) -> Option<(u64, u64)> {
    let rest = header.strip_prefix(b"\x93NUMPY")?;
    let (length, text) = match rest {
        [1, _, a, b, text @ ..] => (u64::from(u16::from_le_bytes([*a, *b])), text),
        [_, _, a, b, c, d, text @ ..] => (u64::from(u32::from_le_bytes([*a, *b, *c, *d])), text),
        _ => return None,
    };
    let text = String::from_utf8_lossy(text);
    let (_, shape) = text.split_once("'shape'")?;
    let (shape, _) = shape.split_once('(')?.1.split_once(')')?;
    let dims = shape
        .split(',')
        .map(str::trim)
        .filter(|dim| !dim.is_empty());
    let numbers = dims.map(|dim| dim.parse::<u64>().ok());
    let product = |all: u64, dim: Option<u64>| all.checked_mul(dim?);
    Some((length, numbers.into_iter().try_fold(1, product)?))
}

/// In one line; an array of Python objects is a pickle, which nobody here runs.
fn of_candle(error: candle_core::Error) -> String {
    let text = error.to_string();
    match text.contains("unrecognized descr |O") || text.contains("unrecognized descr O") {
        true => "it holds pickled Python objects, which are not read; save plain arrays".into(),
        false => crate::text::one_line(&text),
    }
}
