//! Says which build this is: the version, and of a release build the commit, where one is to be had. Results, shards and
//! `--version` bear it.

use std::env;
use std::path::Path;
use std::process::Command;

/// What a build is made of.
const SOURCES: [&str; 6] = [
    "src",
    "circuits",
    "models",
    "Cargo.lock",
    "Cargo.toml",
    "build.rs",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CANDLEWICK_COMMIT");
    let given = env::var("CANDLEWICK_COMMIT").ok();
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let commit = match given {
        // A build from an archive can be told.
        Some(commit) => Some(commit).filter(|commit| !commit.is_empty()),
        // A debug build would be made anew at every commit.
        None if is_release => commit(),
        None => None,
    };
    let version = env!("CARGO_PKG_VERSION");
    let build = match (commit, is_release) {
        (Some(commit), _) => format!("{version} ({commit})"),
        (None, true) => version.to_string(),
        (None, false) => format!("{version} (debug)"),
    };
    println!("cargo::rustc-env=CANDLEWICK_BUILD={build}");
}

/// The commit of the source, with a `+` if the source differs from it; nothing where there is no git, or no repository of ours.
fn commit() -> Option<String> {
    let here = env::var("CARGO_MANIFEST_DIR").ok()?;
    let top = git(&["rev-parse", "--show-toplevel"])?;
    // This folder may lie inside somebody else's repository.
    if Path::new(&top).canonicalize().ok()? != Path::new(&here).canonicalize().ok()? {
        return None;
    }
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    for path in [log.as_str()].into_iter().chain(SOURCES) {
        println!("cargo::rerun-if-changed={path}");
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let status = ["status", "--porcelain", "--untracked-files=no", "--"];
    let changed = git(&[&status[..], &SOURCES[..]].concat())?;
    Some(if changed.is_empty() {
        commit
    } else {
        format!("{commit}+")
    })
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}
