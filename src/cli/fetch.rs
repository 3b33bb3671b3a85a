//! `candlewick fetch`: brings a model into the Hugging Face cache before it is needed.

use std::io::{IsTerminal, Write};
use std::path::Path;

use candlewick::Error;
use candlewick::model::hub::{self, Freshness, Located};
use candlewick::model::{LoadOptions, read_spec};
use candlewick::text::visible;
use clap::Args;

use super::Context;
use super::models::size;
use super::plan::{is_plan, models};

/// Download a model from the Hugging Face hub into its cache, and say what was brought and where it lies.
///
/// What is in the cache already is not downloaded again, and a download that was cut short goes on where it stopped. A branch that has
/// moved is brought up to date, which no other command does: they use what is cached. Afterwards the model works offline.
/// As in `candlewick fetch HuggingFaceTB/SmolLM2-135M-Instruct --revision main`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick fetch embedded")]
pub struct FetchArgs {
    /// A hub id, `org/name`; or a plan (`.toml`), for all its models and revisions.
    pub model: String,
    /// Branch, tag or commit [default: main].
    #[arg(long)]
    pub revision: Option<String>,
}

pub fn run(args: &FetchArgs, ctx: &Context) -> anyhow::Result<()> {
    if !is_plan(&args.model) {
        return fetch(&args.model, args.revision.clone(), ctx);
    }
    // One that is not to be had does not keep the others away.
    let mut failed = Vec::new();
    for (model, revision) in models(Path::new(&args.model))? {
        if let Err(error) = fetch(&model, revision.clone(), ctx) {
            ctx.warn(&format!("{}: {error:#}", visible(&model)));
            failed.push(revision.map_or(model.clone(), |revision| format!("{model}@{revision}")));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let what = failed.join(", ");
    Err(Error::invalid(format!("not fetched: {}", visible(&what))).into())
}

fn fetch(model: &str, revision: Option<String>, ctx: &Context) -> anyhow::Result<()> {
    let options = LoadOptions {
        revision,
        show_download_progress: !ctx.quiet && std::io::stderr().is_terminal(),
        ..LoadOptions::default()
    };
    let fetched = hub::fetch(model, &options)?;
    // Whether it can be loaded is worth knowing before one is on a train.
    let spec = read_spec(model, &options);
    let mut out = std::io::stdout().lock();
    let state = match fetched.freshness {
        Freshness::Local => "is here already; there is nothing to fetch".to_string(),
        Freshness::Downloaded => "was downloaded".to_string(),
        Freshness::Same => "is cached as the hub has it".to_string(),
        Freshness::Unknown { reason } => {
            format!("is cached; whether the hub has a newer one is not known ({reason})")
        }
    };
    writeln!(out, "{} {}", visible(model), visible(&state))?;
    if let Located::Folder { path, revision } = &fetched.located {
        if let Some(commit) = revision {
            writeln!(out, "commit: {}", visible(commit))?;
        }
        writeln!(out, "folder: {}", visible(&path.display().to_string()))?;
    }
    for (path, bytes) in &fetched.files {
        let name = path.file_name().map_or(path.as_path(), Path::new);
        let name = visible(&name.display().to_string());
        writeln!(out, "{:>9}  {name}", size(*bytes))?;
    }
    match spec {
        Ok(spec) => writeln!(out, "family: {}", spec.family)?,
        Err(error) => ctx.warn(&format!("it is there, but cannot be loaded: {error}")),
    }
    Ok(())
}
