//! Faithfulness by the share of all edges, with intervals.

use super::distributions::{short, ticks};
use super::look::SvgOptions;
use super::page::{EDGE, PROSE, Page, hex};
use crate::plot::colour::Palette;
use crate::plot::curves::{Curve, Point};
use crate::plot::scale::number;
use crate::text::{visible, width};

const WIDTH: f64 = 440.0;
const HEIGHT: f64 = 230.0;
/// Room for the numbers and the title beside the axis.
const BESIDE: f64 = 62.0;
const TOP: f64 = 44.0;
/// Curves after the second are told apart by their dashes too.
const DASHES: [&str; 4] = ["", "7 4", "2 3", "9 3 2 3"];

/// A curve for each series; shares are on a logarithmic axis.
pub(super) fn draw_curves(page: &mut Page, curves: &[Curve], options: &SvgOptions) {
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let of_shares = |by: fn(f64, f64) -> f64, start: f64| {
        points().fold(start, |found, point| by(found, point.share.log10()))
    };
    let (first, last) = (
        of_shares(f64::min, f64::INFINITY),
        of_shares(f64::max, f64::NEG_INFINITY),
    );
    let (mut least, mut most) = (0.0f64, 1.0f64);
    for point in points() {
        let (low, high) = point
            .interval
            .unwrap_or((point.faithfulness, point.faithfulness));
        least = least.min(low).min(point.faithfulness);
        most = most.max(high).max(point.faithfulness);
    }
    let (left, bottom) = (EDGE + BESIDE, TOP + HEIGHT);
    let span = if last > first { last - first } else { 1.0 };
    let across = |share: f64| left + (share.log10() - first) / span * WIDTH;
    let up = |value: f64| bottom - (value - least) / (most - least) * HEIGHT;
    for tick in ticks(least, most) {
        page.stroke((left, up(tick)), (left + WIDTH, up(tick)), "#dddddd");
        let look = "text-anchor='end' fill='#555'";
        page.text(left - 8.0, up(tick) + 4.0, look, &short(tick));
    }
    for power in first.floor() as i32..=last.ceil() as i32 {
        for digit in 1..10 {
            let share = f64::from(digit) * 10f64.powi(power);
            if share.log10() < first - 1e-9 || share.log10() > last + 1e-9 {
                continue;
            }
            let length = if digit == 1 { 6.0 } else { 3.0 };
            page.line((across(share), bottom), (across(share), bottom + length));
            if digit == 1 {
                let look = "text-anchor='middle' fill='#555'";
                page.text(across(share), bottom + 19.0, look, &short(share));
            }
        }
    }
    page.line((left, bottom), (left + WIDTH, bottom));
    for (index, curve) in curves.iter().enumerate() {
        draw(page, index, curve, &across, &up);
    }
    let x_title = options.x_title.as_deref().unwrap_or("share of all edges");
    let y_title = options.y_title.as_deref().unwrap_or("faithfulness");
    let look = "text-anchor='middle' fill='#555'";
    page.text(left + WIDTH / 2.0, bottom + 38.0, look, &visible(x_title));
    let (x, y) = (EDGE + 10.0, TOP + HEIGHT / 2.0);
    let turned = format!("{look} transform='rotate(-90 {x:.1} {y:.1})'");
    page.text(x, y, &turned, &visible(y_title));
    let mut below = bottom + 58.0;
    for (index, curve) in curves.iter().enumerate() {
        let path = format!("M{left:.1} {:.1}h34", below - 4.0);
        page.curve(&path, &look_of(page.palette, index), &curve.name);
        let said = format!("{}, with its 95% interval", visible(&curve.name));
        page.text(left + 42.0, below, "fill='#555'", &said);
        page.reach(left + 42.0 + PROSE * width(&said) as f64, below);
        below += 18.0;
    }
    page.reach(left + WIDTH + 12.0, below - 18.0);
}

fn colour(palette: Palette, index: usize) -> String {
    let sign = if index.is_multiple_of(2) { 1.0 } else { -1.0 };
    hex(palette.of_sign(sign))
}

fn look_of(palette: Palette, index: usize) -> String {
    format!(
        "stroke='{}' stroke-width='1.8' stroke-dasharray='{}'",
        colour(palette, index),
        DASHES[index % DASHES.len()]
    )
}

fn draw(
    page: &mut Page,
    index: usize,
    curve: &Curve,
    across: &impl Fn(f64) -> f64,
    up: &impl Fn(f64) -> f64,
) {
    let path = |places: Vec<(f64, f64)>| -> String {
        let step = |(at, (x, y)): (usize, (f64, f64))| {
            format!("{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" })
        };
        places.into_iter().enumerate().map(step).collect()
    };
    let colour = colour(page.palette, index);
    let name = visible(&curve.name);
    let ends: Option<Vec<(f64, f64, f64)>> = (curve.points.iter())
        .map(|point| {
            let (low, high) = point.interval?;
            Some((across(point.share), up(low), up(high)))
        })
        .collect();
    if let Some(ends) = ends {
        let upper = ends.iter().map(|&(x, _, high)| (x, high));
        let lower = ends.iter().rev().map(|&(x, low, _)| (x, low));
        let band = path(upper.chain(lower).collect());
        page.area(&band, &format!("fill='{colour}' fill-opacity='0.18'"));
    }
    let place = |point: &Point| (across(point.share), up(point.faithfulness));
    let line = path(curve.points.iter().map(place).collect());
    page.curve(&line, &look_of(page.palette, index), &name);
    for point in &curve.points {
        let tip = format!(
            "{name}, {} of all edges: {}",
            number(point.share),
            number(point.faithfulness)
        );
        page.circle(place(point), 2.8, &format!("fill='{colour}'"), &tip);
    }
}
