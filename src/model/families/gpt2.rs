//! GPT-2 (also DistilGPT-2 and its kind): LayerNorms before each branch, learned positions, fused `c_attn`, a plain tanh-GELU MLP.
//! Its `Conv1D` weights are stored `[in, out]`, which is the canonical layout already.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::page;
use crate::model::spec::Position;

pub const FAMILY: Family = Family {
    name: "gpt2",
    model_types: &["gpt2"],
    defaults: DEFAULTS,
    synonyms: GPT_NAMES,
    from_config: describe,
    gguf: Some(("gpt2", describe_gguf)),
    examples: &["openai-community/gpt2", "distilbert/distilgpt2"],
};

/// Computing attention in another order or in f32 is the same function: scores and softmax are f32 here anyway.
const AT_DEFAULT: &[(&str, &str)] = &[("reorder_and_upcast_attn", "true")];

/// The usual names of what GPT-2 and GPT-J call otherwise; transformers takes either.
pub(super) const GPT_NAMES: &[(&str, &str)] = &[
    ("hidden_size", "n_embd"),
    ("max_position_embeddings", "n_positions"),
    ("num_attention_heads", "n_head"),
    ("num_hidden_layers", "n_layer"),
];

const DEFAULTS: &str = r#"{
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": true,
    "scale_attn_by_inverse_layer_idx": false, "tie_word_embeddings": true
}"#;

#[derive(Deserialize)]
struct Config {
    n_embd: usize,
    n_head: usize,
    n_layer: usize,
    n_positions: usize,
    n_inner: Option<usize>,
    vocab_size: usize,
    activation_function: String,
    layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    scale_attn_by_inverse_layer_idx: bool,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, &[])?;
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
    let layout = page::layout(LAYOUT, &spec);
    Ok(Description::new(spec, layout))
}

/// The causal mask and the value that it writes were once saved with the weights.
const LAYOUT: &str = "
    matrices  in_out
    prefix    transformer.
    embed     wte
    positions wpe
    ln_final  ln_f +bias
    unembed   lm_head
    each      h.{l}.
    ln1       ln_1 +bias
    qkv       attn.c_attn +bias
    o         attn.c_proj +bias
    ln2       ln_2 +bias
    mlp_in    mlp.c_fc +bias
    mlp_out   mlp.c_proj +bias
    ignore    *.attn.bias *.attn.masked_bias
";

/// llama.cpp turns Conv1D into `[out, in]` like every other family's.
fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = Metadata::new(gguf, keys, "gpt2", &[])?.spec("gpt2")?;
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
                Error::RefusedConfig { key: named, .. } => assert_eq!(named, key),
                other => panic!("{key}: {other}"),
            }
        }
        // An old second name of `n_positions`, which transformers does not read.
        assert!(with("n_ctx", "64").is_ok());
        assert!(matches!(
            with("hidden_size", "48").unwrap_err(),
            Error::BadConfig { .. }
        ));
        assert!(matches!(
            with("n_head", "5").unwrap_err(),
            Error::BadConfig { .. }
        ));
        assert!(with("reorder_and_upcast_attn", "true").is_ok());
    }
}
