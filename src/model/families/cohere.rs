//! Command-R (Cohere) and Command R7B, Command A (Cohere 2): attention and MLP side by side under one LayerNorm without bias, rotary
//! pairs side by side, logits times a number. In Command-R+ each head norms its queries and keys with weights of its own. In Cohere 2 most layers slide, and those that do not have no positions.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::{self, RopeSettings};
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::{Block, ModelSpec, NormKind, Position, QkNorm, RotaryStyle};

pub const COHERE: Family = Family {
    name: "cohere",
    model_types: &["cohere"],
    defaults: COHERE_DEFAULTS,
    synonyms: &[],
    from_config: describe_cohere,
    gguf: Some(("command-r", describe_gguf)),
    examples: &[
        "CohereLabs/c4ai-command-r-v01",
        "CohereLabs/c4ai-command-r-plus",
        "CohereLabs/aya-23-8B",
    ],
};

pub const COHERE2: Family = Family {
    name: "cohere2",
    model_types: &["cohere2"],
    defaults: COHERE2_DEFAULTS,
    synonyms: &[("_sliding_window_pattern", "sliding_window_pattern")],
    from_config: describe_cohere2,
    gguf: Some(("cohere2", describe_cohere2_gguf)),
    examples: &["CohereLabs/c4ai-command-r7b-12-2024"],
};

/// What the published files of Cohere 2 say of what is there anyway.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("layer_switch", "4"),
    ("order_of_interleaved_layers", "\"local_attn_first\""),
    ("position_embedding_type", "\"rope_gptj\""),
    ("rotary_pct", "1.0"),
    ("use_embedding_sharing", "true"),
    ("use_gated_activation", "true"),
    ("use_parallel_block", "true"),
    ("use_parallel_embedding", "true"),
];

/// The rotary base of a Command-R file that says none.
const THETA: f64 = 500_000.0;

const COHERE_DEFAULTS: &str = r#"{
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "logit_scale": 0.0625, "num_hidden_layers": 40,
    "num_attention_heads": 64, "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": true, "attention_bias": false, "use_qk_norm": false
}"#;
const COHERE2_DEFAULTS: &str = r#"{
    "vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "logit_scale": 0.0625, "num_hidden_layers": 40,
    "num_attention_heads": 64, "hidden_act": "silu", "max_position_embeddings": 8192, "layer_norm_eps": 1e-5,
    "tie_word_embeddings": true, "attention_bias": false, "sliding_window": 4096, "sliding_window_pattern": 4
}"#;

const DIFFERS: &str = "
    each      layers.{l}.
    q_norm    self_attn.q_norm in_heads
    k_norm    self_attn.k_norm in_heads
";

#[derive(Deserialize)]
struct Own {
    layer_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    logit_scale: f32,
    use_qk_norm: bool,
}

#[derive(Deserialize)]
struct Own2 {
    layer_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    logit_scale: f32,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
    /// Without `layer_types`: every so many layers sees everything.
    sliding_window_pattern: usize,
}

fn describe_cohere(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let rope = config.rope_of_whole_heads(keys, THETA)?;
    let mut spec = spec(
        &config,
        rope,
        "cohere",
        own.layer_norm_eps,
        &own.hidden_act,
        own.logit_scale,
    )?;
    if own.use_qk_norm {
        spec.qk_norm = QkNorm::OwnLayer;
    }
    Ok(described(spec, own.attention_bias))
}

fn describe_cohere2(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own2>::read(keys, AT_DEFAULT, &[])?;
    let own = &config.own;
    let rope = config.rope_of_whole_heads(keys, rope::DEFAULT_THETA)?;
    let mut spec = spec(
        &config,
        rope,
        "cohere2",
        own.layer_norm_eps,
        &own.hidden_act,
        own.logit_scale,
    )?;
    spec.windows = decoder::windows(
        own.layer_types.as_deref(),
        spec.n_layers,
        own.sliding_window,
        |layer| !(layer + 1).is_multiple_of(own.sliding_window_pattern.max(1)),
    )?;
    let slides = spec.windows.clone();
    let spec = decoder::rotating(spec, |layer| slides[layer].is_some());
    Ok(described(spec, own.attention_bias))
}

/// What the two have in common.
fn spec<Own: serde::de::DeserializeOwned>(
    config: &LlamaLike<Own>,
    rope: RopeSettings,
    family: &str,
    norm_eps: f64,
    activation: &str,
    logit_scale: f32,
) -> Result<ModelSpec> {
    let activation = ("hidden_act", activation);
    let spec = config.spec_with(rope, family, norm_eps, activation)?;
    Ok(of_cohere(spec, logit_scale))
}

fn of_cohere(mut spec: ModelSpec, logit_scale: f32) -> ModelSpec {
    spec.norm = NormKind::Layer;
    spec.block = Block::Parallel { shared_norm: true };
    spec.logit_scale = (logit_scale != 1.0).then_some(logit_scale);
    if let Position::Rotary(rotary) = &mut spec.position {
        rotary.style = RotaryStyle::Interleaved;
    }
    spec
}

fn described(spec: ModelSpec, attention_bias: bool) -> Description {
    let biases = Biases {
        qkv: attention_bias,
        o: attention_bias,
        mlp: false,
    };
    let layout = decoder::layout(&spec, DIFFERS, biases);
    Description::new(spec, layout)
}

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let metadata = Metadata::new(gguf, keys, "command-r", &["logit_scale"])?;
    let logit_scale = gguf.number(&metadata.key("logit_scale"))? as f32;
    let spec = of_cohere(metadata.spec("cohere")?, logit_scale);
    Ok(llama_cpp::describe_normed(spec, gguf, false))
}

/// Which layers slide has no key: all but every fourth.
fn describe_cohere2_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let own_keys = ["attention.sliding_window", "logit_scale"];
    let metadata = Metadata::new(gguf, keys, "cohere2", &own_keys)?;
    let logit_scale = gguf.number(&metadata.key("logit_scale"))? as f32;
    let mut spec = of_cohere(metadata.spec("cohere2")?, logit_scale);
    let window = gguf.size(&metadata.key("attention.sliding_window"))?;
    let slides = |layer: usize| !(layer + 1).is_multiple_of(4);
    spec.windows = decoder::windows(None, spec.n_layers, Some(window), slides)?;
    let spec = decoder::rotating(spec, slides);
    Ok(llama_cpp::describe_with(
        spec,
        gguf,
        Heads::AsTrained,
        "",
        false,
    ))
}
