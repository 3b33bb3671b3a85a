//! From what a user types to files on disk: a path, or a hub id looked up in the Hugging Face cache and, if allowed, downloaded into it.
//!
//! The cache is read by our own code, which never writes: `models--org--name/refs/<revision>` holds a commit, `snapshots/<commit>/` the files.
//! What is cached is used without asking whether a branch has moved since.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::checkpoint::read_at_most;
use super::embedded::EMBEDDED;
use super::families;
use super::load::{CONFIG_LIMIT, LoadOptions};
use super::weight_files::{self, Format, shard_names};
use crate::error::{Error, Result};

/// The branch of a hub model if none is named.
const DEFAULT_REVISION: &str = "main";

/// Where a model was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// The model that is part of the library.
    Embedded,
    Gguf(PathBuf),
    /// One weight file of a folder, whose config.json and tokenizer.json belong to it.
    WeightFile(PathBuf),
    /// `revision` is the commit, if the folder is a snapshot of a hub model.
    Folder {
        path: PathBuf,
        revision: Option<String>,
    },
}

/// How much of a model is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    Config,
    /// And the tokenizer.
    Tokenizer,
    /// And the weights.
    Weights,
}

/// What the environment says about the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubSettings {
    /// The folder of `models--org--name` folders.
    pub cache: PathBuf,
    pub offline: bool,
    pub token: Option<String>,
    pub endpoint: Option<String>,
}

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

impl HubSettings {
    /// From `HF_HUB_CACHE`, `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_ENDPOINT`.
    pub fn from_env() -> Self {
        Self::from_vars(|name| env::var(name).ok())
    }

    /// The same from any source of variables.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| var(name).filter(|value| !value.is_empty());
        let home = match set("HF_HOME") {
            Some(home) => PathBuf::from(home),
            None => {
                let cache = set("XDG_CACHE_HOME").map(PathBuf::from);
                let user = set("HOME").or_else(|| set("USERPROFILE"));
                let in_home =
                    || PathBuf::from(user.unwrap_or_else(|| ".".to_string())).join(".cache");
                cache.unwrap_or_else(in_home).join("huggingface")
            }
        };
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let token_path = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let token = set("HF_TOKEN").or_else(|| fs::read_to_string(token_path).ok());
        let offline = set("HF_HUB_OFFLINE").is_some_and(|value| {
            matches!(
                value.to_ascii_lowercase().as_str(),
                "1" | "true" | "yes" | "on"
            )
        });
        HubSettings {
            cache: cache.map_or_else(|| home.join("hub"), PathBuf::from),
            offline,
            token: token
                .map(|token| token.trim().to_string())
                .filter(|token| !token.is_empty()),
            endpoint: set("HF_ENDPOINT"),
        }
    }
}

/// Finds a model: [`EMBEDDED`], an existing path, or else a hub id.
/// # Errors
/// [`Error::Missing`], [`Error::NotCached`], [`Error::Pickle`], [`Error::Invalid`] for revisions that are none.
pub fn locate(id: &str, options: &LoadOptions, wanted: Wanted) -> Result<Located> {
    locate_with(id, options, wanted, &HubSettings::from_env())
}

/// [`locate`] under given settings.
/// # Errors
/// As [`locate`].
pub fn locate_with(
    id: &str,
    options: &LoadOptions,
    wanted: Wanted,
    settings: &HubSettings,
) -> Result<Located> {
    let path = Path::new(id);
    let is_local = id == EMBEDDED || path.exists();
    if let (true, Some(revision)) = (is_local, &options.revision) {
        return Err(Error::invalid(format!(
            "`--revision {}` is for hub models, and `{id}` is none; leave it out",
            families::shortened(revision)
        )));
    }
    if id == EMBEDDED {
        return Ok(Located::Embedded);
    }
    if path.is_dir() {
        return Ok(Located::Folder {
            path: path.to_path_buf(),
            revision: None,
        });
    }
    if path.is_file() {
        let is_gguf = path
            .extension()
            .is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
        return match (is_gguf, Format::of(path)) {
            (true, _) => Ok(Located::Gguf(path.to_path_buf())),
            (false, Some(_)) => Ok(Located::WeightFile(path.to_path_buf())),
            (false, None) => Err(Error::Missing {
                path: path.join("config.json"),
                hint: "a single file must be a `.gguf`, or weights (`.safetensors`, `.bin`, `.pt`, `.pth`) beside their \
                       config.json; else give the folder"
                    .to_string(),
            }),
        };
    }
    let Some(repo) = repo_folder(id) else {
        return Err(Error::Missing {
            path: path.to_path_buf(),
            hint: "give a model folder, a `.gguf` file or a hub id such as `org/name`".to_string(),
        });
    };
    let revision = options.revision.as_deref().unwrap_or(DEFAULT_REVISION);
    check_revision(revision)?;
    if let Some(found) = in_cache(&settings.cache.join(repo), revision, wanted)? {
        return Ok(found);
    }
    let not_cached = |reason: String| Error::NotCached {
        model: match &options.revision {
            None => id.to_string(),
            Some(revision) => format!("{id}@{revision}"),
        },
        cached: cached_summary(settings),
        reason,
    };
    if options.offline || settings.offline {
        return Err(not_cached("offline; and there is no such path".to_string()));
    }
    download(id, revision, options, wanted, settings, &not_cached)
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
            families::shortened(revision)
        ))),
    }
}

/// The snapshot of a revision, if all that is wanted is there.
fn in_cache(repo: &Path, revision: &str, wanted: Wanted) -> Result<Option<Located>> {
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
    let is_complete = match wanted {
        Wanted::Config => has("config.json"),
        Wanted::Tokenizer => has("config.json") && has("tokenizer.json"),
        Wanted::Weights => has("config.json") && has("tokenizer.json") && has_weights(&path)?,
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

fn cached_summary(settings: &HubSettings) -> String {
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
fn files_below(dir: &Path) -> Vec<PathBuf> {
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

#[cfg(not(feature = "hub"))]
fn download(
    _id: &str,
    _revision: &str,
    _options: &LoadOptions,
    _wanted: Wanted,
    _settings: &HubSettings,
    not_cached: &dyn Fn(String) -> Error,
) -> Result<Located> {
    Err(not_cached(
        "this build has no cargo feature `hub`; and there is no such path".to_string(),
    ))
}

/// Downloads what is needed, and nothing else, into the cache.
#[cfg(feature = "hub")]
fn download(
    id: &str,
    revision: &str,
    options: &LoadOptions,
    wanted: Wanted,
    settings: &HubSettings,
    not_cached: &dyn Fn(String) -> Error,
) -> Result<Located> {
    use hf_hub::api::sync::{ApiBuilder, ApiError};
    use hf_hub::{Cache, Repo, RepoType};

    let failed = |source: ApiError| not_cached(download_failure(&source.to_string()));
    let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
        .with_token(settings.token.clone())
        .with_progress(options.show_download_progress)
        .with_retries(2);
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    let api = builder.build().map_err(failed)?;
    let repo = api.repo(Repo::with_revision(
        id.to_string(),
        RepoType::Model,
        revision.to_string(),
    ));
    let listed = repo.info().map_err(failed)?.siblings;
    let has = |name: &str| listed.iter().any(|file| file.rfilename == name);

    // A branch that moves while we download leaves files in two snapshots: the second round completes the newer one.
    for _ in 0..2 {
        repo.get("config.json").map_err(failed)?;
        if wanted != Wanted::Config {
            for name in TEXTS.iter().filter(|name| has(name)) {
                repo.get(name).map_err(failed)?;
            }
        }
        if wanted == Wanted::Weights {
            let there = |format: &Format| has(format.single()) || has(format.index());
            let Some(format) = Format::ALL.into_iter().find(there) else {
                return Err(not_cached(
                    "the repository has no model.safetensors and no pytorch_model.bin".to_string(),
                ));
            };
            if has(format.single()) {
                repo.get(format.single()).map_err(failed)?;
            } else {
                let index = repo.get(format.index()).map_err(failed)?;
                for name in shard_names(&index, format)? {
                    repo.get(&name).map_err(failed)?;
                }
            }
        }
        let folder = settings
            .cache
            .join(repo_folder(id).expect("the id was checked"));
        if let Some(found) = in_cache(&folder, revision, wanted)? {
            return Ok(found);
        }
    }
    Err(not_cached(
        "the repository has no tokenizer.json, or it changed during the download".to_string(),
    ))
}

/// Small files beside the weights.
#[cfg(feature = "hub")]
const TEXTS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
];

/// The downloader's reason with what to do about it.
#[cfg(feature = "hub")]
fn download_failure(reason: &str) -> String {
    let remedy = if reason.contains("401") || reason.contains("403") {
        "; it may be private, gated or misspelt: set HF_TOKEN to a token with access"
    } else if reason.contains("404") {
        "; check the id and `--revision`"
    } else {
        "; and there is no such path"
    };
    format!("{}{remedy}", reason.replace('\n', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = include_str!("../../tests/fixtures/llama-tiny-random/config.json");

    /// A cache with one complete model, `org/tiny`, at commit `abc1`.
    fn cache() -> (tempfile::TempDir, HubSettings) {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("hub/models--org--tiny");
        let snapshot = repo.join("snapshots/abc1");
        fs::create_dir_all(&snapshot).unwrap();
        fs::create_dir_all(repo.join("refs/pr")).unwrap();
        fs::write(repo.join("refs/main"), "abc1\n").unwrap();
        fs::write(repo.join("refs/pr/1"), "abc1").unwrap();
        fs::write(snapshot.join("config.json"), CONFIG).unwrap();
        fs::write(snapshot.join("tokenizer.json"), "{}").unwrap();
        fs::write(snapshot.join("model.safetensors"), [0; 100]).unwrap();
        let home = dir.path().to_str().unwrap().to_string();
        let settings = HubSettings::from_vars(|name| match name {
            "HF_HOME" => Some(home.clone()),
            "HF_HUB_OFFLINE" => Some("ON".to_string()),
            _ => None,
        });
        (dir, settings)
    }

    fn at(revision: &str) -> LoadOptions {
        LoadOptions {
            revision: Some(revision.to_string()),
            ..LoadOptions::default()
        }
    }

    #[test]
    fn the_environment_is_read_as_hugging_face_reads_it() {
        let settings = |pairs: &'static [(&str, &str)]| {
            HubSettings::from_vars(|name| {
                pairs
                    .iter()
                    .find(|(key, _)| *key == name)
                    .map(|(_, value)| value.to_string())
            })
        };
        let cache = |pairs| settings(pairs).cache;
        assert_eq!(
            cache(&[("HOME", "/u")]),
            Path::new("/u/.cache/huggingface/hub")
        );
        assert_eq!(
            cache(&[("HOME", "/u"), ("HF_HOME", "/h")]),
            Path::new("/h/hub")
        );
        assert_eq!(
            cache(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c")]),
            Path::new("/c")
        );
        assert!(settings(&[("HF_HUB_OFFLINE", "Yes")]).offline);
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).offline);
        assert_eq!(
            settings(&[("HF_TOKEN", " t\n")]).token.as_deref(),
            Some("t")
        );
    }

    #[test]
    fn a_cached_model_is_found_by_branch_pull_request_and_commit() {
        let (_dir, settings) = cache();
        for options in [LoadOptions::default(), at("main"), at("pr/1"), at("abc1")] {
            let found = locate_with("org/tiny", &options, Wanted::Weights, &settings).unwrap();
            let path = settings.cache.join("models--org--tiny/snapshots/abc1");
            assert_eq!(
                found,
                Located::Folder {
                    path,
                    revision: Some("abc1".to_string())
                }
            );
        }
    }

    #[test]
    fn offline_and_not_cached_says_what_is_cached() {
        let (_dir, settings) = cache();
        for (id, options) in [
            ("org/other", LoadOptions::default()),
            ("org/tiny", at("v2")),
        ] {
            let error = locate_with(id, &options, Wanted::Config, &settings).unwrap_err();
            let message = error.to_string();
            assert!(matches!(error, Error::NotCached { .. }), "{message}");
            assert!(
                message.contains("org/tiny") && message.contains("offline"),
                "{message}"
            );
        }
        fs::remove_file(
            settings
                .cache
                .join("models--org--tiny/snapshots/abc1/model.safetensors"),
        )
        .unwrap();
        let locate = |wanted| locate_with("org/tiny", &LoadOptions::default(), wanted, &settings);
        assert!(matches!(
            locate(Wanted::Weights),
            Err(Error::NotCached { .. })
        ));
        assert!(locate(Wanted::Config).is_ok());
    }

    #[test]
    fn nothing_leaves_the_cache() {
        let (_dir, settings) = cache();
        for id in [
            "../etc",
            "org/..",
            "a/b/c",
            "/no/such",
            "org/na me",
            "x.gguf",
            "-x/y",
            "a--b/c",
            "",
        ] {
            let error =
                locate_with(id, &LoadOptions::default(), Wanted::Config, &settings).unwrap_err();
            assert!(matches!(error, Error::Missing { .. }), "{id}: {error}");
        }
        for revision in ["../../x", "/etc", "a/../b", "", ".", "a\\b", "a\0b"] {
            let error =
                locate_with("org/tiny", &at(revision), Wanted::Config, &settings).unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{revision}: {error}");
        }
        fs::write(
            settings.cache.join("models--org--tiny/refs/main"),
            "../../..",
        )
        .unwrap();
        let error = locate_with(
            "org/tiny",
            &LoadOptions::default(),
            Wanted::Config,
            &settings,
        );
        assert!(matches!(error, Err(Error::NotCached { .. })));
    }

    #[test]
    fn the_cache_is_listed_with_family_and_size() {
        let (_dir, settings) = cache();
        let other = settings.cache.join("models--google--new/snapshots/f00");
        fs::create_dir_all(&other).unwrap();
        fs::write(other.join("config.json"), r#"{"model_type": "gemma9"}"#).unwrap();
        let models = cached_models(&settings);
        assert_eq!(models.len(), 2);
        assert_eq!(
            (models[0].id.as_str(), models[0].family.as_deref()),
            ("google/new", Some("gemma9"))
        );
        assert!(models[0].refusal.as_ref().unwrap().contains("gemma9"));
        assert_eq!(
            (models[1].id.as_str(), models[1].refusal.clone()),
            ("org/tiny", None)
        );
        assert_eq!(models[1].bytes, (CONFIG.len() + 2 + 100 + 5 + 4) as u64);
        assert_eq!(models[1].revisions["main"], "abc1");
    }
}
