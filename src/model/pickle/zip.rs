//! The part of the zip format that PyTorch writes: entries that are stored, not compressed, so that each is a range of the file.
//!
//! Nothing is unpacked, which leaves nothing for a zip bomb to blow up; a compressed entry is refused by name. Sizes and offsets come
//! from the central directory at the end of the file, in its 64-bit form where there is one.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::text::shortened;

const END: &[u8; 4] = b"PK\x05\x06";
const END_64_LOCATOR: &[u8; 4] = b"PK\x06\x07";
const END_64: &[u8; 4] = b"PK\x06\x06";
const CENTRAL: &[u8; 4] = b"PK\x01\x02";
const LOCAL: &[u8; 4] = b"PK\x03\x04";

/// Bytes of the fixed part of each record.
const END_LENGTH: usize = 22;
const END_64_LOCATOR_LENGTH: usize = 20;
const CENTRAL_LENGTH: usize = 46;
const LOCAL_LENGTH: usize = 30;
/// What stands in a 32-bit field whose value is in the 64-bit extension.
const ELSEWHERE: u32 = u32::MAX;
/// The extension's number among the extra fields.
const EXTENSION: u16 = 1;

/// Every entry's bytes as a range of the file, by name.
/// # Errors
/// The reason, without a path.
pub fn entries(file: &[u8]) -> Result<BTreeMap<String, Range<usize>>, String> {
    let mut at = central_directory(file)?;
    let mut entries = BTreeMap::new();
    while file.get(at..).is_some_and(|rest| rest.starts_with(CENTRAL)) {
        let fixed = slice(file, at, CENTRAL_LENGTH)?;
        let name_length = usize::from(u16_at(fixed, 28));
        let extra_length = usize::from(u16_at(fixed, 30));
        let comment_length = usize::from(u16_at(fixed, 32));
        let name = slice(file, at + CENTRAL_LENGTH, name_length)?;
        let extra = slice(file, at + CENTRAL_LENGTH + name_length, extra_length)?;
        let name = String::from_utf8_lossy(name).into_owned();
        let shown = shortened(&name);
        let (method, flags) = (u16_at(fixed, 10), u16_at(fixed, 8));
        if method != 0 || flags & 1 != 0 {
            return Err(format!(
                "its entry `{shown}` is compressed or encrypted, which PyTorch never does; unpack it and zip it with `zip -0`"
            ));
        }
        let [_unpacked, size, offset] = wide_fields(fixed, extra);
        let range = entry_range(file, offset, size).ok_or_else(|| {
            format!("its entry `{shown}` of {size} bytes at {offset} is not inside the file")
        })?;
        if entries.insert(name, range).is_some() {
            return Err(format!("its entry `{shown}` is there twice"));
        }
        at += CENTRAL_LENGTH + name_length + extra_length + comment_length;
    }
    Ok(entries)
}

/// Where the central directory begins.
fn central_directory(file: &[u8]) -> Result<usize, String> {
    let cut_short = || {
        "its table of contents is not at its end; it was cut short, download it again".to_string()
    };
    // The end record has a comment of at most 64 KiB behind it.
    let earliest = file
        .len()
        .saturating_sub(END_LENGTH + usize::from(u16::MAX));
    let end = (earliest..file.len().saturating_sub(END_LENGTH - 1))
        .rev()
        .find(|at| file[*at..].starts_with(END))
        .ok_or_else(cut_short)?;
    let locator = end
        .checked_sub(END_64_LOCATOR_LENGTH)
        .map(|at| &file[at..end])
        .filter(|locator| locator.starts_with(END_64_LOCATOR));
    let start = match locator {
        None => u64::from(u32_at(file, end + 16)),
        Some(locator) => {
            let end_64 = usize::try_from(u64_at(locator, 8)).map_err(|_| cut_short())?;
            let record = slice(file, end_64, 56)?;
            if !record.starts_with(END_64) {
                return Err(cut_short());
            }
            u64_at(record, 48)
        }
    };
    usize::try_from(start)
        .ok()
        .filter(|start| *start <= end)
        .ok_or_else(cut_short)
}

/// Unpacked size, stored size and offset of a central record; those that do not fit stand in the extension, in this order.
fn wide_fields(fixed: &[u8], extra: &[u8]) -> [u64; 3] {
    let mut wide = extension(extra).as_chunks::<8>().0.iter();
    [24, 20, 42].map(|field| match u32_at(fixed, field) {
        ELSEWHERE => wide
            .next()
            .map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes)),
        narrow => narrow.into(),
    })
}

/// The 64-bit extension among a record's extra fields, or nothing.
fn extension(mut extra: &[u8]) -> &[u8] {
    while let Some((head, rest)) = extra.split_first_chunk::<4>() {
        let length = usize::from(u16_at(head, 2)).min(rest.len());
        let (field, after) = rest.split_at(length);
        if u16_at(head, 0) == EXTENSION {
            return field;
        }
        extra = after;
    }
    &[]
}

/// The bytes of an entry, which follow its local header.
fn entry_range(file: &[u8], offset: u64, size: u64) -> Option<Range<usize>> {
    let offset = usize::try_from(offset).ok()?;
    let local = slice(file, offset, LOCAL_LENGTH).ok()?;
    if !local.starts_with(LOCAL) {
        return None;
    }
    let names = usize::from(u16_at(local, 26)) + usize::from(u16_at(local, 28));
    let start = offset + LOCAL_LENGTH + names;
    let end = start.checked_add(usize::try_from(size).ok()?)?;
    (end <= file.len()).then_some(start..end)
}

fn slice(file: &[u8], start: usize, length: usize) -> Result<&[u8], String> {
    start
        .checked_add(length)
        .and_then(|end| file.get(start..end))
        .ok_or_else(|| format!("{length} bytes of its table of contents are claimed at byte {start}, the file has {}", file.len()))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A zip of stored entries. `wide` writes it in the 64-bit form, as PyTorch does whatever the size.
    pub(crate) fn written(files: &[(&str, Vec<u8>)], wide: bool) -> Vec<u8> {
        let narrow = |n: usize| (if wide { ELSEWHERE } else { n as u32 }).to_le_bytes();
        let mut zip = Vec::new();
        let mut directory = Vec::new();
        for (name, bytes) in files {
            let offset = zip.len();
            let name_length = (name.len() as u16).to_le_bytes();
            zip.extend(LOCAL);
            zip.extend([0; 22]);
            zip.extend(name_length);
            zip.extend([0; 2]);
            zip.extend(name.as_bytes());
            zip.extend(bytes);
            directory.extend(CENTRAL);
            directory.extend([0; 12]);
            directory.extend(crc32(bytes).to_le_bytes());
            directory.extend(narrow(bytes.len()));
            directory.extend(narrow(bytes.len()));
            directory.extend(name_length);
            directory.extend((if wide { 4 + 24 } else { 0u16 }).to_le_bytes());
            directory.extend([0; 10]);
            directory.extend(narrow(offset));
            directory.extend(name.as_bytes());
            if wide {
                directory.extend(EXTENSION.to_le_bytes());
                directory.extend(24u16.to_le_bytes());
                for n in [bytes.len(), bytes.len(), offset] {
                    directory.extend((n as u64).to_le_bytes());
                }
            }
        }
        let (start, length, count) = (zip.len(), directory.len(), files.len());
        zip.extend(directory);
        if wide {
            let end_64 = zip.len();
            zip.extend(END_64);
            zip.extend(44u64.to_le_bytes());
            zip.extend([0; 12]);
            for n in [count, count, length, start] {
                zip.extend((n as u64).to_le_bytes());
            }
            zip.extend(END_64_LOCATOR);
            zip.extend([0; 4]);
            zip.extend((end_64 as u64).to_le_bytes());
            zip.extend(1u32.to_le_bytes());
        }
        zip.extend(END);
        zip.extend([0; 4]);
        zip.extend((count as u16).to_le_bytes());
        zip.extend((count as u16).to_le_bytes());
        zip.extend((length as u32).to_le_bytes());
        zip.extend(narrow(start));
        zip.extend([0; 2]);
        zip
    }

    /// The checksum, which other readers ask for.
    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for byte in bytes {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
            }
        }
        !crc
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
            .position(|four| four == CENTRAL)
            .unwrap();
        compressed[central + 10] = 8;
        assert!(entries(&compressed).unwrap_err().contains("compressed"));
        let twice = written(&[("a", Vec::new()), ("a", Vec::new())], false);
        assert!(entries(&twice).unwrap_err().contains("twice"));
    }
}
