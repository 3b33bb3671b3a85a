//! StarCoder 2: rotary positions and grouped heads as in a Llama, LayerNorms, a plain MLP and biases as in a GPT.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::ModelSpec;

pub const FAMILY: Family = Family {
    name: "starcoder2",
    model_types: &["starcoder2"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("starcoder2", describe_gguf)),
    examples: &["bigcode/starcoder2-3b"],
};

/// Names of what is there anyway: the only norm and the only MLP that the released models have.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("mlp_type", "\"default\""),
    ("norm_type", "\"layer_norm\""),
    ("scale_attn_weights", "true"),
];

const DEFAULTS: &str = r#"{
    "vocab_size": 49152, "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30, "num_attention_heads": 24,
    "num_key_value_heads": 2, "max_position_embeddings": 4096, "norm_epsilon": 1e-5, "hidden_act": "gelu_pytorch_tanh",
    "sliding_window": null, "use_bias": true, "tie_word_embeddings": true
}"#;

#[derive(Deserialize)]
struct Own {
    norm_epsilon: f64,
    hidden_act: String,
    sliding_window: Option<usize>,
    use_bias: bool,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, AT_DEFAULT, &[])?;
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let spec = config.spec("starcoder2", own.norm_epsilon, activation, keys)?;
    let mut spec = ModelSpec {
        activation: spec.activation,
        ..of_starcoder2(spec)
    };
    spec.windows = vec![own.sliding_window; spec.n_layers];
    let biases = Biases {
        qkv: own.use_bias,
        o: own.use_bias,
        mlp: own.use_bias,
    };
    let layout = decoder::layout(&spec, DIFFERS, biases);
    Ok(Description::new(spec, layout))
}

fn of_starcoder2(spec: ModelSpec) -> ModelSpec {
    let position = spec.position.clone();
    decoder::gpt(spec, position)
}

const DIFFERS: &str = "
    ln_final  norm +bias
    each      layers.{l}.
    ln1       input_layernorm +bias
    ln2       post_attention_layernorm +bias
    mlp_in    mlp.c_fc +bias
    mlp_out   mlp.c_proj +bias
";

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = of_starcoder2(Metadata::new(gguf, keys, "starcoder2", &[])?.spec("starcoder2")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
