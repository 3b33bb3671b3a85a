//! `candlewick attention`: where heads look.

use candlewick::methods::{AttentionConfig, Heads, Layers, Method};
use clap::Args;

use super::Context;
use super::session::{self, Ask, Asked, CommonArgs, Mode};

/// Show attention patterns: how much each position looks at each other, head by head, on the task's clean prompts.
///
/// Rows are `layer`, `head`, query `pos` and `key`: the mean over pairs, or with `--per-example` one for each pair. `--value-weighted`
/// adds the pattern times the size of what each key brings, `|v W_O|`: a head that rests looks at a token that brings little.
/// `candlewick report` draws every head, and shows for each token where it looks and who looks at it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick attention
  candlewick attention --heads a3.h1,a2.h3 --value-weighted
  candlewick attention --layers 2-3 --per-example --n-pairs 2 --out patterns.parquet")]
pub struct AttentionArgs {
    /// Only these layers, such as `0,3-5`.
    #[arg(long, value_name = "LAYERS")]
    pub layers: Option<Layers>,
    /// Only these heads, such as `0,2-3` in every layer or `a3.h1` in one.
    #[arg(long, value_name = "HEADS")]
    pub heads: Option<Heads>,
    /// Also the pattern times the size of what each key brings.
    #[arg(long)]
    pub value_weighted: bool,
    #[command(flatten)]
    pub common: CommonArgs,
}

pub fn run(args: &AttentionArgs, ctx: &Context) -> anyhow::Result<()> {
    session::run(args, &args.common, ctx)
}

impl Ask for AttentionArgs {
    fn default_out(&self) -> &'static str {
        "attention.parquet"
    }

    /// Attention is no matter of answers, so `--metric` does nothing.
    fn mode(&self) -> Mode {
        Mode::new("attention", &["layers", "heads", "value_weighted"]).idle(&["metric"])
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        Ok(Box::new(AttentionConfig {
            layers: self.layers.clone().unwrap_or_default(),
            heads: self.heads.clone().unwrap_or_default(),
            value_weighted: self.value_weighted,
            seed: None,
        }))
    }
}
