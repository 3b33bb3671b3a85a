//! `candlewick submit cancel`: stops what runs of a submission, and takes the rest out of the queue.

use std::io::{self, Write};
use std::path::PathBuf;

use candlewick::scores::Owner;
use clap::Args;

use super::folder::Submission;
use super::local::interrupt;
use super::slurm;

/// Stop a submission: its processes on this machine, its jobs in Slurm. What is finished is kept.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick submit cancel sharded.submission")]
pub struct CancelArgs {
    /// The folder of the submission.
    pub folder: PathBuf,
}

pub fn run(args: &CancelArgs) -> anyhow::Result<()> {
    let submission = Submission::read(&args.folder)?;
    let mut out = io::stdout().lock();
    let queue = slurm::queue(&submission)?;
    // Who holds the submission stops its own units; those that nobody holds are asked one by one.
    let processes: Vec<Owner> = match submission.holder() {
        Some(holder) => vec![holder],
        None if queue.is_empty() => (submission.units().iter())
            .filter_map(|unit| submission.worker(unit.number))
            .collect(),
        None => Vec::new(),
    };
    let mut away = None;
    for owner in &processes {
        if owner.is_here() {
            interrupt(owner.process);
            writeln!(out, "process {} was asked to stop", owner.process)?;
        } else {
            away = Some(owner);
        }
    }
    if let Some(owner) = away {
        let line = submission.line("cancel");
        let reason = format!("{owner} is at work on it; {line} stops it there");
        return Err(submission.refuse(reason).into());
    }
    if processes.is_empty() && queue.is_empty() {
        writeln!(out, "nothing of it runs or waits")?;
        return Ok(());
    }
    let jobs: Vec<&str> = (submission.rounds.iter())
        .filter_map(|round| round.slurm.as_ref())
        .flat_map(|(job, merge)| std::iter::once(job).chain(merge))
        .map(String::as_str)
        .filter(|job| !job.is_empty())
        .collect();
    if !queue.is_empty() {
        slurm::cancel(&jobs)?;
        writeln!(out, "{} tasks were taken out of the queue", queue.len())?;
    }
    writeln!(
        out,
        "what is finished is kept; {} goes on with the rest",
        submission.resubmission()
    )?;
    Ok(())
}
