//! `candlewick submit`: a command or a plan as shards, on this machine or by a scheduler that exists.
//!
//! One design for both: a folder ([`folder`]) says which units of work there are; whoever runs them calls `submit unit`;
//! `submit merge` believes no part before it has seen that it is of this very work.

mod cancel;
mod folder;
mod local;
mod merge;
mod script;
mod slurm;
mod status;
#[cfg(test)]
mod tests;
mod unit;
mod units;
mod work;

use candlewick::BUILD;
use clap::{Args, Subcommand};

use super::Context;

/// Run a command or a plan as shards: here, or as a job array of Slurm; watch it, stop it, merge it.
///
/// A submission is a folder, `OUT.submission`: what was asked for, scripts, logs, and a part for each shard that is finished. What
/// failed is named with the line that submits exactly that again; nothing that is finished is measured twice. The table is the same as
/// without shards. docs/many-runs.md has an experiment from plan to figure.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick submit local --jobs 2 --shards 4 -- patch --n-pairs 4 --out sharded.parquet
  candlewick submit status sharded.submission")]
pub struct SubmitArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Local(local::LocalArgs),
    Slurm(slurm::SlurmArgs),
    Status(status::StatusArgs),
    Cancel(cancel::CancelArgs),
    Merge(merge::MergeArgs),
    Unit(unit::UnitArgs),
}

pub fn run(args: &SubmitArgs, ctx: &Context) -> anyhow::Result<()> {
    if matches!(args.command, Command::Local(_) | Command::Slurm(_)) && BUILD.ends_with("(debug)") {
        ctx.warn(
            "this is a debug build, and parts of two debug builds of one version are not told apart; build with `--release` for \
             numbers that count",
        );
    }
    match &args.command {
        Command::Local(args) => local::run(args, ctx),
        Command::Slurm(args) => slurm::run(args, ctx),
        Command::Status(args) => status::run(args),
        Command::Cancel(args) => cancel::run(args),
        Command::Merge(args) => merge::run(args, ctx),
        Command::Unit(args) => unit::run(args, ctx),
    }
}
