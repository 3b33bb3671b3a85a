//! BLOOM and MPT: no vectors for positions; scores fall with distance, by a slope of each head (ALiBi).
//!
//! transformers measures the distance from the first key (BLOOM) or the last (MPT), we from the query: all of a query's scores move
//! by one amount, which no pattern sees.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::Keys;
use super::decoder::{self, Sizes};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::Result;
use crate::model::page;
use crate::model::spec::{Activation, Alibi, Position};

pub const BLOOM: Family = Family {
    name: "bloom",
    model_types: &["bloom"],
    defaults: BLOOM_DEFAULTS,
    synonyms: &[
        ("n_embed", "hidden_size"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    ],
    from_config: describe_bloom,
    gguf: None,
    examples: &["bigscience/bloom-560m", "bigscience/bloomz-560m"],
};

pub const MPT: Family = Family {
    name: "mpt",
    model_types: &["mpt"],
    defaults: MPT_DEFAULTS,
    synonyms: &[
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
    ],
    from_config: describe_mpt,
    gguf: None,
    examples: &["mosaicml/mpt-7b"],
};

/// How the published models were trained and are split over devices.
const BLOOM_AT_DEFAULT: &[(&str, &str)] = &[
    ("bias_dropout_fusion", "true"),
    ("masked_softmax_fusion", "true"),
    ("offset_alibi", "100"),
    ("skip_bias_add", "true"),
    ("slow_but_exact", "true"),
];
const BLOOM_CHANGES: &[(&str, &str)] = &[(
    "apply_residual_connection_post_layernorm",
    "its branches are added to the normed stream, which is not handled in this family",
)];
/// How far the slopes reach.
const MAX_BIAS: f32 = 8.0;

const BLOOM_DEFAULTS: &str = r#"{
    "vocab_size": 250880, "hidden_size": 64, "n_layer": 2, "n_head": 8, "layer_norm_epsilon": 1e-5,
    "apply_residual_connection_post_layernorm": false, "tie_word_embeddings": true, "seq_length": 2048
}"#;

/// What the published files say of their own code, where transformers computes what they mean.
const MPT_AT_DEFAULT: &[(&str, &str)] = &[
    ("embedding_fraction", "1.0"),
    ("expansion_ratio", "4"),
    ("init_device", "\"cpu\""),
    ("learned_pos_emb", "true"),
    ("norm_type", "\"low_precision_layernorm\""),
    ("no_bias", "true"),
    ("verbose", "0"),
];
const MPT_CHANGES: &[(&str, &str)] = &[
    (
        "expansion_ratio",
        "transformers reads no other width of its MLPs than 4",
    ),
    ("logit_scale", "transformers does not read it"),
    ("no_bias", "transformers has no biases in this family"),
];

const MPT_DEFAULTS: &str = r#"{
    "vocab_size": 50368, "d_model": 2048, "n_layers": 24, "n_heads": 16, "max_seq_len": 2048, "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": true
}"#;

const BLOOM_LAYOUT: &str = "
    prefix    transformer.
    embed     word_embeddings
    ln_embed  word_embeddings_layernorm +bias
    ln_final  ln_f +bias
    unembed   lm_head
    each      h.{l}.
    ln1       input_layernorm +bias
    qkv       self_attention.query_key_value by_head +bias
    o         self_attention.dense +bias
    ln2       post_attention_layernorm +bias
    mlp_in    mlp.dense_h_to_4h +bias
    mlp_out   mlp.dense_4h_to_h +bias
";

const MPT_LAYOUT: &str = "
    prefix    transformer.
    embed     wte
    ln_final  norm_f
    unembed   lm_head
    each      blocks.{l}.
    ln1       norm_1
    qkv       attn.Wqkv
    o         attn.out_proj
    ln2       norm_2
    mlp_in    ffn.up_proj
    mlp_out   ffn.down_proj
";

#[derive(Deserialize)]
struct Bloom {
    vocab_size: usize,
    hidden_size: usize,
    n_layer: usize,
    n_head: usize,
    layer_norm_epsilon: f64,
    /// The trained length; nothing ends there.
    seq_length: usize,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
struct Mpt {
    vocab_size: usize,
    d_model: usize,
    n_layers: usize,
    n_heads: usize,
    max_seq_len: usize,
    layer_norm_epsilon: f64,
    #[serde(default)]
    attn_config: MptAttention,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(default)]
struct MptAttention {
    alibi: bool,
    alibi_bias_max: f32,
    clip_qkv: Option<f32>,
    prefix_lm: bool,
    qk_ln: bool,
    softmax_scale: Option<f32>,
}

/// As transformers' class has it.
impl Default for MptAttention {
    fn default() -> Self {
        MptAttention {
            alibi: true,
            alibi_bias_max: MAX_BIAS,
            clip_qkv: None,
            prefix_lm: false,
            qk_ln: false,
            softmax_scale: None,
        }
    }
}

fn describe_bloom(keys: &mut Keys) -> Result<Description> {
    let config: Bloom = keys.read()?;
    keys.refuse_unhandled(&config.rest, BLOOM_AT_DEFAULT, BLOOM_CHANGES)?;
    let sizes = Sizes {
        hidden_size: config.hidden_size,
        intermediate_size: config.hidden_size.saturating_mul(4),
        num_hidden_layers: config.n_layer,
        num_attention_heads: config.n_head,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.seq_length,
    };
    let spec = sizes.spec("bloom", config.layer_norm_epsilon, RopeSettings::default())?;
    let position = Position::Alibi(Alibi { max_bias: MAX_BIAS });
    let mut spec = decoder::gpt(spec, position);
    spec.embed_norm = true;
    spec.tied = config.tie_word_embeddings;
    let layout = page::layout(BLOOM_LAYOUT, &spec);
    Ok(Description::new(spec, layout))
}

fn describe_mpt(keys: &mut Keys) -> Result<Description> {
    let config: Mpt = keys.read()?;
    keys.refuse_unhandled(&config.rest, MPT_AT_DEFAULT, MPT_CHANGES)?;
    let attention = &config.attn_config;
    for (key, is_refused, value, reason) in [
        (
            "attn_config.alibi",
            !attention.alibi,
            "false".to_string(),
            "transformers adds ALiBi in this family whatever it says",
        ),
        (
            "attn_config.alibi_bias_max",
            attention.alibi_bias_max != MAX_BIAS,
            attention.alibi_bias_max.to_string(),
            "transformers does not read it, and takes 8",
        ),
        (
            "attn_config.prefix_lm",
            attention.prefix_lm,
            "true".to_string(),
            "transformers does not read it",
        ),
        (
            "attn_config.qk_ln",
            attention.qk_ln,
            "true".to_string(),
            "transformers does not read it",
        ),
    ] {
        if is_refused {
            keys.refuse(key, &value, reason)?;
        }
    }
    let sizes = Sizes {
        hidden_size: config.d_model,
        intermediate_size: config.d_model.saturating_mul(4),
        num_hidden_layers: config.n_layers,
        num_attention_heads: config.n_heads,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_seq_len,
    };
    let spec = sizes.spec("mpt", config.layer_norm_epsilon, RopeSettings::default())?;
    let position = Position::Alibi(Alibi { max_bias: MAX_BIAS });
    let mut spec = decoder::gpt(spec, position);
    spec.activation = Activation::Gelu;
    // Zero is as good as none here.
    spec.qkv_clip = attention.clip_qkv.filter(|most| *most != 0.0);
    if let Some(scale) = attention.softmax_scale {
        spec.attn_scale.fill(scale);
    }
    spec.tied = config.tie_word_embeddings;
    let layout = page::layout(MPT_LAYOUT, &spec);
    Ok(Description::new(spec, layout))
}
