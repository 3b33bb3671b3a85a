//! `candlewick submit slurm`: the units as a job array, and a merge that follows it. Slurm schedules; we write scripts and ask.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::process::{Command, Output};

use candlewick::Error;
use candlewick::text::{one_line, visible};
use clap::Args;

use super::folder::{Round, Submission, write_text};
use super::script::{SlurmOptions, Template, scripts};
use super::work::{MINUTES, WorkArgs};
use crate::cli::Context;

/// Slurm's own default of MaxArraySize.
const MAX_ARRAY_SIZE: usize = 1001;

/// Write the scripts of a Slurm job array, and with `--run` submit them: the units, and a merge that follows.
///
/// Each task of the array runs a unit (several, where they are short, or more than an array may have), with the cores and the memory
/// of its allocation. Before its time limit it keeps what is finished and goes back into the queue. When all have ended, the merge makes
/// the tables, and says in logs/merge-N.log what is missing. Given the folder of a submission, what is missing is submitted again, with
/// the options that it had unless others are given.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  candlewick submit slurm --shards 8 --time 30 --cpus 4 -- patch --out cluster.parquet
  candlewick submit slurm plan.toml --folder on-cluster --minutes-per-shard 20")]
pub struct SlurmArgs {
    #[command(flatten)]
    pub work: WorkArgs,
    #[command(flatten)]
    pub options: SlurmOptions,
    /// Submit the scripts with `sbatch`.
    #[arg(long)]
    pub run: bool,
}

pub fn run(args: &SlurmArgs, ctx: &Context) -> anyhow::Result<()> {
    if args.run {
        // Before anything is measured or written.
        ask("sbatch", &["--version"]).map_err(|error| {
            Error::invalid(format!(
                "{error}; nothing was written or submitted: without `--run` the scripts are written, to be submitted later"
            ))
        })?;
    }
    let given = args.options.template.as_deref();
    let given = given.map(Template::read).transpose()?;
    // The scripts compute with one thread where no number of cores is asked for.
    let threads = args.options.cpus.map_or(1, usize::from);
    let (mut submission, _held) = args.work.submission(Some(threads), ctx)?;
    check_idle(&submission)?;
    submission.slurm = args.options.or(&submission.slurm);
    if let Some(template) = &mut submission.slurm.template {
        *template = std::path::absolute(&template).unwrap_or_default();
    }
    let template = match (given, &submission.slurm.template) {
        (Some(given), _) => given,
        (None, Some(path)) => Template::read(path)?,
        (None, None) => Template::default(),
    };
    let units = submission.open_units();
    if units.is_empty() {
        let merge = submission.line("merge");
        writeln!(
            io::stdout(),
            "all units are finished; {merge} makes the tables that are not there yet"
        )?;
        return Ok(());
    }
    let round = Round {
        per_task: per_task(&submission, &units),
        units,
        slurm: Some((String::new(), None)),
    };
    // Scripts that were written and not submitted are written again.
    let submitted = |round: &Round| !matches!(&round.slurm, Some((job, _)) if job.is_empty());
    submission.rounds.retain(submitted);
    let number = submission.rounds.len() + 1;
    let program = std::env::current_exe()?;
    let scripts = scripts(&submission, &round, number, &program, &template)?;
    let array = submission.path.join(format!("array-{number}.sbatch"));
    let merge = submission.path.join(format!("merge-{number}.sbatch"));
    write_text(&array, &scripts.array)?;
    write_text(&merge, &scripts.merge)?;
    submission.begin(round)?;
    let mut out = io::stdout().lock();
    let (n, tasks) = (submission.rounds[number - 1].units.len(), scripts.tasks);
    writeln!(
        out,
        "{n} unit{} in {tasks} task{}: {}",
        if n == 1 { "" } else { "s" },
        if tasks == 1 { "" } else { "s" },
        visible(&array.display().to_string())
    )?;
    if !args.run {
        writeln!(out, "{} submits them", submission.line("slurm --run"))?;
        return Ok(());
    }
    let job = sbatch(&submission, &array, None)?;
    submission.rounds[number - 1].slurm = Some((job.clone(), None));
    submission.write()?;
    writeln!(out, "submitted: job {job}")?;
    // It validates what is there, also where tasks have failed.
    let merging = sbatch(&submission, &merge, Some(&job)).map_err(|error| {
        submission.refuse(format!(
            "job {job} is submitted, but its merge is not ({error}); when it has ended, {} makes the tables",
            submission.line("merge")
        ))
    })?;
    submission.rounds[number - 1].slurm = Some((job, Some(merging.clone())));
    submission.write()?;
    writeln!(
        out,
        "the merge follows as job {merging}; {} says how far it is",
        submission.line("status")
    )?;
    Ok(())
}

/// How many units a task runs: as many as take about the wanted time, and so many that an array can hold all tasks.
fn per_task(submission: &Submission, units: &[usize]) -> usize {
    let all = submission.units();
    let seconds = |unit: &usize| {
        let job = &submission.jobs[all[unit - 1].job];
        Some(job.seconds? / job.shards as f64)
    };
    let known: Option<Vec<f64>> = units.iter().map(seconds).collect();
    let wanted = known.map_or(1, |known| {
        let mean = known.iter().sum::<f64>() / known.len() as f64;
        let minutes = submission.minutes.unwrap_or(MINUTES);
        (60.0 * minutes / mean.max(0.01)).floor() as usize
    });
    // Indices go from 1 to one less than the size.
    let most = max_array_size().saturating_sub(1).max(1);
    wanted.clamp(1, units.len()).max(units.len().div_ceil(most))
}

fn max_array_size() -> usize {
    let told = ask("scontrol", &["show", "config"]).unwrap_or_default();
    let line = told
        .lines()
        .find_map(|line| line.strip_prefix("MaxArraySize"));
    let size = line.and_then(|line| line.trim_start_matches([' ', '=']).trim().parse().ok());
    size.unwrap_or(MAX_ARRAY_SIZE)
}

/// Submits a script, and gives the number of the job.
fn sbatch(submission: &Submission, script: &Path, after: Option<&str>) -> Result<String, Error> {
    let mut command = Command::new("sbatch");
    command
        .arg("--parsable")
        .arg("--chdir")
        .arg(&submission.path);
    if let Some(job) = after {
        command.arg(format!("--dependency=afterany:{job}"));
    }
    command.arg(script);
    let told = answer("sbatch", command.output()).map_err(|error| {
        submission.refuse(format!(
            "{error}; nothing is lost: when that is mended, {} submits it",
            submission.line("slurm --run")
        ))
    })?;
    // `1234`, or `1234;cluster`.
    let job = told.trim().split(';').next().unwrap_or_default();
    if job.is_empty() || !job.bytes().all(|byte| byte.is_ascii_digit()) {
        let told = visible(&one_line(&told));
        return Err(submission.refuse(format!("`sbatch` gave no job: `{told}`")));
    }
    Ok(job.to_string())
}

/// What a program of Slurm answers.
/// # Errors
/// [`Error::Invalid`] with what it says.
pub fn ask(program: &str, arguments: &[&str]) -> Result<String, Error> {
    answer(program, Command::new(program).args(arguments).output())
}

fn answer(program: &str, output: io::Result<Output>) -> Result<String, Error> {
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Err(Error::invalid(format!(
                "there is no `{program}` here, so no Slurm; run this on a login node of the cluster, or use `candlewick submit local`"
            )));
        }
        Err(error) => {
            return Err(Error::invalid(format!("`{program}` does not run: {error}")));
        }
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = visible(&one_line(said.trim()));
        return Err(Error::invalid(format!("`{program}` refuses: {said}")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A task in the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// As Slurm says it: `RUNNING`, `PENDING`, ...
    pub state: String,
    pub time: String,
    /// Where it runs, or why it waits.
    pub place: String,
}

impl Task {
    pub fn is_waiting(&self) -> bool {
        ["PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED"].contains(&self.state.as_str())
    }
}

/// The tasks of the submission's arrays that are in the queue, by round and index; and merges, with index 0.
/// # Errors
/// [`Error::Invalid`] if a job was submitted and Slurm does not answer.
pub fn queue(submission: &Submission) -> Result<BTreeMap<(usize, usize), Task>, Error> {
    let mut jobs: BTreeMap<&str, (usize, bool)> = BTreeMap::new();
    for (round, about) in submission.rounds.iter().enumerate() {
        if let Some((job, merge)) = &about.slurm {
            jobs.insert(job, (round, false));
            jobs.extend(merge.iter().map(|merge| (merge.as_str(), (round, true))));
        }
    }
    jobs.remove("");
    if jobs.is_empty() {
        return Ok(BTreeMap::new());
    }
    let told = ask("squeue", &["--me", "-h", "-r", "-o", "%F|%K|%T|%M|%R"])?;
    let mut tasks = BTreeMap::new();
    for line in told.lines() {
        let fields: Vec<&str> = line.splitn(5, '|').map(str::trim).collect();
        let &[job, index, state, time, place] = &fields[..] else {
            continue;
        };
        if let Some(&(round, is_merge)) = jobs.get(job) {
            let index = if is_merge {
                0
            } else {
                index.parse().unwrap_or(0)
            };
            let task = Task {
                state: visible(state),
                time: visible(time),
                place: visible(place),
            };
            tasks.insert((round, index), task);
        }
    }
    Ok(tasks)
}

/// Refuses to submit what is in the queue already.
/// # Errors
/// [`Error::Submission`]; [`Error::Invalid`] if Slurm does not answer.
pub fn check_idle(submission: &Submission) -> Result<(), Error> {
    let tasks = queue(submission)?;
    if tasks.is_empty() {
        return Ok(());
    }
    Err(submission.refuse(format!(
        "{} of its tasks are in the queue; wait for them ({}), or take them out with {}",
        tasks.len(),
        submission.line("status"),
        submission.line("cancel")
    )))
}

/// How the tasks of a job ended, by index: `FAILED, exit 3`. Slurm itself remembers for some minutes; its accounting, where a
/// cluster has one, for good.
pub fn endings(job: &str) -> BTreeMap<usize, String> {
    let told = ask("scontrol", &["show", "job", job, "-o"]).unwrap_or_default();
    let known: BTreeMap<usize, String> = told.lines().filter_map(ending).collect();
    if !known.is_empty() || told.contains("JobState=") {
        return known;
    }
    let columns = "--format=JobID,State,ExitCode";
    let told = ask("sacct", &["-j", job, "-X", "-n", "-P", columns]).unwrap_or_default();
    told.lines().filter_map(accounted).collect()
}

/// From a line of `scontrol`.
fn ending(line: &str) -> Option<(usize, String)> {
    let field = |name: &str| {
        let mut words = line.split(' ');
        words.find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    };
    let index = field("ArrayTaskId")?.parse().ok()?;
    let how = ended(field("JobState")?, field("ExitCode").unwrap_or_default())?;
    Some((index, how))
}

/// From a line of `sacct`: `12_3|FAILED|3:0`, `12_4|CANCELLED by 1000|0:15`.
fn accounted(line: &str) -> Option<(usize, String)> {
    let [job, state, exit] = line.trim().split('|').collect::<Vec<_>>()[..] else {
        return None;
    };
    let index = job.split_once('_')?.1.parse().ok()?;
    Some((index, ended(state.split(' ').next()?, exit)?))
}

/// A state and an exit code (`code:signal`) of Slurm, for a person; nothing of a task that has not ended.
fn ended(state: &str, exit: &str) -> Option<String> {
    if ["PENDING", "RUNNING", "COMPLETING", "CONFIGURING"].contains(&state) {
        return None;
    }
    let (code, signal) = exit.split_once(':').unwrap_or((exit, "0"));
    let how = match (code, signal) {
        ("0" | "", "0") => state.to_string(),
        (code, "0") => format!("{state}, exit {code}"),
        (_, signal) => format!("{state}, signal {signal}"),
    };
    Some(visible(&how))
}

/// Takes jobs out of the queue.
/// # Errors
/// [`Error::Invalid`] with what Slurm says.
pub fn cancel(jobs: &[&str]) -> Result<(), Error> {
    ask("scancel", jobs).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_tasks_ended_is_read_from_both_programs() {
        let line = "JobId=14 ArrayJobId=12 ArrayTaskId=3 JobState=FAILED Reason=None ExitCode=3:0";
        assert_eq!(ending(line), Some((3, "FAILED, exit 3".into())));
        assert_eq!(ending(&line.replace("FAILED", "RUNNING")), None);
        for (line, how) in [
            ("12_3|FAILED|3:0", Some("FAILED, exit 3")),
            ("12_3|CANCELLED by 1000|0:15", Some("CANCELLED, signal 15")),
            ("12_3|COMPLETED|0:0", Some("COMPLETED")),
            ("12_3|PENDING|0:0", None),
            ("12_[4-9]|TIMEOUT|0:0", None),
            ("12|TIMEOUT", None),
        ] {
            assert_eq!(accounted(line), how.map(|how| (3, how.into())), "{line}");
        }
    }
}
