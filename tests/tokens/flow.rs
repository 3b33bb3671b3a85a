//! Information flow routes: shares of states, and what is followed.

use std::collections::{BTreeMap, BTreeSet};

use candlewick::hooks::{Hook, Kind, Ln, StreamNode};
use candlewick::methods::flow::{
    Against, AltiFlowConfig, GlobEncConfig, Route, RouteEdge, RouteSettings, Rung, Via, globenc,
    proximity, routes,
};
use candlewick::methods::tokens::TokenMethod;
use candlewick::methods::{
    Method, PatchConfig, PatchSource, RouteConfig, Running, Subject, Watch, check, measurements,
};
use candlewick::model::Model;
use candlewick::run::{Request, run};
use candlewick::scores::{Direction, Measured};
use candlewick::spec::{Mlp, NormKind};

use crate::models::task::task;
use crate::models::{Pairs, encoder, every_kind, two_kinds};
use crate::{config, flat, near};

/// Of a state of f32 entries and some hundred parts of it.
const GAP: f64 = 2e-5;

fn all_routes(model: &Model, threshold: f64, renormalise: bool) -> Vec<Route> {
    let prompts = Pairs::new().clean;
    let settings = RouteSettings {
        threshold,
        renormalise,
        neurons: false,
    };
    let starts = vec![Pairs::LENGTH - 1; prompts.len()];
    routes(model, &prompts, &starts, settings).expect("runs")
}

/// The edges into each state.
fn by_reader(route: &Route) -> BTreeMap<StreamNode, Vec<&RouteEdge>> {
    let mut readers: BTreeMap<StreamNode, Vec<&RouteEdge>> = BTreeMap::new();
    for edge in &route.edges {
        readers.entry(edge.dst).or_default().push(edge);
    }
    readers
}

#[test]
fn parts_sum_to_the_state_and_their_shares_to_one() {
    for model in every_kind() {
        let family = &model.spec.family;
        for route in all_routes(&model, 0.0, false) {
            assert!(route.gap < GAP, "{family}: parts miss by {}", route.gap);
            assert_eq!(route.unmixed, 0, "{family}");
            for (node, edges) in by_reader(&route) {
                let sum: f64 = edges.iter().map(|edge| edge.importance).sum();
                assert!((sum - 1.0).abs() < 1e-9, "{family} {node}: {sum}");
                for edge in edges.iter().filter(|edge| edge.via == Via::Attention) {
                    let heads: f64 = edge.heads.iter().sum();
                    assert_eq!(edge.heads.len(), model.spec.n_heads);
                    assert!((heads - edge.importance).abs() < 1e-12, "{family}");
                    assert!(edge.src.expect("a source").pos() <= node.pos(), "{family}");
                }
            }
        }
    }
}

#[test]
fn a_threshold_of_nothing_keeps_every_part_and_of_all_only_the_start() {
    for model in every_kind() {
        let (layers, last) = (model.spec.n_layers, Pairs::LENGTH - 1);
        for route in all_routes(&model, 0.0, false) {
            // Each prompt's first token can be reached by attention to itself.
            assert!(
                route
                    .nodes
                    .iter()
                    .any(|node| *node == StreamNode::pre(0, last))
            );
            assert_eq!(
                route.nodes.last(),
                Some(&StreamNode::post(layers - 1, last))
            );
            let nodes: BTreeSet<StreamNode> = route.nodes.iter().copied().collect();
            assert_eq!(nodes.len(), route.nodes.len());
            let ends = |edge: &RouteEdge| {
                nodes.contains(&edge.dst) && edge.src.is_none_or(|src| nodes.contains(&src))
            };
            assert!(route.edges.iter().all(ends));
        }
        for route in all_routes(&model, 1.0, false) {
            assert!(route.edges.is_empty());
            assert_eq!(route.nodes, [StreamNode::post(layers - 1, last)]);
        }
    }
}

/// Shares of the parts of one state, written out from captured activations: `(via, source, head)`.
fn plain(model: &Model, node: StreamNode, example: usize) -> BTreeMap<(u8, usize, usize), f64> {
    let (spec, n) = (&model.spec, Pairs::LENGTH);
    let is_mid = node.hook().kind == Kind::ResidMid;
    let (layer, hook) = match node.hook() {
        hook if hook.kind == Kind::ResidPre => {
            let layer = node.layer() - 1;
            (layer, Hook::at(Kind::ResidPost, layer))
        }
        hook => (node.layer(), hook),
    };
    let has_mid = Kind::ResidMid.absent(spec).is_none();
    let (has_attention, has_mlp) = (is_mid || !has_mid, !is_mid && spec.mlp != Mlp::None);
    let before = if has_attention {
        Kind::ResidPre
    } else {
        Kind::ResidMid
    };
    let mut kinds = vec![before, Kind::V, Kind::Pattern];
    kinds.extend(has_mlp.then_some(Kind::MlpOut));
    kinds.extend(spec.has_post_norm().then_some(Kind::Scale(Ln::OnePost)));
    let mut hooks: Vec<Hook> = kinds.iter().map(|&kind| Hook::at(kind, layer)).collect();
    hooks.push(hook);
    let request = Request {
        capture: &hooks,
        ..Request::default()
    };
    let cache = run(model, &Pairs::new().clean, &request)
        .expect("runs")
        .cache;
    let of = |hook| {
        flat(
            &cache
                .get(hook)
                .and_then(|t| Ok(t.get(example)?))
                .expect("kept"),
        )
    };
    let at = |kind| of(Hook::at(kind, layer));
    let (d, e, t) = (spec.d_model, spec.d_head, node.pos());
    let row = |values: Vec<f32>| values[t * d..(t + 1) * d].to_vec();
    let mut parts = vec![((0, t, 0), row(at(before)))];
    if has_mlp {
        parts.push(((1, t, 0), row(at(Kind::MlpOut))));
    }
    if has_attention {
        let weights = &model.weights.blocks[layer];
        let (w_o, v, pattern) = (flat(&weights.w_o), at(Kind::V), at(Kind::Pattern));
        let bias = weights.b_o.as_ref().map_or(vec![0.0; d], flat);
        // Through the norm on attention's output, with the run's own divisor, and the multiplier.
        let written = |mut part: Vec<f32>, is_bias: bool| {
            if let Some(norm) = &weights.ln1_post {
                let (w, scale) = (flat(&norm.w), at(Kind::Scale(Ln::OnePost))[t]);
                let mean = match spec.norm {
                    NormKind::Layer => part.iter().sum::<f32>() / d as f32,
                    NormKind::Rms => 0.0,
                };
                let b = norm
                    .b
                    .as_ref()
                    .filter(|_| is_bias)
                    .map_or(vec![0.0; d], flat);
                for (at, x) in part.iter_mut().enumerate() {
                    *x = (*x - mean) / scale * w[at] + b[at];
                }
            }
            let factor = spec.residual_multiplier.unwrap_or(1.0);
            part.into_iter().map(|x| factor * x).collect::<Vec<f32>>()
        };
        parts.push(((3, 0, 0), written(bias, true)));
        for source in 0..=t {
            for head in 0..spec.n_heads {
                let value = &v[(source * spec.n_kv_heads + head / spec.group()) * e..][..e];
                let weight = pattern[(head * n + t) * n + source];
                let column = |c: usize| -> f32 {
                    (0..e)
                        .map(|k| weight * value[k] * w_o[(head * e + k) * d + c])
                        .sum()
                };
                parts.push((
                    (2, source, head),
                    written((0..d).map(column).collect(), false),
                ));
            }
        }
    }
    let whole = row(of(hook));
    let mut shares: BTreeMap<_, f64> = parts
        .iter()
        .map(|(key, part)| (*key, proximity(part, &whole)))
        .collect();
    let sum: f64 = shares.values().sum();
    shares.values_mut().for_each(|share| *share /= sum);
    shares
}

#[test]
fn shares_agree_with_the_definition_written_out() {
    for model in every_kind() {
        let routes = all_routes(&model, 0.0, false);
        let example = 1;
        let readers = by_reader(&routes[example]);
        // The last states of each kind.
        let nodes: Vec<StreamNode> = readers.keys().copied().rev().take(3).collect();
        for node in nodes {
            let shares = plain(&model, node, example);
            let share = |key| shares.get(&key).copied().unwrap_or(0.0);
            let (mut found, mut expected) = (Vec::new(), Vec::new());
            for edge in &readers[&node] {
                match edge.via {
                    Via::Stream => expected.push(share((0, node.pos(), 0))),
                    Via::Mlp => expected.push(share((1, node.pos(), 0))),
                    Via::Bias => expected.push(share((3, 0, 0))),
                    Via::Attention => {
                        found.extend(&edge.heads);
                        let source = edge.src.expect("a source").pos();
                        expected
                            .extend((0..model.spec.n_heads).map(|head| share((2, source, head))));
                        continue;
                    }
                }
                found.push(edge.importance);
            }
            near(
                &format!("{} {node}", model.spec.family),
                &found,
                &expected,
                1e-5,
            );
        }
    }
}

#[test]
fn what_is_followed_is_what_is_above_the_threshold() {
    for model in two_kinds() {
        let whole = all_routes(&model, 0.0, false);
        for threshold in [0.02, 0.1] {
            let kept = all_routes(&model, threshold, false);
            let scaled = all_routes(&model, threshold, true);
            for ((whole, kept), scaled) in whole.iter().zip(&kept).zip(&scaled) {
                // The same walk through the graph that has everything.
                let readers = by_reader(whole);
                let mut waiting = vec![*whole.nodes.last().expect("a start")];
                let (mut nodes, mut n_edges) = (BTreeSet::from([waiting[0]]), 0);
                while let Some(node) = waiting.pop() {
                    for edge in readers.get(&node).into_iter().flatten() {
                        if edge.importance > threshold {
                            n_edges += 1;
                            waiting.extend(edge.src.filter(|&src| nodes.insert(src)));
                        }
                    }
                }
                assert_eq!(kept.edges.len(), n_edges);
                assert_eq!(kept.nodes, nodes.into_iter().collect::<Vec<_>>());
                assert_eq!(scaled.nodes, kept.nodes);
                for edges in by_reader(scaled).values() {
                    let sum: f64 = edges.iter().map(|edge| edge.importance).sum();
                    assert!((sum - 1.0).abs() < 1e-12);
                }
            }
        }
    }
}

fn measure(model: &Model, config: &RouteConfig) -> Measured {
    let (task, running) = (task(), Running::default());
    let on = Subject { model, task: &task };
    measurements(on, config, &running, &Watch::default()).expect("measured")
}

/// The value of an example for the one cell that is meant.
fn value(
    measured: &Measured,
    example: usize,
    component: &str,
    layer: u32,
    head: Option<u32>,
) -> f64 {
    let is_it = |cell: &candlewick::scores::Cell| {
        (cell.component.as_str(), cell.layer, cell.head) == (component, Some(layer), head)
    };
    let at = measured.cells.iter().position(is_it).expect("a row");
    measured.examples[example].value(at).expect("a value")
}

#[test]
fn rows_are_the_edges_of_the_routes_and_totals_their_sums() {
    for model in two_kinds() {
        let routes = all_routes(&model, 0.04, false);
        let measured = measure(&model, &RouteConfig::default());
        let profile = measure(
            &model,
            &RouteConfig {
                profile: true,
                ..RouteConfig::default()
            },
        );
        for (i, route) in routes.iter().enumerate() {
            let of = |component: &str| -> f64 {
                let example = &measured.examples[i];
                let rows = example.cells.iter().zip(&example.values);
                let meant =
                    rows.filter(|(cell, _)| measured.cells[**cell as usize].component == component);
                meant.map(|(_, value)| value).sum()
            };
            for (component, via) in [
                ("stream", Via::Stream),
                ("attention", Via::Attention),
                ("mlp", Via::Mlp),
                ("bias", Via::Bias),
            ] {
                let edges = route.edges.iter().filter(|edge| edge.via == via);
                let sum: f64 = edges.map(|edge| edge.importance).sum();
                assert!((of(component) - sum).abs() < 1e-9, "{component}");
            }
            assert!((of("head") - of("attention")).abs() < 1e-9);
            assert!((of("attn.hook_z") - of("attention")).abs() < 1e-9);
            assert!((of("hook_mlp_out") - of("mlp")).abs() < 1e-9);
            for (layer, head) in model.spec.heads() {
                let total =
                    |measured| value(measured, i, "attn.hook_z", layer as u32, Some(head as u32));
                let edges = route.edges.iter().filter(|edge| {
                    edge.via == Via::Attention && edge.src.is_some_and(|src| src.layer() == layer)
                });
                let sum: f64 = edges.map(|edge| edge.heads[head]).sum();
                assert!((total(&measured) - sum).abs() < 1e-9);
                assert_eq!(total(&profile), total(&measured));
            }
        }
        // What is in one pair's route counts 0 in another's.
        let n = measured.cells.len();
        assert!(
            measured
                .examples
                .iter()
                .all(|example| example.cells.len() == n)
        );
        assert!(
            measured
                .cells
                .iter()
                .filter(|cell| cell.src.is_some())
                .count()
                > 10
        );
        assert!(profile.cells.iter().all(|cell| cell.src.is_none()));
    }
}

#[test]
fn a_contrast_is_the_difference_of_both_prompts_and_of_one_prompt_nothing() {
    let model = &two_kinds()[0];
    let contrast = RouteConfig {
        contrast: true,
        ..RouteConfig::default()
    };
    let (task, running) = (task(), Running::default());
    let measured = |task: &candlewick::task::Task, config: &RouteConfig| {
        let on = Subject { model, task };
        measurements(on, config, &running, &Watch::default()).expect("measured")
    };
    let swapped = crate::models::task::changed(&task, |pair| {
        std::mem::swap(&mut pair.clean, &mut pair.corrupted);
    });
    let same = crate::models::task::changed(&task, |pair| pair.corrupted = pair.clean.clone());
    let profile = |config: &RouteConfig| RouteConfig {
        profile: true,
        ..config.clone()
    };
    let both = measured(&task, &profile(&contrast));
    let clean = measured(&task, &profile(&RouteConfig::default()));
    let corrupted = measured(&swapped, &profile(&RouteConfig::default()));
    for (i, example) in both.examples.iter().enumerate() {
        let sides = clean.examples[i]
            .values
            .iter()
            .zip(&corrupted.examples[i].values);
        let expected: Vec<f64> = sides.map(|(a, b)| a - b).collect();
        near("contrast", &example.values, &expected, 1e-12);
        assert!(example.values.iter().any(|value| value.abs() > 1e-3));
    }
    let nothing = measured(&same, &contrast);
    let mut values = nothing.examples.iter().flat_map(|example| &example.values);
    // The two runs differ in what they make of the last layer, and so by rounding.
    assert!(values.all(|value| value.abs() < 1e-5));
}

#[test]
fn what_cannot_be_followed_is_refused_by_name() {
    let model = &two_kinds()[0];
    let refused = |config: RouteConfig| {
        check(&config as &dyn Method, &model.spec, &task())
            .expect_err("refused")
            .to_string()
    };
    for (threshold, said) in [(-0.1, "-0.1"), (1.5, "1.5"), (f64::NAN, "NaN")] {
        let settings = RouteSettings {
            threshold,
            ..RouteSettings::default()
        };
        let message = refused(RouteConfig {
            settings,
            ..RouteConfig::default()
        });
        assert!(
            message.contains(said) && message.contains("from 0 to 1"),
            "{message}"
        );
    }
    let at = |start: &str| RouteConfig {
        start: start.parse().expect("a position"),
        ..RouteConfig::default()
    };
    assert!(refused(at("99")).contains("10 tokens"));
    assert!(refused(at("@S9")).contains("S9"));
    let encoder = encoder();
    let message = check(&RouteConfig::default(), &encoder.spec, &task()).expect_err("an encoder");
    assert!(
        message.to_string().contains("information flow"),
        "{message}"
    );
    let prompts = Pairs::new().clean;
    assert!(routes(&encoder, &prompts, &[9; 3], RouteSettings::default()).is_err());
}

/// The value of each token's row of a component, of one example.
fn of_tokens(measured: &Measured, example: usize, component: &str) -> Vec<f64> {
    let example = &measured.examples[example];
    let rows = example.cells.iter().zip(&example.values);
    let rows = rows.map(|(&cell, value)| (&measured.cells[cell as usize], *value));
    let meant = rows.filter(|(cell, _)| cell.component == component && cell.src.is_none());
    meant.map(|(_, value)| value).collect()
}

/// What comes into and what goes out of each state, of one example.
fn balance(measured: &Measured, example: usize) -> BTreeMap<StreamNode, (f64, f64)> {
    let example = &measured.examples[example];
    let mut balance: BTreeMap<StreamNode, (f64, f64)> = BTreeMap::new();
    for (&cell, value) in example.cells.iter().zip(&example.values) {
        let cell = &measured.cells[cell as usize];
        let node = |name: &Option<String>| name.as_ref()?.parse::<StreamNode>().ok();
        if let Some(src) = node(&cell.src) {
            balance.entry(src).or_default().0 += value;
        }
        if let Some(dst) = node(&cell.dst) {
            balance.entry(dst).or_default().1 += value;
        }
    }
    balance
}

fn measured_of(model: &Model, method: &dyn Method) -> Measured {
    let (task, running) = (task(), Running::default());
    let on = Subject { model, task: &task };
    measurements(on, method, &running, &Watch::default()).expect("measured")
}

#[test]
fn as_much_leaves_a_state_as_came_to_it_and_tokens_get_altis_shares() {
    for model in every_kind() {
        let family = &model.spec.family;
        for whole in [AltiFlowConfig::alti(), AltiFlowConfig::alti_logit()] {
            let whole = AltiFlowConfig {
                threshold: 0.0,
                ..whole
            };
            let measured = measured_of(&model, &whole);
            let method = match whole.logit {
                true => TokenMethod::AltiLogit,
                false => TokenMethod::AltiRollout,
            };
            let tokens = crate::measure(&model, &config(method));
            for example in 0..measured.examples.len() {
                let own = of_tokens(&measured, example, "hook_embed");
                near(
                    family,
                    &own,
                    &crate::shares(&tokens, example, "hook_embed"),
                    1e-6,
                );
                for (node, (above, below)) in balance(&measured, example) {
                    let is_token = node.level() == 0;
                    let is_start = above == 0.0;
                    // What comes to a token goes nowhere further down.
                    if is_token {
                        assert!((above - own[node.pos()]).abs() < 1e-6, "{family} {node}");
                    } else if !is_start {
                        assert!(
                            (above - below).abs() < 1e-6,
                            "{family} {node}: {above} {below}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn weak_edges_of_altis_flow_are_left_out() {
    let model = &two_kinds()[1];
    let at = |threshold| AltiFlowConfig {
        threshold,
        ..AltiFlowConfig::alti()
    };
    // Means over all prompts: an edge that is weak in one of them keeps its value there.
    let edges = |measured: &Measured| -> Vec<f64> {
        let means = measured.means(Direction::Direct, false);
        let rows = measured.cells.iter().zip(means);
        let edges = rows.filter(|(cell, _)| cell.src.is_some());
        edges.map(|(_, value)| value).collect()
    };
    let (whole, some) = (measured_of(model, &at(0.0)), measured_of(model, &at(0.05)));
    let strong: Vec<f64> = edges(&whole)
        .into_iter()
        .filter(|value| *value > 0.05)
        .collect();
    assert_eq!(edges(&some), strong);
    assert!(strong.len() < edges(&whole).len());
    let elsewhere = AltiFlowConfig {
        start: "3".parse().expect("a position"),
        ..AltiFlowConfig::alti_logit()
    };
    let refused = check(&elsewhere, &model.spec, &task()).expect_err("refused");
    assert!(refused.to_string().contains("last position"), "{refused}");
}

/// Of one layer of an encoder and one prompt: what stands in row `i`, column `j` of GlobEnc's matrix, and of the rungs before it, written out.
fn plain_globenc(model: &Model, layer: usize, example: usize) -> [Vec<f64>; 5] {
    let (spec, n) = (&model.spec, Pairs::LENGTH);
    let (d, e) = (spec.d_model, spec.d_head);
    let last = layer + 1 == spec.n_layers;
    let behind = match last {
        true => Hook::global(Kind::Scale(Ln::Final)),
        false => Hook::at(Kind::Scale(Ln::One), layer + 1),
    };
    let kinds = [
        Kind::ResidPre,
        Kind::Scale(Ln::One),
        Kind::V,
        Kind::Pattern,
        Kind::Scale(Ln::Two),
    ];
    let mut hooks: Vec<Hook> = kinds.iter().map(|&kind| Hook::at(kind, layer)).collect();
    hooks.push(behind);
    let request = Request {
        capture: &hooks,
        ..Request::default()
    };
    let cache = run(model, &Pairs::new().clean, &request)
        .expect("runs")
        .cache;
    let of = |hook| {
        flat(
            &cache
                .get(hook)
                .and_then(|t| Ok(t.get(example)?))
                .expect("kept"),
        )
    };
    let at = |kind| of(Hook::at(kind, layer));
    let (pre, s0, v, pattern, s1, s2) = (
        at(kinds[0]),
        at(kinds[1]),
        at(kinds[2]),
        at(kinds[3]),
        at(kinds[4]),
        of(behind),
    );
    let weights = &model.weights.blocks[layer];
    let end = match model.weights.blocks.get(layer + 1) {
        Some(next) => next.ln1.as_ref(),
        None => model.weights.ln_final.as_ref(),
    };
    let w_o = flat(&weights.w_o);
    let normed = |x: &[f64], norm: &candlewick::spec::NormWeights, scale: f32| -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / d as f64;
        let w = flat(&norm.w);
        x.iter()
            .zip(w)
            .map(|(x, w)| (x - mean) / f64::from(scale) * f64::from(w))
            .collect()
    };
    let size = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut found: [Vec<f64>; 5] = Default::default();
    for i in 0..n {
        let (ln1, ln2) = (
            weights.ln1.as_ref().expect("normed"),
            weights.ln2.as_ref().expect("normed"),
        );
        let row: Vec<f64> = pre[i * d..(i + 1) * d]
            .iter()
            .map(|&x| f64::from(x))
            .collect();
        let bias = ln1.b.as_ref().map_or(vec![0.0; d], flat);
        let x: Vec<f64> = normed(&row, ln1, s0[i])
            .iter()
            .zip(bias)
            .map(|(x, b)| x + f64::from(b))
            .collect();
        for j in 0..n {
            let weight = |head: usize| f64::from(pattern[(head * n + i) * n + j]);
            let mut part = vec![0.0; d];
            for head in 0..spec.n_heads {
                for k in 0..e {
                    let value = weight(head)
                        * f64::from(v[(j * spec.n_kv_heads + head / spec.group()) * e + k]);
                    for (c, part) in part.iter_mut().enumerate() {
                        *part += value * f64::from(w_o[(head * e + k) * d + c]);
                    }
                }
            }
            let mean = (0..spec.n_heads).map(weight).sum::<f64>() / spec.n_heads as f64;
            found[0].push(mean);
            found[1].push(size(&part));
            if i == j {
                part.iter_mut().zip(&x).for_each(|(part, x)| *part += x);
            }
            found[2].push(size(&part));
            let part = normed(&part, ln2, s1[i]);
            found[3].push(size(&part));
            found[4].push(size(&normed(&part, end.expect("normed"), s2[i])));
        }
    }
    found
}

#[test]
fn globenc_agrees_with_its_definition_and_its_parts_sum_to_what_they_are_parts_of() {
    let model = encoder();
    let all = globenc(&model, &Pairs::new().clean).expect("runs");
    for (example, one) in all.iter().enumerate() {
        // Sums over sources are the stream behind attention, and the norm's output behind that.
        assert!(one.gaps.iter().all(|gap| *gap < GAP), "{:?}", one.gaps);
        for layer in [0, model.spec.n_layers - 1] {
            let plain = plain_globenc(&model, layer, example);
            let rungs = [Rung::W, Rung::N, Rung::NRes, Rung::NResLn, Rung::NResOut];
            for (rung, plain) in rungs.into_iter().zip(plain) {
                near(&rung.to_string(), &one.layers_of(rung)[layer], &plain, 1e-5);
            }
            // Both ways of mixing attention with the position itself leave rows of sum 1.
            for rung in [Rung::WFixedRes, Rung::WRes] {
                for row in one.layers_of(rung)[layer].chunks_exact(Pairs::LENGTH) {
                    assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{rung}");
                }
            }
        }
        // The global shares are a row of the product of the layers.
        for rung in Rung::ALL {
            let mut row = vec![0.0; Pairs::LENGTH];
            row[4] = 1.0;
            for layer in one.layers_of(rung).iter().rev() {
                let column = |j: usize| {
                    (0..row.len())
                        .map(|i| row[i] * layer[i * row.len() + j])
                        .sum()
                };
                row = (0..row.len()).map(column).collect();
            }
            let sum: f64 = row.iter().sum();
            row.iter_mut().for_each(|x| *x /= sum);
            near(&rung.to_string(), &one.shares(rung, 4), &row, 1e-9);
        }
    }
}

#[test]
fn globenc_flows_to_the_shares_of_its_tokens_and_is_ranked_against_removal() {
    let model = encoder();
    let config = GlobEncConfig {
        threshold: 0.0,
        against: Some(Against::Occlusion),
        ..GlobEncConfig::default()
    };
    let measured = measured_of(&model, &config);
    let removal = measured_of(
        &model,
        &PatchConfig {
            direction: Direction::Ablate,
            source: PatchSource::Zero,
            ..PatchConfig::sites("embed:pos").expect("a site")
        },
    );
    for example in 0..measured.examples.len() {
        let shares = of_tokens(&measured, example, "GlobEnc");
        for (node, (above, below)) in balance(&measured, example) {
            if node.level() == 0 {
                assert!((above - shares[node.pos()]).abs() < 1e-9, "{node}");
            } else if above > 0.0 {
                assert!((above - below).abs() < 1e-9, "{node}");
            }
        }
        let one = &removal.examples[example];
        let worth: Vec<f64> = one
            .values
            .iter()
            .map(|value| (value - one.clean).abs())
            .collect();
        let pairs: Vec<(f64, f64)> = shares.into_iter().zip(worth).collect();
        let spearman = measured.cells.iter().position(|cell| {
            cell.component == "GlobEnc" && cell.measure.as_deref() == Some("spearman")
        });
        let found = measured.examples[example].value(spearman.expect("a row"));
        assert_eq!(
            found,
            candlewick::scores::statistics::rank_correlation(&pairs)
        );
        assert!(found.is_some_and(|rho| rho.abs() <= 1.0));
    }
    let decoder = &two_kinds()[0];
    let refused = check(&GlobEncConfig::default(), &decoder.spec, &task()).expect_err("refused");
    assert!(refused.to_string().contains("encoder"), "{refused}");
}

/// Shares of the neurons in what an MLP writes at one position, written out from captured activations.
fn plain_neurons(model: &Model, layer: usize, example: usize, pos: usize) -> Vec<f64> {
    let spec = &model.spec;
    let mut kinds = vec![Kind::MlpPost, Kind::MlpOut];
    kinds.extend(spec.has_post_norm().then_some(Kind::Scale(Ln::TwoPost)));
    let hooks: Vec<Hook> = kinds.iter().map(|&kind| Hook::at(kind, layer)).collect();
    let request = Request {
        capture: &hooks,
        ..Request::default()
    };
    let cache = run(model, &Pairs::new().clean, &request)
        .expect("runs")
        .cache;
    let at = |kind: Kind| {
        let t = cache
            .get(Hook::at(kind, layer))
            .and_then(|t| Ok(t.get(example)?));
        flat(&t.expect("kept"))
    };
    let weights = &model.weights.blocks[layer];
    let mlp = weights.mlp.as_ref().expect("an MLP");
    let (w_out, d) = (flat(&mlp.w_out), spec.d_model);
    let (active, whole) = (at(Kind::MlpPost), at(Kind::MlpOut));
    let whole = &whole[pos * d..(pos + 1) * d];
    let written = |mut part: Vec<f32>, is_bias: bool| {
        if let Some(norm) = &weights.ln2_post {
            let (w, scale) = (flat(&norm.w), at(Kind::Scale(Ln::TwoPost))[pos]);
            let mean = match spec.norm {
                NormKind::Layer => part.iter().sum::<f32>() / d as f32,
                NormKind::Rms => 0.0,
            };
            let b = norm
                .b
                .as_ref()
                .filter(|_| is_bias)
                .map_or(vec![0.0; d], flat);
            for (at, x) in part.iter_mut().enumerate() {
                *x = (*x - mean) / scale * w[at] + b[at];
            }
        }
        let factor = spec.residual_multiplier.unwrap_or(1.0);
        part.into_iter().map(|x| factor * x).collect::<Vec<f32>>()
    };
    let neuron = |n: usize| -> f64 {
        let active = active[pos * spec.d_mlp + n];
        let part = w_out[n * d..(n + 1) * d]
            .iter()
            .map(|w| active * w)
            .collect();
        proximity(&written(part, false), whole)
    };
    let shares: Vec<f64> = (0..spec.d_mlp).map(neuron).collect();
    let bias = mlp.b_out.as_ref().map_or(vec![0.0; d], flat);
    let sum = shares.iter().sum::<f64>() + proximity(&written(bias, true), whole);
    shares.into_iter().map(|share| share / sum).collect()
}

#[test]
fn neurons_share_what_the_mlps_of_the_route_bring() {
    for model in every_kind() {
        let family = &model.spec.family;
        if model.spec.mlp == Mlp::None {
            let neurons = RouteConfig {
                neurons: 3,
                ..RouteConfig::default()
            };
            let refused = check(&neurons, &model.spec, &task()).expect_err("no MLP");
            assert!(refused.to_string().contains("no MLP"), "{refused}");
            continue;
        }
        let settings = RouteSettings {
            threshold: 0.04,
            renormalise: false,
            neurons: true,
        };
        let (prompts, last) = (Pairs::new().clean, Pairs::LENGTH - 1);
        let found = routes(&model, &prompts, &[last; 3], settings).expect("runs");
        for (example, route) in found.iter().enumerate() {
            for (&layer, neurons) in &route.neurons {
                let edges = route.edges.iter().filter(|edge| {
                    edge.via == Via::Mlp && edge.src.is_some_and(|src| src.layer() == layer)
                });
                let mut expected = vec![0.0; model.spec.d_mlp];
                for edge in edges {
                    let shares = plain_neurons(&model, layer, example, edge.dst.pos());
                    for (sum, share) in expected.iter_mut().zip(shares) {
                        *sum += edge.importance * share;
                    }
                }
                near(family, neurons, &expected, 1e-5);
            }
        }
    }
}

#[test]
fn the_strongest_neurons_have_rows() {
    let model = &two_kinds()[1];
    let with = |neurons| RouteConfig {
        profile: true,
        neurons,
        ..RouteConfig::default()
    };
    let (all, some) = (measure(model, &with(10_000)), measure(model, &with(4)));
    let means = |measured: &Measured| -> Vec<(u32, u32, f64)> {
        let means = measured.means(Direction::Direct, true);
        let rows = measured.cells.iter().zip(means);
        let mut rows: Vec<_> = rows
            .filter_map(|(cell, mean)| Some((cell.layer?, cell.neuron?, mean)))
            .collect();
        rows.sort_by(|a, b| b.2.total_cmp(&a.2));
        rows
    };
    assert_eq!(means(&some), means(&all)[..4]);
    // No bias stands on these MLPs: their neurons share all that they bring.
    for (i, example) in all.examples.iter().enumerate() {
        let rows = example.cells.iter().zip(&example.values);
        let of_neurons = rows.filter(|(cell, _)| all.cells[**cell as usize].neuron.is_some());
        let sum: f64 = of_neurons.map(|(_, value)| value).sum();
        let mlps: f64 = of_tokens(&all, i, "hook_mlp_out").iter().sum();
        assert!((sum - mlps).abs() < 1e-6, "{sum} {mlps}");
    }
}
