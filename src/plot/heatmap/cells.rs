//! A cell: its number, and its colour where the terminal has colours.

use super::options::Color;
use crate::plot::colour::{paint, start_24_bit, start_256};
use crate::plot::scale::Scale;
use crate::text::{Align, padded, width};

/// The number of a cell.
pub(super) fn shown(value: f64, scale: Scale) -> String {
    if !value.is_finite() {
        return "?".into();
    }
    match scale.hundredths(value) {
        0 => "·".into(),
        hundredths => hundredths.to_string(),
    }
}

pub(super) fn shade(value: Option<f64>, scale: Scale, cell: usize, color: Color) -> String {
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

/// The width of a line without its escape sequences.
pub(super) fn width_of_coloured(text: &str) -> usize {
    let mut parts = text.split("\x1b[");
    let plain = parts.next().map_or(0, width);
    let rest = parts.map(|part| part.split_once('m').map_or(0, |(_, shown)| width(shown)));
    plain + rest.sum::<usize>()
}
