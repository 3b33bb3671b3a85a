//! Activation patching: put one run's value at a site into another run, and see what the metric does.
//!
//! Denoising writes clean values into the corrupted run (is the site enough to restore the answer?), noising writes
//! corrupted values into the clean run (is it needed?); they are not mirror images of each other. With zeros, means or another
//! prompt's values as the source it is an ablation of the clean run. Every effect is exact: the engine recomputes everything
//! downstream of a site ([`crate::run::sweep`]).
//!
//! Sources: Vig et al. 2020; Meng et al. 2022; Zhang and Nanda 2024, "Towards best practices of activation patching".
//! Left out on purpose: path patching, which is a method of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::gaussian::GaussianNoise;
use super::record::provenance;
use super::reference::{Means, ReferenceSet, RoleMeans};
use super::sites::{Along, Extent, Sites, fits};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Op, Pos, Positions, Site};
use crate::metric::Metric;
use crate::model::{Model, ModelSpec};
use crate::run::{
    BaseRun, Logits, Plan, Progress, Readout, Request, Source, Sources, SweepOptions, Variant,
    plan, run, sweep,
};
use crate::scores::{
    Cell, Detail, Direction, ExampleScores, PartStore, Provenance, Scores, ScoresMeta,
};
use crate::task::{Pair, Task};

/// What is written at a site.
#[derive(Debug, Clone, Copy, PartialEq, Default, serde::Serialize)]
pub enum PatchSource {
    /// The value in the pair's other run.
    #[default]
    Pair,
    Zero,
    /// The mean over the reference prompts, per position within each template.
    Mean,
    /// The mean over the reference prompts for each role of the task; positions without a role share one mean.
    MeanRole,
    /// The mean over all positions of the reference prompts, one vector.
    MeanAll,
    /// The value in the clean run of another pair of the same template and length.
    Resample,
    /// The run's own value, times a factor.
    Scale(f32),
    /// No attention: scores at minus infinity, so that the softmax renormalises over the other keys.
    Block,
}

/// Sites that are patched together, as one row of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct SiteSet {
    pub cell: Cell,
    pub sites: Vec<Site>,
}

/// What to patch, and how.
#[derive(Debug, Clone)]
pub struct PatchConfig {
    pub sites: Vec<Sites>,
    /// Sites patched together, besides those sweeps.
    pub sets: Vec<SiteSet>,
    /// The prompts that means are taken over: the clean ones of this task [default: the task's own corrupted prompts].
    pub reference: Option<Arc<Task>>,
    /// `Denoise` or `Noise` with [`PatchSource::Pair`], else `Ablate`.
    pub direction: Direction,
    pub source: PatchSource,
    /// Corrupt by noise on the clean prompt's embeddings instead of by the corrupted prompt.
    pub noise: Option<GaussianNoise>,
    pub metric: Metric,
    /// Layers patched together, centred on the one reported. Never compare windowed with single-layer numbers.
    pub window: usize,
    /// Only these layers and heads, if any are named.
    pub layers: Vec<usize>,
    pub heads: Vec<usize>,
    pub detail: Detail,
    pub seed: u64,
    pub sweep: SweepOptions,
    /// Pairs that run together, at most; memory may allow fewer.
    pub batch: usize,
}

impl PatchConfig {
    /// Denoising of these sites with a metric; all else at its default.
    pub fn new(sites: Vec<Sites>, metric: Metric) -> Self {
        PatchConfig {
            sites,
            sets: Vec::new(),
            reference: None,
            direction: Direction::Denoise,
            source: PatchSource::Pair,
            noise: None,
            metric,
            window: 1,
            layers: Vec::new(),
            heads: Vec::new(),
            detail: Detail::Mean,
            seed: 0,
            sweep: SweepOptions::default(),
            batch: 8,
        }
    }

    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        task.check_metric(self.metric)?;
        let range = |what: &'static str, values: &[usize], limit: usize| match values
            .iter()
            .find(|&&value| value >= limit)
        {
            Some(value) => Err(Error::OutOfRange {
                hook: "the model".into(),
                what,
                value: value.to_string(),
                limit: format!("{limit}, 0 to {}", limit - 1),
            }),
            None => Ok(()),
        };
        range("layer", &self.layers, spec.n_layers)?;
        range("head", &self.heads, spec.n_heads)?;
        if self.window == 0 || self.window > spec.n_layers {
            return Err(Error::invalid(format!(
                "a window takes 1 to {} layers, not {}",
                spec.n_layers, self.window
            )));
        }
        let ablates = self.source != PatchSource::Pair;
        if ablates != (self.direction == Direction::Ablate) || self.direction == Direction::Direct {
            return Err(Error::invalid(
                "zero, mean and resample are ablations of the clean run (direction `ablate`); \
                 the pair's other run is patched in by `denoise` or `noise`",
            ));
        }
        if let Some(noise) = &self.noise {
            if ablates || noise.samples == 0 || !noise.scale.is_finite() {
                return Err(Error::invalid(
                    "Gaussian noise is a corruption for `denoise` and `noise`, with a finite scale and at least one sample",
                ));
            }
            task.pairs()
                .iter()
                .try_for_each(|pair| noise.positions_in(pair).map(drop))?;
        }
        for site in self.sets.iter().flat_map(|set| &set.sites) {
            site.check(spec)?;
        }
        let of_sets = self.sets.iter().flat_map(|set| &set.sites);
        let set_kinds = of_sets.map(|site| site.hook.kind);
        let mut kinds = self.sites.iter().map(|sites| sites.kind).chain(set_kinds);
        if self.source == PatchSource::Block && kinds.any(|kind| kind != Kind::AttnScores) {
            return Err(Error::invalid(
                "attention is blocked at `attn_scores`, before the softmax, and nowhere else",
            ));
        }
        if matches!(self.source, PatchSource::Scale(factor) if !factor.is_finite()) {
            return Err(Error::invalid("the factor is not a finite number"));
        }
        self.check_reference(task)?;
        let needs_roles = self.source == PatchSource::MeanRole
            || self.sites.iter().any(|sites| sites.along == Along::Role);
        if needs_roles && roles_of(task).is_empty() {
            return Err(Error::UnknownRole {
                role: "any".into(),
                known: "none; sweep by position instead".into(),
            });
        }
        task.check_aligned()
    }

    /// The reference prompts have to align with the task's own where means are taken by position.
    fn check_reference(&self, task: &Task) -> Result<()> {
        let Some(reference) = &self.reference else {
            return Ok(());
        };
        reference.check_aligned()?;
        let is_like = |pair: &&Pair| {
            let same = |other: &Pair| group_of(other) == group_of(pair);
            !reference.pairs().iter().any(same)
        };
        match task.pairs().iter().find(is_like) {
            Some(pair) if self.source == PatchSource::Mean => Err(Error::invalid(format!(
                "pair {} is of template {} and has {} tokens, and no prompt of the reference task `{}` is like that, so positions do \
                 not align; take means by role or over all positions (`--by mean-role`, `--by mean-all`)",
                pair.index,
                pair.template,
                pair.clean.len(),
                reference.name
            ))),
            _ => Ok(()),
        }
    }

    /// Lawful but doubtful results, each with a remedy.
    pub(super) fn warnings(&self, task: &Task, scores: &[ExampleScores]) -> Vec<String> {
        let mut warnings = Vec::new();
        if task.pairs().len() < task.asked {
            warnings.push(format!(
                "{} of {} pairs are usable; `candlewick tokens` shows why the others were dropped",
                task.pairs().len(),
                task.asked
            ));
        }
        let wrong = scores.iter().filter(|scores| scores.clean <= 0.0).count();
        if self.metric == Metric::LogitDiff && 2 * wrong > scores.len() {
            warnings.push(format!(
                "the model prefers the wrong answer on {wrong} of {} clean prompts: it does not do this task, so effects mean little",
                scores.len()
            ));
        }
        let by_position = self
            .sites
            .iter()
            .any(|sites| matches!(sites.along, Along::Pos | Along::Cell));
        let groups = task.batches(usize::MAX).len();
        if by_position && groups > 1 && self.detail == Detail::Mean {
            warnings.push(format!(
                "the pairs come from {groups} templates or lengths, so one position is not one role of the sentence; \
                 rows by position mix them: take one template (`--template 0`), or sweep by role (`resid_pre:role`)"
            ));
        }
        if self.window > 1 {
            warnings.push(format!(
                "each row patches a window of {} layers; do not compare with single-layer numbers",
                self.window
            ));
        }
        warnings
    }

    /// Everything that decides a measurement: parts of a run with another fingerprint cannot be gone on with.
    pub fn fingerprint(&self, model: &Model, task: &Task) -> serde_json::Value {
        json!({
            "method": "activation_patching",
            "version": env!("CARGO_PKG_VERSION"),
            "weights": model.origin.weight_hash,
            "model": model.origin.id,
            "dtype": format!("{:?}", model.dtype),
            "prompts": task.token_hash(),
            "sites": self.sites.iter().map(Sites::to_string).collect::<Vec<_>>(),
            "sets": self.sets.iter().map(|set| set.sites.iter().map(Site::to_string).collect()).collect::<Vec<Vec<_>>>(),
            "reference": self.reference.as_ref().map(|task| (&task.name, task.token_hash())),
            "direction": self.direction.to_string(),
            "source": self.source,
            "noise": self.noise,
            "metric": self.metric.to_string(),
            "window": self.window,
            "layers": self.layers,
            "heads": self.heads,
            "seed": self.seed,
        })
    }
}

/// Patches every cell of every sweep in every pair.
///
/// With `parts`, each finished batch of pairs is kept there, and pairs that are there already are not run again.
/// # Units
/// `value` and `score`: the metric's.
/// # Errors
/// Those of [`PatchConfig::check`], before anything runs; [`Error::Interrupted`].
pub fn activation_patching(
    model: &Model,
    task: &Task,
    config: &PatchConfig,
    parts: Option<&mut PartStore>,
    progress: &dyn Progress,
) -> Result<Scores> {
    let patched = patch_every_cell(model, task, config, parts, progress)?;
    patched.assemble("activation_patching", config)
}

/// What was measured, before it becomes a table.
pub(super) struct Patched {
    pub cells: Vec<Cell>,
    pub examples: Vec<ExampleScores>,
    pub provenance: Provenance,
}

impl Patched {
    pub fn assemble(self, method: &str, config: &PatchConfig) -> Result<Scores> {
        let meta = ScoresMeta {
            method: method.into(),
            metric: config.metric.to_string(),
            unit: config.metric.unit().into(),
            direction: config.direction,
            seed: config.seed,
        };
        let (cells, examples) = (&self.cells, &self.examples);
        Scores::assemble(cells, examples, &meta, config.detail, self.provenance)
    }
}

/// [`activation_patching`] up to its table.
pub(super) fn patch_every_cell(
    model: &Model,
    task: &Task,
    config: &PatchConfig,
    mut parts: Option<&mut PartStore>,
    progress: &dyn Progress,
) -> Result<Patched> {
    config.check(&model.spec, task)?;
    let began = Instant::now();
    let patching = Patching::new(model, task, config)?;
    let done = parts
        .as_ref()
        .map(|parts| parts.finished())
        .unwrap_or_default();
    let mut all = Vec::new();
    let waiting: Vec<Vec<usize>> = (patching.batches().into_iter())
        .filter(|batch| {
            !batch
                .iter()
                .all(|&pair| done.contains(&task.pairs()[pair].index))
        })
        .collect();
    let per_pair = patching.cells.len() as u64;
    progress.start(
        "patching",
        waiting
            .iter()
            .map(|batch| batch.len() as u64 * per_pair)
            .sum(),
    );
    for batch in &waiting {
        let scores = patching
            .batch(batch, progress)
            .map_err(|error| match error {
                Error::Interrupted { .. } => Error::Interrupted {
                    kept: kept(parts.as_deref(), task),
                },
                other => other,
            })?;
        match &mut parts {
            Some(parts) => parts.write(&scores)?,
            None => all.extend(scores),
        }
    }
    progress.finish();
    if let Some(parts) = &parts {
        all = parts.read_all()?;
    }
    all.sort_by_key(|scores| scores.example);
    Ok(Patched {
        provenance: patching.provenance(began.elapsed().as_secs_f64(), &all),
        cells: patching.cells,
        examples: all,
    })
}

/// Pairs of one group align position by position.
fn group_of(pair: &Pair) -> (usize, usize) {
    (pair.template, pair.clean.len())
}

/// Patches only some cells, given as indices into the cells that a whole sweep would have.
/// # Shapes
/// Indices in the result count along `chosen`.
pub(super) fn patch_chosen(
    model: &Model,
    task: &Task,
    config: &PatchConfig,
    chosen: &[usize],
    progress: &dyn Progress,
) -> Result<Vec<ExampleScores>> {
    config.check(&model.spec, task)?;
    let mut patching = Patching::new(model, task, config)?;
    // The engine wants each example's cells in order.
    let mut order: Vec<usize> = (0..chosen.len()).collect();
    order.sort_by_key(|&i| chosen[i]);
    let all = std::mem::take(&mut patching.cells);
    patching.cells = order.iter().map(|&i| all[chosen[i]].clone()).collect();
    let before = |start: usize| order.iter().filter(|&&i| chosen[i] < start).count();
    patching.starts = patching.starts.iter().map(|&start| before(start)).collect();
    progress.start("verifying", (task.pairs().len() * chosen.len()) as u64);
    let mut examples = Vec::new();
    for batch in patching.batches() {
        for mut scores in patching.batch(&batch, progress)? {
            let mut cells: Vec<(u32, f64)> = (scores.cells.iter().zip(&scores.values))
                .map(|(&cell, &value)| (order[cell as usize] as u32, value))
                .collect();
            cells.sort_by_key(|&(cell, _)| cell);
            scores.cells = cells.iter().map(|&(cell, _)| cell).collect();
            scores.values = cells.iter().map(|&(_, value)| value).collect();
            examples.push(scores);
        }
    }
    progress.finish();
    Ok(examples)
}

/// The effect of patching many cells at once: for each set the pair that it is patched in, and indices into the cells that a whole
/// sweep would have.
pub(super) fn patch_together(
    model: &Model,
    task: &Task,
    config: &PatchConfig,
    sets: &[(usize, Vec<usize>)],
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    config.check(&model.spec, task)?;
    let patching = Patching::new(model, task, config)?;
    let sites_of = |cell: usize| {
        let index = patching.starts.partition_point(|&start| start <= cell) - 1;
        &config.sites[index]
    };
    let mut effects = vec![0.0; sets.len()];
    progress.start("patching together", sets.len() as u64);
    for batch in patching.batches() {
        let of_batch: Vec<usize> = (0..sets.len())
            .filter(|&i| batch.contains(&sets[i].0))
            .collect();
        if of_batch.is_empty() {
            continue;
        }
        let (base, other) = (patching.base(&batch, true)?, patching.base(&batch, false)?);
        let pairs = patching.pairs(&batch);
        let is_clean = config.direction != Direction::Denoise;
        let clean = if is_clean { &base } else { &other };
        let readout = Readout {
            metric: config.metric,
            targets: pairs.iter().map(|pair| pair.target.clone()).collect(),
            reference: match config.metric.needs_reference() {
                true => Some(clean.logits(model)?),
                false => None,
            },
        };
        let unchanged = base.metric(model, &readout)?;
        let (sources, op) = patching.sources(&batch, &other)?;
        let mut variants = Vec::new();
        for &i in &of_batch {
            let (pair, cells) = &sets[i];
            let example = batch
                .iter()
                .position(|of| of == pair)
                .expect("of this batch");
            let has = |role: &str| {
                let positions = pairs[example].roles.get(role);
                positions.is_some_and(|positions| !positions.is_empty())
            };
            let edits = cells
                .iter()
                .filter(|&&cell| fits(&patching.cells[cell], pairs[example].clean.len(), has))
                .flat_map(|&cell| {
                    sites_of(cell).edits(&patching.cells[cell], &op, 1, model.spec.n_layers)
                });
            variants.push(Variant {
                example,
                edits: edits.collect(),
            });
        }
        let options = &config.sweep;
        let values = sweep(
            model, &base, &variants, &sources, &readout, options, progress,
        )?;
        for ((&i, value), variant) in of_batch.iter().zip(values).zip(&variants) {
            effects[i] = value - unchanged[variant.example];
        }
    }
    progress.finish();
    Ok(effects)
}

fn kept(parts: Option<&PartStore>, task: &Task) -> String {
    match parts {
        Some(parts) => format!(
            "{} of {} pairs are finished and kept; the same command goes on from there",
            parts.finished().len(),
            task.pairs().len()
        ),
        None => "nothing was asked to be kept".into(),
    }
}

/// What a run of [`activation_patching`] will cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct PatchPlan {
    pub pairs: usize,
    pub sweep: Plan,
    /// Bytes of activations of the largest batch, besides the weights.
    pub bytes: usize,
    /// Seconds, from timing one forward pass on this machine.
    pub seconds: f64,
}

/// Plans without patching: one forward pass a template tells sizes and speed.
/// # Errors
/// Those of [`PatchConfig::check`].
pub fn plan_patching(model: &Model, task: &Task, config: &PatchConfig) -> Result<PatchPlan> {
    config.check(&model.spec, task)?;
    let patching = Patching::new(model, task, config)?;
    let mut total = PatchPlan {
        pairs: task.pairs().len(),
        ..PatchPlan::default()
    };
    let mut by_length: BTreeMap<(usize, usize), (Plan, f64, usize)> = BTreeMap::new();
    for batch in patching.batches() {
        let pair = &task.pairs()[batch[0]];
        let key = (pair.template, pair.clean.len());
        if let std::collections::btree_map::Entry::Vacant(entry) = by_length.entry(key) {
            let began = Instant::now();
            let base = patching.base(&batch[..1], true)?;
            let rate =
                began.elapsed().as_secs_f64() / (pair.clean.len() * model.spec.n_layers) as f64;
            // The pair's two runs agree up to their first different token; other sources change every position.
            let differ = pair
                .clean
                .iter()
                .zip(&pair.corrupted)
                .position(|(a, b)| a != b);
            let is_pair = config.source == PatchSource::Pair && config.noise.is_none();
            let unchanged = if is_pair {
                differ.unwrap_or(pair.clean.len())
            } else {
                0
            };
            let mut one = Plan::default();
            for index in 0..config.sites.len() {
                let (variants, _) = patching.variants(index, &batch[..1]);
                let planned = plan(model, &base, &variants, unchanged, &config.sweep)?;
                one.variants += planned.variants;
                one.without_effect += planned.without_effect;
                one.row_layers += planned.row_layers;
                one.forwards += planned.forwards;
                one.wave_bytes = one.wave_bytes.max(planned.wave_bytes);
            }
            // A pair's base run and its source run.
            entry.insert((one, rate, 2 * base.bytes()));
        }
        let (one, rate, bytes) = by_length[&key];
        let copies = batch.len() * config.noise.as_ref().map_or(1, |noise| noise.samples);
        total.sweep.variants += one.variants * copies;
        total.sweep.without_effect += one.without_effect * copies;
        total.sweep.row_layers += one.row_layers * copies as u64;
        total.sweep.forwards += one.forwards * copies as f64;
        total.sweep.wave_bytes = total.sweep.wave_bytes.max(one.wave_bytes);
        total.bytes = total.bytes.max(bytes * copies + one.wave_bytes);
        // A row of a full wave costs about a third of a row of a single prompt, whose products are bound by reading weights.
        total.seconds += rate * one.row_layers as f64 * copies as f64 / 3.0;
    }
    Ok(total)
}

/// The roles that any pair has, in the order of their first position.
pub(super) fn roles_of(task: &Task) -> Vec<String> {
    let mut first: BTreeMap<&String, usize> = BTreeMap::new();
    for pair in task.pairs() {
        for (role, positions) in pair
            .roles
            .iter()
            .filter(|(_, positions)| !positions.is_empty())
        {
            first.entry(role).or_insert(positions[0]);
        }
    }
    let mut roles: Vec<(usize, &String)> =
        first.into_iter().map(|(role, pos)| (pos, role)).collect();
    roles.sort();
    roles.into_iter().map(|(_, role)| role.clone()).collect()
}

/// Whether a prompt has all the positions that a site names.
fn has_places(site: &Site, pair: &Pair) -> bool {
    let has = |pos: &Pos| match pos {
        Pos::Index(pos) => *pos < pair.clean.len(),
        Pos::FromEnd(back) => *back <= pair.clean.len(),
        Pos::Role(role) => pair.roles.get(role).is_some_and(|at| !at.is_empty()),
    };
    let all = |positions: &Positions| match positions {
        Positions::All => true,
        Positions::These(list) => list.iter().all(has),
    };
    all(&site.positions) && all(&site.keys)
}

/// A checked run in progress.
struct Patching<'a> {
    model: &'a Model,
    task: &'a Task,
    config: &'a PatchConfig,
    /// All cells of all sweeps, and where each sweep's begin.
    cells: Vec<Cell>,
    starts: Vec<usize>,
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

impl<'a> Patching<'a> {
    fn new(model: &'a Model, task: &'a Task, config: &'a PatchConfig) -> Result<Self> {
        let roles = roles_of(task);
        let length = task
            .pairs()
            .iter()
            .map(|pair| pair.clean.len())
            .max()
            .unwrap_or(0);
        let extent = Extent {
            length,
            roles: &roles,
            layers: &config.layers,
            heads: &config.heads,
        };
        let (mut cells, mut starts) = (Vec::new(), Vec::new());
        for sites in &config.sites {
            starts.push(cells.len());
            cells.extend(sites.cells(&model.spec, &extent));
        }
        starts.push(cells.len());
        if !config.sets.is_empty() {
            cells.extend(config.sets.iter().map(|set| set.cell.clone()));
            starts.push(cells.len());
        }
        let mut kinds: Vec<Kind> = config.sites.iter().map(|sites| sites.kind).collect();
        let of_sets = config.sets.iter().flat_map(|set| &set.sites);
        kinds.extend(of_sets.map(|site| site.hook.kind));
        kinds.sort_unstable();
        kinds.dedup();
        let mut patching = Patching {
            model,
            task,
            config,
            cells,
            starts,
            kinds,
            means: Means::default(),
            by_role: None,
            donors: Vec::new(),
            sigma: 0.0,
        };
        let over = match &config.reference {
            None => ReferenceSet {
                task,
                corrupted: true,
            },
            Some(other) => ReferenceSet {
                task: other,
                corrupted: false,
            },
        };
        match config.source {
            PatchSource::Mean | PatchSource::MeanAll => {
                let by_position = config.source == PatchSource::Mean;
                let hooks = patching.hooks();
                let batches = over.task.batches(config.batch);
                patching.means = over.means(model, &hooks, by_position, &batches)?;
            }
            PatchSource::MeanRole => {
                let hooks = patching.hooks();
                patching.by_role = Some(over.means_by_role(model, &hooks, config.batch)?);
            }
            PatchSource::Resample => patching.donors = patching.draw_donors()?,
            PatchSource::Pair | PatchSource::Zero | PatchSource::Scale(_) | PatchSource::Block => {}
        }
        if let Some(noise) = &config.noise {
            patching.sigma = noise.sigma(model, task)?;
        }
        Ok(patching)
    }

    /// Pairs that run together. Copies of one prompt fill a batch where each is corrupted by several draws of noise.
    fn batches(&self) -> Vec<Vec<usize>> {
        let longest = self
            .task
            .pairs()
            .iter()
            .map(|pair| pair.clean.len())
            .max()
            .unwrap_or(1);
        let spec = &self.model.spec;
        let widths = 2 * spec.d_model + 2 * (spec.n_heads + spec.n_kv_heads) * spec.d_head;
        let captured: usize = self
            .kinds
            .iter()
            .map(|kind| {
                Hook::at(*kind, 0)
                    .shape(spec, 1, longest)
                    .iter()
                    .product::<usize>()
            })
            .sum();
        let bytes = 4 * spec.n_layers * (longest * widths + 2 * captured);
        let room = (self.config.sweep.memory / (4 * bytes)).clamp(1, self.config.batch.max(1));
        self.task
            .batches(if self.config.noise.is_some() { 1 } else { room })
    }

    fn pairs(&self, batch: &[usize]) -> Vec<&'a Pair> {
        batch.iter().map(|&pair| &self.task.pairs()[pair]).collect()
    }

    fn hooks(&self) -> Vec<Hook> {
        let layers = |&kind: &Kind| -> Vec<Hook> {
            match kind.per_layer() {
                true => (0..self.model.spec.n_layers)
                    .map(|layer| Hook::at(kind, layer))
                    .collect(),
                false => vec![Hook::global(kind)],
            }
        };
        self.kinds.iter().flat_map(layers).collect()
    }

    /// How many copies of each prompt a run holds: one for each draw of noise.
    fn copies(&self) -> usize {
        self.config.noise.as_ref().map_or(1, |noise| noise.samples)
    }

    /// One of a batch's two runs: its prompts, roles, and the noise where it is this run that noise corrupts.
    fn base(&self, batch: &[usize], for_sweep: bool) -> Result<BaseRun> {
        let clean = (self.config.direction != Direction::Denoise) == for_sweep;
        let (mut prompts, mut roles, mut edits) = (Vec::new(), Vec::new(), Vec::new());
        for pair in self.pairs(batch) {
            let prompt = if clean || self.config.noise.is_some() {
                &pair.clean
            } else {
                &pair.corrupted
            };
            prompts.extend(std::iter::repeat_n(prompt.clone(), self.copies()));
            roles.extend(std::iter::repeat_n(pair.roles.clone(), self.copies()));
            if let Some(noise) = self.config.noise.as_ref().filter(|_| !clean) {
                edits.push(noise.edit(self.model, pair, self.sigma, self.config.seed)?);
            }
        }
        let starts: &[Kind] = &self.kinds;
        BaseRun::new(
            self.model,
            prompts,
            roles,
            edits,
            Sources::default(),
            starts,
        )
    }

    /// Runs one batch: both runs, then every cell of every sweep.
    fn batch(&self, batch: &[usize], progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let base = self.base(batch, true)?;
        let other = self.base(batch, false)?;
        let pairs = self.pairs(batch);
        let copies = self.copies();
        let targets = pairs
            .iter()
            .flat_map(|pair| std::iter::repeat_n(pair.target.clone(), copies))
            .collect();
        let is_clean = self.config.direction != Direction::Denoise;
        let clean_run = if is_clean { &base } else { &other };
        let reference = match self.config.metric.needs_reference() {
            true => Some(clean_run.logits(self.model)?),
            false => None,
        };
        let readout = Readout {
            metric: self.config.metric,
            targets,
            reference,
        };
        let unchanged = [&base, &other].map(|run| run.metric(self.model, &readout));
        let [base_metric, other_metric] = unchanged;
        let mean = |values: &[f64], i: usize| {
            values[i * copies..(i + 1) * copies].iter().sum::<f64>() / copies as f64
        };
        let (base_metric, other_metric) = (base_metric?, other_metric?);
        let (clean, corrupted) = if is_clean {
            (&base_metric, &other_metric)
        } else {
            (&other_metric, &base_metric)
        };

        let (sources, op) = self.sources(batch, &other)?;
        drop(other);
        let mut scores: Vec<ExampleScores> = pairs
            .iter()
            .enumerate()
            .map(|(i, pair)| ExampleScores {
                example: pair.index,
                clean: mean(clean, i),
                corrupted: mean(corrupted, i),
                tokens: self.task.texts(&base.prompts[i * copies]),
                roles: pair.roles.clone(),
                ..ExampleScores::default()
            })
            .collect();
        let mut cells: Vec<Vec<u32>> = vec![Vec::new(); batch.len()];
        for index in 0..self.starts.len() - 1 {
            let (variants, of) = self.variants_with(index, batch, &op);
            let values = sweep(
                self.model,
                &base,
                &variants,
                &sources,
                &readout,
                &self.config.sweep,
                progress,
            )?;
            // The copies of a cell stand together.
            for (values, &(i, cell)) in values.chunks_exact(copies).zip(&of) {
                cells[i].push(cell);
                scores[i]
                    .values
                    .push(values.iter().sum::<f64>() / copies as f64);
            }
        }
        for (scores, cells) in scores.iter_mut().zip(cells) {
            scores.cells = Arc::from(cells);
        }
        Ok(scores)
    }

    fn variants(&self, index: usize, batch: &[usize]) -> (Vec<Variant>, Vec<(usize, u32)>) {
        self.variants_with(index, batch, &Op::Zero)
    }

    /// The variants of one sweep over a batch, and for each (cell, pair) which pair of the batch and which cell it is.
    fn variants_with(
        &self,
        index: usize,
        batch: &[usize],
        op: &Op,
    ) -> (Vec<Variant>, Vec<(usize, u32)>) {
        let (mut variants, mut of) = (Vec::new(), Vec::new());
        let pairs = self.pairs(batch);
        for cell in self.starts[index]..self.starts[index + 1] {
            let (window, n_layers) = (self.config.window, self.model.spec.n_layers);
            let set = (self.config.sites.len() == index)
                .then(|| &self.config.sets[cell - self.starts[index]]);
            let edits: Vec<Edit> = match set {
                None => self.config.sites[index].edits(&self.cells[cell], op, window, n_layers),
                Some(set) => (set.sites.iter())
                    .map(|site| Edit::new(site.clone(), op.clone()))
                    .collect(),
            };
            for (i, pair) in pairs.iter().enumerate() {
                let has = |role: &str| {
                    pair.roles
                        .get(role)
                        .is_some_and(|positions| !positions.is_empty())
                };
                let is_there = match set {
                    None => fits(&self.cells[cell], pair.clean.len(), has),
                    Some(set) => set.sites.iter().all(|site| has_places(site, pair)),
                };
                if !is_there {
                    continue;
                }
                of.push((i, cell as u32));
                let example = |copy| Variant {
                    example: i * self.copies() + copy,
                    edits: edits.clone(),
                };
                variants.extend((0..self.copies()).map(example));
            }
        }
        (variants, of)
    }

    /// Where the written values come from, and the edit that writes them.
    fn sources(&self, batch: &[usize], other: &BaseRun) -> Result<(Sources, Op)> {
        let source = match self.config.source {
            PatchSource::Zero => return Ok((Sources::default(), Op::Zero)),
            PatchSource::Scale(factor) => return Ok((Sources::default(), Op::Scale(factor))),
            PatchSource::Block => return Ok((Sources::default(), Op::Block)),
            PatchSource::MeanRole => {
                let means = self.by_role.as_ref().expect("taken when the run began");
                let source = means.source(&self.model.spec, &self.pairs(batch))?;
                return Ok((Sources::default().with("mean", source), Op::Mean));
            }
            PatchSource::Mean | PatchSource::MeanAll => {
                let pair = &self.task.pairs()[batch[0]];
                let mean = self.means.of(pair).cloned().ok_or_else(|| {
                    Error::invalid("no reference prompt has this template and length")
                })?;
                return Ok((Sources::default().with("mean", mean), Op::Mean));
            }
            PatchSource::Pair => {
                let request_again = self.hooks().iter().any(|&hook| !other.keeps(hook));
                match request_again {
                    false => other.source()?,
                    true => {
                        let hooks = self.hooks();
                        let request = Request {
                            edits: &other.edits,
                            capture: &hooks,
                            logits: Logits::None,
                            roles: &other.roles,
                            ..Request::default()
                        };
                        Source::run(run(self.model, &other.prompts, &request)?.cache)?
                    }
                }
            }
            PatchSource::Resample => {
                let prompts: Vec<_> = batch
                    .iter()
                    .map(|&pair| self.task.pairs()[self.donors[pair]].clean.clone())
                    .collect();
                let hooks = self.hooks();
                let request = Request {
                    capture: &hooks,
                    logits: Logits::None,
                    ..Request::default()
                };
                Source::run(run(self.model, &prompts, &request)?.cache)?
            }
        };
        let name = match (self.config.source, self.config.direction) {
            (PatchSource::Resample, _) => "resample",
            (_, Direction::Denoise) => "clean",
            _ => "corrupted",
        };
        Ok((
            Sources::default().with(name, source),
            Op::FromRun(name.into()),
        ))
    }

    /// A seeded permutation without fixed points inside each group of pairs that align position by position.
    fn draw_donors(&self) -> Result<Vec<usize>> {
        let mut donors: Vec<usize> = (0..self.task.pairs().len()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed);
        for group in self.task.batches(usize::MAX) {
            if group.len() < 2 {
                let pair = &self.task.pairs()[group[0]];
                return Err(Error::invalid(format!(
                    "resampling takes values from another pair of the same template and length, and pair {} (template {}, {} tokens) \
                     has none; use more pairs (`--n-pairs`), or `--source mean`",
                    pair.index,
                    pair.template,
                    pair.clean.len()
                )));
            }
            // One cycle through the group in random order: nobody is his own donor.
            let mut order = group.clone();
            order.shuffle(&mut rng);
            for (i, &pair) in order.iter().enumerate() {
                donors[pair] = order[(i + 1) % order.len()];
            }
        }
        Ok(donors)
    }

    fn provenance(&self, seconds: f64, scores: &[ExampleScores]) -> Provenance {
        let config = self.config;
        let mut settings = config.fingerprint(self.model, self.task);
        if config.noise.is_some() {
            settings["sigma"] = json!(self.sigma);
        }
        let warnings = config.warnings(self.task, scores);
        provenance(self.model, self.task, settings, seconds, warnings)
    }
}
