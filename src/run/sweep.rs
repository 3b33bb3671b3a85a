//! Many variants of a base run in few passes over the weights.
//!
//! A patch at layer l and position p cannot change anything before l, nor (attention is causal) any position before p; in an
//! encoder it changes every position from the next attention on. So each variant *starts* at the
//! first place that it changes and carries only the rows that can differ from the base run: the edited positions until the next
//! attention, every later position from then on, and in the last layer the answer position alone. The rows of all variants of a
//! wave are packed into one matrix and walk the layers together; keys, values and streams of everything else come from the
//! base run. A variant that would put back what is there already, or whose change cannot reach the answer, is not run at all:
//! its value is the base run's.
//!
//! The answer position is the last one of each prompt.
//!
//! The exact effect of restoring the clean stream at each layer and position of a corrupted prompt:
//!
//! ```
//! use candlewick::hooks::{Edit, Hook, Kind, Op, Site};
//! use candlewick::metric::{Metric, Target};
//! use candlewick::run::{
//!     BaseRun, Quiet, Readout, Source, Sources, SweepOptions, Variant, run_with_cache, sweep,
//! };
//!
//! # use candlewick::model::{Model, spec::*};
//! # let spec = ModelSpec {
//! #     family: "tiny".into(), n_layers: 2, n_heads: 2, n_kv_heads: 1, d_model: 8, d_head: 4, d_mlp: 12, d_vocab: 20,
//! #     n_ctx: 16, norm: NormKind::Rms, norm_eps: 1e-5, norm_placement: NormPlacement::Pre, block: Block::Sequential,
//! #     position: Position::Learned, attn_scale: vec![0.5; 2], attn_softcap: None, windows: vec![None; 2],
//! #     qk_norm: QkNorm::None, mlp: Mlp::Gated, activation: Activation::Silu, embed_norm: false, embed_scale: None,
//! #     residual_multiplier: None, logit_scale: None, final_softcap: None, tied: false, encoder: None,
//! # };
//! # let model = Model::random(spec, 1)?;
//! let (clean, corrupted) = (vec![3, 14, 15, 9], vec![3, 7, 15, 9]);
//! let streams: Vec<Hook> = (0..2).map(|layer| Hook::at(Kind::ResidPre, layer)).collect();
//! let (_, cache) = run_with_cache(&model, &[clean], &streams)?;
//! let sources = Sources::default().with("clean", Source::run(cache)?);
//! let starts = [Kind::ResidPre];
//! let base = BaseRun::new(&model, vec![corrupted], vec![], vec![], Sources::default(), &starts)?;
//!
//! let mut variants = Vec::new();
//! for &stream in &streams {
//!     for pos in 0..4 {
//!         let edit = Edit::new(Site::all(stream).at(pos), Op::FromRun("clean".into()));
//!         variants.push(Variant { example: 0, edits: vec![edit] });
//!     }
//! }
//! let readout = Readout {
//!     metric: Metric::LogitDiff,
//!     targets: vec![Target { answers: vec![2], wrong: vec![6] }],
//!     reference: None,
//! };
//! let options = SweepOptions::default();
//! let values = sweep(&model, &base, &variants, &sources, &readout, &options, &Quiet)?;
//!
//! // The prompts differ at position 1 alone, so at layer 0 nothing happens elsewhere.
//! let corrupted = base.metric(&model, &readout)?[0];
//! assert_eq!(values[0], corrupted);
//! assert_ne!(values[1], corrupted);
//! assert_eq!(values[2..4], [corrupted; 2]);
//! # Ok::<(), candlewick::Error>(())
//! ```

use std::collections::HashMap;

use candle_core::Tensor;

use super::apply::{self, Resolved};
use super::forward::{self, Stage, Stream, Tap, block, final_norm};
use super::rows::{Rows, pick, regather};
use super::{BaseRun, Progress, Sources};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln, Op};
use crate::metric::{Judgement, Metric, Reads, Target};
use crate::model::Model;
use crate::nn::embed::{unembed, unembed_columns};
use crate::nn::host::to_host;
use crate::nn::rope;
use crate::spec::{Block, ModelSpec};

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
    /// Variants that cannot change the answer, by their positions; more may turn out to put back what is there.
    pub without_effect: usize,
    /// Rows times layers that will be computed.
    pub row_layers: u64,
    /// The same in whole forward passes of one prompt.
    pub forwards: f64,
    /// Bytes of the largest wave.
    pub wave_bytes: usize,
}

/// Where a variant joins the walk. The order is that of the forward pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum JoinPoint {
    Embed,
    Block(usize, Stage),
    Final,
}

fn start_of(hook: Hook) -> JoinPoint {
    match (Stage::of(hook.kind), hook.layer) {
        (Some(stage), Some(layer)) => JoinPoint::Block(layer, stage),
        _ if matches!(hook.kind, Kind::Embed | Kind::PosEmbed) => JoinPoint::Embed,
        _ => JoinPoint::Final,
    }
}

/// With which others a variant may share a wave. A reader's input that is edited gives every query head of the wave a stream,
/// key and value of its own, which the hooks of `ln1`, k and v do not see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Company {
    /// Edits no reader's input.
    Shared,
    /// Edits readers' inputs, and nothing that this would hide from another variant.
    Split,
    Alone,
}

impl Company {
    fn of(edits: &[Edit]) -> Self {
        let any = |of: fn(Kind) -> bool| edits.iter().any(|edit| of(edit.site.hook.kind));
        let splits = any(|kind| matches!(kind, Kind::QInput | Kind::KInput | Kind::VInput));
        let hidden = any(|kind| {
            matches!(
                kind,
                Kind::Scale(Ln::One) | Kind::Normalized(Ln::One) | Kind::K | Kind::V | Kind::RotK
            )
        });
        match (splits, hidden) {
            (false, _) => Company::Shared,
            (true, false) => Company::Split,
            (true, true) => Company::Alone,
        }
    }
}

/// Whether an edit can let a query see keys that stand after it.
fn may_look_ahead(edit: &Edit) -> bool {
    match edit.site.hook.kind {
        Kind::AttnScores => edit.op != Op::Block,
        Kind::Pattern => !matches!(edit.op, Op::Zero | Op::Scale(_)),
        _ => false,
    }
}

/// A variant, placed.
#[derive(Debug, Clone)]
struct Planned {
    variant: usize,
    example: usize,
    start: JoinPoint,
    company: Company,
    /// The positions that it carries from the start, ascending: those that its edits change.
    positions: Vec<u32>,
    /// For each edit, whether it would only put back what the base run has.
    silent: Vec<bool>,
    /// The positions that it carries to the end of the last layer, ascending: the answer, and what closures there want to see.
    ends: Vec<u32>,
    /// Whether attention of the layer where it starts carries the change to later positions.
    spreads: bool,
}

impl Planned {
    /// `changed`: for each edit the positions at which it changes something.
    fn new(
        variant: usize,
        edits: &Variant,
        changed: &[Vec<u32>],
        base: &BaseRun,
        spec: &ModelSpec,
    ) -> Result<Self> {
        let last_layer = spec.n_layers - 1;
        let none = super::Roles::new();
        let roles = base.roles.get(edits.example).unwrap_or(&none);
        let of_edit = |edit: &Edit| -> Result<Vec<u32>> {
            let positions = edit.site.positions.resolve(base.length, roles)?;
            Ok(positions.into_iter().map(|pos| pos as u32).collect())
        };
        // What an edit would put back needs no walk to it.
        let speaking = || {
            let edits = edits.edits.iter().zip(changed);
            edits
                .filter(|(_, changed)| !changed.is_empty())
                .map(|(edit, _)| edit)
        };
        let start = speaking().map(|edit| start_of(edit.site.hook)).min();
        let start =
            start.ok_or_else(|| Error::invalid("a variant without edits is the base run"))?;
        let is_closure = |edit: &&Edit| matches!(edit.op, Op::Closure(_));
        let again = base
            .edits
            .iter()
            .filter(|edit| start_of(edit.site.hook) >= start);
        let mut positions = Vec::new();
        positions.extend(changed.iter().flatten());
        for edit in again.clone().filter(is_closure) {
            positions.extend(of_edit(edit)?);
        }
        if !spec.is_causal() || base.edits.iter().any(may_look_ahead) {
            // Then a change reaches positions that stand before it.
            positions.push(0);
        }
        let mut ends = vec![base.length as u32 - 1];
        let at_the_end =
            |edit: &&Edit| start_of(edit.site.hook) >= JoinPoint::Block(last_layer, Stage::Qkv);
        for edit in edits
            .edits
            .iter()
            .chain(again)
            .filter(is_closure)
            .filter(at_the_end)
        {
            ends.extend(of_edit(edit)?);
        }
        for list in [&mut positions, &mut ends] {
            list.sort_unstable();
            list.dedup();
        }
        let by_query = |kind: Kind| {
            matches!(
                kind,
                Kind::Q | Kind::RotQ | Kind::AttnScores | Kind::Pattern
            )
        };
        let spreads = speaking()
            .any(|edit| start_of(edit.site.hook) == start && !by_query(edit.site.hook.kind));
        Ok(Planned {
            variant,
            example: edits.example,
            start,
            company: Company::of(&edits.edits),
            positions,
            silent: changed.iter().map(Vec::is_empty).collect(),
            ends,
            spreads,
        })
    }

    fn first(&self) -> u32 {
        self.positions.first().copied().unwrap_or(u32::MAX)
    }

    /// Whether the change can reach the answer at all.
    fn reaches(&self, answer: u32, last_layer: usize) -> bool {
        let only_itself = match self.start {
            JoinPoint::Embed => false,
            JoinPoint::Final => true,
            JoinPoint::Block(layer, stage) => {
                layer == last_layer
                    && (stage > Stage::Qkv || (stage == Stage::Qkv && !self.spreads))
            }
        };
        if only_itself {
            self.positions.contains(&answer)
        } else {
            self.first() <= answer
        }
    }

    /// Rows that it joins with.
    fn joining_rows(&self, last_layer: usize) -> Vec<u32> {
        let at_the_end = match self.start {
            JoinPoint::Final => true,
            JoinPoint::Embed => false,
            JoinPoint::Block(layer, stage) => layer == last_layer && stage > Stage::Qkv,
        };
        if at_the_end {
            self.ends.clone()
        } else {
            self.positions.clone()
        }
    }

    /// Rows times layers that it will walk, roughly: a layer costs a row as much wherever in the layer it joins.
    fn cost(&self, length: usize, n_layers: usize) -> u64 {
        let layer = match self.start {
            JoinPoint::Embed => 0,
            JoinPoint::Final => return 0,
            JoinPoint::Block(layer, _) => layer,
        };
        let later = (n_layers - layer).saturating_sub(2) as u64;
        self.positions.len() as u64
            + later * (length as u64).saturating_sub(u64::from(self.first()))
            + 1
    }
}

/// What a sweep of these variants will cost, if no edit changes anything at the first `unchanged` positions: where two causal runs
/// read the same tokens up to there they have the same values.
/// # Errors
/// Those of resolving positions.
pub fn plan(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    unchanged: usize,
    options: &SweepOptions,
) -> Result<Plan> {
    let (answer, last) = (base.length as u32 - 1, model.spec.n_layers - 1);
    let mut plan = Plan {
        variants: variants.len(),
        ..Plan::default()
    };
    for (index, variant) in variants.iter().enumerate() {
        let none = super::Roles::new();
        let roles = base.roles.get(variant.example).unwrap_or(&none);
        let changed = |edit: &Edit| -> Result<Vec<u32>> {
            let positions = edit.site.positions.resolve(base.length, roles)?;
            // In an encoder a token changes what stands before it.
            let unchanged = if model.spec.is_causal() { unchanged } else { 0 };
            let later = positions.into_iter().filter(|&pos| pos >= unchanged);
            Ok(later.map(|pos| pos as u32).collect())
        };
        let changed = variant
            .edits
            .iter()
            .map(changed)
            .collect::<Result<Vec<_>>>()?;
        if changed.iter().all(Vec::is_empty) {
            plan.without_effect += 1;
            continue;
        }
        let planned = Planned::new(index, variant, &changed, base, &model.spec)?;
        if planned.reaches(answer, last) {
            plan.row_layers += planned.cost(base.length, model.spec.n_layers)
        } else {
            plan.without_effect += 1
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
    /// # Errors
    /// [`Error::NotFiniteLogits`], and what the metric refuses.
    pub fn metric(&self, model: &Model, readout: &Readout) -> Result<Vec<f64>> {
        check_variants(model, self, &[], readout)?;
        let examples: Vec<usize> = (0..self.prompts.len()).collect();
        read(model, &self.answer, &examples, readout)
    }

    /// How the model does on each prompt.
    /// # Errors
    /// Those of the tensor product.
    pub fn judge(&self, model: &Model, targets: &[Target]) -> Result<Vec<Judgement>> {
        let logits = self.logits(model)?;
        Ok(targets
            .iter()
            .zip(&logits)
            .map(|(target, logits)| target.judge(logits))
            .collect())
    }

    /// The logits at the answer of each prompt, for metrics that compare with a reference.
    /// # Shapes
    /// `[prompts, d_vocab]`
    /// # Errors
    /// Those of the tensor product.
    pub fn logits(&self, model: &Model) -> Result<Vec<Vec<f32>>> {
        Ok(unembed(&model.spec, &model.weights, &self.answer)?.to_vec2()?)
    }
}

/// Checks what neither twin can run.
pub(crate) fn check_variants(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    readout: &Readout,
) -> Result<()> {
    let prompts = base.prompts.len();
    let references = readout.reference.as_ref().map_or(prompts, Vec::len);
    if readout.targets.len() != prompts || references != prompts {
        return Err(Error::invalid(format!(
            "the base run has {prompts} prompts, but the readout has {} targets and {references} references; give one of each \
             for every prompt",
            readout.targets.len()
        )));
    }
    let vocab = model.spec.d_vocab;
    let mut tokens = readout.targets.iter().flat_map(Target::columns);
    if let Some(token) = tokens.find(|&token| token as usize >= vocab) {
        return Err(Error::OutOfRange {
            hook: "the vocabulary".into(),
            what: "token",
            value: token.to_string(),
            limit: format!("{vocab} tokens"),
        });
    }
    for (index, variant) in variants.iter().enumerate() {
        if variant.example >= prompts {
            return Err(Error::invalid(format!(
                "variant {index} is of prompt {}, but the base run has {prompts} prompts, counted from 0",
                variant.example
            )));
        }
    }
    Ok(())
}

/// The metric of every variant, in their order. Each variant's edits are made after those of the base run. A closure is given
/// all the positions of its site.
/// # Errors
/// Bad edits, variants and readouts before anything runs; [`Error::Unfired`] if the base run did not keep what a variant starts
/// from (name the hook's kind in [`BaseRun::new`]); [`Error::Interrupted`] if `progress` says so; [`Error::NotFiniteLogits`].
pub fn sweep(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    sources: &Sources,
    readout: &Readout,
    options: &SweepOptions,
    progress: &dyn Progress,
) -> Result<Vec<f64>> {
    let (values, _) = sweep_with_capture(
        model,
        base,
        variants,
        sources,
        readout,
        &[],
        options,
        progress,
    )?;
    Ok(values)
}

/// What the variants of a sweep had at some hooks, where that may differ from the base run.
#[derive(Debug, Default)]
pub struct Captured {
    rows: HashMap<(usize, Hook), (Vec<u32>, Tensor)>,
}

impl Captured {
    /// The rows that a variant carried past a hook; `None` where it carried none, so that everything is as in the base run.
    /// Positions that can no longer matter to the answer are not carried through the last layer.
    /// # Shapes
    /// Ascending positions, and `[positions, ..]`, the axes after position as [`Hook::shape`] says.
    pub fn get(&self, variant: usize, hook: Hook) -> Option<(&[u32], &Tensor)> {
        let (positions, t) = self.rows.get(&(variant, hook))?;
        Some((positions, t))
    }
}

/// [`sweep`], and what each variant had at `hooks`, after its edits. Everything captured is kept: ask for few hooks of few
/// variants at a time.
/// # Errors
/// Those of [`sweep`]; a hook that this model does not have.
#[allow(clippy::too_many_arguments)]
pub fn sweep_with_capture(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    sources: &Sources,
    readout: &Readout,
    hooks: &[Hook],
    options: &SweepOptions,
    progress: &dyn Progress,
) -> Result<(Vec<f64>, Captured)> {
    check_variants(model, base, variants, readout)?;
    hooks.iter().try_for_each(|hook| hook.check(&model.spec))?;
    let mut captured = Captured::default();
    let unchanged = base.metric(model, readout)?;
    let mut values: Vec<f64> = variants
        .iter()
        .map(|variant| unchanged[variant.example])
        .collect();
    let (answer, last_layer) = (base.length as u32 - 1, model.spec.n_layers - 1);
    let mut planned = Vec::new();
    for (index, variant) in variants.iter().enumerate() {
        let edits = resolve(model, base, variant.example, &variant.edits, sources)?;
        let changed = changed(base, variant.example, &edits)?;
        if !variant.edits.is_empty() && changed.iter().all(Vec::is_empty) {
            continue;
        }
        let one = Planned::new(index, variant, &changed, base, &model.spec)?;
        if one.reaches(answer, last_layer) {
            planned.push(one);
        }
    }
    progress.advance((variants.len() - planned.len()) as u64);
    // Waves of variants that start near each other: every layer then has nearly as many rows as the wave may have.
    planned.sort_by_key(|one| (one.company, one.start, one.variant));
    let limit = rows_of_a_wave(model, base.length, options);
    let ropes = rope::Tables::new(&model.spec, base.length);
    let mut rest = planned.as_slice();
    while !rest.is_empty() {
        let mut rows = 0;
        let company = rest[0].company;
        let fits = |one: &&Planned| {
            rows += one
                .positions
                .len()
                .max(base.length.saturating_sub(one.first() as usize));
            rows <= limit && one.company == company && company != Company::Alone
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (wave, later) = rest.split_at(count);
        let mut tap = SweepTap::new(model, base, variants, wave, sources)?;
        tap.capturing = hooks;
        for (variant, value) in run_wave(
            model, base, variants, wave, &mut tap, readout, &ropes, progress,
        )? {
            values[variant] = value;
        }
        captured.rows.extend(tap.captured);
        progress.advance(wave.len() as u64);
        rest = later;
    }
    Ok((values, captured))
}

/// For each edit, the positions at which it would not put back, bit for bit, what the base run has.
fn changed(base: &BaseRun, example: usize, edits: &[Resolved]) -> Result<Vec<Vec<u32>>> {
    let of_edit = |edit: &Resolved| {
        let hook = match edit.hook.kind {
            // What the readers see is the stream, unless the base run gives them something else.
            Kind::QInput | Kind::KInput | Kind::VInput
                if base.edits.iter().all(|own| own.site.hook != edit.hook) =>
            {
                Hook {
                    kind: Kind::ResidPre,
                    ..edit.hook
                }
            }
            _ => edit.hook,
        };
        match base.cache.packed(hook) {
            Ok(own) if crate::nn::host::is_host(own) => {
                edit.changed(&own.contiguous()?, example, base.length)
            }
            _ => Ok(edit.positions.clone()),
        }
    };
    edits.iter().map(of_edit).collect()
}

/// The edits of one prompt, numbered in their order.
fn resolve(
    model: &Model,
    base: &BaseRun,
    example: usize,
    edits: &[Edit],
    sources: &Sources,
) -> Result<Vec<Resolved>> {
    let none = super::Roles::new();
    let roles = base.roles.get(example).unwrap_or(&none);
    let resolve_edit = |(index, edit)| {
        apply::resolve(
            edit,
            index,
            &model.spec,
            base.length,
            roles,
            sources,
            example,
        )
    };
    edits.iter().enumerate().map(resolve_edit).collect()
}

#[allow(clippy::too_many_arguments)]
fn run_wave(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    wave: &[Planned],
    tap: &mut SweepTap<'_>,
    readout: &Readout,
    ropes: &rope::Tables,
    progress: &dyn Progress,
) -> Result<Vec<(usize, f64)>> {
    let n_layers = model.spec.n_layers;
    let mut stream = Stream::empty(base.length);
    if let Some(rows) = tap.starts_at_embedding.take() {
        let tokens: Vec<u32> = rows
            .in_whole()
            .iter()
            .map(|&row| base.prompts[row as usize / base.length][row as usize % base.length])
            .collect();
        let x = forward::embed(model, &tokens, &rows, tap)?;
        stream = Stream { rows, x: Some(x) };
    }
    let first = match wave.first().map(|one| one.start) {
        Some(JoinPoint::Block(layer, _)) => layer,
        Some(JoinPoint::Final) => n_layers,
        _ => 0,
    };
    for layer in first..n_layers {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing of the batch in flight is kept".into(),
            });
        }
        stream = block(model, layer, ropes, stream, tap)?;
    }
    // Those that only change the final norm join at last.
    let Stream { mut rows, mut x } = stream;
    if let Some(new) = tap.starts_at_end.take() {
        let joined = pick(tap.base(Hook::at(Kind::ResidPost, n_layers - 1))?, &new)?;
        rows.append(new);
        x = Some(match x {
            Some(x) => Tensor::cat(&[&x, &joined], 0)?,
            None => joined,
        });
    }
    let x = x.ok_or_else(|| Error::invalid("a wave without rows"))?;
    let mut x = final_norm(model, &x, &rows, tap)?;
    tap.check_fired(variants)?;
    let answers = rows.last_of_each();
    if answers.total != rows.total {
        x = regather(&x, &rows, &answers, None)?;
    }
    let examples: Vec<usize> = answers
        .segments
        .iter()
        .map(|segment| segment.example)
        .collect();
    let values = read(model, &x, &examples, readout)?;
    Ok(answers
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
            for (&example, logits) in
                examples
                    .iter()
                    .zip(unembed_columns(&model.spec, &model.weights, x, &columns)?)
            {
                value(example, &logits)?;
            }
        }
        Reads::Vocabulary => {
            // A few rows at a time: the vocabulary is wide.
            for (chunk, examples) in examples.chunks(64).enumerate() {
                let logits = to_host(&unembed(
                    &model.spec,
                    &model.weights,
                    &x.narrow(0, chunk * 64, examples.len())?,
                )?)?;
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

/// Whether a variant makes an edit of the base run again: one that the values that it starts from do not have in them yet.
fn is_made_again(hook: Hook, start: JoinPoint, block: Block) -> bool {
    match start {
        JoinPoint::Block(layer, stage) if hook.layer == Some(layer) => {
            start_of(hook) >= start && !stage.takes(block).contains(&hook.kind)
        }
        _ => start_of(hook) >= start,
    }
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
    capturing: &'a [Hook],
    captured: HashMap<(usize, Hook), (Vec<u32>, Tensor)>,
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
        let mut tap = SweepTap {
            base,
            n_layers,
            planned: wave.iter().map(|one| (one.variant, one)).collect(),
            joins: HashMap::new(),
            starts_at_embedding: None,
            starts_at_end: None,
            edits: HashMap::new(),
            waiting: HashMap::new(),
            capturing: &[],
            captured: HashMap::new(),
        };
        for one in wave {
            let rows = match one.start {
                JoinPoint::Embed => tap
                    .starts_at_embedding
                    .get_or_insert_with(|| Rows::new(base.length)),
                JoinPoint::Final => tap
                    .starts_at_end
                    .get_or_insert_with(|| Rows::new(base.length)),
                JoinPoint::Block(layer, stage) => tap
                    .joins
                    .entry((layer, stage))
                    .or_insert_with(|| Rows::new(base.length)),
            };
            rows.push(one.variant, one.example, one.joining_rows(n_layers - 1));
            let own = resolve(model, base, one.example, &base.edits, &base.sources)?;
            let again = own
                .into_iter()
                .filter(|edit| is_made_again(edit.hook, one.start, model.spec.block));
            let edits = &variants[one.variant].edits;
            let new = resolve(model, base, one.example, edits, sources)?;
            for edit in again.map(Resolved::uncounted).chain(new) {
                let of_variant = tap.edits.entry(edit.hook).or_default();
                of_variant.entry(one.variant).or_default().push(edit);
            }
            let waiting = one.silent.iter().map(|silent| !silent).collect();
            tap.waiting.insert(one.variant, waiting);
        }
        Ok(tap)
    }

    fn capture(&mut self, hook: Hook, t: &Tensor, rows: &Rows) -> Result<()> {
        if !self.capturing.contains(&hook) {
            return Ok(());
        }
        for segment in rows.segments.iter() {
            let (start, len) = (segment.start, segment.positions.len());
            if len > 0 {
                // A copy: a view would keep the rows of the whole wave.
                let own = t.narrow(0, start, len)?.force_contiguous()?;
                let key = (segment.variant, hook);
                self.captured.insert(key, (segment.positions.clone(), own));
            }
        }
        Ok(())
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
                    JoinPoint::Block(layer, stage) => {
                        layer + 1 == self.n_layers && stage >= Stage::Qkv
                    }
                    JoinPoint::Final => true,
                    JoinPoint::Embed => false,
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
        self.edits(hook) || self.capturing.contains(&hook)
    }

    fn edits(&self, hook: Hook) -> bool {
        self.edits.contains_key(&hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let Some(edits) = self.edits.get(&hook) else {
            self.capture(hook, &t, rows)?;
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
        self.capture(hook, &t, rows)?;
        Ok(t)
    }

    fn joining(&mut self, stage: Stage, layer: usize) -> Option<Rows> {
        self.joins.remove(&(layer, stage))
    }

    fn base(&self, hook: Hook) -> Result<&Tensor> {
        self.base.cache.packed(hook)
    }

    fn attended(&mut self, layer: usize, rows: &Rows) -> Option<Rows> {
        let length = rows.length as u32;
        let is_last = layer + 1 == self.n_layers;
        let mut out = Rows::new(rows.length);
        for segment in &rows.segments {
            let planned = self.planned[&segment.variant];
            let stays = planned.start == JoinPoint::Block(layer, Stage::Qkv) && !planned.spreads;
            let positions = if is_last {
                planned.ends.clone()
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
