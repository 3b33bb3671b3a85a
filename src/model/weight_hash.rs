//! The SHA-256 of a checkpoint's files, found beside the work that uses the weights: gigabytes take seconds, and only what is written
//! at the end needs it.

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::thread;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use super::bytes::{Bytes, hex};

/// SHA-256 of weight files in hex: of one file its own, of several that of their hashes, a line each, in name order. Another thread may
/// still be at work on it; whoever reads it first waits.
#[derive(Clone)]
pub struct WeightHash(Arc<LazyLock<String, Box<dyn FnOnce() -> String + Send>>>);

impl WeightHash {
    /// Begins to hash files. Those of the hub's cache are not read, for their names are their hashes.
    pub(super) fn begin(files: &[Bytes]) -> Self {
        if let [file @ (Bytes::Borrowed(_) | Bytes::Owned(_))] = files {
            return hash_of(file).into();
        }
        let shared: Option<Vec<Bytes<'static>>> = files.iter().map(Bytes::shared).collect();
        let Some(files) = shared else {
            return joined(files.iter().map(hash_of).collect()).into();
        };
        let work = thread::spawn(move || joined(hashes_of(&files)));
        Self::from_work(Box::new(move || {
            work.join().expect("hashing bytes does not panic")
        }))
    }

    fn from_work(work: Box<dyn FnOnce() -> String + Send>) -> Self {
        WeightHash(Arc::new(LazyLock::new(work)))
    }

    /// The hash, waited for if need be. Empty for weights that come from no file.
    pub fn get(&self) -> &str {
        &self.0
    }
}

/// The hash of the whole from those of its files.
fn joined(mut hashes: Vec<String>) -> String {
    if hashes.len() == 1 {
        return hashes.remove(0);
    }
    let mut whole = Sha256::new();
    for hash in hashes {
        whole.update(hash);
        whole.update("\n");
    }
    hex(&whole.finalize())
}

/// The hash of each file, several at a time where there are cores for it.
fn hashes_of(files: &[Bytes]) -> Vec<String> {
    /// Cores that are left to the work for each that hashes.
    const SHARE: usize = 4;
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut found = Vec::new();
        while let index = next.fetch_add(1, Ordering::Relaxed)
            && let Some(file) = files.get(index)
        {
            found.push((index, hash_of(file)));
        }
        found
    };
    let mut found: Vec<(usize, String)> = thread::scope(|scope| {
        let workers =
            (0..(cores / SHARE).clamp(1, files.len().max(1))).map(|_| scope.spawn(worker));
        let workers: Vec<_> = workers.collect();
        let found = workers.into_iter().map(thread::ScopedJoinHandle::join);
        found
            .flat_map(|found| found.expect("hashing bytes does not panic"))
            .collect()
    });
    found.sort();
    found.into_iter().map(|(_, hash)| hash).collect()
}

fn hash_of(file: &Bytes) -> String {
    /// Bytes that are hashed before their pages are let go.
    const CHUNK: usize = 16 << 20;
    if let Bytes::Mapped { path, .. } = file
        && let Some(name) = hub_name(path)
    {
        return name;
    }
    let mut hash = Sha256::new();
    for (index, chunk) in file.chunks(CHUNK).enumerate() {
        hash.update(chunk);
        file.let_go(index * CHUNK..index * CHUNK + chunk.len());
    }
    hex(&hash.finalize())
}

/// The SHA-256 by which the hub's cache names a large file: `models--org--name/blobs/<64 hex digits>`, to which the snapshots link.
fn hub_name(path: &Path) -> Option<String> {
    let path = path.canonicalize().ok()?;
    let name = path.file_name()?.to_str()?;
    let folder = path.parent()?;
    let is_of_hub = folder.file_name()? == "blobs"
        && folder
            .parent()?
            .file_name()?
            .to_str()?
            .starts_with("models--");
    let is_digest =
        name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    (is_of_hub && is_digest).then(|| name.to_string())
}

impl From<String> for WeightHash {
    fn from(hash: String) -> Self {
        let known = Self::from_work(Box::new(move || hash));
        LazyLock::force(&known.0);
        known
    }
}

impl Default for WeightHash {
    fn default() -> Self {
        String::new().into()
    }
}

impl PartialEq for WeightHash {
    fn eq(&self, other: &Self) -> bool {
        self.get() == other.get()
    }
}

/// Does not wait.
impl fmt::Debug for WeightHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("WeightHash").finish_non_exhaustive()
    }
}

impl fmt::Display for WeightHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get())
    }
}

impl Serialize for WeightHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.get())
    }
}

impl<'de> Deserialize<'de> for WeightHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::model::bytes::map;

    /// SHA-256 of `abc`, from FIPS 180-2.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn one_file_has_its_own_hash_wherever_it_lies() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        fs::write(&path, "abc").unwrap();
        let mapped = map(&path).unwrap();
        for bytes in [
            Bytes::Borrowed(b"abc"),
            Bytes::Owned(b"abc".to_vec()),
            mapped,
        ] {
            let hash = WeightHash::begin(&[bytes]);
            assert_eq!((hash.get(), hash.to_string()), (ABC, ABC.to_string()));
            let json = serde_json::to_string(&hash).unwrap();
            assert_eq!(json, format!("\"{ABC}\""));
            assert_eq!(serde_json::from_str::<WeightHash>(&json).unwrap(), hash);
        }
    }

    #[test]
    fn several_files_have_one_hash_that_knows_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let mapped = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            map(&path).unwrap()
        };
        let of = |files: &[Bytes]| WeightHash::begin(files).to_string();
        let one = of(&[mapped("1", "abc"), mapped("2", "d")]);
        let line = |text: &str| hex(&Sha256::digest(text)) + "\n";
        assert_eq!(one, hex(&Sha256::digest(line("abc") + &line("d"))));
        assert_eq!(one, of(&[Bytes::Borrowed(b"abc"), Bytes::Borrowed(b"d")]));
        assert_ne!(one, of(&[mapped("1", "d"), mapped("2", "abc")]));
    }

    #[cfg(unix)]
    #[test]
    fn a_blob_of_the_hub_is_named_by_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let at = |folder: &str, name: &str| {
            let folder = dir.path().join(folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(name), "other").unwrap();
            let link = folder.join("link.safetensors");
            std::os::unix::fs::symlink(folder.join(name), &link).unwrap();
            WeightHash::begin(&[map(&link).unwrap()]).to_string()
        };
        assert_eq!(at("models--org--name/blobs", ABC), ABC);
        let other = hex(&Sha256::digest("other"));
        assert_eq!(at("models--org--other/blobs", &ABC[..40]), other);
        assert_eq!(at("models--org--third/snapshots", ABC), other);
        assert_eq!(at("mine/blobs", ABC), other);
    }
}
