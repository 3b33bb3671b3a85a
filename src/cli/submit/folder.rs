//! What was submitted: a folder that says which units of work there are, and holds their parts, logs and scripts.
//! `submission.json` is what was asked for.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf, absolute};

use candlewick::scores::{Lock, Owner, write_whole};
use candlewick::text::{shell_quoted, visible};
use candlewick::{BUILD, Error};
use serde::{Deserialize, Serialize};

use super::script::SlurmOptions;

const MANIFEST: &str = "submission.json";
/// Longer files are not ours.
const LIMIT: u64 = 64 << 20;
/// More units than this are more than a scheduler keeps track of.
const MOST_UNITS: usize = 1_000_000;

/// All that was asked for, and what was handed to a scheduler so far.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Submission {
    /// Its folder, absolute.
    #[serde(skip)]
    pub path: PathBuf,
    /// Which build measures it: parts of another are refused.
    pub build: String,
    /// What relative paths of the commands start from.
    pub folder: PathBuf,
    /// The plan that it was made from, and the folder of its results.
    pub plan: Option<(PathBuf, PathBuf)>,
    pub jobs: Vec<Job>,
    pub rounds: Vec<Round>,
    /// How long a task is to take.
    #[serde(default)]
    pub minutes: Option<f64>,
    /// As they were last given.
    pub slurm: SlurmOptions,
}

/// One table to come: a command, cut into shards.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What a person calls it.
    pub name: String,
    /// Of a plan: its folders.
    pub keys: Option<[String; 3]>,
    /// Program first, without `--out` and `--shard`.
    pub command: Vec<String>,
    pub out: PathBuf,
    pub shards: usize,
    /// What it was estimated to take.
    pub seconds: Option<f64>,
    /// Results of other settings that are there already are replaced.
    pub force: bool,
}

/// Units that were handed to a scheduler together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    pub units: Vec<usize>,
    pub per_task: usize,
    /// With its job, and the one that merges; nothing for local processes.
    pub slurm: Option<(String, Option<String>)>,
}

impl Submission {
    /// Reads a submission, and holds it, so that nobody else submits or runs it meanwhile.
    /// # Errors
    /// [`Error::Submission`] if somebody does; those of [`Submission::read`].
    pub fn held(path: &Path) -> Result<(Submission, Lock), Error> {
        check_manifest(path)?;
        let lock = hold(path)?;
        Ok((Submission::read(path)?, lock))
    }

    /// As [`Submission::held`], where there is one.
    /// # Errors
    /// Those of [`Submission::held`].
    pub fn held_if_there(path: &Path) -> Result<Option<(Submission, Lock)>, Error> {
        let is_there = path.join(MANIFEST).is_file();
        is_there.then(|| Submission::held(path)).transpose()
    }

    /// # Errors
    /// [`Error::Submission`] for a folder that holds none; [`Error::Read`].
    pub fn read(path: &Path) -> Result<Submission, Error> {
        let manifest = path.join(MANIFEST);
        let unread = |source| Error::Read {
            path: manifest.clone(),
            source,
        };
        check_manifest(path)?;
        let mut text = String::new();
        let file = File::open(&manifest).map_err(unread)?;
        file.take(LIMIT).read_to_string(&mut text).map_err(unread)?;
        let malformed = |reason: String| Error::Malformed {
            path: manifest.clone(),
            format: "submission",
            reason: visible(&reason),
        };
        let mut read: Submission =
            serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
        let units = (read.jobs.iter()).try_fold(0_usize, |all, job| all.checked_add(job.shards));
        if read.jobs.iter().any(|job| job.shards == 0)
            || units.is_none_or(|units| units > MOST_UNITS)
        {
            return Err(malformed("it has a job of no shards, or too many".into()));
        }
        let n = read.units().len();
        let known = |unit: &usize| (1..=n).contains(unit);
        if !read
            .rounds
            .iter()
            .all(|round| round.per_task > 0 && round.units.iter().all(known))
        {
            return Err(malformed(
                "a round of it has units that it does not have".into(),
            ));
        }
        if !read.slurm.are_valid() {
            return Err(malformed("its options for Slurm are none".into()));
        }
        read.path = absolute(path).map_err(unread)?;
        Ok(read)
    }

    /// Makes the folder of this submission; or, if the same work is `there`, gives that: then what was handed out so far is known.
    /// # Errors
    /// [`Error::Submission`] if other work is there, unless it is to be replaced; [`Error::Write`].
    pub fn create(
        mut self,
        path: &Path,
        there: Option<(Submission, Lock)>,
        replace: bool,
    ) -> Result<(Submission, Lock), Error> {
        let unwritten = |source| Error::Write {
            path: path.to_path_buf(),
            source,
        };
        self.path = absolute(path).map_err(unwritten)?;
        let lock = match there {
            Some((there, lock)) if !replace => return Ok((self.same_as(there)?, lock)),
            Some((_, lock)) => lock,
            None => {
                if holds_other_files(path) {
                    let reason = "it holds other files; `--folder` names another place";
                    return Err(refuse(path, reason.into()));
                }
                fs::create_dir_all(path).map_err(unwritten)?;
                let lock = hold(path)?;
                if path.join(MANIFEST).is_file() {
                    let reason = "it was made just now by another process; try again";
                    return Err(refuse(path, reason.into()));
                }
                lock
            }
        };
        for folder in ["parts", "logs", "units"] {
            fs::create_dir_all(self.path.join(folder)).map_err(unwritten)?;
        }
        self.write()?;
        Ok((self, lock))
    }

    /// The submission that is there, if it is of this work.
    fn same_as(&self, mut there: Submission) -> Result<Submission, Error> {
        let path = &there.path;
        if there.build != self.build {
            return Err(refuse(
                path,
                format!(
                    "it was made by candlewick {}, and this is {}, whose numbers may differ; `--replace` measures all of it again, \
                     `--folder` names another place",
                    visible(&there.build),
                    self.build
                ),
            ));
        }
        let cut = self.jobs.iter().find_map(|job| {
            let other = there
                .same_job(job)
                .filter(|other| other.shards != job.shards)?;
            Some((job, other.shards))
        });
        if let Some((job, shards)) = cut {
            return Err(refuse(
                path,
                format!(
                    "there `{}` is cut into {shards} shards, here into {}, whose parts are others; leave `--shards` out, begin anew with \
                     `--replace`, or name another place with `--folder`",
                    visible(&job.name),
                    job.shards
                ),
            ));
        }
        let same = self
            .jobs
            .iter()
            .filter(|job| there.same_job(job).is_some())
            .count();
        if same < self.jobs.len() || self.jobs.len() != there.jobs.len() {
            return Err(refuse(
                path,
                format!(
                    "it holds other work: {same} of {} runs are the same in both; `--replace` keeps what is measured of these and takes up \
                     the others, `--folder` names another place",
                    self.jobs.len()
                ),
            ));
        }
        // What may be replaced is asked anew each time.
        for job in &mut there.jobs {
            job.force |= self.same_job(job).is_some_and(|new| new.force);
        }
        there.minutes = self.minutes.or(there.minutes);
        there.write()?;
        Ok(there)
    }

    /// The job that makes the same table, however it is cut.
    pub fn same_job(&self, job: &Job) -> Option<&Job> {
        let is_same = |other: &&Job| other.command == job.command && other.out == job.out;
        self.jobs.iter().find(is_same)
    }

    /// # Errors
    /// [`Error::Write`].
    pub fn write(&self) -> Result<(), Error> {
        let text = serde_json::to_string_pretty(self).expect("its keys are text");
        write_text(&self.path.join(MANIFEST), &text)
    }

    /// Takes up a round: how its units ended before is history.
    /// # Errors
    /// [`Error::Write`].
    pub fn begin(&mut self, round: Round) -> Result<(), Error> {
        for &unit in &round.units {
            // It may never have begun.
            let _ = fs::remove_file(self.record_path(unit));
        }
        self.rounds.push(round);
        self.write()
    }

    /// Refuses to go on with another build.
    pub fn check_build(&self) -> Result<(), Error> {
        if self.build == BUILD {
            return Ok(());
        }
        Err(self.refuse(format!(
            "it was made by candlewick {}, and this is {BUILD}: parts of two builds make no table; use that build, or submit the work \
             again with `--replace`",
            visible(&self.build)
        )))
    }

    /// Goes to the folder that paths of the commands start from.
    pub fn enter(&self) -> Result<(), Error> {
        std::env::set_current_dir(&self.folder).map_err(|source| Error::Read {
            path: self.folder.clone(),
            source,
        })
    }

    /// The process that holds it.
    pub fn holder(&self) -> Option<Owner> {
        Lock::owner(&self.path.join("lock"))
    }

    pub fn refuse(&self, reason: String) -> Error {
        refuse(&self.path, reason)
    }

    /// A command about this submission, as it is typed.
    pub fn line(&self, verb: &str) -> String {
        line(&self.path, verb)
    }

    /// What submits again exactly what is missing.
    pub fn resubmission(&self) -> String {
        match self.rounds.last() {
            Some(Round { slurm: Some(_), .. }) => self.line("slurm --run"),
            _ => self.line("local"),
        }
    }
}

impl Job {
    /// What makes its table, and what the table says that it was made by.
    pub fn table_command(&self) -> Vec<String> {
        let mut command = self.command.clone();
        command.extend(["--out".into(), self.out.display().to_string()]);
        command
    }
}

pub fn refuse(path: &Path, reason: String) -> Error {
    Error::Submission {
        path: path.to_path_buf(),
        reason,
    }
}

pub fn write_text(path: &Path, text: &str) -> Result<(), Error> {
    write_whole(path, |file| {
        file.write_all(text.as_bytes())
            .map_err(|source| Error::Write {
                path: path.to_path_buf(),
                source,
            })
    })
}

/// Whether there is more in a folder than the beginning of a submission, such as a full disk leaves.
fn holds_other_files(path: &Path) -> bool {
    let unfinished = format!(".{MANIFEST}.unfinished");
    let own = ["lock", "lock.held", "parts", "logs", "units", &unfinished];
    let mut entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.any(|entry| !own.iter().any(|own| entry.file_name() == *own))
}

fn check_manifest(path: &Path) -> Result<(), Error> {
    if path.join(MANIFEST).is_file() {
        return Ok(());
    }
    Err(refuse(
        path,
        format!(
            "there is no `{MANIFEST}` in it; name the folder that `candlewick submit local` or `slurm` made"
        ),
    ))
}

fn hold(path: &Path) -> Result<Lock, Error> {
    let place = path.join("lock");
    Lock::take(&place)?.ok_or_else(|| {
        let owner = Lock::owner(&place).unwrap_or_default();
        let cancel = line(path, "cancel");
        refuse(
            path,
            format!("{owner} is at work on it; wait for it, or stop it with {cancel}"),
        )
    })
}

/// A command about the submission in a folder, as it is typed.
fn line(path: &Path, verb: &str) -> String {
    let path = absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let here = std::env::current_dir().unwrap_or_default();
    let below = path.strip_prefix(here).ok();
    let path = below.filter(|path| *path != Path::new("")).unwrap_or(&path);
    let words: Vec<String> = ["candlewick", "submit"].map(String::from).into();
    let verb = verb.split(' ').map(String::from);
    let path = std::iter::once(path.display().to_string());
    let (first, flags): (Vec<_>, Vec<_>) = verb.partition(|word| !word.starts_with('-'));
    let words = words.into_iter().chain(first).chain(path).chain(flags);
    format!("`{}`", shell_quoted(&words.collect::<Vec<_>>()))
}
