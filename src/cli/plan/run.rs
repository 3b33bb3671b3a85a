//! `candlewick run`: every run of a plan, each a command and a file, one folder of results.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use candlewick::Error;
use candlewick::plot::runs_page;
use candlewick::scores::{RunSummary, Scores, memory_of_runs, write_summary, write_whole};
use candlewick::text::{duration, shell_quoted, visible};
use clap::Args;

use super::possible::{check, check_weights, is_here};
use super::{Desk, PlanFile, Run, Stage, State, expand};
use crate::cli::{Context, advised, dispatch, parse_again};

/// Run a plan: every model, at every revision, with every task, method and seed.
///
/// A plan is a TOML file: `models`, `tasks`, `seeds` and a table `[methods]` of names and commands, such as `heads = "patch --sites z"`.
/// Every run is such a command with a model and a task, and writes
/// `OUT/run_model=../run_task=../run_method=../part-00000.parquet`; polars, pandas and DuckDB read the folder as one table. What is finished
/// is not run again, what was cut short goes on. `OUT/summary.parquet` has a row for each run, and `OUT/summary.html` shows it in a browser.
/// Everything is checked before the first model is loaded. docs/many-runs.md has an example from plan to figure.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  candlewick run plan.toml --dry-run
  candlewick run plan.toml
  candlewick fetch plan.toml
  candlewick check plan.toml")]
pub struct RunArgs {
    /// The plan.
    pub plan: PathBuf,
    /// List the runs, what is finished, and what the rest would cost.
    #[arg(long)]
    pub dry_run: bool,
    /// Measure runs again whose results were made with other settings than the plan has now.
    #[arg(long, conflicts_with = "dry_run")]
    pub replace_stale: bool,
    /// Leave out runs that cannot be done, instead of refusing the whole plan.
    #[arg(long, conflicts_with = "dry_run")]
    pub keep_going: bool,
}

/// Why a run has no result when the plan was stopped.
const UNMEASURED: &str = "not measured yet: the plan was stopped";

/// Whether a word that names a model names a plan.
pub fn is_plan(word: &str) -> bool {
    word.ends_with(".toml")
}

pub fn run(args: &RunArgs, ctx: &Context) -> anyhow::Result<()> {
    let plan = PlanFile::read(&args.plan)?;
    let runs = expand(&plan, &args.plan)?;
    let states = stale(&runs, &args.plan, args.replace_stale || args.dry_run)?;
    let open: Vec<usize> = (0..runs.len())
        .filter(|&i| states[i] != State::Finished)
        .collect();

    // Nothing is loaded before all that is left to do is known to be possible.
    let desk = Desk::new(Stage::Check, args.dry_run);
    let (desk, mut failed) = check(&runs, &open, desk, ctx)?;
    if args.dry_run {
        return cost(&runs, &states, &failed, desk, ctx);
    }
    check_weights(&runs, &open, &mut failed)?;
    if let (Some((&first, error)), false) = (failed.iter().next(), args.keep_going) {
        let reason = format!(
            "{} of its {} runs cannot be done, the first `{}`: {error}; `--keep-going` leaves them out",
            failed.len(),
            runs.len(),
            runs[first].name()
        );
        return Err(Error::BadPlan {
            path: args.plan.clone(),
            reason,
        }
        .into());
    }
    measure_all(
        &plan,
        &args.plan,
        &runs,
        &states,
        failed,
        desk.at(Stage::Measure),
        ctx,
    )
}

/// What is there of each run.
/// # Errors
/// [`Error::BadPlan`] if there are stale results, unless they may be.
pub fn stale(runs: &[Run], plan: &Path, may_be: bool) -> Result<Vec<State>, Error> {
    let refuse = |reason: String| Error::BadPlan {
        path: plan.to_path_buf(),
        reason,
    };
    let state = |run: &Run| run.state().map_err(|error| refuse(error.to_string()));
    let states: Vec<State> = runs.iter().map(state).collect::<Result<_, _>>()?;
    let mut stale = (states.iter().zip(runs)).filter_map(|(state, run)| match state {
        State::Stale(made) => Some((run, made)),
        _ => None,
    });
    if let (Some((run, made)), false) = (stale.next(), may_be) {
        return Err(refuse(format!(
            "{} of its {} runs have results of other settings, the first `{}`, made by {made}; `--replace-stale` measures them again, \
             or give the changed methods other names, or the plan another `out`",
            1 + stale.count(),
            runs.len(),
            run.out.display()
        )));
    }
    Ok(states)
}

/// The context of a run: it measures at the desk, and says nothing of its own.
pub fn at_desk(run: &Run, desk: &Arc<Desk>, ctx: &Context) -> Context {
    Context {
        quiet: true,
        typed: run.typed.clone(),
        command: run.command.clone(),
        desk: Some(Arc::clone(desk)),
        ..ctx.clone()
    }
}

pub fn said(error: &anyhow::Error) -> String {
    match error.downcast_ref::<Error>() {
        Some(error) => advised(error),
        None => format!("{error:#}"),
    }
}

/// Says what is finished, and what the rest would cost.
fn cost(
    runs: &[Run],
    states: &[State],
    failed: &BTreeMap<usize, String>,
    desk: Desk,
    ctx: &Context,
) -> anyhow::Result<()> {
    let desk = Arc::new(desk.at(Stage::Cost));
    let mut out = io::stdout().lock();
    let (mut seconds, mut passes, mut bytes, mut unknown) = (0.0, 0.0, 0, 0);
    let mut downloads = Vec::new();
    for (i, run) in runs.iter().enumerate() {
        let what = match &states[i] {
            State::Finished => "finished".to_string(),
            _ if failed.contains_key(&i) => {
                unknown += 1;
                let is_missing = !is_here(run);
                if is_missing && !downloads.contains(&(&run.model, &run.revision)) {
                    downloads.push((&run.model, &run.revision));
                }
                if is_missing {
                    "its model is to be downloaded first (`candlewick fetch`)".to_string()
                } else {
                    format!("cannot be done: {}", failed[&i])
                }
            }
            state => {
                dispatch(&run.parsed, &at_desk(run, &desk, ctx))?;
                let plan = desk.plan.lock().expect("no run panicked with it").take();
                let plan = plan.unwrap_or_default();
                seconds += plan.seconds;
                passes += plan.cost.passes + plan.cost.packed;
                bytes = bytes.max(plan.cost.bytes);
                let stale = match state {
                    State::Stale(made) => format!("; there are stale results, made by {made}"),
                    _ => String::new(),
                };
                format!(
                    "{} pairs, {} cells, about {}{stale}",
                    plan.pairs,
                    plan.cells,
                    duration(plan.seconds)
                )
            }
        };
        writeln!(
            out,
            "{:>4}  {}  {}",
            i + 1,
            visible(&run.name()),
            visible(&what)
        )?;
    }
    let finished = states
        .iter()
        .filter(|state| **state == State::Finished)
        .count();
    writeln!(out)?;
    writeln!(
        out,
        "runs                 {} ({finished} finished)",
        runs.len()
    )?;
    writeln!(out, "forward-equivalents  {passes:.0}")?;
    writeln!(
        out,
        "memory               {:.0} MB activations at most",
        bytes as f64 / 1e6
    )?;
    for (model, revision) in downloads {
        let at = revision
            .as_ref()
            .map_or(String::new(), |revision| format!(" at {revision}"));
        writeln!(
            out,
            "download             {}{}",
            visible(model),
            visible(&at)
        )?;
    }
    let beside = if unknown > 0 {
        format!(", without {unknown} of the runs")
    } else {
        String::new()
    };
    writeln!(
        out,
        "estimated time       about {}{beside}",
        duration(seconds)
    )?;
    Ok(())
}

fn measure_all(
    plan: &PlanFile,
    path: &Path,
    runs: &[Run],
    states: &[State],
    mut failed: BTreeMap<usize, String>,
    desk: Desk,
    ctx: &Context,
) -> anyhow::Result<()> {
    let desk = Arc::new(desk);
    let mut summaries = Vec::new();
    let summary = plan.out.join("summary.parquet");
    let before = memory_of_runs(&summary);
    let mut out = io::stdout().lock();
    let mut stopped = None;
    for (i, run) in runs.iter().enumerate() {
        let began = Instant::now();
        let file = run.out.strip_prefix(&plan.out).unwrap_or(&run.out);
        let mut row = RunSummary::new(
            run.keys.clone(),
            file.display().to_string(),
            shell_quoted(&run.command),
        );
        let counted = format!("{:>4}/{}  {}", i + 1, runs.len(), visible(&run.name()));
        if states[i] == State::Finished {
            row.memory = before.get(&row.file).copied();
            row = row.with(&Scores::read_parquet(&run.out)?);
            if stopped.is_none() {
                writeln!(out, "{counted}  was finished")?;
            }
        } else if stopped.is_some() {
            row.error = Some(UNMEASURED.into());
            summaries.push(row);
            continue;
        } else if let Entry::Vacant(place) = failed.entry(i) {
            match measure_one(run, matches!(states[i], State::Stale(_)), &desk, ctx) {
                Ok(scores) => {
                    row.memory = peak_memory();
                    row = row.with(&scores);
                    writeln!(out, "{counted}  {}", line(&scores, began))?;
                }
                Err(error) if is_interrupted(&error) => {
                    // The summary says of every run what is there, also of those that come later.
                    stopped = Some(error);
                    row.error = Some(UNMEASURED.into());
                }
                Err(error) => {
                    place.insert(said(&error));
                }
            }
        }
        if let Some(error) = failed.get(&i) {
            writeln!(out, "{counted}  failed: {}", visible(error))?;
            row.error = Some(error.clone());
        }
        out.flush()?;
        summaries.push(row);
    }
    summarise(&plan.out, &summaries)?;
    if let Some(error) = stopped {
        return Err(error);
    }
    writeln!(
        out,
        "\n{} of {} runs are there: {}",
        runs.len() - failed.len(),
        runs.len(),
        summary.display()
    )?;
    if failed.is_empty() {
        return Ok(());
    }
    Err(Error::BadPlan {
        path: path.to_path_buf(),
        reason: format!(
            "{} of {} runs failed, as said above and in `{}`; the same command tries them again",
            failed.len(),
            runs.len(),
            summary.display()
        ),
    }
    .into())
}

/// Writes the table of all runs of a plan, and a page of it, into the folder of its results.
/// # Errors
/// Those of writing.
pub fn summarise(folder: &Path, runs: &[RunSummary]) -> candlewick::error::Result<()> {
    write_summary(&folder.join("summary.parquet"), runs)?;
    let path = folder.join("summary.html");
    let page = runs_page(&folder.display().to_string(), runs)?;
    write_whole(&path, |file| {
        let path = path.clone();
        let written = file.write_all(page.as_bytes());
        written.map_err(|source| Error::Write { path, source })
    })
}

fn measure_one(run: &Run, stale: bool, desk: &Arc<Desk>, ctx: &Context) -> anyhow::Result<Scores> {
    let folder = run.out.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|source| Error::Write {
        path: folder.to_path_buf(),
        source,
    })?;
    reset_peak_memory();
    let ctx = at_desk(run, desk, ctx);
    if stale {
        // What is there stays until the new table takes its place.
        let forced = [&run.command[..], &["--force".into()]].concat();
        dispatch(&parse_again(&forced)?.0.command, &ctx)?;
    } else {
        dispatch(&run.parsed, &ctx)?;
    }
    let scores = desk.scores.lock().expect("no run panicked with it").take();
    scores.ok_or_else(|| Error::invalid("this command measures nothing").into())
}

fn is_interrupted(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<Error>(),
        Some(Error::Interrupted { .. })
    )
}

/// What a person reads of a run.
fn line(scores: &Scores, began: Instant) -> String {
    let about = &scores.provenance;
    let gap = (about.report.as_ref().and_then(|report| report.gap))
        .map_or(String::new(), |gap| format!(", gap {gap} {}", about.unit));
    let warnings = match about.warnings.len() {
        0 => String::new(),
        1 => ", 1 warning".to_string(),
        n => format!(", {n} warnings"),
    };
    format!(
        "{} rows from {} examples{gap}, {}{warnings}",
        scores.table.height(),
        about.examples,
        duration(began.elapsed().as_secs_f64())
    )
}

/// The largest resident memory of this process since [`reset_peak_memory`], where the system says it.
fn peak_memory() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes << 10)
}

/// Linux counts anew; elsewhere nothing happens.
fn reset_peak_memory() {
    let _ = fs::write("/proc/self/clear_refs", "5");
}
