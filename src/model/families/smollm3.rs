//! SmolLM3: a Llama in which every fourth layer has no positions.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::gguf::Gguf;

pub const FAMILY: Family = Family {
    name: "smollm3",
    model_types: &["smollm3"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("smollm3", describe_gguf)),
    examples: &["HuggingFaceTB/SmolLM3-3B", "HuggingFaceTB/SmolLM3-3B-Base"],
};

/// The rotary base of a file that says none.
const THETA: f64 = 2_000_000.0;

const DEFAULTS: &str = r#"{
    "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
    "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": false, "mlp_bias": false, "tie_word_embeddings": true, "use_sliding_window": false, "sliding_window": null,
    "no_rope_layer_interval": 4
}"#;

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    mlp_bias: bool,
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    /// A number per layer: 0 is without positions.
    no_rope_layers: Option<Vec<i64>>,
    no_rope_layer_interval: usize,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let rope = config.rope_of_whole_heads(keys, THETA)?;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let spec = config.spec_with(rope, "smollm3", own.rms_norm_eps, activation)?;
    let rotates: Vec<bool> = match &own.no_rope_layers {
        Some(list) if list.len() != spec.n_layers => {
            return Err(Error::BadConfig {
                key: "no_rope_layers".to_string(),
                reason: format!("{} numbers for {} layers", list.len(), spec.n_layers),
            });
        }
        Some(list) => list.iter().map(|number| *number != 0).collect(),
        None => {
            let interval = own.no_rope_layer_interval.max(1);
            let layers = 1..=spec.n_layers;
            layers.map(|n| !n.is_multiple_of(interval)).collect()
        }
    };
    let windows = decoder::windows(
        own.layer_types.as_deref(),
        spec.n_layers,
        own.sliding_window.filter(|_| own.use_sliding_window),
        |layer| !rotates[layer],
    )?;
    let mut spec = decoder::rotating(spec, |layer| rotates[layer]);
    spec.windows = windows;
    let biases = Biases {
        qkv: own.attention_bias,
        o: own.attention_bias,
        mlp: own.mlp_bias,
    };
    let layout = decoder::layout(&spec, "", biases);
    Ok(Description::new(spec, layout))
}

/// Which layers have no positions has no key: every fourth.
fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = Metadata::new(gguf, keys, "smollm3", &[])?.spec("smollm3")?;
    let spec = decoder::rotating(spec, |layer| !(layer + 1).is_multiple_of(4));
    Ok(llama_cpp::describe(spec, gguf, Heads::Interleaved))
}
