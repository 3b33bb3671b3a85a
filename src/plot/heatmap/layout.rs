//! Grids with the same rows, side by side as far as the terminal is wide.

use std::fmt::Write;
use std::ops::Range;

use super::cells::{shade, shown, width_of_coloured};
use super::options::Color;
use crate::plot::panel::{Label, Panel};
use crate::plot::scale::Scale;
use crate::text::{Align, cut, padded, width};

/// Longest parts of a label beside a row.
const LONGEST_TOKEN: usize = 20;
const LONGEST_NAME: usize = 16;
/// Longest name over a column; a longer one would make all columns wide.
const LONGEST_COLUMN: usize = 8;
/// Spaces between grids that stand side by side.
const GUTTER: usize = 3;

/// So many rows in which nothing shows are worth drawing as one.
const LEAST_FOLD: usize = 3;

/// Grids with the same rows, and how wide what is.
pub(super) struct Layout<'a> {
    panels: &'a [Panel],
    scales: &'a [Scale],
    color: Color,
    /// The labels of rows, all of one width.
    margins: Vec<String>,
    margin: usize,
    cell: usize,
    terminal: usize,
}

/// Some columns of a grid.
#[derive(Clone)]
struct Piece {
    panel: usize,
    columns: Range<usize>,
}

impl<'a> Layout<'a> {
    pub fn new(panels: &'a [Panel], scales: &'a [Scale], color: Color, terminal: usize) -> Self {
        let cell = cell_width(panels, scales, color);
        let axes = width(&panels[0].axes.0) + 1 + width(column_axis(panels));
        let room = terminal.saturating_sub(cell).min(terminal / 2);
        let margins = row_labels(&panels[0].rows, room);
        let margin = margins.iter().map(|label| width(label)).max().unwrap_or(0);
        let margin = margin.max(axes).min(terminal.saturating_sub(cell));
        Layout {
            panels,
            scales,
            color,
            margins,
            margin,
            cell,
            terminal,
        }
    }

    /// Lines of all strips, rows in which nothing shows included.
    pub fn lines(&self) -> usize {
        self.strips().len() * (self.margins.len() + 3)
    }

    pub fn draw(&self, text: &mut String, is_long: bool) {
        for (index, strip) in self.strips().iter().enumerate() {
            if index > 0 {
                text.push('\n');
            }
            self.draw_strip(text, strip, is_long);
        }
    }

    /// The width of a piece, which its title may make larger than its cells.
    fn piece_width(&self, piece: &Piece) -> usize {
        let title = width(&self.panels[piece.panel].title);
        let room = self.terminal - self.margin;
        (self.cell * piece.columns.len()).max(title + 1).min(room)
    }

    /// What stands side by side, strip below strip.
    fn strips(&self) -> Vec<Vec<Piece>> {
        let room = self.terminal - self.margin;
        let most = (room / self.cell).max(1);
        let mut strips: Vec<Vec<Piece>> = Vec::new();
        let mut used = usize::MAX;
        for (panel, grid) in self.panels.iter().enumerate() {
            let n = grid.columns.len();
            // Pieces of about one size, so that the last is no stub.
            let pieces = n.div_ceil(most).max(1);
            for index in 0..pieces {
                let columns = index * n / pieces..(index + 1) * n / pieces;
                let piece = Piece { panel, columns };
                let here = self.piece_width(&piece);
                match strips.last_mut() {
                    Some(strip) if index == 0 && used.saturating_add(GUTTER + here) <= room => {
                        strip.push(piece);
                        used += GUTTER + here;
                    }
                    _ => {
                        strips.push(vec![piece]);
                        used = here;
                    }
                }
            }
        }
        strips
    }

    fn draw_strip(&self, text: &mut String, strip: &[Piece], is_long: bool) {
        let titles = |piece: &Piece| cut(&self.panels[piece.panel].title, self.piece_width(piece));
        self.line(text, &padded("", self.margin, Align::Left), strip, titles);
        let (down, over) = (&self.panels[0].axes.0, column_axis(self.panels));
        let gap = self.margin.saturating_sub(width(down) + width(over));
        let axes = cut(&format!("{down}{}{over}", " ".repeat(gap)), self.margin);
        let names = |piece: &Piece| {
            let labels = self.panels[piece.panel].columns[piece.columns.clone()].iter();
            labels
                .map(|label| padded(&cut(&label.name, self.cell - 1), self.cell, Align::Right))
                .collect()
        };
        self.line(text, &padded(&axes, self.margin, Align::Left), strip, names);
        let mut row = 0;
        while row < self.margins.len() {
            let empty = self.empty_from(row, strip);
            if is_long && empty >= LEAST_FOLD {
                writeln!(text, "{}", self.folded(row..row + empty)).expect("a String takes all");
                row += empty;
                continue;
            }
            let cells = |piece: &Piece| {
                let values = &self.panels[piece.panel].values[row][piece.columns.clone()];
                let scale = self.scales[piece.panel];
                values
                    .iter()
                    .map(|&value| shade(value, scale, self.cell, self.color))
                    .collect()
            };
            self.line(
                text,
                &padded(&self.margins[row], self.margin, Align::Left),
                strip,
                cells,
            );
            row += 1;
        }
    }

    /// How many rows from here on show nothing in a strip.
    fn empty_from(&self, row: usize, strip: &[Piece]) -> usize {
        let is_empty = |row: &usize| {
            strip.iter().all(|piece| {
                let values = &self.panels[piece.panel].values[*row][piece.columns.clone()];
                let scale = self.scales[piece.panel];
                let mut values = values.iter().flatten();
                values.all(|&value| value.is_finite() && scale.hundredths(value) == 0)
            })
        };
        (row..self.margins.len()).take_while(is_empty).count()
    }

    /// Rows in which nothing shows, as one line: which they are, and their tokens.
    fn folded(&self, rows: Range<usize>) -> String {
        let labels = &self.panels[0].rows[rows];
        let words = |of: fn(&Label) -> Option<&str>| {
            let words: Vec<&str> = labels.iter().filter_map(of).map(trimmed).collect();
            words.join(" ")
        };
        let names = match labels {
            [first, .., last] if is_number(first) && is_number(last) => {
                format!("{}-{}", first.name, last.name)
            }
            _ => words(|label| Some(&label.name)),
        };
        let names = padded(&cut(&names, self.margin), self.margin, Align::Left);
        let nothing = padded("·", self.cell, Align::Right);
        let line = format!(
            "{names}{nothing}   {}",
            words(|label| label.token.as_deref())
        );
        cut(one_way(&line).trim_end(), self.terminal)
    }

    /// One line: the margin, then a text for each piece, as wide as the piece.
    fn line(
        &self,
        text: &mut String,
        margin: &str,
        strip: &[Piece],
        of: impl Fn(&Piece) -> String,
    ) {
        text.push_str(margin);
        for (index, piece) in strip.iter().enumerate() {
            if index > 0 {
                text.push_str(&" ".repeat(GUTTER));
            }
            let shown = of(piece);
            let gap = self
                .piece_width(piece)
                .saturating_sub(width_of_coloured(&shown));
            text.push_str(&shown);
            text.push_str(&" ".repeat(gap));
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
}

/// What the columns are; a grid of one column that is everything has nothing to say here.
fn column_axis(panels: &[Panel]) -> &str {
    let is_all = |panel: &&Panel| panel.columns.iter().all(|label| label.name == "all");
    match panels.iter().find(|panel| !is_all(panel)) {
        Some(panel) => &panel.axes.1,
        None => "",
    }
}

/// The same for all columns of a group: wide enough for its numbers, with a space before, and for short names.
fn cell_width(panels: &[Panel], scales: &[Scale], color: Color) -> usize {
    let numbers = panels.iter().zip(scales).flat_map(|(panel, &scale)| {
        let values = panel.values.iter().flatten().flatten();
        values.map(move |&value| {
            // A block's own edge separates a sign from the number before.
            let sign = usize::from(color == Color::None || value >= 0.0);
            width(&shown(value, scale)) + sign
        })
    });
    let names = panels.iter().flat_map(|panel| &panel.columns);
    let names = names.map(|label| width(&label.name).min(LONGEST_COLUMN) + 1);
    numbers.chain(names).max().unwrap_or(0).max(4)
}

/// The labels beside the rows: number, token and role under each other, no wider than `room` where that is possible.
fn row_labels(rows: &[Label], room: usize) -> Vec<String> {
    let text = |part: &Option<String>| part.clone().unwrap_or_default();
    let widest = |of: &dyn Fn(&Label) -> usize| rows.iter().map(of).max().unwrap_or(0);
    let name = widest(&|label| width(&label.name))
        .min(LONGEST_NAME)
        .min(room);
    let role = widest(&|label| width(&text(&label.role))).min(LONGEST_NAME);
    let role = role.min(room.saturating_sub(name + 1));
    let token = widest(&|label| width(trimmed(&text(&label.token)))).min(LONGEST_TOKEN);
    let token = token.min(room.saturating_sub(name + 1 + role + 1));
    let align = if rows.iter().all(is_number) {
        Align::Right
    } else {
        Align::Left
    };
    let line = |label: &Label| {
        let mut line = padded(&one_way(&cut(&label.name, name)), name, align);
        for (part, most) in [(&label.token, token), (&label.role, role)] {
            if most > 0 {
                let part = cut(trimmed(&text(part)), most);
                line.push(' ');
                line.push_str(&padded(&one_way(&part), most, Align::Left));
            }
        }
        line
    };
    rows.iter().map(line).collect()
}

fn is_number(label: &Label) -> bool {
    label.name.parse::<i64>().is_ok()
}

/// The space in front of most tokens says little in a picture; a token that is nothing else keeps it.
fn trimmed(token: &str) -> &str {
    match token.trim_start_matches('·') {
        "" => token,
        word => word,
    }
}

/// A text that some terminals would write from right to left, and with it the numbers after it, between marks that keep the
/// rest of the line in its direction. They take no room.
fn one_way(text: &str) -> String {
    let is_right_to_left = |c: char| {
        matches!(c, '\u{590}'..='\u{8ff}' | '\u{fb1d}'..='\u{fdff}' | '\u{fe70}'..='\u{feff}'
            | '\u{10800}'..='\u{10fff}' | '\u{1e800}'..='\u{1efff}')
    };
    if text.contains(is_right_to_left) {
        format!("\u{200e}{text}\u{200e}")
    } else {
        text.to_string()
    }
}
