use super::*;
use crate::scores::{Cell, Detail, Direction, ExampleScores, ScoresMeta};

/// Heads of one layer, with values by pair.
fn scores(heads: &[u32], values: &[&[f64]], detail: Detail) -> Scores {
    let cells: Vec<Cell> = (heads.iter())
        .map(|&head| Cell {
            head: Some(head),
            ..Cell::in_layer("attn.hook_z", 1)
        })
        .collect();
    let examples: Vec<ExampleScores> = (values.iter().enumerate())
        .map(|(example, values)| ExampleScores {
            example,
            clean: 0.0,
            corrupted: 10.0,
            cells: (0..heads.len() as u32).collect(),
            values: values.to_vec(),
            ..ExampleScores::default()
        })
        .collect();
    let meta = ScoresMeta {
        metric: "logit_diff".into(),
        direction: Direction::Denoise,
        ..ScoresMeta::default()
    };
    Scores::assemble(&cells, &examples, &meta, detail, Provenance::default()).unwrap()
}

const A: [&[f64]; 3] = [&[1.0, 2.0, 3.0], &[2.0, 3.0, 4.0], &[3.0, 4.0, 8.0]];
const B: [&[f64]; 3] = [&[3.0, 1.5, 0.0], &[4.0, 2.5, 0.0], &[5.0, 3.5, 0.0]];

#[test]
fn rows_are_joined_by_cell_and_differences_are_taken_pair_by_pair() {
    let first = scores(&[0, 1, 2], &A, Detail::PerExample);
    // The same cells in another order, one missing and one more.
    let second = scores(&[2, 0, 7], &B, Detail::PerExample);
    let found = compare(&first, &second, None).unwrap();
    assert_eq!(
        (found.cells, found.is_paired, found.by),
        ((2, 1, 1), true, ComparedBy::Score)
    );
    let column = |name: &str| found.table.floats(name).unwrap();
    // Head 0: 1.5 - 1, 2.5 - 2, 3.5 - 3; head 2: 3 - 3, 4 - 4, 5 - 8.
    assert_eq!(column("score"), [Some(0.5), Some(-1.0)]);
    assert_eq!(column("value"), [Some(-7.5), Some(-6.0)]);
    assert_eq!(
        (column("ci_low")[0], column("ci_high")[0]),
        (Some(0.5), Some(0.5))
    );
    assert_eq!(column("ci_low")[1], Some(-3.0));
    assert_eq!(found.table.integers("head").unwrap(), [Some(0), Some(2)]);
    assert_eq!(found.table.integers("n").unwrap(), [Some(3), Some(3)]);
}

#[test]
fn means_are_compared_as_independent_estimates() {
    let first = scores(&[0, 1, 2], &A, Detail::Mean);
    let found = compare(&first, &first, None).unwrap();
    assert!(!found.is_paired);
    assert_eq!(
        (
            found.agreement.correlation,
            found.agreement.rank_correlation
        ),
        (Some(1.0), Some(1.0))
    );
    assert_eq!(
        (found.cells, found.agreement.shared_strongest),
        ((3, 0, 0), (3, 3))
    );
    let column = |scores: &Scores, name: &str| scores.floats(name).unwrap();
    for row in 0..3 {
        assert_eq!(column(&found.table, "score")[row], Some(0.0));
        let half = (column(&first, "ci_high")[row].unwrap()
            - column(&first, "ci_low")[row].unwrap())
            / 2.0;
        let high = column(&found.table, "ci_high")[row].unwrap();
        assert!((high - half * 2f64.sqrt()).abs() < 1e-12, "{high} {half}");
    }
    let by_share = compare(&first, &first, Some(ComparedBy::Normalised)).unwrap();
    assert_eq!(column(&by_share.table, "score")[0], Some(0.0));
    assert_eq!(by_share.table.provenance.metric, "difference of normalised");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let means = scores(&[0, 1, 2], &A, Detail::Mean);
    let pairs = scores(&[0, 1, 2], &A, Detail::PerExample);
    let others = scores(&[5, 6, 7], &A, Detail::Mean);
    let refused = |a: &Scores, b: &Scores, by, says: &str| {
        let error = compare(a, b, by).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    };
    refused(&means, &pairs, None, "Running::detail");
    refused(
        &pairs,
        &pairs,
        Some(ComparedBy::Normalised),
        "ratios of means",
    );
    refused(&means, &others, None, "no row in common");
    let mut other_prompts = pairs.clone();
    other_prompts.provenance.prompts = vec![Default::default()];
    refused(&pairs, &other_prompts, None, "different prompts");
    // A table that is taken apart by position, which the other does not know.
    let cells: Vec<Cell> = [0, 1]
        .map(|pos| Cell {
            head: Some(0),
            pos: Some(pos),
            ..Cell::in_layer("attn.hook_z", 1)
        })
        .into();
    let example = ExampleScores {
        cells: [0, 1].into(),
        values: vec![1.0, 2.0],
        ..ExampleScores::default()
    };
    let meta = ScoresMeta::default();
    let about = Provenance::default();
    let finer = Scores::assemble(&cells, &[example], &meta, Detail::Mean, about).unwrap();
    refused(
        &means,
        &finer,
        Some(ComparedBy::Score),
        "taken apart further",
    );
}

#[test]
fn rows_that_the_other_table_lacks_stand_in_no_way() {
    let by_position = |component: &str, pos: Option<u32>| Cell {
        pos: pos.map(|pos| pos as i32),
        ..Cell::in_layer(component, 0)
    };
    let of = |cells: &[Cell]| {
        let example = ExampleScores {
            cells: (0..cells.len() as u32).collect(),
            values: (0..cells.len()).map(|i| i as f64).collect(),
            ..ExampleScores::default()
        };
        let meta = ScoresMeta {
            metric: "logit_diff".into(),
            direction: Direction::Denoise,
            ..ScoresMeta::default()
        };
        Scores::assemble(
            cells,
            &[example],
            &meta,
            Detail::Mean,
            Provenance::default(),
        )
        .unwrap()
    };
    let whole = by_position("hook_mlp_out", None);
    let places = [0, 1].map(|pos| by_position("hook_resid_pre", Some(pos)));
    let first = of(&[&[whole.clone()][..], &places].concat());
    let found = compare(&first, &of(std::slice::from_ref(&whole)), None).unwrap();
    assert_eq!(found.cells, (1, 2, 0));
    // What the other has once is not told apart.
    let other = of(&[whole, by_position("hook_resid_pre", None)]);
    let error = compare(&first, &other, None).unwrap_err().to_string();
    assert!(error.contains("one and the same in the other"), "{error}");
}
