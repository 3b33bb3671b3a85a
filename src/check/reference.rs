//! Activations of another implementation, as a `reference.safetensors` beside a model has them.
//!
//! For prompt `i`: `p{i}/ids [pos]`; `p{i}/logits_last [d_vocab]`, `p{i}/logits_all [pos, d_vocab]`; `p{i}/full/<hook>`, the whole
//! tensor of a hook for every layer that has it (`[n_layers, pos, ..]`, patterns `[n_layers, head, query, key]`), without a layer axis for
//! those that the model has once; `p{i}/norm/<hook> [n_layers, pos]`, its length over `d_model`. Hooks go by their short names.
//! `p{i}/full/final_norm_in` and `final_norm_out` are the final norm, the latter with its weight.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};

use super::relative;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::model::{Model, ModelSpec};
use crate::nn::norm;
use crate::run::{Cache, Logits, Request, run};

/// How far one tensor of the reference is from ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Gap {
    /// A hook's short name, `logits`, or `final_norm_out`.
    pub what: String,
    /// The tensor of the reference file, and the layer in it.
    pub place: String,
    /// Largest difference over largest value.
    pub relative: f32,
}

/// Runs the prompts of a reference file and compares every tensor in it, in the order of the forward pass.
/// # Errors
/// [`Error::Missing`], [`Error::Malformed`] for a file of another kind; [`Error::UnknownHook`], [`Error::HookAbsent`];
/// [`Error::TensorShape`] if a tensor is not of this model; those of running.
pub fn compare(model: &Model, path: &Path) -> Result<Vec<Gap>> {
    let mut gaps = Vec::new();
    for (prompt, tensors) in read(path)? {
        gaps.extend(compare_prompt(model, path, &prompt, &tensors)?);
    }
    gaps.sort_by_key(|(order, _)| *order);
    Ok(gaps.into_iter().map(|(_, gap)| gap).collect())
}

/// The largest gap of each thing compared, in the order of the forward pass.
pub fn worst(gaps: &[Gap]) -> Vec<&Gap> {
    let mut worst: Vec<&Gap> = Vec::new();
    for gap in gaps {
        match worst.iter_mut().find(|known| known.what == gap.what) {
            Some(known) if gap.relative > known.relative => *known = gap,
            Some(_) => (),
            None => worst.push(gap),
        }
    }
    worst
}

/// The tensors of each prompt, without its prefix.
type Prompts = BTreeMap<String, BTreeMap<String, Tensor>>;

fn read(path: &Path) -> Result<Prompts> {
    if !path.is_file() {
        return Err(Error::Missing {
            path: path.to_path_buf(),
            hint: "give the file that holds the reference's activations".into(),
        });
    }
    let tensors = candle_core::safetensors::load(path, &Device::Cpu);
    let tensors = tensors.map_err(|error| malformed(path, error.to_string()))?;
    let mut prompts = Prompts::new();
    for (name, tensor) in tensors {
        match name.split_once('/') {
            Some((prompt, rest)) => prompts
                .entry(prompt.to_string())
                .or_default()
                .insert(rest.to_string(), tensor),
            None => {
                return Err(malformed(
                    path,
                    format!("tensor `{name}` belongs to no prompt"),
                ));
            }
        };
    }
    Ok(prompts)
}

fn malformed(path: &Path, reason: String) -> Error {
    Error::Malformed {
        path: path.to_path_buf(),
        format: "reference",
        reason: reason.lines().next().unwrap_or_default().to_string(),
    }
}

/// What a tensor of the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    LogitsAll,
    LogitsLast,
    FinalNormIn,
    FinalNormOut,
    Full(Kind),
    Norm(Kind),
}

impl Content {
    fn of(name: &str) -> Result<Option<Self>> {
        Ok(Some(match name {
            "ids" => return Ok(None),
            "logits_all" => Content::LogitsAll,
            "logits_last" => Content::LogitsLast,
            "full/final_norm_in" => Content::FinalNormIn,
            "full/final_norm_out" => Content::FinalNormOut,
            _ => match name.split_once('/') {
                Some(("full", hook)) => Content::Full(hook.parse()?),
                Some(("norm", hook)) => Content::Norm(hook.parse()?),
                _ => {
                    return Err(Error::UnknownHook {
                        name: crate::text::shortened(name),
                        nearest: "full/<hook>, norm/<hook>, logits_all, logits_last, ids".into(),
                    });
                }
            },
        }))
    }

    /// What has to be captured to compare.
    fn hooks(self, spec: &ModelSpec) -> Vec<Hook> {
        let n_layers = spec.n_layers;
        match self {
            Content::LogitsAll | Content::LogitsLast => vec![],
            Content::FinalNormIn => vec![Hook::at(Kind::ResidPost, n_layers - 1)],
            Content::FinalNormOut => vec![Hook::global(Kind::Normalized(Ln::Final))],
            Content::Full(kind) | Content::Norm(kind) if !kind.per_layer() => {
                vec![Hook::global(kind)]
            }
            // A hook that some layers lack has a row for each of the others; of one that all lack the run says why.
            Content::Full(kind) | Content::Norm(kind) => (0..n_layers)
                .map(|layer| Hook::at(kind, layer))
                .filter(|hook| kind.absent(spec).is_some() || hook.absent(spec).is_none())
                .collect(),
        }
    }

    fn name(self) -> String {
        match self {
            Content::LogitsAll | Content::LogitsLast => "logits".into(),
            Content::FinalNormIn => Kind::ResidPost.short(),
            Content::FinalNormOut => "final_norm_out".into(),
            Content::Full(kind) | Content::Norm(kind) => kind.short(),
        }
    }

    /// Where it stands in the forward pass.
    fn order(self) -> usize {
        match self {
            Content::Full(kind) | Content::Norm(kind) => Kind::ALL
                .iter()
                .position(|other| *other == kind)
                .unwrap_or(0),
            Content::FinalNormIn => Content::Full(Kind::ResidPost).order(),
            Content::FinalNormOut => Kind::ALL.len(),
            Content::LogitsAll | Content::LogitsLast => Kind::ALL.len() + 1,
        }
    }
}

fn compare_prompt(
    model: &Model,
    path: &Path,
    prompt: &str,
    tensors: &BTreeMap<String, Tensor>,
) -> Result<Vec<(usize, Gap)>> {
    let spec = &model.spec;
    let mut wanted = Vec::new();
    for (name, tensor) in tensors {
        if let Some(content) = Content::of(name)? {
            wanted.push((format!("{prompt}/{name}"), content, tensor));
        }
    }
    let mut capture: Vec<Hook> = wanted
        .iter()
        .flat_map(|(_, content, _)| content.hooks(spec))
        .collect();
    capture.sort_unstable();
    capture.dedup();
    let request = Request {
        capture: &capture,
        logits: Logits::All,
        ..Request::default()
    };
    let ours = run(model, &[ids(path, prompt, tensors.get("ids"))?], &request)?;
    let logits = ours.logits.expect("asked for").squeeze(0)?; // [pos, d_vocab]
    let mut gaps = Vec::new();
    for (place, content, theirs) in wanted {
        let ours: Vec<Tensor> = match content {
            Content::LogitsAll => vec![logits.clone()],
            Content::LogitsLast => vec![logits.get(logits.dim(0)? - 1)?],
            _ => content
                .hooks(spec)
                .into_iter()
                .map(|hook| seen(model, &ours.cache, hook, content))
                .collect::<Result<_>>()?,
        };
        let hooks = content.hooks(spec);
        let layers = layers(&place, theirs, &ours, hooks.clone())?;
        for (i, (ours, theirs)) in ours.iter().zip(layers).enumerate() {
            let layer = hooks.get(i).and_then(|hook| hook.layer);
            let place = match layer.filter(|_| hooks.len() > 1) {
                Some(layer) => format!("{place}, layer {layer}"),
                None => place.clone(),
            };
            let gap = Gap {
                what: content.name(),
                place,
                relative: relative(ours, &theirs)?,
            };
            gaps.push((content.order(), gap));
        }
    }
    Ok(gaps)
}

/// The prompt itself.
fn ids(path: &Path, prompt: &str, ids: Option<&Tensor>) -> Result<Vec<u32>> {
    let bad = |reason: &str| malformed(path, format!("`{prompt}/ids` {reason}"));
    let ids = ids.ok_or_else(|| bad("is missing"))?;
    let ids = ids.to_dtype(DType::I64)?.to_vec1::<i64>();
    let ids = ids.map_err(|_| bad("is no list of tokens"))?;
    let ids = ids.into_iter().map(u32::try_from);
    ids.collect::<std::result::Result<_, _>>()
        .map_err(|_| bad("holds what is no token"))
}

/// What we have for one hook: `[pos, ..]`, or `[head, query, key]`.
fn seen(model: &Model, cache: &Cache, hook: Hook, content: Content) -> Result<Tensor> {
    let t = cache.get(hook)?.squeeze(0)?;
    match (content, &model.weights.ln_final) {
        (Content::Norm(_), _) => {
            let last = t.rank() - 1;
            Ok(t.to_dtype(DType::F32)?.sqr()?.sum(last)?.sqrt()?)
        }
        (Content::FinalNormOut, Some(w)) => norm::apply_weight(&t, w),
        _ => Ok(t),
    }
}

/// The reference's tensor by layers, each of the shape of ours.
fn layers(name: &str, theirs: &Tensor, ours: &[Tensor], hooks: Vec<Hook>) -> Result<Vec<Tensor>> {
    let is_stacked = hooks.iter().any(|hook| hook.kind.per_layer())
        && (hooks.len() > 1 || theirs.rank() > ours[0].rank());
    let mut expected = ours[0].dims().to_vec();
    if is_stacked {
        expected.insert(0, ours.len());
    }
    if theirs.dims() != expected {
        return Err(Error::TensorShape {
            name: name.to_string(),
            found: theirs.dims().to_vec(),
            expected,
        });
    }
    if is_stacked {
        (0..ours.len())
            .map(|layer| Ok(theirs.get(layer)?))
            .collect()
    } else {
        Ok(vec![theirs.clone()])
    }
}
