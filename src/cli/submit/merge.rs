//! `candlewick submit merge`: the tables of what is finished; a part is believed only if it is of this very work.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use candlewick::Error;
use candlewick::methods::difference;
use candlewick::scores::parts::read_shard;
use candlewick::scores::{RunSummary, Scores};
use candlewick::text::{shell_quoted, visible};
use clap::Args;

use super::folder::{Job, Submission};
use super::status::Known;
use super::units::{Part, Record, Unit};
use crate::cli::merge::Merging;
use crate::cli::plan::{Desk, Stage, said, summarise};
use crate::cli::{Command, Context, dispatch, parse_again};

/// Make the tables of a submission from its parts: those whose parts are all there.
///
/// A part of another build, command, model, task or shard is set aside and named, and so is one that is missing or damaged, with
/// the line that submits exactly these again. Of a plan, `summary.parquet` says which runs are there.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick submit merge sharded.submission")]
pub struct MergeArgs {
    /// The folder of the submission.
    pub folder: PathBuf,
}

pub fn run(args: &MergeArgs, ctx: &Context) -> anyhow::Result<()> {
    let (mut submission, _held) = Submission::held(&args.folder)?;
    submission.check_build()?;
    merge(&mut submission, ctx)
}

/// Makes every table whose parts are there.
/// # Errors
/// [`Error::Submission`] that says what is missing.
pub fn merge(submission: &mut Submission, ctx: &Context) -> anyhow::Result<()> {
    let here = std::env::current_dir();
    submission.enter()?;
    let mut out = io::stdout().lock();
    let known = Known::asked(submission);
    let mut desk = Desk::new(Stage::Describe, true);
    // What keeps a table from being made, by job; and the units that are lacking.
    let mut reasons: BTreeMap<usize, String> = BTreeMap::new();
    let mut lacking = Vec::new();
    let all = submission.units();
    for units in all.chunk_by(|one, next| one.job == next.job) {
        let i = units[0].job;
        let job = submission.jobs[i].clone();
        if submission.is_done(&job) {
            continue;
        }
        let (back, merged) = one(submission, &job, units, desk, ctx);
        desk = back;
        match merged {
            Ok(()) => {
                submission.jobs[i].force = false;
                submission.write()?;
                writeln!(
                    out,
                    "merged {}: {}",
                    visible(&job.name),
                    visible(&job.out.display().to_string())
                )?;
            }
            Err(Unmerged::Lacking(wrong)) => {
                let said: Vec<String> = (wrong.iter())
                    .map(|(unit, why)| format!("{} {why}{}", unit.shard, slurm_says(&known, *unit)))
                    .collect();
                let said = format!("shard {}", said.join("; "));
                writeln!(
                    out,
                    "{} is not whole: {}",
                    visible(&job.name),
                    visible(&said)
                )?;
                lacking.extend(wrong.iter().map(|(unit, _)| unit.number.to_string()));
                reasons.insert(i, said);
            }
            Err(Unmerged::Failed(error)) => {
                if let Some(Error::Interrupted { .. }) = error.downcast_ref() {
                    return Err(error);
                }
                let said = said(&error);
                writeln!(
                    out,
                    "{} cannot be merged: {}",
                    visible(&job.name),
                    visible(&said)
                )?;
                reasons.insert(i, said);
            }
        }
    }
    summary(submission, &reasons)?;
    // Lines that are to be typed name the folder from where the user is.
    if let Ok(here) = here {
        let _ = std::env::set_current_dir(here);
    }
    if reasons.is_empty() {
        let (tables, first) = (submission.jobs.len(), &submission.jobs[0].out);
        match &submission.plan {
            Some((_, results)) => writeln!(
                out,
                "{}: {}",
                match tables {
                    1 => "the table is there".to_string(),
                    _ => format!("all {tables} tables are there"),
                },
                visible(&results.display().to_string())
            )?,
            None => writeln!(
                out,
                "`candlewick show {}` shows it",
                shell_quoted(&[first.display().to_string()])
            )?,
        }
        return Ok(());
    }
    let tables = submission.jobs.len();
    let first = reasons.values().next().map_or("", String::as_str);
    let reason = match lacking.is_empty() {
        true => format!(
            "{} of {tables} tables cannot be made: {}; {} tries again",
            reasons.len(),
            visible(first),
            submission.line("merge")
        ),
        false => format!(
            "{} of {tables} tables lack units {}; {} runs exactly these",
            reasons.len(),
            lacking.join(", "),
            submission.resubmission()
        ),
    };
    Err(submission.refuse(reason).into())
}

enum Unmerged {
    /// Units without a part of this work, and why.
    Lacking(Vec<(Unit, String)>),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Unmerged {
    fn from(error: E) -> Self {
        Unmerged::Failed(error.into())
    }
}

/// Makes the table of one job. The desk, with the model that it holds, comes back.
fn one(
    submission: &Submission,
    job: &Job,
    units: &[Unit],
    desk: Desk,
    ctx: &Context,
) -> (Desk, Result<(), Unmerged>) {
    // What is plainly missing is said without loading anything.
    let missing: Vec<(Unit, String)> = (units.iter())
        .filter(|&&unit| submission.part(unit) == Part::Missing)
        .map(|&unit| (unit, absent(submission, unit)))
        .collect();
    if missing.len() == units.len() {
        return (desk, Err(Unmerged::Lacking(missing)));
    }
    let desk = Arc::new(desk.at(Stage::Describe));
    let checked = verdicts(submission, job, units, &desk, ctx);
    let desk = Arc::into_inner(desk).expect("no run keeps the desk");
    match checked {
        Err(error) => (desk, Err(error)),
        Ok(wrong) if !wrong.is_empty() => (desk, Err(Unmerged::Lacking(wrong))),
        Ok(_) => {
            let desk = Arc::new(desk.at(Stage::Measure));
            let merged = table(submission, job, units, &desk, ctx);
            let desk = Arc::into_inner(desk).expect("no run keeps the desk");
            (desk, merged.map_err(Unmerged::Failed))
        }
    }
}

/// The units of a job whose parts are not of the work that its command does here and now. What is there in their place is set
/// aside.
fn verdicts(
    submission: &Submission,
    job: &Job,
    units: &[Unit],
    desk: &Arc<Desk>,
    ctx: &Context,
) -> Result<Vec<(Unit, String)>, Unmerged> {
    let (command, ctx) = at(desk, job.table_command(), None, ctx)?;
    dispatch(&command, &ctx)?;
    let work = desk.work.lock().expect("no run panicked with it").take();
    let work = work.ok_or_else(|| Error::invalid("this command measures nothing"))?;
    let mut wrong = Vec::new();
    for &unit in units {
        let path = submission.part_path(unit);
        let why = match submission.part(unit) {
            Part::Missing => {
                wrong.push((unit, absent(submission, unit)));
                continue;
            }
            Part::Foreign(why) => why,
            Part::Finished(_) => match read_shard(&path) {
                Ok((note, _)) if note.shard != unit.shard => {
                    format!("it is shard {}", note.shard)
                }
                Ok((note, _)) if note.plan == work => continue,
                Ok((note, _)) => format!("here and there {}", difference(&work, &note.plan)),
                Err(error) => format!("it is damaged: {error}"),
            },
        };
        let aside = path.with_extension("parquet.stale");
        fs::rename(&path, &aside).map_err(|source| Error::Write {
            path: aside.clone(),
            source,
        })?;
        let record = Record::Stale(why);
        submission.note(unit.number, &record)?;
        wrong.push((unit, record.to_string()));
    }
    Ok(wrong)
}

/// How Slurm says that a unit's task ended.
fn slurm_says(known: &Known, unit: Unit) -> String {
    let ended = known.ending(unit);
    ended.map_or(String::new(), |how| format!(" (Slurm: {how})"))
}

fn absent(submission: &Submission, unit: Unit) -> String {
    let record = submission.record(unit.number);
    record.map_or("is missing".into(), |record| record.to_string())
}

fn table(
    submission: &Submission,
    job: &Job,
    units: &[Unit],
    desk: &Arc<Desk>,
    ctx: &Context,
) -> anyhow::Result<()> {
    if let Some(folder) = job.out.parent() {
        fs::create_dir_all(folder).map_err(|source| Error::Write {
            path: folder.to_path_buf(),
            source,
        })?;
    }
    let mut command = job.table_command();
    if job.force {
        command.push("--force".into());
    }
    let shards = units
        .iter()
        .map(|&unit| submission.part_path(unit))
        .collect();
    let (parsed, mut ctx) = at(desk, command, Some(shards), ctx)?;
    // What the table says of itself is what the command alone would have made it say.
    ctx.command = job.table_command();
    dispatch(&parsed, &ctx)?;
    // The parts have served once the table is there.
    for &unit in units {
        let _ = fs::remove_file(submission.part_path(unit));
    }
    Ok(())
}

/// A command line at the desk, merging these shards.
fn at(
    desk: &Arc<Desk>,
    command: Vec<String>,
    shards: Option<Vec<PathBuf>>,
    ctx: &Context,
) -> anyhow::Result<(Command, Context)> {
    let (cli, typed) = parse_again(&command)
        .map_err(|error| Error::invalid(crate::cli::plan::first_line(&error)))?;
    let ctx = Context {
        quiet: true,
        typed,
        command,
        merging: shards.map(|shards| Merging { shards }),
        desk: Some(Arc::clone(desk)),
        ..ctx.clone()
    };
    Ok((cli.command, ctx))
}

/// The table of all runs of a plan, as `candlewick run` writes it.
fn summary(submission: &Submission, reasons: &BTreeMap<usize, String>) -> anyhow::Result<()> {
    let Some((_, results)) = &submission.plan else {
        return Ok(());
    };
    let mut rows = Vec::new();
    for (i, job) in submission.jobs.iter().enumerate() {
        let file = job.out.strip_prefix(results).unwrap_or(&job.out);
        let keys = job.keys.clone().unwrap_or_default();
        let command = shell_quoted(&job.table_command());
        let mut row = RunSummary::new(keys, file.display().to_string(), command);
        match reasons.get(&i) {
            Some(reason) => row.error = Some(reason.clone()),
            None => row = row.with(&Scores::read_parquet(&job.out)?),
        }
        rows.push(row);
    }
    fs::create_dir_all(results).map_err(|source| Error::Write {
        path: results.clone(),
        source,
    })?;
    Ok(summarise(results, &rows)?)
}
