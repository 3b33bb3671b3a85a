//! Which files of a model folder hold its weights: `model.safetensors`, or the shards that its index lists; else the same of PyTorch
//! pickles. A single weight file can also be named by itself, as where one folder holds a series of checkpoints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::checkpoint::{Checkpoint, map};
use super::pickle::StateDict;
use super::safetensors::SafeTensors;
use crate::error::{Error, Result};
use crate::text::shortened;

/// How weights are stored in a model folder, in the order in which we look for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    SafeTensors,
    Pickle,
}

impl Format {
    pub const ALL: [Format; 2] = [Format::SafeTensors, Format::Pickle];

    /// The name of a checkpoint in one file.
    pub fn single(self) -> &'static str {
        match self {
            Format::SafeTensors => "model.safetensors",
            Format::Pickle => "pytorch_model.bin",
        }
    }

    /// The name of the list of shards.
    pub fn index(self) -> &'static str {
        match self {
            Format::SafeTensors => "model.safetensors.index.json",
            Format::Pickle => "pytorch_model.bin.index.json",
        }
    }

    /// The format of a weight file, by its ending.
    pub fn of(file: &Path) -> Option<Self> {
        match file.extension()?.to_str()? {
            "safetensors" => Some(Format::SafeTensors),
            "bin" | "pt" | "pth" => Some(Format::Pickle),
            _ => None,
        }
    }

    fn open(self, paths: Vec<PathBuf>) -> Result<Box<dyn Checkpoint>> {
        Ok(match self {
            Format::SafeTensors => Box::new(SafeTensors::open(paths)?),
            Format::Pickle => Box::new(StateDict::open(paths)?),
        })
    }
}

/// Opens the weights of a model folder.
/// # Errors
/// [`Error::Missing`], and those of the format that is there.
pub fn open_folder(dir: &Path) -> Result<Box<dyn Checkpoint>> {
    match find(dir)? {
        Some((format, paths)) => format.open(paths),
        None => Err(Error::Missing {
            path: dir.join(Format::SafeTensors.single()),
            hint: format!(
                "a model folder needs it, or shards with `{}`, or `{}`",
                Format::SafeTensors.index(),
                Format::Pickle.single()
            ),
        }),
    }
}

/// Opens one weight file.
/// # Errors
/// Those of its format; [`Error::Missing`] if its ending is that of none.
pub fn open_file(path: &Path) -> Result<Box<dyn Checkpoint>> {
    match Format::of(path) {
        Some(format) => format.open(vec![path.to_path_buf()]),
        None => Err(Error::Missing {
            path: path.to_path_buf(),
            hint: "a weight file ends in `.safetensors`, `.bin`, `.pt` or `.pth`".to_string(),
        }),
    }
}

/// The weight files of a folder, in name order; shards that are listed need not be there.
/// # Errors
/// As [`shard_names`].
pub fn find(dir: &Path) -> Result<Option<(Format, Vec<PathBuf>)>> {
    for format in Format::ALL {
        let single = dir.join(format.single());
        if single.is_file() {
            return Ok(Some((format, vec![single])));
        }
        let index = dir.join(format.index());
        if index.is_file() {
            let names = shard_names(&index, format)?;
            let paths = names.iter().map(|name| dir.join(name)).collect();
            return Ok(Some((format, paths)));
        }
    }
    Ok(None)
}

/// The distinct shard names in an index file, checked to stay inside its folder.
/// # Errors
/// [`Error::Read`], [`Error::LfsPointer`], [`Error::Malformed`].
pub fn shard_names(index: &Path, format: Format) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let malformed = |reason| Error::Malformed {
        path: index.to_path_buf(),
        format: "weight index",
        reason,
    };
    let bytes = map(index)?;
    let parsed: Index =
        serde_json::from_slice(&bytes).map_err(|source| malformed(source.to_string()))?;
    let names: BTreeSet<String> = parsed.weight_map.into_values().collect();
    let is_plain = |name: &String| {
        !name.starts_with('.')
            && !name.contains(['/', '\\', ':', '\0'])
            && Format::of(Path::new(name)) == Some(format)
    };
    if let Some(name) = names.iter().find(|name| !is_plain(name)) {
        return Err(malformed(format!(
            "`{}` is no shard of this folder",
            shortened(name)
        )));
    }
    if names.is_empty() {
        return Err(malformed("it lists no tensor".to_string()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_stay_in_their_folder() {
        for format in Format::ALL {
            let dir = tempfile::tempdir().unwrap();
            let index = dir.path().join(format.index());
            let end = format.single().rsplit_once('.').unwrap().1;
            let other = ["safetensors", "bin"].into_iter().find(|one| *one != end);
            for name in [
                format!("../secret.{end}"),
                "/etc/passwd".to_string(),
                format!("a/b.{end}"),
                format!(".{end}"),
                format!("weights.{}", other.unwrap()),
            ] {
                std::fs::write(&index, format!(r#"{{"weight_map": {{"a": "{name}"}}}}"#)).unwrap();
                let error = open_folder(dir.path()).err().unwrap();
                assert!(matches!(error, Error::Malformed { .. }), "{name}: {error}");
            }
            std::fs::write(
                &index,
                format!(r#"{{"weight_map": {{"a": "gone.{end}"}}}}"#),
            )
            .unwrap();
            let error = open_folder(dir.path()).err().unwrap();
            assert!(matches!(error, Error::Missing { .. }), "{error}");
        }
    }

    #[test]
    fn safetensors_come_before_pickles() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(dir.path()).unwrap(), None);
        for format in Format::ALL.into_iter().rev() {
            let path = dir.path().join(format.single());
            std::fs::write(&path, "x").unwrap();
            assert_eq!(find(dir.path()).unwrap(), Some((format, vec![path])));
        }
    }
}
