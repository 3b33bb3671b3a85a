use super::*;
use crate::plot::test_scores;
use crate::scores::{Cell, Detail, Direction, ExampleScores, ScoresMeta};

fn drawn(scores: &Scores) -> String {
    svg(scores, &SvgOptions::default()).unwrap()
}

#[test]
fn a_grid_has_axes_a_short_title_and_a_scale_with_its_unit() {
    let mut scores = test_scores(&["When", " Mary"], 2);
    scores.provenance.model.id = "/somewhere/models/tiny.gguf".into();
    scores.provenance.method = "ablation".into();
    scores.provenance.task = "circuits/ioi.toml".into();
    let picture = drawn(&scores);
    for part in [
        ">tiny.gguf · ablation · ioi<",
        ">position<",
        ">layer<",
        ">·Mary<",
        ">change of logit_diff (logits)<",
        "<title>position 0 When, layer 0: -4.00</title>",
    ] {
        assert!(picture.contains(part), "{part}: {picture}");
    }
    // Four cells, the outline, the background and the colour bar.
    assert_eq!(picture.matches("<rect").count(), 4 + 1 + 1 + 41);
}

#[test]
fn edges_are_bars_and_a_table_without_numbers_is_refused() {
    let edges = |value: f64| {
        let cell = |src: &str| Cell {
            component: "edge".into(),
            src: Some(src.into()),
            dst: Some("a1.h0<q>".into()),
            ..Cell::default()
        };
        let example = ExampleScores {
            cells: [0, 1].into(),
            values: vec![value, -2.0 * value],
            ..ExampleScores::default()
        };
        let meta = ScoresMeta {
            direction: Direction::Direct,
            ..ScoresMeta::default()
        };
        let cells = [cell("input"), cell("m0")];
        Scores::assemble(
            &cells,
            &[example],
            &meta,
            Detail::Mean,
            Provenance::default(),
        )
        .unwrap()
    };
    let picture = drawn(&edges(1.5));
    let (first, second) = (
        picture.find("m0 → a1.h0&lt;q&gt;"),
        picture.find("input → a1"),
    );
    assert!(
        first.is_some() && first < second,
        "the strongest first: {picture}"
    );
    let refused = svg(&edges(f64::NAN), &SvgOptions::default()).unwrap_err();
    assert!(refused.to_string().contains("nothing to draw"), "{refused}");
}

#[test]
fn a_panel_is_chosen_by_its_name_and_an_unknown_one_names_those_that_there_are() {
    let scores = test_scores(&["a", "b"], 2);
    let options = |name: &str| SvgOptions {
        panel: Some(name.into()),
        ..SvgOptions::default()
    };
    assert!(svg(&scores, &options("resid_pre")).is_ok());
    let refused = svg(&scores, &options("attn_out")).unwrap_err().to_string();
    assert!(
        refused.contains("`attn_out`") && refused.contains("hook_resid_pre"),
        "{refused}"
    );
}
