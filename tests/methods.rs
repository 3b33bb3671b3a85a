//! Methods keep their promises through the public API, on the embedded model and, where it is found, on a real one.

use candlewick::methods::{
    GaussianNoise, PatchConfig, PatchSource, activation_patching, parse_sites,
};
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, Loaded, load};
use candlewick::run::{Quiet, SweepOptions};
use candlewick::scores::{Detail, Direction, Scores};
use candlewick::task::{ExpandOptions, Task, TaskFile, expand};

/// f32 logits move by about 5e-6 between orders of summation, relative to logits of about 10.
const TOLERANCE: f64 = 2e-4;

fn embedded(n_pairs: usize) -> (Loaded, Task) {
    let loaded = load("embedded", &LoadOptions::default()).expect("the embedded model loads");
    let options = ExpandOptions {
        n_pairs: Some(n_pairs),
        templates: vec![0],
        ..ExpandOptions::default()
    };
    let file = TaskFile::open("embedded").expect("its task ships");
    let task = expand(&file, &loaded.tokenizer, &options).expect("it expands");
    (loaded, task)
}

fn patch(
    loaded: &Loaded,
    task: &Task,
    sites: &str,
    change: impl FnOnce(&mut PatchConfig),
) -> Scores {
    let sites = parse_sites(sites, &loaded.model.spec).expect("known sites");
    let mut config = PatchConfig {
        detail: Detail::PerExample,
        ..PatchConfig::new(sites, task.metric)
    };
    change(&mut config);
    activation_patching(&loaded.model, task, &config, None, &Quiet).expect("patches")
}

/// The rows of a table that stand at these coordinates; `None` takes all.
fn select(scores: &Scores, layer: Option<i64>, pos: Option<i64>, column: &str) -> Vec<f64> {
    let column = scores.floats(column).expect("a column of numbers");
    let at = |name: &str, wanted: Option<i64>, row: usize| {
        wanted.is_none_or(|wanted| {
            scores.integers(name).expect("a column of indices")[row] == Some(wanted)
        })
    };
    (0..column.len())
        .filter(|&row| at("layer", layer, row) && at("pos", pos, row))
        .map(|row| column[row].expect("no gaps"))
        .collect()
}

fn near(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len());
    for (a, b) in a.iter().zip(b) {
        assert!((a - b).abs() <= TOLERANCE, "{a} against {b}");
    }
}

fn baselines(scores: &Scores) -> (Vec<f64>, Vec<f64>) {
    scores
        .provenance
        .baselines
        .iter()
        .map(|one| (one.clean, one.corrupted))
        .unzip()
}

#[test]
fn the_first_stream_whole_restores_everything_and_breaks_everything() {
    let (loaded, task) = embedded(6);
    let denoise = patch(&loaded, &task, "resid_pre:all", |_| {});
    let (clean, corrupted) = baselines(&denoise);
    near(&select(&denoise, Some(0), None, "value"), &clean);
    let noise = patch(&loaded, &task, "resid_pre:all", |config| {
        config.direction = Direction::Noise
    });
    near(&select(&noise, Some(0), None, "value"), &corrupted);
}

#[test]
fn positions_before_the_first_difference_have_no_effect_at_all() {
    let (loaded, task) = embedded(2);
    let pair = &task.pairs()[0];
    let first = (0..pair.clean.len())
        .find(|&pos| pair.clean[pos] != pair.corrupted[pos])
        .expect("they differ");
    for sites in [
        "resid_pre",
        "attn_out",
        "mlp_out",
        "z:pos",
        "q:pos",
        "k:pos",
        "v:pos",
        "mlp.post:pos",
    ] {
        // Every neuron at every position is many variants: one layer tells.
        let layers = if sites.starts_with("mlp.post") {
            vec![1]
        } else {
            vec![]
        };
        let scores = patch(&loaded, &task, sites, |config| config.layers = layers);
        for pos in 0..first {
            assert!(
                select(&scores, None, Some(pos as i64), "score")
                    .iter()
                    .all(|&score| score == 0.0),
                "{sites} {pos}"
            );
        }
    }
}

#[test]
fn the_role_of_one_token_is_its_position() {
    let (loaded, task) = embedded(4);
    let s2 = task.pairs()[0].roles["S2"][0] as i64;
    let by_pos = patch(&loaded, &task, "resid_pre", |_| {});
    let by_role = patch(&loaded, &task, "resid_pre:role", |_| {});
    let roles = by_role.texts("role").expect("roles");
    let scores = by_role.floats("score").expect("scores");
    let s2_rows: Vec<f64> = (0..roles.len())
        .filter(|&row| roles[row] == Some("S2"))
        .map(|row| scores[row].expect("no gaps"))
        .collect();
    near(&s2_rows, &select(&by_pos, None, Some(s2), "score"));
}

#[test]
fn a_window_over_all_layers_is_one_number_wherever_it_is_centred() {
    let (loaded, task) = embedded(3);
    let windowed = patch(&loaded, &task, "z:all,attn_out:all", |config| {
        config.window = 2
    });
    let plain = patch(&loaded, &task, "attn_out:all", |_| {});
    // The last layer's window is clipped to that layer alone.
    let last = |scores: &Scores| {
        let components = scores
            .texts("component")
            .expect("components")
            .into_iter()
            .map(|c| c.map(str::to_owned));
        let layers = scores.integers("layer").expect("layers");
        let rows = components
            .zip(layers)
            .zip(scores.floats("score").expect("scores"));
        rows.filter(|((component, layer), _)| {
            component.as_deref() == Some("hook_attn_out") && *layer == Some(3)
        })
        .map(|(_, score)| score.expect("no gaps"))
        .collect::<Vec<_>>()
    };
    near(&last(&windowed), &last(&plain));
    assert!(
        windowed
            .warnings()
            .iter()
            .any(|warning| warning.contains("window"))
    );
}

#[test]
fn batches_and_memory_do_not_change_the_numbers() {
    let (loaded, task) = embedded(7);
    let whole = patch(&loaded, &task, "resid_pre,z,mlp.post", |_| {});
    let tight = patch(&loaded, &task, "resid_pre,z,mlp.post", |config| {
        config.batch = 2;
        config.sweep = SweepOptions {
            memory: 1_000_000,
            max_rows: 20,
        };
    });
    near(
        &select(&whole, None, None, "value"),
        &select(&tight, None, None, "value"),
    );
}

#[test]
fn ablations_take_their_values_where_they_say() {
    let (loaded, task) = embedded(6);
    let ablate = |source| {
        patch(&loaded, &task, "z,attn_out:all,attn_out", move |config| {
            config.source = source;
            config.direction = Direction::Ablate;
        })
    };
    let zero = ablate(PatchSource::Zero);
    for source in [
        PatchSource::Mean,
        PatchSource::MeanAll,
        PatchSource::Resample,
    ] {
        let other = ablate(source);
        assert_eq!(other.table.height(), zero.table.height());
        assert_ne!(
            select(&other, Some(0), None, "value"),
            select(&zero, Some(0), None, "value"),
            "{source:?}"
        );
    }
    assert!(
        zero.floats("normalised").is_none(),
        "an ablation has no other end to normalise by"
    );
}

#[test]
fn noise_is_the_same_in_every_run_and_without_scale_changes_nothing() {
    let (loaded, task) = embedded(2);
    let noisy = |scale: f64, sites: &str| {
        patch(&loaded, &task, sites, |config| {
            config.noise = Some(GaussianNoise {
                positions: vec!["@S2".into()],
                scale,
                samples: 3,
            });
        })
    };
    let (clean, corrupted) = baselines(&noisy(0.0, "z"));
    near(&clean, &corrupted);
    let scores = noisy(3.0, "resid_pre:all,embed:all");
    let (clean, corrupted) = baselines(&scores);
    assert!(
        clean
            .iter()
            .zip(&corrupted)
            .all(|(clean, corrupted)| (clean - corrupted).abs() > 0.1)
    );
    // Restoring the whole first stream takes the noise away; so does restoring the embeddings.
    let rows = scores
        .texts("component")
        .expect("components")
        .into_iter()
        .zip(scores.floats("value").expect("values"));
    let restored: Vec<f64> = rows
        .filter(|(c, _)| *c == Some("hook_embed"))
        .map(|(_, value)| value.expect("no gaps"))
        .collect();
    near(&restored, &clean);
    near(&select(&scores, Some(0), None, "value"), &clean);
    let again = noisy(3.0, "resid_pre:all,embed:all");
    assert_eq!(
        select(&scores, Some(2), None, "value"),
        select(&again, Some(2), None, "value")
    );
}

#[test]
fn every_metric_patches() {
    let (loaded, task) = embedded(3);
    for metric in [
        "logit_diff",
        "prob_diff",
        "log_prob",
        "prob",
        "kl",
        "js",
        "rank",
        "top5",
        "accuracy",
    ] {
        let metric: Metric = metric.parse().expect("a metric");
        let scores = patch(&loaded, &task, "resid_pre:all", |config| {
            config.metric = metric
        });
        let (clean, _) = baselines(&scores);
        near(&select(&scores, Some(0), None, "value"), &clean);
    }
}

#[test]
fn more_than_one_head_and_layer_of_the_embedded_model_matter() {
    let (loaded, task) = embedded(32);
    let scores = patch(&loaded, &task, "z", |config| config.detail = Detail::Mean);
    let effects = scores
        .floats("normalised")
        .expect("normalised")
        .into_iter()
        .map(|x| x.expect("no gaps"));
    let layers = scores.integers("layer").expect("layers");
    let strong: Vec<i64> = effects
        .zip(layers)
        .filter(|(x, _)| x.abs() > 0.1)
        .map(|(_, layer)| layer.expect("a layer"))
        .collect();
    assert!(strong.len() >= 3, "{strong:?}");
    assert!(strong.iter().any(|layer| *layer != strong[0]), "{strong:?}");
}

/// The GGUF of SmolLM2-135M-Instruct, where somebody has put it.
fn smollm2() -> Option<Loaded> {
    let home = std::env::var_os("HOME")
        .map(|home| std::path::PathBuf::from(home).join(".cache/candlewick-models"));
    let folder = std::env::var_os("CANDLEWICK_MODELS")
        .map(Into::into)
        .or(home)?;
    let path = folder.join("smollm2-135m-instruct.q4_1.gguf");
    if !path.exists() {
        eprintln!("skipped: {} is not there", path.display());
        return None;
    }
    Some(load(path.to_str()?, &LoadOptions::default()).expect("SmolLM2 loads"))
}

#[test]
fn smollm2_does_ioi_and_its_last_stream_at_the_answer_is_everything() {
    let Some(loaded) = smollm2() else { return };
    assert!(
        loaded.model.origin.storage.contains("dequantised"),
        "{}",
        loaded.model.origin.storage
    );
    let options = ExpandOptions {
        n_pairs: Some(2),
        templates: vec![0],
        ..ExpandOptions::default()
    };
    let task = expand(
        &TaskFile::open("ioi").expect("ships"),
        &loaded.tokenizer,
        &options,
    )
    .expect("expands");
    let scores = patch(&loaded, &task, "resid_pre:all,resid_post", |config| {
        config.layers = vec![0, 29]
    });
    let (clean, corrupted) = baselines(&scores);
    assert!(
        clean.iter().all(|&clean| clean > 1.0)
            && corrupted.iter().all(|&corrupted| corrupted < -1.0),
        "{clean:?} {corrupted:?}"
    );
    let end = task.pairs()[0].clean.len() as i64 - 1;
    let whole: Vec<f64> = select(&scores, Some(29), Some(end), "value");
    for (a, b) in whole.iter().zip(&clean) {
        assert!((a - b).abs() < 1e-3, "{a} {b}");
    }
}
