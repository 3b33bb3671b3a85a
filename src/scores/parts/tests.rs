use serde_json::json;

use super::*;

fn measured(example: usize) -> ExampleScores {
    ExampleScores {
        example,
        clean: 3.25,
        corrupted: -1.5,
        tokens: vec!["When".into(), " Mary".into()],
        roles: BTreeMap::from([("END".into(), vec![1])]),
        cells: Arc::from([0, 2, 5]),
        values: vec![0.5 + example as f64, f64::MIN_POSITIVE, -7.0],
        ..ExampleScores::default()
    }
}

fn unit(examples: &[usize]) -> Fragment {
    Fragment {
        cells: 0..6,
        examples: examples.iter().map(|&example| measured(example)).collect(),
    }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }
    fn open(&self, direction: &str) -> Result<PartStore> {
        let plan = json!({ "direction": direction, "cells": 6 });
        PartStore::open(&self.0.path().join("scores.parquet"), &plan, None)
    }
    fn entries(&self) -> usize {
        fs::read_dir(self.0.path()).unwrap().count()
    }
}

#[test]
fn finished_parts_are_found_again_with_every_bit() {
    let place = Place::new();
    let mut store = place.open("denoise").unwrap();
    store.write(&unit(&[4, 9])).unwrap();
    store.write(&unit(&[1])).unwrap();
    drop(store);
    let store = place.open("denoise").unwrap();
    assert_eq!(store.examples(), BTreeSet::from([1, 4, 9]));
    assert_eq!(
        joined(store.read_all().unwrap()),
        [measured(1), measured(4), measured(9)]
    );
    store.remove().unwrap();
    assert_eq!(place.entries(), 0);
}

#[test]
fn an_example_is_put_together_from_ranges_of_its_cells() {
    let place = Place::new();
    let mut store = place.open("denoise").unwrap();
    let whole = measured(3);
    let piece = |cells: Range<u32>| Fragment {
        examples: vec![ExampleScores {
            cells: whole
                .cells
                .iter()
                .copied()
                .filter(|cell| cells.contains(cell))
                .collect(),
            values: (whole.cells.iter().zip(&whole.values))
                .filter(|(cell, _)| cells.contains(cell))
                .map(|(_, value)| *value)
                .collect(),
            ..whole.clone()
        }],
        cells,
    };
    store.write(&piece(3..6)).unwrap();
    assert!(store.has(3, &(3..6)) && !store.has(3, &(0..6)) && !store.has(4, &(3..6)));
    store.write(&piece(0..2)).unwrap();
    assert!(!store.has(3, &(0..6)));
    store.write(&piece(2..3)).unwrap();
    assert!(store.has(3, &(0..6)));
    assert_eq!(
        joined(store.read_all().unwrap()),
        std::slice::from_ref(&whole)
    );
    let twice = vec![piece(0..3), piece(2..6)];
    assert_eq!(joined(twice), [whole]);
}

#[test]
fn a_kill_before_the_rename_loses_only_the_part_in_flight() {
    let place = Place::new();
    let mut store = place.open("denoise").unwrap();
    store.write(&unit(&[0])).unwrap();
    let staged = store
        .stage(&unit(&[1]), &store.folder.join("part-00001.parquet"))
        .unwrap();
    drop(store);
    assert!(staged.exists());
    let mut store = place.open("denoise").unwrap();
    assert!(!staged.exists());
    assert_eq!(store.examples(), BTreeSet::from([0]));
    assert!(store.warnings().is_empty());
    store.write(&unit(&[1])).unwrap();
    assert_eq!(store.examples(), BTreeSet::from([0, 1]));
}

#[test]
fn a_damaged_part_is_dropped_with_a_warning_wherever_the_damage_is() {
    let place = Place::new();
    let mut store = place.open("denoise").unwrap();
    store.write(&unit(&[0])).unwrap();
    let path = store.folder.join("part-00000.parquet");
    drop(store);
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(&path, &bytes).unwrap();
        // Damage that changes no measurement may pass; damage that does may not.
        if let Ok(part) = read_part(&path) {
            let example = &part[0].examples[0];
            assert_eq!(
                (&example.cells, &example.values),
                (&measured(0).cells, &measured(0).values),
                "byte {at}"
            );
        }
    }
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let mut store = place.open("denoise").unwrap();
    assert!(store.examples().is_empty());
    assert_eq!(store.warnings().len(), 1);
    store.write(&unit(&[0])).unwrap();
    assert_eq!(joined(store.read_all().unwrap()), [measured(0)]);
}

#[test]
fn other_work_for_the_same_file_is_not_in_the_way() {
    let place = Place::new();
    let mut first = place.open("denoise").unwrap();
    first.write(&unit(&[0])).unwrap();
    let second = place.open("noise").unwrap();
    assert!(second.is_empty());
    second.remove().unwrap();
    drop(first);
    assert!(place.open("denoise").unwrap().has(0, &(0..6)));
}

#[test]
fn work_that_finished_nothing_leaves_nothing() {
    let place = Place::new();
    drop(place.open("denoise").unwrap());
    assert_eq!(place.entries(), 0);
}

#[test]
fn a_plan_is_the_same_text_again() {
    for factor in [0.03f32, 0.11, 0.23, 0.46, 0.49, 0.91] {
        let place = Place::new();
        let open = || {
            let plan = json!({ "factor": factor });
            PartStore::open(&place.0.path().join("s.parquet"), &plan, None).unwrap()
        };
        open().write(&unit(&[0])).unwrap();
        assert!(!open().is_empty(), "{factor}");
    }
}

#[test]
fn a_second_process_waits_its_turn() {
    let place = Place::new();
    let first = place.open("denoise").unwrap();
    let error = place.open("denoise").unwrap_err();
    assert!(
        matches!(&error, Error::Busy { owner, .. } if owner.starts_with(&format!("process {} on ", std::process::id()))),
        "{error}"
    );
    drop(first);
    place.open("denoise").unwrap();
}

#[test]
fn a_shard_is_read_back_as_it_was_written() {
    let place = Place::new();
    let path = place.0.path().join("shard.parquet");
    let note = ShardNote {
        shard: "2/3".parse().unwrap(),
        plan: "{}".into(),
        command: vec!["candlewick".into(), "patch".into()],
        folder: String::new(),
        seconds: 1.5,
    };
    let fragments = vec![
        unit(&[0, 2]),
        Fragment {
            cells: 6..9,
            examples: vec![ExampleScores {
                cells: Arc::from([7]),
                values: vec![1.0],
                ..measured(0)
            }],
        },
    ];
    write_shard(&path, &fragments, &note).unwrap();
    assert_eq!(read_shard(&path).unwrap(), (note, fragments));
    for text in ["0/3", "4/3", "1", "a/b", "1/0"] {
        assert!(text.parse::<Shard>().is_err(), "{text}");
    }
}
