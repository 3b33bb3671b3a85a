//! What patching must give, whatever the model.

use candlewick::hooks::{Axes, Edit, Hook, Kind, Op, Pos, Site, Value};
use candlewick::metric::Target;
use candlewick::run::{Source, Sources, Variant, run_with_cache};
use candlewick::spec::QkNorm;

use crate::models::{Pairs, every_kind, two_kinds};
use crate::{Setting, TOLERANCE, every_edit, from_clean, gap, singly, sites};

#[test]
fn putting_back_what_is_there_has_no_effect_at_all() {
    for model in every_kind() {
        let mut setting = Setting::new(model, vec![]);
        let hooks = Hook::all(&setting.model.spec);
        let (_, own) =
            run_with_cache(&setting.model, &setting.pairs.corrupted, &hooks).expect("runs");
        setting.sources = Sources::default().with("base", Source::run(own).expect("a source"));
        let metric = setting.metric();
        let edits: Vec<Edit> = hooks
            .iter()
            .flat_map(|&hook| sites(&setting.model, hook))
            .map(|site| Edit::new(site, Op::Freeze))
            .collect();
        let variants = singly(edits);
        for (variant, value) in variants.iter().zip(setting.sweep(&variants)) {
            let effect = (value - metric[variant.example]).abs();
            // The base run keeps no tensor per head of `hook_result` to compare with, so that one is computed.
            let allowed = match variant.edits[0].site.hook.kind {
                Kind::Result => 1e-5,
                _ => 0.0,
            };
            assert!(
                effect <= allowed,
                "{} {}: {effect}",
                setting.name(),
                variant.edits[0]
            );
        }
    }
}

#[test]
fn the_whole_stream_restores_the_whole_effect() {
    for model in every_kind() {
        let setting = Setting::new(model, vec![]);
        let (clean, last) = (
            setting.metric_of(&setting.pairs.clean),
            setting.model.spec.n_layers - 1,
        );
        for (example, &clean) in clean.iter().enumerate() {
            for site in [
                Site::all(Hook::at(Kind::ResidPre, 0)),
                Site::all(Hook::at(Kind::ResidPost, last)).at(Pairs::ANSWER),
                Site::all(Hook::at(Kind::ResidPost, last)),
            ] {
                let value = setting.one(example, [from_clean(site.clone())]);
                assert!(
                    gap(value, clean) < TOLERANCE,
                    "{} {site}: {value} {clean}",
                    setting.name()
                );
            }
        }
    }
}

#[test]
fn parts_that_make_up_a_whole_restore_what_the_whole_does() {
    for model in every_kind() {
        let setting = Setting::new(model, vec![]);
        let spec = &setting.model.spec;
        let group = spec.group();
        for layer in [0, spec.n_layers / 2, spec.n_layers - 1] {
            let site = |kind| Site::all(Hook::at(kind, layer));
            let readers: Vec<usize> = (0..group).collect();
            let heads = |kind| site(kind).heads(readers.clone());
            let key = |kind| site(kind).heads([0]);
            let mut pairs = vec![
                (
                    "pattern and v are z",
                    vec![heads(Kind::Pattern), key(Kind::V)],
                    heads(Kind::Z),
                ),
                (
                    "rotated q and k are the pattern",
                    vec![heads(Kind::RotQ), key(Kind::RotK)],
                    heads(Kind::Pattern),
                ),
                (
                    "all z are attn_out",
                    vec![site(Kind::Z)],
                    site(Kind::AttnOut),
                ),
                ("z is result", vec![heads(Kind::Z)], heads(Kind::Result)),
                (
                    "q, k and v inputs are z",
                    vec![site(Kind::QInput), site(Kind::KInput), site(Kind::VInput)],
                    site(Kind::Z),
                ),
                (
                    "all q and k are the pattern",
                    vec![site(Kind::Q), site(Kind::K)],
                    site(Kind::Pattern),
                ),
                (
                    "scores are the pattern",
                    vec![heads(Kind::AttnScores)],
                    heads(Kind::Pattern),
                ),
            ];
            if spec.qk_norm != QkNorm::FullWidth {
                pairs.push((
                    "q and k are the pattern",
                    vec![heads(Kind::Q), key(Kind::K)],
                    heads(Kind::Pattern),
                ));
            }
            if Kind::MlpOut.absent(spec).is_none() {
                pairs.push((
                    "neurons are mlp_out",
                    vec![site(Kind::MlpPost)],
                    site(Kind::MlpOut),
                ));
                pairs.push((
                    "mlp_in is mlp_out",
                    vec![site(Kind::MlpIn)],
                    site(Kind::MlpOut),
                ));
            }
            for (name, parts, whole) in pairs {
                for example in 0..3 {
                    let parts = parts.iter().cloned().map(from_clean);
                    let (a, b) = (
                        setting.one(example, parts),
                        setting.one(example, [from_clean(whole.clone())]),
                    );
                    assert!(
                        gap(a, b) < TOLERANCE,
                        "{} layer {layer}: {name}: {a} {b}",
                        setting.name()
                    );
                }
            }
        }
    }
}

#[test]
fn what_precedes_the_first_difference_has_no_effect() {
    for model in every_kind() {
        let setting = Setting::new(model, vec![]);
        let metric = setting.metric();
        let mut variants = Vec::new();
        for hook in Hook::all(&setting.model.spec) {
            for pos in 0..Pairs::FIRST {
                let mut site = Site::all(hook).at(pos);
                if hook.kind.axes(&setting.model.spec) == Axes::Pattern {
                    site = site.keys((0..Pairs::FIRST).map(Pos::Index));
                }
                variants.extend((0..3).map(|example| Variant {
                    example,
                    edits: vec![from_clean(site.clone())],
                }));
            }
        }
        for (variant, value) in variants.iter().zip(setting.sweep(&variants)) {
            let effect = (value - metric[variant.example]).abs();
            let allowed = match variant.edits[0].site.hook.kind {
                Kind::Result => 1e-5,
                _ => 0.0,
            };
            assert!(
                effect <= allowed,
                "{} {}: {effect}",
                setting.name(),
                variant.edits[0]
            );
        }
    }
}

#[test]
fn swapping_clean_and_corrupted_and_their_answers_negates_the_metric() {
    for model in two_kinds() {
        let swapped: Vec<Target> = Pairs::new()
            .targets
            .into_iter()
            .map(|target| Target {
                answers: target.wrong,
                wrong: target.answers,
                ..Target::default()
            })
            .collect();
        let denoise = Setting::new(model.clone(), vec![]);
        // The same two runs of each pair, with the roles of clean and corrupted exchanged.
        let mut noise = Setting::new(model, vec![]);
        std::mem::swap(&mut noise.pairs.clean, &mut noise.pairs.corrupted);
        noise.pairs.targets = swapped;
        let (clean, corrupted) = (
            denoise.metric_of(&denoise.pairs.clean),
            noise.metric_of(&noise.pairs.corrupted),
        );
        for (a, b) in clean.iter().zip(&corrupted) {
            assert_eq!(*a, -b);
        }
        let variants = singly(every_edit(&denoise.model));
        let patches: Vec<Variant> = variants
            .into_iter()
            .filter(|variant| variant.edits[0].op == Op::FromRun("clean".into()))
            .collect();
        for (a, b) in denoise.sweep(&patches).iter().zip(noise.sweep(&patches)) {
            assert_eq!(*a, -b);
        }
    }
}

#[test]
fn a_mean_ablation_replaces_by_the_mean_that_one_computes_by_hand() {
    for model in two_kinds() {
        let setting = Setting::new(model, vec![]);
        let hook = Hook::at(Kind::Z, 1);
        let z = setting.clean.get(hook).expect("captured");
        let mean = z.mean(0).expect("mean");
        let site = Site::all(hook);
        let by_hand = Edit::new(site.clone(), Op::Replace(Value::Tensor(mean)));
        let (a, b) = (
            setting.one(1, [Edit::new(site.clone(), Op::Mean)]),
            setting.one(1, [by_hand]),
        );
        assert!(gap(a, b) < TOLERANCE, "{a} {b}");
    }
}
