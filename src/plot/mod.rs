//! Scores as pictures: [`heatmap`] for a terminal, [`svg`] for files and notebooks, [`page`] for everything that is printed of a
//! table, [`report`] for a page that a browser shows. Heatmap, SVG and report draw the same [`Panel`]s.

mod bars;
mod circuit;
mod colour;
mod columns;
mod curves;
mod facts;
mod graph;
mod heatmap;
#[cfg(feature = "images")]
mod image;
mod items;
pub mod notebook;
mod panel;
mod places;
mod ranked;
mod report;
mod scale;
mod svg;
mod views;

pub use circuit::{circuit, circuit_facts};
pub use colour::Palette;
pub use facts::facts;
pub use heatmap::{Color, HeatmapOptions, heatmap};
#[cfg(feature = "images")]
pub use image::{Font, pdf, png};
pub use panel::{Label, Panel, chosen_panels, panels};
pub use ranked::{listed, strongest};
pub use report::{NamedScores, ReportOptions, circuit_table, report, report_with, runs_page};
pub use scale::ScaleOf;
pub use svg::{Distributions, Look, SvgOptions, circuit_svg, shared_reach, svg};
pub use views::{PageOptions, page};

/// Scores of `layers` layers by one position a token, counting up to -1; no normalised values.
#[cfg(test)]
fn test_scores(tokens: &[&str], layers: u32) -> crate::scores::Scores {
    use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, Scores, ScoresMeta};

    let n = tokens.len() as u32;
    let cells: Vec<Cell> = (0..layers * n)
        .map(|i| Cell {
            component: "hook_resid_pre".into(),
            layer: Some(i / n),
            pos: Some((i % n) as i32),
            ..Cell::default()
        })
        .collect();
    let example = ExampleScores {
        tokens: tokens.iter().map(|token| token.to_string()).collect(),
        cells: (0..layers * n).collect(),
        values: (0..layers * n)
            .map(|i| i as f64 - (layers * n) as f64)
            .collect(),
        ..ExampleScores::default()
    };
    let meta = ScoresMeta {
        metric: "logit_diff".into(),
        unit: "logits".into(),
        direction: Direction::Ablate,
        ..ScoresMeta::default()
    };
    Scores::assemble(
        &cells,
        &[example],
        &meta,
        Detail::Mean,
        Provenance::default(),
    )
    .expect("the lists are made to fit")
}
