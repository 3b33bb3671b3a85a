//! GPT-BigCode (StarCoder 1, SantaCoder): a GPT-2 whose query heads share one head of keys and values.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::Result;
use crate::model::page;
use crate::model::spec::Position;

pub const FAMILY: Family = Family {
    name: "gpt_bigcode",
    model_types: &["gpt_bigcode"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
    examples: &["bigcode/gpt_bigcode-santacoder", "bigcode/starcoderbase-1b"],
};

/// How fast the published code computes what is so anyway.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("inference_runner", "0"),
    ("pad_key_length", "true"),
    ("pre_allocate_kv_cache", "false"),
    ("validate_runner_input", "true"),
];

const DEFAULTS: &str = r#"{
    "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": null,
    "activation_function": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-5, "scale_attn_weights": true, "multi_query": true,
    "tie_word_embeddings": true
}"#;

/// The causal mask was once saved with the weights.
const LAYOUT: &str = "
    prefix    transformer.
    embed     wte
    positions wpe
    ln_final  ln_f +bias
    unembed   lm_head
    each      h.{l}.
    ln1       ln_1 +bias
    o         attn.c_proj +bias
    ln2       ln_2 +bias
    mlp_in    mlp.c_fc +bias
    mlp_out   mlp.c_proj +bias
    ignore    *.attn.bias *.attn.masked_bias
";

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    n_positions: usize,
    n_embd: usize,
    n_layer: usize,
    n_head: usize,
    n_inner: Option<usize>,
    activation_function: String,
    layer_norm_epsilon: f64,
    scale_attn_weights: bool,
    multi_query: bool,
    /// Follows from `multi_query`; later files have it all the same.
    num_key_value_heads: Option<usize>,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, &[])?;
    let n_kv_heads = if config.multi_query { 1 } else { config.n_head };
    if let Some(other) = config
        .num_key_value_heads
        .filter(|other| *other != n_kv_heads)
    {
        let reason = format!("`multi_query` says that there are {n_kv_heads}");
        keys.refuse("num_key_value_heads", &other.to_string(), &reason)?;
    }
    let sizes = Sizes {
        hidden_size: config.n_embd,
        intermediate_size: config.n_inner.unwrap_or(config.n_embd.saturating_mul(4)),
        num_hidden_layers: config.n_layer,
        num_attention_heads: config.n_head,
        num_key_value_heads: Some(n_kv_heads),
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.n_positions,
    };
    let spec = sizes.spec(
        "gpt_bigcode",
        config.layer_norm_epsilon,
        RopeSettings::default(),
    )?;
    let mut spec = decoder::gpt(spec, Position::Learned);
    spec.activation = activation("activation_function", &config.activation_function)?;
    spec.tied = config.tie_word_embeddings;
    if !config.scale_attn_weights {
        spec.attn_scale.fill(1.0);
    }
    // With heads of their own, queries, keys and values lie head by head.
    let fused = if config.multi_query { "" } else { "by_head" };
    let page = format!("{LAYOUT} qkv attn.c_attn {fused} +bias");
    let layout = page::layout(&page, &spec);
    Ok(Description::new(spec, layout))
}
