//! Qwen 2 and 2.5 (biases on q, k and v; the later layers may slide) and Qwen 3 (a norm on each query and key instead).

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::{Description, Family};
use crate::error::Result;
use crate::model::gguf::Gguf;
use crate::model::spec::{ModelSpec, QkNorm};

pub const QWEN2: Family = Family {
    name: "qwen2",
    model_types: &["qwen2"],
    defaults: QWEN2_DEFAULTS,
    synonyms: &[],
    from_config: describe_qwen2,
    gguf: Some(("qwen2", describe_qwen2_gguf)),
    examples: &[
        "Qwen/Qwen2.5-0.5B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
    ],
};

pub const QWEN3: Family = Family {
    name: "qwen3",
    model_types: &["qwen3"],
    defaults: QWEN3_DEFAULTS,
    synonyms: &[],
    from_config: describe_qwen3,
    gguf: Some(("qwen3", describe_qwen3_gguf)),
    examples: &["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B-Base"],
};

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    use_sliding_window: bool,
    sliding_window: Option<usize>,
    /// The first layers, up to this one, see everything.
    max_window_layers: usize,
    layer_types: Option<Vec<String>>,
    /// Qwen 3 alone has the choice.
    #[serde(default)]
    attention_bias: Option<bool>,
}

const QWEN2_DEFAULTS: &str = r#"{
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28, "tie_word_embeddings": false
}"#;
const QWEN3_DEFAULTS: &str = r#"{
    "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6, "hidden_act": "silu",
    "attention_bias": false, "use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 28,
    "tie_word_embeddings": false
}"#;

fn describe_qwen2(keys: &mut Keys) -> Result<Description> {
    let (spec, _) = spec("qwen2", keys)?;
    let biases = Biases {
        qkv: true,
        ..Biases::default()
    };
    let layout = decoder::layout(&spec, "", biases);
    Ok(Description::new(spec, layout))
}

fn describe_qwen3(keys: &mut Keys) -> Result<Description> {
    let (spec, own) = spec("qwen3", keys)?;
    let spec = ModelSpec {
        qk_norm: QkNorm::PerHead,
        ..spec
    };
    let has_biases = own.attention_bias.unwrap_or_default();
    let biases = Biases {
        qkv: has_biases,
        o: has_biases,
        mlp: false,
    };
    let layout = decoder::layout(&spec, "", biases);
    Ok(Description::new(spec, layout))
}

fn spec(family: &str, keys: &mut Keys) -> Result<(ModelSpec, Own)> {
    let config = LlamaLike::<Own>::read(keys, &[], &[])?;
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let mut spec = config.spec(family, own.rms_norm_eps, activation, keys)?;
    spec.windows = decoder::windows(
        own.layer_types.as_deref(),
        spec.n_layers,
        own.sliding_window.filter(|_| own.use_sliding_window),
        |layer| layer >= own.max_window_layers,
    )?;
    Ok((spec, config.own))
}

fn describe_qwen2_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = Metadata::new(gguf, keys, "qwen2", &[])?.spec("qwen2")?;
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

fn describe_qwen3_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let spec = ModelSpec {
        qk_norm: QkNorm::PerHead,
        ..Metadata::new(gguf, keys, "qwen3", &[])?.spec("qwen3")?
    };
    Ok(llama_cpp::describe(spec, gguf, Heads::AsTrained))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

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
