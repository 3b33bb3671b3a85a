//! Sparse autoencoders as SAELens writes them do what they do there; what is broken is refused.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use candlewick::hooks::Hook;
use candlewick::sae::Sae;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/sae")
}

fn near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= 2e-5 * b.abs().max(1.0),
            "{what} {i}: {a} against {b}"
        );
    }
}

fn agrees(sae: &Sae, reference: &Path) {
    let tensors: HashMap<String, Tensor> =
        candle_core::safetensors::load(reference, &Device::Cpu).unwrap();
    let of = |name: &str| -> Vec<f32> { tensors[name].flatten_all().unwrap().to_vec1().unwrap() };
    let x = of("x");
    let latents = sae.encode(&x);
    let mut acts = vec![0.0; latents.rows.len() * sae.d_sae];
    for (row, on) in acts.chunks_exact_mut(sae.d_sae).zip(&latents.rows) {
        assert!(on.is_sorted_by_key(|latent| latent.0));
        on.iter()
            .for_each(|&(latent, value)| row[latent as usize] = value);
    }
    near(&acts, &of("acts"), &format!("{sae} latents"));
    near(
        &sae.decode(&latents, &x),
        &of("out"),
        &format!("{sae} output"),
    );
}

#[test]
fn every_architecture_is_that_of_saelens() {
    let mut read = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("cfg.json").is_file() {
            continue;
        }
        let sae = Sae::open(&folder, None).unwrap_or_else(|error| panic!("{error}"));
        agrees(&sae, &folder.join("reference.safetensors"));
        read += 1;
    }
    assert_eq!(read, 11);
}

#[test]
fn gemma_scopes_file_is_read_and_needs_a_hook() {
    let folder = fixtures().join("npz");
    let hook: Hook = "blocks.1.hook_resid_post".parse().unwrap();
    let sae = Sae::open(&folder, Some(hook)).unwrap();
    agrees(&sae, &fixtures().join("jumprelu/reference.safetensors"));
    let error = Sae::open(&folder.join("params.npz"), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("which hook"), "{error}");
    let error = Sae::open(&folder.join("objects.npz"), Some(hook))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("pickled") && !error.contains('\n'),
        "{error}"
    );
}

#[test]
fn broken_files_are_refused_in_one_line() {
    let scratch = tempfile::tempdir().unwrap();
    let from = fixtures().join("jumprelu");
    let copy = |name: &str,
                config: &dyn Fn(String) -> String,
                weights: &dyn Fn(Vec<u8>) -> Vec<u8>|
     -> PathBuf {
        let folder = scratch.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        let text = fs::read_to_string(from.join("cfg.json")).unwrap();
        fs::write(folder.join("cfg.json"), config(text)).unwrap();
        let bytes = fs::read(from.join("sae_weights.safetensors")).unwrap();
        fs::write(folder.join("sae_weights.safetensors"), weights(bytes)).unwrap();
        folder
    };
    let same = |text: String| text;
    let keep = |bytes: Vec<u8>| bytes;
    let nan = |mut bytes: Vec<u8>| {
        let at = bytes.len() - 4;
        bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
        bytes
    };
    let cases: Vec<(PathBuf, &str)> = vec![
        (
            copy(
                "width",
                &|text| text.replace("\"d_in\": 12", "\"d_in\": 13"),
                &keep,
            ),
            "[20, 12], not [20, 13]",
        ),
        (copy("nan", &same, &nan), "not finite"),
        (
            copy("short", &same, &|bytes| bytes[..bytes.len() / 2].to_vec()),
            "sae_weights",
        ),
        (copy("empty", &|_| String::new(), &keep), "cfg.json"),
        (
            copy(
                "unknown",
                &|text| text.replace("jumprelu", "temporal"),
                &keep,
            ),
            "temporal",
        ),
        (
            copy("gated", &|text| text.replace("jumprelu", "gated"), &keep),
            "b_gate",
        ),
        (
            copy(
                "batch",
                &|text| text.replace("jumprelu", "batchtopk"),
                &keep,
            ),
            "",
        ),
        (
            copy(
                "hook",
                &|text| text.replace("hook_resid_post", "hook_nowhere"),
                &keep,
            ),
            "hook_nowhere",
        ),
        (scratch.path().join("none"), "SAELens"),
    ];
    for (folder, words) in cases {
        match Sae::open(&folder, None) {
            // A threshold makes batch-top-k a JumpReLU.
            Ok(sae) => assert!(words.is_empty() && sae.to_string().contains("JumpReLU")),
            Err(error) => {
                let error = error.to_string();
                assert!(
                    !words.is_empty() && error.contains(words),
                    "{}: {error}",
                    folder.display()
                );
                assert!(!error.contains('\n'), "{error}");
            }
        }
    }
}

/// No change of a byte makes it panic.
#[test]
fn a_changed_byte_is_no_panic() {
    let scratch = tempfile::tempdir().unwrap();
    let hook: Hook = "blocks.1.hook_resid_post".parse().unwrap();
    let bytes = fs::read(fixtures().join("npz/params.npz")).unwrap();
    let path = scratch.path().join("params.npz");
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 0x5a;
        fs::write(&path, &changed).unwrap();
        let _ = Sae::open(&path, Some(hook));
    }
    let folder = fixtures().join("topk");
    for name in ["cfg.json", "sae_weights.safetensors"] {
        for other in ["cfg.json", "sae_weights.safetensors"] {
            fs::copy(folder.join(other), scratch.path().join(other)).unwrap();
        }
        let bytes = fs::read(folder.join(name)).unwrap();
        for at in (0..bytes.len().min(700)).step_by(3) {
            let mut changed = bytes.clone();
            changed[at] ^= 0x15;
            fs::write(scratch.path().join(name), &changed).unwrap();
            let _ = Sae::open(scratch.path(), Some(hook));
        }
    }
}
