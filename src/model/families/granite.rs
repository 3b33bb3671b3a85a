//! Granite 3 (the dense ones): a Llama whose embeddings, attention scores, branches and logits each have a multiplier.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;

pub const FAMILY: Family = Family {
    name: "granite",
    model_types: &["granite"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("granite", describe_gguf)),
    examples: &["ibm-granite/granite-3.3-2b-instruct"],
};

const DEFAULTS: &str = r#"{
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
    "tie_word_embeddings": false, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
    "attention_multiplier": 1.0
}"#;

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    mlp_bias: bool,
    embedding_multiplier: f32,
    /// Logits are divided by it.
    logits_scaling: f32,
    residual_multiplier: f32,
    /// In place of `1/sqrt(d_head)`.
    attention_multiplier: f32,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = config.spec("granite", own.rms_norm_eps, activation, keys)?;
    let multiplier = |by: f32| (by != 1.0).then_some(by);
    spec.embed_scale = multiplier(own.embedding_multiplier);
    spec.residual_multiplier = multiplier(own.residual_multiplier);
    spec.logit_scale = multiplier(1.0 / own.logits_scaling);
    spec.attn_scale = vec![own.attention_multiplier; spec.n_layers];
    let biases = Biases {
        qkv: own.attention_bias,
        o: own.attention_bias,
        mlp: own.mlp_bias,
    };
    let layout = decoder::layout(&spec, "", biases);
    Ok(Description::new(spec, layout))
}

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let own_keys = [
        "attention.scale",
        "embedding_scale",
        "logit_scale",
        "residual_scale",
    ];
    let metadata = Metadata::new(gguf, keys, "granite", &own_keys)?;
    let mut spec = metadata.spec("granite")?;
    // What is not written, or is zero, is not in force.
    let number = |name: &str| -> Result<Option<f32>> {
        let written = gguf.maybe_number(&metadata.key(name))?;
        Ok(written.map(|x| x as f32).filter(|x| *x != 0.0))
    };
    let multiplier = |by: Option<f32>| by.filter(|by| *by != 1.0);
    spec.embed_scale = multiplier(number("embedding_scale")?);
    spec.residual_multiplier = multiplier(number("residual_scale")?);
    spec.logit_scale = multiplier(number("logit_scale")?.map(|by| 1.0 / by));
    if let Some(scale) = number("attention.scale")? {
        spec.attn_scale.fill(scale);
    }
    Ok(llama_cpp::describe(spec, gguf, Heads::Interleaved))
}
