//! `candlewick feature attribute`: the effect of each latent, estimated or exact.

use candlewick::methods::attribution::StepRule;
use candlewick::methods::{Along, LatentConfig, LatentEstimate, Method, PatchSource};
use candlewick::scores::Direction;
use clap::{Args, ValueEnum};

use super::SaeArgs;
use crate::cli::patch::{DirectionChoice, direction_of};
use crate::cli::session::{Ask, Asked, CommonArgs, Mode};

/// Patch latents, or estimate from gradients what patching each would do.
///
/// A latent's value in the pair's other run, or zero, is put where the dictionary is attached, and everything else there stays as it is, the
/// error with it. `atp` takes one backward pass; `ig` averages over the way between both ends, and its sum over all latents and the
/// error is what patching the whole hook does; `exact` patches each latent that differs. `--verify K` holds estimates against exact effects.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick feature attribute
  candlewick feature attribute --method ig --steps 8 --verify 10 --n-pairs 8 -o latent-ig.parquet
  candlewick feature attribute --method exact --by role --n-pairs 4 -o latent-exact.parquet
  candlewick feature attribute --source zero --by pos --n-pairs 4 -o latent-zero.parquet")]
pub struct AttributeArgs {
    #[command(flatten)]
    pub sae: SaeArgs,
    /// How effects are found.
    #[arg(long, default_value = "atp")]
    pub method: EstimateChoice,
    /// What is put in place.
    #[arg(long, default_value = "pair")]
    pub source: EndChoice,
    /// Which run is changed [default: noise, the corrupted value in the clean run; ablate with zero].
    #[arg(long, short)]
    pub direction: Option<DirectionChoice>,
    /// A row for each latent, over all positions; at each position; or at the positions of each role of the task.
    #[arg(long, default_value = "latent")]
    pub by: ByChoice,
    /// Only these latents.
    #[arg(long, value_name = "LATENTS", value_delimiter = ',')]
    pub latents: Vec<usize>,
    /// Points of the integral [default: 8].
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Where they stand on the way [default: midpoint].
    #[arg(long)]
    pub step_rule: Option<StepRule>,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EstimateChoice {
    /// The gradient at the run that is changed.
    Atp,
    /// Integrated gradients at the hook.
    Ig,
    /// Each latent patched for real.
    Exact,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EndChoice {
    /// The pair's other run.
    Pair,
    /// Nothing: the latent is off.
    Zero,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ByChoice {
    Latent,
    Pos,
    Role,
}

impl Ask for AttributeArgs {
    fn default_out(&self) -> &'static str {
        "latents.parquet"
    }

    fn mode(&self) -> Mode {
        let mut acts = vec![
            "sae",
            "hook",
            "method",
            "source",
            "direction",
            "by",
            "latents",
        ];
        if self.method == EstimateChoice::Ig {
            acts.extend(["steps", "step_rule"]);
        }
        let name = self.method.to_possible_value();
        let name = name.expect("no choice is hidden");
        let mode = Mode::new(format!("`--method {}`", name.get_name()), &acts);
        match self.method {
            EstimateChoice::Exact => mode.idle(&["verify"]).instead(
                "verify",
                "every row is exact already; leave it out, or take `--method atp`",
            ),
            _ => mode,
        }
    }

    fn method(&self, _: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let source = match self.source {
            EndChoice::Pair => PatchSource::Pair,
            EndChoice::Zero => PatchSource::Zero,
        };
        Ok(Box::new(LatentConfig {
            estimate: match self.method {
                EstimateChoice::Atp => LatentEstimate::Atp,
                EstimateChoice::Exact => LatentEstimate::Exact,
                EstimateChoice::Ig => LatentEstimate::IntegratedGradients {
                    steps: self.steps.unwrap_or(8),
                    rule: self.step_rule.unwrap_or_default(),
                },
            },
            source,
            direction: direction_of(self.direction, source, Direction::Noise),
            along: match self.by {
                ByChoice::Latent => Along::All,
                ByChoice::Pos => Along::Pos,
                ByChoice::Role => Along::Role,
            },
            latents: (!self.latents.is_empty()).then(|| self.latents.clone()),
            ..LatentConfig::atp(self.sae.open()?)
        }))
    }
}
