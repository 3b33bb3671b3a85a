//! `candlewick submit local`: the units as processes of this machine, some at a time, and then the merge.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use candlewick::Error;
use candlewick::run::Progress;
use candlewick::text::{duration, visible};
use clap::Args;

use super::folder::{Round, Submission};
use super::merge::merge;
use super::work::WorkArgs;
use crate::cli::Context;

/// How often children are looked at.
const PAUSE: Duration = Duration::from_millis(20);

/// Run a command or a plan as shards on this machine, some at a time, and make the tables.
///
/// The same units as on a cluster, for trying out, and to use all cores of a machine: each runs in a process of its own. Given the
/// folder of a submission, or the same command again, it runs what is missing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick submit local --jobs 2 --shards 4 -- patch --n-pairs 4 --out sharded.parquet
  candlewick submit local plan.toml --shards 2
  candlewick submit local sharded.submission")]
pub struct LocalArgs {
    #[command(flatten)]
    pub work: WorkArgs,
    /// Processes that run at once; they share the cores, unless `--threads` says how many each takes.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub jobs: u16,
}

pub fn run(args: &LocalArgs, ctx: &Context) -> anyhow::Result<()> {
    let jobs = usize::from(args.jobs);
    let (mut submission, _held) = args.work.submission(threads_of_each(jobs), ctx)?;
    super::slurm::check_idle(&submission)?;
    let units = submission.open_units();
    if !units.is_empty() {
        submission.begin(Round {
            units: units.clone(),
            per_task: 1,
            slurm: None,
        })?;
        run_all(&submission, &units, jobs, ctx)?;
    }
    merge(&mut submission, ctx)
}

struct Running {
    unit: usize,
    child: Child,
    began: Instant,
}

/// Runs all units, `jobs` at a time. One that fails does not keep the others.
/// # Errors
/// [`Error::Interrupted`] after Ctrl-C, when all children have ended.
fn run_all(
    submission: &Submission,
    units: &[usize],
    jobs: usize,
    ctx: &Context,
) -> anyhow::Result<()> {
    let mut waiting: VecDeque<usize> = units.iter().copied().collect();
    let mut running: Vec<Running> = Vec::new();
    let all = submission.units();
    let progress = ctx.progress();
    progress.start("units", units.len() as u64);
    let mut told_to_stop = false;
    while !running.is_empty() || (!waiting.is_empty() && !told_to_stop) {
        if progress.cancelled() && !told_to_stop {
            told_to_stop = true;
            running.iter().for_each(|one| interrupt(one.child.id()));
        }
        while running.len() < jobs
            && !told_to_stop
            && let Some(unit) = waiting.pop_front()
        {
            running.push(Running {
                unit,
                child: start(submission, unit, jobs)?,
                began: Instant::now(),
            });
        }
        let mut still = Vec::new();
        for mut one in running {
            match one.child.try_wait()? {
                None => still.push(one),
                Some(status) => {
                    progress.advance(1);
                    let about = all[one.unit - 1];
                    let name = visible(&submission.jobs[about.job].name);
                    let how = ending(submission, one.unit, status, one.began);
                    let line = format!("unit {}, {name} {}: {how}", one.unit, about.shard);
                    progress.suspend(|| writeln!(io::stdout(), "{line}"))?;
                }
            }
        }
        running = still;
        sleep(PAUSE);
    }
    progress.finish();
    if told_to_stop {
        let left = submission.open_units().len();
        return Err(Error::Interrupted {
            kept: format!(
                "{left} of {} units are not finished; {} goes on with them",
                submission.units().len(),
                submission.line("local")
            ),
        }
        .into());
    }
    Ok(())
}

/// With how many threads each of the processes computes, unless that was said.
fn threads_of_each(jobs: usize) -> Option<usize> {
    let cores = available_parallelism().map_or(1, usize::from);
    (std::env::var_os("RAYON_NUM_THREADS").is_none()).then_some((cores / jobs).max(1))
}

/// A process for one unit, in a group of its own: Ctrl-C reaches it through us alone.
fn start(submission: &Submission, unit: usize, jobs: usize) -> anyhow::Result<Child> {
    let path = submission.log_path(unit);
    let unwritten = |source| Error::Write {
        path: path.clone(),
        source,
    };
    let mut options = OpenOptions::new();
    let log = options.create(true).append(true).open(&path);
    let log = log.map_err(unwritten)?;
    let errors = log.try_clone().map_err(unwritten)?;
    let mut command = Command::new(std::env::current_exe()?);
    if let Some(threads) = threads_of_each(jobs) {
        command.args(["--threads", &threads.to_string()]);
    }
    command.args(["submit", "unit"]).arg(&submission.path);
    command.arg(unit.to_string());
    command.stdin(Stdio::null()).stdout(log).stderr(errors);
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    Ok(command.spawn()?)
}

/// Asks a process to stop where it loses nothing.
pub fn interrupt(process: u32) {
    // There is no such thing to call in Rust's own library.
    let _ = Command::new("kill")
        .args(["-INT", &process.to_string()])
        .status();
}

/// How a unit ended, for a person.
fn ending(submission: &Submission, unit: usize, status: ExitStatus, began: Instant) -> String {
    let took = duration(began.elapsed().as_secs_f64());
    if status.success() {
        return format!("finished, {took}");
    }
    // A process that a signal ended could not write that down.
    let why = match (status.code(), submission.record(unit)) {
        (Some(_), Some(record)) => record.to_string(),
        _ => status.to_string(),
    };
    format!(
        "{}, after {took}; its log: {}",
        visible(&why),
        visible(&submission.log_path(unit).display().to_string())
    )
}
