//! StarCoder 2: rotary positions and grouped heads as in a Llama, LayerNorms, a plain MLP and biases as in a GPT.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
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
    from_config: describe,
    gguf: Some(("starcoder2", describe_gguf)),
};

/// Names of what is there anyway: the only norm and the only MLP that the released models have.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("mlp_type", "\"default\""),
    ("norm_type", "\"layer_norm\""),
    ("attention_softmax_in_fp32", "true"),
    ("scale_attention_softmax_in_fp32", "true"),
    ("scale_attn_weights", "true"),
];

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    norm_epsilon: f64,
    hidden_act: String,
    sliding_window: Option<usize>,
    #[serde(default = "yes")]
    use_bias: bool,
    #[serde(default = "yes")]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

fn yes() -> bool {
    true
}

fn describe(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    refuse_unhandled("starcoder2", &config.rest, AT_DEFAULT)?;
    let rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    all_rotates("starcoder2", &rope)?;
    let mut spec = of_starcoder2(config.sizes.spec("starcoder2", config.norm_epsilon, rope)?);
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    spec.windows = vec![config.sliding_window; spec.n_layers];
    let layout = layout(&spec, config.use_bias);
    Ok(Description { spec, layout })
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
            vec![as_is("model.layers.{l}.input_layernorm.bias", d)],
        )
        .with(
            Slot::Ln2Bias,
            vec![as_is("model.layers.{l}.post_attention_layernorm.bias", d)],
        )
        .with(
            Slot::MlpIn,
            vec![linear("model.layers.{l}.mlp.c_fc.weight", mlp)],
        )
        .with(
            Slot::MlpOut,
            vec![linear("model.layers.{l}.mlp.c_proj.weight", d)],
        );
    if use_bias {
        layout = layout
            .with(
                Slot::MlpInBias,
                vec![as_is("model.layers.{l}.mlp.c_fc.bias", mlp)],
            )
            .with(
                Slot::MlpOutBias,
                vec![as_is("model.layers.{l}.mlp.c_proj.bias", d)],
            );
    }
    layout
        .model
        .push((Slot::LnFinalBias, vec![as_is("model.norm.bias", d)]));
    layout
}

fn describe_gguf(gguf: &Gguf) -> Result<Description> {
    let spec = of_starcoder2(Metadata::new(gguf, "starcoder2", &[])?.spec("starcoder2")?);
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}
