//! Faithfulness by size: circuits whose names are a series and a share of all edges, such as `signed 0.01`.

use serde_json::{Value, json};

use super::rows::Rows;
use crate::plot::columns::Columns;
use crate::scores::Scores;
use crate::text::visible;

/// Fewer points are no curve.
const LEAST_POINTS: usize = 3;

/// Series of `[share, faithfulness, low, high, row]`, shares ascending; nothing if the table has none, or keeps pairs apart.
pub(super) fn curves(whole: &Scores, rows: &Rows) -> Vec<Value> {
    let columns = Columns::of(whole);
    if !columns.is_averaged() {
        return Vec::new();
    }
    let floats = |name: &str| {
        whole
            .floats(name)
            .unwrap_or_else(|| vec![None; columns.height])
    };
    let (low, high) = (floats("normalised_low"), floats("normalised_high"));
    let mut series: Vec<(&str, Vec<(f64, Value)>)> = Vec::new();
    for row in rows
        .kept()
        .filter(|&row| columns.component[row] == Some("circuit"))
    {
        let Some((name, share)) = columns.src[row].and_then(|src| src.rsplit_once(' ')) else {
            continue;
        };
        let share = share
            .parse::<f64>()
            .ok()
            .filter(|share| *share > 0.0 && *share <= 1.0);
        let (Some(share), Some(height)) = (share, columns.normalised[row]) else {
            continue;
        };
        let point = json!([share, height, low[row], high[row], rows.place(row)]);
        match series.iter_mut().find(|(known, _)| *known == name) {
            Some((_, points)) => points.push((share, point)),
            None => series.push((name, vec![(share, point)])),
        }
    }
    series.retain(|(_, points)| points.len() >= LEAST_POINTS);
    let one = |(name, mut points): (&str, Vec<(f64, Value)>)| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        let points: Vec<Value> = points.into_iter().map(|(_, point)| point).collect();
        json!({ "name": visible(name), "points": points })
    };
    series.into_iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, ScoresMeta};

    #[test]
    fn points_of_a_name_are_a_curve_in_the_order_of_their_shares() {
        let names = [
            "signed 0.5",
            "signed 0.1",
            "signed 1",
            "absolute 0.1",
            "a circuit",
            "of 7",
        ];
        let cells = names.map(|name| Cell {
            component: "circuit".into(),
            src: Some(name.into()),
            ..Cell::default()
        });
        let example = ExampleScores {
            clean: 2.0,
            corrupted: 0.0,
            cells: (0..6).collect(),
            values: vec![1.0, 0.5, 2.0, 0.5, 0.0, 0.0],
            ..ExampleScores::default()
        };
        let meta = ScoresMeta {
            direction: Direction::Denoise,
            ..ScoresMeta::default()
        };
        let scores = Scores::assemble(
            &cells,
            &[example],
            &meta,
            Detail::Mean,
            Provenance::default(),
        )
        .unwrap();
        let curves = curves(&scores, &Rows::of(&scores));
        assert_eq!(curves.len(), 1);
        assert_eq!(curves[0]["name"], "signed");
        assert_eq!(
            curves[0]["points"],
            json!([
                [0.1, 0.25, null, null, 1],
                [0.5, 0.5, null, null, 0],
                [1.0, 1.0, null, null, 2]
            ])
        );
    }
}
