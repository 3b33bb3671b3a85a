//! The account of self-repair closes, and agrees with patched runs.

use candle_core::Tensor;
use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site};
use candlewick::methods::{DirectTarget, RepairConfig, RepairParts, RepairTarget};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{
    BaseRun, Quiet, Readout, Request, Sources, SweepOptions, Variant, run, sweep, sweep_plain,
    sweep_with_capture,
};
use candlewick::scores::{Detail, Scores};
use candlewick::spec::Mlp;
use candlewick::task::Task;

use crate::models::task::{changed, first, logit_diff, task};
use crate::{column, measured, models, near, run_method};

#[test]
fn a_sweep_captures_what_a_whole_run_has() {
    let pairs = models::Pairs::new();
    for model in models::every_kind() {
        let family = &model.spec.family;
        let last = model.spec.n_layers - 1;
        let hooks: Vec<Hook> = [Kind::ResidPre, Kind::Z, Kind::AttnOut, Kind::ResidPost]
            .map(|kind| Hook::at(kind, last))
            .to_vec();
        let base = BaseRun::new(
            &model,
            pairs.clean.clone(),
            pairs.roles.clone(),
            Vec::new(),
            Sources::default(),
            &[Kind::Z, Kind::ResidPre],
        )
        .expect("runs");
        let variants: Vec<Variant> = ["z0[head=1] = zero", "resid_pre1[pos=3] *= 2"]
            .iter()
            .enumerate()
            .map(|(example, edit)| Variant {
                example,
                edits: vec![edit.parse().expect("an edit")],
            })
            .collect();
        let readout = Readout {
            metric: Metric::LogitDiff,
            targets: pairs.targets.clone(),
            reference: None,
        };
        let none = Sources::default();
        let options = SweepOptions::default();
        let (values, captured) = sweep_with_capture(
            &model, &base, &variants, &none, &readout, &hooks, &options, &Quiet,
        )
        .expect("sweeps");
        let again = sweep(&model, &base, &variants, &none, &readout, &options, &Quiet);
        assert_eq!(values, again.expect("sweeps"), "{family}");
        let plain = sweep_plain(&model, &base, &variants, &none, &readout).expect("runs");
        near(&values, &plain, family);
        for (index, variant) in variants.iter().enumerate() {
            let request = Request {
                edits: &variant.edits,
                capture: &hooks,
                ..Request::default()
            };
            let prompt = std::slice::from_ref(&pairs.clean[variant.example]);
            let whole = run(&model, prompt, &request).expect("runs").cache;
            for &hook in &hooks {
                let (positions, t) = captured.get(index, hook).expect("it was carried");
                let rows = Tensor::new(positions, &model.device).expect("positions");
                let wanted = whole
                    .get(hook)
                    .and_then(|t| Ok(t.squeeze(0)?.index_select(&rows, 0)?))
                    .expect("rows");
                let gap = (t - wanted)
                    .and_then(|t| t.abs()?.max_all()?.to_scalar::<f32>())
                    .expect("a number");
                assert!(gap < 1e-4, "{family}, {hook}: {gap}");
            }
        }
    }
}

fn repair(model: &Model, task: &Task, parts: RepairParts) -> Scores {
    let config = RepairConfig {
        target: RepairTarget::Of(DirectTarget::Difference),
        ..RepairConfig::of(parts)
    };
    run_method(model, task, &config, Detail::PerExample)
}

#[test]
fn with_the_scale_frozen_the_account_closes_in_every_kind_of_model() {
    let task = task();
    for model in models::every_kind() {
        let family = &model.spec.family;
        for parts in [RepairParts::Attention, RepairParts::Mlp, RepairParts::Heads] {
            if parts == RepairParts::Mlp && model.spec.mlp == Mlp::None {
                continue;
            }
            let scores = repair(&model, &task, parts);
            let of = |measure: &str| measured(&scores, measure);
            let (frozen, direct, ablated) = (
                of("total_effect_frozen"),
                of("direct_effect"),
                of("direct_effect_ablated"),
            );
            let (attn, mlp) = (of("compensation_attn"), of("compensation_mlp"));
            let sums: Vec<f64> = (0..frozen.len())
                .map(|i| ablated[i] - direct[i] + attn[i] + mlp[i])
                .collect();
            near(&frozen, &sums, &format!("{family}, {parts:?}"));
            let (free, norm) = (of("total_effect"), of("norm_term"));
            let sums: Vec<f64> = (0..frozen.len()).map(|i| frozen[i] + norm[i]).collect();
            near(&free, &sums, family);
            // Nothing comes after attention of the last layer but its MLP, and nothing at all after that MLP.
            let last = model.spec.n_layers as i64 - 1;
            let layers = scores.integers("layer").expect("every row has one");
            let metrics = scores.texts("metric").expect("every table has it");
            let score = column(&scores, "score");
            let of_last = |row: &usize| layers[*row] == Some(last);
            for row in (0..score.len()).filter(of_last) {
                let nothing_after = metrics[row] == Some("compensation_attn")
                    || (parts == RepairParts::Mlp && metrics[row] == Some("compensation_mlp"));
                assert!(!nothing_after || score[row] == 0.0, "{family}, row {row}");
            }
        }
    }
}

#[test]
fn the_free_total_effect_is_that_of_a_patched_run() {
    // With two prompts each has one donor, so the free total effect is that of one edit of a whole run.
    let task = first(&task(), 2);
    for mut model in models::every_kind() {
        model.spec.final_softcap = None;
        let scores = repair(&model, &task, RepairParts::Heads);
        let found = measured(&scores, "total_effect");
        let heads = model.spec.n_layers * model.spec.n_heads;
        let z = Hook::at(Kind::Z, 1);
        let (pair, donor) = (&task.pairs()[0], &task.pairs()[1]);
        let request = Request {
            capture: &[z],
            ..Request::default()
        };
        let cache = run(&model, std::slice::from_ref(&donor.clean), &request)
            .expect("runs")
            .cache;
        let end = cache.get(z).and_then(|z| {
            Ok(z.squeeze(0)?
                .narrow(0, models::Pairs::ANSWER, 1)?
                .narrow(1, 2, 1)?)
        });
        let value = end
            .and_then(|t| Ok(t.flatten_all()?.to_vec1::<f32>()?))
            .expect("a vector");
        let site = Site::all(z).heads([2]).at_positions([Pos::FromEnd(1)]);
        let edit = Edit::new(site, Op::Replace(candlewick::hooks::Value::Vector(value)));
        let wanted = logit_diff(&model, pair, &[edit]) - logit_diff(&model, pair, &[]);
        assert_eq!(found.len(), 2 * heads);
        near(
            &found[model.spec.n_heads + 2..][..1],
            &[wanted],
            &model.spec.family,
        );
    }
}

#[test]
fn a_donor_of_the_same_words_changes_nothing() {
    let known = task().pairs()[0].clean.clone();
    let task = changed(&task(), |pair| pair.clean = known.clone());
    for model in models::every_kind() {
        let scores = repair(&model, &task, RepairParts::Attention);
        for measure in [
            "total_effect",
            "total_effect_frozen",
            "compensation_attn",
            "compensation",
        ] {
            let found = measured(&scores, measure);
            near(&found, &vec![0.0; found.len()], &model.spec.family);
        }
    }
}
