use super::*;
use crate::model::tokenizer::tests::word_level;

/// A pair of `length` tokens that is unlike those of other numbers.
fn pair(index: usize, template: usize, length: usize) -> Pair {
    let mut clean = vec![1; length];
    clean[0] = 2 + index as u32;
    let corrupted = vec![1; length];
    let pair = Pair::new(clean, corrupted).answer(3).template(template);
    Pair {
        index,
        ..pair.role(format!("R{template}"), [0])
    }
}

fn tokenizer() -> Tokenizer {
    word_level(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"])
}

fn task(pairs: impl IntoIterator<Item = Pair>) -> Result<Task> {
    Task::new("test", &tokenizer(), Metric::LogProb, pairs)
}

#[test]
fn batches_hold_one_template_and_one_length() {
    let pairs = [
        pair(0, 0, 5),
        pair(1, 1, 5),
        pair(2, 0, 5),
        pair(3, 0, 6),
        pair(4, 0, 5),
    ];
    let one = task(pairs.clone()).unwrap();
    assert_eq!(one.batches(2), [vec![0, 2], vec![4], vec![3], vec![1]]);
    assert_eq!(one.batches(0).len(), 5);
    let longer = Pair::new([2, 1, 1, 1, 1], [1; 6])
        .answer(3)
        .shifted_role("R", [0], [1]);
    let two = task([pairs[2].clone(), longer]).unwrap();
    assert_eq!(two.batches(2), [vec![0], vec![1]]);
}

#[test]
fn roles_are_those_of_every_pair() {
    let task = task([pair(0, 0, 5), pair(1, 1, 5)]).unwrap();
    assert_eq!(task.roles(), ["END"]);
    assert_eq!(task.positions(0, "END").unwrap(), [4]);
    let refused = task.positions(0, "S2").unwrap_err().to_string();
    assert!(refused.contains("it has: END"));
}

#[test]
fn the_hash_depends_on_what_is_measured_and_not_on_how_it_is_shown() {
    let first = pair(0, 0, 5);
    let hash = |pair: Pair| task([pair]).unwrap().token_hash();
    let known = hash(first.clone());
    assert_eq!(known.len(), 64);
    let shown = Pair {
        clean_text: "shown otherwise".into(),
        ..first.clone()
    };
    assert_eq!(hash(shown), known);
    let renamed = Pair {
        roles: first
            .roles
            .iter()
            .map(|(role, at)| (role.to_lowercase(), at.clone()))
            .collect(),
        ..first.clone()
    };
    for other in [
        first.clone().wrong(4),
        first.clone().role("S1", [1]),
        first.clone().role("END", [3]),
        first.clone().shifted_role("END", [4], [3]),
        first.clone().template(1),
        renamed,
    ] {
        assert_ne!(hash(other), known);
    }
    let one = task([first]).unwrap();
    let numbered = one
        .with_pairs([Pair {
            index: 7,
            ..pair(0, 0, 5)
        }])
        .unwrap();
    assert_ne!(numbered.token_hash(), known);
}

#[test]
fn what_a_task_promises_is_checked_pair_by_pair() {
    let good = || Pair::new([2, 1, 1], [3, 1, 1]).answer(4).wrong(5);
    for (bad, says) in [
        (Pair::new([], [3]), "empty prompt"),
        (good().wrong(4), "answer is also wrong: `c`"),
        (
            good().role("S", [3]),
            "S is at 3 in clean, which has 3 tokens",
        ),
        (good().role("S", [1, 1]), "role out of order"),
        (good().role("S", []), "no token of clean is inside S"),
        (
            good().shifted_role("S", [0, 1], [1]),
            "S is 2 tokens in clean and 1 in corrupted",
        ),
        (
            good().shifted_role("S", [0], [3]),
            "S is at 3 in corrupted, which has 3 tokens",
        ),
    ] {
        let refused = task([good(), bad]).unwrap_err();
        assert!(matches!(refused, Error::BadTask { .. }));
        let message = refused.to_string();
        assert!(
            message.contains("pair 1: ") && message.contains(says),
            "{message}"
        );
    }
    let unmarked = Pair::new([2, 1], [3, 1, 1]).answer(4);
    assert!(matches!(
        task([unmarked]),
        Err(Error::LengthMismatch {
            index: 0,
            clean: 2,
            corrupted: 3
        })
    ));
    assert!(matches!(task([]), Err(Error::EmptyTask { .. })));
    let one = task([pair(3, 0, 4)]).unwrap();
    let backwards = one.with_pairs([pair(3, 0, 4), pair(1, 0, 4)]).unwrap_err();
    assert!(backwards.to_string().contains("pair 1 comes after"));
}

#[test]
fn a_task_of_another_model_is_refused() {
    let mut spec = crate::model::read_spec("embedded", &Default::default()).unwrap();
    (spec.d_vocab, spec.n_ctx) = (6, 4);
    assert!(task([pair(0, 0, 4)]).unwrap().check_fits(&spec).is_ok());
    let longer = task([pair(0, 0, 5)]).unwrap().check_fits(&spec);
    assert!(matches!(
        longer,
        Err(Error::TooLong {
            index: 0,
            tokens: 5,
            limit: 4
        })
    ));
    let beyond = task([pair(0, 0, 4).wrong(6)]).unwrap().check_fits(&spec);
    let message = beyond.unwrap_err().to_string();
    assert!(message.contains("6 (wrong of pair 0)"), "{message}");
}

#[test]
fn unequal_lengths_are_lawful_where_roles_correspond_and_refused_by_position() {
    let shifted = Pair::new([2, 1, 1], [1, 3, 1, 1])
        .answer(4)
        .shifted_role("S", [0], [1]);
    assert_eq!(shifted.corrupted_roles()["END"], [3]);
    let both = task([pair(0, 0, 3), shifted]).unwrap();
    assert!(!both.is_aligned());
    assert!(matches!(
        both.check_aligned(),
        Err(Error::LengthMismatch {
            index: 1,
            clean: 3,
            corrupted: 4
        })
    ));
    let moved = Pair::new([2, 1, 1], [1, 3, 1])
        .answer(4)
        .shifted_role("S", [0], [1]);
    let refused = task([moved]).unwrap().check_aligned().unwrap_err();
    assert!(
        matches!(&refused, Error::RoleMismatch { role, .. } if role == "S"),
        "{refused}"
    );
    let same = Pair::new([2, 1, 1], [3, 1, 1])
        .answer(4)
        .shifted_role("S", [0], [0]);
    assert!(task([same]).unwrap().is_aligned());
}

#[test]
fn a_pair_that_is_there_twice_is_dropped_and_counted() {
    let twice = [
        pair(0, 0, 5),
        pair(1, 0, 5),
        pair(0, 0, 5),
        pair(1, 0, 5).wrong(4),
    ];
    let task = task(twice).unwrap();
    let kept: Vec<usize> = task.pairs().iter().map(|pair| pair.index).collect();
    assert_eq!((kept, task.asked), (vec![0, 1, 3], 4));
    assert_eq!(task.drop_counts(), [("repeated".to_owned(), 1)]);
    assert_eq!(task.dropped[0].reason, "repeated: as pair 0");
    assert_eq!(task.pairs()[0].clean_text, "a <unk> <unk> <unk> <unk>");
}

#[test]
fn a_metric_that_a_pair_cannot_serve_is_named() {
    let task = task([pair(0, 0, 5)]).unwrap();
    assert!(task.check_metric(Metric::LogProb).is_ok());
    let refused = task.check_metric(Metric::LogitDiff).unwrap_err();
    assert!(refused.to_string().contains("pair 0"));
    let built = Task::new("test", &tokenizer(), Metric::LogitDiff, [pair(0, 0, 5)]);
    assert!(matches!(built, Err(Error::BadMetric { .. })));
}

#[test]
fn an_empty_task_tells_its_reasons() {
    let none = task([]).unwrap_err().to_string();
    assert!(none.contains("no pairs at all"));
    let reasons = [
        "lengths differ: 5 and 6 tokens",
        "lengths differ: 5 and 7 tokens",
        "repeated: as pair 0",
    ];
    let dropped = reasons.map(|reason| Dropped {
        index: 0,
        clean_text: String::new(),
        corrupted_text: String::new(),
        reason: reason.into(),
    });
    let empty = Task::of_numbered("x".into(), &tokenizer(), Metric::Kl, vec![], dropped.into());
    let message = empty.unwrap_err().to_string();
    for part in [
        "2 x lengths differ, 1 x repeated",
        "5 and 6",
        "`ExpandOptions::unequal`",
    ] {
        assert!(message.contains(part), "{message}");
    }
}
