//! OLMo 2: norms stand only on each branch's output, and queries and keys are normed over all heads at once.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
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
    from_config: describe,
    gguf: Some(("olmo2", describe_gguf)),
};

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    rms_norm_eps: f64,
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("olmo2", &config.rest, &[])?;
    let rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    all_rotates("olmo2", &rope)?;
    let mut spec = of_olmo2(config.sizes.spec("olmo2", config.rms_norm_eps, rope)?);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    let biases = Biases {
        qkv: config.attention_bias,
        o: config.attention_bias,
        mlp: false,
    };
    let layout = decoder::layout(&spec, biases);
    Ok(Description { spec, layout })
}

fn of_olmo2(spec: ModelSpec) -> ModelSpec {
    ModelSpec {
        norm_placement: NormPlacement::Post,
        qk_norm: QkNorm::FullWidth,
        ..spec
    }
}

fn describe_gguf(gguf: &Gguf) -> Result<Description> {
    let spec = of_olmo2(Metadata::new(gguf, "olmo2", &[])?.spec("olmo2")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
