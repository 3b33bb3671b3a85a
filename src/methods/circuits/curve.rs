//! Faithfulness by size: the circuits of a curve, and the two areas of the MIB benchmark.
//!
//! Source: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark" (arXiv 2504.13151), section 3.

use crate::circuit::{EdgeSet, Ranking, Rule, ScoredGraph, Selected, Selection, select};
use crate::error::Result;

/// The shares of all edges at which MIB evaluates.
pub const FRACTIONS: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0];

/// A point of a curve.
#[derive(Debug, Clone, PartialEq)]
pub struct CurvePoint {
    /// The name of its row: `signed 0.01`.
    pub name: String,
    pub ranking: Ranking,
    pub fraction: f64,
    pub selected: Selected,
}

/// The best edges at each share of all, by how much they help (for [`cpr`]) and by size (for [`cmd`]).
/// # Errors
/// Those of [`select`].
pub fn curve(scored: &ScoredGraph, selection: &Selection) -> Result<Vec<CurvePoint>> {
    let n_edges = scored.graph().n_edges();
    let mut points = Vec::with_capacity(2 * FRACTIONS.len());
    for (name, ranking) in [
        ("signed", Ranking::Signed(selection.helps)),
        ("absolute", Ranking::Absolute),
    ] {
        for fraction in FRACTIONS {
            let n = (fraction * n_edges as f64) as usize;
            let selected = match n {
                // In a small graph a thousandth of the edges is none.
                0 => Selected {
                    edges: EdgeSet::empty(*scored.graph()),
                    requested: Some(0),
                    chosen: 0,
                },
                n => {
                    let rule = Rule::TopN(n);
                    select(
                        scored,
                        &Selection {
                            rule,
                            ranking,
                            ..*selection
                        },
                    )?
                }
            };
            points.push(CurvePoint {
                name: format!("{name} {fraction}"),
                ranking,
                fraction,
                selected,
            });
        }
    }
    Ok(points)
}

/// Circuit performance ratio: the area under faithfulness over the share of edges, by trapezoids. Higher is better.
/// # Shapes
/// `(share, faithfulness)`, shares ascending.
pub fn cpr(points: &[(f64, f64)]) -> f64 {
    area(points, |faithfulness| faithfulness)
}

/// Circuit-model distance: the area between faithfulness and 1. 0 is best.
/// # Shapes
/// As for [`cpr`].
pub fn cmd(points: &[(f64, f64)]) -> f64 {
    area(points, |faithfulness| (1.0 - faithfulness).abs())
}

fn area(points: &[(f64, f64)], height: impl Fn(f64) -> f64) -> f64 {
    let trapezoid = |two: &[(f64, f64)]| {
        let ((x, a), (y, b)) = (two[0], two[1]);
        (y - x) * (height(a) + height(b)) / 2.0
    };
    points.windows(2).map(trapezoid).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn areas_of_curves_made_by_hand() {
        let at = |height: f64| FRACTIONS.map(|x| (x, height));
        // From 0.001 to 1 a flat curve has its height times 0.999.
        assert!((cpr(&at(1.0)) - 0.999).abs() < 1e-12 && cmd(&at(1.0)).abs() < 1e-12);
        assert!((cpr(&at(0.0))).abs() < 1e-12 && (cmd(&at(0.0)) - 0.999).abs() < 1e-12);
        // What overshoots counts for one and against the other.
        assert!((cpr(&at(1.5)) - 1.4985).abs() < 1e-12 && (cmd(&at(1.5)) - 0.4995).abs() < 1e-12);
        // A useless ranking: only the last interval counts, half of it.
        let mut useless = at(0.0);
        useless[9].1 = 1.0;
        assert!((cpr(&useless) - 0.25).abs() < 1e-12);
        assert!((cmd(&useless) - 0.749).abs() < 1e-12);
        // By hand: (0.5 * (0.2 + 0.6) / 2) + (0.5 * (0.6 + 1.4) / 2).
        let line = [(0.0, 0.2), (0.5, 0.6), (1.0, 1.4)];
        assert!((cpr(&line) - 0.7).abs() < 1e-12);
        assert!((cmd(&line) - (0.3 + 0.2)).abs() < 1e-12);
    }
}
