//! What a cell's number and colour stand for.
//!
//! Cells show hundredths of something that the legend names: of a normalised effect of 1 (everything restored) where there are
//! normalised effects, else of the largest magnitude. One scale holds for all grids of a table, so that a weak component looks
//! weak beside a strong one, unless each grid is asked to have its own.

use super::panel::Panel;
use crate::scores::{Direction, Provenance};
use crate::text::visible;

/// Whether the grids of a table share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ScaleOf {
    /// One scale for all grids of the run.
    #[default]
    Run,
    /// Each grid up to its own largest value.
    #[cfg_attr(feature = "cli", value(name = "own"))]
    Panel,
}

/// A scale of values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    /// The value that is shown as 100.
    pub hundred: f64,
    /// The magnitude that has the strongest colour.
    pub reach: f64,
}

impl Scale {
    /// The scale that grids share.
    pub fn of_run(panels: &[Panel]) -> Scale {
        let reach = panels.iter().map(Panel::limit).fold(0.0, f64::max);
        if panels.iter().any(|panel| panel.is_normalised) {
            Scale {
                hundred: 1.0,
                reach: if reach > 0.0 { reach } else { 1.0 },
            }
        } else {
            Scale::up_to(reach)
        }
    }

    pub fn of_panel(panel: &Panel) -> Scale {
        Scale::up_to(panel.limit())
    }

    fn up_to(limit: f64) -> Scale {
        let hundred = if limit > 0.0 { limit } else { 1.0 };
        Scale {
            hundred,
            reach: hundred,
        }
    }

    /// The number of a cell.
    pub fn hundredths(self, value: f64) -> i64 {
        (value / self.hundred * 100.0).round() as i64
    }

    /// The strength of its colour, -1 to 1. What is shown as nothing has no colour.
    pub fn strength(self, value: f64) -> f64 {
        if self.hundredths(value) == 0 {
            0.0
        } else {
            value / self.reach
        }
    }

    /// What the values are.
    pub fn caption(self, is_normalised: bool, about: &Provenance) -> String {
        let metric = visible(&about.metric);
        let unit = match visible(&about.unit) {
            unit if unit.is_empty() || unit == metric => String::new(),
            unit => format!(" ({unit})"),
        };
        if is_normalised {
            format!("normalised effect on {metric}")
        } else if about.direction == Direction::Direct {
            format!("{metric}{unit}")
        } else {
            format!("change of {metric}{unit}")
        }
    }

    /// What 100 is.
    pub fn legend(self, is_normalised: bool, about: &Provenance) -> String {
        let metric = visible(&about.metric);
        let unit = visible(&about.unit);
        let hundred = number(self.hundred);
        if is_normalised {
            let gap = number((about.mean_clean - about.mean_corrupted).abs());
            format!(
                "100 = {hundred} normalised, of the {gap} {unit} between clean and corrupted {metric}"
            )
        } else {
            let unit = if unit.is_empty() {
                unit
            } else {
                format!(" {unit}")
            };
            format!("100 = {hundred}{unit} ({metric}), the largest magnitude")
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

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(values: &[f64], is_normalised: bool) -> Panel {
        Panel {
            title: "p".into(),
            axes: ("layer".into(), "head".into()),
            rows: vec![Default::default()],
            columns: vec![Default::default(); values.len()],
            values: vec![values.iter().map(|&v| Some(v)).collect()],
            table_rows: vec![vec![None; values.len()]],
            is_normalised,
        }
    }

    #[test]
    fn a_normalised_effect_of_one_is_a_hundred_whatever_else_there_is() {
        let scale = Scale::of_run(&[panel(&[1.0, 0.5], true), panel(&[-1.43], true)]);
        assert_eq!(
            [1.0, 0.5, -1.43].map(|v| scale.hundredths(v)),
            [100, 50, -143]
        );
        assert_eq!(scale.strength(-1.43), -1.0);
        assert_eq!(
            scale.strength(0.004),
            0.0,
            "what reads as nothing has no colour"
        );
    }

    #[test]
    fn scores_are_hundredths_of_the_largest_of_all_grids() {
        let panels = [panel(&[4.0, f64::INFINITY], false), panel(&[-1.0], false)];
        assert_eq!(Scale::of_run(&panels).hundredths(-1.0), -25);
        assert_eq!(Scale::of_panel(&panels[1]).hundredths(-1.0), -100);
        assert_eq!(Scale::of_run(&[panel(&[0.0], false)]).hundredths(0.0), 0);
    }

    #[test]
    fn the_legend_names_value_unit_and_metric() {
        let about = Provenance {
            metric: "logit_diff".into(),
            unit: "logits".into(),
            mean_clean: 5.5,
            mean_corrupted: -2.26,
            ..Provenance::default()
        };
        let scale = Scale::up_to(0.83);
        assert_eq!(
            scale.legend(false, &about),
            "100 = 0.830 logits (logit_diff), the largest magnitude"
        );
        let scale = Scale::of_run(&[panel(&[0.4], true)]);
        assert_eq!(
            scale.legend(true, &about),
            "100 = 1.00 normalised, of the 7.76 logits between clean and corrupted logit_diff"
        );
    }
}
