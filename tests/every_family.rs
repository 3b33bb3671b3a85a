//! Every method runs on every family, and keeps its identities there.

use std::fs;
use std::path::{Path, PathBuf};

use candlewick::circuit::Graph;
use candlewick::hooks::{Letter, Node};
use candlewick::methods::exact_edges::edge_of;
use candlewick::methods::{
    AblationConfig, DlaConfig, EdgeAttributionConfig, LensConfig, Method, NodeAttributionConfig,
    Part, PatchConfig, PatchSource, Running, Subject, Watch, measure, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, Loaded, load};
use candlewick::scores::{Detail, Direction, Measured, Scores};
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

fn patch(sites: &str, direction: Direction) -> PatchConfig {
    PatchConfig {
        direction,
        ..PatchConfig::sites(sites).expect("sites of every model")
    }
}

/// A row for each pair.
fn run(loaded: &Loaded, task: &Task, method: &dyn Method) -> candlewick::Result<Scores> {
    let running = Running {
        detail: Detail::PerExample,
        ..Running::default()
    };
    let on = Subject {
        model: &loaded.model,
        task,
    };
    measure(on, method, &running, &Watch::default())
}

fn measured(name: &str, loaded: &Loaded, task: &Task, method: &dyn Method) -> Measured {
    let on = Subject {
        model: &loaded.model,
        task,
    };
    measurements(on, method, &Running::default(), &Watch::default())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
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
    let config = patch("embed:all", Direction::Denoise);
    let scores = run(loaded, task, &config).unwrap_or_else(|error| panic!("{name}: {error}"));
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
        ..patch("z,attn_out", Direction::Ablate)
    });
    let scores = run(loaded, task, &config).unwrap_or_else(|error| panic!("{name}: {error}"));
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
    let edges = measured(name, loaded, task, &EdgeAttributionConfig::eap());
    let atp = NodeAttributionConfig::atp(patch("resid_pre:all", Direction::Noise));
    let streams = measured(name, loaded, task, &atp);
    if has_scaled_bias {
        return;
    }
    for (of_edges, of_streams) in edges.examples.iter().zip(&streams.examples) {
        for (cell, value) in streams.cells.iter().zip(&of_streams.values) {
            let layer = cell.layer.expect("of a layer") as usize;
            let head = Node::Head { layer, head: 0 };
            let border = graph.row(head).expect("a row");
            let after = graph.column(head, Some(Letter::Q)).expect("a column");
            let crosses = |index: usize| {
                let edge = edge_of(&edges.cells[index]).expect("an edge");
                let (row, column) = graph.place(&edge).expect("of this model");
                row < border && column >= after
            };
            let crossing: f64 = (of_edges.cells.iter().zip(&of_edges.values))
                .filter(|(cell, _)| crosses(**cell as usize))
                .map(|(_, value)| value - of_edges.clean)
                .sum();
            near(
                name,
                &format!("border of layer {layer}"),
                crossing,
                value - of_streams.clean,
            );
        }
    }
}

/// Components and biases sum to the logit difference (which the method itself holds to), and the lens ends at the model's logits.
fn logits_are_taken_apart_whole(name: &str, loaded: &Loaded, task: &Task) {
    for by in [Part::Component, Part::Head] {
        measured(name, loaded, task, &DlaConfig::by(by));
    }
    measured(name, loaded, task, &LensConfig::default());
}

/// What takes the stream for a sum, or later positions for unseen, says so.
fn decoders_methods_refuse(name: &str, loaded: &Loaded, task: &Task) {
    let methods: [&dyn Method; 2] = [&EdgeAttributionConfig::eap(), &LensConfig::default()];
    for method in methods {
        let message = run(loaded, task, method).expect_err("refused").to_string();
        assert!(message.contains("candlewick patch"), "{name}: {message}");
    }
}
