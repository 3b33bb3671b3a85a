//! Candlewick: exact, fast and loud mechanistic interpretability of transformers, on candle.
//!
//! The walk: a [`task`] (prompt pairs and a metric) becomes tokens, a [`model`] runs them with hooks and edits ([`run`]),
//! a method ([`methods`]) asks which sites matter, and the answer is one tidy table ([`scores`]).

pub mod check;
pub mod circuit;
pub mod error;
pub mod hooks;
pub mod lab;
pub mod methods;
pub mod metric;
pub mod model;
pub mod nn;
pub mod panics;
mod parquet;
pub mod plot;
pub mod prelude;
#[cfg(test)]
mod rooms;
pub mod run;
pub mod scores;
pub mod spec;
pub mod task;
pub mod text;

pub use error::{Error, Result};
/// The version whose frames tables are: a notebook needs no other.
pub use polars;
