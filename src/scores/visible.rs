//! Token text made safe to show: nothing that moves a cursor, changes a colour, hides, or reverses the reading direction.

use std::fmt::Write;

use unicode_width::UnicodeWidthChar;

/// The text with every character that cannot be seen written as an escape, and spaces at its ends as `·`.
pub fn visible(text: &str) -> String {
    let inner = text.trim_matches(' ');
    let leading = if inner.is_empty() {
        text.len()
    } else {
        text.len() - text.trim_start_matches(' ').len()
    };
    let trailing = text.len() - leading - inner.len();
    let mut shown = "·".repeat(leading);
    for c in inner.chars() {
        match c {
            '\n' => shown.push_str("\\n"),
            '\t' => shown.push_str("\\t"),
            '\r' => shown.push_str("\\r"),
            c if is_hidden(c) => {
                write!(shown, "\\u{{{:x}}}", c as u32).expect("a String takes all")
            }
            c => shown.push(c),
        }
    }
    shown.push_str(&"·".repeat(trailing));
    shown
}

/// Columns that a text takes on a terminal, once it is [`visible`].
pub fn visible_width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// Controls, and characters without a width of their own: joiners, marks, direction overrides, variation selectors.
fn is_hidden(c: char) -> bool {
    c.is_control() || c.width().unwrap_or(0) == 0 || matches!(c, '\u{ad}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_seen_is_written_as_an_escape() {
        assert_eq!(visible(" Mary"), "·Mary");
        assert_eq!(visible("a b"), "a b");
        assert_eq!(visible("  "), "··");
        assert_eq!(visible("a\n\t"), "a\\n\\t");
        assert_eq!(visible("\x1b[31m"), "\\u{1b}[31m");
        assert_eq!(visible("\u{202e}evil\u{200b}"), "\\u{202e}evil\\u{200b}");
        assert_eq!(visible("日本"), "日本");
        assert_eq!(visible_width("日本"), 4);
    }
}
