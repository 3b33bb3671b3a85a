//! `candlewick scale`: what a task's prompts are answered with as heads are scaled.

use candlewick::methods::{Heads, Method, ScalingConfig};
use clap::Args;

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Scale heads while the model runs, and count what it answers: an answer of the task, a wrong answer of it, or any other token.
///
/// z of each head is multiplied at all positions of the clean prompts, and the most probable next token is counted. Factor 1
/// changes nothing, 0 takes the head away, a negative one turns it round. Where the prompt says one thing and the model
/// remembers another, a head's factor can choose between the two; `other` shows what breaks on the way.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick scale --heads a2.h0,a3.h1 --n-pairs 20
  candlewick scale --heads a3.h2 --factors=-2,0,1,4 --n-pairs 20 --json")]
pub struct ScaleArgs {
    /// The heads, each scaled by itself, such as `a2.h0,a3.h1`, or `0-1` in every layer.
    #[arg(long, value_name = "HEADS", required = true)]
    pub heads: Heads,
    /// What they are multiplied by [default: -5,-2,-1,0,0.5,1,2,3,5,8,10].
    #[arg(
        long,
        value_name = "FACTORS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub factors: Vec<f32>,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl Ask for ScaleArgs {
    fn default_out(&self) -> &'static str {
        "scaling.parquet"
    }

    fn mode(&self) -> Mode {
        Mode::new("`scale`", &["heads", "factors"]).idle(&["metric"])
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let mut config = ScalingConfig::new(self.heads.clone());
        if !self.factors.is_empty() {
            config.factors.clone_from(&self.factors);
        }
        Ok(Box::new(config))
    }
}
