//! The same grids as SVG, self-contained: no script, no font, no link, and every text escaped. Circuits by their size are curves;
//! a route of information is a graph; another table without grids (edges, neurons) is drawn as bars of its strongest rows.

mod bars;
mod curve;
mod distributions;
mod graph;
mod grid;
mod look;
mod page;
#[cfg(test)]
mod tests;

use bars::{draw_bars, longest_bar};
use curve::draw_curves;
pub use distributions::Distributions;
pub use graph::circuit_svg;
use graph::{TITLE, draw_graph};
use grid::draw_panels;
pub(super) use grid::panel_svg;
use look::LONGEST_TITLE;
pub use look::{Look, SvgOptions};
pub(super) use page::escape;
use page::{EDGE, ROW};

use super::curves::curves;
use super::graph::of_table;
use super::panel::{Panel, chosen_panels, panels};
use super::scale::{Scale, ScaleOf};
use crate::error::{Error, Result};
use crate::scores::{Provenance, Scores, View};
use crate::text::{cut, visible};

/// Draws the table as one SVG image: a grid for each component, with axes, a colour scale with its unit and a tooltip a cell; a curve,
/// where rows are circuits by their size; or bars with intervals, where they are edges or neurons.
/// # Errors
/// [`Error::Invalid`](crate::Error::Invalid) if there is nothing to draw, [`SvgOptions::panel`] names no grid, or an option does not go
/// with what is drawn.
pub fn svg(scores: &Scores, options: &SvgOptions) -> Result<String> {
    options.look.check()?;
    if options
        .reach
        .is_some_and(|reach| !(reach.is_finite() && reach > 0.0))
    {
        return Err(Error::invalid("a scale goes up to a number above 0"));
    }
    if options.panel.is_none() && scores.provenance.views.contains(&View::Graph) {
        return graph_page(scores, options);
    }
    let mut panels = panels(scores);
    if let Some(name) = &options.panel {
        panels = chosen_panels(panels, name)?;
    }
    let mut page = options.look.page(&title(&scores.provenance));
    if panels.is_empty() && options.mark_significant {
        return Err(nothing_to_mark());
    }
    if !panels.is_empty() {
        let marked = match options.mark_significant {
            true => significant(scores),
            false => Vec::new(),
        };
        if options.mark_significant && marked.is_empty() {
            return Err(nothing_to_mark());
        }
        entitle(&mut panels, options)?;
        draw_panels(&mut page, &panels, &scores.provenance, options, &marked)?;
        return Ok(page.finish(options.look.width));
    }
    if options.scale == ScaleOf::Panel {
        return Err(Error::invalid(
            "only grids have scales of their own; leave `SvgOptions::scale` out",
        ));
    }
    let curves = curves(scores);
    if curves.is_empty() {
        draw_bars(&mut page, scores, options)?;
    } else if options.reach.is_some() {
        return Err(curves_have_no_scale());
    } else {
        draw_curves(&mut page, &curves, options);
    }
    Ok(page.finish(options.look.width))
}

/// The graphs of a table, one below the other.
fn graph_page(scores: &Scores, options: &SvgOptions) -> Result<String> {
    let is_of_grids = options.scale == ScaleOf::Panel
        || options.reach.is_some()
        || options.mark_significant
        || options.x_title.is_some()
        || options.y_title.is_some();
    if is_of_grids {
        return Err(Error::invalid(
            "a graph has neither axes nor cells; choose a grid with `SvgOptions::panel`, or leave the options of grids out",
        ));
    }
    let graphs = of_table(scores);
    if graphs.is_empty() {
        return Err(Error::invalid(
            "there are no two edges among these rows to draw as a graph; a lower threshold follows more, and a condition may have left them out",
        ));
    }
    let mut page = options.look.page(&title(&scores.provenance));
    let mut top = TITLE;
    for graph in &graphs {
        if !graph.title.is_empty() {
            page.text(EDGE, top + EDGE, "font-weight='bold'", &graph.title);
            top += ROW;
        }
        top = draw_graph(&mut page, graph, top)?;
    }
    Ok(page.finish(options.look.width))
}

/// The end of the scale of another table's picture, for [`SvgOptions::reach`] of this one: both then share a scale. `panel` is that of
/// [`SvgOptions`], and is looked for in both.
/// # Errors
/// [`Error::Invalid`] where the two are pictures of other quantities, or have no scale.
pub fn shared_reach(scores: &Scores, other: &Scores, panel: Option<&str>) -> Result<f64> {
    let (reach, quantity) = scale_of(other, panel)?;
    let (_, own) = scale_of(scores, panel)?;
    match quantity == own {
        true => Ok(reach),
        false => Err(Error::invalid(format!(
            "its picture is of {quantity}, and this one of {own}; pictures of one quantity share a scale"
        ))),
    }
}

/// Where the scale of a table's picture ends, and what it is of.
fn scale_of(scores: &Scores, panel: Option<&str>) -> Result<(f64, String)> {
    let mut panels = panels(scores);
    if let Some(name) = panel {
        panels = chosen_panels(panels, name)?;
    }
    if !panels.is_empty() {
        let scale = Scale::of_run(&panels);
        let is_normalised = panels.iter().any(|panel| panel.is_normalised);
        let caption = scale.caption(is_normalised, &scores.provenance);
        return Ok((scale.reach, format!("grids of {caption}")));
    }
    if !curves(scores).is_empty() {
        return Err(curves_have_no_scale());
    }
    let of = Scale::of_run(&[]).caption(false, &scores.provenance);
    Ok((longest_bar(scores)?, format!("bars of {of}")))
}

fn curves_have_no_scale() -> Error {
    Error::invalid(
        "the axes of a curve of circuits are shares already; leave `SvgOptions::reach` out",
    )
}

/// Gives the axes the titles that were asked for.
fn entitle(panels: &mut [Panel], options: &SvgOptions) -> Result<()> {
    let is_own = |panel: &Panel| {
        options.x_title.is_some() && panel.axes.1 != panels[0].axes.1
            || options.y_title.is_some() && panel.axes.0 != panels[0].axes.0
    };
    if let Some(other) = panels.iter().find(|panel| is_own(panel)) {
        return Err(Error::invalid(format!(
            "the axes of `{}` and `{}` are not the same, and one title would be wrong on one of them; choose a grid with `SvgOptions::panel`",
            panels[0].title, other.title
        )));
    }
    for panel in panels {
        for (own, title) in [
            (&mut panel.axes.0, &options.y_title),
            (&mut panel.axes.1, &options.x_title),
        ] {
            if let Some(title) = title {
                *own = visible(title);
            }
        }
    }
    Ok(())
}

fn nothing_to_mark() -> Error {
    Error::invalid(
        "there is nothing to mark: dots are drawn in the cells of grids whose rows have intervals (bars and curves draw theirs)",
    )
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
