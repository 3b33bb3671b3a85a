//! Mistral 7B and its kind: a Llama in which every layer may see only a sliding window.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::{Description, Family};
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
    examples: &[
        "mistralai/Mistral-7B-v0.3",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    ],
};

/// A file that says nothing of a window has one.
const DEFAULTS: &str = r#"{
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "sliding_window": 4096, "tie_word_embeddings": false
}"#;

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = config.spec("mistral", own.rms_norm_eps, activation, keys)?;
    spec.windows = vec![own.sliding_window; spec.n_layers];
    if let Some(kinds) = &own.layer_types {
        // transformers does not read it here: every layer is of the one kind that `sliding_window` makes it.
        let of_all = match own.sliding_window {
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
    let layout = decoder::layout(&spec, "", Biases::default());
    Ok(Description::new(spec, layout))
}
