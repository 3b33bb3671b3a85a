//! Path patching keeps its identities: what cannot be reached is exactly 0, everything together is the other run, and one frozen
//! edge is the exact edge.

mod models;

use candle_core::Tensor;
use candlewick::hooks::{Edge, Edit, Hook, Kind, Ln, Node, Op, Pos, Positions, Site, Value};
use candlewick::methods::{
    CompositionConfig, EdgeConfig, Method, NodePath, NodePathConfig, Over, PathConfig, PathSet,
    Receiver, Running, Senders, Subject, Watch, check, composition_scores, exact_edges_together,
    measure, measurements,
};
use candlewick::model::Model;
use candlewick::run::{Quiet, Request, run};
use candlewick::scores::{Detail, Scores};
use candlewick::spec::{Mlp, NormKind, NormPlacement};
use candlewick::task::Task;
use models::task::{changed, logit_diff, task};

/// f32 sums of some thirty parts of order 1, in two orders.
const TOLERANCE: f64 = 2e-4;

fn config(senders: &[&str], receivers: &[&str], over: Over) -> PathConfig {
    let between = PathConfig::between(&senders.join(","), &receivers.join(","));
    PathConfig {
        over,
        ..between.expect("names")
    }
}

fn per_example() -> Running {
    Running {
        detail: Detail::PerExample,
        ..Running::default()
    }
}

fn patch(model: &Model, task: &Task, config: &dyn Method) -> Scores {
    let on = Subject { model, task };
    measure(on, config, &per_example(), &Watch::default()).expect("patches")
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

/// Models in which nothing but sources differs between two runs: under a norm on attention's output its bias is scaled by the
/// run, and it is in no source.
fn every_kind_of_sources_alone() -> Vec<Model> {
    let mut models = models::every_kind();
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

#[test]
fn nothing_sent_is_exactly_nothing() {
    // Both prompts of a pair are one: every sender writes what it writes.
    let same = changed(&task(), |pair| pair.corrupted = pair.clean.clone());
    for model in models::every_kind() {
        let family = &model.spec.family;
        for freeze_mlps in [false, true] {
            let everything = PathConfig {
                senders: Senders::All,
                freeze_mlps,
                ..config(&["heads"], &["logits", "q", "v"], Over::Both)
            };
            let scores = patch(&model, &same, &everything);
            assert!(
                column(&scores, "score").iter().all(|&score| score == 0.0),
                "{family}"
            );
        }
    }
}

#[test]
fn a_sender_that_does_not_come_before_its_receiver_has_no_row() {
    let task = task();
    let model = models::every_kind().remove(0);
    let both = config(
        &["a0.h0", "a1.h0", "a1.h1"],
        &["a1.h0<q>", "a2.h1<v>", "a1.h1<k>"],
        Over::Both,
    );
    let scores = patch(&model, &task, &both);
    let ends = |name: &str| {
        let texts = scores.texts(name).expect("every table has it");
        let texts = texts.iter().map(|text| text.expect("an end").to_string());
        texts.take(5).collect::<Vec<_>>()
    };
    assert_eq!(ends("src"), ["a0.h0", "a0.h0", "a0.h0", "a1.h0", "a1.h1"]);
    assert_eq!(
        ends("dst"),
        ["a1.h0<q>", "a2.h1<v>", "a1.h1<k>", "a2.h1<v>", "a2.h1<v>"]
    );
    assert_eq!(scores.table.height(), 5 * task.pairs().len());
}

#[test]
fn everything_sent_to_the_logits_is_the_corrupted_run() {
    let task = task();
    for model in every_kind_of_sources_alone() {
        for freeze_mlps in [false, true] {
            let everything = PathConfig {
                senders: Senders::All,
                freeze_mlps,
                ..config(&["heads"], &["logits"], Over::Together)
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
fn everything_sent_to_the_logits_with_everything_frozen_is_all_those_edges() {
    // With biases under norms, too.
    let task = task();
    for model in models::every_kind() {
        let everything = PathConfig {
            senders: Senders::All,
            freeze_mlps: true,
            ..config(&["heads"], &["logits"], Over::Together)
        };
        let found = column(&patch(&model, &task, &everything), "score");
        let graph = candlewick::circuit::Graph::new(&model.spec);
        let edges: Vec<Edge> = graph.edges().filter(|e| e.dst == Node::Logits).collect();
        let on = Subject {
            model: &model,
            task: &task,
        };
        let (config, running) = (EdgeConfig::all(), Running::default());
        let together = exact_edges_together(on, &[edges], &config, &running, &Quiet);
        let wanted: Vec<f64> = together.expect("patches").iter().map(|of| of[0]).collect();
        near(&found, &wanted, &model.spec.family);
    }
}

#[test]
fn one_sender_and_one_receiver_with_everything_frozen_are_an_exact_edge() {
    let task = task();
    for model in models::every_kind() {
        let on = Subject {
            model: &model,
            task: &task,
        };
        let mut names = vec![
            "a0.h1->a1.h0<q>",
            "a0.h0->a1.h2<k>",
            "a0.h2->a1.h1<v>",
            "input->a1.h1<v>",
            "a1.h0->logits",
            "input->logits",
        ];
        if model.spec.mlp != Mlp::None {
            names.extend(["m0->a1.h0<k>", "m0->logits"]);
            if model.spec.block == candlewick::spec::Block::Sequential {
                names.push("a0.h1->m0");
            }
            names.push("a0.h1->m1");
        }
        let exact = EdgeConfig::of(names.iter().copied()).expect("edges");
        let running = per_example();
        let exact = measurements(on, &exact, &running, &Watch::default()).expect("measures");
        for (i, name) in names.iter().enumerate() {
            let edge: Edge = name.parse().expect(name);
            let frozen = PathConfig {
                freeze_mlps: true,
                ..config(&[&edge.src.to_string()], &[&edge.reader()], Over::Together)
            };
            let found = column(&patch(&model, &task, &frozen), "value");
            let wanted: Vec<f64> = exact
                .examples
                .iter()
                .map(|example| example.value(i).expect("measured"))
                .collect();
            near(&found, &wanted, &format!("{}, {edge}", model.spec.family));
            let moved = exact.examples.iter().zip(&wanted);
            // The last token is the same in both prompts, and so is much of what the first layer makes of it.
            let is_silent = ["input->logits", "m0->logits"].contains(name);
            assert!(
                is_silent
                    || moved
                        .clone()
                        .any(|(one, value)| (value - one.clean).abs() > 1e-6),
                "{}, {edge}: nothing happened",
                model.spec.family
            );
            // The same as a path of two nodes.
            if edge.reader() == "logits" {
                let along = NodePathConfig::of([*name]).expect("a path");
                let along = column(&patch(&model, &task, &along), "value");
                near(&along, &wanted, name);
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
        last.receivers = format!("a{layer}.h1<q>").parse().expect("a receiver");
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
        let all: Vec<NodePath> = names.iter().map(|name| name.parse().expect(name)).collect();
        let together = NodePathConfig {
            sets: vec![PathSet {
                name: "all".into(),
                paths: all,
            }],
            metric: None,
        };
        let scores = patch(&model, &task, &together);
        let corrupted: Vec<f64> = (scores.provenance.baselines.iter())
            .map(|ends| ends.corrupted)
            .collect();
        near(&column(&scores, "value"), &corrupted, &model.spec.family);
    }
}

/// What a head adds to the stream at every position of a run with these edits: its share of the normed sum, where there is a norm.
/// # Shapes
/// `[pos, d_model]`
fn share(model: &Model, prompt: &[u32], edits: &[Edit], layer: usize, head: usize) -> Tensor {
    let (spec, block) = (&model.spec, &model.weights.blocks[layer]);
    let (z, scale) = (
        Hook::at(Kind::Z, layer),
        Hook::at(Kind::Scale(Ln::OnePost), layer),
    );
    let mut capture = vec![z];
    capture.extend(block.ln1_post.is_some().then_some(scale));
    let request = Request {
        edits,
        capture: &capture,
        ..Request::default()
    };
    let cache = run(model, &[prompt.to_vec()], &request)
        .expect("runs")
        .cache;
    let compute = || -> candlewick::Result<Tensor> {
        let w_o = block.w_o.narrow(0, head * spec.d_head, spec.d_head)?;
        let z = cache.get(z)?.squeeze(0)?.narrow(1, head, 1)?.squeeze(1)?;
        let mut out = z.contiguous()?.matmul(&w_o.contiguous()?)?;
        if let Some(post) = &block.ln1_post {
            out = out.broadcast_div(&cache.get(scale)?.squeeze(0)?)?;
            if spec.norm == NormKind::Layer {
                out = out.broadcast_sub(&out.mean_keepdim(1)?)?;
            }
            out = out.broadcast_mul(&post.w)?;
        }
        Ok((out * f64::from(spec.residual_multiplier.unwrap_or(1.0)))?)
    };
    compute().expect("shapes")
}

#[test]
fn a_chain_through_a_head_is_the_change_of_that_head_in_a_whole_run() {
    let task = task();
    for model in models::every_kind() {
        let (last, head) = (model.spec.n_layers - 1, 1);
        let chain = format!("input->a{last}.h{head}<v>->logits");
        let chain = NodePathConfig::of([chain.as_str()]).expect("a path");
        let values = column(&patch(&model, &task, &chain), "value");
        for (pair, found) in task.pairs().iter().zip(&values) {
            let embed = |prompt: &[u32]| {
                let hook = Hook::global(Kind::Embed);
                let request = Request {
                    capture: &[hook],
                    ..Request::default()
                };
                let run = run(&model, &[prompt.to_vec()], &request).expect("runs");
                run.cache
                    .get(hook)
                    .and_then(|t| Ok(t.squeeze(0)?))
                    .expect("captured")
            };
            let change = (embed(&pair.corrupted) - embed(&pair.clean)).expect("shapes");
            let everywhere: Vec<Pos> = (0..pair.clean.len()).map(Pos::Index).collect();
            let site = Site::all(Hook::at(Kind::VInput, last)).heads([head]);
            let add = |site: Site, change: Tensor| {
                let site = site.at_positions(everywhere.clone());
                Edit::new(site, Op::Add(Value::Tensor(change)))
            };
            let edits = [add(site, change)];
            let now = share(&model, &pair.clean, &edits, last, head);
            let before = share(&model, &pair.clean, &[], last, head);
            let arriving = (now - before).expect("shapes");
            let edits = [add(Site::all(Hook::at(Kind::ResidPost, last)), arriving)];
            let wanted = logit_diff(&model, pair, &edits);
            near(&[*found], &[wanted], &model.spec.family);
        }
        let baselines = &patch(&model, &task, &chain).provenance.baselines;
        let moved = |(value, ends): (&f64, &candlewick::scores::Baseline)| {
            (value - ends.clean).abs() > 1e-6
        };
        // Where the last layer looks back a few tokens only, it may not see what differs.
        assert!(
            model.spec.windows[last].is_some() || values.iter().zip(baselines).any(moved),
            "{}: nothing happened",
            model.spec.family
        );
    }
}

#[test]
fn a_path_that_does_not_exist_is_refused() {
    let model = models::every_kind().remove(0);
    let task = task();
    let refused = |text: &str| {
        text.parse::<NodePath>()
            .and_then(|path| path.check(&model.spec))
    };
    assert!(refused("input->a0.h1<v>->a1.h0<k>->logits").is_ok());
    for (text, says) in [
        ("a1.h0->a0.h1<v>->logits", "computed after"),
        ("input->a0.h9<v>->logits", "a0.h9"),
        ("input->a0.h1<v>", "ends in the middle"),
    ] {
        let message = refused(text).expect_err(text).to_string();
        assert!(message.contains(says), "{text}: {message}");
    }
    let mut far = config(&["a0.h0"], &["logits"], Over::Senders);
    let receiver: Receiver = "a9.h0<q>".parse().expect("a name");
    far.receivers = vec![Receiver::LOGITS, receiver].into();
    let nobody = PathConfig {
        senders: Senders::These(Vec::new()),
        ..config(&["a0.h0"], &["logits"], Over::Senders)
    };
    let twice = NodePathConfig::of(["input->logits", "input->logits"]).expect("paths");
    let none = NodePathConfig::each(Vec::new());
    let cases: [(&dyn Method, &str); 5] = [
        (&far, "a9.h0"),
        (&nobody, "nothing sends"),
        (&twice, "named twice"),
        (&none, "no path"),
        (
            &config(&["a1.h0"], &["a0.h1<v>"], Over::Together),
            "`a1.h0->a0.h1<v>`",
        ),
    ];
    for (method, says) in cases {
        let message = check(method, &model.spec, &task)
            .expect_err(says)
            .to_string();
        assert!(message.contains(says), "{message}");
    }
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
