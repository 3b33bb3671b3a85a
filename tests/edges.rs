//! An edge patched by the fast way has the effect that a whole forward pass with one edit has, on models of every kind; and
//! edges keep their identities.

mod models;

use candle_core::{DType, Tensor};
use candlewick::Error;
use candlewick::circuit::Graph;
use candlewick::hooks::{Edge, Edit, Hook, Kind, Node, Op, Site};
use candlewick::methods::{
    EdgeConfig, Method, Prepared, Reference, Running, Subject, Unit, Watch,
    exact_edge_effects_plain, exact_edges_together, measure, measurements,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::model::load::LoadOptions;
use candlewick::prelude::Lab;
use candlewick::run::{Quiet, Request, Source, Sources, run, run_with_cache};
use candlewick::scores::Detail;
use candlewick::task::{ExpandOptions, Task};
use models::task::{changed, task};
use models::{Pairs, cast, every_kind, two_kinds};

/// Products of other shapes add in another order; f32 keeps about seven digits.
const TOLERANCE: f64 = 1e-5;

fn all_edges(model: &Model) -> Vec<Edge> {
    Graph::new(&model.spec).edges().collect()
}

fn config(reference: Reference) -> EdgeConfig {
    EdgeConfig {
        reference,
        ..EdgeConfig::all()
    }
}

fn of(edges: &[Edge], config: &EdgeConfig) -> EdgeConfig {
    EdgeConfig {
        edges: Some(edges.to_vec()),
        ..config.clone()
    }
}

fn effects(model: &Model, task: &Task, config: &EdgeConfig, running: &Running) -> Vec<Vec<f64>> {
    let on = Subject { model, task };
    let measured = measurements(on, config, running, &Watch::default()).expect("it patches");
    let of_pair = |example: &candlewick::scores::ExampleScores| {
        assert_eq!(example.values.len(), measured.cells.len());
        let base = example.base(config.reference.direction());
        example.values.iter().map(|value| value - base).collect()
    };
    measured.examples.iter().map(of_pair).collect()
}

fn fast(model: &Model, task: &Task, edges: &[Edge], config: &EdgeConfig) -> Vec<Vec<f64>> {
    effects(model, task, &of(edges, config), &Running::default())
}

fn plain(model: &Model, task: &Task, edges: &[Edge], config: &EdgeConfig) -> Vec<Vec<f64>> {
    exact_edge_effects_plain(Subject { model, task }, &of(edges, config)).expect("it patches")
}

fn together(model: &Model, sets: &[Vec<Edge>], config: &EdgeConfig) -> Vec<Vec<f64>> {
    let task = task();
    let on = Subject { model, task: &task };
    exact_edges_together(on, sets, config, &Running::default(), &Quiet).expect("it patches")
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
        let (name, task, all) = (&model.spec.family, task(), all_edges(&model));
        for reference in [Reference::Pair, Reference::Zero, Reference::Mean] {
            // Every edge once; the other references are other differences on the same way.
            let step = if reference == Reference::Pair { 1 } else { 7 };
            let edges: Vec<Edge> = all.iter().copied().step_by(step).collect();
            let config = config(reference);
            let slow = plain(&model, &task, &edges, &config);
            let fast = fast(&model, &task, &edges, &config);
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
        let same = changed(&task(), |pair| pair.corrupted = pair.clean.clone());
        let effects = fast(&model, &same, &all_edges(&model), &config(Reference::Pair));
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
            let single = fast(&model, &task(), &to_logits, &pair);
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
        let effects = fast(&model, &task(), &from_it, &config(Reference::Zero));
        assert!(effects.iter().flatten().all(|&effect| effect == 0.0));
    }
}

#[test]
fn effects_do_not_depend_on_batches_memory_or_company() {
    for model in two_kinds() {
        let (task, edges) = (task(), all_edges(&model));
        for reference in [Reference::Pair, Reference::Mean] {
            let whole = fast(&model, &task, &edges, &config(reference));
            let small = Running {
                batch: 2,
                memory: Some(200_000),
                ..Running::default()
            };
            let pieces = effects(&model, &task, &config(reference), &small);
            // A few edges in any order.
            let few: Vec<usize> = vec![edges.len() - 1, 5, 40, edges.len() / 2];
            let chosen: Vec<Edge> = few.iter().map(|&i| edges[i]).collect();
            let alone = fast(&model, &task, &chosen, &config(reference));
            for (example, whole) in whole.iter().enumerate() {
                near(&pieces[example], whole, |i| edges[i].to_string());
                let expected: Vec<f64> = few.iter().map(|&i| whole[i]).collect();
                near(&alone[example], &expected, |i| chosen[i].to_string());
            }
        }
    }
}

#[test]
fn a_range_of_edges_is_measured_as_it_is_among_all() {
    let task = task();
    for model in two_kinds() {
        for reference in [Reference::Pair, Reference::Mean] {
            let config = config(reference);
            let edges = all_edges(&model);
            let whole = fast(&model, &task, &edges, &config);
            let running = Running::default();
            let on = Subject {
                model: &model,
                task: &task,
            };
            let mut prepared: Box<dyn Prepared> = config.prepare(on, &running).expect("it is");
            assert!(prepared.splits());
            assert_eq!(prepared.cells().len(), edges.len());
            prepared.begin(&Quiet).expect("it begins");
            // Ranges that end inside of a source's edges.
            let third = edges.len() / 3;
            for cells in [0..7, 7..third, third..third + 1, third + 1..edges.len()] {
                let unit = Unit {
                    items: vec![2, 0],
                    cells: cells.clone(),
                };
                let found = prepared.measure(&unit, &Quiet).expect("measures");
                assert_eq!(found.len(), 2);
                for (example, item) in found.iter().zip([2usize, 0]) {
                    assert_eq!(example.example, task.pairs()[item].index);
                    let indices: Vec<u32> = (cells.start as u32..cells.end as u32).collect();
                    assert_eq!(&example.cells[..], &indices[..]);
                    let base = example.base(reference.direction());
                    let scores: Vec<f64> = example.values.iter().map(|x| x - base).collect();
                    near(&scores, &whole[item][cells.clone()], |i| {
                        edges[cells.start + i].to_string()
                    });
                }
            }
        }
    }
}

#[test]
fn other_metrics_are_measured_like_any_patch() {
    let model = two_kinds().remove(0);
    let edges: Vec<Edge> = all_edges(&model).into_iter().step_by(11).collect();
    for metric in [Metric::Kl, Metric::LogProb] {
        let config = EdgeConfig {
            metric: Some(metric),
            ..EdgeConfig::all()
        };
        let slow = plain(&model, &task(), &edges, &config);
        for (slow, fast) in slow.iter().zip(fast(&model, &task(), &edges, &config)) {
            near(&fast, slow, |i| format!("{metric}, {}", edges[i]));
        }
    }
}

#[test]
fn what_cannot_be_patched_is_refused_before_anything_runs() {
    let model = two_kinds().remove(0);
    let refused = |edges: &str, task: &Task| {
        let config = EdgeConfig::of(edges.split(',')).expect(edges);
        let on = Subject {
            model: &model,
            task,
        };
        measure(on, &config, &Running::default(), &Watch::default()).expect_err(edges)
    };
    let task = task();
    let message = refused("a2.h0->a1.h0<q>", &task).to_string();
    assert!(
        message.contains("`a2.h0` is computed after `a1.h0` reads"),
        "{message}"
    );
    assert!(matches!(
        refused("m7->logits", &task),
        Error::UnknownNode { .. }
    ));
    assert!(matches!(
        refused("m1->a1.h0<v>", &task),
        Error::NoSuchEdge { .. }
    ));
    let twice = refused("m0->logits,input->logits,m0->logits", &task).to_string();
    assert!(twice.contains("`m0->logits` is named twice"), "{twice}");
    let on = Subject {
        model: &model,
        task: &task,
    };
    let none = EdgeConfig::these(Vec::new());
    let none = measure(on, &none, &Running::default(), &Watch::default());
    let none = none.expect_err("refused").to_string();
    assert!(none.contains("no edge to patch"), "{none}");
    let uneven = changed(&task, |pair| {
        if pair.index == 1 {
            pair.corrupted.push(1);
            pair.shifted_roles = Some(pair.roles.clone());
        }
    });
    assert!(matches!(
        refused("input->logits", &uneven),
        Error::LengthMismatch { index: 1, .. }
    ));
}

#[test]
fn the_embedded_model_gives_a_table_of_edges() {
    let lab = Lab::open("embedded", "embedded").expect("it is part of the binary");
    let lab = lab.first(2).running(Running {
        detail: Detail::PerExample,
        ..Running::default()
    });
    let edges: Vec<Edge> = all_edges(&lab.model).into_iter().step_by(9).collect();
    let scores = lab
        .measure(&EdgeConfig::these(edges.clone()))
        .expect("it patches");
    assert_eq!(scores.provenance.method, "exact-edges");
    assert_eq!(scores.table.height(), 2 * edges.len());
    let (src, dst) = (
        scores.texts("src").expect("src"),
        scores.texts("dst").expect("dst"),
    );
    let slow = plain(&lab.model, &lab.task, &edges, &config(Reference::Pair));
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
    let mut effects = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let options = ExpandOptions {
            n_pairs: Some(1),
            ..ExpandOptions::default()
        };
        let loading = LoadOptions::default();
        let lab = Lab::open_with("embedded", &loading, "embedded", options).expect("it opens");
        let model = cast(&lab.model, dtype);
        let edges: Vec<Edge> = all_edges(&model).into_iter().step_by(5).collect();
        let pair = config(Reference::Pair);
        effects.push(fast(&model, &lab.task, &edges, &pair).remove(0));
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
