//! Mistral 7B and its kind: a Llama in which every layer may see only a sliding window.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Biases, Sizes};
use super::rope::RopeConfig;
use super::{Description, Family, all_rotates};
use crate::error::Result;

/// As GGUF these models are of architecture `llama`; llama.cpp writes no window for them.
pub const FAMILY: Family = Family {
    name: "mistral",
    model_types: &["mistral"],
    from_config: describe,
    gguf: None,
};

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    rms_norm_eps: f64,
    hidden_act: String,
    sliding_window: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("mistral", &config.rest, &[])?;
    let rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    all_rotates("mistral", &rope)?;
    let mut spec = config.sizes.spec("mistral", config.rms_norm_eps, rope)?;
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    spec.windows = vec![config.sliding_window; spec.n_layers];
    let layout = decoder::layout(&spec, Biases::default());
    Ok(Description { spec, layout })
}
