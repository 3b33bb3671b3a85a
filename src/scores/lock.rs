//! One process at a time, also between machines that share a file system.
//!
//! A lock of the file system is let go by the system when its process ends, however it ends. Where a file system knows no locks, a
//! file that only one process can create says who is at work; it is taken over when its process has ended on this machine, or
//! when the scheduler has started the same job again. One whose machine cannot be asked stays, and is named with what to do.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::text::visible;

/// A look at who holds a lock takes it for a moment: one that is not to be had is tried again so often, after so long.
const TRIES: usize = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// A lock that this process holds; dropped, it is free.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
    /// Where there are no locks: the file that says who holds it.
    claim: Option<(PathBuf, Owner)>,
}

/// Who holds a lock.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Owner {
    pub process: u32,
    pub host: String,
    /// Of a scheduler: its number, and how often it was started again.
    pub job: Option<(String, u32)>,
    /// A file that stays if the process ends without a word.
    #[serde(skip)]
    claim: Option<PathBuf>,
}

impl Owner {
    fn this() -> Owner {
        let number = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let restarts = number("SLURM_RESTART_COUNT").and_then(|text| text.parse().ok());
        Owner {
            process: std::process::id(),
            host: host(),
            job: number("SLURM_JOB_ID").map(|job| (job, restarts.unwrap_or(0))),
            claim: None,
        }
    }

    /// Whether it is a process of this machine.
    pub fn is_here(&self) -> bool {
        self.process != 0 && self.host == host()
    }

    /// Whether it is known to have ended.
    fn has_ended(&self, now: &Owner) -> bool {
        // Only Linux says of every process whether it is there.
        let is_gone = |process: u32| {
            cfg!(target_os = "linux") && !Path::new(&format!("/proc/{process}")).exists()
        };
        let is_started_again = match (&self.job, &now.job) {
            (Some((job, before)), Some((same, since))) => job == same && before < since,
            _ => false,
        };
        is_started_again || (self.is_here() && is_gone(self.process))
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            0 => write!(f, "another process")?,
            process => write!(f, "process {process} on {}", visible(&self.host))?,
        }
        if let Some((job, _)) = &self.job {
            write!(f, " (job {})", visible(job))?;
        }
        match &self.claim {
            None => Ok(()),
            Some(path) => write!(
                f,
                ", as `{}` says (if that has ended, remove this file)",
                visible(&path.display().to_string())
            ),
        }
    }
}

impl Lock {
    /// Takes a lock, whose file is made if need be; nothing if another process holds it.
    /// # Errors
    /// [`Error::Write`].
    pub fn take(path: &Path) -> Result<Option<Lock>> {
        let failed = |source| Error::Write {
            path: path.to_path_buf(),
            source,
        };
        let mut file = opened(path, true).map_err(failed)?;
        for round in 0..TRIES {
            if round > 0 {
                sleep(PAUSE);
            }
            match file.try_lock() {
                Ok(()) => {
                    let text = serde_json::to_string(&Owner::this()).expect("its keys are text");
                    file.set_len(0)
                        .and_then(|()| file.write_all(text.as_bytes()))
                        .map_err(failed)?;
                    return Ok(Some(Lock {
                        _file: Some(file),
                        claim: None,
                    }));
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) if is_lockless(&error) => return claim(path),
                Err(TryLockError::Error(error)) => return Err(failed(error)),
            }
        }
        Ok(None)
    }

    /// Who holds a lock now.
    pub fn owner(path: &Path) -> Option<Owner> {
        // Some network file systems lock only what is open for writing.
        let file = opened(path, false).or_else(|_| File::open(path)).ok()?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Some(owner_in(&file).unwrap_or_default()),
            Err(TryLockError::Error(error)) if is_lockless(&error) => {
                claimed(&claim_path(path)).filter(|owner| !owner.has_ended(&Owner::this()))
            }
            _ => None,
        }
    }

    /// Removes what the lock at a path left on the disk, before the folder that it is in goes.
    /// # Errors
    /// [`Error::Write`].
    pub fn remove(path: &Path) -> Result<()> {
        for path in [path, &claim_path(path)] {
            match fs::remove_file(path) {
                Err(source) if source.kind() != ErrorKind::NotFound => {
                    let path = path.to_path_buf();
                    return Err(Error::Write { path, source });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some((path, owner)) = &self.claim
            && claimed(path).is_some_and(|now| now.process == owner.process && now.is_here())
        {
            let _ = fs::remove_file(path);
        }
    }
}

fn opened(path: &Path, make: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(make).truncate(false);
    options.open(path)
}

/// Whether a file system says that it has no locks: not at all, or (over a network) none now, which Linux calls error 37.
fn is_lockless(error: &io::Error) -> bool {
    let has_none_now = cfg!(target_os = "linux") && error.raw_os_error() == Some(37);
    error.kind() == ErrorKind::Unsupported || has_none_now
}

fn claim_path(lock: &Path) -> PathBuf {
    lock.with_added_extension("held")
}

/// Takes a lock by being the one who makes a file.
fn claim(lock: &Path) -> Result<Option<Lock>> {
    let path = claim_path(lock);
    let failed = |source| Error::Write {
        path: path.clone(),
        source,
    };
    let owner = Owner::this();
    for _ in 0..2 {
        let made = OpenOptions::new().write(true).create_new(true).open(&path);
        match made {
            Ok(mut file) => {
                let text = serde_json::to_string(&owner).expect("its keys are text");
                file.write_all(text.as_bytes()).map_err(failed)?;
                return Ok(Some(Lock {
                    _file: None,
                    claim: Some((path, owner)),
                }));
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                if !claimed(&path).is_some_and(|there| there.has_ended(&owner)) {
                    return Ok(None);
                }
                let _ = fs::remove_file(&path);
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(None)
}

/// Who made a claim, if there is one.
fn claimed(path: &Path) -> Option<Owner> {
    let file = File::open(path).ok()?;
    Some(Owner {
        claim: Some(path.to_path_buf()),
        ..owner_in(&file).unwrap_or_default()
    })
}

fn owner_in(file: &File) -> Option<Owner> {
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text).ok()?;
    serde_json::from_str(&text).ok()
}

/// The name of this machine.
fn host() -> String {
    sysinfo::System::host_name().unwrap_or_else(|| "an unnamed machine".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_held_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(Lock::owner(&path), None);
        let held = Lock::take(&path).unwrap().unwrap();
        assert!(Lock::take(&path).unwrap().is_none());
        let owner = Lock::owner(&path).unwrap();
        assert_eq!(owner.process, std::process::id());
        assert!(owner.is_here() && owner.to_string().ends_with(&host()));
        drop(held);
        assert_eq!(Lock::owner(&path), None);
        assert!(Lock::take(&path).unwrap().is_some());
        Lock::remove(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn where_there_are_no_locks_a_file_says_who_is_at_work() {
        let folder = tempfile::tempdir().unwrap();
        let lock = folder.path().join("lock");
        let path = claim_path(&lock);
        let held = claim(&lock).unwrap().unwrap();
        assert!(claim(&lock).unwrap().is_none());
        assert!(claimed(&path).unwrap().is_here());
        drop(held);
        assert!(!path.exists());

        let there =
            |owner: &Owner| fs::write(&path, serde_json::to_string(owner).unwrap()).unwrap();
        // On another machine it is not known whether it has ended: the file is named.
        let other = Owner {
            process: 7,
            host: "node3".into(),
            job: Some(("12".into(), 0)),
            claim: None,
        };
        there(&other);
        assert!(claim(&lock).unwrap().is_none());
        let said = claimed(&path).unwrap().to_string();
        assert!(
            said.starts_with("process 7 on node3 (job 12), as `")
                && said.ends_with("lock.held` says (if that has ended, remove this file)"),
            "{said}"
        );
        // A job that was started again was ended before; another job says nothing of it.
        let started = |job: &str, restarts| Owner {
            job: Some((job.into(), restarts)),
            ..Owner::this()
        };
        assert!(other.has_ended(&started("12", 1)));
        assert!(!other.has_ended(&started("12", 0)) && !other.has_ended(&started("13", 1)));
        fs::write(&path, "").unwrap();
        assert!(claim(&lock).unwrap().is_none(), "it may be in the making");
        if cfg!(target_os = "linux") {
            // No process has this number: Linux counts to 2^22.
            there(&Owner {
                process: u32::MAX,
                ..Owner::this()
            });
            let held = claim(&lock).unwrap().unwrap();
            assert_eq!(claimed(&path).unwrap().process, std::process::id());
            drop(held);
        }
    }

    #[test]
    fn errors_that_mean_no_locks_are_told_from_others() {
        assert!(is_lockless(&ErrorKind::Unsupported.into()));
        assert!(!is_lockless(&ErrorKind::PermissionDenied.into()));
        assert_eq!(
            is_lockless(&io::Error::from_raw_os_error(37)),
            cfg!(target_os = "linux")
        );
    }
}
