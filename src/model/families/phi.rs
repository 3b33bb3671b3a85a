//! Phi-1, 1.5 and 2: attention and MLP read the same stream through one shared LayerNorm, part of each head rotates, biases everywhere.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::{DEFAULT_THETA, RopeConfig};
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::page;
use crate::model::spec::{Block, ModelSpec, QkNorm};

pub const FAMILY: Family = Family {
    name: "phi",
    model_types: &["phi"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("phi2", describe_gguf)),
    examples: &["microsoft/phi-2", "microsoft/phi-1_5"],
};

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
    qk_layernorm: bool,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, &[], &[])?;
    let n_ctx = config.sizes.max_position_embeddings;
    let rope = config
        .rope
        .settings_or(keys, n_ctx, DEFAULT_THETA, PARTIAL)?;
    let mut spec = of_phi(config.sizes.spec("phi", config.layer_norm_eps, rope)?);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    if config.qk_layernorm {
        spec.qk_norm = QkNorm::PerHeadLayer;
    }
    let layout = page::layout(LAYOUT, &spec);
    Ok(Description::new(spec, layout))
}

fn of_phi(spec: ModelSpec) -> ModelSpec {
    let position = spec.position.clone();
    ModelSpec {
        block: Block::Parallel { shared_norm: true },
        ..decoder::gpt(spec, position)
    }
}

const LAYOUT: &str = "
    prefix    model.
    embed     embed_tokens
    ln_final  final_layernorm +bias
    unembed   lm_head +bias
    each      layers.{l}.
    ln1       input_layernorm +bias
    qkv       self_attn.q_proj self_attn.k_proj self_attn.v_proj +bias
    o         self_attn.dense +bias
    q_norm    self_attn.q_layernorm +bias
    k_norm    self_attn.k_layernorm +bias
    mlp_in    mlp.fc1 +bias
    mlp_out   mlp.fc2 +bias
    ignore    *.rotary_emb.inv_freq
";

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = of_phi(Metadata::new(gguf, keys, "phi2", &[])?.spec("phi")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
