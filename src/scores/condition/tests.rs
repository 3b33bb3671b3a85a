use super::*;
use crate::scores::{Cell, Detail, ExampleScores, Provenance, ScoresMeta};

/// Three layers by two positions with scores 0 to 5, and two heads with 6 and 7.
fn scores() -> Scores {
    let mut cells: Vec<Cell> = (0..6)
        .map(|i| Cell {
            component: "hook_resid_pre".into(),
            layer: Some(i / 2),
            pos: Some(i as i32 % 2),
            ..Cell::default()
        })
        .collect();
    cells.extend((0..2).map(|head| Cell {
        component: "attn.hook_z".into(),
        layer: Some(1),
        head: Some(head),
        ..Cell::default()
    }));
    let example = ExampleScores {
        tokens: vec!["When".into(), " Mary".into()],
        cells: (0..8).collect(),
        values: (0..8).map(f64::from).collect(),
        ..ExampleScores::default()
    };
    let meta = ScoresMeta::default();
    Scores::assemble(
        &cells,
        &[example],
        &meta,
        Detail::Mean,
        Provenance::default(),
    )
    .unwrap()
}

fn check(conditions: &str, expected: &[f64]) {
    let chosen = scores().matching(&conditions.parse().unwrap()).unwrap();
    let values: Vec<f64> = chosen
        .floats("score")
        .unwrap()
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(values, expected, "{conditions}");
}

#[test]
fn rows_are_chosen_by_text_number_range_and_size() {
    check("component=attn.hook_z", &[6.0, 7.0]);
    check("component=z,head=1", &[7.0]);
    check("layer=1-2,pos=0", &[2.0, 4.0]);
    check("layer=0,2,pos=1", &[1.0, 5.0]);
    check("token=Mary", &[1.0, 3.0, 5.0]);
    check("token=·Mary,layer=0", &[1.0]);
    check("score>4.5", &[5.0, 6.0, 7.0]);
    check("score<1", &[0.0]);
    check("component=z,resid_pre,score>5", &[6.0, 7.0]);
    check("component = z and head >= 1", &[7.0]);
    check("layer in (0, 2) and pos = 1", &[1.0, 5.0]);
    check("layer in [0-1] and pos != 1", &[0.0, 2.0]);
    check("not layer not in 2 and not (pos = 1 or score > 4)", &[4.0]);
    check(
        "score <= 1 or component = 'attn.hook_z' and head = 0",
        &[0.0, 1.0, 6.0],
    );
    check("(score <= 1 or component = z) AND layer = 1", &[6.0, 7.0]);
    check("component != z and score<>0 and score<2", &[1.0]);
    check("token = \" Mary\", layer = 0", &[1.0]);
    // A row without a value is none of these, but is what `not` takes.
    check("head != 0", &[7.0]);
    check("not head = 0 and score > 4", &[5.0, 7.0]);
}

#[test]
fn side_quantities_become_the_table_when_only_they_are_asked_for() {
    let cells = [None, Some("rank"), Some("prob")].map(|measure: Option<&str>| Cell {
        component: "hook_resid_post".into(),
        layer: Some(0),
        measure: measure.map(String::from),
        ..Cell::default()
    });
    let example = ExampleScores {
        cells: (0..3).collect(),
        values: vec![1.0, 2.0, 0.5],
        ..ExampleScores::default()
    };
    let meta = ScoresMeta {
        metric: "logit_diff".into(),
        unit: "logits".into(),
        ..ScoresMeta::default()
    };
    let about = Provenance::default();
    let scores = Scores::assemble(&cells, &[example], &meta, Detail::Mean, about).unwrap();
    let chosen = scores.matching(&"metric=rank".parse().unwrap()).unwrap();
    assert_eq!(chosen.floats("score").unwrap(), [Some(2.0)]);
    assert_eq!(
        (chosen.provenance.metric.as_str(), chosen.sides.len()),
        ("rank", 0)
    );
    let all = scores.matching(&"layer=0".parse().unwrap()).unwrap();
    assert_eq!((all.table.height(), all.sides[0].1.table.height()), (1, 2));
    let error = scores.matching(&"head=1".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("no row of 3 matches"), "{error}");
}

#[test]
fn ranges_may_be_negative() {
    assert_eq!(range("-3--1"), Some((-3.0, -1.0)));
    assert_eq!(range("-1"), Some((-1.0, -1.0)));
    for text in ["", "a", "5-3", "1-", "nan", "é-1"] {
        assert_eq!(range(text), None, "{text}");
    }
}

#[test]
fn what_cannot_be_read_or_found_is_refused_with_what_there_is() {
    for (text, mark) in [
        ("", "^"),
        ("layer", "     ^"),
        ("=3", "^"),
        ("layer,head=1", "     ^"),
        ("(layer=1", "        ^"),
        ("layer=1)", "       ^"),
        ("layer=1 head=2", "        ^"),
        ("layer in (1, 2", "              ^"),
        ("token='é", "      ^"),
        ("not", "   ^"),
        ("layer=", "      ^"),
        ("layer=1 and", "           ^"),
        ("layer not = 1", "          ^"),
    ] {
        let Err(Error::Condition { mark: found, .. }) = text.parse::<Conditions>() else {
            panic!("{text} is refused");
        };
        assert_eq!(found, mark, "{text}");
    }
    let deep = "(".repeat(10_000);
    assert!(deep.parse::<Conditions>().is_err());
    check("not class = x and score > 6", &[7.0]);
    for (text, says) in [
        ("class = x or class = y", "`class` is empty in this table"),
        ("layer=9", "`layer` runs from 0 to 2"),
        ("component=q", "`component` is attn.hook_z, hook_resid_pre"),
        (
            "head=0 and layr>1",
            "there is no column `layr`; nearest: `layer`",
        ),
        ("layer=first", "holds numbers"),
        ("score>x", "holds numbers"),
        ("score>1-2", "compare with one number"),
        ("component>1", "holds text"),
    ] {
        let conditions: Conditions = text.parse().unwrap();
        let error = scores().matching(&conditions).unwrap_err().to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}
