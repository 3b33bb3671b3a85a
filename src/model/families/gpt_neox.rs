//! GPT-NeoX, and Pythia above all: parallel branches (or sequential ones) with a LayerNorm each, a quarter of each head rotates,
//! and queries, keys and values are fused head by head.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::{DEFAULT_THETA, RopeConfig};
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::layout::Slot;
use crate::model::page;
use crate::model::spec::{Activation, Block, ModelSpec};

pub const FAMILY: Family = Family {
    name: "gpt_neox",
    model_types: &["gpt_neox"],
    defaults: DEFAULTS,
    synonyms: NAMES,
    from_config: describe,
    gguf: Some(("gptneox", describe_gguf)),
    examples: &["EleutherAI/pythia-70m", "EleutherAI/gpt-neox-20b"],
};

/// The share of each head that rotates, where a file leaves it out.
const PARTIAL: f64 = 0.25;

/// The older names, which most files have; those that transformers 4 saved have both.
const NAMES: &[(&str, &str)] = &[
    ("rotary_emb_base", "rope_theta"),
    ("rotary_pct", "partial_rotary_factor"),
];

const DEFAULTS: &str = r#"{
    "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64, "intermediate_size": 24576,
    "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "hidden_act": "gelu", "use_parallel_residual": true,
    "attention_bias": true, "tie_word_embeddings": false
}"#;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    layer_norm_eps: f64,
    hidden_act: String,
    use_parallel_residual: bool,
    attention_bias: bool,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, &[], &[])?;
    for (key, old_name, assumed, value) in [
        (
            "rope_theta",
            "rotary_emb_base",
            10_000.0,
            config.rope.rope_theta,
        ),
        (
            "partial_rotary_factor",
            "rotary_pct",
            PARTIAL,
            config.rope.partial_rotary_factor,
        ),
    ] {
        let other = value.filter(|value| *value != assumed);
        if let Some(value) = other.filter(|_| keys.says_by_this_name_alone(key)) {
            let reason = format!(
                "transformers reads `{old_name}` in this family, or `rope_parameters`, and would take {assumed}"
            );
            keys.refuse(key, &value.to_string(), &reason)?;
        }
    }
    if let Some(grouped) = config.sizes.num_key_value_heads
        && grouped != config.sizes.num_attention_heads
    {
        keys.refuse(
            "num_key_value_heads",
            &grouped.to_string(),
            "in this family every head has keys and values of its own",
        )?;
    }
    let sizes = Sizes {
        num_key_value_heads: None,
        ..config.sizes
    };
    let n_ctx = sizes.max_position_embeddings;
    let rope = config
        .rope
        .settings_or(keys, n_ctx, DEFAULT_THETA, PARTIAL)?;
    let spec = sizes.spec("gpt_neox", config.layer_norm_eps, rope)?;
    let mut spec = of_neox(spec, config.use_parallel_residual);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let layout = page::layout(LAYOUT, &spec);
    let layout = if config.attention_bias {
        layout
    } else {
        layout.without(&[Slot::QkvBias, Slot::OBias])
    };
    Ok(Description::new(spec, layout))
}

fn of_neox(spec: ModelSpec, is_parallel: bool) -> ModelSpec {
    let position = spec.position.clone();
    let block = match is_parallel {
        true => Block::Parallel { shared_norm: false },
        false => Block::Sequential,
    };
    ModelSpec {
        block,
        activation: Activation::Gelu,
        ..decoder::gpt(spec, position)
    }
}

/// What transformers 5 calls the unembedding it also takes from a file. The causal mask and the rotary frequencies were once saved
/// with the weights.
const LAYOUT: &str = "
    prefix    gpt_neox.
    embed     embed_in
    ln_final  final_layer_norm +bias
    unembed   embed_out
    second    embed_out.weight lm_head.weight
    each      layers.{l}.
    ln1       input_layernorm +bias
    qkv       attention.query_key_value by_head +bias
    o         attention.dense +bias
    ln2       post_attention_layernorm +bias
    mlp_in    mlp.dense_h_to_4h +bias
    mlp_out   mlp.dense_4h_to_h +bias
    ignore    *.attention.bias *.attention.masked_bias *.rotary_emb.inv_freq
";

/// llama.cpp takes the fused heads apart when it converts.
fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let metadata = Metadata::new(gguf, keys, "gptneox", &["use_parallel_residual"])?;
    let is_parallel = gguf
        .maybe_bool(&metadata.key("use_parallel_residual"))?
        .unwrap_or(true);
    let spec = of_neox(metadata.spec("gpt_neox")?, is_parallel);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
