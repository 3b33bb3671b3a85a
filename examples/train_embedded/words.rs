//! The word-level tokenizer: a token is a word or a punctuation mark.

use std::collections::HashMap;

use serde_json::{Value, json};

use crate::corpus::{self, NAMES};

/// The vocabulary of the corpus.
pub struct Words {
    list: Vec<&'static str>,
    index: HashMap<&'static str, u32>,
}

impl Words {
    pub fn new() -> Self {
        let list = corpus::vocabulary();
        let index = list.iter().zip(0..).map(|(&word, id)| (word, id)).collect();
        Self { list, index }
    }

    pub fn len(&self) -> usize {
        self.list.len()
    }

    pub fn token(&self, word: &str) -> u32 {
        self.index[word]
    }

    pub fn tokens(&self, words: &[&str]) -> Vec<u32> {
        words.iter().map(|word| self.token(word)).collect()
    }

    pub fn name(&self, index: usize) -> u32 {
        self.token(NAMES[index])
    }

    /// `tokenizer.json` in the Hugging Face format: words are split at spaces and around punctuation, and `<bos>` is put in
    /// front where special tokens are asked for.
    pub fn tokenizer(&self) -> Value {
        let special = |word: &str| {
            json!({ "id": self.token(word), "content": word, "single_word": false, "lstrip": false, "rstrip": false,
                    "normalized": false, "special": true })
        };
        let vocab: serde_json::Map<String, Value> = self
            .list
            .iter()
            .map(|&word| (word.to_string(), json!(self.token(word))))
            .collect();
        let bos = self.token("<bos>");
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [special("<bos>"), special("<unk>")],
            "normalizer": null,
            "pre_tokenizer": { "type": "Whitespace" },
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{ "SpecialToken": { "id": "<bos>", "type_id": 0 } }, { "Sequence": { "id": "A", "type_id": 0 } }],
                "pair": [{ "Sequence": { "id": "A", "type_id": 0 } }, { "Sequence": { "id": "B", "type_id": 1 } }],
                "special_tokens": { "<bos>": { "id": "<bos>", "ids": [bos], "tokens": ["<bos>"] } },
            },
            "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" },
        })
    }
}
