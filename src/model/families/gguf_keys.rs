//! The gate of a GGUF: what is no whole model is refused as what it is, and a key of its architecture that nobody here knows by name.

use super::config::Keys;
use crate::error::{Error, Result};
use crate::model::gguf::{self, Gguf};
use crate::text::shortened;

/// Refuses what is only part of a model, or something beside one: an adapter, a part of a split file.
/// # Errors
/// [`Error::NotAModel`].
pub fn refuse_parts(gguf: &Gguf) -> Result<()> {
    let find = |name: &str| {
        let mut all = gguf.metadata();
        all.find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    let text = |key: &str| find(key).and_then(gguf::Value::text).map(shortened);
    let not_a_model = |what: String, instead: &str| {
        Err(Error::NotAModel {
            name: gguf.path().display().to_string(),
            what,
            instead: instead.to_string(),
        })
    };
    let kind = text("general.type").filter(|kind| kind != "model");
    let mut keys = gguf.metadata();
    if kind.as_deref() == Some("adapter") || keys.any(|(key, _)| key.starts_with("adapter.")) {
        let adapter = text("adapter.type").unwrap_or_else(|| "some".to_string());
        return not_a_model(
            format!("an adapter ({adapter})"),
            "merge it into the model that it is for (`llama-export-lora`) and load the result",
        );
    }
    if let Some(kind) = kind {
        return not_a_model(
            format!("a GGUF of type `{kind}`"),
            "load the GGUF of the text model that it belongs to",
        );
    }
    let number = |key: &str| find(key).and_then(gguf::Value::number);
    if let Some(count) = number("split.count").filter(|count| *count != 1.0) {
        let part =
            number("split.no").map_or("a part".to_string(), |no| format!("part {}", no + 1.0));
        return not_a_model(
            format!("{part} of {count} that a model was split into"),
            "join them (`llama-gguf-split --merge`) and load the result",
        );
    }
    Ok(())
}

/// Refuses the first GGUF key under `{architecture}.` that is neither in `handled` nor at a value in `at_default`.
/// Other keys describe the file (`general.`), its tokenizer or its quantisation.
/// # Errors
/// [`Error::UnhandledConfig`].
pub fn refuse_unhandled_gguf(
    gguf: &Gguf,
    keys: &mut Keys,
    architecture: &str,
    handled: &[&str],
    at_default: &[(&str, f64)],
) -> Result<()> {
    for (key, value) in gguf.metadata() {
        let name = key.strip_prefix(architecture);
        let Some(name) = name.and_then(|rest| rest.strip_prefix('.')) else {
            continue;
        };
        let mut defaults = at_default.iter();
        let is_default =
            defaults.any(|(other, number)| *other == name && value.number() == Some(*number));
        let is_off =
            value.to_string() == "false" && at_default.iter().all(|(other, _)| *other != name);
        if !handled.contains(&name) && !is_default && !is_off {
            keys.refuse_unknown(key, &shortened(&value.to_string()))?;
        }
    }
    Ok(())
}
