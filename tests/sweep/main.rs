//! The sweep gives what one whole forward pass for each variant gives, on models of every kind; and patching keeps its identities.

mod answers;
mod identities;
#[path = "../models/mod.rs"]
mod models;
mod refusals;
mod twin;

use candlewick::Result;
use candlewick::hooks::{Axes, Edit, Hook, Kind, Op, Pos, Site, Value};
use candlewick::metric::Metric;
use candlewick::model::Model;
use candlewick::run::{
    BaseRun, Cache, MeanOf, Quiet, Readout, Source, Sources, SweepOptions, Variant, run_with_cache,
    sweep,
};

use models::{Pairs, kinds};

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
