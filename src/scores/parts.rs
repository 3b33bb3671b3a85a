//! Finished parts of long work, so that a kill at any moment loses at most the part in flight.
//!
//! Beside `scores.parquet` stands the folder `scores.parquet.parts/`: `plan.json` says what the work is, and each finished
//! batch of examples is one `part-00012.parquet`, written beside its place and renamed into it. A part carries a hash of its
//! measurements; one that does not match is measured again. One process at a time holds `lock`, which the system releases
//! when that process ends, however it ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::cell::ExampleScores;
use super::file::{UNFINISHED, commit, write_whole};
use super::parquet::{read_table, stage_table};
use crate::error::{Error, Result};

/// Key of a part's [`PartNote`] in its footer.
const PART_KEY: &str = "candlewick_part";
const PLAN: &str = "plan.json";
const LOCK: &str = "lock";
/// A plan is small; a larger file is not ours.
const PLAN_LIMIT: u64 = 64 << 20;

/// The folder of finished parts of one result file, held by this process.
#[derive(Debug)]
pub struct PartStore {
    folder: PathBuf,
    /// The part that holds each finished example.
    parts: BTreeMap<usize, PathBuf>,
    next: usize,
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
    /// The rows that are this example's.
    rows: usize,
    /// As bits: JSON has no infinities.
    clean: u64,
    corrupted: u64,
    tokens: Vec<String>,
    roles: BTreeMap<String, Vec<usize>>,
}

impl PartStore {
    /// Opens or makes the parts folder of the result file `out`.
    /// `fingerprint` describes the work: an object with everything that changes a measurement (method, model hash, prompts,
    /// cells, direction, ...). Its top-level keys are what a mismatch is reported by.
    /// # Errors
    /// [`Error::OtherParts`] if the folder holds other work, [`Error::Busy`] if another process is at it, and those of reading
    /// and writing.
    pub fn open_or_create(out: &Path, fingerprint: &Value) -> Result<PartStore> {
        let folder = folder_of(out);
        fs::create_dir_all(&folder).map_err(|source| Error::Write {
            path: folder.clone(),
            source,
        })?;
        let lock = lock(&folder)?;
        let plan = folder.join(PLAN);
        let names = clean_and_list(&folder)?;
        match read_plan(&plan)? {
            Some(found) if found == *fingerprint => {}
            Some(found) => {
                return Err(Error::OtherParts {
                    what: difference(&found, fingerprint),
                    folder,
                });
            }
            // Parts without a plan could be anything's.
            None if !names.is_empty() => {
                return Err(Error::OtherParts {
                    what: format!("`{PLAN}` is missing"),
                    folder,
                });
            }
            None => write_whole(&plan, |file| {
                let text = serde_json::to_string_pretty(fingerprint).expect("a JSON value is JSON");
                file.write_all(text.as_bytes())
                    .map_err(|source| Error::Write {
                        path: plan.clone(),
                        source,
                    })
            })?,
        }
        let mut store = PartStore {
            folder,
            parts: BTreeMap::new(),
            next: 0,
            warnings: Vec::new(),
            _lock: lock,
        };
        for (number, path) in names {
            store.next = store.next.max(number + 1);
            match read_part(&path) {
                Ok(part) => store
                    .parts
                    .extend(part.iter().map(|scores| (scores.example, path.clone()))),
                Err(error) => {
                    store
                        .warnings
                        .push(format!("{error}; its examples are measured again"));
                    fs::remove_file(&path).map_err(|source| Error::Write {
                        path: path.clone(),
                        source,
                    })?;
                }
            }
        }
        Ok(store)
    }

    /// Examples that are measured already.
    pub fn finished(&self) -> BTreeSet<usize> {
        self.parts.keys().copied().collect()
    }

    /// What was wrong with parts found in the folder.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Keeps a finished batch of examples: when this returns, a kill does not lose it.
    pub fn write(&mut self, batch: &[ExampleScores]) -> Result<()> {
        let path = self.folder.join(format!("part-{:05}.parquet", self.next));
        let staged = self.stage(batch, &path)?;
        commit(&staged, &path)?;
        self.next += 1;
        self.parts
            .extend(batch.iter().map(|scores| (scores.example, path.clone())));
        Ok(())
    }

    fn stage(&self, batch: &[ExampleScores], path: &Path) -> Result<PathBuf> {
        let note = PartNote {
            examples: batch
                .iter()
                .map(|scores| ExampleNote {
                    example: scores.example,
                    rows: scores.cells.len(),
                    clean: scores.clean.to_bits(),
                    corrupted: scores.corrupted.to_bits(),
                    tokens: scores.tokens.clone(),
                    roles: scores.roles.clone(),
                })
                .collect(),
            hash: hash(batch),
        };
        let note = serde_json::to_string(&note).expect("a note has only text keys");
        let rows = || {
            batch.iter().flat_map(|scores| {
                scores
                    .cells
                    .iter()
                    .zip(&scores.values)
                    .map(move |row| (scores, row))
            })
        };
        let table = DataFrame::new_infer_height(vec![
            Column::new(
                "example".into(),
                rows()
                    .map(|(scores, _)| scores.example as u32)
                    .collect::<Vec<_>>(),
            ),
            Column::new(
                "cell".into(),
                rows().map(|(_, (&cell, _))| cell).collect::<Vec<_>>(),
            ),
            Column::new(
                "value".into(),
                rows().map(|(_, (_, &value))| value).collect::<Vec<_>>(),
            ),
        ])?;
        stage_table(&table, PART_KEY, note, path)
    }

    /// All finished examples, by index.
    pub fn read_all(&self) -> Result<Vec<ExampleScores>> {
        let paths: BTreeSet<&PathBuf> = self.parts.values().collect();
        let mut all: BTreeMap<usize, ExampleScores> = BTreeMap::new();
        for path in paths {
            all.extend(
                read_part(path)?
                    .into_iter()
                    .map(|scores| (scores.example, scores)),
            );
        }
        let mut all: Vec<ExampleScores> = all.into_values().collect();
        share_equal_cells(&mut all);
        Ok(all)
    }

    /// Removes the folder: the result is written, the parts have served.
    pub fn remove(self) -> Result<()> {
        let failed = |source| Error::Write {
            path: self.folder.clone(),
            source,
        };
        for (_, path) in clean_and_list(&self.folder)? {
            fs::remove_file(path).map_err(failed)?;
        }
        for name in [PLAN, LOCK] {
            fs::remove_file(self.folder.join(name)).map_err(failed)?;
        }
        // A file that is not ours keeps the folder; that is its owner's affair.
        let _ = fs::remove_dir(&self.folder);
        Ok(())
    }
}

fn folder_of(out: &Path) -> PathBuf {
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

fn read_plan(path: &Path) -> Result<Option<Value>> {
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
    let parsed = serde_json::from_str(&text);
    parsed.map(Some).map_err(|error| Error::Malformed {
        path: path.to_path_buf(),
        format: "plan",
        reason: format!("{error}; remove its folder to start again"),
    })
}

/// Which top-level keys differ, with short values: `there -> here`.
fn difference(there: &Value, here: &Value) -> String {
    let (Value::Object(there), Value::Object(here)) = (there, here) else {
        return "another plan".to_string();
    };
    let keys: BTreeSet<&String> = there.keys().chain(here.keys()).collect();
    let differing: Vec<String> = keys
        .into_iter()
        .filter(|key| there.get(*key) != here.get(*key))
        .map(|key| {
            format!(
                "`{key}` was {}, is {}",
                brief(there.get(key)),
                brief(here.get(key))
            )
        })
        .collect();
    differing.join("; ")
}

fn brief(value: Option<&Value>) -> String {
    let text = value.map_or("absent".to_string(), Value::to_string);
    match text.chars().count() > 40 {
        true => text.chars().take(39).chain(['…']).collect(),
        false => text,
    }
}

fn read_part(path: &Path) -> Result<Vec<ExampleScores>> {
    let malformed = |reason: &str| Error::Malformed {
        path: path.to_path_buf(),
        format: "part",
        reason: reason.to_string(),
    };
    let (table, note) = read_table(path, PART_KEY, "part")?;
    let note: PartNote =
        serde_json::from_str(&note).map_err(|error| malformed(&error.to_string()))?;
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
    let batch: Vec<ExampleScores> = note
        .examples
        .into_iter()
        .map(|about| ExampleScores {
            example: about.example,
            clean: f64::from_bits(about.clean),
            corrupted: f64::from_bits(about.corrupted),
            tokens: about.tokens,
            roles: about.roles,
            cells: cells.by_ref().take(about.rows).collect::<Arc<[u32]>>(),
            values: values.by_ref().take(about.rows).collect(),
            ..ExampleScores::default()
        })
        .collect();
    if cells.next().is_some() || hash(&batch) != note.hash {
        return Err(malformed("its measurements do not match their hash"));
    }
    Ok(batch)
}

fn hash(batch: &[ExampleScores]) -> String {
    let mut hasher = Sha256::new();
    for scores in batch {
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
    hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
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

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Place(tempfile::tempdir().unwrap())
        }
        fn open(&self, direction: &str) -> Result<PartStore> {
            let plan = json!({ "direction": direction, "cells": 6 });
            PartStore::open_or_create(&self.0.path().join("scores.parquet"), &plan)
        }
    }

    #[test]
    fn finished_parts_are_found_again_with_every_bit() {
        let place = Place::new();
        let mut store = place.open("denoise").unwrap();
        store.write(&[measured(4), measured(9)]).unwrap();
        store.write(&[measured(1)]).unwrap();
        drop(store);
        let store = place.open("denoise").unwrap();
        assert_eq!(store.finished(), BTreeSet::from([1, 4, 9]));
        assert_eq!(
            store.read_all().unwrap(),
            [measured(1), measured(4), measured(9)]
        );
        store.remove().unwrap();
        assert_eq!(fs::read_dir(place.0.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_kill_before_the_rename_loses_only_the_part_in_flight() {
        let place = Place::new();
        let mut store = place.open("denoise").unwrap();
        store.write(&[measured(0)]).unwrap();
        let staged = store
            .stage(&[measured(1)], &store.folder.join("part-00001.parquet"))
            .unwrap();
        drop(store);
        assert!(staged.exists());
        let mut store = place.open("denoise").unwrap();
        assert!(!staged.exists());
        assert_eq!(store.finished(), BTreeSet::from([0]));
        assert!(store.warnings().is_empty());
        store.write(&[measured(1)]).unwrap();
        assert_eq!(store.finished(), BTreeSet::from([0, 1]));
    }

    #[test]
    fn a_damaged_part_is_dropped_with_a_warning_wherever_the_damage_is() {
        let place = Place::new();
        let mut store = place.open("denoise").unwrap();
        store.write(&[measured(0)]).unwrap();
        let path = store.folder.join("part-00000.parquet");
        drop(store);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            // Damage that changes no measurement may pass; damage that does may not.
            if let Ok(part) = read_part(&path) {
                assert_eq!(
                    (&part[0].cells, &part[0].values),
                    (&measured(0).cells, &measured(0).values),
                    "byte {at}"
                );
            }
        }
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let mut store = place.open("denoise").unwrap();
        assert!(store.finished().is_empty());
        assert_eq!(store.warnings().len(), 1);
        store.write(&[measured(0)]).unwrap();
        assert_eq!(store.read_all().unwrap(), [measured(0)]);
    }

    #[test]
    fn other_work_is_refused_and_the_difference_named() {
        let place = Place::new();
        drop(place.open("denoise").unwrap());
        let error = place.open("noise").unwrap_err();
        assert!(
            error
                .to_string()
                .contains(r#"`direction` was "denoise", is "noise""#),
            "{error}"
        );
        place.open("denoise").unwrap();
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
}
