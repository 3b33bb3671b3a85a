//! A heatmap for the terminal: coloured cells, or hundredths of the maximum where there is no colour.

use std::fmt::Write;

use super::colour::{diverging, nearest_of_256};
use super::panel::{Label, Panel, panels};
use crate::scores::{Scores, visible_width};

/// What the terminal can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Color {
    /// Numbers instead of colours: a pipe, or `NO_COLOR`.
    #[default]
    None,
    Ansi256,
    Truecolor,
}

/// How to draw for one terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeatmapOptions {
    pub color: Color,
    /// Columns of the terminal; a wider grid is drawn in blocks, one under the other.
    pub width: usize,
}

impl Default for HeatmapOptions {
    fn default() -> Self {
        HeatmapOptions {
            color: Color::None,
            width: 100,
        }
    }
}

/// Longest label that is written from top to bottom over a column.
const TALLEST_LABEL: usize = 12;
/// Longest label in front of a row.
const WIDEST_ROW_LABEL: usize = 16;

/// Draws the table, one grid for each component (see [`panels`]). Layer 0 is on top; blue lowers the metric, red raises it.
pub fn heatmap(scores: &Scores, options: &HeatmapOptions) -> String {
    let drawn: Vec<String> = panels(scores)
        .iter()
        .map(|panel| draw(panel, options))
        .collect();
    drawn.join("\n")
}

fn draw(panel: &Panel, options: &HeatmapOptions) -> String {
    let limit = panel.limit();
    let row_labels: Vec<String> = panel
        .rows
        .iter()
        .map(|label| shorten(label, WIDEST_ROW_LABEL))
        .collect();
    let margin = row_labels
        .iter()
        .chain([&panel.axes.0])
        .map(|label| visible_width(label))
        .max()
        .unwrap_or(0)
        + 1;
    let cell = cell_width(panel, options.color);
    let per_block = (options.width.saturating_sub(margin) / cell).max(1);

    let mut text = format!("{} ({} x {})\n", panel.title, panel.axes.0, panel.axes.1);
    for first in (0..panel.columns.len()).step_by(per_block) {
        let columns = first..panel.columns.len().min(first + per_block);
        let labels = &panel.columns[columns.clone()];
        let tokens: Vec<&str> = labels
            .iter()
            .map(|label| label.token.as_deref().unwrap_or(""))
            .collect();
        standing(&mut text, margin, cell, &tokens, Side::Over);
        let names: Vec<&str> = labels.iter().map(|label| label.name.as_str()).collect();
        if names.iter().all(|name| visible_width(name) < cell) {
            line(
                &mut text,
                &pad_left(&panel.axes.0, margin - 1),
                cell,
                &names,
            );
        } else {
            standing(&mut text, margin, cell, &names, Side::Over);
        }
        for (label, row) in row_labels.iter().zip(&panel.values) {
            write!(text, "{} ", pad_left(label, margin - 1)).expect(INFALLIBLE);
            for &value in &row[columns.clone()] {
                text.push_str(&shade(value, limit, cell, options.color));
            }
            trim_and_end(&mut text);
        }
        let roles: Vec<&str> = labels
            .iter()
            .map(|label| label.role.as_deref().unwrap_or(""))
            .collect();
        if roles.iter().all(|role| visible_width(role) < cell) {
            line(&mut text, &" ".repeat(margin - 1), cell, &roles);
        } else {
            standing(&mut text, margin, cell, &roles, Side::Under);
        }
    }
    text.push_str(&legend(panel, limit, options.color));
    text
}

const INFALLIBLE: &str = "a String takes all";

/// The same for all columns of a panel: wide enough for its numbers, and for short names and roles when that costs little.
fn cell_width(panel: &Panel, color: Color) -> usize {
    let least = if color == Color::None { 5 } else { 3 };
    let widest = |of: fn(&Label) -> &str| {
        panel
            .columns
            .iter()
            .map(|label| visible_width(of(label)))
            .filter(|&width| width <= 4)
            .max()
            .unwrap_or(0)
    };
    let names = widest(|label| &label.name);
    let roles = widest(|label| label.role.as_deref().unwrap_or(""));
    least.max(names + 1).max(roles + 1)
}

fn shade(value: Option<f64>, limit: f64, cell: usize, color: Color) -> String {
    let Some(value) = value else {
        return " ".repeat(cell);
    };
    let part = if limit > 0.0 { value / limit } else { 0.0 };
    match color {
        _ if !value.is_finite() => pad_left("?", cell),
        Color::None => {
            let hundredths = (part * 100.0).round() as i64;
            let number = if hundredths == 0 {
                "·".to_string()
            } else {
                format!("{hundredths:+}")
            };
            // The last column stays free, so that a number stands under the middle of its label.
            pad_left(&number, cell - 1) + " "
        }
        Color::Ansi256 => format!(
            "\x1b[48;5;{}m{}\x1b[0m",
            nearest_of_256(diverging(part)),
            " ".repeat(cell)
        ),
        Color::Truecolor => {
            let [r, g, b] = diverging(part);
            format!("\x1b[48;2;{r};{g};{b}m{}\x1b[0m", " ".repeat(cell))
        }
    }
}

fn legend(panel: &Panel, limit: f64, color: Color) -> String {
    match color {
        Color::None => format!(
            "100 = {}, {}; · is under half a hundredth\n",
            number(limit),
            panel.unit
        ),
        _ => {
            let scale: String = (-8..=8)
                .map(|step| shade(Some(step as f64), 8.0, 1, color))
                .collect();
            format!(
                "{} {scale} {}  {}\n",
                number(-limit),
                number(limit),
                panel.unit
            )
        }
    }
}

/// A number to three significant places.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_string(),
        magnitude if !(1e-3..1e5).contains(&magnitude) => format!("{value:.2e}"),
        magnitude => format!(
            "{value:.*}",
            (2 - magnitude.log10().floor() as i32).max(0) as usize
        ),
    }
}

/// A line with one short label a column, under `front`; nothing if all labels are empty.
fn line(text: &mut String, front: &str, cell: usize, labels: &[&str]) {
    if labels.iter().all(|label| label.is_empty()) {
        return;
    }
    write!(text, "{front} ").expect(INFALLIBLE);
    labels
        .iter()
        .for_each(|label| text.push_str(&centre(label, cell)));
    trim_and_end(text);
}

#[derive(PartialEq)]
enum Side {
    Over,
    Under,
}

/// Labels written from top to bottom, a character a line, touching the grid.
fn standing(text: &mut String, margin: usize, cell: usize, labels: &[&str], side: Side) {
    let labels: Vec<Vec<char>> = labels
        .iter()
        .map(|label| shorten_chars(label, TALLEST_LABEL))
        .collect();
    let tallest = labels.iter().map(Vec::len).max().unwrap_or(0);
    for level in 0..tallest {
        text.push_str(&" ".repeat(margin));
        for label in &labels {
            let index = match side {
                Side::Over => (level + label.len()).checked_sub(tallest),
                Side::Under => Some(level),
            };
            let c = index
                .and_then(|index| label.get(index))
                .map_or(String::new(), char::to_string);
            text.push_str(&centre(&c, cell));
        }
        trim_and_end(text);
    }
}

fn shorten(label: &str, most: usize) -> String {
    if visible_width(label) <= most {
        return label.to_string();
    }
    let mut short = String::new();
    for c in label.chars() {
        if visible_width(&short) + visible_width(c.encode_utf8(&mut [0; 4])) >= most {
            break;
        }
        short.push(c);
    }
    short + "…"
}

fn shorten_chars(label: &str, most: usize) -> Vec<char> {
    let mut chars: Vec<char> = label.trim_start_matches('·').chars().collect();
    if chars.is_empty() {
        chars = label.chars().collect();
    }
    if chars.len() > most {
        chars.truncate(most - 1);
        chars.push('…');
    }
    chars
}

fn centre(label: &str, cell: usize) -> String {
    let gap = cell.saturating_sub(visible_width(label));
    let before = gap.div_ceil(2);
    format!("{}{label}{}", " ".repeat(before), " ".repeat(gap - before))
}

fn pad_left(label: &str, width: usize) -> String {
    format!(
        "{}{label}",
        " ".repeat(width.saturating_sub(visible_width(label)))
    )
}

fn trim_and_end(text: &mut String) {
    text.truncate(text.trim_end_matches(' ').len());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::{svg, test_scores};

    /// Every line that [`heatmap`] draws without colours, `width` columns wide.
    fn lines(tokens: &[&str], width: usize) -> Vec<String> {
        let options = HeatmapOptions {
            color: Color::None,
            width,
        };
        heatmap(&test_scores(tokens, 2), &options)
            .lines()
            .map(String::from)
            .collect()
    }

    #[test]
    fn cells_are_hundredths_of_the_largest_magnitude() {
        // Two layers by two positions with scores -4, -3, -2, -1: the largest magnitude is 4.
        let drawn = lines(&["a", "b"], 80);
        assert!(
            drawn.iter().any(|line| line.ends_with("0 -100  -75")),
            "{drawn:#?}"
        );
        assert!(
            drawn.iter().any(|line| line.ends_with("1  -50  -25")),
            "{drawn:#?}"
        );
        assert!(
            drawn
                .last()
                .unwrap()
                .starts_with("100 = 4.00, score (logits)"),
            "{drawn:#?}"
        );
    }

    #[test]
    fn a_grid_wider_than_the_terminal_is_drawn_in_blocks() {
        let tokens: Vec<String> = (0..30).map(|i| format!("token{i}")).collect();
        let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
        let drawn = lines(&tokens, 60);
        assert!(
            drawn.iter().all(|line| visible_width(line) <= 60),
            "{drawn:#?}"
        );
        assert_eq!(
            drawn
                .iter()
                .filter(|line| line.starts_with("layer "))
                .count(),
            3
        );
        // The narrowest terminal still gets every column.
        assert_eq!(
            lines(&tokens, 1)
                .iter()
                .filter(|line| line.starts_with("layer "))
                .count(),
            30
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
        let picture = svg(&test_scores(&tokens, 2));
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
    fn colours_are_reset_after_every_cell() {
        for color in [Color::Ansi256, Color::Truecolor] {
            let drawn = heatmap(
                &test_scores(&["a", "b"], 2),
                &HeatmapOptions { color, width: 80 },
            );
            assert_eq!(
                drawn.matches("\x1b[48;").count(),
                drawn.matches("\x1b[0m").count()
            );
            assert_eq!(
                drawn.matches("\x1b[48;").count(),
                4 + 17,
                "four cells and the scale"
            );
        }
    }
}
