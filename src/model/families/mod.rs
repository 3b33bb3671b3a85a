//! One thin file per family: from the real `config.json` (or GGUF metadata) to a [`ModelSpec`], and the checkpoint name of each weight.
//!
//! A family has no forward pass and no loading code. To add one: read [`llama`], write its sibling, and name it in [`FAMILIES`].

mod config;
pub mod gpt2;
pub mod llama;
mod rope;
pub mod transformer_lens;

pub(crate) use config::shortened;

use serde::Deserialize;

use super::gguf::Gguf;
use super::layout::Layout;
use super::spec::ModelSpec;
use crate::error::{Error, Result};

/// What a family says of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Description {
    pub spec: ModelSpec,
    pub layout: Layout,
}

/// A family of models that share a config format and checkpoint names.
pub struct Family {
    /// `model_type` in `config.json`; the name in [`ModelSpec::family`].
    pub name: &'static str,
    /// From the text of a `config.json`.
    pub from_config: fn(&str) -> Result<Description>,
    /// From the metadata of a GGUF whose `general.architecture` is this name.
    pub from_gguf: Option<GgufReader>,
}

/// Describes a model from a GGUF header.
pub type GgufReader = fn(&Gguf) -> Result<Description>;

/// Every family we read.
pub const FAMILIES: &[Family] = &[llama::FAMILY, gpt2::FAMILY];

/// Describes a model from its `config.json`.
/// # Errors
/// [`Error::UnknownArchitecture`], [`Error::UnhandledConfig`], [`Error::BadConfig`], [`Error::UnreadableConfig`].
pub fn from_config(config: &str) -> Result<Description> {
    let name = model_type(config)?;
    let family = by_name(&name)?;
    let description = (family.from_config)(config)?;
    config::check_spec(&description.spec)?;
    Ok(description)
}

/// Describes a model from a GGUF header.
/// # Errors
/// As [`from_config`], and [`Error::UnknownArchitecture`] for a family that we read only as safetensors.
pub fn from_gguf(gguf: &Gguf) -> Result<Description> {
    let name = gguf.string("general.architecture")?;
    let reader = by_name(name)?.from_gguf.ok_or_else(|| unknown(name))?;
    let description = reader(gguf)?;
    config::check_spec(&description.spec)?;
    Ok(description)
}

/// The `model_type` of a `config.json`.
/// # Errors
/// [`Error::UnreadableConfig`] if there is none.
pub fn model_type(config: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Typed {
        model_type: String,
    }
    let typed: Typed = serde_json::from_str(config).map_err(|source| Error::UnreadableConfig {
        reason: source.to_string(),
    })?;
    Ok(typed.model_type)
}

/// Names of all families, for messages.
pub fn supported() -> String {
    FAMILIES
        .iter()
        .map(|family| family.name)
        .collect::<Vec<_>>()
        .join(", ")
}

fn by_name(name: &str) -> Result<&'static Family> {
    FAMILIES
        .iter()
        .find(|family| family.name == name)
        .ok_or_else(|| unknown(name))
}

fn unknown(name: &str) -> Error {
    Error::UnknownArchitecture {
        name: name.to_string(),
        supported: supported(),
    }
}
