//! The model that is part of the library, so that everything has something to work on without a download.
//!
//! `models/embedded/README.md` says what it is, how it was trained and how well it does its task.

/// What `--model` calls it; a folder of that name is `./embedded`.
pub const EMBEDDED: &str = "embedded";

pub(super) const CONFIG: &str = include_str!("../../models/embedded/config.json");
pub(super) const WEIGHTS: &[u8] = include_bytes!("../../models/embedded/model.safetensors");
pub(super) const TOKENIZER: &[u8] = include_bytes!("../../models/embedded/tokenizer.json");
