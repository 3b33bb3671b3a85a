//! Path patching keeps its identities: what cannot be reached is exactly 0, everything together is the other run, and one frozen
//! edge is the exact edge.

mod models;

use candlewick::hooks::{Edge, Node, Pos, Positions};
use candlewick::methods::{
    CompositionConfig, EdgeConfig, Over, Path, PathConfig, Receiver, composition_scores,
    exact_edge_effects, path_effects, path_patching,
};
use candlewick::metric::Metric;

use candlewick::model::Model;
use candlewick::run::{Quiet, SweepOptions};
use candlewick::scores::{Detail, Scores};
use candlewick::spec::{Mlp, NormPlacement};
use candlewick::task::Task;
use models::task::task;

/// f32 sums of some thirty parts of order 1, in two orders.
const TOLERANCE: f64 = 2e-4;

fn config(senders: &[&str], receivers: &[&str], over: Over) -> PathConfig {
    let senders = senders
        .iter()
        .map(|name| name.parse().expect(name))
        .collect();
    let receivers = receivers
        .iter()
        .map(|name| name.parse().expect(name))
        .collect();
    PathConfig {
        over,
        detail: Detail::PerExample,
        ..PathConfig::new(senders, receivers, Metric::LogitDiff)
    }
}

fn patch(model: &Model, task: &Task, config: &PathConfig) -> Scores {
    path_patching(model, task, config, &Quiet).expect("patches")
}

fn column(scores: &Scores, name: &str) -> Vec<f64> {
    let values = scores.floats(name).expect("a column of numbers");
    values
        .into_iter()
        .map(|value| value.expect("no gaps"))
        .collect()
}

fn near(a: &[f64], b: &[f64], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(
            (a - b).abs() <= TOLERANCE * b.abs().max(1.0),
            "{what}, row {i}: {a} against {b}"
        );
    }
}

fn all_sources(model: &Model) -> Vec<Node> {
    let spec = &model.spec;
    let mut all = vec![Node::Input];
    for layer in 0..spec.n_layers {
        all.extend((0..spec.n_heads).map(|head| Node::Head { layer, head }));
        if spec.mlp != Mlp::None {
            all.push(Node::Mlp(layer));
        }
    }
    all
}

#[test]
fn nothing_sent_and_nothing_reached_is_exactly_nothing() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let nobody = patch(&model, &task, &config(&[], &["logits"], Over::Together));
        assert!(
            column(&nobody, "score").iter().all(|&score| score == 0.0),
            "{family}"
        );
        // A sender of the same layer or a later one.
        let late = config(
            &["a1.h0", "a1.h1"],
            &["a1.h0<q>", "a0.h1<v>", "a1.h1<k>"],
            Over::Both,
        );
        let late = patch(&model, &task, &late);
        assert!(
            column(&late, "score").iter().all(|&score| score == 0.0),
            "{family}"
        );
    }
}

#[test]
fn everything_sent_to_the_logits_is_the_corrupted_run() {
    let task = task();
    for model in models::every_kind() {
        for freeze_mlps in [false, true] {
            let everything = PathConfig {
                senders: all_sources(&model),
                freeze_mlps,
                ..config(&[], &["logits"], Over::Together)
            };
            let scores = patch(&model, &task, &everything);
            let corrupted: Vec<f64> = scores
                .provenance
                .baselines
                .iter()
                .map(|one| one.corrupted)
                .collect();
            near(&column(&scores, "value"), &corrupted, &model.spec.family);
        }
    }
}

#[test]
fn one_sender_and_one_receiver_with_everything_frozen_are_an_exact_edge() {
    let task = task();
    for model in models::every_kind() {
        // Where a norm stands on attention's output, an edge is a share of the normed sum and path patching norms anew.
        if matches!(
            model.spec.norm_placement,
            NormPlacement::Post | NormPlacement::Sandwich
        ) {
            continue;
        }
        let mut names = vec![
            "a0.h1->a1.h0<q>",
            "a0.h0->a1.h2<k>",
            "a0.h2->a1.h1<v>",
            "input->a1.h1<v>",
            "a1.h0->logits",
            "input->logits",
        ];
        if model.spec.mlp != Mlp::None {
            names.extend(["m0->a1.h0<k>", "a0.h1->m1", "m0->logits"]);
        }
        let edges: Vec<Edge> = names.iter().map(|name| name.parse().expect(name)).collect();
        let exact = exact_edge_effects(
            &model,
            task.pairs(),
            &edges,
            &EdgeConfig::new(Metric::LogitDiff),
            &Quiet,
        )
        .expect("measures");
        for (i, edge) in edges.iter().enumerate() {
            let frozen = PathConfig {
                freeze_mlps: true,
                ..config(&[&edge.src.to_string()], &[&edge.reader()], Over::Together)
            };
            let found = column(&patch(&model, &task, &frozen), "score");
            let wanted: Vec<f64> = exact.iter().map(|effects| effects[i]).collect();
            near(&found, &wanted, &format!("{}, {edge}", model.spec.family));
            // The same as a path of two nodes, or with the node between.
            if edge.reader() == "logits" {
                let path: Path = edge.to_string().parse().expect("a path");
                let options = SweepOptions::default();
                let along = path_effects(
                    &model,
                    &task,
                    &[vec![path]],
                    Metric::LogitDiff,
                    &options,
                    &Quiet,
                );
                let along: Vec<f64> = along
                    .expect("patches")
                    .iter()
                    .map(|values| values[0])
                    .collect();
                near(
                    &along,
                    &column(&patch(&model, &task, &frozen), "value"),
                    &edge.to_string(),
                );
            }
        }
    }
}

#[test]
fn rows_of_senders_are_rows_of_both() {
    let task = task();
    for model in models::two_kinds() {
        let names = ["a0.h0", "a0.h1", "m0"];
        let senders = column(
            &patch(&model, &task, &config(&names, &["a2.h1<q>"], Over::Senders)),
            "value",
        );
        let both = column(
            &patch(&model, &task, &config(&names, &["a2.h1<q>"], Over::Both)),
            "value",
        );
        assert_eq!(senders, both, "{}", model.spec.family);
        let receivers = column(
            &patch(
                &model,
                &task,
                &config(&["a0.h1"], &["a2.h1<q>"], Over::Receivers),
            ),
            "value",
        );
        near(
            &receivers,
            &[senders[1], senders[4], senders[7]],
            &model.spec.family,
        );
    }
}

#[test]
fn where_senders_and_receivers_are_patched_matters_as_it_should() {
    let task = task();
    let at = |pos: usize| Positions::These(vec![Pos::Index(pos)]);
    for model in models::every_kind() {
        let everywhere = config(&["a0.h0"], &["a1.h1<q>"], Over::Together);
        // Before the first difference nothing is sent; a query before the last position of the last layer is not read.
        let early = PathConfig {
            at_senders: at(1),
            ..everywhere.clone()
        };
        let scores = patch(&model, &task, &early);
        assert!(column(&scores, "score").iter().all(|&score| score == 0.0));
        let mut last = everywhere.clone();
        let layer = model.spec.n_layers - 1;
        last.receivers = vec![format!("a{layer}.h1<q>").parse().expect("a receiver")];
        let whole = column(&patch(&model, &task, &last), "value");
        last.at_receivers = Positions::These(vec![Pos::FromEnd(1)]);
        near(
            &column(&patch(&model, &task, &last), "value"),
            &whole,
            &model.spec.family,
        );
        last.at_receivers = at(5);
        let scores = patch(&model, &task, &last);
        near(
            &column(&scores, "score"),
            &vec![0.0; task.pairs().len()],
            &model.spec.family,
        );
    }
}

#[test]
fn all_paths_of_a_layer_together_are_the_corrupted_run() {
    let task = task();
    for kind in models::every_kind() {
        if kind.spec.norm_placement == NormPlacement::Sandwich
            || kind.spec.norm_placement == NormPlacement::Post
        {
            continue;
        }
        let mut spec = kind.spec.clone();
        spec.n_layers = 1;
        spec.attn_scale.truncate(1);
        spec.windows.truncate(1);
        if let candlewick::spec::Position::Rotary(rotary) = &mut spec.position {
            rotary.base_of_layer.truncate(1);
        }
        let model = Model::random(spec, 7).expect("a spec that the engine knows");
        let mut names = vec!["input->logits".to_string()];
        let sequential = model.spec.block == candlewick::spec::Block::Sequential;
        let has_mlp = model.spec.mlp != Mlp::None;
        if has_mlp {
            names.push("input->m0->logits".into());
        }
        for head in 0..model.spec.n_heads {
            for letter in ["q", "k", "v"] {
                names.push(format!("input->a0.h{head}<{letter}>->logits"));
                if has_mlp && sequential {
                    names.push(format!("input->a0.h{head}<{letter}>->m0->logits"));
                }
            }
        }
        let all: Vec<Path> = names.iter().map(|name| name.parse().expect(name)).collect();
        let options = SweepOptions::default();
        let sets = [all, Vec::new()];
        let found = path_effects(&model, &task, &sets, Metric::LogitDiff, &options, &Quiet)
            .expect("patches");
        let nobody = patch(&model, &task, &config(&[], &["logits"], Over::Together));
        let ends = nobody.provenance.baselines;
        for (values, ends) in found.iter().zip(&ends) {
            near(&values[..1], &[ends.corrupted], &model.spec.family);
            assert_eq!(values[1], ends.clean, "no path, no change");
        }
    }
}

#[test]
fn a_path_that_does_not_exist_is_refused() {
    let model = models::every_kind().remove(0);
    let check = |text: &str| {
        text.parse::<Path>()
            .and_then(|path| path.check(&model.spec))
    };
    assert!(check("input->a0.h1<v>->a1.h0<k>->logits").is_ok());
    for (text, says) in [
        ("a1.h0->a0.h1<v>->logits", "computed after"),
        ("input->a0.h9<v>->logits", "a0.h9"),
        ("input->a0.h1<v>", "ends in the middle"),
    ] {
        let message = check(text).expect_err(text).to_string();
        assert!(message.contains(says), "{text}: {message}");
    }
    let receiver: Receiver = "a9.h0<q>".parse().expect("a name");
    let mut config = config(&["a0.h0"], &["logits"], Over::Senders);
    config.receivers.push(receiver);
    assert!(config.check(&model.spec, &task()).is_err());
}

#[test]
fn composition_is_scored_for_every_pair_of_heads_in_order() {
    for model in models::every_kind() {
        let spec = &model.spec;
        let scores = composition_scores(&model, &CompositionConfig::default()).expect("scores");
        let pairs = spec.n_layers * (spec.n_layers - 1) / 2 * spec.n_heads * spec.n_heads;
        assert_eq!(scores.table.height(), 3 * pairs, "{}", spec.family);
        // Random weights compose like random weights: about as much as the baseline that was taken off.
        let values = column(&scores, "score");
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.1, "{}: {mean}", spec.family);
        assert!(
            values.iter().all(|value| (-1.0..1.0).contains(value)),
            "{}",
            spec.family
        );
    }
}
