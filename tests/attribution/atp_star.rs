//! The corrections of AtP*: the softmax of queries and keys, GradDrop, and the bound on what was missed.

use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
use candlewick::methods::attribution::NodeAttributionConfig;
use candlewick::methods::{PatchConfig, Running, Subject, VerifyOptions, Watch, verify};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{GradientRequest, Request, Source, Sources, gradients, run, run_with_cache};
use candlewick::scores::{Cell, Direction};
use candlewick::task::{Pair, Task};

use crate::edges::wide;
use crate::models::made::affine;
use crate::models::task::{changed, task};
use crate::models::{Pairs, every_kind};
use crate::{measured, nodes, patch};

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
