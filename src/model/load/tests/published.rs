//! The keys of published configs, each loaded with the logits of transformers or refused with its reason (`tests/configs`).
//!
//! Weights are a function of the tensor's name and the entry's index, the same one as in `tests/configs/generate.py`.

use serde::Deserialize;
use serde_json::{Map, Value};

use super::*;
use crate::model::families::{from_config, from_config_accepting};
use crate::model::numbers;
use crate::run::{Logits, Request, run};

/// f32 logits of other kernels, of a few units; the random models are as deep as two or three layers.
const TOLERANCE: f32 = 1e-5;
/// The position that is compared in an encoder; in a decoder it is the last.
const MASKED: usize = 7;

#[derive(Deserialize)]
struct Published {
    name: String,
    config: Map<String, Value>,
    logits: Option<Vec<f32>>,
    refused: Option<String>,
    /// Tensors that the checkpoint has besides those that transformers would save, and those that it lacks.
    #[serde(default)]
    extra: Vec<String>,
    #[serde(default)]
    without: Vec<String>,
}

impl Published {
    fn text(&self) -> String {
        Value::Object(self.config.clone()).to_string()
    }

    fn tensors(&self, description: &Description) -> Tensors {
        let spec = &description.spec;
        let mut tensors = tensors_of(description);
        for name in &self.extra {
            let shape = match name.ends_with("bias") {
                true => vec![spec.d_vocab],
                false => vec![spec.d_vocab, spec.d_model],
            };
            let tensor = Tensor::from_vec(values_of(name, &shape), shape, &Device::Cpu).unwrap();
            tensors.insert(name.clone(), tensor);
        }
        tensors.retain(|name, _| !self.without.contains(name));
        tensors
    }
}

fn published() -> Vec<Published> {
    let lines = fs::read_to_string(fixture("tests/configs/published.jsonl")).unwrap();
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Uniform numbers from splitmix64, seeded with the FNV-1a hash of the name; vectors named `weight` lie around 1.
pub(super) fn values_of(name: &str, shape: &[usize]) -> Vec<f32> {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let mut state = name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
    let scaled = |uniform: f64| match *shape {
        [.., _, last] => uniform * (3.0 / last as f64).sqrt(),
        _ if name.ends_with("weight") => 1.0 + 0.3 * uniform,
        _ => 0.2 * uniform,
    };
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        scaled((z >> 40) as f64 / f64::from(1 << 23) - 1.0) as f32
    };
    (0..shape.iter().product()).map(|_| next()).collect()
}

/// The checkpoint that transformers would save for a config.
pub(super) fn tensors_of(description: &Description) -> Tensors {
    let tensors = description.layout.tensors(&description.spec);
    let tensor = |(name, shape): (String, Vec<usize>)| {
        let tensor = Tensor::from_vec(values_of(&name, &shape), shape, &Device::Cpu).unwrap();
        (name, tensor)
    };
    tensors.into_iter().map(tensor).collect()
}

/// Loads a checkpoint under a config, with numbers for tokens.
pub(super) fn load_under(config: &str, tensors: &Tensors, options: &LoadOptions) -> Result<Loaded> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    candle_core::safetensors::save(tensors, &path).unwrap();
    let tokenizer = numbers::tokenizer_json(32);
    let weights = fs::read(path).unwrap();
    load_parts(
        "test",
        config,
        &weights,
        tokenizer.as_bytes(),
        None,
        options,
    )
}

/// How far logits lie from their reference, in units of the largest.
pub(super) fn gap(model: &Model, wanted: &[f32]) -> f32 {
    let prompt: Vec<u32> = (0..24).map(|i| (7 * i + 3) % 32).collect();
    let position = match model.spec.encoder {
        Some(_) => MASKED,
        None => prompt.len() - 1,
    };
    let request = Request {
        logits: Logits::All,
        ..Request::default()
    };
    let found = run(model, &[prompt], &request).unwrap().logits.unwrap();
    let found = flat(&found.get(0).unwrap().get(position).unwrap());
    let largest = wanted.iter().fold(0f32, |most, x| most.max(x.abs()));
    let gaps = found.iter().zip(wanted).map(|(a, b)| (a - b).abs());
    gaps.fold(0.0, f32::max) / largest
}

#[test]
fn published_configs_load_with_the_logits_of_transformers_or_are_refused_with_a_reason() {
    let mut failures = Vec::new();
    let all = published();
    assert!(all.len() >= 100, "{}", all.len());
    for one in &all {
        let (name, text) = (&one.name, one.text());
        match (&one.refused, from_config(&text)) {
            (Some(word), Err(error)) if error.to_string().contains(word.as_str()) => {}
            (Some(word), result) => {
                failures.push(format!("{name}: not refused as `{word}`: {result:?}"))
            }
            (None, Err(error)) => failures.push(format!("{name}: {error}")),
            (None, Ok(description)) => {
                let tensors = one.tensors(&description);
                match load_under(&text, &tensors, &LoadOptions::default()) {
                    Err(error) => failures.push(format!("{name}: {error}")),
                    Ok(loaded) => {
                        let gap = gap(&loaded.model, one.logits.as_ref().unwrap());
                        if gap > TOLERANCE {
                            failures.push(format!("{name}: logits differ by {gap:.1e}"));
                        }
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The first published config of a family.
fn of_family(model_type: &str) -> Map<String, Value> {
    let mut all = published().into_iter();
    let found = all.find(|one| one.config["model_type"] == model_type && one.refused.is_none());
    found.unwrap().config
}

fn with(model_type: &str, key: &str, value: Value) -> String {
    let mut config = of_family(model_type);
    config.insert(key.to_string(), value);
    Value::Object(config).to_string()
}

#[test]
fn what_cannot_change_the_function_never_refuses_in_any_family() {
    let model_types = families::FAMILIES
        .iter()
        .flat_map(|family| family.model_types);
    for model_type in model_types {
        let plain = from_config(&with(model_type, "x", Value::Null)).unwrap();
        for (key, value) in [
            ("_anything", 3.into()),
            ("auto_map", serde_json::json!({"AutoConfig": "x.Y"})),
            ("classifier_dropout", 0.1.into()),
            ("custom_pipelines", serde_json::json!({"a": {}})),
            ("gradient_checkpointing", true.into()),
            ("id2label", serde_json::json!({"0": "a"})),
            ("num_labels", 7.into()),
            ("output_past", true.into()),
            ("pad_token_id", 11.into()),
            ("pooler_fc_size", 768.into()),
            ("pretraining_tp", 4.into()),
            ("some_new_token_id", 11.into()),
            ("something_empty", serde_json::json!({})),
            ("something_off", false.into()),
            ("something_unsaid", "".into()),
            ("task_specific_params", serde_json::json!({"a": {"b": 1}})),
            ("torch_dtype", "float16".into()),
            ("unsloth_tiled_mlp", true.into()),
        ] {
            // RoBERTa's positions begin behind it.
            if key == "pad_token_id" && model_type.ends_with("roberta") {
                continue;
            }
            match from_config(&with(model_type, key, value)) {
                Ok(description) => assert_eq!(description, plain, "{model_type} {key}"),
                Err(error) => panic!("{model_type}: {error}"),
            }
        }
    }
}

#[test]
fn what_nobody_knows_is_refused_by_name_until_the_user_takes_it_on() {
    let model_types = families::FAMILIES
        .iter()
        .flat_map(|family| family.model_types);
    for model_type in model_types {
        let config = with(model_type, "something_new", 2.into());
        let error = from_config(&config).unwrap_err();
        let remedy = crate::error::Remedy::AcceptConfigKey("something_new".to_string());
        assert_eq!(error.remedies(), [remedy], "{error}");
        assert!(!error.to_string().contains("remove"), "{error}");
        let other = from_config_accepting(&config, &["something_old".to_string()]);
        assert!(other.is_err());
        let accept = vec!["something_new".to_string(), "unneeded".to_string()];
        let description = from_config_accepting(&config, &accept).unwrap();
        assert_eq!(description.accepted, ["something_new = 2"]);
        let options = LoadOptions {
            accept_config_keys: accept,
            ..LoadOptions::default()
        };
        let loaded = load_under(&config, &tensors_of(&description), &options).unwrap();
        let recorded = loaded.model.origin.accepted_config_keys;
        assert_eq!(recorded, ["something_new = 2"]);
    }
}

#[test]
fn what_is_known_to_change_the_function_is_refused_without_advice_to_take_it_on() {
    for (model_type, key, value) in [
        ("llama", "is_causal", false.into()),
        ("opt", "do_layer_norm_before", false.into()),
        ("opt", "_remove_final_layer_norm", true.into()),
        ("gemma3_text", "use_bidirectional_attention", true.into()),
        ("bert", "num_key_value_heads", 1.into()),
        ("gpt_neox", "num_key_value_heads", 1.into()),
        (
            "qwen2",
            "quantization_config",
            serde_json::json!({"bits": 4}),
        ),
    ] {
        let error = from_config(&with(model_type, key, value)).unwrap_err();
        assert!(matches!(error, Error::RefusedConfig { .. }), "{error}");
        assert_eq!(error.remedies(), []);
        assert!(error.to_string().contains(key), "{error}");
    }
}

#[test]
fn two_names_of_one_quantity_load_if_they_agree() {
    for (model_type, key, same, other) in [
        ("gpt_neox", "rope_theta", 10_000.0, 20_000.0),
        ("gpt_neox", "partial_rotary_factor", 0.25, 0.5),
        ("gpt2", "num_attention_heads", 4.0, 2.0),
        ("gpt_neo", "num_hidden_layers", 3.0, 2.0),
        ("gemma2", "sliding_window_size", 5.0, 6.0),
        ("starcoder2", "layer_norm_epsilon", 1e-5, 1e-6),
        ("llama", "rope_theta", 10_000.0, f64::NAN),
    ] {
        let number = |x: f64| match x.fract() == 0.0 {
            true => Value::from(x as u64),
            false => Value::from(x),
        };
        let agreed = from_config(&with(model_type, key, number(same)));
        assert!(agreed.is_ok(), "{model_type} {key}: {agreed:?}");
        if !other.is_nan() {
            let error = from_config(&with(model_type, key, number(other))).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}

/// The first line with a tied model and an unembedding beside it.
fn with_its_own_head() -> Published {
    let mut all = published().into_iter();
    let found = all.find(|one| one.extra.len() == 1 && one.without.is_empty());
    found.unwrap()
}

#[test]
fn an_unembedding_that_differs_from_a_tied_embedding_is_used_and_said() {
    let one = with_its_own_head();
    let description = from_config(&one.text()).unwrap();
    let mut tensors = one.tensors(&description);
    let options = LoadOptions::default();
    let loaded = load_under(&one.text(), &tensors, &options).unwrap();
    assert!(description.spec.tied && !loaded.model.spec.tied);
    let notes = &loaded.model.origin.notes;
    assert!(
        notes.len() == 1 && notes[0].contains("`lm_head.weight` is used"),
        "{notes:?}"
    );
    // One that is the same says nothing.
    let embedding = tensors["model.embed_tokens.weight"].clone();
    tensors.insert("lm_head.weight".to_string(), embedding);
    let loaded = load_under(&one.text(), &tensors, &options).unwrap();
    assert!(loaded.model.spec.tied && loaded.model.origin.notes.is_empty());
}

#[test]
fn names_are_found_behind_what_wraps_them_in_every_family() {
    for model_type in families::FAMILIES
        .iter()
        .flat_map(|family| family.model_types)
    {
        let config = with(model_type, "x", Value::Null);
        let description = from_config(&config).unwrap();
        let tensors = tensors_of(&description);
        let load = |tensors: &Tensors| {
            load_under(&config, tensors, &LoadOptions::default())
                .unwrap_or_else(|error| panic!("{model_type}: {error}"))
        };
        let plain = load(&tensors);
        let prefix = description.layout.optional_prefix.as_str();
        let renamed = |rename: &dyn Fn(&str) -> String| -> Tensors {
            let tensors = tensors.iter();
            tensors
                .map(|(name, tensor)| (rename(name), tensor.clone()))
                .collect()
        };
        let bare = |name: &str| name.strip_prefix(prefix).unwrap_or(name).to_string();
        let without_prefix = load(&renamed(&bare));
        assert_eq!(
            values(&without_prefix.model),
            values(&plain.model),
            "{model_type}"
        );
        for wrapper in [
            "module.",
            "_orig_mod.",
            "base_model.model.",
            "module._orig_mod.",
        ] {
            for inner in [
                &|name: &str| name.to_string() as String,
                &bare as &dyn Fn(&str) -> String,
            ] {
                let wrapped = load(&renamed(&|name| format!("{wrapper}{}", inner(name))));
                assert_eq!(
                    values(&wrapped.model),
                    values(&plain.model),
                    "{model_type} {wrapper}"
                );
                assert_eq!(wrapped.model.origin.notes.len(), 1);
            }
        }
    }
}

#[test]
fn what_is_no_model_says_what_it_is() {
    let config = with("llama", "x", Value::Null);
    let tensors = tensors_of(&from_config(&config).unwrap());
    let refusal = |rename: &dyn Fn(&str) -> String| {
        let renamed = tensors
            .iter()
            .map(|(name, tensor)| (rename(name), tensor.clone()));
        let error = load_under(&config, &renamed.collect(), &LoadOptions::default()).unwrap_err();
        assert!(matches!(error, Error::NotAModel { .. }), "{error}");
        error.to_string()
    };
    let adapted = |name: &str| name.replace("q_proj.weight", "q_proj.lora_A.default.weight");
    assert!(refusal(&adapted).contains("adapter"));
    let merged = |name: &str| {
        format!(
            "base_model.model.{}",
            name.replace("_proj.", "_proj.base_layer.")
        )
    };
    assert!(refusal(&merged).contains("adapter"));
    for part in ["qweight", "weight_packed", "weight_scale"] {
        let quantised = |name: &str| name.replace("_proj.weight", &format!("_proj.{part}"));
        assert!(refusal(&quantised).contains("quantised"));
    }
    let folder = tempfile::tempdir().unwrap();
    let adapter = r#"{"peft_type": "LORA", "base_model_name_or_path": "org/base"}"#;
    fs::write(folder.path().join("adapter_config.json"), adapter).unwrap();
    let error = read_spec(folder.path().to_str().unwrap(), &LoadOptions::default()).unwrap_err();
    assert!(
        error.to_string().contains("a PEFT adapter of `org/base`"),
        "{error}"
    );
}

#[test]
fn no_size_makes_the_loader_panic_or_fill_a_place_with_another() {
    for model_type in families::FAMILIES
        .iter()
        .flat_map(|family| family.model_types)
    {
        let config = of_family(model_type);
        let sizes = [
            "head_dim",
            "hidden_size",
            "intermediate_size",
            "max_position_embeddings",
            "n_embd",
            "n_inner",
            "num_attention_heads",
            "num_key_value_heads",
            "partial_rotary_factor",
            "rotary_dim",
            "rotary_pct",
            "type_vocab_size",
            "vocab_size",
        ];
        for key in sizes {
            for value in [1, 2, 3, 4, 8, 48] {
                let mut other = config.clone();
                other.insert(key.to_string(), value.into());
                let other = Value::Object(other).to_string();
                let Ok(description) = from_config(&other) else {
                    continue;
                };
                // A checkpoint made for the sizes loads, or the sizes are refused; the original one loads where they did not change.
                let made = load_under(&other, &tensors_of(&description), &LoadOptions::default());
                let is_refused = matches!(
                    made,
                    Err(Error::BadConfig { .. }
                        | Error::RefusedConfig { .. }
                        | Error::TokenizerTooLarge { .. })
                );
                assert!(
                    made.is_ok() || is_refused,
                    "{model_type} {key} {value}: {made:?}"
                );
            }
        }
    }
}
