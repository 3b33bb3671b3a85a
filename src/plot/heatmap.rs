//! Grids for the terminal: a number in each cell, coloured where the terminal has colours.
//!
//! Grids that have the same rows stand side by side as far as the terminal is wide, and one that is wider goes on below. A
//! label is written from left to right, or cut; no line is wider than the terminal.

use std::fmt::Write;
use std::ops::Range;

use super::colour::{paint, start_24_bit, start_256};
use super::panel::{Label, Panel, chosen_panels, panels};
use super::scale::{Scale, ScaleOf};
use crate::error::Result;
use crate::scores::{Provenance, Scores};
use crate::text::{Align, padded, width};

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    /// Numbers without colours: a pipe, or `NO_COLOR`.
    #[default]
    None,
    Ansi256,
    Truecolor,
}

/// How to draw for one terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeatmapOptions {
    pub color: Color,
    /// Columns of the terminal.
    pub width: usize,
    pub scale: ScaleOf,
    /// Only the grids whose title begins so.
    pub panel: Option<String>,
}

impl Default for HeatmapOptions {
    fn default() -> Self {
        HeatmapOptions {
            color: Color::None,
            width: 100,
            scale: ScaleOf::Run,
            panel: None,
        }
    }
}

/// Less than this cannot hold a label and a cell.
const LEAST_WIDTH: usize = 24;
/// Longest parts of a label beside a row.
const LONGEST_TOKEN: usize = 20;
const LONGEST_NAME: usize = 16;
/// Longest name over a column; a longer one would make all columns wide.
const LONGEST_COLUMN: usize = 8;
/// Spaces between grids that stand side by side.
const GUTTER: usize = 3;
/// A picture with more lines than this draws rows in which nothing shows as one.
const MOST_LINES: usize = 40;
/// So many rows in which nothing shows are worth drawing as one.
const LEAST_FOLD: usize = 3;
const INFALLIBLE: &str = "a String takes all";

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

/// Grids with the same rows, and how wide what is.
struct Layout<'a> {
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
    fn new(panels: &'a [Panel], scales: &'a [Scale], color: Color, terminal: usize) -> Self {
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
    fn lines(&self) -> usize {
        self.strips().len() * (self.margins.len() + 3)
    }

    fn draw(&self, text: &mut String, is_long: bool) {
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
                writeln!(text, "{}", self.folded(row..row + empty)).expect(INFALLIBLE);
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

/// The number of a cell.
fn shown(value: f64, scale: Scale) -> String {
    if !value.is_finite() {
        return "?".into();
    }
    match scale.hundredths(value) {
        0 => "·".into(),
        hundredths => hundredths.to_string(),
    }
}

fn shade(value: Option<f64>, scale: Scale, cell: usize, color: Color) -> String {
    let Some(value) = value else {
        return " ".repeat(cell);
    };
    let number = padded(&shown(value, scale), cell, Align::Right);
    let strength = scale.strength(value);
    let start = match color {
        Color::None => None,
        Color::Ansi256 => start_256(strength),
        Color::Truecolor => start_24_bit(paint(strength)),
    };
    match start {
        Some(start) => format!("{start}{number}\x1b[0m"),
        None => number,
    }
}

/// What the numbers and colours are.
fn legend(
    panels: &[Panel],
    scales: &[Scale],
    about: &Provenance,
    options: &HeatmapOptions,
    terminal: usize,
) -> String {
    let mut text = String::new();
    if options.color != Color::None {
        let bar = Scale {
            hundred: 1.0,
            reach: 1.0,
        };
        let reach = match options.scale {
            ScaleOf::Run => scales[0].reach / scales[0].hundred,
            ScaleOf::Panel => 1.0,
        };
        let steps: &[f64] = if terminal >= 50 {
            &[-1.0, -0.75, -0.5, -0.25, -0.05, 0.05, 0.25, 0.5, 0.75, 1.0]
        } else {
            &[-1.0, -0.5, 0.5, 1.0]
        };
        let scale = Scale {
            hundred: 1.0 / reach,
            ..bar
        };
        let cells = steps
            .iter()
            .map(|&step| shade(Some(step), scale, 5, options.color));
        writeln!(text, "{}", cells.collect::<String>()).expect(INFALLIBLE);
    }
    let mut lines = match options.scale {
        ScaleOf::Run => vec![scales[0].legend(panels[0].is_normalised, about)],
        ScaleOf::Panel => (panels.iter().zip(scales))
            .map(|(panel, scale)| {
                let says = scale.legend(panel.is_normalised, about);
                format!("{}: {says}", panel.title)
            })
            .collect(),
    };
    let shows = |is_shown: &dyn Fn(Option<f64>, Scale) -> bool| {
        panels.iter().zip(scales).any(|(panel, &scale)| {
            let mut values = panel.values.iter().flatten();
            values.any(|&value| is_shown(value, scale))
        })
    };
    let mut signs = Vec::new();
    if shows(&|value, scale| value.is_some_and(|v| scale.hundredths(v) == 0)) {
        signs.push("· is under half a hundredth");
    }
    if shows(&|value, _| value.is_none()) {
        signs.push("blank was not measured");
    }
    let tokens = || {
        panels
            .iter()
            .flat_map(|panel| &panel.rows)
            .filter_map(|row| row.token.as_deref())
    };
    if tokens().any(|token| token == "~/~") {
        signs.push("~/~ differs from clean to corrupted, and from pair to pair");
    }
    if tokens().any(|token| token == "~") {
        signs.push("~ differs from pair to pair");
    }
    if !signs.is_empty() {
        lines.push(signs.join("; "));
    }
    for line in lines {
        text.push_str(&wrapped(&line, terminal));
    }
    text
}

/// A text over several lines, broken at spaces.
fn wrapped(text: &str, most: usize) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && width(&line) + 1 + width(word) > most {
            writeln!(lines, "{line}").expect(INFALLIBLE);
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&cut(word, most));
    }
    writeln!(lines, "{line}").expect(INFALLIBLE);
    lines
}

/// A text that is at most so wide; an ellipsis says that there was more.
pub(super) fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_string();
    }
    let mut short = String::new();
    for c in text.chars() {
        short.push(c);
        if width(&short) + 1 > most {
            short.pop();
            break;
        }
    }
    if most > 0 {
        short.push('…');
    }
    short
}

/// The width of a line without its escape sequences.
fn width_of_coloured(text: &str) -> usize {
    let mut parts = text.split("\x1b[");
    let plain = parts.next().map_or(0, width);
    let rest = parts.map(|part| part.split_once('m').map_or(0, |(_, shown)| width(shown)));
    plain + rest.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{SvgOptions, svg, test_scores};

    fn drawn(tokens: &[&str], layers: u32, options: &HeatmapOptions) -> Vec<String> {
        let text = heatmap(&test_scores(tokens, layers), options).unwrap();
        text.lines().map(String::from).collect()
    }

    /// Every line that [`heatmap`] draws without colours of two layers, `width` columns wide.
    fn lines(tokens: &[&str], width: usize) -> Vec<String> {
        let options = HeatmapOptions {
            width,
            ..HeatmapOptions::default()
        };
        drawn(tokens, 2, &options)
    }

    #[test]
    fn positions_go_down_with_their_tokens_and_cells_are_hundredths_of_the_largest() {
        // Two layers by two positions with scores -4, -3 and -2, -1: the largest magnitude is 4.
        assert_eq!(
            lines(&["When", " Mary"], 80),
            [
                "change of logit_diff (logits)",
                "",
                "              hook_resid_pre",
                "position layer    0    1",
                "0 When         -100  -50",
                "1 Mary          -75  -25",
                "",
                "100 = 4.00 logits (logit_diff), the largest magnitude",
            ]
        );
    }

    #[test]
    fn nothing_is_wider_than_the_terminal_and_every_column_is_drawn() {
        let tokens = [
            "<|begin_of_text|>",
            " internationalisation",
            "日本語日本語日本語日本語",
            "x",
        ];
        for width_of_terminal in [24, 40, 80, 140] {
            for color in [Color::None, Color::Ansi256, Color::Truecolor] {
                let options = HeatmapOptions {
                    color,
                    width: width_of_terminal,
                    ..HeatmapOptions::default()
                };
                let drawn = drawn(&tokens, 30, &options);
                for line in &drawn {
                    assert!(width_of_coloured(line) <= width_of_terminal, "{line:?}");
                }
                let heads = drawn.iter().filter(|line| line.starts_with("position"));
                let names: Vec<&str> = heads
                    .flat_map(|line| line.split_whitespace().skip(2))
                    .collect();
                let layers: Vec<String> = (0..30).map(|layer| layer.to_string()).collect();
                assert_eq!(names, layers, "at {width_of_terminal}: {drawn:#?}");
            }
        }
    }

    #[test]
    fn wide_combining_emoji_and_right_to_left_tokens_keep_the_columns_aligned() {
        let tokens = [
            "日本",
            "e\u{301}te\u{301}",
            "👍",
            "👩‍🚀",
            "שלום",
            "\u{202e}x",
            "\t",
            "नमस्ते",
            "a",
        ];
        let drawn = lines(&tokens, 80);
        let rows = &drawn[4..4 + tokens.len()];
        let right = width(&rows[0]);
        for (row, token) in rows.iter().zip(tokens) {
            assert_eq!(width(row), right, "{token:?}: {row:?}");
        }
        assert!(
            rows[4].contains("\u{200e}שלום\u{200e}"),
            "numbers after Hebrew stay where they are: {:?}",
            rows[4]
        );
    }

    #[test]
    fn hostile_tokens_reach_neither_the_terminal_nor_the_markup() {
        let tokens = [
            "\x1b]0;owned\x07",
            "\r\n\x08",
            "</text><script>alert(1)</script>",
            "日本\u{202e}",
            "' onload='x",
        ];
        let drawn = lines(&tokens, 120).join("\n");
        assert!(
            !drawn.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'),
            "{drawn:?}"
        );
        let picture = svg(&test_scores(&tokens, 2), &SvgOptions::default()).unwrap();
        assert!(
            !picture.contains("<script") && !picture.contains("' onload"),
            "{picture}"
        );
        assert!(
            !picture.contains(|c: char| c.is_control() && c != '\n' || c == '\u{202e}'),
            "{picture:?}"
        );
    }

    #[test]
    fn a_coloured_cell_keeps_its_number_and_is_reset() {
        let options = HeatmapOptions {
            color: Color::Truecolor,
            width: 80,
            ..HeatmapOptions::default()
        };
        let coloured = drawn(&["a", "b"], 2, &options);
        assert_eq!(
            coloured[4],
            "0 a           \x1b[48;2;30;111;242;38;2;255;255;255m-100\x1b[0m\x1b[48;2;84;114;196;38;2;255;255;255m -50\x1b[0m"
        );
        for line in &coloured {
            let starts = line.matches("\x1b[").count() - line.matches("\x1b[0m").count();
            assert_eq!(starts, line.matches("\x1b[0m").count(), "{line:?}");
        }
    }

    #[test]
    fn zero_is_the_terminals_own_background() {
        let scale = Scale {
            hundred: 1.0,
            reach: 1.0,
        };
        for color in [Color::None, Color::Ansi256, Color::Truecolor] {
            assert_eq!(shade(Some(0.0), scale, 4, color), "   ·");
            assert_eq!(shade(Some(0.004), scale, 4, color), "   ·");
            assert_eq!(shade(Some(f64::NAN), scale, 4, color), "   ?");
            assert_eq!(shade(None, scale, 4, color), "    ");
        }
    }

    #[test]
    fn a_long_picture_draws_rows_of_nothing_as_one() {
        // 50 positions of one layer, of which only the last but one has an effect.
        let tokens: Vec<String> = (0..50).map(|i| format!(" w{i}")).collect();
        let mut panel = panels(&test_scores(
            &tokens.iter().map(String::as_str).collect::<Vec<_>>(),
            1,
        ))
        .remove(0);
        panel.values.iter_mut().for_each(|row| row[0] = Some(0.0));
        panel.values[48][0] = Some(-2.0);
        let options = HeatmapOptions {
            width: 40,
            ..HeatmapOptions::default()
        };
        let text = grids(&[panel.clone()], &Provenance::default(), &options);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[4], "0-47              ·   w0 w1 w2 w3 w4 w5…",
            "{text}"
        );
        assert_eq!(lines[5], "48 w48         -100");
        assert_eq!(lines[6], "49 w49            ·", "one row is not worth it");
        panel.rows.truncate(30);
        panel.values.truncate(30);
        let short = grids(&[panel], &Provenance::default(), &options);
        assert_eq!(
            short.lines().filter(|line| line.contains(" w")).count(),
            30,
            "{short}"
        );
    }

    #[test]
    fn a_long_word_is_cut_where_it_no_longer_fits() {
        assert_eq!(cut("Mary", 4), "Mary");
        assert_eq!(cut("Mary", 3), "Ma…");
        assert_eq!(cut("日本語", 4), "日…");
        assert_eq!(cut("a", 0), "");
        assert_eq!(wrapped("one two three", 7), "one two\nthree\n");
    }
}
