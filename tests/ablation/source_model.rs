//! Values from another model of the same shape.

use candlewick::Result;
use candlewick::methods::{
    AblationConfig, Method, PatchConfig, PatchSource, Running, SourceModel, Watch, check, measure,
    parse_sites,
};
use candlewick::metric::Metric;
use candlewick::model::{Loaded, Model};
use candlewick::run::{BaseRun, Readout, Sources};
use candlewick::scores::{Detail, Direction};

use crate::models::task::{task, tokenizer};
use crate::{column, models, near, run_method};

fn loaded(model: &Model) -> SourceModel {
    SourceModel::from(Loaded {
        model: model.clone(),
        tokenizer: tokenizer().clone(),
    })
}

/// Another model of the same shape, with the same way from the last stream to the logits.
fn relative(model: &Model) -> Model {
    let mut other = Model::random(model.spec.clone(), 1234).expect("the spec is whole");
    other.weights.ln_final.clone_from(&model.weights.ln_final);
    other.weights.w_u = model.weights.w_u.clone();
    other.weights.b_u.clone_from(&model.weights.b_u);
    if model.spec.tied {
        other.weights.w_e = model.weights.w_e.clone();
    }
    other.weights.encoder.clone_from(&model.weights.encoder);
    other
}

fn from(source: &Model, sites: &str, of: PatchSource, direction: Direction) -> PatchConfig {
    PatchConfig {
        source: of,
        direction,
        source_model: Some(loaded(source)),
        ..PatchConfig::new(parse_sites(sites).expect("known sites"))
    }
}

#[test]
fn a_model_as_its_own_source_changes_nothing_or_patches_as_ever() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let patch = |config: &PatchConfig| {
            column(
                &run_method(&model, &task, config, Detail::PerExample),
                "score",
            )
        };
        let same = from(
            &model,
            "resid_pre,z,attn_out",
            PatchSource::Same,
            Direction::Ablate,
        );
        let none = patch(&same);
        near(&none, &vec![0.0; none.len()], family);
        for direction in [Direction::Denoise, Direction::Noise] {
            let crossed = from(&model, "resid_pre,z:pos", PatchSource::Pair, direction);
            let ordinary = PatchConfig {
                source_model: None,
                ..crossed.clone()
            };
            let expected = patch(&ordinary);
            assert!(
                expected.iter().any(|score| score.abs() > 1e-3),
                "{family}: nothing to compare"
            );
            near(&patch(&crossed), &expected, family);
        }
        for source in [
            PatchSource::Resample,
            PatchSource::Mean,
            PatchSource::MeanRole,
            PatchSource::MeanAll,
        ] {
            let crossed = from(&model, "z", source, Direction::Ablate);
            let ordinary = PatchConfig {
                source_model: None,
                ..crossed.clone()
            };
            near(&patch(&crossed), &patch(&ordinary), family);
        }
    }
}

#[test]
fn the_last_stream_of_another_model_is_its_answer() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let other = relative(&model);
        let last = model.spec.n_layers - 1;
        let metric = |prompts: Vec<Vec<u32>>| -> Vec<f64> {
            let readout = Readout {
                metric: Metric::LogitDiff,
                targets: task
                    .pairs()
                    .iter()
                    .map(|pair| pair.target.clone())
                    .collect(),
                reference: None,
            };
            let run = BaseRun::new(&other, prompts, vec![], vec![], Sources::default(), &[]);
            run.and_then(|run| run.metric(&other, &readout))
                .expect("runs")
        };
        let clean = metric(task.pairs().iter().map(|pair| pair.clean.clone()).collect());
        let corrupted = metric(
            task.pairs()
                .iter()
                .map(|pair| pair.corrupted.clone())
                .collect(),
        );
        for (source, direction, expected) in [
            (PatchSource::Same, Direction::Ablate, &clean),
            (PatchSource::Pair, Direction::Denoise, &clean),
            (PatchSource::Pair, Direction::Noise, &corrupted),
        ] {
            let mut config = from(&other, "resid_post:all", source, direction);
            config.layers = [last].into();
            let scores = run_method(&model, &task, &config, Detail::PerExample);
            near(&column(&scores, "value"), expected, family);
            assert!(
                column(&scores, "score")
                    .iter()
                    .any(|score| score.abs() > 1e-3),
                "{family}: the two models do the same"
            );
            // Before and after, it is the patched model that is the measure.
            let own = run_method(
                &model,
                &task,
                &PatchConfig::sites("resid_post:all").expect("sites"),
                Detail::PerExample,
            );
            assert_eq!(scores.provenance.baselines, own.provenance.baselines);
            let found = &scores.provenance.config["source_model_metric"];
            let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
            near(
                &[
                    found["clean"].as_f64().expect("a number"),
                    found["corrupted"].as_f64().expect("a number"),
                ],
                &[mean(&clean), mean(&corrupted)],
                family,
            );
        }
    }
}

#[test]
fn an_ablation_takes_another_models_values_too() {
    let task = task();
    let model = models::every_kind().remove(0);
    let other = relative(&model);
    let patch = from(&other, "z", PatchSource::Same, Direction::Ablate);
    let patched = run_method(&model, &task, &patch, Detail::PerExample);
    let ablated = run_method(
        &model,
        &task,
        &AblationConfig::new(patch),
        Detail::PerExample,
    );
    assert_eq!(column(&patched, "value"), column(&ablated, "value"));
}

#[test]
fn a_model_that_does_not_fit_is_refused_by_what_differs() {
    let task = task();
    let kinds = models::every_kind();
    let model = &kinds[0];
    let refusal = |change: &dyn Fn(&mut PatchConfig)| -> String {
        let mut config = from(model, "z", PatchSource::Same, Direction::Ablate);
        change(&mut config);
        let checked: Result<()> = check(&config, &model.spec, &task);
        checked.expect_err("it does not fit").to_string()
    };
    let mut narrow = model.spec.clone();
    narrow.d_mlp += 2;
    let narrow = Model::random(narrow, 1).expect("the spec is whole");
    let message = refusal(&|config| config.source_model = Some(loaded(&narrow)));
    assert!(message.contains("its d_mlp is"), "{message}");
    let parallel = kinds
        .iter()
        .find(|other| !other.spec.has_resid_mid() && other.spec.n_heads == model.spec.n_heads);
    if let Some(parallel) = parallel {
        let message = refusal(&|config| config.source_model = Some(loaded(parallel)));
        assert!(message.contains("cannot be written"), "{message}");
    }
    let message = refusal(&|config| config.source_model = None);
    assert!(message.contains("`PatchConfig::source_model`"), "{message}");
    for source in [PatchSource::Zero, PatchSource::Scale(0.5)] {
        let message = refusal(&|config| config.source = source);
        assert!(message.contains("takes no values"), "{message}");
    }
    // Tokens that are other words there.
    let opened = SourceModel::open("tests/fixtures/gpt2-tiny-random", &Default::default());
    let other_words = opened.expect("a fixture");
    let mut shaped = from(model, "z", PatchSource::Same, Direction::Ablate);
    shaped.source_model = Some(other_words);
    assert!(check(&shaped, &model.spec, &task).is_err());
    // Of one shape, with another tokenizer.
    let tokens = candlewick::model::open("tests/fixtures/gpt2-tiny-random", &Default::default());
    let tokens = tokens.expect("a fixture").tokenizer().clone();
    let message = refusal(&|config| {
        config.source_model = Some(SourceModel::from(Loaded {
            model: model.clone(),
            tokenizer: tokens.clone(),
        }));
    });
    assert!(message.contains("tokenizer is another"), "{message}");
}

#[test]
fn weights_are_read_when_they_are_needed_and_written_down() {
    let source = SourceModel::open("embedded", &Default::default()).expect("it is in the binary");
    let lab = candlewick::prelude::Lab::open("embedded", "embedded").expect("it opens");
    let lab = lab.first(2);
    let config = PatchConfig {
        source: PatchSource::Same,
        direction: Direction::Ablate,
        source_model: Some(source),
        metric: Some(Metric::Kl),
        ..PatchConfig::sites("z").expect("sites")
    };
    assert_eq!(
        config.settings()["source_model"],
        serde_json::json!({"id": "embedded"})
    );
    let scores = measure(
        lab.subject(),
        &config,
        &Running::default(),
        &Watch::default(),
    )
    .expect("measures");
    let written = &scores.provenance.config["source_model"];
    assert_eq!(
        written["weights"],
        serde_json::json!(lab.model.origin.weight_hash)
    );
    assert!(scores.provenance.notes[0].contains("the values are those of `embedded`"));
}
