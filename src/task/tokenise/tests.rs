use super::*;
use crate::model::tokenizer::tests::{byte_level, word_level};

fn draft(clean: &str, corrupted: &str, answers: &[&str], wrong: &[&str]) -> Draft {
    // The role NAME is the word that begins with a capital, after the first letter.
    let prompt = |text: &str| PromptText {
        text: text.to_owned(),
        roles: text
            .split(' ')
            .find(|word| word.starts_with(char::is_uppercase))
            .map(|word| {
                let start = text.find(word).expect("it is in the text");
                ("NAME".to_owned(), start..start + word.len())
            })
            .into_iter()
            .collect(),
    };
    Draft {
        index: 4,
        template: 1,
        clean: prompt(clean),
        corrupted: prompt(corrupted),
        answers: answers
            .iter()
            .map(|&a| Continuation::Text(a.to_owned()))
            .collect(),
        wrong: wrong
            .iter()
            .map(|&a| Continuation::Text(a.to_owned()))
            .collect(),
    }
}

fn setting<'a>(tokenizer: &'a Tokenizer, derived_roles: &'a [DerivedRole]) -> TokeniseSetting<'a> {
    TokeniseSetting {
        tokenizer,
        bos: true,
        chat: false,
        max_tokens: Some(6),
        metric: Metric::LogitDiff,
        unequal: false,
        may_melt: false,
        derived_roles,
    }
}

#[test]
fn roles_and_answers_are_found_in_the_tokens() {
    let tokenizer = word_level(["then", "Mary", "John", "ran", "he", "she"]);
    let derived = [
        DerivedRole::parse("NAME+1").unwrap(),
        DerivedRole::parse("NAME-1").unwrap(),
    ];
    let pair = tokenise(
        draft("then Mary ran", "then John ran", &[" she"], &[" he"]),
        &setting(&tokenizer, &derived),
    )
    .unwrap()
    .unwrap();
    assert_eq!(pair.clean, [0, 2, 3, 5]);
    assert_eq!(pair.corrupted, [0, 2, 4, 5]);
    assert_eq!(
        pair.target,
        Target {
            answers: vec![7],
            wrong: vec![6],
            ..Target::default()
        }
    );
    assert_eq!(pair.roles["NAME"], [2]);
    assert_eq!(pair.roles["NAME+1"], [3]);
    assert_eq!(pair.roles["NAME-1"], [1]);
    assert_eq!(pair.roles["END"], [3]);
}

#[test]
fn a_role_of_several_tokens_has_several_positions() {
    let tokenizer = byte_level(Some(r#"{"bos_token": "<|end|>"}"#));
    let mut setting = setting(&tokenizer, &[]);
    setting.max_tokens = None;
    let pair = tokenise(draft("x Al", "x Bo", &[" a"], &["."]), &setting)
        .unwrap()
        .unwrap();
    assert_eq!(pair.roles["NAME"], [3, 4]);
    assert_eq!(pair.target.answers, [256]);
}

#[test]
fn an_unusable_pair_says_why() {
    let tokenizer = word_level(["then", "Mary", "John", "ran", "he", "she"]);
    let setting = setting(&tokenizer, &[]);
    for (clean, corrupted, answers, wrong, says) in [
        (
            "then Mary ran",
            "John ran",
            &[" she"][..],
            &[" he"][..],
            "lengths differ: clean has 4 tokens, corrupted has 3",
        ),
        (
            "Mary ran then",
            "then John ran",
            &[" she"],
            &[" he"],
            "roles misaligned: NAME is at [1]",
        ),
        (
            "then Mary ran",
            "then Mary ran",
            &[" she"],
            &[" he"],
            "no difference",
        ),
        (
            "then Mary ran",
            "then Anna ran",
            &[" she"],
            &[" he"],
            "unknown word: the vocabulary cannot spell `Anna`",
        ),
        (
            "then Mary ran",
            "then John ran",
            &[" they"],
            &[" he"],
            "unknown word",
        ),
        (
            "then Mary ran",
            "then John ran",
            &[" she ran"],
            &[" he"],
            "answer is not one token: ` she ran` is 2 (she|ran)",
        ),
        (
            "then Mary ran",
            "then John ran",
            &["s"],
            &[" he"],
            "answer joins the prompt",
        ),
        (
            "then Mary ran",
            "then John ran",
            &[" she"],
            &[" she"],
            "answer is also wrong",
        ),
        (
            "then Mary ran",
            "then John ran",
            &[" she"],
            &[],
            "no wrong answer",
        ),
        (
            "then Mary ran ran ran ran",
            "then John ran ran ran ran",
            &[" she"],
            &[" he"],
            "too long: 7 tokens",
        ),
    ] {
        let dropped = tokenise(draft(clean, corrupted, answers, wrong), &setting)
            .unwrap()
            .unwrap_err();
        assert!(dropped.reason.contains(says), "{}", dropped.reason);
        assert_eq!(dropped.index, 4);
    }
}

#[test]
fn prompts_of_unequal_length_are_kept_on_request_where_roles_correspond() {
    let tokenizer = word_level(["then", "Mary", "John", "ran", "he", "she"]);
    let derived = [DerivedRole::parse("NAME+1").unwrap()];
    let mut setting = setting(&tokenizer, &derived);
    setting.unequal = true;
    let kept = |clean, corrupted| tokenise(draft(clean, corrupted, &[" she"], &[" he"]), &setting);
    let pair = kept("then Mary ran", "John ran").unwrap().unwrap();
    assert_eq!((pair.clean.len(), pair.corrupted.len()), (4, 3));
    assert_eq!(
        (&pair.roles["NAME"], &pair.roles["NAME+1"]),
        (&vec![2], &vec![3])
    );
    let there = pair.corrupted_roles();
    assert_eq!(
        (&there["NAME"], &there["NAME+1"], &there["END"]),
        (&vec![1], &vec![2], &vec![2])
    );
    let moved = kept("Mary ran then", "then John ran").unwrap().unwrap();
    assert_eq!(
        (&moved.roles["NAME"], &moved.corrupted_roles()["NAME"]),
        (&vec![1], &vec![2])
    );
    // What would be kept anyway is not marked.
    let aligned = kept("then Mary ran", "then John ran").unwrap().unwrap();
    assert_eq!(aligned.shifted_roles, None);

    let bytes = byte_level(None);
    let uneven = TokeniseSetting {
        tokenizer: &bytes,
        bos: false,
        max_tokens: None,
        derived_roles: &[],
        ..setting
    };
    let dropped = tokenise(draft("x Al", "x Bob", &[" "], &["."]), &uneven);
    assert_eq!(
        dropped.unwrap().unwrap_err().reason,
        "roles not one to one: NAME is 2 tokens in clean and 3 in corrupted"
    );
}

#[test]
fn a_chat_template_moves_the_roles_and_the_answer_loses_its_space() {
    let config = r#"{"bos_token": "<|end|>", "chat_template": "<|end|>[{{ messages[0]['content'] | trim }}]{{ '\\n' }}"}"#;
    let tokenizer = byte_level(Some(config));
    let setting = TokeniseSetting {
        tokenizer: &tokenizer,
        bos: true,
        chat: true,
        max_tokens: None,
        metric: Metric::Kl,
        unequal: false,
        may_melt: false,
        derived_roles: &[],
    };
    let pair = tokenise(draft(" Al", " Bo", &[" x"], &[]), &setting)
        .unwrap()
        .unwrap();
    assert_eq!(pair.clean_text, "<|end|>[Al]\n");
    assert_eq!(pair.roles["NAME"], [2, 3]);
    assert_eq!(pair.target.answers, [u32::from(b'x')]);
}

#[test]
fn a_derived_role_is_a_role_and_a_distance() {
    let role = DerivedRole::parse("S1-2").unwrap();
    assert_eq!((role.base.as_str(), role.offset), ("S1", -2));
    for bad in ["S1", "+1", "S1+", "S1+0", "S1+x"] {
        assert!(DerivedRole::parse(bad).is_none(), "{bad}");
    }
}

#[test]
fn a_whole_answer_ends_both_prompts_but_for_its_last_token() {
    let tokenizer = word_level(["then", "Mary", "John", "ran", "he", "she", "home"]);
    let whole = TokeniseSetting {
        metric: Metric::LogProb,
        max_tokens: Some(8),
        ..setting(&tokenizer, &[])
    };
    let tokenised = |answers: &[&str], wrong: &[&str], setting: &TokeniseSetting| {
        let drafted = draft("then Mary ran", "then John ran", answers, wrong);
        tokenise(drafted, setting).unwrap()
    };
    let pair = tokenised(&[" she ran home"], &[" he ran"], &whole).unwrap();
    assert_eq!(pair.clean, [0, 2, 3, 5, 7, 5]);
    assert_eq!(pair.corrupted, [0, 2, 4, 5, 7, 5]);
    assert_eq!(
        (&pair.target.answers[..], &pair.target.then[..]),
        (&[7][..], &[5, 8][..])
    );
    assert!(pair.target.wrong.is_empty());
    assert_eq!(pair.roles["END"], [3]);
    assert_eq!(pair.roles["ANSWER"], [4, 5]);
    assert_eq!(pair.target.positions(pair.clean.len()), 3..6);
    // Of one token it is what it was, under any metric.
    let one = tokenised(&[" she"], &[" he"], &whole).unwrap();
    let by_difference = TokeniseSetting {
        metric: Metric::LogitDiff,
        ..whole
    };
    assert_eq!(one, tokenised(&[" she"], &[" he"], &by_difference).unwrap());
    let reason = |answers: &[&str], setting: &TokeniseSetting| {
        tokenised(answers, &[" he"], setting).unwrap_err().reason
    };
    assert_eq!(
        reason(&[" she ran"], &by_difference),
        "answer is not one token: ` she ran` is 2 (she|ran); `log_prob` and `prob` measure all of a right answer"
    );
    assert!(reason(&[" she ran", " he ran"], &whole).starts_with("answer of several tokens"));
    assert!(reason(&[" zz ran"], &whole).starts_with("unknown word"));
    let short = TokeniseSetting {
        max_tokens: Some(5),
        ..whole
    };
    assert!(reason(&[" she ran home"], &short).starts_with("too long: 6 tokens with the answer"));
}

/// A word-level tokenizer of a masked-language model: `[CLS] .. [SEP]`, ids 0 and 1, the mask 2.
fn masked() -> Tokenizer {
    let words = [
        "[CLS]", "[SEP]", "[MASK]", "[UNK]", "paris", "is", "in", "france", "rome", "italy", ".",
    ];
    let vocab: serde_json::Map<String, serde_json::Value> = (words.iter().enumerate())
        .map(|(id, word)| (word.to_string(), id.into()))
        .collect();
    let added: Vec<serde_json::Value> = (0..3)
        .map(|id| {
            serde_json::json!({"id": id, "content": words[id], "single_word": false, "lstrip": id == 2, "rstrip": false,
                "normalized": false, "special": true})
        })
        .collect();
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 1], "cls": ["[CLS]", 0]},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), None).expect("a well-formed tokenizer")
}

#[test]
fn an_encoder_is_read_at_its_mask_between_its_two_tokens() {
    let tokenizer = masked();
    let setting = setting(&tokenizer, &[]);
    let setting = TokeniseSetting {
        max_tokens: Some(12),
        ..setting
    };
    let tokenised = |clean: &str, corrupted: &str, answer: &str| {
        tokenise(draft(clean, corrupted, &[answer], &["rome"]), &setting).unwrap()
    };
    let pair = tokenised("[MASK] is in france .", "[MASK] is in italy .", "paris").unwrap();
    assert_eq!(pair.clean, [0, 2, 5, 6, 7, 10, 1]);
    assert_eq!(
        (
            pair.target.answers[0],
            pair.target.wrong[0],
            pair.target.after
        ),
        (4, 8, 5)
    );
    assert_eq!(pair.roles["END"], [1]);
    let pair = tokenised("france is in [MASK] .", "italy is in [MASK] .", "paris").unwrap();
    assert_eq!((pair.target.answers[0], pair.target.after), (4, 2));
    assert_eq!(pair.roles["END"], [4]);
    let reason = |clean: &str, corrupted: &str, answer: &str| {
        tokenised(clean, corrupted, answer).unwrap_err().reason
    };
    assert!(
        reason("paris is", "rome is", "in")
            .starts_with("not one mask: the answer is read at `[MASK]`, and a prompt has 0")
    );
    assert!(reason("[MASK] is [MASK]", "[MASK] is [MASK]", "in").contains("has 2 of it"));
    assert_eq!(
        reason("[MASK] is in italy", "is in italy [MASK]", "rome"),
        "mask misaligned: 4 tokens stand behind it in clean and 1 in corrupted"
    );
    assert_eq!(
        reason("[MASK] is in france .", "[MASK] is in italy .", "paris is"),
        "answer is not one token: `paris is` is 2 (paris|is); a mask is filled by one"
    );
    // Neither token is there where they are not asked for.
    assert_eq!(tokenizer.encode("paris", false).unwrap().ids, [4]);
    assert_eq!(
        tokenizer.encode("paris", true).unwrap().spans,
        [0..0, 0..5, 5..5]
    );
}
