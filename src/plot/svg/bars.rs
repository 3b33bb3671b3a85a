//! The strongest rows of a table without grids, as bars with their intervals.

use super::look::SvgOptions;
use super::page::{EDGE, GLYPH, LONGEST_LABEL, PROSE, Page, ROW, hex};
use crate::error::{Error, Result};
use crate::plot::columns::Columns;
use crate::plot::ranked::strongest;
use crate::plot::scale::number;
use crate::scores::Scores;
use crate::text::{cut, visible, width};

/// Bars of a table that has no grids, and how long the longest is.
const BARS: usize = 30;
const BAR: f64 = 320.0;

/// A row of the table as a bar.
struct Bar {
    label: String,
    score: f64,
    interval: Option<(f64, f64)>,
}

/// The strongest rows, the strongest first.
fn bars_of(scores: &Scores) -> Result<Vec<Bar>> {
    let rows = strongest(scores, BARS);
    let columns = Columns::of(&rows);
    let floats = |name: &str| {
        rows.floats(name)
            .unwrap_or_else(|| vec![None; columns.height])
    };
    let (low, high) = (floats("ci_low"), floats("ci_high"));
    let bar = |row: usize| {
        let interval = low[row].zip(high[row]);
        Some(Bar {
            label: cut(&row_name(&columns, row), 2 * LONGEST_LABEL),
            score: columns.score[row].filter(|score| score.is_finite())?,
            interval: interval.filter(|(low, high)| low.is_finite() && high.is_finite()),
        })
    };
    let mut bars: Vec<Bar> = (0..columns.height).filter_map(bar).collect();
    bars.sort_by(|a, b| b.score.abs().total_cmp(&a.score.abs()));
    bars.truncate(BARS);
    match bars.is_empty() {
        true => Err(Error::invalid(
            "there is nothing to draw: no row of the table has a finite score",
        )),
        false => Ok(bars),
    }
}

/// How far bars and their intervals go below and above 0.
fn ends(bars: &[Bar]) -> (f64, f64) {
    let (mut least, mut most) = (0.0f64, 0.0f64);
    for bar in bars {
        let (low, high) = bar.interval.unwrap_or((bar.score, bar.score));
        least = least.min(bar.score).min(low);
        most = most.max(bar.score).max(high);
    }
    (least, most)
}

/// The end of the axis that holds them all.
pub(super) fn longest_bar(scores: &Scores) -> Result<f64> {
    let (least, most) = ends(&bars_of(scores)?);
    Ok(most.max(-least))
}

/// The strongest rows as bars with their intervals.
pub(super) fn draw_bars(page: &mut Page, scores: &Scores, options: &SvgOptions) -> Result<()> {
    if options.y_title.is_some() {
        return Err(Error::invalid(
            "bars have names and no second axis; leave its title out",
        ));
    }
    let bars = bars_of(scores)?;
    page.palette.check(bars.iter().map(|bar| bar.score))?;
    let (mut least, mut most) = ends(&bars);
    if let Some(reach) = options.reach {
        let longest = most.max(-least);
        if longest > reach {
            return Err(Error::invalid(format!(
                "the bars and their intervals reach {}, and would not fit a scale up to {}",
                number(longest),
                number(reach)
            )));
        }
        least = if least < 0.0 { -reach } else { 0.0 };
        most = if most > 0.0 { reach } else { 0.0 };
    }
    let span = if most > least { most - least } else { 1.0 };
    let widest = bars.iter().map(|bar| width(&bar.label)).max().unwrap_or(0) as f64;
    let left = EDGE + GLYPH * widest + 8.0;
    let at = |value: f64| left + (value - least) / span * BAR;
    let about = &scores.provenance;
    let heading = format!(
        "the {} strongest of {} rows: score, {} ({})",
        bars.len(),
        scores.table.height(),
        visible(&about.metric),
        visible(&about.unit)
    );
    page.text(EDGE, 44.0, "fill='#555'", &heading);
    page.reach(EDGE + PROSE * width(&heading) as f64, 50.0);
    let top = 56.0;
    for (index, bar) in bars.iter().enumerate() {
        let y = top + ROW * index as f64;
        let (label, score) = (&bar.label, bar.score);
        page.text(left - 8.0, y + 13.0, "text-anchor='end'", label);
        let (from, to) = (at(score.min(0.0)), at(score.max(0.0)));
        let fill = format!("fill='{}'", hex(page.palette.of_sign(score)));
        let tip = format!("{label}: {}", number(score));
        page.rectangle(
            [from, y + 3.0, (to - from).max(0.5), ROW - 6.0],
            &fill,
            Some(&tip),
        );
        if let Some((low, high)) = bar.interval {
            let middle = y + ROW / 2.0;
            page.line((at(low), middle), (at(high), middle));
        }
        page.text(left + BAR + 10.0, y + 13.0, "", &number(score));
    }
    let bottom = top + ROW * bars.len() as f64;
    page.line((at(0.0), top), (at(0.0), bottom));
    page.text(
        at(0.0),
        bottom + 14.0,
        "text-anchor='middle' fill='#555'",
        "0",
    );
    // Two numbers that would touch say less than one.
    let is_apart = |end: &f64| (at(*end) - at(0.0)).abs() > 6.0 * GLYPH;
    for end in [least, most].into_iter().filter(is_apart) {
        page.line((at(end), bottom), (at(end), bottom + 4.0));
        let look = "text-anchor='middle' fill='#555'";
        page.text(at(end), bottom + 14.0, look, &number(end));
    }
    page.reach(left + BAR + 10.0 + 6.0 * GLYPH, bottom + 16.0);
    if let Some(title) = &options.x_title {
        let (middle, look) = (left + BAR / 2.0, "text-anchor='middle' fill='#555'");
        page.text(middle, bottom + 32.0, look, &visible(title));
        page.reach(middle + GLYPH * width(title) as f64 / 2.0, bottom + 34.0);
    }
    Ok(())
}

/// The coordinates of a row as one short text.
fn row_name(columns: &Columns, row: usize) -> String {
    if let (Some(src), Some(dst)) = (columns.src[row], columns.dst[row]) {
        let between = match columns.component[row] {
            Some("pair") => "+",
            _ => "→",
        };
        let way = match (columns.component[row], columns.head[row]) {
            (Some("head"), Some(head)) => format!(" (head {head})"),
            (Some(way @ ("stream" | "mlp" | "attention" | "bias")), _) => format!(" ({way})"),
            _ => String::new(),
        };
        return format!("{} {between} {}{way}", visible(src), visible(dst));
    }
    let mut parts = vec![visible(columns.component[row].unwrap_or_default())];
    let numbers = [
        ("layer ", columns.layer[row]),
        ("head ", columns.head[row]),
        ("position ", columns.pos[row]),
        ("neuron ", columns.neuron[row]),
    ];
    let numbers = numbers
        .into_iter()
        .filter_map(|(what, n)| Some(format!("{what}{}", n?)));
    parts.extend(numbers);
    parts.extend(columns.role[row].map(visible));
    parts.extend(columns.src[row].or(columns.dst[row]).map(visible));
    parts.extend(columns.target[row].map(|target| format!("for {}", visible(target))));
    parts.join(" ")
}
