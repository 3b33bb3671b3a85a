//! Patching and ablating a loaded model has the effects that the same edits have in Hugging Face transformers, family by family.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
use candlewick::metric::{Metric, Target};
use candlewick::model::Model;
use candlewick::model::load::{LoadOptions, load};
use candlewick::run::{
    BaseRun, MeanOf, Quiet, Readout, Source, Sources, SweepOptions, Variant, run_with_cache, sweep,
};

/// f32 references computed by other kernels agree to about 5e-6 relative; twice that is a mistake.
const TOLERANCE: f32 = 1e-5;

fn fixture(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(family)
}

fn open(family: &str) -> Model {
    let path = fixture(family);
    load(path.to_str().expect("utf-8 path"), &LoadOptions::default())
        .expect("the fixture loads")
        .model
}

fn references(family: &str, file: &str) -> std::collections::HashMap<String, Tensor> {
    candle_core::safetensors::load(fixture(family).join(file), &Device::Cpu)
        .expect("the references load")
}

fn prompt(t: &Tensor) -> Vec<u32> {
    t.to_dtype(DType::U32)
        .expect("ids")
        .to_vec1()
        .expect("one prompt")
}

fn prompts(t: &Tensor) -> Vec<Vec<u32>> {
    t.to_dtype(DType::U32)
        .expect("ids")
        .to_vec2()
        .expect("prompts")
}

fn check(what: &str, ours: &Tensor, theirs: &Tensor) {
    let (a, b) = (values(ours), values(theirs));
    assert_eq!(
        a.len(),
        b.len(),
        "{what}: {:?} against {:?}",
        ours.dims(),
        theirs.dims()
    );
    let scale = b.iter().fold(0f32, |max, x| max.max(x.abs())).max(1e-3);
    let gap = a
        .iter()
        .zip(&b)
        .fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(
        gap <= TOLERANCE * scale,
        "{what}: differs by {gap} where values reach {scale}"
    );
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_dtype(DType::F32)
        .expect("f32")
        .flatten_all()
        .expect("flat")
        .to_vec1()
        .expect("values")
}

/// Patching and ablation effects of eight pairs against those of the reference.
fn check_patching(family: &str) {
    let model = open(family);
    let wanted = references(family, "reference_patching.safetensors");
    let layers = model.spec.n_layers;
    let (clean, corrupted) = (
        prompts(&wanted["clean_ids"]),
        prompts(&wanted["corrupt_ids"]),
    );
    let (answers, wrong) = (prompt(&wanted["answer"]), prompt(&wanted["wrong"]));
    let targets = answers.iter().zip(&wrong).map(|(&answer, &wrong)| Target {
        answers: vec![answer],
        wrong: vec![wrong],
        ..Target::default()
    });
    let readout = Readout {
        metric: Metric::LogitDiff,
        targets: targets.collect(),
        reference: None,
    };
    let starts = [Kind::ResidPre, Kind::AttnOut, Kind::MlpOut, Kind::Z];
    let base = |prompts: &[Vec<u32>]| {
        BaseRun::new(
            &model,
            prompts.to_vec(),
            vec![],
            vec![],
            Sources::default(),
            &starts,
        )
        .expect("the base run runs")
    };
    let (clean_base, base) = (base(&clean), base(&corrupted));
    let as_tensor = |values: &[f64], shape: &[usize]| {
        let values = values.iter().map(|&x| x as f32).collect::<Vec<_>>();
        Tensor::from_vec(values, shape, &Device::Cpu).expect("shape")
    };
    let n = clean.len();
    check(
        "clean metric",
        &as_tensor(&clean_base.metric(&model, &readout).expect("metric"), &[n]),
        &wanted["clean_ld"],
    );
    check(
        "corrupted metric",
        &as_tensor(&base.metric(&model, &readout).expect("metric"), &[n]),
        &wanted["corrupt_ld"],
    );

    let hooks: Vec<Hook> = starts
        .iter()
        .flat_map(|&kind| (0..layers).map(move |layer| Hook::at(kind, layer)))
        .collect();
    let (_, cache) = run_with_cache(&model, &clean, &hooks).expect("runs");
    let length = clean[0].len();
    let sources = Sources::default().with("clean", Source::run(cache.clone()).expect("a source"));
    let go = |base: &BaseRun, variants: &[Variant], sources: &Sources| {
        sweep(
            &model,
            base,
            variants,
            sources,
            &readout,
            &SweepOptions::default(),
            &Quiet,
        )
        .expect("sweeps")
    };
    let each = |edit: &dyn Fn(usize, usize) -> Edit, second: usize| -> Vec<Variant> {
        let mut variants = Vec::new();
        for layer in 0..layers {
            for j in 0..second {
                variants.extend((0..n).map(|example| Variant {
                    example,
                    edits: vec![edit(layer, j)],
                }));
            }
        }
        variants
    };
    let from_clean = || Op::FromRun("clean".into());
    for (name, kind) in [
        ("resid_pre", Kind::ResidPre),
        ("attn_out", Kind::AttnOut),
        ("mlp_out", Kind::MlpOut),
    ] {
        let variants = each(
            &|layer, pos| Edit::new(Site::all(Hook::at(kind, layer)).at(pos), from_clean()),
            length,
        );
        let values = go(&base, &variants, &sources);
        check(
            &format!("{family} denoise {name}"),
            &as_tensor(&values, &[layers, length, n]),
            &wanted[&format!("denoise/{name}")],
        );
    }
    let heads = model.spec.n_heads;
    let z = |op: Op| {
        move |layer: usize, head: usize| {
            Edit::new(
                Site::all(Hook::at(Kind::Z, layer)).heads([head]),
                op.clone(),
            )
        }
    };
    let values = go(&base, &each(&z(from_clean()), heads), &sources);
    check(
        &format!("{family} denoise z"),
        &as_tensor(&values, &[layers, heads, n]),
        &wanted["denoise/z_head"],
    );

    // Ablations act on the clean run, with means over the clean prompts. The reference calls `mean` the mean at each position,
    // and `meanpos` the mean over positions too.
    let mut everywhere = MeanOf::new(false);
    everywhere.add(&cache).expect("adds");
    let mut by_position = MeanOf::new(true);
    by_position.add(&cache).expect("adds");
    for (name, op, sources) in [
        ("zero", Op::Zero, Sources::default()),
        (
            "mean",
            Op::Mean,
            Sources::default().with("mean", by_position.finish(&model.spec).expect("means")),
        ),
        (
            "meanpos",
            Op::Mean,
            Sources::default().with("mean", everywhere.finish(&model.spec).expect("means")),
        ),
    ] {
        let values = go(&clean_base, &each(&z(op), heads), &sources);
        let shape = [layers, heads, n];
        check(
            &format!("{family} ablate {name}"),
            &as_tensor(&values, &shape),
            &wanted[&format!("ablate_{name}/z_head")],
        );
    }
}

#[test]
fn every_family_patches_and_ablates_like_the_reference() {
    for family in ["gemma2", "gemma3", "gpt2", "llama", "pythia", "qwen2"] {
        check_patching(&format!("{family}-tiny-random"));
    }
}
