//! Answers of several tokens, and answers that are read before the end.

use candlewick::hooks::{Edit, Hook, Kind, Op, Pos, Site};
use candlewick::metric::{Metric, Target};
use candlewick::run::{
    BaseRun, Logits, Quiet, Readout, Request, Source, Sources, SweepOptions, Variant, logits, run,
    run_with_cache, sweep, sweep_plain,
};

use crate::models::{Pairs, encoder, every_kind, kinds};
use crate::{Setting, TOLERANCE, every_edit, from_clean, gap, singly};

/// Answers of three, two and one tokens.
fn whole_answers() -> Vec<Target> {
    let of = |tokens: &[u32]| Target {
        answers: vec![tokens[0]],
        then: tokens[1..].to_vec(),
        ..Target::default()
    };
    vec![of(&[3, 17, 8]), of(&[20, 4]), of(&[11])]
}

fn readout(metric: Metric, targets: Vec<Target>) -> Readout {
    Readout {
        metric,
        targets,
        reference: None,
    }
}

#[test]
fn a_whole_answer_has_the_sum_of_what_its_tokens_have_appended_one_by_one() {
    let targets = whole_answers();
    for model in every_kind() {
        // These rotate every token by how many there are in all.
        if ["dynamic", "longrope"].contains(&model.spec.family.as_str()) {
            continue;
        }
        // What is run ends with all of the answer but its last token.
        let prompts: Vec<Vec<u32>> = Pairs::new()
            .clean
            .into_iter()
            .zip(&targets)
            .map(|(prompt, target)| {
                let before = &prompt[..prompt.len() - target.then.len()];
                let tokens = target.answers.iter().chain(&target.then);
                let forced = tokens.take(target.then.len());
                before.iter().chain(forced).copied().collect()
            })
            .collect();
        let mut expected = Vec::new();
        for (prompt, target) in prompts.iter().zip(&targets) {
            let tokens = target.answers.iter().chain(&target.then);
            let mut sum = 0.0;
            for (pos, &token) in target.positions(prompt.len()).zip(tokens) {
                let one = [prompt[..=pos].to_vec()];
                let row: Vec<Vec<f32>> = logits(&model, &one)
                    .and_then(|t| Ok(t.to_vec2()?))
                    .expect("runs");
                let alone = Target {
                    answers: vec![token],
                    ..Target::default()
                };
                sum += Metric::LogProb
                    .value(&row[0], &alone, None)
                    .expect("a value");
            }
            expected.push(sum);
        }
        let base =
            BaseRun::new(&model, prompts, vec![], vec![], Sources::default(), &[]).expect("runs");
        let of = |metric| {
            base.metric(&model, &readout(metric, targets.clone()))
                .expect("a metric")
        };
        for ((sum, log_prob), prob) in expected
            .iter()
            .zip(of(Metric::LogProb))
            .zip(of(Metric::Prob))
        {
            assert!(
                gap(*sum, log_prob) < TOLERANCE,
                "{}: {sum} {log_prob}",
                model.spec.family
            );
            assert!(
                (sum.exp() - prob).abs() < TOLERANCE,
                "{}: {} {prob}",
                model.spec.family,
                sum.exp()
            );
        }
        for (judged, target) in base
            .judge(&model, &targets)
            .expect("judges")
            .iter()
            .zip(&targets)
        {
            assert_eq!(judged.beats, None, "{target:?} has no wrong answer");
        }
    }
}

#[test]
fn sweeps_of_whole_answers_agree_with_whole_passes() {
    for model in every_kind() {
        let variants = singly(every_edit(&model));
        let setting = Setting::new(model, vec![]);
        for (metric, variants) in [
            (Metric::LogProb, variants.clone()),
            (Metric::Prob, variants.iter().step_by(7).cloned().collect()),
        ] {
            let readout = readout(metric, whole_answers());
            let (model, base, sources) = (&setting.model, &setting.base, &setting.sources);
            let options = SweepOptions::default();
            let fast =
                sweep(model, base, &variants, sources, &readout, &options, &Quiet).expect("sweeps");
            let plain = sweep_plain(model, base, &variants, sources, &readout).expect("runs");
            for ((variant, fast), plain) in variants.iter().zip(fast).zip(plain) {
                let edit = &variant.edits[0];
                assert!(
                    gap(fast, plain) < TOLERANCE,
                    "{} {edit}: {fast} {plain}",
                    setting.name()
                );
            }
        }
    }
}

#[test]
fn a_change_between_the_tokens_of_an_answer_moves_those_after_it() {
    let model = every_kind().remove(0);
    let last = model.spec.n_layers - 1;
    let setting = Setting::new(model, vec![]);
    let (model, base) = (&setting.model, &setting.base);
    let readout = readout(Metric::LogProb, vec![whole_answers().remove(0); 3]);
    let unchanged = base.metric(model, &readout).expect("a metric")[0];
    let at = |from_end: usize| {
        let site =
            Site::all(Hook::at(Kind::ResidPost, last)).at_positions([Pos::FromEnd(from_end)]);
        let variant = Variant {
            example: 0,
            edits: vec![Edit::new(site, Op::Zero)],
        };
        let options = SweepOptions::default();
        sweep(
            model,
            base,
            &[variant],
            &setting.sources,
            &readout,
            &options,
            &Quiet,
        )
        .expect("sweeps")[0]
    };
    for read in 1..=3 {
        assert!(
            (at(read) - unchanged).abs() > 1e-3,
            "position -{read} is read"
        );
    }
    assert_eq!(at(4), unchanged, "nothing is read there");
}

#[test]
fn an_encoder_is_read_at_its_mask() {
    let model = encoder();
    let prompts = Pairs::new().clean;
    let targets: Vec<Target> = (0..3)
        .map(|i| Target {
            answers: vec![4 + i],
            wrong: vec![20],
            after: 3 * i as usize,
            ..Target::default()
        })
        .collect();
    let whole = run(
        &model,
        &prompts,
        &Request {
            logits: Logits::All,
            ..Request::default()
        },
    )
    .expect("runs");
    let all: Vec<Vec<Vec<f32>>> = whole
        .logits
        .and_then(|t| t.to_vec3().ok())
        .expect("asked for");
    let base = BaseRun::new(
        &model,
        prompts.clone(),
        vec![],
        vec![],
        Sources::default(),
        &kinds(&model),
    )
    .expect("runs");
    let readout = readout(Metric::LogitDiff, targets.clone());
    let found = base.metric(&model, &readout).expect("a metric");
    let rows = base.logits(&model, &targets).expect("logits");
    for (i, target) in targets.iter().enumerate() {
        let row = &all[i][prompts[i].len() - 1 - target.after];
        let expected = f64::from(row[target.answers[0] as usize] - row[20]);
        assert!(
            gap(found[i], expected) < TOLERANCE,
            "{} {expected}",
            found[i]
        );
        assert!(rows[i].iter().zip(row).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    // Every position is restored, also those behind the mask.
    let (_, clean) =
        run_with_cache(&model, &Pairs::new().corrupted, &Hook::all(&model.spec)).expect("runs");
    let sources = Sources::default().with("clean", Source::run(clean).expect("a source"));
    let mut edits = Vec::new();
    for kind in [
        Kind::ResidPre,
        Kind::Z,
        Kind::MlpOut,
        Kind::V,
        Kind::ResidPost,
    ] {
        for layer in 0..model.spec.n_layers {
            edits.extend(
                (0..Pairs::LENGTH).map(|pos| from_clean(Site::all(Hook::at(kind, layer)).at(pos))),
            );
        }
    }
    let variants = singly(edits);
    let options = SweepOptions::default();
    let fast = sweep(
        &model, &base, &variants, &sources, &readout, &options, &Quiet,
    )
    .expect("sweeps");
    let plain = sweep_plain(&model, &base, &variants, &sources, &readout).expect("runs");
    let mut moved = 0;
    for ((variant, fast), plain) in variants.iter().zip(fast).zip(plain) {
        assert!(
            gap(fast, plain) < TOLERANCE,
            "{}: {fast} {plain}",
            variant.edits[0]
        );
        moved += usize::from((plain - found[variant.example]).abs() > 1e-4);
    }
    assert!(moved * 2 > variants.len(), "{moved} of {}", variants.len());
}

#[test]
fn metrics_of_single_tokens_refuse_whole_answers() {
    let setting = Setting::new(every_kind().remove(0), vec![]);
    for metric in Metric::ALL {
        let readout = readout(metric, whole_answers());
        let refused = setting.base.metric(&setting.model, &readout);
        if metric.takes_several_tokens() {
            refused.expect("measured");
            continue;
        }
        let message = refused.expect_err("refused").to_string();
        assert!(
            message.contains("compares single tokens") && message.contains("log_prob"),
            "{message}"
        );
    }
    let outside = Target {
        after: Pairs::LENGTH,
        ..whole_answers().remove(2)
    };
    let readout = readout(Metric::LogProb, vec![outside; 3]);
    let message = setting
        .base
        .metric(&setting.model, &readout)
        .expect_err("refused")
        .to_string();
    assert!(message.contains("outside"), "{message}");
}
