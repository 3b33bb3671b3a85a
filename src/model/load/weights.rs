//! A layout matched with a checkpoint, and its slots filled.

use std::collections::{HashMap, HashSet};

use candle_core::{DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::model::checkpoint::Checkpoint;
use crate::model::convert::{Scratch, fill_slot};
use crate::model::families::Description;
use crate::model::layout::{Layout, Need, Piece, Slot, Stored};
use crate::model::names::Names;
use crate::model::spec::ModelSpec;
use crate::spec::{BlockWeights, EncoderWeights, MlpWeights, NormWeights, Weights};
use crate::text::shortened;

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

/// Whether a checkpoint has every tensor of a layout, in its shape, and none besides.
/// # Errors
/// As [`read_weights`], but for numbers that are not finite.
pub fn check(checkpoint: &dyn Checkpoint, description: &Description) -> Result<()> {
    plan(checkpoint, description).map(|_| ())
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
    for (slot, layer, pieces) in layout.filled(spec) {
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
    const HEADS: [&str; 3] = ["cls.predictions.", "head.", "decoder.bias"];
    let is_headless = |name: &String| HEADS.iter().any(|head| name.starts_with(head));
    if !missing.is_empty() && missing.iter().all(is_headless) {
        return Err(refusal(
            "an encoder without its masked-language head, which has no logits".to_string(),
            "load one that was saved with it (`AutoModelForMaskedLM` in transformers)",
        ));
    }
    Ok(())
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
pub(in crate::model) fn assemble(
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
        let q_norm = norm(Slot::QNorm, Slot::QNormBias);
        let k_norm = norm(Slot::KNorm, Slot::KNormBias);
        let mlp = match Slot::MlpIn.need(spec, layer) {
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
            q_norm,
            k_norm,
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
            segments: take(Slot::Segments, 0),
            w_head: needed(take(Slot::Head, 0), Slot::Head)?,
            b_head: take(Slot::HeadBias, 0),
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
