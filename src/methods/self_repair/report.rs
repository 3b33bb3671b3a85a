//! What follows from all prompts together: shares made good, negative heads, and the account in words.

use std::ops::Range;

use serde_json::json;

use super::effects::Measure;
use super::parts::Repair;
use crate::scores::statistics::{mean, r_squared};
use crate::scores::{Cell, Detail, Measured};

/// What has one value for all prompts together.
const RESTORED: &str = "restored";
const R2: &str = "r2";
/// The direct change below which a share of it is noise, in logits.
const LEAST_CHANGE: f64 = 0.1;

/// Adds what has one value for all prompts, classes of heads, and the story in a few lines.
pub(super) fn report(repair: &Repair<'_>, measured: &mut Measured) {
    let mut of_all: Vec<(Cell, f64)> = Vec::new();
    let mut negative = Vec::new();
    let mut worst = 0f64;
    for (at, rows) in repair.rows.iter().enumerate() {
        let name = repair.name(repair.removed[at]);
        let column = |measure: Measure| -> Vec<f64> {
            let cell = rows.start + measure as usize;
            let values = measured.examples.iter().map(|example| example.value(cell));
            values.flatten().collect()
        };
        let mean_of = |measure: Measure| mean(&column(measure));
        let (direct, total) = (column(Measure::Direct), column(Measure::Total));
        let frozen = column(Measure::TotalFrozen);
        let ablated = column(Measure::DirectAblated);
        let (attn, mlp) = (
            column(Measure::CompensationAttn),
            column(Measure::CompensationMlp),
        );
        for i in 0..frozen.len() {
            let account = ablated[i] - direct[i] + attn[i] + mlp[i];
            worst = worst.max((frozen[i] - account).abs());
        }
        let lost = mean(&direct) - mean(&ablated);
        let of_part = |measure: &str, value: f64| {
            let cell = Cell {
                measure: Some(measure.into()),
                ..measured.cells[rows.start].clone()
            };
            (cell, value)
        };
        if lost.abs() > LEAST_CHANGE {
            of_all.push(of_part(RESTORED, (mean(&attn) + mean(&mlp)) / lost));
        }
        // A line through two prompts explains them whatever they are.
        let pairs: Vec<(f64, f64)> = direct.iter().copied().zip(total.iter().copied()).collect();
        if let Some(r2) = r_squared(&pairs).filter(|_| pairs.len() > 2) {
            of_all.push(of_part(R2, r2));
        }
        let class = match (sign(&direct), sign(&total)) {
            (-1, 1) => Some("negative"),
            (1, -1) => Some("positive"),
            _ => None,
        };
        if class == Some("negative") {
            negative.push(format!(
                "{name} ({:+.3}, {:+.3})",
                mean(&direct),
                mean(&total)
            ));
        }
        if lost.abs() > LEAST_CHANGE {
            let repaired = helpers(measured, rows, lost);
            measured.notes.push(format!(
                "without {name}: direct change {:+.3}, total {:+.3} with the scale frozen and {:+.3} free; {repaired}",
                -lost,
                mean_of(Measure::TotalFrozen),
                mean(&total),
            ));
        }
        measured.cells[rows.start].class = class.map(String::from);
    }
    if repair.by_head() {
        measured.notes.push(if negative.is_empty() {
            "no negative head: none has a direct effect below 0 and a total effect above it, each by two standard errors".into()
        } else {
            format!("negative heads (direct effect, total effect of losing it): {}", negative.join(", "))
        });
    }
    measured.notes.push(format!(
        "with the final scale frozen, direct change and compensation sum to the total effect; the largest residual is {worst:.1e} logits"
    ));
    measured
        .found
        .insert("account_residual".into(), json!(worst));
    // All examples make them together, so none has one of its own.
    if repair.running.detail == Detail::Mean {
        let (cells, values): (Vec<Cell>, Vec<f64>) = of_all.into_iter().unzip();
        let first = measured.append(cells, |_, _| values.iter().copied().map(Some).collect());
        let added = first..measured.cells.len();
        measured.intervals.extend(added.map(|cell| (cell, None)));
    }
}

/// The later parts that make good at least a tenth of what is lost, the three strongest of them, in words.
fn helpers(measured: &Measured, rows: &Range<usize>, lost: f64) -> String {
    let mut helpers: Vec<(f64, usize)> = (rows.start + Measure::ALL.len()..rows.end)
        .map(|cell| {
            let values = measured.examples.iter().map(|example| example.value(cell));
            (
                mean(&values.flatten().collect::<Vec<_>>()) * lost.signum(),
                cell,
            )
        })
        .collect();
    helpers.sort_by(|a, b| b.0.total_cmp(&a.0));
    let helpers: Vec<String> = (helpers.iter().take(3))
        .filter(|(value, _)| *value > 0.1 * lost.abs())
        .map(|(value, cell)| {
            let dst = measured.cells[*cell].dst.as_deref().unwrap_or_default();
            format!("{dst} {:+.3}", value * lost.signum())
        })
        .collect();
    if helpers.is_empty() {
        "nothing later makes a tenth of it good".into()
    } else {
        format!("made good by {}", helpers.join(", "))
    }
}

/// 1 or -1 where the mean is two standard errors from 0, else 0.
fn sign(values: &[f64]) -> i32 {
    let (n, centre) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    let error = (squares / (n - 1.0).max(1.0) / n).sqrt();
    if centre.abs() > 2.0 * error {
        centre.signum() as i32
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_within_two_errors_of_nothing_has_no_sign() {
        assert_eq!(sign(&[1.0, 1.1, 0.9]), 1);
        assert_eq!(sign(&[-1.0, -1.1, -0.9]), -1);
        assert_eq!(sign(&[1.0, -1.0, 0.5]), 0);
        assert_eq!(sign(&[0.0, 0.0]), 0);
    }
}
