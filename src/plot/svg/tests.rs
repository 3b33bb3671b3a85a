use super::*;
use crate::plot::{Palette, test_scores};
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

#[test]
fn a_palette_a_scale_and_titles_are_as_asked() {
    let scores = test_scores(&["a", "b"], 2);
    let with = |options: SvgOptions| svg(&scores, &options).unwrap();
    let refused = |options: SvgOptions| svg(&scores, &options).unwrap_err().to_string();
    let palette = |palette| SvgOptions {
        look: Look {
            palette,
            title: Some("<mine>".into()),
            ..Look::default()
        },
        ..SvgOptions::default()
    };
    // The strongest is -4, the end of the palette.
    let purple = with(palette(Palette::OrangePurple));
    assert!(purple.contains("fill='#542788'><title>position 0 a, layer 0: -4.00<"));
    assert!(purple.contains(">&lt;mine&gt;<"), "{purple}");
    let dark = with(palette(Palette::Viridis));
    assert!(dark.contains("fill='#fde725'><title>position 0 a, layer 0: -4.00<"));
    assert!(dark.contains(">-4.00</text>") && !dark.contains(">4.00</text>"));
    // Up to 8, 4 is half way; up to 2 it is beyond the end, which is said.
    let reach = |reach| SvgOptions {
        reach: Some(reach),
        ..SvgOptions::default()
    };
    let wide = with(reach(8.0));
    let half = super::page::hex(Palette::RedBlue.at(-0.5));
    assert!(wide.contains(&format!(
        "fill='{half}'><title>position 0 a, layer 0: -4.00<"
    )));
    assert!(wide.contains(">8.00</text>") && !wide.contains("stronger"));
    assert!(with(reach(2.0)).contains("what is stronger"));
    for bad in [0.0, -1.0, f64::NAN] {
        assert!(refused(reach(bad)).contains("above 0"));
    }
    let titled = with(SvgOptions {
        x_title: Some("depth".into()),
        y_title: Some("<word>".into()),
        ..SvgOptions::default()
    });
    assert!(titled.contains(">depth<") && titled.contains(">&lt;word&gt;<"));
    assert!(!titled.contains(">layer<"));
}

#[test]
fn a_palette_without_signs_is_not_for_values_of_both() {
    let mut scores = test_scores(&["a", "b"], 2);
    let column = scores.floats("score").unwrap();
    let mixed: Vec<f64> = column.iter().map(|x| x.unwrap() + 2.0).collect();
    let mixed = polars::prelude::Column::new("score".into(), mixed);
    scores.table.with_column(mixed).unwrap();
    let options = SvgOptions {
        look: Look {
            palette: Palette::Viridis,
            ..Look::default()
        },
        ..SvgOptions::default()
    };
    let message = svg(&scores, &options).unwrap_err().to_string();
    assert!(message.contains("both sides of 0"), "{message}");
}

#[test]
fn circuits_by_size_are_a_curve_with_its_interval() {
    let names = [
        "signed 0.01",
        "signed 0.1",
        "signed 1",
        "</svg> 0.01",
        "</svg> 0.1",
        "</svg> 1",
    ];
    let cells = names.map(|name| Cell {
        component: "circuit".into(),
        src: Some(name.into()),
        ..Cell::default()
    });
    let example = |example: usize| ExampleScores {
        example,
        clean: 2.0,
        corrupted: 0.0,
        cells: (0..6).collect(),
        values: vec![0.2, 1.0 + example as f64, 2.0, 0.0, 0.4, 2.0],
        ..ExampleScores::default()
    };
    let meta = ScoresMeta::default();
    let examples = [example(0), example(1), example(2)];
    let about = Provenance::default();
    let scores = Scores::assemble(&cells, &examples, &meta, Detail::Mean, about).unwrap();
    let picture = drawn(&scores);
    // A line and a sample of it in the legend for each, and a dot for each circuit.
    assert_eq!(picture.matches("<path").count(), 2 * 3);
    assert_eq!(picture.matches("<circle").count(), 6);
    assert!(picture.contains(">share of all edges<") && picture.contains(">faithfulness<"));
    assert!(
        picture.contains("signed, 0.100 of all edges: 1.00"),
        "{picture}"
    );
    assert!(picture.contains("&lt;/svg&gt;") && picture.matches("</svg>").count() == 1);
    let marked = SvgOptions {
        mark_significant: true,
        ..SvgOptions::default()
    };
    assert!(svg(&scores, &marked).is_err());
}
