//! The sweep against whole passes.

use candle_core::{Device, Tensor};
use candlewick::hooks::{Edit, Hook, Kind, Ln, Op, Pos, Site, Value};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{Quiet, SweepOptions, Variant, plan, sweep, sweep_plain};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::models::{every_kind, kinds, two_kinds};
use crate::{Setting, TOLERANCE, every_edit, from_clean, gap, mixing, singly};

/// Compares the two ways, over all variants at once.
fn check(setting: &Setting, variants: &[Variant], metric: Metric, what: &str) {
    let readout = setting.readout(metric);
    let (model, base, sources) = (&setting.model, &setting.base, &setting.sources);
    let fast = sweep(
        model,
        base,
        variants,
        sources,
        &readout,
        &SweepOptions::default(),
        &Quiet,
    )
    .unwrap_or_else(|error| panic!("{} {what}: {error}", setting.name()));
    let plain = sweep_plain(model, base, variants, sources, &readout)
        .unwrap_or_else(|error| panic!("{} {what}, plainly: {error}", setting.name()));
    let mut wrong = Vec::new();
    for ((variant, fast), plain) in variants.iter().zip(&fast).zip(&plain) {
        if gap(*fast, *plain) > TOLERANCE {
            let edits: Vec<String> = variant.edits.iter().map(Edit::to_string).collect();
            wrong.push(format!(
                "prompt {} {}: {fast} against {plain}",
                variant.example,
                edits.join(" + ")
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} {what} {metric}: {} of {} variants differ, among them\n{}",
        setting.name(),
        wrong.len(),
        variants.len(),
        wrong
            .iter()
            .take(12)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    );
    let unchanged = base.metric(model, &readout).expect("a metric");
    let changed = plain
        .iter()
        .zip(variants)
        .filter(|(value, variant)| (*value - unchanged[variant.example]).abs() > 1e-4);
    assert!(metric != Metric::LogitDiff || changed.count() * 4 > variants.len());
}

#[test]
fn the_sweep_agrees_with_whole_passes_at_every_hook() {
    for model in every_kind() {
        let variants = singly(every_edit(&model));
        let setting = Setting::new(model, vec![]);
        check(&setting, &variants, Metric::LogitDiff, "single edits");
        let some: Vec<Variant> = variants.into_iter().step_by(7).collect();
        check(&setting, &some, Metric::Kl, "single edits");
    }
}

/// Whether the engine refuses the edits together: a reader's input by query head, and what that gives each query head one of.
fn clashes(model: &Model, edits: &[Edit]) -> bool {
    let layers = |kinds: &[Kind]| -> Vec<Option<usize>> {
        let hooks = edits.iter().map(|edit| edit.site.hook);
        hooks
            .filter(|hook| kinds.contains(&hook.kind))
            .map(|hook| hook.layer)
            .collect()
    };
    let by_query = layers(&[Kind::KInput, Kind::VInput]);
    let by_key = layers(&[Kind::K, Kind::V, Kind::RotK]);
    let any_reader = layers(&[Kind::QInput, Kind::KInput, Kind::VInput]);
    let norm = layers(&[Kind::Scale(Ln::One), Kind::Normalized(Ln::One)]);
    any_reader.iter().any(|layer| norm.contains(layer))
        || model.spec.group() > 1 && by_query.iter().any(|layer| by_key.contains(layer))
}

/// Two to four edits each, at any layers, stages and positions.
fn combinations(model: &Model, count: usize, seed: u64) -> Vec<Variant> {
    let edits = every_edit(model);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut variants = Vec::new();
    while variants.len() < count {
        let n = rng.random_range(2..=4);
        let chosen: Vec<Edit> = (0..n)
            .map(|_| edits[rng.random_range(0..edits.len())].clone())
            .collect();
        // Together, blocks and other edits of scores can leave a query nothing.
        let blocks = chosen.iter().any(|edit| edit.op == Op::Block);
        let scores = chosen
            .iter()
            .filter(|edit| edit.site.hook.kind == Kind::AttnScores)
            .count();
        if !(clashes(model, &chosen) || blocks && scores > 1) {
            variants.push(Variant {
                example: variants.len() % 3,
                edits: chosen,
            });
        }
    }
    variants
}

#[test]
fn the_sweep_agrees_with_whole_passes_for_several_edits_at_once() {
    for model in every_kind() {
        let mut variants = combinations(&model, 150, 5);
        let windows = [Kind::AttnOut, Kind::Z, Kind::RotQ, Kind::RotK, Kind::V]
            .into_iter()
            .map(|kind| {
                let each = (0..model.spec.n_layers).map(|layer| Site::all(Hook::at(kind, layer)));
                each.map(|site| from_clean(site.at(5))).collect()
            });
        let both = [Kind::Q, Kind::K].map(|kind| from_clean(Site::all(Hook::at(kind, 1))));
        let early_in_a_later_layer = vec![
            from_clean(Site::all(Hook::at(Kind::Z, 0)).at(8)),
            from_clean(Site::all(Hook::at(Kind::ResidPre, 1)).at(2)),
        ];
        variants.extend(
            windows
                .chain([both.to_vec(), early_in_a_later_layer])
                .map(|edits| Variant { example: 1, edits }),
        );
        let setting = Setting::new(model, vec![]);
        check(&setting, &variants, Metric::LogitDiff, "several edits");
    }
}

/// Noise on the embeddings, and a change at each stage of a block.
fn standing_edits(model: &Model) -> Vec<Edit> {
    let d = model.spec.d_model;
    let noise: Vec<f32> = (0..2 * d).map(|i| (i as f32 * 1.7).sin()).collect();
    let noise = Tensor::from_vec(noise, (2, d), &Device::Cpu).expect("shape");
    let embed = Site::all(Hook::global(Kind::Embed)).at_positions([Pos::Index(5), Pos::Index(6)]);
    let mut edits = vec![Edit::new(embed, Op::Add(Value::Tensor(noise)))];
    for kind in kinds(model) {
        let hook = if kind.per_layer() {
            Hook::at(kind, 1)
        } else {
            Hook::global(kind)
        };
        let skipped = matches!(
            kind,
            Kind::Embed
                | Kind::AttnScores
                | Kind::Pattern
                | Kind::QInput
                | Kind::KInput
                | Kind::VInput
        );
        if !skipped {
            edits.push(Edit::new(Site::all(hook), Op::Scale(1.1)));
        }
    }
    edits.push(mixing(Site::all(Hook::at(Kind::AttnOut, 0))));
    edits
}

#[test]
fn a_base_run_may_have_edits_of_its_own() {
    for model in every_kind() {
        let mut variants: Vec<Variant> =
            singly(every_edit(&model)).into_iter().step_by(5).collect();
        let standing = standing_edits(&model);
        variants.retain(|variant| {
            let all: Vec<Edit> = standing.iter().chain(&variant.edits).cloned().collect();
            !clashes(&model, &all)
        });
        let setting = Setting::new(model, standing);
        check(
            &setting,
            &variants,
            Metric::LogitDiff,
            "over a changed base",
        );
    }
}

#[test]
fn a_base_run_may_look_ahead() {
    // With such a pattern an early position sees later ones, so a change at 5 reaches position 3.
    for model in two_kinds() {
        let ahead = Edit::new(
            Site::all(Hook::at(Kind::Pattern, 1)).at(3),
            Op::Replace(Value::Scalar(0.1)),
        );
        let variants: Vec<Variant> = singly(every_edit(&model)).into_iter().step_by(9).collect();
        let setting = Setting::new(model, vec![ahead]);
        check(
            &setting,
            &variants,
            Metric::LogitDiff,
            "with a base that looks ahead",
        );
    }
}

#[test]
fn many_small_waves_give_what_one_gives() {
    for model in two_kinds() {
        let mut variants = singly(every_edit(&model));
        variants.extend(combinations(&model, 100, 9));
        let setting = Setting::new(model, vec![]);
        let at_once = setting.sweep(&variants);
        for options in [
            SweepOptions {
                memory: 1,
                max_rows: 1,
            },
            SweepOptions {
                memory: 1 << 30,
                max_rows: 37,
            },
        ] {
            let in_waves = setting.try_sweep(&variants, &options).expect("sweeps");
            for (a, b) in at_once.iter().zip(&in_waves) {
                assert!(gap(*a, *b) < TOLERANCE, "{}: {a} {b}", setting.name());
            }
            let plan = plan(
                &setting.model,
                &setting.base,
                &variants,
                &setting.pairs.targets,
                0,
                &options,
            )
            .expect("plans");
            assert_eq!(plan.variants, variants.len());
            assert!(plan.without_effect > 0 && plan.forwards < variants.len() as f64);
        }
    }
}

#[test]
fn a_norm_is_edited_before_the_answer_is_read() {
    // Half the divisor is twice the normalised stream: without biases and soft-caps, twice the metric.
    let model = every_kind()
        .into_iter()
        .find(|model| model.spec.family == "llama");
    let setting = Setting::new(model.expect("there is one"), vec![]);
    let site = Site::all(Hook::global(Kind::Scale(Ln::Final)));
    let value = setting.one(0, [Edit::new(site, Op::Scale(0.5))]);
    assert!(gap(value, 2.0 * setting.metric()[0]) < TOLERANCE);
}
