//! Estimates are held against exact effects.

use candlewick::methods::tokens::Baseline;
use candlewick::prelude::*;

use crate::every_method::ig;
use crate::{lab, measured, mixed};

#[test]
fn verification_holds_estimates_against_what_patching_measures() {
    let lab = mixed(5).running(Running {
        batch: 2,
        ..Running::default()
    });
    let patch = PatchConfig {
        direction: Direction::Noise,
        ..PatchConfig::sites("mlp_out,z:pos").unwrap()
    };
    let estimates = lab
        .verified(&NodeAttributionConfig::atp(patch.clone()), 7)
        .expect("verifies");
    let exact = measured(&lab, &patch);
    let key = |scores: &Scores, row: usize| {
        let whole = |name: &str| scores.integers(name).and_then(|column| column[row]);
        let text = |name: &str| scores.texts(name).and_then(|c| c[row].map(String::from));
        (
            text("component"),
            whole("layer"),
            whole("head"),
            whole("pos"),
            text("template"),
        )
    };
    let scores = exact.floats("score").unwrap();
    let place = |wanted: &_| (0..exact.table.height()).find(|&row| key(&exact, row) == *wanted);
    let mut checked = 0;
    for (row, value) in estimates.floats("exact").unwrap().into_iter().enumerate() {
        let Some(value) = value else { continue };
        let there = place(&key(&estimates, row)).expect("the same cells");
        let measured = scores[there].unwrap();
        assert!(
            (value - measured).abs() < 2e-4,
            "{value} against {measured}"
        );
        checked += 1;
    }
    assert_eq!(checked, 14);
    let note = &estimates.provenance.notes[0];
    assert!(
        note.contains("rank correlation") && note.contains("median relative error"),
        "{note}"
    );
}

#[test]
fn edges_and_tokens_are_verified_too() {
    let lab = lab(3);
    let edges = lab
        .verified(&EdgeAttributionConfig::eap(), 5)
        .expect("verifies");
    let exact = measured(&lab, &EdgeConfig::all());
    let of = |scores: &Scores, row: usize| {
        let text = |name: &str| scores.texts(name).unwrap()[row].unwrap().to_string();
        (text("src"), text("dst"))
    };
    let all = exact.floats("score").unwrap();
    let mut checked = 0;
    for (row, value) in edges.floats("exact").unwrap().into_iter().enumerate() {
        if let Some(value) = value {
            assert_eq!(of(&edges, row), of(&exact, row));
            assert!((value - all[row].unwrap()).abs() < 2e-4);
            checked += 1;
        }
    }
    assert_eq!(checked, 10);
    // Taking a token away changes the metric by minus its share: by zeros, or by the other prompt where the integral starts there.
    let lab = mixed(5);
    for (method, source) in [
        (TokenMethod::Lrp, PatchSource::Zero),
        (ig(4, Baseline::Mean), PatchSource::Zero),
        (ig(4, Baseline::Pair), PatchSource::Pair),
    ] {
        let shares = lab
            .verified(&TokenConfig::new(method.clone()), 6)
            .expect("verifies");
        let removal = PatchConfig {
            source,
            direction: if source == PatchSource::Pair {
                Direction::Noise
            } else {
                Direction::Ablate
            },
            ..PatchConfig::sites("embed:pos").unwrap()
        };
        let removed = measured(&lab, &removal);
        let key = |scores: &Scores, row: usize| {
            (
                scores.texts("component").unwrap()[row].map(String::from),
                scores.integers("pos").unwrap()[row],
                scores.texts("template").unwrap()[row].map(String::from),
            )
        };
        let effects = removed.floats("score").unwrap();
        let mut checked = 0;
        for (row, value) in shares.floats("exact").unwrap().into_iter().enumerate() {
            let Some(value) = value else { continue };
            let wanted = key(&shares, row);
            let mut rows = 0..removed.table.height();
            let there = rows.find(|&there| key(&removed, there) == wanted);
            let effect = effects[there.expect("a token")].unwrap();
            assert!(
                (value + effect).abs() < 2e-4,
                "{method}: {value} for {effect}"
            );
            checked += 1;
        }
        assert_eq!(checked, 12, "{method}");
    }
    // What is exact itself has nothing to be held against.
    let refused = lab
        .verified(&EdgeConfig::all(), 3)
        .expect_err("refused")
        .to_string();
    assert!(refused.contains("`Running::verify`"), "{refused}");
}
