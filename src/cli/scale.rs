//! `candlewick scale`: what a task's prompts are answered with as heads are scaled.

use std::io::{self, BufWriter, Write};

use candlewick::hooks::Node;
use candlewick::methods::{Scaled, ScalingConfig, Share, scaling};
use candlewick::model::{EMBEDDED, load_tokenizer};
use candlewick::text::{Align, aligned};
use clap::Args;
use serde_json::json;

use super::Context;
use super::args::{ModelArgs, TaskArgs};
use super::open::{load_options, open_model, open_task};

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
    /// The heads, each scaled by itself, such as `a2.h0,a3.h1`.
    #[arg(long, value_name = "HEADS", value_delimiter = ',', required = true)]
    pub heads: Vec<Node>,
    /// What they are multiplied by [default: -5,-2,-1,0,0.5,1,2,3,5,8,10].
    #[arg(
        long,
        value_name = "FACTORS",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub factors: Vec<f32>,
    /// A JSON object a line.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
}

pub fn run(args: ScaleArgs, ctx: &Context) -> anyhow::Result<()> {
    let mut options = load_options(&args.model)?;
    options.show_download_progress &= !ctx.quiet;
    // Everything that can be wrong is found before the weights are read.
    let (tokenizer, spec) = load_tokenizer(&args.model.model, &options)?;
    let config = ScalingConfig {
        heads: args.heads.clone(),
        factors: match args.factors.is_empty() {
            true => ScalingConfig::FACTORS.to_vec(),
            false => args.factors.clone(),
        },
    };
    config.check(&spec)?;
    let is_embedded = args.model.model == EMBEDDED;
    let task = open_task(&args.task, &tokenizer, spec.n_ctx, is_embedded)?;
    ctx.warn_of(&task);
    let progress = ctx.progress();
    let model = open_model(&args.model, &options, ctx)?;
    let rows = scaling(&model, &task, &config, &progress)?;
    let mut out = BufWriter::new(io::stdout().lock());
    match args.json {
        true => {
            for row in &rows {
                writeln!(out, "{}", as_json(row))?;
            }
        }
        false => write_table(&rows, task.pairs().len(), &mut out)?,
    }
    Ok(out.flush()?)
}

fn as_json(row: &Scaled) -> serde_json::Value {
    let share = |share: Share| {
        json!({
            "count": share.count,
            "fraction": share.fraction,
            "ci_low": share.low,
            "ci_high": share.high,
        })
    };
    json!({
        "layer": row.layer,
        "head": row.head,
        "factor": row.factor,
        "n": row.answer.of,
        "answer": share(row.answer),
        "wrong": share(row.wrong),
        "other": share(row.other),
    })
}

fn write_table(rows: &[Scaled], n: usize, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "the most probable next token of {n} prompts, in percent, with Wilson 95% intervals\n"
    )?;
    let mut lines = vec![["head", "factor", "answer", "wrong", "other"].map(String::from)];
    let percent = |share: Share| {
        let [at, low, high] = [share.fraction, share.low, share.high].map(|x| 100.0 * x);
        format!("{at:.0} [{low:.0}, {high:.0}]")
    };
    for row in rows {
        let node = Node::Head {
            layer: row.layer,
            head: row.head,
        };
        let [answer, wrong, other] = [row.answer, row.wrong, row.other].map(percent);
        lines.push([
            node.to_string(),
            row.factor.to_string(),
            answer,
            wrong,
            other,
        ]);
    }
    write!(out, "{}", aligned(&lines, &[Align::Left, Align::Right]))
}
