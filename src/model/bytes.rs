//! Files of a model as bytes: weight files mapped into memory, small files read whole.

use std::fs::File;
use std::io::Read;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// A file's bytes: mapped, part of the binary, or from somewhere else.
#[derive(Debug)]
pub enum Bytes<'a> {
    Mapped { map: Arc<Mmap>, path: PathBuf },
    Borrowed(&'a [u8]),
    Owned(Vec<u8>),
}

impl Deref for Bytes<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped { map, .. } => map,
            Bytes::Borrowed(bytes) => bytes,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

impl Bytes<'_> {
    /// The same bytes for another thread, where that takes no copy.
    pub(super) fn shared(&self) -> Option<Bytes<'static>> {
        match self {
            Bytes::Mapped { map, path } => Some(Bytes::Mapped {
                map: Arc::clone(map),
                path: path.clone(),
            }),
            Bytes::Borrowed(_) | Bytes::Owned(_) => None,
        }
    }

    /// Says that a range was read and is not needed soon, so that its pages do not count beside the weights made from them. They are
    /// read again from the file if they are.
    pub fn let_go(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Bytes::Mapped { map, .. } = self {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is of a file, private and never written to: the pages come back with the same bytes. Failure changes
            // nothing, so that it can be ignored.
            #[allow(unsafe_code)]
            let _ = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        }
        #[cfg(not(unix))]
        let _ = range;
    }
}

/// Maps a weight file into memory.
/// # Errors
/// [`Error::Missing`], [`Error::Read`]; [`Error::LfsPointer`] for what is often found in its place.
pub fn map(path: &Path) -> Result<Bytes<'static>> {
    let read = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    if !path.exists() {
        return Err(Error::Missing {
            path: path.to_path_buf(),
            hint: "give a model folder, a `.gguf` file or a hub id such as `org/name`".to_string(),
        });
    }
    let file = File::open(path).map_err(read)?;
    let is_empty_or_folder =
        !file.metadata().map_err(read)?.is_file() || file.metadata().map_err(read)?.len() == 0;
    if is_empty_or_folder {
        return Err(Error::Malformed {
            path: path.to_path_buf(),
            format: "weight",
            reason: "it is empty or no file".to_string(),
        });
    }
    // SAFETY: the map is read-only and private to this process; every read of it is bounds-checked against its length.
    // Another process that truncates the file meanwhile would end us, as for every program that maps files.
    #[allow(unsafe_code)]
    let map = unsafe { Mmap::map(&file) }.map_err(read)?;
    check_not_a_stand_in(path, &map)?;
    Ok(Bytes::Mapped {
        map: Arc::new(map),
        path: path.to_path_buf(),
    })
}

/// Reads a small file of a model whole; one larger than `limit` bytes, or without an end, is not read.
/// # Errors
/// [`Error::Read`], [`Error::Malformed`].
pub fn read_at_most(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let read = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(read)?;
    file.take(limit + 1).read_to_end(&mut bytes).map_err(read)?;
    match bytes.len() as u64 <= limit {
        true => Ok(bytes),
        false => Err(Error::Malformed {
            path: path.to_path_buf(),
            format: "text",
            reason: format!("it has more than {limit} bytes"),
        }),
    }
}

/// Refuses a git-LFS pointer under another file's name.
/// # Errors
/// [`Error::LfsPointer`].
pub fn check_not_a_stand_in(path: &Path, bytes: &[u8]) -> Result<()> {
    const LFS: &[u8] = b"version https://git-lfs.github.com/spec/";
    match bytes.starts_with(LFS) {
        false => Ok(()),
        true => Err(Error::LfsPointer {
            path: path.to_path_buf(),
        }),
    }
}

/// A digest in hex.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
