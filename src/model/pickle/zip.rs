//! The part of the zip format that PyTorch writes: entries that are stored, not compressed, so that each is a range of the file.
//!
//! The `zip` crate reads the table of contents. Nothing is unpacked, which leaves nothing for a zip bomb to blow up; a compressed entry
//! is refused by name. Of two entries of one name the last counts, as in Python.

use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;

use ::zip::{CompressionMethod, ZipArchive};

use crate::panics::caught;
use crate::text::{clipped, shortened};

/// Every entry's bytes as a range of the file, by name.
/// # Errors
/// The reason, without a path.
pub fn entries(file: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    caught(|| read(file)).unwrap_or_else(|| Err("its table of contents is damaged".into()))
}

fn read(file: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let said = |error: &dyn std::error::Error| {
        let reason = clipped(&error.to_string(), 200);
        format!("{reason}; if it was cut short, download it again")
    };
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(|error| said(&error))?;
    let mut entries = BTreeMap::new();
    for index in 0..archive.len() {
        let entry = archive.by_index_raw(index).map_err(|error| said(&error))?;
        let name = entry.name().map_err(|error| said(&error))?.into_owned();
        let shown = shortened(&name);
        if entry.compression() != CompressionMethod::Stored || entry.encrypted() {
            return Err(format!(
                "its entry `{shown}` is compressed or encrypted, which PyTorch never does; unpack it and zip it with `zip -0`"
            ));
        }
        let size = entry.compressed_size();
        let place = || {
            let start = usize::try_from(entry.data_start()?).ok()?;
            let end = start.checked_add(usize::try_from(size).ok()?)?;
            (end <= file.len()).then_some(start..end)
        };
        let range = place()
            .ok_or_else(|| format!("its entry `{shown}` of {size} bytes is not inside the file"))?;
        entries.insert(name, range);
    }
    Ok(entries)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use ::zip::ZipWriter;
    use ::zip::write::SimpleFileOptions;

    use super::*;

    /// A zip of stored entries. `wide` writes entries in the 64-bit form, as PyTorch does whatever the size.
    pub(crate) fn written(files: &[(&str, Vec<u8>)], wide: bool) -> Vec<u8> {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        let stored = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(wide);
        for (name, bytes) in files {
            zip.start_file(*name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap().into_inner()
    }

    fn two(wide: bool) -> Vec<u8> {
        let files = [
            ("a/data.pkl", b"xyz".to_vec()),
            ("a/data/0", b"1234".to_vec()),
        ];
        written(&files, wide)
    }

    #[test]
    fn entries_are_ranges_of_the_file() {
        for wide in [false, true] {
            let zip = two(wide);
            let entries = entries(&zip).unwrap();
            assert_eq!(entries.len(), 2);
            assert_eq!(&zip[entries["a/data.pkl"].clone()], b"xyz");
            assert_eq!(&zip[entries["a/data/0"].clone()], b"1234");
        }
    }

    #[test]
    fn damaged_zips_are_refused() {
        for wide in [false, true] {
            let whole = two(wide);
            for length in 0..whole.len() {
                assert!(entries(&whole[..length]).is_err(), "cut to {length} bytes");
            }
            // Any one byte changed: refused or read, but never outside the file.
            for at in 0..whole.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut zip = whole.clone();
                    zip[at] = value;
                    for range in entries(&zip).into_iter().flatten().map(|(_, range)| range) {
                        assert!(range.end <= zip.len());
                    }
                }
            }
        }
        let mut compressed = two(false);
        let central = compressed
            .windows(4)
            .position(|four| four == b"PK\x01\x02")
            .unwrap();
        compressed[central + 10] = 8;
        assert!(entries(&compressed).unwrap_err().contains("compressed"));
    }
}
