//! The same grids as SVG, self-contained: no script, no font, no link, and every text escaped.

use std::fmt::Write;

use super::colour::diverging;
use super::heatmap::number;
use super::panel::{Label, Panel, panels};
use crate::scores::{Scores, visible, visible_width};

const CELL: usize = 22;
const ROW: usize = 16;
/// Room for one character of a label.
const GLYPH: f64 = 7.2;
const LONGEST_LABEL: usize = 24;
const INFALLIBLE: &str = "a String takes all";

/// Draws the table as one SVG image, a grid for each component, with a colour scale and a tooltip a cell.
pub fn svg(scores: &Scores) -> String {
    let about = &scores.provenance;
    let title = [&about.method, &about.model.id, &about.task]
        .map(|text| visible(text))
        .join(" · ");
    let mut body = String::new();
    text(&mut body, 12.0, 20.0, "font-weight='bold'", &title);
    let (mut y, mut width) = (34.0, 12.0 + GLYPH * visible_width(&title) as f64);
    for panel in panels(scores) {
        let (right, bottom) = draw(&mut body, &panel, y);
        width = right.max(width);
        y = bottom;
    }
    let (width, height) = (width.ceil() + 12.0, y.ceil() + 6.0);
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' viewBox='0 0 {width} {height}' \
         font-family='sans-serif' font-size='12'><rect width='100%' height='100%' fill='white'/>{body}</svg>\n"
    )
}

/// Draws a grid with its top at `y`; returns its right and lower end.
fn draw(body: &mut String, panel: &Panel, y: f64) -> (f64, f64) {
    let limit = panel.limit();
    let column_labels: Vec<String> = panel.columns.iter().map(column_label).collect();
    let longest = |labels: &mut dyn Iterator<Item = &String>| {
        labels.map(|l| visible_width(l)).max().unwrap_or(0) as f64
    };
    let left = 24.0 + GLYPH * longest(&mut panel.rows.iter().chain([&panel.axes.0]));
    let roles: Vec<String> = panel
        .columns
        .iter()
        .map(|label| cut(label.role.as_deref().unwrap_or("")))
        .collect();
    let roles_height = GLYPH * longest(&mut roles.iter());
    let top = y + 30.0 + GLYPH * longest(&mut column_labels.iter());
    let bottom = top + (ROW * panel.rows.len()) as f64;
    let right = left + (CELL * panel.columns.len()) as f64;

    let heading = format!("{} ({} x {})", panel.title, panel.axes.0, panel.axes.1);
    text(body, 12.0, y + 14.0, "font-weight='bold'", &heading);
    for (index, label) in column_labels.iter().enumerate() {
        let x = left + (CELL * index) as f64 + CELL as f64 / 2.0 + 4.0;
        text(
            body,
            x,
            top - 5.0,
            &format!("transform='rotate(-90 {x} {})'", top - 5.0),
            label,
        );
    }
    for (index, label) in roles
        .iter()
        .enumerate()
        .filter(|(_, label)| !label.is_empty())
    {
        let x = left + (CELL * index) as f64 + CELL as f64 / 2.0 + 4.0;
        let attributes = format!(
            "text-anchor='end' fill='#555' transform='rotate(-90 {x} {})'",
            bottom + 5.0
        );
        text(body, x, bottom + 5.0, &attributes, label);
    }
    for (r, (row_label, row)) in panel.rows.iter().zip(&panel.values).enumerate() {
        let y = top + (ROW * r) as f64;
        text(body, left - 5.0, y + 12.0, "text-anchor='end'", row_label);
        for (c, value) in row.iter().enumerate() {
            let Some(value) = value else { continue };
            let part = if limit > 0.0 && value.is_finite() {
                value / limit
            } else {
                0.0
            };
            let tip = format!(
                "{} {row_label}, {}: {}",
                panel.axes.0,
                column_labels[c],
                number(*value)
            );
            let x = left + (CELL * c) as f64;
            write!(
                body,
                "<rect x='{x}' y='{y}' width='{CELL}' height='{ROW}' fill='{}'><title>{}</title></rect>",
                hex(part),
                escape(&tip)
            )
            .expect(INFALLIBLE);
        }
    }
    write!(
        body,
        "<rect x='{left}' y='{top}' width='{}' height='{}' fill='none' stroke='#999'/>",
        right - left,
        bottom - top
    )
    .expect(INFALLIBLE);
    let end = scale(body, panel, left, bottom + roles_height + 14.0, limit);
    (
        right
            .max(end)
            .max(12.0 + GLYPH * visible_width(&heading) as f64),
        bottom + roles_height + 44.0,
    )
}

/// The colour scale; returns its right end.
fn scale(body: &mut String, panel: &Panel, left: f64, y: f64, limit: f64) -> f64 {
    let low = number(-limit);
    let start = left + GLYPH * low.len() as f64 + 4.0;
    text(body, left, y + 10.0, "", &low);
    for step in 0..=32 {
        let fill = hex(step as f64 / 16.0 - 1.0);
        let x = start + 4.0 * step as f64;
        write!(
            body,
            "<rect x='{x}' y='{y}' width='4.5' height='12' fill='{fill}'/>"
        )
        .expect(INFALLIBLE);
    }
    let caption = format!("{}  {}", number(limit), panel.unit);
    text(body, start + 140.0, y + 10.0, "", &caption);
    start + 140.0 + GLYPH * visible_width(&caption) as f64
}

fn column_label(label: &Label) -> String {
    match &label.token {
        Some(token) => format!("{} {}", cut(token), label.name),
        None => cut(&label.name),
    }
}

fn cut(label: &str) -> String {
    match label.chars().count() > LONGEST_LABEL {
        true => label.chars().take(LONGEST_LABEL - 1).chain(['…']).collect(),
        false => label.to_string(),
    }
}

fn text(body: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    write!(
        body,
        "<text x='{x}' y='{y}' {attributes}>{}</text>",
        escape(content)
    )
    .expect(INFALLIBLE);
}

fn hex(part: f64) -> String {
    let [r, g, b] = diverging(part);
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
