//! Falcon: 7B (one key/value head, branches side by side under one norm), 11B and 40B (grouped heads, fused group by group).

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Sizes};
use super::rope::RopeConfig;
use super::{Description, Family, all_rotates};
use crate::error::{Error, Result};
use crate::model::layout::Slot;
use crate::model::page;
use crate::model::spec::Block;

pub const FAMILY: Family = Family {
    name: "falcon",
    model_types: &["falcon"],
    defaults: DEFAULTS,
    synonyms: &[
        ("n_embed", "hidden_size"),
        ("n_layer", "num_hidden_layers"),
        ("n_head", "num_attention_heads"),
        ("n_head_kv", "num_kv_heads"),
    ],
    from_config: describe,
    gguf: None,
    examples: &["tiiuae/falcon-7b", "tiiuae/falcon-11B", "tiiuae/falcon-40b"],
};

/// What a file says beside the width that follows from it.
const AT_DEFAULT: &[(&str, &str)] = &[("ff_factor", "4")];

const CHANGES: &[(&str, &str)] = &[(
    "alibi",
    "its positions are ALiBi, rounded to 16 bits (Falcon-RW), which is not handled in this family",
)];

const DEFAULTS: &str = r#"{
    "vocab_size": 65024, "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "layer_norm_epsilon": 1e-5,
    "alibi": false, "new_decoder_architecture": false, "multi_query": true, "parallel_attn": true, "bias": false,
    "max_position_embeddings": 2048, "activation": "gelu", "tie_word_embeddings": true
}"#;

const LAYOUT: &str = "
    prefix    transformer.
    embed     word_embeddings
    ln_final  ln_f +bias
    unembed   lm_head
    each      h.{l}.
    ln1       input_layernorm +bias
    o         self_attention.dense +bias
    ln2       post_attention_layernorm +bias
    mlp_in    mlp.dense_h_to_4h +bias
    mlp_out   mlp.dense_4h_to_h +bias
    ignore    *.rotary_emb.inv_freq
";

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_kv_heads: Option<usize>,
    num_ln_in_parallel_attn: Option<usize>,
    layer_norm_epsilon: f64,
    new_decoder_architecture: bool,
    multi_query: bool,
    parallel_attn: bool,
    bias: bool,
    max_position_embeddings: usize,
    ffn_hidden_size: Option<usize>,
    activation: String,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rope: RopeConfig,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, CHANGES)?;
    let is_grouped = config.new_decoder_architecture;
    // How queries, keys and values are fused, and so how many of the latter there are.
    let (n_kv_heads, qkv) = match (is_grouped, config.multi_query) {
        (true, _) => (config.num_kv_heads, "by_group"),
        (false, true) => (Some(1), ""),
        (false, false) => (None, "by_head"),
    };
    let own_norms = match (is_grouped, config.num_ln_in_parallel_attn) {
        (true, None | Some(2)) => true,
        (_, None | Some(1)) => false,
        (_, Some(count)) => {
            return Err(Error::BadConfig {
                key: "num_ln_in_parallel_attn".to_string(),
                reason: format!("{count} norms before branches of this kind are not handled"),
            });
        }
    };
    if is_grouped && !config.parallel_attn {
        keys.refuse(
            "parallel_attn",
            "false",
            "transformers puts the branches of the new architecture side by side",
        )?;
    }
    let sizes = Sizes {
        hidden_size: config.hidden_size,
        intermediate_size: config
            .ffn_hidden_size
            .unwrap_or(config.hidden_size.saturating_mul(4)),
        num_hidden_layers: config.num_hidden_layers,
        num_attention_heads: config.num_attention_heads,
        num_key_value_heads: n_kv_heads,
        head_dim: None,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
    };
    let rope = config.rope.settings(keys, sizes.max_position_embeddings)?;
    all_rotates(keys, &rope)?;
    let spec = sizes.spec("falcon", config.layer_norm_epsilon, rope)?;
    let position = spec.position.clone();
    let mut spec = decoder::gpt(spec, position);
    spec.activation = activation("activation", &config.activation)?;
    spec.tied = config.tie_word_embeddings;
    if config.parallel_attn {
        spec.block = Block::Parallel {
            shared_norm: !own_norms,
        };
    }
    let norms = if own_norms {
        "ln1 ln_attn +bias \n ln2 ln_mlp +bias"
    } else {
        ""
    };
    let page = format!("{LAYOUT} qkv self_attention.query_key_value {qkv} +bias \n {norms}");
    let mut layout = page::layout(&page, &spec);
    if !config.bias {
        layout = layout.without(&[
            Slot::QkvBias,
            Slot::OBias,
            Slot::MlpInBias,
            Slot::MlpOutBias,
        ]);
    }
    Ok(Description::new(spec, layout))
}
