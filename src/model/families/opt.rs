//! OPT: a GPT-2 with ReLU whose learned positions begin at the third row of their table.
//! The 350M model puts its norms after the sum and projects its embeddings; both are refused by name.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::Result;
use crate::model::layout::Slot;
use crate::model::page;
use crate::model::spec::Position;

pub const FAMILY: Family = Family {
    name: "opt",
    model_types: &["opt"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
    examples: &["facebook/opt-125m", "facebook/galactica-125m"],
};

/// What Galactica's files say of the positions, which are always learned here.
const AT_DEFAULT: &[(&str, &str)] = &[("learned_embeddings", "true")];
const CHANGES: &[(&str, &str)] = &[
    (
        "_remove_final_layer_norm",
        "it has no norm before the unembedding",
    ),
    (
        "do_layer_norm_before",
        "its norms stand on the stream, after each sum",
    ),
    ("layer_norm_elementwise_affine", "its norms have no weights"),
];

const DEFAULTS: &str = r#"{
    "vocab_size": 50272, "hidden_size": 768, "num_hidden_layers": 12, "ffn_dim": 3072, "max_position_embeddings": 2048,
    "num_attention_heads": 12, "activation_function": "relu", "enable_bias": true, "tie_word_embeddings": true,
    "do_layer_norm_before": true, "_remove_final_layer_norm": false, "layer_norm_elementwise_affine": true
}"#;

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    ffn_dim: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    word_embed_proj_dim: Option<usize>,
    activation_function: String,
    enable_bias: bool,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, CHANGES)?;
    if let Some(width) = config
        .word_embed_proj_dim
        .filter(|width| *width != config.hidden_size)
    {
        keys.refuse(
            "word_embed_proj_dim",
            &width.to_string(),
            "its embeddings are of another width and are projected to the stream's",
        )?;
    }
    let sizes = Sizes {
        hidden_size: config.hidden_size,
        intermediate_size: config.ffn_dim,
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
    };
    // torch's own epsilon: the config has none.
    let spec = sizes.spec("opt", 1e-5, RopeSettings::default())?;
    let mut spec = decoder::gpt(spec, Position::Learned);
    spec.activation = activation("activation_function", &config.activation_function)?;
    spec.tied = config.tie_word_embeddings;
    let layout = page::layout(LAYOUT, &spec);
    let layout = if config.enable_bias {
        layout
    } else {
        layout.without(&[
            Slot::QkvBias,
            Slot::OBias,
            Slot::MlpInBias,
            Slot::MlpOutBias,
        ])
    };
    Ok(Description::new(spec, layout))
}

/// The first two rows of the position table belong to padding.
const LAYOUT: &str = "
    prefix    model.
    embed     decoder.embed_tokens
    positions decoder.embed_positions skip=2
    ln_final  decoder.final_layer_norm +bias
    unembed   lm_head
    each      decoder.layers.{l}.
    ln1       self_attn_layer_norm +bias
    qkv       self_attn.q_proj self_attn.k_proj self_attn.v_proj +bias
    o         self_attn.out_proj +bias
    ln2       final_layer_norm +bias
    mlp_in    fc1 +bias
    mlp_out   fc2 +bias
";
