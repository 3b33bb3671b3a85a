//! placeholder
use super::load::LoadOptions;
use crate::error::{Error, Result};
use std::path::PathBuf;
pub enum Located { Gguf(PathBuf), Folder { path: PathBuf, revision: Option<String> } }
#[derive(Clone, Copy, PartialEq)]
pub enum Wanted { Config, Weights }
pub fn locate(id: &str, _options: &LoadOptions, _wanted: Wanted) -> Result<Located> {
    let path = PathBuf::from(id);
    if path.is_file() { return Ok(Located::Gguf(path)); }
    if path.is_dir() { return Ok(Located::Folder { path, revision: None }); }
    Err(Error::Missing { path, hint: "?".into() })
}
