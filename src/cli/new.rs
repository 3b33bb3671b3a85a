//! `candlewick new`: a task file to begin with, and the schema that editors check task files by.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use candlewick::Error;
use candlewick::scores::write_whole;
use candlewick::task::{PromptExample, draft, schema};
use clap::{Args, Subcommand};

use super::destination::check_new;

/// Write a task file to begin with, or print the schema of task files.
#[derive(Debug, Args)]
pub struct NewArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Task(TaskArgs),
    /// Print the JSON schema of task files, by which editors check and complete them.
    #[command(after_help = "Examples:\n  candlewick new schema")]
    Schema,
}

/// Write a commented task file.
///
/// With examples, the words in which they differ become a slot, drawn from the list of these words, each with its answer; the
/// corrupted prompt has another of them, and its answer is the wrong one. Without examples the file is one that the embedded
/// model can do, to be changed. `candlewick tokens --task NAME.toml` then shows how a model's tokenizer reads it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick new task mine
  candlewick new task cities --example 'Paris is in => France' --example 'Rome is in => Italy'")]
struct TaskArgs {
    /// The task's name; the file is NAME.toml.
    name: String,
    /// A prompt and its answer, with `=>` between; give two or more that differ in one place.
    #[arg(long = "example", value_name = "PROMPT => ANSWER")]
    examples: Vec<PromptExample>,
    /// The file, if not NAME.toml.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    force: bool,
}

pub fn run(args: &NewArgs) -> anyhow::Result<()> {
    match &args.what {
        What::Schema => {
            let mut text = serde_json::to_string_pretty(&schema())?;
            text.push('\n');
            io::stdout()
                .lock()
                .write_all(text.as_bytes())
                .context("stdout")
        }
        What::Task(args) => task(args),
    }
}

fn task(args: &TaskArgs) -> anyhow::Result<()> {
    let text = draft(&args.name, &args.examples)?;
    let default = || PathBuf::from(format!("{}.toml", args.name));
    let path = args.out.clone().unwrap_or_else(default);
    check_new(&path, args.force)?;
    write_whole(&path, |file| {
        let written = file.write_all(text.as_bytes());
        written.map_err(|source| Error::Write {
            path: path.clone(),
            source,
        })
    })?;
    let model = if args.examples.is_empty() {
        ""
    } else {
        " --model MODEL"
    };
    println!(
        "wrote {}; `candlewick tokens --task {}{model}` shows how it is read",
        path.display(),
        candlewick::text::shell_quoted(&[path.display().to_string()])
    );
    Ok(())
}
