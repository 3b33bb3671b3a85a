//! Vectors added while a model reads and writes: where, how much, and what is refused.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use candlewick::hooks::{Edit, Positions};
use candlewick::methods::{SteerAt, Steering, SteeringVector, drift};
use candlewick::model::Model;
use candlewick::run::{GenerateRequest, Generation, Quiet, generate};

use crate::models::{Pairs, every_kind, two_kinds};
use crate::{LENGTH, TOKENS, gap};

fn vector(width: usize) -> Vec<f32> {
    (0..width).map(|i| 2.0 * (i as f32 * 0.9).sin()).collect()
}

fn saved(folder: &Path, name: &str, values: &[f32]) -> PathBuf {
    let path = folder.join(name);
    let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu).expect("a vector");
    match name.ends_with(".npy") {
        true => tensor.write_npy(&path).expect("writes"),
        false => tensor.save_safetensors("v", &path).expect("writes"),
    }
    path
}

fn steered(model: &Model, edits: &[Edit]) -> Generation {
    let request = GenerateRequest {
        edits,
        max_tokens: TOKENS,
        keep_logits: true,
        ..GenerateRequest::default()
    };
    generate(model, &Pairs::new().corrupted, &request, &Quiet).expect("generates")
}

fn steering(text: &str, alpha: f32, at: &str) -> Steering {
    Steering::parse(text, alpha, at.parse().expect(at)).expect(text)
}

#[test]
fn a_vector_is_added_where_it_is_said_and_nothing_times_it_changes_no_bit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = saved(folder.path(), "v.npy", &vector(22));
    let file = path.display();
    for model in every_kind() {
        let plain = steered(&model, &[]);
        let of = |alpha: f32, at: &str| {
            let steering = steering(&format!("resid_post1={file}"), alpha, at);
            steering.check(&model.spec).expect("it fits");
            steered(&model, &[steering.edit(LENGTH, TOKENS).expect("an edit")])
        };
        for at in ["all", "prompt", "generated", "-1,generated:0-1"] {
            let nothing = of(0.0, at);
            assert_eq!(nothing.tokens, plain.tokens);
            for (a, b) in nothing.logits.iter().zip(&plain.logits) {
                assert_eq!(gap(a, b), 0.0, "{} {at}", model.spec.family);
            }
        }
        // The same by hand: the vector as a list of numbers, at those positions.
        let list: Vec<String> = vector(22).iter().map(|x| (-1.5 * x).to_string()).collect();
        for (at, positions) in [
            ("all", ""),
            ("prompt", "[pos=0,1,2,3,4,5,6,7,8,9]"),
            ("generated", "[pos=10,11,12,13,14,15]"),
            ("-1,generated:1-2", "[pos=9,11,12]"),
            ("generated:4", "[pos=14]"),
        ] {
            let edit = format!("resid_post1{positions} += [{}]", list.join(","));
            let by_hand = steered(&model, &[edit.parse().expect("an edit")]);
            let by_file = of(-1.5, at);
            assert_eq!(by_hand.tokens, by_file.tokens, "{} {at}", model.spec.family);
            for (a, b) in by_hand.logits.iter().zip(&by_file.logits) {
                assert!(gap(a, b) < 1e-5, "{} {at}", model.spec.family);
            }
        }
    }
}

#[test]
fn drift_is_nothing_without_a_change_and_grows_with_the_vector() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = saved(folder.path(), "v.safetensors", &vector(22));
    let texts = [vec![1, 2, 3, 4], vec![5, 6]];
    for model in two_kinds() {
        let of = |alpha: f32| {
            let steering = steering(
                &format!("resid_pre1={}", path.display()),
                alpha,
                "generated",
            );
            drift(&model, &texts, &[steering.everywhere()]).expect("runs")
        };
        assert_eq!(drift(&model, &texts, &[]).expect("runs"), 0.0);
        assert_eq!(of(0.0), 0.0);
        assert!(
            0.0 < of(0.1) && of(0.1) < of(1.0),
            "{} {}",
            of(0.1),
            of(1.0)
        );
        assert!(drift(&model, &[], &[]).is_err());
    }
}

#[test]
fn a_vector_is_found_by_its_name_and_knows_its_hook() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("d.safetensors");
    let row = |x: f32| Tensor::full(x, (1, 22), &Device::Cpu).expect("a row");
    let names = [
        "blocks.1.hook_resid_post@END.das",
        "blocks.1.hook_resid_post@END.pca",
    ];
    let tensors = [(names[0], row(1.0)), (names[1], row(2.0))].into();
    candle_core::safetensors::save(&tensors, &path).expect("writes");
    let file = path.display().to_string();
    let read = SteeringVector::read(&format!("{file}:pca")).expect("it is there");
    assert_eq!(read.values, vec![2.0; 22]);
    assert_eq!(
        read.hook.expect("named").to_string(),
        "blocks.1.hook_resid_post"
    );
    assert_eq!(read.norm(), 2.0 * 22f64.sqrt());
    let whole = SteeringVector::read(&format!("{file}:{}", names[0])).expect("it is there");
    assert_eq!(whole.values[0], 1.0);
    let says = |text: &str, what: &str| {
        let message = SteeringVector::read(text).expect_err(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    says(&file, "it has 2 tensors; name one");
    says(&format!("{file}:lda"), "`lda` is 0 of them");
    says("nowhere.npy", "nowhere.npy");
}

#[test]
fn what_is_no_vector_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        path.display().to_string()
    };
    let npy = |descr: &str, shape: &str| {
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
        while (10 + header.len() + 1) % 64 != 0 {
            header.push(' ');
        }
        header.push('\n');
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.bytes());
        bytes.extend([0; 16]);
        bytes
    };
    let says = |text: &str, what: &str| {
        let message = SteeringVector::read(text).expect_err(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    says(&write("o.npy", &npy("|O", "2,")), "pickled Python objects");
    says(&write("m.npy", &npy("<f4", "2, 2")), "has one axis");
    says(
        &write("l.npy", &npy("<f4", "99999999999,")),
        "99999999999 numbers",
    );
    says(
        &write("p.npy", &npy("<f4", "9999999999, 9999999999,")),
        "header is not that",
    );
    says(&write("s.npy", b"\x93NUMPY"), "header is not that");
    says(&write("t.npy", b"PK"), "header is not that");
    says(&write("g.safetensors", b"garbage"), "g.safetensors");
    let path = saved(folder.path(), "n.npy", &[1.0, f32::NAN]);
    says(&path.display().to_string(), "not finite");

    let model = two_kinds().remove(0);
    let path = saved(folder.path(), "v.npy", &vector(21));
    let of = |site: &str, at: &str| {
        let text = format!("{site}={}", path.display());
        Steering::parse(&text, 1.0, at.parse::<SteerAt>()?)
    };
    let refused = |site: &str, what: &str| {
        let steering = of(site, "all").expect("it parses");
        let message = steering.check(&model.spec).expect_err(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    refused(
        "resid_post1",
        "has 21 numbers, and `blocks.1.hook_resid_post` has 22",
    );
    refused("pattern1", "holds no vector");
    refused("resid_post9", "layer");
    assert!(Steering::parse(&path.display().to_string(), 1.0, SteerAt::all()).is_err());
    for at in ["", "end", "generated:", "generated:3-1", "@", "1,,2"] {
        assert!(at.parse::<SteerAt>().is_err(), "{at}");
    }
    // Of one generated token nothing is read.
    assert!(
        of("resid_post1", "generated")
            .expect("parses")
            .edit(5, 1)
            .is_err()
    );
    let late = of("resid_post1", "generated:6").expect("parses");
    assert!(late.edit(5, 7).is_err() && late.edit(5, 8).is_ok());
    assert_eq!(SteerAt::all().positions(5, 1).expect("all"), Positions::All);
}
