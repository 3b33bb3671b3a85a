//! Which rows of a table are wanted: `component=attn.hook_z,layer=3-5,head=1`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use polars::prelude::{BooleanChunked, NewChunkedArray};

use super::Scores;
use crate::error::{Error, Result};
use crate::text::visible;

/// Conditions that all hold for a row. Printed as they were written.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    text: String,
    all: Vec<Condition>,
}

#[derive(Debug, Clone, PartialEq)]
struct Condition {
    column: String,
    compare: Compare,
}

#[derive(Debug, Clone, PartialEq)]
enum Compare {
    /// One of several values or ranges, as written.
    Is(String),
    More(f64),
    Less(f64),
}

impl FromStr for Conditions {
    type Err = Error;

    /// A comma stands between two conditions where a column's name and a sign follow it; else it is part of a value.
    fn from_str(text: &str) -> Result<Self> {
        let mut all: Vec<Condition> = Vec::new();
        for part in text.split(',') {
            match (condition(part), all.last_mut()) {
                (Some(next), _) => all.push(next?),
                (
                    None,
                    Some(Condition {
                        compare: Compare::Is(values),
                        ..
                    }),
                ) => {
                    values.push(',');
                    values.push_str(part);
                }
                (None, _) => return Err(unreadable(text)),
            }
        }
        Ok(Conditions {
            text: text.into(),
            all,
        })
    }
}

fn unreadable(text: &str) -> Error {
    Error::Parse {
        what: "conditions on rows",
        text: text.into(),
        reason:
            "write `column=value`, `column=3-5`, `column>0.5` or `column<0`, with commas between"
                .into(),
    }
}

/// A condition, if a column and a sign stand at the start.
fn condition(text: &str) -> Option<Result<Condition>> {
    let at = text.find(['=', '<', '>'])?;
    let (column, value) = (text[..at].trim(), &text[at + 1..]);
    if column.is_empty()
        || !column
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '_')
    {
        return None;
    }
    let number = || {
        value
            .trim()
            .parse::<f64>()
            .ok()
            .filter(|number| !number.is_nan())
    };
    let compare = match text.as_bytes()[at] {
        b'=' => Some(Compare::Is(value.into())),
        b'>' => number().map(Compare::More),
        _ => number().map(Compare::Less),
    };
    let column = column.to_string();
    Some(
        compare
            .map(|compare| Condition { column, compare })
            .ok_or_else(|| unreadable(text)),
    )
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Scores {
    /// The rows for which all conditions hold; a row that has no value in a column does not match it. A text matches as it is,
    /// as it is shown (`·Mary`), or without the spaces around it, a hook also by its short name (`z`).
    /// # Errors
    /// [`Error::Invalid`] if a column is not in the table, a value does not fit it, or no row is left.
    pub fn matching(&self, conditions: &Conditions) -> Result<Scores> {
        let whole = self.with_sides()?;
        let mut keep = vec![true; whole.table.height()];
        for condition in &conditions.all {
            let matches = whole.matches(condition)?;
            keep.iter_mut()
                .zip(matches)
                .for_each(|(keep, matches)| *keep &= matches);
        }
        if !keep.contains(&true) {
            return Err(Error::invalid(format!(
                "no row of {} matches `{}`{}",
                keep.len(),
                visible(&conditions.text),
                whole.what_there_is(&conditions.all)
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

    fn matches(&self, condition: &Condition) -> Result<Vec<bool>> {
        let Condition { column, compare } = condition;
        let misfit = |reason: &str| Err(Error::invalid(format!("column `{column}` {reason}")));
        if let Some(texts) = self.texts(column) {
            let Compare::Is(value) = compare else {
                return misfit("holds text, which `=` compares");
            };
            let is_it = |text: Option<&str>| text.is_some_and(|text| text_matches(text, value));
            return Ok(texts.into_iter().map(is_it).collect());
        }
        let numbers: Vec<Option<f64>> = match (self.integers(column), self.floats(column)) {
            (Some(numbers), _) => numbers.into_iter().map(|n| n.map(|n| n as f64)).collect(),
            (None, Some(numbers)) => numbers,
            (None, None) if self.table.column(column).is_ok() => vec![None; self.table.height()],
            (None, None) => {
                let names = self.table.get_column_names();
                let names: Vec<String> = names.iter().map(|name| visible(name)).collect();
                return misfit(&format!(
                    "is not in this table; it has {}",
                    names.join(", ")
                ));
            }
        };
        let ranges = match compare {
            Compare::More(least) => vec![(least.next_up(), f64::INFINITY)],
            Compare::Less(most) => vec![(f64::NEG_INFINITY, most.next_down())],
            Compare::Is(values) => {
                let ranges: Option<Vec<_>> = values.split(',').map(range).collect();
                match ranges {
                    Some(ranges) => ranges,
                    None => {
                        return misfit("holds numbers: write one, such as `3`, or a range `3-5`");
                    }
                }
            }
        };
        let is_in = |number: f64| {
            ranges
                .iter()
                .any(|&(low, high)| (low..=high).contains(&number))
        };
        Ok(numbers
            .into_iter()
            .map(|number| number.is_some_and(is_in))
            .collect())
    }

    /// The values of the columns that were asked about, as far as they can be said shortly.
    fn what_there_is(&self, conditions: &[Condition]) -> String {
        let mut says = String::new();
        for Condition { column, .. } in conditions {
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
    is(wanted) || wanted.split(',').any(|one| is(one.trim()))
}

#[cfg(test)]
mod tests {
    use super::super::{Cell, Detail, ExampleScores, Provenance, ScoresMeta};
    use super::*;

    /// Three layers by two positions with scores 0 to 5, and two heads with 6 and 7.
    fn scores() -> Scores {
        let mut cells: Vec<Cell> = (0..6)
            .map(|i| Cell {
                component: "hook_resid_pre".into(),
                layer: Some(i / 2),
                pos: Some(i as i32 % 2),
                ..Cell::default()
            })
            .collect();
        cells.extend((0..2).map(|head| Cell {
            component: "attn.hook_z".into(),
            layer: Some(1),
            head: Some(head),
            ..Cell::default()
        }));
        let example = ExampleScores {
            tokens: vec!["When".into(), " Mary".into()],
            cells: (0..8).collect(),
            values: (0..8).map(f64::from).collect(),
            ..ExampleScores::default()
        };
        let meta = ScoresMeta::default();
        Scores::assemble(
            &cells,
            &[example],
            &meta,
            Detail::Mean,
            Provenance::default(),
        )
        .unwrap()
    }

    fn check(conditions: &str, expected: &[f64]) {
        let chosen = scores().matching(&conditions.parse().unwrap()).unwrap();
        let values: Vec<f64> = chosen
            .floats("score")
            .unwrap()
            .into_iter()
            .flatten()
            .collect();
        assert_eq!(values, expected, "{conditions}");
    }

    #[test]
    fn rows_are_chosen_by_text_number_range_and_size() {
        check("component=attn.hook_z", &[6.0, 7.0]);
        check("component=z,head=1", &[7.0]);
        check("layer=1-2,pos=0", &[2.0, 4.0]);
        check("layer=0,2,pos=1", &[1.0, 5.0]);
        check("token=Mary", &[1.0, 3.0, 5.0]);
        check("token=·Mary,layer=0", &[1.0]);
        check("score>4.5", &[5.0, 6.0, 7.0]);
        check("score<1", &[0.0]);
        check("component=z,resid_pre,score>5", &[6.0, 7.0]);
    }

    #[test]
    fn side_quantities_become_the_table_when_only_they_are_asked_for() {
        let cells = [None, Some("rank"), Some("prob")].map(|measure: Option<&str>| Cell {
            component: "hook_resid_post".into(),
            layer: Some(0),
            measure: measure.map(String::from),
            ..Cell::default()
        });
        let example = ExampleScores {
            cells: (0..3).collect(),
            values: vec![1.0, 2.0, 0.5],
            ..ExampleScores::default()
        };
        let meta = ScoresMeta {
            metric: "logit_diff".into(),
            unit: "logits".into(),
            ..ScoresMeta::default()
        };
        let about = Provenance::default();
        let scores = Scores::assemble(&cells, &[example], &meta, Detail::Mean, about).unwrap();
        let chosen = scores.matching(&"metric=rank".parse().unwrap()).unwrap();
        assert_eq!(chosen.floats("score").unwrap(), [Some(2.0)]);
        assert_eq!(
            (chosen.provenance.metric.as_str(), chosen.sides.len()),
            ("rank", 0)
        );
        let all = scores.matching(&"layer=0".parse().unwrap()).unwrap();
        assert_eq!((all.table.height(), all.sides[0].1.table.height()), (1, 2));
        let error = scores.matching(&"head=1".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("no row of 3 matches"), "{error}");
    }

    #[test]
    fn ranges_may_be_negative() {
        assert_eq!(range("-3--1"), Some((-3.0, -1.0)));
        assert_eq!(range("-1"), Some((-1.0, -1.0)));
        for text in ["", "a", "5-3", "1-", "nan", "é-1"] {
            assert_eq!(range(text), None, "{text}");
        }
    }

    #[test]
    fn what_cannot_be_read_or_found_is_refused_with_what_there_is() {
        for text in ["", "layer", "=3", "layer,head=1", "score>x"] {
            assert!(text.parse::<Conditions>().is_err(), "{text}");
        }
        for (text, says) in [
            ("layer=9", "`layer` runs from 0 to 2"),
            ("component=q", "`component` is attn.hook_z, hook_resid_pre"),
            ("colour=red", "it has method, "),
            ("layer=first", "holds numbers"),
            ("component>1", "holds text"),
        ] {
            let conditions: Conditions = text.parse().unwrap();
            let error = scores().matching(&conditions).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
