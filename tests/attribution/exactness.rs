//! Where estimates are exact, and where they are what a reference computed.

use candle_core::Device;
use candlewick::circuit::Graph;
use candlewick::methods::attribution::{
    EdgeAttributionConfig, EdgePath, GradientPath, NodeAttributionConfig, StepRule,
};
use candlewick::metric::Metric;
use candlewick::model::load::{LoadOptions, load};
use candlewick::nn::rules::Rules;
use candlewick::scores::Direction;
use candlewick::task::{Pair, Task};

use crate::edges::wide;
use crate::models::every_kind;
use crate::models::made::affine;
use crate::models::task::task;
use crate::{ALGEBRA, ceap, edges, exact_effects, measured, near, nodes, patch, scores};

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
fn rules_that_are_all_off_give_the_gradient_bit_for_bit() {
    let task = task();
    let atp = NodeAttributionConfig::atp(patch("z,resid_pre", Direction::Noise));
    let relp = NodeAttributionConfig {
        rules: Rules::gradient(),
        ..NodeAttributionConfig::relp(atp.patch.clone())
    };
    for model in every_kind() {
        if model.spec.encoder.is_none() {
            assert_eq!(nodes(&model, &task, &atp), nodes(&model, &task, &relp));
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
