//! OLMo 2 and 3: norms stand only on each branch's output, and queries and keys are normed over all heads at once. In OLMo 3 most
//! layers slide, and scaled positions are for those that do not.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::{Description, Family, all_rotates};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::{ModelSpec, NormPlacement, QkNorm};

pub const OLMO2: Family = Family {
    name: "olmo2",
    model_types: &["olmo2"],
    defaults: OLMO2_DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("olmo2", describe_gguf)),
    examples: &["allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B"],
};

const OLMO2_DEFAULTS: &str = r#"{
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": false,
    "tie_word_embeddings": false
}"#;

pub const OLMO3: Family = Family {
    name: "olmo3",
    model_types: &["olmo3"],
    defaults: OLMO3_DEFAULTS,
    synonyms: &[],
    from_config: describe_olmo3,
    gguf: None,
    examples: &["allenai/Olmo-3-1025-7B", "allenai/Olmo-3-7B-Instruct"],
};

const OLMO3_DEFAULTS: &str = r#"{
    "vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "attention_bias": false,
    "tie_word_embeddings": false, "sliding_window": 4096
}"#;

/// The rotary base of an OLMo 3 that says none.
const OLMO3_THETA: f64 = 500_000.0;
/// Every fourth layer of an OLMo 3 sees everything, unless `layer_types` says otherwise.
const OLMO3_PATTERN: usize = 4;

/// Both norms stand where a Llama's would not.
const DIFFERS: &str = "
    each      layers.{l}.
    ln1_post  post_attention_layernorm
    ln2_post  post_feedforward_layernorm
";

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let spec = of_olmo2(config.spec("olmo2", own.rms_norm_eps, activation, keys)?);
    let biases = Biases {
        qkv: own.attention_bias,
        o: own.attention_bias,
        mlp: false,
    };
    let layout = decoder::layout(&spec, DIFFERS, biases);
    Ok(Description::new(spec, layout))
}

#[derive(Deserialize)]
struct Own3 {
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    sliding_window: Option<usize>,
    layer_types: Option<Vec<String>>,
}

fn describe_olmo3(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own3>::read(keys, &[], &[])?;
    let own = &config.own;
    let n_ctx = config.sizes.max_position_embeddings;
    let [global, local] = config
        .rope
        .by_kind_of_layer(keys, n_ctx, [OLMO3_THETA; 2])?;
    all_rotates(keys, &global)?;
    all_rotates(keys, &local)?;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = of_olmo2(config.spec_with(global, "olmo3", own.rms_norm_eps, activation)?);
    spec.windows = decoder::windows(
        own.layer_types.as_deref(),
        spec.n_layers,
        own.sliding_window,
        |layer| !(layer + 1).is_multiple_of(OLMO3_PATTERN),
    )?;
    let spec = decoder::with_local_base(spec, local.base);
    let biases = Biases {
        qkv: own.attention_bias,
        o: own.attention_bias,
        mlp: false,
    };
    let layout = decoder::layout(&spec, DIFFERS, biases);
    Ok(Description::new(spec, layout))
}

fn of_olmo2(spec: ModelSpec) -> ModelSpec {
    ModelSpec {
        norm_placement: NormPlacement::Post,
        qk_norm: QkNorm::FullWidth,
        ..spec
    }
}

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = of_olmo2(Metadata::new(gguf, keys, "olmo2", &[])?.spec("olmo2")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
