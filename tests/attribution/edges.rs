//! EAP: its definition, its sums, and positions.

use candle_core::{D, Tensor};
use candlewick::circuit::Graph;
use candlewick::hooks::{Edit, Hook, Kind, Letter, Ln, Node, Op, Site, Value};
use candlewick::methods::attribution::{EdgeAttributionConfig, NodeAttributionConfig, StepRule};
use candlewick::methods::exact_edges::edge_of;
use candlewick::methods::{Running, Subject, VerifyOptions, Watch, verify};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::{GradientRequest, Request, gradients, run, run_with_cache};
use candlewick::scores::Direction;
use candlewick::spec::{Mlp, NormKind};

use crate::models::task::task;
use crate::models::{Pairs, every_kind, two_kinds};
use crate::{ALGEBRA, ceap, edges, exact_effects, measured, near, nodes, patch, products};

pub fn wide(t: &Tensor) -> Vec<f64> {
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
