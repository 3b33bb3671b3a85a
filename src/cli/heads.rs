//! `candlewick heads`: what each attention head looks like, and what it is to the model's answers.

use candlewick::hooks::Node;
use candlewick::methods::{HeadConfig, Method, ReplaceBy, ReplacementConfig, single_tokens};
use clap::{Args, ValueEnum};

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Label every attention head with what it looks like: previous-token, duplicate-token, induction, copying.
///
/// Measured on random tokens that come twice, and on the task's prompts (where the last position looks). `--circuit` reads
/// what a head writes for (OV) and what it looks for (QK), token by token, from its weights.
///
/// With `--score` heads are scored by what they are to the answers. `replacement`: the probability of the answer where a head says what the
/// other heads of its layer say in the mean; `pos` is what right answers lose by it, `neg` what wrong ones gain. `candlewick scale --by` scales
/// heads by such a table, on other prompts.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick heads
  candlewick heads --repeat-length 12 --samples 4 --csv
  candlewick heads --circuit a3.h1 --from Mary --from store
  candlewick heads --score replacement --n-pairs 8 --out replacement.parquet
  candlewick scale --by replacement.parquet --lambda 0.5,1 --seed 8 --n-pairs 8 --out modulated.parquet")]
pub struct HeadsArgs {
    /// Score heads by what they are to the answers.
    #[arg(long, value_name = "HOW")]
    pub score: Option<ScoreChoice>,
    /// With `--score replacement`: what stands in the place of a head's output [default: others].
    #[arg(long, value_name = "WHAT")]
    pub replace_by: Option<ReplaceChoice>,
    /// Different random tokens in a sequence, each of which comes twice [default: 24, or what the context takes].
    #[arg(long, value_name = "N")]
    pub repeat_length: Option<usize>,
    /// How many sequences.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub samples: usize,
    /// Heads whose OV and QK circuits are read out, such as `a3.h1`.
    #[arg(long, value_name = "HEAD", value_delimiter = ',')]
    pub circuit: Vec<Node>,
    /// Tokens that the circuits start from [default: those at the roles of the first prompt].
    #[arg(long, value_name = "TOKEN")]
    pub from: Vec<String>,
    /// Tokens in each list.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub tokens: usize,
    #[command(flatten)]
    pub common: CommonArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ScoreChoice {
    /// Positive and negative heads, by what stands in their place.
    Replacement,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReplaceChoice {
    /// The mean of the layer's other heads.
    Others,
    Zero,
}

impl Ask for HeadsArgs {
    fn default_out(&self) -> &'static str {
        match self.score {
            None => "heads.parquet",
            Some(ScoreChoice::Replacement) => "replacement.parquet",
        }
    }

    /// What heads look like is no matter of answers, so `--metric` does nothing; and each score has a metric of its own.
    fn mode(&self) -> Mode {
        let acts = ["repeat_length", "samples", "circuit"];
        let mode = match self.score {
            Some(ScoreChoice::Replacement) => {
                Mode::new("`--score replacement`", &["score", "replace_by"]).idle(&["verify"])
            }
            None if self.circuit.is_empty() => Mode::new("no `--circuit`", &acts),
            None => Mode::new("`--circuit`", &acts).and(&["from", "tokens"]),
        };
        mode.and(&["score"]).idle(&["metric"])
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        let seed = Some(on.task.seed);
        match self.score {
            Some(ScoreChoice::Replacement) => Ok(Box::new(ReplacementConfig {
                by: match self.replace_by {
                    Some(ReplaceChoice::Zero) => ReplaceBy::Zero,
                    Some(ReplaceChoice::Others) | None => ReplaceBy::Others,
                },
                seed,
            })),
            None => Ok(Box::new(HeadConfig {
                repeat_length: self.repeat_length,
                samples: self.samples,
                circuits: self.circuit.clone(),
                from: single_tokens(&self.from, on.tokenizer)?,
                tokens: self.tokens,
                seed,
            })),
        }
    }
}
