//! Shards merge to the whole.

use std::path::{Path, PathBuf};

use candlewick::prelude::*;
use candlewick::scores::Shard;

use crate::every_method::every_run;
use crate::{measured, mixed, rows};

fn shards(lab: &Lab, method: &dyn Method, count: usize, folder: &Path) -> Vec<PathBuf> {
    (1..=count)
        .map(|index| {
            let path = folder.join(format!("{index}.parquet"));
            let running = Running {
                shard: Some(Shard { index, count }),
                ..lab.running.clone()
            };
            let command = ["candlewick".to_string()];
            let watch = Watch::default();
            measure_shard(lab.subject(), method, &running, &watch, &path, &command)
                .expect("measures");
            path
        })
        .collect()
}

#[test]
fn shards_merge_to_the_table_of_the_whole_with_every_method() {
    for (name, lab, method) in every_run(6) {
        let folder = tempfile::tempdir().expect("a folder");
        let paths = shards(&lab, &*method, 3, folder.path());
        let watch = Watch::default();
        let merged = merge(lab.subject(), &*method, &lab.running, &paths, &watch).expect("merges");
        assert_eq!(rows(&merged), rows(&measured(&lab, &*method)), "{name}");
    }
}

#[test]
fn a_missing_doubled_or_foreign_shard_is_named() {
    let lab = mixed(6).running(Running {
        batch: 2,
        ..Running::default()
    });
    let (method, other) = (
        PatchConfig::sites("z").unwrap(),
        PatchConfig::sites("q").unwrap(),
    );
    let folder = tempfile::tempdir().expect("a folder");
    let paths = shards(&lab, &method, 3, folder.path());
    let elsewhere = tempfile::tempdir().expect("a folder");
    let foreign = shards(&lab, &other, 3, elsewhere.path());
    let refused = |paths: &[PathBuf]| {
        let merged = merge(
            lab.subject(),
            &method,
            &lab.running,
            paths,
            &Watch::default(),
        );
        merged.expect_err("refused").to_string()
    };
    let missing = refused(&[paths[0].clone(), paths[2].clone()]);
    assert!(
        missing.contains("2/3") && missing.contains("missing"),
        "{missing}"
    );
    let doubled = refused(&[paths[0].clone(), paths[0].clone(), paths[1].clone()]);
    assert!(doubled.contains("both shard 1/3"), "{doubled}");
    let mixed_up = refused(&[paths[0].clone(), foreign[1].clone(), paths[2].clone()]);
    assert!(
        mixed_up.contains("other work") && mixed_up.contains("settings"),
        "{mixed_up}"
    );
    let all_foreign = refused(&foreign);
    assert!(all_foreign.contains("other work"), "{all_foreign}");
    assert!(refused(&[]).contains("there is none"));
}
