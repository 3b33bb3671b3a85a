//! `candlewick tokens`: how a task tokenises, before anything is run on it.

use std::io::Write;

use candlewick::task::{ExpandOptions, TaskFile, expand, from_pairs_file, render, render_json};
use clap::Args;

use super::Context;
use super::args::{BosChoice, ModelArgs, TaskArgs};

/// Show how a task tokenises: pairs side by side, roles, answers, and which pairs were dropped and why.
///
/// Example: candlewick tokens --task ioi --limit 3
#[derive(Debug, Args)]
pub struct TokensArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub task: TaskArgs,
    /// How many pairs, and dropped pairs, to show.
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub limit: usize,
    /// One JSON object, with the id and text of every token.
    #[arg(long)]
    pub json: bool,
}

pub fn run(args: TokensArgs, _ctx: &Context) -> anyhow::Result<()> {
    let mut options = expand_options(&args.task)?;
    let (task, tokenizer) = match &args.task.pairs {
        Some(path) => {
            let (tokenizer, n_ctx) = super::tokenizer_of(&args.model)?;
            options.max_tokens = Some(n_ctx);
            (from_pairs_file(path, &tokenizer, &options)?, tokenizer)
        }
        None => {
            // Whether the file can be read does not depend on the model, so it is found out first.
            let file = TaskFile::open(args.task.task.as_deref().unwrap_or("ioi"))?;
            let (tokenizer, n_ctx) = super::tokenizer_of(&args.model)?;
            options.max_tokens = Some(n_ctx);
            (expand(&file, &tokenizer, &options)?, tokenizer)
        }
    };
    let shown = if args.json {
        render_json(&task, &tokenizer, args.limit) + "\n"
    } else {
        render(&task, &tokenizer, args.limit)
    };
    Ok(std::io::stdout().lock().write_all(shown.as_bytes())?)
}

/// The flags of a task as the library takes them.
pub fn expand_options(args: &TaskArgs) -> anyhow::Result<ExpandOptions> {
    Ok(ExpandOptions {
        n_pairs: args.n_pairs.map(|n| n as usize),
        seed: Some(args.seed),
        bos: match args.bos {
            BosChoice::Auto => candlewick::task::BosChoice::Auto,
            BosChoice::Yes => candlewick::task::BosChoice::Yes,
            BosChoice::No => candlewick::task::BosChoice::No,
        },
        chat: args.chat_template,
        corruption: args.corruption.clone(),
        max_tokens: None,
        metric: args.metric.as_deref().map(str::parse).transpose()?,
    })
}
