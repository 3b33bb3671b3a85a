//! An image while it grows; every text in it is escaped.

use std::fmt::Write;

use crate::plot::colour::Palette;
use crate::text::visible;

pub(super) const ROW: f64 = 18.0;
/// Room for one character of a label, and of a bold title.
pub(super) const GLYPH: f64 = 7.2;
pub(super) const BOLD: f64 = 7.8;
/// The same of a sentence, whose letters are narrower in the mean.
pub(super) const PROSE: f64 = 6.4;
pub(super) const LONGEST_LABEL: usize = 24;

pub(super) const EDGE: f64 = 14.0;

const INFALLIBLE: &str = "a String takes all";

/// An image while it grows.
#[derive(Default)]
pub(super) struct Page {
    pub palette: Palette,
    pub font_family: Option<String>,
    body: String,
    right: f64,
    bottom: f64,
}

impl Page {
    pub fn of(palette: Palette) -> Page {
        Page {
            palette,
            ..Page::default()
        }
    }

    pub fn text(&mut self, x: f64, y: f64, attributes: &str, content: &str) {
        write!(
            self.body,
            "<text x='{x:.1}' y='{y:.1}' {attributes}>{}</text>",
            escape(content)
        )
        .expect(INFALLIBLE);
    }

    pub fn rectangle(&mut self, [x, y, w, h]: [f64; 4], attributes: &str, tip: Option<&str>) {
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

    /// A line along a path of SVG's own language.
    pub fn curve(&mut self, path: &str, attributes: &str, tip: &str) {
        write!(
            self.body,
            "<path d='{path}' fill='none' {attributes}><title>{}</title></path>",
            escape(tip)
        )
        .expect(INFALLIBLE);
    }

    pub fn circle(&mut self, (x, y): (f64, f64), radius: f64, attributes: &str, tip: &str) {
        write!(
            self.body,
            "<circle cx='{x:.1}' cy='{y:.1}' r='{radius}' {attributes}><title>{}</title></circle>",
            escape(tip)
        )
        .expect(INFALLIBLE);
    }

    /// What a closed path holds.
    pub fn area(&mut self, path: &str, attributes: &str) {
        write!(self.body, "<path d='{path}Z' {attributes}/>").expect(INFALLIBLE);
    }

    pub fn line(&mut self, from: (f64, f64), to: (f64, f64)) {
        self.stroke(from, to, "#333");
    }

    pub fn stroke(&mut self, from: (f64, f64), to: (f64, f64), colour: &str) {
        write!(
            self.body,
            "<line x1='{:.1}' y1='{:.1}' x2='{:.1}' y2='{:.1}' stroke='{colour}'/>",
            from.0, from.1, to.0, to.1
        )
        .expect(INFALLIBLE);
    }

    pub fn reach(&mut self, right: f64, bottom: f64) {
        self.right = self.right.max(right);
        self.bottom = self.bottom.max(bottom);
    }

    /// The image, as large as it is, or so many points wide.
    pub fn finish(self, points: Option<f64>) -> String {
        let (width, height) = ((self.right + EDGE).ceil(), (self.bottom + EDGE).ceil());
        let size = match points {
            None => format!("width='{width}' height='{height}'"),
            Some(points) => format!(
                "width='{points}pt' height='{:.2}pt'",
                points * height / width
            ),
        };
        let family = match &self.font_family {
            Some(name) => format!("&quot;{}&quot;, sans-serif", escape(&visible(name))),
            None => "sans-serif".to_string(),
        };
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' {size} viewBox='0 0 {width} {height}' \
             font-family='{family}' font-size='12'><rect width='100%' height='100%' fill='white'/>{}</svg>\n",
            self.body
        )
    }
}

pub(super) fn hex([r, g, b]: [u8; 3]) -> String {
    format!("#{r:02x}{g:02x}{b:02x}")
}

/// Text as XML and HTML take it, inside elements and attributes.
pub(in crate::plot) fn escape(text: &str) -> String {
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
