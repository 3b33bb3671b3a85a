//! Candlewick: exact, fast and loud mechanistic interpretability of transformers, on candle.
//!
//! The walk, in five steps: a model and a task are opened (a [`task`] is prompt pairs and a metric, under the [`model`]'s tokenizer); a
//! method is a plain value that says what it measures ([`methods`]); what it will cost is known before it runs; it is measured, by the
//! one engine that runs variants of prompts with hooks and edits ([`run`]); and the answer is one tidy table that says how it was
//! made ([`scores`]).
//!
//! ```
//! use candlewick::prelude::*;
//!
//! // 1. A model and a task: here those that are part of the library; else a hub id, a folder, a `.gguf` file.
//! let lab = Lab::open("embedded", "embedded")?.first(8);
//! // 2. A method: which heads bring the clean answer back into the corrupted run?
//! let method = PatchConfig::sites("z")?;
//! // 3. What it takes.
//! let plan = lab.plan(&method)?;
//! assert_eq!((plan.pairs, plan.cells), (8, 16));
//! // 4. The measurement.
//! let scores = lab.measure(&method)?;
//! // 5. The table: rows by strength, polars underneath, a file that `candlewick show` and pandas read.
//! let best = scores.top(1);
//! assert_eq!((best.integers("layer"), best.integers("head")), (Some(vec![Some(3)]), Some(vec![Some(1)])));
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("heads.parquet");
//! scores.write_parquet(&path)?;
//! assert_eq!(Scores::read_parquet(&path)?.table, scores.table);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `docs/` holds a page for each question; `docs/internals.md` walks one number from its prompt to the file.

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
pub mod sae;
pub mod scores;
pub mod spec;
pub mod task;
pub mod text;

pub use error::{Error, Result};
/// Which build this is: the version, and the commit where it is known. Shards of two builds make no table.
pub const BUILD: &str = env!("CANDLEWICK_BUILD");
/// The version whose frames tables are: a notebook needs no other.
pub use polars;
