//! A tokenizer for models that have none: their tokens are numbers, and a prompt is those numbers with spaces between, `3 17 4`.

use serde_json::{Map, Value, json};

/// The `tokenizer.json` of a vocabulary of `d_vocab` numbers. It has no token for anything else, so that a word that is no number is
/// an error and never dropped.
pub(super) fn tokenizer_json(d_vocab: usize) -> String {
    let vocab: Map<String, Value> = (0..d_vocab).map(|id| (id.to_string(), id.into())).collect();
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {
            "type": "Split", "pattern": { "Regex": r"\s+" }, "behavior": "Removed", "invert": false,
        },
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use super::tokenizer_json;
    use crate::model::Tokenizer;

    #[test]
    fn a_prompt_is_numbers_and_nothing_else() {
        let tokenizer = Tokenizer::from_bytes(tokenizer_json(12).as_bytes(), None).unwrap();
        let encoded = tokenizer.encode("3 11  0", false).unwrap();
        assert_eq!(encoded.ids, [3, 11, 0]);
        assert_eq!(encoded.spans, [0..1, 2..4, 6..7]);
        assert_eq!(tokenizer.decode(&[3, 11, 0]).unwrap(), "3 11 0");
        assert_eq!(tokenizer.answer_ids(" 5").unwrap(), [5]);
        assert_eq!(
            (tokenizer.bos(), tokenizer.token(11)),
            (None, "11".to_string())
        );
        for text in ["12", "a", "3,4", "-1"] {
            let message = tokenizer.encode(text, false).unwrap_err().to_string();
            assert!(message.contains("no token"), "{message}");
        }
    }
}
