//! The tokenizer inside a GGUF, built from its tables as the Hugging Face tokenizer that they came from.
//!
//! llama.cpp names its splitting rule instead of writing it down (`tokenizer.ggml.pre`); each name here is that rule in the form of
//! the Hugging Face tokenizer that it was taken from. A name that is not here is refused: a wrong split gives wrong tokens without a word.
//! SentencePiece tables, which have scores and no merges, are in `sentence_piece.rs`.

mod sentence_piece;
mod tokens;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BpeBuilder, Merges};

use super::gguf::Gguf;
use super::tokenizer::Tokenizer;
use crate::error::Result;
use crate::text::shortened;
use tokens::{Tokens, refused};

/// Contractions, a letter run with one character in front, digits, punctuation, line ends, spaces (GPT-4's rule);
/// `{digits}` is how many digits stay together.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// llama.cpp's rules where a file names none, in order.
const UNNAMED: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
];

/// Reads the tokenizer, and the SHA-256 of its tables.
/// # Errors
/// [`Error::Tokenizer`](crate::Error::Tokenizer) for kinds and splitting rules that we do not know, and for tables that contradict each
/// other; [`Error::BadConfig`](crate::Error::BadConfig) for tables that are missing.
pub fn read(gguf: &Gguf) -> Result<(Tokenizer, String)> {
    let tokens = Tokens::read(gguf)?;
    let count = tokens.texts.len();
    let special = |key: &str| match gguf.maybe_size(key)? {
        None => Ok(None),
        Some(id) if id < count => Ok(u32::try_from(id).ok()),
        Some(id) => Err(refused(format!(
            "{key} = {id}, but there are {count} tokens"
        ))),
    };
    let bos = special("tokenizer.ggml.bos_token_id")?;
    let eos = special("tokenizer.ggml.eos_token_id")?;
    let end_of_turn = special("tokenizer.ggml.eot_token_id")?;
    let kind = gguf.string("tokenizer.ggml.model")?;
    let pre = gguf.maybe_string("tokenizer.ggml.pre")?;
    // Of the rules that we read, llama.cpp adds BOS by itself only under SentencePiece's and Llama 3's.
    let adds_by_itself = kind == "llama" || pre.is_some_and(is_llama3);
    let add_bos = gguf
        .maybe_bool("tokenizer.ggml.add_bos_token")?
        .unwrap_or(adds_by_itself && bos.is_some());
    let inner = match kind {
        "gpt2" => byte_level_bpe(gguf, tokens, pre.unwrap_or("default"))?,
        "llama" => sentence_piece::build(gguf, tokens)?,
        other => {
            return Err(refused(format!(
                "a GGUF tokenizer of model `{}` is not handled, only `gpt2` (byte-level BPE) and `llama` (SentencePiece BPE); \
                 use the safetensors checkpoint, which has a tokenizer.json",
                shortened(other)
            )));
        }
    };
    let template = gguf.maybe_string("tokenizer.chat_template")?;
    let tokenizer = Tokenizer::new(inner, bos, add_bos, template.map(str::to_string))?;
    Ok((
        tokenizer
            .with_eos(eos)
            .with_ends(end_of_turn.into_iter().collect()),
        gguf.digest("tokenizer."),
    ))
}

/// A byte-level BPE.
fn byte_level_bpe(gguf: &Gguf, tokens: Tokens, pre: &str) -> Result<tokenizers::Tokenizer> {
    let rule = rule(pre)?;
    let split = |merge: String| match merge.split_once(' ') {
        Some((left, right)) => Ok((left.to_string(), right.to_string())),
        None => Err(refused(format!(
            "merge `{}` has no two parts",
            shortened(&merge)
        ))),
    };
    let merges = gguf.texts("tokenizer.ggml.merges")?.into_iter().map(split);
    let merges = merges.collect::<Result<Merges>>()?;
    let added = tokens.added(&[tokens::CONTROL, tokens::USER_DEFINED]);
    let model = BpeBuilder::new()
        .vocab_and_merges(tokens.into_vocabulary(), merges)
        .ignore_merges(rule.ignore_merges);
    let splits = json!({ "type": "Sequence", "pretokenizers": rule.splits });
    tokens::built(model, rule.normalizer, splits, byte_level(false), added)
}

/// How text is cut before merging.
struct Rule {
    normalizer: Value,
    splits: Vec<Value>,
    /// A piece that is a token is taken whole, whatever the merges say.
    ignore_merges: bool,
}

/// Mistral Nemo's: words by the case of their letters, each digit by itself.
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);
/// DeepSeek Coder's, one after the other.
const DEEPSEEK: [&str; 4] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+"];

fn is_llama3(pre: &str) -> bool {
    matches!(pre, "llama3" | "llama-v3" | "llama-bpe" | "falcon3")
}

fn rule(pre: &str) -> Result<Rule> {
    let plain = |splits| Rule {
        normalizer: Value::Null,
        splits,
        ignore_merges: false,
    };
    match pre {
        // The names are llama.cpp's, which has many for one rule: each is a model that it was first seen in.
        "gpt-2" | "phi-2" | "olmo" | "mpt" => Ok(plain(vec![byte_level(true)])),
        "smollm" | "starcoder" | "refact" | "codeshell" | "command-r" => Ok(plain(vec![
            json!({ "type": "Digits", "individual_digits": true }),
            byte_level(true),
        ])),
        "dbrx" | "smaug-bpe" => Ok(plain(vec![
            split(&CL100K.replace("{digits}", r"\p{N}{1,3}")),
            byte_level(false),
        ])),
        "tekken" => Ok(Rule {
            ignore_merges: true,
            ..plain(vec![split(TEKKEN), byte_level(false)])
        }),
        "deepseek-coder" => {
            let mut splits: Vec<Value> = DEEPSEEK.iter().map(|pattern| split(pattern)).collect();
            splits.push(json!({ "type": "Digits", "individual_digits": true }));
            splits.push(byte_level(false));
            Ok(plain(splits))
        }
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "kormo" => Ok(Rule {
            normalizer: json!({ "type": "NFC" }),
            ..plain(vec![split(&qwen2_pattern()), byte_level(false)])
        }),
        "default" => {
            let mut splits: Vec<Value> = UNNAMED.iter().map(|pattern| split(pattern)).collect();
            splits.push(byte_level(false));
            Ok(plain(splits))
        }
        _ if is_llama3(pre) => Ok(Rule {
            ignore_merges: true,
            ..plain(vec![
                split(&CL100K.replace("{digits}", r"\p{N}{1,3}")),
                byte_level(false),
            ])
        }),
        _ => Err(refused(format!(
            "GGUF pre-tokenizer `{}` is not handled; load the safetensors checkpoint, whose tokenizer.json has the rule",
            shortened(pre)
        ))),
    }
}

/// How Qwen 2 cuts text.
pub(super) fn qwen2_pattern() -> String {
    CL100K.replace("{digits}", r"\p{N}")
}

/// A token that is found in the text as it is, before anything else is done to it.
fn byte_level(use_regex: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex,
    })
}

fn split(pattern: &str) -> Value {
    json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::gguf::tests::Writer;

    /// `ab`, `1`, `2`, a space, and `<s>`; `ab` is merged.
    fn read_with(pre: &str, edit: impl Fn(&mut Writer)) -> Result<Tokenizer> {
        let mut writer = Writer::default();
        writer
            .text("tokenizer.ggml.model", "gpt2")
            .text("tokenizer.ggml.pre", pre);
        writer.texts(
            "tokenizer.ggml.tokens",
            &["<s>", "a", "b", "ab", "1", "2", "12", "Ġ"],
        );
        writer.texts("tokenizer.ggml.merges", &["a b", "1 2"]);
        edit(&mut writer);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(&path, writer.bytes()).unwrap();
        Ok(read(&Gguf::open(&path)?)?.0)
    }

    fn kinds(writer: &mut Writer) {
        writer.integers("tokenizer.ggml.token_type", &[3, 1, 1, 1, 1, 1, 1, 1]);
    }

    fn ids(pre: &str) -> Vec<u32> {
        read_with(pre, kinds)
            .unwrap()
            .encode("ab 12<s>", false)
            .unwrap()
            .ids
    }

    #[test]
    fn each_rule_splits_as_its_model_does() {
        assert_eq!(ids("smollm"), [3, 7, 4, 5, 0], "digits stand alone");
        assert_eq!(ids("qwen2"), [3, 7, 4, 5, 0], "digits stand alone");
        assert_eq!(ids("gpt-2"), [3, 7, 6, 0]);
        assert_eq!(ids("llama-bpe"), [3, 7, 6, 0]);
        assert_eq!(ids("default"), [3, 7, 6, 0]);
    }

    #[test]
    fn bos_is_added_where_the_file_says_so() {
        let bos = |writer: &mut Writer| {
            kinds(writer);
            writer.size("tokenizer.ggml.bos_token_id", 0);
        };
        assert!(read_with("llama-bpe", bos).unwrap().adds_bos());
        assert!(!read_with("smollm", bos).unwrap().adds_bos());
        let said = |writer: &mut Writer| {
            bos(writer);
            writer.raw("tokenizer.ggml.add_bos_token", 7, &[1]);
        };
        assert_eq!(
            read_with("smollm", said)
                .unwrap()
                .encode("ab", true)
                .unwrap()
                .ids,
            [0, 3]
        );
    }

    #[test]
    fn what_is_not_known_is_refused_by_name() {
        let refused = |pre, edit: &dyn Fn(&mut Writer), word: &str| {
            let message = read_with(pre, edit).unwrap_err().to_string();
            assert!(message.contains(word), "{message}");
        };
        refused("viking", &kinds, "viking");
        refused("smollm", &|_| (), "tokenizer.ggml.token_type");
        let few = |writer: &mut Writer| {
            writer.integers("tokenizer.ggml.token_type", &[1]);
        };
        refused("smollm", &few, "8 tokens but 1");
        let far = |writer: &mut Writer| {
            kinds(writer);
            writer.size("tokenizer.ggml.bos_token_id", 99);
        };
        refused("smollm", &far, "99");
    }
}
