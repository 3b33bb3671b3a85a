//! SentencePiece BPE inside a GGUF (`tokenizer.ggml.model` = `llama`: Llama 1 and 2, Mistral, Gemma), rewritten as merges.
//!
//! SentencePiece has no list of merges. It joins, again and again, the two neighbours whose joined piece has the highest score, so every way
//! to cut a piece into two others is a merge, and its rank is the piece's score: the rule by which transformers converts these
//! tokenizers. A character that is no piece becomes its bytes. Spaces are written `▁`; pieces that the model's makers defined by
//! hand (runs of spaces, line ends, tags) are cut out before any merge, the longest first.
//! Left out on purpose: `t5` (unigram), which is another algorithm.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::tokens::{CONTROL, USER_DEFINED, added_token, refused};
use crate::error::Result;
use crate::model::gguf::Gguf;

// Kinds of tokens in `tokenizer.ggml.token_type`, besides those that every tokenizer has.
const NORMAL: f64 = 1.0;
const UNKNOWN: f64 = 2.0;

/// Longer pieces are refused: every cut of each is looked up, which takes the square of its length.
const LONGEST_PIECE: usize = 1024;

/// The `tokenizer.json`.
pub fn rewritten(gguf: &Gguf, tokens: &[String], kinds: &[f64]) -> Result<Value> {
    let scores = gguf.numbers("tokenizer.ggml.scores")?;
    if scores.len() != tokens.len() {
        return Err(refused(format!(
            "{} tokens but {} scores; the GGUF is damaged",
            tokens.len(),
            scores.len()
        )));
    }
    let adds_space = gguf
        .maybe_bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
    let is_unknown = |(_, kind): &(&String, &f64)| **kind == UNKNOWN;
    let unknown = tokens.iter().zip(kinds).find(is_unknown);
    let added: Vec<Value> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .filter(|(_, (_, kind))| [CONTROL, UNKNOWN, USER_DEFINED].contains(kind))
        .map(|(id, (token, kind))| {
            added_token(id, &as_written(token, *kind), *kind != USER_DEFINED)
        })
        .collect();
    let vocab: Map<String, Value> = tokens
        .iter()
        .zip(kinds)
        .enumerate()
        .map(|(id, (token, kind))| (as_written(token, *kind), id.into()))
        .collect();
    let mut normalizers = vec![json!({
        "type": "Replace", "pattern": { "String": " " }, "content": "▁",
    })];
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if adds_space {
        normalizers.insert(0, json!({ "type": "Prepend", "prepend": "▁" }));
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": { "type": "Sequence", "normalizers": normalizers },
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "vocab": vocab, "merges": merges(tokens, kinds, &scores)?,
            "unk_token": unknown.map(|(token, _)| token), "fuse_unk": true, "byte_fallback": true,
        },
    }))
}

/// A piece that is defined by hand is found in the text before its spaces become `▁`; llama.cpp writes most of them so already.
fn as_written(token: &str, kind: f64) -> String {
    match kind == USER_DEFINED {
        true => token.replace('▁', " "),
        false => token.to_string(),
    }
}

/// Every way to cut a normal piece into two others, the best first.
fn merges<'a>(
    tokens: &'a [String],
    kinds: &[f64],
    scores: &[f64],
) -> Result<Vec<(&'a str, &'a str)>> {
    let normal: HashMap<&str, usize> = tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| kinds[*id] == NORMAL)
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut found = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        if normal.get(token.as_str()) != Some(&id) {
            continue;
        }
        if token.len() > LONGEST_PIECE {
            return Err(refused(format!(
                "token {id} has {} bytes, we read at most {LONGEST_PIECE}",
                token.len()
            )));
        }
        for (cut, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&l), Some(&r)) = (normal.get(left), normal.get(right)) {
                found.push((scores[id], [left, right], [l, r]));
            }
        }
    }
    // Where scores are equal, transformers takes the longer left side first, and then the order of the vocabulary.
    found.sort_by(
        |(score, [left, _], ids), (other, [other_left, _], other_ids)| {
            let length = |text: &str| text.chars().count();
            other
                .total_cmp(score)
                .then(length(other_left).cmp(&length(left)))
                .then(ids.cmp(other_ids))
        },
    );
    Ok(found
        .into_iter()
        .map(|(_, [left, right], _)| (left, right))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Tokenizer;
    use crate::model::gguf::tests::Writer;
    use crate::model::load::tests::real_model;

    const BYTE: f64 = 6.0;

    /// Pieces with score and kind, and behind them all 256 bytes.
    fn tokenizer(pieces: &[(&str, f64, f64)], edit: impl Fn(&mut Writer)) -> Result<Tokenizer> {
        tokenizer_with(pieces, pieces.len() + 256, edit)
    }

    fn tokenizer_with(
        pieces: &[(&str, f64, f64)],
        n_scores: usize,
        edit: impl Fn(&mut Writer),
    ) -> Result<Tokenizer> {
        let mut writer = Writer::default();
        writer.text("tokenizer.ggml.model", "llama");
        let bytes: Vec<String> = (0..256).map(|byte| format!("<0x{byte:02X}>")).collect();
        let names = pieces.iter().map(|(name, _, _)| *name);
        let names: Vec<&str> = names.chain(bytes.iter().map(String::as_str)).collect();
        let padded = |of: fn(&(&str, f64, f64)) -> f64, rest: f64| {
            let mut values: Vec<f64> = pieces.iter().map(of).collect();
            values.resize(names.len(), rest);
            values
        };
        writer.texts("tokenizer.ggml.tokens", &names);
        let scores = padded(|piece| piece.1, 0.0);
        writer.floats("tokenizer.ggml.scores", &scores[..n_scores]);
        let kinds = padded(|piece| piece.2, BYTE);
        let kinds: Vec<i32> = kinds.iter().map(|kind| *kind as i32).collect();
        writer.integers("tokenizer.ggml.token_type", &kinds);
        edit(&mut writer);
        Ok(super::super::read(&Gguf::from_bytes("x.gguf", writer.bytes())?)?.0)
    }

    const PIECES: &[(&str, f64, f64)] = &[
        ("<unk>", 0.0, UNKNOWN),
        ("<s>", 0.0, CONTROL),
        ("▁", -9.0, NORMAL),
        ("a", -9.0, NORMAL),
        ("b", -9.0, NORMAL),
        ("ab", -2.0, NORMAL),
        ("ba", -1.0, NORMAL),
        ("▁ab", -3.0, NORMAL),
        ("aba", -4.0, NORMAL),
        ("\n\n", -1000.0, USER_DEFINED),
        ("▁▁", -1000.0, USER_DEFINED),
    ];

    fn pieces(text: &str, prefix: bool) -> Vec<String> {
        let tokenizer = tokenizer(PIECES, |writer| {
            writer.raw("tokenizer.ggml.add_space_prefix", 7, &[u8::from(prefix)]);
        });
        let tokenizer = tokenizer.unwrap();
        let ids = tokenizer.encode(text, false).unwrap().ids;
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{ids:?}");
        ids.iter().map(|id| tokenizer.token(*id)).collect()
    }

    #[test]
    fn the_highest_score_is_joined_first() {
        // `ba` has the best score, so that `ab` never comes about in `aba`, and `a` + `ba` is a cut of `aba` as well.
        assert_eq!(pieces("aba", false), ["aba"]);
        assert_eq!(pieces("abab", false), ["aba", "b"]);
        assert_eq!(pieces("ab ab", false), ["ab", " ab"]);
        assert_eq!(pieces("ab ab", true), [" ab", " ab"]);
    }

    #[test]
    fn characters_that_are_no_piece_become_bytes() {
        assert_eq!(pieces("aé\n", false), ["a", "<0xC3>", "<0xA9>", "<0x0A>"]);
    }

    #[test]
    fn pieces_defined_by_hand_are_cut_out_first() {
        assert_eq!(pieces("a\n\nb", false), ["a", "\\n\\n", "b"]);
        assert_eq!(pieces("a  ab", false), ["a", "  ", "ab"]);
        assert_eq!(pieces("a<s>b", false), ["a", "<s>", "b"]);
    }

    #[test]
    fn bos_is_added_unless_the_file_says_no() {
        let bos = |add: Option<u8>| {
            let tokenizer = tokenizer(PIECES, |writer| {
                writer.size("tokenizer.ggml.bos_token_id", 1);
                if let Some(add) = add {
                    writer.raw("tokenizer.ggml.add_bos_token", 7, &[add]);
                }
            });
            tokenizer.unwrap().adds_bos()
        };
        assert_eq!([bos(None), bos(Some(0)), bos(Some(1))], [true, false, true]);
    }

    #[test]
    fn spans_are_bytes_of_the_prompt() {
        let tokenizer = tokenizer(PIECES, |_| ()).unwrap();
        let encoded = tokenizer.encode("ab abé", false).unwrap();
        let text = |span: &std::ops::Range<usize>| &"ab abé"[span.clone()];
        let texts: Vec<&str> = encoded.spans.iter().map(text).collect();
        assert_eq!(texts, ["ab", " ab", "é", "é"]);
    }

    #[test]
    fn damaged_tables_are_refused() {
        let few = tokenizer_with(PIECES, 3, |_| ());
        assert!(
            few.unwrap_err()
                .to_string()
                .contains("267 tokens but 3 scores")
        );
        let long = "a".repeat(LONGEST_PIECE + 1);
        let long = tokenizer(&[(long.as_str(), 0.0, NORMAL)], |_| ());
        assert!(long.unwrap_err().to_string().contains("1025 bytes"));
    }

    /// Strings of every kind, with the ids that the `sentencepiece` library gives for Gemma 3's pieces and scores.
    const GEMMA: &[(&str, &[u32])] = &[
        ("Hello, world!", &[9259, 236764, 1902, 236888]),
        (
            "naïve 日本 42!\n\n\tx  y   z",
            &[
                1789, 238527, 560, 33375, 236743, 236812, 236778, 236888, 108, 255968, 236781, 138,
                236762, 139, 236802,
            ],
        ),
        ("🙂 emoji \u{200d} zero", &[240731, 64334, 205730, 5743]),
        ("<table>a</table>", &[168, 236746, 176]),
        ("aaaaaaa", &[50354, 72004]),
        ("   leading", &[139, 26016]),
        ("\u{0}\u{1}ctrl", &[238, 249732, 40557]),
        ("\r\nwindows\r\n", &[251, 107, 33908, 251, 107]),
        ("   \n  \n\n mix", &[139, 107, 138, 108, 6921]),
    ];

    #[test]
    fn gemma_is_cut_as_sentencepiece_cuts_it() {
        let Some(path) = real_model("gemma-3-270m.q4_k_m.gguf") else {
            return;
        };
        let gguf = Gguf::open(&path).unwrap();
        let tokenizer = super::super::read(&gguf).unwrap().0;
        for (text, ids) in GEMMA {
            let encoded = tokenizer.encode(text, false).unwrap();
            assert_eq!(encoded.ids, *ids, "{text:?}");
            assert_eq!(tokenizer.decode(ids).unwrap(), *text);
        }
        assert_eq!((tokenizer.bos(), tokenizer.adds_bos()), (Some(2), true));
        assert_eq!(tokenizer.max_id(), 262_143);
        assert_eq!(
            tokenizer.encode("<start_of_turn>", true).unwrap().ids,
            [2, 105]
        );
    }
}
