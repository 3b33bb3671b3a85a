//! Directions as a file: safetensors with a tensor `[dims, width]` for each place and method.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView, serialize};

use super::space::Subspace;
use crate::error::{Error, Result};
use crate::scores::write_whole;

/// Writes named subspaces; what is all of an activation has no directions and is left out.
/// # Errors
/// Those of writing.
pub(super) fn write(path: &Path, named: &[(String, &Subspace)], about: String) -> Result<()> {
    let mut all: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, space) in named {
        let Some(directions) = space
            .directions()
            .filter(|directions| !directions.is_empty())
        else {
            continue;
        };
        let shape = vec![directions.len(), directions[0].len()];
        let bytes = directions.into_iter().flatten();
        let bytes = bytes.flat_map(|x| (x as f32).to_le_bytes()).collect();
        all.push((name.clone(), shape, bytes));
    }
    let views = all.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
        (
            name.as_str(),
            view.expect("as many bytes as the shape says"),
        )
    });
    let metadata = HashMap::from([("candlewick".to_string(), about)]);
    let failed = |source: std::io::Error| Error::Write {
        path: path.to_path_buf(),
        source,
    };
    let bytes =
        serialize(views, Some(metadata)).map_err(|error| failed(std::io::Error::other(error)))?;
    write_whole(path, |file| file.write_all(&bytes).map_err(failed))
}
