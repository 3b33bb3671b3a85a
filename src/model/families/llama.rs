//! Llama 1 to 3, and what is built like it (SmolLM2, TinyLlama, Vicuna): RMS norms before each branch, rotary positions,
//! grouped heads, a gated SiLU MLP.

use serde::Deserialize;

use super::config::Keys;
use super::decoder::{self, Biases, LlamaLike};
use super::llama_cpp::{self, Heads, Metadata};
use super::{Description, Family};
use crate::error::{Error, Result};
use crate::model::gguf::Gguf;

pub const FAMILY: Family = Family {
    name: "llama",
    model_types: &["llama"],
    defaults: DEFAULTS,
    synonyms: &[],
    from_config: describe,
    gguf: Some(("llama", describe_gguf)),
    examples: &[
        "meta-llama/Llama-3.2-1B",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    ],
};

/// Keys of other families that are built on this one, at the values where they say nothing.
const AT_DEFAULT: &[(&str, &str)] = &[
    ("attention_multiplier", "1.0"),
    ("embedding_multiplier", "1.0"),
    ("logits_scaling", "1.0"),
    ("residual_multiplier", "1.0"),
];

const DEFAULTS: &str = r#"{
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "hidden_act": "silu", "attention_bias": false, "mlp_bias": false,
    "tie_word_embeddings": false
}"#;

#[derive(Deserialize)]
struct Own {
    rms_norm_eps: f64,
    hidden_act: String,
    attention_bias: bool,
    mlp_bias: bool,
}

fn describe(keys: &mut Keys) -> Result<Description> {
    let config = LlamaLike::<Own>::read(keys, AT_DEFAULT, &[])?;
    let own = &config.own;
    let activation = ("hidden_act", own.hidden_act.as_str());
    let spec = config.spec("llama", own.rms_norm_eps, activation, keys)?;
    let biases = Biases {
        qkv: own.attention_bias,
        o: own.attention_bias,
        mlp: own.mlp_bias,
    };
    let layout = decoder::layout(&spec, "", biases);
    Ok(Description::new(spec, layout))
}

/// llama.cpp calls Mistral's architecture `llama` too; both are the same function as long as nothing slides.
fn describe_gguf(gguf: &Gguf, keys: &mut Keys) -> Result<Description> {
    let metadata = Metadata::new(gguf, keys, "llama", &[])?;
    let spec = metadata.spec("llama")?;
    let dims = spec.rotary_dims();
    if dims != spec.d_head {
        return Err(Error::BadConfig {
            key: metadata.key("rope.dimension_count"),
            reason: format!(
                "{dims}, but a head has {} dimensions; only equal ones are handled",
                spec.d_head
            ),
        });
    }
    Ok(llama_cpp::describe(spec, gguf, Heads::Interleaved))
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value};

    use super::*;
    use crate::model::families::from_config;
    use crate::model::spec::{Position, RopeScaling};

    fn with(key: &str, value: &str) -> Result<Description> {
        let json = include_str!("../../../tests/fixtures/llama-tiny-random/config.json");
        let mut config: Map<String, Value> = serde_json::from_str(json).unwrap();
        config.insert(key.to_string(), serde_json::from_str(value).unwrap());
        from_config(&Value::Object(config).to_string())
    }

    #[test]
    fn both_config_forms_give_the_same_model() {
        let new = from_config(include_str!(
            "../../../tests/fixtures/llama-tiny-random/config.json"
        ));
        let old = from_config(include_str!(
            "../../../tests/fixtures/llama-tiny-random/config.legacy.json"
        ));
        let new = new.unwrap();
        assert_eq!(new, old.unwrap());
        let Position::Rotary(rotary) = &new.spec.position else {
            panic!("llama is rotary")
        };
        assert_eq!(rotary.bases[0].theta, 500_000.0);
        let llama3 = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position: 32,
        };
        assert_eq!(rotary.bases[0].scaling, llama3);
        assert_eq!(
            (new.spec.n_kv_heads, new.spec.d_head, new.spec.d_mlp),
            (2, 16, 96)
        );
    }

    #[test]
    fn keys_that_change_the_function_are_refused_by_name() {
        for (key, value) in [
            ("sliding_window", "4096"),
            ("quantization_config", r#"{"bits": 4}"#),
            ("rope_interleaved", "true"),
            ("partial_rotary_factor", "0.5"),
            ("something_new", "1"),
            ("pruned_heads", r#"{"0": [1]}"#),
        ] {
            match with(key, value).unwrap_err() {
                Error::UnhandledConfig { key: named, .. }
                | Error::RefusedConfig { key: named, .. } => assert_eq!(named, key),
                other => panic!("{key}: {other}"),
            }
        }
        assert!(with("sliding_window", "null").is_ok());
        assert!(with("pretraining_tp", "2").is_ok());
    }

    #[test]
    fn sizes_that_no_model_has_are_refused() {
        for (key, value) in [
            ("num_hidden_layers", "4000000000"),
            ("num_hidden_layers", "0"),
            ("num_attention_heads", "0"),
            ("num_key_value_heads", "3"),
            ("num_key_value_heads", "0"),
            ("hidden_size", "18446744073709551615"),
            ("head_dim", "7"),
            ("rms_norm_eps", "-1.0"),
            ("hidden_act", r#""relu6""#),
        ] {
            let error = with(key, value).unwrap_err();
            assert!(matches!(error, Error::BadConfig { .. }), "{key}: {error}");
        }
        let error = with("hidden_size", "-1").unwrap_err();
        assert!(matches!(error, Error::UnreadableConfig { .. }), "{error}");
    }

    #[test]
    fn head_width_is_derived_where_it_is_not_written() {
        assert_eq!(with("head_dim", "null").unwrap().spec.d_head, 16);
        assert_eq!(with("head_dim", "32").unwrap().spec.d_head, 32);
    }
}
