//! Finished parts of long work, so that a kill at any moment loses at most the part in flight. (Who measures decides when work is long.)
//!
//! Beside `scores.parquet` stands the folder `scores.parquet.parts/`, and in it a folder for each piece of work that was begun
//! for that file, named after the hash of its plan: other settings are other work, and never in the way. `plan.json` says
//! what the work is, and each finished unit (some examples, some of their cells) is one `part-00012.parquet`, written beside
//! its place and renamed into it. A part carries a hash of its measurements; one that does not match is measured again. One
//! process at a time holds `lock`, which the system releases when that process ends, however it ends.
//!
//! A shard's result is a file of the same format, one part that holds all units of the shard ([`write_shard`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use polars::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cell::ExampleScores;
use super::file::{UNFINISHED, commit, write_whole};
use super::parquet::{Packing, read_table, stage_table, write_table};
use crate::error::{Error, Result};

/// Key of a part's [`PartNote`] in its footer.
const PART_KEY: &str = "candlewick_part";
/// Key of a shard's [`ShardNote`] in its footer.
pub const SHARD_KEY: &str = "candlewick_shard";
const PLAN: &str = "plan.json";
const LOCK: &str = "lock";
/// A plan is small; a larger file is not ours.
const PLAN_LIMIT: u64 = 64 << 20;

/// One slice of work that is split between processes: written `2/8`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    /// From 1 to `count`.
    pub index: usize,
    pub count: usize,
}

impl Shard {
    /// Whether a unit of the plan is this shard's: every `count`-th one.
    pub fn has(self, unit: usize) -> bool {
        unit % self.count == self.index - 1
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(index, count)| {
            Some((index.trim().parse().ok()?, count.trim().parse().ok()?))
        });
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Shard { index, count }),
            _ => Err(Error::Parse {
                what: "a shard",
                text: text.into(),
                reason: "write which of how many, such as `1/4` to `4/4`".into(),
            }),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// The folder of finished parts of one piece of work, held by this process.
#[derive(Debug)]
pub struct PartStore {
    folder: PathBuf,
    parts: Vec<PathBuf>,
    /// Of each example the cells that are finished, as ranges.
    finished: BTreeMap<usize, Vec<Range<u32>>>,
    next: usize,
    /// Pieces of other work that were begun for the same result and are not finished.
    others: usize,
    warnings: Vec<String>,
    _lock: File,
}

/// What a part says besides its rows.
#[derive(Serialize, Deserialize)]
struct PartNote {
    examples: Vec<ExampleNote>,
    /// SHA-256 of the measurements, in order.
    hash: String,
}

#[derive(Serialize, Deserialize)]
struct ExampleNote {
    example: usize,
    /// The cells that were looked at, first and one past the last. Those that the example does not have have no row.
    cells: (u32, u32),
    /// The rows that are this example's.
    rows: usize,
    /// As bits: JSON has no infinities.
    clean: u64,
    corrupted: u64,
    tokens: Vec<String>,
    roles: BTreeMap<String, Vec<usize>>,
    /// As bits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beats: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    top1: Option<bool>,
}

/// Measurements of one unit of work: of some examples the cells of one range.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    pub cells: Range<u32>,
    pub examples: Vec<ExampleScores>,
}

/// What a shard's file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardNote {
    pub shard: Shard,
    /// What the whole work is, as text.
    pub plan: String,
    /// The arguments that made the shard, program first.
    pub command: Vec<String>,
    /// The folder that paths in `command` are relative to.
    #[serde(default)]
    pub folder: String,
    pub seconds: f64,
}

impl PartStore {
    /// Opens or makes the folder of finished parts of this work, beside the result file `out`.
    /// `plan` describes the work: an object with everything that changes a measurement (method, model hash, prompts, cells,
    /// direction, ...).
    /// # Errors
    /// [`Error::Busy`] if another process is at it, and those of reading and writing.
    pub fn open(out: &Path, plan: &Value, shard: Option<Shard>) -> Result<PartStore> {
        let text = plan_text(plan);
        let mut name = hex(&Sha256::digest(text.as_bytes()))[..12].to_string();
        if let Some(shard) = shard {
            name += &format!("-shard-{}-of-{}", shard.index, shard.count);
        }
        let folder = folder_of(out).join(name);
        fs::create_dir_all(&folder).map_err(|source| Error::Write {
            path: folder.clone(),
            source,
        })?;
        let lock = lock(&folder)?;
        let names = clean_and_list(&folder)?;
        let path = folder.join(PLAN);
        if read_plan(&path)?.as_deref() != Some(&text) {
            // Parts without their plan could be anything's.
            for (_, part) in &names {
                remove_file(part)?;
            }
            write_whole(&path, |file| {
                file.write_all(text.as_bytes())
                    .map_err(|source| Error::Write {
                        path: path.clone(),
                        source,
                    })
            })?;
        }
        let mut store = PartStore {
            others: unfinished_beside(&folder),
            folder,
            parts: Vec::new(),
            finished: BTreeMap::new(),
            next: 0,
            warnings: Vec::new(),
            _lock: lock,
        };
        for (number, path) in clean_and_list(&store.folder)? {
            store.next = store.next.max(number + 1);
            match read_part(&path) {
                Ok(fragments) => {
                    fragments.iter().for_each(|fragment| store.note(fragment));
                    store.parts.push(path);
                }
                Err(error) => {
                    store
                        .warnings
                        .push(format!("{error}; its examples are measured again"));
                    remove_file(&path)?;
                }
            }
        }
        Ok(store)
    }

    /// Examples of which something is measured already.
    pub fn examples(&self) -> BTreeSet<usize> {
        self.finished.keys().copied().collect()
    }

    /// Whether all these cells of an example are measured already.
    pub fn has(&self, example: usize, cells: &Range<u32>) -> bool {
        let Some(ranges) = self.finished.get(&example) else {
            return false;
        };
        // Ranges stand in order; those that touch were joined.
        ranges
            .iter()
            .any(|range| range.start <= cells.start && cells.end <= range.end)
    }

    /// Whether nothing is finished yet.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// What was wrong with parts found in the folder.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Pieces of other work that were begun for the same result file and are not finished.
    pub fn others(&self) -> usize {
        self.others
    }

    fn note(&mut self, fragment: &Fragment) {
        for example in &fragment.examples {
            let ranges = self.finished.entry(example.example).or_default();
            ranges.push(fragment.cells.clone());
            ranges.sort_by_key(|range| range.start);
            let mut joined: Vec<Range<u32>> = Vec::with_capacity(ranges.len());
            for range in ranges.drain(..) {
                match joined.last_mut().filter(|last| range.start <= last.end) {
                    Some(last) => last.end = last.end.max(range.end),
                    None => joined.push(range),
                }
            }
            *ranges = joined;
        }
    }

    /// Keeps a finished unit: when this returns, a kill does not lose it.
    pub fn write(&mut self, fragment: &Fragment) -> Result<()> {
        let path = self.folder.join(format!("part-{:05}.parquet", self.next));
        let staged = self.stage(fragment, &path)?;
        commit(&staged, &path)?;
        self.next += 1;
        self.note(fragment);
        self.parts.push(path);
        Ok(())
    }

    fn stage(&self, fragment: &Fragment, path: &Path) -> Result<PathBuf> {
        let (table, note) = as_table(std::slice::from_ref(fragment))?;
        let note = serde_json::to_string(&note).expect("a note has only text keys");
        stage_table(&table, PART_KEY, note, path)
    }

    /// All that is finished.
    pub fn read_all(&self) -> Result<Vec<Fragment>> {
        let mut all = Vec::new();
        for path in &self.parts {
            all.extend(read_part(path)?);
        }
        Ok(all)
    }

    /// Removes the folder: the result is written, the parts have served.
    pub fn remove(mut self) -> Result<()> {
        self.clear()?;
        self.parts.clear();
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        for (_, path) in clean_and_list(&self.folder)? {
            remove_file(&path)?;
        }
        for name in [PLAN, LOCK] {
            let path = self.folder.join(name);
            if path.exists() {
                remove_file(&path)?;
            }
        }
        // A file that is not ours keeps the folder, and so do parts of other work; that is their owner's affair.
        let _ = fs::remove_dir(&self.folder);
        if let Some(parent) = self.folder.parent() {
            let _ = fs::remove_dir(parent);
        }
        Ok(())
    }
}

impl Drop for PartStore {
    /// Work that finished nothing leaves nothing behind.
    fn drop(&mut self) {
        if self.parts.is_empty() {
            let _ = self.clear();
        }
    }
}

/// Puts the fragments of each example together, by index of the example. A cell that was measured twice (units were cut
/// otherwise when the work was begun) counts once.
pub fn joined(fragments: Vec<Fragment>) -> Vec<ExampleScores> {
    let mut of: BTreeMap<usize, Vec<ExampleScores>> = BTreeMap::new();
    for example in fragments.into_iter().flat_map(|fragment| fragment.examples) {
        of.entry(example.example).or_default().push(example);
    }
    let mut all = Vec::with_capacity(of.len());
    for mut pieces in of.into_values() {
        if let [_] = pieces[..] {
            all.append(&mut pieces);
            continue;
        }
        let mut values: BTreeMap<u32, f64> = BTreeMap::new();
        for piece in &mut pieces {
            let here = piece.cells.iter().copied().zip(piece.values.drain(..));
            for (cell, value) in here {
                values.entry(cell).or_insert(value);
            }
        }
        all.push(ExampleScores {
            cells: values.keys().copied().collect(),
            values: values.into_values().collect(),
            ..pieces.swap_remove(0)
        });
    }
    share_equal_cells(&mut all);
    all
}

/// Writes what one shard measured.
/// # Errors
/// Those of writing a file.
pub fn write_shard(path: &Path, fragments: &[Fragment], note: &ShardNote) -> Result<()> {
    let (table, parts) = as_table(fragments)?;
    let note = serde_json::json!({ "about": note, "parts": parts });
    write_whole(path, |file| {
        write_table(
            &table,
            SHARD_KEY,
            note.to_string(),
            path,
            file,
            Packing::Small,
        )
    })
}

/// Reads a file that [`write_shard`] wrote.
/// # Errors
/// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] if it is damaged or no shard.
pub fn read_shard(path: &Path) -> Result<(ShardNote, Vec<Fragment>)> {
    #[derive(Deserialize)]
    struct Notes {
        about: ShardNote,
        parts: PartNote,
    }
    let (table, note) = read_table(path, SHARD_KEY, "shard")?;
    let notes: Notes = serde_json::from_str(&note).map_err(|error| Error::Malformed {
        path: path.to_path_buf(),
        format: "shard",
        reason: error.to_string(),
    })?;
    let Shard { index, count } = notes.about.shard;
    if !(1..=count).contains(&index) {
        return Err(Error::Malformed {
            path: path.to_path_buf(),
            format: "shard",
            reason: format!("it says that it is shard {index} of {count}"),
        });
    }
    let fragments = from_table(path, &table, notes.parts)?;
    Ok((notes.about, fragments))
}

/// A plan as it is written and compared: as text, so that a number is the same number however it is read back.
pub fn plan_text(plan: &Value) -> String {
    serde_json::to_string_pretty(plan).expect("a JSON value is JSON")
}

fn as_table(fragments: &[Fragment]) -> Result<(DataFrame, PartNote)> {
    let each = || {
        fragments.iter().flat_map(|fragment| {
            fragment
                .examples
                .iter()
                .map(move |one| (&fragment.cells, one))
        })
    };
    let note = PartNote {
        examples: each()
            .map(|(cells, scores)| ExampleNote {
                example: scores.example,
                cells: (cells.start, cells.end),
                rows: scores.cells.len(),
                clean: scores.clean.to_bits(),
                corrupted: scores.corrupted.to_bits(),
                tokens: scores.tokens.clone(),
                roles: scores.roles.clone(),
                facts: (scores.facts.iter())
                    .map(|(name, fact)| (name.clone(), fact.to_bits()))
                    .collect(),
                beats: scores.beats,
                top1: scores.top1,
            })
            .collect(),
        hash: hash(each().map(|(_, scores)| scores)),
    };
    let rows = || {
        each().flat_map(|(_, scores)| {
            let rows = scores.cells.iter().zip(&scores.values);
            rows.map(move |(&cell, &value)| (scores.example as u32, cell, value))
        })
    };
    let examples: Vec<u32> = rows().map(|(example, ..)| example).collect();
    let cells: Vec<u32> = rows().map(|(_, cell, _)| cell).collect();
    let values: Vec<f64> = rows().map(|(.., value)| value).collect();
    let table = DataFrame::new_infer_height(vec![
        Column::new("example".into(), examples),
        Column::new("cell".into(), cells),
        Column::new("value".into(), values),
    ])?;
    Ok((table, note))
}

/// How many other folders beside this one hold parts.
fn unfinished_beside(folder: &Path) -> usize {
    let entries = |path: &Path| fs::read_dir(path).into_iter().flatten().flatten();
    let Some(parent) = folder.parent() else {
        return 0;
    };
    let has_parts = |work: &Path| {
        entries(work).any(|entry| entry.file_name().to_string_lossy().starts_with("part-"))
    };
    entries(parent)
        .map(|entry| entry.path())
        .filter(|work| work != folder && has_parts(work))
        .count()
}

fn remove_file(path: &Path) -> Result<()> {
    fs::remove_file(path).map_err(|source| Error::Write {
        path: path.to_path_buf(),
        source,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The folder of all unfinished work for a result file.
pub fn folder_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_os_string();
    name.push(".parts");
    PathBuf::from(name)
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let failed = |source| Error::Write {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let known =
                (&file).take(20).read_to_string(&mut owner).is_ok() && owner.parse::<u32>().is_ok();
            let owner = if known {
                owner
            } else {
                "of another user".to_string()
            };
            return Err(Error::Busy {
                folder: folder.to_path_buf(),
                owner,
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    file.set_len(0)
        .and_then(|()| write!(file, "{}", std::process::id()))
        .map_err(failed)?;
    Ok(file)
}

/// Removes what a killed process left unfinished, and lists the parts with their numbers.
fn clean_and_list(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let failed = |source| Error::Read {
        path: folder.to_path_buf(),
        source,
    };
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name
            .strip_prefix("part-")
            .and_then(|rest| rest.strip_suffix(".parquet"));
        if name.starts_with('.') && name.ends_with(UNFINISHED) {
            fs::remove_file(&path).map_err(|source| Error::Write {
                path: path.clone(),
                source,
            })?;
        } else if let Some(number) = number.and_then(|digits| digits.parse().ok()) {
            parts.push((number, path));
        }
    }
    parts.sort();
    Ok(parts)
}

fn read_plan(path: &Path) -> Result<Option<String>> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut text = String::new();
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(file) => file
            .take(PLAN_LIMIT)
            .read_to_string(&mut text)
            .map_err(failed)?,
    };
    Ok(Some(text))
}

fn read_part(path: &Path) -> Result<Vec<Fragment>> {
    let (table, note) = read_table(path, PART_KEY, "part")?;
    let note: PartNote = serde_json::from_str(&note).map_err(|error| Error::Malformed {
        path: path.to_path_buf(),
        format: "part",
        reason: error.to_string(),
    })?;
    from_table(path, &table, note)
}

fn from_table(path: &Path, table: &DataFrame, note: PartNote) -> Result<Vec<Fragment>> {
    let malformed = |reason: &str| Error::Malformed {
        path: path.to_path_buf(),
        format: "part",
        reason: reason.to_string(),
    };
    let of_another_type = |_| malformed("its columns are not those of a part");
    let cells = table
        .column("cell")
        .and_then(|column| column.u32())
        .map_err(of_another_type)?;
    let values = table
        .column("value")
        .and_then(|column| column.f64())
        .map_err(of_another_type)?;
    let (mut cells, mut values) = (cells.iter().flatten(), values.iter().flatten());
    let mut fragments: Vec<Fragment> = Vec::new();
    for about in note.examples {
        let range = about.cells.0..about.cells.1;
        let scores = ExampleScores {
            example: about.example,
            clean: f64::from_bits(about.clean),
            corrupted: f64::from_bits(about.corrupted),
            beats: about.beats,
            top1: about.top1,
            tokens: about.tokens,
            roles: about.roles,
            facts: (about.facts.into_iter())
                .map(|(name, bits)| (name, f64::from_bits(bits)))
                .collect(),
            cells: cells.by_ref().take(about.rows).collect::<Arc<[u32]>>(),
            values: values.by_ref().take(about.rows).collect(),
        };
        if scores.cells.iter().any(|cell| !range.contains(cell))
            || scores.values.len() != about.rows
        {
            return Err(malformed("its measurements are not where it says"));
        }
        match fragments.last_mut().filter(|last| last.cells == range) {
            Some(last) => last.examples.push(scores),
            None => fragments.push(Fragment {
                cells: range,
                examples: vec![scores],
            }),
        }
    }
    let all = fragments.iter().flat_map(|fragment| &fragment.examples);
    if cells.next().is_some() || hash(all) != note.hash {
        return Err(malformed("its measurements do not match their hash"));
    }
    Ok(fragments)
}

fn hash<'a>(examples: impl Iterator<Item = &'a ExampleScores>) -> String {
    let mut hasher = Sha256::new();
    for scores in examples {
        hasher.update((scores.example as u64).to_le_bytes());
        hasher.update(scores.clean.to_le_bytes());
        hasher.update(scores.corrupted.to_le_bytes());
        hasher.update((scores.cells.len() as u64).to_le_bytes());
        scores
            .cells
            .iter()
            .for_each(|cell| hasher.update(cell.to_le_bytes()));
        scores
            .values
            .iter()
            .for_each(|value| hasher.update(value.to_le_bytes()));
    }
    hex(&hasher.finalize())
}

/// Examples of one template have the same cells: keep the list once.
fn share_equal_cells(all: &mut [ExampleScores]) {
    let mut kept: BTreeSet<Arc<[u32]>> = BTreeSet::new();
    for scores in all {
        match kept.get(&scores.cells) {
            Some(list) => scores.cells = list.clone(),
            None => {
                kept.insert(scores.cells.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn measured(example: usize) -> ExampleScores {
        ExampleScores {
            example,
            clean: 3.25,
            corrupted: -1.5,
            tokens: vec!["When".into(), " Mary".into()],
            roles: BTreeMap::from([("END".into(), vec![1])]),
            cells: Arc::from([0, 2, 5]),
            values: vec![0.5 + example as f64, f64::MIN_POSITIVE, -7.0],
            ..ExampleScores::default()
        }
    }

    fn unit(examples: &[usize]) -> Fragment {
        Fragment {
            cells: 0..6,
            examples: examples.iter().map(|&example| measured(example)).collect(),
        }
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Place(tempfile::tempdir().unwrap())
        }
        fn open(&self, direction: &str) -> Result<PartStore> {
            let plan = json!({ "direction": direction, "cells": 6 });
            PartStore::open(&self.0.path().join("scores.parquet"), &plan, None)
        }
        fn entries(&self) -> usize {
            fs::read_dir(self.0.path()).unwrap().count()
        }
    }

    #[test]
    fn finished_parts_are_found_again_with_every_bit() {
        let place = Place::new();
        let mut store = place.open("denoise").unwrap();
        store.write(&unit(&[4, 9])).unwrap();
        store.write(&unit(&[1])).unwrap();
        drop(store);
        let store = place.open("denoise").unwrap();
        assert_eq!(store.examples(), BTreeSet::from([1, 4, 9]));
        assert_eq!(
            joined(store.read_all().unwrap()),
            [measured(1), measured(4), measured(9)]
        );
        store.remove().unwrap();
        assert_eq!(place.entries(), 0);
    }

    #[test]
    fn an_example_is_put_together_from_ranges_of_its_cells() {
        let place = Place::new();
        let mut store = place.open("denoise").unwrap();
        let whole = measured(3);
        let piece = |cells: Range<u32>| Fragment {
            examples: vec![ExampleScores {
                cells: whole
                    .cells
                    .iter()
                    .copied()
                    .filter(|cell| cells.contains(cell))
                    .collect(),
                values: (whole.cells.iter().zip(&whole.values))
                    .filter(|(cell, _)| cells.contains(cell))
                    .map(|(_, value)| *value)
                    .collect(),
                ..whole.clone()
            }],
            cells,
        };
        store.write(&piece(3..6)).unwrap();
        assert!(store.has(3, &(3..6)) && !store.has(3, &(0..6)) && !store.has(4, &(3..6)));
        store.write(&piece(0..2)).unwrap();
        assert!(!store.has(3, &(0..6)));
        store.write(&piece(2..3)).unwrap();
        assert!(store.has(3, &(0..6)));
        assert_eq!(
            joined(store.read_all().unwrap()),
            std::slice::from_ref(&whole)
        );
        let twice = vec![piece(0..3), piece(2..6)];
        assert_eq!(joined(twice), [whole]);
    }

    #[test]
    fn a_kill_before_the_rename_loses_only_the_part_in_flight() {
        let place = Place::new();
        let mut store = place.open("denoise").unwrap();
        store.write(&unit(&[0])).unwrap();
        let staged = store
            .stage(&unit(&[1]), &store.folder.join("part-00001.parquet"))
            .unwrap();
        drop(store);
        assert!(staged.exists());
        let mut store = place.open("denoise").unwrap();
        assert!(!staged.exists());
        assert_eq!(store.examples(), BTreeSet::from([0]));
        assert!(store.warnings().is_empty());
        store.write(&unit(&[1])).unwrap();
        assert_eq!(store.examples(), BTreeSet::from([0, 1]));
    }

    #[test]
    fn a_damaged_part_is_dropped_with_a_warning_wherever_the_damage_is() {
        let place = Place::new();
        let mut store = place.open("denoise").unwrap();
        store.write(&unit(&[0])).unwrap();
        let path = store.folder.join("part-00000.parquet");
        drop(store);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            // Damage that changes no measurement may pass; damage that does may not.
            if let Ok(part) = read_part(&path) {
                let example = &part[0].examples[0];
                assert_eq!(
                    (&example.cells, &example.values),
                    (&measured(0).cells, &measured(0).values),
                    "byte {at}"
                );
            }
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let mut store = place.open("denoise").unwrap();
        assert!(store.examples().is_empty());
        assert_eq!(store.warnings().len(), 1);
        store.write(&unit(&[0])).unwrap();
        assert_eq!(joined(store.read_all().unwrap()), [measured(0)]);
    }

    #[test]
    fn other_work_for_the_same_file_is_not_in_the_way() {
        let place = Place::new();
        let mut first = place.open("denoise").unwrap();
        first.write(&unit(&[0])).unwrap();
        let second = place.open("noise").unwrap();
        assert!(second.is_empty());
        second.remove().unwrap();
        drop(first);
        assert!(place.open("denoise").unwrap().has(0, &(0..6)));
    }

    #[test]
    fn work_that_finished_nothing_leaves_nothing() {
        let place = Place::new();
        drop(place.open("denoise").unwrap());
        assert_eq!(place.entries(), 0);
    }

    #[test]
    fn a_plan_is_the_same_text_again() {
        for factor in [0.03f32, 0.11, 0.23, 0.46, 0.49, 0.91] {
            let place = Place::new();
            let open = || {
                let plan = json!({ "factor": factor });
                PartStore::open(&place.0.path().join("s.parquet"), &plan, None).unwrap()
            };
            open().write(&unit(&[0])).unwrap();
            assert!(!open().is_empty(), "{factor}");
        }
    }

    #[test]
    fn a_second_process_waits_its_turn() {
        let place = Place::new();
        let first = place.open("denoise").unwrap();
        let error = place.open("denoise").unwrap_err();
        assert!(
            matches!(&error, Error::Busy { owner, .. } if *owner == std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        place.open("denoise").unwrap();
    }

    #[test]
    fn a_shard_is_read_back_as_it_was_written() {
        let place = Place::new();
        let path = place.0.path().join("shard.parquet");
        let note = ShardNote {
            shard: "2/3".parse().unwrap(),
            plan: "{}".into(),
            command: vec!["candlewick".into(), "patch".into()],
            folder: String::new(),
            seconds: 1.5,
        };
        let fragments = vec![
            unit(&[0, 2]),
            Fragment {
                cells: 6..9,
                examples: vec![ExampleScores {
                    cells: Arc::from([7]),
                    values: vec![1.0],
                    ..measured(0)
                }],
            },
        ];
        write_shard(&path, &fragments, &note).unwrap();
        assert_eq!(read_shard(&path).unwrap(), (note, fragments));
        for text in ["0/3", "4/3", "1", "a/b", "1/0"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
    }
}
