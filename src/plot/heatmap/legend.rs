//! What the numbers and colours are.

use std::fmt::Write;

use super::cells::shade;
use super::options::{Color, HeatmapOptions};
use crate::plot::panel::Panel;
use crate::plot::scale::{Scale, ScaleOf};
use crate::scores::Provenance;
use crate::text::{cut, visible, width};

/// What the numbers and colours are.
pub(super) fn legend(
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
        writeln!(text, "{}", cells.collect::<String>()).expect("a String takes all");
    }
    // Where nothing is but 0, no hundred is anything.
    let says = |scale: &Scale, panel: &Panel, is_zero: bool| match is_zero && !panel.is_normalised {
        true => format!("every number is 0 ({})", visible(&about.metric)),
        false => scale.legend(panel.is_normalised, about),
    };
    let is_zero = |panel: &Panel| panel.limit() == 0.0;
    let mut lines = match options.scale {
        ScaleOf::Run => vec![says(&scales[0], &panels[0], panels.iter().all(is_zero))],
        ScaleOf::Panel => (panels.iter().zip(scales))
            .map(|(panel, scale)| {
                format!("{}: {}", panel.title, says(scale, panel, is_zero(panel)))
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
pub(super) fn wrapped(text: &str, most: usize) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && width(&line) + 1 + width(word) > most {
            writeln!(lines, "{line}").expect("a String takes all");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&cut(word, most));
    }
    writeln!(lines, "{line}").expect("a String takes all");
    lines
}
