//! Files of circuits come from anyone: they are read whole, if they are regular files of text and not absurdly large.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::error::{Error, Result};

/// The text of a file of at most `limit` bytes.
/// # Errors
/// [`Error::Missing`] with `hint`; [`Error::Read`]; [`Error::Malformed`]
pub(super) fn read_text(
    path: &Path,
    limit: u64,
    format: &'static str,
    hint: &str,
) -> Result<String> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => Error::Missing {
            path: path.to_path_buf(),
            hint: hint.into(),
        },
        _ => Error::Read {
            path: path.to_path_buf(),
            source,
        },
    };
    let malformed = |reason: &str| Error::Malformed {
        path: path.to_path_buf(),
        format,
        reason: reason.into(),
    };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(malformed("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let mut reader = BufReader::new(file).take(limit + 1);
    reader.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        let gigabytes = limit as f64 / f64::from(1 << 30);
        return Err(malformed(&format!(
            "it is larger than {gigabytes} GiB; no graph is"
        )));
    }
    String::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8 text"))
}
