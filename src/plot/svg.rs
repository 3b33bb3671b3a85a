//! The same grids as SVG, self-contained: no script, no font, no link, and every text escaped. A table without grids (edges,
//! neurons) is drawn as bars of its strongest rows.

mod bars;
mod distributions;
mod graph;
mod grid;
mod page;
#[cfg(test)]
mod tests;

use bars::draw_bars;
pub use distributions::Distributions;
pub use graph::circuit_svg;
use grid::draw_panels;
pub(super) use grid::panel_svg;
pub(super) use page::escape;
use page::{BOLD, EDGE, Page};

use super::panel::{chosen_panels, panels};
use super::scale::ScaleOf;
use crate::error::{Error, Result};
use crate::scores::{Provenance, Scores};
use crate::text::{cut, visible, width};

const LONGEST_TITLE: usize = 100;

/// How to draw a file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SvgOptions {
    pub scale: ScaleOf,
    /// Only the grids whose title begins so.
    pub panel: Option<String>,
    /// A dot in each cell whose 95% interval excludes 0.
    pub mark_significant: bool,
    /// Of the whole picture, in points; as large as its labels need otherwise.
    pub width: Option<f64>,
}

/// Draws the table as one SVG image: a grid for each component, with axes, a colour scale with its unit and a tooltip a cell; or
/// bars with intervals, where rows are edges or neurons.
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) if there is nothing to draw, or [`SvgOptions::panel`] names no grid.
pub fn svg(scores: &Scores, options: &SvgOptions) -> Result<String> {
    let mut panels = panels(scores);
    if let Some(name) = &options.panel {
        panels = chosen_panels(panels, name)?;
    }
    let about = &scores.provenance;
    let mut page = Page::default();
    let heading = title(about);
    page.text(EDGE, 22.0, "font-weight='bold'", &heading);
    page.reach(EDGE + BOLD * width(&heading) as f64, 30.0);
    let marked = if options.mark_significant {
        significant(scores)
    } else {
        Vec::new()
    };
    if options.mark_significant && (panels.is_empty() || marked.is_empty()) {
        return Err(Error::invalid(
            "there is nothing to mark: dots are drawn in the cells of grids whose rows have intervals (bars draw theirs)",
        ));
    }
    if panels.is_empty() {
        draw_bars(&mut page, scores)?;
    } else {
        draw_panels(&mut page, &panels, about, options.scale, &marked);
    }
    if options
        .width
        .is_some_and(|width| !(10.0..=10_000.0).contains(&width))
    {
        return Err(Error::invalid("a picture is 10 to 10,000 points wide"));
    }
    Ok(page.finish(options.width))
}

/// For each row of the table whether its 95% interval excludes 0.
fn significant(scores: &Scores) -> Vec<bool> {
    let column = |name: &str| scores.floats(name).unwrap_or_default();
    let (low, high) = (column("ci_low"), column("ci_high"));
    let excludes = |(low, high): (&Option<f64>, &Option<f64>)| {
        low.zip(*high)
            .is_some_and(|(low, high)| low > 0.0 || high < 0.0)
    };
    low.iter().zip(&high).map(excludes).collect()
}

/// Model, method and task, each by its short name.
fn title(about: &Provenance) -> String {
    let last = |path: &str| {
        let name = path.trim_end_matches(['/', '\\']);
        let name = name.rsplit(['/', '\\']).next().unwrap_or(name);
        visible(name.trim_end_matches(".toml"))
    };
    let parts = [
        last(&about.model.id),
        visible(&about.method),
        last(&about.task),
    ];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    cut(&parts.join(" · "), LONGEST_TITLE)
}
