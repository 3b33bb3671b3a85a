//! Which number of two results is compared.

use std::fmt;

/// Which number is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum ComparedBy {
    /// In the metric's own unit.
    Score,
    /// As shares of the gap between the two runs, whatever the metric and the direction.
    Normalised,
}

impl fmt::Display for ComparedBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ComparedBy::Score => "score",
            ComparedBy::Normalised => "normalised",
        })
    }
}
