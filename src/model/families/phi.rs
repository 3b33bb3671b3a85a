//! Phi-1, 1.5 and 2: attention and MLP read the same stream through one shared LayerNorm, part of each head rotates, biases everywhere.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
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
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("phi2", describe_gguf)),
};

const CHANGES: &[(&str, &str)] = &[("qk_layernorm", "each query and key has a norm")];

const DEFAULTS: &str = r#"{
    "vocab_size": 51200, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "qk_layernorm": false,
    "tie_word_embeddings": false
}"#;
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
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, &[], CHANGES)?;
    let mut rope = config
        .rope
        .settings(keys, config.sizes.max_position_embeddings)?;
    if !config.rope.says_how_much_rotates() {
        rope.partial = PARTIAL;
    }
    let mut spec = of_phi(config.sizes.spec("phi", config.layer_norm_eps, rope)?);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let layout = layout(&spec);
    Ok(Description::new(spec, layout))
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
        (Slot::Embed, vec![as_is("embed_tokens.weight", d)]),
        (Slot::LnFinal, vec![as_is("final_layernorm.weight", d)]),
        (Slot::LnFinalBias, vec![as_is("final_layernorm.bias", d)]),
        (Slot::UnembedBias, vec![as_is("lm_head.bias", spec.d_vocab)]),
    ];
    let harmless = vec!["*.rotary_emb.inv_freq"];
    if !spec.tied {
        model.push((Slot::Unembed, vec![as_is("lm_head.weight", d)]));
    }
    let blocks = vec![
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
            vec![
                linear("layers.{l}.self_attn.q_proj.weight", q),
                linear("layers.{l}.self_attn.k_proj.weight", kv),
                linear("layers.{l}.self_attn.v_proj.weight", kv),
            ],
        ),
        (
            Slot::QkvBias,
            vec![
                as_is("layers.{l}.self_attn.q_proj.bias", q),
                as_is("layers.{l}.self_attn.k_proj.bias", kv),
                as_is("layers.{l}.self_attn.v_proj.bias", kv),
            ],
        ),
        (
            Slot::O,
            vec![linear("layers.{l}.self_attn.dense.weight", d)],
        ),
        (
            Slot::OBias,
            vec![as_is("layers.{l}.self_attn.dense.bias", d)],
        ),
        (Slot::MlpIn, vec![linear("layers.{l}.mlp.fc1.weight", mlp)]),
        (Slot::MlpInBias, vec![as_is("layers.{l}.mlp.fc1.bias", mlp)]),
        (Slot::MlpOut, vec![linear("layers.{l}.mlp.fc2.weight", d)]),
        (Slot::MlpOutBias, vec![as_is("layers.{l}.mlp.fc2.bias", d)]),
    ];
    Layout {
        model,
        blocks,
        optional_prefix: "model.",
        harmless,
        tied_head: Some("lm_head.weight"),
        ..Layout::default()
    }
}

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = of_phi(Metadata::new(gguf, keys, "phi2", &[])?.spec("phi")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
