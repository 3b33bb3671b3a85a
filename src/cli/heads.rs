//! `candlewick heads`: what each attention head looks like.

use candlewick::Error;
use candlewick::methods::{HeadConfig, head_statistics};
use candlewick::model::{EMBEDDED, load_tokenizer};
use candlewick::scores::Detail;
use clap::Args;

use super::args::{ModelArgs, OutputArgs, TaskArgs};
use super::logits::tokens;
use super::open::{load_options, open_model, open_task};
use super::{Context, destination, show};

/// Label every attention head with what it looks like: previous-token, duplicate-token, induction, copying.
///
/// Measured on random tokens that come twice, and on the task's prompts (where the last position looks). `--circuit` reads
/// what a head writes for (OV) and what it looks for (QK), token by token, from its weights.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick heads
  candlewick heads --block 12 --samples 4 --csv
  candlewick heads --circuit a3.h1 --from Mary --from store")]
pub struct HeadsArgs {
    /// Different random tokens in a sequence, each of which comes twice [default: 24, or what the context takes].
    #[arg(long, value_name = "N")]
    pub block: Option<usize>,
    /// How many sequences.
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub samples: usize,
    /// Heads whose OV and QK circuits are read out, such as `a3.h1`.
    #[arg(long, value_name = "HEAD", value_delimiter = ',')]
    pub circuit: Vec<String>,
    /// Tokens that the circuits start from [default: those at the roles of the first prompt].
    #[arg(long, value_name = "TOKEN")]
    pub from: Vec<String>,
    /// Tokens in each list.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub tokens: usize,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub output: OutputArgs,
}

pub fn run(args: HeadsArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let out = destination(&args.output, "heads.parquet", ctx)?;
    let (tokenizer, spec) = load_tokenizer(&args.model.model, &options)?;
    let embedded = args.model.model == EMBEDDED;
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, embedded)?;
    ctx.warn_of(&task);
    let defaults = HeadConfig::new(&spec);
    let config = HeadConfig {
        block: args.block.unwrap_or(defaults.block),
        samples: args.samples,
        circuits: args
            .circuit
            .iter()
            .map(|text| head(text))
            .collect::<Result<_, _>>()?,
        from: tokens(&args.from, &tokenizer)?,
        tokens: args.tokens,
        detail: match args.output.per_example {
            true => Detail::PerExample,
            false => Detail::Mean,
        },
        seed: task.seed,
    };
    config.check(&spec, &task)?;
    let progress = ctx.progress();
    let model = open_model(&args.model, &options, ctx)?;
    let scores = head_statistics(&model, &task, &config, &progress)?;
    show::finish(scores, &out, &args.output, ctx)
}

/// `a3.h1`: layer 3, head 1.
fn head(text: &str) -> Result<(usize, usize), Error> {
    let bad = || Error::Parse {
        what: "a head",
        text: text.into(),
        reason: "write layer and head as `a3.h1`".into(),
    };
    let (layer, head) = text.trim().split_once('.').ok_or_else(bad)?;
    let number = |text: &str, letter: char| {
        let digits = text.strip_prefix(letter)?;
        digits.parse::<usize>().ok()
    };
    match (number(layer, 'a'), number(head, 'h')) {
        (Some(layer), Some(head)) => Ok((layer, head)),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::head;

    #[test]
    fn a_head_reads_as_it_prints() {
        assert_eq!(head("a3.h12").expect("a head"), (3, 12));
        for text in ["", "3.1", "a3", "a3.h", "a-1.h0", "h1.a3", "a3.h1.x"] {
            assert!(head(text).is_err(), "{text}");
        }
    }
}
