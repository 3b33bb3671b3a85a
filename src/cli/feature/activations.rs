//! `candlewick feature activations`: where latents are on.

use std::path::Path;

use candlewick::methods::{LatentActivationsConfig, Method};
use clap::Args;

use super::{SaeArgs, TextsArgs};
use crate::cli::session::{Ask, Asked, CommonArgs, Mode};

/// Where each latent is on: how strongly, how often, and in which contexts the most.
///
/// `value` is a latent's largest activation in a prompt, in the mean over the prompts in which it is on; `class` holds the tokens at which it
/// is strongest, the table beside it how often it is on, and the provenance the contexts. Latents that are never on have no row.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick feature activations
  candlewick feature activations --latents 3,17 --per-example -o some-latents.parquet")]
pub struct ActivationsArgs {
    #[command(flatten)]
    pub sae: SaeArgs,
    #[command(flatten)]
    pub texts: TextsArgs,
    /// Only these latents.
    #[arg(long, value_name = "LATENTS", value_delimiter = ',')]
    pub latents: Vec<usize>,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl Ask for ActivationsArgs {
    fn default_out(&self) -> &'static str {
        "activations.parquet"
    }

    fn mode(&self) -> Mode {
        Mode::new(
            "`feature activations`",
            &["sae", "hook", "texts", "latents"],
        )
        .idle(&["metric", "verify"])
    }

    fn texts(&self) -> Option<&Path> {
        self.texts.texts.as_deref()
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        Ok(Box::new(LatentActivationsConfig {
            latents: (!self.latents.is_empty()).then(|| self.latents.clone()),
            ..LatentActivationsConfig::new(self.sae.open()?)
        }))
    }
}
