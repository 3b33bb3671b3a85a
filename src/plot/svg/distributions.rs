//! How values lie in several groups: a mark a value, a box over the middle half, a line at the median.

use polars::prelude::{Column, DataFrame, DataType};

use super::page::{EDGE, GLYPH, LONGEST_LABEL, Page, hex};
use crate::error::{Error, Result};
use crate::plot::scale::number;
use crate::scores::statistics::percentile;
use crate::text::{cut, visible, width};

const ROW: f64 = 40.0;
const AXIS: f64 = 460.0;
/// Marks of a group; of more, every so manieth in the order of their size is drawn.
const MOST_MARKS: usize = 400;
/// Groups that are drawn.
const MOST_GROUPS: usize = 60;

/// Values in groups, in the order in which they are drawn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Distributions {
    /// What the values are, beneath the axis.
    pub axis: String,
    /// A name and its values; what is not finite is left out.
    pub groups: Vec<(String, Vec<f64>)>,
}

impl Distributions {
    /// A column of numbers of a frame, grouped by another, or by several whose values make the name together; groups stand in
    /// the order of their first row. Rows without a value are left out.
    /// # Errors
    /// [`Error::Invalid`] for a column that the frame does not have, or whose values are no numbers.
    pub fn of(frame: &DataFrame, by: &[&str], value: &str) -> Result<Self> {
        let keys = by.iter().map(|name| column(frame, name));
        let keys: Vec<&Column> = keys.collect::<Result<_>>()?;
        let values = column(frame, value)?;
        if !values.dtype().is_primitive_numeric() {
            return Err(Error::invalid(format!(
                "column `{}` holds {}, of which there is no distribution; name a column of numbers",
                visible(value),
                values.dtype()
            )));
        }
        let values = values.cast(&DataType::Float64)?;
        let mut groups: Vec<(String, Vec<f64>)> = Vec::new();
        for (row, value) in values.f64()?.iter().enumerate() {
            let names = keys.iter().map(|key| match key.get(row) {
                // A number alone would say too little.
                Ok(name) if key.dtype().is_primitive_numeric() && !name.is_null() => {
                    format!("{} {}", key.name(), name.str_value())
                }
                Ok(name) if !name.is_null() => name.str_value().into_owned(),
                _ => "none".to_string(),
            });
            let name = names.collect::<Vec<_>>().join(" ");
            let Some(value) = value.filter(|value| value.is_finite()) else {
                continue;
            };
            match groups.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push(value),
                None => groups.push((name, vec![value])),
            }
        }
        Ok(Distributions {
            axis: value.to_string(),
            groups,
        })
    }

    /// One SVG image.
    pub fn svg(&self) -> String {
        let finite = |values: &[f64]| {
            let mut values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let groups = self.groups.iter().take(MOST_GROUPS);
        let groups: Vec<(String, Vec<f64>)> = groups
            .map(|(name, values)| (cut(&visible(name), 2 * LONGEST_LABEL), finite(values)))
            .filter(|(_, values)| !values.is_empty())
            .collect();
        let all = || groups.iter().flat_map(|(_, values)| values.iter().copied());
        // 0 is on the axis, or one could not see where effects end.
        let (least, most) = all().fold((0.0f64, 0.0f64), |(least, most), value| {
            (least.min(value), most.max(value))
        });
        let span = if most > least { most - least } else { 1.0 };
        let label = |name: &str, values: &[f64]| format!("{name} (n = {})", values.len());
        let labels = groups
            .iter()
            .map(|(name, values)| width(&label(name, values)));
        let left = EDGE + GLYPH * labels.max().unwrap_or(0) as f64 + 14.0;
        let at = |value: f64| left + (value - least) / span * AXIS;
        let bottom = EDGE + ROW * groups.len() as f64;
        let mut page = Page::default();
        page.line((at(0.0), EDGE), (at(0.0), bottom + 4.0));
        for (index, (name, values)) in groups.iter().enumerate() {
            let middle = EDGE + ROW * (index as f64 + 0.5);
            let label = label(name, values);
            page.text(left - 12.0, middle + 4.0, "text-anchor='end'", &label);
            draw_group(&mut page, name, values, middle, &at);
        }
        for tick in ticks(least, least + span) {
            page.line((at(tick), bottom), (at(tick), bottom + 4.0));
            let look = "text-anchor='middle' fill='#555'";
            page.text(at(tick), bottom + 18.0, look, &short(tick));
        }
        let left_out = self.groups.len().saturating_sub(MOST_GROUPS);
        let mut caption = visible(&self.axis);
        if left_out > 0 {
            caption += &format!(" (the first {MOST_GROUPS} groups; {left_out} are left out)");
        }
        let step = groups.iter().map(|(_, values)| step(values)).max();
        if let Some(step) = step.filter(|&step| step > 1) {
            caption +=
                &format!(" (of large groups at least every {step}th value, and the largest)");
        }
        page.text(left, bottom + 36.0, "fill='#555'", &caption);
        page.reach(
            left + AXIS.max(GLYPH * width(&caption) as f64),
            bottom + 38.0,
        );
        page.finish(None)
    }
}

/// A column, found without the frame's index of names, which in a notebook holds only in the cell that made the frame.
fn column<'f>(frame: &'f DataFrame, name: &str) -> Result<&'f Column> {
    let columns = frame.columns();
    columns
        .iter()
        .find(|column| column.name() == name)
        .ok_or_else(|| {
            let names: Vec<String> = columns
                .iter()
                .map(|column| visible(column.name()))
                .collect();
            Error::invalid(format!(
                "there is no column `{}`; the frame has {}",
                visible(name),
                names.join(", ")
            ))
        })
}

/// Of sorted values every so manieth is drawn.
fn step(values: &[f64]) -> usize {
    values.len().div_ceil(MOST_MARKS).max(1)
}

fn draw_group(page: &mut Page, name: &str, values: &[f64], middle: f64, at: &impl Fn(f64) -> f64) {
    let mut sorted = values.to_vec();
    let [low, median, high] = [0.25, 0.5, 0.75].map(|q| percentile(&mut sorted, q));
    let tip = format!(
        "{name}: {} values, median {}, middle half {} to {}",
        values.len(),
        number(median),
        number(low),
        number(high)
    );
    let half = 13.0;
    let box_ = [
        at(low),
        middle - half,
        (at(high) - at(low)).max(1.0),
        2.0 * half,
    ];
    page.rectangle(box_, "fill='#eeeeee' stroke='#999999'", Some(&tip));
    let (step, last) = (step(values), values.len() - 1);
    let drawn = values.iter().enumerate();
    let drawn = drawn.filter(|(place, _)| place % step == 0 || *place == last);
    for (index, (_, &value)) in drawn.enumerate() {
        // Marks of close values stand beside each other.
        let beside = [0.0, -7.0, 6.0, -3.0, 9.0, 3.0, -10.0][index % 7];
        let look = format!(
            "fill='{}' fill-opacity='0.6'",
            hex(page.palette.of_sign(value))
        );
        let tip = format!("{name}: {}", number(value));
        page.circle((at(value), middle + beside), 2.6, &look, &tip);
    }
    page.line((at(median), middle - half), (at(median), middle + half));
}

/// Round numbers on an axis, four to nine.
pub(super) fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = (high - low) / 8.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|round| round * power)
        .into_iter()
        .find(|step| *step >= rough)
        .unwrap_or(rough);
    let first = (low / step).ceil() as i64;
    let last = (high / step).floor() as i64;
    (first..=last).map(|n| n as f64 * step).collect()
}

/// A tick without the noise of its binary form.
pub(super) fn short(tick: f64) -> String {
    match tick.abs() {
        0.0 => "0".to_string(),
        size if (1e-3..1e5).contains(&size) => {
            let text = format!("{tick:.4}");
            text.trim_end_matches('0').trim_end_matches('.').to_string()
        }
        _ => format!("{tick:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use polars::prelude::{NamedFrom, Series};

    fn frame() -> DataFrame {
        let tasks = ["<b>", "<b>", "two", "two"];
        let values = [Some(0.5), None, Some(-1.0), Some(2.0)];
        let columns = vec![
            Series::new("task".into(), tasks).into(),
            Series::new("head".into(), [0, 0, 1, 1]).into(),
            Series::new("score".into(), values).into(),
        ];
        DataFrame::new(4, columns).unwrap()
    }

    #[test]
    fn rows_are_grouped_in_their_order_and_gaps_are_left_out() {
        let found = Distributions::of(&frame(), &["task", "head"], "score").unwrap();
        let groups = [("<b> head 0", vec![0.5]), ("two head 1", vec![-1.0, 2.0])];
        assert_eq!(
            found.groups,
            groups.map(|(name, values)| (name.to_string(), values))
        );
        let whole = Distributions::of(&frame(), &["task"], "head").unwrap();
        assert_eq!(whole.groups[1].1, [1.0, 1.0]);
    }

    #[test]
    fn a_mark_stands_for_each_value_and_names_are_text() {
        let drawn = Distributions::of(&frame(), &["task"], "score")
            .unwrap()
            .svg();
        assert_eq!(drawn.matches("<circle").count(), 3);
        assert!(
            drawn.contains("&lt;b&gt;: 0.500") && !drawn.contains("<b>"),
            "{drawn}"
        );
        assert!(drawn.contains("two: 2 values, median 0.500"), "{drawn}");
        // Nothing to draw is an empty picture, and many values are thinned.
        assert!(Distributions::default().svg().contains("<svg"));
        let many = Distributions {
            axis: "score".into(),
            groups: vec![("many".into(), (0..10_000).map(f64::from).collect())],
        };
        let many = many.svg();
        assert_eq!(many.matches("<circle").count(), MOST_MARKS + 1);
        assert!(
            many.contains("many (n = 10000)") && many.contains("many: 9999"),
            "the largest is drawn"
        );
    }

    #[test]
    fn a_column_that_is_not_there_or_holds_text_is_named() {
        let message = |value| {
            Distributions::of(&frame(), &["task"], value)
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            message("size"),
            "there is no column `size`; the frame has task, head, score"
        );
        assert!(
            message("task").starts_with("column `task` holds str"),
            "{}",
            message("task")
        );
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            ticks(-0.13, 0.92)
                .iter()
                .map(|t| short(*t))
                .collect::<Vec<_>>(),
            ["0", "0.2", "0.4", "0.6", "0.8"]
        );
        assert_eq!(ticks(-3.0, 7.0), [-2.0, 0.0, 2.0, 4.0, 6.0]);
    }
}
