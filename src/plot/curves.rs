//! Faithfulness by size: circuits whose names are a series and a share of all edges, such as `signed 0.01`.

use super::columns::Columns;
use crate::scores::Scores;

/// Fewer points are no curve.
const LEAST_POINTS: usize = 3;

/// Circuits of one name, their shares of all edges ascending.
pub(super) struct Curve {
    pub name: String,
    pub points: Vec<Point>,
}

/// One circuit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Point {
    pub share: f64,
    pub faithfulness: f64,
    pub interval: Option<(f64, f64)>,
    /// Its row in the table.
    pub row: usize,
}

/// The curves of a table; nothing if it has none, or keeps pairs apart.
pub(super) fn curves(scores: &Scores) -> Vec<Curve> {
    let columns = Columns::of(scores);
    if !columns.is_averaged() {
        return Vec::new();
    }
    let floats = |name: &str| {
        scores
            .floats(name)
            .unwrap_or_else(|| vec![None; columns.height])
    };
    let (low, high) = (floats("normalised_low"), floats("normalised_high"));
    let mut curves: Vec<Curve> = Vec::new();
    for row in (0..columns.height).filter(|&row| columns.component[row] == Some("circuit")) {
        let Some((name, share)) = columns.src[row].and_then(|src| src.rsplit_once(' ')) else {
            continue;
        };
        let share = share
            .parse::<f64>()
            .ok()
            .filter(|share| *share > 0.0 && *share <= 1.0);
        let faithfulness = columns.normalised[row].filter(|share| share.is_finite());
        let (Some(share), Some(faithfulness)) = (share, faithfulness) else {
            continue;
        };
        let point = Point {
            share,
            faithfulness,
            interval: low[row].zip(high[row]),
            row,
        };
        match curves.iter_mut().find(|known| known.name == name) {
            Some(known) => known.points.push(point),
            None => curves.push(Curve {
                name: name.to_string(),
                points: vec![point],
            }),
        }
    }
    curves.retain(|curve| curve.points.len() >= LEAST_POINTS);
    for curve in &mut curves {
        curve.points.sort_by(|a, b| a.share.total_cmp(&b.share));
    }
    curves
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
        let curves = curves(&scores);
        assert_eq!(curves.len(), 1);
        assert_eq!(curves[0].name, "signed");
        let points: Vec<(f64, f64, usize)> = (curves[0].points.iter())
            .map(|point| (point.share, point.faithfulness, point.row))
            .collect();
        assert_eq!(points, [(0.1, 0.25, 1), (0.5, 0.5, 0), (1.0, 1.0, 2)]);
    }
}
