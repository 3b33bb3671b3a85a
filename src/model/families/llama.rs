//! Llama 1 to 3, and what is built like it (SmolLM2, TinyLlama, Vicuna): RMS norms before each branch, rotary positions,
//! grouped heads, a gated SiLU MLP.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, check_layers, head_width, parse, refuse_unhandled};
use super::config::{refuse_unhandled_gguf, shortened};
use super::rope::RopeConfig;
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::gguf::Gguf;
use crate::model::layout::{Layout, Piece, Slot, Take};
use crate::model::spec::{
    Activation, Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm, RopeScaling,
    Rotary, RotaryBase, RotaryStyle,
};

pub const FAMILY: Family = Family {
    name: "llama",
    from_config: describe,
    from_gguf: Some(describe_gguf),
};

/// Keys that would change the function at any other value.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("attention_multiplier", "1.0"),
    ("embedding_multiplier", "1.0"),
    ("logits_scaling", "1.0"),
    ("pretraining_tp", "1"),
    ("residual_multiplier", "1.0"),
    ("use_sliding_window", "false"),
];

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_positions")]
    max_position_embeddings: usize,
    #[serde(default = "default_eps")]
    rms_norm_eps: f64,
    #[serde(default = "default_act")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

// The defaults of transformers' `LlamaConfig`, which a config.json may leave out.
fn default_positions() -> usize {
    2048
}
fn default_eps() -> f64 {
    1e-6
}
fn default_act() -> String {
    "silu".to_string()
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("llama", &config.rest, AT_DEFAULT)?;
    check_layers("num_hidden_layers", config.num_hidden_layers)?;
    let rope = config.rope.settings()?;
    if rope.partial != 1.0 {
        return Err(Error::UnhandledConfig {
            family: "llama".to_string(),
            key: "partial_rotary_factor".to_string(),
            value: rope.partial.to_string(),
        });
    }
    let heads = config.num_attention_heads;
    let d_head = match config.head_dim {
        Some(d_head) => d_head,
        None => head_width("num_attention_heads", config.hidden_size, heads)?,
    };
    let sizes = Sizes {
        n_layers: config.num_hidden_layers,
        n_heads: heads,
        n_kv_heads: config.num_key_value_heads.unwrap_or(heads),
        d_model: config.hidden_size,
        d_head,
        d_mlp: config.intermediate_size,
        d_vocab: config.vocab_size,
        n_ctx: config.max_position_embeddings,
    };
    let spec = ModelSpec {
        activation: activation("hidden_act", &config.hidden_act)?,
        tied: config.tie_word_embeddings,
        ..spec(sizes, config.rms_norm_eps, rope.base)
    };
    let layout = layout(&spec, config.attention_bias, config.mlp_bias);
    Ok(Description { spec, layout })
}

/// Sizes in the words of [`ModelSpec`], from whichever file format.
struct Sizes {
    n_layers: usize,
    n_heads: usize,
    n_kv_heads: usize,
    d_model: usize,
    d_head: usize,
    d_mlp: usize,
    d_vocab: usize,
    n_ctx: usize,
}

fn spec(sizes: Sizes, norm_eps: f64, base: RotaryBase) -> ModelSpec {
    let Sizes {
        n_layers,
        n_heads,
        n_kv_heads,
        d_model,
        d_head,
        d_mlp,
        d_vocab,
        n_ctx,
    } = sizes;
    ModelSpec {
        family: "llama".to_string(),
        n_layers,
        n_heads,
        n_kv_heads,
        d_model,
        d_head,
        d_mlp,
        d_vocab,
        n_ctx,
        norm: NormKind::Rms,
        norm_eps,
        norm_placement: NormPlacement::Pre,
        block: Block::Sequential,
        position: Position::Rotary(Rotary {
            dims: d_head,
            style: RotaryStyle::Half,
            base_of_layer: vec![0; n_layers],
            bases: vec![base],
        }),
        attn_scale: vec![1.0 / (d_head as f32).sqrt(); n_layers],
        attn_softcap: None,
        windows: vec![None; n_layers],
        qk_norm: QkNorm::None,
        mlp: Mlp::Gated,
        activation: Activation::Silu,
        embed_scale: None,
        residual_multiplier: None,
        logit_scale: None,
        final_softcap: None,
        tied: false,
    }
}

/// Where transformers keeps the weights.
fn layout(spec: &ModelSpec, attention_bias: bool, mlp_bias: bool) -> Layout {
    let (d, q, kv) = (
        spec.d_model,
        spec.n_heads * spec.d_head,
        spec.n_kv_heads * spec.d_head,
    );
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (Slot::Embed, vec![as_is("model.embed_tokens.weight", d)]),
        (Slot::LnFinal, vec![as_is("model.norm.weight", d)]),
    ];
    let mut harmless = vec!["*.rotary_emb.inv_freq"];
    if spec.tied {
        harmless.push("lm_head.weight");
    } else {
        model.push((Slot::Unembed, vec![as_is("lm_head.weight", d)]));
    }
    let mut blocks = vec![
        (
            Slot::Ln1,
            vec![as_is("model.layers.{l}.input_layernorm.weight", d)],
        ),
        (
            Slot::Qkv,
            vec![
                linear("model.layers.{l}.self_attn.q_proj.weight", q),
                linear("model.layers.{l}.self_attn.k_proj.weight", kv),
                linear("model.layers.{l}.self_attn.v_proj.weight", kv),
            ],
        ),
        (
            Slot::O,
            vec![linear("model.layers.{l}.self_attn.o_proj.weight", d)],
        ),
        (
            Slot::Ln2,
            vec![as_is("model.layers.{l}.post_attention_layernorm.weight", d)],
        ),
        (
            Slot::MlpIn,
            vec![
                linear("model.layers.{l}.mlp.gate_proj.weight", spec.d_mlp),
                linear("model.layers.{l}.mlp.up_proj.weight", spec.d_mlp),
            ],
        ),
        (
            Slot::MlpOut,
            vec![linear("model.layers.{l}.mlp.down_proj.weight", d)],
        ),
    ];
    if attention_bias {
        blocks.extend([
            (
                Slot::QkvBias,
                vec![
                    as_is("model.layers.{l}.self_attn.q_proj.bias", q),
                    as_is("model.layers.{l}.self_attn.k_proj.bias", kv),
                    as_is("model.layers.{l}.self_attn.v_proj.bias", kv),
                ],
            ),
            (
                Slot::OBias,
                vec![as_is("model.layers.{l}.self_attn.o_proj.bias", d)],
            ),
        ]);
    }
    if mlp_bias {
        blocks.extend([
            (
                Slot::MlpInBias,
                vec![
                    as_is("model.layers.{l}.mlp.gate_proj.bias", spec.d_mlp),
                    as_is("model.layers.{l}.mlp.up_proj.bias", spec.d_mlp),
                ],
            ),
            (
                Slot::MlpOutBias,
                vec![as_is("model.layers.{l}.mlp.down_proj.bias", d)],
            ),
        ]);
    }
    Layout {
        model,
        blocks,
        optional_prefix: "",
        harmless,
    }
}

/// GGUF keys under `llama.` that [`describe_gguf`] reads.
const GGUF_HANDLED: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.factor",
    // What the model was stretched from; the stretching itself is the factor or `rope_freqs`.
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "vocab_size",
];
const GGUF_AT_DEFAULT: &[(&str, f64)] = &[
    ("expert_count", 0.0),
    ("expert_used_count", 0.0),
    ("attention.causal", 1.0),
];

fn describe_gguf(gguf: &Gguf) -> Result<Description> {
    refuse_unhandled_gguf(gguf, "llama", GGUF_HANDLED, GGUF_AT_DEFAULT)?;
    let heads = gguf.size("llama.attention.head_count")?;
    let d_model = gguf.size("llama.embedding_length")?;
    let d_head = match gguf.maybe_size("llama.attention.key_length")? {
        Some(d_head) => d_head,
        None => head_width("llama.attention.head_count", d_model, heads)?,
    };
    for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
        if let Some(other) = gguf.maybe_size(key)?.filter(|other| *other != d_head) {
            return Err(Error::BadConfig {
                key: key.to_string(),
                reason: format!(
                    "{other}, but a head has {d_head} dimensions; only equal ones are handled"
                ),
            });
        }
    }
    let n_layers = gguf.size("llama.block_count")?;
    check_layers("llama.block_count", n_layers)?;
    let d_vocab = gguf.rows("token_embd.weight")?;
    let sizes = Sizes {
        n_layers,
        n_heads: heads,
        n_kv_heads: gguf
            .maybe_size("llama.attention.head_count_kv")?
            .unwrap_or(heads),
        d_model,
        d_head,
        d_mlp: gguf.size("llama.feed_forward_length")?,
        d_vocab,
        n_ctx: gguf.size("llama.context_length")?,
    };
    let theta = gguf
        .maybe_number("llama.rope.freq_base")?
        .unwrap_or(10_000.0);
    let base = RotaryBase {
        theta,
        scaling: gguf_scaling(gguf, d_head)?,
    };
    let eps = gguf.number("llama.attention.layer_norm_rms_epsilon")?;
    let spec = ModelSpec {
        tied: !gguf.has("output.weight"),
        ..spec(sizes, eps, base)
    };
    let layout = layout_gguf(&spec, gguf);
    Ok(Description { spec, layout })
}

fn gguf_scaling(gguf: &Gguf, d_head: usize) -> Result<RopeScaling> {
    let kind = gguf
        .maybe_string("llama.rope.scaling.type")?
        .unwrap_or("none");
    let factor = gguf.maybe_number("llama.rope.scaling.factor")?;
    let factors = match gguf.has("rope_freqs.weight") {
        true => Some(gguf.small_vector("rope_freqs.weight", d_head / 2)?),
        false => None,
    };
    match (kind, factor, factors) {
        ("none", None, Some(factors)) => Ok(RopeScaling::Factors { factors }),
        ("none", None, None) => Ok(RopeScaling::None),
        ("linear", Some(factor), None) if factor > 0.0 => Ok(RopeScaling::Linear { factor }),
        _ => Err(Error::UnhandledConfig {
            family: "llama".to_string(),
            key: "llama.rope.scaling.type".to_string(),
            value: format!("{} with factor {factor:?}", shortened(kind)),
        }),
    }
}

/// Where llama.cpp keeps the weights: the same transposed, with the rows of q and k interleaved.
fn layout_gguf(spec: &ModelSpec, gguf: &Gguf) -> Layout {
    let (d, q, kv) = (
        spec.d_model,
        spec.n_heads * spec.d_head,
        spec.n_kv_heads * spec.d_head,
    );
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let halves = Take::UninterleaveHalves {
        d_head: spec.d_head,
    };
    let mut model = vec![
        (Slot::Embed, vec![as_is("token_embd.weight", d)]),
        (Slot::LnFinal, vec![as_is("output_norm.weight", d)]),
    ];
    if !spec.tied {
        model.push((Slot::Unembed, vec![as_is("output.weight", d)]));
    }
    let mut blocks = vec![
        (Slot::Ln1, vec![as_is("blk.{l}.attn_norm.weight", d)]),
        (
            Slot::Qkv,
            vec![
                linear("blk.{l}.attn_q.weight", q).take(halves),
                linear("blk.{l}.attn_k.weight", kv).take(halves),
                linear("blk.{l}.attn_v.weight", kv),
            ],
        ),
        (Slot::O, vec![linear("blk.{l}.attn_output.weight", d)]),
        (Slot::Ln2, vec![as_is("blk.{l}.ffn_norm.weight", d)]),
        (
            Slot::MlpIn,
            vec![
                linear("blk.{l}.ffn_gate.weight", spec.d_mlp),
                linear("blk.{l}.ffn_up.weight", spec.d_mlp),
            ],
        ),
        (Slot::MlpOut, vec![linear("blk.{l}.ffn_down.weight", d)]),
    ];
    // llama.cpp has no key for biases: they are there or not.
    if gguf.has("blk.0.attn_q.bias") {
        blocks.push((
            Slot::QkvBias,
            vec![
                as_is("blk.{l}.attn_q.bias", q).take(halves),
                as_is("blk.{l}.attn_k.bias", kv).take(halves),
                as_is("blk.{l}.attn_v.bias", kv),
            ],
        ));
    }
    if gguf.has("blk.0.attn_output.bias") {
        blocks.push((Slot::OBias, vec![as_is("blk.{l}.attn_output.bias", d)]));
    }
    // `rope_freqs` is part of the spec.
    Layout {
        model,
        blocks,
        optional_prefix: "",
        harmless: vec!["rope_freqs.weight", "*.attn_rot_embd.weight"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::from_config;

    fn with(key: &str, value: &str) -> Result<Description> {
        let json = include_str!("../../../tests/fixtures/llama-tiny-random/config.json");
        let mut config: Map<String, Value> = serde_json::from_str(json).unwrap();
        config.insert(key.to_string(), serde_json::from_str(value).unwrap());
        from_config(&Value::Object(config).to_string())
    }

    #[test]
    fn both_config_forms_give_the_same_model() {
        let new = from_config(include_str!(
            "../../../tests/fixtures/llama-tiny-random/config.json"
        ));
        let old = from_config(include_str!(
            "../../../tests/fixtures/llama-tiny-random/config.legacy.json"
        ));
        let new = new.unwrap();
        assert_eq!(new, old.unwrap());
        let Position::Rotary(rotary) = &new.spec.position else {
            panic!("llama is rotary")
        };
        assert_eq!(rotary.bases[0].theta, 500_000.0);
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 32,
        };
        assert_eq!(rotary.bases[0].scaling, llama3);
        assert_eq!(
            (new.spec.n_kv_heads, new.spec.d_head, new.spec.d_mlp),
            (2, 16, 96)
        );
    }

    #[test]
    fn keys_that_change_the_function_are_refused_by_name() {
        for (key, value) in [
            ("pretraining_tp", "2"),
            ("sliding_window", "4096"),
            ("quantization_config", r#"{"bits": 4}"#),
            ("rope_interleaved", "true"),
            ("partial_rotary_factor", "0.5"),
            ("something_new", "1"),
            ("pruned_heads", r#"{"0": [1]}"#),
        ] {
            match with(key, value).unwrap_err() {
                Error::UnhandledConfig { key: named, .. } => assert_eq!(named, key),
                other => panic!("{key}: {other}"),
            }
        }
        assert!(with("sliding_window", "null").is_ok());
        assert!(with("pretraining_tp", "1").is_ok());
    }

    #[test]
    fn sizes_that_no_model_has_are_refused() {
        for (key, value) in [
            ("num_hidden_layers", "4000000000"),
            ("num_hidden_layers", "0"),
            ("num_attention_heads", "0"),
            ("num_key_value_heads", "3"),
            ("num_key_value_heads", "0"),
            ("hidden_size", "18446744073709551615"),
            ("head_dim", "7"),
            ("rms_norm_eps", "-1.0"),
            ("hidden_act", r#""relu6""#),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(matches!(error, Error::BadConfig { .. }), "{key}: {error}");
        }
        let error = with("hidden_size", "-1").unwrap_err();
        assert!(matches!(error, Error::UnreadableConfig { .. }), "{error}");
    }

    #[test]
    fn head_width_is_derived_where_it_is_not_written() {
        assert_eq!(with("head_dim", "null").unwrap().spec.d_head, 16);
        assert_eq!(with("head_dim", "32").unwrap().spec.d_head, 32);
    }
}
