//! Mistral 7B and its kind: a Llama in which every layer may see only a sliding window.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Biases, Sizes};
use super::rope::RopeConfig;
use super::{Description, Family, all_rotates};
use crate::error::Result;
use crate::text::shortened;

/// As GGUF these models are of architecture `llama`; llama.cpp writes no window for them.
pub const FAMILY: Family = Family {
    name: "mistral",
    model_types: &["mistral"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
};

/// A file that says nothing of a window has one.
const DEFAULTS: &str = r#"{
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "sliding_window": 4096, "tie_word_embeddings": false
}"#;

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    rms_norm_eps: f64,
    hidden_act: String,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
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
    let mut spec = config.sizes.spec("mistral", config.rms_norm_eps, rope)?;
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    spec.windows = vec![config.sliding_window; spec.n_layers];
    if let Some(kinds) = &config.layer_types {
        // transformers does not read it here: every layer is of the one kind that `sliding_window` makes it.
        let of_all = match config.sliding_window {
            Some(_) => "sliding_attention",
            None => "full_attention",
        };
        if kinds.iter().any(|kind| kind != of_all) {
            keys.refuse(
                "layer_types",
                &shortened(&kinds.join(", ")),
                "in this family all layers have the window, or none",
            )?;
        }
    }
    let layout = decoder::layout(&spec, Biases::default());
    Ok(Description::new(spec, layout))
}
