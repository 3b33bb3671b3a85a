//! OLMo 1: a Llama whose LayerNorms have neither weights nor biases, and which may cut its queries, keys and values off.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::NormKind;

pub const FAMILY: Family = Family {
    name: "olmo",
    model_types: &["olmo"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("olmo", describe_gguf)),
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

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let metadata = Metadata::new(gguf, keys, "olmo", &["attention.clamp_kqv"])?;
    let mut spec = metadata.spec("olmo")?;
    spec.norm = NormKind::Layer;
    let clip = gguf.maybe_number(&metadata.key("attention.clamp_kqv"))?;
    spec.qkv_clip = clip.map(|most| most as f32).filter(|most| *most != 0.0);
    let page = "ln_final ones \n each blk.{l}. \n ln1 ones \n ln2 ones";
    Ok(llama_cpp::describe_with(
        spec,
        gguf,
        Heads::Interleaved,
        page,
        false,
    ))
}
