//! Whole files or none: a result is written beside its place, flushed to disk, and renamed into it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Checks that `path` can be written, before the long part of the work; leaves nothing behind.
/// # Errors
/// [`Error::Missing`] if the folder is not there; [`Error::Write`] if `path` is a folder or no regular file, or the folder is
/// read-only.
pub fn check_writable(path: &Path) -> Result<()> {
    let (beside, _) = create_beside(path)?;
    fs::remove_file(&beside).map_err(|source| Error::Write {
        path: path.to_path_buf(),
        source,
    })
}

/// Writes a file with `fill`, so that `path` holds either all of it or what was there before.
/// # Errors
/// Those of [`check_writable`] and of `fill`; [`Error::Write`] if the disk is full. No temporary file is left behind.
pub fn write_whole(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let beside = stage(path, fill)?;
    commit(&beside, path)
}

/// The first half of [`write_whole`]: a complete file beside `path`.
pub(super) fn stage(path: &Path, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<PathBuf> {
    let (beside, mut file) = create_beside(path)?;
    let written = fill(&mut file).and_then(|()| {
        file.sync_all().map_err(|source| Error::Write {
            path: path.to_path_buf(),
            source,
        })
    });
    match written {
        Ok(()) => Ok(beside),
        Err(error) => {
            // The first error is the one to report; a file that cannot be removed either is no news.
            let _ = fs::remove_file(&beside);
            Err(error)
        }
    }
}

/// The second half: the rename, made durable.
pub(super) fn commit(beside: &Path, path: &Path) -> Result<()> {
    let target = resolved(path);
    fs::rename(beside, &target).map_err(|source| {
        let _ = fs::remove_file(beside);
        Error::Write {
            path: path.to_path_buf(),
            source,
        }
    })?;
    if let Ok(folder) = File::open(parent(&target)) {
        // Not every file system can sync a folder; the file itself is safe.
        let _ = folder.sync_all();
    }
    Ok(())
}

/// Name of the unfinished file of `path`: one name for one result, so that a killed run leaves at most one behind and the
/// next run replaces it.
fn beside_name(path: &Path) -> Option<String> {
    Some(format!(
        ".{}{UNFINISHED}",
        path.file_name()?.to_string_lossy()
    ))
}

/// Ending of unfinished files.
pub(super) const UNFINISHED: &str = ".unfinished";

fn create_beside(path: &Path) -> Result<(PathBuf, File)> {
    let refuse = |kind: io::ErrorKind, reason: &str| Error::Write {
        path: path.to_path_buf(),
        source: io::Error::new(kind, reason),
    };
    let target = resolved(path);
    if target.is_dir() {
        return Err(refuse(io::ErrorKind::IsADirectory, "it is a folder"));
    }
    if target.exists() && !target.is_file() {
        return Err(refuse(
            io::ErrorKind::InvalidInput,
            "it is not a regular file",
        ));
    }
    let name = beside_name(&target)
        .ok_or_else(|| refuse(io::ErrorKind::InvalidInput, "it names no file"))?;
    let folder = parent(&target);
    if !folder.is_dir() {
        let hint = "make it, or choose another place".to_string();
        return Err(Error::Missing { path: folder, hint });
    }
    let beside = folder.join(name);
    let opened = match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        // A new file, never one that somebody else put there, nor what a link points to.
        _ => OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&beside),
    };
    match opened {
        Ok(file) => Ok((beside, file)),
        Err(source) => Err(Error::Write {
            path: path.to_path_buf(),
            source,
        }),
    }
}

/// Where the file really lies: a link stays a link, and what it points to is replaced.
fn resolved(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf())
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }

    #[test]
    fn a_check_leaves_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        check_writable(&folder.path().join("scores.parquet")).unwrap();
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn a_folder_and_a_missing_parent_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            check_writable(folder.path()),
            Err(Error::Write { .. })
        ));
        let error = check_writable(&folder.path().join("nowhere/scores.parquet")).unwrap_err();
        assert!(
            matches!(&error, Error::Missing { path, .. } if path.ends_with("nowhere")),
            "{error}"
        );
    }

    #[test]
    fn a_failed_write_keeps_what_was_there_and_leaves_no_other_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        fs::write(&path, "before").unwrap();
        let full = write_whole(&path, |file| {
            file.write_all(b"half").unwrap();
            Err(Error::Write {
                path: path.clone(),
                source: io::ErrorKind::StorageFull.into(),
            })
        });
        assert!(matches!(full, Err(Error::Write { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(names(folder.path()), ["scores.parquet"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_stays_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "before").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        write_whole(&link, |file| {
            file.write_all(b"after").map_err(|_| unreachable!())
        })
        .unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&real).unwrap(), "after");
    }
}
