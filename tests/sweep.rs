//! The sweep gives what one whole forward pass for each variant gives, on models of every kind; and patching keeps its identities.

mod models;

use candle_core::{Device, Tensor};
use candlewick::hooks::{Axes, Edit, Hook, Kind, Ln, Op, Pos, Site, Value};
use candlewick::metric::{Metric, Target};
use candlewick::model::Model;
use candlewick::run::{
    BaseRun, Cache, MeanOf, Quiet, Readout, Source, Sources, SweepOptions, Variant, plan,
    run_with_cache, sweep, sweep_plain,
};
use candlewick::spec::QkNorm;
use candlewick::{Error, Result};
use models::{Pairs, every_kind, kinds, two_kinds};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Products of other shapes add in another order; f32 keeps about seven digits.
const TOLERANCE: f64 = 1e-5;

/// A model with its clean and corrupted runs.
struct Setting {
    model: Model,
    pairs: Pairs,
    clean: Cache,
    base: BaseRun,
    sources: Sources,
}

impl Setting {
    /// The base run is the corrupted one, with edits of its own if wanted.
    fn new(model: Model, edits: Vec<Edit>) -> Self {
        let pairs = Pairs::new();
        let (_, clean) = run_with_cache(&model, &pairs.clean, &Hook::all(&model.spec))
            .expect("the clean run runs");
        let base = BaseRun::new(
            &model,
            pairs.corrupted.clone(),
            pairs.roles.clone(),
            edits,
            Sources::default(),
            &kinds(&model),
        )
        .expect("the base run runs");
        let mut mean = MeanOf::new(true);
        mean.add(&clean).expect("adds");
        let mean = mean.finish(&model.spec).expect("means");
        let sources = Sources::default()
            .with("clean", Source::run(clean.clone()).expect("a source"))
            .with("mean", mean);
        Setting {
            model,
            pairs,
            clean,
            base,
            sources,
        }
    }

    fn name(&self) -> &str {
        &self.model.spec.family
    }

    fn readout(&self, metric: Metric) -> Readout {
        let reference = metric.needs_reference().then(|| {
            let logits = candlewick::run::logits(&self.model, &self.pairs.clean).expect("runs");
            logits.to_vec2().expect("logits")
        });
        Readout {
            metric,
            targets: self.pairs.targets.clone(),
            reference,
        }
    }

    fn try_sweep(&self, variants: &[Variant], options: &SweepOptions) -> Result<Vec<f64>> {
        let readout = self.readout(Metric::LogitDiff);
        let (model, base, sources) = (&self.model, &self.base, &self.sources);
        sweep(model, base, variants, sources, &readout, options, &Quiet)
    }

    fn sweep(&self, variants: &[Variant]) -> Vec<f64> {
        self.try_sweep(variants, &SweepOptions::default())
            .expect("sweeps")
    }

    fn one(&self, example: usize, edits: impl IntoIterator<Item = Edit>) -> f64 {
        let edits = edits.into_iter().collect();
        self.sweep(&[Variant { example, edits }])[0]
    }

    fn metric(&self) -> Vec<f64> {
        let readout = self.readout(Metric::LogitDiff);
        self.base.metric(&self.model, &readout).expect("a metric")
    }

    fn metric_of(&self, prompts: &[Vec<u32>]) -> Vec<f64> {
        let base = BaseRun::new(
            &self.model,
            prompts.to_vec(),
            vec![],
            vec![],
            Sources::default(),
            &[],
        )
        .expect("runs");
        base.metric(&self.model, &self.readout(Metric::LogitDiff))
            .expect("a metric")
    }
}

fn from_clean(site: Site) -> Edit {
    Edit::new(site, Op::FromRun("clean".into()))
}

/// Parts of a hook's tensor: all of it, one position, the answer, one head, one cell, some neurons.
fn sites(model: &Model, hook: Hook) -> Vec<Site> {
    let all = || Site::all(hook);
    let answer = Pos::FromEnd(1);
    let mut sites = vec![all(), all().at(4), all().at_positions([answer.clone()])];
    match hook.kind.axes(&model.spec) {
        Axes::Stream | Axes::Neurons => {
            sites.push(all().neurons([1, 7]));
            sites.push(all().at_positions([Pos::Role("S2".into())]).neurons([3]));
        }
        Axes::Heads { heads, .. } => {
            sites.push(all().heads([heads - 1]));
            sites.push(all().heads([0]).at_positions([Pos::Index(3), answer]));
            sites.push(all().heads([0]).neurons([2]));
        }
        Axes::Pattern => {
            let heads = model.spec.n_heads;
            sites.push(all().heads([heads - 1]));
            sites.push(all().heads([0]).at(6).keys([Pos::Index(5)]));
            sites.push(
                all()
                    .at_positions([answer])
                    .keys([Pos::Index(2), Pos::Index(8)]),
            );
        }
        Axes::Scale => {}
    }
    sites
}

/// Every operation that makes sense at a hook. `width` is how much of the last axis the site takes.
fn operations(hook: Hook, width: usize) -> Vec<(&'static str, Op)> {
    let vector: Vec<f32> = (0..width).map(|i| 0.3 + 0.1 * (i % 5) as f32).collect();
    let mut operations = vec![
        ("run", Op::FromRun("clean".into())),
        ("mean", Op::Mean),
        ("scale", Op::Scale(0.5)),
        ("add", Op::Add(Value::Vector(vector.clone()))),
        ("replace", Op::Replace(Value::Vector(vector))),
    ];
    // A zero divisor gives no number.
    if !matches!(hook.kind, Kind::Scale(_)) {
        operations.push(("zero", Op::Zero));
    }
    operations
}

/// A function that mixes the positions that it is given: it must be given all of them.
fn mixing(site: Site) -> Edit {
    Edit::with(site, "half the value, half the mean over positions", |x| {
        let x = x.clamp(-1e4, 1e4)?;
        Ok(((x.broadcast_add(&x.mean_keepdim(0)?)?) * 0.5)?)
    })
}

/// Edits at every hook of the first, a middle and the last layer.
fn every_edit(model: &Model) -> Vec<Edit> {
    let last = model.spec.n_layers - 1;
    let layers = [0, last / 2, last];
    let mut hooks = Hook::all(&model.spec);
    hooks.retain(|hook| hook.layer.is_none_or(|layer| layers.contains(&layer)));
    let mut edits = Vec::new();
    for hook in hooks {
        for site in sites(model, hook) {
            let width = match (&site.neurons, &site.keys) {
                (Some(neurons), _) => neurons.len(),
                (_, candlewick::hooks::Positions::These(keys)) => keys.len(),
                _ => *hook
                    .shape(&model.spec, 1, Pairs::LENGTH)
                    .last()
                    .expect("axes"),
            };
            for (_, op) in operations(hook, width) {
                edits.push(Edit::new(site.clone(), op));
            }
            edits.push(mixing(site));
        }
    }
    for layer in layers {
        let scores = Site::all(Hook::at(Kind::AttnScores, layer));
        edits.push(Edit::block(
            scores.clone(),
            [Pos::FromEnd(1)],
            [Pos::Index(7)],
        ));
        edits.push(Edit::block(
            scores.heads([1]),
            [Pos::Index(6), Pos::Index(8)],
            [Pos::Index(6), Pos::Index(8)],
        ));
    }
    // Key 6 from query 6 would leave nothing where the window is short, but 5 is still there.
    edits
}

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

/// Relative to the larger of the two, and to the scale of logits.
fn gap(a: f64, b: f64) -> f64 {
    (a - b).abs() / a.abs().max(b.abs()).max(1.0)
}

/// One variant for each edit, the prompts taking turns.
fn singly(edits: Vec<Edit>) -> Vec<Variant> {
    let one = |(i, edit)| Variant {
        example: i % 3,
        edits: vec![edit],
    };
    edits.into_iter().enumerate().map(one).collect()
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
            let plan = plan(&setting.model, &setting.base, &variants, 0, &options).expect("plans");
            assert_eq!(plan.variants, variants.len());
            assert!(plan.without_effect > 0 && plan.forwards < variants.len() as f64);
        }
    }
}

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

#[test]
fn what_cannot_be_swept_is_an_error_that_says_why() {
    let model = two_kinds().remove(0);
    let setting = Setting::new(model, vec![]);
    let z = || Site::all(Hook::at(Kind::Z, 1));
    let first_z = || z().at(0);
    let try_one = |example, edits| {
        setting
            .try_sweep(&[Variant { example, edits }], &SweepOptions::default())
            .expect_err("not possible")
    };
    let cases = [
        (try_one(3, vec![from_clean(z())]), "3 prompts"),
        (try_one(0, vec![]), "without edits"),
        (
            try_one(0, vec![Edit::new(z(), Op::FromRun("cleen".into()))]),
            "`clean`",
        ),
        (
            // It cannot reach the answer, and is wrong all the same.
            try_one(
                0,
                vec![Edit::new(
                    Site::all(Hook::at(Kind::Z, 2)).at(0),
                    Op::FromRun("cleen".into()),
                )],
            ),
            "`clean`",
        ),
        (try_one(0, vec![Edit::new(first_z(), Op::Freeze)]), "`base`"),
        (
            try_one(
                0,
                vec![Edit::new(z(), Op::Replace(Value::Vector(vec![0.0; 5])))],
            ),
            "takes 6",
        ),
        (try_one(0, vec![from_clean(z().at(10))]), "10 tokens"),
        (
            try_one(
                0,
                vec![from_clean(z().at_positions([Pos::Role("S3".into())]))],
            ),
            "S1, S2",
        ),
        (try_one(0, vec![from_clean(z().heads([4]))]), "0 to 3"),
    ];
    for (error, says) in cases {
        let message = error.to_string();
        assert!(
            message.contains(says) && !message.contains('\n'),
            "{message}"
        );
    }
    let nan = Edit::with(z(), "not a number", |x| Ok((x * f64::NAN)?));
    let variants = [Variant {
        example: 2,
        edits: vec![nan],
    }];
    let error = setting.try_sweep(&variants, &SweepOptions::default());
    assert!(
        matches!(error, Err(Error::NotFiniteLogits { index: 2, .. })),
        "{error:?}"
    );
    let mut readout = setting.readout(Metric::LogitDiff);
    readout.targets.pop();
    let variants = [Variant {
        example: 2,
        edits: vec![from_clean(z())],
    }];
    let options = SweepOptions::default();
    let (model, base, sources) = (&setting.model, &setting.base, &setting.sources);
    let error = sweep(model, base, &variants, sources, &readout, &options, &Quiet);
    assert!(error.is_err());
    assert!(sweep_plain(model, base, &variants, sources, &readout).is_err());
    assert!(setting.sweep(&[]).is_empty());
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
