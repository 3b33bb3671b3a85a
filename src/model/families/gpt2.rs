//! GPT-2 (also DistilGPT-2 and its kind): LayerNorms before each branch, learned positions, fused `c_attn`, a plain tanh-GELU MLP.
//! Its `Conv1D` weights are stored `[in, out]`, which is the canonical layout already.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::gguf::Gguf;
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::{ModelSpec, Position};

pub const FAMILY: Family = Family {
    name: "gpt2",
    model_types: &["gpt2"],
    from_config: describe,
    gguf: Some(("gpt2", describe_gguf)),
};

/// Computing attention in another order or in f32 is the same function: scores and softmax are f32 here anyway.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("reorder_and_upcast_attn", "false"),
    ("reorder_and_upcast_attn", "true"),
];

#[derive(Deserialize)]
struct Config {
    n_embd: usize,
    n_head: usize,
    n_layer: usize,
    n_positions: usize,
    /// An old second name of `n_positions`.
    n_ctx: Option<usize>,
    n_inner: Option<usize>,
    vocab_size: usize,
    #[serde(default = "default_act")]
    activation_function: String,
    #[serde(default = "default_eps")]
    layer_norm_epsilon: f64,
    #[serde(default = "yes")]
    scale_attn_weights: bool,
    #[serde(default)]
    scale_attn_by_inverse_layer_idx: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

// The defaults of transformers' `GPT2Config`, which a config.json may leave out.
fn default_act() -> String {
    "gelu_new".to_string()
}
fn default_eps() -> f64 {
    1e-5
}
fn yes() -> bool {
    true
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("gpt2", &config.rest, AT_DEFAULT)?;
    if let Some(n_ctx) = config.n_ctx.filter(|n_ctx| *n_ctx != config.n_positions) {
        return Err(Error::BadConfig {
            key: "n_ctx".to_string(),
            reason: format!("{n_ctx}, but n_positions is {}", config.n_positions),
        });
    }
    let sizes = Sizes {
        hidden_size: config.n_embd,
        intermediate_size: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
        num_hidden_layers: config.n_layer,
        num_attention_heads: config.n_head,
        num_key_value_heads: None,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.n_positions,
    };
    let spec = sizes.spec("gpt2", config.layer_norm_epsilon, RopeSettings::default())?;
    let mut spec = decoder::gpt(spec, Position::Learned);
    spec.activation = activation("activation_function", &config.activation_function)?;
    spec.tied = config.tie_word_embeddings;
    for (layer, scale) in spec.attn_scale.iter_mut().enumerate() {
        if !config.scale_attn_weights {
            *scale = 1.0;
        }
        if config.scale_attn_by_inverse_layer_idx {
            *scale /= (layer + 1) as f32;
        }
    }
    let layout = layout(&spec);
    Ok(Description { spec, layout })
}

/// Where transformers keeps the weights; whole-model checkpoints put `transformer.` before each name.
fn layout(spec: &ModelSpec) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let as_is = Piece::as_is;
    let mut model = vec![
        (Slot::Embed, vec![as_is("wte.weight", d)]),
        (Slot::Positions, vec![as_is("wpe.weight", d)]),
        (Slot::LnFinal, vec![as_is("ln_f.weight", d)]),
        (Slot::LnFinalBias, vec![as_is("ln_f.bias", d)]),
    ];
    // The causal mask and the value that it writes were once saved with the weights.
    let mut harmless = vec!["*.attn.bias", "*.attn.masked_bias"];
    if spec.tied {
        harmless.push("lm_head.weight");
    } else {
        model.push((Slot::Unembed, vec![as_is("lm_head.weight", d)]));
    }
    let blocks = vec![
        (Slot::Ln1, vec![as_is("h.{l}.ln_1.weight", d)]),
        (Slot::Ln1Bias, vec![as_is("h.{l}.ln_1.bias", d)]),
        (Slot::Qkv, vec![as_is("h.{l}.attn.c_attn.weight", 3 * d)]),
        (Slot::QkvBias, vec![as_is("h.{l}.attn.c_attn.bias", 3 * d)]),
        (Slot::O, vec![as_is("h.{l}.attn.c_proj.weight", d)]),
        (Slot::OBias, vec![as_is("h.{l}.attn.c_proj.bias", d)]),
        (Slot::Ln2, vec![as_is("h.{l}.ln_2.weight", d)]),
        (Slot::Ln2Bias, vec![as_is("h.{l}.ln_2.bias", d)]),
        (Slot::MlpIn, vec![as_is("h.{l}.mlp.c_fc.weight", mlp)]),
        (Slot::MlpInBias, vec![as_is("h.{l}.mlp.c_fc.bias", mlp)]),
        (Slot::MlpOut, vec![as_is("h.{l}.mlp.c_proj.weight", d)]),
        (Slot::MlpOutBias, vec![as_is("h.{l}.mlp.c_proj.bias", d)]),
    ];
    Layout {
        model,
        blocks,
        optional_prefix: "transformer.",
        harmless,
    }
}

/// llama.cpp turns Conv1D into `[out, in]` like every other family's.
fn describe_gguf(gguf: &Gguf) -> Result<Description> {
    let spec = Metadata::new(gguf, "gpt2", &[])?.spec("gpt2")?;
    let spec = decoder::gpt(spec, Position::Learned);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use crate::model::families::from_config;

    const CONFIG: &str = include_str!("../../../tests/fixtures/gpt2-tiny-random/config.json");

    fn with(key: &str, value: &str) -> Result<Description> {
        let mut config: Map<String, Value> = serde_json::from_str(CONFIG).unwrap();
        config.insert(key.to_string(), serde_json::from_str(value).unwrap());
        from_config(&Value::Object(config).to_string())
    }

    #[test]
    fn both_config_forms_give_the_same_model() {
        let old = from_config(include_str!(
            "../../../tests/fixtures/gpt2-tiny-random/config.legacy.json"
        ));
        let new = from_config(CONFIG).unwrap();
        assert_eq!(new, old.unwrap());
        assert_eq!(
            (new.spec.d_mlp, new.spec.d_head, new.spec.n_ctx),
            (256, 16, 128)
        );
        assert!(new.spec.tied);
    }

    #[test]
    fn attention_scales_follow_the_config() {
        let scales = |key, value| with(key, value).unwrap().spec.attn_scale;
        assert_eq!(scales("scale_attn_weights", "true"), [0.25, 0.25, 0.25]);
        assert_eq!(scales("scale_attn_weights", "false"), [1.0, 1.0, 1.0]);
        assert_eq!(
            scales("scale_attn_by_inverse_layer_idx", "true"),
            [0.25, 0.125, 0.25 / 3.0]
        );
    }

    #[test]
    fn keys_that_change_the_function_are_refused_by_name() {
        for (key, value) in [
            ("add_cross_attention", "true"),
            ("is_encoder_decoder", "true"),
        ] {
            match with(key, value).unwrap_err() {
                Error::UnhandledConfig { key: named, .. } => assert_eq!(named, key),
                other => panic!("{key}: {other}"),
            }
        }
        assert!(matches!(
            with("n_ctx", "64").unwrap_err(),
            Error::BadConfig { .. }
        ));
        assert!(matches!(
            with("n_head", "5").unwrap_err(),
            Error::BadConfig { .. }
        ));
        assert!(with("reorder_and_upcast_attn", "true").is_ok());
    }
}
