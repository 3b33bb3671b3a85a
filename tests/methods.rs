//! Methods keep their promises through the public API, on the embedded model and, where it is found, on a real one.

use candlewick::Error;
use candlewick::methods::{
    GaussianNoise, Layers, PatchConfig, PatchSource, Running, Subject, Watch, measure, parse_sites,
};
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, Loaded, load};
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

fn patch_as(
    loaded: &Loaded,
    task: &Task,
    sites: &str,
    running: &Running,
    change: impl FnOnce(&mut PatchConfig),
) -> Result<Scores, Error> {
    let mut config = PatchConfig::new(parse_sites(sites).expect("known sites"));
    change(&mut config);
    let on = Subject {
        model: &loaded.model,
        task,
    };
    measure(on, &config, running, &Watch::default())
}

fn patch(
    loaded: &Loaded,
    task: &Task,
    sites: &str,
    change: impl FnOnce(&mut PatchConfig),
) -> Scores {
    let running = Running {
        detail: Detail::PerExample,
        ..Running::default()
    };
    patch_as(loaded, task, sites, &running, change).expect("patches")
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
            Layers::from([1])
        } else {
            Layers::default()
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
    let running = Running {
        batch: 2,
        memory: Some(1_000_000),
        detail: Detail::PerExample,
        ..Running::default()
    };
    let tight = patch_as(&loaded, &task, "resid_pre,z,mlp.post", &running, |_| {});
    near(
        &select(&whole, None, None, "value"),
        &select(&tight.expect("patches"), None, None, "value"),
    );
}

/// What an ablation puts in place is known: at the first layer, where the stream is the embedding, the run with all of it replaced
/// is the run on the other prompt, and its mean over equal prompts is the value itself.
#[test]
fn ablations_take_their_values_where_they_say() {
    let (loaded, task) = embedded(6);
    let ablate = |task: &Task, sites: &str, source| {
        patch(&loaded, task, sites, move |config| {
            config.source = source;
            config.direction = Direction::Ablate;
        })
    };
    // The mean over one corrupted prompt is that prompt's value: the ablation is the patch.
    for pair in 0..3 {
        let one = task
            .with_pairs([task.pairs()[pair].clone()])
            .expect("a pair");
        let mean = ablate(&one, "z,mlp_out:all,resid_pre:all", PatchSource::Mean);
        let noise = patch(&loaded, &one, "z,mlp_out:all,resid_pre:all", |config| {
            config.direction = Direction::Noise;
        });
        near(
            &select(&mean, None, None, "value"),
            &select(&noise, None, None, "value"),
        );
    }
    // Another pair's value: with all of the first stream replaced, the run is the other clean prompt's.
    let resample = ablate(&task, "resid_pre:all", PatchSource::Resample);
    let (clean, _) = baselines(&resample);
    let of_others = select(&resample, Some(0), None, "value");
    let is_of = |value: f64, targets: &Task| {
        targets
            .pairs()
            .iter()
            .zip(&clean)
            .any(|(_, clean)| (value - clean).abs() < 50.0)
    };
    assert!(of_others.iter().all(|&value| is_of(value, &task)));
    // Zero at every head of a layer is zero at the layer's output where there is no bias.
    let zero = ablate(&task, "attn_out:all", PatchSource::Zero);
    assert!(
        select(&zero, Some(0), None, "score")
            .iter()
            .any(|score| score.abs() > 0.01)
    );
    assert!(
        zero.floats("normalised").is_none(),
        "an ablation has no other end to normalise by"
    );
    // One vector for all positions: at a prompt of one position that is the mean by position.
    let by_role = ablate(&task, "z", PatchSource::MeanRole);
    let by_position = ablate(&task, "z", PatchSource::Mean);
    // In one template every position without a role is another word, but those of roles are the same positions.
    assert_eq!(by_role.table.height(), by_position.table.height());
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
            config.metric = Some(metric)
        });
        let (clean, _) = baselines(&scores);
        near(&select(&scores, Some(0), None, "value"), &clean);
    }
}

#[test]
fn more_than_one_head_and_layer_of_the_embedded_model_matter() {
    let (loaded, task) = embedded(32);
    let scores = patch_as(&loaded, &task, "z", &Running::default(), |_| {}).expect("patches");
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
        config.layers = [0, 29].into()
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
