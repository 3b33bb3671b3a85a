//! From what a user types to files on disk: a path, or a hub id looked up in the Hugging Face cache and, if allowed, downloaded into it.
//!
//! The cache is read by our own code, which never writes: `models--org--name/refs/<revision>` holds a commit, `snapshots/<commit>/` the files.
//! What is cached is used without asking whether a branch has moved since.

mod cache;
mod download;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::embedded::EMBEDDED;
use super::families;
use super::load::LoadOptions;
use super::weight_files::Format;
use crate::error::{Error, Result};
pub use cache::{CachedModel, cached_models};
use cache::{cached_summary, files_below, in_cache};
use download::download;

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
    let repo = HubModel::new(id, options, settings)?;
    if let Some(found) = repo.cached(wanted)? {
        return Ok(found);
    }
    if options.offline || settings.offline {
        return Err(repo.not_cached("offline; and there is no such path".to_string()));
    }
    download(&repo, options, wanted)
}

/// What [`fetch`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    pub located: Located,
    /// Files of the model, with their sizes, in name order.
    pub files: Vec<(PathBuf, u64)>,
    pub freshness: Freshness,
}

/// How a model in the cache compares with the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freshness {
    /// It never was on the hub.
    Local,
    /// It, or a newer commit of it, was downloaded just now.
    Downloaded,
    /// The cache had what the hub has.
    Same,
    /// The cache has it, and the hub could not be asked.
    Unknown { reason: String },
}

/// Downloads a model with its weights into the cache, also if a cached branch has moved since; what is there is not downloaded again, and
/// a download that was cut short goes on where it stopped.
/// # Errors
/// As [`locate`].
pub fn fetch(id: &str, options: &LoadOptions) -> Result<Fetched> {
    fetch_with(id, options, &HubSettings::from_env())
}

/// [`fetch`] under given settings.
/// # Errors
/// As [`locate`].
pub fn fetch_with(id: &str, options: &LoadOptions, settings: &HubSettings) -> Result<Fetched> {
    if id == EMBEDDED || Path::new(id).exists() {
        let located = locate_with(id, options, Wanted::Weights, settings)?;
        return Ok(fetched(located, Freshness::Local));
    }
    let repo = HubModel::new(id, options, settings)?;
    let cached = repo.cached(Wanted::Weights)?;
    if options.offline || settings.offline {
        return match cached {
            Some(located) => Ok(fetched(
                located,
                Freshness::Unknown {
                    reason: "offline".to_string(),
                },
            )),
            None => Err(repo.not_cached("offline; and there is no such path".to_string())),
        };
    }
    match (download::newest(&repo, options), cached) {
        (Ok(located), Some(cached)) if located == cached => Ok(fetched(located, Freshness::Same)),
        (Ok(located), _) => Ok(fetched(located, Freshness::Downloaded)),
        (Err(Error::NotCached { reason, .. }), Some(cached)) => {
            Ok(fetched(cached, Freshness::Unknown { reason }))
        }
        (Err(error), _) => Err(error),
    }
}

fn fetched(located: Located, freshness: Freshness) -> Fetched {
    let paths = match &located {
        Located::Embedded => Vec::new(),
        Located::Gguf(path) | Located::WeightFile(path) => vec![path.clone()],
        Located::Folder { path, .. } => files_below(path),
    };
    let size = |path: &PathBuf| fs::metadata(path).map_or(0, |data| data.len());
    let files = paths
        .into_iter()
        .map(|path| {
            let bytes = size(&path);
            (path, bytes)
        })
        .collect();
    Fetched {
        located,
        files,
        freshness,
    }
}

/// A model on the hub at a revision, and where the cache keeps it.
struct HubModel<'a> {
    id: &'a str,
    /// Branch, tag or commit.
    revision: &'a str,
    is_named: bool,
    folder: PathBuf,
    settings: &'a HubSettings,
}

impl<'a> HubModel<'a> {
    fn new(id: &'a str, options: &'a LoadOptions, settings: &'a HubSettings) -> Result<Self> {
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

    fn cached(&self, wanted: Wanted) -> Result<Option<Located>> {
        in_cache(&self.folder, self.revision, wanted)
    }

    fn not_cached(&self, reason: String) -> Error {
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
            families::shortened(revision)
        ))),
    }
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
