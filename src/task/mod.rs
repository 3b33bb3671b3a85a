//! Tasks: prompt pairs with roles and answers, under one tokenizer.
//!
//! A task is written down without a tokenizer, as a file of `circuits/` ([`mod@file`]) or as the user's own pairs ([`pairs`]), and
//! becomes token ids here. Whatever does not survive that, a pair whose prompts differ in length, an answer of two tokens,
//! is dropped, and the list of what was dropped and why belongs to the task. The ways in:
//!
//! - [`TaskFile::open`] (a path or the name of a shipped task), then [`expand`]: templates, filled by a seed;
//! - [`from_pairs_file`]: CSV, JSONL or parquet;
//! - [`from_text_file`]: lines of text, which have no answers;
//! - [`QuestionSet::task`]: questions about a context of sentences;
//! - [`Task::new`]: token ids of one's own.
//!
//! They all end in one constructor, so that whoever holds a [`Task`] need not look at its pairs again. [`render`] shows the result:
//! what `candlewick tokens` prints.

mod causal_gym;
mod checked;
mod draft;
mod expand;
pub mod file;
mod fill;
mod options;
mod pair;
pub mod pairs;
mod places;
pub mod questions;
mod render;
mod repeated;
mod template;
mod texts;
mod tokenise;

pub use crate::error::Dropped;
pub use causal_gym::causal_gym;
pub use checked::{MAX_PAIRS, Task};
#[cfg(feature = "cli")]
pub use draft::schema;
pub use draft::{PromptExample, draft};
pub use expand::expand;
pub use file::{TaskFile, shipped};
pub use options::{BosChoice, ExpandOptions};
pub use pair::{END, Pair};
pub use pairs::from_pairs_file;
pub use questions::{Question, QuestionSet};
pub use render::{render, render_dropped, render_json};
pub use texts::from_text_file;
