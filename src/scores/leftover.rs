//! What killed runs leave: folders of finished parts, which the same command would go on with, and files that were never
//! finished. To be listed, and to be removed; nothing else in a folder is touched.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::file::UNFINISHED;
use super::lock::Lock;
use crate::error::{Error, Result};

/// A file that was written to as late as this may still be in the making.
const RECENT: Duration = Duration::from_secs(600);
/// How the folder of parts of a result is named: after the result, with this ending.
const PARTS: &str = ".parts";

/// Something that a killed run left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    pub path: PathBuf,
    /// The files that belong to it: itself, or what a folder of parts holds.
    pub files: Vec<PathBuf>,
    /// Finished parts among them.
    pub parts: usize,
    pub bytes: u64,
    /// Why it must stay.
    pub in_use: Option<String>,
}

/// What killed runs left in a folder, not below it, by name.
/// # Errors
/// [`Error::Missing`] or [`Error::Read`] if it is not a folder that can be read.
pub fn leftovers(folder: &Path) -> Result<Vec<Leftover>> {
    if !folder.is_dir() {
        return Err(Error::Missing {
            path: folder.to_path_buf(),
            hint: "name the folder that holds the results".into(),
        });
    }
    let mut found = Vec::new();
    for path in entries(folder)? {
        let leftover = if path.is_dir() && name(&path).ends_with(PARTS) {
            parts(&path)?
        } else if is_unfinished(&path) {
            Some(unfinished(path))
        } else {
            None
        };
        found.extend(leftover);
    }
    Ok(found)
}

/// Removes the files of a leftover, then its folders if nothing else is in them.
/// # Errors
/// [`Error::Invalid`] if it must stay; [`Error::Write`] for a file that cannot be removed.
pub fn remove(leftover: &Leftover) -> Result<()> {
    if let Some(owner) = &leftover.in_use {
        return Err(Error::invalid(format!(
            "`{}` stays: {owner}",
            leftover.path.display()
        )));
    }
    for file in &leftover.files {
        fs::remove_file(file).map_err(|source| Error::Write {
            path: file.clone(),
            source,
        })?;
    }
    let mut folders: Vec<&Path> = leftover
        .files
        .iter()
        .filter_map(|file| file.parent())
        .collect();
    folders.retain(|folder| folder.starts_with(&leftover.path));
    folders.push(&leftover.path);
    folders.sort();
    folders.dedup();
    for folder in folders.into_iter().rev().filter(|folder| folder.is_dir()) {
        // A file that is not ours keeps its folder; that is its owner's affair.
        let _ = fs::remove_dir(folder);
    }
    Ok(())
}

/// A folder of parts, whose files stand in it or, one folder for each work, one level below; `None` if it holds no plan, and so
/// only has the name of one.
fn parts(folder: &Path) -> Result<Option<Leftover>> {
    let mut leftover = Leftover {
        path: folder.to_path_buf(),
        files: Vec::new(),
        parts: 0,
        bytes: 0,
        in_use: None,
    };
    let mut is_ours = false;
    let mut inside = entries(folder)?;
    for below in inside.clone().iter().filter(|path| path.is_dir()) {
        inside.extend(entries(below)?);
    }
    for path in inside.into_iter().filter(|path| path.is_file()) {
        let name = name(&path);
        let is_part = name.starts_with("part-") && name.ends_with(".parquet");
        let is_lock = name == "lock" || name == "lock.held";
        if name == "lock" {
            let owner = Lock::owner(&path).map(|owner| format!("{owner} is at work on it"));
            leftover.in_use = leftover.in_use.or(owner);
        } else if !is_lock && name != "plan.json" && !is_part && !is_unfinished(&path) {
            continue;
        }
        is_ours |= name == "plan.json" || is_lock;
        leftover.parts += usize::from(is_part);
        leftover.bytes += bytes(&path);
        leftover.files.push(path);
    }
    Ok(is_ours.then_some(leftover))
}

fn unfinished(path: PathBuf) -> Leftover {
    let written = fs::metadata(&path).and_then(|about| about.modified());
    let age = written
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    let is_recent = age.is_none_or(|age| age < RECENT);
    Leftover {
        bytes: bytes(&path),
        files: vec![path.clone()],
        path,
        parts: 0,
        in_use: is_recent.then(|| "it was written to in the last ten minutes".into()),
    }
}

/// `.scores.parquet.unfinished`, and the same of other files that we write.
fn is_unfinished(path: &Path) -> bool {
    let name = name(path);
    let inner = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(UNFINISHED));
    let ours = [
        "parquet",
        "csv",
        "jsonl",
        "json",
        "svg",
        "html",
        "safetensors",
    ];
    path.is_file()
        && inner.is_some_and(|inner| {
            inner
                .rsplit_once('.')
                .is_some_and(|(_, ending)| ours.contains(&ending))
        })
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Read {
        path: folder.to_path_buf(),
        source,
    };
    let entries = fs::read_dir(folder).map_err(failed)?;
    let paths = entries.map(|entry| Ok(entry.map_err(failed)?.path()));
    let mut paths: Vec<PathBuf> = paths.collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn bytes(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |about| about.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::parts::Fragment;
    use super::super::{ExampleScores, PartStore};
    use super::*;

    #[test]
    fn parts_and_old_unfinished_files_are_found_and_nothing_else_goes() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let held = PartStore::open(&at("held.parquet"), &json!({}), None).unwrap();
        let mut left = PartStore::open(&at("left.parquet"), &json!({}), None).unwrap();
        let unit = Fragment {
            cells: 0..1,
            examples: vec![ExampleScores::default()],
        };
        left.write(&unit).unwrap();
        drop(left);
        fs::write(at("left.parquet.parts/notes.txt"), "mine").unwrap();
        fs::create_dir(at("spare.parts")).unwrap();
        fs::write(at("spare.parts/bolt.txt"), "mine").unwrap();
        for name in [".a.parquet.unfinished", ".b.txt.unfinished", "c.parquet"] {
            fs::write(at(name), "half").unwrap();
        }
        let old = SystemTime::now() - Duration::from_secs(3600);
        let file = fs::File::options()
            .write(true)
            .open(at(".a.parquet.unfinished"));
        file.unwrap().set_modified(old).unwrap();

        let found = leftovers(folder.path()).unwrap();
        let named: Vec<(String, usize, bool)> = found
            .iter()
            .map(|one| (name(&one.path), one.parts, one.in_use.is_some()))
            .collect();
        assert_eq!(
            named,
            [
                (".a.parquet.unfinished".to_string(), 0, false),
                ("held.parquet.parts".to_string(), 0, true),
                ("left.parquet.parts".to_string(), 1, false),
            ]
        );
        for leftover in &found {
            assert_eq!(remove(leftover).is_err(), leftover.in_use.is_some());
        }
        let left: Vec<String> = entries(folder.path())
            .unwrap()
            .iter()
            .map(|p| name(p))
            .collect();
        assert_eq!(
            left,
            [
                ".b.txt.unfinished",
                "c.parquet",
                "held.parquet.parts",
                "left.parquet.parts",
                "spare.parts"
            ]
        );
        assert_eq!(
            entries(&at("left.parquet.parts")).unwrap(),
            [at("left.parquet.parts/notes.txt")]
        );
        drop(held);
    }
}
