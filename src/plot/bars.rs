//! Rows as lines with a bar each, for a terminal.

use super::columns::Columns;
use super::items::items;
use crate::scores::Bars;
use crate::text::{Align, aligned, cut};

/// Characters of the longest bar.
const LONGEST: f64 = 24.0;
/// Eighths of a character, from one up.
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// A line a row: what it is, its bar, its number with the interval, a text. Bars of numbers below zero are shaded.
pub(super) fn bar_lines(columns: &Columns, bars: &Bars, most: usize) -> String {
    let wanted = |row: usize| {
        columns.metric[row] == Some(bars.measure.as_str())
            && (bars.component.as_deref()).is_none_or(|name| columns.component[row] == Some(name))
    };
    let rows = items(columns, wanted);
    let largest = rows.iter().map(|row| row.score.abs()).fold(0.0, f64::max);
    let lines: Vec<[String; 5]> = (rows.iter())
        .map(|row| {
            let share = if largest > 0.0 {
                row.score / largest
            } else {
                0.0
            };
            let interval = row
                .interval
                .map(|(low, high)| format!("[{low:.3}, {high:.3}]"));
            [
                row.fill(&bars.item),
                bar(share),
                format!("{:.3}", row.score),
                interval.unwrap_or_default(),
                row.fill(&bars.text),
            ]
        })
        .collect();
    if lines.is_empty() {
        return String::new();
    }
    let align = [Align::Left, Align::Left, Align::Right, Align::Left];
    let text = bars.heading.clone() + "\n" + &aligned(&lines, &align);
    text.lines().map(|line| cut(line, most) + "\n").collect()
}

/// A bar as long as a share of the longest one, shaded where it is below zero.
fn bar(share: f64) -> String {
    let eighths = (share.abs() * LONGEST * 8.0).round() as usize;
    if share < 0.0 {
        return "▒".repeat(eighths.div_ceil(8));
    }
    let mut bar = "█".repeat(eighths / 8);
    bar.extend((eighths % 8).checked_sub(1).map(|part| EIGHTHS[part]));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_share() {
        assert_eq!(bar(1.0), "█".repeat(24));
        assert_eq!(bar(0.5), "█".repeat(12));
        assert_eq!(bar(1.5 / 24.0), "█▌");
        assert_eq!(bar(-2.0 / 24.0), "▒▒");
        assert_eq!(bar(0.0), "");
    }
}
