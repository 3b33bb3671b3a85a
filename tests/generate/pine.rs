//! Attention that does not know the order of segments gives the same in every order, and what the paper's rules give.

use candle_core::{Device, IndexOp, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Op, Site, Value};
use candlewick::model::Model;
use candlewick::run::{
    Logits, Quiet, Request, Segments, check_pine, pine_greedy, pine_logits, run,
};
use candlewick::spec::{NormKind, Position, QkNorm};

use crate::gap;
use crate::models::{encoders, every_kind};

/// Sums over keys in another order, through all layers.
const TOLERANCE: f32 = 1e-4;

/// Two tokens, four segments of unequal length of which two begin alike, and three tokens.
fn prompt() -> (Vec<u32>, Segments) {
    let tokens = vec![1, 9, 5, 6, 7, 5, 8, 20, 21, 22, 23, 30, 3, 4, 11];
    let segments = Segments {
        prefix: 2,
        lengths: vec![3, 2, 4, 1],
    };
    (tokens, segments)
}

fn orders(n: usize) -> Vec<Vec<usize>> {
    match n {
        0 => vec![vec![]],
        n => (orders(n - 1).into_iter())
            .flat_map(|order| {
                (0..n).map(move |at| {
                    let mut order = order.clone();
                    order.insert(at, n - 1);
                    order
                })
            })
            .collect(),
    }
}

/// Models whose positions a head can give.
fn kinds() -> Vec<Model> {
    let all = every_kind().into_iter();
    let kinds: Vec<Model> = all
        .filter(|model| check_pine(&model.spec).is_ok())
        .collect();
    assert!(kinds.len() > 8, "{}", kinds.len());
    kinds
}

fn ordinary(model: &Model, tokens: &[u32], from: usize) -> Tensor {
    let request = Request {
        logits: Logits::All,
        ..Request::default()
    };
    let run = run(model, &[tokens.to_vec()], &request).expect("runs");
    let logits = run.logits.expect("asked for").get(0).expect("one prompt");
    logits.narrow(0, from, tokens.len() - from).expect("inside")
}

#[test]
fn no_order_of_the_segments_changes_the_logits() {
    let (tokens, segments) = prompt();
    let from = segments.end();
    let mut moved = 0;
    for model in kinds() {
        let first = pine_logits(&model, &tokens, &segments, from).expect("runs");
        let as_it_is = ordinary(&model, &tokens, from);
        let (mut most, mut most_ordinary) = (0f32, 0f32);
        for order in orders(4) {
            let (tokens, segments) = segments.ordered(&tokens, &order);
            let logits = pine_logits(&model, &tokens, &segments, from).expect("runs");
            most = most.max(gap(&first, &logits));
            most_ordinary = most_ordinary.max(gap(&as_it_is, &ordinary(&model, &tokens, from)));
        }
        assert!(most < TOLERANCE, "{}: {most}", model.spec.family);
        moved += usize::from(most_ordinary > 100.0 * TOLERANCE);
    }
    // The same models as they are see the order.
    assert!(moved > 8, "{moved}");
}

#[test]
fn of_one_segment_nothing_changes() {
    let (tokens, _) = prompt();
    for model in kinds() {
        for (prefix, length) in [(2, 10), (0, 5), (4, 1)] {
            let segments = Segments {
                prefix,
                lengths: vec![length],
            };
            let from = segments.end();
            let pine = pine_logits(&model, &tokens, &segments, from).expect("runs");
            let gap = gap(&pine, &ordinary(&model, &tokens, from));
            assert!(gap < TOLERANCE, "{} {segments:?}: {gap}", model.spec.family);
        }
    }
}

#[test]
fn segments_that_are_the_same_are_told_apart_by_nothing() {
    let tokens = vec![1, 5, 6, 7, 5, 6, 9, 5, 6, 3, 4];
    let segments = Segments {
        prefix: 1,
        lengths: vec![2, 1, 2, 1, 2],
    };
    for model in kinds() {
        let first = pine_logits(&model, &tokens, &segments, 10).expect("runs");
        for order in orders(5).into_iter().step_by(7) {
            let (tokens, segments) = segments.ordered(&tokens, &order);
            let logits = pine_logits(&model, &tokens, &segments, 10).expect("runs");
            let gap = gap(&first, &logits);
            assert!(gap < TOLERANCE, "{} {order:?}: {gap}", model.spec.family);
        }
    }
}

#[test]
fn a_continuation_is_that_of_its_logits_in_every_order() {
    let (tokens, segments) = prompt();
    for model in kinds() {
        let greedy = |tokens: &[u32], segments: &Segments| {
            pine_greedy(&model, tokens, segments, 4, &[], &Quiet).expect("writes")
        };
        let first = greedy(&tokens, &segments);
        let mut text = tokens.clone();
        for &token in &first {
            let logits = pine_logits(&model, &text, &segments, text.len() - 1).expect("runs");
            let best = logits
                .argmax(1)
                .expect("a row")
                .to_vec1::<u32>()
                .expect("ids");
            assert_eq!(best, [token], "{}", model.spec.family);
            text.push(token);
        }
        for order in orders(4).into_iter().step_by(5) {
            let (tokens, segments) = segments.ordered(&tokens, &order);
            assert_eq!(greedy(&tokens, &segments), first, "{}", model.spec.family);
        }
        let stopped = pine_greedy(&model, &tokens, &segments, 4, &first[..1], &Quiet);
        assert_eq!(stopped.expect("writes"), first[..1]);
    }
}

/// A dot product and a rotation by halves, in f64.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn turned(x: &[f64], pos: usize, theta: f64, dims: usize) -> Vec<f64> {
    let half = dims / 2;
    let mut out = x.to_vec();
    for i in 0..half {
        let angle = pos as f64 * theta.powf(-2.0 * i as f64 / dims as f64);
        let (sin, cos) = angle.sin_cos();
        out[i] = x[i] * cos - x[i + half] * sin;
        out[i + half] = x[i + half] * cos + x[i] * sin;
    }
    out
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// z of one layer by the rules of the paper, key by key: `q [tokens][heads][d]`, `k`, `v [tokens][kv heads][d]`.
#[allow(clippy::needless_range_loop)]
fn slow_layer(
    [q, k, v]: [&[Vec<Vec<f64>>]; 3],
    segments: &Segments,
    [theta, scale]: [f64; 2],
) -> Vec<Vec<Vec<f64>>> {
    let (n, heads, groups, d) = (q.len(), q[0].len(), k[0].len(), q[0][0].len());
    let count = segments.lengths.len();
    let (prefix, end) = (segments.prefix, segments.end());
    let segment_of = |t: usize| (0..count).find(|&s| segments.positions(s).contains(&t));
    let mut z = vec![vec![vec![0.0; d]; heads]; n];
    for head in 0..heads {
        let group = head * groups / heads;
        for t in 0..n {
            let own = segment_of(t);
            // What the segments are worth to this token, or to all tokens of its segment.
            let askers: Vec<usize> = match own {
                Some(own) => segments.positions(own).collect(),
                None => vec![t],
            };
            let mut importance = vec![0.0; count];
            for asker in askers {
                let keys: Vec<usize> = (prefix..end)
                    .filter(|&key| own.is_none() || segment_of(key) != own)
                    .collect();
                let scores: Vec<f64> = keys
                    .iter()
                    .map(|&key| scale * dot(&q[asker][head], &k[key][group]))
                    .collect();
                for (key, weight) in keys.iter().zip(softmax(&scores)) {
                    let segment = segment_of(*key).expect("inside");
                    importance[segment] += weight / segments.lengths[segment] as f64;
                }
            }
            let mut order: Vec<usize> = (0..count).filter(|&s| Some(s) != own).collect();
            order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
            let ranked: Vec<usize> = own.into_iter().chain(order).collect();
            let place = |key: usize| match segment_of(key) {
                None => key,
                Some(segment) => {
                    let rank = ranked.iter().position(|&s| s == segment).expect("ranked");
                    let before: usize = ranked[..rank].iter().map(|&s| segments.lengths[s]).sum();
                    end - segments.lengths[segment] - before + key
                        - segments.positions(segment).start
                }
            };
            let here = place(t);
            let is_seen = |key: &usize| {
                let among = match (own, t < prefix) {
                    (_, true) => *key < prefix,
                    (Some(_), _) => *key < end,
                    (None, false) => true,
                };
                among && place(*key) <= here
            };
            let keys: Vec<usize> = (0..n).filter(is_seen).collect();
            let query = turned(&q[t][head], here, theta, d);
            let score =
                |&key: &usize| scale * dot(&query, &turned(&k[key][group], place(key), theta, d));
            let scores: Vec<f64> = keys.iter().map(score).collect();
            for (key, weight) in keys.iter().zip(softmax(&scores)) {
                for i in 0..d {
                    z[t][head][i] += weight * v[*key][group][i];
                }
            }
        }
    }
    z
}

#[test]
fn the_slow_twin_of_the_papers_rules_agrees() {
    let (tokens, segments) = prompt();
    let mut compared = 0;
    for model in every_kind() {
        let spec = &model.spec;
        let Position::Rotary(rotary) = &spec.position else {
            continue;
        };
        let is_plain = spec.norm == NormKind::Rms
            && spec.family == "llama"
            && spec.qk_norm == QkNorm::None
            && rotary.dims == spec.d_head
            && spec.attn_softcap.is_none()
            && spec.windows.iter().all(Option::is_none);
        if !is_plain {
            continue;
        }
        compared += 1;
        // Layer after layer: q, k, v of a run whose earlier layers mix what the twin says.
        let mut edits: Vec<Edit> = Vec::new();
        for layer in 0..spec.n_layers {
            let hooks = [Kind::Q, Kind::K, Kind::V].map(|kind| Hook::at(kind, layer));
            let request = Request {
                edits: &edits,
                capture: &hooks,
                ..Request::default()
            };
            let cache = run(&model, std::slice::from_ref(&tokens), &request)
                .expect("runs")
                .cache;
            let read = |hook: Hook| -> Vec<Vec<Vec<f64>>> {
                let values = cache.get(hook).expect("captured").i(0).expect("one prompt");
                let values = values.to_dtype(candle_core::DType::F64).expect("f64");
                values.to_vec3().expect("[pos, head, d]")
            };
            let [q, k, v] = hooks.map(read);
            let scale = f64::from(spec.attn_scale[layer]);
            let theta = f64::from(rotary.bases[0].theta as f32);
            let z = slow_layer([&q, &k, &v], &segments, [theta, scale]);
            let shape = (tokens.len(), spec.n_heads, spec.d_head);
            let flat = z
                .into_iter()
                .flatten()
                .flatten()
                .map(|x| x as f32)
                .collect();
            let z = Tensor::from_vec::<_, f32>(flat, shape, &Device::Cpu).expect("shape");
            let site = Site::all(Hook::at(Kind::Z, layer));
            edits.push(Edit::new(site, Op::Replace(Value::Tensor(z))));
        }
        let request = Request {
            edits: &edits,
            ..Request::default()
        };
        let slow = run(&model, std::slice::from_ref(&tokens), &request)
            .expect("runs")
            .logits;
        let last = tokens.len() - 1;
        let fast = pine_logits(&model, &tokens, &segments, last).expect("runs");
        let gap = gap(&fast, &slow.expect("asked for"));
        assert!(gap < TOLERANCE, "{}: {gap}", spec.family);
    }
    assert!(compared > 0);
}

#[test]
fn what_has_no_order_to_forget_is_refused_by_name() {
    let (tokens, segments) = prompt();
    let learned = every_kind().into_iter();
    let mut learned = learned.filter(|model| model.spec.position == Position::Learned);
    let model = learned.next().expect("a kind has them");
    let error = pine_logits(&model, &tokens, &segments, 13).expect_err("learned positions");
    assert!(error.to_string().contains("learned positions"), "{error}");
    for model in encoders() {
        assert!(check_pine(&model.spec).is_err());
    }
    let model = kinds().remove(0);
    let says = |prefix: usize, lengths: &[usize], from: usize, what: &str| {
        let segments = Segments {
            prefix,
            lengths: lengths.to_vec(),
        };
        let error = pine_logits(&model, &tokens, &segments, from).expect_err(what);
        assert!(error.to_string().contains(what), "{error}");
    };
    says(2, &[], 13, "there must be one");
    says(2, &[3, 0], 13, "each segment needs a token");
    says(2, &[3, 10], 14, "a suffix must follow");
    says(2, &[3, 2], 5, "in the suffix");
    says(2, &[3, 2], 15, "in the suffix");
}
