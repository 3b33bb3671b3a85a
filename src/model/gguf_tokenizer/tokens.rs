//! What every vocabulary of a GGUF needs: its tokens with their kinds, and the parts of a tokenizer put together.

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokenizers::models::bpe::{BpeBuilder, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper};

use crate::error::{Error, Result};
use crate::model::gguf::Gguf;
use crate::model::tokenizer::quietly;

// Kinds of tokens in `tokenizer.ggml.token_type`.
pub(super) const NORMAL: f64 = 1.0;
pub(super) const UNKNOWN: f64 = 2.0;
pub(super) const CONTROL: f64 = 3.0;
pub(super) const USER_DEFINED: f64 = 4.0;

/// The tokens, in the order of their ids.
pub(super) struct Tokens {
    pub texts: Vec<String>,
    pub kinds: Vec<f64>,
}

impl Tokens {
    pub fn read(gguf: &Gguf) -> Result<Self> {
        let texts = gguf.texts("tokenizer.ggml.tokens")?;
        let kinds = gguf.numbers("tokenizer.ggml.token_type")?;
        if kinds.len() != texts.len() {
            return Err(refused(format!(
                "{} tokens but {} token types; the GGUF is damaged",
                texts.len(),
                kinds.len()
            )));
        }
        Ok(Tokens { texts, kinds })
    }

    /// The tokens of some kinds, which are found in a text as they are, before anything else is done to it.
    pub fn added(&self, kinds: &[f64]) -> Vec<AddedToken> {
        let listed = self.texts.iter().zip(&self.kinds);
        let listed = listed.filter(|(_, kind)| kinds.contains(kind));
        let added = listed.map(|(text, kind)| {
            AddedToken::from(text.clone(), *kind != USER_DEFINED).normalized(false)
        });
        added.collect()
    }

    pub fn into_vocabulary(self) -> Vocab {
        self.texts.into_iter().zip(0..).collect()
    }
}

/// A tokenizer from its model and, as `tokenizer.json` writes them, its other parts.
pub(super) fn built(
    model: BpeBuilder,
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    added: Vec<AddedToken>,
) -> Result<tokenizers::Tokenizer> {
    quietly(|| {
        let mut inner = tokenizers::Tokenizer::new(model.build()?);
        inner.with_normalizer(part::<NormalizerWrapper>(normalizer)?)?;
        inner.with_pre_tokenizer(part::<PreTokenizerWrapper>(pre_tokenizer)?);
        inner.with_decoder(part::<DecoderWrapper>(decoder)?);
        inner.add_tokens(added)?;
        Ok(inner)
    })
}

fn part<T: DeserializeOwned>(json: Value) -> tokenizers::Result<Option<T>> {
    Ok(serde_json::from_value(json)?)
}

pub(super) fn refused(reason: String) -> Error {
    Error::Tokenizer { reason }
}
