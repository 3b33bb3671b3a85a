//! Phi-3, 3.5 and 4 (the dense ones): a Llama with fused products, a sliding window, and rotary factors for long prompts.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::spec::RopeScaling;

/// llama.cpp chooses the rotary factors by the context it was started with, which a file does not say; so no GGUF.
pub const FAMILY: Family = Family {
    name: "phi3",
    model_types: &["phi3"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
    examples: &[
        "microsoft/Phi-3-mini-4k-instruct",
        "microsoft/Phi-4-mini-instruct",
    ],
};

/// Both fused products lie in the canonical order: queries, keys, values; gate, then the linear branch.
const DIFFERS: &str = "
    each      layers.{l}.
    qkv       self_attn.qkv_proj
    mlp_in    mlp.gate_up_proj
";

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    sliding_window: Option<usize>,
}

/// What the published files say to code of their own, where it says nothing.
const AT_DEFAULT: &[(&str, &str)] = &[("full_attn_mod", "1"), ("interpolate_factor", "1")];

const DEFAULTS: &str = r#"{
    "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "sliding_window": null, "tie_word_embeddings": false
}"#;

fn describe(keys: &mut Keys) -> Result<Description> {
    let mut config = LlamaLike::<Own>::read(keys, AT_DEFAULT, &[])?;
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
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = config.spec_with(rope, "phi3", own.rms_norm_eps, activation)?;
    spec.windows = vec![own.sliding_window; spec.n_layers];
    let layout = decoder::layout(&spec, DIFFERS, Biases::default());
    Ok(Description::new(spec, layout))
}
