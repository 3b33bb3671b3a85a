//! Text that is safe to show, and tables of it.
//!
//! Prompts, tokens, names in files and messages of other libraries come from anyone. What is shown of them must not move a cursor,
//! change a colour, hide, or reverse the reading direction: such characters are written as escapes.

mod shell;

use std::fmt::Write;

use unicode_width::UnicodeWidthStr;

pub use shell::shell_quoted;

/// So many marks may stand on one character; more would climb into the lines above.
const MARKS: usize = 4;
/// Longer names and values from files are cut where a message repeats them.
const SHORT: usize = 80;

/// A token or a label: [`printable`], and spaces at its ends written as `·`, since a space in front makes it another token.
pub fn visible(text: &str) -> String {
    let inner = text.trim_matches(' ');
    let leading = if inner.is_empty() {
        text.len()
    } else {
        text.len() - text.trim_start_matches(' ').len()
    };
    let trailing = text.len() - leading - inner.len();
    format!(
        "{}{}{}",
        "·".repeat(leading),
        printable(inner),
        "·".repeat(trailing)
    )
}

/// Running text: every character that cannot be seen is written as an escape (`\n`, `\u{1b}`), spaces stay as they are. Marks
/// such as accents stay where there is a character for them to stand on.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut marks = MARKS;
    for c in text.chars() {
        let is_mark = is_mark(c);
        if is_hidden(c) || is_mark && marks == MARKS {
            shown.extend(c.escape_default());
            marks = MARKS;
        } else {
            shown.push(c);
            marks = if is_mark {
                marks + 1
            } else if c == ' ' {
                MARKS
            } else {
                0
            };
        }
    }
    shown
}

/// A message that may run over several lines, as one.
pub fn one_line(text: &str) -> String {
    printable(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A name or a value from a file that a message repeats: [`one_line`], cut after 80 characters.
pub fn shortened(text: &str) -> String {
    clipped(text, SHORT)
}

/// [`one_line`], cut after `most` characters with `...` behind them.
pub fn clipped(text: &str, most: usize) -> String {
    let line = one_line(text);
    match line.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// Seconds in the unit that a person would say.
pub fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 0.95 => format!("{s:.1} s"),
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5_400.0 => format!("{:.0} minutes", s / 60.0),
        s if s < 129_600.0 => format!("{:.1} hours", s / 3_600.0),
        s => format!("{:.1} days", s / 86_400.0),
    }
}

/// Columns that a text takes on a terminal, once it is [`visible`] or [`printable`].
pub fn width(text: &str) -> usize {
    text.width()
}

/// A text that is at most so wide; an ellipsis says that there was more.
pub fn cut(text: &str, most: usize) -> String {
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

/// At which side of its column a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A cell filled with spaces to a width.
pub fn padded(cell: &str, to: usize, align: Align) -> String {
    let gap = " ".repeat(to.saturating_sub(width(cell)));
    match align {
        Align::Left => format!("{cell}{gap}"),
        Align::Right => format!("{gap}{cell}"),
    }
}

/// A table: two spaces between columns, none at the ends of lines, each line ended. The last of `align` holds for all columns after
/// it, and where it is empty all stand at the left. Rows may differ in length.
pub fn aligned<Row: AsRef<[Cell]>, Cell: AsRef<str>>(rows: &[Row], align: &[Align]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        let row = row.as_ref();
        widths.resize(widths.len().max(row.len()), 0);
        for (most, cell) in widths.iter_mut().zip(row) {
            *most = width(cell.as_ref()).max(*most);
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .as_ref()
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &to))| {
                let align = align.get(column).or(align.last()).unwrap_or(&Align::Left);
                padded(cell.as_ref(), to, *align)
            })
            .collect();
        writeln!(text, "{}", cells.join("  ").trim_end()).expect("a String takes all");
    }
    text
}

/// Controls, and what a terminal shows as nothing: joiners, fillers, direction overrides, line and paragraph separators.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
            | '\u{fe00}'..='\u{fe0e}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// A character that takes no column of its own, such as an accent.
fn is_mark(c: char) -> bool {
    c.encode_utf8(&mut [0; 4]).width() == 0
}

/// How like two names are, in millionths.
pub fn likeness(name: &str, other: &str) -> i64 {
    (strsim::normalized_damerau_levenshtein(name, other) * 1e6) as i64
}

/// The name that is most like one that does not exist, in backticks.
pub fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let best = known.max_by_key(|other| likeness(name, other));
    format!("`{}`", best.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_written_as_an_escape() {
        for (text, shown) in [
            (" Mary", "·Mary"),
            ("a b", "a b"),
            ("  ", "··"),
            ("", ""),
            ("a\n\t", "a\\n\\t"),
            ("\x1b[31m", "\\u{1b}[31m"),
            ("\u{9b}2J", "\\u{9b}2J"),
            ("\u{202e}evil\u{200b}", "\\u{202e}evil\\u{200b}"),
            ("日本", "日本"),
        ] {
            assert_eq!(visible(text), shown);
        }
        assert_eq!(printable(" a\u{7f} "), " a\\u{7f} ");
    }

    #[test]
    fn marks_stay_on_a_character_and_never_pile_up() {
        let acute = '\u{301}';
        assert_eq!(printable("e\u{301}"), "e\u{301}");
        assert_eq!(printable("नमस्ते"), "नमस्ते");
        assert_eq!(printable("\u{301}e"), "\\u{301}e");
        assert_eq!(printable(" \u{301}"), " \\u{301}");
        let pile: String = std::iter::once('e').chain([acute; 40]).collect();
        assert_eq!(printable(&pile).matches(acute).count(), MARKS);
    }

    #[test]
    fn messages_become_one_short_line() {
        assert_eq!(one_line("a\n  b\x07"), "a b\\u{7}");
        assert_eq!(shortened("a\nb"), "a b");
        let cut = shortened(&"é".repeat(100));
        assert_eq!(cut.chars().count(), SHORT + 3);
        assert!(cut.ends_with("é..."));
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [vec!["head", "score"], vec!["日本", "-1.5", "x"], vec!["a"]];
        let table = aligned(&rows, &[Align::Left, Align::Right]);
        assert_eq!(table, "head  score\n日本   -1.5  x\na\n");
        assert_eq!(aligned(&rows[..2], &[]), "head  score\n日本  -1.5   x\n");
        assert_eq!(aligned::<Vec<&str>, &str>(&[], &[]), "");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        let said = [0.04, 26.4, 150.0, 29_939.4, 400_000.0].map(duration);
        assert_eq!(
            said,
            ["0.0 s", "26 s", "2 minutes", "8.3 hours", "4.6 days"]
        );
    }
}
