//! What every rewritten vocabulary needs: the kinds of tokens that a GGUF marks, and added tokens as `tokenizer.json` lists them.

use serde_json::{Value, json};

use crate::error::Error;

// Kinds of tokens in `tokenizer.ggml.token_type`.
pub(super) const CONTROL: f64 = 3.0;
pub(super) const USER_DEFINED: f64 = 4.0;

pub(super) fn added_token(id: usize, content: &str, special: bool) -> Value {
    json!({
        "id": id, "content": content, "special": special,
        "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
    })
}

pub(super) fn refused(reason: String) -> Error {
    Error::Tokenizer { reason }
}
