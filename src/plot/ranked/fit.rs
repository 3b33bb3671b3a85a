//! Columns as wide as the page.

use crate::text::{Align, aligned, cut, width};

/// A text column is not cut below this width.
const SHORTEST_TEXT: usize = 12;

/// A column as text that is safe to show.
pub(in crate::plot) struct Shown {
    pub title: String,
    pub cells: Vec<String>,
    pub align: Align,
}

/// The columns as text. Where they are too wide, long texts are cut first, then the last columns go.
pub(super) fn fit(mut shown: Vec<Shown>, most: usize) -> String {
    let width_of = |column: &Shown| {
        let cells = column.cells.iter().map(|cell| width(cell));
        cells.chain([width(&column.title)]).max().unwrap_or(0)
    };
    let total = |shown: &[Shown]| {
        let widths = shown.iter().map(|column| width_of(column) + 2);
        widths.sum::<usize>().saturating_sub(2)
    };
    for column in shown
        .iter_mut()
        .filter(|column| column.align == Align::Left)
    {
        // A column of text that is wide is made of sentences, such as what a head looks like.
        let over = width_of(column).saturating_sub(most / 2);
        shorten(column, over);
    }
    let over = total(&shown).saturating_sub(most);
    if let Some(widest) = (shown.iter_mut())
        .filter(|column| column.align == Align::Left && column.title != "component")
        .max_by_key(|column| width_of(column))
    {
        shorten(widest, over);
    }
    let mut left_out = Vec::new();
    while shown.len() > 1 && total(&shown) > most {
        left_out.extend(shown.pop().map(|column| column.title));
    }
    let n = shown.first().map_or(0, |column| column.cells.len());
    let mut lines = vec![
        shown
            .iter()
            .map(|column| column.title.as_str())
            .collect::<Vec<_>>(),
    ];
    lines.extend((0..n).map(|row| {
        shown
            .iter()
            .map(|column| column.cells[row].as_str())
            .collect()
    }));
    let align: Vec<Align> = shown.iter().map(|column| column.align).collect();
    let table = aligned(&lines, &align);
    let mut text: String = table.lines().map(|line| cut(line, most) + "\n").collect();
    if !left_out.is_empty() {
        left_out.reverse();
        let note = format!("left out for width: {}", left_out.join(", "));
        text.push_str(&(cut(&note, most) + "\n"));
    }
    text
}

fn shorten(column: &mut Shown, over: usize) {
    if over == 0 {
        return;
    }
    let widest = column
        .cells
        .iter()
        .map(|cell| width(cell))
        .max()
        .unwrap_or(0);
    let to = widest.saturating_sub(over).max(SHORTEST_TEXT);
    for cell in &mut column.cells {
        *cell = cut(cell, to);
    }
}
