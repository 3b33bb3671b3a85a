//! StarCoder 2: rotary positions and grouped heads as in a Llama, LayerNorms, a plain MLP and biases as in a GPT.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{Keys, activation};
use super::decoder::{self, Biases, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::RopeConfig;
use super::{Description, Family, all_rotates};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::layout::{Layout, Piece, Slot};
use crate::model::spec::ModelSpec;

pub const FAMILY: Family = Family {
    name: "starcoder2",
    model_types: &["starcoder2"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("starcoder2", describe_gguf)),
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
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    norm_epsilon: f64,
    hidden_act: String,
    sliding_window: Option<usize>,
    use_bias: bool,
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config: Config = keys.read()?;
    keys.refuse_unhandled(&config.rest, AT_DEFAULT, &[])?;
    let rope = config
        .rope
        .settings(keys, config.sizes.max_position_embeddings)?;
    all_rotates(keys, &rope)?;
    let mut spec = of_starcoder2(config.sizes.spec("starcoder2", config.norm_epsilon, rope)?);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    spec.windows = vec![config.sliding_window; spec.n_layers];
    let layout = layout(&spec, config.use_bias);
    Ok(Description::new(spec, layout))
}

fn of_starcoder2(spec: ModelSpec) -> ModelSpec {
    let position = spec.position.clone();
    decoder::gpt(spec, position)
}

fn layout(spec: &ModelSpec, use_bias: bool) -> Layout {
    let (d, mlp) = (spec.d_model, spec.d_mlp);
    let (linear, as_is) = (Piece::linear, Piece::as_is);
    let biases = Biases {
        qkv: use_bias,
        o: use_bias,
        mlp: false,
    };
    let mut layout = decoder::layout(spec, biases)
        .with(
            Slot::Ln1Bias,
            vec![as_is("layers.{l}.input_layernorm.bias", d)],
        )
        .with(
            Slot::Ln2Bias,
            vec![as_is("layers.{l}.post_attention_layernorm.bias", d)],
        )
        .with(Slot::MlpIn, vec![linear("layers.{l}.mlp.c_fc.weight", mlp)])
        .with(
            Slot::MlpOut,
            vec![linear("layers.{l}.mlp.c_proj.weight", d)],
        );
    if use_bias {
        layout = layout
            .with(
                Slot::MlpInBias,
                vec![as_is("layers.{l}.mlp.c_fc.bias", mlp)],
            )
            .with(
                Slot::MlpOutBias,
                vec![as_is("layers.{l}.mlp.c_proj.bias", d)],
            );
    }
    layout
        .model
        .push((Slot::LnFinalBias, vec![as_is("norm.bias", d)]));
    layout
}

fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = of_starcoder2(Metadata::new(gguf, keys, "starcoder2", &[])?.spec("starcoder2")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
