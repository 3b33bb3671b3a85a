//! From what a user types to files on disk: a path, or a hub id looked up in the Hugging Face cache and, if allowed, downloaded into it.
//!
//! The cache is read by our own code, which never writes: `models--org--name/refs/<revision>` holds a commit, `snapshots/<commit>/` the files.
//! What is cached is used without asking whether a branch has moved since.

mod cache;
mod download;
mod located;
mod repo;

use std::fs;
use std::path::{Path, PathBuf};

use super::embedded::EMBEDDED;
use super::options::LoadOptions;
use super::weight_files::Format;
use crate::error::{Error, Result};
use crate::text::shortened;
use cache::files_below;
pub use cache::{CachedModel, cached_models};
use download::download;
pub use located::{HubSettings, Located, Wanted};
use repo::HubModel;

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
            "a revision (`{}`) is for hub models, and `{id}` is none; leave it out",
            shortened(revision)
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
