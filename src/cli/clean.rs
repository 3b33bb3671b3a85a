//! `candlewick clean`: what killed runs left in a folder.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use candlewick::scores::leftover::{Leftover, leftovers, remove};
use candlewick::text::visible;
use clap::Args;

use super::models::size;

/// List what killed runs left in a folder: finished parts, which the same command goes on with, and files never finished.
///
/// With `--remove` they go, and nothing else does. What a run is at work on stays.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick clean
  candlewick clean --remove")]
pub struct CleanArgs {
    /// The folder that holds the results; folders in it are not looked into.
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// Remove what is listed.
    #[arg(long, short = 'y')]
    pub remove: bool,
}

pub fn run(args: &CleanArgs) -> anyhow::Result<()> {
    let found = leftovers(&args.folder)?;
    let mut out = io::stdout().lock();
    for leftover in &found {
        if args.remove && leftover.in_use.is_none() {
            remove(leftover)?;
        }
        writeln!(out, "{}", line(leftover, args.remove)).context("stdout")?;
    }
    let free = found.iter().filter(|leftover| leftover.in_use.is_none());
    let (count, bytes) = free.fold((0, 0), |(count, bytes), leftover| {
        (count + 1, bytes + leftover.bytes)
    });
    let end = match (count, args.remove) {
        (0, _) => "nothing is left over".to_string(),
        (_, true) => format!("{} freed", size(bytes)),
        (_, false) => format!("{}; `--remove` removes them", size(bytes)),
    };
    writeln!(out, "{end}").context("stdout")
}

fn line(leftover: &Leftover, removes: bool) -> String {
    let path = visible(&leftover.path.display().to_string());
    let what = match leftover.parts {
        0 => size(leftover.bytes),
        1 => format!("1 finished part, {}", size(leftover.bytes)),
        parts => format!("{parts} finished parts, {}", size(leftover.bytes)),
    };
    match (&leftover.in_use, removes) {
        (Some(owner), _) => format!("{path}: {what}; stays: {}", visible(owner)),
        (None, true) => format!("{path}: {what}; removed"),
        (None, false) => format!("{path}: {what}"),
    }
}
