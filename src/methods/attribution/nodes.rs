//! Estimates at nodes: any hook, taken apart as a patching sweep would ([`Sites`](crate::methods::Sites)).
//!
//! AtP is the gradient at the base run; RelP the same with other rules; AtP* adds the exact softmax of queries and keys and the
//! passes of GradDrop; layer integrated gradients average the gradient along the embeddings' path, and conductance also takes the
//! value's own steps along it. Every cell of the table is the estimate of what [`activation_patching`](crate::methods::activation_patching())
//! with the same [`PatchConfig`] measures.

mod config;
mod estimate;
mod places;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

pub use config::NodeAttributionConfig;
use estimate::estimate;
pub(super) use places::{Estimates, Places};

use super::runs::Runs;
use super::setting::{Setting, check_metric};
use super::{GradientPath, no_line_between_models, no_steps};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln};
use crate::methods::activation_patching::{PatchConfig, PatchSource, Patching};
use crate::methods::method::{
    Cost, Exact, Method, Needs, Preparation, Prepared, Running, Subject, Unit, unmeasured,
};
use crate::methods::verify::{Bound, Verification, bound_of};
use crate::run::{Progress, Source, Variant, sweep};
use crate::scores::{Cell, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

impl Method for NodeAttributionConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta {
            method: self.name(),
            ..self.patch.header(task)
        }
    }

    fn settings(&self) -> Value {
        let mut settings = self.patch.settings();
        settings["rules"] = json!(self.rules);
        settings["path"] = json!(self.path);
        settings["conductance"] = json!(self.conductance);
        settings["qk_fix"] = json!(self.qk_fix);
        settings["grad_drop"] = json!(self.grad_drop);
        settings
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            aligned: true,
            gradient: true,
            ..self.patch.needs(task)
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.patch.check(spec, task)?;
        let at_base = self.path == GradientPath::Base;
        check_metric(self.patch.metric(task), self.patch.direction, at_base)?;
        self.path.check()?;
        if self.patch.window != 1 || self.patch.noise.is_some() {
            return Err(Error::invalid(
                "attribution has no windows and no Gaussian noise; patch exactly (`candlewick patch`) for these",
            ));
        }
        for sites in &self.patch.sites {
            let reason = match sites.kind {
                Kind::QInput | Kind::KInput | Kind::VInput => {
                    "it has a tensor for each head; use an edge method, `EdgePath::Along`"
                }
                Kind::Result => "it is z seen through W_O, with the same effect; use `z`",
                Kind::Scale(Ln::Final) | Kind::Normalized(Ln::Final) => {
                    "nothing but the unembedding follows it; use `resid_post`"
                }
                Kind::Scale(Ln::One | Ln::Two) | Kind::Normalized(Ln::One | Ln::Two)
                    if spec.norms_stream() =>
                {
                    "in this family the norm makes what the branch is added to as well; use `resid_pre` or `resid_mid`"
                }
                _ => continue,
            };
            return Err(Error::HookAbsent {
                hook: sites.kind.name().into(),
                reason: format!("for attribution: {reason}"),
            });
        }
        let is_known = matches!(
            self.patch.source,
            PatchSource::Pair
                | PatchSource::Same
                | PatchSource::Zero
                | PatchSource::Mean
                | PatchSource::MeanAll
        );
        if !is_known || !self.patch.sets.is_empty() || self.patch.reference.is_some() {
            return Err(Error::invalid(
                "attribution goes from a run to the pair's other run, to another model's, to zeros or to means over the corrupted prompts, at one \
                 site at a time; patch or ablate exactly for anything else (`candlewick ablate`)",
            ));
        }
        let other_is_a_run = matches!(self.patch.source, PatchSource::Pair | PatchSource::Same);
        if !other_is_a_run && (self.qk_fix || !at_base) {
            return Err(Error::invalid(
                "the QK fix and integrals go from one run to another; with zeros or means use `GradientPath::Base`, or leave \
                 `PatchConfig::source` out",
            ));
        }
        if self.patch.source_model.is_some() && !at_base {
            return Err(no_line_between_models("`GradientPath::Base`"));
        }
        if (self.qk_fix || self.grad_drop) && !at_base {
            return Err(Error::invalid(
                "AtP* is taken at the base run; its corrections do not combine with integrals",
            ));
        }
        if self.conductance && !matches!(self.path, GradientPath::Inputs { steps: 1.., .. }) {
            return Err(no_steps());
        }
        Ok(())
    }

    fn load(&self) -> Result<()> {
        self.patch.load()
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let places = Places::new(&on.model.spec, on.task, &self.patch);
        let setting = Setting {
            model: on.model,
            task: on.task,
            metric: self.patch.metric(on.task),
            direction: self.patch.direction,
            source: self.patch.source,
            source_model: self.patch.source_model.as_ref(),
            hooks: places.hooks(),
            memory: running.memory_now(),
        };
        Ok(Box::new(Attributing {
            config: self,
            setting,
            places,
            means: BTreeMap::new(),
            batch: running.batch,
        }))
    }

    fn exact(&self, cells: &[Cell]) -> Option<Exact> {
        Some(Exact {
            method: Box::new(PatchConfig {
                only: Some(cells.to_vec()),
                ..self.patch.clone()
            }),
            sign: 1.0,
            sizes: self.grad_drop,
        })
    }

    /// Each draw patches a random half of the cells that were not verified together, in a random pair.
    fn bound(
        &self,
        on: Subject<'_>,
        running: &Running,
        found: &Verification,
        draws: usize,
        progress: &dyn Progress,
    ) -> Result<Option<Bound>> {
        const RISK: f64 = 0.01;
        let patching = Patching::new(on, self.patch.clone(), running)?;
        let verified: BTreeSet<usize> = found
            .checked
            .iter()
            .filter_map(|checked| checked.index)
            .collect();
        let rest: Vec<usize> = (0..patching.cells().len())
            .filter(|cell| !verified.contains(cell))
            .collect();
        if rest.is_empty() {
            return Ok(None);
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.patch.seed(on.task) ^ 0x6a09_e667);
        let (mut pairs, mut sets) = (Vec::new(), Vec::new());
        for _ in 0..draws {
            pairs.push(rng.random_range(0..on.task.pairs().len()));
            let set = rest.iter().copied().filter(|_| rng.random_bool(0.5));
            sets.push(set.collect::<BTreeSet<usize>>());
        }
        let effects = patch_together(patching, running, &pairs, &sets, progress)?;
        Ok(Some(bound_of(&rest, &sets, &effects, RISK)))
    }
}

/// The effect of patching many cells at once: for each set, in its pair.
fn patch_together(
    mut patching: Patching<'_>,
    running: &Running,
    pairs: &[usize],
    sets: &[BTreeSet<usize>],
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    patching.begin(progress)?;
    let mut effects = vec![0.0; sets.len()];
    progress.start("patching together", sets.len() as u64);
    for unit in patching.units(patching.task, running) {
        // Units of the same pairs differ in their cells, which are not what is asked for here.
        if unit.cells.start > 0 {
            continue;
        }
        let of_batch: Vec<usize> = (0..sets.len())
            .filter(|&i| unit.items.contains(&pairs[i]))
            .collect();
        if of_batch.is_empty() {
            continue;
        }
        let contrast = patching.contrast(&unit.items)?;
        let mut variants = Vec::new();
        for &i in &of_batch {
            let at = unit.items.iter().position(|&item| item == pairs[i]);
            let pair = &patching.task.pairs()[pairs[i]];
            let cells = sets[i].iter();
            let edits: Vec<Edit> = cells
                .filter_map(|&cell| patching.edits(cell, pair, &contrast.op))
                .flatten()
                .collect();
            variants.push(Variant {
                example: at.expect("of this batch"),
                edits,
            });
        }
        let values = sweep(
            patching.model,
            &contrast.base,
            &variants,
            &contrast.sources,
            &contrast.readout,
            &patching.options(),
            progress,
        )?;
        for ((&i, value), variant) in of_batch.iter().zip(values).zip(&variants) {
            effects[i] = value - contrast.base_metric[variant.example];
        }
    }
    progress.finish();
    Ok(effects)
}

/// A checked run in progress.
struct Attributing<'a> {
    config: &'a NodeAttributionConfig,
    setting: Setting<'a>,
    places: Places,
    means: BTreeMap<(usize, usize), Source>,
    batch: usize,
}

impl Prepared for Attributing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.places.cells
    }

    fn bytes(&self, length: usize) -> usize {
        self.setting.bytes(length, 0)
    }

    fn begin(&mut self, _: &dyn Progress) -> Result<()> {
        self.means = self.setting.means(self.batch)?;
        Ok(())
    }

    /// A backward pass costs about as much as a forward pass; the base and the other run are recorded once.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let n_layers = self.setting.model.spec.n_layers as f64;
        let points = match self.config.path {
            GradientPath::Inputs { steps, .. } if self.config.conductance => (steps + 1) as f64,
            path => path.points(true).len() as f64,
        };
        let drops = if self.config.grad_drop {
            0.5 * n_layers
        } else {
            0.0
        };
        let each = 2.0 * (points - 1.0) + 1.0 + drops;
        let each = each + self.setting.passes_for_values();
        Ok(Cost::passes(unit.items.len() as f64 * (2.0 + each)))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let mut keep = Vec::new();
        if self.config.qk_fix {
            let layers = 0..self.setting.model.spec.n_layers;
            keep = layers
                .flat_map(|layer| [Kind::RotQ, Kind::RotK].map(|kind| Hook::at(kind, layer)))
                .collect();
        }
        let runs = Runs::record(&self.setting, &unit.items, &self.means, &keep)?;
        let estimates = estimate(&runs, &self.places, self.config, &self.setting.hooks)?;
        let task = self.setting.task;
        let mut examples = Vec::with_capacity(unit.items.len());
        for (i, (&item, estimates)) in unit.items.iter().zip(estimates).enumerate() {
            let pair = runs.pairs[i];
            let here: Vec<u32> = (unit.cells.clone())
                .filter(|&cell| self.places.extent.has(&self.places.cells[cell], pair))
                .map(|cell| cell as u32)
                .collect();
            let mut one = unmeasured(task, item, runs.clean[i], runs.corrupted[i]);
            one.judged(runs.judged[i]);
            let base = one.base(self.setting.direction);
            one.tokens = task.texts(&runs.base.prompts[i]);
            one.values = here
                .iter()
                .map(|&cell| base + estimates[cell as usize])
                .collect();
            one.cells = Arc::from(here);
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        measured.sizes = self.config.grad_drop;
        self.setting.tell(self.batch, measured, progress)
    }
}
