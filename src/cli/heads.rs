//! `candlewick heads`: what each attention head looks like.

use candlewick::hooks::Node;
use candlewick::methods::{HeadConfig, Method, single_tokens};
use clap::Args;

use super::session::{Ask, Asked, CommonArgs, Mode};

/// Label every attention head with what it looks like: previous-token, duplicate-token, induction, copying.
///
/// Measured on random tokens that come twice, and on the task's prompts (where the last position looks). `--circuit` reads
/// what a head writes for (OV) and what it looks for (QK), token by token, from its weights.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick heads
  candlewick heads --repeat-length 12 --samples 4 --csv
  candlewick heads --circuit a3.h1 --from Mary --from store")]
pub struct HeadsArgs {
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

impl Ask for HeadsArgs {
    fn default_out(&self) -> &'static str {
        "heads.parquet"
    }

    /// What heads look like is no matter of answers, so `--metric` does nothing.
    fn mode(&self) -> Mode {
        let acts = ["repeat_length", "samples", "circuit"];
        let mode = if self.circuit.is_empty() {
            Mode::new("no `--circuit`", &acts)
        } else {
            Mode::new("`--circuit`", &[&acts[..], &["from", "tokens"]].concat())
        };
        mode.idle(&["metric"])
    }

    fn method(&self, on: &Asked<'_>) -> anyhow::Result<Box<dyn Method>> {
        Ok(Box::new(HeadConfig {
            repeat_length: self.repeat_length,
            samples: self.samples,
            circuits: self.circuit.clone(),
            from: single_tokens(&self.from, on.tokenizer)?,
            tokens: self.tokens,
            seed: Some(on.task.seed),
        }))
    }
}
