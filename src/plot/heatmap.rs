//! Grids for the terminal: a number in each cell, coloured where the terminal has colours.
//!
//! Grids that have the same rows stand side by side as far as the terminal is wide, and one that is wider goes on below. A
//! label is written from left to right, or cut; no line is wider than the terminal.

mod cells;
mod layout;
mod legend;
mod options;
#[cfg(test)]
mod tests;

use layout::Layout;
use legend::{legend, wrapped};
pub use options::{Color, HeatmapOptions};

use super::panel::{Panel, chosen_panels, panels};
use super::scale::{Scale, ScaleOf};
use crate::error::Result;
use crate::scores::{Provenance, Scores};

/// Less than this cannot hold a label and a cell.
const LEAST_WIDTH: usize = 24;
/// A picture with more lines than this draws rows in which nothing shows as one.
const MOST_LINES: usize = 40;

/// Draws the table, one grid for each component (see [`panels`]). Blue is negative, red is positive.
/// # Errors
/// [`crate::Error::Invalid`] if [`HeatmapOptions::panel`] names no grid.
pub fn heatmap(scores: &Scores, options: &HeatmapOptions) -> Result<String> {
    let mut panels = panels(scores);
    if let Some(name) = &options.panel {
        panels = chosen_panels(panels, name)?;
    }
    Ok(grids(&panels, &scores.provenance, options))
}

/// Draws grids of one table, with the legend of what they show; nothing if there is none.
pub(super) fn grids(panels: &[Panel], about: &Provenance, options: &HeatmapOptions) -> String {
    if panels.is_empty() {
        return String::new();
    }
    let terminal = options.width.max(LEAST_WIDTH);
    let scales: Vec<Scale> = match options.scale {
        ScaleOf::Run => vec![Scale::of_run(panels); panels.len()],
        ScaleOf::Panel => panels.iter().map(Scale::of_panel).collect(),
    };
    let caption = scales[0].caption(panels[0].is_normalised, about);
    let mut text = wrapped(&caption, terminal) + "\n";
    let mut layouts = Vec::new();
    let mut first = 0;
    while first < panels.len() {
        let n = panels[first..]
            .iter()
            .take_while(|next| stand_together(&panels[first], next))
            .count();
        let group = first..first + n;
        let scales = &scales[group.clone()];
        layouts.push(Layout::new(&panels[group], scales, options.color, terminal));
        first += n;
    }
    let is_long = layouts.iter().map(Layout::lines).sum::<usize>() > MOST_LINES;
    for layout in &layouts {
        layout.draw(&mut text, is_long);
        text.push('\n');
    }
    text.push_str(&legend(panels, &scales, about, options, terminal));
    text
}

/// Whether two grids can share the labels of their rows and what stands before their columns.
fn stand_together(one: &Panel, other: &Panel) -> bool {
    let is_single = |panel: &Panel| panel.columns.len() == 1;
    one.axes.0 == other.axes.0
        && one.rows == other.rows
        && (one.axes.1 == other.axes.1 || is_single(one) || is_single(other))
}
