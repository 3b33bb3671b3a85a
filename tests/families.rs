//! Every family computes what Hugging Face transformers does at every hook that a fixture holds; reads old and new configs alike;
//! and agrees with candle-transformers where that has the family.

use std::fs;
use std::path::{Path, PathBuf};

use candlewick::check::{TOLERANCE, compare, worst};
use candlewick::model::Model;
use candlewick::model::families::from_config;
use candlewick::model::load::{LoadOptions, load};

/// The folders of `tests/fixtures` that hold a model.
fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = fs::read_dir(root).expect("the fixtures are there");
    let folders = folders.map(|entry| entry.expect("readable").path());
    let mut models: Vec<PathBuf> = folders
        .filter(|path| path.join("config.json").is_file())
        .collect();
    models.sort();
    models
}

fn open(path: &Path) -> Model {
    let path = path.to_str().expect("utf-8 path");
    load(path, &LoadOptions::default())
        .unwrap_or_else(|error| panic!("{path}: {error}"))
        .model
}

#[test]
fn every_fixture_agrees_with_its_reference_at_every_hook() {
    let mut failures = Vec::new();
    for path in fixtures() {
        let gaps = compare(&open(&path), &path.join("reference.safetensors"))
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let name = path.file_name().expect("a folder").display();
        for gap in worst(&gaps) {
            println!(
                "{name} {:12} {:.1e} at {}",
                gap.what, gap.relative, gap.place
            );
        }
        // The first in the order of the forward pass says where the mistake is.
        if let Some(gap) = gaps.iter().find(|gap| gap.relative > TOLERANCE) {
            failures.push(format!(
                "{name}: {} differs by {:.1e} at {}",
                gap.what, gap.relative, gap.place
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn both_config_forms_mean_the_same_model() {
    for path in fixtures() {
        let read = |file: &str| fs::read_to_string(path.join(file));
        let Ok(old) = read("config.legacy.json") else {
            continue;
        };
        let new = read("config.json").expect("every fixture has one");
        let described = |json: &str| {
            from_config(json).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert_eq!(described(&new), described(&old), "{}", path.display());
    }
}
