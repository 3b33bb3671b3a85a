//! `candlewick submit status`: which units wait, run, are finished, have failed.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::PathBuf;

use candlewick::text::{Align, aligned, duration, visible};
use clap::Args;

use super::folder::Submission;
use super::slurm::{Task, endings, queue};
use super::units::{Part, Record, Unit};

/// Say of a submission which units wait, run, are finished and have failed, with their times.
///
/// What is finished is read from the parts themselves; the rest from Slurm, where it is in the queue or has just ended, and from
/// what units wrote down.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick submit status sharded.submission")]
pub struct StatusArgs {
    /// The folder of the submission.
    pub folder: PathBuf,
}

pub fn run(args: &StatusArgs) -> anyhow::Result<()> {
    let submission = Submission::read(&args.folder)?;
    let (queue, unknown) = match queue(&submission) {
        Ok(queue) => (queue, None),
        Err(error) => (BTreeMap::new(), Some(error)),
    };
    let known = Known::new(&submission, queue);
    let mut out = io::stdout().lock();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut rows = vec![["unit", "shard", "state", "time", "run", "about"].map(String::from)];
    for unit in submission.units() {
        let state = known.state(unit);
        *counts.entry(state.name).or_default() += 1;
        rows.push([
            unit.number.to_string(),
            unit.shard.to_string(),
            state.name.to_string(),
            state.time,
            visible(&submission.jobs[unit.job].name),
            visible(&state.about),
        ]);
    }
    let align = [
        Align::Right,
        Align::Left,
        Align::Left,
        Align::Right,
        Align::Left,
        Align::Left,
    ];
    writeln!(out, "{}", aligned(&rows, &align).trim_end())?;
    let counts: Vec<String> = (counts.iter())
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    let done = (submission.jobs.iter())
        .filter(|job| submission.is_done(job))
        .count();
    writeln!(
        out,
        "\n{} units: {}; {done} of {} tables are there",
        submission.units().len(),
        counts.join(", "),
        submission.jobs.len()
    )?;
    if let Some(error) = unknown {
        writeln!(out, "what is in the queue is not known: {error}")?;
    } else if known.is_idle() && done < submission.jobs.len() {
        let left = submission.open_units().len();
        let what = match left {
            0 => format!("{} makes the tables", submission.line("merge")),
            _ => format!(
                "{} runs the {left} that are not finished",
                submission.resubmission()
            ),
        };
        writeln!(out, "{what}")?;
    }
    Ok(())
}

/// All that others say of the units.
pub struct Known {
    submission: Submission,
    queue: BTreeMap<(usize, usize), Task>,
    /// How tasks ended, by round.
    endings: BTreeMap<usize, BTreeMap<usize, String>>,
    done: Vec<bool>,
    /// A process of this machine runs it.
    is_held: bool,
}

struct State {
    name: &'static str,
    time: String,
    about: String,
}

impl Known {
    /// With what Slurm says, if it answers.
    pub fn asked(submission: &Submission) -> Self {
        Known::new(submission, queue(submission).unwrap_or_default())
    }

    fn new(submission: &Submission, queue: BTreeMap<(usize, usize), Task>) -> Self {
        let rounds = submission.rounds.iter().enumerate();
        let jobs = rounds.filter_map(|(round, about)| Some((round, &about.slurm.as_ref()?.0)));
        let jobs = jobs.filter(|(_, job)| !job.is_empty());
        Known {
            endings: jobs.map(|(round, job)| (round, endings(job))).collect(),
            done: (submission.jobs.iter())
                .map(|job| submission.is_done(job))
                .collect(),
            is_held: submission.holder().is_some(),
            submission: submission.clone(),
            queue,
        }
    }

    /// How the task of a unit ended, as far as Slurm remembers.
    pub fn ending(&self, unit: Unit) -> Option<&String> {
        let (round, index) = self.task(unit)?;
        let ended = self.endings.get(&round)?.get(&index)?;
        (ended != "COMPLETED").then_some(ended)
    }

    fn is_idle(&self) -> bool {
        let mut units = self.submission.units().into_iter();
        let runs = |unit: Unit| self.submission.worker(unit.number).is_some();
        self.queue.is_empty() && !self.is_held && !units.any(runs)
    }

    /// The last round that a unit was in, and the index of its task.
    fn task(&self, unit: Unit) -> Option<(usize, usize)> {
        let rounds = self.submission.rounds.iter().enumerate().rev();
        let mut found = rounds.filter_map(|(round, about)| {
            let at = about.units.iter().position(|&other| other == unit.number)?;
            Some((round, at / about.per_task + 1))
        });
        found.next()
    }

    fn state(&self, unit: Unit) -> State {
        let state = |name, about: String| State {
            name,
            time: String::new(),
            about,
        };
        if self.done[unit.job] {
            return state("merged", String::new());
        }
        let foreign = match self.submission.part(unit) {
            Part::Finished(note) => {
                return State {
                    time: duration(note.seconds),
                    ..state("finished", String::new())
                };
            }
            Part::Foreign(why) => Some(why),
            Part::Missing => None,
        };
        let task = self.task(unit);
        if let Some(task) = task.and_then(|task| self.queue.get(&task)) {
            let name = match (task.is_waiting(), self.submission.record(unit.number)) {
                (true, _) => "waiting",
                (false, Some(Record::Running)) => "running",
                // Another unit of the same task, or the script has just begun.
                (false, _) => "next",
            };
            return State {
                time: task.time.clone(),
                ..state(name, task.place.clone())
            };
        }
        if let Some(owner) = self.submission.worker(unit.number) {
            let about = if owner.is_here() {
                String::new()
            } else {
                owner.to_string()
            };
            return state("running", about);
        }
        let record = self.submission.record(unit.number);
        if let (Some(why), false) = (foreign, matches!(record, Some(Record::Failed(_)))) {
            return state("stale", why);
        }
        let slurm = self
            .ending(unit)
            .map_or(String::new(), |how| format!("Slurm: {how}"));
        match record {
            Some(record) if !record.why().is_empty() => state(record.state(), record.why().into()),
            Some(Record::Running) if slurm.is_empty() => {
                state(Record::Running.state(), "it ended without a word".into())
            }
            Some(record) => state(record.state(), slurm),
            None if self.is_held => state("waiting", String::new()),
            None if !slurm.is_empty() => state("failed", slurm),
            None => state("not begun", String::new()),
        }
    }
}
