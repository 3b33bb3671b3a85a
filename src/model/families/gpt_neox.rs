//! GPT-NeoX, and Pythia above all: parallel branches (or sequential ones) with a LayerNorm each, a quarter of each head rotates,
//! and queries, keys and values are fused head by head.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::RopeConfig;
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::layout::{Layout, Piece, Slot, Take};
use crate::model::spec::{Activation, Block, ModelSpec};

pub const FAMILY: Family = Family {
    name: "gpt_neox",
    model_types: &["gpt_neox"],
    from_config: describe,
    gguf: Some(("gptneox", describe_gguf)),
};

/// The share of each head that rotates, where a file leaves it out.
const PARTIAL: f64 = 0.25;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    layer_norm_eps: f64,
    hidden_act: String,
    #[serde(default = "yes")]
    use_parallel_residual: bool,
    #[serde(default = "yes")]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn yes() -> bool {
    true
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("gpt_neox", &config.rest, &[])?;
    let mut rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    if !config.rope.says_how_much_rotates() {
        rope.partial = PARTIAL;
    }
    let spec = config.sizes.spec("gpt_neox", config.layer_norm_eps, rope)?;
    let mut spec = of_neox(spec, config.use_parallel_residual);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let layout = layout(&spec, config.attention_bias);
    Ok(Description { spec, layout })
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

/// Whole-model checkpoints put `gpt_neox.` before each name but the unembedding's.
fn layout(spec: &ModelSpec, attention_bias: bool) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (Slot::Embed, vec![as_is("embed_in.weight", d)]),
        (Slot::LnFinal, vec![as_is("final_layer_norm.weight", d)]),
        (Slot::LnFinalBias, vec![as_is("final_layer_norm.bias", d)]),
    ];
    // The causal mask and the rotary frequencies were once saved with the weights.
    let mut harmless = vec![
        "*.attention.bias",
        "*.attention.masked_bias",
        "*.rotary_emb.inv_freq",
    ];
    if spec.tied {
        harmless.push("embed_out.weight");
    } else {
        model.push((Slot::Unembed, vec![as_is("embed_out.weight", d)]));
    }
    // Stored head by head: queries, keys and values of the first head, of the second, ...
    let fused = |piece: fn(&'static str, usize) -> Piece, name| {
        let part = |part| {
            piece(name, d).take(Take::WithinHeads {
                d_head: spec.d_head,
                part,
                parts: 3,
            })
        };
        vec![part(0), part(1), part(2)]
    };
    let mut blocks = vec![
        (
            Slot::Ln1,
            vec![as_is("layers.{l}.input_layernorm.weight", d)],
        ),
        (
            Slot::Ln1Bias,
            vec![as_is("layers.{l}.input_layernorm.bias", d)],
        ),
        (
            Slot::Qkv,
            fused(linear, "layers.{l}.attention.query_key_value.weight"),
        ),
        (
            Slot::O,
            vec![linear("layers.{l}.attention.dense.weight", d)],
        ),
        (
            Slot::Ln2,
            vec![as_is("layers.{l}.post_attention_layernorm.weight", d)],
        ),
        (
            Slot::Ln2Bias,
            vec![as_is("layers.{l}.post_attention_layernorm.bias", d)],
        ),
        (
            Slot::MlpIn,
            vec![linear("layers.{l}.mlp.dense_h_to_4h.weight", mlp)],
        ),
        (
            Slot::MlpInBias,
            vec![as_is("layers.{l}.mlp.dense_h_to_4h.bias", mlp)],
        ),
        (
            Slot::MlpOut,
            vec![linear("layers.{l}.mlp.dense_4h_to_h.weight", d)],
        ),
        (
            Slot::MlpOutBias,
            vec![as_is("layers.{l}.mlp.dense_4h_to_h.bias", d)],
        ),
    ];
    if attention_bias {
        blocks.push((
            Slot::QkvBias,
            fused(as_is, "layers.{l}.attention.query_key_value.bias"),
        ));
        blocks.push((
            Slot::OBias,
            vec![as_is("layers.{l}.attention.dense.bias", d)],
        ));
    }
    Layout {
        model,
        blocks,
        optional_prefix: "gpt_neox.",
        harmless,
    }
}

/// llama.cpp takes the fused heads apart when it converts.
fn describe_gguf(gguf: &Gguf) -> Result<Description> {
    let metadata = Metadata::new(gguf, "gptneox", &["use_parallel_residual"])?;
    let is_parallel = gguf
        .maybe_bool(&metadata.key("use_parallel_residual"))?
        .unwrap_or(true);
    let spec = of_neox(metadata.spec("gpt_neox")?, is_parallel);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
