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
        needs_wrong: true,
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
            wrong: vec![6]
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
        needs_wrong: false,
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
