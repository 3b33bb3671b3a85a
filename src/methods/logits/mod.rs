//! What the parts of a model write to the logits, read off one run without changing it.
//!
//! - [`dla`]: direct logit attribution, by component, head, neuron, or head and source token; what a head or neuron writes.
//! - [`source_tokens`]: heads classed by where they read the answer from ("Summing Up the Facts").
//! - [`lens`]: the logit lens: each layer's stream through the final norm and the unembedding.
//! - [`token_lens`]: what attention to one group of tokens promotes, and attention knockout ("Promote, Suppress, Iterate").
//! - [`overthinking`]: early decoding under true and false demonstrations, false induction heads.
//!
//! All but the lens share `readout`: the final norm with the scale of the run itself, which makes the read-out linear, so
//! that contributions sum to the logit exactly. The lens and early decoding share `vocabulary`, which reads whole distributions.

pub mod dla;
mod groups;
mod head;
pub mod lens;
mod normed_stream;
pub mod overthinking;
pub(super) mod readout;
pub mod source_tokens;
pub mod token_lens;
mod vocabulary;
mod written;

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::model::{ModelSpec, Tokenizer};
use crate::task::Task;

pub use dla::{DlaConfig, Part};
pub use lens::{LensConfig, LensPositions};
pub use overthinking::EarlyConfig;
pub use readout::DirectTarget;
pub use source_tokens::SourceConfig;
pub use token_lens::TokenLensConfig;

/// What asks for attention that looks back alone, in the words of the refusal.
const NEEDS_DECODER: &str = "lenses";

/// Each text as the one token that it is.
/// # Errors
/// [`Error::Invalid`] naming a text that is several tokens, or unknown.
pub fn single_tokens(texts: &[String], tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    let single = |text: &String| match tokenizer.answer_ids(text)?[..] {
        [id] if tokenizer.unknown() != Some(id) => Ok(id),
        ref ids => Err(Error::invalid(format!(
            "`{text}` must be one token, and is {} to this tokenizer (a leading space often matters)",
            if ids.len() == 1 {
                "unknown".to_string()
            } else {
                format!("{} tokens", ids.len())
            }
        ))),
    };
    texts.iter().map(single).collect()
}

/// # Errors
/// [`Error::OutOfRange`] for a token that is not in the vocabulary.
pub(super) fn check_tokens(tokens: &[u32], spec: &ModelSpec) -> Result<()> {
    match tokens.iter().find(|&&id| id as usize >= spec.d_vocab) {
        None => Ok(()),
        Some(id) => Err(Error::OutOfRange {
            hook: "the vocabulary".into(),
            what: "token",
            value: id.to_string(),
            limit: format!("{} tokens", spec.d_vocab),
        }),
    }
}

/// Tokens as text, each told from the others: a text that several of them have goes with the id.
pub(super) fn distinct_texts(task: &Task, tokens: &[u32]) -> Vec<String> {
    let texts: Vec<String> = tokens.iter().map(|&token| task.text(token)).collect();
    let mut counts: BTreeMap<&String, usize> = BTreeMap::new();
    texts
        .iter()
        .for_each(|text| *counts.entry(text).or_default() += 1);
    let distinct = texts.iter().zip(tokens).map(|(text, token)| {
        if counts[text] > 1 {
            format!("{text} [{token}]")
        } else {
            text.clone()
        }
    });
    distinct.collect()
}
