//! Phi-3, 3.5 and 4 (the dense ones): a Llama with fused products, a sliding window, and rotary factors for long prompts.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Biases, Sizes};
use super::rope::RopeConfig;
use super::{Description, Family};
use crate::error::Result;
use crate::model::layout::{Piece, Slot};

/// llama.cpp chooses the rotary factors by the context it was started with, which a file does not say; so no GGUF.
pub const FAMILY: Family = Family {
    name: "phi3",
    model_types: &["phi3"],
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

/// Where the code of the model was once fetched from; these keys name it.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("attention_bias", "false"),
    ("full_attn_mod", "1"),
    ("interpolate_factor", "1"),
    ("lm_head_bias", "false"),
    ("mlp_bias", "false"),
];

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("phi3", &config.rest, AT_DEFAULT)?;
    let rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    let mut spec = config.sizes.spec("phi3", config.rms_norm_eps, rope)?;
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    spec.windows = vec![config.sliding_window; spec.n_layers];
    let linear = Piece::linear;
    let qkv = (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
    // Both fused products lie in the canonical order: queries, keys, values; gate, then the linear branch.
    let layout = decoder::layout(&spec, Biases::default())
        .with(
            Slot::Qkv,
            vec![linear("model.layers.{l}.self_attn.qkv_proj.weight", qkv)],
        )
        .with(
            Slot::MlpIn,
            vec![linear(
                "model.layers.{l}.mlp.gate_up_proj.weight",
                2 * spec.d_mlp,
            )],
        );
    Ok(Description { spec, layout })
}
