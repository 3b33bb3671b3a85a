//! The files of a tokenizer, read as transformers reads them (version 5.24).
//!
//! Which token is BOS: what `special_tokens_map.json` says, unless `tokenizer_config.json` lists its added tokens, which makes the map
//! a leftover; then `tokenizer_config.json`, where null means that there is none; then the default of the tokenizer's class; and last,
//! which transformers does not do, `bos_token_id` of the model's config.
//!
//! Whether it stands in front: a `tokenizer.json` says so itself, in its post-processor, and `add_bos_token` beside it is passed over
//! (transformers 4 followed it in Llama's and Gemma's tokenizers). It counts where there are only `vocab.json` and `merges.txt`.

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, decoders, pre_tokenizers};

use super::{FILE_LIMIT, Masked, Tokenizer, broken, check_chat_template, printable, quietly};
use crate::error::{Error, Result};
use crate::model::checkpoint::{check_not_a_stand_in, read_at_most};

/// What stands beside the vocabulary, each null where it is not there.
#[derive(Default)]
struct Beside {
    /// `tokenizer_config.json`
    config: Value,
    /// `special_tokens_map.json`
    map: Value,
    /// The model's `config.json`.
    model: Value,
    /// `generation_config.json`
    generation: Value,
}

/// A special token as the files name it.
#[derive(Debug, PartialEq)]
enum Named {
    Token(String),
    Id(u32),
    /// The files say that there is none.
    Nothing,
    Unsaid,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, or else `vocab.json` and `merges.txt` of a byte-level BPE, and beside them `tokenizer_config.json`,
    /// `special_tokens_map.json`, `chat_template.jinja`, `generation_config.json` and the model's `config.json` where they exist.
    /// # Errors
    /// [`Error::Missing`] without a vocabulary; [`Error::Read`]; [`Error::Tokenizer`] if one of them is malformed.
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let value = |name: &str| match read_if_there(&dir.join(name))? {
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|e| broken(format!("{name} is not readable JSON ({e})"))),
            None => Ok(Value::Null),
        };
        let beside = Beside {
            config: value("tokenizer_config.json")?,
            map: value("special_tokens_map.json")?,
            // One that cannot be read is said elsewhere.
            model: value("config.json").unwrap_or_default(),
            generation: value("generation_config.json")?,
        };
        let json = dir.join("tokenizer.json");
        let mut tokenizer = match read_if_there(&json)? {
            Some(bytes) => from_tokenizer_json(&bytes, &beside)?,
            None => match (
                read_if_there(&dir.join(VOCAB))?,
                read_if_there(&dir.join(MERGES))?,
            ) {
                (Some(vocab), Some(merges)) => from_vocab_and_merges(&vocab, &merges, &beside)?,
                _ => {
                    return Err(Error::Missing {
                        path: json,
                        hint: format!(
                            "a tokenizer needs it, or `{VOCAB}` and `{MERGES}`; save it with `use_fast=True` in transformers, \
                                       or take it from the hub"
                        ),
                    });
                }
            },
        };
        if let Some(template) = read_if_there(&dir.join("chat_template.jinja"))? {
            let template = String::from_utf8(template)
                .map_err(|_| broken("chat_template.jinja is not UTF-8"))?;
            check_chat_template(&template)?;
            tokenizer.chat_template = Some(template);
        }
        Ok(tokenizer)
    }

    /// From the text of `tokenizer.json` and of `tokenizer_config.json`.
    /// # Errors
    /// [`Error::Tokenizer`] if one of them is malformed.
    pub fn from_bytes(tokenizer_json: &[u8], tokenizer_config_json: Option<&[u8]>) -> Result<Self> {
        let config = match tokenizer_config_json {
            Some(bytes) => serde_json::from_slice(bytes)
                .map_err(|e| broken(format!("tokenizer_config.json is not readable JSON ({e})")))?,
            None => Value::Null,
        };
        let beside = Beside {
            config,
            ..Beside::default()
        };
        from_tokenizer_json(tokenizer_json, &beside)
    }

    /// The same tokenizer with another default for BOS.
    /// # Errors
    /// [`Error::Tokenizer`] if it is to be added and there is none.
    pub fn adding_bos(mut self, add_bos: bool) -> Result<Self> {
        if add_bos && self.bos.is_none() {
            return Err(broken("it asks for a BOS token in front but names none"));
        }
        self.add_bos = add_bos;
        Ok(self)
    }
}

/// What an older tokenizer has in place of a tokenizer.json.
pub const OLDER: [&str; 2] = [VOCAB, MERGES];
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";

fn from_tokenizer_json(bytes: &[u8], beside: &Beside) -> Result<Tokenizer> {
    let inner = quietly(|| tokenizers::Tokenizer::from_bytes(bytes)).map_err(|e| match e {
        Error::Tokenizer { reason } => broken(format!(
            "tokenizer.json is malformed ({reason}); download it again, or save it with transformers"
        )),
        other => other,
    })?;
    // The part that says what stands in front.
    let post_processor = serde_json::to_value(inner.get_post_processor()).unwrap_or_default();
    // The class of GPT-NeoX writes its post-processor itself, without BOS.
    let in_front = if beside.class().starts_with("GPTNeoXTokenizer") {
        None
    } else {
        token_in_front(&post_processor)
    };
    let add_bos = in_front.is_some();
    let names = ["[MASK]", "<mask>"];
    let found = names.iter().find_map(|name| inner.token_to_id(name));
    let behind = in_front.and_then(|_| token_behind(&post_processor));
    let frame = found.zip(behind).map(|(mask, end)| Masked { mask, end });
    let tokenizer = beside.finish(inner, in_front, add_bos)?;
    Ok(Tokenizer {
        masked: frame,
        ..tokenizer
    })
}

/// The id that a post-processor puts behind a text.
fn token_behind(post_processor: &Value) -> Option<u32> {
    let id = match post_processor["type"].as_str()? {
        "TemplateProcessing" => {
            let last = post_processor["single"].as_array()?.last()?;
            let name = last["SpecialToken"]["id"].as_str()?;
            &post_processor["special_tokens"][name]["ids"][0]
        }
        "BertProcessing" | "RobertaProcessing" => &post_processor["sep"][1],
        "Sequence" => {
            let processors = post_processor["processors"].as_array()?;
            return processors.iter().find_map(token_behind);
        }
        _ => return None,
    };
    id.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// A byte-level BPE as GPT-2's class builds it from the two files.
fn from_vocab_and_merges(vocab: &[u8], merges: &[u8], beside: &Beside) -> Result<Tokenizer> {
    let class = beside.class();
    let known = ["GPT2Tokenizer", "GPTNeoXTokenizer", "Qwen2Tokenizer"];
    if !known.iter().any(|name| class.starts_with(name)) {
        return Err(broken(format!(
            "of `{VOCAB}` and `{MERGES}` without a tokenizer.json, only GPT-2's kind of tokenizer can be built, and this is {}; save it \
             with `use_fast=True` in transformers",
            match class.as_str() {
                "" => "of another family".to_string(),
                class => format!("a `{}`", printable(class)),
            }
        )));
    }
    let malformed = |what: &str| broken(format!("{what} is malformed; download it again"));
    let vocab: HashMap<String, u32> =
        serde_json::from_slice(vocab).map_err(|_| malformed(VOCAB))?;
    let text = std::str::from_utf8(merges).map_err(|_| malformed(MERGES))?;
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("#version") && !line.is_empty());
    let merges: Option<Vec<(String, String)>> = lines
        .map(|line| {
            let (one, other) = line.trim_end_matches('\r').split_once(' ')?;
            Some((one.to_string(), other.to_string()))
        })
        .collect();
    let merges = merges.ok_or_else(|| malformed(MERGES))?;
    let model = quietly(|| {
        BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<Vocab>(), merges)
            .build()
    })?;
    let mut inner = tokenizers::Tokenizer::new(model);
    if class.starts_with("Qwen2Tokenizer") {
        quietly(|| {
            inner
                .with_normalizer(Some(tokenizers::normalizers::NFC))
                .map(|_| ())
        })?;
        let pattern = crate::model::gguf_tokenizer::qwen2_pattern();
        let split = json!({
            "type": "Sequence",
            "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false },
            ],
        });
        let split: tokenizers::PreTokenizerWrapper =
            serde_json::from_value(split).map_err(|e| broken(e.to_string()))?;
        inner.with_pre_tokenizer(Some(split));
    } else {
        inner.with_pre_tokenizer(Some(pre_tokenizers::byte_level::ByteLevel::new(
            false, true, true,
        )));
    }
    inner.with_decoder(Some(decoders::byte_level::ByteLevel::default()));
    // Special tokens are found in the text as they are, before it is cut.
    let mut special = Vec::new();
    for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
        if let Named::Token(token) = beside.named(key)
            && inner.token_to_id(&token).is_some()
        {
            special.push(AddedToken::from(token, true));
        }
    }
    let listed = beside.config["added_tokens_decoder"].as_object();
    for token in listed
        .into_iter()
        .flatten()
        .filter_map(|(_, token)| token["content"].as_str())
    {
        special.push(AddedToken::from(token.to_string(), true));
    }
    quietly(|| inner.add_special_tokens(special).map(|_| ()))?;
    let add_bos = beside.config["add_bos_token"] == true;
    beside.finish(inner, None, add_bos)
}

impl Beside {
    /// The tokenizer's class: as the config names it, or as transformers chooses it for a model.
    fn class(&self) -> String {
        if let Some(class) = self.config["tokenizer_class"].as_str() {
            return class.to_string();
        }
        let by_model = match self.model["model_type"].as_str().unwrap_or_default() {
            "gpt2" | "gpt_bigcode" | "gpt_neo" | "gptj" | "opt" | "phi" | "starcoder2" => {
                "GPT2Tokenizer"
            }
            "gpt_neox" => "GPTNeoXTokenizer",
            "gemma" | "gemma2" | "gemma3" | "gemma3_text" => "GemmaTokenizer",
            "qwen2" | "qwen3" => "Qwen2Tokenizer",
            "bert" => "BertTokenizer",
            _ => "",
        };
        by_model.to_string()
    }

    /// What the files, and then the class, say of `bos_token` or one of its kind.
    fn named(&self, key: &str) -> Named {
        let is_leftover = self.config["added_tokens_decoder"].is_object();
        let text = |value: &Value| {
            let text = value.as_str().or_else(|| value["content"].as_str());
            text.map(|text| Named::Token(text.to_string()))
        };
        if !is_leftover && let Some(named) = text(&self.map[key]) {
            return named;
        }
        match self.config.get(key) {
            Some(Value::Null) => return Named::Nothing,
            Some(value) => return text(value).unwrap_or(Named::Unsaid),
            None => {}
        }
        let class = self.class();
        let default = match (class.trim_end_matches("Fast"), key) {
            (
                "GPT2Tokenizer" | "GPTNeoXTokenizer" | "CodeGenTokenizer",
                "bos_token" | "eos_token",
            ) => "<|endoftext|>",
            ("GemmaTokenizer", "bos_token") => "<bos>",
            ("GemmaTokenizer", "eos_token") => "<eos>",
            ("LlamaTokenizer" | "CodeLlamaTokenizer", "bos_token") => "<s>",
            ("LlamaTokenizer" | "CodeLlamaTokenizer", "eos_token") => "</s>",
            ("Qwen2Tokenizer", "eos_token") => "<|endoftext|>",
            _ => "",
        };
        if !default.is_empty() {
            return Named::Token(default.to_string());
        }
        let id = &self.model[format!("{key}_id").as_str()];
        let id = id.as_u64().or_else(|| id[0].as_u64());
        match id.and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Named::Id(id),
            None => Named::Unsaid,
        }
    }

    fn finish(
        &self,
        inner: tokenizers::Tokenizer,
        in_front: Option<u32>,
        add_bos: bool,
    ) -> Result<Tokenizer> {
        let id_of = |key: &str| match self.named(key) {
            Named::Token(token) => inner.token_to_id(&token),
            Named::Id(id) => Some(id).filter(|id| inner.id_to_token(*id).is_some()),
            Named::Nothing | Named::Unsaid => None,
        };
        let (bos, eos) = (id_of("bos_token").or(in_front), id_of("eos_token"));
        let vocabulary = inner.get_vocab_size(true) as u64;
        let ends =
            ids(&self.generation["eos_token_id"]).or_else(|| ids(&self.model["eos_token_id"]));
        let mut ends = ends.unwrap_or_default();
        ends.retain(|&id| u64::from(id) < vocabulary);
        let tokenizer = Tokenizer::new(inner, bos, add_bos, chat_template(&self.config)?)?;
        Ok(tokenizer.with_eos(eos).with_ends(ends))
    }
}

/// An id, or a list of them.
fn ids(value: &Value) -> Option<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value.as_array() {
        Some(all) => all.iter().map(id).collect(),
        None => id(value).map(|id| vec![id]),
    }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    if !path.exists() {
        return Ok(None);
    }
    let bytes = read_at_most(path, FILE_LIMIT)?;
    check_not_a_stand_in(path, &bytes)?;
    Ok(Some(bytes))
}

/// The id that a post-processor puts in front of a text: its template begins with a special token (`TemplateProcessing`), or
/// it is of the BERT family, where `cls` always comes first.
fn token_in_front(post_processor: &Value) -> Option<u32> {
    let id = match post_processor["type"].as_str()? {
        "TemplateProcessing" => {
            let name = post_processor["single"][0]["SpecialToken"]["id"].as_str()?;
            &post_processor["special_tokens"][name]["ids"][0]
        }
        "BertProcessing" | "RobertaProcessing" => &post_processor["cls"][1],
        "Sequence" => {
            return post_processor["processors"]
                .as_array()?
                .iter()
                .find_map(token_in_front);
        }
        _ => return None,
    };
    id.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// `chat_template`: a string, or a list of named templates, of which `default` is ours.
fn chat_template(config: &Value) -> Result<Option<String>> {
    match &config["chat_template"] {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(template.clone())),
        Value::Array(named) => {
            let default = named
                .iter()
                .find(|one| one["name"] == "default")
                .or(named.first());
            Ok(default
                .and_then(|one| one["template"].as_str())
                .map(str::to_owned))
        }
        _ => Err(broken(
            "`chat_template` in tokenizer_config.json is neither a text nor a list of named texts",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::byte_level;
    use super::*;

    fn json_of(tokenizer: &Tokenizer) -> Value {
        serde_json::to_value(&*tokenizer.inner).unwrap()
    }

    /// A folder with a byte-level tokenizer (` a` is 256, `<|end|>` 257) and other files.
    fn folder(files: &[(&str, Value)]) -> Result<Tokenizer> {
        let dir = tempfile::tempdir().unwrap();
        let plain = json_of(&byte_level(None));
        for (name, value) in files.iter().chain([&("tokenizer.json", plain)]) {
            std::fs::write(dir.path().join(name), value.to_string()).unwrap();
        }
        Tokenizer::from_dir(dir.path())
    }

    #[test]
    fn writing_ends_where_the_generation_config_says() {
        let ends = |files: &[(&str, Value)]| folder(files).unwrap().ends();
        let config = ("tokenizer_config.json", json!({"eos_token": "<|end|>"}));
        let model = ("config.json", json!({"eos_token_id": 98}));
        let generation = |ids: Value| ("generation_config.json", json!({"eos_token_id": ids}));
        assert_eq!(ends(&[]), Vec::<u32>::new());
        assert_eq!(ends(std::slice::from_ref(&config)), [257]);
        assert_eq!(ends(&[config.clone(), model.clone()]), [98, 257]);
        let all = [config, model, generation(json!([257, 99, 4000]))];
        assert_eq!(
            ends(&all),
            [99, 257],
            "an id beyond the vocabulary ends nothing"
        );
        assert_eq!(ends(&[generation(json!("x"))]), Vec::<u32>::new());
        assert!(folder(&[("generation_config.json", json!([1]))]).is_ok());
    }

    #[test]
    fn bos_is_what_the_first_file_says_that_says_anything() {
        let bos = |files: &[(&str, Value)]| folder(files).unwrap().bos();
        let config = |text: Value| ("tokenizer_config.json", text);
        let map = (
            "special_tokens_map.json",
            json!({"bos_token": {"content": "a"}}),
        );
        let model = |text: Value| ("config.json", text);
        assert_eq!(bos(&[]), None);
        assert_eq!(bos(&[config(json!({"bos_token": "<|end|>"}))]), Some(257));
        assert_eq!(
            bos(&[config(json!({"bos_token": "<|end|>"})), map.clone()]),
            Some(97)
        );
        let lists = json!({"bos_token": "<|end|>", "added_tokens_decoder": {}});
        assert_eq!(bos(&[config(lists), map]), Some(257));
        // The class's default is not in this vocabulary; the model's own id is.
        assert_eq!(
            bos(&[model(json!({"model_type": "gpt2", "bos_token_id": 257}))]),
            None
        );
        assert_eq!(
            bos(&[model(json!({"model_type": "llama", "bos_token_id": 257}))]),
            Some(257)
        );
        assert_eq!(
            bos(&[model(json!({"model_type": "llama", "bos_token_id": 9999}))]),
            None
        );
        let null = config(json!({"bos_token": null}));
        assert_eq!(
            bos(&[
                null,
                model(json!({"model_type": "llama", "bos_token_id": 257}))
            ]),
            None
        );
    }

    #[test]
    fn whether_bos_stands_in_front_is_said_by_the_post_processor() {
        let tokenizer = byte_level(Some(r#"{"bos_token": "<|end|>", "add_bos_token": true}"#));
        assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (Some(257), false));
        let message = byte_level(None).encode("a", true).unwrap_err().to_string();
        assert!(message.contains("no BOS"), "{message}");
    }

    #[test]
    fn a_vocabulary_and_merges_are_a_tokenizer_of_gpt2s_kind() {
        let plain = byte_level(None);
        let mut vocab = json_of(&plain)["model"]["vocab"].clone();
        vocab["<|endoftext|>"] = 258.into();
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        write(VOCAB, &vocab.to_string());
        write(MERGES, "#version: 0.2\n\u{120} a\n");
        write("config.json", r#"{"model_type": "opt"}"#);
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        let text = "b a, Zo\u{eb}'s  <|endoftext|>1";
        let ids = tokenizer.encode(text, false).unwrap().ids;
        assert!(ids.contains(&256) && ids.contains(&258), "{ids:?}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), text);
        assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (Some(258), false));
        write(
            "tokenizer_config.json",
            r#"{"add_bos_token": true, "bos_token": "<|endoftext|>"}"#,
        );
        assert!(Tokenizer::from_dir(dir.path()).unwrap().adds_bos());
        write("config.json", r#"{"model_type": "llama"}"#);
        let message = Tokenizer::from_dir(dir.path()).unwrap_err().to_string();
        assert!(message.contains("GPT-2's kind"), "{message}");
        for (name, text) in [(MERGES, "ab"), (VOCAB, "[]"), (MERGES, "x y")] {
            write("config.json", r#"{"model_type": "opt"}"#);
            write(name, text);
            assert!(matches!(
                Tokenizer::from_dir(dir.path()),
                Err(Error::Tokenizer { .. })
            ));
        }
    }
}
