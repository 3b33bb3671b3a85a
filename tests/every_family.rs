//! Every method runs on every family, and keeps its identities there.

use std::fs;
use std::path::{Path, PathBuf};

use candlewick::circuit::Graph;
use candlewick::hooks::{Letter, Node};
use candlewick::methods::ablation::{AblationConfig, ablation};
use candlewick::methods::attribution::{
    EdgeAttributionConfig, NodeAttributionConfig, edge_scores, node_scores,
};
use candlewick::methods::{
    DlaConfig, LensConfig, Part, PatchConfig, PatchSource, activation_patching,
    direct_logit_attribution, logit_lens, parse_sites,
};
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, Loaded, load};
use candlewick::run::Quiet;
use candlewick::scores::{Detail, Direction, Scores};
use candlewick::task::{Pair, Task};

/// Sums in f32, relative to effects of about one logit.
const TOLERANCE: f64 = 2e-4;

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the fixtures are there")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.join("config.json").is_file())
        .collect();
    found.sort();
    assert!(found.len() > 20, "{found:?}");
    found
}

/// Two pairs of nine tokens that differ at the third and the sixth.
fn task(loaded: &Loaded) -> Task {
    let vocab = (loaded.model.spec.d_vocab as u32).min(90);
    let prompt = |seed: u32| -> Vec<u32> {
        (0..9)
            .map(|pos| 5 + (seed * 31 + pos * 17) % (vocab - 5))
            .collect()
    };
    let pair = |i: u32| {
        let clean = prompt(i);
        let mut corrupted = clean.clone();
        for pos in [2, 5] {
            corrupted[pos] = 5 + (corrupted[pos] + 23) % (vocab - 5);
        }
        Pair::new(clean, corrupted).answer(7 + i).wrong(20 + i)
    };
    let pairs = (0..2).map(pair);
    Task::new("random", &loaded.tokenizer, Metric::LogitDiff, pairs).expect("two pairs")
}

fn patch(loaded: &Loaded, sites: &str, direction: Direction) -> PatchConfig {
    PatchConfig {
        direction,
        detail: Detail::PerExample,
        ..PatchConfig::new(
            parse_sites(sites, &loaded.model.spec).expect("sites of every model"),
            Metric::LogitDiff,
        )
    }
}

fn column(scores: &Scores, name: &str) -> Vec<f64> {
    let column = scores.floats(name).expect("a column of numbers");
    column.into_iter().map(|x| x.expect("no gaps")).collect()
}

#[track_caller]
fn near(name: &str, what: &str, a: f64, b: f64) {
    let size = a.abs().max(b.abs()).max(1.0);
    assert!(
        (a - b).abs() <= TOLERANCE * size,
        "{name}, {what}: {a} against {b}"
    );
}

#[test]
fn every_method_keeps_its_identities_on_every_family() {
    for folder in fixtures() {
        let name = folder
            .file_name()
            .expect("a name")
            .to_string_lossy()
            .into_owned();
        let loaded = load(folder.to_str().expect("UTF-8"), &LoadOptions::default())
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let task = task(&loaded);
        patching_restores_the_clean_run(&name, &loaded, &task);
        scaling_by_one_changes_nothing(&name, &loaded, &task);
        let is_decoder = loaded.model.spec.encoder.is_none();
        if is_decoder {
            attribution_crosses_every_border_whole(&name, &loaded, &task);
            logits_are_taken_apart_whole(&name, &loaded, &task);
        } else {
            decoders_methods_refuse(&name, &loaded, &task);
        }
    }
}

fn patching_restores_the_clean_run(name: &str, loaded: &Loaded, task: &Task) {
    let model = &loaded.model;
    let config = patch(loaded, "embed:all", Direction::Denoise);
    let scores = activation_patching(model, task, &config, None, &Quiet)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    for (value, base) in column(&scores, "value")
        .into_iter()
        .zip(&scores.provenance.baselines)
    {
        near(name, "clean embeddings", value, base.clean);
    }
}

fn scaling_by_one_changes_nothing(name: &str, loaded: &Loaded, task: &Task) {
    let config = AblationConfig::new(PatchConfig {
        source: PatchSource::Scale(1.0),
        ..patch(loaded, "z,attn_out", Direction::Ablate)
    });
    let scores = ablation(&loaded.model, task, &config, None, &Quiet)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
    for score in column(&scores, "score") {
        assert_eq!(score, 0.0, "{name}: heads scaled by one");
    }
}

/// The edges that cross a layer's border sum to the estimate at the whole stream there.
fn attribution_crosses_every_border_whole(name: &str, loaded: &Loaded, task: &Task) {
    let model = &loaded.model;
    let has_scaled_bias =
        (model.weights.blocks.iter()).any(|block| block.ln1_post.is_some() && block.b_o.is_some());
    let graph = Graph::new(&model.spec);
    let eap = EdgeAttributionConfig::eap(Metric::LogitDiff);
    let edges =
        edge_scores(model, task, &eap, &Quiet).unwrap_or_else(|error| panic!("{name}: {error}"));
    let atp = NodeAttributionConfig::atp(patch(loaded, "resid_pre:all", Direction::Noise));
    let (cells, streams) = node_scores(model, task, &atp, &Quiet).expect("it attributes");
    if has_scaled_bias {
        return;
    }
    for (edges, streams) in edges.examples.iter().zip(&streams) {
        for (cell, value) in cells.iter().zip(&streams.values) {
            let layer = cell.layer.expect("of a layer") as usize;
            let head = Node::Head { layer, head: 0 };
            let border = graph.row(head).expect("a row");
            let after = graph.column(head, Some(Letter::Q)).expect("a column");
            let crossing: f64 = (0..border)
                .flat_map(|row| (after..graph.n_dst()).map(move |column| (row, column)))
                .map(|(row, column)| f64::from(edges.scores[row * graph.n_dst() + column]))
                .sum();
            near(
                name,
                &format!("border of layer {layer}"),
                crossing,
                value - streams.clean,
            );
        }
    }
}

/// Components and biases sum to the logit difference (which the method itself holds to), and the lens ends at the model's logits.
fn logits_are_taken_apart_whole(name: &str, loaded: &Loaded, task: &Task) {
    let model = &loaded.model;
    for by in [Part::Component, Part::Head] {
        let config = DlaConfig {
            by,
            detail: Detail::PerExample,
            ..DlaConfig::default()
        };
        direct_logit_attribution(model, task, &config, &Quiet)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    logit_lens(model, task, &LensConfig::new(Metric::LogitDiff), &Quiet)
        .unwrap_or_else(|error| panic!("{name}: {error}"));
}

/// What takes the stream for a sum, or later positions for unseen, says so.
fn decoders_methods_refuse(name: &str, loaded: &Loaded, task: &Task) {
    let model = &loaded.model;
    let eap = EdgeAttributionConfig::eap(Metric::LogitDiff);
    let refusals = [
        edge_scores(model, task, &eap, &Quiet).map(drop),
        direct_logit_attribution(model, task, &DlaConfig::default(), &Quiet).map(drop),
        logit_lens(model, task, &LensConfig::new(Metric::LogitDiff), &Quiet).map(drop),
    ];
    for refusal in refusals {
        let message = refusal.expect_err("refused").to_string();
        assert!(message.contains("candlewick patch"), "{name}: {message}");
    }
}
