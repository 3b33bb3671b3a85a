//! `candlewick merge`: the table of all shards of one piece of work.

use std::path::PathBuf;

use candlewick::Error;
use candlewick::methods::read_shards;
use clap::Args;

use super::destination::check_not_read;
use super::{Context, parse_again};

/// Make one table of the files that `--shard` wrote: the same table as without shards.
///
/// The command that made the shards is run once more on what they measured: it loads the model, measures nothing again, and does
/// what is chosen after measuring (`--verify`, the tokens that parts write for, bounds). A missing, doubled or foreign shard
/// is refused by name.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick patch --shard 1/2 --out shard-1.parquet
  candlewick patch --shard 2/2 --out shard-2.parquet
  candlewick merge shard-1.parquet shard-2.parquet --out merged.parquet")]
pub struct MergeArgs {
    /// The shards, in any order.
    #[arg(required = true)]
    pub parts: Vec<PathBuf>,
    /// The table.
    #[arg(long, short, value_name = "FILE")]
    pub out: PathBuf,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
}

/// What a command is to do instead of measuring.
#[derive(Debug, Clone)]
pub struct Merging {
    pub shards: Vec<PathBuf>,
}

pub fn run(args: &MergeArgs, ctx: &Context) -> anyhow::Result<()> {
    check_not_read(&args.out, args.parts.iter().map(PathBuf::as_path))?;
    let read = read_shards(&args.parts)?;
    let mut command = without_flag(&read.note.command, &["--shard"]);
    command = without_flag(&command, &["--out", "-o"]);
    command.retain(|word| word != "--force");
    command.extend(["--out".into(), args.out.display().to_string()]);
    if args.force {
        command.push("--force".into());
    }
    let Ok((cli, typed)) = parse_again(&command) else {
        return Err(Error::Shards {
            reason: format!(
                "the command that made them is not one of this version: {}",
                candlewick::text::shell_quoted(&read.note.command)
            ),
        }
        .into());
    };
    let ctx = Context {
        command,
        typed,
        merging: Some(Merging {
            shards: args.parts.clone(),
        }),
        ..ctx.clone()
    };
    super::dispatch(&cli.command, &ctx)
}

/// The arguments without a flag and its value.
pub fn without_flag(command: &[String], names: &[&str]) -> Vec<String> {
    let mut kept = Vec::new();
    let mut arguments = command.iter();
    while let Some(argument) = arguments.next() {
        if names.contains(&argument.as_str()) {
            arguments.next();
        } else if !names
            .iter()
            .any(|name| argument.starts_with(&format!("{name}=")))
        {
            kept.push(argument.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_goes_with_its_value() {
        let command: Vec<String> = [
            "candlewick",
            "patch",
            "--shard",
            "1/2",
            "--out=a",
            "-s",
            "z",
        ]
        .map(String::from)
        .to_vec();
        let kept = without_flag(&without_flag(&command, &["--shard"]), &["--out", "-o"]);
        assert_eq!(kept, ["candlewick", "patch", "-s", "z"]);
    }
}
