//! Attention that is knocked out.

use candle_core::DType;
use candlewick::hooks::{Edit, Hook, Kind, Pos, Positions, Site};
use candlewick::methods::{Heads, Knockout, PatchSource};
use candlewick::run::{Request, run};

use crate::models::task::{logit_diff, task};
use crate::{ablate, column, config, models, near};

#[test]
fn knocked_out_attention_leaves_other_queries_as_they_are() {
    let task = task();
    let prompts = [task.pairs()[0].clean.clone()];
    for model in models::every_kind() {
        let z = Hook::at(Kind::Z, 0);
        let of = |edits: &[Edit]| {
            let request = Request {
                edits,
                capture: &[z],
                ..Request::default()
            };
            let run = run(&model, &prompts, &request).expect("runs");
            let z = run
                .cache
                .get(z)
                .and_then(|z| Ok(z.to_dtype(DType::F32)?))
                .expect("captured");
            z.squeeze(0)
                .and_then(|z| z.flatten_from(1))
                .and_then(|z| z.to_vec2::<f32>())
                .expect("reads")
        };
        let scores = Site::all(Hook::at(Kind::AttnScores, 0));
        let before = of(&[]);
        let after = of(&[Edit::block(scores, [Pos::Index(6)], [Pos::Index(5)])]);
        for (pos, (before, after)) in before.iter().zip(&after).enumerate() {
            assert_eq!(before == after, pos != 6, "{} at {pos}", model.spec.family);
        }
    }
}

#[test]
fn a_knockout_through_the_sweep_is_that_of_a_whole_run() {
    let task = task();
    for model in models::every_kind() {
        let mut blocked = config("", PatchSource::Block);
        let keys = vec![Pos::Role("S1".into()), Pos::Index(7)];
        blocked.knockouts = vec![Knockout {
            queries: Positions::These(vec![Pos::FromEnd(1)]),
            keys: Positions::These(keys.clone()),
        }];
        let per_head = ablate(&model, &task, &blocked);
        let heads = model.spec.n_layers * model.spec.n_heads;
        assert_eq!(per_head.table.height(), heads * task.pairs().len());
        blocked.whole_layers = true;
        blocked.patch.window = 2;
        let windows = ablate(&model, &task, &blocked);
        assert_eq!(
            windows.table.height(),
            model.spec.n_layers * task.pairs().len()
        );
        // The window of layer 0 is layers 0 and 1.
        let edits: Vec<Edit> = (0..2.min(model.spec.n_layers))
            .map(|layer| {
                let site = Site::all(Hook::at(Kind::AttnScores, layer));
                Edit::block(site, [Pos::FromEnd(1)], keys.clone())
            })
            .collect();
        let pair = &task.pairs()[0];
        let plain = logit_diff(&model, pair, &edits);
        near(
            &column(&windows, "value")[..1],
            &[plain],
            &model.spec.family,
        );
    }
}

#[test]
fn a_knockout_of_one_head_of_one_layer_has_that_row_alone() {
    let task = task();
    let model = models::every_kind().remove(0);
    let mut blocked = config("", PatchSource::Block);
    blocked.knockouts = vec![Knockout {
        queries: Positions::These(vec![Pos::FromEnd(1)]),
        keys: Positions::These(vec![Pos::Index(3)]),
    }];
    let all = column(&ablate(&model, &task, &blocked), "value");
    blocked.patch.heads = "a1.h2".parse::<Heads>().expect("a head");
    let one = column(&ablate(&model, &task, &blocked), "value");
    assert_eq!(one.len(), task.pairs().len());
    let heads = model.spec.n_layers * model.spec.n_heads;
    near(&one[..1], &all[model.spec.n_heads + 2..][..1], "a1.h2");
    assert_eq!(all.len(), heads * task.pairs().len());
    blocked.whole_layers = true;
    let layer = ablate(&model, &task, &blocked);
    near(
        &column(&layer, "value"),
        &one,
        "its layer has no other head",
    );
}
