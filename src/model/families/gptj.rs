//! GPT-J: parallel branches through one shared LayerNorm, the first dimensions of each head rotate in adjacent pairs.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::gpt2::GPT_NAMES;
use super::rope::RopeSettings;
use super::{Description, Family};
use crate::error::Result;
use crate::model::page;
use crate::model::spec::{Block, Position, Rotary, RotaryStyle};

pub const FAMILY: Family = Family {
    name: "gptj",
    model_types: &["gptj"],
    defaults: DEFAULTS,
    synonyms: GPT_NAMES,
    from_config: describe,
    gguf: None,
    examples: &["EleutherAI/gpt-j-6b"],
};

const AT_DEFAULT: &[(&str, &str)] = &[("rotary", "true"), ("scale_attn_weights", "true")];

const DEFAULTS: &str = r#"{
    "vocab_size": 50400, "n_positions": 2048, "n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "n_inner": null,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false
}"#;

#[derive(Deserialize)]
struct Config {
    n_embd: usize,
    n_head: usize,
    n_layer: usize,
    n_positions: usize,
    n_inner: Option<usize>,
    rotary_dim: usize,
    vocab_size: usize,
    layer_norm_epsilon: f64,
    activation_function: String,
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
    let rope = RopeSettings::default();
    let position = Position::Rotary(Rotary {
        dims: config.rotary_dim,
        style: RotaryStyle::Interleaved,
        base_of_layer: Vec::new(),
        bases: vec![rope.base.clone()],
    });
    let spec = sizes.spec("gptj", config.layer_norm_epsilon, rope)?;
    let mut spec = decoder::gpt(spec, position);
    if let Position::Rotary(rotary) = &mut spec.position {
        rotary.base_of_layer = vec![Some(0); spec.n_layers];
    }
    spec.block = Block::Parallel { shared_norm: true };
    spec.activation = activation("activation_function", &config.activation_function)?;
    spec.tied = config.tie_word_embeddings;
    let layout = page::layout(LAYOUT, &spec);
    Ok(Description::new(spec, layout))
}

/// The causal mask and the value that it writes were once saved with the weights.
const LAYOUT: &str = "
    prefix    transformer.
    embed     wte
    ln_final  ln_f +bias
    unembed   lm_head +bias
    each      h.{l}.
    ln1       ln_1 +bias
    qkv       attn.q_proj attn.k_proj attn.v_proj
    o         attn.out_proj
    mlp_in    mlp.fc_in +bias
    mlp_out   mlp.fc_out +bias
    ignore    *.attn.bias *.attn.masked_bias *.attn.embed_positions
";
