//! Phi-1, 1.5 and 2: attention and MLP read the same stream through one shared LayerNorm, part of each head rotates, biases everywhere.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::RopeConfig;
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::{Block, ModelSpec};

pub const FAMILY: Family = Family {
    name: "phi",
    model_types: &["phi"],
    from_config: describe,
    gguf: Some(("phi2", describe_gguf)),
};

const AT_DEFAULT: &[(&str, &str)] = &[("qk_layernorm", "false")];
/// The share of each head that rotates, where a file leaves it out.
const PARTIAL: f64 = 0.5;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    layer_norm_eps: f64,
    hidden_act: String,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("phi", &config.rest, AT_DEFAULT)?;
    let mut rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    if !config.rope.says_how_much_rotates() {
        rope.partial = PARTIAL;
    }
    let mut spec = of_phi(config.sizes.spec("phi", config.layer_norm_eps, rope)?);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let layout = layout(&spec);
    Ok(Description { spec, layout })
}

fn of_phi(spec: ModelSpec) -> ModelSpec {
    let position = spec.position.clone();
    ModelSpec {
        block: Block::Parallel { shared_norm: true },
        ..decoder::gpt(spec, position)
    }
}

fn layout(spec: &ModelSpec) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let (q, kv) = (spec.n_heads * spec.d_head, spec.n_kv_heads * spec.d_head);
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let mut model = vec![
        (Slot::Embed, vec![as_is("model.embed_tokens.weight", d)]),
        (
            Slot::LnFinal,
            vec![as_is("model.final_layernorm.weight", d)],
        ),
        (
            Slot::LnFinalBias,
            vec![as_is("model.final_layernorm.bias", d)],
        ),
        (Slot::UnembedBias, vec![as_is("lm_head.bias", spec.d_vocab)]),
    ];
    let mut harmless = vec!["*.rotary_emb.inv_freq"];
    if spec.tied {
        harmless.push("lm_head.weight");
    } else {
        model.push((Slot::Unembed, vec![as_is("lm_head.weight", d)]));
    }
    let blocks = vec![
        (
            Slot::Ln1,
            vec![as_is("model.layers.{l}.input_layernorm.weight", d)],
        ),
        (
            Slot::Ln1Bias,
            vec![as_is("model.layers.{l}.input_layernorm.bias", d)],
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
            Slot::QkvBias,
            vec![
                as_is("model.layers.{l}.self_attn.q_proj.bias", q),
                as_is("model.layers.{l}.self_attn.k_proj.bias", kv),
                as_is("model.layers.{l}.self_attn.v_proj.bias", kv),
            ],
        ),
        (
            Slot::O,
            vec![linear("model.layers.{l}.self_attn.dense.weight", d)],
        ),
        (
            Slot::OBias,
            vec![as_is("model.layers.{l}.self_attn.dense.bias", d)],
        ),
        (
            Slot::MlpIn,
            vec![linear("model.layers.{l}.mlp.fc1.weight", mlp)],
        ),
        (
            Slot::MlpInBias,
            vec![as_is("model.layers.{l}.mlp.fc1.bias", mlp)],
        ),
        (
            Slot::MlpOut,
            vec![linear("model.layers.{l}.mlp.fc2.weight", d)],
        ),
        (
            Slot::MlpOutBias,
            vec![as_is("model.layers.{l}.mlp.fc2.bias", d)],
        ),
    ];
    Layout {
        model,
        blocks,
        optional_prefix: "",
        harmless,
    }
}

fn describe_gguf(gguf: &Gguf) -> Result<Description> {
    let spec = of_phi(Metadata::new(gguf, "phi2", &[])?.spec("phi")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
