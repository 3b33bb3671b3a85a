//! Where a model is found, and what the environment says about looking for it.

use std::env;
use std::fs;
use std::path::PathBuf;

/// The branch of a hub model if none is named.
pub(super) const DEFAULT_REVISION: &str = "main";

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
