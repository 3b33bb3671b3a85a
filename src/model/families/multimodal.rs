//! Models that read images as well: of these the text model, whose config stands inside the other and whose weights have a prefix.
//!
//! On text alone they compute what their text model does. What reads images is passed over.

use serde_json::{Map, Value};

use super::config::{Keys, parse};
use crate::error::{Error, Result};

/// The `model_type` of those of which the text model is read, and that of the text model where its config does not say it.
const TEXT_OF: [(&str, &str); 2] = [("gemma3", "gemma3_text"), ("mistral3", "mistral")];

/// Beginnings of the names of tensors that read images.
pub const OTHER_PARTS: [&str; 4] = [
    "vision_tower.*",
    "model.vision_tower.*",
    "multi_modal_projector.*",
    "model.multi_modal_projector.*",
];

/// Keys beside the text model's config that say how images are read.
const OF_IMAGES: [&str; 10] = [
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "mm_tokens_per_image",
    "multimodal_projector_bias",
    "projector_hidden_act",
    "spatial_merge_size",
    "vision_config",
    "vision_feature_layer",
    "vision_feature_select_strategy",
];

/// The config of the text model, if this is one of those, and which keys beside it the user has taken on.
/// # Errors
/// [`Error::UnreadableConfig`]; [`Error::BadConfig`] without a text model; [`Error::UnhandledConfig`], [`Error::RefusedConfig`].
pub fn text_part(config: &str, accept: &[String]) -> Result<(Option<String>, Vec<String>)> {
    let mut outer: Map<String, Value> = parse(config)?;
    let name = outer.get("model_type").and_then(Value::as_str);
    let known = TEXT_OF.iter().find(|(known, _)| Some(*known) == name);
    let Some((family, text_type)) = known else {
        return Ok((None, Vec::new()));
    };
    let Some(Value::Object(mut text)) = outer.remove("text_config") else {
        return Err(Error::BadConfig {
            key: "text_config".to_string(),
            reason: "is not there, and the text model is all that is read of it".to_string(),
        });
    };
    // The outer config decides whether the unembedding is tied; transformers assumes that it is.
    let tied = outer.remove("tie_word_embeddings").unwrap_or(Value::Null);
    let tied = if tied.is_null() { true.into() } else { tied };
    text.insert("tie_word_embeddings".to_string(), tied);
    text.entry("model_type")
        .or_insert_with(|| (*text_type).into());
    outer.retain(|key, _| !OF_IMAGES.contains(&key.as_str()));
    let mut keys = Keys::new(family, "{}", "{}", &[], accept)?;
    keys.refuse_unhandled(&outer, &[], &[])?;
    Ok((Some(Value::Object(text).to_string()), keys.accepted()))
}
