//! Directions as a file: safetensors with a tensor `[dims, width]` for each place and method.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde::Deserialize;

use super::space::Subspace;
use crate::error::{Error, Result};
use crate::methods::taken::TakenModel;
use crate::model::checkpoint::read_at_most;
use crate::scores::write_whole;
use crate::text::visible;

/// A larger file is refused: all of it is held.
const FILE_LIMIT: u64 = 1 << 30;
/// The key of the metadata under which it says how it was made.
const METADATA: &str = "candlewick";

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
    let metadata = HashMap::from([(METADATA.to_string(), about)]);
    let failed = |source: std::io::Error| Error::Write {
        path: path.to_path_buf(),
        source,
    };
    let bytes =
        serialize(views, Some(metadata)).map_err(|error| failed(std::io::Error::other(error)))?;
    write_whole(path, |file| file.write_all(&bytes).map_err(failed))
}

/// What stands in the metadata of a file of directions about their model.
#[derive(Deserialize)]
struct Written {
    model: String,
    #[serde(default)]
    weight_hash: String,
}

/// The model that the directions of a file were found in, if the file says so.
/// # Errors
/// Those of [`read_subspaces`].
pub fn model_of_directions(path: &Path) -> Result<Option<TakenModel>> {
    let bytes = read(path)?;
    let (_, metadata) =
        SafeTensors::read_metadata(&bytes).map_err(|error| malformed(path, error.to_string()))?;
    let text = metadata
        .metadata()
        .as_ref()
        .and_then(|all| all.get(METADATA));
    let written = text.and_then(|text| serde_json::from_str::<Written>(text).ok());
    Ok(written.map(|of| TakenModel {
        id: of.model,
        weight_hash: of.weight_hash,
    }))
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::Malformed {
        path: path.into(),
        format: "directions",
        reason,
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    if !path.exists() {
        return Err(Error::Missing {
            path: path.into(),
            hint: "write one with `candlewick subspace` (`SubspaceConfig::save`)".into(),
        });
    }
    read_at_most(path, FILE_LIMIT)
}

/// The subspaces of a file that `candlewick subspace --save-direction` wrote, by their places (`blocks.2.hook_resid_post@END`): those of one
/// method, which need not be named where there is one.
/// # Errors
/// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] for what is no such file, or has several methods and none is named.
pub fn read_subspaces(path: &Path, method: Option<&str>) -> Result<BTreeMap<String, Subspace>> {
    let malformed = |reason: String| malformed(path, reason);
    let bytes = read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;
    let mut found: BTreeMap<String, BTreeMap<String, Subspace>> = BTreeMap::new();
    for (name, view) in file.iter() {
        let shown = visible(name);
        let parts = name
            .rsplit_once('.')
            .filter(|(place, _)| place.contains('@'));
        let (place, of) = parts.ok_or_else(|| {
            malformed(format!(
                "`{shown}` is not named as in `blocks.2.hook_resid_post@END.das`"
            ))
        })?;
        let (&[dims, width], Dtype::F32) = (view.shape(), view.dtype()) else {
            return Err(malformed(format!("`{shown}` is no matrix of f32")));
        };
        let numbers = view.data().chunks_exact(4);
        let numbers = numbers
            .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().expect("four bytes"))));
        let numbers: Vec<f64> = numbers.collect();
        if dims > width {
            return Err(malformed(format!(
                "`{shown}` has {dims} directions of {width} dimensions, and no more than {width} are independent"
            )));
        }
        let directions: Vec<Vec<f64>> = match dims * width {
            0 => Vec::new(),
            _ => numbers.chunks(width).map(<[f64]>::to_vec).collect(),
        };
        let space = Subspace::spanned(&directions)
            .filter(|_| !directions.is_empty())
            .ok_or_else(|| malformed(format!("the directions of `{shown}` are not independent")))?;
        found
            .entry(of.into())
            .or_default()
            .insert(place.into(), space);
    }
    let names: BTreeSet<String> = found.keys().cloned().collect();
    let listed = || {
        names
            .iter()
            .map(|name| visible(name))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let chosen = match (method, names.len()) {
        (Some(method), _) => method.to_string(),
        (None, 1) => names.iter().next().cloned().unwrap_or_default(),
        (None, 0) => return Err(malformed("it has no directions".into())),
        (None, _) => {
            return Err(malformed(format!(
                "it has directions of several methods ({}); name one: `method = \"...\"` in the program, or behind the file, as in \
                 `FILE:das`",
                listed()
            )));
        }
    };
    found.remove(&chosen).ok_or_else(|| {
        malformed(format!(
            "it has no directions of `{chosen}`; it has {}",
            listed()
        ))
    })
}
