//! What must not change a gradient: what else is asked for, the other prompts of a batch, memory, the form of the kernels.

use candle_core::DType;
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::nn::rules::Rules;
use candlewick::run::Gradients;

use crate::case::Case;
use crate::models::{Pairs, cast, every_kind, matrices_in};
use crate::{RULES, flat, gap};

/// Products of other shapes round in another order. At a norm's divisor the terms of the gradient cancel, and leave more of it.
fn rounding(hook: Hook) -> f64 {
    match hook.kind {
        Kind::Scale(_) => 1e-4,
        _ => 5e-6,
    }
}

fn check(model: &Model, ours: &Gradients, other: &Gradients, hooks: &[Hook], what: &str) {
    for (a, b) in ours.values.iter().zip(&other.values) {
        assert!(
            (a - b).abs() < 1e-5,
            "{} {what}: {a} {b}",
            model.spec.family
        );
    }
    for &hook in hooks {
        let [a, b] = [ours, other].map(|gradients| gradients.cache.get(hook).expect("asked for"));
        let far = gap(&a, &b);
        assert!(
            far < rounding(hook),
            "{} {what} {hook}: {far}",
            model.spec.family
        );
    }
}

#[test]
fn a_gradient_is_the_same_whatever_else_is_asked_for() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        // What nobody asks for is not made, and more so where patterns count as constants.
        for (name, rules) in [("gradient", Rules::gradient()), ("cp_lrp", Rules::cp_lrp())] {
            let case = Case::new(Metric::LogitDiff, rules);
            let all = case.ours(&model, &hooks);
            for &hook in &hooks {
                check(&model, &case.ours(&model, &[hook]), &all, &[hook], name);
            }
        }
    }
}

#[test]
fn a_layer_that_memory_has_no_room_for_is_run_again() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        let at = |kind| Site::all(Hook::at(kind, 1));
        let edits = vec![
            Edit::new(at(Kind::ResidPre).at(4), Op::Scale(2.0)),
            Edit::new(at(Kind::Z).at(6), Op::Zero),
            Edit::block(at(Kind::AttnScores), [Pos::FromEnd(1)], [Pos::Index(2)]),
        ];
        for edits in [Vec::new(), edits] {
            for (name, rules) in RULES {
                let in_memory = |memory| {
                    let case = Case {
                        edits: edits.clone(),
                        memory,
                        ..Case::new(Metric::Kl, rules())
                    };
                    case.ours(&model, &hooks)
                };
                let whole = in_memory(None);
                // Nothing at all, and some layers but not others.
                for memory in [1, 10_000, 60_000] {
                    let what = format!("{name} in {memory} bytes");
                    check(&model, &in_memory(Some(memory)), &whole, &hooks, &what);
                }
            }
        }
    }
}

#[test]
fn a_prompt_alone_has_the_gradient_that_it_has_among_others() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        let among = Case::new(Metric::LogProb, Rules::gradient());
        let alone = Case {
            prompts: Pairs::new().corrupted[..1].to_vec(),
            ..Case::new(Metric::LogProb, Rules::gradient())
        };
        let (among, alone) = (among.ours(&model, &hooks), alone.ours(&model, &hooks));
        assert!((alone.values[0] - among.values[0]).abs() < 1e-5);
        for &hook in &hooks {
            let among = among.cache.get(hook).expect("asked for");
            let among = among.narrow(0, 0, 1).expect("a prompt");
            let far = gap(&alone.cache.get(hook).expect("asked for"), &among);
            assert!(far < rounding(hook), "{} {hook}: {far}", model.spec.family);
        }
    }
}

#[test]
fn matrices_in_16_bits_have_the_gradients_of_the_same_matrices_in_f32() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        let [narrow, wide] = matrices_in(&model, DType::BF16);
        // The first metric reads a few logits, the second all of them.
        for metric in [Metric::LogProb, Metric::Js] {
            let case = Case::new(metric, Rules::gradient());
            let [narrow, wide] = [&narrow, &wide].map(|model| case.ours(model, &hooks));
            for &hook in &hooks {
                let [a, b] = [&narrow, &wide].map(|g| g.cache.get(hook).expect("asked for"));
                let far = gap(&a, &b);
                assert!(far < rounding(hook), "{} {hook}: {far}", model.spec.family);
            }
        }
    }
}

#[test]
fn slices_and_tensor_operations_have_the_same_gradients() {
    for model in every_kind() {
        let hooks = Hook::all(&model.spec);
        for (name, rules) in RULES {
            let case = Case::new(Metric::Js, rules());
            let ours = case.ours(&model, &hooks);
            let wide = case.ours(&cast(&model, DType::F64), &hooks);
            for &hook in &hooks {
                let [a, b] = [&wide, &ours].map(|g| g.cache.get(hook).expect("asked for"));
                let far = gap(&a, &b);
                // Norms and softmax are in f32 either way.
                assert!(
                    far < 10.0 * rounding(hook),
                    "{} {name} {hook}: {far}",
                    model.spec.family
                );
            }
            let narrow = case.ours(&cast(&model, DType::BF16), &hooks);
            for &hook in &hooks {
                let gradient = narrow.cache.get(hook).expect("asked for");
                assert!(flat(&gradient).iter().all(|x| x.is_finite()), "{hook}");
            }
        }
    }
}
