//! Self-repair: what a part adds to the logit itself, against what the logit loses without it.
//!
//! The output of one attention, MLP or head is replaced at the last position by what it was in other prompts, one donor at a
//! time; effects are averaged, never the donors' vectors. With the final scale frozen at the clean run's, the change of the
//! logit is an exact account: the part's own direct change, and what every later part writes more or less. That sum over the
//! later parts is the compensation, `CE`. What the scale itself does is the norm term, which can be the larger of the two.
//!
//! With `DU` the direct effect in the clean run and `DU~` that of the value put in place, the frozen total effect is
//! `(DU~ - DU) + CE`, and `restored = CE / (DU - DU~)` is the share made good: a ratio of means, never a mean of ratios.
//!
//! A head whose direct effect is negative and whose loss raises the logit is a negative head, as copy-suppressing heads are.
//!
//! Sources: McGrath et al. 2023, "The Hydra effect" (there with the sign of the total effect turned in figures); McDougall et
//! al. 2023, "Copy suppression". Only the last position is ablated. Left out on purpose: zero ablation, which leaves the data.

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};
use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::logits::dla::{check_target, head_readers};
use super::logits::readout::{DirectTarget, Ends, every_layer, rowwise_dot};
use super::logits::{BATCH, provenance, unmeasured};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln, Node, Op, Pos, Site, Value};
use crate::metric::{Metric, Target};
use crate::model::{Model, ModelSpec};
use crate::nn::embed::unembed;
use crate::nn::host::to_host;
use crate::nn::norm;
use crate::run::{
    BaseRun, Captured, Logits, Progress, Quiet, Readout, Request, Sources, SweepOptions, Variant,
    run, sweep_with_capture,
};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Scores, ScoresMeta};
use crate::spec::{Mlp, NormPlacement};
use crate::task::{Pair, Task};

/// What is ablated, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Units {
    /// The attention output of each layer.
    #[default]
    Attention,
    /// The MLP output of each layer.
    Mlp,
    /// Each head.
    Heads,
}

/// Whose logit.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RepairTarget {
    /// The token that the clean run prefers, less the mean over the vocabulary.
    #[default]
    Top,
    Of(DirectTarget),
}

/// What to measure.
#[derive(Debug, Clone)]
pub struct RepairConfig {
    pub units: Units,
    pub target: RepairTarget,
    /// Other prompts that each prompt takes values from, at most.
    pub donors: usize,
    /// Only these layers, if any are named.
    pub layers: Vec<usize>,
    pub detail: Detail,
    pub seed: u64,
    pub sweep: SweepOptions,
}

impl Default for RepairConfig {
    fn default() -> Self {
        RepairConfig {
            units: Units::Attention,
            target: RepairTarget::Top,
            donors: 15,
            layers: Vec::new(),
            detail: Detail::Mean,
            seed: 0,
            sweep: SweepOptions::default(),
        }
    }
}

impl RepairConfig {
    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        task.check_aligned()?;
        if let RepairTarget::Of(target) = &self.target {
            check_target(target, spec, task)?;
        }
        if self.units == Units::Mlp && spec.mlp == Mlp::None {
            return Err(Error::HookAbsent {
                hook: Kind::MlpOut.name().into(),
                reason: "its blocks have no MLP".into(),
            });
        }
        if self.donors == 0 || task.pairs().len() < 2 {
            return Err(Error::invalid(format!(
                "values are taken from other prompts: {} donors of {} prompts are too few; use at least one donor and two prompts",
                self.donors,
                task.pairs().len()
            )));
        }
        match self.layers.iter().find(|&&layer| layer >= spec.n_layers) {
            None => Ok(()),
            Some(layer) => Err(Error::OutOfRange {
                hook: "the model".into(),
                what: "layer",
                value: layer.to_string(),
                limit: format!("{}, 0 to {}", spec.n_layers, spec.n_layers - 1),
            }),
        }
    }
}

/// What is measured of each unit, in the order of the table; the first is the table's own metric.
const MEASURES: [&str; 8] = [
    "total_effect",
    "total_effect_frozen",
    "norm_term",
    "direct_effect",
    "direct_effect_ablated",
    "compensation_attn",
    "compensation_mlp",
    "direct_above_total",
];
/// The direct change below which a share of it is noise, in logits.
const LEAST_CHANGE: f64 = 0.1;

/// One unit that is ablated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Unit {
    layer: usize,
    /// `None` for a whole branch.
    head: Option<usize>,
}

/// Measures direct effect, total effect and compensation of every unit.
///
/// Rows of the table's own metric `total_effect` hold the change of the logit with everything recomputed; beside it stand the
/// other measures, `restored` and `r2` (of direct effect against the total effect turned around, over prompts) where there is
/// one value for all prompts, and rows `compensation` from the unit (`src`) to each later part (`dst`).
/// `class` is `negative` where the direct effect is below 0 and the total effect above, each by two standard errors; `positive` the other way round.
/// # Units
/// `score`: logits before any soft-cap, with the change minus without; `direct_effect` and `direct_effect_ablated` are
/// contributions; `restored`, `r2` and `direct_above_total` (the share of prompts with `DU > -total`) have none.
/// # Errors
/// Those of [`RepairConfig::check`], before anything runs; [`Error::Interrupted`].
pub fn self_repair(
    model: &Model,
    task: &Task,
    config: &RepairConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    model.spec.check_decoder("direct effects")?;
    config.check(&model.spec, task)?;
    let began = Instant::now();
    let repair = Repair::new(model, task, config)?;
    let mut cells = repair.cells();
    let all_cells: Arc<[u32]> = (0..cells.len() as u32).collect();
    let mut examples: Vec<ExampleScores> = Vec::with_capacity(task.pairs().len());
    let mut worst = 0f64;
    progress.start("ablating", (task.pairs().len() * repair.units.len()) as u64);
    for batch in task.batches(BATCH) {
        let (rows, residual) = repair.batch(&batch, progress)?;
        worst = worst.max(residual);
        for (&pair, values) in batch.iter().zip(rows) {
            examples.push(ExampleScores {
                cells: Arc::clone(&all_cells),
                values,
                ..unmeasured(task, &task.pairs()[pair], 0.0)
            });
        }
    }
    progress.finish();
    examples.sort_by_key(|example| example.example);
    let notes = repair.conclude(&mut cells, &mut examples);
    let settings = json!({
        "units": config.units,
        "target": config.target,
        "donors": repair.donors.iter().map(Vec::len).max(),
        "position": "END",
        "account_residual": worst,
    });
    let mut provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    provenance.notes = notes;
    provenance.notes.push(format!(
        "with the final scale frozen, direct change and compensation sum to the total effect; the largest residual is {worst:.1e} logits"
    ));
    let meta = ScoresMeta {
        method: "self_repair".into(),
        metric: MEASURES[0].into(),
        unit: "logits".into(),
        direction: Direction::Ablate,
        seed: config.seed,
    };
    Scores::assemble(&cells, &examples, &meta, config.detail, provenance)
}

/// A checked run in progress.
struct Repair<'a> {
    model: &'a Model,
    task: &'a Task,
    config: &'a RepairConfig,
    units: Vec<Unit>,
    /// For each pair, the pairs that it takes values from.
    donors: Vec<Vec<usize>>,
    /// For each pair and layer, what the unit's hook had at the last position.
    ends: Vec<Vec<Vec<f32>>>,
}

/// What the parts of a clean batch contribute, and what reads them.
struct CleanRun {
    base: BaseRun,
    /// Of each prompt: what reads a contribution off a part of the stream.
    readers: Vec<Vec<f32>>,
    /// The same for each layer and prompt, of the heads' z: `[n_heads * d_head]`. Only where heads are told apart.
    head_readers: Vec<Vec<Vec<f32>>>,
    /// The clean final scale of each prompt.
    scales: Vec<f64>,
    /// The scale of each layer's post-norm on attention, where there is one.
    post_scales: Vec<Option<Vec<f32>>>,
    /// The final stream's read-out.
    total: Vec<f64>,
    attn: Vec<Vec<f64>>,
    mlp: Vec<Vec<f64>>,
    /// `[layer][prompt][head]`
    heads: Vec<Vec<Vec<f64>>>,
}

impl<'a> Repair<'a> {
    fn new(model: &'a Model, task: &'a Task, config: &'a RepairConfig) -> Result<Self> {
        let spec = &model.spec;
        let is_chosen = |layer: &usize| config.layers.is_empty() || config.layers.contains(layer);
        let of_layer = |layer: usize| -> Vec<Unit> {
            match config.units {
                Units::Heads => (0..spec.n_heads)
                    .map(|head| Unit {
                        layer,
                        head: Some(head),
                    })
                    .collect(),
                Units::Attention | Units::Mlp => vec![Unit { layer, head: None }],
            }
        };
        let layers = (0..spec.n_layers).filter(is_chosen);
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        let n = task.pairs().len();
        let mut repair = Repair {
            model,
            task,
            config,
            units: layers.flat_map(of_layer).collect(),
            donors: (0..n)
                .map(|pair| {
                    let others = sample(&mut rng, n - 1, config.donors.min(n - 1));
                    others
                        .iter()
                        .map(|other| other + usize::from(other >= pair))
                        .collect()
                })
                .collect(),
            ends: vec![Vec::new(); n],
        };
        repair.collect_ends()?;
        Ok(repair)
    }

    /// The kind of hook that the units are replaced at.
    fn kind(&self) -> Kind {
        match self.config.units {
            Units::Attention => Kind::AttnOut,
            Units::Mlp => Kind::MlpOut,
            Units::Heads => Kind::Z,
        }
    }

    fn by_head(&self) -> bool {
        self.config.units == Units::Heads
    }

    fn has_mlp(&self) -> bool {
        self.model.spec.mlp != Mlp::None
    }

    /// What the units of every prompt wrote at its last position.
    fn collect_ends(&mut self) -> Result<()> {
        let hooks = every_layer(self.model, self.kind());
        for batch in self.task.batches(BATCH) {
            let prompts: Vec<_> = (batch.iter())
                .map(|&pair| self.task.pairs()[pair].clean.clone())
                .collect();
            let request = Request {
                capture: &hooks,
                logits: Logits::None,
                ..Request::default()
            };
            let cache = run(self.model, &prompts, &request)?.cache;
            for &hook in &hooks {
                let last = cache.get(hook)?.narrow(1, cache.length - 1, 1)?;
                for (i, &pair) in batch.iter().enumerate() {
                    self.ends[pair].push(to_host(&last.get(i)?.contiguous()?)?);
                }
            }
        }
        Ok(())
    }

    /// The later parts that have rows of their own: each head where units are heads, else each attention and MLP.
    fn later(&self, unit: Unit) -> Vec<(String, Later)> {
        let spec = &self.model.spec;
        let mut later = Vec::new();
        for layer in unit.layer..spec.n_layers {
            if layer > unit.layer {
                match self.by_head() {
                    true => later.extend((0..spec.n_heads).map(|head| {
                        let name = Node::Head { layer, head }.to_string();
                        (name, Later::Head(layer, head))
                    })),
                    false => later.push((format!("attn_out{layer}"), Later::Attn(layer))),
                }
            }
            if self.has_mlp() && (layer > unit.layer || self.config.units != Units::Mlp) {
                let name = match self.by_head() {
                    true => Node::Mlp(layer).to_string(),
                    false => format!("mlp_out{layer}"),
                };
                later.push((name, Later::Mlp(layer)));
            }
        }
        later
    }

    fn name(&self, unit: Unit) -> String {
        match (self.config.units, unit.head) {
            (_, Some(head)) => Node::Head {
                layer: unit.layer,
                head,
            }
            .to_string(),
            (Units::Mlp, _) => format!("mlp_out{}", unit.layer),
            _ => format!("attn_out{}", unit.layer),
        }
    }

    /// For each unit its measures, then a row for each later part.
    fn cells(&self) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &unit in &self.units {
            let cell = Cell {
                component: self.kind().name().into(),
                layer: Some(unit.layer as u32),
                head: unit.head.map(|head| head as u32),
                ..Cell::default()
            };
            cells.extend(MEASURES.iter().enumerate().map(|(i, measure)| Cell {
                measure: (i > 0).then(|| measure.to_string()),
                ..cell.clone()
            }));
            cells.extend(self.later(unit).into_iter().map(|(dst, _)| Cell {
                measure: Some("compensation".into()),
                src: Some(self.name(unit)),
                dst: Some(dst),
                ..cell.clone()
            }));
        }
        cells
    }

    /// All values of each prompt of a batch, and how far an account was from closing.
    fn batch(&self, batch: &[usize], progress: &dyn Progress) -> Result<(Vec<Vec<f64>>, f64)> {
        let clean = self.clean(batch)?;
        let mut rows = vec![Vec::new(); batch.len()];
        let mut worst = 0f64;
        for &unit in &self.units {
            if progress.cancelled() {
                return Err(Error::Interrupted {
                    kept: "nothing was asked to be kept".into(),
                });
            }
            let (values, residual) = self.ablate(&clean, batch, unit)?;
            worst = worst.max(residual);
            rows.iter_mut()
                .zip(values)
                .for_each(|(row, values)| row.extend(values));
            progress.advance(batch.len() as u64);
        }
        Ok((rows, worst))
    }

    fn clean(&self, batch: &[usize]) -> Result<CleanRun> {
        let (model, spec) = (self.model, &self.model.spec);
        let prompts: Vec<Vec<u32>> = (batch.iter())
            .map(|&pair| self.task.pairs()[pair].clean.clone())
            .collect();
        let mut capture = [
            every_layer(model, Kind::AttnOut),
            every_layer(model, Kind::MlpOut),
        ]
        .concat();
        if self.by_head() {
            capture.extend(every_layer(model, Kind::Z));
            capture.extend(every_layer(model, Kind::Scale(Ln::OnePost)));
        }
        let request = Request {
            capture: &capture,
            ..Request::default()
        };
        let mut ends = Ends::run(model, &prompts, &request)?;
        let mut pairs: Vec<Pair> = batch
            .iter()
            .map(|&pair| self.task.pairs()[pair].clone())
            .collect();
        let target = match &self.config.target {
            RepairTarget::Of(target) => target.clone(),
            RepairTarget::Top => {
                for (pair, token) in pairs.iter_mut().zip(top_tokens(&ends)?) {
                    pair.target.answers = vec![token];
                }
                DirectTarget::Centred
            }
        };
        let readout = ends.readout(&target, &pairs.iter().collect::<Vec<_>>())?;
        let reader = &readout.reader;
        let last = Hook::at(Kind::ResidPost, spec.n_layers - 1);
        let mut clean = CleanRun {
            base: BaseRun::new(
                model,
                prompts,
                Vec::new(),
                Vec::new(),
                Sources::default(),
                &[self.kind()],
            )?,
            readers: reader.to_vec2()?,
            head_readers: Vec::new(),
            scales: ends.scale.flatten_all()?.to_dtype(DType::F64)?.to_vec1()?,
            post_scales: Vec::new(),
            total: rowwise_dot(&ends.at_end(last)?, reader)?,
            attn: Vec::new(),
            mlp: Vec::new(),
            heads: Vec::new(),
        };
        for layer in 0..spec.n_layers {
            let attn = ends.at_end(Hook::at(Kind::AttnOut, layer))?;
            clean.attn.push(rowwise_dot(&attn, reader)?);
            if self.has_mlp() {
                let mlp = ends.at_end(Hook::at(Kind::MlpOut, layer))?;
                clean.mlp.push(rowwise_dot(&mlp, reader)?);
            }
            if self.by_head() {
                let readers = head_readers(&mut ends, reader, layer)?; // [batch, n_heads, d_head]
                let z = ends.at_end(Hook::at(Kind::Z, layer))?;
                let shares = (z * &readers)?.to_dtype(DType::F64)?.sum(2)?; // [batch, n_heads]
                clean.heads.push(shares.to_vec2()?);
                clean.head_readers.push(readers.flatten_from(1)?.to_vec2()?);
                let post = Hook::at(Kind::Scale(Ln::OnePost), layer);
                clean.post_scales.push(match post.kind.absent(spec) {
                    Some(_) => None,
                    None => Some(to_host(&ends.at_end(post)?)?),
                });
            }
        }
        Ok(clean)
    }

    /// The values of one unit's rows for each prompt, averaged over donors.
    fn ablate(
        &self,
        clean: &CleanRun,
        batch: &[usize],
        unit: Unit,
    ) -> Result<(Vec<Vec<f64>>, f64)> {
        let spec = &self.model.spec;
        let mut site = Site::all(Hook::at(self.kind(), unit.layer)).at_positions([Pos::FromEnd(1)]);
        if let Some(head) = unit.head {
            site = site.heads([head]);
        }
        let mut variants = Vec::new();
        for (example, &pair) in batch.iter().enumerate() {
            for &donor in &self.donors[pair] {
                let end = &self.ends[donor][unit.layer];
                let value = match unit.head {
                    Some(head) => end[head * spec.d_head..][..spec.d_head].to_vec(),
                    None => end.clone(),
                };
                let op = Op::Replace(Value::Vector(value));
                variants.push(Variant {
                    example,
                    edits: vec![Edit::new(site.clone(), op)],
                });
            }
        }
        let mut hooks = vec![Hook::at(Kind::ResidPost, spec.n_layers - 1)];
        for layer in unit.layer..spec.n_layers {
            let mut kinds = vec![Kind::AttnOut, Kind::MlpOut];
            if self.by_head() {
                kinds.extend([Kind::Z, Kind::Scale(Ln::OnePost)]);
            }
            kinds.retain(|kind| kind.absent(spec).is_none());
            hooks.extend(kinds.into_iter().map(|kind| Hook::at(kind, layer)));
        }
        // What is read here are streams: the sweep's own metric is the cheapest that there is.
        let readout = Readout {
            metric: Metric::LogitDiff,
            targets: vec![
                Target {
                    answers: vec![0],
                    wrong: vec![1],
                };
                batch.len()
            ],
            reference: None,
        };
        let (_, captured) = sweep_with_capture(
            self.model,
            &clean.base,
            &variants,
            &Sources::default(),
            &readout,
            &hooks,
            &self.config.sweep,
            &Quiet,
        )?;
        let mut sums = vec![Vec::new(); batch.len()];
        let mut worst = 0f64;
        for (index, variant) in variants.iter().enumerate() {
            let ablated = Ablated {
                repair: self,
                clean,
                captured: &captured,
                index,
                example: variant.example,
            };
            let (values, residual) = ablated.account(unit)?;
            worst = worst.max(residual);
            let sum = &mut sums[variant.example];
            match sum.is_empty() {
                true => *sum = values,
                false => sum
                    .iter_mut()
                    .zip(values)
                    .for_each(|(sum, value)| *sum += value),
            }
        }
        for (sum, &pair) in sums.iter_mut().zip(batch) {
            let n = self.donors[pair].len() as f64;
            sum.iter_mut().for_each(|value| *value /= n);
            // Whether the direct effect is above what is lost is asked of the mean over donors.
            sum[7] = f64::from(u8::from(sum[3] > -sum[0]));
        }
        Ok((sums, worst))
    }

    /// Adds what has one value for all prompts, classes of heads, and the story in a few lines.
    fn conclude(&self, cells: &mut Vec<Cell>, examples: &mut [ExampleScores]) -> Vec<String> {
        let mut notes = Vec::new();
        let mut of_all: Vec<(Cell, f64)> = Vec::new();
        let mut negative = Vec::new();
        let mut first = 0;
        for &unit in &self.units {
            let column = |measure: usize| -> Vec<f64> {
                examples
                    .iter()
                    .map(|example| example.values[first + measure])
                    .collect()
            };
            let later = self.later(unit).len();
            let columns: Vec<Vec<f64>> = (0..MEASURES.len()).map(column).collect();
            let means: Vec<f64> = columns.iter().map(|column| mean(column)).collect();
            let measured = |measure: &str, value: f64| {
                let cell = Cell {
                    measure: Some(measure.into()),
                    ..cells[first].clone()
                };
                (cell, value)
            };
            let (direct, total) = (&columns[3], &columns[0]);
            let lost = means[3] - means[4];
            if lost.abs() > LEAST_CHANGE {
                of_all.push(measured("restored", (means[5] + means[6]) / lost));
            }
            if let Some(r2) = r_squared(direct, total) {
                of_all.push(measured("r2", r2));
            }
            let class = match (sign(direct), sign(total)) {
                (-1, 1) => Some("negative"),
                (1, -1) => Some("positive"),
                _ => None,
            };
            cells[first].class = class.map(String::from);
            if class == Some("negative") {
                negative.push((self.name(unit), means[3], means[0]));
            }
            if lost.abs() > LEAST_CHANGE {
                let after = first + MEASURES.len();
                let mut helpers: Vec<(f64, usize)> = (after..after + later)
                    .map(|cell| (mean_of(examples, cell) * lost.signum(), cell))
                    .collect();
                helpers.sort_by(|a, b| b.0.total_cmp(&a.0));
                let helpers: Vec<String> = (helpers.iter().take(3))
                    .filter(|(value, _)| *value > 0.1 * lost.abs())
                    .map(|(value, cell)| {
                        let dst = cells[*cell].dst.as_deref().unwrap_or_default();
                        format!("{dst} {:+.3}", value * lost.signum())
                    })
                    .collect();
                let repaired = match helpers.is_empty() {
                    true => "nothing later makes a tenth of it good".to_string(),
                    false => format!("made good by {}", helpers.join(", ")),
                };
                notes.push(format!(
                    "without {}: direct change {:+.3}, total {:+.3} with the scale frozen and {:+.3} free; {repaired}",
                    self.name(unit),
                    -lost,
                    means[1],
                    means[0]
                ));
            }
            first += MEASURES.len() + later;
        }
        if self.by_head() {
            let list: Vec<String> = (negative.iter())
                .map(|(name, direct, total)| format!("{name} ({direct:+.3}, {total:+.3})"))
                .collect();
            notes.push(match list.is_empty() {
                true => "no negative head: none has a direct effect below 0 and a total effect above it, each by two standard errors".into(),
                false => format!("negative heads (direct effect, total effect of losing it): {}", list.join(", ")),
            });
        }
        // One example carries them, so that a mean is the value and no interval is made up.
        if self.config.detail == Detail::Mean {
            let carrier = &mut examples[0];
            let (mut indices, mut values) = (carrier.cells.to_vec(), carrier.values.clone());
            for (cell, value) in of_all {
                indices.push(cells.len() as u32);
                values.push(value);
                cells.push(cell);
            }
            (carrier.cells, carrier.values) = (indices.into(), values);
        }
        notes
    }
}

/// A part after the unit.
#[derive(Debug, Clone, Copy)]
enum Later {
    Attn(usize),
    Mlp(usize),
    Head(usize, usize),
}

/// One variant, beside the clean run of its prompt.
struct Ablated<'a> {
    repair: &'a Repair<'a>,
    clean: &'a CleanRun,
    captured: &'a Captured,
    index: usize,
    example: usize,
}

impl Ablated<'_> {
    /// The values of the unit's rows, and how far the account with a frozen scale is from closing.
    fn account(&self, unit: Unit) -> Result<(Vec<f64>, f64)> {
        let (clean, i) = (self.clean, self.example);
        let spec = &self.repair.model.spec;
        let is_mlp = self.repair.config.units == Units::Mlp;
        let own = if is_mlp { &clean.mlp } else { &clean.attn };
        let direct = match unit.head {
            Some(head) => clean.heads[unit.layer][i][head],
            None => own[unit.layer][i],
        };
        let own_kind = if is_mlp { Kind::MlpOut } else { Kind::AttnOut };
        let own_change = self.change(own_kind, unit.layer, own[unit.layer][i])?;
        let (mut by_attn, mut by_mlp) = (0.0, 0.0);
        for layer in unit.layer..spec.n_layers {
            if layer > unit.layer {
                by_attn += self.change(Kind::AttnOut, layer, clean.attn[layer][i])?;
            }
            if self.repair.has_mlp() && (layer > unit.layer || !is_mlp) {
                by_mlp += self.change(Kind::MlpOut, layer, clean.mlp[layer][i])?;
            }
        }
        let (frozen, free) = self.totals()?;
        let mut values = vec![
            free,
            frozen,
            free - frozen,
            direct,
            direct + own_change,
            by_attn,
            by_mlp,
            0.0,
        ];
        for (_, later) in self.repair.later(unit) {
            values.push(match later {
                Later::Attn(layer) => self.change(Kind::AttnOut, layer, clean.attn[layer][i])?,
                Later::Mlp(layer) => self.change(Kind::MlpOut, layer, clean.mlp[layer][i])?,
                Later::Head(layer, head) => self.change_of_head(layer, head)?,
            });
        }
        Ok((values, (frozen - own_change - by_attn - by_mlp).abs()))
    }

    /// The last position's row of a hook, where this variant carried it.
    fn end(&self, hook: Hook) -> Result<Option<Vec<f32>>> {
        let last = self.clean.base.length as u32 - 1;
        match self.captured.get(self.index, hook) {
            Some((positions, t)) if positions.last() == Some(&last) => {
                let row = t.narrow(0, positions.len() - 1, 1)?.contiguous()?;
                Ok(Some(to_host(&row)?))
            }
            _ => Ok(None),
        }
    }

    /// What a branch contributes more than in the clean run, at the clean scale.
    fn change(&self, kind: Kind, layer: usize, clean: f64) -> Result<f64> {
        let row = self.end(Hook::at(kind, layer))?;
        Ok(row.map_or(0.0, |row| {
            dot(&row, &self.clean.readers[self.example]) - clean
        }))
    }

    fn change_of_head(&self, layer: usize, head: usize) -> Result<f64> {
        let (clean, i) = (self.clean, self.example);
        let width = self.repair.model.spec.d_head;
        let Some(z) = self.end(Hook::at(Kind::Z, layer))? else {
            return Ok(0.0);
        };
        let span = head * width..(head + 1) * width;
        let mut share = dot(&z[span.clone()], &clean.head_readers[layer][i][span]);
        if let Some(scales) = &clean.post_scales[layer]
            && let Some(scale) = self.end(Hook::at(Kind::Scale(Ln::OnePost), layer))?
        {
            share *= f64::from(scales[i]) / f64::from(scale[0]);
        }
        Ok(share - clean.heads[layer][i][head])
    }

    /// The change of the whole logit: with the clean run's final scale, and with its own.
    fn totals(&self) -> Result<(f64, f64)> {
        let (clean, i) = (self.clean, self.example);
        let spec = &self.repair.model.spec;
        let last = Hook::at(Kind::ResidPost, spec.n_layers - 1);
        let Some(stream) = self.end(last)? else {
            return Ok((0.0, 0.0));
        };
        let read = dot(&stream, &clean.readers[i]);
        let ratio = match spec.norm_placement {
            NormPlacement::None => 1.0,
            _ => {
                let width = stream.len();
                let stream = Tensor::from_vec(stream, (1, width), &candle_core::Device::Cpu)?;
                let scale = norm::scale(&stream, spec.norm, spec.norm_eps)?;
                clean.scales[i] / f64::from(to_host(&scale)?[0])
            }
        };
        Ok((read - clean.total[i], read * ratio - clean.total[i]))
    }
}

/// The token with the highest logit of each prompt.
fn top_tokens(ends: &Ends<'_>) -> Result<Vec<u32>> {
    let normed = ends.normed.to_dtype(ends.model.dtype)?;
    let logits = unembed(&ends.model.spec, &ends.model.weights, &normed)?.to_dtype(DType::F32)?;
    Ok(logits.argmax(1)?.to_vec1()?)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(&a, &b)| f64::from(a) * f64::from(b))
        .sum()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn mean_of(examples: &[ExampleScores], cell: usize) -> f64 {
    let values: Vec<f64> = examples
        .iter()
        .map(|example| example.values[cell])
        .collect();
    mean(&values)
}

/// 1 or -1 where the mean is two standard errors from 0, else 0.
fn sign(values: &[f64]) -> i32 {
    let (n, centre) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    let error = (squares / (n - 1.0).max(1.0) / n).sqrt();
    match centre.abs() > 2.0 * error {
        true => centre.signum() as i32,
        false => 0,
    }
}

/// The squared correlation of direct effects and total effects, over prompts.
fn r_squared(direct: &[f64], total: &[f64]) -> Option<f64> {
    let (a, b) = (mean(direct), mean(total));
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        let pairs = direct.iter().zip(total);
        pairs.map(|(x, y)| of(x - a, y - b)).sum()
    };
    let (xy, xx, yy) = (sum(&|x, y| x * y), sum(&|x, _| x * x), sum(&|_, y| y * y));
    (direct.len() > 2 && xx > 0.0 && yy > 0.0).then(|| xy * xy / (xx * yy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_within_two_errors_of_nothing_has_no_sign() {
        assert_eq!(sign(&[1.0, 1.1, 0.9]), 1);
        assert_eq!(sign(&[-1.0, -1.1, -0.9]), -1);
        assert_eq!(sign(&[1.0, -1.0, 0.5]), 0);
        assert_eq!(sign(&[0.0, 0.0]), 0);
    }

    #[test]
    fn r_squared_is_that_of_a_line() {
        let r2 = r_squared(&[1.0, 2.0, 3.0], &[-2.0, -4.0, -6.0]).expect("they vary");
        assert!((r2 - 1.0).abs() < 1e-12);
        assert_eq!(r_squared(&[1.0, 1.0, 1.0], &[0.0, 1.0, 2.0]), None);
    }
}
