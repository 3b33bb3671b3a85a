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

mod account;

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use rand::SeedableRng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::choice::{Heads, Layers};
use super::logits::dla::check_target;
use super::logits::readout::{DirectTarget, every_layer};
use super::measure::{Watch, measure};
use super::method::{
    Cost, Method, Needs, Prepared, Running, Subject, Unit, check_range, unmeasured,
};
use crate::error::{Error, Result};
use crate::hooks::{Kind, Node};
use crate::nn::host::to_host;
use crate::run::{Logits, Progress, Request, run};
use crate::scores::statistics::{mean, r_squared};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Measured, Scores, ScoresMeta};
use crate::spec::{Mlp, ModelSpec};
use crate::task::Task;
use account::CleanRun;

/// What is ablated, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum RepairParts {
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
#[derive(Debug, Clone, PartialEq)]
pub struct RepairConfig {
    pub parts: RepairParts,
    pub target: RepairTarget,
    /// Other prompts that each prompt takes values from, at most.
    pub donors: usize,
    /// Only these layers, if any are named.
    pub layers: Layers,
    /// Only these heads, if any are named; of [`RepairParts::Heads`].
    pub heads: Heads,
    /// Of the donors [default: the task's].
    pub seed: Option<u64>,
}

impl Default for RepairConfig {
    fn default() -> Self {
        RepairConfig {
            parts: RepairParts::Attention,
            target: RepairTarget::Top,
            donors: 15,
            layers: Layers::default(),
            heads: Heads::default(),
            seed: None,
        }
    }
}

impl RepairConfig {
    /// Every one of these parts, by the logit of the clean run's own top token.
    pub fn of(parts: RepairParts) -> Self {
        RepairConfig {
            parts,
            ..RepairConfig::default()
        }
    }

    fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    /// The hook that parts are replaced at.
    fn kind(&self) -> Kind {
        match self.parts {
            RepairParts::Attention => Kind::AttnOut,
            RepairParts::Mlp => Kind::MlpOut,
            RepairParts::Heads => Kind::Z,
        }
    }

    fn removed(&self, spec: &ModelSpec) -> Vec<Removed> {
        let layers = (0..spec.n_layers).filter(|&layer| self.layers.has(layer));
        let of_layer = |layer: usize| -> Vec<Removed> {
            let part = |head| Removed { layer, head };
            if self.parts == RepairParts::Heads {
                let heads = (0..spec.n_heads).filter(|&head| self.heads.has(layer, head));
                heads.map(|head| part(Some(head))).collect()
            } else {
                vec![part(None)]
            }
        };
        layers.flat_map(of_layer).collect()
    }
}

/// Measures direct effect, total effect and compensation of every part: [`measure`] with the defaults of [`Running`].
///
/// Rows of the table's own metric `total_effect` hold the change of the logit with everything recomputed; beside it stand the
/// other measures, `restored` and `r2` (of direct effect against the total effect turned around, over prompts) where there is
/// one value for all prompts, and rows `compensation` from the part (`src`) to each later part (`dst`).
/// `class` is `negative` where the direct effect is below 0 and the total effect above, each by two standard errors; `positive` the other way round.
/// # Units
/// `score`: logits before any soft-cap, with the change minus without; `direct_effect` and `direct_effect_ablated` are
/// contributions; `restored`, `r2` and `direct_above_total` (the share of prompts with `DU > -total`) have none.
/// # Errors
/// What cannot be run as asked, before anything runs.
pub fn self_repair(on: Subject<'_>, config: &RepairConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

/// What is measured of each part, in the order of its rows; the first is the table's own metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    Total,
    TotalFrozen,
    NormTerm,
    Direct,
    DirectAblated,
    CompensationAttn,
    CompensationMlp,
    DirectAboveTotal,
}

impl Measure {
    const ALL: [Measure; 8] = [
        Measure::Total,
        Measure::TotalFrozen,
        Measure::NormTerm,
        Measure::Direct,
        Measure::DirectAblated,
        Measure::CompensationAttn,
        Measure::CompensationMlp,
        Measure::DirectAboveTotal,
    ];

    fn name(self) -> &'static str {
        match self {
            Measure::Total => "total_effect",
            Measure::TotalFrozen => "total_effect_frozen",
            Measure::NormTerm => "norm_term",
            Measure::Direct => "direct_effect",
            Measure::DirectAblated => "direct_effect_ablated",
            Measure::CompensationAttn => "compensation_attn",
            Measure::CompensationMlp => "compensation_mlp",
            Measure::DirectAboveTotal => "direct_above_total",
        }
    }
}

/// What follows from all prompts together, and the rows from a part to each later one.
const RESTORED: &str = "restored";
const R2: &str = "r2";
const COMPENSATION: &str = "compensation";
/// The direct change below which a share of it is noise, in logits.
const LEAST_CHANGE: f64 = 0.1;

/// Sums over donors of what one prompt loses without a part, and gains by others.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Effects {
    /// The change of the logit: with everything recomputed, and with the clean run's final scale.
    total: f64,
    total_frozen: f64,
    /// What the part contributes in the clean run, and with the donor's value.
    direct: f64,
    direct_ablated: f64,
    /// What later attention and later MLPs contribute more.
    compensation_attn: f64,
    compensation_mlp: f64,
}

impl Effects {
    fn add(&mut self, other: &Effects) {
        self.total += other.total;
        self.total_frozen += other.total_frozen;
        self.direct += other.direct;
        self.direct_ablated += other.direct_ablated;
        self.compensation_attn += other.compensation_attn;
        self.compensation_mlp += other.compensation_mlp;
    }

    /// A measure of the mean over so many donors.
    fn mean(&self, measure: Measure, donors: usize) -> f64 {
        let sum = match measure {
            Measure::Total => self.total,
            Measure::TotalFrozen => self.total_frozen,
            Measure::NormTerm => self.total - self.total_frozen,
            Measure::Direct => self.direct,
            Measure::DirectAblated => self.direct_ablated,
            Measure::CompensationAttn => self.compensation_attn,
            Measure::CompensationMlp => self.compensation_mlp,
            // Asked of the mean over donors.
            Measure::DirectAboveTotal => return f64::from(u8::from(self.direct > -self.total)),
        };
        sum / donors as f64
    }
}

/// One part that is ablated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Removed {
    layer: usize,
    /// `None` for a whole branch.
    head: Option<usize>,
}

/// A part after the one that is ablated.
#[derive(Debug, Clone, Copy)]
enum Later {
    Attn(usize),
    Mlp(usize),
    Head(usize, usize),
}

impl Method for RepairConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta {
            method: "self_repair".into(),
            metric: Measure::Total.name().into(),
            unit: "logits".into(),
            direction: Direction::Ablate,
            base: None,
            seed: self.seed(task),
        }
    }

    fn settings(&self) -> Value {
        json!({
            "parts": self.parts,
            "target": self.target,
            "donors": self.donors,
            "layers": self.layers,
            "heads": self.heads,
            "position": "END",
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("direct effects"),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        if let RepairTarget::Of(target) = &self.target {
            check_target(target, spec, task)?;
        }
        if self.parts == RepairParts::Mlp && spec.mlp == Mlp::None {
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
        let of_heads = self.heads.0.iter().filter_map(|chosen| chosen.layer);
        let layers: Vec<usize> = self.layers.0.iter().copied().chain(of_heads).collect();
        check_range("layer", &layers, spec.n_layers, "the model")?;
        let heads: Vec<usize> = self.heads.0.iter().map(|chosen| chosen.head).collect();
        check_range("head", &heads, spec.n_heads, "attention")?;
        if !heads.is_empty() && self.parts != RepairParts::Heads {
            return Err(Error::invalid(
                "attention and MLPs of whole layers have no heads to choose from; leave the heads out, or measure `heads`",
            ));
        }
        if self.removed(spec).is_empty() {
            return Err(Error::invalid(
                "none of these heads is in one of these layers; leave one of the two choices out",
            ));
        }
        Ok(())
    }

    fn prepare<'a>(
        &'a self,
        on: Subject<'a>,
        running: &'a Running,
    ) -> Result<Box<dyn Prepared + 'a>> {
        Ok(Box::new(Repair::new(on, self, running)))
    }
}

/// A checked run in progress.
struct Repair<'a> {
    on: Subject<'a>,
    config: &'a RepairConfig,
    running: &'a Running,
    removed: Vec<Removed>,
    /// Of each removed part its cells: a row for each measure, then one for each later part.
    rows: Vec<Range<usize>>,
    cells: Vec<Cell>,
    /// For each pair, the pairs that it takes values from.
    donors: Vec<Vec<usize>>,
    /// What prompts wrote, as far as memory allows: each prompt is a donor of many.
    known: Mutex<BTreeMap<usize, PromptEnd>>,
}

/// Of each layer, what the parts of a prompt wrote at its last position.
type PromptEnd = Arc<Vec<Vec<f32>>>;

impl<'a> Repair<'a> {
    fn new(on: Subject<'a>, config: &'a RepairConfig, running: &'a Running) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed(on.task));
        let n = on.task.pairs().len();
        let donors = (0..n).map(|pair| {
            let others = sample(&mut rng, n - 1, config.donors.min(n - 1));
            let others = others
                .iter()
                .map(|other| other + usize::from(other >= pair));
            others.collect()
        });
        let mut repair = Repair {
            on,
            config,
            running,
            removed: config.removed(&on.model.spec),
            rows: Vec::new(),
            cells: Vec::new(),
            donors: donors.collect(),
            known: Mutex::default(),
        };
        for part in repair.removed.clone() {
            let first = repair.cells.len();
            let cells = repair.cells_of(part);
            repair.cells.extend(cells);
            repair.rows.push(first..repair.cells.len());
        }
        repair
    }

    fn spec(&self) -> &'a ModelSpec {
        &self.on.model.spec
    }

    fn by_head(&self) -> bool {
        self.config.parts == RepairParts::Heads
    }

    fn has_mlp(&self) -> bool {
        self.spec().mlp != Mlp::None
    }

    fn prompts(&self, items: &[usize]) -> Vec<Vec<u32>> {
        let pairs = self.on.task.pairs();
        items
            .iter()
            .map(|&pair| pairs[pair].clean.clone())
            .collect()
    }

    /// A part's measures, then a row for each later part.
    fn cells_of(&self, part: Removed) -> Vec<Cell> {
        let cell = Cell {
            component: self.config.kind().name().into(),
            layer: Some(part.layer as u32),
            head: part.head.map(|head| head as u32),
            ..Cell::default()
        };
        let measured = |measure: &Measure| Cell {
            measure: (*measure != Measure::Total).then(|| measure.name().to_string()),
            ..cell.clone()
        };
        let mut cells: Vec<Cell> = Measure::ALL.iter().map(measured).collect();
        cells.extend(self.later(part).into_iter().map(|(dst, _)| Cell {
            measure: Some(COMPENSATION.into()),
            src: Some(self.name(part)),
            dst: Some(dst),
            ..cell.clone()
        }));
        cells
    }

    /// The later parts that have rows of their own: each head where parts are heads, else each attention and MLP.
    fn later(&self, part: Removed) -> Vec<(String, Later)> {
        let spec = self.spec();
        let mut later = Vec::new();
        for layer in part.layer..spec.n_layers {
            if layer > part.layer {
                if self.by_head() {
                    later.extend((0..spec.n_heads).map(|head| {
                        let name = Node::Head { layer, head }.to_string();
                        (name, Later::Head(layer, head))
                    }));
                } else {
                    later.push((format!("attn_out{layer}"), Later::Attn(layer)));
                }
            }
            if self.mlp_is_later(part, layer) {
                let name = if self.by_head() {
                    Node::Mlp(layer).to_string()
                } else {
                    format!("mlp_out{layer}")
                };
                later.push((name, Later::Mlp(layer)));
            }
        }
        later
    }

    /// Whether the MLP of a layer comes after a part: in the part's own layer, too, unless it is that MLP.
    fn mlp_is_later(&self, part: Removed, layer: usize) -> bool {
        let is_after = layer > part.layer || self.config.parts != RepairParts::Mlp;
        self.has_mlp() && is_after
    }

    fn name(&self, part: Removed) -> String {
        match (self.config.parts, part.head) {
            (_, Some(head)) => Node::Head {
                layer: part.layer,
                head,
            }
            .to_string(),
            (RepairParts::Mlp, _) => format!("mlp_out{}", part.layer),
            _ => format!("attn_out{}", part.layer),
        }
    }

    /// What the parts of some prompts wrote at the last position. What is known already is not run again.
    fn ends(&self, wanted: &[usize]) -> Result<BTreeMap<usize, PromptEnd>> {
        // A panic elsewhere leaves whole entries, or none.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let of_known = |known: &BTreeMap<usize, PromptEnd>| -> BTreeMap<usize, PromptEnd> {
            let found = wanted
                .iter()
                .filter_map(|pair| Some((*pair, Arc::clone(known.get(pair)?))));
            found.collect()
        };
        let mut ends = of_known(&known);
        let missing: Vec<usize> = (wanted.iter().copied())
            .filter(|pair| !ends.contains_key(pair))
            .collect();
        let width = match self.config.parts {
            RepairParts::Heads => self.spec().n_heads * self.spec().d_head,
            RepairParts::Attention | RepairParts::Mlp => self.spec().d_model,
        };
        let each = 4 * self.spec().n_layers * width;
        if (known.len() + missing.len()) * each > self.running.memory_now() / 4 {
            known.clear();
        }
        let hooks = every_layer(self.on.model, self.config.kind());
        for batch in self.batches(&missing) {
            let request = Request {
                capture: &hooks,
                logits: Logits::None,
                ..Request::default()
            };
            let cache = run(self.on.model, &self.prompts(&batch), &request)?.cache;
            let mut of_batch = vec![Vec::with_capacity(hooks.len()); batch.len()];
            for &hook in &hooks {
                let last = cache.get(hook)?.narrow(1, cache.length - 1, 1)?;
                for (i, of_prompt) in of_batch.iter_mut().enumerate() {
                    of_prompt.push(to_host(&last.get(i)?.contiguous()?)?);
                }
            }
            for (&pair, end) in batch.iter().zip(of_batch) {
                let end = Arc::new(end);
                known.insert(pair, Arc::clone(&end));
                ends.insert(pair, end);
            }
        }
        Ok(ends)
    }

    /// Some pairs, in batches of prompts of one length.
    fn batches(&self, items: &[usize]) -> Vec<Vec<usize>> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &item in items {
            let length = self.on.task.pairs()[item].clean.len();
            by_length.entry(length).or_default().push(item);
        }
        let of_length = |items: Vec<usize>| -> Vec<Vec<usize>> {
            let at_once = self.running.batch.max(1);
            items.chunks(at_once).map(<[usize]>::to_vec).collect()
        };
        by_length.into_values().flat_map(of_length).collect()
    }
}

impl Prepared for Repair<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = self.spec();
        let heads = (2 * spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
        // The clean run, and what its parts contribute; variants hold one position each.
        4 * 4 * spec.n_layers * length * (4 * spec.d_model + heads)
    }

    fn splits(&self) -> bool {
        true
    }

    /// A pass for the clean run and one for the donors' values, and for each donor one row through the layers above.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let item = unit.items[0];
        let length = self.on.task.pairs()[item].clean.len();
        let n_layers = self.spec().n_layers as f64;
        let donors = self.donors[item].len();
        let parts: Vec<&Removed> = self
            .parts_in(&unit.cells)
            .map(|at| &self.removed[at])
            .collect();
        let rows = |part: &&Removed| donors as f64 * (n_layers - part.layer as f64);
        let row_layers: f64 = parts.iter().map(rows).sum();
        Ok(Cost {
            variants: parts.len() * donors,
            passes: 3.0,
            packed: row_layers / (n_layers * length as f64),
            bytes: self.bytes(length),
            ..Cost::default()
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let clean = CleanRun::new(self, &unit.items)?;
        let mut wanted: Vec<usize> = unit
            .items
            .iter()
            .flat_map(|&item| self.donors[item].iter().copied())
            .collect();
        wanted.sort_unstable();
        wanted.dedup();
        let ends = self.ends(&wanted)?;
        let mut values = vec![Vec::with_capacity(unit.cells.len()); unit.items.len()];
        for at in self.parts_in(&unit.cells) {
            if progress.cancelled() {
                return Err(Error::Interrupted {
                    kept: "nothing of the batch in flight is kept".into(),
                });
            }
            let rows = &self.rows[at];
            let here = rows.start.max(unit.cells.start)..rows.end.min(unit.cells.end);
            let of_part = clean.without(self.removed[at], &unit.items, &ends)?;
            for (values, of_part) in values.iter_mut().zip(of_part) {
                let own = here.start - rows.start..here.end - rows.start;
                values.extend_from_slice(&of_part[own]);
            }
            progress.advance((here.len() * unit.items.len()) as u64);
        }
        let cells: Arc<[u32]> = (unit.cells.start as u32..unit.cells.end as u32).collect();
        let example = |(i, values): (usize, Vec<f64>)| {
            let mut one = unmeasured(self.on.task, unit.items[i], 0.0, 0.0);
            one.judged(clean.judged[i]);
            one.cells = Arc::clone(&cells);
            one.values = values;
            one
        };
        Ok(values.into_iter().enumerate().map(example).collect())
    }

    /// Adds what has one value for all prompts, classes of heads, and the story in a few lines.
    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let mut of_all: Vec<(Cell, f64)> = Vec::new();
        let mut negative = Vec::new();
        let mut worst = 0f64;
        for (at, rows) in self.rows.iter().enumerate() {
            let name = self.name(self.removed[at]);
            let column = |measure: Measure| -> Vec<f64> {
                let cell = rows.start + measure as usize;
                let values = measured.examples.iter().map(|example| example.value(cell));
                values.flatten().collect()
            };
            let mean_of = |measure: Measure| mean(&column(measure));
            let (direct, total) = (column(Measure::Direct), column(Measure::Total));
            let frozen = column(Measure::TotalFrozen);
            let ablated = column(Measure::DirectAblated);
            let (attn, mlp) = (
                column(Measure::CompensationAttn),
                column(Measure::CompensationMlp),
            );
            for i in 0..frozen.len() {
                let account = ablated[i] - direct[i] + attn[i] + mlp[i];
                worst = worst.max((frozen[i] - account).abs());
            }
            let lost = mean(&direct) - mean(&ablated);
            let of_part = |measure: &str, value: f64| {
                let cell = Cell {
                    measure: Some(measure.into()),
                    ..measured.cells[rows.start].clone()
                };
                (cell, value)
            };
            if lost.abs() > LEAST_CHANGE {
                of_all.push(of_part(RESTORED, (mean(&attn) + mean(&mlp)) / lost));
            }
            // A line through two prompts explains them whatever they are.
            let pairs: Vec<(f64, f64)> =
                direct.iter().copied().zip(total.iter().copied()).collect();
            if let Some(r2) = r_squared(&pairs).filter(|_| pairs.len() > 2) {
                of_all.push(of_part(R2, r2));
            }
            let class = match (sign(&direct), sign(&total)) {
                (-1, 1) => Some("negative"),
                (1, -1) => Some("positive"),
                _ => None,
            };
            if class == Some("negative") {
                negative.push(format!(
                    "{name} ({:+.3}, {:+.3})",
                    mean(&direct),
                    mean(&total)
                ));
            }
            if lost.abs() > LEAST_CHANGE {
                let repaired = helpers(measured, rows, lost);
                measured.notes.push(format!(
                    "without {name}: direct change {:+.3}, total {:+.3} with the scale frozen and {:+.3} free; {repaired}",
                    -lost,
                    mean_of(Measure::TotalFrozen),
                    mean(&total),
                ));
            }
            measured.cells[rows.start].class = class.map(String::from);
        }
        if self.by_head() {
            measured.notes.push(if negative.is_empty() {
                "no negative head: none has a direct effect below 0 and a total effect above it, each by two standard errors".into()
            } else {
                format!("negative heads (direct effect, total effect of losing it): {}", negative.join(", "))
            });
        }
        measured.notes.push(format!(
            "with the final scale frozen, direct change and compensation sum to the total effect; the largest residual is {worst:.1e} logits"
        ));
        measured
            .found
            .insert("account_residual".into(), json!(worst));
        // All examples make them together, so none has one of its own.
        if self.running.detail == Detail::Mean {
            let (cells, values): (Vec<Cell>, Vec<f64>) = of_all.into_iter().unzip();
            let first = measured.append(cells, |_, _| values.iter().copied().map(Some).collect());
            let added = first..measured.cells.len();
            measured.intervals.extend(added.map(|cell| (cell, None)));
        }
        Ok(())
    }
}

impl Repair<'_> {
    /// The removed parts that have one of these cells.
    fn parts_in(&self, cells: &Range<usize>) -> impl Iterator<Item = usize> + use<'_> {
        let (first, last) = (cells.start, cells.end);
        let overlaps = move |rows: &Range<usize>| rows.start < last && first < rows.end;
        (self.rows.iter().enumerate())
            .filter(move |(_, rows)| overlaps(rows))
            .map(|(at, _)| at)
    }
}

/// The later parts that make good at least a tenth of what is lost, the three strongest of them, in words.
fn helpers(measured: &Measured, rows: &Range<usize>, lost: f64) -> String {
    let mut helpers: Vec<(f64, usize)> = (rows.start + Measure::ALL.len()..rows.end)
        .map(|cell| {
            let values = measured.examples.iter().map(|example| example.value(cell));
            (
                mean(&values.flatten().collect::<Vec<_>>()) * lost.signum(),
                cell,
            )
        })
        .collect();
    helpers.sort_by(|a, b| b.0.total_cmp(&a.0));
    let helpers: Vec<String> = (helpers.iter().take(3))
        .filter(|(value, _)| *value > 0.1 * lost.abs())
        .map(|(value, cell)| {
            let dst = measured.cells[*cell].dst.as_deref().unwrap_or_default();
            format!("{dst} {:+.3}", value * lost.signum())
        })
        .collect();
    if helpers.is_empty() {
        "nothing later makes a tenth of it good".into()
    } else {
        format!("made good by {}", helpers.join(", "))
    }
}

impl FromStr for RepairTarget {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "top" => RepairTarget::Top,
            "difference" => RepairTarget::Of(DirectTarget::Difference),
            "answer" => RepairTarget::Of(DirectTarget::Answer),
            "centred" => RepairTarget::Of(DirectTarget::Centred),
            _ => {
                return Err(Error::Parse {
                    what: "a target",
                    text: text.into(),
                    reason: "it is `top`, `difference`, `answer` or `centred`".into(),
                });
            }
        })
    }
}

/// 1 or -1 where the mean is two standard errors from 0, else 0.
fn sign(values: &[f64]) -> i32 {
    let (n, centre) = (values.len() as f64, mean(values));
    let squares: f64 = values.iter().map(|value| (value - centre).powi(2)).sum();
    let error = (squares / (n - 1.0).max(1.0) / n).sqrt();
    if centre.abs() > 2.0 * error {
        centre.signum() as i32
    } else {
        0
    }
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
    fn measures_stand_in_the_order_of_their_numbers() {
        for (at, measure) in Measure::ALL.into_iter().enumerate() {
            assert_eq!(measure as usize, at, "{}", measure.name());
        }
        // Two donors: 6 lost in all, 5 of it with the scale frozen.
        let effects = Effects {
            total: -6.0,
            total_frozen: -5.0,
            direct: 8.0,
            ..Effects::default()
        };
        assert_eq!(effects.mean(Measure::Total, 2), -3.0);
        assert_eq!(effects.mean(Measure::NormTerm, 2), -0.5);
        assert_eq!(effects.mean(Measure::DirectAboveTotal, 2), 1.0);
    }
}
