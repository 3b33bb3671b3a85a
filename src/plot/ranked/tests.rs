use super::columns::{decimals, fixed};
use super::rows::one_of_each_place;
use super::*;
use crate::plot::test_scores;
use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, ScoresMeta};
use crate::text::width;

/// Three layers of two components, and a second measure; the components differ in strength.
fn scores() -> Scores {
    let cell = |component: &str, layer, measure: Option<&str>| Cell {
        component: component.into(),
        layer: Some(layer),
        measure: measure.map(String::from),
        ..Cell::default()
    };
    let mut cells = Vec::new();
    let mut values = Vec::new();
    for layer in 0..3 {
        cells.push(cell("hook_resid_pre", layer, None));
        values.push(10.0 + f64::from(layer));
        cells.push(cell("attn.hook_z", layer, None));
        values.push(-0.5 * f64::from(layer));
        cells.push(cell("attn.hook_z", layer, Some("share")));
        values.push(0.25);
    }
    let example = |example, shift| ExampleScores {
        example,
        clean: 20.0,
        cells: (0..cells.len() as u32).collect(),
        values: values.iter().map(|value| value + shift).collect(),
        ..ExampleScores::default()
    };
    let meta = ScoresMeta {
        metric: "logit_diff".into(),
        direction: Direction::Denoise,
        ..ScoresMeta::default()
    };
    let examples = [example(0, 0.0), example(1, 1.0)];
    Scores::assemble(
        &cells,
        &examples,
        &meta,
        Detail::Mean,
        Provenance::default(),
    )
    .unwrap()
}

#[test]
fn each_component_has_its_strongest_rows() {
    let top = strongest(&scores(), 2);
    let layers = top.integers("layer").unwrap();
    // The second component has 0.5, 0 and -0.5: of equals the earlier comes first.
    assert_eq!(layers, [2, 1, 0, 2].map(Some));
    let components = top.texts("component").unwrap();
    assert_eq!(components[0], Some("hook_resid_pre"));
    assert_eq!(components[2], Some("attn.hook_z"));
}

#[test]
fn numbers_stand_beside_their_intervals_and_measures_beside_their_cell() {
    let text = ranked_table(
        &scores(),
        &scores().with_sides().unwrap(),
        Some(1),
        usize::MAX,
    );
    let lines: Vec<&str> = text.lines().collect();
    let header: Vec<&str> = lines[0]
        .split("  ")
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect();
    let at = |name: &str| {
        header
            .iter()
            .position(|title| *title == name)
            .unwrap_or_else(|| panic!("{name}: {header:?}"))
    };
    assert_eq!(header[at("score") + 1], "95% interval");
    assert!(at("normalised") > at("score"));
    assert!(at("share") > at("normalised"));
    assert!(lines[1].starts_with("hook_resid_pre"), "{text}");
    assert!(
        lines[1].contains("12.50") && lines[1].contains("[12.00, 13.00]"),
        "{text}"
    );
    assert!(
        !text.contains("value") && !text.contains("method"),
        "{text}"
    );
}

#[test]
fn numbers_have_four_digits_and_a_zero_no_sign() {
    assert_eq!(decimals([0.5, -12.25].into_iter()), 2);
    assert_eq!(decimals([0.036, f64::NAN].into_iter()), 5);
    assert_eq!(decimals([0.0].into_iter()), 3);
    let numbers = [-0.0001, -0.1, f64::NEG_INFINITY].map(|number| fixed(number, 2));
    assert_eq!(numbers, ["0.00", "-0.10", "-inf"]);
}

#[test]
fn a_table_fits_its_width_and_says_what_it_left_out() {
    let text = ranked_table(&scores(), &scores().with_sides().unwrap(), None, 40);
    assert!(text.lines().all(|line| width(line) <= 40), "{text}");
    assert!(text.contains("left out for width: "), "{text}");
}

#[test]
fn one_component_has_ten_rows_of_different_places() {
    // Scores -40 to -1: layer 0 is stronger at every position.
    let text = ranked_table(
        &test_scores(&["a"; 20], 2),
        &test_scores(&["a"; 20], 2),
        None,
        usize::MAX,
    );
    assert_eq!(text.lines().count(), 11, "{text}");
    // Scores -6, -5 in layer 0, -4, -3 in layer 1, -2, -1 in layer 2.
    let scores = test_scores(&["a", "b"], 3);
    let columns = Columns::of(&scores);
    assert_eq!(suggested(&columns), (vec![0, 1, 2, 3, 4, 5], false));
    let two = one_of_each_place(&columns, &[0, 2, 1], 2);
    assert_eq!(
        two,
        [0, 1],
        "the second position before the second layer of the first"
    );
}
