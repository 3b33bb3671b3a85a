//! Rows in another order, and some of the columns.

use std::fmt;
use std::str::FromStr;

use polars::prelude::SortMultipleOptions;

use super::Scores;
use crate::error::{Error, Result};
use crate::text::nearest;

/// Columns to sort by, the first one first: `layer,-score` is by layer from the smallest, then by score from the largest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortKeys(Vec<(String, bool)>);

impl FromStr for SortKeys {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let key = |part: &str| {
            let part = part.trim();
            let name = part.strip_prefix('-').unwrap_or(part);
            (!name.is_empty()).then(|| (name.to_string(), part.starts_with('-')))
        };
        let keys: Option<Vec<_>> = text.split(',').map(key).collect();
        keys.map(SortKeys).ok_or_else(|| Error::Parse {
            what: "columns to sort by",
            text: text.into(),
            reason: "name columns with commas between; `-score` is from the largest".into(),
        })
    }
}

impl fmt::Display for SortKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, is_from_largest)) in self.0.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let minus = if *is_from_largest { "-" } else { "" };
            write!(f, "{comma}{minus}{name}")?;
        }
        Ok(())
    }
}

impl Scores {
    /// The rows in the order of some columns, of equals in the order that they have; rows without a value last.
    /// # Errors
    /// [`Error::Invalid`] for a column that is not there.
    pub fn sorted(&self, keys: &SortKeys) -> Result<Scores> {
        for (name, _) in &keys.0 {
            self.check_column(name)?;
        }
        let names: Vec<&str> = keys.0.iter().map(|(name, _)| name.as_str()).collect();
        let options = SortMultipleOptions::default()
            .with_order_descending_multi(keys.0.iter().map(|(_, from_largest)| *from_largest))
            .with_nulls_last(true)
            .with_maintain_order(true);
        Ok(Scores {
            table: self.table.sort(names, options)?,
            provenance: self.provenance.clone(),
            sides: self.sides.clone(),
        })
    }

    /// Some columns only, in the order given.
    /// # Errors
    /// [`Error::Invalid`] for a column that is not there, or is named twice.
    pub fn select(&self, columns: &[String]) -> Result<Scores> {
        for (i, name) in columns.iter().enumerate() {
            self.check_column(name)?;
            if columns[..i].contains(name) {
                return Err(Error::invalid(format!("column `{name}` is named twice")));
            }
        }
        Ok(Scores {
            table: self.table.select(columns.iter().map(String::as_str))?,
            provenance: self.provenance.clone(),
            sides: Vec::new(),
        })
    }

    fn check_column(&self, name: &str) -> Result<()> {
        if self.table.column(name).is_ok() {
            return Ok(());
        }
        let names = self.table.get_column_names();
        Err(Error::invalid(format!(
            "there is no column `{}`; nearest: {}",
            crate::text::visible(name),
            nearest(name, names.iter().map(|name| name.as_str()))
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scores::{Cell, Detail, ExampleScores, Provenance, ScoresMeta};

    #[test]
    fn rows_are_sorted_by_several_columns_and_nulls_are_last() {
        let cells: Vec<Cell> = [Some(1), Some(0), None, Some(1)]
            .map(|layer| Cell {
                component: "hook_embed".into(),
                layer,
                ..Cell::default()
            })
            .into();
        let example = ExampleScores {
            cells: (0..4).collect(),
            values: vec![1.0, 4.0, 9.0, 3.0],
            ..ExampleScores::default()
        };
        let meta = ScoresMeta::default();
        let about = Provenance::default();
        let scores = Scores::assemble(&cells, &[example], &meta, Detail::Mean, about).unwrap();
        let values = |keys: &str| {
            let sorted = scores.sorted(&keys.parse().unwrap()).unwrap();
            sorted
                .floats("value")
                .unwrap()
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
        };
        assert_eq!(values("layer,-value"), [4.0, 3.0, 1.0, 9.0]);
        assert_eq!(values("-layer, value"), [1.0, 3.0, 4.0, 9.0]);
        assert_eq!(values("component"), [1.0, 4.0, 9.0, 3.0]);
        let error = scores.sorted(&"layr".parse().unwrap()).unwrap_err();
        assert!(error.to_string().contains("nearest: `layer`"), "{error}");
        assert!("layer,,value".parse::<SortKeys>().is_err());
        let two = scores.select(&["value".into(), "layer".into()]).unwrap();
        assert_eq!(two.table.get_column_names(), ["value", "layer"]);
        assert!(scores.select(&["layer".into(), "layer".into()]).is_err());
    }
}
