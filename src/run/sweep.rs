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
//! Where an answer is read, its [`Target`] says: at the last position, or before it; an answer of several tokens at as many positions.
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
//! #     qk_norm: QkNorm::None, qkv_clip: None, mlp: Mlp::Gated, activation: Activation::Silu, embed_norm: false, embed_scale: None,
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
//!     targets: vec![Target { answers: vec![2], wrong: vec![6], ..Target::default() }],
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

mod placed;
mod readout;
mod tap;

use std::collections::HashMap;

use candle_core::Tensor;

use placed::{JoinPoint, Planned, WaveGroup};
pub use readout::{Readout, Variant};
pub(crate) use readout::{check_variants, read};
use tap::{SweepTap, resolve};

use super::apply::Resolved;
use super::forward::{self, Stream, Tap, block, final_norm};
use super::rows::{pick, regather};
use super::{BaseRun, Progress, Sources};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind};
use crate::metric::Target;
use crate::model::Model;
use crate::nn::rope;

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

/// Bytes of memory that are free now: on this machine, and in what a container or a scheduler lets this process have of it.
pub fn available_memory() -> usize {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map(|limits| limits.free_memory);
    let free = [Some(system.available_memory()), group, allocated_memory()];
    let least = free.into_iter().flatten().filter(|&bytes| bytes > 0).min();
    // Where the system does not say, assume little.
    least
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(1 << 30)
}

/// What Slurm gives the job that this process is part of, less what the process has already.
fn allocated_memory() -> Option<u64> {
    let number = |name: &str| std::env::var(name).ok()?.trim().parse::<u64>().ok();
    let megabytes = number("SLURM_MEM_PER_NODE").or_else(|| {
        Some(number("SLURM_MEM_PER_CPU")? * number("SLURM_CPUS_ON_NODE").unwrap_or(1))
    })?;
    let status = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = (status.split_whitespace().nth(1))
        .and_then(|pages| pages.parse().ok())
        .unwrap_or(0);
    Some((megabytes << 20).saturating_sub(pages << 12).max(1))
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

/// What a sweep of these variants will cost, if no edit changes anything at the first `unchanged` positions: where two causal runs
/// read the same tokens up to there they have the same values. `targets`: one for each prompt of the base run.
/// # Errors
/// Those of resolving positions.
pub fn plan(
    model: &Model,
    base: &BaseRun,
    variants: &[Variant],
    targets: &[Target],
    unchanged: usize,
    options: &SweepOptions,
) -> Result<Plan> {
    let last = model.spec.n_layers - 1;
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
        let answers = targets[variant.example].positions(base.length);
        let planned = Planned::new(index, variant, &changed, base, answers, &model.spec)?;
        if planned.reaches(last) {
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
    let last_layer = model.spec.n_layers - 1;
    let mut planned = Vec::new();
    for (index, variant) in variants.iter().enumerate() {
        let edits = resolve(model, base, variant.example, &variant.edits, sources)?;
        let changed = changed(base, variant.example, &edits)?;
        if !variant.edits.is_empty() && changed.iter().all(Vec::is_empty) {
            continue;
        }
        let answers = readout.targets[variant.example].positions(base.length);
        let one = Planned::new(index, variant, &changed, base, answers, &model.spec)?;
        if one.reaches(last_layer) {
            planned.push(one);
        }
    }
    progress.advance((variants.len() - planned.len()) as u64);
    // Waves of variants that start near each other: every layer then has nearly as many rows as the wave may have.
    planned.sort_by_key(|one| (one.group, one.start, one.variant));
    let limit = rows_of_a_wave(model, base.length, options);
    let ropes = rope::Tables::new(&model.spec, base.length);
    let mut rest = planned.as_slice();
    while !rest.is_empty() {
        let mut rows = 0;
        let group = rest[0].group;
        let fits = |one: &&Planned| {
            rows += one
                .positions
                .len()
                .max(base.length.saturating_sub(one.first() as usize));
            rows <= limit && one.group == group && group != WaveGroup::Alone
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
    let answers = rows.answers(&readout.targets);
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
