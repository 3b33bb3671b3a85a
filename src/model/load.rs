//! Loading a model: find it, describe it, check every tensor's name and shape, then convert the weights once into the canonical layout.
//!
//! One loader executes the layouts of all families. What can be wrong is found before the first weight is converted,
//! except for NaN, which the conversion itself looks for.

#[cfg(test)]
pub(crate) mod tests;
mod tied;
mod weights;

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tied::settle;
pub(super) use weights::assemble;
pub use weights::read_weights;

use super::checkpoint::{Checkpoint, check_not_a_stand_in, hex, read_at_most};
use super::embedded;
use super::families::transformer_lens;
use super::families::{self, Description};
use super::gguf::Gguf;
use super::gguf_tokenizer;
use super::hub::{self, Located, Wanted};
use super::numbers;
use super::options::CONFIG_LIMIT;
pub use super::options::LoadOptions;
use super::safetensors::SafeTensors;
use super::spec::ModelSpec;
use super::tokenizer::{self, Tokenizer};
use super::weight_files;
use super::{Model, Origin};
use crate::error::{Error, Result};
use crate::text::shortened;

/// A model and the tokenizer that belongs to it.
#[derive(Debug, Clone)]
pub struct Loaded {
    pub model: Model,
    pub tokenizer: Tokenizer,
}

/// Loads a model: a folder, a `.gguf` file, a hub id such as `HuggingFaceTB/SmolLM2-135M-Instruct`, or
/// [`EMBEDDED`](super::EMBEDDED).
/// # Errors
/// Everything under "Files and the hub" and "Models" in [`Error`].
pub fn load(id: &str, options: &LoadOptions) -> Result<Loaded> {
    opened(id, options, Wanted::Weights)?.load()
}

/// Finds a model and reads what it is and its tokenizer, but no weights.
/// # Errors
/// As [`load`], as far as config, header and tokenizer go.
pub fn open(id: &str, options: &LoadOptions) -> Result<Opened> {
    opened(id, options, Wanted::Tokenizer)
}

/// A model whose weights are not read yet: enough to check a task before the long part.
#[derive(Debug)]
pub struct Opened {
    /// What the user typed.
    id: String,
    options: LoadOptions,
    description: Description,
    tokenizer: Tokenizer,
    tokenizer_hash: String,
    source: Source,
}

/// Where the weights of an [`Opened`] model are.
#[derive(Debug)]
enum Source {
    Embedded,
    Gguf(Gguf),
    Folder(Folder, Option<String>),
}

impl Opened {
    pub fn spec(&self) -> &ModelSpec {
        &self.description.spec
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Looks for every tensor, and at its shape, but reads no weights. A model of the hub that is not on this machine yet passes.
    /// # Errors
    /// As [`load`], except for what only the numbers show.
    pub fn check_weights(&self) -> Result<()> {
        let checkpoint: Box<dyn Checkpoint> = match &self.source {
            // Their header was read to know what the model is.
            Source::Gguf(gguf) => return check_tensors(gguf, self.description.clone()),
            Source::Embedded => Box::new(SafeTensors::from_bytes(WEIGHTS_NAME, embedded::WEIGHTS)?),
            Source::Folder(folder, None) => folder.open_weights()?,
            Source::Folder(folder, Some(commit)) => {
                let options = LoadOptions {
                    revision: Some(commit.clone()),
                    offline: true,
                    ..self.options.clone()
                };
                if hub::locate(&self.id, &options, Wanted::Weights).is_err() {
                    return Ok(());
                }
                folder.open_weights()?
            }
        };
        check_tensors(checkpoint.as_ref(), self.description.clone())
    }

    /// Reads the weights.
    /// # Errors
    /// As [`load`].
    pub fn load(self) -> Result<Loaded> {
        let mut origin = Origin {
            id: self.id,
            tokenizer_hash: self.tokenizer_hash,
            ..Origin::default()
        };
        let checkpoint: Box<dyn Checkpoint> = match self.source {
            Source::Embedded => Box::new(SafeTensors::from_bytes(WEIGHTS_NAME, embedded::WEIGHTS)?),
            Source::Gguf(gguf) => Box::new(gguf),
            Source::Folder(folder, revision) => {
                if let Some(commit) = &revision {
                    // Of a hub model the weights may not be here yet.
                    let options = LoadOptions {
                        revision: Some(commit.clone()),
                        ..self.options.clone()
                    };
                    hub::locate(&origin.id, &options, Wanted::Weights)?;
                }
                origin.revision = revision;
                folder.open_weights()?
            }
        };
        finish(
            checkpoint.as_ref(),
            self.description,
            self.tokenizer,
            origin,
            &self.options,
        )
    }
}

fn opened(id: &str, options: &LoadOptions, wanted: Wanted) -> Result<Opened> {
    let (description, (tokenizer, tokenizer_hash), source) = match hub::locate(id, options, wanted)?
    {
        Located::Embedded => (
            families::from_config(embedded::CONFIG)?,
            parse_tokenizer(embedded::TOKENIZER, None)?,
            Source::Embedded,
        ),
        Located::Gguf(path) => {
            let gguf = Gguf::open(&path)?;
            let description = families::from_gguf_accepting(&gguf, &options.accept_config_keys)?;
            (
                description,
                gguf_tokenizer::read(&gguf)?,
                Source::Gguf(gguf),
            )
        }
        Located::Folder { path, revision } => {
            let weights = None;
            Folder { path, weights }.opened(revision, options)?
        }
        Located::WeightFile(file) => Folder::around(file).opened(None, options)?,
    };
    check_fits(&tokenizer, &description.spec)?;
    Ok(Opened {
        id: id.to_string(),
        options: options.clone(),
        description,
        tokenizer,
        tokenizer_hash,
        source,
    })
}

/// A tokenizer from its `tokenizer.json`, with the SHA-256 of that.
fn parse_tokenizer(json: &[u8], config_json: Option<&[u8]>) -> Result<(Tokenizer, String)> {
    let tokenizer = Tokenizer::from_bytes(json, config_json)?;
    Ok((tokenizer, hex(&Sha256::digest(json))))
}

/// What the weights of a model from bytes are called in messages.
const WEIGHTS_NAME: &str = "model.safetensors";

/// Loads a model from bytes, as for one that is part of the binary.
/// # Errors
/// As [`load`]; the files are named `config.json`, `model.safetensors` and `tokenizer.json`.
pub fn load_parts(
    id: &str,
    config_json: &str,
    safetensors: &[u8],
    tokenizer_json: &[u8],
    tokenizer_config_json: Option<&[u8]>,
    options: &LoadOptions,
) -> Result<Loaded> {
    let description = families::from_config_accepting(config_json, &options.accept_config_keys)?;
    let (tokenizer, tokenizer_hash) = parse_tokenizer(tokenizer_json, tokenizer_config_json)?;
    check_fits(&tokenizer, &description.spec)?;
    let checkpoint = SafeTensors::from_bytes(WEIGHTS_NAME, safetensors)?;
    let origin = Origin {
        id: id.to_string(),
        tokenizer_hash,
        ..Origin::default()
    };
    finish(&checkpoint, description, tokenizer, origin, options)
}

/// Reads what a model is without reading its weights.
/// # Errors
/// As [`load`], as far as config and header go.
pub fn read_spec(id: &str, options: &LoadOptions) -> Result<ModelSpec> {
    let description = match hub::locate(id, options, Wanted::Config)? {
        Located::Embedded => families::from_config(embedded::CONFIG)?,
        Located::Gguf(path) => {
            families::from_gguf_accepting(&Gguf::open(&path)?, &options.accept_config_keys)?
        }
        Located::Folder { path, .. } => {
            let weights = None;
            Folder { path, weights }.describe(options)?
        }
        Located::WeightFile(file) => Folder::around(file).describe(options)?,
    };
    Ok(description.spec)
}

/// Most tokens of a model that may do without a tokenizer: a vocabulary of real text is larger.
const MOST_NUMBERS: usize = 256;

/// What PEFT saves in place of a config.
const ADAPTER: &str = "adapter_config.json";

/// Says what an adapter's folder is, and of which model.
/// # Errors
/// Those of reading the file.
fn adapter_refusal(folder: &Path, file: &Path) -> Result<Error> {
    let bytes = read_at_most(file, CONFIG_LIMIT)?;
    let config: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let of = match config["base_model_name_or_path"].as_str() {
        Some(base) => format!("of `{}`", shortened(base)),
        None => "of some model".to_string(),
    };
    Ok(Error::NotAModel {
        name: folder.display().to_string(),
        what: format!("a PEFT adapter {of}"),
        instead: "merge it into that model (`merge_and_unload()` in PEFT), save the result with its tokenizer, and load that"
            .to_string(),
    })
}

/// A model folder, and which of its weight files is meant if it is not the usual one.
#[derive(Debug)]
struct Folder {
    path: PathBuf,
    weights: Option<PathBuf>,
}

impl Folder {
    /// The folder of a weight file, which stands for the model.
    fn around(file: PathBuf) -> Self {
        Folder {
            path: file.parent().map(Path::to_path_buf).unwrap_or_default(),
            weights: Some(file),
        }
    }

    fn open_weights(&self) -> Result<Box<dyn Checkpoint>> {
        match &self.weights {
            Some(file) => weight_files::open_file(file),
            None => weight_files::open_folder(&self.path),
        }
    }

    /// From config.json; where that names no family or is not there, from the tensors if they have TransformerLens's names.
    fn describe(&self, options: &LoadOptions) -> Result<Description> {
        let accept = &options.accept_config_keys;
        let path = self.path.join("config.json");
        let config = match path.is_file() {
            true => Some(read_config(&path)?),
            false => None,
        };
        let names_a_family = |config: &str| {
            let keys = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(config);
            keys.is_ok_and(|keys| keys.contains_key("model_type"))
        };
        let has = |checkpoint: &dyn Checkpoint, tensor| {
            let tensors = checkpoint.tensors();
            tensors.iter().any(|(name, _)| *name == tensor)
        };
        let adapter = self.path.join(ADAPTER);
        if adapter.is_file() && self.weights.is_none() && weight_files::find(&self.path)?.is_none()
        {
            return Err(adapter_refusal(&self.path, &adapter)?);
        }
        if let Some(config) = config.as_ref().filter(|config| names_a_family(config)) {
            return families::from_config_accepting(config, accept);
        }
        match (self.open_weights(), config) {
            (Ok(checkpoint), config) if transformer_lens::is_native(&checkpoint.tensors()) => {
                transformer_lens::describe(config.as_deref(), &checkpoint.tensors(), accept)
            }
            (_, Some(config)) => families::from_config_accepting(&config, accept),
            // Compiled programs, whose attention looks ahead.
            (Ok(checkpoint), None) if has(checkpoint.as_ref(), "transformer.layer_0.attn.key.w") => {
                Err(Error::UnknownArchitecture {
                    name: "tracr".to_string(),
                    supported: format!("{}, {}", families::supported(), transformer_lens::NAME),
                })
            }
            (Err(error), None) if self.weights.is_some() => Err(error),
            (_, None) => Err(Error::Missing {
                path,
                hint: "a model folder needs config.json, tokenizer.json and model.safetensors, and so does a weight file \
                       beside it; give the folder"
                    .to_string(),
            }),
        }
    }

    fn opened(
        self,
        revision: Option<String>,
        options: &LoadOptions,
    ) -> Result<(Description, (Tokenizer, String), Source)> {
        let description = self.describe(options)?;
        let tokenizer = self.tokenizer(&description.spec)?;
        Ok((description, tokenizer, Source::Folder(self, revision)))
    }

    /// The tokenizer, and the SHA-256 of its tokenizer.json, or of the two files in its place. A toy model without one has numbers for tokens.
    fn tokenizer(&self, spec: &ModelSpec) -> Result<(Tokenizer, String)> {
        let json = self.path.join("tokenizer.json");
        let is_toy = spec.family == transformer_lens::NAME || spec.d_vocab <= MOST_NUMBERS;
        let has_older = tokenizer::OLDER
            .iter()
            .all(|name| self.path.join(name).exists());
        if is_toy && !json.exists() && !has_older {
            return parse_tokenizer(numbers::tokenizer_json(spec.d_vocab).as_bytes(), None);
        }
        let tokenizer = Tokenizer::from_dir(&self.path)?;
        let mut hash = Sha256::new();
        let files = if json.exists() {
            vec![json]
        } else {
            tokenizer::OLDER.map(|name| self.path.join(name)).to_vec()
        };
        for file in files {
            hash.update(read_at_most(&file, tokenizer::FILE_LIMIT)?);
        }
        Ok((tokenizer, hex(&hash.finalize())))
    }
}

fn read_config(path: &Path) -> Result<String> {
    let bytes = read_at_most(path, CONFIG_LIMIT)?;
    check_not_a_stand_in(path, &bytes)?;
    String::from_utf8(bytes).map_err(|_| Error::UnreadableConfig {
        reason: format!("`{}` is not UTF-8", path.display()),
    })
}

fn check_tensors(checkpoint: &dyn Checkpoint, description: Description) -> Result<()> {
    let (description, _) = settle(checkpoint, description)?;
    weights::check(checkpoint, &description)
}

/// The common end of every way to load: weights, and their hash, which is not waited for.
fn finish(
    checkpoint: &dyn Checkpoint,
    description: Description,
    tokenizer: Tokenizer,
    origin: Origin,
    options: &LoadOptions,
) -> Result<Loaded> {
    let (description, notes) = settle(checkpoint, description)?;
    let weight_hash = checkpoint.hash();
    let weights = read_weights(checkpoint, &description, options.dtype, &options.device)?;
    let origin = Origin {
        weight_hash,
        storage: checkpoint.storage(),
        accepted_config_keys: description.accepted,
        notes,
        ..origin
    };
    let model = Model::new(description.spec, weights, origin)?;
    Ok(Loaded { model, tokenizer })
}

/// An embedding that is padded beyond the tokenizer is usual; a token without a row is not.
fn check_fits(tokenizer: &Tokenizer, spec: &ModelSpec) -> Result<()> {
    let tokens = tokenizer.max_id() as usize + 1;
    if tokens > spec.d_vocab {
        return Err(Error::TokenizerTooLarge {
            tokenizer: tokens,
            embedding: spec.d_vocab,
        });
    }
    Ok(())
}
