//! The engine of activation patching: both runs of a batch, then every cell as variants of one of them.

mod runs;

use std::collections::HashSet;
use std::sync::Arc;

use serde_json::json;

use super::donors::draw_donors;
use super::source_model::passes_for_values;
use super::{PatchConfig, PatchSource};
use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Op};
use crate::methods::method::{Cost, Prepared, Running, Subject, Unit, pairs_of, units, unmeasured};
use crate::methods::reference::{Means, ReferenceSet, RoleMeans};
use crate::methods::sites::{Along, Extent, Sites};
use crate::metric::{Judgement, Metric};
use crate::model::Model;
use crate::run::{BaseRun, Progress, Quiet, Readout, Sources, SweepOptions, Variant, plan, sweep};
use crate::scores::{Cell, ExampleScores, Measured};
use crate::task::{Pair, Task};

/// A checked run in progress.
pub(in crate::methods) struct Patching<'a> {
    pub(in crate::methods) model: &'a Model,
    pub(in crate::methods) task: &'a Task,
    config: PatchConfig,
    running: &'a Running,
    metric: Metric,
    extent: Extent,
    cells: Vec<Cell>,
    /// Which sweep each cell is of; those past the sweeps are sets.
    sweep_of: Vec<u32>,
    /// Hooks that the sweeps patch, as kinds.
    kinds: Vec<Kind>,
    /// Means over the reference set, by template and length.
    means: Means,
    /// The same by role.
    by_role: Option<RoleMeans>,
    /// For resampling: which pair's value each pair takes.
    donors: Vec<usize>,
    sigma: f64,
}

/// What a batch of pairs starts from.
pub(in crate::methods) struct Contrast {
    /// The run that is changed.
    pub base: BaseRun,
    pub readout: Readout,
    /// The metric of each prompt of the base run and of the other run.
    pub base_metric: Vec<f64>,
    pub other_metric: Vec<f64>,
    /// How the model does on each clean prompt.
    judged: Vec<Judgement>,
    pub sources: Sources,
    pub op: Op,
}

impl Contrast {
    /// How the model does on a clean prompt.
    pub fn judged(&self, prompt: usize) -> Judgement {
        self.judged[prompt]
    }
}

impl<'a> Patching<'a> {
    pub(in crate::methods) fn new(
        on: Subject<'a>,
        config: PatchConfig,
        running: &'a Running,
    ) -> Result<Self> {
        let Subject { model, task } = on;
        let extent = Extent::new(task, &config.layers, &config.heads);
        let (mut cells, mut sweep_of) = (Vec::new(), Vec::new());
        let only: Option<HashSet<&Cell>> = config.only.as_ref().map(|only| only.iter().collect());
        for (index, sites) in config.sites.iter().enumerate() {
            let all = sites.cells(&model.spec, &extent).into_iter();
            cells.extend(all.filter(|cell| only.as_ref().is_none_or(|only| only.contains(cell))));
            sweep_of.resize(cells.len(), index as u32);
        }
        cells.extend(config.sets.iter().map(|set| set.cell.clone()));
        let sets = config.sites.len()..config.sites.len() + config.sets.len();
        sweep_of.extend(sets.map(|index| index as u32));
        let mut kinds: Vec<Kind> = config.sites.iter().map(|sites| sites.kind).collect();
        let of_sets = config.sets.iter().flat_map(|set| &set.sites);
        kinds.extend(of_sets.map(|site| site.hook.kind));
        kinds.sort_unstable();
        kinds.dedup();
        let resamples = config.source == PatchSource::Resample;
        let mut patching = Patching {
            model,
            task,
            running,
            metric: config.metric(task),
            config,
            extent,
            cells,
            sweep_of,
            kinds,
            means: Means::default(),
            by_role: None,
            donors: Vec::new(),
            sigma: 0.0,
        };
        if resamples {
            patching.donors = draw_donors(task, patching.config.seed(task))?;
        }
        Ok(patching)
    }

    fn pairs(&self, batch: &[usize]) -> Vec<&'a Pair> {
        pairs_of(self.task, batch)
    }

    fn subject(&self) -> Subject<'a> {
        Subject {
            model: self.model,
            task: self.task,
        }
    }

    /// Passes that a pair takes for the values that are written; what is done once counts with the first cells.
    fn passes_for_values(&self, is_first: bool) -> f64 {
        let PatchConfig {
            source,
            source_model: other,
            ..
        } = &self.config;
        let over = self.config.reference.as_deref().unwrap_or(self.task);
        let reference = over.pairs().len() as f64 / self.task.pairs().len() as f64;
        passes_for_values(*source, other.as_ref(), self.metric, reference, is_first)
    }

    pub(in crate::methods) fn options(&self) -> SweepOptions {
        SweepOptions {
            memory: self.running.memory_now(),
            ..SweepOptions::default()
        }
    }

    /// The metric of variants of a batch's base run; who calls has the progress.
    pub(in crate::methods) fn changed(
        &self,
        contrast: &Contrast,
        variants: &[Variant],
    ) -> Result<Vec<f64>> {
        self.swept(contrast, variants, &Quiet)
    }

    fn swept(
        &self,
        contrast: &Contrast,
        variants: &[Variant],
        progress: &dyn Progress,
    ) -> Result<Vec<f64>> {
        sweep(
            self.model,
            &contrast.base,
            variants,
            &contrast.sources,
            &contrast.readout,
            &self.options(),
            progress,
        )
    }

    /// What a cell changes in the runs of a pair; `None` where the pair has no such place.
    pub(in crate::methods) fn edits(&self, cell: usize, pair: &Pair, op: &Op) -> Option<Vec<Edit>> {
        let index = self.sweep_of[cell] as usize;
        let of = &self.cells[cell];
        match self.config.sites.get(index) {
            Some(sites) => (self.extent.has(of, pair))
                .then(|| sites.edits(of, op, self.config.window, &self.model.spec)),
            None => {
                let set = &self.config.sets[index - self.config.sites.len()];
                let edits = set
                    .sites
                    .iter()
                    .map(|site| Edit::new(site.clone(), op.clone()));
                Some(edits.collect())
            }
        }
    }

    /// The variants of some cells over a batch, and for each (cell, pair) which pair of the batch and which cell it is.
    fn variants(&self, unit: &Unit, op: &Op) -> (Vec<Variant>, Vec<(usize, u32)>) {
        let (mut variants, mut of) = (Vec::new(), Vec::new());
        let pairs = self.pairs(&unit.items);
        for cell in unit.cells.clone() {
            for (i, pair) in pairs.iter().enumerate() {
                let Some(edits) = self.edits(cell, pair, op) else {
                    continue;
                };
                of.push((i, cell as u32));
                let variant = |copy| Variant {
                    example: i * self.copies() + copy,
                    edits: edits.clone(),
                };
                variants.extend((0..self.copies()).map(variant));
            }
        }
        (variants, of)
    }
}

impl Prepared for Patching<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.model.spec;
        let widths = 2 * spec.d_model + 2 * (spec.n_heads + spec.n_kv_heads) * spec.d_head;
        let captured =
            |kind: &Kind| -> usize { Hook::at(*kind, 0).shape(spec, 1, length).iter().product() };
        let captured: usize = self.kinds.iter().map(captured).sum();
        // Batches may take a quarter of the memory; waves take the rest.
        16 * spec.n_layers * (length * widths + 2 * captured) * self.copies()
    }

    fn splits(&self) -> bool {
        true
    }

    fn units(&self, task: &Task, running: &Running) -> Vec<Unit> {
        // Copies of one prompt fill a batch where it is corrupted by several draws of noise.
        let batch = if self.config.noise.is_some() {
            1
        } else {
            running.batch
        };
        let running = Running {
            batch,
            ..running.clone()
        };
        let n_cells = self.cells.len();
        units(
            task,
            &running,
            |length| self.bytes(length),
            n_cells,
            self.splits(),
        )
    }

    fn begin(&mut self, _: &dyn Progress) -> Result<()> {
        let config = &self.config;
        let over = match &config.reference {
            None => ReferenceSet {
                task: self.task,
                corrupted: true,
            },
            Some(other) => ReferenceSet {
                task: other,
                corrupted: false,
            },
        };
        let hooks = self.hooks();
        match config.source {
            PatchSource::Mean | PatchSource::MeanAll => {
                let by_position = config.source == PatchSource::Mean;
                let batches = over.task.batches(self.running.batch);
                self.means = over.means(self.source_model()?, &hooks, by_position, &batches)?;
            }
            PatchSource::MeanRole => {
                let means = over.means_by_role(self.source_model()?, &hooks, self.running.batch)?;
                self.by_role = Some(means);
            }
            PatchSource::Pair
            | PatchSource::Same
            | PatchSource::Resample
            | PatchSource::Zero
            | PatchSource::Scale(_)
            | PatchSource::Block => {}
        }
        if let Some(noise) = &config.noise {
            self.sigma = noise.sigma(self.model, self.task)?;
        }
        Ok(())
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let pair = &self.task.pairs()[unit.items[0]];
        // The size of the noise makes no difference to the cost.
        let base = self.one_run(&unit.items, self.base_is_clean())?;
        let config = &self.config;
        let is_pair = config.source == PatchSource::Pair
            && config.noise.is_none()
            && config.source_model.is_none();
        // The pair's two runs agree up to their first different token; other sources change every position.
        let unchanged = if is_pair { pair.first_difference() } else { 0 };
        let (variants, _) = self.variants(unit, &Op::Zero);
        let (targets, options) = (self.targets(&unit.items), self.options());
        let planned = plan(self.model, &base, &variants, &targets, unchanged, &options)?;
        Ok(Cost {
            variants: planned.variants,
            without_effect: planned.without_effect,
            passes: 2.0 * self.copies() as f64
                + unit.items.len() as f64 * self.passes_for_values(unit.cells.start == 0),
            packed: planned.forwards,
            bytes: 2 * base.bytes() + planned.wave_bytes,
            ..Cost::default()
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let contrast = self.contrast(&unit.items)?;
        let copies = self.copies();
        let mean = |values: &[f64], i: usize| {
            values[i * copies..(i + 1) * copies].iter().sum::<f64>() / copies as f64
        };
        let mut scores = Vec::with_capacity(unit.items.len());
        for (i, &item) in unit.items.iter().enumerate() {
            let (base, other) = (
                mean(&contrast.base_metric, i),
                mean(&contrast.other_metric, i),
            );
            let (clean, corrupted) = if self.base_is_clean() {
                (base, other)
            } else {
                (other, base)
            };
            let mut one = unmeasured(self.task, item, clean, corrupted);
            one.judged(contrast.judged[i * copies]);
            one.tokens = self.task.texts(&contrast.base.prompts[i * copies]);
            scores.push(one);
        }
        let mut cells: Vec<Vec<u32>> = vec![Vec::new(); unit.items.len()];
        let (variants, of) = self.variants(unit, &contrast.op);
        let values = self.swept(&contrast, &variants, progress)?;
        // The copies of a cell stand together.
        for (values, &(i, cell)) in values.chunks_exact(copies).zip(&of) {
            cells[i].push(cell);
            scores[i]
                .values
                .push(values.iter().sum::<f64>() / copies as f64);
        }
        for (scores, cells) in scores.iter_mut().zip(cells) {
            scores.cells = Arc::from(cells);
        }
        Ok(scores)
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        let config = &self.config;
        if let Some(other) = &config.source_model {
            let (on, batch) = (self.subject(), self.running.batch);
            other.tell(on, self.metric, batch, measured, progress)?;
        }
        if let Some(noise) = &config.noise {
            measured
                .found
                .insert("sigma".into(), json!(noise.sigma(self.model, self.task)?));
        }
        let groups = self.extent.groups();
        let turned = |sites: &&Sites| {
            sites.along.is_none() && groups > 1 && sites.resolved(&self.extent) == Along::Role
        };
        if let Some(sites) = config.sites.iter().find(turned) {
            measured.notes.push(format!(
                "the pairs come from {groups} templates or lengths, whose positions do not align: {sites} is taken apart by role, and \
                 `other` is all positions without one; `{sites}:pos` has a row for each position of each template"
            ));
        }
        if config.window > 1 {
            measured.warnings.push(format!(
                "each row patches a window of {} layers; do not compare with single-layer numbers",
                config.window
            ));
        }
        Ok(())
    }
}
