//! The units of a submission: `parts/` has a file for each that is finished, renamed into place when it is whole; `units/` says how the
//! others last ended. Nobody's clock is asked: what counts as finished is what lies in `parts/`.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use candlewick::Error;
use candlewick::scores::parts::{ShardNote, shard_note};
use candlewick::scores::{Lock, Owner, Shard, check_out, is_same_command};
use candlewick::text::{shell_quoted, visible};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::folder::{Job, Submission, write_text};

/// One shard of one job.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Unit {
    /// From 1.
    pub number: usize,
    pub job: usize,
    pub shard: Shard,
}

/// What lies in the place of a unit's part.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    Missing,
    Finished(ShardNote),
    /// Of other work, or damaged: why.
    Foreign(String),
}

/// How a unit last ended, or that it has begun.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    Running,
    /// Stopped before the end; what it had finished is kept.
    Interrupted,
    Failed(String),
    /// Set aside at a merge: why.
    Stale(String),
}

impl Record {
    /// What a unit is that ended so, if it is not finished: a word for a table, one for a sentence, and why.
    fn words(&self) -> (&'static str, &'static str, &str) {
        match self {
            Record::Running => ("killed", "was killed", ""),
            Record::Interrupted => ("stopped", "was stopped", ""),
            Record::Failed(why) => ("failed", "failed", why),
            Record::Stale(why) => ("stale", "is stale", why),
        }
    }

    pub fn state(&self) -> &'static str {
        self.words().0
    }

    pub fn why(&self) -> &str {
        self.words().2
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.words() {
            (_, said, "") => write!(f, "{said}"),
            (_, said, why) => write!(f, "{said} ({why})"),
        }
    }
}

impl Submission {
    pub fn units(&self) -> Vec<Unit> {
        let shards = self.jobs.iter().enumerate().flat_map(|(job, about)| {
            let count = about.shards;
            (1..=count).map(move |index| (job, Shard { index, count }))
        });
        let numbered = shards.zip(1..);
        let unit = |((job, shard), number)| Unit { number, job, shard };
        numbered.map(unit).collect()
    }

    /// The units whose jobs have no table yet, and that have no part.
    pub fn open_units(&self) -> Vec<usize> {
        let open: Vec<bool> = self.jobs.iter().map(|job| !self.is_done(job)).collect();
        let lacks = |unit: &Unit| open[unit.job] && !matches!(self.part(*unit), Part::Finished(_));
        let units = self.units().into_iter().filter(lacks);
        units.map(|unit| unit.number).collect()
    }

    /// Whether the table of a job is there.
    pub fn is_done(&self, job: &Job) -> bool {
        let out = self.folder.join(&job.out);
        !job.force && out.exists() && check_out(&out, &job.table_command(), false).is_ok()
    }

    /// Where a unit's part lies. The name holds what decides the job, so that parts outlive changes of a plan.
    pub fn part_path(&self, unit: Unit) -> PathBuf {
        let job = &self.jobs[unit.job];
        let method = job.command.get(1).map_or("", String::as_str);
        let text = serde_json::to_string(&job.command).expect("texts are JSON");
        let hash = Sha256::digest(text);
        let hash: String = hash[..6].iter().map(|byte| format!("{byte:02x}")).collect();
        let Shard { index, count } = unit.shard;
        let name = format!("{method}-{hash}.shard-{index}-of-{count}.parquet");
        self.path.join("parts").join(name)
    }

    /// The command line that measures a unit.
    pub fn command_of(&self, unit: Unit) -> Vec<String> {
        let mut command = self.jobs[unit.job].command.clone();
        command.extend(["--shard".into(), unit.shard.to_string(), "--out".into()]);
        command.push(self.part_path(unit).display().to_string());
        command
    }

    /// What is there of a unit, from the part's own words.
    pub fn part(&self, unit: Unit) -> Part {
        let path = self.part_path(unit);
        if !path.exists() {
            return Part::Missing;
        }
        let Some(note) = shard_note(&path) else {
            return Part::Foreign("it is damaged".into());
        };
        if !is_same_command(&note.command, &self.command_of(unit)) {
            let made = shell_quoted(&note.command);
            return Part::Foreign(format!("it was made by `{made}`"));
        }
        let plan: serde_json::Value = serde_json::from_str(&note.plan).unwrap_or_default();
        let build = plan["build"].as_str().unwrap_or("of another age");
        if build != self.build {
            let build = visible(build);
            return Part::Foreign(format!("it was made by candlewick {build}"));
        }
        Part::Finished(note)
    }

    pub fn record_path(&self, unit: usize) -> PathBuf {
        self.path.join("units").join(format!("{unit}.json"))
    }

    /// # Errors
    /// [`Error::Write`].
    pub fn note(&self, unit: usize, record: &Record) -> Result<(), Error> {
        let text = serde_json::to_string(record).expect("its keys are text");
        write_text(&self.record_path(unit), &text)
    }

    pub fn record(&self, unit: usize) -> Option<Record> {
        let mut text = String::new();
        let file = File::open(self.record_path(unit)).ok()?;
        file.take(1 << 20).read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    pub fn lock_path(&self, unit: usize) -> PathBuf {
        self.path.join("units").join(format!("{unit}.lock"))
    }

    pub fn log_path(&self, unit: usize) -> PathBuf {
        self.path.join("logs").join(format!("unit-{unit}.log"))
    }

    /// The process that is at work on a unit.
    pub fn worker(&self, unit: usize) -> Option<Owner> {
        Lock::owner(&self.lock_path(unit))
    }
}
