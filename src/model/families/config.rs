//! The gate: reading `config.json` as transformers reads it, without trusting it.
//!
//! What a file leaves out is what transformers' own class assumes ([`Family::defaults`](super::Family)); what it says twice, under an
//! old and a new name, must agree. A key that a family does not read then belongs to one of these:
//!
//! - it cannot change the function (training, generation, serving, bookkeeping, marks of mirrors), or is empty, null or false, or has
//!   the value that transformers assumes anyway, or says again what another key says: it is passed over;
//! - transformers reads it, and computes something else under this value: refused with the reason;
//! - nobody here knows it: refused by name, unless the user takes it on ([`LoadOptions::accept_config_keys`]), which the model's
//!   [`Origin`] records.
//!
//! [`LoadOptions::accept_config_keys`]: crate::model::LoadOptions
//! [`Origin`]: crate::model::Origin

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::spec::Activation;
use crate::text::shortened;

/// Keys that no value of changes the logits: training, generation, serving, classification heads, bookkeeping.
const HARMLESS: &[&str] = &[
    "architectures",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "batch_size",
    "bf16",
    "cache_config",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_activation",
    "classifier_bias",
    "classifier_pooling",
    "custom_pipelines",
    "device",
    "device_map",
    "directionality",
    "do_sample",
    "dropout",
    // Of servers: transformers attends to the whole prompt at once.
    "dual_chunk_attention_config",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "finetuned",
    "finetuning_task",
    "fp16",
    "fp32",
    "gradient_checkpointing",
    "gradient_checkpointing_use_reentrant",
    "id2label",
    "is_decoder",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "label_smoothing",
    "language",
    "layerdrop",
    "max_length",
    "max_new_tokens",
    "max_seq_len",
    "max_seq_length",
    "max_sequence_length",
    // Read by the families that have it.
    "max_window_layers",
    "min_length",
    "min_new_tokens",
    "model_max_length",
    "model_type",
    "n_ctx",
    "n_special",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_past",
    "output_router_logits",
    "output_scores",
    "predict_special_tokens",
    "prefix",
    "pretraining_tp",
    "problem_type",
    "remove_invalid_values",
    "return_dict",
    "return_dict_in_generate",
    "revision",
    "seed",
    "seq_len",
    "seq_length",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "tokenizer_name",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "train_batch_size",
    "trust_remote_code",
    "typical_p",
    "use_bfloat16",
    "use_cache",
    "use_fast",
    "use_mem_efficient_attention",
    "use_memory_efficient_attention",
    "use_return_dict",
    "use_sdpa",
    "use_xformers",
    "xla_device",
];

/// Beginnings and ends of names that stand for the same. A leading underscore is an attribute that transformers keeps for itself.
const HARMLESS_STARTS: &[&str] = &[
    "_",
    "begin_suppress",
    "flash_attn",
    "forced_",
    "freeze_",
    "fused_",
    "init_",
    "initializer_",
    "onnx",
    "pooler_",
    "summary_",
    "suppress_",
    "training_",
    "transformers",
    "unsloth",
    "use_flash",
    "use_fused",
    "wandb",
];
const HARMLESS_ENDS: &[&str] = &[
    "_attn_implementation",
    "_checkpointing",
    "_drop_rate",
    "_dropout",
    "_dropout_prob",
    "_loss_coef",
    "_pdrop",
    "_penalty",
    "_softmax_in_fp32",
    "_token_id",
    "_token_ids",
    "_version",
];

/// Keys that transformers reads in every model and that change the function, with what they do, and the values at which they do not.
/// Where a value is false or empty this goes before the rule that such values are passed over.
const CHANGES: &[(&str, &[&str], &str)] = &[
    (
        "add_cross_attention",
        &["false"],
        "it attends to a second model",
    ),
    ("is_causal", &["true"], "it attends in both directions"),
    (
        "is_encoder_decoder",
        &["false"],
        "it is an encoder with a decoder",
    ),
    (
        "per_layer_config",
        &["{}", "[]"],
        "its layers have configs of their own",
    ),
    ("pruned_heads", &["{}"], "it has lost heads"),
    (
        "use_bidirectional_attention",
        &["false"],
        "it attends in both directions",
    ),
];

/// Where quantised checkpoints say so.
const QUANTISED: &[&str] = &[
    "compression_config",
    "quantization",
    "quantization_config",
    "quantize_config",
];

/// Names that configs of various families have for one quantity: where one of them is read, another at the same value says it again.
const SAME: &[&[&str]] = &[
    &["hidden_size", "n_embd", "d_model", "dim"],
    &["num_hidden_layers", "n_layer", "n_layers", "num_layers"],
    &["num_attention_heads", "n_head", "n_heads", "num_heads"],
    &[
        "num_key_value_heads",
        "n_kv_heads",
        "num_kv_heads",
        "n_head_kv",
    ],
    &["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"],
    &["head_dim", "kv_channels", "attention_head_size"],
    &["max_position_embeddings", "n_positions", "n_ctx"],
    &["sliding_window", "sliding_window_size", "window_size"],
    &[
        "norm_epsilon",
        "layer_norm_epsilon",
        "layer_norm_eps",
        "rms_norm_eps",
        "norm_eps",
    ],
    &["hidden_act", "hidden_activation", "activation_function"],
    &["rope_theta", "rotary_emb_base", "rotary_base", "rope_base"],
    &["partial_rotary_factor", "rotary_pct", "rope_pct"],
    &["attention_bias", "qkv_bias", "use_qkv_bias"],
];

/// Parses JSON into a typed form.
/// # Errors
/// [`Error::UnreadableConfig`] with serde's reason, which names the key.
pub fn parse<T: DeserializeOwned>(config: &str) -> Result<T> {
    serde_json::from_str(config).map_err(|source| Error::UnreadableConfig {
        reason: source.to_string(),
    })
}

/// The keys of one `config.json`, with those that it leaves out as transformers' class has them.
#[derive(Debug)]
pub struct Keys<'a> {
    family: &'static str,
    /// As written, old names replaced by new ones.
    written: Map<String, Value>,
    /// What transformers' class assumes.
    defaults: Map<String, Value>,
    /// Keys of `written` that stood there under another name.
    renamed: Vec<&'static str>,
    /// Keys that the user takes on.
    accept: &'a [String],
    /// Those of them that would have been refused, with their values.
    accepted: Vec<String>,
}

impl<'a> Keys<'a> {
    /// Reads a config; `synonyms` are pairs of an older or second name and the one that the family reads.
    /// # Errors
    /// [`Error::UnreadableConfig`]; [`Error::BadConfig`] if two names of one quantity disagree.
    pub fn new(
        family: &'static str,
        config: &str,
        defaults: &str,
        synonyms: &[(&str, &'static str)],
        accept: &'a [String],
    ) -> Result<Self> {
        let mut written: Map<String, Value> = parse(config)?;
        let mut renamed = Vec::new();
        for (other, name) in synonyms {
            let Some(value) = written.remove(*other) else {
                continue;
            };
            match written.get(*name) {
                Some(_) if value.is_null() => continue,
                Some(first) if !first.is_null() && !is_same(first, &value) => {
                    return Err(Error::BadConfig {
                        key: (*name).to_string(),
                        reason: format!(
                            "is {}, but `{other}`, which means the same, is {}",
                            shown(first),
                            shown(&value)
                        ),
                    });
                }
                _ => written.insert((*name).to_string(), value),
            };
            renamed.push(*name);
        }
        let defaults = parse(defaults)?;
        Ok(Keys {
            family,
            written,
            renamed,
            defaults,
            accept,
            accepted: Vec::new(),
        })
    }

    /// The family's own view of the keys.
    /// # Errors
    /// [`Error::UnreadableConfig`] with serde's reason.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        let mut keys = self.defaults.clone();
        keys.extend(self.written.clone());
        serde_json::from_value(Value::Object(keys)).map_err(|source| Error::UnreadableConfig {
            reason: source.to_string(),
        })
    }

    /// Whether the file itself has a key, and not null.
    pub fn says(&self, key: &str) -> bool {
        self.written.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether a key stood in the file under the name that the family reads, and under no other.
    pub fn says_by_this_name_alone(&self, key: &str) -> bool {
        self.says(key) && !self.renamed.contains(&key)
    }

    /// Refuses the first of the keys that the family does not read which may change the function; `harmless_at` are values at which
    /// the family knows of keys that transformers' class does not have that they say what is so anyway.
    /// # Errors
    /// [`Error::UnhandledConfig`], [`Error::RefusedConfig`].
    pub fn refuse_unhandled(
        &mut self,
        unread: &Map<String, Value>,
        harmless_at: &[(&str, &str)],
        changes: &[(&str, &str)],
    ) -> Result<()> {
        for (key, value) in unread {
            if self.is_passed_over(key, value, harmless_at) {
                continue;
            }
            let common = CHANGES.iter().find(|(name, ..)| name == key);
            let own = changes.iter().find(|(name, _)| name == key);
            let reason = match (own, common) {
                (Some((_, reason)), _) | (None, Some((.., reason))) => Some(*reason),
                _ if QUANTISED.contains(&key.as_str()) => Some(
                    "its weights are quantised, and of quantised weights only those of GGUF files are read; load the model \
                     that it was made from, or its GGUF",
                ),
                _ if self.defaults.contains_key(key) => {
                    Some("transformers computes something else under it")
                }
                _ => None,
            };
            match reason {
                Some(reason) => self.refuse(key, &shown(value), reason)?,
                None => self.take_on_or(key, &shown(value), |family, key, value| {
                    Error::UnhandledConfig { family, key, value }
                })?,
            }
        }
        Ok(())
    }

    /// Refuses a key that is known to change the function, unless the user has taken it on.
    /// # Errors
    /// [`Error::RefusedConfig`].
    pub fn refuse(&mut self, key: &str, value: &str, reason: &str) -> Result<()> {
        self.take_on_or(key, value, |family, key, value| Error::RefusedConfig {
            family,
            key,
            value,
            reason: reason.to_string(),
        })
    }

    /// Refuses a key that nobody here knows, unless the user has taken it on.
    /// # Errors
    /// [`Error::UnhandledConfig`].
    pub fn refuse_unknown(&mut self, key: &str, value: &str) -> Result<()> {
        self.take_on_or(key, value, |family, key, value| Error::UnhandledConfig {
            family,
            key,
            value,
        })
    }

    fn take_on_or(
        &mut self,
        key: &str,
        value: &str,
        error: impl Fn(String, String, String) -> Error,
    ) -> Result<()> {
        if !self.accept.iter().any(|name| name == key) {
            let family = self.family.to_string();
            return Err(error(family, shortened(key), value.to_string()));
        }
        self.accepted.push(format!("{} = {value}", shortened(key)));
        Ok(())
    }

    /// What the user took on, as `key = value`.
    pub fn accepted(self) -> Vec<String> {
        self.accepted
    }

    fn is_passed_over(&self, key: &str, value: &Value, harmless_at: &[(&str, &str)]) -> bool {
        let is_at = |texts: &[&str]| {
            let mut values = texts
                .iter()
                .filter_map(|text| serde_json::from_str(text).ok());
            values.any(|known: Value| is_same(&known, value))
        };
        let at = |(name, text): &(&str, &str)| *name == key && is_at(&[text]);
        if value.is_null() || harmless_at.iter().any(at) {
            return true;
        }
        if let Some(default) = self.defaults.get(key) {
            // A class has keys of its own that begin with an underscore, and reads them.
            return is_same(default, value) || is_bookkeeping(key) && !key.starts_with('_');
        }
        if let Some((_, values, _)) = CHANGES.iter().find(|(name, ..)| *name == key) {
            return is_at(values);
        }
        is_bookkeeping(key)
            || is_empty(value)
            || self.says_again(key, value)
            || key == "layer_types" && sees_everything(value)
    }

    /// Whether another key of the same meaning, written or assumed, has this value.
    fn says_again(&self, key: &str, value: &Value) -> bool {
        let mut groups = SAME.iter().filter(|group| group.contains(&key));
        groups.any(|group| {
            let mut others = group.iter().filter(|other| **other != key);
            others.any(|other| {
                let known = self.written.get(*other).or(self.defaults.get(*other));
                known.is_some_and(|known| is_same(known, value))
            })
        })
    }
}

/// Whether `layer_types` says of every layer what is so without it.
fn sees_everything(layer_types: &Value) -> bool {
    let kinds = layer_types.as_array();
    kinds.is_some_and(|kinds| kinds.iter().all(|kind| kind == "full_attention"))
}

fn is_bookkeeping(key: &str) -> bool {
    HARMLESS.contains(&key)
        || HARMLESS_STARTS.iter().any(|start| key.starts_with(start))
        || HARMLESS_ENDS.iter().any(|end| key.ends_with(end))
}

pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(keys) => keys.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

/// Equality in which 1 is 1.0.
fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => one.as_f64() == other.as_f64(),
        _ => one == other,
    }
}

/// A value short enough for one line.
pub fn shown(value: &Value) -> String {
    shortened(&value.to_string())
}

/// The activation under its Hugging Face name.
/// # Errors
/// [`Error::BadConfig`] that lists what we know.
pub fn activation(key: &str, name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" | "gelu_python" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate" => {
            Ok(Activation::GeluTanh)
        }
        "relu" => Ok(Activation::Relu),
        _ => Err(Error::BadConfig {
            key: key.to_string(),
            reason: format!(
                "activation `{}` is not handled; we have silu, gelu, gelu_new, gelu_pytorch_tanh, relu",
                shortened(name)
            ),
        }),
    }
}
