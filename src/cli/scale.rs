//! `candlewick scale`: what a task's prompts are answered with as heads are scaled.

use std::path::{Path, PathBuf};

use candlewick::methods::{Heads, Method, ModulationConfig, ScalingConfig};
use candlewick::scores::Scores;
use clap::{ArgGroup, Args};

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Scale heads while the model runs, and count what it answers: an answer of the task, a wrong answer of it, or any other token.
///
/// z of each head is multiplied at all positions of the clean prompts, and the most probable next token is counted. Factor 1
/// changes nothing, 0 takes the head away, a negative one turns it round. Where the prompt says one thing and the model
/// remembers another, a head's factor can choose between the two; `other` shows what breaks on the way.
///
/// With `--by FILE` all heads of a table are scaled at once, each by what the table says that it is worth, times 1 + lambda * worth between 0
/// and 2; of a table of removals (`ablate`, `heads --score replacement`) the worth is what is lost without the head. The prompts must be
/// others than the table's (`--seed`). Beside it: the model as it is, and the same factors dealt out to the heads at random.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick scale --heads a2.h0,a3.h1 --n-pairs 20
  candlewick scale --heads a3.h2 --factors=-2,0,1,4 --n-pairs 20 --json
  candlewick ablate --sites z --source zero --metric prob --n-pairs 8 --out worth.parquet
  candlewick scale --by worth.parquet --seed 8 --n-pairs 8 --out scaled.parquet
  candlewick scale --by worth.parquet --lambda=-1,1 --shuffles 3 --seed 8 --n-pairs 8")]
#[command(group = ArgGroup::new("scaled").args(["heads", "by"]).required(true).multiple(true))]
pub struct ScaleArgs {
    /// The heads, each scaled by itself, such as `a2.h0,a3.h1`, or `0-1` in every layer; of a table only these [default with `--by`: all].
    #[arg(long, value_name = "HEADS")]
    pub heads: Option<Heads>,
    /// What they are multiplied by [default: -5,-2,-1,0,0.5,1,2,3,5,8,10].
    #[arg(
        long,
        value_name = "FACTORS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub factors: Vec<f32>,
    /// All heads of this table at once, by their scores.
    #[arg(long, value_name = "FILE")]
    pub by: Option<PathBuf>,
    /// With `--by`: how strongly; 0 changes nothing, below 0 turns the scores round [default: 1].
    #[arg(
        long,
        value_name = "NUMBERS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub lambda: Vec<f32>,
    /// With `--by`: times that the factors are dealt out at random [default: 10].
    #[arg(long, value_name = "N")]
    pub shuffles: Option<usize>,
    #[command(flatten)]
    pub common: CommonArgs,
}

impl Ask for ScaleArgs {
    fn default_out(&self) -> &'static str {
        "scaling.parquet"
    }

    fn mode(&self) -> Mode {
        match &self.by {
            None => Mode::new("`scale --heads`", &["heads", "factors", "by"])
                .instead(
                    "lambda",
                    "it is how strongly a table's scores act (`--by FILE`)",
                )
                .instead("shuffles", "a table's scores are dealt out (`--by FILE`)"),
            Some(_) => Mode::new("`--by`", &["heads", "by", "lambda", "shuffles"])
                .instead("factors", "take `--lambda`"),
        }
        .idle(&["metric", "verify"])
    }

    fn reads(&self) -> Vec<&Path> {
        self.by.iter().map(PathBuf::as_path).collect()
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let heads = self.heads.clone().unwrap_or_default();
        let Some(path) = &self.by else {
            let mut config = ScalingConfig::new(heads);
            if !self.factors.is_empty() {
                config.factors.clone_from(&self.factors);
            }
            return Ok(Box::new(config));
        };
        heads.check(on.spec)?;
        let config =
            ModulationConfig::by_scores(&Scores::read_parquet(path)?, on.spec)?.only(&heads);
        Ok(Box::new(ModulationConfig {
            lambdas: match self.lambda.is_empty() {
                true => config.lambdas.clone(),
                false => self.lambda.clone(),
            },
            shuffles: self.shuffles.unwrap_or(config.shuffles),
            seed: Some(on.task.seed),
            ..config
        }))
    }
}
