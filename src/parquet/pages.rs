//! A look at parquet page headers before anybody believes them.
//!
//! A page header says how many values a page holds and how large it is once unpacked, and a decoder allocates by that. Each
//! is a small thrift struct (compact protocol), read here as far as those numbers go.

/// What is wrong with the pages of one column chunk of `expected` values, if anything is.
pub(super) fn fault(mut chunk: &[u8], expected: u64) -> Option<&'static str> {
    let mut values = 0;
    while !chunk.is_empty() {
        let mut header = Header::default();
        let mut reader = Reader { bytes: chunk };
        if reader.page(&mut header).is_none() {
            return Some("a page header is garbled");
        }
        let Some(rest) = reader.bytes.get(header.packed..) else {
            return Some("a page is longer than its column");
        };
        // No honest page unpacks to more than this from what it is packed in, and writers keep pages near a megabyte.
        let most = header.packed.saturating_mul(50_000).saturating_add(1 << 16);
        if header.unpacked > most.min(LARGEST_PAGE) {
            return Some("a page claims to unpack to more than it can");
        }
        if header.values > expected {
            return Some("a page claims more values than its column has");
        }
        values += if header.is_dictionary {
            0
        } else {
            header.values
        };
        chunk = rest;
    }
    (values != expected).then_some("its pages do not hold as many values as their column has")
}

/// Unpacked, in bytes.
const LARGEST_PAGE: usize = 1 << 30;

#[derive(Default)]
struct Header {
    unpacked: usize,
    packed: usize,
    values: u64,
    is_dictionary: bool,
}

/// Reads thrift's compact protocol; `None` where the bytes are not that.
struct Reader<'a> {
    bytes: &'a [u8],
}

/// Structs inside structs inside structs are not ours.
const DEEPEST: usize = 8;
const STRUCT: u8 = 12;

impl Reader<'_> {
    /// `PageHeader`: 2 and 3 are sizes; 5, 7 and 8 are the headers of a data page, a dictionary, and a data page of version 2,
    /// each with its number of values first.
    fn page(&mut self, header: &mut Header) -> Option<()> {
        let mut id = 0;
        while let Some(kind) = self.field(&mut id)? {
            match id {
                2 => header.unpacked = usize::try_from(self.integer()?).ok()?,
                3 => header.packed = usize::try_from(self.integer()?).ok()?,
                5 | 7 | 8 if kind == STRUCT => {
                    header.is_dictionary = id == 7;
                    let mut inner = 0;
                    while let Some(kind) = self.field(&mut inner)? {
                        match inner {
                            1 => header.values = u64::try_from(self.integer()?).ok()?,
                            _ => self.skip(kind, 0)?,
                        }
                    }
                }
                _ => self.skip(kind, 0)?,
            }
        }
        Some(())
    }

    /// The type of the next field, whose id goes to `id`; `Some(None)` at the end of a struct.
    fn field(&mut self, id: &mut i64) -> Option<Option<u8>> {
        let byte = self.byte()?;
        if byte == 0 {
            return Some(None);
        }
        *id = match byte >> 4 {
            0 => self.integer()?,
            step => *id + i64::from(step),
        };
        Some(Some(byte & 0xf))
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.bytes.split_first()?;
        self.bytes = rest;
        Some(first)
    }

    fn unsigned(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    /// Zigzag: 0, -1, 1, -2, ...
    fn integer(&mut self) -> Option<i64> {
        let value = self.unsigned()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    fn skip(&mut self, kind: u8, depth: usize) -> Option<()> {
        match kind {
            // A boolean is its own type.
            1 | 2 => {}
            3 => drop(self.byte()?),
            4..=6 => drop(self.unsigned()?),
            7 => self.bytes = self.bytes.get(8..)?,
            8 => {
                let length = usize::try_from(self.unsigned()?).ok()?;
                self.bytes = self.bytes.get(length..)?;
            }
            STRUCT if depth < DEEPEST => {
                let mut id = 0;
                while let Some(kind) = self.field(&mut id)? {
                    self.skip(kind, depth + 1)?;
                }
            }
            // No page header has lists or maps.
            _ => return None,
        }
        Some(())
    }
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
    fn a_page_that_unpacks_to_terabytes_is_refused() {
        // Unpacked size 2^35.
        let mut hostile = vec![0x15, 0, 0x15, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02];
        hostile.extend_from_slice(&page(5)[4..]);
        assert_eq!(
            fault(&hostile, 5),
            Some("a page claims to unpack to more than it can")
        );
    }
}
