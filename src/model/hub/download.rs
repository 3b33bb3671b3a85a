//! From the hub into its cache, through the `hf-hub` crate, which writes files beside and renames them when they are whole.

#[cfg(not(feature = "hub"))]
pub(super) use without_hub::{download, newest};

#[cfg(not(feature = "hub"))]
mod without_hub {
    use crate::error::Result;
    use crate::model::hub::located::{Located, Wanted};
    use crate::model::hub::repo::HubModel;
    use crate::model::options::LoadOptions;

    const NO_HUB: &str = "this build has no cargo feature `hub`; and there is no such path";

    pub fn download(repo: &HubModel, _: &LoadOptions, _: Wanted) -> Result<Located> {
        Err(repo.not_cached(NO_HUB.to_string()))
    }

    pub fn newest(repo: &HubModel, _: &LoadOptions) -> Result<Located> {
        Err(repo.not_cached(NO_HUB.to_string()))
    }
}

#[cfg(feature = "hub")]
pub(super) use with_hub::{download, newest};

#[cfg(feature = "hub")]
mod with_hub {
    use std::path::PathBuf;

    use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
    use hf_hub::{Cache, Repo, RepoType};

    use crate::error::Result;
    use crate::model::hub::cache::in_cache;
    use crate::model::hub::located::{Located, Wanted};
    use crate::model::hub::repo::HubModel;
    use crate::model::options::LoadOptions;
    use crate::model::weight_files::{Format, shard_names};

    const TOKENIZER: &str = "tokenizer.json";
    /// What an older tokenizer has in its place.
    const OLDER: &[&str] = &["vocab.json", "merges.txt"];
    /// Small files beside the weights.
    const TEXTS: &[&str] = &[
        TOKENIZER,
        "tokenizer_config.json",
        "chat_template.jinja",
        "special_tokens_map.json",
        "generation_config.json",
    ];

    /// Downloads what is needed, and nothing else, into the cache.
    pub fn download(repo: &HubModel, options: &LoadOptions, wanted: Wanted) -> Result<Located> {
        // A branch that moves while we download leaves files in two snapshots: the second round completes the newer one.
        for _ in 0..2 {
            let remote = Remote::new(repo, repo.revision, options)?;
            remote.get(wanted)?;
            if let Some(found) = repo.cached(wanted)? {
                return Ok(found);
            }
        }
        Err(repo.not_cached(
            "the repository has no tokenizer.json, or it changed during the download".to_string(),
        ))
    }

    /// Brings the commit that the revision names now, and lets the cache know that it does.
    pub fn newest(repo: &HubModel, options: &LoadOptions) -> Result<Located> {
        let remote = Remote::new(repo, repo.revision, options)?;
        let commit = remote.commit.clone();
        let is_plain = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
        if !is_plain {
            return Err(repo.not_cached("the hub names no commit".to_string()));
        }
        // Files are asked for by commit: what is cached under the name of a branch may be older.
        if in_cache(&repo.folder, &commit, Wanted::Weights)?.is_none() {
            Remote::new(repo, &commit, options)?.get(Wanted::Weights)?;
        }
        let cache = Cache::new(repo.settings.cache.clone()).repo(remote.described);
        if repo.revision != commit {
            let failed = |source: std::io::Error| repo.not_cached(source.to_string());
            cache.create_ref(&commit).map_err(failed)?;
        }
        let missing = || repo.not_cached("the repository has no tokenizer.json".to_string());
        repo.cached(Wanted::Weights)?.ok_or_else(missing)
    }

    /// A revision of a repository as the hub has it.
    struct Remote<'a> {
        repo: &'a HubModel<'a>,
        described: Repo,
        api: ApiRepo,
        commit: String,
        files: Vec<String>,
    }

    impl<'a> Remote<'a> {
        fn new(repo: &'a HubModel, revision: &str, options: &LoadOptions) -> Result<Self> {
            let settings = repo.settings;
            let failed = |source: ApiError| repo.not_cached(failure(&source.to_string()));
            let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
                .with_token(settings.token.clone())
                .with_progress(options.show_download_progress)
                .with_retries(2);
            if let Some(endpoint) = &settings.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            let (id, revision) = (repo.id.to_string(), revision.to_string());
            let described = Repo::with_revision(id, RepoType::Model, revision);
            let api = builder.build().map_err(failed)?.repo(described.clone());
            let info = api.info().map_err(failed)?;
            Ok(Remote {
                repo,
                described,
                api,
                commit: info.sha,
                files: info
                    .siblings
                    .into_iter()
                    .map(|file| file.rfilename)
                    .collect(),
            })
        }

        fn has(&self, name: &str) -> bool {
            self.files.iter().any(|file| file == name)
        }

        /// One file, from the cache if it is there.
        fn file(&self, name: &str) -> Result<PathBuf> {
            let failed = |source: ApiError| self.repo.not_cached(failure(&source.to_string()));
            self.api.get(name).map_err(failed)
        }

        fn get(&self, wanted: Wanted) -> Result<()> {
            self.file("config.json")?;
            if wanted != Wanted::Config {
                let older = OLDER.iter().filter(|_| !self.has(TOKENIZER));
                for name in TEXTS.iter().chain(older).filter(|name| self.has(name)) {
                    self.file(name)?;
                }
            }
            if wanted == Wanted::Weights {
                self.weights()?;
            }
            Ok(())
        }

        fn weights(&self) -> Result<()> {
            let there = |format: &Format| self.has(format.single()) || self.has(format.index());
            let Some(format) = Format::ALL.into_iter().find(there) else {
                return Err(self.repo.not_cached(
                    "the repository has no model.safetensors and no pytorch_model.bin".to_string(),
                ));
            };
            if self.has(format.single()) {
                self.file(format.single())?;
                return Ok(());
            }
            let index = self.file(format.index())?;
            for name in shard_names(&index, format)? {
                self.file(&name)?;
            }
            Ok(())
        }
    }

    /// The downloader's reason with what to do about it.
    fn failure(reason: &str) -> String {
        let no_way = [
            "lookup",
            "resolve",
            "onnect",
            "timed out",
            "timeout",
            "nreachable",
        ];
        let remedy = if reason.contains("401") || reason.contains("403") {
            "; it may be private, gated or misspelt: set HF_TOKEN to a token with access"
        } else if reason.contains("404") {
            "; check the id and `LoadOptions::revision`"
        } else if no_way.iter().any(|word| reason.contains(word)) {
            "; and there is no such path. If this machine has no network, run `candlewick fetch` on one that has, and copy its \
             cache or the model's folder"
        } else {
            "; and there is no such path"
        };
        format!("{}{remedy}", reason.replace('\n', " "))
    }
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use std::fs;
    use std::io::{BufRead, BufReader, Write};
    use std::net::{TcpListener, TcpStream};
    use std::path::{Path, PathBuf};
    use std::sync::{Arc, Mutex};

    use super::super::{Freshness, HubSettings, Located, Wanted, fetch_with, locate_with};
    use crate::model::load::LoadOptions;

    /// A hub with one model, `org/tiny`, whose branch `main` is at a commit that can be moved.
    struct Hub {
        endpoint: String,
        state: Arc<Mutex<State>>,
    }

    struct State {
        commit: String,
        is_up: bool,
        /// Path and first byte of every request for a file's bytes.
        asked: Vec<(String, usize)>,
    }

    const FILES: [&str; 3] = ["config.json", "model.safetensors", "tokenizer.json"];

    fn content(file: &str, commit: &str) -> String {
        format!("{file} at {commit}, {}", "x".repeat(100))
    }

    impl Hub {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let state = Arc::new(Mutex::new(State {
                commit: "c1".to_string(),
                is_up: true,
                asked: Vec::new(),
            }));
            let shared = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    answer(stream.unwrap(), &mut shared.lock().unwrap());
                }
            });
            Hub { endpoint, state }
        }

        fn state(&self) -> std::sync::MutexGuard<'_, State> {
            self.state.lock().unwrap()
        }

        fn settings(&self, home: &Path) -> HubSettings {
            let (home, endpoint) = (home.to_str().unwrap().to_string(), self.endpoint.clone());
            HubSettings::from_vars(move |name| match name {
                "HF_HOME" => Some(home.clone()),
                "HF_ENDPOINT" => Some(endpoint.clone()),
                _ => None,
            })
        }
    }

    /// Answers one request as the hub does.
    fn answer(mut stream: TcpStream, state: &mut State) {
        let lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let head: Vec<String> = lines
            .map(|line| line.unwrap_or_default())
            .take_while(|line| !line.is_empty())
            .collect();
        let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else {
            return;
        };
        let commit = state.commit.clone();
        let (status, headers, body) = if !state.is_up {
            ("503 Service Unavailable", String::new(), String::new())
        } else if path.starts_with("/api/models/org/tiny/revision/") {
            let files: Vec<String> = FILES
                .iter()
                .map(|file| format!(r#"{{"rfilename": "{file}"}}"#))
                .collect();
            let body = format!(
                r#"{{"sha": "{commit}", "siblings": [{}]}}"#,
                files.join(", ")
            );
            ("200 OK", String::new(), body)
        } else if let Some(rest) = path.strip_prefix("/org/tiny/resolve/") {
            let (revision, file) = rest.split_once('/').unwrap();
            let commit = if revision == "main" {
                &commit
            } else {
                revision
            };
            let range = head.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                let is_range = key.eq_ignore_ascii_case("range");
                is_range.then(|| value.trim_start_matches("bytes=").to_string())
            });
            let range = range.unwrap();
            let (first, last) = range.split_once('-').unwrap();
            let first: usize = first.parse().unwrap();
            let whole = content(file, commit);
            let last: usize = last.parse().unwrap_or(whole.len() - 1);
            if range != "0-0" {
                state.asked.push((file.to_string(), first));
            }
            let headers = format!(
                "ETag: \"{file}-{commit}\"\r\nx-repo-commit: {commit}\r\nContent-Range: bytes {first}-{last}/{}\r\n",
                whole.len()
            );
            (
                "206 Partial Content",
                headers,
                whole[first..=last].to_string(),
            )
        } else {
            ("404 Not Found", String::new(), String::new())
        };
        let length = body.len();
        let reply = format!(
            "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        let _ = stream.write_all(reply.as_bytes());
    }

    fn commit(located: &Located) -> (PathBuf, String) {
        match located {
            Located::Folder {
                path,
                revision: Some(commit),
            } => (path.clone(), commit.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_model_is_fetched_once_and_again_when_its_branch_has_moved() {
        let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
        let settings = hub.settings(home.path());
        let options = LoadOptions::default();
        let fetch = || fetch_with("org/tiny", &options, &settings).unwrap();

        let first = fetch();
        assert_eq!(first.freshness, Freshness::Downloaded);
        let (path, at) = commit(&first.located);
        assert_eq!(at, "c1");
        let written = fs::read_to_string(path.join("model.safetensors")).unwrap();
        assert_eq!(written, content("model.safetensors", "c1"));
        let names: Vec<&str> = first
            .files
            .iter()
            .map(|(path, _)| path.file_name().unwrap().to_str().unwrap())
            .collect();
        assert_eq!(names, FILES);
        assert_eq!(first.files[1].1, written.len() as u64);
        assert_eq!(hub.state().asked.len(), 3);

        assert_eq!(fetch().freshness, Freshness::Same);
        assert_eq!(hub.state().asked.len(), 3, "nothing is downloaded twice");

        hub.state().commit = "c2".to_string();
        let cached = locate_with("org/tiny", &options, Wanted::Weights, &settings).unwrap();
        assert_eq!(commit(&cached).1, "c1", "loading uses what is cached");
        let moved = fetch();
        assert_eq!(
            (moved.freshness, commit(&moved.located).1),
            (Freshness::Downloaded, "c2".into())
        );
        let cached = locate_with("org/tiny", &options, Wanted::Weights, &settings).unwrap();
        assert_eq!(commit(&cached).1, "c2");
        let old = LoadOptions {
            revision: Some("c1".to_string()),
            ..LoadOptions::default()
        };
        let cached = locate_with("org/tiny", &old, Wanted::Weights, &settings).unwrap();
        assert_eq!(commit(&cached).1, "c1");

        hub.state().is_up = false;
        assert!(matches!(fetch().freshness, Freshness::Unknown { .. }));
        let offline = HubSettings {
            offline: true,
            ..settings.clone()
        };
        let offline = fetch_with("org/tiny", &options, &offline).unwrap();
        assert!(matches!(offline.freshness, Freshness::Unknown { reason } if reason == "offline"));
        let error = fetch_with("org/other", &options, &settings)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("org/other") && error.contains("cached: org/tiny"),
            "{error}"
        );
    }

    #[test]
    fn a_download_that_was_cut_short_goes_on_where_it_stopped() {
        let (hub, home) = (Hub::start(), tempfile::tempdir().unwrap());
        let settings = hub.settings(home.path());
        let whole = content("model.safetensors", "c1");
        let blobs = settings.cache.join("models--org--tiny/blobs");
        fs::create_dir_all(&blobs).unwrap();
        // hf-hub names the part after the entity tag, whose own ending it replaces.
        fs::write(blobs.join("model.part"), &whole[..40]).unwrap();
        let fetched = fetch_with("org/tiny", &LoadOptions::default(), &settings).unwrap();
        let (path, _) = commit(&fetched.located);
        assert_eq!(
            fs::read_to_string(path.join("model.safetensors")).unwrap(),
            whole
        );
        let asked = hub.state().asked.clone();
        assert!(
            asked.contains(&("model.safetensors".to_string(), 40)),
            "{asked:?}"
        );
    }
}
