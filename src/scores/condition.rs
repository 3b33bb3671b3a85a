//! Which rows of a table are wanted: `component = z and layer in (3-5, 9) and not score < 0`.

mod grammar;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use grammar::{Comparison, Expression, Sign, Value, pointing};
use polars::prelude::{BooleanChunked, NewChunkedArray};

use super::Scores;
use crate::error::{Error, Result};
use crate::text::{nearest, visible};

/// Conditions on the rows of a table. Printed as they were written.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    text: String,
    wanted: Expression,
}

impl FromStr for Conditions {
    type Err = Error;

    /// Comparisons (`=`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `not in`) of a column with values, joined by `and` (or a comma), `or`,
    /// `not` and brackets. A value is a number, a range `3-5`, or text, in quotes if it has spaces or commas.
    /// # Errors
    /// [`Error::Condition`], which points at the place.
    fn from_str(text: &str) -> Result<Self> {
        Ok(Conditions {
            text: text.into(),
            wanted: Expression::parse(text)?,
        })
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Scores {
    /// The rows for which the conditions hold. No comparison holds for a row that has no value in its column (`!=` neither); `not`
    /// takes all rows that the condition behind it does not. A text matches as it is, as it is shown (`·Mary`), or without the
    /// spaces around it, a hook also by its short name (`z`).
    /// # Errors
    /// [`Error::Condition`] if a column is not in the table or a value does not fit it; [`Error::Invalid`] if no row is left.
    pub fn matching(&self, conditions: &Conditions) -> Result<Scores> {
        let whole = self.with_sides()?;
        let keep = whole.holds(&conditions.wanted, &conditions.text)?;
        if !keep.contains(&true) {
            return Err(Error::invalid(format!(
                "no row of {} matches `{}`{}",
                keep.len(),
                visible(&conditions.text),
                whole.what_there_is(&conditions.wanted)
            )));
        }
        let mut provenance = self.provenance.clone();
        let (own, of_sides) = keep.split_at(self.table.height());
        if !own.contains(&true) {
            // Only side quantities are wanted: they are the table now, and if there is one, it is what the table is about.
            let table = whole.table.filter(&mask(&keep))?;
            let chosen = Scores {
                table,
                provenance,
                sides: Vec::new(),
            };
            return Ok(chosen.about_its_only_metric());
        }
        let mut first = 0;
        let mut sides = Vec::new();
        for (kind, side) in &self.sides {
            let keep = &of_sides[first..first + side.table.height()];
            first += keep.len();
            if keep.contains(&true) {
                let mut side = side.clone();
                side.table = side.table.filter(&mask(keep))?;
                sides.push((kind.clone(), side));
            }
        }
        provenance.sides = sides.iter().map(|(kind, _)| kind.clone()).collect();
        Ok(Scores {
            table: self.table.filter(&mask(own))?,
            provenance,
            sides,
        })
    }

    fn about_its_only_metric(mut self) -> Scores {
        let metrics = self.texts("metric").unwrap_or_default();
        let metrics: BTreeSet<&str> = metrics.into_iter().flatten().collect();
        if let [metric] = metrics.into_iter().collect::<Vec<_>>()[..] {
            self.provenance.metric = metric.into();
            self.provenance.unit = String::new();
        }
        self.provenance.views = Vec::new();
        self
    }

    /// For each row whether an expression holds; `text` is what it was read from.
    fn holds(&self, wanted: &Expression, text: &str) -> Result<Vec<bool>> {
        let joined = |all: &[Expression], both: fn(bool, bool) -> bool| -> Result<Vec<bool>> {
            let mut rows = self.holds(&all[0], text)?;
            for one in &all[1..] {
                let other = self.holds(one, text)?;
                rows.iter_mut()
                    .zip(other)
                    .for_each(|(row, other)| *row = both(*row, other));
            }
            Ok(rows)
        };
        match wanted {
            Expression::All(all) => joined(all, |a, b| a && b),
            Expression::Any(all) => joined(all, |a, b| a || b),
            Expression::Not(inner) => {
                let rows = self.holds(inner, text)?;
                Ok(rows.into_iter().map(|holds| !holds).collect())
            }
            Expression::Compare(one) => self.compares(one, text),
        }
    }

    fn compares(&self, one: &Comparison, text: &str) -> Result<Vec<bool>> {
        let Comparison {
            column,
            at,
            sign,
            values,
        } = one;
        let wants_equal = *sign != Sign::Not;
        if let Some(texts) = self.texts(column) {
            if !matches!(sign, Sign::Is | Sign::Not) {
                let reason = format!("column `{column}` holds text, which = and != compare");
                return Err(pointing(text, at, &reason));
            }
            let is_it = |text: &str| values.iter().any(|value| text_matches(text, &value.text));
            let holds = |text: Option<&str>| text.is_some_and(|text| is_it(text) == wants_equal);
            return Ok(texts.into_iter().map(holds).collect());
        }
        let numbers: Vec<Option<f64>> = match (self.integers(column), self.floats(column)) {
            (Some(numbers), _) => numbers.into_iter().map(|n| n.map(|n| n as f64)).collect(),
            (None, Some(numbers)) => numbers,
            // Nothing stands in it, so that no comparison holds.
            (None, None) if self.column(column).is_some() => {
                return Ok(vec![false; self.table.height()]);
            }
            (None, None) => {
                let names = self.table.get_column_names();
                let reason = format!(
                    "there is no column `{column}`; nearest: {}",
                    nearest(column, names.iter().map(|name| name.as_str()))
                );
                return Err(pointing(text, at, &reason));
            }
        };
        let mut ranges = Vec::with_capacity(values.len());
        for value in values {
            let Value { text: number, at } = value;
            let Some((low, high)) = range(number) else {
                let reason = format!(
                    "column `{column}` holds numbers: write one, such as `3`, or a range `3-5`"
                );
                return Err(pointing(text, at, &reason));
            };
            ranges.push(match sign {
                Sign::Is | Sign::Not => (low, high),
                _ if low != high => {
                    let reason = "a range goes with = or `in`; compare with one number here";
                    return Err(pointing(text, at, reason));
                }
                Sign::Less => (f64::NEG_INFINITY, low.next_down()),
                Sign::AtMost => (f64::NEG_INFINITY, low),
                Sign::More => (low.next_up(), f64::INFINITY),
                Sign::AtLeast => (low, f64::INFINITY),
            });
        }
        let is_in = |number: f64| {
            let mut ranges = ranges.iter();
            ranges.any(|&(low, high)| (low..=high).contains(&number))
        };
        let holds = |number: f64| is_in(number) == wants_equal && !number.is_nan();
        Ok(numbers
            .into_iter()
            .map(|number| number.is_some_and(holds))
            .collect())
    }

    /// The values of the columns that were asked about, as far as they can be said shortly.
    fn what_there_is(&self, wanted: &Expression) -> String {
        let mut says = String::new();
        let columns: BTreeSet<&String> = (wanted.comparisons().into_iter())
            .map(|one| &one.column)
            .collect();
        for column in columns {
            let numbers = self.integers(column).unwrap_or_default();
            let numbers = numbers.into_iter().flatten();
            if let (Some(least), Some(most)) = (numbers.clone().min(), numbers.max()) {
                says += &format!("; `{column}` runs from {least} to {most}");
            }
            let texts = self.texts(column).unwrap_or_default();
            let texts: BTreeSet<&str> = texts.into_iter().flatten().collect();
            if (1..=12).contains(&texts.len()) {
                let texts: Vec<String> = texts.into_iter().map(visible).collect();
                says += &format!("; `{column}` is {}", texts.join(", "));
            }
            if self
                .table
                .column(column)
                .is_ok_and(|filled| filled.null_count() == filled.len())
            {
                says += &format!("; `{column}` is empty in this table");
            }
        }
        says
    }
}

fn mask(keep: &[bool]) -> BooleanChunked {
    BooleanChunked::from_slice("keep".into(), keep)
}

/// `3`, `-1`, `0.5`, or `3-5`.
fn range(text: &str) -> Option<(f64, f64)> {
    let text = text.trim();
    if let Ok(number) = text.parse::<f64>() {
        return (!number.is_nan()).then_some((number, number));
    }
    // The first character may be the sign of a negative number.
    let at = text.get(1..)?.find('-')? + 1;
    let (low, high) = (text[..at].parse().ok()?, text[at + 1..].parse().ok()?);
    (low <= high).then_some((low, high))
}

fn text_matches(text: &str, wanted: &str) -> bool {
    let is = |wanted: &str| {
        let short = text.rsplit_once("hook_").map(|(_, short)| short);
        text == wanted || text.trim() == wanted || visible(text) == wanted || short == Some(wanted)
    };
    is(wanted) || is(wanted.trim())
}
