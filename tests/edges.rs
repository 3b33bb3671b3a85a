//! An edge patched by the fast way has the effect that a whole forward pass with one edit has, on models of every kind; and
//! edges keep their identities.

mod models;

use candle_core::{DType, Tensor};
use candlewick::Error;
use candlewick::circuit::Graph;
use candlewick::hooks::{Edge, Edit, Hook, Kind, Node, Op, Site};
use candlewick::methods::{
    EdgeConfig, Reference, exact_edge_effects, exact_edge_effects_plain, exact_edges,
    exact_edges_together,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::model::load::{LoadOptions, load};
use candlewick::run::{Quiet, Request, Source, Sources, SweepOptions, run, run_with_cache};
use candlewick::scores::{Detail, Provenance, Scores, ScoresMeta};
use candlewick::task::{ExpandOptions, Pair, TaskFile, expand};
use models::task::pairs;
use models::{Pairs, every_kind, two_kinds};

/// Products of other shapes add in another order; f32 keeps about seven digits.
const TOLERANCE: f64 = 1e-5;

fn all_edges(model: &Model) -> Vec<Edge> {
    Graph::new(&model.spec).edges().collect()
}

fn config(reference: Reference) -> EdgeConfig {
    EdgeConfig {
        reference,
        ..EdgeConfig::new(Metric::LogitDiff)
    }
}

fn fast(model: &Model, pairs: &[Pair], edges: &[Edge], config: &EdgeConfig) -> Vec<Vec<f64>> {
    exact_edge_effects(model, pairs, edges, config, &Quiet).expect("it patches")
}

fn together(model: &Model, sets: &[Vec<Edge>], config: &EdgeConfig) -> Vec<Vec<f64>> {
    exact_edges_together(model, &pairs(), sets, config, &Quiet).expect("it patches")
}

/// The logit difference of each pair.
fn metric(model: &Model, prompts: &[Vec<u32>], request: &Request<'_>) -> Vec<f64> {
    let logits: Vec<Vec<f32>> = run(model, prompts, request)
        .expect("it runs")
        .logits
        .expect("asked for")
        .to_vec2()
        .expect("logits");
    let targets = Pairs::new().targets;
    let value = |(logits, target): (&Vec<f32>, &candlewick::metric::Target)| {
        let mean = |ids: &[u32]| {
            let sum: f64 = ids.iter().map(|&id| f64::from(logits[id as usize])).sum();
            sum / ids.len() as f64
        };
        mean(&target.answers) - mean(&target.wrong)
    };
    logits.iter().zip(&targets).map(value).collect()
}

/// Models in which nothing but sources differs between two runs: under a norm on attention's output its bias is scaled by the
/// run, and it is in no source.
fn every_kind_of_sources_alone() -> Vec<Model> {
    let mut models = every_kind();
    for block in models
        .iter_mut()
        .flat_map(|model| &mut model.weights.blocks)
    {
        if block.ln1_post.is_some() {
            block.b_o = None;
        }
    }
    models
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], what: impl Fn(usize) -> String) {
    assert_eq!(found.len(), expected.len());
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let gap = (a - b).abs();
        assert!(gap <= TOLERANCE, "{}: {a} against {b}", what(i));
    }
}

#[test]
fn an_edge_has_the_effect_that_one_edit_in_a_whole_forward_has() {
    for model in every_kind() {
        let (name, pairs, all) = (&model.spec.family, pairs(), all_edges(&model));
        for reference in [Reference::Pair, Reference::Zero, Reference::Mean] {
            // Every edge once; the other references are other differences on the same way.
            let step = if reference == Reference::Pair { 1 } else { 7 };
            let edges: Vec<Edge> = all.iter().copied().step_by(step).collect();
            let config = config(reference);
            let slow = exact_edge_effects_plain(&model, &pairs, &edges, &config).expect("runs");
            let fast = fast(&model, &pairs, &edges, &config);
            for (slow, fast) in slow.iter().zip(&fast) {
                near(fast, slow, |i| {
                    format!("{name}, {reference:?}, {}", edges[i])
                });
            }
            let largest = slow
                .iter()
                .flatten()
                .fold(0f64, |most, x| most.max(x.abs()));
            assert!(largest > 1e-3, "{name}: nothing happened, {largest}");
        }
    }
}

#[test]
fn equal_prompts_have_no_effect_at_all() {
    for model in two_kinds() {
        let mut pairs = pairs();
        for pair in &mut pairs {
            pair.corrupted = pair.clean.clone();
        }
        let effects = fast(&model, &pairs, &all_edges(&model), &config(Reference::Pair));
        assert!(effects.iter().flatten().all(|&effect| effect == 0.0));
    }
}

#[test]
fn every_edge_across_a_cut_is_the_stream_at_the_cut() {
    for model in every_kind_of_sources_alone() {
        let (name, prompts) = (&model.spec.family, Pairs::new());
        let graph = Graph::new(&model.spec);
        let streams: Vec<Hook> = (0..model.spec.n_layers)
            .map(|layer| Hook::at(Kind::ResidPre, layer))
            .collect();
        let (_, cache) = run_with_cache(&model, &prompts.corrupted, &streams).expect("it runs");
        let sources = Sources::default().with("corrupted", Source::run(cache).expect("a source"));
        let clean = metric(&model, &prompts.clean, &Request::default());
        let is_before =
            |node: Node, layer| node == Node::Input || node.layer().is_some_and(|of| of < layer);
        let crossing = |layer: usize| -> Vec<Edge> {
            let crosses = |edge: &Edge| is_before(edge.src, layer) && !is_before(edge.dst, layer);
            graph.edges().filter(crosses).collect()
        };
        let sets: Vec<Vec<Edge>> = (0..model.spec.n_layers).map(crossing).collect();
        let effects = together(&model, &sets, &config(Reference::Pair));
        for (layer, &stream) in streams.iter().enumerate() {
            let edits = [Edit::new(
                Site::all(stream),
                Op::FromRun("corrupted".into()),
            )];
            let request = Request {
                edits: &edits,
                sources: sources.clone(),
                ..Request::default()
            };
            let patched = metric(&model, &prompts.clean, &request);
            let expected: Vec<f64> = patched.iter().zip(&clean).map(|(a, b)| a - b).collect();
            let found: Vec<f64> = effects.iter().map(|sets| sets[layer]).collect();
            near(&found, &expected, |_| format!("{name}, layer {layer}"));
        }
    }
}

#[test]
fn all_that_the_logits_read_is_the_corrupted_answer() {
    for model in every_kind_of_sources_alone() {
        let (name, prompts) = (&model.spec.family, Pairs::new());
        let to_logits: Vec<Edge> = all_edges(&model)
            .into_iter()
            .filter(|edge| edge.dst == Node::Logits)
            .collect();
        let pair = config(Reference::Pair);
        let joint = together(&model, std::slice::from_ref(&to_logits), &pair);
        let [clean, corrupted] = [&prompts.clean, &prompts.corrupted]
            .map(|prompts| metric(&model, prompts, &Request::default()));
        let expected: Vec<f64> = corrupted.iter().zip(&clean).map(|(a, b)| a - b).collect();
        let joint: Vec<f64> = joint.iter().map(|sets| sets[0]).collect();
        near(&joint, &expected, |_| name.clone());
        // Without a final norm the logits are linear in the stream, so the edges' own effects sum to the same.
        if name == "attention-only" {
            let single = fast(&model, &pairs(), &to_logits, &pair);
            let sums: Vec<f64> = single.iter().map(|effects| effects.iter().sum()).collect();
            near(&sums, &expected, |_| name.clone());
        }
    }
}

#[test]
fn silencing_what_writes_nothing_does_nothing() {
    for mut model in every_kind() {
        let (heads, d_head) = (model.spec.n_heads, model.spec.d_head);
        let w_o = &mut model.weights.blocks[0].w_o;
        let silent = Tensor::zeros(
            (d_head, w_o.dim(1).expect("rank 2")),
            w_o.dtype(),
            w_o.device(),
        );
        let rest = w_o
            .narrow(0, d_head, (heads - 1) * d_head)
            .expect("other heads");
        *w_o = Tensor::cat(&[&silent.expect("zeros"), &rest], 0).expect("shape");
        let head = Node::Head { layer: 0, head: 0 };
        let from_it: Vec<Edge> = all_edges(&model)
            .into_iter()
            .filter(|edge| edge.src == head)
            .collect();
        let effects = fast(&model, &pairs(), &from_it, &config(Reference::Zero));
        assert!(effects.iter().flatten().all(|&effect| effect == 0.0));
    }
}

#[test]
fn effects_do_not_depend_on_batches_memory_or_company() {
    for model in two_kinds() {
        let (pairs, edges) = (pairs(), all_edges(&model));
        for reference in [Reference::Pair, Reference::Mean] {
            let whole = fast(&model, &pairs, &edges, &config(reference));
            let small = EdgeConfig {
                batch: 2,
                sweep: SweepOptions {
                    memory: 200_000,
                    max_rows: 16,
                },
                ..config(reference)
            };
            let pieces = fast(&model, &pairs, &edges, &small);
            // A few edges in any order, one of them twice.
            let few: Vec<usize> = vec![edges.len() - 1, 5, 40, 5, edges.len() / 2];
            let chosen: Vec<Edge> = few.iter().map(|&i| edges[i]).collect();
            let alone = fast(&model, &pairs, &chosen, &config(reference));
            for (example, whole) in whole.iter().enumerate() {
                near(&pieces[example], whole, |i| edges[i].to_string());
                let expected: Vec<f64> = few.iter().map(|&i| whole[i]).collect();
                near(&alone[example], &expected, |i| chosen[i].to_string());
            }
        }
    }
}

#[test]
fn other_metrics_are_measured_like_any_patch() {
    let model = two_kinds().remove(0);
    let edges: Vec<Edge> = all_edges(&model).into_iter().step_by(11).collect();
    for metric in [Metric::Kl, Metric::LogProb] {
        let config = EdgeConfig::new(metric);
        let slow = exact_edge_effects_plain(&model, &pairs(), &edges, &config).expect("runs");
        for (slow, fast) in slow.iter().zip(fast(&model, &pairs(), &edges, &config)) {
            near(&fast, slow, |i| format!("{metric}, {}", edges[i]));
        }
    }
}

#[test]
fn what_cannot_be_patched_is_refused_before_anything_runs() {
    let model = two_kinds().remove(0);
    let refused = |text: &str, pairs: &[Pair]| {
        let edge: Edge = text.parse().expect(text);
        let config = config(Reference::Pair);
        exact_edge_effects(&model, pairs, &[edge], &config, &Quiet).expect_err(text)
    };
    let message = refused("a2.h0->a1.h0<q>", &pairs()).to_string();
    assert!(
        message.contains("`a2.h0` is computed after `a1.h0` reads"),
        "{message}"
    );
    assert!(matches!(
        refused("m7->logits", &pairs()),
        Error::UnknownNode { .. }
    ));
    assert!(matches!(
        refused("m1->a1.h0<v>", &pairs()),
        Error::NoSuchEdge { .. }
    ));
    let mut uneven = pairs();
    uneven[1].corrupted.push(1);
    assert!(matches!(
        refused("input->logits", &uneven),
        Error::LengthMismatch { index: 1, .. }
    ));
}

#[test]
fn the_embedded_model_gives_a_table_of_edges() {
    let loaded = load("embedded", &LoadOptions::default()).expect("the embedded model loads");
    let options = ExpandOptions {
        n_pairs: Some(2),
        ..ExpandOptions::default()
    };
    let file = TaskFile::open("embedded").expect("its task ships");
    let task = expand(&file, &loaded.tokenizer, &options).expect("it expands");
    let edges: Vec<Edge> = all_edges(&loaded.model).into_iter().step_by(9).collect();
    let config = EdgeConfig::new(task.metric);
    let measured = exact_edges(&loaded.model, &task, &edges, &config, &Quiet).expect("it patches");
    let meta = ScoresMeta {
        method: "exact_edges".into(),
        metric: task.metric.to_string(),
        unit: task.metric.unit().into(),
        direction: config.reference.direction(),
        seed: 0,
    };
    let scores = Scores::assemble(
        &measured.cells,
        &measured.examples,
        &meta,
        Detail::PerExample,
        Provenance::default(),
    )
    .expect("a table");
    assert_eq!(scores.table.height(), 2 * edges.len());
    let (src, dst) = (
        scores.texts("src").expect("src"),
        scores.texts("dst").expect("dst"),
    );
    let slow =
        exact_edge_effects_plain(&loaded.model, task.pairs(), &edges, &config).expect("runs");
    let found = scores.floats("score").expect("scores");
    for (row, score) in found.iter().enumerate() {
        let (example, edge) = (row / edges.len(), row % edges.len());
        let name = format!(
            "{}->{}",
            src[row].expect("a source"),
            dst[row].expect("a reader")
        );
        assert_eq!(name, edges[edge].to_string());
        let gap = (score.expect("a score") - slow[example][edge]).abs();
        // Its logits are about ten times those of the random models.
        assert!(gap < 10.0 * TOLERANCE, "{name}: {gap}");
    }
}

#[test]
fn a_bf16_model_has_the_edges_of_its_f32_form_as_far_as_bf16_goes() {
    let file = TaskFile::open("embedded").expect("its task ships");
    let mut effects = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let options = LoadOptions {
            dtype,
            ..LoadOptions::default()
        };
        let loaded = load("embedded", &options).expect("the embedded model loads");
        let options = ExpandOptions {
            n_pairs: Some(1),
            ..ExpandOptions::default()
        };
        let task = expand(&file, &loaded.tokenizer, &options).expect("it expands");
        let edges: Vec<Edge> = all_edges(&loaded.model).into_iter().step_by(5).collect();
        let config = EdgeConfig::new(task.metric);
        effects.push(fast(&loaded.model, task.pairs(), &edges, &config).remove(0));
    }
    let largest = effects[0].iter().fold(0f64, |most, x| most.max(x.abs()));
    for (wide, narrow) in effects[0].iter().zip(&effects[1]) {
        // Eight bits of mantissa in every activation.
        assert!(
            (wide - narrow).abs() < 0.1 * largest,
            "{wide} {narrow} {largest}"
        );
    }
}
