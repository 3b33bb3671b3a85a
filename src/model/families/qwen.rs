//! Qwen 2 and 2.5 (biases on q, k and v; the later layers may slide) and Qwen 3 (a norm on each query and key instead).

use serde::Deserialize;
use serde_json::{Map, Value};

use super::config::{activation, parse, refuse_unhandled};
use super::decoder::{self, Biases, Sizes};
use super::llama_cpp::{self, Heads, Metadata};
use super::rope::RopeConfig;
use super::{Description, Family, all_rotates};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::{ModelSpec, QkNorm};

pub const QWEN2: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    from_config: describe_qwen2,
    gguf: Some(("qwen2", describe_qwen2_gguf)),
};

pub const QWEN3: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    from_config: describe_qwen3,
    gguf: Some(("qwen3", describe_qwen3_gguf)),
};

#[derive(Deserialize)]
struct Config {
    #[serde(flatten)]
    sizes: Sizes,
    #[serde(flatten)]
    rope: RopeConfig,
    rms_norm_eps: f64,
    hidden_act: String,
    #[serde(default)]
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    #[serde(default = "default_max_window_layers")]
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
    /// Qwen 3 alone has the choice.
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The default of transformers' `Qwen2Config`; the first layers, up to this one, see everything.
fn default_max_window_layers() -> usize {
    28
}

fn describe_qwen2(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    let spec = spec("qwen2", &config)?;
    let biases = Biases {
        qkv: true,
        ..Biases::default()
    };
    let layout = decoder::layout(&spec, biases);
    Ok(Description { spec, layout })
}

fn describe_qwen3(config: &str) -> Result<Description> {
    let config: Config = parse(config)?;
    let spec = ModelSpec {
        qk_norm: QkNorm::PerHead,
        ..spec("qwen3", &config)?
    };
    let biases = Biases {
        qkv: config.attention_bias,
        o: config.attention_bias,
        mlp: false,
    };
    let layout = decoder::layout(&spec, biases);
    Ok(Description { spec, layout })
}

fn spec(family: &str, config: &Config) -> Result<ModelSpec> {
    refuse_unhandled(family, &config.rest, &[])?;
    let rope = config.rope.settings(config.sizes.max_position_embeddings)?;
    all_rotates(family, &rope)?;
    let mut spec = config.sizes.spec(family, config.rms_norm_eps, rope)?;
    spec.activation = activation("hidden_act", &config.hidden_act)?;
    spec.tied = config.tie_word_embeddings;
    spec.windows = decoder::windows(
        config.layer_types.as_deref(),
        spec.n_layers,
        config.sliding_window.filter(|_| config.use_sliding_window),
        |layer| layer >= config.max_window_layers,
    )?;
    Ok(spec)
}

fn describe_qwen2_gguf(gguf: &Gguf) -> Result<Description> {
    let spec = Metadata::new(gguf, "qwen2", &[])?.spec("qwen2")?;
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

fn describe_qwen3_gguf(gguf: &Gguf) -> Result<Description> {
    let spec = ModelSpec {
        qk_norm: QkNorm::PerHead,
        ..Metadata::new(gguf, "qwen3", &[])?.spec("qwen3")?
    };
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::from_config;

    #[test]
    fn windows_are_in_force_only_where_the_config_says_so() {
        let json = include_str!("../../../tests/fixtures/qwen2-tiny-random/config.json");
        let mut config: Map<String, Value> = serde_json::from_str(json).unwrap();
        let windows = |config: &Map<String, Value>| {
            let config = Value::Object(config.clone()).to_string();
            from_config(&config).map(|description| description.spec.windows)
        };
        let expected = [None, None, Some(5), Some(5)];
        assert_eq!(windows(&config).unwrap(), expected);
        config.remove("layer_types");
        assert_eq!(windows(&config).unwrap(), expected);
        config.insert("use_sliding_window".into(), false.into());
        assert_eq!(windows(&config).unwrap(), [None; 4]);
        config.insert("sliding_window".into(), 0.into());
        config.insert("use_sliding_window".into(), true.into());
        assert!(windows(&config).unwrap_err().to_string().contains("no key"));
    }
}
