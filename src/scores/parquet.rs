//! Parquet with provenance, written whole and read with suspicion.
//!
//! A file that somebody sends may be truncated, hostile, or simply another table: the footer is checked before any column is
//! decoded, and polars is not trusted to refuse what it cannot read without a panic.

use std::cell::Cell as Flag;
use std::fs::{self, File};
use std::io::Cursor;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use polars::prelude::*;
use polars_io::parquet::read::{ParallelStrategy, ParquetReader};
use polars_io::parquet::write::{KeyValueMetadata, ParquetWriter};
use polars_io::prelude::SerReader;

use super::file::{stage, write_whole};
use super::provenance::{FOOTER_KEY, Provenance};
use super::Scores;
use crate::error::{Error, Result};

/// The columns a table may have, in order, with their types; those marked `true` must be there.
const COLUMNS: [(&str, Kind, bool); 20] = [
    ("method", Kind::Text, true),
    ("metric", Kind::Text, true),
    ("direction", Kind::Text, true),
    ("component", Kind::Text, true),
    ("layer", Kind::Index, false),
    ("head", Kind::Index, false),
    ("pos", Kind::Signed, false),
    ("key", Kind::Index, false),
    ("token", Kind::Text, false),
    ("role", Kind::Text, false),
    ("neuron", Kind::Index, false),
    ("src", Kind::Text, false),
    ("dst", Kind::Text, false),
    ("example", Kind::Index, false),
    ("value", Kind::Float, true),
    ("score", Kind::Float, true),
    ("normalised", Kind::Float, false),
    ("base", Kind::Text, true),
    ("ci_low", Kind::Float, false),
    ("ci_high", Kind::Float, false),
];

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Index,
    Signed,
    Float,
}

impl Kind {
    fn dtype(self) -> DataType {
        match self {
            Kind::Text => DataType::String,
            Kind::Index => DataType::UInt32,
            Kind::Signed => DataType::Int32,
            Kind::Float => DataType::Float64,
        }
    }
}

impl Scores {
    /// Writes the table with its provenance: beside `path`, flushed, and renamed into place.
    /// # Errors
    /// [`Error::Missing`] or [`Error::Write`] if the place cannot be written or the disk is full; nothing is left behind.
    pub fn write_parquet(&self, path: &Path) -> Result<()> {
        let note = serde_json::to_string(&self.provenance).expect("provenance has only text keys");
        write_whole(path, |file| write_table(&self.table, FOOTER_KEY, note, path, file))
    }

    /// Reads a table that [`Scores::write_parquet`] wrote.
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] if the file is no parquet file, damaged, or not a table of
    /// scores (its footer says nothing of us, or a column is missing or of another type).
    pub fn read_parquet(path: &Path) -> Result<Scores> {
        let malformed = |reason: String| Error::Malformed { path: path.to_path_buf(), format: "scores", reason };
        let (table, note) = read_table(path, FOOTER_KEY, "scores")?;
        let provenance: Provenance = serde_json::from_str(&note)
            .map_err(|error| malformed(format!("its provenance cannot be read ({error})")))?;
        for (name, kind, required) in COLUMNS {
            match table.column(name) {
                Err(_) if required => return Err(malformed(format!("column `{name}` is missing"))),
                Ok(column) if *column.dtype() != kind.dtype() => {
                    let (found, expected) = (column.dtype(), kind.dtype());
                    return Err(malformed(format!("column `{name}` is {found}, a table of scores has {expected}")));
                }
                _ => {}
            }
        }
        if let Some(other) = table.get_column_names().iter().find(|n| !COLUMNS.iter().any(|(known, ..)| *known == n.as_str())) {
            return Err(malformed(format!("column `{}` is not one of ours", super::visible(other))));
        }
        Ok(Scores { table, provenance })
    }
}

/// Writes a table with one note in the footer, next to the arrow schema that other readers look for.
pub(super) fn write_table(table: &DataFrame, key: &str, note: String, path: &Path, file: &mut File) -> Result<()> {
    let notes = KeyValueMetadata::from_static(vec![(key.to_string(), note)]);
    let mut table = table.clone();
    let written = ParquetWriter::new(std::io::BufWriter::new(file))
        .with_key_value_metadata(Some(notes))
        .finish(&mut table);
    match written {
        Ok(_) => Ok(()),
        Err(PolarsError::IO { error, .. }) => {
            let source = std::io::Error::new(error.kind(), error.to_string());
            Err(Error::Write { path: path.to_path_buf(), source })
        }
        Err(error) => Err(error.into()),
    }
}

/// Stages a table beside `path` without renaming it: what a kill just before the rename leaves.
pub(super) fn stage_table(table: &DataFrame, key: &str, note: String, path: &Path) -> Result<std::path::PathBuf> {
    stage(path, |file| write_table(table, key, note, path, file))
}

/// Reads a table and the note of ours in its footer.
pub(super) fn read_table(path: &Path, key: &str, format: &'static str) -> Result<(DataFrame, String)> {
    let malformed = |reason: String| Error::Malformed { path: path.to_path_buf(), format, reason };
    if !path.exists() {
        let hint = "`candlewick patch --out scores.parquet` makes one".to_string();
        return Err(Error::Missing { path: path.to_path_buf(), hint });
    }
    let bytes = fs::read(path).map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::LfsPointer { path: path.to_path_buf() });
    }
    if bytes.len() < 12 || !bytes.starts_with(b"PAR1") {
        return Err(malformed(format!("its {} bytes are no parquet", bytes.len())));
    }
    if !bytes.ends_with(b"PAR1") {
        return Err(malformed("its end is missing: an unfinished copy?".to_string()));
    }
    let size = bytes.len();
    let decoded = without_panic(move || -> PolarsResult<Result<(DataFrame, String), String>> {
        let mut reader = ParquetReader::new(Cursor::new(bytes)).read_parallel(ParallelStrategy::None);
        let metadata = reader.get_metadata()?;
        let notes = metadata.key_value_metadata.as_deref().unwrap_or_default();
        let Some(note) = notes.iter().find(|n| n.key == key).and_then(|n| n.value.clone()) else {
            return Ok(Err(format!("no `{key}` in its footer: another program wrote it")));
        };
        if let Some(reason) = implausible(metadata, size) {
            return Ok(Err(reason));
        }
        Ok(Ok((reader.finish()?, note)))
    });
    match decoded {
        None => Err(malformed("it is damaged".to_string())),
        Some(Err(error)) => Err(malformed(format!("it is damaged ({})", one_line(&error.to_string())))),
        Some(Ok(Err(reason))) => Err(malformed(reason)),
        Some(Ok(Ok(found))) => Ok(found),
    }
}

/// Sizes in the footer that no file of ours has: decoding would ask for memory that the file cannot fill.
fn implausible(metadata: &polars_io::parquet::read::FileMetadata, size: usize) -> Option<String> {
    let rows: usize = metadata.row_groups.iter().map(|group| group.num_rows()).sum();
    if rows != metadata.num_rows || rows > u32::MAX as usize {
        return Some(format!("its footer counts {} rows, its parts {rows}", metadata.num_rows));
    }
    let columns = || metadata.row_groups.iter().flat_map(|group| group.parquet_columns());
    let out_of_file = columns().any(|column| {
        let range = column.byte_range();
        range.end > size as u64 || range.start > range.end
    });
    if out_of_file {
        return Some("its footer points outside the file".to_string());
    }
    // Our columns of measurements hardly compress; constant ones do, by at most some ten thousand.
    let claimed = columns().map(|c| c.uncompressed_size().max(0) as u128).sum::<u128>();
    (claimed > size as u128 * 20_000).then(|| format!("it claims to hold {claimed} bytes in {size}"))
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Runs `work`, turning a panic into `None` without a word on stderr.
fn without_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static SILENT: Flag<bool> = const { Flag::new(false) });
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let loud = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !SILENT.get() {
                loud(info);
            }
        }));
    });
    SILENT.set(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(work));
    SILENT.set(false);
    outcome.ok()
}
