//! Where results go. The ending of a name says the format; tables of side quantities stand beside as `NAME.KIND.parquet`. What
//! is not ours, and the results of other work, are replaced only by force.
//!
//! `.parquet` holds all: the table and how it was made. `.csv` and `.jsonl` are for other programs, with how they were made in
//! `NAME.csv.provenance.json`; they are not read back.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::file::{check_writable, write_whole};
use super::parquet::provenance_of;
use super::parts::shard_note;
use super::{Provenance, Scores};
use crate::error::{Error, Result};

/// What a file of results is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutFormat {
    Parquet,
    Csv,
    JsonLines,
}

impl OutFormat {
    /// The format that a name's ending asks for.
    /// # Errors
    /// [`Error::NoFormat`] for any other ending than `.parquet`, `.csv` or `.jsonl`.
    pub fn of(path: &Path) -> Result<OutFormat> {
        let ending = path.extension().map(|ending| ending.to_ascii_lowercase());
        match ending.as_ref().and_then(|ending| ending.to_str()) {
            Some("parquet") => Ok(OutFormat::Parquet),
            Some("csv") => Ok(OutFormat::Csv),
            Some("jsonl") => Ok(OutFormat::JsonLines),
            _ => Err(Error::NoFormat {
                path: path.to_path_buf(),
            }),
        }
    }
}

/// Flags of the command line that decide no number of a table, with whether a value follows.
const WITHOUT_EFFECT: [(&str, Option<&str>, bool); 9] = [
    ("--out", Some("-o"), true),
    ("--memory", None, true),
    ("--threads", None, true),
    ("--top", None, true),
    ("--color", None, true),
    ("--csv", None, false),
    ("--json", None, false),
    ("--quiet", Some("-q"), false),
    ("--force", None, false),
];

/// Checks, before the long part of the work, that the results of `command` (its arguments, program first) may go to `path`.
/// # Errors
/// [`Error::NoFormat`]; those of [`check_writable`]; unless `force`, [`Error::NotOurs`] for a file that we did not write, and
/// [`Error::OtherResults`] for the results of another command.
pub fn check_out(path: &Path, command: &[String], force: bool) -> Result<()> {
    let here = Provenance {
        command: command.to_vec(),
        ..Provenance::default()
    };
    check(path, &here, force)
}

/// Writes a table and its side tables, in the format that the ending of `path` says; each file whole or not at all, the table
/// last.
/// # Errors
/// Those of [`check_out`], also for side tables; [`Error::Write`].
pub fn write_out(scores: &Scores, path: &Path, force: bool) -> Result<()> {
    let format = OutFormat::of(path)?;
    check(path, &scores.provenance, force)?;
    let before = found(path, format)?;
    for (kind, side) in &scores.sides {
        let path = side_path(path, kind);
        check_writable(&path)?;
        let is_ours = match format {
            OutFormat::Parquet => check(&path, &side.provenance, force).map(|()| true)?,
            // What it is stands in the note of the table that it belongs to.
            _ => matches!(&before, Found::Ours(before) if before.sides.contains(kind)),
        };
        if !is_ours && !force && size(&path) > 0 {
            return Err(Error::NotOurs { path });
        }
    }
    for (kind, side) in &scores.sides {
        write_one(side, &side_path(path, kind), format)?;
    }
    if format != OutFormat::Parquet {
        let note = note(scores, path);
        write_text(&provenance_path(path), |out| out.write_all(note.as_bytes()))?;
    }
    write_one(scores, path, format)?;
    if format != OutFormat::Parquet {
        let earlier = path.with_extension("provenance.json");
        if read_note(&earlier).is_some_and(|(table, _)| Some(&*table) == name(path)) {
            // The note of an earlier version is of the table that was replaced; a file too many is no failure.
            let _ = fs::remove_file(earlier);
        }
    }
    if let Found::Ours(before) = before {
        remove_stale_sides(path, format, &before, scores);
    }
    Ok(())
}

/// Where the side table of a kind stands: `scores.measures.parquet` beside `scores.parquet`.
pub fn side_path(path: &Path, kind: &str) -> PathBuf {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    path.with_extension(format!("{kind}.{ending}"))
}

/// Where the provenance of a text file stands: `scores.csv.provenance.json` beside `scores.csv`.
pub fn provenance_path(path: &Path) -> PathBuf {
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    path.with_extension(format!("{ending}.provenance.json"))
}

/// Where it stands of a file that is there: earlier versions wrote `scores.provenance.json`, whichever the ending of the table was.
fn note_beside(path: &Path) -> PathBuf {
    let (now, before) = (
        provenance_path(path),
        path.with_extension("provenance.json"),
    );
    let is_of_it = || read_note(&before).is_some_and(|(table, _)| Some(&*table) == name(path));
    match !now.exists() && is_of_it() {
        true => before,
        false => now,
    }
}

/// What stands where results should go.
enum Found {
    Nothing,
    NotOurs(PathBuf),
    Ours(Box<Provenance>),
}

fn check(path: &Path, here: &Provenance, force: bool) -> Result<()> {
    check_writable(path)?;
    let format = OutFormat::of(path)?;
    if format != OutFormat::Parquet {
        check_writable(&provenance_path(path))?;
    }
    if force {
        return Ok(());
    }
    match found(path, format)? {
        Found::Nothing => Ok(()),
        Found::NotOurs(path) => Err(Error::NotOurs { path }),
        Found::Ours(there) if is_same_work(&there, here) => Ok(()),
        Found::Ours(there) => Err(Error::OtherResults {
            path: path.to_path_buf(),
            made: made_by(&there),
        }),
    }
}

fn found(path: &Path, format: OutFormat) -> Result<Found> {
    let not_ours = || Ok(Found::NotOurs(path.to_path_buf()));
    if format == OutFormat::Parquet {
        // Nothing is lost with an empty file, such as `mktemp` makes.
        return match provenance_of(path) {
            _ if size(path) == 0 => Ok(Found::Nothing),
            Some(there) => Ok(Found::Ours(Box::new(there))),
            None => match shard_note(path) {
                Some(note) => Ok(Found::Ours(Box::new(Provenance {
                    command: note.command,
                    ..Provenance::default()
                }))),
                None => not_ours(),
            },
        };
    }
    let beside = note_beside(path);
    match (size(path), size(&beside)) {
        (0, 0) => Ok(Found::Nothing),
        (_, 0) => not_ours(),
        (size, _) => match read_note(&beside) {
            None => Ok(Found::NotOurs(beside)),
            Some((table, _)) if size > 0 && Some(table.as_str()) != name(path) => not_ours(),
            Some((_, there)) => Ok(Found::Ours(Box::new(there))),
        },
    }
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}

/// Whether two tables come from the same work: of the same command but for flags that decide no number, or, where either was
/// made without one, of the same settings on the same model and prompts.
fn is_same_work(there: &Provenance, here: &Provenance) -> bool {
    if there.side != here.side {
        return false;
    }
    if !there.command.is_empty() && !here.command.is_empty() {
        return is_same_command(&there.command, &here.command);
    }
    let facts = |of: &Provenance| {
        (
            (of.method.clone(), of.metric.clone(), of.direction, of.seed),
            (of.config.clone(), of.examples),
            (of.model.id.clone(), of.model.weight_hash.clone()),
            (of.task.clone(), of.task_text.clone()),
        )
    };
    facts(there) == facts(here)
}

/// Whether two commands (their arguments, program first) measure the same: they differ in no flag that decides a number.
pub fn is_same_command(one: &[String], other: &[String]) -> bool {
    essential(one) == essential(other)
}

/// The arguments that decide what a command measures.
fn essential(command: &[String]) -> Vec<&str> {
    let mut kept = Vec::new();
    let mut arguments = command.iter().skip(1).map(String::as_str);
    while let Some(argument) = arguments.next() {
        let flag = WITHOUT_EFFECT.iter().find(|(long, short, takes_value)| {
            let is_long = argument == *long
                || *takes_value
                    && argument
                        .strip_prefix(long)
                        .is_some_and(|r| r.starts_with('='));
            is_long || short.is_some_and(|short| argument.starts_with(short))
        });
        match flag {
            None => kept.push(argument),
            Some((long, short, true)) if argument == *long || Some(argument) == *short => {
                arguments.next();
            }
            Some(_) => {}
        }
    }
    kept
}

/// The command in few words, for a message.
fn made_by(there: &Provenance) -> String {
    let text = if there.command.is_empty() {
        format!("{} of `{}`", there.method, there.task)
    } else {
        format!("`{}`", there.command.join(" "))
    };
    let text = crate::text::visible(&text);
    if text.chars().count() > 120 {
        text.chars().take(119).chain(['…']).collect()
    } else {
        text
    }
}

fn write_one(scores: &Scores, path: &Path, format: OutFormat) -> Result<()> {
    match format {
        OutFormat::Parquet => scores.write_own_parquet(path),
        OutFormat::Csv => write_text(path, |out| scores.to_csv(out)),
        OutFormat::JsonLines => write_text(path, |out| scores.to_json(out)),
    }
}

fn write_text(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut fs::File>) -> std::io::Result<()>,
) -> Result<()> {
    write_whole(path, |file| {
        let mut out = BufWriter::new(file);
        let written = fill(&mut out).and_then(|()| out.flush());
        written.map_err(|source| Error::Write {
            path: path.to_path_buf(),
            source,
        })
    })
}

/// The provenance of a text file as JSON, with the file's name first.
fn note(scores: &Scores, path: &Path) -> String {
    let about = serde_json::to_value(&scores.provenance).expect("provenance has only text keys");
    let mut note = json!({ "table": name(path) });
    if let (Value::Object(note), Value::Object(about)) = (&mut note, about) {
        note.extend(about);
    }
    let mut text = serde_json::to_string_pretty(&note).expect("a JSON value is JSON");
    text.push('\n');
    text
}

fn read_note(path: &Path) -> Option<(String, Provenance)> {
    let note: Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    let table = note.get("table")?.as_str()?.to_string();
    Some((table, serde_json::from_value(note).ok()?))
}

fn name(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// Side tables that the replaced results had and these do not: left behind, they would seem to belong to them.
fn remove_stale_sides(path: &Path, format: OutFormat, before: &Provenance, scores: &Scores) {
    for kind in &before.sides {
        let stale = side_path(path, kind);
        let is_ours = format != OutFormat::Parquet
            || provenance_of(&stale).is_some_and(|there| there.side.as_ref() == Some(kind));
        if scores.side(kind).is_none() && is_ours {
            // The table itself is written: a file too many is no failure.
            let _ = fs::remove_file(stale);
        }
    }
}

impl Scores {
    /// Writes the table with its provenance, and its side tables beside it, whatever stands there; [`write_out`] asks first.
    /// # Errors
    /// [`Error::Missing`] or [`Error::Write`] if the place cannot be written or the disk is full; nothing half written is left
    /// behind.
    pub fn write_parquet(&self, path: &Path) -> Result<()> {
        for (kind, side) in &self.sides {
            side.write_own_parquet(&side_path(path, kind))?;
        }
        self.write_own_parquet(path)
    }

    /// Reads a table that [`Scores::write_parquet`] wrote, and the side tables that belong to it; one that is gone is a warning.
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::NotReadBack`] for a text file; [`Error::Malformed`] if the file is no parquet
    /// file, damaged, or not a table of scores (its footer says nothing of us, or a column is missing or of another type).
    pub fn read_parquet(path: &Path) -> Result<Scores> {
        if matches!(
            OutFormat::of(path),
            Ok(OutFormat::Csv | OutFormat::JsonLines)
        ) && path.exists()
        {
            let note = read_note(&note_beside(path));
            return Err(Error::NotReadBack {
                path: path.to_path_buf(),
                made: note.map_or(String::new(), |(_, about)| {
                    format!(", as {}", made_by(&about))
                }),
            });
        }
        let mut scores = Scores::read_own_parquet(path)?;
        for kind in scores.provenance.sides.clone() {
            let beside = side_path(path, &kind);
            if beside.exists() {
                let side = Scores::read_own_parquet(&beside)?;
                if side.provenance.created == scores.provenance.created {
                    scores.sides.push((kind, side));
                } else {
                    scores.provenance.sides.retain(|other| *other != kind);
                    scores.provenance.warnings.push(format!(
                        "`{}` is of another run than the table beside it, and is left out",
                        beside.display()
                    ));
                }
            } else {
                let warning = format!("`{}`, which belongs to it, is not there", beside.display());
                scores.provenance.warnings.push(warning);
            }
        }
        Ok(scores)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cell, Detail, ExampleScores, ScoresMeta};
    use super::*;

    fn words(command: &str) -> Vec<String> {
        command.split(' ').map(String::from).collect()
    }

    /// A table of one row, and of one row beside it, made by a command.
    fn scores(command: &str) -> Scores {
        let cells = ["m", "entropy"].map(|measure| Cell {
            component: "hook_resid_pre".into(),
            measure: Some(measure.into()),
            ..Cell::default()
        });
        let example = ExampleScores {
            cells: [0, 1].into(),
            values: vec![0.5, 2.0],
            ..ExampleScores::default()
        };
        let meta = ScoresMeta {
            metric: "m".into(),
            ..ScoresMeta::default()
        };
        let about = Provenance {
            command: words(command),
            ..Provenance::default()
        };
        Scores::assemble(&cells, &[example], &meta, Detail::Mean, about).unwrap()
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn the_ending_decides_the_format() {
        for (name, files) in [
            ("a.parquet", vec!["a.measures.parquet", "a.parquet"]),
            (
                "a.csv",
                vec!["a.csv", "a.csv.provenance.json", "a.measures.csv"],
            ),
            (
                "a.jsonl",
                vec!["a.jsonl", "a.jsonl.provenance.json", "a.measures.jsonl"],
            ),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            write_out(&scores("candlewick patch"), &path, false).unwrap();
            assert_eq!(names(folder.path()), files);
            let read = Scores::read_parquet(&path);
            if name == "a.parquet" {
                let back = read.unwrap();
                let whole = scores("candlewick patch").with_sides().unwrap();
                assert!(
                    back.with_sides()
                        .unwrap()
                        .table
                        .equals_missing(&whole.table)
                );
            } else {
                let error = read.unwrap_err().to_string();
                assert!(error.contains("candlewick patch"), "{error}");
            }
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "a.txt", "a.parquet.bak"] {
            let error = check_out(&folder.path().join(name), &[], false).unwrap_err();
            assert!(matches!(error, Error::NoFormat { .. }), "{name}");
        }
    }

    #[test]
    fn only_the_same_command_replaces_its_results_without_force() {
        for name in ["a.parquet", "a.csv"] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(name);
            write_out(&scores("candlewick patch --n-pairs 8"), &path, false).unwrap();
            let check = |command: &str| check_out(&path, &words(command), false);
            check("candlewick patch --n-pairs 8").unwrap();
            check("candlewick patch --out x.csv --n-pairs 8 -q --top=3 -oy --memory 1GB").unwrap();
            for other in [
                "candlewick patch --n-pairs 9",
                "candlewick ablate --n-pairs 8",
            ] {
                let error = check(other).unwrap_err();
                assert!(matches!(error, Error::OtherResults { .. }), "{error}");
                assert!(error.to_string().contains("`candlewick patch --n-pairs 8`"));
                assert!(write_out(&scores(other), &path, false).is_err());
                check_out(&path, &words(other), true).unwrap();
            }
            let mut without_side = scores("candlewick ablate");
            without_side.sides.clear();
            without_side.provenance.sides.clear();
            write_out(&without_side, &path, true).unwrap();
            assert!(
                !names(folder.path())
                    .iter()
                    .any(|name| name.contains("measures"))
            );
        }
    }

    #[test]
    fn one_name_with_two_endings_is_two_results_and_an_earlier_note_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        write_out(&scores("candlewick patch --sites z"), &path("a.csv"), false).unwrap();
        write_out(&scores("candlewick ablate"), &path("a.jsonl"), false).unwrap();
        assert!(names(folder.path()).contains(&"a.csv.provenance.json".into()));
        fs::rename(path("a.csv.provenance.json"), path("a.provenance.json")).unwrap();
        let other = check_out(&path("a.csv"), &words("candlewick ablate"), false).unwrap_err();
        assert!(matches!(other, Error::OtherResults { .. }), "{other}");
        write_out(&scores("candlewick patch --sites z"), &path("a.csv"), false).unwrap();
        assert!(!path("a.provenance.json").exists() && path("a.csv.provenance.json").exists());
    }

    #[test]
    fn a_file_that_is_not_ours_stays() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["notes.parquet", "notes.csv", "other.measures.parquet"] {
            let path = folder.path().join(name);
            fs::write(&path, "mine").unwrap();
            let table = folder.path().join(name.replace(".measures", ""));
            let error = write_out(&scores("candlewick patch"), &table, false).unwrap_err();
            assert!(
                matches!(&error, Error::NotOurs { path: named } if *named == path),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
        }
        assert!(!folder.path().join("other.parquet").exists());
        // An empty file holds nothing to lose.
        let empty = folder.path().join("empty.parquet");
        fs::write(&empty, "").unwrap();
        write_out(&scores("candlewick patch"), &empty, false).unwrap();
    }

    #[test]
    fn tables_made_without_a_command_are_told_apart_by_what_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let made = |config: Value| {
            let mut scores = scores("candlewick");
            scores.provenance.command.clear();
            scores.provenance.config = config.clone();
            scores.sides[0].1.provenance = scores.provenance.of_side(super::super::MEASURES);
            scores
        };
        write_out(&made(json!({ "window": 1 })), &path, false).unwrap();
        write_out(&made(json!({ "window": 1 })), &path, false).unwrap();
        let other = write_out(&made(json!({ "window": 2 })), &path, false);
        assert!(matches!(other, Err(Error::OtherResults { .. })));
    }
}
