//! `candlewick feature`: latents of sparse autoencoders and transcoders, as what causes an answer.

mod activations;
mod attribute;
mod eval;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candlewick::hooks::Hook;
use candlewick::sae::Sae;
use clap::{Args, Subcommand};

use super::session::{Ask, CommonArgs};

/// Latents of a sparse autoencoder or a transcoder: which of them cause the answer.
///
/// A dictionary is a folder of SAELens (`cfg.json` beside `sae_weights.safetensors`; standard, top-k, batch-top-k, gated, JumpReLU, their
/// transcoders), Gemma Scope's `params.npz`, or `embedded`, one of the embedded model's that is part of this program. What it does not
/// explain, its error, stays in every run and has a row of its own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick feature attribute
  candlewick feature attribute --verify 10 --n-pairs 8
  candlewick feature activations
  candlewick feature eval --n-pairs 8")]
pub struct FeatureArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Attribute(attribute::AttributeArgs),
    Activations(activations::ActivationsArgs),
    Eval(eval::EvalArgs),
}

impl FeatureArgs {
    /// What is asked for.
    pub fn asked(&self) -> (&dyn Ask, &CommonArgs) {
        match &self.command {
            Command::Attribute(args) => (args, &args.common),
            Command::Activations(args) => (args, &args.common),
            Command::Eval(args) => (args, &args.common),
        }
    }
}

/// Which dictionary, and where it is attached.
#[derive(Debug, Clone, Args)]
pub struct SaeArgs {
    /// A folder of SAELens, a `params.npz`, or `embedded`.
    #[arg(long, value_name = "PATH", default_value = "embedded")]
    pub sae: String,
    /// The hook that it reads (and writes, if it is no transcoder), such as `blocks.20.hook_resid_post`, where its files do not say so or
    /// say something else.
    #[arg(long, value_name = "HOOK")]
    pub hook: Option<Hook>,
}

/// What latents are looked at on.
#[derive(Debug, Clone, Args)]
pub struct TextsArgs {
    /// Texts to look at, one a line [default: the clean prompts of the task].
    #[arg(long, value_name = "FILE", conflicts_with_all = ["task", "pairs", "template", "corruption"])]
    pub texts: Option<PathBuf>,
}

impl SaeArgs {
    pub fn open(&self) -> anyhow::Result<Arc<Sae>> {
        Ok(Arc::new(match self.sae.as_str() {
            candlewick::model::EMBEDDED if self.hook.is_some() => {
                return Err(candlewick::Error::invalid(
                    "the embedded dictionary knows its hook; leave `--hook` out, or name another with `--sae`",
                )
                .into());
            }
            candlewick::model::EMBEDDED => Sae::embedded()?,
            path => Sae::open(Path::new(path), self.hook)?,
        }))
    }
}
