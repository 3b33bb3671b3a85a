//! Estimates at nodes: any hook, taken apart as a patching sweep would ([`Sites`](crate::methods::Sites)).
//!
//! AtP is the gradient at the base run; RelP the same with other rules; AtP* adds the exact softmax of queries and keys and the
//! passes of GradDrop; layer integrated gradients average the gradient along the embeddings' path, and conductance also takes the
//! value's own steps along it. Every cell of the table is the estimate of what [`activation_patching`](crate::methods::activation_patching())
//! with the same [`PatchConfig`] measures.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use serde_json::json;

use super::qk_fix::{self, Prompt};
use super::runs::{Runs, Setting, at_rows, check_metric};
use super::verify::{Subject, false_negative_bound, verify_nodes};
use super::{Path, no_steps};
use crate::error::{Error, Result};
use crate::hooks::{Axes, Hook, Kind, Ln};
use crate::methods::PatchConfig;
use crate::methods::activation_patching::{PatchSource, roles_of};
use crate::methods::record::provenance;
use crate::methods::sites::{Along, Extent, fits};
use crate::model::{Model, ModelSpec};
use crate::nn::host::{dot, host, on_host, simd};
use crate::nn::rules::Rules;
use crate::run::Progress;
use crate::run::backward::Probe;
use crate::run::rows::Rows;
use crate::run::tape::Tape;
use crate::scores::{Cell, Direction, ExampleScores, Scores, ScoresMeta};
use crate::task::Task;

/// Which nodes, and how their effects are estimated.
#[derive(Debug, Clone)]
pub struct NodeAttributionConfig {
    /// What would be patched exactly.
    pub patch: PatchConfig,
    /// The method's name, as it stands in the table: `atp`, `relp`, ...
    pub method: String,
    pub rules: Rules,
    pub path: Path,
    /// Sum the gradient times the value's own change from point to point (trapezoid), instead of the mean gradient times the whole
    /// change.
    pub conductance: bool,
    /// Recompute the softmax exactly at queries and keys.
    pub qk_fix: bool,
    /// Average the size of the estimate over passes that each leave one layer's writes out, so that paths that cancel show. The
    /// score is then a size, without sign.
    pub grad_drop: bool,
}

impl NodeAttributionConfig {
    /// AtP of what would be patched.
    pub fn atp(patch: PatchConfig) -> Self {
        NodeAttributionConfig {
            patch,
            method: "atp".into(),
            rules: Rules::gradient(),
            path: Path::Base,
            conductance: false,
            qk_fix: false,
            grad_drop: false,
        }
    }

    /// AtP*: both corrections.
    pub fn atp_star(patch: PatchConfig) -> Self {
        NodeAttributionConfig {
            method: "atp-star".into(),
            qk_fix: true,
            grad_drop: true,
            ..NodeAttributionConfig::atp(patch)
        }
    }

    /// RelP with its authors' default rules.
    pub fn relp(patch: PatchConfig) -> Self {
        NodeAttributionConfig {
            method: "relp".into(),
            rules: Rules::relp(),
            ..NodeAttributionConfig::atp(patch)
        }
    }

    /// # Errors
    /// What cannot be estimated as asked, before anything runs.
    pub fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.patch.check(spec, task)?;
        let at_base = self.path == Path::Base;
        check_metric(self.patch.metric, self.patch.direction, at_base)?;
        self.path.check()?;
        if self.patch.window != 1 || self.patch.noise.is_some() {
            return Err(Error::invalid(
                "attribution has no windows and no Gaussian noise; patch exactly (`candlewick patch`) for these",
            ));
        }
        for sites in &self.patch.sites {
            let reason = match sites.kind {
                Kind::QInput | Kind::KInput | Kind::VInput => {
                    "it has a tensor for each head; use an edge method, `--method eap`"
                }
                Kind::Result => "it is z seen through W_O, with the same effect; use `z`",
                Kind::Scale(Ln::Final) | Kind::Normalized(Ln::Final) => {
                    "nothing but the unembedding follows it; use `resid_post`"
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
            PatchSource::Pair | PatchSource::Zero | PatchSource::Mean | PatchSource::MeanAll
        );
        if !is_known || !self.patch.sets.is_empty() || self.patch.reference.is_some() {
            return Err(Error::invalid(
                "attribution goes from a run to the pair's other run, to zeros or to means over the corrupted prompts, one site at a \
                 time; ablate exactly for anything else (`candlewick ablate`)",
            ));
        }
        let other_is_a_run = self.patch.source == PatchSource::Pair;
        if !other_is_a_run && (self.qk_fix || self.path != Path::Base) {
            return Err(Error::invalid(
                "the QK fix and integrals go from one run to the other run of the pair; with zeros or means use \
                 `--method atp`, or leave `--source` out",
            ));
        }
        if (self.qk_fix || self.grad_drop) && !at_base {
            return Err(Error::invalid(
                "AtP* is taken at the base run; its corrections do not combine with integrals",
            ));
        }
        if self.conductance && self.path.points().len() < 2 {
            return Err(no_steps());
        }
        Ok(())
    }
}

/// How estimates are held against exact effects.
#[derive(Debug, Clone, Copy)]
pub struct VerifyOptions {
    /// The strongest so many cells, and as many random ones, are patched exactly.
    pub k: usize,
    /// Joint patches behind a bound on what was missed; 0 for none.
    pub bound_draws: usize,
}

/// Estimates the effect of patching every cell of every sweep, and patches some exactly if `verify` says so.
/// # Units
/// `value` and `score`: the metric's. `contribution`, the mean over pairs of the estimate's size, is there with
/// [`Detail::Mean`](crate::scores::Detail::Mean).
/// # Errors
/// What cannot be estimated as asked, before anything runs; [`Error::NoGradient`]; [`Error::Interrupted`].
pub fn attribute_nodes(
    model: &Model,
    task: &Task,
    config: &NodeAttributionConfig,
    verify: Option<VerifyOptions>,
    progress: &dyn Progress,
) -> Result<Scores> {
    config.check(&model.spec, task)?;
    if let Some(verify) = verify {
        let cells = Places::new(model, task, &config.patch).cells.len();
        super::verify::check(verify.k, cells)?;
    }
    let began = Instant::now();
    let (cells, examples) = node_scores(model, task, config, progress)?;
    let patch = &config.patch;
    let meta = ScoresMeta {
        method: config.method.clone(),
        metric: patch.metric.to_string(),
        unit: patch.metric.unit().into(),
        direction: patch.direction,
        seed: patch.seed,
    };
    let mut settings = patch.fingerprint(model, task);
    settings["method"] = json!(config.method);
    settings["rules"] = json!(config.rules);
    settings["path"] = json!(config.path);
    settings["conductance"] = json!(config.conductance);
    settings["qk_fix"] = json!(config.qk_fix);
    settings["grad_drop"] = json!(config.grad_drop);
    let (seconds, warnings) = (
        began.elapsed().as_secs_f64(),
        patch.warnings(task, &examples),
    );
    let provenance = provenance(model, task, settings, seconds, warnings);
    let mut scores = Scores::assemble(&cells, &examples, &meta, patch.detail, provenance)?;
    if let Some(VerifyOptions { k, bound_draws }) = verify {
        let subject = Subject { model, task };
        let mut found = verify_nodes(subject, config, &cells, &examples, k, progress)?;
        if bound_draws > 0 {
            let (n, draws) = (cells.len(), bound_draws);
            found.bound = false_negative_bound(subject, patch, n, &found, draws, progress)?;
        }
        found.add_to(&mut scores, &cells, &examples, patch.detail)?;
    }
    Ok(scores)
}

/// The estimates behind [`attribute_nodes`], for each pair.
/// # Errors
/// Those of [`attribute_nodes`].
pub fn node_scores(
    model: &Model,
    task: &Task,
    config: &NodeAttributionConfig,
    progress: &dyn Progress,
) -> Result<(Vec<Cell>, Vec<ExampleScores>)> {
    config.check(&model.spec, task)?;
    let patch = &config.patch;
    let places = Places::new(model, task, patch);
    let setting = Setting {
        model,
        task,
        metric: patch.metric,
        direction: patch.direction,
        source: patch.source,
        hooks: places.hooks(),
        memory: patch.sweep.memory,
        batch: patch.batch,
    };
    let means = setting.means()?;
    progress.start("attributing", task.pairs().len() as u64);
    let mut keep = Vec::new();
    if config.qk_fix {
        keep = (0..model.spec.n_layers)
            .flat_map(|layer| [Kind::RotQ, Kind::RotK].map(|kind| Hook::at(kind, layer)))
            .collect();
    }
    let mut examples = Vec::new();
    for batch in setting.batches(0) {
        let runs = Runs::record(&setting, &batch, &means, &keep)?;
        let estimates = estimate(&runs, &places, config, &setting.hooks)?;
        for (i, estimates) in estimates.into_iter().enumerate() {
            let pair = runs.pairs[i];
            let base = match patch.direction {
                Direction::Denoise => runs.corrupted[i],
                _ => runs.clean[i],
            };
            let has = |role: &str| pair.roles.get(role).is_some_and(|at| !at.is_empty());
            let here: Vec<u32> = (0..places.cells.len() as u32)
                .filter(|&cell| fits(&places.cells[cell as usize], pair.clean.len(), has))
                .collect();
            let values = here.iter().map(|&cell| base + estimates[cell as usize]);
            examples.push(ExampleScores {
                example: pair.index,
                clean: runs.clean[i],
                corrupted: runs.corrupted[i],
                tokens: task.texts(&runs.base.prompts[i]),
                roles: pair.roles.clone(),
                values: values.collect(),
                cells: Arc::from(here),
                ..ExampleScores::default()
            });
        }
        progress.advance(batch.len() as u64);
        if progress.cancelled() {
            let kept = "attribution keeps no parts, and starts again".into();
            return Err(Error::Interrupted { kept });
        }
    }
    progress.finish();
    examples.sort_by_key(|scores| scores.example);
    Ok((places.cells, examples))
}

/// The cells of all sweeps, and where those of one hook stand.
struct Places {
    cells: Vec<Cell>,
    of_hook: BTreeMap<Hook, Vec<(Along, Range<usize>)>>,
}

impl Places {
    fn new(model: &Model, task: &Task, patch: &PatchConfig) -> Self {
        let roles = roles_of(task);
        let lengths = task.pairs().iter().map(|pair| pair.clean.len());
        let extent = Extent {
            length: lengths.max().unwrap_or(0),
            roles: &roles,
            layers: &patch.layers,
            heads: &patch.heads,
        };
        let mut places = Places {
            cells: Vec::new(),
            of_hook: BTreeMap::new(),
        };
        for sites in &patch.sites {
            let cells = sites.cells(&model.spec, &extent);
            let mut start = places.cells.len();
            // Cells stand layer by layer.
            for run in cells.chunk_by(|a, b| a.layer == b.layer) {
                let hook = Hook {
                    layer: run[0].layer.map(|layer| layer as usize),
                    kind: sites.kind,
                };
                let of_hook = places.of_hook.entry(hook).or_default();
                of_hook.push((sites.along, start..start + run.len()));
                start += run.len();
            }
            places.cells.extend(cells);
        }
        places
    }

    fn hooks(&self) -> Vec<Hook> {
        self.of_hook.keys().copied().collect()
    }
}

/// Estimates by pair and cell.
type Estimates = Vec<Vec<f64>>;

fn estimate(
    runs: &Runs<'_>,
    places: &Places,
    config: &NodeAttributionConfig,
    hooks: &[Hook],
) -> Result<Estimates> {
    if config.conductance {
        return conductance(runs, places, config, hooks);
    }
    let points = config.path.points();
    let mut total = places.nothing(runs);
    for &point in &points {
        let tape = runs.at(point, &[])?;
        let mut probe = NodeProbe::new(runs, places, config.qk_fix);
        probe.streams = config.grad_drop.then(Vec::new);
        runs.descend(&tape, &config.rules, &mut probe)?;
        if let Some(streams) = probe.streams.take() {
            return grad_drop(runs, places, config, probe.estimates, streams);
        }
        let share = 1.0 / points.len() as f64;
        add(&mut total, &probe.estimates, share);
    }
    Ok(total)
}

fn add(total: &mut Estimates, more: &Estimates, factor: f64) {
    for (total, more) in total.iter_mut().zip(more) {
        for (total, more) in total.iter_mut().zip(more) {
            *total += factor * more;
        }
    }
}

/// The mean over layers of the estimate's size when that layer's writes are held fixed.
///
/// Above the layer that is stopped nothing differs from the plain pass, so pass `l` begins at layer `l`: about half a backward
/// pass each.
fn grad_drop(
    runs: &Runs<'_>,
    places: &Places,
    config: &NodeAttributionConfig,
    plain: Estimates,
    streams: Vec<(usize, Tensor)>,
) -> Result<Estimates> {
    let n_layers = runs.model.spec.n_layers;
    if n_layers == 1 {
        return Ok(plain
            .into_iter()
            .map(|of| of.into_iter().map(f64::abs).collect())
            .collect());
    }
    let mut total = places.nothing(runs);
    for (layer, gradient) in streams {
        let rules = config.rules.clone().stopping([layer]);
        let mut probe = NodeProbe::new(runs, places, config.qk_fix);
        for (hook, cells) in &places.of_hook {
            if hook.layer.is_some_and(|of| of > layer) {
                for (_, range) in cells {
                    for (estimates, plain) in probe.estimates.iter_mut().zip(&plain) {
                        estimates[range.clone()].copy_from_slice(&plain[range.clone()]);
                    }
                }
            }
        }
        runs.descent(&runs.base, &rules)
            .below(layer + 1, gradient, &mut probe)?;
        for (total, estimates) in total.iter_mut().zip(&probe.estimates) {
            for (total, estimate) in total.iter_mut().zip(estimates) {
                *total += estimate.abs();
            }
        }
    }
    for (hook, cells) in &places.of_hook {
        // What stands in a layer is silent when that layer is stopped; what stands between layers never is.
        let passes = match is_between_layers(hook.kind) {
            true => n_layers,
            false => n_layers - 1,
        };
        for (_, range) in cells {
            for total in &mut total {
                let sizes = &mut total[range.clone()];
                sizes.iter_mut().for_each(|size| *size /= passes as f64);
            }
        }
    }
    Ok(total)
}

fn is_between_layers(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Embed | Kind::PosEmbed | Kind::ResidPre | Kind::ResidMid | Kind::ResidPost
    )
}

/// Sums gradient times step along the path from the base run to the other, by the trapezoid rule.
fn conductance(
    runs: &Runs<'_>,
    places: &Places,
    config: &NodeAttributionConfig,
    hooks: &[Hook],
) -> Result<Estimates> {
    let steps = match config.path {
        Path::Inputs { steps, .. } => steps,
        Path::Base | Path::Ends => 1,
    };
    let mut total = places.nothing(runs);
    let mut before: Option<(Cow<'_, Tape>, HashMap<Hook, Tensor>)> = None;
    for step in 0..=steps {
        let point = 1.0 - step as f32 / steps as f32;
        let tape = runs.at(point, hooks)?;
        let mut gradients = Gradients {
            wanted: hooks.iter().copied().collect(),
            kept: HashMap::new(),
        };
        runs.descend(&tape, &config.rules, &mut gradients)?;
        if let Some((earlier, slopes)) = before.take() {
            for (&hook, cells) in &places.of_hook {
                let values =
                    |tape: &Tape| -> Result<Tensor> { on_host(&at_rows(tape, hook, &runs.rows)?) };
                let moved = (values(&tape)? - values(&earlier)?)?;
                let slope = ((&slopes[&hook] + &gradients.kept[&hook])? * 0.5)?;
                let inner = Inner::new(runs, hook, &moved, &slope)?;
                inner.add_to(&mut total, runs, places, cells);
            }
        }
        before = Some((tape, gradients.kept));
    }
    Ok(total)
}

/// Keeps the gradients of some hooks.
struct Gradients {
    wanted: HashSet<Hook>,
    kept: HashMap<Hook, Tensor>,
}

impl Probe for Gradients {
    fn wants(&self, hook: Hook) -> bool {
        self.wanted.contains(&hook)
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        self.kept.insert(hook, gradient.clone());
        Ok(())
    }
}

impl Places {
    fn nothing(&self, runs: &Runs<'_>) -> Estimates {
        vec![vec![0.0; self.cells.len()]; runs.pairs.len()]
    }
}

/// Takes the inner products as the gradients pass, and keeps nothing else.
struct NodeProbe<'a> {
    runs: &'a Runs<'a>,
    places: &'a Places,
    estimates: Estimates,
    /// The gradient at the stream that leaves each layer, where GradDrop will go on from.
    streams: Option<Vec<(usize, Tensor)>>,
    /// Whether queries and keys get their exact softmax; and those of the layer that is passed just now.
    qk_fix: bool,
    fixed: HashMap<Hook, Inner>,
}

impl<'a> NodeProbe<'a> {
    fn new(runs: &'a Runs<'a>, places: &'a Places, qk_fix: bool) -> Self {
        NodeProbe {
            runs,
            places,
            estimates: places.nothing(runs),
            streams: None,
            qk_fix,
            fixed: HashMap::new(),
        }
    }

    /// The queries and keys of the cells in a layer.
    fn queries_and_keys(&self, layer: usize) -> Vec<Hook> {
        [Kind::Q, Kind::RotQ, Kind::K, Kind::RotK]
            .map(|kind| Hook::at(kind, layer))
            .into_iter()
            .filter(|hook| self.places.of_hook.contains_key(hook))
            .collect()
    }

    fn fix(&mut self, layer: usize, slope: &Tensor) -> Result<()> {
        let runs = self.runs;
        let spec = &runs.model.spec;
        let (rot_q, rot_k) = (Hook::at(Kind::RotQ, layer), Hook::at(Kind::RotK, layer));
        let q = [runs.base_values(rot_q)?, runs.other_values(rot_q)?];
        let (k, k_other) = (on_host(runs.base.get(rot_k)?)?, runs.other_values(rot_k)?);
        let of = qk_fix::Layer {
            spec,
            layer,
            length: runs.rows.length,
            q: [&host(&q[0])?, &host(&q[1])?],
            k: &host(&k)?,
            k_other: &host(&k_other)?,
            slope: &host(slope)?,
        };
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        for (index, segment) in runs.rows.segments.iter().enumerate() {
            let prompt = Prompt {
                index,
                first_row: segment.start,
                first_pos: segment.positions[0] as usize,
            };
            let (of_queries, of_keys) = qk_fix::estimates(&of, prompt);
            queries.extend(of_queries);
            keys.extend(of_keys);
        }
        for hook in self.queries_and_keys(layer) {
            let (values, units) = match hook.kind {
                Kind::Q | Kind::RotQ => (queries.clone(), spec.n_heads),
                _ => (keys.clone(), spec.n_kv_heads),
            };
            let inner = Inner {
                values,
                units,
                keys: 1,
            };
            self.fixed.insert(hook, inner);
        }
        Ok(())
    }
}

impl Probe for NodeProbe<'_> {
    fn wants(&self, hook: Hook) -> bool {
        if self.places.of_hook.contains_key(&hook) {
            return true;
        }
        match (hook.kind, hook.layer) {
            (Kind::ResidPost, _) => self.streams.is_some(),
            (Kind::Pattern, Some(layer)) => self.qk_fix && !self.queries_and_keys(layer).is_empty(),
            _ => false,
        }
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        if let (Some(streams), Kind::ResidPost, Some(layer)) =
            (&mut self.streams, hook.kind, hook.layer)
        {
            streams.push((layer, gradient.clone()));
        }
        if let (true, Kind::Pattern, Some(layer)) = (self.qk_fix, hook.kind, hook.layer)
            && !self.queries_and_keys(layer).is_empty()
        {
            self.fix(layer, gradient)?;
        }
        let Some(cells) = self.places.of_hook.get(&hook) else {
            return Ok(());
        };
        let inner = match self.fixed.remove(&hook) {
            Some(inner) => inner,
            None => Inner::new(self.runs, hook, &self.runs.delta(hook)?, gradient)?,
        };
        inner.add_to(&mut self.estimates, self.runs, self.places, cells);
        Ok(())
    }
}

/// Inner products of a change and a gradient, one for each row and unit (head or neuron; one for a stream), and for patterns each key.
struct Inner {
    /// `[rows, units, keys]`
    values: Vec<f64>,
    units: usize,
    keys: usize,
}

impl Inner {
    fn new(runs: &Runs<'_>, hook: Hook, change: &Tensor, gradient: &Tensor) -> Result<Self> {
        let spec = &runs.model.spec;
        let (units, keys, width) = match hook.kind.axes(spec) {
            Axes::Stream => (1, 1, spec.d_model),
            Axes::Scale => (1, 1, 1),
            Axes::Heads { heads, width } => (heads, 1, width),
            Axes::Pattern => (spec.n_heads, runs.rows.length, 1),
            Axes::Neurons => (spec.d_mlp, 1, 1),
        };
        let (change, gradient) = (change.contiguous()?, gradient.contiguous()?);
        let (change, gradient) = (host(&change)?, host(&gradient)?);
        let values = simd(
            #[inline(always)]
            || -> Vec<f64> {
                let pairs = change.chunks_exact(width).zip(gradient.chunks_exact(width));
                pairs.map(|(a, b)| f64::from(dot(a, b))).collect()
            },
        );
        Ok(Inner {
            values,
            units,
            keys,
        })
    }

    /// Adds them to the cells that they belong to.
    fn add_to(
        &self,
        estimates: &mut Estimates,
        runs: &Runs<'_>,
        places: &Places,
        cells: &[(Along, Range<usize>)],
    ) {
        for (i, estimates) in estimates.iter_mut().enumerate() {
            let rows = runs.rows_of(i);
            let first = runs.rows.segments[i].positions[0] as usize;
            let row_of = |pos: usize| {
                let row = (rows.start + pos).checked_sub(first)?;
                rows.contains(&row).then_some(row)
            };
            for (_, range) in cells {
                for index in range.clone() {
                    let cell = &places.cells[index];
                    let mut sum = 0.0;
                    match (cell.pos, &cell.role) {
                        (Some(pos), _) => {
                            if let Some(row) = row_of(pos as usize) {
                                sum += self.at(row, cell);
                            }
                        }
                        (None, Some(role)) => {
                            let positions = runs.pairs[i].roles.get(role).into_iter().flatten();
                            sum += positions
                                .filter_map(|&pos| row_of(pos))
                                .map(|row| self.at(row, cell))
                                .sum::<f64>();
                        }
                        (None, None) => {
                            sum += rows.clone().map(|row| self.at(row, cell)).sum::<f64>();
                        }
                    }
                    estimates[index] += sum;
                }
            }
        }
    }

    fn at(&self, row: usize, cell: &Cell) -> f64 {
        let width = self.units * self.keys;
        let row = &self.values[row * width..(row + 1) * width];
        let units = match cell.head.or(cell.neuron) {
            Some(unit) => unit as usize..unit as usize + 1,
            None => 0..self.units,
        };
        let keys = match cell.key {
            Some(key) => key as usize..key as usize + 1,
            None => 0..self.keys,
        };
        units
            .map(|unit| row[unit * self.keys..][keys.clone()].iter().sum::<f64>())
            .sum()
    }
}
