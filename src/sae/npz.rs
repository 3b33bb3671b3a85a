//! Arrays of an `.npz`, through candle's reader; what it would believe of a header is held against the file first.

use std::collections::HashMap;
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

/// In one line; an array of Python objects is a pickle, which nobody here runs.
fn of_candle(error: candle_core::Error) -> String {
    let text = error.to_string();
    match text.contains("unrecognized descr |O") || text.contains("unrecognized descr O") {
        true => "it holds pickled Python objects, which are not read; save plain arrays".into(),
        false => crate::text::one_line(&text),
    }
}
