//! Scores as pictures: [`heatmap`] for a terminal, [`svg`] for files and notebooks. Both draw the same [`Panel`]s.

mod colour;
mod heatmap;
mod notebook;
mod panel;
mod svg;

pub use heatmap::{Color, HeatmapOptions, heatmap};
pub use panel::{Label, Panel, panels};
pub use svg::svg;
