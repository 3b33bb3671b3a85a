//! A shard: one slice of work that is split between processes, and the file of what it measured.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::part::{Fragment, PartNote, as_table, from_table};
use crate::error::{Error, Result};
use crate::scores::file::write_whole;
use crate::scores::parquet::{Packing, note_of, read_table, write_table};

/// Key of a shard's [`ShardNote`] in its footer.
pub const SHARD_KEY: &str = "candlewick_shard";

/// One slice of work that is split between processes: written `2/8`, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shard {
    /// From 1 to `count`.
    pub index: usize,
    pub count: usize,
}

impl Shard {
    /// Whether a unit of the plan is this shard's: every `count`-th one.
    pub fn has(self, unit: usize) -> bool {
        unit % self.count == self.index - 1
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers = text.split_once('/').and_then(|(index, count)| {
            Some((index.trim().parse().ok()?, count.trim().parse().ok()?))
        });
        match numbers {
            Some((index, count)) if (1..=count).contains(&index) => Ok(Shard { index, count }),
            _ => Err(Error::Parse {
                what: "a shard",
                text: text.into(),
                reason: "write which of how many, such as `1/4` to `4/4`".into(),
            }),
        }
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.count)
    }
}

/// What a shard's file says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShardNote {
    pub shard: Shard,
    /// What the whole work is, as text.
    pub plan: String,
    /// The arguments that made the shard, program first.
    pub command: Vec<String>,
    /// The folder that paths in `command` are relative to.
    #[serde(default)]
    pub folder: String,
    pub seconds: f64,
}

/// Writes what one shard measured.
/// # Errors
/// Those of writing a file.
pub fn write_shard(path: &Path, fragments: &[Fragment], note: &ShardNote) -> Result<()> {
    let (table, parts) = as_table(fragments)?;
    let note = serde_json::json!({ "about": note, "parts": parts });
    write_whole(path, |file| {
        write_table(
            &table,
            SHARD_KEY,
            note.to_string(),
            path,
            file,
            Packing::Small,
        )
    })
}

/// What the file of a shard says of itself, from its footer alone; nothing if it is no such file.
pub fn shard_note(path: &Path) -> Option<ShardNote> {
    #[derive(Deserialize)]
    struct Notes {
        about: ShardNote,
    }
    let notes: Notes = serde_json::from_str(&note_of(path, SHARD_KEY)?).ok()?;
    Some(notes.about)
}

/// Reads a file that [`write_shard`] wrote.
/// # Errors
/// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] if it is damaged or no shard.
pub fn read_shard(path: &Path) -> Result<(ShardNote, Vec<Fragment>)> {
    #[derive(Deserialize)]
    struct Notes {
        about: ShardNote,
        parts: PartNote,
    }
    let (table, note) = read_table(path, SHARD_KEY, "shard")?;
    let notes: Notes = serde_json::from_str(&note).map_err(|error| Error::Malformed {
        path: path.to_path_buf(),
        format: "shard",
        reason: error.to_string(),
    })?;
    let Shard { index, count } = notes.about.shard;
    if !(1..=count).contains(&index) {
        return Err(Error::Malformed {
            path: path.to_path_buf(),
            format: "shard",
            reason: format!("it says that it is shard {index} of {count}"),
        });
    }
    let fragments = from_table(path, &table, notes.parts)?;
    Ok((notes.about, fragments))
}
