//! The same grids as SVG, self-contained: no script, no font, no link, and every text escaped. A table without grids (edges,
//! neurons) is drawn as bars of its strongest rows.

use std::fmt::Write;

use super::colour::on_white;
use super::columns::Columns;
use super::heatmap::cut;
use super::panel::{Label, Panel, chosen_panels, panels};
use super::ranked::strongest;
use super::scale::{Scale, ScaleOf, number};
use crate::error::{Error, Result};
use crate::scores::{Provenance, Scores};
use crate::text::{visible, width};

/// A cell of a grid, in pixels.
const CELL: f64 = 26.0;
const ROW: f64 = 18.0;
/// Room for one character of a label, and of a bold title.
const GLYPH: f64 = 7.2;
const BOLD: f64 = 7.8;
const LONGEST_LABEL: usize = 24;
const LONGEST_TITLE: usize = 100;
/// Grids stand side by side up to this width.
const PAGE: f64 = 1100.0;
const EDGE: f64 = 14.0;
const GAP: f64 = 30.0;
/// Bars of a table that has no grids, and how long the longest is.
const BARS: usize = 30;
const BAR: f64 = 320.0;
const INFALLIBLE: &str = "a String takes all";

/// How to draw a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SvgOptions {
    pub scale: ScaleOf,
    /// Only the grids whose title begins so.
    pub panel: Option<String>,
}

/// Draws the table as one SVG image: a grid for each component, with axes, a colour scale with its unit and a tooltip a cell; or
/// bars with intervals, where rows are edges or neurons.
/// # Errors
/// [`Error::Invalid`] if there is nothing to draw, or [`SvgOptions::panel`] names no grid.
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
    if panels.is_empty() {
        draw_bars(&mut page, scores)?;
    } else {
        draw_panels(&mut page, &panels, about, options.scale);
    }
    Ok(page.finish())
}

/// An image while it grows.
#[derive(Default)]
struct Page {
    body: String,
    right: f64,
    bottom: f64,
}

impl Page {
    fn text(&mut self, x: f64, y: f64, attributes: &str, content: &str) {
        write!(
            self.body,
            "<text x='{x:.1}' y='{y:.1}' {attributes}>{}</text>",
            escape(content)
        )
        .expect(INFALLIBLE);
    }

    fn rectangle(&mut self, [x, y, w, h]: [f64; 4], attributes: &str, tip: Option<&str>) {
        write!(
            self.body,
            "<rect x='{x:.1}' y='{y:.1}' width='{w:.1}' height='{h:.1}' {attributes}"
        )
        .expect(INFALLIBLE);
        match tip {
            Some(tip) => write!(self.body, "><title>{}</title></rect>", escape(tip)),
            None => write!(self.body, "/>"),
        }
        .expect(INFALLIBLE);
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64)) {
        write!(
            self.body,
            "<line x1='{:.1}' y1='{:.1}' x2='{:.1}' y2='{:.1}' stroke='#333'/>",
            from.0, from.1, to.0, to.1
        )
        .expect(INFALLIBLE);
    }

    fn reach(&mut self, right: f64, bottom: f64) {
        self.right = self.right.max(right);
        self.bottom = self.bottom.max(bottom);
    }

    fn finish(self) -> String {
        let (width, height) = ((self.right + EDGE).ceil(), (self.bottom + EDGE).ceil());
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
             font-family='sans-serif' font-size='12'><rect width='100%' height='100%' fill='white'/>{}</svg>\n",
            self.body
        )
    }
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

/// Grids from left to right as far as the page is wide, then below.
fn draw_panels(page: &mut Page, panels: &[Panel], about: &Provenance, scale: ScaleOf) {
    let shared = Scale::of_run(panels);
    let own = |panel: &Panel| match scale {
        ScaleOf::Run => shared,
        ScaleOf::Panel => Scale::of_panel(panel),
    };
    let (mut x, mut y, mut below) = (EDGE, 40.0, 40.0f64);
    for panel in panels {
        let frame = Frame::new(panel);
        if x > EDGE && x + frame.width() > PAGE {
            (x, y) = (EDGE, below + GAP);
        }
        let scale_of_panel = own(panel);
        frame.draw(page, panel, scale_of_panel, x, y);
        let mut bottom = y + frame.height();
        if scale == ScaleOf::Panel {
            colour_bar(
                page,
                scale_of_panel,
                panel.is_normalised,
                about,
                x,
                bottom + 6.0,
            );
            bottom += 40.0;
        }
        page.reach(x + frame.width(), bottom);
        below = below.max(bottom);
        x += frame.width() + GAP;
    }
    if scale == ScaleOf::Run {
        colour_bar(
            page,
            shared,
            panels[0].is_normalised,
            about,
            EDGE,
            below + 14.0,
        );
    }
}

/// Where the parts of a grid stand.
struct Frame {
    title: f64,
    /// Room for number, token and role beside a row.
    beside: [f64; 3],
    /// Room over the grid for labels that are turned, where they do not fit a cell.
    over: f64,
    is_turned: bool,
    grid: (f64, f64),
}

impl Frame {
    fn new(panel: &Panel) -> Frame {
        let widest = |labels: &[Label], of: &dyn Fn(&Label) -> String| {
            let widths = labels.iter().map(|label| width(&of(label)));
            widths.max().unwrap_or(0) as f64 * GLYPH
        };
        let part = |part: &Option<String>| cut(part.as_deref().unwrap_or(""), LONGEST_LABEL);
        let spaced = |room: f64| if room > 0.0 { room + 8.0 } else { 0.0 };
        let beside = [
            widest(&panel.rows, &|label| cut(&label.name, LONGEST_LABEL)),
            widest(&panel.rows, &|label| part(&label.token)),
            widest(&panel.rows, &|label| part(&label.role)),
        ];
        let names = widest(&panel.columns, &|label| cut(&label.name, LONGEST_LABEL));
        let is_turned = names > CELL - 2.0;
        Frame {
            title: BOLD * width(&panel.title) as f64,
            beside: beside.map(spaced),
            over: if is_turned { names + 8.0 } else { 16.0 },
            is_turned,
            grid: (
                CELL * panel.columns.len() as f64,
                ROW * panel.rows.len() as f64,
            ),
        }
    }

    fn left(&self) -> f64 {
        18.0 + self.beside.iter().sum::<f64>()
    }

    fn top(&self) -> f64 {
        36.0 + self.over
    }

    fn width(&self) -> f64 {
        (self.left() + self.grid.0).max(self.title)
    }

    fn height(&self) -> f64 {
        self.top() + self.grid.1
    }

    fn draw(&self, page: &mut Page, panel: &Panel, scale: Scale, x: f64, y: f64) {
        let (left, top) = (x + self.left(), y + self.top());
        page.text(x, y + 12.0, "font-weight='bold'", &panel.title);
        // The titles of the axes.
        page.text(
            left + self.grid.0 / 2.0,
            y + 30.0,
            "text-anchor='middle' fill='#555'",
            &panel.axes.1,
        );
        let (mid_x, mid_y) = (x + 10.0, top + self.grid.1 / 2.0);
        let turned = format!(
            "text-anchor='middle' fill='#555' transform='rotate(-90 {mid_x:.1} {mid_y:.1})'"
        );
        page.text(mid_x, mid_y, &turned, &panel.axes.0);
        for (index, label) in panel.columns.iter().enumerate() {
            let middle = left + CELL * (index as f64 + 0.5);
            let name = cut(&label.name, LONGEST_LABEL);
            if self.is_turned {
                let (x, y) = (middle + 4.0, top - 5.0);
                let turned = format!("transform='rotate(-90 {x:.1} {y:.1})'");
                page.text(x, y, &turned, &name);
            } else {
                page.text(middle, top - 5.0, "text-anchor='middle'", &name);
            }
        }
        for (r, label) in panel.rows.iter().enumerate() {
            self.draw_row_label(page, label, x + 18.0, top + ROW * r as f64 + 13.0);
            for (c, value) in panel.values[r].iter().enumerate() {
                let Some(value) = value else { continue };
                let fill = if value.is_finite() {
                    hex(value / scale.reach)
                } else {
                    "#999999".into()
                };
                let corner = [left + CELL * c as f64, top + ROW * r as f64, CELL, ROW];
                let tip = tooltip(panel, r, c, *value);
                page.rectangle(corner, &format!("fill='{fill}'"), Some(&tip));
            }
        }
        let outline = [left, top, self.grid.0, self.grid.1];
        page.rectangle(outline, "fill='none' stroke='#999'", None);
    }

    fn draw_row_label(&self, page: &mut Page, label: &Label, x: f64, y: f64) {
        let [name, token, _] = self.beside;
        let part = |part: &Option<String>| cut(part.as_deref().unwrap_or(""), LONGEST_LABEL);
        let end = x + name - 8.0;
        page.text(
            end,
            y,
            "text-anchor='end'",
            &cut(&label.name, LONGEST_LABEL),
        );
        if label.token.is_some() {
            page.text(x + name, y, "", &part(&label.token));
        }
        if label.role.is_some() {
            page.text(x + name + token, y, "fill='#555'", &part(&label.role));
        }
    }
}

fn tooltip(panel: &Panel, row: usize, column: usize, value: f64) -> String {
    let label = |label: &Label| {
        let parts = [Some(&label.name), label.token.as_ref(), label.role.as_ref()];
        parts
            .into_iter()
            .flatten()
            .cloned()
            .collect::<Vec<_>>()
            .join(" ")
    };
    format!(
        "{} {}, {} {}: {}",
        panel.axes.0,
        label(&panel.rows[row]),
        panel.axes.1,
        label(&panel.columns[column]),
        number(value)
    )
}

/// The colour scale from its lowest to its highest value, with what they are.
fn colour_bar(
    page: &mut Page,
    scale: Scale,
    is_normalised: bool,
    about: &Provenance,
    x: f64,
    y: f64,
) {
    const STEPS: usize = 41;
    const STEP: f64 = 6.0;
    let length = STEP * STEPS as f64;
    for step in 0..STEPS {
        let value = step as f64 / (STEPS - 1) as f64 * 2.0 - 1.0;
        let place = [x + STEP * step as f64, y, STEP + 0.5, 12.0];
        page.rectangle(place, &format!("fill='{}'", hex(value)), None);
    }
    for (part, anchor) in [(0.0, "start"), (0.5, "middle"), (1.0, "end")] {
        let value = (part * 2.0 - 1.0) * scale.reach;
        let anchor = format!("text-anchor='{anchor}'");
        page.text(x + part * length, y + 26.0, &anchor, &number(value));
    }
    let caption = scale.caption(is_normalised, about);
    page.text(x + length + 12.0, y + 11.0, "", &caption);
    page.reach(x + length + 12.0 + GLYPH * width(&caption) as f64, y + 30.0);
}

/// The strongest rows as bars with their intervals.
fn draw_bars(page: &mut Page, scores: &Scores) -> Result<()> {
    let columns_of_all = Columns::of(scores);
    let rows = strongest(scores, BARS);
    let columns = Columns::of(&rows);
    let mut order: Vec<usize> = (0..columns.height)
        .filter(|&row| columns.score[row].is_some_and(f64::is_finite))
        .collect();
    let strength = |row: usize| columns.score[row].map_or(0.0, f64::abs);
    order.sort_by(|&a, &b| strength(b).total_cmp(&strength(a)));
    order.truncate(BARS);
    if order.is_empty() {
        return Err(Error::invalid(
            "there is nothing to draw: no row of the table has a finite score",
        ));
    }
    let floats = |name: &str| {
        rows.floats(name)
            .unwrap_or_else(|| vec![None; columns.height])
    };
    let (low, high) = (floats("ci_low"), floats("ci_high"));
    let ends = |row: usize| {
        let score = columns.score[row].unwrap_or(0.0);
        let interval = low[row].zip(high[row]);
        let interval = interval.filter(|(low, high)| low.is_finite() && high.is_finite());
        (score, interval)
    };
    let (mut least, mut most) = (0.0f64, 0.0f64);
    for &row in &order {
        let (score, interval) = ends(row);
        let (low, high) = interval.unwrap_or((score, score));
        least = least.min(score).min(low);
        most = most.max(score).max(high);
    }
    let span = if most > least { most - least } else { 1.0 };
    let labels: Vec<String> = order
        .iter()
        .map(|&row| cut(&row_name(&columns, row), 2 * LONGEST_LABEL))
        .collect();
    let widest = labels.iter().map(|label| width(label)).max().unwrap_or(0) as f64;
    let left = EDGE + GLYPH * widest + 8.0;
    let at = |value: f64| left + (value - least) / span * BAR;
    let about = &scores.provenance;
    let heading = format!(
        "the {} strongest of {} rows: score, {} ({})",
        order.len(),
        columns_of_all.height,
        visible(&about.metric),
        visible(&about.unit)
    );
    page.text(EDGE, 44.0, "fill='#555'", &heading);
    page.reach(EDGE + GLYPH * width(&heading) as f64, 50.0);
    let top = 56.0;
    for (index, (&row, label)) in order.iter().zip(&labels).enumerate() {
        let y = top + ROW * index as f64;
        let (score, interval) = ends(row);
        page.text(left - 8.0, y + 13.0, "text-anchor='end'", label);
        let (from, to) = (at(score.min(0.0)), at(score.max(0.0)));
        let fill = format!("fill='{}'", hex(0.75 * score.signum()));
        let tip = format!("{label}: {}", number(score));
        page.rectangle(
            [from, y + 3.0, (to - from).max(0.5), ROW - 6.0],
            &fill,
            Some(&tip),
        );
        if let Some((low, high)) = interval {
            let middle = y + ROW / 2.0;
            page.line((at(low), middle), (at(high), middle));
        }
        page.text(left + BAR + 10.0, y + 13.0, "", &number(score));
    }
    let bottom = top + ROW * order.len() as f64;
    page.line((at(0.0), top), (at(0.0), bottom));
    page.text(
        at(0.0),
        bottom + 14.0,
        "text-anchor='middle' fill='#555'",
        "0",
    );
    page.reach(left + BAR + 10.0 + 10.0 * GLYPH, bottom + 16.0);
    Ok(())
}

/// The coordinates of a row as one short text.
fn row_name(columns: &Columns, row: usize) -> String {
    if let (Some(src), Some(dst)) = (columns.src[row], columns.dst[row]) {
        return format!("{} → {}", visible(src), visible(dst));
    }
    let mut parts = vec![visible(columns.component[row].unwrap_or_default())];
    let numbers = [
        ("layer ", columns.layer[row]),
        ("head ", columns.head[row]),
        ("position ", columns.pos[row]),
        ("neuron ", columns.neuron[row]),
    ];
    let numbers = numbers
        .into_iter()
        .filter_map(|(what, n)| Some(format!("{what}{}", n?)));
    parts.extend(numbers);
    parts.extend(columns.role[row].map(visible));
    parts.extend(columns.src[row].or(columns.dst[row]).map(visible));
    parts.extend(columns.target[row].map(|target| format!("for {}", visible(target))));
    parts.join(" ")
}

fn hex(part: f64) -> String {
    let [r, g, b] = on_white(part);
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text as XML and HTML take it, inside elements and attributes.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            // XML has no way to write these at all.
            '\u{fffe}' | '\u{ffff}' => safe.push('\u{fffd}'),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::test_scores;
    use crate::scores::{Cell, Detail, Direction, ExampleScores, ScoresMeta};

    fn drawn(scores: &Scores) -> String {
        svg(scores, &SvgOptions::default()).unwrap()
    }

    #[test]
    fn a_grid_has_axes_a_short_title_and_a_scale_with_its_unit() {
        let mut scores = test_scores(&["When", " Mary"], 2);
        scores.provenance.model.id = "/somewhere/models/tiny.gguf".into();
        scores.provenance.method = "ablation".into();
        scores.provenance.task = "circuits/ioi.toml".into();
        let picture = drawn(&scores);
        for part in [
            ">tiny.gguf · ablation · ioi<",
            ">position<",
            ">layer<",
            ">·Mary<",
            ">change of logit_diff (logits)<",
            "<title>position 0 When, layer 0: -4.00</title>",
        ] {
            assert!(picture.contains(part), "{part}: {picture}");
        }
        // Four cells, the outline, the background and the colour bar.
        assert_eq!(picture.matches("<rect").count(), 4 + 1 + 1 + 41);
    }

    #[test]
    fn edges_are_bars_and_a_table_without_numbers_is_refused() {
        let edges = |value: f64| {
            let cell = |src: &str| Cell {
                component: "edge".into(),
                src: Some(src.into()),
                dst: Some("a1.h0<q>".into()),
                ..Cell::default()
            };
            let example = ExampleScores {
                cells: [0, 1].into(),
                values: vec![value, -2.0 * value],
                ..ExampleScores::default()
            };
            let meta = ScoresMeta {
                direction: Direction::Direct,
                ..ScoresMeta::default()
            };
            let cells = [cell("input"), cell("m0")];
            Scores::assemble(
                &cells,
                &[example],
                &meta,
                Detail::Mean,
                Provenance::default(),
            )
            .unwrap()
        };
        let picture = drawn(&edges(1.5));
        let (first, second) = (
            picture.find("m0 → a1.h0&lt;q&gt;"),
            picture.find("input → a1"),
        );
        assert!(
            first.is_some() && first < second,
            "the strongest first: {picture}"
        );
        let refused = svg(&edges(f64::NAN), &SvgOptions::default()).unwrap_err();
        assert!(refused.to_string().contains("nothing to draw"), "{refused}");
    }

    #[test]
    fn a_panel_is_chosen_by_its_name_and_an_unknown_one_names_those_that_there_are() {
        let scores = test_scores(&["a", "b"], 2);
        let options = |name: &str| SvgOptions {
            panel: Some(name.into()),
            ..SvgOptions::default()
        };
        assert!(svg(&scores, &options("resid_pre")).is_ok());
        let refused = svg(&scores, &options("attn_out")).unwrap_err().to_string();
        assert!(
            refused.contains("`attn_out`") && refused.contains("hook_resid_pre"),
            "{refused}"
        );
    }
}
