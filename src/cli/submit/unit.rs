//! `candlewick submit unit`: what the scripts of a submission call. It runs units one after the other, and writes down how each
//! ended.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candlewick::Error;
use candlewick::run::Progress as _;
use candlewick::scores::Lock;
use candlewick::scores::parts::folder_of;
use candlewick::text::{duration, visible};
use clap::Args;

use super::folder::Submission;
use super::units::{Record, Unit};
use crate::cli::plan::{Desk, Stage, first_line, said};
use crate::cli::{Context, dispatch, parse_again};

/// Run units of a submission here, one after the other: what its scripts call.
///
/// A unit that is finished is not measured again, and one that was cut short goes on. One that fails does not keep the others; the
/// exit code says so. After Ctrl-C, and before the time limit of a job, what is finished is kept, and the exit code is 130.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick submit unit sharded.submission 1")]
pub struct UnitArgs {
    /// The folder of the submission.
    pub folder: PathBuf,
    /// Numbers of units, as `candlewick submit status` lists them.
    #[arg(required = true, value_name = "N")]
    pub units: Vec<usize>,
    /// Ctrl-C comes from a scheduler, just before a time limit: a unit that no part of was finished within it has failed, because it
    /// would get no further the next time. The scripts say so.
    #[arg(long)]
    pub time_limit: bool,
}

pub fn run(args: &UnitArgs, ctx: &Context) -> anyhow::Result<()> {
    let submission = Submission::read(&args.folder)?;
    submission.check_build()?;
    let all = submission.units();
    let mut units = Vec::new();
    for &number in &args.units {
        let unit = number.checked_sub(1).and_then(|at| all.get(at));
        units.push(*unit.ok_or_else(|| {
            submission.refuse(format!(
                "it has no unit {number}; they are 1 to {}",
                all.len()
            ))
        })?);
    }
    submission.enter()?;
    // From here on a stop is asked for, and no end.
    let progress = ctx.progress();
    // The model is loaded once for units that follow each other.
    let desk = Arc::new(Desk::new(Stage::Measure, true));
    let mut failed = Vec::new();
    // Whether this process has finished a unit: then the next one had no whole time limit for itself.
    let mut got_further = false;
    for unit in units {
        let began = Instant::now();
        let name = &submission.jobs[unit.job].name;
        let line = format!("unit {}, {} {}", unit.number, visible(name), unit.shard);
        let had_its_time = args.time_limit && !got_further;
        match one(&submission, unit, &desk, had_its_time, ctx) {
            Ok(()) => {
                got_further = true;
                let took = duration(began.elapsed().as_secs_f64());
                writeln!(io::stdout(), "{line}: finished, {took}")?;
            }
            Err(error) => {
                if let Some(Error::Interrupted { .. }) = error.downcast_ref() {
                    return Err(error);
                }
                ctx.warn(&format!("{line}: {}", visible(&said(&error))));
                failed.push(unit.number.to_string());
                if progress.cancelled() {
                    // Those that have not begun did not fail.
                    break;
                }
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    Err(submission
        .refuse(format!("units failed: {}", failed.join(", ")))
        .into())
}

/// Measures one unit, unless its part is there.
fn one(
    submission: &Submission,
    unit: Unit,
    desk: &Arc<Desk>,
    had_its_time: bool,
    ctx: &Context,
) -> anyhow::Result<()> {
    let job = &submission.jobs[unit.job];
    if submission.is_done(job) {
        return Ok(());
    }
    let Some(_lock) = Lock::take(&submission.lock_path(unit.number))? else {
        let owner = submission.worker(unit.number).unwrap_or_default();
        let n = unit.number;
        let busy = format!("{owner} is at work on unit {n}; wait for it");
        return Err(submission.refuse(busy).into());
    };
    let part = submission.part_path(unit);
    let kept = finished_parts(&part);
    submission.note(unit.number, &Record::Running)?;
    let measured = measure(submission, unit, desk, ctx);
    let Err(error) = measured else {
        return Ok(());
    };
    let is_interrupted = matches!(error.downcast_ref(), Some(Error::Interrupted { .. }));
    // A time limit that no part fits into would be met again and again.
    let error = if is_interrupted && had_its_time && finished_parts(&part) <= kept {
        submission
            .refuse(format!(
                "its time limit came before a part of unit {} was finished, so trying again would get no further; {} with more `--time` \
                 does, or more `--shards` and `--replace`",
                unit.number,
                submission.resubmission()
            ))
            .into()
    } else {
        error
    };
    let record = match error.downcast_ref() {
        Some(Error::Interrupted { .. }) => Record::Interrupted,
        _ => Record::Failed(said(&error)),
    };
    submission.note(unit.number, &record)?;
    Err(error)
}

fn measure(
    submission: &Submission,
    unit: Unit,
    desk: &Arc<Desk>,
    ctx: &Context,
) -> anyhow::Result<()> {
    let mut command = submission.command_of(unit);
    // A part of other work that lies there is replaced; one of this work is recognised.
    command.push("--force".into());
    let (cli, typed) = parse_again(&command).map_err(|error| {
        submission.refuse(format!(
            "unit {} is no command: {}",
            unit.number,
            first_line(&error)
        ))
    })?;
    let ctx = Context {
        typed,
        command,
        desk: Some(Arc::clone(desk)),
        ..ctx.clone()
    };
    dispatch(&cli.command, &ctx)
}

/// How much of an unfinished part is kept.
fn finished_parts(part: &Path) -> usize {
    let entries = |path: &Path| std::fs::read_dir(path).into_iter().flatten().flatten();
    let works = entries(&folder_of(part));
    works.map(|work| entries(&work.path()).count()).sum()
}
