//! Phi-3, 3.5 and 4 (the dense ones): a Llama with fused products, a sliding window, and rotary factors for long prompts.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Biases, Sizes};
use super::rope::RopeConfig;
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::layout::{Piece, Slot};
use crate::model::spec::RopeScaling;

/// llama.cpp chooses the rotary factors by the context it was started with, which a file does not say; so no GGUF.
pub const FAMILY: Family = Family {
    name: "phi3",
    model_types: &["phi3"],
    defaults: DEFAULTS,
    synonyms: &[],
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
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// What the published files say to code of their own, where it says nothing.
const AT_DEFAULT: &[(&str, &str)] = &[("full_attn_mod", "1"), ("interpolate_factor", "1")];

const DEFAULTS: &str = r#"{
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "sliding_window": null, "tie_word_embeddings": false
}"#;

fn describe(keys: &mut Keys) -> Result<Description> {
    let mut config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, &[])?;
    // What the first files called `su` and `yarn` is longrope, and nothing else is read.
    let rope = &mut config.rope;
    for written in [&mut rope.rope_parameters, &mut rope.rope_scaling]
        .into_iter()
        .flatten()
    {
        for kind in ["rope_type", "type"] {
            if written.get(kind).is_some_and(|kind| kind == "yarn") {
                written.insert(kind.to_string(), "longrope".into());
            }
        }
    }
    let rope = config
        .rope
        .settings(keys, config.sizes.max_position_embeddings)?;
    if !matches!(
        rope.base.scaling,
        RopeScaling::None | RopeScaling::LongRope { .. }
    ) {
        return Err(Error::BadConfig {
            key: "rope_scaling".to_string(),
            reason: "in this family it can only be `longrope`".to_string(),
        });
    }
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
            vec![linear("layers.{l}.self_attn.qkv_proj.weight", qkv)],
        )
        .with(
            Slot::MlpIn,
            vec![linear("layers.{l}.mlp.gate_up_proj.weight", 2 * spec.d_mlp)],
        );
    Ok(Description::new(spec, layout))
}
