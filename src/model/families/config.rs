//! Reading `config.json` without trusting it: keys that change nothing are listed here once, sizes are bounded,
//! and every key that a family neither reads nor knows to be at its default is refused by name.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::model::gguf::{self, Gguf};
use crate::model::spec::{Activation, ModelSpec, Position, RopeScaling};
use crate::text::shortened;

/// Keys that no value of changes the logits: training, generation, classification heads, bookkeeping.
const HARMLESS: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "activation_dropout",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_implementation",
    "attn_pdrop",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "classifier_dropout",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "embd_pdrop",
    "embed_dropout",
    "embedding_dropout",
    "encoder_no_repeat_ngram_size",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "id2label",
    "init_std",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "layerdrop",
    "length_penalty",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "resid_dropout",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "summary_activation",
    "summary_first_dropout",
    "summary_proj_to_labels",
    "summary_type",
    "summary_use_proj",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

/// Keys that change the function, but not at this value.
const HARMLESS_AT: &[(&str, &str)] = &[
    ("add_cross_attention", "false"),
    ("chunk_size_feed_forward", "0"),
    ("is_decoder", "false"),
    ("is_decoder", "true"),
    ("is_encoder_decoder", "false"),
    ("pruned_heads", "{}"),
    ("rope_interleaved", "false"),
    ("tie_encoder_decoder", "false"),
];

/// Beyond these a config is damaged or hostile: sizes decide allocations before any weight is seen.
const MOST_LAYERS: usize = 4096;
const MOST_WIDTH: usize = 1 << 20;
const MOST_VOCAB: usize = 1 << 26;
const MOST_POSITIONS: usize = 1 << 28;

/// Parses a `config.json` into a family's typed form.
/// # Errors
/// [`Error::UnreadableConfig`] with serde's reason, which names the key.
pub fn parse<T: DeserializeOwned>(config: &str) -> Result<T> {
    serde_json::from_str(config).map_err(|source| Error::UnreadableConfig {
        reason: source.to_string(),
    })
}

/// Refuses the first key that is neither harmless, nor null, nor at a value where the family knows it to be without effect.
/// # Errors
/// [`Error::UnhandledConfig`].
pub fn refuse_unhandled(
    family: &str,
    rest: &Map<String, Value>,
    at_default: &[(&str, &str)],
) -> Result<()> {
    let is_harmless = |key: &str, value: &Value| {
        let written = value.to_string();
        let mut defaults = HARMLESS_AT.iter().chain(at_default);
        HARMLESS.contains(&key)
            || value.is_null()
            || defaults.any(|(name, text)| *name == key && written == *text)
    };
    match rest.iter().find(|(key, value)| !is_harmless(key, value)) {
        None => Ok(()),
        Some((key, value)) => Err(Error::UnhandledConfig {
            family: family.to_string(),
            key: key.clone(),
            value: shortened(&value.to_string()),
        }),
    }
}

/// The activation under its Hugging Face name.
/// # Errors
/// [`Error::BadConfig`] that lists what we know.
pub fn activation(key: &str, name: &str) -> Result<Activation> {
    match name {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
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

/// Refuses a layer count that no model has, before anything is allocated by it.
/// # Errors
/// [`Error::BadConfig`].
pub fn check_layers(key: &str, n_layers: usize) -> Result<()> {
    in_range(key, n_layers, MOST_LAYERS)
}

/// `d_head` where the config leaves it out: `width / heads`, which must come out even.
/// # Errors
/// [`Error::BadConfig`].
pub fn head_width(key: &str, width: usize, heads: usize) -> Result<usize> {
    if heads == 0 || !width.is_multiple_of(heads) {
        return Err(Error::BadConfig {
            key: key.to_string(),
            reason: format!("{heads} heads do not divide a width of {width}"),
        });
    }
    Ok(width / heads)
}

/// Checks what every family's spec must satisfy before a weight is read.
/// # Errors
/// [`Error::BadConfig`] naming the size.
pub fn check_spec(spec: &ModelSpec) -> Result<()> {
    in_range("number of layers", spec.n_layers, MOST_LAYERS)?;
    in_range("number of heads", spec.n_heads, MOST_WIDTH)?;
    in_range("number of key/value heads", spec.n_kv_heads, spec.n_heads)?;
    in_range("d_model", spec.d_model, MOST_WIDTH)?;
    in_range("d_head", spec.d_head, MOST_WIDTH)?;
    in_range("d_mlp", spec.d_mlp.max(1), MOST_WIDTH)?;
    in_range("vocab_size", spec.d_vocab, MOST_VOCAB)?;
    in_range("number of positions", spec.n_ctx, MOST_POSITIONS)?;
    in_range("heads x d_head", spec.n_heads * spec.d_head, MOST_WIDTH)?;
    if let Some(encoder) = spec.encoder {
        in_range("type_vocab_size", encoder.n_segments, MOST_WIDTH)?;
    }
    let bad = |key: &str, reason: String| {
        Err(Error::BadConfig {
            key: key.to_string(),
            reason,
        })
    };
    if !spec.n_heads.is_multiple_of(spec.n_kv_heads) {
        return bad(
            "number of key/value heads",
            format!("{} do not divide {} heads", spec.n_kv_heads, spec.n_heads),
        );
    }
    if !(spec.norm_eps.is_finite() && spec.norm_eps >= 0.0) {
        return bad(
            "norm epsilon",
            format!("{} is not a number to add to a variance", spec.norm_eps),
        );
    }
    if spec.windows.contains(&Some(0)) {
        return bad(
            "sliding_window",
            "0 would leave a query no key to attend to".into(),
        );
    }
    if !spec.attn_scale.iter().all(|scale| scale.is_finite()) {
        return bad("attention scale", "is not a finite number".into());
    }
    for (key, cap) in [
        ("attention soft-cap", spec.attn_softcap),
        ("final soft-cap", spec.final_softcap),
    ] {
        if let Some(cap) = cap.filter(|cap| !(cap.is_finite() && *cap > 0.0)) {
            return bad(key, format!("{cap} is not a positive number"));
        }
    }
    if let Position::Rotary(rotary) = &spec.position {
        if rotary.dims == 0 || !rotary.dims.is_multiple_of(2) || rotary.dims > spec.d_head {
            return bad(
                "rotary dimensions",
                format!(
                    "{} of a head of {}; an even number is needed",
                    rotary.dims, spec.d_head
                ),
            );
        }
        if let Some(base) = rotary
            .bases
            .iter()
            .find(|b| !(b.theta.is_finite() && b.theta > 0.0))
        {
            return bad(
                "rope_theta",
                format!("{} is not a positive number", base.theta),
            );
        }
        for base in &rotary.bases {
            let lists: &[&Vec<f64>] = match &base.scaling {
                RopeScaling::Factors { factors } => &[factors],
                RopeScaling::LongRope { short, long, .. } => &[short, long],
                _ => &[],
            };
            if let Some(list) = lists.iter().find(|list| list.len() != rotary.dims / 2) {
                let (found, wanted) = (list.len(), rotary.dims / 2);
                return bad(
                    "rope factors",
                    format!("{found} of them for {wanted} pairs"),
                );
            }
        }
    }
    Ok(())
}

/// Refuses the first GGUF key under `{architecture}.` that is neither in `handled` nor at a value in `at_default`.
/// Other keys describe the file (`general.`), its tokenizer or its quantisation.
/// # Errors
/// [`Error::UnhandledConfig`].
pub fn refuse_unhandled_gguf(
    gguf: &Gguf,
    architecture: &str,
    handled: &[&str],
    at_default: &[(&str, f64)],
) -> Result<()> {
    for (key, value) in gguf.metadata() {
        let Some(name) = key
            .strip_prefix(architecture)
            .and_then(|rest| rest.strip_prefix('.'))
        else {
            // An adapter or a part of a split file is no model by itself.
            let partial = key == "split.count" && value.number() != Some(1.0)
                || key.starts_with("adapter.")
                || key == "general.type" && value.text() != Some("model");
            if partial {
                return Err(unhandled_gguf(architecture, key, value));
            }
            continue;
        };
        let is_default = || {
            at_default
                .iter()
                .any(|(other, number)| *other == name && value.number() == Some(*number))
        };
        if !handled.contains(&name) && !is_default() {
            return Err(unhandled_gguf(architecture, key, value));
        }
    }
    Ok(())
}

fn unhandled_gguf(family: &str, key: &str, value: &gguf::Value) -> Error {
    Error::UnhandledConfig {
        family: family.to_string(),
        key: shortened(key),
        value: shortened(&value.to_string()),
    }
}

fn in_range(key: &str, value: usize, most: usize) -> Result<()> {
    if (1..=most).contains(&value) {
        return Ok(());
    }
    Err(Error::BadConfig {
        key: key.to_string(),
        reason: format!("{value} is not between 1 and {most}"),
    })
}
