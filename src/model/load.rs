//! Loading a model: find it, describe it, check every tensor's name and shape, then convert the weights once into the canonical layout.
//!
//! One loader executes the layouts of all families. What can be wrong is found before the first weight is converted,
//! except for NaN, which the conversion itself looks for.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::checkpoint::{Checkpoint, check_not_a_stand_in, hex, read_at_most};
use super::convert::{Scratch, fill_slot};
use super::embedded;
use super::families::transformer_lens;
use super::families::{self, Description};
use super::gguf::Gguf;
use super::gguf_tokenizer;
use super::hub::{self, Located, Wanted};
use super::layout::{Layout, Need, Piece, Slot, Stored};
use super::names::{Found, Names};
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
    dtype: Option<DType>,
    device: &Device,
) -> Result<Weights> {
    let spec = &description.spec;
    let plan = plan(checkpoint, description)?;
    let mut slots = HashMap::new();
    let mut scratch = Scratch::default();
    for Fill {
        slot,
        layer,
        pieces,
    } in &plan
    {
        let shape = slot.shape(spec);
        let kept = kept_as(checkpoint, *slot, pieces, dtype, device);
        let tensor = fill_slot(checkpoint, pieces, &shape, kept, device, &mut scratch)?;
        slots.insert((*slot, *layer), tensor);
    }
    assemble(spec, slots)
}

/// The number format of a slot, as [`LoadOptions::dtype`] says.
fn kept_as(
    checkpoint: &dyn Checkpoint,
    slot: Slot,
    pieces: &[(String, &Piece)],
    asked: Option<DType>,
    device: &Device,
) -> DType {
    let is_narrow = |dtype: &DType| matches!(dtype, DType::BF16 | DType::F16);
    let stored = |(name, piece): &(String, &Piece)| {
        let is_as_stored = piece.stored != Stored::Nowhere && piece.plus == 0.0;
        is_as_stored.then(|| checkpoint.dtype(name)).flatten()
    };
    match asked {
        Some(dtype) if !device.is_cpu() || !is_narrow(&dtype) || slot.is_matrix() => dtype,
        None if device.is_cpu() && slot.is_matrix() => {
            let first = pieces.first().and_then(stored).filter(is_narrow);
            let is_one = pieces.iter().all(|piece| stored(piece) == first);
            first.filter(|_| is_one).unwrap_or(DType::F32)
        }
        _ => DType::F32,
    }
}

/// One slot to fill, with the names of its pieces as this checkpoint has them.
struct Fill<'a> {
    slot: Slot,
    layer: usize,
    pieces: Vec<(String, &'a Piece)>,
}

/// Matches a layout with the checkpoint: every tensor there, none left over, every shape right.
fn plan<'a>(checkpoint: &dyn Checkpoint, description: &'a Description) -> Result<Vec<Fill<'a>>> {
    let Description { spec, layout, .. } = description;
    let family = spec.family.clone();
    let tensors = checkpoint.tensors();
    let names = Names::new(tensors.clone(), layout);
    let mut plan = Vec::new();
    let mut missing = Vec::new();
    let mut misshaped = Vec::new();
    let mut used = HashSet::new();
    for (slot, layer, pieces) in layout.filled(spec.n_layers) {
        let slot_shape = slot.shape(spec);
        check_pieces_add_up(slot, pieces, &slot_shape)?;
        let mut named = Vec::new();
        for piece in pieces {
            let name = piece.resolved(layer, spec.n_layers);
            if piece.stored == Stored::Nowhere {
                named.push((name, piece));
                continue;
            }
            let instead = layout.instead.iter().find(|(first, _)| *first == name);
            let found = instead
                .and_then(|(_, second)| names.get(second))
                .or_else(|| names.get(&name));
            let Some(found) = found else {
                missing.push(layout.whole_name(&name));
                continue;
            };
            let expected = piece.stored_shape(&slot_shape);
            if found.shape != expected {
                misshaped.push((found.name.to_string(), found.shape.to_vec(), expected));
            }
            used.insert(found.name);
            named.push((found.name.to_string(), piece));
        }
        plan.push(Fill {
            slot,
            layer,
            pieces: named,
        });
    }
    let mut extra: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
    extra.retain(|name| !used.contains(name) && !is_harmless(layout, &names, name));
    if !(missing.is_empty() && extra.is_empty() && misshaped.is_empty()) {
        refuse_what_is_no_whole_model(&tensors, &missing)?;
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

/// The pieces of a slot fill its last axis from left to right; if they did not add up, one would lie in another's place.
fn check_pieces_add_up(slot: Slot, pieces: &[Piece], shape: &[usize]) -> Result<()> {
    let filled = pieces
        .iter()
        .try_fold(0usize, |sum, piece| sum.checked_add(piece.out));
    let columns = shape.last().copied().unwrap_or_default();
    if filled == Some(columns) {
        return Ok(());
    }
    let filled = filled.map_or("too many".to_string(), |filled| filled.to_string());
    Err(Error::BadConfig {
        key: "sizes".to_string(),
        reason: format!(
            "they do not add up: the parts of {slot:?} have {filled} columns, and the whole has {columns}"
        ),
    })
}

/// What is often loaded in place of a model, seen by the names of its tensors.
fn refuse_what_is_no_whole_model(tensors: &[(&str, &[usize])], missing: &[String]) -> Result<()> {
    const ADAPTED: &[&str] = &[
        ".base_layer.",
        ".lora_A",
        ".lora_B",
        ".lora_embedding",
        ".modules_to_save.",
    ];
    const QUANTISED: &[&str] = &[
        ".absmax",
        ".g_idx",
        ".quant_state",
        ".qweight",
        ".qzeros",
        ".scales",
        ".weight_packed",
        ".weight_scale",
    ];
    let find = |parts: &[&str]| {
        let mut names = tensors.iter().map(|(name, _)| *name);
        names.find(|name| parts.iter().any(|part| name.contains(part)))
    };
    let refusal = |what: String, instead: &str| Error::NotAModel {
        name: "the checkpoint".to_string(),
        what,
        instead: instead.to_string(),
    };
    if let Some(name) = find(ADAPTED) {
        return Err(refusal(
            format!("with the weights of an adapter (`{}`)", shortened(name)),
            "merge them into the model that they are for (`merge_and_unload()` in PEFT) and save that",
        ));
    }
    if let Some(name) = find(QUANTISED) {
        return Err(refusal(
            format!(
                "of quantised weights (`{}`), of which only those of GGUF files are read",
                shortened(name)
            ),
            "load the model that they were made from, or its GGUF",
        ));
    }
    let is_headless = |name: &String| name.starts_with("cls.predictions.");
    if !missing.is_empty() && missing.iter().all(is_headless) {
        return Err(refusal(
            "an encoder without its masked-language head, which has no logits".to_string(),
            "load one that was saved with it (`BertForMaskedLM` in transformers)",
        ));
    }
    Ok(())
}

/// Finds out from the tensors what the config does not say: a tied model whose unembedding was saved, and is not the embedding, is used
/// as transformers uses it, with both. In the second place, what a user should know of the checkpoint.
/// # Errors
/// Those of reading tensors.
fn settle(
    checkpoint: &dyn Checkpoint,
    mut description: Description,
) -> Result<(Description, Vec<String>)> {
    let is_tied = description.spec.tied;
    let names = Names::new(checkpoint.tensors(), &description.layout);
    // Under its second name, where the checkpoint has that one.
    let head = description.layout.tied_head.clone().map(|head| {
        let mut second = description.layout.instead.iter();
        let second = second.find(|(first, other)| *first == head && names.get(other).is_some());
        second.map_or(head, |(_, other)| other.clone())
    });
    let tied_head = head.clone();
    let mut notes: Vec<String> = names.note.clone().into_iter().collect();
    let mut slots = description.layout.model.iter();
    let embedding = slots
        .find(|(slot, _)| *slot == Slot::Embed)
        .and_then(|(_, pieces)| Some(pieces.first()?.name.clone()));
    let (Some(embedding), Some(head), true) = (embedding, head, is_tied) else {
        return Ok((description, notes));
    };
    match (names.get(&embedding), names.get(&head)) {
        (None, Some(_)) => description.layout.instead.push((embedding, head)),
        (Some(one), Some(other)) if !are_equal(checkpoint, one, other)? => {
            notes.push(format!(
                "the config ties the unembedding to the embedding, but the checkpoint has both and they differ: `{}` is used, as \
                 transformers does",
                other.name
            ));
            let piece = Piece::as_is(&head, description.spec.d_model);
            description.layout.model.push((Slot::Unembed, vec![piece]));
            description.spec.tied = false;
        }
        _ => {}
    }
    description.layout.tied_head = tied_head;
    Ok((description, notes))
}

/// Whether two matrices have the same entries.
fn are_equal(checkpoint: &dyn Checkpoint, one: Found, other: Found) -> Result<bool> {
    /// Entries of each that are decoded at a time.
    const CHUNK: usize = 1 << 18;
    let (&[rows, columns], true) = (one.shape, one.shape == other.shape) else {
        return Ok(false);
    };
    let step = (CHUNK / columns.max(1)).max(1);
    let starts: Vec<usize> = (0..rows).step_by(step).collect();
    let is_equal = |&start: &usize| -> Result<bool> {
        let entries = step.min(rows - start) * columns;
        let (mut a, mut b) = (vec![0f32; entries], vec![0f32; entries]);
        checkpoint.decode(one.name, start * columns, &mut a)?;
        checkpoint.decode(other.name, start * columns, &mut b)?;
        Ok(a == b)
    };
    let differs = starts
        .par_iter()
        .map(is_equal)
        .find_any(|equal| !matches!(equal, Ok(true)));
    differs.unwrap_or(Ok(true))
}

fn is_harmless(layout: &Layout, names: &Names, name: &str) -> bool {
    let mut patterns = layout.harmless.iter();
    let is_passed_over =
        patterns.any(
            |pattern| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
                (Some(end), _) => name.ends_with(end),
                (None, Some(start)) => name.starts_with(start),
                (None, None) => name == pattern,
            },
        );
    // What another tensor is read in place of, and an unembedding that is the embedding.
    let firsts = layout.instead.iter().map(|(first, _)| first);
    let mut others = firsts.chain(&layout.tied_head);
    is_passed_over || others.any(|other| names.get(other).is_some_and(|found| found.name == name))
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
    let ln_embed = take(Slot::LnEmbed, 0).map(|w| NormWeights { w, b: None });
    let embed_bias = take(Slot::LnEmbedBias, 0);
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
        ln_embed: ln_embed.map(|norm| NormWeights {
            b: embed_bias,
            ..norm
        }),
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
