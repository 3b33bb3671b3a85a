//! Loading a model: find it, describe it, check every tensor's name and shape, then convert the weights once into the canonical layout.
//!
//! One loader executes the layouts of all families. What can be wrong is found before the first weight is converted,
//! except for NaN, which the conversion itself looks for.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use sha2::{Digest, Sha256};

use super::checkpoint::{Checkpoint, check_not_a_stand_in, hex, read_at_most};
use super::convert::fill_slot;
use super::embedded;
use super::families::transformer_lens;
use super::families::{self, Description};
use super::gguf::Gguf;
use super::gguf_tokenizer;
use super::hub::{self, Located, Wanted};
use super::layout::{Layout, Need, Piece, Slot, Stored};
use super::numbers;
use super::options::CONFIG_LIMIT;
pub use super::options::LoadOptions;
use super::safetensors::SafeTensors;
use super::spec::ModelSpec;
use super::tokenizer::{self, Tokenizer};
use super::weight_files;
use super::{Model, Origin};
use crate::error::{Error, Result};
use crate::spec::{BlockWeights, EncoderWeights, MlpWeights, NormWeights, Weights};

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
    match hub::locate(id, options, Wanted::Weights)? {
        Located::Embedded => load_parts(
            id,
            embedded::CONFIG,
            embedded::WEIGHTS,
            embedded::TOKENIZER,
            None,
            options,
        ),
        Located::Gguf(path) => load_gguf(id, &path, options),
        Located::Folder { path, revision } => {
            let folder = Folder {
                path,
                weights: None,
            };
            folder.load(id, revision, options)
        }
        Located::WeightFile(file) => Folder::around(file).load(id, None, options),
    }
}

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
    let description = families::from_config(config_json)?;
    let tokenizer = Tokenizer::from_bytes(tokenizer_json, tokenizer_config_json)?;
    let checkpoint = SafeTensors::from_bytes("model.safetensors", safetensors)?;
    let origin = Origin {
        id: id.to_string(),
        tokenizer_hash: hex(&Sha256::digest(tokenizer_json)),
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
        Located::Gguf(path) => families::from_gguf(&Gguf::open(&path)?)?,
        Located::Folder { path, .. } => {
            let weights = None;
            Folder { path, weights }.describe()?
        }
        Located::WeightFile(file) => Folder::around(file).describe()?,
    };
    Ok(description.spec)
}

/// Reads a model's tokenizer, and what it is, without reading its weights: enough to check a task before the long part.
/// # Errors
/// As [`load`], as far as config, header and tokenizer go.
pub fn load_tokenizer(id: &str, options: &LoadOptions) -> Result<(Tokenizer, ModelSpec)> {
    let (description, tokenizer) = match hub::locate(id, options, Wanted::Tokenizer)? {
        Located::Embedded => (
            families::from_config(embedded::CONFIG)?,
            Tokenizer::from_bytes(embedded::TOKENIZER, None)?,
        ),
        Located::Gguf(path) => {
            let gguf = Gguf::open(&path)?;
            (families::from_gguf(&gguf)?, gguf_tokenizer::read(&gguf)?.0)
        }
        Located::Folder { path, .. } => {
            let weights = None;
            Folder { path, weights }.describe_with_tokenizer()?
        }
        Located::WeightFile(file) => Folder::around(file).describe_with_tokenizer()?,
    };
    check_fits(&tokenizer, &description.spec)?;
    Ok((tokenizer, description.spec))
}

/// Most tokens of a model that may do without a tokenizer: a vocabulary of real text is larger.
const MOST_NUMBERS: usize = 256;

/// A model folder, and which of its weight files is meant if it is not the usual one.
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
    fn describe(&self) -> Result<Description> {
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
        if let Some(config) = config.as_ref().filter(|config| names_a_family(config)) {
            return families::from_config(config);
        }
        match (self.open_weights(), config) {
            (Ok(checkpoint), config) if transformer_lens::is_native(&checkpoint.tensors()) => {
                transformer_lens::describe(config.as_deref(), &checkpoint.tensors())
            }
            (_, Some(config)) => families::from_config(&config),
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

    fn describe_with_tokenizer(&self) -> Result<(Description, Tokenizer)> {
        let description = self.describe()?;
        let (tokenizer, _) = self.tokenizer(&description.spec)?;
        Ok((description, tokenizer))
    }

    /// The tokenizer, and the SHA-256 of its tokenizer.json. A toy model without one has numbers for tokens.
    fn tokenizer(&self, spec: &ModelSpec) -> Result<(Tokenizer, String)> {
        let json = self.path.join("tokenizer.json");
        let is_toy = spec.family == transformer_lens::NAME || spec.d_vocab <= MOST_NUMBERS;
        if is_toy && !json.exists() {
            let json = numbers::tokenizer_json(spec.d_vocab);
            let tokenizer = Tokenizer::from_bytes(json.as_bytes(), None)?;
            return Ok((tokenizer, hex(&Sha256::digest(json))));
        }
        let tokenizer = Tokenizer::from_dir(&self.path)?;
        let bytes = read_at_most(&json, tokenizer::FILE_LIMIT)?;
        Ok((tokenizer, hex(&Sha256::digest(bytes))))
    }

    fn load(&self, id: &str, revision: Option<String>, options: &LoadOptions) -> Result<Loaded> {
        let description = self.describe()?;
        let checkpoint = self.open_weights()?;
        let (tokenizer, tokenizer_hash) = self.tokenizer(&description.spec)?;
        let origin = Origin {
            id: id.to_string(),
            revision,
            tokenizer_hash,
            ..Origin::default()
        };
        finish(checkpoint.as_ref(), description, tokenizer, origin, options)
    }
}

fn load_gguf(id: &str, path: &Path, options: &LoadOptions) -> Result<Loaded> {
    let gguf = Gguf::open(path)?;
    let description = families::from_gguf(&gguf)?;
    let (tokenizer, tokenizer_hash) = gguf_tokenizer::read(&gguf)?;
    let origin = Origin {
        id: id.to_string(),
        tokenizer_hash,
        ..Origin::default()
    };
    finish(&gguf, description, tokenizer, origin, options)
}

fn read_config(path: &Path) -> Result<String> {
    let bytes = read_at_most(path, CONFIG_LIMIT)?;
    check_not_a_stand_in(path, &bytes)?;
    String::from_utf8(bytes).map_err(|_| Error::UnreadableConfig {
        reason: format!("`{}` is not UTF-8", path.display()),
    })
}

/// The common end of every way to load: tokenizer against embedding, weights, hash.
fn finish(
    checkpoint: &dyn Checkpoint,
    description: Description,
    tokenizer: Tokenizer,
    origin: Origin,
    options: &LoadOptions,
) -> Result<Loaded> {
    check_fits(&tokenizer, &description.spec)?;
    let (weights, weight_hash) = std::thread::scope(|scope| {
        let hash = scope.spawn(|| checkpoint.hash());
        let weights = read_weights(checkpoint, &description, options.dtype, &options.device);
        (weights, hash.join().expect("hashing bytes does not panic"))
    });
    let origin = Origin {
        weight_hash,
        storage: checkpoint.storage(),
        ..origin
    };
    let model = Model::new(description.spec, weights?, origin)?;
    Ok(Loaded { model, tokenizer })
}

/// An embedding that is padded beyond the tokenizer is usual; a token without a row is not.
fn check_fits(tokenizer: &Tokenizer, spec: &ModelSpec) -> Result<()> {
    match (tokenizer.max_id() as usize) < spec.d_vocab {
        true => Ok(()),
        false => Err(Error::TokenizerTooLarge {
            tokenizer: tokenizer.max_id() as usize + 1,
            embedding: spec.d_vocab,
        }),
    }
}

/// Fills the canonical weights from a checkpoint.
/// # Errors
/// [`Error::MissingTensors`], [`Error::ExtraTensors`], [`Error::TensorShape`], [`Error::TensorShapes`], [`Error::NotFinite`].
pub fn read_weights(
    checkpoint: &dyn Checkpoint,
    description: &Description,
    dtype: DType,
    device: &Device,
) -> Result<Weights> {
    let spec = &description.spec;
    let plan = plan(checkpoint, description)?;
    let mut slots = HashMap::new();
    for Fill {
        slot,
        layer,
        pieces,
    } in &plan
    {
        let shape = slot.shape(spec);
        let tensor = fill_slot(checkpoint, pieces, &shape, dtype, device)?;
        slots.insert((*slot, *layer), tensor);
    }
    assemble(spec, slots)
}

/// One slot to fill, with the names of its pieces as this checkpoint has them.
struct Fill<'a> {
    slot: Slot,
    layer: usize,
    pieces: Vec<(String, &'a Piece)>,
}

/// Matches a layout with the checkpoint: every tensor there, none left over, every shape right.
fn plan<'a>(checkpoint: &dyn Checkpoint, description: &'a Description) -> Result<Vec<Fill<'a>>> {
    let Description { spec, layout } = description;
    let family = spec.family.clone();
    let found: HashMap<&str, &[usize]> = checkpoint.tensors().into_iter().collect();
    let mut plan = Vec::new();
    let mut missing = Vec::new();
    let mut misshaped = Vec::new();
    let mut used = HashSet::new();
    let per_block = (0..spec.n_layers).flat_map(|layer| {
        layout
            .blocks
            .iter()
            .map(move |(slot, pieces)| (*slot, layer, pieces))
    });
    let once = layout.model.iter().map(|(slot, pieces)| (*slot, 0, pieces));
    // What only later blocks have is `{l-1}` of some piece; the first block's lies among the slots that the model has once.
    let is_placed = |layer: usize, pieces: &[Piece]| {
        layer > 0 || pieces.iter().all(|piece| !piece.name.contains("{l-1}"))
    };
    for (slot, layer, pieces) in once.chain(per_block) {
        if !is_placed(layer, pieces) {
            continue;
        }
        let slot_shape = slot.shape(spec);
        let mut named = Vec::new();
        for piece in pieces {
            let name = piece
                .name
                .replace("{l}", &layer.to_string())
                .replace("{l-1}", &layer.saturating_sub(1).to_string())
                .replace("{last}", &(spec.n_layers - 1).to_string());
            if piece.stored == Stored::Nowhere {
                named.push((name, piece));
                continue;
            }
            let prefixed = format!("{}{name}", layout.optional_prefix);
            let older = older_name(&name);
            let present = [prefixed, name.clone(), older]
                .into_iter()
                .find_map(|name| {
                    let shape = found.get(name.as_str())?;
                    Some((name, *shape))
                });
            let Some((name, shape)) = present else {
                missing.push(name);
                continue;
            };
            let expected = piece.stored_shape(&slot_shape);
            if shape != expected {
                misshaped.push((name.clone(), shape.to_vec(), expected));
            }
            used.insert(name.clone());
            named.push((name, piece));
        }
        plan.push(Fill {
            slot,
            layer,
            pieces: named,
        });
    }
    if !missing.is_empty() {
        let (count, first) = (
            missing.len(),
            first_three(missing.iter().map(|name| format!("`{name}`"))),
        );
        return Err(Error::MissingTensors {
            family,
            count,
            first,
        });
    }
    let mut extra: Vec<&str> = found.keys().copied().collect();
    extra.retain(|name| !used.contains(*name) && !is_harmless(layout, name));
    if !extra.is_empty() {
        extra.sort_unstable();
        let shown = extra
            .iter()
            .map(|name| format!("`{}`", crate::text::shortened(name)));
        return Err(Error::ExtraTensors {
            family,
            count: extra.len(),
            first: first_three(shown),
        });
    }
    match misshaped.len() {
        0 => Ok(plan),
        1 => {
            let (name, found, expected) = misshaped.remove(0);
            Err(Error::TensorShape {
                name,
                found,
                expected,
            })
        }
        count => {
            let shown = misshaped.iter().map(|(name, found, expected)| {
                format!("`{name}` {found:?} instead of {expected:?}")
            });
            Err(Error::TensorShapes {
                count,
                first: first_three(shown),
            })
        }
    }
}

/// What BERT's first checkpoints call the weight and bias of a LayerNorm.
fn older_name(name: &str) -> String {
    name.replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta")
}

fn is_harmless(layout: &Layout, name: &str) -> bool {
    layout
        .harmless
        .iter()
        .any(|pattern| match pattern.strip_prefix('*') {
            Some(end) => name.ends_with(end),
            None => name == *pattern,
        })
}

fn first_three(items: impl Iterator<Item = String>) -> String {
    items.take(3).collect::<Vec<_>>().join(", ")
}

/// Puts filled slots into their places; a tied unembedding is the embedding itself.
/// # Errors
/// [`Error::MissingTensors`] if the layout leaves out a slot that the spec needs.
pub(super) fn assemble(
    spec: &ModelSpec,
    mut slots: HashMap<(Slot, usize), Tensor>,
) -> Result<Weights> {
    let mut take = |slot: Slot, layer: usize| slots.remove(&(slot, layer));
    let needed = |tensor: Option<Tensor>, slot: Slot| {
        tensor.ok_or_else(|| Error::MissingTensors {
            family: spec.family.clone(),
            count: 1,
            first: format!("{slot:?}"),
        })
    };
    let w_e = needed(take(Slot::Embed, 0), Slot::Embed)?;
    let w_u = match spec.tied {
        true => w_e.clone(),
        false => needed(take(Slot::Unembed, 0), Slot::Unembed)?,
    };
    let mut blocks = Vec::with_capacity(spec.n_layers);
    for layer in 0..spec.n_layers {
        let mut norm = |scale, shift| {
            let w = take(scale, layer)?;
            Some(NormWeights {
                w,
                b: take(shift, layer),
            })
        };
        let ln1 = norm(Slot::Ln1, Slot::Ln1Bias);
        let ln1_post = norm(Slot::Ln1Post, Slot::Ln1PostBias);
        let ln2 = norm(Slot::Ln2, Slot::Ln2Bias);
        let ln2_post = norm(Slot::Ln2Post, Slot::Ln2PostBias);
        let mlp = match Slot::MlpIn.need(spec) {
            Need::Absent => None,
            Need::Required | Need::Optional => Some(MlpWeights {
                w_in: needed(take(Slot::MlpIn, layer), Slot::MlpIn)?,
                b_in: take(Slot::MlpInBias, layer),
                w_out: needed(take(Slot::MlpOut, layer), Slot::MlpOut)?,
                b_out: take(Slot::MlpOutBias, layer),
            }),
        };
        blocks.push(BlockWeights {
            ln1,
            w_qkv: needed(take(Slot::Qkv, layer), Slot::Qkv)?,
            b_qkv: take(Slot::QkvBias, layer),
            q_norm: take(Slot::QNorm, layer),
            k_norm: take(Slot::KNorm, layer),
            w_o: needed(take(Slot::O, layer), Slot::O)?,
            b_o: take(Slot::OBias, layer),
            ln1_post,
            ln2,
            mlp,
            ln2_post,
        });
    }
    let ln_final = take(Slot::LnFinal, 0).map(|w| NormWeights { w, b: None });
    let final_bias = take(Slot::LnFinalBias, 0);
    let encoder = match spec.encoder {
        None => None,
        Some(_) => Some(EncoderWeights {
            segments: needed(take(Slot::Segments, 0), Slot::Segments)?,
            w_head: needed(take(Slot::Head, 0), Slot::Head)?,
            b_head: needed(take(Slot::HeadBias, 0), Slot::HeadBias)?,
            ln_head: NormWeights {
                w: needed(take(Slot::LnHead, 0), Slot::LnHead)?,
                b: take(Slot::LnHeadBias, 0),
            },
        }),
    };
    Ok(Weights {
        w_e,
        w_pos: take(Slot::Positions, 0),
        blocks,
        ln_final: ln_final.map(|norm| NormWeights {
            b: final_bias,
            ..norm
        }),
        w_u,
        b_u: take(Slot::UnembedBias, 0),
        encoder,
    })
}

#[cfg(test)]
pub(crate) mod tests;
