//! Safetensors written in place: all offsets are known before the first prompt runs, so each batch goes to where it belongs, and
//! what fills up shorter prompts is never written (a file's unwritten bytes are zeros).

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::writer::Writer;
use crate::error::{Error, Result};
use crate::hooks::Hook;

pub(super) struct TensorWriter<'a> {
    file: &'a mut File,
    path: &'a Path,
    /// Where each hook's tensor begins in the file, and its shape.
    places: Vec<(u64, Vec<usize>)>,
}

impl<'a> TensorWriter<'a> {
    /// Writes the header and the tokens, and makes room for the rest.
    pub fn begin(
        file: &'a mut File,
        path: &'a Path,
        shapes: &[(Hook, Vec<usize>)],
        tokens: &[&[u32]],
        about: &Value,
    ) -> Result<Self> {
        let longest = tokens.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        let mut header = Map::new();
        header.insert(
            "__metadata__".into(),
            json!({ "format": "pt", "candlewick": about.to_string() }),
        );
        let mut end = 0_u64;
        let mut entry = |name: String, dtype: &str, width: u64, shape: &[usize]| {
            let begin = end;
            end += width * shape.iter().map(|&n| n as u64).product::<u64>();
            let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
            header.insert(name, entry);
            begin
        };
        // Eight bytes each, so they stand in front, where they are aligned.
        entry("tokens".into(), "I64", 8, &[tokens.len(), longest]);
        entry("lengths".into(), "I64", 8, &[tokens.len()]);
        let begins: Vec<u64> = shapes
            .iter()
            .map(|(hook, shape)| entry(hook.to_string(), "F32", 4, shape))
            .collect();
        let mut header = serde_json::to_vec(&header).expect("a JSON value is JSON");
        header.resize(header.len().next_multiple_of(8), b' ');
        let data = 8 + header.len() as u64;
        let mut ids = Vec::with_capacity(8 * longest * tokens.len());
        for tokens in tokens {
            let own = tokens.iter().map(|&token| i64::from(token));
            let beyond = std::iter::repeat_n(-1, longest - tokens.len());
            own.chain(beyond)
                .for_each(|id| ids.extend(id.to_le_bytes()));
        }
        for tokens in tokens {
            ids.extend((tokens.len() as i64).to_le_bytes());
        }
        let length = (header.len() as u64).to_le_bytes();
        let written = [&length[..], &header, &ids]
            .into_iter()
            .try_for_each(|part| file.write_all(part));
        written
            .and_then(|()| file.set_len(data + end))
            .map_err(|source| failed(path, source))?;
        let places = begins.iter().zip(shapes);
        Ok(TensorWriter {
            file,
            path,
            places: places
                .map(|(begin, (_, shape))| (data + begin, shape.clone()))
                .collect(),
        })
    }
}

impl Writer for TensorWriter<'_> {
    fn write(
        &mut self,
        at: usize,
        _: Hook,
        batch: &[usize],
        values: &[f32],
        shape: &[usize],
    ) -> Result<()> {
        let (begin, whole) = &self.places[at];
        let (own, room): (usize, usize) =
            (shape[1..].iter().product(), whole[1..].iter().product());
        for (&prompt, values) in batch.iter().zip(values.chunks_exact(own)) {
            let begin = begin + 4 * (prompt * room) as u64;
            place(self.file, begin, values, &shape[1..], &whole[1..])
                .map_err(|source| failed(self.path, source))?;
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.file
            .flush()
            .map_err(|source| failed(self.path, source))
    }
}

fn failed(path: &Path, source: io::Error) -> Error {
    Error::Write {
        path: path.to_path_buf(),
        source,
    }
}

/// Writes a block of values into the front corner of a larger one.
fn place(
    file: &mut File,
    begin: u64,
    values: &[f32],
    shape: &[usize],
    room: &[usize],
) -> io::Result<()> {
    // The trailing axes in which both agree are one stretch of bytes.
    let differing = (0..shape.len())
        .rev()
        .find(|&axis| shape[axis] != room[axis]);
    let Some(axis) = differing else {
        return write_at(file, begin, values);
    };
    if axis == 0 {
        return write_at(file, begin, values);
    }
    let (own, inner): (usize, usize) = (shape[1..].iter().product(), room[1..].iter().product());
    for (i, values) in values.chunks_exact(own).enumerate() {
        place(
            file,
            begin + 4 * (i * inner) as u64,
            values,
            &shape[1..],
            &room[1..],
        )?;
    }
    Ok(())
}

fn write_at(file: &mut File, begin: u64, values: &[f32]) -> io::Result<()> {
    file.seek(SeekFrom::Start(begin))?;
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    file.write_all(&bytes)
}
