//! Parquet with provenance, written whole, and read with suspicion: a file that somebody sends may be truncated, hostile
//! ([`crate::parquet`] sees to that), or simply another table.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use polars::prelude::{Column as Filled, CompatLevel, DataFrame, DataType, SchemaExt};
use polars_io::parquet::write::{
    KeyValueMetadata, ParquetCompression, ParquetWriter, StatisticsOptions,
};
use polars_parquet::write::schema_to_metadata_key;

use super::file::{stage, write_whole};
use super::provenance::{FOOTER_KEY, Provenance};
use super::{Column, Scores};
use crate::error::{Error, Result};
use crate::parquet::{self, Schema};

/// Key of what a file of activations says of itself.
pub(crate) const ACTIVATIONS_KEY: &str = "candlewick_activations";

impl Scores {
    /// Writes the table alone, with its provenance: beside `path`, flushed, and renamed into place.
    pub(super) fn write_own_parquet(&self, path: &Path) -> Result<()> {
        let note = serde_json::to_string(&self.provenance).expect("provenance has only text keys");
        write_whole(path, |file| {
            write_table(&self.table, FOOTER_KEY, note, path, file, Packing::Small)
        })
    }

    /// Reads the table alone.
    pub(super) fn read_own_parquet(path: &Path) -> Result<Scores> {
        let malformed = |reason: String| Error::Malformed {
            path: path.to_path_buf(),
            format: "scores",
            reason,
        };
        let (table, note) = read_table(path, FOOTER_KEY, "scores")?;
        let provenance: Provenance = serde_json::from_str(&note)
            .map_err(|error| malformed(format!("its provenance cannot be read ({error})")))?;
        let names = table.get_column_names();
        if let Some(other) = names.iter().find(|name| Column::from_name(name).is_none()) {
            let other = crate::text::visible(other);
            return Err(malformed(format!("column `{other}` is not one of ours")));
        }
        let columns = Column::ALL.iter().map(|&column| {
            let name = column.name();
            match table.column(name) {
                Ok(found) => fitting(column, found).map_err(malformed),
                Err(_) if column.is_required() => {
                    Err(malformed(format!("column `{name}` is missing")))
                }
                // A file of a version that did not have it.
                Err(_) => Ok(column.empty(table.height())),
            }
        });
        let table = DataFrame::new(table.height(), columns.collect::<Result<_>>()?)?;
        Ok(Scores {
            table,
            provenance,
            sides: Vec::new(),
        })
    }
}

/// What a file says of its making, if it is one of ours.
pub(super) fn provenance_of(path: &Path) -> Option<Provenance> {
    serde_json::from_str(&note_of(path, FOOTER_KEY)?).ok()
}

/// What a footer says under a key; nothing if it is no parquet file, or none of ours.
pub(super) fn note_of(path: &Path, key: &str) -> Option<String> {
    let mut note = None;
    // Nothing is read but the footer: the file as a whole may be large.
    let _ = parquet::read(path, "scores", Schema::AsWritten, |footer| {
        let ours = footer.notes.iter().find(|(name, _)| name == key);
        note = ours.map(|(_, text)| text.clone());
        Err(String::new())
    });
    note
}

/// A column that was read, if it has its type; indices of older files have no sign.
fn fitting(column: Column, found: &Filled) -> Result<Filled, String> {
    let expected = column.dtype();
    if *found.dtype() == expected {
        return Ok(found.clone());
    }
    let is_index = *found.dtype() == DataType::UInt32 && expected == DataType::Int32;
    let signed = is_index.then(|| found.cast(&expected).ok()).flatten();
    signed.ok_or_else(|| {
        let (name, found) = (column.name(), found.dtype());
        format!("column `{name}` is {found}, a table of scores has {expected}")
    })
}

/// What matters more of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Packing {
    Small,
    /// It is written and read once, and then removed.
    Quick,
}

/// Writes a table with one note in the footer, next to the arrow schema that other readers look for. It names text
/// `large_string`: the `string_view` that polars would name is unknown to pyarrow before 16, and later ones cannot filter it.
pub(super) fn write_table(
    table: &DataFrame,
    key: &str,
    note: String,
    path: &Path,
    file: &mut File,
    packing: Packing,
) -> Result<()> {
    let schema = table.schema().to_arrow(CompatLevel::oldest());
    let schema = schema_to_metadata_key(&schema);
    let notes = vec![
        (schema.key, schema.value.unwrap_or_default()),
        (key.to_string(), note),
    ];
    let notes = KeyValueMetadata::from_static(notes);
    let mut table = table.clone();
    let mut out = Remembering {
        out: BufWriter::new(file),
        error: None,
    };
    let mut writer = ParquetWriter::new(&mut out);
    if packing == Packing::Quick {
        writer = writer
            .with_compression(ParquetCompression::Uncompressed)
            .with_statistics(StatisticsOptions::empty());
    }
    let written = writer
        .with_key_value_metadata(Some(notes))
        .finish(&mut table);
    let flushed = out.flush();
    match (out.error, written, flushed) {
        // What parquet makes of a full disk helps nobody.
        (Some(source), ..) | (None, Ok(_), Err(source)) => Err(Error::Write {
            path: path.to_path_buf(),
            source,
        }),
        (None, Ok(_), Ok(())) => Ok(()),
        (None, Err(error), _) => Err(error.into()),
    }
}

/// A writer that remembers what the system said when it failed.
struct Remembering<W> {
    out: W,
    error: Option<io::Error>,
}

impl<W: Write> Remembering<W> {
    fn remember<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            self.error.get_or_insert(error);
            kind.into()
        })
    }
}

impl<W: Write> Write for Remembering<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes);
        self.remember(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.out.flush();
        self.remember(flushed)
    }
}

/// Stages a table beside `path` without renaming it: what a kill just before the rename leaves.
pub(super) fn stage_table(
    table: &DataFrame,
    key: &str,
    note: String,
    path: &Path,
) -> Result<std::path::PathBuf> {
    stage(path, |file| {
        write_table(table, key, note, path, file, Packing::Quick)
    })
}

/// Reads a table and the note of ours in its footer.
pub(super) fn read_table(
    path: &Path,
    key: &str,
    format: &'static str,
) -> Result<(DataFrame, String)> {
    if !path.exists() {
        let hint = "`candlewick patch` makes one".to_string();
        return Err(Error::Missing {
            path: path.to_path_buf(),
            hint,
        });
    }
    let mut note = String::new();
    let table = parquet::read(path, format, Schema::AsWritten, |footer| {
        let Some((_, text)) = footer.notes.iter().find(|(name, _)| name == key) else {
            let has = |wanted: &str| {
                footer
                    .notes
                    .iter()
                    .any(|(name, _)| name.starts_with(wanted))
            };
            return Err(if has(ACTIVATIONS_KEY) {
                "it holds activations that `candlewick cache` wrote; docs/python.md reads them"
                    .into()
            } else if has("candlewick") {
                format!(
                    "no `{key}` in its footer: it is a table of candlewick's of another kind, such as a shard (`candlewick merge`) or the \
                     summary of a plan (any dataframe library reads it)"
                )
            } else {
                format!("no `{key}` in its footer: another program wrote it")
            });
        };
        note.clone_from(text);
        Ok(footer.columns.clone())
    })?;
    Ok((table, note))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::{Cell, Detail, ExampleScores, PromptTokens, ScoresMeta};
    use super::*;

    fn scores() -> Scores {
        let cells: Vec<Cell> = (0..6)
            .map(|i| Cell {
                component: if i < 4 {
                    "hook_resid_pre"
                } else {
                    "attn.hook_z"
                }
                .into(),
                layer: Some(i / 2),
                pos: (i < 4).then_some(i as i32 % 2),
                head: (i >= 4).then_some(i),
                ..Cell::default()
            })
            .collect();
        let example = |example| ExampleScores {
            example,
            clean: 1.0,
            corrupted: -0.5,
            tokens: vec!["a".into(), "\u{1b}é".into()],
            cells: (0..6).collect(),
            values: (0..6).map(|i| (i + example) as f64 / 7.0).collect(),
            ..ExampleScores::default()
        };
        let provenance = Provenance {
            command: vec!["candlewick".into(), "patch".into()],
            prompts: vec![PromptTokens {
                clean: vec![1, 2],
                corrupted: vec![1, 3],
                ..PromptTokens::default()
            }],
            config: serde_json::json!({ "window": 3 }),
            seconds: 0.1,
            ..Provenance::default()
        };
        let meta = ScoresMeta {
            method: "m".into(),
            ..ScoresMeta::default()
        };
        Scores::assemble(
            &cells,
            &[example(0), example(1)],
            &meta,
            Detail::Mean,
            provenance,
        )
        .unwrap()
    }

    #[test]
    fn a_table_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        scores().write_parquet(&path).unwrap();
        let back = Scores::read_parquet(&path).unwrap();
        assert!(back.table.equals_missing(&scores().table), "{}", back.table);
        assert_eq!(back.table.schema(), scores().table.schema());
        assert_eq!(back.provenance, scores().provenance);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_said_in_the_systems_words_with_what_to_do() {
        // The device that is always full.
        let mut full = fs::OpenOptions::new()
            .write(true)
            .open("/dev/full")
            .unwrap();
        let path = Path::new("scores.parquet");
        let table = scores().table;
        let error = write_table(
            &table,
            FOOTER_KEY,
            "{}".into(),
            path,
            &mut full,
            Packing::Small,
        )
        .unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, Error::Write { .. }), "{message}");
        assert!(message.contains("no room is left"), "{message}");
    }

    #[test]
    fn a_file_of_an_older_version_is_read_with_what_it_has() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("old.parquet");
        let mut old = scores().table.drop("n").unwrap();
        old = old.drop("template").unwrap();
        let unsigned = old.column("layer").unwrap().cast(&DataType::UInt32);
        old.with_column(unsigned.unwrap()).unwrap();
        write_whole(&path, |file| {
            let note = r#"{"metric":"m"}"#.into();
            write_table(&old, FOOTER_KEY, note, &path, file, Packing::Small)
        })
        .unwrap();
        let read = Scores::read_parquet(&path).unwrap();
        assert_eq!(read.table.schema(), scores().table.schema());
        assert_eq!(read.integers("layer"), scores().integers("layer"));
        assert_eq!(read.integers("n"), None);
    }

    #[test]
    fn the_same_table_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let bytes = |name: &str| {
            scores().write_parquet(&folder.path().join(name)).unwrap();
            fs::read(folder.path().join(name)).unwrap()
        };
        assert_eq!(bytes("a"), bytes("b"));
    }

    #[test]
    fn another_table_is_refused_with_what_is_wrong_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.parquet");
        let write = |table: &DataFrame, key: &str, note: &str| {
            write_whole(&path, |file| {
                write_table(table, key, note.to_string(), &path, file, Packing::Small)
            })
            .unwrap();
            Scores::read_parquet(&path).unwrap_err().to_string()
        };
        let whole = scores().table;
        assert!(write(&whole, "pandas", "{}").contains("another program wrote it"));
        assert!(write(&whole, FOOTER_KEY, "{").contains("its provenance cannot be read"));
        assert!(
            write(&whole.drop("score").unwrap(), FOOTER_KEY, "{}")
                .contains("column `score` is missing")
        );
        let mut other = whole.clone();
        other
            .with_column(Filled::new("score".into(), vec!["x"; other.height()]))
            .unwrap();
        assert!(write(&other, FOOTER_KEY, "{}").contains("column `score` is str"));
        let mut other = whole.clone();
        other
            .with_column(Filled::new("extra".into(), vec![1u32; other.height()]))
            .unwrap();
        assert!(write(&other, FOOTER_KEY, "{}").contains("column `extra` is not one of ours"));
    }

    #[test]
    fn no_damage_makes_the_reader_panic() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scores.parquet");
        scores().write_parquet(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        // Every fifth byte; all of them, three ways each, take a minute and were clean when this was written.
        for (at, flip) in (0..whole.len())
            .step_by(5)
            .zip([0x01, 0x80, 0xff].into_iter().cycle())
        {
            let mut bytes = whole.clone();
            bytes[at] ^= flip;
            fs::write(&path, &bytes).unwrap();
            // A changed number or name is still a table; all that matters is that there is an answer.
            let _ = Scores::read_parquet(&path);
        }
        for length in (0..whole.len()).step_by(61) {
            fs::write(&path, &whole[..length]).unwrap();
            let error = Scores::read_parquet(&path).unwrap_err();
            assert!(
                matches!(error, Error::Malformed { .. }),
                "{length}: {error}"
            );
        }
    }
}
