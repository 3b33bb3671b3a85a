//! What the Hugging Face cache holds, read by code that never writes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::located::{DEFAULT_REVISION, HubSettings, Located, Wanted};
use crate::error::Result;
use crate::model::checkpoint::read_at_most;
use crate::model::families;
use crate::model::options::CONFIG_LIMIT;
use crate::model::weight_files;

/// A hub model in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachedModel {
    pub id: String,
    /// Branch or tag to commit; a commit that nothing points to stands for itself.
    pub revisions: BTreeMap<String, String>,
    /// Size on disk of everything cached of it.
    pub bytes: u64,
    /// `model_type`, if there is a readable config.json.
    pub family: Option<String>,
    /// Why it cannot be loaded; `None` if its config can be handled.
    pub refusal: Option<String>,
}

/// Everything in the cache, by id.
pub fn cached_models(settings: &HubSettings) -> Vec<CachedModel> {
    let mut models: Vec<CachedModel> = entries(&settings.cache)
        .into_iter()
        .filter_map(|path| {
            let id = path
                .file_name()?
                .to_str()?
                .strip_prefix("models--")?
                .replace("--", "/");
            Some(cached_model(id, &path))
        })
        .collect();
    models.sort_by(|a, b| a.id.cmp(&b.id));
    models
}

/// The snapshot of a revision, if all that is wanted is there.
pub(super) fn in_cache(repo: &Path, revision: &str, wanted: Wanted) -> Result<Option<Located>> {
    let commit = match fs::read_to_string(repo.join("refs").join(revision)) {
        Ok(commit) => commit.trim().to_string(),
        Err(_) => revision.to_string(),
    };
    // What a ref file says becomes a path as well.
    if commit.is_empty() || !commit.chars().all(|c| c.is_ascii_alphanumeric()) {
        return Ok(None);
    }
    let path = repo.join("snapshots").join(&commit);
    let has = |name: &str| path.join(name).is_file();
    let has_tokenizer = || has("tokenizer.json") || has("vocab.json") && has("merges.txt");
    let is_complete = match wanted {
        Wanted::Config => has("config.json"),
        Wanted::Tokenizer => has("config.json") && has_tokenizer(),
        Wanted::Weights => has("config.json") && has_tokenizer() && has_weights(&path)?,
    };
    Ok(is_complete.then_some(Located::Folder {
        path,
        revision: Some(commit),
    }))
}

fn has_weights(dir: &Path) -> Result<bool> {
    let found = weight_files::find(dir)?;
    Ok(found.is_some_and(|(_, paths)| paths.iter().all(|path| path.is_file())))
}

pub(super) fn cached_summary(settings: &HubSettings) -> String {
    let ids: Vec<String> = cached_models(settings)
        .into_iter()
        .map(|model| model.id)
        .collect();
    match ids.len() {
        0 => format!("nothing is cached in `{}`", settings.cache.display()),
        1..=8 => format!("cached: {}", ids.join(", ")),
        count => format!("cached: {} and {} more", ids[..8].join(", "), count - 8),
    }
}

fn cached_model(id: String, repo: &Path) -> CachedModel {
    let mut revisions = BTreeMap::new();
    let refs = repo.join("refs");
    for path in files_below(&refs) {
        let name = path
            .strip_prefix(&refs)
            .ok()
            .and_then(Path::to_str)
            .map(str::to_string);
        if let (Some(name), Ok(commit)) = (name, fs::read_to_string(&path)) {
            revisions.insert(name, commit.trim().to_string());
        }
    }
    let snapshots = entries(&repo.join("snapshots"));
    let commits = snapshots
        .iter()
        .filter_map(|path| path.file_name()?.to_str());
    for commit in commits {
        if !revisions.values().any(|known| known == commit) {
            revisions.insert(commit.to_string(), commit.to_string());
        }
    }
    let main = revisions
        .get(DEFAULT_REVISION)
        .map(|commit| repo.join("snapshots").join(commit));
    let configs = main
        .into_iter()
        .chain(snapshots)
        .map(|path| path.join("config.json"));
    let config = configs
        .filter_map(|path| String::from_utf8(read_at_most(&path, CONFIG_LIMIT).ok()?).ok())
        .next();
    let refusal = match &config {
        Some(config) => families::from_config(config)
            .err()
            .map(|error| error.to_string()),
        None => Some("no config.json is cached".to_string()),
    };
    CachedModel {
        id,
        revisions,
        bytes: files_below(repo)
            .iter()
            .filter_map(|path| fs::symlink_metadata(path).ok())
            .filter(|data| data.is_file())
            .map(|data| data.len())
            .sum(),
        family: config.and_then(|config| families::model_type(&config).ok()),
        refusal,
    }
}

/// What lies in a folder, in name order; nothing if it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = found.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// All files below a folder. Links to folders are not followed, so this ends.
pub(super) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            match fs::symlink_metadata(&path) {
                Ok(data) if data.is_dir() => folders.push(path),
                _ => files.push(path),
            }
        }
    }
    files.sort();
    files
}
