//! Grids, from left to right as far as the page is wide, then below.

use super::look::SvgOptions;
use super::page::{BOLD, EDGE, GLYPH, LONGEST_LABEL, PROSE, Page, ROW, hex};
use crate::error::Result;
use crate::plot::panel::{Label, Panel};
use crate::plot::scale::{Scale, ScaleOf, number};
use crate::scores::Provenance;
use crate::text::{cut, width};

/// A cell of a grid, in pixels.
const CELL: f64 = 26.0;

/// Grids stand side by side up to this width.
const PAGE: f64 = 1100.0;
const GAP: f64 = 30.0;

/// Grids from left to right as far as the page is wide, then below.
pub(super) fn draw_panels(
    page: &mut Page,
    panels: &[Panel],
    about: &Provenance,
    options: &SvgOptions,
    marked: &[bool],
) -> Result<()> {
    let to_reach = |scale: Scale| Scale {
        reach: options.reach.unwrap_or(scale.reach),
        ..scale
    };
    let scale = options.scale;
    let shared = to_reach(Scale::of_run(panels));
    let own = |panel: &Panel| match scale {
        ScaleOf::Run => shared,
        ScaleOf::Panel => to_reach(Scale::of_panel(panel)),
    };
    page.palette.check(values(panels))?;
    let is_below = page.palette.is_sequential() && values(panels).any(|value| value < 0.0);
    let caption = |panel: &Panel, scale: Scale| {
        let mut caption = scale.caption(panel.is_normalised, about);
        if values(panels).any(|value| value.abs() > scale.reach * (1.0 + 1e-9)) {
            caption += "; what is stronger has the colour of the end";
        }
        caption
    };
    let (mut x, mut y, mut below) = (EDGE, 40.0, 40.0f64);
    for panel in panels {
        let frame = Frame::new(panel);
        if x > EDGE && x + frame.width() > PAGE {
            (x, y) = (EDGE, below + GAP);
        }
        let scale_of_panel = own(panel);
        frame.draw(page, panel, scale_of_panel, marked, x, y);
        let mut bottom = y + frame.height();
        if scale == ScaleOf::Panel {
            let caption = caption(panel, scale_of_panel);
            colour_bar(page, scale_of_panel, is_below, &caption, (x, bottom + 6.0));
            bottom += 40.0;
        }
        page.reach(x + frame.width(), bottom);
        below = below.max(bottom);
        x += frame.width() + GAP;
    }
    if !marked.is_empty() {
        below += 20.0;
        mark(page, EDGE + 4.0, below - 4.0);
        let says = EXCLUDES_ZERO;
        page.text(EDGE + 14.0, below, "fill='#555'", says);
        page.reach(EDGE + 14.0 + PROSE * width(says) as f64, below);
    }
    if scale == ScaleOf::Run {
        let caption = caption(&panels[0], shared);
        colour_bar(page, shared, is_below, &caption, (EDGE, below + 14.0));
    }
    Ok(())
}

fn values(panels: &[Panel]) -> impl Iterator<Item = f64> {
    let values = panels.iter().flat_map(|panel| &panel.values);
    values.flatten().flatten().copied()
}

/// What a dot in a cell says.
const EXCLUDES_ZERO: &str = "the 95% interval excludes 0";

fn mark(page: &mut Page, x: f64, y: f64) {
    let look = "fill='#111' stroke='white' stroke-width='0.7'";
    page.circle((x, y), 2.1, look, EXCLUDES_ZERO);
}

/// One grid that is no part of a table.
pub(in crate::plot) fn panel_svg(panel: &Panel) -> String {
    let frame = Frame::new(panel);
    let scale = Scale::of_panel(panel);
    let mut page = Page::default();
    frame.draw(&mut page, panel, scale, &[], EDGE, EDGE);
    let below = EDGE + frame.height();
    colour_scale(&mut page, scale, false, EDGE, below + 14.0);
    page.reach(EDGE + frame.width(), below + 50.0);
    page.finish(None)
}

/// Where the parts of a grid stand.
struct Frame {
    title: f64,
    /// Room for number, token and role beside a row.
    beside: [f64; 3],
    /// The same over a column, where its label is turned because it does not fit a cell.
    over: [f64; 3],
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
        let over = [
            widest(&panel.columns, &|label| cut(&label.name, LONGEST_LABEL)),
            widest(&panel.columns, &|label| part(&label.token)),
            widest(&panel.columns, &|label| part(&label.role)),
        ];
        let is_turned = over[0] > CELL - 2.0 || over[1] + over[2] > 0.0;
        let over = over.map(spaced);
        Frame {
            title: BOLD * width(&panel.title) as f64,
            beside: beside.map(spaced),
            over,
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
        36.0 + if self.is_turned {
            self.over.iter().sum()
        } else {
            16.0
        }
    }

    fn width(&self) -> f64 {
        (self.left() + self.grid.0).max(self.title)
    }

    fn height(&self) -> f64 {
        self.top() + self.grid.1
    }

    fn draw(&self, page: &mut Page, panel: &Panel, scale: Scale, marked: &[bool], x: f64, y: f64) {
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
            if self.is_turned {
                self.draw_turned(page, label, middle + 4.0, top - 5.0);
            } else {
                let name = cut(&label.name, LONGEST_LABEL);
                page.text(middle, top - 5.0, "text-anchor='middle'", &name);
            }
        }
        for (r, label) in panel.rows.iter().enumerate() {
            self.draw_row_label(page, label, x + 18.0, top + ROW * r as f64 + 13.0);
            for (c, value) in panel.values[r].iter().enumerate() {
                let Some(value) = value else { continue };
                let fill = if value.is_finite() {
                    hex(page.palette.at(value / scale.reach))
                } else {
                    "#999999".into()
                };
                let corner = [left + CELL * c as f64, top + ROW * r as f64, CELL, ROW];
                let tip = tooltip(panel, r, c, *value);
                page.rectangle(corner, &format!("fill='{fill}'"), Some(&tip));
                if panel.table_rows[r][c].is_some_and(|row| marked.get(row) == Some(&true)) {
                    mark(page, corner[0] + CELL / 2.0, corner[1] + ROW / 2.0);
                }
            }
        }
        let outline = [left, top, self.grid.0, self.grid.1];
        page.rectangle(outline, "fill='none' stroke='#999'", None);
    }

    /// Name, token and role of a column, from below to above.
    fn draw_turned(&self, page: &mut Page, label: &Label, x: f64, y: f64) {
        let parts = [
            (Some(&label.name), ""),
            (label.token.as_ref(), ""),
            (label.role.as_ref(), " fill='#555'"),
        ];
        let mut y = y;
        for ((part, look), room) in parts.into_iter().zip(self.over) {
            if let Some(part) = part {
                let turned = format!("transform='rotate(-90 {x:.1} {y:.1})'{look}");
                page.text(x, y, &turned, &cut(part, LONGEST_LABEL));
            }
            y -= room;
        }
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
fn colour_bar(page: &mut Page, scale: Scale, is_below: bool, caption: &str, (x, y): (f64, f64)) {
    let right = colour_scale(page, scale, is_below, x, y);
    page.text(right + 12.0, y + 11.0, "", caption);
    page.reach(right + 12.0 + PROSE * width(caption) as f64, y + 30.0);
}

/// The colours and the values at both ends and in the middle; from 0 on where the palette is sequential, downwards if `is_below`.
/// Gives where it ends.
fn colour_scale(page: &mut Page, scale: Scale, is_below: bool, x: f64, y: f64) -> f64 {
    const STEPS: usize = 41;
    const STEP: f64 = 6.0;
    let length = STEP * STEPS as f64;
    let sign = if is_below { -1.0 } else { 1.0 };
    let at = |part: f64| match page.palette.is_sequential() {
        true => sign * part,
        false => part * 2.0 - 1.0,
    };
    let (colours, ends): (Vec<[u8; 3]>, _) = (
        (0..STEPS)
            .map(|step| page.palette.at(at(step as f64 / (STEPS - 1) as f64)))
            .collect(),
        [0.0, 0.5, 1.0].map(at),
    );
    for (step, colour) in colours.into_iter().enumerate() {
        let place = [x + STEP * step as f64, y, STEP + 0.5, 12.0];
        page.rectangle(place, &format!("fill='{}'", hex(colour)), None);
    }
    for (part, (end, anchor)) in [0.0, 0.5, 1.0]
        .into_iter()
        .zip(ends.into_iter().zip(["start", "middle", "end"]))
    {
        let value = end * scale.reach;
        let anchor = format!("text-anchor='{anchor}'");
        page.text(x + part * length, y + 26.0, &anchor, &number(value));
    }
    page.reach(x + length, y + 30.0);
    x + length
}
