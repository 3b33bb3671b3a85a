//! One part as a parquet file: its measurements as rows, and what they are of in the footer, with a hash of both.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use polars::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::scores::cell::ExampleScores;
use crate::scores::parquet::read_table;

/// Key of a part's [`PartNote`] in its footer.
pub(super) const PART_KEY: &str = "candlewick_part";

/// What a part says besides its rows.
#[derive(Serialize, Deserialize)]
pub(super) struct PartNote {
    examples: Vec<ExampleNote>,
    /// SHA-256 of the measurements, in order.
    hash: String,
}

#[derive(Serialize, Deserialize)]
struct ExampleNote {
    example: usize,
    /// The cells that were looked at, first and one past the last. Those that the example does not have have no row.
    cells: (u32, u32),
    /// The rows that are this example's.
    rows: usize,
    /// As bits: JSON has no infinities.
    clean: u64,
    corrupted: u64,
    tokens: Vec<String>,
    roles: BTreeMap<String, Vec<usize>>,
    /// As bits.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    facts: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beats: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    top1: Option<bool>,
}

/// Measurements of one unit of work: of some examples the cells of one range.
#[derive(Debug, Clone, PartialEq)]
pub struct Fragment {
    pub cells: Range<u32>,
    pub examples: Vec<ExampleScores>,
}

pub(super) fn as_table(fragments: &[Fragment]) -> Result<(DataFrame, PartNote)> {
    let each = || {
        fragments.iter().flat_map(|fragment| {
            fragment
                .examples
                .iter()
                .map(move |one| (&fragment.cells, one))
        })
    };
    let note = PartNote {
        examples: each()
            .map(|(cells, scores)| ExampleNote {
                example: scores.example,
                cells: (cells.start, cells.end),
                rows: scores.cells.len(),
                clean: scores.clean.to_bits(),
                corrupted: scores.corrupted.to_bits(),
                tokens: scores.tokens.clone(),
                roles: scores.roles.clone(),
                facts: (scores.facts.iter())
                    .map(|(name, fact)| (name.clone(), fact.to_bits()))
                    .collect(),
                beats: scores.beats,
                top1: scores.top1,
            })
            .collect(),
        hash: hash(each().map(|(_, scores)| scores)),
    };
    let rows = || {
        each().flat_map(|(_, scores)| {
            let rows = scores.cells.iter().zip(&scores.values);
            rows.map(move |(&cell, &value)| (scores.example as u32, cell, value))
        })
    };
    let examples: Vec<u32> = rows().map(|(example, ..)| example).collect();
    let cells: Vec<u32> = rows().map(|(_, cell, _)| cell).collect();
    let values: Vec<f64> = rows().map(|(.., value)| value).collect();
    let table = DataFrame::new_infer_height(vec![
        Column::new("example".into(), examples),
        Column::new("cell".into(), cells),
        Column::new("value".into(), values),
    ])?;
    Ok((table, note))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn read_part(path: &Path) -> Result<Vec<Fragment>> {
    let (table, note) = read_table(path, PART_KEY, "part")?;
    let note: PartNote = serde_json::from_str(&note).map_err(|error| Error::Malformed {
        path: path.to_path_buf(),
        format: "part",
        reason: error.to_string(),
    })?;
    from_table(path, &table, note)
}

pub(super) fn from_table(path: &Path, table: &DataFrame, note: PartNote) -> Result<Vec<Fragment>> {
    let malformed = |reason: &str| Error::Malformed {
        path: path.to_path_buf(),
        format: "part",
        reason: reason.to_string(),
    };
    let of_another_type = |_| malformed("its columns are not those of a part");
    let cells = table
        .column("cell")
        .and_then(|column| column.u32())
        .map_err(of_another_type)?;
    let values = table
        .column("value")
        .and_then(|column| column.f64())
        .map_err(of_another_type)?;
    let (mut cells, mut values) = (cells.iter().flatten(), values.iter().flatten());
    let mut fragments: Vec<Fragment> = Vec::new();
    for about in note.examples {
        let range = about.cells.0..about.cells.1;
        let scores = ExampleScores {
            example: about.example,
            clean: f64::from_bits(about.clean),
            corrupted: f64::from_bits(about.corrupted),
            beats: about.beats,
            top1: about.top1,
            tokens: about.tokens,
            roles: about.roles,
            facts: (about.facts.into_iter())
                .map(|(name, bits)| (name, f64::from_bits(bits)))
                .collect(),
            cells: cells.by_ref().take(about.rows).collect::<Arc<[u32]>>(),
            values: values.by_ref().take(about.rows).collect(),
        };
        if scores.cells.iter().any(|cell| !range.contains(cell))
            || scores.values.len() != about.rows
        {
            return Err(malformed("its measurements are not where it says"));
        }
        match fragments.last_mut().filter(|last| last.cells == range) {
            Some(last) => last.examples.push(scores),
            None => fragments.push(Fragment {
                cells: range,
                examples: vec![scores],
            }),
        }
    }
    let all = fragments.iter().flat_map(|fragment| &fragment.examples);
    if cells.next().is_some() || hash(all) != note.hash {
        return Err(malformed("its measurements do not match their hash"));
    }
    Ok(fragments)
}

fn hash<'a>(examples: impl Iterator<Item = &'a ExampleScores>) -> String {
    let mut hasher = Sha256::new();
    for scores in examples {
        hasher.update((scores.example as u64).to_le_bytes());
        hasher.update(scores.clean.to_le_bytes());
        hasher.update(scores.corrupted.to_le_bytes());
        hasher.update((scores.cells.len() as u64).to_le_bytes());
        scores
            .cells
            .iter()
            .for_each(|cell| hasher.update(cell.to_le_bytes()));
        scores
            .values
            .iter()
            .for_each(|value| hasher.update(value.to_le_bytes()));
    }
    hex(&hasher.finalize())
}
