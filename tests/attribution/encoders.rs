//! Attribution on models whose attention sees both ways (BERT, RoBERTa, ModernBERT), read before the end.

use candle_core::{Device, Tensor};
use candlewick::methods::attribution::{
    DimAttributionConfig, EdgeAttributionConfig, GradientPath, NodeAttributionConfig, StepRule,
};
use candlewick::methods::{Method, Running, Subject, Watch, measurements};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::model::load::{LoadOptions, Loaded, load};
use candlewick::scores::Direction;
use candlewick::task::{Pair, Task};

use crate::edges::wide;
use crate::models::task::{pairs, task_of};
use crate::models::{encoder, encoders, modern_encoder};
use crate::{measured, near, nodes, patch, scores};

fn fixture(name: &str) -> (Loaded, std::collections::HashMap<String, Tensor>) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name);
    let loaded = load(folder.to_str().expect("utf-8"), &LoadOptions::default()).expect("it loads");
    let refs = candle_core::safetensors::load(folder.join("gradients.safetensors"), &Device::Cpu);
    (loaded, refs.expect("a reference"))
}

/// The pairs that transformers was given, and how many tokens stand behind what is read.
fn reference_pairs(refs: &std::collections::HashMap<String, Tensor>) -> Vec<Pair> {
    let ids = |name: &str| refs[name].to_dtype(candle_core::DType::U32).expect("ids");
    let rows = |name: &str| ids(name).to_vec2::<u32>().expect("rows");
    let list = |name: &str| ids(name).to_vec1::<u32>().expect("a list");
    let after = list("after")[0] as usize;
    let prompts = rows("clean_ids").into_iter().zip(rows("corrupted_ids"));
    let targets = list("answer").into_iter().zip(list("wrong"));
    let pair = |((clean, corrupted), (answer, wrong))| {
        Pair::new(clean, corrupted)
            .answer(answer)
            .wrong(wrong)
            .read_before(after)
    };
    prompts.zip(targets).map(pair).collect()
}

#[test]
fn attribution_at_the_mask_is_what_autograd_in_transformers_gives() {
    for family in ["bert-tiny", "roberta-tiny", "modernbert-tiny"] {
        let (loaded, refs) = fixture(family);
        let pairs = reference_pairs(&refs);
        let (metric, model) = (Metric::LogitDiff, &loaded.model);
        let task = Task::new("tiny", &loaded.tokenizer, metric, pairs.clone()).expect("a task");
        let logits = refs["logits"].to_vec2::<f32>().expect("rows");
        let expected: Vec<f64> = (logits.iter().zip(&pairs))
            .map(|(row, pair)| {
                let at = |ids: &[u32]| f64::from(row[ids[0] as usize]);
                at(&pair.target.answers) - at(&pair.target.wrong)
            })
            .collect();
        let atp = |sites: &str| NodeAttributionConfig::atp(patch(sites, Direction::Noise));
        for (name, sites) in [
            ("atp/embed", "embed:pos"),
            ("atp/attn_out", "attn_out:pos"),
            ("atp/mlp_out", "mlp_out:pos"),
            ("atp/z_head", "z"),
        ] {
            let config = atp(sites);
            let measured = measured(model, &task, &config);
            let clean: Vec<f64> = measured.examples.iter().map(|one| one.clean).collect();
            near(&clean, &expected, 1e-5, &format!("{family} metric"));
            let found = scores(&measured, Direction::Noise);
            let by_pair: Vec<f64> = (0..found[0].len())
                .flat_map(|cell| found.iter().map(move |of| of[cell]))
                .collect();
            near(
                &by_pair,
                &wide(&refs[name]),
                2e-4,
                &format!("{family} {name}"),
            );
        }
    }
}

/// A model in which token 1 is embedded beside token 0, and prompts in which the one stands for the other.
fn all_but_equal(mut model: Model, after: usize) -> (Model, Task) {
    let mut rows = model.weights.w_e.to_vec2::<f32>().expect("rows");
    let (vocab, d) = (rows.len(), rows[0].len());
    rows[1] = (rows[0].iter().enumerate())
        .map(|(i, x)| x + 2e-3 * (i as f32 * 1.3).sin())
        .collect();
    let w_e = Tensor::from_vec(rows.concat(), (vocab, d), &Device::Cpu).expect("a matrix");
    model.weights.w_e = w_e;
    let pair = |i: u32| {
        let clean: Vec<u32> = (0..8).map(|pos| (5 + i + 3 * pos) % 30 + 2).collect();
        let [mut with_0, mut with_1] = [clean.clone(), clean];
        with_0[1 + i as usize] = 0;
        with_1[1 + i as usize] = 1;
        let pair = Pair::new(with_0, with_1).answer(9).wrong(4);
        pair.read_before(after)
    };
    let task = task_of((0..3).map(pair).collect());
    (model, task)
}

#[test]
fn a_small_change_has_the_effect_that_its_gradient_says() {
    let models = [
        encoder(),
        modern_encoder(),
        fixture("bert-tiny").0.model,
        fixture("roberta-tiny").0.model,
        fixture("modernbert-tiny").0.model,
    ];
    for model in models {
        let (model, task) = all_but_equal(model, 3);
        let what = model.spec.family.clone();
        for sites in [
            "resid_pre:pos",
            "attn_out:pos",
            "mlp_out:pos",
            "z:pos",
            "q:pos,k:pos,v:pos",
            "resid_mid:pos",
        ] {
            for config in [
                NodeAttributionConfig::atp(patch(sites, Direction::Noise)),
                NodeAttributionConfig::atp_star(patch(sites, Direction::Noise)),
            ] {
                // GradDrop's means are sizes, which no patch has.
                let config = NodeAttributionConfig {
                    grad_drop: false,
                    ..config
                };
                let (_, estimates) = nodes(&model, &task, &config);
                let exact = scores(&measured(&model, &task, &config.patch), Direction::Noise);
                assert!(
                    exact.concat().iter().any(|effect| effect.abs() > 1e-5),
                    "{what} {sites}"
                );
                near(
                    &estimates.concat(),
                    &exact.concat(),
                    3e-2,
                    &format!("{what} {sites}"),
                );
            }
        }
    }
}

#[test]
fn integrals_along_a_hook_sum_to_the_change() {
    let (loaded, refs) = fixture("roberta-tiny");
    for (model, pairs) in [
        (encoder(), with_a_tail(pairs(), 4)),
        (modern_encoder(), with_a_tail(pairs(), 4)),
        (loaded.model, reference_pairs(&refs)),
    ] {
        let task = task_of(pairs);
        // The embeddings and the stream are full cuts; from layer 1 on the stream carries all of the change.
        let integrated = NodeAttributionConfig {
            path: GradientPath::Inputs {
                steps: 60,
                rule: StepRule::Midpoint,
            },
            ..NodeAttributionConfig::atp(patch("embed:all", Direction::Noise))
        };
        let along_the_stream =
            NodeAttributionConfig::conductance(patch("resid_pre:all", Direction::Noise), 200);
        for config in [integrated, along_the_stream] {
            let measured = measured(&model, &task, &config);
            let wanted: Vec<f64> = (measured.examples.iter())
                .flat_map(|one| vec![one.corrupted - one.clean; one.values.len()])
                .collect();
            let found = scores(&measured, Direction::Noise).concat();
            near(&found, &wanted, 1e-2, &model.spec.family);
        }
    }
}

/// The pairs, read before the last tokens.
fn with_a_tail(pairs: Vec<Pair>, after: usize) -> Vec<Pair> {
    let read = |pair: Pair| pair.read_before(after);
    pairs.into_iter().map(read).collect()
}

#[test]
fn dimensions_of_nodes_sum_to_the_nodes() {
    let (model, task) = (encoder(), task_of(with_a_tail(pairs(), 2)));
    let dims = measured(
        &model,
        &task,
        &DimAttributionConfig::along(GradientPath::Base),
    );
    let found = scores(&dims, Direction::Noise);
    let (cells, by_node) = nodes(
        &model,
        &task,
        &NodeAttributionConfig::atp(patch("mlp_out:all", Direction::Noise)),
    );
    for (pair, by_node) in by_node.iter().enumerate() {
        for (cell, expected) in cells.iter().zip(by_node) {
            let own = (dims.cells.iter().zip(&found[pair]))
                .filter(|(dim, _)| dim.head.is_none() && dim.layer == cell.layer);
            let sum: f64 = own.map(|(_, value)| value).sum();
            near(&[sum], &[*expected], 1e-4, "an MLP");
        }
    }
}

#[test]
fn what_goes_two_ways_is_refused_by_name() {
    let (model, task) = (encoder(), task_of(pairs()));
    let on = Subject {
        model: &model,
        task: &task,
    };
    let config = NodeAttributionConfig::atp(patch("ln1.normalized", Direction::Noise));
    let refused = measurements(on, &config, &Running::default(), &Watch::default());
    let message = refused.expect_err("refused").to_string();
    assert!(message.contains("use `resid_pre`"), "{message}");
}

#[test]
fn edges_are_refused_by_name() {
    let task = task_of(pairs());
    for model in encoders() {
        let on = Subject {
            model: &model,
            task: &task,
        };
        let eap: Box<dyn Method> = Box::new(EdgeAttributionConfig::eap_ig(2));
        let refused =
            measurements(on, &*eap, &Running::default(), &Watch::default()).expect_err("refused");
        let message = refused.to_string();
        assert!(message.contains("have no edges here"), "{message}");
        let says_norms = message.contains("norms the stream");
        assert_eq!(says_norms, model.spec.norms_stream(), "{message}");
    }
}
