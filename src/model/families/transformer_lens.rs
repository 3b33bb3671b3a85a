//! Checkpoints with TransformerLens's own names (`blocks.0.attn.W_Q [head, d_model, d_head]`), as toy models are saved.
//!
//! The sizes are in the tensors, and what a `config.json` says of them must agree. It need say no more than shapes cannot show, in the
//! words of `HookedTransformerConfig`: `normalization_type` where there are no norm weights (none, or folded into their readers),
//! `act_fn` where there is an MLP, `positional_embedding_type` where there is no `W_pos`. Nothing of that is guessed.
//! Left out on purpose: gated MLPs (TransformerLens adds their bias after the gate) and attention that is not causal.

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::Description;
use super::config::{Keys, activation};
use super::limits::check_spec;
use crate::error::{Error, Result};
use crate::model::layout::{Layout, Piece, Slot, Stored};
use crate::model::spec::{
    Activation, Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm, RopeScaling,
    Rotary, RotaryBase, RotaryStyle,
};

pub const NAME: &str = "transformer_lens";

/// The tensor that no checkpoint of another kind has.
const EMBEDDING: &str = "embed.W_E";
/// Grouped key and value heads have names of their own.
const GROUPED_KEYS: &str = "blocks.0.attn._W_K";

/// Keys that change nothing here: bookkeeping, training, which hooks TransformerLens computes.
const HARMLESS: &[&str] = &[
    "arch",
    "checkpoint_index",
    "checkpoint_label_type",
    "checkpoint_value",
    "d_vocab_out",
    "default_prepend_bos",
    "device",
    "from_checkpoint",
    "init_mode",
    "init_weights",
    "initializer_range",
    "layout",
    "model_name",
    "n_devices",
    "n_params",
    "original_architecture",
    "seed",
    "tokenizer_name",
    "tokenizer_prepends_bos",
    "trust_remote_code",
    "ungroup_grouped_query_attention",
    "use_attn_in",
    "use_attn_result",
    "use_hook_mlp_in",
    "use_hook_tokens",
    "use_split_qkv_input",
];

/// Keys that would change the function, at the values where they do not.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("attn_scores_soft_cap", "-1.0"),
    ("bos", "false"),
    ("final_rms", "false"),
    ("gated_mlp", "false"),
    ("load_in_4bit", "false"),
    ("output_logits_soft_cap", "-1.0"),
    ("post_embedding_ln", "false"),
    ("relative_attention_max_distance", "null"),
    ("scale_attn_by_inverse_layer_idx", "false"),
    ("tie_word_embeddings", "false"),
    ("use_NTK_by_parts_rope", "false"),
    ("use_local_attn", "false"),
    ("use_normalization_before_and_after", "false"),
    ("use_qk_norm", "false"),
];

/// How people abbreviate some names by hand.
const NAMES: &[(&str, &str)] = &[
    ("normalization", "normalization_type"),
    ("act", "act_fn"),
    ("positional_embedding", "positional_embedding_type"),
    ("attention", "attention_dir"),
];

/// What a config may say.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Config {
    n_layers: Option<usize>,
    n_heads: Option<usize>,
    n_key_value_heads: Option<usize>,
    d_model: Option<usize>,
    d_head: Option<usize>,
    d_mlp: Option<usize>,
    d_vocab: Option<usize>,
    n_ctx: Option<usize>,
    attn_only: Option<bool>,
    /// `null` says that there is none; a missing key says nothing.
    #[serde(deserialize_with = "said")]
    normalization_type: Option<Option<String>>,
    eps: Option<f64>,
    act_fn: Option<String>,
    positional_embedding_type: Option<String>,
    rotary_dim: Option<usize>,
    rotary_base: Option<f64>,
    rotary_adjacent_pairs: Option<bool>,
    attention_dir: Option<String>,
    use_attn_scale: Option<bool>,
    attn_scale: Option<Value>,
    parallel_attn_mlp: Option<bool>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn said<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(value).map(Some)
}

/// Shapes by tensor name.
type Shapes<'a> = HashMap<&'a str, &'a [usize]>;

/// Whether a checkpoint has TransformerLens's names.
pub fn is_native(tensors: &[(&str, &[usize])]) -> bool {
    tensors.iter().any(|(name, _)| *name == EMBEDDING)
}

/// Describes a model from the tensors of its checkpoint, and its config where there is one.
/// # Errors
/// [`Error::BadConfig`] where the two disagree, and naming the key where neither says what is needed;
/// [`Error::UnhandledConfig`], [`Error::UnreadableConfig`]; [`Error::MissingTensors`].
pub fn describe(
    config: Option<&str>,
    tensors: &[(&str, &[usize])],
    accept: &[String],
) -> Result<Description> {
    let mut keys = Keys::new(NAME, config.unwrap_or("{}"), "{}", NAMES, accept)?;
    let mut config: Config = keys.read()?;
    // Toy models are described by hand: this is where some say that there is no norm.
    let arch = config.rest.get("arch").and_then(Value::as_str);
    if config.normalization_type.is_none() && arch.is_some_and(|arch| arch.contains("no layernorm"))
    {
        config.normalization_type = Some(None);
    }
    config
        .rest
        .retain(|key, _| !HARMLESS.contains(&key.as_str()));
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, &[])?;
    let shapes: Shapes = tensors.iter().copied().collect();
    let spec = spec(&config, &shapes)?;
    check_spec(&spec)?;
    let layout = layout(&spec, &shapes);
    Ok(Description {
        accepted: keys.accepted(),
        ..Description::new(spec, layout)
    })
}

fn spec(config: &Config, shapes: &Shapes) -> Result<ModelSpec> {
    let [d_vocab, d_model] = shape(shapes, EMBEDDING)?;
    let [n_heads, _, d_head] = shape(shapes, "blocks.0.attn.W_Q")?;
    let keys = match shapes.contains_key(GROUPED_KEYS) {
        true => GROUPED_KEYS,
        false => "blocks.0.attn.W_K",
    };
    let [n_kv_heads, _, _] = shape(shapes, keys)?;
    let has_layer =
        |layer: &usize| shapes.contains_key(format!("blocks.{layer}.attn.W_Q").as_str());
    let n_layers = (0..).take_while(has_layer).count();
    let has_mlp = shapes.contains_key("blocks.0.mlp.W_in");
    let d_mlp = match has_mlp {
        true => shape::<2>(shapes, "blocks.0.mlp.W_in")?[1],
        false => 0,
    };
    let (position, n_ctx) = position(config, shapes, d_head, n_layers)?;
    let (norm, norm_placement) = norm(config, shapes)?;
    for (key, found, said) in [
        ("n_layers", n_layers, config.n_layers),
        ("n_heads", n_heads, config.n_heads),
        ("n_key_value_heads", n_kv_heads, config.n_key_value_heads),
        ("d_model", d_model, config.d_model),
        ("d_head", d_head, config.d_head),
        ("d_mlp", d_mlp, config.d_mlp.filter(|_| has_mlp)),
        ("d_vocab", d_vocab, config.d_vocab),
        ("n_ctx", n_ctx, config.n_ctx),
    ] {
        if said.is_some_and(|said| said != found) {
            let said = said.unwrap_or_default();
            return Err(bad(key, format!("{said}, but the tensors say {found}")));
        }
    }
    if config
        .attn_only
        .is_some_and(|attn_only| attn_only == has_mlp)
    {
        return Err(bad("attn_only", "the tensors say otherwise".to_string()));
    }
    if let Some(direction) = config
        .attention_dir
        .as_ref()
        .filter(|text| !text.starts_with("causal"))
    {
        return Err(Error::UnhandledConfig {
            family: NAME.to_string(),
            key: "attention_dir".to_string(),
            value: crate::text::shortened(direction),
        });
    }
    let activation = match (&config.act_fn, has_mlp) {
        (Some(name), true) => activation("act_fn", name)?,
        (None, true) => {
            return Err(unsaid(
                "act_fn",
                "\"relu\"",
                "which activation the MLPs have",
            ));
        }
        (_, false) => Activation::Relu,
    };
    Ok(ModelSpec {
        family: NAME.to_string(),
        n_layers,
        n_heads,
        n_kv_heads,
        d_model,
        d_head,
        d_mlp,
        d_vocab,
        n_ctx,
        norm,
        norm_eps: config.eps.unwrap_or(1e-5),
        norm_placement,
        block: match config.parallel_attn_mlp {
            Some(true) => Block::Parallel { shared_norm: false },
            Some(false) | None => Block::Sequential,
        },
        position,
        attn_scale: vec![attn_scale(config, d_head)?; n_layers],
        attn_softcap: None,
        windows: vec![None; n_layers],
        qk_norm: QkNorm::None,
        qkv_clip: None,
        mlp: if has_mlp { Mlp::Plain } else { Mlp::None },
        activation,
        embed_norm: false,
        embed_scale: None,
        residual_multiplier: None,
        logit_scale: None,
        final_softcap: None,
        tied: false,
        encoder: None,
    })
}

/// Which norm there is: its weights show it, and where there are none only the config can tell no norm from a folded one.
fn norm(config: &Config, shapes: &Shapes) -> Result<(NormKind, NormPlacement)> {
    let (has_weight, has_bias) = (
        shapes.contains_key("blocks.0.ln1.w"),
        shapes.contains_key("blocks.0.ln1.b"),
    );
    let said = match &config.normalization_type {
        Some(name) => Some(name.as_deref().unwrap_or("null")),
        None => None,
    };
    match (said, has_weight, has_bias) {
        (None | Some("LN"), true, true) => Ok((NormKind::Layer, NormPlacement::Pre)),
        (None | Some("RMS"), true, false) => Ok((NormKind::Rms, NormPlacement::Pre)),
        (Some("null"), false, false) => Ok((NormKind::Layer, NormPlacement::None)),
        (Some("LNPre"), false, false) => Ok((NormKind::Layer, NormPlacement::Pre)),
        (Some("RMSPre"), false, false) => Ok((NormKind::Rms, NormPlacement::Pre)),
        (None, false, false) => Err(unsaid(
            "normalization_type",
            "null",
            "whether there is no norm (null) or one without weights (\"LNPre\", \"RMSPre\")",
        )),
        (said, _, _) => Err(bad(
            "normalization_type",
            format!(
                "{}, but there {} `blocks.0.ln1.w` and {} `blocks.0.ln1.b`",
                crate::text::shortened(said.unwrap_or("nothing")),
                if has_weight { "is" } else { "is no" },
                if has_bias { "is" } else { "is no" },
            ),
        )),
    }
}

/// How positions are told apart, and how many there are.
fn position(
    config: &Config,
    shapes: &Shapes,
    d_head: usize,
    n_layers: usize,
) -> Result<(Position, usize)> {
    const KEY: &str = "positional_embedding_type";
    let said = config.positional_embedding_type.as_deref();
    let learned = shapes.contains_key("pos_embed.W_pos");
    let n_ctx = || {
        let why = "how long a prompt may be";
        config.n_ctx.ok_or_else(|| unsaid("n_ctx", "2048", why))
    };
    match (said, learned) {
        (None | Some("standard"), true) => {
            let [n_ctx, _] = shape(shapes, "pos_embed.W_pos")?;
            Ok((Position::Learned, n_ctx))
        }
        (Some("none"), false) => Ok((Position::None, n_ctx()?)),
        (Some("rotary"), false) => {
            let adjacent = config.rotary_adjacent_pairs.unwrap_or(false);
            let rotary = Rotary {
                dims: config.rotary_dim.unwrap_or(d_head),
                style: match adjacent {
                    true => RotaryStyle::Interleaved,
                    false => RotaryStyle::Half,
                },
                base_of_layer: vec![Some(0); n_layers],
                bases: vec![RotaryBase {
                    theta: config.rotary_base.unwrap_or(10_000.0),
                    scaling: RopeScaling::None,
                }],
            };
            Ok((Position::Rotary(rotary), n_ctx()?))
        }
        (None, false) => Err(unsaid(KEY, "\"rotary\"", "how positions are told apart")),
        (Some(other), _) => Err(bad(
            KEY,
            format!(
                "`{}`; we have `standard` (with `pos_embed.W_pos`), `rotary` and `none` (both without)",
                crate::text::shortened(other)
            ),
        )),
    }
}

/// TransformerLens divides by `attn_scale`, `sqrt(d_head)` unless it says otherwise.
fn attn_scale(config: &Config, d_head: usize) -> Result<f32> {
    let usual = 1.0 / (d_head as f32).sqrt();
    if config.use_attn_scale == Some(false) {
        return Ok(1.0);
    }
    match &config.attn_scale {
        None | Some(Value::Null) => Ok(usual),
        Some(Value::String(text)) if text == "sqrt(d_head)" => Ok(usual),
        Some(value) => match value.as_f64() {
            Some(-1.0) => Ok(usual),
            Some(divisor) if divisor > 0.0 => Ok((1.0 / divisor) as f32),
            _ => Err(bad("attn_scale", format!("{value} is no divisor"))),
        },
    }
}

fn layout(spec: &ModelSpec, shapes: &Shapes) -> Layout {
    let (d, d_head, mlp) = (spec.d_model, spec.d_head, spec.d_mlp);
    let (heads, kv_heads) = (spec.n_heads * d_head, spec.n_kv_heads * d_head);
    let has = |name: &str| shapes.contains_key(name);
    let as_is = Piece::as_is;
    // What reads the stream is stored `[head, d_model, d_head]`, what writes to it `[head, d_head, d_model]`.
    let reads = |name, out| Piece::stored(name, out, Stored::HeadColumns { d_head });
    let writes = |name, out| Piece::stored(name, out, Stored::HeadRows { d_head });
    let [w_k, w_v, b_k, b_v] = match has(GROUPED_KEYS) {
        true => [
            "blocks.{l}.attn._W_K",
            "blocks.{l}.attn._W_V",
            "blocks.{l}.attn._b_K",
            "blocks.{l}.attn._b_V",
        ],
        false => [
            "blocks.{l}.attn.W_K",
            "blocks.{l}.attn.W_V",
            "blocks.{l}.attn.b_K",
            "blocks.{l}.attn.b_V",
        ],
    };
    let mut model = vec![
        (Slot::Embed, vec![as_is(EMBEDDING, d)]),
        (Slot::Unembed, vec![Piece::linear("unembed.W_U", d)]),
    ];
    if has("unembed.b_U") {
        model.push((Slot::UnembedBias, vec![as_is("unembed.b_U", spec.d_vocab)]));
    }
    if spec.position == Position::Learned {
        model.push((Slot::Positions, vec![as_is("pos_embed.W_pos", d)]));
    }
    let qkv = |q, k, v| vec![reads(q, heads), reads(k, kv_heads), reads(v, kv_heads)];
    let mut blocks = vec![
        (Slot::Qkv, qkv("blocks.{l}.attn.W_Q", w_k, w_v)),
        (Slot::O, vec![writes("blocks.{l}.attn.W_O", d)]),
    ];
    if has("blocks.0.attn.b_Q") {
        blocks.push((Slot::QkvBias, qkv("blocks.{l}.attn.b_Q", b_k, b_v)));
    }
    if has("blocks.0.attn.b_O") {
        blocks.push((Slot::OBias, vec![as_is("blocks.{l}.attn.b_O", d)]));
    }
    if spec.mlp == Mlp::Plain {
        blocks.push((Slot::MlpIn, vec![as_is("blocks.{l}.mlp.W_in", mlp)]));
        blocks.push((Slot::MlpOut, vec![as_is("blocks.{l}.mlp.W_out", d)]));
        for (slot, first, name, out) in [
            (
                Slot::MlpInBias,
                "blocks.0.mlp.b_in",
                "blocks.{l}.mlp.b_in",
                mlp,
            ),
            (
                Slot::MlpOutBias,
                "blocks.0.mlp.b_out",
                "blocks.{l}.mlp.b_out",
                d,
            ),
        ] {
            if has(first) {
                blocks.push((slot, vec![as_is(name, out)]));
            }
        }
    }
    if spec.norm_placement == NormPlacement::Pre {
        let has_weight = has("blocks.0.ln1.w");
        // A folded norm still divides; its weight is one.
        let weight = |name| match has_weight {
            true => as_is(name, d),
            false => Piece::stored(name, d, Stored::Nowhere).plus(1.0),
        };
        model.push((Slot::LnFinal, vec![weight("ln_final.w")]));
        blocks.push((Slot::Ln1, vec![weight("blocks.{l}.ln1.w")]));
        if spec.mlp == Mlp::Plain {
            blocks.push((Slot::Ln2, vec![weight("blocks.{l}.ln2.w")]));
        }
        if has("blocks.0.ln1.b") {
            model.push((Slot::LnFinalBias, vec![as_is("ln_final.b", d)]));
            blocks.push((Slot::Ln1Bias, vec![as_is("blocks.{l}.ln1.b", d)]));
            if spec.mlp == Mlp::Plain {
                blocks.push((Slot::Ln2Bias, vec![as_is("blocks.{l}.ln2.b", d)]));
            }
        }
    }
    Layout {
        model,
        blocks,
        // Buffers: the causal mask, the value that it writes, and tables of the rotation.
        harmless: ["mask", "IGNORE", "rotary_sin", "rotary_cos"]
            .map(|name| format!("*.attn.{name}"))
            .to_vec(),
        ..Layout::default()
    }
}

/// The shape of a tensor that must be there, with so many axes.
fn shape<const N: usize>(shapes: &Shapes, name: &str) -> Result<[usize; N]> {
    let found = shapes.get(name).ok_or_else(|| Error::MissingTensors {
        family: NAME.to_string(),
        count: 1,
        first: format!("`{name}`"),
    })?;
    (*found).try_into().map_err(|_| Error::TensorShape {
        name: name.to_string(),
        found: found.to_vec(),
        expected: vec![0; N],
    })
}

fn bad(key: &str, reason: String) -> Error {
    Error::BadConfig {
        key: key.to_string(),
        reason,
    }
}

/// What neither shapes nor config say.
fn unsaid(key: &str, example: &str, what: &str) -> Error {
    bad(
        key,
        format!(
            "the tensors do not show {what}; say it in a config.json beside the weights (`{{\"{key}\": {example}}}`)"
        ),
    )
}
