//! What every method gets from its shape: dry runs, resume after a stop at any moment, shards that merge to the same table,
//! verification, and no option that is dropped without a word. A toy method has all of it.

mod answers;
mod every_method;
#[path = "../models/mod.rs"]
mod models;
mod resume;
mod shards;
mod toy_method;
mod verification;

use candlewick::hooks::Positions;
use candlewick::prelude::*;
use every_method::every_run;

fn lab(n_pairs: usize) -> Lab {
    Lab::open("embedded", "embedded")
        .expect("it is part of the binary")
        .first(n_pairs)
}

/// Two templates and two lengths.
fn mixed(n_pairs: usize) -> Lab {
    let options = ExpandOptions {
        n_pairs: Some(n_pairs),
        ..ExpandOptions::default()
    };
    Lab::open_with("embedded", &LoadOptions::default(), "embedded", options).expect("it ships")
}

fn rows(scores: &Scores) -> String {
    let mut text = Vec::new();
    scores
        .with_sides()
        .expect("tables of one shape")
        .to_csv(&mut text)
        .expect("text");
    String::from_utf8(text).expect("text")
}

fn measured(lab: &Lab, method: &dyn Method) -> Scores {
    lab.measure(method)
        .unwrap_or_else(|error| panic!("{method:?}: {error}"))
}

#[test]
fn what_is_measured_does_not_depend_on_how_it_is_run() {
    for (name, whole, method) in every_run(5) {
        let whole = whole.running(Running::default());
        let small = whole.clone().running(Running {
            batch: 1,
            memory: Some(1_000_000),
            ..Running::default()
        });
        let (a, b) = (measured(&whole, &*method), measured(&small, &*method));
        let (a, b) = (a.floats("score").unwrap(), b.floats("score").unwrap());
        assert_eq!(a.len(), b.len(), "{name}");
        for (a, b) in a.iter().zip(&b) {
            let (a, b) = (a.unwrap(), b.unwrap());
            assert!((a - b).abs() < 2e-4, "{name}: {a} against {b}");
        }
    }
}

#[test]
fn places_that_a_pair_lacks_are_refused_by_name() {
    let lab = lab(2);
    let knockout = |queries: Positions, keys: Positions| AblationConfig {
        knockouts: vec![Knockout { queries, keys }],
        ..AblationConfig::new(PatchConfig {
            source: PatchSource::Block,
            ..PatchConfig::new(Vec::new())
        })
    };
    let at = |text: &str| Positions::These(vec![text.parse().expect("a position")]);
    let set = |at: Positions| AblationConfig {
        sets: vec![NodeSet {
            name: "one".into(),
            nodes: vec!["a0.h0".parse().expect("a head")],
        }],
        positions: at,
        ..AblationConfig::new(PatchConfig {
            source: PatchSource::Zero,
            ..PatchConfig::new(Vec::new())
        })
    };
    let cases = [
        (knockout(at("@END"), at("@FOO")), "FOO"),
        (knockout(at("@FOO"), at("@END")), "FOO"),
        (knockout(at("99"), at("0")), "99"),
        (set(at("@NOPE")), "NOPE"),
        (set(at("99")), "99"),
    ];
    for (config, named) in cases {
        let refused = lab.measure(&config).expect_err("refused").to_string();
        assert!(refused.contains(named), "{refused}");
    }
    let heads = PatchConfig {
        heads: [5].into(),
        ..PatchConfig::sites("z").unwrap()
    };
    assert!(lab.measure(&heads).is_err());
    let no_heads = PatchConfig {
        heads: [1].into(),
        ..PatchConfig::sites("mlp_out").unwrap()
    };
    let refused = lab.measure(&no_heads).expect_err("refused").to_string();
    assert!(refused.contains("no heads"), "{refused}");
}

#[test]
fn positions_that_do_not_align_are_never_in_one_row() {
    let lab = mixed(12);
    let by_role = measured(&lab, &PatchConfig::sites("resid_pre").unwrap());
    let roles = by_role.texts("role").unwrap();
    assert!(roles.iter().all(Option::is_some));
    assert!(roles.contains(&Some("other")));
    let by_position = measured(&lab, &PatchConfig::sites("resid_pre:pos").unwrap());
    let templates = by_position.texts("template").unwrap();
    assert!(templates.iter().all(Option::is_some));
    // All positions together are all roles and the rest together.
    let all = measured(&lab, &PatchConfig::sites("resid_pre:all").unwrap());
    let gap = all.provenance.mean_clean - all.provenance.mean_corrupted;
    let whole = all.floats("score").unwrap()[0].unwrap();
    assert!((whole - gap).abs() < 2e-4, "{whole} against {gap}");
}
