//! Relevance rules share the metric out and lose nothing: `sum x rho(x)` is the same before and after a module, and where the
//! softmax leaks, by how much is known. Models here have no biases, which would take a share.
//!
//! Source: Jafari et al. 2025 (RelP); Ali et al. 2022 (CP-LRP); Achtibat et al. 2024 (AttnLRP).

use candle_core::Tensor;
use candlewick::hooks::{Hook, Kind, Ln};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::{GateRule, Rules, SoftcapRule};
use candlewick::run::{Cache, GradientRequest, Gradients, gradients, run_with_cache};
use candlewick::spec::{Block, Mlp, NormWeights, Position};

use crate::models::{Pairs, every_kind};
use crate::{MakeRules, flat, gap, variations};

/// Of the absolute terms of a sum, which cancel.
const TOLERANCE: f64 = 2e-5;

fn without_biases() -> Vec<Model> {
    let models = variations::all().into_iter().enumerate();
    let bare = |(i, model): (usize, Model)| {
        Model::random_without_biases(model.spec, 500 + i as u64).expect("a spec of the engine")
    };
    models.map(bare).collect()
}

/// A run's activations and what the rules make of their gradients.
struct Relevance {
    values: Cache,
    gradients: Gradients,
}

impl Relevance {
    fn new(model: &Model, rules: Rules) -> Self {
        let pairs = Pairs::new();
        let hooks = Hook::all(&model.spec);
        let (_, values) = run_with_cache(model, &pairs.clean, &hooks).expect("runs");
        let request = GradientRequest {
            rules,
            ..GradientRequest::new(Metric::LogitDiff, &pairs.targets, &hooks)
        };
        let gradients = gradients(model, &pairs.clean, &request).expect("differentiates");
        Relevance { values, gradients }
    }

    /// `sum x rho(x)` of each prompt, and of its absolute terms.
    fn of(&self, hook: Hook) -> Vec<[f64; 2]> {
        let value = flat(&self.values.get(hook).expect("captured"));
        let gradient = flat(&self.gradients.cache.get(hook).expect("asked for"));
        let prompts = self.values.batch;
        let each = value.len() / prompts;
        // A masked score has no gradient, and zero times infinity no value.
        let term = |i: usize| match gradient[i] {
            0.0 => 0.0,
            gradient => value[i] * gradient,
        };
        let sums = |prompt: usize| {
            let terms = || (prompt * each..(prompt + 1) * each).map(term);
            [terms().sum(), terms().map(f64::abs).sum()]
        };
        (0..prompts).map(sums).collect()
    }

    /// Holds weighted sums of relevance against each other, prompt by prompt.
    fn check(&self, left: &[(f64, Hook)], right: &[(f64, Hook)], what: &str) {
        let add = |side: &[(f64, Hook)]| -> Vec<[f64; 2]> {
            let mut total = vec![[0.0; 2]; self.values.batch];
            for &(weight, hook) in side {
                for (total, [sum, size]) in total.iter_mut().zip(self.of(hook)) {
                    total[0] += weight * sum;
                    total[1] += weight.abs() * size;
                }
            }
            total
        };
        for (left, right) in add(left).into_iter().zip(add(right)) {
            let far = (left[0] - right[0]).abs();
            let size = left[1].max(right[1]).max(1e-3);
            assert!(far < TOLERANCE * size, "{what}: {} {}", left[0], right[0]);
        }
    }
}

#[test]
fn every_module_passes_on_the_relevance_that_it_gets() {
    let sets: [(&str, MakeRules); 4] = [
        ("relp", Rules::relp),
        ("relp with frozen patterns", Rules::relp_frozen_pattern),
        ("attn_lrp", Rules::attn_lrp),
        ("cp_lrp", Rules::cp_lrp),
    ];
    for model in without_biases() {
        let spec = &model.spec;
        for (name, rules) in sets {
            let rules = rules();
            let relevance = Relevance::new(&model, rules.clone());
            for layer in 0..spec.n_layers {
                let same = |left: &[(f64, Kind)], right: &[(f64, Kind)]| {
                    let absent = |&(_, kind): &(f64, Kind)| kind.absent(spec).is_some();
                    if left.iter().chain(right).any(absent) {
                        return;
                    }
                    let at = |side: &[(f64, Kind)]| -> Vec<(f64, Hook)> {
                        let hook = |&(weight, kind)| (weight, Hook::at(kind, layer));
                        side.iter().map(hook).collect()
                    };
                    let what = format!("{} {name} {layer} {left:?} {right:?}", spec.family);
                    relevance.check(&at(left), &at(right), &what);
                };
                let equal = |left: Kind, right: Kind| same(&[(1.0, left)], &[(1.0, right)]);
                // Norms, and the matrices after them.
                equal(Kind::MlpIn, Kind::Normalized(Ln::Two));
                equal(Kind::Normalized(Ln::OnePost), Kind::AttnOut);
                equal(Kind::Normalized(Ln::TwoPost), Kind::MlpOut);
                equal(Kind::QInput, Kind::Q);
                equal(Kind::KInput, Kind::K);
                equal(Kind::VInput, Kind::V);
                // Norms of queries and keys, and rotation.
                equal(Kind::Q, Kind::RotQ);
                equal(Kind::K, Kind::RotK);
                // Products of attention: half of a product's relevance to each factor, where the rules halve it.
                let share = f64::from(rules.value);
                same(&[(1.0, Kind::V)], &[(share, Kind::Z)]);
                let capped = spec.attn_softcap.is_some() && rules.softcap == SoftcapRule::Exact;
                // Part of what ALiBi's scores are is no product.
                let biased = matches!(spec.position, Position::Alibi(_));
                if !capped && !biased {
                    let share = f64::from(rules.query_key);
                    same(&[(1.0, Kind::RotQ)], &[(share, Kind::AttnScores)]);
                    same(&[(1.0, Kind::RotK)], &[(share, Kind::AttnScores)]);
                }
                equal(Kind::Z, Kind::Result);
                equal(Kind::Z, Kind::AttnOut);
                // The MLP.
                equal(Kind::MlpPost, Kind::MlpOut);
                match spec.mlp {
                    Mlp::Gated => same(
                        &[(1.0, Kind::MlpPre), (1.0, Kind::MlpPreLinear)],
                        &[(1.0, Kind::MlpPost)],
                    ),
                    Mlp::Plain | Mlp::None => equal(Kind::MlpPre, Kind::MlpPost),
                }
                if rules.gate == GateRule::LinearOnly {
                    equal(Kind::MlpPreLinear, Kind::MlpPost);
                }
                equal(Kind::MlpIn, Kind::MlpOut);
                // The sum that goes on.
                equal(Kind::ResidMid, Kind::ResidPost);
            }
        }
    }
}

#[test]
fn conservative_propagation_shares_out_the_metric() {
    for model in without_biases() {
        let spec = &model.spec;
        let relevance = Relevance::new(&model, Rules::cp_lrp());
        let check = |hooks: &[Hook]| {
            let names: Vec<String> = hooks.iter().map(Hook::to_string).collect();
            for (prompt, value) in relevance.gradients.values.iter().enumerate() {
                let parts = hooks.iter().map(|&hook| relevance.of(hook)[prompt]);
                let [sum, size] = parts.fold([0.0; 2], |[sum, size], [x, y]| [sum + x, size + y]);
                assert!(
                    (sum - value).abs() < TOLERANCE * size.max(1.0),
                    "{} {}: {sum} of {value}",
                    spec.family,
                    names.join(" + ")
                );
            }
        };
        let embeddings = [Kind::Embed, Kind::PosEmbed].map(Hook::global);
        let there = |hook: &Hook| hook.check(spec).is_ok();
        check(&embeddings.into_iter().filter(there).collect::<Vec<_>>());
        for layer in 0..spec.n_layers {
            check(&[Hook::at(Kind::ResidPre, layer)]);
            check(&[Hook::at(Kind::ResidPost, layer)]);
        }
    }
}

/// What the input does not get, the biases do: `sum R_in + sum over biases <b, rho(b)>` is the metric.
#[test]
fn biases_take_their_share_of_the_metric() {
    let mut tried = 0;
    for model in every_kind() {
        // Where no norm stands on a branch's output, hooks give the gradient at every bias.
        let spec = &model.spec;
        let weights = &model.weights;
        let shared = spec.block == (Block::Parallel { shared_norm: true });
        if weights.blocks[0].b_o.is_none() || spec.has_post_norm() || shared {
            continue;
        }
        tried += 1;
        let relevance = Relevance::new(&model, Rules::cp_lrp());
        let gradient = |hook: Hook| -> Tensor {
            let gradient = relevance.gradients.cache.get(hook).expect("asked for");
            // One row for each prompt and position; the last axes together, as biases lie.
            gradient
                .flatten(0, 1)
                .and_then(|t| t.flatten_from(1))
                .expect("rows")
        };
        let mut total: f64 = [Kind::Embed, Kind::PosEmbed]
            .into_iter()
            .filter(|kind| kind.absent(spec).is_none())
            .flat_map(|kind| relevance.of(Hook::global(kind)))
            .map(|[sum, _]| sum)
            .sum();
        let mut add = |bias: &Tensor, at: &Tensor| {
            let terms = at.broadcast_mul(bias).expect("a bias for each column");
            total += flat(&terms).into_iter().sum::<f64>();
        };
        let mut add_norm = |w: &Option<NormWeights>, hook: Hook| {
            if let Some(NormWeights { w, b: Some(b) }) = w {
                // The hook stands before the weight.
                add(&(b / w).expect("a quotient"), &gradient(hook));
            }
        };
        add_norm(&weights.ln_final, Hook::global(Kind::Normalized(Ln::Final)));
        for (layer, block) in weights.blocks.iter().enumerate() {
            add_norm(&block.ln1, Hook::at(Kind::Normalized(Ln::One), layer));
            add_norm(&block.ln2, Hook::at(Kind::Normalized(Ln::Two), layer));
        }
        for (layer, block) in weights.blocks.iter().enumerate() {
            let at = |kind| gradient(Hook::at(kind, layer));
            let values = spec.n_kv_heads * spec.d_head;
            let b_qkv = block.b_qkv.as_ref().expect("all biases or none");
            let before = b_qkv.elem_count() - values;
            add(
                &b_qkv.narrow(0, before, values).expect("values last"),
                &at(Kind::V),
            );
            add(block.b_o.as_ref().expect("seen above"), &at(Kind::AttnOut));
            if let Some(mlp) = &block.mlp {
                add(mlp.b_in.as_ref().expect("all biases"), &at(Kind::MlpPre));
                add(mlp.b_out.as_ref().expect("all biases"), &at(Kind::MlpOut));
            }
        }
        let b_u = flat(weights.b_u.as_ref().expect("all biases"));
        for target in &Pairs::new().targets {
            let mean = |ids: &[u32]| {
                ids.iter().map(|&id| b_u[id as usize]).sum::<f64>() / ids.len() as f64
            };
            total += mean(&target.answers) - mean(&target.wrong);
        }
        let value: f64 = relevance.gradients.values.iter().sum();
        assert!(
            (total - value).abs() < 1e-4,
            "{}: {total} {value}",
            spec.family
        );
    }
    assert!(
        tried >= 3,
        "GPT-2, NeoX and attention-only models have biases"
    );
}

/// `sum R_in + sum over heads of (R_A - R_S)` is the metric, with `R_A = <A, rho(A)> / 2` of the pattern and `R_S` of the scores.
#[test]
fn what_attn_lrp_loses_it_loses_at_the_softmax() {
    for model in without_biases() {
        let spec = &model.spec;
        // The slopes of ALiBi are a bias of the scores, which keeps its share.
        if spec.alibi_slope(0).is_some() {
            continue;
        }
        let relevance = Relevance::new(&model, Rules::attn_lrp());
        let mut total: Vec<[f64; 2]> = relevance.of(Hook::global(Kind::Embed));
        let mut add = |weight: f64, hook: Hook| {
            for (total, [sum, size]) in total.iter_mut().zip(relevance.of(hook)) {
                total[0] += weight * sum;
                total[1] += weight.abs() * size;
            }
        };
        if Kind::PosEmbed.absent(spec).is_none() {
            add(1.0, Hook::global(Kind::PosEmbed));
        }
        for layer in 0..spec.n_layers {
            add(0.5, Hook::at(Kind::Pattern, layer));
            add(-0.5, Hook::at(Kind::AttnScores, layer));
        }
        for ([sum, size], value) in total.into_iter().zip(&relevance.gradients.values) {
            assert!(
                (sum - value).abs() < TOLERANCE * size.max(1.0),
                "{}: {sum} of {value}",
                spec.family
            );
        }
    }
}

/// A stream's gradient is the sum of those at everything that reads it: each head's three inputs, the MLP, and the stream after.
#[test]
fn a_stream_gets_the_gradients_of_its_readers() {
    for model in every_kind().into_iter().chain(without_biases()) {
        let spec = &model.spec;
        for rules in [Rules::gradient(), Rules::relp(), Rules::attn_lrp()] {
            let relevance = Relevance::new(&model, rules);
            let cache = &relevance.gradients.cache;
            for layer in 0..spec.n_layers {
                let at = |kind| cache.get(Hook::at(kind, layer)).expect("asked for");
                let sum = |a: &Tensor, b: &Tensor| (a + b).expect("one shape");
                let mut readers = at(Kind::AttnOut);
                for kind in [Kind::QInput, Kind::KInput, Kind::VInput] {
                    readers = sum(&readers, &at(kind).sum(2).expect("over heads"));
                }
                let parallel = matches!(spec.block, Block::Parallel { .. });
                if spec.mlp != Mlp::None && parallel {
                    readers = sum(&readers, &at(Kind::MlpIn));
                }
                let far = gap(&readers, &at(Kind::ResidPre));
                assert!(far < TOLERANCE, "{} {layer}: {far}", spec.family);
                if spec.has_resid_mid() {
                    let readers = sum(&at(Kind::MlpOut), &at(Kind::MlpIn));
                    let far = gap(&readers, &at(Kind::ResidMid));
                    assert!(far < TOLERANCE, "{} {layer}: {far}", spec.family);
                }
            }
        }
    }
}
