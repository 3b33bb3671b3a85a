//! The strongest rows of a table, a few of each component, as a table for people.
//!
//! Each number stands beside its own interval, and other measures of the same cell beside the table's own metric. Columns in
//! which nothing differs or nothing stands are left out.

use std::collections::{BTreeMap, HashMap, HashSet};

use polars::prelude::{AnyValue, Column, IdxCa, NewChunkedArray};

use super::columns::Columns;
use super::heatmap::cut;
use super::places::Places;
use crate::scores::Scores;
use crate::text::{Align, aligned, visible, width};

/// Rows in all, when nobody says how many of each component.
const ROWS: usize = 12;
/// Rows of a table that has one component.
const ROWS_OF_ONE: usize = 10;
/// What all rows of a table share, or what stands elsewhere in it.
const HIDDEN: [&str; 9] = [
    "method",
    "direction",
    "base",
    "value",
    "ci_low",
    "ci_high",
    "normalised_low",
    "normalised_high",
    "example",
];
/// These follow the coordinates and their intervals, whatever stands between them in the table.
const LAST: [&str; 4] = ["n", "exact", "checked", "contribution"];
/// A text column is not cut below this width.
const SHORTEST_TEXT: usize = 12;

/// The strongest `each` rows of each component (and target, and template), by magnitude of `score`; of equals, the earlier
/// first. Rows of the table's own metric, if it has any.
pub fn strongest(scores: &Scores, each: usize) -> Scores {
    let columns = Columns::of(scores);
    let mut groups = groups(&columns);
    groups.iter_mut().for_each(|group| group.truncate(each));
    with_rows(scores, &groups.concat())
}

fn with_rows(scores: &Scores, rows: &[u32]) -> Scores {
    let index = IdxCa::from_slice("row".into(), rows);
    let table = scores
        .table
        .take(&index)
        .expect("the rows were counted from this table");
    Scores {
        table,
        provenance: scores.provenance.clone(),
        sides: Vec::new(),
    }
}

/// A few rows of each component. A component that is measured at several places shows the strongest layer of each place before a
/// second layer of the strongest place. Also says whether this passed over a stronger row.
fn suggested(columns: &Columns) -> (Vec<u32>, bool) {
    let mut groups = groups(columns);
    if groups.len() > ROWS {
        let first = |group: &Vec<u32>| strength(columns, group[0]);
        groups.sort_by(|a, b| first(b).total_cmp(&first(a)));
        groups.truncate(ROWS);
    }
    let each = (ROWS / groups.len().max(1)).min(ROWS_OF_ONE);
    let mut chosen = Vec::new();
    let mut passed_over = false;
    for group in groups {
        let rows = one_of_each_place(columns, &group, each);
        passed_over |= rows != group[..rows.len()];
        chosen.extend(rows);
    }
    (chosen, passed_over)
}

/// The first `each` rows of a sorted group, but no place twice while there are others that are not weak beside the first.
fn one_of_each_place(columns: &Columns, group: &[u32], each: usize) -> Vec<u32> {
    const WEAK: f64 = 0.1;
    let place = |row: u32| {
        let row = row as usize;
        let role = columns.role[row].filter(|_| columns.pos[row].is_none());
        (columns.pos[row], role)
    };
    let has_places = group.iter().any(|&row| place(row) != (None, None));
    let has_heads = group
        .iter()
        .any(|&row| columns.head[row as usize].is_some());
    let least = WEAK * strength(columns, group[0]);
    let mut known = HashSet::new();
    let (first, second): (Vec<u32>, Vec<u32>) = group.iter().partition(|&&row| {
        !has_places || has_heads || strength(columns, row) >= least && known.insert(place(row))
    });
    let mut rows: Vec<u32> = first.into_iter().chain(second).take(each).collect();
    rows.sort_by(|&a, &b| strength(columns, b).total_cmp(&strength(columns, a)));
    rows
}

fn strength(columns: &Columns, row: u32) -> f64 {
    let score = columns.score[row as usize].unwrap_or(f64::NAN);
    if score.is_nan() { -1.0 } else { score.abs() }
}

/// Rows, component by component in the order of the table, each with its strongest first.
fn groups(columns: &Columns) -> Vec<Vec<u32>> {
    let has_own = (0..columns.height).any(|row| columns.is_own(row));
    let mut groups: Vec<Vec<u32>> = Vec::new();
    let mut known = HashMap::new();
    for row in (0..columns.height).filter(|&row| !has_own || columns.is_own(row)) {
        let key = (
            columns.metric[row],
            columns.component[row],
            columns.target[row],
            columns.template[row],
        );
        let next = groups.len();
        let at = *known.entry(key).or_insert(next);
        if at == next {
            groups.push(Vec::new());
        }
        groups[at].push(row as u32);
    }
    for group in &mut groups {
        group.sort_by(|&a, &b| strength(columns, b).total_cmp(&strength(columns, a)));
    }
    groups
}

/// A column as text that is safe to show.
pub(super) struct Shown {
    pub title: String,
    pub cells: Vec<String>,
    align: Align,
}

/// The strongest rows of each component as aligned text, no wider than `most`; a last line names columns that did not fit.
/// `whole` is the table with its side tables behind it.
pub(super) fn ranked_table(
    scores: &Scores,
    whole: &Scores,
    each: Option<usize>,
    most: usize,
) -> String {
    let columns = Columns::of(scores);
    let (rows, passed_over) = match each {
        Some(each) => {
            let mut groups = groups(&columns);
            groups.iter_mut().for_each(|group| group.truncate(each));
            (groups.concat(), false)
        }
        None => suggested(&columns),
    };
    if rows.is_empty() {
        return String::new();
    }
    let shown = shown_columns(scores, whole, &rows);
    let mut text = String::new();
    if passed_over {
        let heading = "the strongest rows, one layer of each place before a second (`--top N` takes them strictly)";
        text = cut(heading, most) + "\n";
    }
    text + &fit(shown, most)
}

/// The columns of some rows that tell them apart or measure something.
fn shown_columns(scores: &Scores, whole: &Scores, rows: &[u32]) -> Vec<Shown> {
    let chosen = with_rows(scores, rows);
    let mut shown = coordinates(scores, &chosen);
    for (name, low, high) in [
        ("score", "ci_low", "ci_high"),
        ("normalised", "normalised_low", "normalised_high"),
    ] {
        shown.extend(number_with_interval(&chosen, name, low, high));
    }
    let last = LAST
        .iter()
        .filter_map(|name| chosen.table.column(name).ok());
    shown.extend(last.filter_map(plain_column));
    shown.extend(other_measures(&Columns::of(whole), rows));
    shown
}

/// The suggested rows, column by column.
pub(super) fn suggested_columns(scores: &Scores, whole: &Scores) -> Vec<Shown> {
    let (rows, _) = suggested(&Columns::of(scores));
    shown_columns(scores, whole, &rows)
}

/// Columns that say which cell a row is.
fn coordinates(scores: &Scores, chosen: &Scores) -> Vec<Shown> {
    let is_number = |name: &str| ["score", "normalised"].contains(&name) || LAST.contains(&name);
    let columns = chosen.table.columns().iter();
    columns
        .filter(|column| {
            let name = column.name().as_str();
            let is_per_example = name == "example" && column.null_count() < column.len();
            let is_shared = match name {
                "metric" => column.n_unique().is_ok_and(|n| n == 1),
                name => HIDDEN.contains(&name),
            };
            (!is_shared || is_per_example) && !is_number(name)
        })
        .filter_map(|column| match column.name().as_str() {
            "token" => token_column(scores, chosen).or_else(|| plain_column(column)),
            _ => plain_column(column),
        })
        .collect()
}

/// The tokens of both runs where they differ.
fn token_column(scores: &Scores, chosen: &Scores) -> Option<Shown> {
    let columns = Columns::of(chosen);
    if !columns.is_averaged() {
        return None;
    }
    let places = Places::of(&scores.provenance);
    let token = |row: usize| {
        let token = columns.token[row];
        match columns.pos[row] {
            Some(pos) => places.token(pos, columns.template[row], token),
            None => token.map(visible),
        }
    };
    let cells: Vec<String> = (0..columns.height)
        .map(|row| token(row).unwrap_or_default())
        .collect();
    let is_filled = cells.iter().any(|cell| !cell.is_empty());
    is_filled.then(|| Shown {
        title: "token".into(),
        cells,
        align: Align::Left,
    })
}

/// A column as it is, if anything stands in it.
fn plain_column(column: &Column) -> Option<Shown> {
    if column.null_count() == column.len() {
        return None;
    }
    let values = || (0..column.len()).map(|row| column.get(row).unwrap_or(AnyValue::Null));
    let floats = values().filter_map(|value| match value {
        AnyValue::Float64(number) => Some(number),
        _ => None,
    });
    let places = decimals(floats);
    let text = |value: AnyValue| match value {
        AnyValue::Null => String::new(),
        AnyValue::Float64(number) => fixed(number, places),
        other => visible(&other.str_value()),
    };
    let is_number = column.dtype().is_primitive_numeric();
    Some(Shown {
        title: column.name().to_string(),
        cells: values().map(text).collect(),
        align: if is_number { Align::Right } else { Align::Left },
    })
}

/// A number, and its interval where there is one.
fn number_with_interval(scores: &Scores, name: &str, low: &str, high: &str) -> Vec<Shown> {
    let column = |name: &str| scores.floats(name).unwrap_or_default();
    let (values, low, high) = (column(name), column(low), column(high));
    if values.iter().all(Option::is_none) {
        return Vec::new();
    }
    let places = decimals(values.iter().flatten().copied());
    let number = |value: &Option<f64>| value.map_or(String::new(), |v| fixed(v, places));
    let mut shown = vec![Shown {
        title: name.into(),
        cells: values.iter().map(number).collect(),
        align: Align::Right,
    }];
    if low.iter().any(Option::is_some) {
        let interval = |ends: (&Option<f64>, &Option<f64>)| match ends {
            (Some(low), Some(high)) => {
                format!("[{}, {}]", fixed(*low, places), fixed(*high, places))
            }
            _ => String::new(),
        };
        shown.push(Shown {
            title: "95% interval".into(),
            cells: low.iter().zip(&high).map(interval).collect(),
            align: Align::Right,
        });
    }
    shown
}

/// A number without the sign of a zero.
fn fixed(number: f64, places: usize) -> String {
    let text = format!("{number:.places$}");
    match text.strip_prefix('-') {
        Some(magnitude) if magnitude.chars().all(|c| matches!(c, '0' | '.')) => magnitude.into(),
        _ => text,
    }
}

/// Places after the point that give the largest of these numbers four digits.
fn decimals(numbers: impl Iterator<Item = f64>) -> usize {
    let largest = numbers
        .filter(|number| number.is_finite())
        .fold(0.0, |most: f64, number| most.max(number.abs()));
    if largest == 0.0 {
        return 3;
    }
    (3 - largest.log10().floor() as i32).clamp(1, 8) as usize
}

/// What else was measured of the same cells, a column a measure.
fn other_measures(columns: &Columns, rows: &[u32]) -> Vec<Shown> {
    let cells: HashMap<_, usize> = (rows.iter().enumerate())
        .map(|(at, &row)| {
            (
                (columns.cell(row as usize), columns.example[row as usize]),
                at,
            )
        })
        .collect();
    let own: Vec<Option<&str>> = rows
        .iter()
        .map(|&row| columns.metric[row as usize])
        .collect();
    let mut order: Vec<&str> = Vec::new();
    let mut measures: BTreeMap<&str, Vec<Option<f64>>> = BTreeMap::new();
    for row in 0..columns.height {
        let Some(measure) = columns.metric[row].filter(|&measure| !own.contains(&Some(measure)))
        else {
            continue;
        };
        if let Some(&at) = cells.get(&(columns.cell(row), columns.example[row])) {
            let values = measures.entry(measure).or_insert_with(|| {
                order.push(measure);
                vec![None; rows.len()]
            });
            values[at] = columns.score[row];
        }
    }
    let column = |measure: &str| {
        let values = &measures[measure];
        let places = decimals(values.iter().flatten().copied());
        let number = |value: &Option<f64>| value.map_or(String::new(), |v| fixed(v, places));
        Shown {
            title: visible(measure),
            cells: values.iter().map(number).collect(),
            align: Align::Right,
        }
    };
    order.into_iter().map(column).collect()
}

/// The columns as text. Where they are too wide, long texts are cut first, then the last columns go.
fn fit(mut shown: Vec<Shown>, most: usize) -> String {
    let width_of = |column: &Shown| {
        let cells = column.cells.iter().map(|cell| width(cell));
        cells.chain([width(&column.title)]).max().unwrap_or(0)
    };
    let total = |shown: &[Shown]| {
        let widths = shown.iter().map(|column| width_of(column) + 2);
        widths.sum::<usize>().saturating_sub(2)
    };
    for column in shown
        .iter_mut()
        .filter(|column| column.align == Align::Left)
    {
        // A column of text that is wide is made of sentences, such as what a head looks like.
        let over = width_of(column).saturating_sub(most / 2);
        shorten(column, over);
    }
    let over = total(&shown).saturating_sub(most);
    if let Some(widest) = (shown.iter_mut())
        .filter(|column| column.align == Align::Left && column.title != "component")
        .max_by_key(|column| width_of(column))
    {
        shorten(widest, over);
    }
    let mut left_out = Vec::new();
    while shown.len() > 1 && total(&shown) > most {
        left_out.extend(shown.pop().map(|column| column.title));
    }
    let n = shown.first().map_or(0, |column| column.cells.len());
    let mut lines = vec![
        shown
            .iter()
            .map(|column| column.title.as_str())
            .collect::<Vec<_>>(),
    ];
    lines.extend((0..n).map(|row| {
        shown
            .iter()
            .map(|column| column.cells[row].as_str())
            .collect()
    }));
    let align: Vec<Align> = shown.iter().map(|column| column.align).collect();
    let table = aligned(&lines, &align);
    let mut text: String = table.lines().map(|line| cut(line, most) + "\n").collect();
    if !left_out.is_empty() {
        left_out.reverse();
        let note = format!("left out for width: {}", left_out.join(", "));
        text.push_str(&(cut(&note, most) + "\n"));
    }
    text
}

fn shorten(column: &mut Shown, over: usize) {
    if over == 0 {
        return;
    }
    let widest = column
        .cells
        .iter()
        .map(|cell| width(cell))
        .max()
        .unwrap_or(0);
    let to = widest.saturating_sub(over).max(SHORTEST_TEXT);
    for cell in &mut column.cells {
        *cell = cut(cell, to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::test_scores;
    use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, ScoresMeta};

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
}
