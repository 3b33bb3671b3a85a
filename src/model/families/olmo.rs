//! OLMo 1: a Llama whose LayerNorms have neither weights nor biases, and which may cut its queries, keys and values off.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::{Description, Family};
use crate::error::Result;
use crate::model::spec::NormKind;

pub const FAMILY: Family = Family {
    name: "olmo",
    model_types: &["olmo"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: None,
    examples: &["allenai/OLMo-1B-hf", "allenai/OLMo-7B-0424-hf"],
};

/// The config has none.
const NORM_EPS: f64 = 1e-5;

const DEFAULTS: &str = r#"{
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "hidden_act": "silu", "attention_bias": false, "tie_word_embeddings": false, "clip_qkv": null
}"#;

const DIFFERS: &str = "
    ln_final  ones
    each      layers.{l}.
    ln1       ones
    ln2       ones
";

#[derive(Deserialize)]
struct Own {
    hidden_act: String,
    attention_bias: bool,
    clip_qkv: Option<f32>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = config.spec("olmo", NORM_EPS, activation, keys)?;
    spec.norm = NormKind::Layer;
    spec.qkv_clip = own.clip_qkv;
    let biases = Biases {
        qkv: own.attention_bias,
        o: own.attention_bias,
        mlp: false,
    };
    let layout = decoder::layout(&spec, DIFFERS, biases);
    Ok(Description::new(spec, layout))
}
