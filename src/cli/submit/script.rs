//! The scripts of a Slurm array and of the merge that follows it: text, which a shell reads as it was meant.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use candlewick::Error;
use candlewick::text::{shell_quoted, visible};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::folder::{Round, Submission};

/// The longest template.
const LIMIT: usize = 1 << 20;

/// What Slurm is asked for.
#[derive(Debug, Clone, Default, PartialEq, Args, Serialize, Deserialize)]
#[command(next_help_heading = "Slurm")]
pub struct SlurmOptions {
    /// Time limit of a task, such as `30`, `2:00:00` or `1-12` [default: the cluster's].
    #[arg(long, value_parser = time)]
    pub time: Option<String>,
    /// Memory of a task, such as `8G` [default: the cluster's].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub mem: Option<String>,
    /// Cores of a task, and threads to compute with.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub cpus: Option<u16>,
    #[arg(long, value_name = "NAME", value_parser = name, help = "Partition to run in")]
    pub partition: Option<String>,
    #[arg(long, value_name = "NAME", value_parser = name, help = "Account to charge")]
    pub account: Option<String>,
    /// Tasks that run at once, at most.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub array_throttle: Option<u32>,
    /// A file of lines for the script: those that begin with `#SBATCH` go to its head, the others (`module load ..`) run
    /// before the work.
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
}

impl SlurmOptions {
    /// These, and where nothing is said the earlier ones.
    pub fn or(&self, earlier: &SlurmOptions) -> SlurmOptions {
        let (new, old) = (self.clone(), earlier.clone());
        SlurmOptions {
            time: new.time.or(old.time),
            mem: new.mem.or(old.mem),
            cpus: new.cpus.or(old.cpus),
            partition: new.partition.or(old.partition),
            account: new.account.or(old.account),
            array_throttle: new.array_throttle.or(old.array_throttle),
            template: new.template.or(old.template),
        }
    }

    /// Whether they are what their flags take; a file can say anything.
    pub fn are_valid(&self) -> bool {
        let holds = |value: &Option<String>, parse: fn(&str) -> Result<String, String>| {
            value.as_deref().is_none_or(|value| parse(value).is_ok())
        };
        holds(&self.time, time)
            && holds(&self.mem, memory)
            && holds(&self.partition, name)
            && holds(&self.account, name)
    }

    /// Lines of the head that hold for the array and the merge.
    fn head(&self) -> String {
        let mut head = String::new();
        let cpus = self.cpus.map(|cpus| cpus.to_string());
        for (flag, value) in [
            ("time", &self.time),
            ("mem", &self.mem),
            ("cpus-per-task", &cpus),
            ("partition", &self.partition),
            ("account", &self.account),
        ] {
            if let Some(value) = value {
                let _ = writeln!(head, "#SBATCH --{flag}={value}");
            }
        }
        head
    }

    /// How long before the limit the work is told to stop.
    fn notice(&self) -> u64 {
        let limit = self.time.as_deref().and_then(seconds);
        limit.map_or(60, |limit| (limit / 4).clamp(1, 60))
    }
}

/// A template, cut into lines for the head and lines to run.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Template {
    head: String,
    setup: String,
}

impl Template {
    /// # Errors
    /// [`Error::Read`]; [`Error::Invalid`] for a line that is this program's own.
    pub fn read(path: &Path) -> Result<Template, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.to_path_buf(),
            source,
        })?;
        if text.len() > LIMIT {
            return Err(Error::invalid(format!(
                "`{}` is longer than 1 MB, and so no template of a script",
                path.display()
            )));
        }
        let mut template = Template::default();
        for (number, line) in text.lines().enumerate() {
            if let Some(rest) = line.strip_prefix("#SBATCH") {
                let flag = rest.trim_start().split([' ', '=']).next().unwrap_or("");
                let own = [
                    "--array",
                    "--output",
                    "--dependency",
                    "--signal",
                    "--no-requeue",
                    "--time",
                ];
                let short = ["-a", "-o", "-d", "-t"];
                if own.contains(&flag) || short.iter().any(|f| flag.starts_with(f)) {
                    return Err(Error::invalid(format!(
                        "`{}`, line {}: `{}` is set by candlewick (`--time` is a flag of `submit slurm`); leave it out",
                        path.display(),
                        number + 1,
                        visible(flag)
                    )));
                }
                template.head += &format!("{}\n", line.trim_end());
            } else if !line.starts_with("#!") {
                template.setup += &format!("{line}\n");
            }
        }
        Ok(template)
    }
}

/// Scripts of one round.
pub struct Scripts {
    pub array: String,
    pub merge: String,
    pub tasks: usize,
}

/// Writes the scripts of a round, numbered from 1.
/// # Errors
/// [`Error::Submission`] for a folder whose name is no text.
pub fn scripts(
    submission: &Submission,
    round: &Round,
    number: usize,
    program: &Path,
    template: &Template,
) -> Result<Scripts, Error> {
    let text = |path: &Path| {
        let text = path.to_str().filter(|text| !text.contains('\0'));
        text.map(String::from).ok_or_else(|| {
            submission.refuse("its name is no text; choose another `--folder`".into())
        })
    };
    let quoted = |words: &[String]| shell_quoted(words);
    let program = quoted(&[text(program)?]);
    let folder = quoted(&[text(&submission.path)?]);
    let options = &submission.slurm;
    let tasks = round.units.len().div_ceil(round.per_task);
    let throttle = (options.array_throttle).map_or(String::new(), |most| format!("%{most}"));
    let head = options.head();
    let notice = options.notice();
    let units: Vec<String> = round.units.iter().map(usize::to_string).collect();
    let units = units.join(" ");
    let per_task = round.per_task;
    let Template {
        head: own_head,
        setup,
    } = template;
    let array = format!(
        r#"#!/usr/bin/env bash
# Written by `candlewick submit slurm`, round {number}: {n} units of work in {tasks} tasks. Each is a shard of a command of
# submission.json; `candlewick submit unit FOLDER N` runs one by hand.
#SBATCH --job-name=candlewick
#SBATCH --array=1-{tasks}{throttle}
#SBATCH --output=logs/round-{number}-task-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{notice}
{head}{own_head}
{setup}
units=({units})
per_task={per_task}
first=$(((SLURM_ARRAY_TASK_ID - 1) * per_task))

# Before the time limit the work is told to stop: it keeps what is finished, and the task goes back into the queue.
stopped=
woken=
trap '[ -n "$stopped" ] || kill -INT "$work"; stopped=1; woken=1' USR1
{program} --threads "${{SLURM_CPUS_PER_TASK:-1}}" submit unit --time-limit {folder} "${{units[@]:first:per_task}}" &
work=$!
code=0
# A signal ends the wait, not the work.
while woken=; wait "$work"; ended=$?; [ "$ended" = 127 ] || code=$ended; [ -n "$woken" ]; do :; done
if [ "$code" = 130 ]; then
  scontrol requeue "$SLURM_JOB_ID" && sleep 60
fi
exit "$code"
"#,
        n = round.units.len(),
    );
    let merge = format!(
        r#"#!/usr/bin/env bash
# Written by `candlewick submit slurm`: makes the tables of what round {number} finished, and says what is missing.
#SBATCH --job-name=candlewick-merge
#SBATCH --output=logs/merge-{number}.log
{head}{own_head}
{setup}
exec {program} --threads "${{SLURM_CPUS_PER_TASK:-1}}" submit merge {folder}
"#,
    );
    Ok(Scripts {
        array,
        merge,
        tasks,
    })
}

/// Seconds of a time as Slurm reads it: `minutes`, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, ...
fn seconds(text: &str) -> Option<u64> {
    let (days, rest) = match text.split_once('-') {
        Some((days, rest)) => (Some(days.parse::<u32>().ok()?), rest),
        None => (None, text),
    };
    let numbers: Vec<u64> = (rest.split(':'))
        .map(|number| number.parse::<u32>().ok().map(u64::from))
        .collect::<Option<_>>()?;
    Some(match (days, &numbers[..]) {
        (Some(days), &[h]) => u64::from(days) * 86_400 + h * 3_600,
        (Some(days), &[h, m]) => u64::from(days) * 86_400 + h * 3_600 + m * 60,
        (Some(days), &[h, m, s]) => u64::from(days) * 86_400 + h * 3_600 + m * 60 + s,
        (None, &[m]) => m * 60,
        (None, &[m, s]) => m * 60 + s,
        (None, &[h, m, s]) => h * 3_600 + m * 60 + s,
        _ => return None,
    })
}

fn time(text: &str) -> Result<String, String> {
    match seconds(text) {
        Some(seconds) if seconds > 0 => Ok(text.to_string()),
        _ => Err("write minutes, such as `30`, or `hours:minutes:seconds`, or `days-hours`".into()),
    }
}

fn memory(text: &str) -> Result<String, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let is_size = text.len() - digits.len() <= 1
        && digits.parse::<u64>().is_ok_and(|size| size > 0)
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    match is_size {
        true => Ok(text.to_string()),
        false => Err("write a size as Slurm reads it, such as `8G` or `500M`".into()),
    }
}

/// A name that cannot be anything else in a line of the head.
fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_alphanumeric() || "-_.,@:+".contains(c);
    match !text.is_empty() && !text.starts_with('-') && text.chars().all(plain) {
        true => Ok(text.to_string()),
        false => Err("a name has letters, digits, `-`, `_`, `.`, and no spaces".into()),
    }
}
