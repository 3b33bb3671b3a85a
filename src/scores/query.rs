//! Lazy queries of tables, for notebooks.

use polars::prelude::{DataFrame, IntoLazy, LazyFrame};

use super::Scores;

/// A table that a lazy query can begin from.
pub trait Query {
    /// Begins a query. Where `lazy()` of a frame that an earlier cell of a notebook made finds none of its columns, this does:
    /// each cell is code of its own, and a frame's index of names holds only in the code that made it.
    fn query(&self) -> LazyFrame;
}

impl Query for DataFrame {
    fn query(&self) -> LazyFrame {
        DataFrame::new(self.height(), self.columns().to_vec())
            .expect("the columns of a frame fit together")
            .lazy()
    }
}

impl Query for Scores {
    fn query(&self) -> LazyFrame {
        self.table.query()
    }
}
