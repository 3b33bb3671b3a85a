//! SentencePiece BPE inside a GGUF (`tokenizer.ggml.model` = `llama`: Llama 1 and 2, Mistral, Gemma), with merges made of its scores.
//!
//! SentencePiece has no list of merges. It joins, again and again, the two neighbours whose joined piece has the highest score, so every way
//! to cut a piece into two others is a merge, and its rank is the piece's score: the rule by which transformers converts these
//! tokenizers. A character that is no piece becomes its bytes. Spaces are written `▁`; pieces that the model's makers defined by
//! hand (runs of spaces, line ends, tags) are cut out before any merge, the longest first.
//! Left out on purpose: `t5` (unigram), which is another algorithm.

use std::cmp::Reverse;

use rayon::prelude::*;
use serde_json::json;
use tokenizers::models::bpe::{BpeBuilder, Merges, Vocab};

use super::tokens::{CONTROL, NORMAL, Tokens, UNKNOWN, USER_DEFINED, built, refused};
use crate::error::Result;
use crate::model::gguf::Gguf;

/// Longer pieces are refused: every cut of each is looked up, which takes the square of its length.
const LONGEST_PIECE: usize = 1024;

/// The tokenizer.
pub fn build(gguf: &Gguf, mut tokens: Tokens) -> Result<tokenizers::Tokenizer> {
    let scores = gguf.numbers("tokenizer.ggml.scores")?;
    if scores.len() != tokens.texts.len() {
        return Err(refused(format!(
            "{} tokens but {} scores; the GGUF is damaged",
            tokens.texts.len(),
            scores.len()
        )));
    }
    let adds_space = gguf
        .maybe_bool("tokenizer.ggml.add_space_prefix")?
        .unwrap_or(true);
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
    let merges = merges(&tokens, &scores)?;
    // A piece that is defined by hand is found in the text before its spaces become `▁`; llama.cpp writes most of them so already.
    for (text, kind) in tokens.texts.iter_mut().zip(&tokens.kinds) {
        if *kind == USER_DEFINED && text.contains('▁') {
            *text = text.replace('▁', " ");
        }
    }
    let added = tokens.added(&[CONTROL, UNKNOWN, USER_DEFINED]);
    let unknown = tokens.kinds.iter().position(|kind| *kind == UNKNOWN);
    let unknown = unknown.map(|id| tokens.texts[id].clone());
    let mut model = BpeBuilder::new()
        .vocab_and_merges(tokens.into_vocabulary(), merges)
        .fuse_unk(true)
        .byte_fallback(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown);
    }
    built(
        model,
        json!({ "type": "Sequence", "normalizers": normalizers }),
        json!(null),
        json!({ "type": "Sequence", "decoders": decoders }),
        added,
    )
}

/// Every way to cut a normal piece into two others, the best first.
fn merges(tokens: &Tokens, scores: &[f64]) -> Result<Merges> {
    /// `id` is that of the joined piece; `left` and `right` begin and end it.
    struct Cut {
        id: u32,
        left: u32,
        right: u32,
        /// Characters of the left side.
        length: usize,
    }
    let Tokens { texts, kinds } = tokens;
    let pieces = texts.iter().zip(kinds).zip(0..);
    let normal: Vocab = pieces
        .filter(|((_, kind), _)| **kind == NORMAL)
        .map(|((text, _), id)| (text.clone(), id))
        .collect();
    if let Some((text, id)) = normal.iter().find(|(text, _)| text.len() > LONGEST_PIECE) {
        return Err(refused(format!(
            "token {id} has {} bytes, we read at most {LONGEST_PIECE}",
            text.len()
        )));
    }
    let cuts_of = |(id, text): (u32, &String)| {
        let is_one = normal.get(text) == Some(&id);
        let places = text
            .char_indices()
            .enumerate()
            .skip(1)
            .filter(move |_| is_one);
        let cuts = places.filter_map(|(length, (at, _))| {
            let (left, right) = text.split_at(at);
            let (left, right) = (*normal.get(left)?, *normal.get(right)?);
            Some(Cut {
                id,
                left,
                right,
                length,
            })
        });
        cuts.collect::<Vec<Cut>>()
    };
    let mut cuts: Vec<Cut> = texts
        .par_iter()
        .enumerate()
        .flat_map_iter(|(id, text)| cuts_of((id as u32, text)))
        .collect();
    // Where scores are equal, transformers takes the longer left side first, and then the order of the vocabulary.
    let key = |cut: &Cut| (Reverse(cut.length), cut.left, cut.right);
    cuts.par_sort_unstable_by(|one, other| {
        let by_score = scores[other.id as usize].total_cmp(&scores[one.id as usize]);
        by_score.then_with(|| key(one).cmp(&key(other)))
    });
    let side = |id: u32| texts[id as usize].clone();
    let merges = cuts
        .into_iter()
        .map(|cut| (side(cut.left), side(cut.right)));
    Ok(merges.collect())
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
