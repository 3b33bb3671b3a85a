//! A model on the hub: its id and revision, checked, and where the cache keeps it.

use std::path::PathBuf;

use super::cache::{cached_summary, in_cache};
use super::located::{DEFAULT_REVISION, HubSettings, Located, Wanted};
use crate::error::{Error, Result};
use crate::model::options::LoadOptions;
use crate::text::shortened;

/// A model on the hub at a revision, and where the cache keeps it.
pub(super) struct HubModel<'a> {
    pub id: &'a str,
    /// Branch, tag or commit.
    pub revision: &'a str,
    is_named: bool,
    pub folder: PathBuf,
    pub settings: &'a HubSettings,
}

impl<'a> HubModel<'a> {
    pub fn new(id: &'a str, options: &'a LoadOptions, settings: &'a HubSettings) -> Result<Self> {
        let Some(folder) = repo_folder(id) else {
            return Err(Error::Missing {
                path: PathBuf::from(id),
                hint: "give a model folder, a `.gguf` file or a hub id such as `org/name`"
                    .to_string(),
            });
        };
        let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
        check_revision(revision)?;
        Ok(HubModel {
            id,
            revision,
            is_named: options.revision.is_some(),
            folder: settings.cache.join(folder),
            settings,
        })
    }

    pub fn cached(&self, wanted: Wanted) -> Result<Option<Located>> {
        in_cache(&self.folder, self.revision, wanted)
    }

    pub fn not_cached(&self, reason: String) -> Error {
        Error::NotCached {
            model: match self.is_named {
                false => self.id.to_string(),
                true => format!("{}@{}", self.id, self.revision),
            },
            cached: cached_summary(self.settings),
            reason,
        }
    }
}

/// The cache folder of a hub id, or `None` if the text cannot be one.
fn repo_folder(id: &str) -> Option<String> {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.contains("--")
            && !part.contains("..")
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    let parts: Vec<&str> = id.split('/').collect();
    let is_file = id.ends_with(".gguf") || id.ends_with(".safetensors");
    // The oldest models of the hub, such as `gpt2`, have no owner.
    let is_id = !is_file && parts.len() <= 2 && parts.iter().all(|part| is_part(part));
    is_id.then(|| format!("models--{}", parts.join("--")))
}

/// A revision becomes a path in the cache: nothing may leave it.
fn check_revision(revision: &str) -> Result<()> {
    let is_part = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    };
    match revision.len() <= 256 && revision.split('/').all(is_part) {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "`{}` is no revision; give a branch, a tag or a commit",
            shortened(revision)
        ))),
    }
}
