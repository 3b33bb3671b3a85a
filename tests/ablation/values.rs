//! What is put in place: factors, means, means by role.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick::hooks::Edit;
use candlewick::methods::{PatchSource, check};
use candlewick::run::{Request, logits, run};

use crate::models::task::{changed, first, task};
use crate::{ablate, column, config, models, near};

#[test]
fn a_factor_of_one_changes_no_bit_and_a_factor_of_nothing_is_zero() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let once = ablate(&model, &task, &config("z,v", PatchSource::Scale(1.0)));
        // Not even rounding: rows of a sweep are only compared with rows of the same products.
        near(
            &column(&once, "score"),
            &vec![0.0; once.table.height()],
            family,
        );
        let nothing = ablate(&model, &task, &config("z,v", PatchSource::Scale(0.0)));
        let zero = ablate(&model, &task, &config("z,v", PatchSource::Zero));
        assert_eq!(
            column(&nothing, "value"),
            column(&zero, "value"),
            "{family}"
        );
        assert!(
            column(&zero, "score")
                .iter()
                .any(|score| score.abs() > 1e-3),
            "{family}"
        );
        // In a whole run there is no excuse: multiplying by one is the identity.
        let edit: Edit = "z0 *= 1".parse().expect("an edit");
        let prompts = [task.pairs()[0].clean.clone()];
        let request = Request {
            edits: &[edit],
            ..Request::default()
        };
        let edited = run(&model, &prompts, &request)
            .expect("runs")
            .logits
            .expect("asked for");
        let plain = logits(&model, &prompts).expect("runs");
        let bits = |t: &Tensor| {
            t.flatten_all()
                .and_then(|t| t.to_vec1::<f32>())
                .expect("reads")
        };
        assert_eq!(bits(&edited), bits(&plain), "{family}");
    }
}

#[test]
fn a_mean_over_one_prompt_is_that_prompts_value() {
    let task = first(&task(), 1);
    let other = changed(&task, |pair| pair.clean = pair.corrupted.clone());
    for model in models::every_kind() {
        let family = &model.spec.family;
        for sites in ["z", "attn_out:pos"] {
            let mean = ablate(&model, &task, &config(sites, PatchSource::Mean));
            let mut pair = config(sites, PatchSource::Pair);
            pair.patch.direction = candlewick::scores::Direction::Noise;
            let noise = ablate(&model, &task, &pair);
            assert_eq!(
                column(&mean, "value"),
                column(&noise, "value"),
                "{family}, {sites}"
            );
            // The same prompt, given as a reference task of its own.
            let mut given = config(sites, PatchSource::Mean);
            given.patch.reference = Some(Arc::new(other.clone()));
            let given = ablate(&model, &task, &given);
            assert_eq!(
                column(&given, "value"),
                column(&mean, "value"),
                "{family}, {sites}"
            );
        }
    }
}

#[test]
fn a_mean_by_role_is_taken_over_the_positions_of_the_role() {
    // Where every position is a role of its own, the mean by role is the mean by position.
    let task = changed(&task(), |pair| {
        pair.roles = (0..pair.clean.len())
            .map(|pos| (format!("P{pos}"), vec![pos]))
            .collect();
    });
    for model in models::two_kinds() {
        let by_role = ablate(&model, &task, &config("z", PatchSource::MeanRole));
        let by_position = ablate(&model, &task, &config("z", PatchSource::Mean));
        near(
            &column(&by_role, "value"),
            &column(&by_position, "value"),
            &model.spec.family,
        );
        // Where there is one role for all of them, it is the mean over all positions.
        let same = changed(&task, |pair| {
            pair.roles = [("ALL".to_string(), (0..pair.clean.len()).collect())].into();
        });
        let by_role = ablate(&model, &same, &config("z", PatchSource::MeanRole));
        let of_all = ablate(&model, &same, &config("z", PatchSource::MeanAll));
        near(
            &column(&by_role, "value"),
            &column(&of_all, "value"),
            &model.spec.family,
        );
    }
}

#[test]
fn a_mean_by_role_never_takes_another_role() {
    // The reference knows S1 only where it is S2 as well, and the task has it alone.
    let task = task();
    let model = models::every_kind().remove(0);
    let roles = |names: &[&str]| {
        let at = |name: &&str| (name.to_string(), vec![5]);
        names.iter().map(at).collect()
    };
    let alone = changed(&task, |pair| pair.roles = roles(&["S1"]));
    let both = changed(&task, |pair| pair.roles = roles(&["S1", "S2"]));
    let none = changed(&task, |pair| {
        pair.roles = [("S2".to_string(), vec![2])].into()
    });
    let mut by_role = config("z", PatchSource::MeanRole);
    for (reference, says) in [(&both, "S1"), (&none, "S1")] {
        by_role.patch.reference = Some(Arc::new(reference.clone()));
        let refused = check(&by_role, &model.spec, &alone).expect_err("refused");
        let message = refused.to_string();
        assert!(message.contains(says), "{message}");
    }
    // The other way round the first of a position's roles is there.
    let known = changed(&task, |pair| {
        pair.roles = [("S1".to_string(), vec![5]), ("S2".to_string(), vec![2])].into();
    });
    by_role.patch.reference = Some(Arc::new(known));
    check(&by_role, &model.spec, &both).expect("S1 alone stands for both");
}
