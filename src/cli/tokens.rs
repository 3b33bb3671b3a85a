//! `candlewick tokens`: how a task tokenises, before anything is run on it.

use std::io::{self, Write};

use candlewick::Error;
use candlewick::model::{EMBEDDED, open};
use candlewick::task::{render, render_dropped, render_json};
use clap::Args;

use super::Context;
use super::args::{ModelArgs, TaskArgs};
use super::{load_options, open_task, worded};

/// Show how a task tokenises: pairs side by side, roles, answers, and which pairs were dropped and why.
///
/// No weights are read.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick tokens
  candlewick tokens --n-pairs 100 --corruption s2_random --limit 2
  candlewick tokens --seed 7 --json")]
pub struct TokensArgs {
    /// How many pairs, and dropped pairs, to show.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub limit: usize,
    /// One JSON object, with the id and text of every token.
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
}

pub fn run(args: &TokensArgs, ctx: &Context) -> anyhow::Result<()> {
    let opened = open(&args.model.model, &load_options(&args.model)?)?;
    let is_embedded = args.model.model == EMBEDDED;
    let n_ctx = opened.spec().n_ctx;
    let task = open_task(&args.task, opened.tokenizer(), n_ctx, is_embedded);
    if let Err(error) = &task
        && let Some(Error::EmptyTask { dropped, .. }) = error.downcast_ref()
        && !args.json
    {
        let shown = render_dropped(dropped, args.limit);
        io::stdout().lock().write_all(worded(&shown).as_bytes())?;
    }
    let task = task?;
    ctx.warn_of(&task);
    let shown = if args.json {
        render_json(&task, args.limit) + "\n"
    } else {
        render(&task, args.limit)
    };
    Ok(io::stdout().lock().write_all(worded(&shown).as_bytes())?)
}
