//! Subspaces exchanged between the runs of held-out pairs, both ways round.

use std::borrow::Cow;

use super::data::{activation, alike};
use super::find::Finder;
use super::places::{Place, SIDES, position, prompt, target};
use super::space::Subspace;
use crate::error::Result;
use crate::hooks::{Edit, Op, Site, Value};
use crate::methods::captured::base_bytes;
use crate::methods::method::{Subject, pairs_of};
use crate::metric::{Judgement, Metric, Target};
use crate::nn::host::tensor;
use crate::run::{BaseRun, Quiet, Readout, Sources, SweepOptions, Variant, sweep};

/// Held-out pairs that run together, and their runs without an edit where memory has room for them.
pub(super) struct HeldOut {
    pub items: Vec<usize>,
    bases: Option<[BaseRun; 2]>,
}

/// What exchanging one subspace does to a pair.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Verdict {
    /// How far the changed runs move towards the source's answer, in log odds; the mean of both ways round.
    pub odds: f64,
    /// The share of the two that prefer the source's answer then.
    pub iia: f64,
    /// The logit difference of the clean run with the corrupted one's part.
    pub patched: f64,
}

/// What the model does on a pair when nothing is exchanged.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Untouched {
    pub clean: f64,
    pub corrupted: f64,
    pub judged: Judgement,
}

impl Finder<'_> {
    /// Bytes of the run of one prompt that a sweep starts from.
    pub fn base_bytes(&self, length: usize) -> usize {
        let spec = &self.on.model.spec;
        base_bytes(spec, length, self.places[0].hook.width(spec))
    }

    /// The pairs that judge, and their runs.
    pub fn held_out(&self) -> Result<Vec<HeldOut>> {
        let pairs = &self.split.held_out;
        let bytes = 2 * pairs.len() * self.base_bytes(self.on.task.longest());
        let hold = bytes <= self.running.memory_now() / 2;
        let batch = |items: Vec<usize>| {
            let bases = hold.then(|| self.bases(&items)).transpose()?;
            Ok(HeldOut { items, bases })
        };
        let batches = alike(self.on.task, pairs, self.running.batch).into_iter();
        batches.map(batch).collect()
    }

    /// The runs of a batch without an edit: of its clean prompts, and of its corrupted ones.
    pub fn bases_of<'b>(&self, batch: &'b HeldOut) -> Result<Cow<'b, [BaseRun; 2]>> {
        Ok(match &batch.bases {
            Some(bases) => Cow::Borrowed(bases),
            None => Cow::Owned(self.bases(&batch.items)?),
        })
    }

    fn bases(&self, items: &[usize]) -> Result<[BaseRun; 2]> {
        let pairs = self.on.task.pairs();
        let of = |side: usize| {
            let prompts = items.iter().map(|&at| prompt(&pairs[at], side).clone());
            let starts = [self.config.kind];
            let (model, none) = (self.on.model, Sources::default());
            BaseRun::new(model, prompts.collect(), vec![], vec![], none, &starts)
        };
        Ok([of(SIDES[0])?, of(SIDES[1])?])
    }

    fn readout(&self, items: &[usize], arbitrary: Option<[u32; 2]>) -> Readout {
        let pairs = pairs_of(self.on.task, items);
        let targets: Vec<Target> = (pairs.iter())
            .map(|pair| target(pair, &self.classes, arbitrary))
            .collect();
        Readout {
            metric: Metric::LogitDiff,
            targets,
            reference: None,
        }
    }

    /// How the pairs of a batch do without an exchange.
    pub fn untouched(&self, items: &[usize], bases: &[BaseRun; 2]) -> Result<Vec<Untouched>> {
        let (model, readout) = (self.on.model, self.readout(items, None));
        let clean = bases[0].metric(model, &readout)?;
        let corrupted = bases[1].metric(model, &readout)?;
        let judged = bases[0].judge(model, &readout.targets)?;
        let all = clean.into_iter().zip(corrupted).zip(judged);
        let one = |((clean, corrupted), judged)| Untouched {
            clean,
            corrupted,
            judged,
        };
        Ok(all.map(one).collect())
    }

    /// What exchanging each subspace does to each pair of a batch; of several under one name the mean.
    /// # Shapes
    /// Gives `[pairs][spaces]`.
    pub fn judge(
        &self,
        place: &Place,
        items: &[usize],
        bases: &[BaseRun; 2],
        spaces: &[Vec<&Subspace>],
        arbitrary: Option<[u32; 2]>,
    ) -> Result<Vec<Vec<Verdict>>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, items);
        let readout = self.readout(items, arbitrary);
        let options = SweepOptions {
            memory: self.running.memory_now(),
            ..SweepOptions::default()
        };
        let dims = place.hook.shape(&model.spec, 1, 1).split_off(1);
        let mut verdicts = vec![vec![Verdict::default(); spaces.len()]; items.len()];
        for side in SIDES {
            let (base, source) = (&bases[side], &bases[1 - side]);
            let unchanged = base.metric(model, &readout)?;
            let mut variants = Vec::new();
            for (example, pair) in pairs.iter().enumerate() {
                let at = |side| position(pair, side, &place.role).expect("checked");
                let own = activation(&base.cache, place.hook, example, at(side))?;
                let theirs = activation(&source.cache, place.hook, example, at(1 - side))?;
                for space in spaces.iter().flatten() {
                    let value = tensor(space.exchanged(&own, &theirs), dims.clone())?;
                    let site = Site::all(place.hook).at(at(side));
                    let edits = vec![Edit::new(site, Op::Replace(Value::Tensor(value)))];
                    variants.push(Variant { example, edits });
                }
            }
            let none = Sources::default();
            let changed = sweep(model, base, &variants, &none, &readout, &options, &Quiet)?;
            let mut changed = changed.into_iter();
            // Towards the source: away from the answer where the clean run is changed.
            let sign = if side == SIDES[0] { -1.0 } else { 1.0 };
            for (verdicts, unchanged) in verdicts.iter_mut().zip(&unchanged) {
                for (spaces, verdict) in spaces.iter().zip(verdicts) {
                    let n = spaces.len() as f64;
                    let share = 1.0 / (SIDES.len() as f64 * n);
                    for value in changed.by_ref().take(spaces.len()) {
                        verdict.odds += share * sign * (value - unchanged);
                        verdict.iia += share * f64::from(u8::from(sign * value > 0.0));
                        if side == SIDES[0] {
                            verdict.patched += value / n;
                        }
                    }
                }
            }
        }
        Ok(verdicts)
    }
}
