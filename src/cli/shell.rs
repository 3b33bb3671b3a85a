//! `candlewick completions` and `candlewick man`: what a shell and a reader of manuals want of the command line.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use candlewick::Error;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::Cli;

/// Print the completions of a shell.
///
/// Put them where the shell looks: for bash into `~/.local/share/bash-completion/completions/candlewick`, for zsh into a folder of
/// `$fpath` under the name `_candlewick`, for fish into `~/.config/fish/completions/candlewick.fish`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick completions bash
  candlewick completions zsh")]
pub struct CompletionsArgs {
    pub shell: Shell,
}

/// Print the manual page, or write those of all subcommands into a folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick man
  candlewick man --out man1")]
pub struct ManArgs {
    /// A folder, made if it is not there, for `candlewick.1`, `candlewick-patch.1`, ...
    #[arg(long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
}

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "candlewick", &mut script);
    io::stdout().lock().write_all(&script).context("stdout")
}

pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    let Some(folder) = &args.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return io::stdout().lock().write_all(&page).context("stdout");
    };
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder));
    written.map_err(|source| Error::Write {
        path: folder.clone(),
        source,
    })?;
    println!("manual pages are in {}", folder.display());
    Ok(())
}
