//! Attribution keeps its identities on models of every kind, agrees with reference gradients, and finds a planted circuit.

mod models;

use candle_core::{D, Device, Tensor};
use candlewick::Error;
use candlewick::circuit::Graph;
use candlewick::hooks::{Edit, Hook, Kind, Letter, Ln, Node, Op, Site, Value};
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, NodeAttributionConfig, StepRule,
};
use candlewick::methods::exact_edges::edge_of;
use candlewick::methods::{
    EdgeConfig, Method, PatchConfig, PatchSource, Reference, Running, Subject, VerifyOptions,
    Watch, measurements, verify,
};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::model::load::{LoadOptions, load};
use candlewick::nn::rules::Rules;
use candlewick::run::{GradientRequest, Request, Source, Sources, gradients, run, run_with_cache};
use candlewick::scores::{Cell, Direction, Measured};
use candlewick::spec::{
    Activation, Block, Mlp, ModelSpec, NormKind, NormPlacement, Position, QkNorm,
};
use candlewick::task::{Pair, Task};
use models::task::{changed, task};
use models::{Pairs, every_kind, two_kinds};

/// Algebraic identities in f32, relative to the largest value.
const ALGEBRA: f64 = 2e-4;

fn patch(sites: &str, direction: Direction) -> PatchConfig {
    PatchConfig {
        direction,
        ..PatchConfig::sites(sites).expect("known sites")
    }
}

fn measured_so(model: &Model, task: &Task, method: &dyn Method, running: &Running) -> Measured {
    let on = Subject { model, task };
    measurements(on, method, running, &Watch::default())
        .unwrap_or_else(|error| panic!("{method:?}: {error}"))
}

fn measured(model: &Model, task: &Task, method: &dyn Method) -> Measured {
    measured_so(model, task, method, &Running::default())
}

fn refused(model: &Model, task: &Task, method: &dyn Method) -> Error {
    let on = Subject { model, task };
    measurements(on, method, &Running::default(), &Watch::default()).expect_err("refused")
}

/// The scores of each pair, in the order of the cells; every pair has every one.
fn scores(measured: &Measured, direction: Direction) -> Vec<Vec<f64>> {
    let of_pair = |example: &candlewick::scores::ExampleScores| {
        assert_eq!(example.values.len(), measured.cells.len());
        let base = example.base(direction);
        example.values.iter().map(|value| value - base).collect()
    };
    measured.examples.iter().map(of_pair).collect()
}

/// The estimates of each pair, and their cells.
fn nodes(model: &Model, task: &Task, config: &NodeAttributionConfig) -> (Vec<Cell>, Vec<Vec<f64>>) {
    let measured = measured(model, task, config);
    let scores = scores(&measured, config.patch.direction);
    (measured.cells, scores)
}

/// Estimates of edges as matrices `[positions, n_src, n_dst]`, a pair each; zero where there is no edge.
fn matrices(model: &Model, measured: &Measured, direction: Direction) -> Vec<Vec<f64>> {
    let graph = Graph::new(&model.spec);
    let size = graph.n_src() * graph.n_dst();
    let places: Vec<usize> = (measured.cells.iter())
        .map(|cell| {
            let (row, column) = graph.place(&edge_of(cell).expect("an edge")).expect("ours");
            cell.pos.unwrap_or(0) as usize * size + row * graph.n_dst() + column
        })
        .collect();
    let positions = places.iter().max().expect("some edges") / size + 1;
    let matrix = |scores: Vec<f64>| {
        let mut matrix = vec![0.0; positions * size];
        for (place, score) in places.iter().zip(scores) {
            matrix[*place] = score;
        }
        matrix
    };
    scores(measured, direction)
        .into_iter()
        .map(matrix)
        .collect()
}

fn edges_so(
    model: &Model,
    task: &Task,
    config: &EdgeAttributionConfig,
    running: &Running,
) -> Vec<Vec<f64>> {
    let measured = measured_so(model, task, config, running);
    matrices(model, &measured, config.reference.direction())
}

fn edges(model: &Model, task: &Task, config: &EdgeAttributionConfig) -> Vec<Vec<f64>> {
    edges_so(model, task, config, &Running::default())
}

/// The exact effects of every edge, in the graph's order.
fn exact_effects(model: &Model, task: &Task) -> Vec<Vec<f64>> {
    let measured = measured(model, task, &EdgeConfig::all());
    scores(&measured, Direction::Noise)
}

#[track_caller]
fn near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1e-6f64, |max, x| max.max(x.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let gap = (a - b).abs() / largest;
        assert!(gap <= tolerance, "{what} {i}: {a} against {b}");
    }
}

fn wide(t: &Tensor) -> Vec<f64> {
    let t = t
        .flatten_all()
        .expect("flat")
        .to_vec1::<f32>()
        .expect("f32");
    t.into_iter().map(f64::from).collect()
}

/// What each node writes in a run, `[batch, pos, n_src, d_model]`, made the plain way.
fn written(model: &Model, prompts: &[Vec<u32>], edits: &[Edit]) -> Tensor {
    let spec = &model.spec;
    let request = Request {
        edits,
        capture: &Hook::all(spec),
        ..Request::default()
    };
    let cache = run(model, prompts, &request).expect("it runs").cache;
    let get = |kind, layer| cache.get(Hook::at(kind, layer)).expect("captured");
    let mut all = vec![
        cache
            .get(Hook::global(Kind::Embed))
            .expect("captured")
            .unsqueeze(2)
            .unwrap(),
    ];
    for layer in 0..spec.n_layers {
        let mut heads = get(Kind::Result, layer);
        if let Some(w) = &model.weights.blocks[layer].ln1_post {
            if spec.norm == NormKind::Layer {
                let mean = heads.mean_keepdim(D::Minus1).unwrap();
                heads = heads.broadcast_sub(&mean).unwrap();
            }
            let scale = get(Kind::Scale(Ln::OnePost), layer).unsqueeze(2).unwrap();
            heads = heads
                .broadcast_div(&scale)
                .unwrap()
                .broadcast_mul(&w.w)
                .unwrap();
        }
        let factor = f64::from(spec.residual_multiplier.unwrap_or(1.0));
        all.push((heads * factor).unwrap());
        if spec.mlp != Mlp::None {
            all.push(get(Kind::MlpOut, layer).unsqueeze(2).unwrap());
        }
    }
    Tensor::cat(&all, 2).unwrap()
}

/// EAP by its definition.
fn eap_plain(model: &Model, rules: Rules) -> Vec<Vec<f64>> {
    let pairs = Pairs::new();
    let [clean, corrupted] =
        [&pairs.clean, &pairs.corrupted].map(|prompts| written(model, prompts, &[]));
    products(model, &(corrupted - clean).unwrap(), rules, &[])
}

/// Full-width differences `[batch, pos, n_src, d_model]` times full-width gradients at the edited clean run, one edge at a time.
fn products(model: &Model, delta: &Tensor, rules: Rules, edits: &[Edit]) -> Vec<Vec<f64>> {
    let (spec, pairs) = (&model.spec, Pairs::new());
    let graph = Graph::new(spec);
    let kinds = [
        Kind::QInput,
        Kind::KInput,
        Kind::VInput,
        Kind::MlpIn,
        Kind::ResidPost,
    ];
    let hooks: Vec<Hook> = Hook::all(spec)
        .into_iter()
        .filter(|hook| kinds.contains(&hook.kind))
        .collect();
    let request = GradientRequest {
        rules,
        edits,
        ..GradientRequest::new(Metric::LogitDiff, &pairs.targets, &hooks)
    };
    let slopes = gradients(model, &pairs.clean, &request)
        .expect("it differentiates")
        .cache;
    let mut scores = vec![vec![0.0; graph.n_src() * graph.n_dst()]; pairs.clean.len()];
    for edge in graph.edges() {
        let (row, column) = graph.place(&edge).unwrap();
        let slope = match (edge.dst, edge.letter) {
            (Node::Head { layer, head }, Some(letter)) => {
                let kind = [Kind::QInput, Kind::KInput, Kind::VInput][letter as usize];
                let all = slopes.get(Hook::at(kind, layer)).unwrap();
                all.narrow(2, head, 1).unwrap().squeeze(2).unwrap()
            }
            (Node::Mlp(layer), _) => slopes.get(Hook::at(Kind::MlpIn, layer)).unwrap(),
            _ => slopes
                .get(Hook::at(Kind::ResidPost, spec.n_layers - 1))
                .unwrap(),
        };
        let source = delta.narrow(2, row, 1).unwrap().squeeze(2).unwrap();
        let products = (source * slope)
            .unwrap()
            .flatten_from(1)
            .unwrap()
            .sum(1)
            .unwrap();
        for (scores, product) in scores.iter_mut().zip(wide(&products)) {
            scores[row * graph.n_dst() + column] = product;
        }
    }
    scores
}

#[test]
fn eap_is_its_definition_on_models_of_every_kind() {
    let task = task();
    for model in every_kind() {
        for rules in [Rules::gradient(), Rules::relp(), Rules::attn_lrp()] {
            let config = EdgeAttributionConfig {
                rules: rules.clone(),
                ..EdgeAttributionConfig::eap()
            };
            let found = edges(&model, &task, &config);
            for (found, plain) in found.iter().zip(eap_plain(&model, rules.clone())) {
                near(found, &plain, ALGEBRA, &model.spec.family);
            }
        }
    }
}

#[test]
fn rows_columns_and_cuts_of_eap_sum_to_node_attribution() {
    let task = task();
    for model in every_kind() {
        let spec = &model.spec;
        let graph = Graph::new(spec);
        let scores = edges(&model, &task, &EdgeAttributionConfig::eap());
        let atp = |sites: &str| {
            nodes(
                &model,
                &task,
                &NodeAttributionConfig::atp(patch(sites, Direction::Noise)),
            )
        };
        let n_dst = graph.n_dst();
        // V2: a row is the effect of its node's output. (A head's z passes a post-norm whose scale it also moves.)
        if !spec.has_post_norm() {
            let (cells, z) = atp("z:all");
            for (i, z) in z.iter().enumerate() {
                let rows: Vec<f64> = cells
                    .iter()
                    .map(|cell| {
                        let (layer, head) =
                            (cell.layer.unwrap() as usize, cell.head.unwrap() as usize);
                        let row = graph.row(Node::Head { layer, head }).unwrap();
                        scores[i][row * n_dst..(row + 1) * n_dst].iter().sum()
                    })
                    .collect();
                near(&rows, z, ALGEBRA, &spec.family);
            }
        }
        // V4: the edges that cross a layer's border sum to the effect of the whole stream there. (Under a post-norm the share of
        // the attention's bias also differs between runs, and is in no node.)
        let has_scaled_bias = model
            .weights
            .blocks
            .iter()
            .any(|b| b.ln1_post.is_some() && b.b_o.is_some());
        if has_scaled_bias {
            continue;
        }
        let (cells, streams) = atp("resid_pre:all");
        for (i, streams) in streams.iter().enumerate() {
            for (cell, stream) in cells.iter().zip(streams) {
                let layer = cell.layer.unwrap() as usize;
                let border = graph.row(Node::Head { layer, head: 0 }).unwrap();
                let after = graph
                    .column(Node::Head { layer, head: 0 }, Some(Letter::Q))
                    .unwrap();
                let crossing: f64 = (0..border)
                    .flat_map(|row| (after..n_dst).map(move |column| row * n_dst + column))
                    .map(|at| scores[i][at])
                    .sum();
                let largest = streams.iter().fold(0.05f64, |max, x| max.max(x.abs()));
                let gap = (crossing - stream).abs() / largest;
                assert!(
                    gap < ALGEBRA,
                    "{} layer {layer}: {crossing} {stream}",
                    spec.family
                );
            }
        }
    }
}

#[test]
fn a_column_of_eap_is_what_its_reader_sees_differently() {
    // V3, where nothing but nodes differs between the runs: a post-norm would also scale the attention's bias.
    let (task, pairs) = (task(), Pairs::new());
    for model in every_kind() {
        let spec = &model.spec;
        if spec.mlp == Mlp::None || spec.has_post_norm() {
            continue;
        }
        let graph = Graph::new(spec);
        let scores = edges(&model, &task, &EdgeAttributionConfig::eap());
        let hooks: Vec<Hook> = (0..spec.n_layers)
            .map(|layer| Hook::at(Kind::MlpIn, layer))
            .collect();
        let (_, clean) = run_with_cache(&model, &pairs.clean, &hooks).unwrap();
        let (_, corrupted) = run_with_cache(&model, &pairs.corrupted, &hooks).unwrap();
        let wanted = GradientRequest::new(Metric::LogitDiff, &pairs.targets, &hooks);
        let slopes = gradients(&model, &pairs.clean, &wanted).unwrap().cache;
        for (layer, &hook) in hooks.iter().enumerate() {
            let moved = (corrupted.get(hook).unwrap() - clean.get(hook).unwrap()).unwrap();
            let products = (moved * slopes.get(hook).unwrap()).unwrap();
            let expected = wide(&products.flatten_from(1).unwrap().sum(1).unwrap());
            let column = graph.column(Node::Mlp(layer), None).unwrap();
            let sum = |scores: &Vec<f64>| -> f64 {
                scores.iter().skip(column).step_by(graph.n_dst()).sum()
            };
            for (scores, expected) in scores.iter().zip(expected) {
                let gap = (sum(scores) - expected).abs() / expected.abs().max(0.05);
                assert!(
                    gap < ALGEBRA,
                    "{} m{layer}: {} {expected}",
                    spec.family,
                    sum(scores)
                );
            }
        }
    }
}

#[test]
fn folding_the_norms_changes_no_score() {
    // V8: what is read is the same function of the stream.
    let task = task();
    for model in two_kinds() {
        let folded = candlewick::model::processing::fold_ln(&model).expect("it folds");
        let config = EdgeAttributionConfig::eap_ig(2);
        for (a, b) in edges(&model, &task, &config)
            .iter()
            .zip(edges(&folded, &task, &config))
        {
            let largest = a.iter().fold(0f64, |max, x| max.max(x.abs()));
            let gap = a
                .iter()
                .zip(&b)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f64::max);
            assert!(
                gap < 1e-4 * largest,
                "{}: {gap} of {largest}",
                model.spec.family
            );
        }
    }
}

#[test]
fn an_integral_over_the_inputs_is_complete_as_it_gets_finer() {
    let task = task();
    for model in two_kinds() {
        let graph = Graph::new(&model.spec);
        let error = |steps: usize, rule: StepRule| -> f64 {
            let config = EdgeAttributionConfig {
                path: EdgePath::Along(GradientPath::Inputs { steps, rule }),
                ..EdgeAttributionConfig::eap_ig(steps)
            };
            let measured = measured(&model, &task, &config);
            let rows = matrices(&model, &measured, Direction::Noise);
            let off = rows.iter().zip(&measured.examples).map(|(row, example)| {
                let row: f64 = row[..graph.n_dst()].iter().sum();
                (row - (example.corrupted - example.clean)).abs()
            });
            off.fold(0.0, f64::max)
        };
        let (coarse, fine) = (error(8, StepRule::Midpoint), error(32, StepRule::Midpoint));
        assert!(
            fine < 2e-3 && fine < 0.3 * coarse + 1e-4,
            "{}: {coarse} {fine}",
            model.spec.family
        );
        let left = error(32, StepRule::Left);
        assert!(left > fine, "{left} {fine}");
        // The same integral at the embedding as a node.
        let config = NodeAttributionConfig {
            path: GradientPath::Inputs {
                steps: 32,
                rule: StepRule::Midpoint,
            },
            ..NodeAttributionConfig::atp(patch("embed:all", Direction::Noise))
        };
        for example in measured(&model, &task, &config).examples {
            assert!((example.values[0] - example.corrupted).abs() < 2e-3);
        }
    }
}

#[test]
fn the_line_of_an_integral_goes_from_the_corrupted_run_to_the_clean_one_in_both_directions() {
    let task = task();
    for model in two_kinds() {
        let integral = |rule, direction| {
            let mut config = NodeAttributionConfig::layer_ig(patch("resid_pre,z", direction), 1);
            config.path = GradientPath::Inputs { steps: 1, rule };
            nodes(&model, &task, &config).1.concat()
        };
        let gradient = |direction| {
            let config = NodeAttributionConfig::atp(patch("resid_pre,z", direction));
            nodes(&model, &task, &config).1.concat()
        };
        let negated = |values: Vec<f64>| -> Vec<f64> { values.iter().map(|x| -x).collect() };
        // One step on the left is the gradient at the corrupted run, one on the right that at the clean run; the change of a
        // node is turned round where the other run is changed.
        let (at_corrupted, at_clean) = (gradient(Direction::Denoise), gradient(Direction::Noise));
        for (rule, direction, expected) in [
            (StepRule::Left, Direction::Denoise, at_corrupted.clone()),
            (StepRule::Left, Direction::Noise, negated(at_corrupted)),
            (StepRule::Right, Direction::Noise, at_clean.clone()),
            (StepRule::Right, Direction::Denoise, negated(at_clean)),
        ] {
            let what = format!("{} {rule:?} {direction}", model.spec.family);
            near(&integral(rule, direction), &expected, ALGEBRA, &what);
        }
    }
}

#[test]
fn a_preset_has_the_name_of_what_it_does() {
    let z = || patch("z", Direction::Noise);
    for (config, name) in [
        (NodeAttributionConfig::atp(z()), "atp"),
        (NodeAttributionConfig::atp_star(z()), "atp-star"),
        (NodeAttributionConfig::relp(z()), "relp"),
        (NodeAttributionConfig::layer_ig(z(), 3), "layer-ig"),
        (NodeAttributionConfig::conductance(z(), 3), "conductance"),
    ] {
        assert_eq!(config.name(), name);
        assert_eq!(config.header(&task()).method, name);
        let with_rules = NodeAttributionConfig {
            rules: Rules::cp_lrp(),
            ..config
        };
        assert!(with_rules.name().ends_with(":cp-lrp"), "{name}");
    }
    let star = NodeAttributionConfig::atp_star(z());
    let dropped = NodeAttributionConfig {
        qk_fix: false,
        ..star.clone()
    };
    assert_eq!(dropped.name(), "atp-grad-drop");
    let fixed = NodeAttributionConfig {
        grad_drop: false,
        ..star
    };
    assert_eq!(fixed.name(), "atp-qk-fix");
    for (config, name) in [
        (EdgeAttributionConfig::eap(), "eap"),
        (EdgeAttributionConfig::eap_ig(3), "eap-ig"),
        (EdgeAttributionConfig::ceap(3), "ceap"),
        (EdgeAttributionConfig::clean_corrupted(), "clean-corrupted"),
        (
            EdgeAttributionConfig::eap_ig_activations(3),
            "eap-ig-activations",
        ),
        (EdgeAttributionConfig::relp(), "relp-edges"),
    ] {
        assert_eq!(config.name(), name);
        assert_eq!(config.header(&task()).method, name);
    }
}

#[test]
fn cells_that_are_asked_for_alone_have_the_same_estimates() {
    let (model, task) = (&two_kinds()[0], task());
    let whole = NodeAttributionConfig::atp(patch("z:pos,mlp_out", Direction::Noise));
    let (cells, all) = nodes(model, &task, &whole);
    let some: Vec<usize> = (0..cells.len()).step_by(5).collect();
    let few = NodeAttributionConfig::atp(PatchConfig {
        only: Some(some.iter().map(|&i| cells[i].clone()).collect()),
        ..whole.patch
    });
    let (found, few) = nodes(model, &task, &few);
    assert_eq!(found.len(), some.len());
    for (few, all) in few.iter().zip(&all) {
        let expected: Vec<f64> = some.iter().map(|&i| all[i]).collect();
        near(few, &expected, 1e-6, "alone");
    }
}

#[test]
fn conductance_of_a_full_cut_sums_to_the_change() {
    let task = task();
    for model in two_kinds() {
        let config = NodeAttributionConfig {
            path: GradientPath::Inputs {
                steps: 64,
                rule: StepRule::Midpoint,
            },
            conductance: true,
            ..NodeAttributionConfig::atp(patch("resid_pre:all", Direction::Noise))
        };
        let measured = measured(&model, &task, &config);
        for example in &measured.examples {
            for (cell, value) in measured.cells.iter().zip(&example.values) {
                let gap = (value - example.corrupted).abs();
                assert!(
                    gap < 3e-3,
                    "{} {cell:?}: {value} {}",
                    model.spec.family,
                    example.corrupted
                );
            }
        }
    }
}

fn ceap(steps: usize, rule: StepRule) -> EdgeAttributionConfig {
    EdgeAttributionConfig::along(EdgePath::Conductance { steps, rule })
}

/// CEAP by its definition, step by step: what moves over a step times the gradients that the rule takes there.
fn ceap_plain(model: &Model, steps: usize, rule: StepRule) -> Vec<Vec<f64>> {
    let pairs = Pairs::new();
    let embed = Hook::global(Kind::Embed);
    let [clean, corrupted] = [&pairs.clean, &pairs.corrupted].map(|prompts| {
        let (_, cache) = run_with_cache(model, prompts, &[embed]).expect("it runs");
        cache.get(embed).expect("captured")
    });
    let at = |point: f64| {
        let line = ((&clean * point).unwrap() + (&corrupted * (1.0 - point)).unwrap()).unwrap();
        [Edit::new(
            Site::all(embed),
            Op::Replace(Value::Tensor(line)),
        )]
    };
    let mut total: Vec<Vec<f64>> = Vec::new();
    for k in 1..=steps {
        let [low, high] = [k - 1, k].map(|k| k as f64 / steps as f64);
        let [from, to] = [low, high].map(|point| written(model, &pairs.clean, &at(point)));
        let moved = (from - to).unwrap();
        let gradients = match rule {
            StepRule::Left => vec![low],
            StepRule::Right => vec![high],
            StepRule::Midpoint => vec![(low + high) / 2.0],
            StepRule::Trapezoid => vec![low, high],
        };
        for &point in &gradients {
            let found = products(model, &moved, Rules::gradient(), &at(point));
            total.resize(found.len(), vec![0.0; found[0].len()]);
            for (total, found) in total.iter_mut().flatten().zip(found.iter().flatten()) {
                *total += found / gradients.len() as f64;
            }
        }
    }
    total
}

#[test]
fn ceap_is_its_definition_on_models_of_every_kind() {
    let task = task();
    for (i, model) in every_kind().into_iter().enumerate() {
        let rules = [
            StepRule::Trapezoid,
            StepRule::Left,
            StepRule::Right,
            StepRule::Midpoint,
        ];
        for rule in [StepRule::Trapezoid, rules[i % rules.len()]] {
            let found = edges(&model, &task, &ceap(3, rule));
            for (found, plain) in found.iter().zip(ceap_plain(&model, 3, rule)) {
                let what = format!("{} {rule:?}", model.spec.family);
                near(found, &plain, ALGEBRA, &what);
            }
        }
    }
}

#[test]
fn ceap_over_any_cut_sums_to_the_whole_change() {
    let task = task();
    for mut model in every_kind() {
        // A bias behind a post-norm moves with its scale, and is in no node.
        for block in &mut model.weights.blocks {
            if block.ln1_post.is_some() {
                block.b_o = None;
            }
        }
        let graph = Graph::new(&model.spec);
        let n_dst = graph.n_dst();
        let error = |steps: usize| -> f64 {
            let config = EdgeAttributionConfig::ceap(steps);
            let measured = measured(&model, &task, &config);
            let scores = matrices(&model, &measured, Direction::Noise);
            let mut worst = 0f64;
            for (scores, example) in scores.iter().zip(&measured.examples) {
                for layer in 0..=graph.n_layers {
                    let (border, after) = if layer == graph.n_layers {
                        (graph.n_src(), n_dst - 1)
                    } else {
                        let head = Node::Head { layer, head: 0 };
                        let column = graph.column(head, Some(Letter::Q)).unwrap();
                        (graph.row(head).unwrap(), column)
                    };
                    let crossing: f64 = (0..border)
                        .map(|row| {
                            scores[row * n_dst + after..(row + 1) * n_dst]
                                .iter()
                                .sum::<f64>()
                        })
                        .sum();
                    worst = worst.max((crossing - (example.corrupted - example.clean)).abs());
                }
            }
            worst
        };
        // The error of the trapezoid rule falls with the square of the steps, and with the steps alone where gradients jump.
        let falls_to = match model.spec.activation {
            Activation::Relu => 0.4,
            _ => 0.15,
        };
        let (coarse, fine) = (error(8), error(32));
        assert!(
            fine < 1e-2 && fine < falls_to * coarse + 1e-4,
            "{}: {coarse} {fine}",
            model.spec.family
        );
    }
}

#[test]
fn a_source_that_does_not_move_along_the_line_has_no_conductance() {
    let (model, task) = (&two_kinds()[0], task());
    // The first head writes nothing, so it stays where it is whatever its readers ask for.
    let mut model = Model::clone(model);
    let w_o = &mut model.weights.blocks[0].w_o;
    let silenced = w_o.narrow(0, 0, model.spec.d_head).unwrap().zeros_like();
    let others = w_o.dim(0).unwrap() - model.spec.d_head;
    let rest = w_o.narrow(0, model.spec.d_head, others).unwrap();
    *w_o = Tensor::cat(&[&silenced.unwrap(), &rest], 0).unwrap();
    let graph = Graph::new(&model.spec);
    let row = graph.row(Node::Head { layer: 0, head: 0 }).unwrap();
    for scores in edges(&model, &task, &EdgeAttributionConfig::ceap(3)) {
        let own = &scores[row * graph.n_dst()..(row + 1) * graph.n_dst()];
        assert!(own.iter().all(|&score| score == 0.0));
        assert!(scores.iter().any(|&score| score != 0.0));
    }
}

#[test]
fn one_trapezoid_of_an_integral_is_the_mean_of_both_ends() {
    let task = task();
    for model in two_kinds() {
        let path = GradientPath::Inputs {
            steps: 1,
            rule: StepRule::Trapezoid,
        };
        let trapezoid = EdgeAttributionConfig::along(EdgePath::Along(path));
        let ends = EdgeAttributionConfig::clean_corrupted();
        let [trapezoid, ends] = [trapezoid, ends].map(|config| edges(&model, &task, &config));
        near(&trapezoid.concat(), &ends.concat(), 1e-5, "ends");
    }
}

#[test]
fn nothing_differs_between_a_prompt_and_itself() {
    let task = changed(&task(), |pair| pair.corrupted = pair.clean.clone());
    let model = &every_kind()[5];
    for config in [
        EdgeAttributionConfig::eap(),
        EdgeAttributionConfig::eap_ig(3),
        EdgeAttributionConfig::ceap(3),
    ] {
        let scores = edges(model, &task, &config);
        assert!(scores.iter().flatten().all(|&x| x == 0.0));
    }
}

#[test]
fn scores_do_not_depend_on_batches_or_memory() {
    let task = task();
    let running = |batch, memory| Running {
        batch,
        memory: Some(memory),
        ..Running::default()
    };
    for model in two_kinds() {
        for path in [
            EdgePath::Along(GradientPath::Base),
            EdgePath::Along(GradientPath::Ends),
            EdgePath::Along(GradientPath::Inputs {
                steps: 3,
                rule: StepRule::Midpoint,
            }),
            EdgePath::Activations {
                steps: 2,
                rule: StepRule::Midpoint,
                every_edge: false,
            },
            EdgePath::Activations {
                steps: 2,
                rule: StepRule::Left,
                every_edge: true,
            },
            EdgePath::Conductance {
                steps: 2,
                rule: StepRule::Trapezoid,
            },
        ] {
            let config = EdgeAttributionConfig::along(path);
            let whole = edges_so(&model, &task, &config, &running(8, 1 << 30));
            for (batch, memory) in [(1, 1 << 30), (8, 1)] {
                let split = edges_so(&model, &task, &config, &running(batch, memory));
                for (a, b) in whole.iter().zip(&split) {
                    let gap = a
                        .iter()
                        .zip(b)
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, f64::max);
                    assert!(gap < 1e-5, "{path:?} batch {batch}: {gap}");
                }
            }
        }
        let star = patch("z,q,k,mlp.post:pos,pattern", Direction::Noise);
        let star = NodeAttributionConfig::atp_star(star);
        let of = |batch, memory| {
            let measured = measured_so(&model, &task, &star, &running(batch, memory));
            scores(&measured, Direction::Noise)
        };
        for (a, b) in of(8, 1 << 30).iter().zip(&of(1, 1)) {
            near(b, a, 1e-5, "AtP*");
        }
    }
}

#[test]
fn positions_of_edges_sum_to_the_edge() {
    let task = task();
    let model = &two_kinds()[0];
    let by_position = EdgeAttributionConfig {
        by_position: true,
        ..EdgeAttributionConfig::eap()
    };
    let apart = edges(model, &task, &by_position);
    let summed = edges(model, &task, &EdgeAttributionConfig::eap());
    for (apart, summed) in apart.iter().zip(&summed) {
        let size = summed.len();
        assert_eq!(apart.len(), size * Pairs::LENGTH);
        let mut total = vec![0.0; size];
        for scores in apart.chunks_exact(size) {
            total.iter_mut().zip(scores).for_each(|(sum, x)| *sum += x);
        }
        near(&total, summed, ALGEBRA, "positions");
    }
}

#[test]
fn positions_of_an_edge_are_verified_as_their_sum() {
    let (model, task) = (&two_kinds()[1], task());
    let by_position = EdgeAttributionConfig {
        by_position: true,
        ..EdgeAttributionConfig::eap()
    };
    let found = verify::verify(
        Subject { model, task: &task },
        &by_position,
        &measured(model, &task, &by_position),
        VerifyOptions::top(6),
        &Running::default(),
        &Watch::default(),
    )
    .expect("verifies");
    let graph = Graph::new(&model.spec);
    let all: Vec<_> = graph.edges().collect();
    let estimates = edges(model, &task, &EdgeAttributionConfig::eap());
    let exact = exact_effects(model, &task);
    assert_eq!(found.checked.len(), 12);
    let n = exact.len() as f64;
    for checked in &found.checked {
        assert_eq!((checked.cell.pos, checked.index), (None, None));
        let edge = edge_of(&checked.cell).expect("an edge");
        let (row, column) = graph.place(&edge).expect("ours");
        let place = row * graph.n_dst() + column;
        let at = all.iter().position(|of| *of == edge).expect("listed");
        let estimate = estimates.iter().map(|of| of[place]).sum::<f64>() / n;
        let effect = exact.iter().map(|of| of[at]).sum::<f64>() / n;
        assert!((checked.estimate - estimate).abs() < 1e-5, "{edge}");
        assert!((checked.exact - effect).abs() < 1e-5, "{edge}");
        assert!(estimate.abs() > 0.0, "{edge}: nothing to verify");
    }
}

/// A model in which everything is linear along the way: no norms, attention that does not look, a straight MLP.
fn affine(n_layers: usize) -> Model {
    let spec = ModelSpec {
        family: "affine".into(),
        n_layers,
        n_heads: 2,
        n_kv_heads: 2,
        d_model: 12,
        d_head: 5,
        d_mlp: 0,
        d_vocab: models::VOCAB,
        n_ctx: 16,
        norm: NormKind::Rms,
        norm_eps: 1e-5,
        norm_placement: NormPlacement::None,
        block: Block::Sequential,
        position: Position::None,
        attn_scale: vec![0.0; n_layers],
        attn_softcap: None,
        windows: vec![None; n_layers],
        qk_norm: QkNorm::None,
        mlp: Mlp::None,
        activation: Activation::Relu,
        embed_scale: None,
        residual_multiplier: None,
        logit_scale: None,
        final_softcap: None,
        tied: false,
        encoder: None,
    };
    Model::random(spec, 5).expect("a model")
}

#[test]
fn estimates_are_exact_where_the_model_is_affine() {
    let (model, task) = (affine(2), task());
    let graph = Graph::new(&model.spec);
    let all: Vec<_> = graph.edges().collect();
    let exact = exact_effects(&model, &task);
    for config in [
        EdgeAttributionConfig::eap(),
        EdgeAttributionConfig::eap_ig(2),
        ceap(1, StepRule::Trapezoid),
        ceap(2, StepRule::Left),
        ceap(2, StepRule::Midpoint),
        ceap(3, StepRule::Right),
        EdgeAttributionConfig {
            path: EdgePath::Activations {
                steps: 2,
                rule: StepRule::Midpoint,
                every_edge: false,
            },
            ..EdgeAttributionConfig::eap()
        },
        EdgeAttributionConfig {
            rules: Rules::relp(),
            ..EdgeAttributionConfig::eap()
        },
    ] {
        let found = edges(&model, &task, &config);
        for (found, exact) in found.iter().zip(&exact) {
            let of = |edge| {
                let (row, column) = graph.place(edge).unwrap();
                found[row * graph.n_dst() + column]
            };
            let found: Vec<f64> = all.iter().map(of).collect();
            near(&found, exact, ALGEBRA, &format!("{:?}", config.path));
        }
    }
    let config = NodeAttributionConfig::atp(patch("resid_pre,z:pos,v", Direction::Denoise));
    let (_, estimates) = nodes(&model, &task, &config);
    let exact = scores(&measured(&model, &task, &config.patch), Direction::Denoise);
    near(&estimates.concat(), &exact.concat(), ALGEBRA, "AtP");
}

#[test]
fn the_bound_holds_where_effects_add() {
    let model = affine(2);
    let verified = |task: &Task, k, bound_draws| {
        let star = NodeAttributionConfig::atp_star(PatchConfig {
            // In one layer nothing that is patched feeds anything else that is.
            layers: [0].into(),
            ..patch("z:pos", Direction::Noise)
        });
        let on = Subject {
            model: &model,
            task,
        };
        let options = VerifyOptions { k, bound_draws };
        let (running, watch) = (Running::default(), Watch::default());
        let measured = measured(&model, task, &star);
        let found = verify::verify(on, &star, &measured, options, &running, &watch);
        (star, found)
    };
    let task = task();
    let (star, found) = verified(&task, 2, 200);
    let found = found.expect("verifies");
    let bound = found.bound.expect("asked for");
    let exact = measured(&model, &task, &star.patch);
    let means = exact.means(Direction::Noise, false);
    let is_checked = |cell: usize| found.checked.iter().any(|of| of.index == Some(cell));
    let rest: Vec<f64> = (0..means.len())
        .filter(|&cell| !is_checked(cell))
        .map(|cell| means[cell].abs())
        .collect();
    assert_eq!((bound.nodes, bound.draws), (rest.len(), 200));
    let largest = rest.iter().fold(0f64, |most, x| most.max(*x));
    assert!(
        largest > 1e-3 && bound.effect >= largest && bound.effect < 100.0 * largest,
        "{bound} for {largest}"
    );
    // Where nothing differs nothing was missed.
    let same = changed(&task, |pair| pair.corrupted = pair.clean.clone());
    let (_, found) = verified(&same, 2, 8);
    assert_eq!(
        found.expect("verifies").bound.map(|of| of.effect),
        Some(0.0)
    );
    let message = verified(&task, 2, 7).1.expect_err("refused").to_string();
    assert!(message.contains("at least 8 joint patches"), "{message}");
}

#[test]
fn rules_that_are_all_off_give_the_gradient_bit_for_bit() {
    let task = task();
    let model = &every_kind()[5];
    let atp = NodeAttributionConfig::atp(patch("z,mlp_out,resid_pre", Direction::Noise));
    let relp = NodeAttributionConfig {
        rules: Rules::gradient(),
        ..NodeAttributionConfig::relp(atp.patch.clone())
    };
    assert_eq!(nodes(model, &task, &atp), nodes(model, &task, &relp));
}

/// The fixed estimate of one query or key by the engine itself: put the other run's value there, and look at the pattern.
fn by_brute_force(model: &Model, task: &Task, cell: &Cell) -> Vec<f64> {
    let layer = cell.layer.unwrap() as usize;
    let kind = if cell.component.ends_with("rot_q") {
        Kind::RotQ
    } else {
        Kind::RotK
    };
    let (hook, pattern) = (Hook::at(kind, layer), Hook::at(Kind::Pattern, layer));
    let prompts = |clean: bool| -> Vec<Vec<u32>> {
        let of = |pair: &Pair| {
            if clean {
                pair.clean.clone()
            } else {
                pair.corrupted.clone()
            }
        };
        task.pairs().iter().map(of).collect()
    };
    let (_, corrupted) = run_with_cache(model, &prompts(false), &[hook]).unwrap();
    let (_, clean) = run_with_cache(model, &prompts(true), &[pattern]).unwrap();
    let site = Site::all(hook)
        .at(cell.pos.unwrap() as usize)
        .heads([cell.head.unwrap() as usize]);
    let edits = [Edit::new(site, Op::FromRun("corrupted".into()))];
    let request = Request {
        edits: &edits,
        sources: Sources::default().with("corrupted", Source::run(corrupted).unwrap()),
        capture: &[pattern],
        ..Request::default()
    };
    let patched = run(model, &prompts(true), &request).unwrap().cache;
    let targets = Pairs::new().targets;
    let hooks = [pattern];
    let wanted = GradientRequest::new(Metric::LogitDiff, &targets, &hooks);
    let slopes = gradients(model, &prompts(true), &wanted).unwrap().cache;
    let moved = (patched.get(pattern).unwrap() - clean.get(pattern).unwrap()).unwrap();
    let products = (moved * slopes.get(pattern).unwrap()).unwrap();
    wide(&products.flatten_from(1).unwrap().sum(1).unwrap())
}

#[test]
fn the_qk_fix_is_the_pattern_that_a_patch_would_give() {
    let task = task();
    for model in every_kind() {
        let config = NodeAttributionConfig {
            qk_fix: true,
            ..NodeAttributionConfig::atp(PatchConfig {
                layers: [1].into(),
                ..patch("rot_q:pos,rot_k:pos", Direction::Noise)
            })
        };
        let (cells, found) = nodes(&model, &task, &config);
        // Every fifth cell keeps this quick; five divides neither heads nor positions.
        for (index, cell) in cells.iter().enumerate().step_by(7) {
            let brute = by_brute_force(&model, &task, cell);
            for (found, brute) in found.iter().zip(brute) {
                let gap = (found[index] - brute).abs();
                assert!(
                    gap < 2e-5,
                    "{} {cell:?}: {} {brute}",
                    model.spec.family,
                    found[index]
                );
            }
        }
    }
}

#[test]
fn grad_drop_is_the_estimate_itself_where_nothing_can_cancel() {
    // With two layers, dropping the other one leaves a node of the last layer its only path; and dropping the last leaves
    // what goes straight to the logits.
    let task = task();
    let model = affine(2);
    let plain = NodeAttributionConfig::atp(patch("z:pos", Direction::Noise));
    let dropped = NodeAttributionConfig {
        grad_drop: true,
        ..plain.clone()
    };
    let (cells, plain) = nodes(&model, &task, &plain);
    let (_, dropped) = nodes(&model, &task, &dropped);
    for (plain, dropped) in plain.iter().zip(&dropped) {
        for (i, cell) in cells.iter().enumerate() {
            if cell.layer == Some(1) {
                assert!((plain[i].abs() - dropped[i]).abs() < 1e-5, "{cell:?}");
            }
            assert!(dropped[i] >= 0.0);
        }
    }
}

#[test]
fn reference_gradients_are_reproduced() {
    for family in ["gpt2-tiny-random", "llama-tiny-random"] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures")
            .join(family);
        let loaded = load(folder.to_str().unwrap(), &LoadOptions::default()).expect("it loads");
        let model = &loaded.model;
        let refs = candle_core::safetensors::load(
            folder.join("reference_patching.safetensors"),
            &Device::Cpu,
        )
        .unwrap();
        let ids = |name: &str| refs[name].to_dtype(candle_core::DType::U32).unwrap();
        let (clean, corrupt) = (
            ids("clean_ids").to_vec2::<u32>().unwrap(),
            ids("corrupt_ids").to_vec2::<u32>().unwrap(),
        );
        let (answer, wrong) = (
            ids("answer").to_vec1::<u32>().unwrap(),
            ids("wrong").to_vec1::<u32>().unwrap(),
        );
        let pair = |i: usize| {
            Pair::new(clean[i].clone(), corrupt[i].clone())
                .answer(answer[i])
                .wrong(wrong[i])
        };
        let pairs = (0..clean.len()).map(pair);
        let task = Task::new("tiny", &loaded.tokenizer, Metric::LogitDiff, pairs).expect("a task");
        // Reference axes end in the pair; ours begin with it.
        let check = |name: &str, config: &NodeAttributionConfig| {
            let (_, found) = nodes(model, &task, config);
            let cells = found[0].len();
            let expected = wide(&refs[name]);
            let found: Vec<f64> = (0..cells)
                .flat_map(|cell| found.iter().map(move |of| of[cell]))
                .collect();
            near(&found, &expected, 2e-4, &format!("{family} {name}"));
        };
        let atp = |sites: &str, direction| NodeAttributionConfig::atp(patch(sites, direction));
        check("atp/resid_pre", &atp("resid_pre", Direction::Denoise));
        check("atp/attn_out", &atp("attn_out", Direction::Denoise));
        check("atp/mlp_out", &atp("mlp_out", Direction::Denoise));
        check("atp/z_head", &atp("z", Direction::Denoise));
        check("atp_noise/z_head", &atp("z", Direction::Noise));
        check("atp_noise/mlp_out", &atp("mlp_out:all", Direction::Noise));
        check("atp_noise/embed", &atp("embed:all", Direction::Noise));
        let ig = |sites: &str| NodeAttributionConfig {
            path: GradientPath::Inputs {
                steps: 5,
                rule: StepRule::Left,
            },
            ..atp(sites, Direction::Noise)
        };
        check("ig5_noise/z_head", &ig("z"));
        check("ig5_noise/mlp_out", &ig("mlp_out:all"));
        check("ig5_noise/embed", &ig("embed:all"));
    }
}

/// Two heads carry everything: `a0.h0` reads the embedding's part of the stream and writes a second part, `a1.h1` reads that and
/// writes a third, which alone the unembedding reads. The other heads are noise.
fn planted() -> Model {
    let mut model = affine(4);
    let spec = ModelSpec {
        attn_scale: vec![0.3; 4],
        ..model.spec.clone()
    };
    let (d, heads, d_head) = (spec.d_model, spec.n_heads, spec.d_head);
    model.spec = spec;
    let third = d / 3;
    let keep = |t: &Tensor, of: &dyn Fn(usize, usize) -> f32| -> Tensor {
        let (rows, columns) = t.dims2().unwrap();
        let values = t.to_vec2::<f32>().unwrap();
        let mut kept = Vec::with_capacity(rows * columns);
        for (i, row) in values.iter().enumerate() {
            kept.extend(row.iter().enumerate().map(|(j, x)| x * of(i, j)));
        }
        Tensor::from_vec(kept, (rows, columns), &Device::Cpu).unwrap()
    };
    model.weights.w_e = keep(&model.weights.w_e, &|_, j| {
        if j < third { 1.0 } else { 0.0 }
    });
    model.weights.w_u = keep(&model.weights.w_u, &|_, j| {
        if j >= 2 * third { 1.0 } else { 0.0 }
    });
    for (layer, block) in model.weights.blocks.iter_mut().enumerate() {
        let reads = layer * third..(layer + 1) * third;
        let writes = (layer + 1) * third..(layer + 2) * third;
        let chosen = |head: usize| layer < 2 && head == layer;
        block.b_qkv = None;
        block.b_o = None;
        block.w_qkv = keep(&block.w_qkv, &|i, j| {
            let (letter, head) = (j / (heads * d_head), j % (heads * d_head) / d_head);
            match (letter, chosen(head)) {
                (2, true) if reads.contains(&i) => 1.0,
                (2, true) => 0.0,
                (2, false) => 0.05,
                _ => 0.3,
            }
        });
        block.w_o = keep(&block.w_o, &|i, j| match chosen(i / d_head) {
            true if writes.contains(&j) => 3.0,
            true => 0.0,
            false => 0.05,
        });
    }
    model
}

#[test]
fn every_method_finds_a_planted_circuit() {
    let (model, task) = (planted(), task());
    let graph = Graph::new(&model.spec);
    let circuit = ["a0.h0->a1.h1<v>", "a1.h1->logits", "input->a0.h0<v>"];
    let strongest = |scores: Vec<(String, f64)>, n: usize| -> Vec<String> {
        let mut scores = scores;
        scores.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
        let mut names: Vec<String> = scores.into_iter().take(n).map(|(name, _)| name).collect();
        names.sort();
        names
    };
    let all: Vec<_> = graph.edges().collect();
    let exact = exact_effects(&model, &task);
    let size = |of: &dyn Fn(usize) -> f64| (0..exact.len()).map(|i| of(i).abs()).sum::<f64>();
    let named = all
        .iter()
        .enumerate()
        .map(|(e, edge)| (edge.to_string(), size(&|i| exact[i][e])));
    assert_eq!(strongest(named.collect(), 3), circuit);
    let eap = EdgeAttributionConfig::eap();
    let activations = |every_edge| EdgePath::Activations {
        steps: 3,
        rule: StepRule::Midpoint,
        every_edge,
    };
    for (path, rules, reference) in [
        (
            EdgePath::Along(GradientPath::Base),
            Rules::gradient(),
            Reference::Pair,
        ),
        (
            EdgePath::Along(GradientPath::Base),
            Rules::relp(),
            Reference::Pair,
        ),
        (
            EdgePath::Along(GradientPath::Ends),
            Rules::gradient(),
            Reference::Pair,
        ),
        (
            EdgePath::Along(GradientPath::Inputs {
                steps: 5,
                rule: StepRule::Midpoint,
            }),
            Rules::gradient(),
            Reference::Pair,
        ),
        (
            ceap(3, StepRule::Trapezoid).path,
            Rules::gradient(),
            Reference::Pair,
        ),
        (activations(false), Rules::gradient(), Reference::Pair),
        (activations(true), Rules::gradient(), Reference::Pair),
    ] {
        let config = EdgeAttributionConfig {
            path,
            rules,
            reference,
            ..eap.clone()
        };
        let found = edges(&model, &task, &config);
        let named = all.iter().map(|edge| {
            let (row, column) = graph.place(edge).unwrap();
            (
                edge.to_string(),
                size(&|i| found[i][row * graph.n_dst() + column]),
            )
        });
        assert_eq!(strongest(named.collect(), 3), circuit, "{path:?}");
    }
    let atp = NodeAttributionConfig::atp(patch("z", Direction::Noise));
    let ig = GradientPath::Inputs {
        steps: 5,
        rule: StepRule::Midpoint,
    };
    for config in [
        atp.clone(),
        NodeAttributionConfig::atp_star(atp.patch.clone()),
        NodeAttributionConfig::relp(atp.patch.clone()),
        NodeAttributionConfig {
            path: ig,
            ..atp.clone()
        },
        NodeAttributionConfig {
            path: ig,
            conductance: true,
            ..atp.clone()
        },
    ] {
        let (cells, found) = nodes(&model, &task, &config);
        let named = cells.iter().enumerate().map(|(c, cell)| {
            (
                format!("a{}.h{}", cell.layer.unwrap(), cell.head.unwrap()),
                size(&|i| found[i][c]),
            )
        });
        assert_eq!(
            strongest(named.collect(), 2),
            ["a0.h0", "a1.h1"],
            "{}",
            config.name()
        );
    }
}

#[test]
fn what_has_no_gradient_is_refused_before_anything_runs() {
    let (model, task) = (&two_kinds()[0], task());
    let message = |config: &EdgeAttributionConfig| refused(model, &task, config);
    let at = |metric, config: EdgeAttributionConfig| EdgeAttributionConfig {
        metric: Some(metric),
        ..config
    };
    let error = message(&at(Metric::Kl, EdgeAttributionConfig::eap()));
    assert!(matches!(error, Error::NoGradient { .. }), "{error}");
    assert!(error.to_string().contains("eap-ig"), "{error}");
    assert!(matches!(
        message(&at(Metric::Rank, EdgeAttributionConfig::eap())),
        Error::NoGradient { .. }
    ));
    let none = message(&EdgeAttributionConfig::eap_ig(0));
    assert!(none.to_string().contains("at least one step"), "{none}");
    let zero = EdgeAttributionConfig {
        reference: Reference::Zero,
        ..EdgeAttributionConfig::eap_ig(5)
    };
    assert!(message(&zero).to_string().contains("eap-ig-activations"));
    let mean = EdgeAttributionConfig {
        reference: Reference::Mean,
        ..EdgeAttributionConfig::ceap(5)
    };
    assert!(message(&mean).to_string().contains("the pair's other run"));
    let none = message(&EdgeAttributionConfig::ceap(0));
    assert!(none.to_string().contains("at least one step"), "{none}");
    // An integral away from the clean run has a gradient.
    let kl = at(Metric::Kl, EdgeAttributionConfig::eap_ig(3));
    assert!(edges(model, &task, &kl).iter().flatten().any(|&x| x != 0.0));
    let star = NodeAttributionConfig::atp_star(PatchConfig {
        source: PatchSource::Zero,
        ..patch("z", Direction::Ablate)
    });
    refused(model, &task, &star);
    let inputs = NodeAttributionConfig::atp(patch("q_input", Direction::Noise));
    let error = refused(model, &task, &inputs);
    assert!(error.to_string().contains("eap"), "{error}");
}
