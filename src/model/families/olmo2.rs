//! OLMo 2: norms stand only on each branch's output, and queries and keys are normed over all heads at once.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Biases, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::RopeConfig;
use super::{Description, Family, all_rotates};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::{ModelSpec, NormPlacement, QkNorm};

pub const FAMILY: Family = Family {
    name: "olmo2",
    model_types: &["olmo2"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("olmo2", describe_gguf)),
};

const DEFAULTS: &str = r#"{
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": false,
    "tie_word_embeddings": false
}"#;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, &[], &[])?;
    let rope = config
        .rope
        .settings(keys, config.sizes.max_position_embeddings)?;
    all_rotates(keys, &rope)?;
    let mut spec = of_olmo2(config.sizes.spec("olmo2", config.rms_norm_eps, rope)?);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let biases = Biases {
        qkv: config.attention_bias,
        o: config.attention_bias,
        mlp: false,
    };
    let layout = decoder::layout(&spec, biases);
    Ok(Description::new(spec, layout))
}

fn of_olmo2(spec: ModelSpec) -> ModelSpec {
    ModelSpec {
        norm_placement: NormPlacement::Post,
        qk_norm: QkNorm::FullWidth,
        ..spec
    }
}

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = of_olmo2(Metadata::new(gguf, keys, "olmo2", &[])?.spec("olmo2")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
