//! From a command line, a plan or a folder to a submission: everything that can be wrong without weights is found here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::available_parallelism;

use candlewick::scores::{Lock, check_out};
use candlewick::text::visible;
use candlewick::{BUILD, Error};
use clap::Args;

use super::folder::{Job, Submission};
use super::slurm::check_idle;
use crate::cli::merge::without_flag;
use crate::cli::plan::{
    Desk, PlanFile, Run, Stage, State, at_desk, expand, first_line, impossible, is_plan,
    not_measuring, stale,
};
use crate::cli::{Context, asked, dispatch, parse_again};

/// How long a shard is to take where nobody says.
pub const MINUTES: f64 = 10.0;

/// What is submitted, and how it is cut.
#[derive(Debug, Args)]
pub struct WorkArgs {
    /// A plan (`.toml`); or the folder of a submission, whose missing units are submitted again.
    #[arg(value_name = "PLAN|FOLDER", required_unless_present = "command")]
    pub work: Option<PathBuf>,
    /// A measuring command, as it is typed after `candlewick`.
    #[arg(last = true, value_name = "COMMAND", conflicts_with = "work")]
    pub command: Vec<String>,
    /// Cut each run into so many shards.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub shards: Option<u32>,
    /// Cut each run into shards that take about so long, as a dry run on this machine estimates it for the threads that one is to
    /// have [default: 10].
    #[arg(long, value_name = "MINUTES", value_parser = minutes, conflicts_with = "shards")]
    pub minutes_per_shard: Option<f64>,
    /// The folder of the submission [default: the name of the results, with `.submission`].
    #[arg(long, value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
    /// Replace the submission that is in the folder; parts of runs that are the same in both are kept.
    #[arg(long)]
    pub replace: bool,
    /// Measure runs of a plan again whose results were made with other settings.
    #[arg(long, conflicts_with = "command")]
    pub replace_stale: bool,
}

impl WorkArgs {
    /// The submission that is asked for, with its folder made, and held. A unit of it will compute with so many threads, or
    /// with as many as this process.
    /// # Errors
    /// What is wrong with the command or the plan; a folder of other work, or that another process holds.
    pub fn submission(
        &self,
        threads: Option<usize>,
        ctx: &Context,
    ) -> anyhow::Result<(Submission, Lock)> {
        let Some(work) = &self.work else {
            return self.of_command(threads, ctx);
        };
        if work.is_dir() {
            let refused = [
                (self.shards.is_some(), "shards"),
                (self.minutes_per_shard.is_some(), "minutes-per-shard"),
                (self.folder.is_some(), "folder"),
                (self.replace, "replace"),
                (self.replace_stale, "replace-stale"),
            ];
            if let Some((_, flag)) = refused.iter().find(|(typed, _)| *typed) {
                return Err(Error::invalid(format!(
                    "`--{flag}` does nothing with the folder of a submission, whose work is settled; leave it out, or give the plan or the \
                     command again"
                ))
                .into());
            }
            let (submission, lock) = Submission::held(work)?;
            submission.check_build()?;
            return Ok((submission, lock));
        }
        if !is_plan(&work.to_string_lossy()) {
            return Err(Error::Missing {
                path: work.clone(),
                hint: "name a plan (`.toml`) or the folder of a submission, or put a command behind `--`".into(),
            }
            .into());
        }
        self.of_plan(work, threads, ctx)
    }

    fn of_plan(
        &self,
        path: &Path,
        threads: Option<usize>,
        ctx: &Context,
    ) -> anyhow::Result<(Submission, Lock)> {
        let plan = PlanFile::read(path)?;
        let runs = expand(&plan, path)?;
        let states = stale(&runs, path, self.replace_stale)?;
        let folder = self.folder.clone().unwrap_or_else(|| {
            let mut name = plan.out.clone().into_os_string();
            name.push(".submission");
            name.into()
        });
        let mut jobs = Vec::new();
        for (run, state) in runs.iter().zip(&states) {
            jobs.push(Job {
                name: run.name(),
                keys: Some(run.keys.clone()),
                command: run.command[..run.command.len() - 2].to_vec(),
                out: run.out.clone(),
                shards: 1,
                seconds: None,
                force: matches!(state, State::Stale(_)),
            });
        }
        let submission = Submission {
            plan: Some((path.to_path_buf(), plan.out.clone())),
            jobs,
            ..Submission::default()
        };
        let open: Vec<usize> = (0..runs.len())
            .filter(|&i| states[i] != State::Finished)
            .collect();
        self.settle(submission, &runs, &open, &folder, threads, ctx)
            .map_err(|error| match error.downcast::<Error>() {
                Ok(Error::Invalid(reason)) => Error::BadPlan {
                    path: path.to_path_buf(),
                    reason,
                }
                .into(),
                Ok(error) => error.into(),
                Err(error) => error,
            })
    }

    fn of_command(
        &self,
        threads: Option<usize>,
        ctx: &Context,
    ) -> anyhow::Result<(Submission, Lock)> {
        let words = match self.command.first().map(String::as_str) {
            Some("candlewick") => &self.command[1..],
            _ => &self.command[..],
        };
        if let Some(problem) = not_measuring(words) {
            return Err(Error::invalid(problem).into());
        }
        let typed_line = [&["candlewick".to_string()], words].concat();
        let parse =
            |line: &[String]| parse_again(line).map_err(|error| Error::invalid(first_line(&error)));
        let (cli, typed) = parse(&typed_line)?;
        if let Some((flag, instead)) =
            (ELSEWHERE.iter()).find(|(flag, _)| typed.iter().any(|typed| typed == flag))
        {
            let flag = flag.replace('_', "-");
            return Err(Error::invalid(format!(
                "`--{flag}` does nothing in a submission; {instead}"
            ))
            .into());
        }
        let (ask, common) = asked(&cli.command).expect("commands that measure were told apart");
        let out = match &common.output.out {
            Some(out) => out.clone(),
            None => ask.default_out().into(),
        };
        let force = common.output.force;
        let command = without_flag(&typed_line, &["--out", "-o"]);
        let command: Vec<String> = command
            .into_iter()
            .filter(|word| word != "--force")
            .collect();
        let mut run = Run {
            keys: Default::default(),
            model: common.model.model.clone(),
            revision: common.model.revision.clone(),
            seed: None,
            command: [&command[..], &["--out".into(), out.display().to_string()]].concat(),
            out: out.clone(),
            parsed: cli.command,
            typed,
        };
        let (cli, typed) = parse(&run.command)?;
        (run.parsed, run.typed) = (cli.command, typed);
        check_out(&out, &run.command, force)?;
        let is_open = force || run.state()? != State::Finished;
        let folder = (self.folder.clone()).unwrap_or_else(|| out.with_extension("submission"));
        let job = Job {
            // `feature attribute` and `circuit eval` are one command each.
            name: (words.iter().take(2))
                .take_while(|word| !word.starts_with('-'))
                .cloned()
                .collect::<Vec<_>>()
                .join(" "),
            keys: None,
            command,
            out,
            shards: 1,
            seconds: None,
            force,
        };
        let submission = Submission {
            jobs: vec![job],
            ..Submission::default()
        };
        let open: &[usize] = if is_open { &[0] } else { &[] };
        self.settle(submission, &[run], open, &folder, threads, ctx)
    }

    /// Checks what is to be measured, cuts it, and makes the folder.
    fn settle(
        &self,
        mut submission: Submission,
        runs: &[Run],
        open: &[usize],
        folder: &Path,
        threads: Option<usize>,
        ctx: &Context,
    ) -> anyhow::Result<(Submission, Lock)> {
        let failed = impossible(runs, open, ctx)?;
        if let Some((&first, error)) = failed.iter().next() {
            let which = match runs.len() {
                1 => String::new(),
                n => format!(
                    "{} of its {n} runs cannot be done, the first `{}`: ",
                    failed.len(),
                    visible(&runs[first].name())
                ),
            };
            return Err(Error::invalid(format!("{which}{error}")).into());
        }
        submission.build = BUILD.to_string();
        submission.folder = std::env::current_dir().map_err(|source| Error::Read {
            path: ".".into(),
            source,
        })?;
        submission.minutes = self.minutes_per_shard;
        let held = Submission::held_if_there(folder)?;
        let there = held.as_ref().map(|(there, _)| there);
        let shards = match self.shards {
            Some(shards) => BTreeMap::from_iter(open.iter().map(|&i| (i, (shards as usize, None)))),
            None => self.estimated(&submission, there, runs, open, threads, ctx)?,
        };
        for (i, (shards, seconds)) in shards {
            let job = &mut submission.jobs[i];
            (job.shards, job.seconds) = (shards, seconds);
        }
        if let Some(there) = there {
            // What is finished is cut as it was, so that the same work is seen to be the same.
            for i in (0..runs.len()).filter(|i| !open.contains(i)) {
                if let Some(other) = there.same_job(&submission.jobs[i]) {
                    submission.jobs[i].shards = other.shards;
                }
            }
            if self.replace {
                check_idle(there)?;
            }
        }
        Ok(submission.create(folder, held, self.replace)?)
    }

    /// Shards of each run and the seconds of all of them: as they were, where the same work was submitted before, else from the
    /// estimate of a dry run.
    fn estimated(
        &self,
        submission: &Submission,
        there: Option<&Submission>,
        runs: &[Run],
        open: &[usize],
        threads: Option<usize>,
        ctx: &Context,
    ) -> anyhow::Result<BTreeMap<usize, (usize, Option<f64>)>> {
        let there = there.filter(|there| {
            self.minutes_per_shard.is_none() || self.minutes_per_shard == there.minutes
        });
        let minutes = self.minutes_per_shard.unwrap_or(MINUTES);
        let mut shards = BTreeMap::new();
        let desk = Arc::new(Desk::new(Stage::Cost, true));
        for &i in open {
            if let Some(other) = there.and_then(|there| there.same_job(&submission.jobs[i])) {
                shards.insert(i, (other.shards, other.seconds));
                continue;
            }
            let estimate = || dispatch(&runs[i].parsed, &at_desk(&runs[i], &desk, ctx));
            match threads {
                Some(threads) => computing_with(threads, estimate)?,
                None => estimate()?,
            }
            let plan = desk.plan.lock().expect("no run panicked with it").take();
            let plan = plan.unwrap_or_default();
            let wanted = (plan.seconds / (60.0 * minutes)).ceil() as usize;
            let count = wanted.clamp(1, plan.units.max(1));
            shards.insert(i, (count, Some(plan.seconds)));
        }
        Ok(shards)
    }
}

/// Does something with so many threads, or as many as this machine has cores if these are fewer.
fn computing_with(
    threads: usize,
    what: impl FnOnce() -> anyhow::Result<()> + Send,
) -> anyhow::Result<()> {
    let cores = available_parallelism().map_or(1, usize::from);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.min(cores));
    pool.build()?.install(what)
}

/// Flags of a measuring command that a submission has in another place, or that act on what is printed.
const ELSEWHERE: [(&str, &str); 11] = [
    ("shard", "`--shards` says how many there are"),
    ("dry_run", "run the command itself with it"),
    (
        "composition",
        "it measures no prompts; run the command itself",
    ),
    (
        "threads",
        "give it behind `candlewick`, or to Slurm as `--cpus`",
    ),
    ("quiet", "give it behind `candlewick`"),
    ("color", "`candlewick show FILE` has it"),
    ("csv", "`candlewick show FILE` has it"),
    ("json", "`candlewick show FILE` has it"),
    ("top", "`candlewick show FILE` has it"),
    ("panel", "`candlewick show FILE` has it"),
    ("scale", "`candlewick show FILE` has it"),
];

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes.is_finite() && minutes > 0.0 => Ok(minutes),
        _ => Err("write a number of minutes, such as `10`".into()),
    }
}
