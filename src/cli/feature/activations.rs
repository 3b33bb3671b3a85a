//! `candlewick feature activations`: where latents are on.

use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::methods::{LatentActivationsConfig, Method};
use candlewick::model::Tokenizer;
use candlewick::model::checkpoint::read_at_most;
use clap::Args;

use super::SaeArgs;
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
    /// Texts to look at, one a line [default: the clean prompts of the task].
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// Only these latents.
    #[arg(long, value_name = "LATENTS", value_delimiter = ',')]
    pub latents: Vec<usize>,
    #[command(flatten)]
    pub common: CommonArgs,
}

/// A larger file of texts is refused: all of it is held.
const MOST_BYTES: u64 = 64 << 20;

impl Ask for ActivationsArgs {
    fn default_out(&self) -> &'static str {
        "activations.parquet"
    }

    fn mode(&self) -> Mode {
        Mode::new(
            "`feature activations`",
            &["sae", "hook", "texts", "latents"],
        )
        .idle(match self.texts {
            Some(_) => &["metric", "verify", "n_pairs", "pairs"],
            None => &["metric", "verify"],
        })
        .instead("n_pairs", "all texts are looked at; leave it out")
        .instead("pairs", "the texts are looked at; leave one of the two out")
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let texts = self.texts.as_ref().map(|path| texts(path, on.tokenizer));
        Ok(Box::new(LatentActivationsConfig {
            texts: texts.transpose()?,
            latents: (!self.latents.is_empty()).then(|| self.latents.clone()),
            ..LatentActivationsConfig::new(self.sae.open()?)
        }))
    }
}

/// The token ids of each line that is not empty.
fn texts(path: &Path, tokenizer: &Tokenizer) -> anyhow::Result<Vec<Vec<u32>>> {
    let bytes = read_at_most(path, MOST_BYTES)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        Error::Malformed {
            path: path.to_path_buf(),
            format: "text",
            reason: format!(
                "line {} is not UTF-8; save it as UTF-8",
                before.iter().filter(|&&byte| byte == b'\n').count() + 1
            ),
        }
    })?;
    let text = text.trim_start_matches('\u{feff}');
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let tokens = lines.map(|line| Ok(tokenizer.encode(line, tokenizer.adds_bos())?.ids));
    tokens.collect()
}
