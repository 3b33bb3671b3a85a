//! `candlewick feature eval`: how good a dictionary is.

use std::path::Path;

use candlewick::methods::{DictionaryEvalConfig, Method};
use clap::Args;

use super::{SaeArgs, TextsArgs};
use crate::cli::session::{Ask, Asked, CommonArgs, Mode};

/// How good a dictionary is: the loss that its reconstruction recovers, and how many latents that takes.
///
/// `score` is the loss of the next token with the reconstruction in place of the hook (`hook_sae_recons`), and with zeros in its place
/// (`zero`). Of decoders alone. Beside the table stand the loss recovered, latents on at a position (`l0`), those that are on nowhere
/// (`dead`), the divergence from the model's own distributions and the cosine of hook and reconstruction.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick feature eval
  candlewick feature eval --n-pairs 8 --per-example -o dictionary-8.parquet")]
pub struct EvalArgs {
    #[command(flatten)]
    pub sae: SaeArgs,
    #[command(flatten)]
    pub texts: TextsArgs,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl Ask for EvalArgs {
    fn default_out(&self) -> &'static str {
        "dictionary.parquet"
    }

    fn mode(&self) -> Mode {
        Mode::new("`feature eval`", &["sae", "hook", "texts"]).idle(&["metric", "verify"])
    }

    fn texts(&self) -> Option<&Path> {
        self.texts.texts.as_deref()
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        Ok(Box::new(DictionaryEvalConfig::new(self.sae.open()?)))
    }
}
