//! Many variants of a base run in few passes over the weights.
//!
//! A patch at layer l and position p cannot change anything before l, nor any position before p. So each variant *starts* at the
//! first place that it changes and carries only the rows that can differ from the base run: the edited positions until the next
//! attention, every later position from then on, and in the last layer the answer position alone. The rows of all variants of a
//! wave are packed into one matrix and walk the layers together; keys, values and streams of everything else come from the
//! base run. A variant that would put back what is there already, or whose change cannot reach the answer, is not run at all:
//! its value is the base run's.
//!
//! The answer position is the last one of each prompt.

use std::collections::HashMap;

use candle_core::Tensor;

use super::apply::{self, Resolved};
use super::forward::{self, Stage, Stream, Tap, block, final_norm};
use super::rows::{Rows, pick, regather};
use super::{BaseRun, Progress, Sources};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln};
use crate::metric::{Metric, Reads, Target};
use crate::model::Model;
use crate::nn::embed::{unembed, unembed_columns};
use crate::nn::host::to_host;
use crate::nn::rope;

/// One variant: a prompt of the base run, and the edits that are made in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    pub example: usize,
    pub edits: Vec<Edit>,
}

/// How logits become numbers.
#[derive(Debug, Clone)]
pub struct Readout {
    pub metric: Metric,
    /// For each prompt of the base run.
    pub targets: Vec<Target>,
    /// Logits of the reference run at the answer, for each prompt, where the metric compares with one.
    pub reference: Option<Vec<Vec<f32>>>,
}

#[derive(Debug, Clone)]
pub struct SweepOptions {
    /// Bytes that activations of a wave may take.
    pub memory: usize,
    /// Rows of a wave at most: enough that a product is bound by arithmetic, few enough that activations stay near the caches.
    pub max_rows: usize,
}

impl Default for SweepOptions {
    fn default() -> Self {
        SweepOptions {
            memory: available_memory() / 4,
            max_rows: 1024,
        }
    }
}

/// Bytes of memory that are free now.
pub fn available_memory() -> usize {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // Where the system does not say, assume little.
    usize::try_from(system.available_memory())
        .ok()
        .filter(|&bytes| bytes > 0)
        .unwrap_or(1 << 30)
}

/// What a sweep will cost, before it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Plan {
    pub variants: usize,
    /// Variants that cannot change the answer, by position alone; more may turn out to put back what is there.
    pub without_effect: usize,
    /// Rows times layers that will be computed.
    pub row_layers: u64,
    /// The same in whole forward passes of one prompt.
    pub forwards: f64,
    /// Bytes of the largest wave.
    pub wave_bytes: usize,
}

/// The stage of a block at which a variant that edits this hook can start; `None` for hooks outside of blocks.
pub(crate) fn stage_of(kind: Kind) -> Option<Stage> {
    Some(match kind {
        Kind::Embed | Kind::PosEmbed | Kind::Scale(Ln::Final) | Kind::Normalized(Ln::Final) => {
            return None;
        }
        Kind::ResidPre | Kind::Scale(Ln::One) | Kind::Normalized(Ln::One) => Stage::ResidPre,
        Kind::QInput | Kind::KInput | Kind::VInput => Stage::ResidPre,
        Kind::Q
        | Kind::K
        | Kind::V
        | Kind::RotQ
        | Kind::RotK
        | Kind::AttnScores
        | Kind::Pattern => Stage::Qkv,
        Kind::Z | Kind::Result | Kind::Scale(Ln::OnePost) | Kind::Normalized(Ln::OnePost) => {
            Stage::Z
        }
        Kind::AttnOut => Stage::AttnOut,
        Kind::ResidMid | Kind::MlpIn | Kind::Scale(Ln::Two) | Kind::Normalized(Ln::Two) => {
            Stage::ResidMid
        }
        Kind::MlpPre | Kind::MlpPreLinear => Stage::ResidMid,
        Kind::MlpPost | Kind::Scale(Ln::TwoPost) | Kind::Normalized(Ln::TwoPost) => Stage::MlpPost,
        Kind::MlpOut => Stage::MlpOut,
        Kind::ResidPost => Stage::ResidPost,
    })
}

/// Where a variant joins the walk. The order is that of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Start {
    Embed,
    Block(usize, Stage),
    Final,
}

fn start_of(hook: Hook) -> Start {
    match (stage_of(hook.kind), hook.layer) {
        (Some(stage), Some(layer)) => Start::Block(layer, stage),
        _ if matches!(hook.kind, Kind::Embed | Kind::PosEmbed) => Start::Embed,
        _ => Start::Final,
    }
}

/// A variant, placed.
#[derive(Debug, Clone)]
struct Planned {
    variant: usize,
    example: usize,
    start: Start,
    /// The edited positions, ascending.
    positions: Vec<u32>,
    /// Whether attention of the layer where it starts carries the change to later positions.
    spreads: bool,
}

impl Planned {
    fn new(variant: usize, edits: &Variant, base: &BaseRun) -> Result<Self> {
        let none = super::Roles::new();
        let roles = base.roles.get(edits.example).unwrap_or(&none);
        let mut positions = Vec::new();
        for edit in &edits.edits {
            positions.extend(
                edit.site
                    .positions
                    .resolve(base.length, roles)?
                    .into_iter()
                    .map(|pos| pos as u32),
            );
        }
        positions.sort_unstable();
        positions.dedup();
        let start = edits
            .edits
            .iter()
            .map(|edit| start_of(edit.site.hook))
            .min();
        let start =
            start.ok_or_else(|| Error::invalid("a variant without edits is the base run"))?;
        let by_query = |kind: Kind| {
            matches!(
                kind,
                Kind::Q | Kind::RotQ | Kind::AttnScores | Kind::Pattern
            )
        };
        let spreads = edits
            .edits
            .iter()
            .any(|edit| start_of(edit.site.hook) == start && !by_query(edit.site.hook.kind));
        Ok(Planned {
            variant,
            example: edits.example,
            start,
            positions,
            spreads,
        })
    }

    fn first(&self) -> u32 {
        self.positions.first().copied().unwrap_or(u32::MAX)
    }

    /// Whether the change can reach the answer at all.
    fn reaches(&self, answer: u32, last_layer: usize) -> bool {
        let only_itself = match self.start {
            Start::Embed => false,
            Start::Final => true,
            Start::Block(layer, stage) => {
                layer == last_layer
                    && (stage > Stage::Qkv || (stage == Stage::Qkv && !self.spreads))
            }
        };
        match only_itself {
            true => self.positions.contains(&answer),
            false => self.first() <= answer,
        }
    }

    /// Rows that it joins with.
    fn joining_rows(&self, answer: u32, last_layer: usize) -> Vec<u32> {
        let at_the_end = match self.start {
            Start::Final => true,
            Start::Embed => false,
            Start::Block(layer, stage) => layer == last_layer && stage > Stage::Qkv,
        };
        match at_the_end {
            true => vec![answer],
            false => self.positions.clone(),
        }
    }

    /// Rows times layers that it will walk, roughly: a layer costs a row as much wherever in the layer it joins.
    fn cost(&self, length: usize, n_layers: usize) -> u64 {
        let layer = match self.start {
            Start::Embed => 0,
            Start::Final => return 0,
            Start::Block(layer, _) => layer,
        };
        let later = (n_layers - layer).saturating_sub(2) as u64;
        self.positions.len() as u64
            + later * (length as u64).saturating_sub(u64::from(self.first()))
            + 1
    }
}

/// What a sweep of these variants will cost.
/// # Errors
/// Those of resolving positions.
pub fn plan(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    options: &SweepOptions,
) -> Result<Plan> {
    let (answer, last) = (base.length as u32 - 1, model.spec.n_layers - 1);
    let mut plan = Plan {
        variants: variants.len(),
        ..Plan::default()
    };
    for (index, variant) in variants.iter().enumerate() {
        let planned = Planned::new(index, variant, base)?;
        match planned.reaches(answer, last) {
            true => plan.row_layers += planned.cost(base.length, model.spec.n_layers),
            false => plan.without_effect += 1,
        }
    }
    plan.forwards = plan.row_layers as f64 / (base.length * model.spec.n_layers) as f64;
    plan.wave_bytes = rows_of_a_wave(model, base.length, options) * row_bytes(model, base.length);
    Ok(plan)
}

/// Bytes of activations that one row needs at the widest place of a block.
fn row_bytes(model: &Model, length: usize) -> usize {
    let spec = &model.spec;
    let qkv = (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
    4 * (6 * spec.d_model + 2 * qkv + 4 * spec.d_mlp + 2 * spec.n_heads * length.min(512))
}

fn rows_of_a_wave(model: &Model, length: usize, options: &SweepOptions) -> usize {
    (options.memory / row_bytes(model, length)).clamp(length, options.max_rows.max(length))
}

impl BaseRun {
    /// The metric of each prompt of the base run.
    pub fn metric(&self, model: &Model, readout: &Readout) -> Result<Vec<f64>> {
        let examples: Vec<usize> = (0..self.prompts.len()).collect();
        read(model, &self.answer, &examples, readout)
    }

    /// The logits at the answer of each prompt, for metrics that compare with a reference.
    pub fn logits(&self, model: &Model) -> Result<Vec<Vec<f32>>> {
        Ok(unembed(model, &self.answer)?.to_vec2()?)
    }
}

/// The metric of every variant, in their order.
/// # Errors
/// Bad edits before anything runs; [`Error::Interrupted`] if `progress` says so; [`Error::NotFiniteLogits`].
pub fn sweep(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    sources: &Sources,
    readout: &Readout,
    options: &SweepOptions,
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    let unchanged = base.metric(model, readout)?;
    let mut values: Vec<f64> = variants
        .iter()
        .map(|variant| unchanged[variant.example])
        .collect();
    let (answer, last_layer) = (base.length as u32 - 1, model.spec.n_layers - 1);
    let mut planned = Vec::new();
    for (index, variant) in variants.iter().enumerate() {
        for edit in &variant.edits {
            edit.check(&model.spec)?;
        }
        let one = Planned::new(index, variant, base)?;
        if one.reaches(answer, last_layer) && !changes_nothing(model, base, variant, sources)? {
            planned.push(one);
        }
    }
    progress.advance((variants.len() - planned.len()) as u64);
    // Waves of variants that start near each other: every layer then has nearly as many rows as the wave may have.
    planned.sort_by_key(|one| (one.start, one.variant));
    let limit = rows_of_a_wave(model, base.length, options);
    let ropes = rope::Tables::new(&model.spec, base.length);
    let mut rest = planned.as_slice();
    while !rest.is_empty() {
        let mut rows = 0;
        let fits = |one: &&Planned| {
            rows += one
                .positions
                .len()
                .max(base.length.saturating_sub(one.first() as usize));
            rows <= limit
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (wave, later) = rest.split_at(count);
        for (variant, value) in run_wave(
            model, base, variants, wave, sources, readout, &ropes, progress,
        )? {
            values[variant] = value;
        }
        progress.advance(wave.len() as u64);
        rest = later;
    }
    Ok(values)
}

/// Whether all edits of a variant would put back, bit for bit, what the base run has.
fn changes_nothing(
    model: &Model,
    base: &BaseRun,
    variant: &Variant,
    sources: &Sources,
) -> Result<bool> {
    for (index, edit) in variant.edits.iter().enumerate() {
        let Ok(own) = base.cache.packed(edit.site.hook) else {
            return Ok(false);
        };
        if !crate::nn::host::is_host(own) {
            return Ok(false);
        }
        let resolved = resolve(model, base, variant.example, edit, index, sources)?;
        if !resolved.changes_nothing(&own.contiguous()?, variant.example, base.length)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn resolve(
    model: &Model,
    base: &BaseRun,
    example: usize,
    edit: &Edit,
    index: usize,
    sources: &Sources,
) -> Result<Resolved> {
    let none = super::Roles::new();
    let roles = base.roles.get(example).unwrap_or(&none);
    apply::resolve(
        edit,
        index,
        &model.spec,
        base.length,
        roles,
        sources,
        example,
    )
}

#[allow(clippy::too_many_arguments)]
fn run_wave(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    wave: &[Planned],
    sources: &Sources,
    readout: &Readout,
    ropes: &rope::Tables,
    progress: &dyn Progress,
) -> Result<Vec<(usize, f64)>> {
    let mut tap = SweepTap::new(model, base, variants, wave, sources)?;
    let n_layers = model.spec.n_layers;
    let mut stream = Stream::empty(base.length);
    if let Some(rows) = tap.starts_at_embedding.take() {
        let tokens: Vec<u32> = rows
            .in_whole()
            .iter()
            .map(|&row| base.prompts[row as usize / base.length][row as usize % base.length])
            .collect();
        let x = forward::embed(model, &tokens, &rows, &mut tap)?;
        stream = Stream { rows, x: Some(x) };
    }
    let first = match wave.first().map(|one| one.start) {
        Some(Start::Block(layer, _)) => layer,
        Some(Start::Final) => n_layers,
        _ => 0,
    };
    for layer in first..n_layers {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing of the batch in flight is kept".into(),
            });
        }
        stream = block(model, layer, ropes, stream, &mut tap)?;
    }
    // Rows of the answer, and those that only change the final norm.
    let answers = stream.rows.last_of_each();
    let x = match stream.x {
        Some(x) if answers.total != stream.rows.total => {
            Some(regather(&x, &stream.rows, &answers, None)?)
        }
        x => x,
    };
    let (x, rows) = match (x, tap.starts_at_end.take()) {
        (x, None) => (x, answers),
        (x, Some(new)) => {
            let joined = pick(tap.base(Hook::at(Kind::ResidPost, n_layers - 1))?, &new)?;
            let mut rows = answers;
            rows.append(new);
            let x = match x {
                Some(x) => Tensor::cat(&[&x, &joined], 0)?,
                None => joined,
            };
            (Some(x), rows)
        }
    };
    let x = x.ok_or_else(|| Error::invalid("a wave without rows"))?;
    let x = final_norm(model, &x, &rows, &mut tap)?;
    tap.check_fired(variants)?;
    let examples: Vec<usize> = rows
        .segments
        .iter()
        .map(|segment| segment.example)
        .collect();
    let values = read(model, &x, &examples, readout)?;
    Ok(rows
        .segments
        .iter()
        .map(|segment| segment.variant)
        .zip(values)
        .collect())
}

/// The metric from normalised answer rows, each of one prompt.
pub(crate) fn read(
    model: &Model,
    x: &Tensor,
    examples: &[usize],
    readout: &Readout,
) -> Result<Vec<f64>> {
    let mut values = Vec::with_capacity(examples.len());
    let mut value = |example: usize, logits: &[f32]| -> Result<()> {
        if logits
            .iter()
            .any(|logit| logit.is_nan() || *logit == f32::INFINITY)
        {
            return Err(Error::NotFiniteLogits {
                index: example,
                hook: "the answer position".into(),
            });
        }
        let reference = readout
            .reference
            .as_ref()
            .map(|logits| logits[example].as_slice());
        values.push(
            readout
                .metric
                .value(logits, &readout.targets[example], reference)?,
        );
        Ok(())
    };
    match readout.metric.reads() {
        Reads::Answers => {
            let wanted: Vec<Vec<u32>> = examples
                .iter()
                .map(|&example| readout.targets[example].columns())
                .collect();
            let columns: Vec<&[u32]> = wanted.iter().map(Vec::as_slice).collect();
            for (&example, logits) in examples.iter().zip(unembed_columns(model, x, &columns)?) {
                value(example, &logits)?;
            }
        }
        Reads::Vocabulary => {
            // A few rows at a time: the vocabulary is wide.
            for (chunk, examples) in examples.chunks(64).enumerate() {
                let logits = to_host(&unembed(model, &x.narrow(0, chunk * 64, examples.len())?)?)?;
                for (&example, logits) in
                    examples.iter().zip(logits.chunks_exact(model.spec.d_vocab))
                {
                    value(example, logits)?;
                }
            }
        }
    }
    Ok(values)
}

/// The tap of one wave.
struct SweepTap<'a> {
    base: &'a BaseRun,
    n_layers: usize,
    planned: HashMap<usize, &'a Planned>,
    joins: HashMap<(usize, Stage), Rows>,
    starts_at_embedding: Option<Rows>,
    starts_at_end: Option<Rows>,
    edits: HashMap<Hook, HashMap<usize, Vec<Resolved>>>,
    /// Edits of each variant that have not met a row yet.
    waiting: HashMap<usize, Vec<bool>>,
}

impl<'a> SweepTap<'a> {
    fn new(
        model: &Model,
        base: &'a BaseRun,
        variants: &[Variant],
        wave: &'a [Planned],
        sources: &Sources,
    ) -> Result<Self> {
        let n_layers = model.spec.n_layers;
        let answer = base.length as u32 - 1;
        let mut tap = SweepTap {
            base,
            n_layers,
            planned: wave.iter().map(|one| (one.variant, one)).collect(),
            joins: HashMap::new(),
            starts_at_embedding: None,
            starts_at_end: None,
            edits: HashMap::new(),
            waiting: HashMap::new(),
        };
        for one in wave {
            let rows = match one.start {
                Start::Embed => tap
                    .starts_at_embedding
                    .get_or_insert_with(|| Rows::new(base.length)),
                Start::Final => tap
                    .starts_at_end
                    .get_or_insert_with(|| Rows::new(base.length)),
                Start::Block(layer, stage) => tap
                    .joins
                    .entry((layer, stage))
                    .or_insert_with(|| Rows::new(base.length)),
            };
            rows.push(
                one.variant,
                one.example,
                one.joining_rows(answer, n_layers - 1),
            );
            let edits = &variants[one.variant].edits;
            // The base run's own edits are in the values that a variant starts from, unless it starts before them.
            let again = base
                .edits
                .iter()
                .filter(|edit| start_of(edit.site.hook) >= one.start);
            for edit in again {
                tap.add(
                    resolve(model, base, one.example, edit, usize::MAX, &base.sources)?,
                    one.variant,
                );
            }
            for (index, edit) in edits.iter().enumerate() {
                tap.add(
                    resolve(model, base, one.example, edit, index, sources)?,
                    one.variant,
                );
            }
            tap.waiting.insert(one.variant, vec![true; edits.len()]);
        }
        Ok(tap)
    }

    fn add(&mut self, edit: Resolved, variant: usize) {
        self.edits
            .entry(edit.hook)
            .or_default()
            .entry(variant)
            .or_default()
            .push(edit);
    }

    /// Every edit must have met a row, but for those of the last layer that stand beside the answer and so cannot matter.
    fn check_fired(&self, variants: &[Variant]) -> Result<()> {
        for (&variant, waiting) in &self.waiting {
            for (edit, _) in variants[variant]
                .edits
                .iter()
                .zip(waiting)
                .filter(|(_, waiting)| **waiting)
            {
                let at_the_end = match start_of(edit.site.hook) {
                    Start::Block(layer, stage) => layer + 1 == self.n_layers && stage >= Stage::Qkv,
                    Start::Final => true,
                    Start::Embed => false,
                };
                if !at_the_end {
                    let reason = "no row of the sweep passed it".into();
                    return Err(Error::Unfired {
                        what: edit.to_string(),
                        reason,
                    });
                }
            }
        }
        Ok(())
    }
}

impl Tap for SweepTap<'_> {
    fn wants(&self, hook: Hook) -> bool {
        self.edits.contains_key(&hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let Some(edits) = self.edits.get(&hook) else {
            return Ok(t);
        };
        let waiting = &mut self.waiting;
        let fired = |variant: usize, index: usize| {
            if let Some(waiting) = waiting
                .get_mut(&variant)
                .and_then(|waiting| waiting.get_mut(index))
            {
                *waiting = false;
            }
        };
        let t = apply::apply(
            t,
            rows,
            |variant| edits.get(&variant).map_or(&[], Vec::as_slice),
            fired,
        )?;
        if hook.kind == Kind::AttnScores {
            apply::check_scores(&t, rows, hook)?;
        }
        Ok(t)
    }

    fn joining(&mut self, stage: Stage, layer: usize) -> Option<Rows> {
        self.joins.remove(&(layer, stage))
    }

    fn base(&self, hook: Hook) -> Result<&Tensor> {
        // A block's output is the next one's input, and is kept once.
        match (hook.kind, hook.layer) {
            (Kind::ResidPost, Some(layer)) if !self.base.cache.contains(hook) => {
                self.base.cache.packed(Hook::at(Kind::ResidPre, layer + 1))
            }
            _ => self.base.cache.packed(hook),
        }
    }

    fn attended(&mut self, layer: usize, rows: &Rows) -> Option<Rows> {
        let length = rows.length as u32;
        let mut out = Rows::new(rows.length);
        for segment in &rows.segments {
            let planned = self.planned[&segment.variant];
            let stays = planned.start == Start::Block(layer, Stage::Qkv) && !planned.spreads;
            let positions = if layer + 1 == self.n_layers {
                vec![length - 1]
            } else if stays {
                segment.positions.clone()
            } else {
                (planned.first()..length).collect()
            };
            out.push(segment.variant, segment.example, positions);
        }
        (out != *rows).then_some(out)
    }

    fn base_keys(&self, layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        let k = self.base.cache.packed(Hook::at(Kind::RotK, layer))?;
        let v = self.base.cache.packed(Hook::at(Kind::V, layer))?;
        Ok(Some((k, v)))
    }
}
