//! Text to token ids and back, with everything explicit that a tokenizer library does behind one's back: the BOS token, the
//! byte range of every token (roles are found by it), and the chat template.
//!
//! Encoding never runs the tokenizer's post-processor for special tokens: we ask for none and put BOS in front ourselves (and, for an
//! encoder, what stands behind a text), so that a result can record whether it was there. Truncation, padding and BPE dropout, which a `tokenizer.json` may ask for, are
//! switched off: they would change ids without a word.

mod chat;
mod date;
mod files;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use tokenizers::models::ModelWrapper;

use crate::error::{Error, Result};
use crate::panics::caught;
use crate::text::{printable, shortened};
pub use date::Date;
pub(super) use files::OLDER;

/// Longest chat template that we read; real ones stay under 20 kB.
const CHAT_TEMPLATE_LIMIT: usize = 1 << 20;

/// Larger files are refused; the largest vocabularies take 40 MB.
pub(super) const FILE_LIMIT: u64 = 256 << 20;

/// A tokenizer, and what its files say about BOS and chat.
#[derive(Clone)]
pub struct Tokenizer {
    /// Shared: a clone costs nothing.
    inner: Arc<tokenizers::Tokenizer>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Where writing ends, besides `eos`.
    ends: Vec<u32>,
    add_bos: bool,
    chat_template: Option<String>,
    /// What a chat template is told to be today.
    date: Option<Date>,
    masked: Option<Masked>,
    max_id: u32,
    /// The vocabulary spells bytes in an alphabet of its own, which only the decoder reads back.
    byte_level: bool,
}

/// What the tokenizer of a masked-language model has besides.
#[derive(Clone, Copy)]
struct Masked {
    /// The token whose place the model fills.
    mask: u32,
    /// What stands behind every text: `[SEP]`.
    end: u32,
}

/// A text as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// The byte range of the text that each token stands for; empty for BOS, and for what stands behind the text of an encoder. A leading space belongs to its token in
    /// some tokenizers and to none in others.
    pub spans: Vec<Range<usize>>,
}

impl Tokenizer {
    /// `bos`: the id of the BOS token, if there is one. `add_bos`: whether the model's own tokenizer puts it in front by default.
    /// # Errors
    /// [`Error::Tokenizer`] if the vocabulary is empty, or `bos` is not in it, or `add_bos` is set without a `bos`.
    pub fn new(
        mut inner: tokenizers::Tokenizer,
        bos: Option<u32>,
        add_bos: bool,
        chat_template: Option<String>,
    ) -> Result<Self> {
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| broken(&e))?;
        if let ModelWrapper::BPE(bpe) = inner.get_model()
            && bpe.dropout.is_some()
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            inner.with_model(bpe);
        }
        let max_id = inner.get_vocab(true).into_values().max();
        let Some(max_id) = max_id else {
            return Err(broken(
                "its vocabulary is empty; is tokenizer.json complete?",
            ));
        };
        if let Some(bos) = bos
            && inner.id_to_token(bos).is_none()
        {
            return Err(broken(format!(
                "its BOS id {bos} is not in the vocabulary (ids up to {max_id}); is the tokenizer of this model?"
            )));
        }
        if add_bos && bos.is_none() {
            return Err(broken(
                "it asks for a BOS token in front but names none; name it as `bos_token` in tokenizer_config.json",
            ));
        }
        if let Some(template) = &chat_template {
            check_chat_template(template)?;
        }
        let decoder = serde_json::to_value(inner.get_decoder()).unwrap_or_default();
        let byte_level = std::iter::once(&decoder)
            .chain(decoder["decoders"].as_array().into_iter().flatten())
            .any(|one| one["type"] == "ByteLevel");
        Ok(Tokenizer {
            inner: Arc::new(inner),
            bos,
            eos: None,
            ends: Vec::new(),
            add_bos,
            chat_template,
            date: None,
            masked: None,
            max_id,
            byte_level,
        })
    }

    /// Names the end-of-sequence token, which some chat templates print after each turn.
    pub fn with_eos(mut self, eos: Option<u32>) -> Self {
        self.eos = eos;
        self
    }

    /// Names further tokens at which the model stops writing: those of its `generation_config.json`, such as the end of a turn.
    pub fn with_ends(mut self, ends: Vec<u32>) -> Self {
        self.ends = ends;
        self
    }

    /// Tells chat templates which day it is. Without one they are told that nobody knows, and some then name a day of their own.
    pub fn with_date(mut self, date: Option<Date>) -> Self {
        self.date = date;
        self
    }

    /// The tokens of a text, with BOS in front if `bos` is set and the text does not itself begin with it (a chat template
    /// often writes it). The texts of a masked-language model stand between two tokens, and have then the second one as well.
    /// # Errors
    /// [`Error::Tokenizer`] if `bos` is set and there is none, or the tokenizer cannot encode this text.
    pub fn encode(&self, text: &str, bos: bool) -> Result<Encoded> {
        let encoding = quietly(|| self.inner.encode(text, false)).map_err(|error| {
            match (self.inner.get_model(), self.unknown()) {
                (ModelWrapper::WordLevel(_), None) => broken(format!(
                    "`{}` has a word that is no token, and there is none for unknown words; tokens are {}, {}, ...",
                    printable(&shortened(text)),
                    self.token(0),
                    self.token(1)
                )),
                _ => error,
            }
        })?;
        let mut ids = encoding.get_ids().to_vec();
        let clamp = |at: usize| at.min(text.len());
        let mut spans: Vec<Range<usize>> = encoding
            .get_offsets()
            .iter()
            .map(|&(start, end)| clamp(start)..clamp(end).max(clamp(start)))
            .collect();
        if bos {
            let Some(bos) = self.bos else {
                return Err(broken(
                    "it has no BOS token to put in front; run without one",
                ));
            };
            if ids.first() != Some(&bos) {
                ids.insert(0, bos);
                spans.insert(0, 0..0);
            }
            if let Some(Masked { end, .. }) = self.masked
                && ids.last() != Some(&end)
            {
                ids.push(end);
                spans.push(text.len()..text.len());
            }
        }
        Ok(Encoded { ids, spans })
    }

    /// One token as text, e.g. ` Mary`, safe to show: see [`printable`]. An id outside the vocabulary shows as `[id]`.
    pub fn token(&self, id: u32) -> String {
        let Some(piece) = self.inner.id_to_token(id) else {
            return format!("[{id}]");
        };
        // Other decoders strip the leading space of the first token, which is the one thing a reader wants to see.
        let text = if self.byte_level {
            self.decode(&[id]).unwrap_or(piece)
        } else {
            piece.replace('▁', " ")
        };
        printable(&text)
    }

    /// The text of several tokens, special ones included.
    /// # Errors
    /// [`Error::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        quietly(|| self.inner.decode(ids, false))
    }

    /// The tokens of an answer that stands by itself, without BOS: one id if it can be an answer.
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn answer_ids(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.encode(text, false)?.ids)
    }

    /// Whether an id is a special token (`<s>`, `<|im_start|>`): never an ordinary piece of text.
    pub fn is_special(&self, id: u32) -> bool {
        Some(id) == self.bos
            || Some(id) == self.eos
            || self
                .inner
                .get_added_vocabulary()
                .get_added_tokens_decoder()
                .get(&id)
                .is_some_and(|t| t.special)
    }

    /// The token that stands for what the vocabulary cannot spell: in a prompt it hides which word was there.
    pub fn unknown(&self) -> Option<u32> {
        let name = match self.inner.get_model() {
            ModelWrapper::BPE(model) => model.unk_token.as_deref()?,
            ModelWrapper::WordPiece(model) => &model.unk_token,
            ModelWrapper::WordLevel(model) => &model.unk_token,
            ModelWrapper::Unigram(_) => "<unk>",
        };
        self.inner.token_to_id(name)
    }

    /// The id of one token, written as the vocabulary writes it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether the vocabulary has this id.
    pub fn has_id(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some()
    }

    /// How many tokens there are, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The largest id; the embedding must have a row for it.
    pub fn max_id(&self) -> u32 {
        self.max_id
    }

    /// The token that a masked-language model fills, if the tokenizer is of one: its texts stand between two special tokens.
    pub fn mask_to_fill(&self) -> Option<u32> {
        self.masked.map(|masked| masked.mask)
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The end-of-sequence token, where the tokenizer names one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The tokens at which the model stops writing: [`Tokenizer::eos`], and those that its `generation_config.json` (or else its
    /// `config.json`) names.
    pub fn ends(&self) -> Vec<u32> {
        let mut ends: Vec<u32> = self.eos.iter().chain(&self.ends).copied().collect();
        ends.sort_unstable();
        ends.dedup();
        ends
    }

    /// Whether the model's own tokenizer puts BOS in front by default.
    pub fn adds_bos(&self) -> bool {
        self.add_bos
    }

    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }
}

/// A vocabulary of many thousand tokens says nothing to a reader.
impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.vocab_size())
            .field("bos", &self.bos)
            .field("add_bos", &self.add_bos)
            .finish_non_exhaustive()
    }
}

fn check_chat_template(template: &str) -> Result<()> {
    if template.len() > CHAT_TEMPLATE_LIMIT {
        return Err(broken(format!(
            "its chat template has {} bytes, we read at most {CHAT_TEMPLATE_LIMIT}",
            template.len()
        )));
    }
    Ok(())
}

fn broken(reason: impl ToString) -> Error {
    Error::Tokenizer {
        reason: reason.to_string(),
    }
}

/// Runs the tokenizer library, and turns a panic on a hostile file (it has a few `unwrap`s on what the file says) into an error.
pub(super) fn quietly<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match caught(work) {
        Some(result) => result.map_err(|e| broken(printable(&e.to_string()))),
        None => Err(broken(
            "the tokenizer library gave up on this file; download it again",
        )),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::Path;

    use super::*;

    /// A word-level tokenizer over the given words, split at whitespace and around punctuation; `<s>` is 0, `<unk>` is 1.
    pub(crate) fn word_level<'a>(words: impl IntoIterator<Item = &'a str>) -> Tokenizer {
        word_level_split(words, r"\w+|[^\w\s]+")
    }

    /// The same, with words as a regular expression finds them.
    pub(crate) fn word_level_split<'a>(
        words: impl IntoIterator<Item = &'a str>,
        pattern: &str,
    ) -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        for word in ["<s>", "<unk>"].into_iter().chain(words) {
            let id = vocab.len();
            vocab.entry(word).or_insert(id.into());
        }
        let json = serde_json::json!({
            "version": "1.0",
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true},
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
            },
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
        });
        Tokenizer::from_bytes(json.to_string().as_bytes(), None).expect("a well-formed tokenizer")
    }

    /// A byte-level BPE with no merges but for ` a`: every byte is a token.
    pub(crate) fn byte_level(config: Option<&str>) -> Tokenizer {
        let mut vocab = serde_json::Map::new();
        // The printable bytes stand for themselves; the rest are shifted to 256 and up, in order.
        let plain = |b: u32| {
            (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b)
        };
        let mut shifted = 256;
        for byte in 0..256 {
            let c = if plain(byte) {
                byte
            } else {
                shifted += 1;
                shifted - 1
            };
            vocab.insert(
                char::from_u32(c).expect("below 512").to_string(),
                byte.into(),
            );
        }
        vocab.insert("Ġa".into(), 256.into());
        vocab.insert("<|end|>".into(), 257.into());
        let json = serde_json::json!({
            "version": "1.0",
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "added_tokens": [{"id": 257, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": [["Ġ", "a"]]},
        });
        Tokenizer::from_bytes(json.to_string().as_bytes(), config.map(str::as_bytes))
            .expect("a well-formed tokenizer")
    }

    #[test]
    fn spans_are_the_bytes_of_each_token_and_bos_has_none() {
        let tokenizer = word_level(["When", "Zoë", "went", "."]);
        let encoded = tokenizer.encode("When Zoë went.", true).unwrap();
        assert_eq!(encoded.ids, [0, 2, 3, 4, 5]);
        assert_eq!(encoded.spans, [0..0, 0..4, 5..9, 10..14, 14..15]);
        assert!(tokenizer.adds_bos());
        assert_eq!(
            tokenizer.encode("When Zoë went.", false).unwrap().ids,
            [2, 3, 4, 5]
        );
    }

    #[test]
    fn a_truncation_in_the_file_does_not_cut_prompts() {
        let tokenizer = byte_level(None);
        assert_eq!(tokenizer.encode("abcde", false).unwrap().ids.len(), 5);
        assert_eq!(tokenizer.answer_ids(" a").unwrap(), [256]);
    }

    #[test]
    fn tokens_show_their_space_and_never_a_control_character() {
        let tokenizer = byte_level(None);
        assert_eq!(tokenizer.token(256), " a");
        assert_eq!(tokenizer.token(27), "\\u{1b}");
        assert_eq!(tokenizer.token(10), "\\n");
        assert_eq!(tokenizer.token(9999), "[9999]");
        assert_eq!(printable("a\u{202e}b\u{9b}"), "a\\u{202e}b\\u{9b}");
    }

    #[test]
    fn a_malformed_tokenizer_is_an_error() {
        for json in [
            "",
            "{}",
            "[1, 2]",
            r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#,
            r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}"#,
            r#"{"model": {"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 7}}"#,
            r#"{"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}}"#,
        ] {
            assert!(
                matches!(
                    Tokenizer::from_bytes(json.as_bytes(), None),
                    Err(Error::Tokenizer { .. })
                ),
                "{json}"
            );
        }
        let missing = Tokenizer::from_dir(Path::new("no/such/folder")).unwrap_err();
        assert!(matches!(missing, Error::Missing { .. }));
    }
}
