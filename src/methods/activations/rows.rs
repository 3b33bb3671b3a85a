//! Activations as rows: a vector each, a row group a batch and hook.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use polars::prelude::*;
use polars_io::parquet::write::{BatchedWriter, KeyValueMetadata, ParquetWriter};
use serde_json::Value;

use super::writer::{Prompt, Writer};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind};
use crate::model::Tokenizer;
use crate::scores::ACTIVATIONS_KEY;

pub(super) struct RowWriter<'a> {
    writer: BatchedWriter<BufWriter<&'a mut File>>,
    path: &'a Path,
    tokenizer: &'a Tokenizer,
    prompts: &'a [Prompt],
}

fn schema() -> Schema {
    let text = || DataType::String;
    Schema::from_iter([
        Field::new("prompt".into(), DataType::Int32),
        Field::new("run".into(), text()),
        Field::new("example".into(), DataType::Int32),
        Field::new("hook".into(), text()),
        Field::new("layer".into(), DataType::Int32),
        Field::new("head".into(), DataType::Int32),
        Field::new("pos".into(), DataType::Int32),
        Field::new("token".into(), text()),
        Field::new("values".into(), DataType::List(Box::new(DataType::Float32))),
    ])
}

impl<'a> RowWriter<'a> {
    pub fn begin(
        file: &'a mut File,
        path: &'a Path,
        tokenizer: &'a Tokenizer,
        prompts: &'a [Prompt],
        about: &Value,
    ) -> Result<Self> {
        let notes = vec![(ACTIVATIONS_KEY.to_string(), about.to_string())];
        let writer = ParquetWriter::new(BufWriter::new(file))
            .with_key_value_metadata(Some(KeyValueMetadata::from_static(notes)));
        Ok(RowWriter {
            writer: writer.batched(&schema())?,
            path,
            tokenizer,
            prompts,
        })
    }
}

impl Writer for RowWriter<'_> {
    fn write(
        &mut self,
        _: usize,
        hook: Hook,
        batch: &[usize],
        values: &[f32],
        shape: &[usize],
    ) -> Result<()> {
        // Each prompt is [pos, values], [pos, head, values], or [head, pos, values] for patterns.
        let width = shape[shape.len() - 1];
        let is_pattern = matches!(hook.kind, Kind::Pattern | Kind::AttnScores);
        let (heads, positions) = match (shape.len(), is_pattern) {
            (4, true) => (Some(shape[1]), shape[2]),
            (4, false) => (Some(shape[2]), shape[1]),
            _ => (None, shape[1]),
        };
        let of_prompt = positions * heads.unwrap_or(1);
        let n = batch.len() * of_prompt;
        let place = |row: usize| {
            let (head, pos) = match (heads, is_pattern) {
                (None, _) => (None, row),
                (Some(_), true) => (Some(row / positions), row % positions),
                (Some(heads), false) => (Some(row % heads), row / heads),
            };
            (head, pos)
        };
        let mut prompts = Vec::with_capacity(n);
        let (mut runs, mut examples) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let (mut heads_of, mut pos_of) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut tokens = Vec::with_capacity(n);
        let mut vectors = ListPrimitiveChunkedBuilder::<Float32Type>::new(
            "values".into(),
            n,
            n * width,
            DataType::Float32,
        );
        for (&prompt, values) in batch.iter().zip(values.chunks_exact(of_prompt * width)) {
            let one = &self.prompts[prompt];
            // With the end alone the one position is the last.
            let first = one.tokens.len() - positions;
            let texts: Vec<String> = one
                .tokens
                .iter()
                .map(|&id| self.tokenizer.token(id))
                .collect();
            for (row, vector) in values.chunks_exact(width).enumerate() {
                let (head, pos) = place(row);
                prompts.push(prompt as i32);
                runs.push(one.run);
                examples.push(one.example.map(|example| example as i32));
                heads_of.push(head.map(|head| head as i32));
                pos_of.push((first + pos) as i32);
                tokens.push(texts[first + pos].clone());
                vectors.append_slice(vector);
            }
        }
        let columns = vec![
            Column::new("prompt".into(), prompts),
            Column::new("run".into(), runs),
            Column::new("example".into(), examples),
            Column::new("hook".into(), vec![hook.kind.name(); n]),
            Column::new(
                "layer".into(),
                vec![hook.layer.map(|layer| layer as i32); n],
            ),
            Column::new("head".into(), heads_of),
            Column::new("pos".into(), pos_of),
            Column::new("token".into(), tokens),
            vectors.finish().into_column(),
        ];
        let table = DataFrame::new_infer_height(columns)?;
        self.writer
            .write_batch(&table)
            .map_err(|error| failed(self.path, error))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.writer
            .finish()
            .map(|_| ())
            .map_err(|error| failed(self.path, error))
    }
}

/// What parquet makes of a full disk helps nobody.
fn failed(path: &Path, error: PolarsError) -> Error {
    match error {
        PolarsError::IO { error, .. } => Error::Write {
            path: path.to_path_buf(),
            source: std::io::Error::new(error.kind(), error.to_string()),
        },
        other => other.into(),
    }
}
