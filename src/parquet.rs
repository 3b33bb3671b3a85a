//! Parquet files from strangers. The footer and the header of every page that will be read are checked before anything is decoded,
//! and polars is not trusted to refuse what it cannot read without a panic.

use std::fs;
use std::io::Cursor;
use std::path::Path;

use polars::prelude::{DataFrame, PolarsResult};
use polars_io::SerReader;
use polars_io::parquet::read::{FileMetadata, ParallelStrategy, ParquetReader};
use polars_parquet_format::PageHeader;
use polars_parquet_format::thrift::protocol::TCompactInputProtocol;

use crate::error::{Error, Result};
use crate::panics::caught;
use crate::text::one_line;

/// What a file says about itself.
#[derive(Debug)]
pub(crate) struct Footer {
    pub rows: usize,
    pub columns: Vec<String>,
    /// Keys and values that its writer left.
    pub notes: Vec<(String, String)>,
}

/// Entries of all lists of a column; more are refused.
const MOST_ENTRIES: i64 = 1 << 24;

/// Which types the columns of a file have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schema {
    /// Those of the program that wrote it, where it left them.
    AsWritten,
    /// Those of parquet itself: what a program calls categories are texts.
    AsStored,
}

/// Reads the columns that `choose` wants, having seen the footer; its refusal becomes the reason of the error.
/// # Errors
/// [`Error::Read`]; [`Error::LfsPointer`]; [`Error::Malformed`] if it is no parquet file, or damaged, or refused.
pub(crate) fn read(
    path: &Path,
    format: &'static str,
    schema: Schema,
    choose: impl FnOnce(&Footer) -> Result<Vec<String>, String>,
) -> Result<DataFrame> {
    let malformed = |reason: String| Error::Malformed {
        path: path.to_path_buf(),
        format,
        reason,
    };
    let read = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let metadata = fs::metadata(path).map_err(read)?;
    if !(metadata.is_file() || metadata.is_dir()) {
        // A device or a pipe may have no end.
        return Err(malformed("it is not a regular file".to_string()));
    }
    let mut bytes = fs::read(path).map_err(read)?;
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::LfsPointer {
            path: path.to_path_buf(),
        });
    }
    if bytes.len() < 12 || !bytes.starts_with(b"PAR1") {
        return Err(malformed(format!(
            "its {} bytes are no parquet",
            bytes.len()
        )));
    }
    if !bytes.ends_with(b"PAR1") {
        return Err(malformed(
            "its end is missing: an unfinished copy?".to_string(),
        ));
    }
    if schema == Schema::AsStored {
        forget_written_schema(&mut bytes);
    }
    match caught(move || decode(&bytes, choose)) {
        None => Err(malformed("it is damaged".to_string())),
        Some(Err(error)) => Err(malformed(format!(
            "it is damaged ({})",
            one_line(&error.to_string())
        ))),
        Some(Ok(Err(reason))) => Err(malformed(reason)),
        Some(Ok(Ok(table))) => Ok(table),
    }
}

/// Renames the footer's note in which Arrow programs keep their own types, so that nobody finds it: some are types (dictionaries) that
/// this build of polars cannot make. What is stored under them are texts.
fn forget_written_schema(bytes: &mut [u8]) {
    const NOTE: &[u8] = b"ARROW:schema";
    let Some((rest, tail)) = bytes.split_last_chunk_mut::<8>() else {
        return;
    };
    let length = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]) as usize;
    let start = rest.len().saturating_sub(length);
    let footer = &mut rest[start..];
    if let Some(at) = footer.windows(NOTE.len()).position(|window| window == NOTE) {
        footer[at] = b'-';
    }
}

fn decode(
    bytes: &[u8],
    choose: impl FnOnce(&Footer) -> Result<Vec<String>, String>,
) -> PolarsResult<Result<DataFrame, String>> {
    // One thread: a panic on another one could not be kept quiet.
    let mut reader = ParquetReader::new(Cursor::new(bytes)).read_parallel(ParallelStrategy::None);
    let metadata = reader.get_metadata()?.clone();
    let notes = metadata.key_value_metadata.iter().flatten();
    let footer = Footer {
        rows: metadata.num_rows,
        columns: reader
            .schema()?
            .iter_names()
            .map(|name| name.to_string())
            .collect(),
        notes: notes
            .filter_map(|note| Some((note.key.clone(), note.value.clone()?)))
            .collect(),
    };
    let columns = match choose(&footer) {
        Ok(columns) => columns,
        Err(reason) => return Ok(Err(reason)),
    };
    if let Some(reason) = implausible(&metadata, &columns, bytes) {
        return Ok(Err(reason));
    }
    let table = reader.with_columns(Some(columns)).finish()?;
    // Lengths are a matter of trust to polars, unless it was built with its own assertions.
    let height = table.height();
    let short = (table.columns().iter()).find(|column| column.len() != height);
    Ok(match short {
        Some(column) => Err(format!(
            "it is damaged (column `{}` has {} of {height} rows)",
            column.name(),
            column.len()
        )),
        None => Ok(table),
    })
}

/// Sizes in footer or page headers that cannot be true: decoding would ask for memory that the file cannot fill.
fn implausible(metadata: &FileMetadata, columns: &[String], bytes: &[u8]) -> Option<String> {
    let rows = metadata
        .row_groups
        .iter()
        .try_fold(0usize, |sum, group| sum.checked_add(group.num_rows()));
    if rows != Some(metadata.num_rows) || metadata.num_rows > u32::MAX as usize {
        return Some(format!(
            "its footer counts {} rows, its parts other ones",
            metadata.num_rows
        ));
    }
    for group in &metadata.row_groups {
        let rows = group.num_rows() as i64;
        let chosen = group.parquet_columns().iter().filter(|column| {
            let path = &column.descriptor().path_in_schema;
            path.first()
                .is_none_or(|name| columns.iter().any(|chosen| chosen == name.as_str()))
        });
        for column in chosen {
            let range = column.byte_range();
            let Some(chunk) = bytes.get(range.start as usize..range.end as usize) else {
                return Some("its footer points outside the file".to_string());
            };
            let values = column.num_values();
            let holds_lists = column.descriptor().descriptor.max_rep_level > 0;
            if !holds_lists && values != rows {
                return Some("its columns differ in length".to_string());
            }
            if !(0..=MOST_ENTRIES.max(rows)).contains(&values) {
                return Some(format!("a column of lists claims {values} entries"));
            }
            if let Some(fault) = fault(chunk, values) {
                return Some(fault.to_string());
            }
        }
    }
    None
}

/// Unpacked, in bytes; writers keep pages near a megabyte.
const LARGEST_PAGE: usize = 1 << 30;

/// What is wrong with the pages of one column chunk of `expected` values, if anything is. A page header says how many values a page
/// holds and how large it is once unpacked, and a decoder allocates by that before it has seen one of them.
fn fault(mut chunk: &[u8], expected: i64) -> Option<&'static str> {
    let mut values = 0;
    while !chunk.is_empty() {
        let mut rest = chunk;
        let mut protocol = TCompactInputProtocol::new(&mut rest, chunk.len());
        let Ok(header) = PageHeader::read_from_in_protocol(&mut protocol) else {
            return Some("a page header is garbled");
        };
        let size = |bytes: i32| usize::try_from(bytes).unwrap_or(usize::MAX);
        let packed = size(header.compressed_page_size);
        let Some(rest) = rest.get(packed..) else {
            return Some("a page is longer than its column");
        };
        // No honest page unpacks to more than this from what it is packed in.
        let most = packed.saturating_mul(50_000).saturating_add(1 << 16);
        if size(header.uncompressed_page_size) > most.min(LARGEST_PAGE) {
            return Some("a page claims to unpack to more than it can");
        }
        let of_dictionary = header.dictionary_page_header.map(|page| page.num_values);
        let of_data = (header.data_page_header.map(|page| page.num_values))
            .or(header.data_page_header_v2.map(|page| page.num_values));
        let held = i64::from(of_data.or(of_dictionary).unwrap_or(0));
        if !(0..=expected).contains(&held) {
            return Some("a page claims more values than its column has");
        }
        values += if of_data.is_some() { held } else { 0 };
        chunk = rest;
    }
    (values != expected).then_some("its pages do not hold as many values as their column has")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// type 0, unpacked 8, packed 2, data page header { values, plain, rle, rle }, and two bytes of page.
    fn page(values: u8) -> Vec<u8> {
        vec![
            0x15,
            0,
            0x15,
            16,
            0x15,
            4,
            0x2c,
            0x15,
            values * 2,
            0x15,
            0,
            0x15,
            6,
            0x15,
            6,
            0,
            0,
            0xaa,
            0xbb,
        ]
    }

    #[test]
    fn pages_must_add_up_to_their_column() {
        assert_eq!(fault(&page(5), 5), None);
        assert_eq!(fault(&[page(2), page(3)].concat(), 5), None);
        assert!(fault(&page(5), 6).is_some());
        assert!(fault(&page(5), 4).is_some());
        assert!(fault(&page(5)[..18], 5).is_some());
        assert!(fault(&[0xff; 40], 5).is_some());
    }

    #[test]
    fn a_page_that_unpacks_to_gigabytes_is_refused() {
        // Unpacked size 2^31 - 1, the most that can be said.
        let mut hostile = vec![0x15, 0, 0x15, 0xfe, 0xff, 0xff, 0xff, 0x0f];
        hostile.extend_from_slice(&page(5)[4..]);
        assert_eq!(
            fault(&hostile, 5),
            Some("a page claims to unpack to more than it can")
        );
    }
}
