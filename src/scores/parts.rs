//! Finished parts of long work, so that a kill at any moment loses at most the part in flight. (Who measures decides when work is long.)
//!
//! Beside `scores.parquet` stands the folder `scores.parquet.parts/`, and in it a folder for each piece of work that was begun
//! for that file, named after the hash of its plan: other settings are other work, and never in the way. `plan.json` says
//! what the work is, and each finished unit (some examples, some of their cells) is one `part-00012.parquet`, written beside
//! its place and renamed into it. A part carries a hash of its measurements; one that does not match is measured again. One
//! process at a time holds `lock`.
//!
//! A shard's result is a file of the same format, one part that holds all units of the shard ([`write_shard`]).

mod part;
mod shard;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use part::Fragment;
pub(crate) use part::hex;
use part::{PART_KEY, as_table, read_part};
pub use shard::{SHARD_KEY, Shard, ShardNote, read_shard, shard_note, write_shard};

use super::cell::ExampleScores;
use super::file::{UNFINISHED, commit, write_whole};
use super::lock::Lock;
use super::parquet::stage_table;
use crate::error::{Error, Result};

const PLAN: &str = "plan.json";
const LOCK: &str = "lock";
/// A plan is small; a larger file is not ours.
const PLAN_LIMIT: u64 = 64 << 20;

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
    _lock: Lock,
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
        let plan = self.folder.join(PLAN);
        if plan.exists() {
            remove_file(&plan)?;
        }
        Lock::remove(&self.folder.join(LOCK))?;
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

/// A plan as it is written and compared: as text, so that a number is the same number however it is read back.
pub fn plan_text(plan: &Value) -> String {
    serde_json::to_string_pretty(plan).expect("a JSON value is JSON")
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

/// The folder of all unfinished work for a result file.
pub fn folder_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_os_string();
    name.push(".parts");
    PathBuf::from(name)
}

fn lock(folder: &Path) -> Result<Lock> {
    let path = folder.join(LOCK);
    let lock = Lock::take(&path)?;
    lock.ok_or_else(|| Error::Busy {
        folder: folder.to_path_buf(),
        owner: Lock::owner(&path).unwrap_or_default().to_string(),
    })
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
