//! The engine: a model, prompts, edits and captures in; logits, activations and metrics out.
//!
//! [`run`] is one whole forward pass. [`BaseRun`] keeps what resumed runs need, and [`sweep`] runs many variants of it, each
//! from the first place that its edits change. [`sweep_plain`] is the slow twin that the tests hold it against.
//!
//! A run in which a head is silenced, and the attention of another is looked at:
//!
//! ```
//! use candlewick::hooks::{Edit, Hook};
//! use candlewick::run::{Request, run};
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
//! let edits: Vec<Edit> = vec!["z0[head=1] = zero".parse()?];
//! let pattern: Hook = "pattern1".parse()?;
//! let request = Request {
//!     edits: &edits,
//!     capture: &[pattern],
//!     ..Request::default()
//! };
//! let run = run(&model, &[vec![3, 14, 15, 9]], &request)?;
//! assert_eq!(run.logits.expect("the default is the last position").dims(), [1, 20]);
//! assert_eq!(run.cache.get(pattern)?.dims(), [1, 2, 4, 4]); // [batch, n_heads, query, key]
//! # Ok::<(), candlewick::Error>(())
//! ```

pub(crate) mod apply;
pub(crate) mod backward;
mod base;
mod cache;
pub(crate) mod forward;
mod generate;
pub(crate) mod gradients;
mod pine;
mod plain;
pub mod progress;
pub(crate) mod rows;
mod sweep;
pub(crate) mod tape;

use std::collections::{HashMap, HashSet};

use candle_core::Tensor;

pub use apply::Roles;
pub use base::BaseRun;
pub use cache::{Cache, MeanOf, Source, Sources};
pub use forward::Stage;
pub use generate::{
    Counterfactual, GenerateRequest, Generation, Sampling, check_room, counterfactuals, generate,
    generate_plain,
};
pub use gradients::{GradientRequest, Gradients, gradients};
pub use pine::{Segments, check_pine, pine_greedy, pine_logits};
pub use plain::sweep_plain;
pub use progress::{Progress, Quiet};
pub(crate) use sweep::read as read_metric;
pub use sweep::{
    Captured, Plan, Readout, SweepOptions, Variant, available_memory, plan, sweep,
    sweep_with_capture,
};

use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln};
use crate::metric::Target;
use crate::model::Model;
use crate::nn::embed::unembed;
use crate::nn::rope;
use apply::Resolved;
use rows::Rows;

/// Which logits a run computes. The vocabulary product is often the dearest of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logits {
    None,
    /// At the last position of each prompt.
    #[default]
    Last,
    All,
}

/// What a run is asked for, besides its prompts.
#[derive(Debug, Clone, Default)]
pub struct Request<'a> {
    pub edits: &'a [Edit],
    /// Where edits find the values that they name.
    pub sources: Sources,
    pub capture: &'a [Hook],
    pub logits: Logits,
    /// Positions of each role, per prompt; empty if no edit names a role.
    pub roles: &'a [Roles],
}

/// What a run gives.
#[derive(Debug, Clone)]
pub struct Run {
    /// f32, `[batch, d_vocab]` (`Last`) or `[batch, pos, d_vocab]` (`All`).
    pub logits: Option<Tensor>,
    pub cache: Cache,
}

/// One forward pass over prompts of equal length, with edits and captures. At each hook the edits come first, in the order
/// given, then the capture. Nothing is padded.
/// # Shapes
/// `prompts [batch, pos]`, token ids; for the result see [`Run`] and [`Hook::shape`].
/// # Errors
/// Bad hooks, sites and edits before anything runs; [`Error::Unfired`] if an edit or a capture met nothing;
/// [`Error::NotFiniteLogits`] if the logits hold a NaN.
pub fn run(model: &Model, prompts: &[Vec<u32>], request: &Request<'_>) -> Result<Run> {
    let examples: Vec<usize> = (0..prompts.len()).collect();
    run_examples(model, prompts, &examples, request)
}

/// The logits at the last position of each prompt.
/// # Shapes
/// f32, `[batch, d_vocab]`.
/// # Errors
/// Those of [`run`].
pub fn logits(model: &Model, prompts: &[Vec<u32>]) -> Result<Tensor> {
    let run = run(model, prompts, &Request::default())?;
    Ok(run.logits.expect("asked for"))
}

/// The logits at the last position, and the activations of some hooks.
/// # Shapes
/// Logits f32, `[batch, d_vocab]`; activations as [`Hook::shape`] says.
/// # Errors
/// Those of [`run`].
pub fn run_with_cache(
    model: &Model,
    prompts: &[Vec<u32>],
    hooks: &[Hook],
) -> Result<(Tensor, Cache)> {
    let run = run(
        model,
        prompts,
        &Request {
            capture: hooks,
            ..Request::default()
        },
    )?;
    Ok((run.logits.expect("asked for"), run.cache))
}

/// The logits where the answer of each prompt is read, and the activations of some hooks.
/// # Shapes
/// `targets`: one for each prompt. For each prompt `[tokens of the answer][d_vocab]`; activations as [`Hook::shape`] says.
/// # Errors
/// Those of [`run`]; of a target that is read outside of its prompt.
pub(crate) fn run_to_answers(
    model: &Model,
    prompts: &[Vec<u32>],
    targets: &[Target],
    hooks: &[Hook],
) -> Result<(Vec<Vec<Vec<f32>>>, Cache)> {
    run_edited_to_answers(model, prompts, targets, hooks, &[])
}

/// [`run_to_answers`] with edits.
pub(crate) fn run_edited_to_answers(
    model: &Model,
    prompts: &[Vec<u32>],
    targets: &[Target],
    hooks: &[Hook],
    edits: &[Edit],
) -> Result<(Vec<Vec<Vec<f32>>>, Cache)> {
    let request = Request {
        edits,
        capture: hooks,
        ..Request::default()
    };
    if targets
        .iter()
        .all(|target| target.n_tokens() == 1 && target.after == 0)
    {
        let run = run(model, prompts, &request)?;
        let rows: Vec<Vec<f32>> = run.logits.expect("asked for").to_vec2()?;
        return Ok((rows.into_iter().map(|row| vec![row]).collect(), run.cache));
    }
    let request = Request {
        logits: Logits::All,
        ..request
    };
    let examples: Vec<usize> = (0..prompts.len()).collect();
    let (normed, cache) = walk(model, prompts, &examples, &request)?;
    let length = cache.length;
    targets
        .iter()
        .try_for_each(|target| target.check_length(length))?;
    let answers = Rows::whole_as(&examples, length).answers(targets);
    let answers = rows::pick(&normed.expect("asked for"), &answers)?;
    let logits = forward::as_logits(unembed(&model.spec, &model.weights, &answers)?)?;
    let mut rows = logits.to_vec2::<f32>()?.into_iter();
    let mut all = Vec::with_capacity(targets.len());
    for (index, target) in targets.iter().enumerate() {
        let own: Vec<Vec<f32>> = rows.by_ref().take(target.n_tokens()).collect();
        if own.iter().flatten().any(|logit| !logit.is_finite()) {
            let hook = "the answer position".into();
            return Err(Error::NotFiniteLogits { index, hook });
        }
        all.push(own);
    }
    Ok((all, cache))
}

/// [`run`], where prompt `i` is `examples[i]` for the sources.
pub(crate) fn run_examples(
    model: &Model,
    prompts: &[Vec<u32>],
    examples: &[usize],
    request: &Request<'_>,
) -> Result<Run> {
    let (normed, cache) = walk(model, prompts, examples, request)?;
    let Some(normed) = normed else {
        return Ok(Run {
            logits: None,
            cache,
        });
    };
    let mut logits = forward::as_logits(unembed(&model.spec, &model.weights, &normed)?)?;
    if request.logits == Logits::All {
        logits = logits.reshape((prompts.len(), (), model.spec.d_vocab))?; // [batch, pos, d_vocab]
    }
    check_finite(model, prompts, examples, request, &logits)?;
    Ok(Run {
        logits: Some(logits),
        cache,
    })
}

/// [`run_examples`] up to the unembedding: the stream after the final norm, of the positions whose logits are asked for, and
/// what was captured.
/// # Shapes
/// `[batch, d_model]` (`Last`) or `[batch * pos, d_model]` (`All`).
pub(crate) fn walk(
    model: &Model,
    prompts: &[Vec<u32>],
    examples: &[usize],
    request: &Request<'_>,
) -> Result<(Option<Tensor>, Cache)> {
    let length = check_prompts(model, prompts)?;
    request
        .capture
        .iter()
        .try_for_each(|hook| hook.check(&model.spec))?;
    let none = Roles::new();
    let mut edits: HashMap<Hook, Vec<Vec<Resolved>>> = HashMap::new();
    for (i, &example) in examples.iter().enumerate() {
        for (index, edit) in request.edits.iter().enumerate() {
            let roles = request.roles.get(i).unwrap_or(&none);
            let resolved = apply::resolve(
                edit,
                index,
                &model.spec,
                length,
                roles,
                &request.sources,
                example,
            )?;
            edits
                .entry(resolved.hook)
                .or_insert_with(|| vec![Vec::new(); prompts.len()])[i]
                .push(resolved);
        }
    }
    let mut tap = EditTap {
        last_layer: model.spec.n_layers.saturating_sub(1),
        last_only: request.logits != Logits::All,
        wanted: request.capture.iter().copied().collect(),
        fired: vec![false; request.edits.len()],
        cache: Cache::new(&model.spec, prompts.len(), length),
        edits,
    };
    // Whatever is read or edited after attention of the last layer needs every row to go on.
    let needs_every_row = tap
        .hooks()
        .any(|hook| after_last_attention(hook, tap.last_layer));
    tap.last_only &= !needs_every_row;
    let rows = Rows::whole_as(examples, length);
    let ropes = rope::Tables::new(&model.spec, length);
    let tokens: Vec<u32> = prompts.concat();
    let x = forward::embed(model, &tokens, &rows, &mut tap)?;
    let mut stream = forward::Stream { rows, x: Some(x) };
    for layer in 0..model.spec.n_layers {
        stream = forward::block(model, layer, &ropes, stream, &mut tap)?;
    }
    let normed = normed_rows(model, stream, request.logits, prompts.len(), &mut tap)?;
    Ok((normed, tap.finish(request)?))
}

pub(crate) fn check_prompts(model: &Model, prompts: &[Vec<u32>]) -> Result<usize> {
    let length = prompts.first().map_or(0, Vec::len);
    if length == 0 {
        return Err(Error::invalid(
            "a run needs at least one prompt of at least one token",
        ));
    }
    for (index, prompt) in prompts.iter().enumerate() {
        if prompt.len() != length {
            return Err(Error::LengthMismatch {
                index,
                clean: length,
                corrupted: prompt.len(),
            });
        }
        if prompt.len() > model.spec.n_ctx {
            return Err(Error::TooLong {
                index,
                tokens: prompt.len(),
                limit: model.spec.n_ctx,
            });
        }
        if let Some(token) = prompt
            .iter()
            .find(|&&token| token as usize >= model.spec.d_vocab)
        {
            return Err(Error::OutOfRange {
                hook: "the vocabulary".into(),
                what: "token",
                value: token.to_string(),
                limit: format!("{} tokens", model.spec.d_vocab),
            });
        }
    }
    Ok(length)
}

fn after_last_attention(hook: Hook, last_layer: usize) -> bool {
    let before = matches!(
        hook.kind,
        Kind::ResidPre
            | Kind::Scale(Ln::One)
            | Kind::Normalized(Ln::One)
            | Kind::QInput
            | Kind::KInput
            | Kind::VInput
            | Kind::Q
            | Kind::K
            | Kind::V
            | Kind::RotQ
            | Kind::RotK
            | Kind::Embed
            | Kind::PosEmbed
    );
    !before && hook.layer.is_none_or(|layer| layer == last_layer)
}

/// The final norm of the rows whose logits are asked for; of all rows where somebody reads or edits it.
fn normed_rows(
    model: &Model,
    stream: forward::Stream,
    logits: Logits,
    batch: usize,
    tap: &mut EditTap,
) -> Result<Option<Tensor>> {
    let forward::Stream { rows, x } = stream;
    let mut x = x.expect("a whole run has rows");
    let mut rows = rows;
    let final_hooks = [Kind::Scale(Ln::Final), Kind::Normalized(Ln::Final)].map(Hook::global);
    let all = logits == Logits::All
        || final_hooks
            .iter()
            .any(|&hook| forward::Tap::wants(tap, hook));
    if !all && rows.total != batch {
        let last = rows.last_of_each();
        x = rows::regather(&x, &rows, &last, None)?;
        rows = last;
    }
    if logits == Logits::None && !all {
        return Ok(None);
    }
    let mut x = forward::final_norm(model, &x, &rows, tap)?;
    if logits == Logits::Last && rows.total != batch {
        x = rows::regather(&x, &rows, &rows.last_of_each(), None)?;
    }
    Ok((logits != Logits::None).then_some(x))
}

/// A NaN is traced to the first hook that shows it, by running the same once more with captures.
fn check_finite(
    model: &Model,
    prompts: &[Vec<u32>],
    examples: &[usize],
    request: &Request<'_>,
    logits: &Tensor,
) -> Result<()> {
    let sums = logits.flatten_from(1)?.sum(1)?.to_vec1::<f32>()?;
    let Some(index) = sums.iter().position(|sum| !sum.is_finite()) else {
        return Ok(());
    };
    let finite = |values: &[f32]| {
        values
            .iter()
            .all(|x| x.is_finite() || *x == f32::NEG_INFINITY)
    };
    if finite(&crate::nn::host::to_host(&logits.narrow(0, index, 1)?)?) {
        return Ok(());
    }
    Err(Error::NotFiniteLogits {
        index: examples[index],
        hook: first_not_finite(model, &prompts[index], examples[index], index, request),
    })
}

fn first_not_finite(
    model: &Model,
    prompt: &[u32],
    example: usize,
    index: usize,
    request: &Request<'_>,
) -> String {
    let streams = |hook: &Hook| {
        matches!(
            hook.kind,
            Kind::Embed | Kind::AttnOut | Kind::MlpOut | Kind::ResidPost
        )
    };
    let capture: Vec<Hook> = Hook::all(&model.spec).into_iter().filter(streams).collect();
    let roles: Vec<Roles> = request.roles.get(index).cloned().into_iter().collect();
    let again = Request {
        capture: &capture,
        logits: Logits::None,
        roles: &roles,
        ..request.clone()
    };
    let Ok(run) = run_examples(model, &[prompt.to_vec()], &[example], &again) else {
        return "an edit".into();
    };
    let bad = |hook: &&Hook| {
        let values = run.cache.packed(**hook).and_then(crate::nn::host::to_host);
        values.is_ok_and(|values| values.iter().any(|x| !x.is_finite()))
    };
    capture
        .iter()
        .find(bad)
        .map_or("the unembedding".into(), Hook::to_string)
}

/// The tap of a plain run: edits, then captures.
struct EditTap {
    /// For each hook, for each prompt.
    edits: HashMap<Hook, Vec<Vec<Resolved>>>,
    fired: Vec<bool>,
    wanted: HashSet<Hook>,
    cache: Cache,
    last_layer: usize,
    /// Only the last token of each prompt goes on after the last attention.
    last_only: bool,
}

impl EditTap {
    fn hooks(&self) -> impl Iterator<Item = Hook> + '_ {
        self.wanted.iter().chain(self.edits.keys()).copied()
    }

    fn finish(self, request: &Request<'_>) -> Result<Cache> {
        if let Some(index) = self.fired.iter().position(|fired| !fired) {
            let reason = "no tensor of this run was named by it".into();
            return Err(Error::Unfired {
                what: request.edits[index].to_string(),
                reason,
            });
        }
        match request
            .capture
            .iter()
            .find(|hook| !self.cache.contains(**hook))
        {
            Some(hook) => Err(Error::Unfired {
                what: hook.to_string(),
                reason: "this run did not pass it".into(),
            }),
            None => Ok(self.cache),
        }
    }
}

impl forward::Tap for EditTap {
    fn wants(&self, hook: Hook) -> bool {
        self.wanted.contains(&hook) || self.edits(hook)
    }

    fn edits(&self, hook: Hook) -> bool {
        self.edits.contains_key(&hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let t = match self.edits.get(&hook) {
            None => t,
            Some(edits) => {
                let t = apply::apply(
                    t,
                    rows,
                    |prompt| &edits[prompt],
                    |_, index| self.fired[index] = true,
                )?;
                if hook.kind == Kind::AttnScores {
                    apply::check_scores(&t, rows, hook)?;
                }
                t
            }
        };
        if self.wanted.contains(&hook) {
            self.cache.insert(hook, t.clone());
        }
        Ok(t)
    }

    fn attended(&mut self, layer: usize, rows: &Rows) -> Option<Rows> {
        (self.last_only && layer == self.last_layer && rows.length > 1).then(|| rows.last_of_each())
    }
}
