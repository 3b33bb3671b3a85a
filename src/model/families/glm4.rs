//! GLM-4 of April 2025: norms before and after each branch, half of each head rotates in pairs side by side, biases on q, k and v.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::rope::DEFAULT_THETA;
use super::{Description, Family};
use crate::error::Result;
use crate::model::spec::{NormPlacement, Position, RotaryStyle};

pub const FAMILY: Family = Family {
    name: "glm4",
    model_types: &["glm4"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
    examples: &["zai-org/GLM-4-9B-0414"],
};

/// The share of each head that rotates, where a file leaves it out.
const PARTIAL: f64 = 0.5;

const DEFAULTS: &str = r#"{
    "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
    "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu", "max_position_embeddings": 131072,
    "rms_norm_eps": 1.5625e-7, "tie_word_embeddings": false, "attention_bias": true
}"#;

const DIFFERS: &str = "
    each      layers.{l}.
    ln1_post  post_self_attn_layernorm
    mlp_in    mlp.gate_up_proj
    ln2_post  post_mlp_layernorm
";

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let n_ctx = config.sizes.max_position_embeddings;
    let rope = config
        .rope
        .settings_or(keys, n_ctx, DEFAULT_THETA, PARTIAL)?;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = config.spec_with(rope, "glm4", own.rms_norm_eps, activation)?;
    spec.norm_placement = NormPlacement::Sandwich;
    if let Position::Rotary(rotary) = &mut spec.position {
        rotary.style = RotaryStyle::Interleaved;
    }
    let biases = Biases {
        qkv: own.attention_bias,
        ..Biases::default()
    };
    let layout = decoder::layout(&spec, DIFFERS, biases);
    Ok(Description::new(spec, layout))
}
