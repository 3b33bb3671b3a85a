//! What a forward pass keeps for the backward passes that start from it.
//!
//! A tape always holds the stream, keys and values of every layer. The rest that a layer's backward pass needs it holds as far as
//! memory allows; a layer without it is run once more when its turn comes.
//!
//! A run that shares the first tokens of its prompts with another one, as a corrupted run does with the clean one, need not run
//! them again: nothing there can differ. Such a tape has rows only from each prompt's first different token on, and takes
//! earlier keys and values from the other tape.

use std::collections::{HashMap, HashSet};

use candle_core::Tensor;

use super::apply::{self, Resolved};
use super::forward::{self, Stream, Tap};
use super::rows::{Rows, regather};
use super::{Roles, Sources, check_prompts};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Ln, Op};
use crate::model::Model;
use crate::nn::rope;
use crate::spec::{Mlp, ModelSpec, QkNorm};

/// What a tape is asked for, besides its prompts.
#[derive(Clone, Default)]
pub(crate) struct TapeRequest<'a> {
    pub edits: &'a [Edit],
    pub sources: Sources,
    pub roles: &'a [Roles],
    /// Hooks to keep besides what backward passes need.
    pub keep: &'a [Hook],
    /// The first position that each prompt's run has rows for, and the tape that holds what is before.
    pub after: Option<(&'a [usize], &'a Tape)>,
    /// The layer to begin at, with the stream that enters it on the tape of `after`; nothing below it is recorded.
    pub from: usize,
    /// Bytes that the tape may hold; `None`: whatever it takes.
    pub memory: Option<usize>,
}

/// One recorded forward pass.
#[derive(Clone)]
pub(crate) struct Tape {
    pub prompts: Vec<Vec<u32>>,
    /// The rows that it has.
    pub rows: Rows,
    pub ropes: rope::Tables,
    kept: HashMap<Hook, Tensor>,
    /// Layers that must be run again before their backward pass.
    light: HashSet<usize>,
    edits: HashMap<Hook, Vec<Vec<Resolved>>>,
    adjoints: HashMap<Hook, Vec<Vec<Resolved>>>,
    /// Rotated keys and values, of every position of every prompt, where the rows are not all.
    base: Option<Vec<(Tensor, Tensor)>>,
}

impl Tape {
    /// Runs `prompts` and records.
    /// # Shapes
    /// `prompts [batch, pos]`, of one length.
    /// # Errors
    /// Those of [`super::run`]; [`Error::BadEdit`] for an edit that no gradient passes.
    pub fn record(model: &Model, prompts: &[Vec<u32>], request: &TapeRequest<'_>) -> Result<Self> {
        let length = check_prompts(model, prompts)?;
        let spec = &model.spec;
        let mut rows = Rows::new(length);
        for prompt in 0..prompts.len() {
            let first = request.after.map_or(0, |(starts, _)| starts[prompt]);
            let first = first.min(length - 1) as u32;
            rows.push(prompt, prompt, (first..length as u32).collect());
        }
        let whole = rows.total == prompts.len() * length;
        let base = match request.after {
            Some((_, base)) if !whole => Some(base.keys(spec.n_layers)?),
            _ => None,
        };
        let (edits, adjoints) = resolve(model, prompts.len(), length, request)?;
        let mut tape = Tape {
            prompts: prompts.to_vec(),
            rows,
            ropes: rope::Tables::new(spec, length),
            kept: HashMap::new(),
            light: light_layers(spec, prompts.len() * length, request),
            edits,
            adjoints,
            base,
        };
        let mut recorder = Recorder {
            tape: &tape,
            wanted: request.keep.iter().copied().collect(),
            kept: HashMap::new(),
        };
        for layer in 0..spec.n_layers {
            let kinds = if tape.light.contains(&layer) {
                vec![Kind::ResidPre, Kind::RotK, Kind::V]
            } else {
                needs(spec)
            };
            let hooks = kinds.into_iter().map(|kind| Hook::at(kind, layer));
            recorder.wanted.extend(hooks);
        }
        recorder.wanted.insert(last_stream(spec));
        let tokens: Vec<u32> = (tape.rows.in_whole().iter())
            .map(|&row| prompts[row as usize / length][row as usize % length])
            .collect();
        let x = match (request.from, request.after) {
            (1.., Some((_, base))) => {
                let entering = base.get(Hook::at(Kind::ResidPre, request.from))?;
                regather(entering, &base.rows, &tape.rows, None)?
            }
            _ => forward::embed(model, &tokens, &tape.rows, &mut recorder)?,
        };
        let mut stream = Stream {
            rows: tape.rows.clone(),
            x: Some(x),
        };
        for layer in request.from..spec.n_layers {
            stream = forward::block(model, layer, &tape.ropes, stream, &mut recorder)?;
        }
        tape.kept = recorder.kept;
        Ok(tape)
    }

    /// Records a run in which `tap` gives readers streams of its own: what it computes at the places where it is not steered is
    /// nobody's business. A backward pass follows it from z to queries, keys and values, and from what an MLP writes to what it reads.
    /// # Shapes
    /// `stream [rows, d_model]` enters the first block; `base`, for each layer, rotated keys and values of every position of every
    /// prompt, for positions that `rows` has not.
    pub fn steered(
        model: &Model,
        rows: &Rows,
        stream: Tensor,
        base: Vec<(Tensor, Tensor)>,
        tap: &mut dyn Tap,
    ) -> Result<Self> {
        let spec = &model.spec;
        let mut tape = Tape {
            prompts: Vec::new(),
            rows: rows.clone(),
            ropes: rope::Tables::new(spec, rows.length),
            kept: HashMap::new(),
            light: HashSet::new(),
            edits: ByHook::new(),
            adjoints: ByHook::new(),
            base: Some(base),
        };
        let layers = 0..spec.n_layers;
        let hooks = layers.flat_map(|layer| {
            let needs = needs(spec).into_iter();
            needs.map(move |kind| Hook::at(kind, layer))
        });
        let mut steered = Steered {
            tap,
            tape: &tape,
            wanted: hooks.chain([last_stream(spec)]).collect(),
            kept: HashMap::new(),
        };
        let mut stream = Stream {
            rows: rows.clone(),
            x: Some(stream),
        };
        for layer in 0..spec.n_layers {
            stream = forward::block(model, layer, &tape.ropes, stream, &mut steered)?;
        }
        tape.kept = steered.kept;
        Ok(tape)
    }

    /// Lets go of what was kept beyond a backward pass's needs, but for some hooks.
    pub fn forget(&mut self, gone: impl Fn(Hook) -> bool) {
        self.kept.retain(|&hook, _| !gone(hook));
    }

    /// Rotated keys and values of every layer.
    fn keys(&self, n_layers: usize) -> Result<Vec<(Tensor, Tensor)>> {
        (0..n_layers)
            .map(|layer| {
                let kept = |kind| self.get(Hook::at(kind, layer)).cloned();
                Ok((kept(Kind::RotK)?, kept(Kind::V)?))
            })
            .collect()
    }

    /// What was kept of a hook, `[rows, ..]`.
    pub fn get(&self, hook: Hook) -> Result<&Tensor> {
        self.kept.get(&hook).ok_or_else(|| Error::Unfired {
            what: hook.to_string(),
            reason: "the tape was not asked to keep it".into(),
        })
    }

    /// The final stream, before the final norm, at some of the tape's rows: `[rows, d_model]`.
    pub fn ends(&self, model: &Model, rows: &Rows) -> Result<Tensor> {
        regather(self.get(last_stream(&model.spec))?, &self.rows, rows, None)
    }

    /// Everything that the backward pass of a layer needs, run again where it was not kept.
    pub fn layer(&self, model: &Model, layer: usize) -> Result<Saved<'_>> {
        if !self.light.contains(&layer) {
            return Ok(Saved {
                layer,
                tape: self,
                again: HashMap::new(),
            });
        }
        let mut recorder = Recorder {
            tape: self,
            wanted: needs(&model.spec)
                .into_iter()
                .map(|kind| Hook::at(kind, layer))
                .collect(),
            kept: HashMap::new(),
        };
        let stream = Stream {
            rows: self.rows.clone(),
            x: Some(self.get(Hook::at(Kind::ResidPre, layer))?.clone()),
        };
        // The stream was recorded after the edits at its hook, which must not be made twice.
        recorder.wanted.remove(&Hook::at(Kind::ResidPre, layer));
        forward::block(
            model,
            layer,
            &self.ropes,
            stream,
            &mut Again(&mut recorder, layer),
        )?;
        Ok(Saved {
            layer,
            tape: self,
            again: recorder.kept,
        })
    }

    /// The base run's keys and values for positions that this tape has no rows for.
    pub fn base_keys(&self, layer: usize) -> Option<(&Tensor, &Tensor)> {
        self.base
            .as_ref()
            .map(|base| (&base[layer].0, &base[layer].1))
    }

    /// A gradient at a hook, on its way from what the model used to what it had computed.
    pub fn before_edits(&self, hook: Hook, gradient: Tensor, rows: &Rows) -> Result<Tensor> {
        match self.adjoints.get(&hook) {
            None => Ok(gradient),
            Some(edits) => apply::apply(gradient, rows, |prompt| &edits[prompt], |_, _| {}),
        }
    }

    pub fn edits(&self, hook: Hook) -> bool {
        self.edits.contains_key(&hook)
    }
}

/// What one layer's backward pass reads.
pub(crate) struct Saved<'a> {
    layer: usize,
    tape: &'a Tape,
    again: HashMap<Hook, Tensor>,
}

impl Saved<'_> {
    /// The values of a hook of this layer for some of the tape's rows.
    pub fn get(&self, kind: Kind, rows: &Rows) -> Result<Tensor> {
        let hook = Hook::at(kind, self.layer);
        let all = match self.again.get(&hook) {
            Some(t) => t,
            None => self.tape.get(hook)?,
        };
        if rows.total == self.tape.rows.total {
            Ok(all.clone())
        } else {
            regather(all, &self.tape.rows, rows, None)
        }
    }

    /// All rows of the tape.
    pub fn whole(&self, kind: Kind) -> Result<Tensor> {
        self.get(kind, &self.tape.rows)
    }
}

fn last_stream(spec: &ModelSpec) -> Hook {
    Hook::at(Kind::ResidPost, spec.n_layers - 1)
}

/// The hooks of a layer that its backward pass reads.
fn needs(spec: &ModelSpec) -> Vec<Kind> {
    let mut kinds = vec![Kind::ResidPre, Kind::RotQ, Kind::RotK, Kind::V];
    if spec.qk_norm != QkNorm::None {
        kinds.extend([Kind::Q, Kind::K]);
    }
    if spec.mlp != Mlp::None {
        kinds.push(Kind::MlpIn);
        kinds.push(Kind::MlpPre);
        if spec.norms_stream() {
            kinds.push(Kind::ResidMid);
        }
    }
    if spec.mlp == Mlp::Gated {
        kinds.push(Kind::MlpPreLinear);
    }
    let post = [Ln::OnePost, Ln::TwoPost];
    kinds.extend(post.map(Kind::Normalized));
    kinds.extend(post.map(Kind::Scale));
    kinds.retain(|kind| kind.absent(spec).is_none());
    kinds
}

/// The layers that memory has no room for, from the first on: their turn comes last, when nothing else is held any more.
fn light_layers(spec: &ModelSpec, rows: usize, request: &TapeRequest<'_>) -> HashSet<usize> {
    let Some(memory) = request.memory else {
        return HashSet::new();
    };
    let width = |kinds: &[Kind]| -> usize {
        let row_width = |kind: &Kind| Hook::at(*kind, 0).width(spec);
        4 * rows * kinds.iter().map(row_width).sum::<usize>()
    };
    let light = width(&[Kind::ResidPre, Kind::RotK, Kind::V]);
    let extra = width(&needs(spec)).saturating_sub(light).max(1);
    let room = memory.saturating_sub(light * spec.n_layers) / extra;
    (0..spec.n_layers.saturating_sub(room)).collect()
}

type ByHook = HashMap<Hook, Vec<Vec<Resolved>>>;

fn resolve(
    model: &Model,
    batch: usize,
    length: usize,
    request: &TapeRequest<'_>,
) -> Result<(ByHook, ByHook)> {
    let none = Roles::new();
    let (mut edits, mut adjoints) = (ByHook::new(), ByHook::new());
    for prompt in 0..batch {
        for (index, edit) in request.edits.iter().enumerate() {
            check_passes(edit)?;
            let roles = request.roles.get(prompt).unwrap_or(&none);
            let spec = &model.spec;
            let edit = apply::resolve(edit, index, spec, length, roles, &request.sources, prompt)?;
            let none = || vec![Vec::new(); batch];
            // The gradient meets the edits of a hook in the order opposite to the values.
            if let Some(adjoint) = edit.adjoint()? {
                adjoints.entry(edit.hook).or_insert_with(none)[prompt].insert(0, adjoint);
            }
            edits.entry(edit.hook).or_insert_with(none)[prompt].push(edit);
        }
    }
    Ok((edits, adjoints))
}

/// Edits at these hooks would need a walk of their own.
fn check_passes(edit: &Edit) -> Result<()> {
    let hook = edit.site.hook;
    let reason = match hook.kind {
        Kind::QInput | Kind::KInput | Kind::VInput | Kind::Result => {
            "it gives each head a tensor of its own"
        }
        Kind::Scale(_) | Kind::Normalized(_) => {
            "the backward pass makes norms again from their input"
        }
        Kind::AttnScores if edit.op != Op::Block => {
            "only attention knockout (`block`) is followed there"
        }
        Kind::Pattern => "knock attention out at `hook_attn_scores` instead",
        _ => return Ok(()),
    };
    Err(Error::BadEdit {
        edit: edit.to_string(),
        reason: format!(
            "no gradient is computed through an edit at `{hook}`: {reason}; measure its effect exactly instead"
        ),
    })
}

/// The tap of a recorded run.
struct Recorder<'a> {
    tape: &'a Tape,
    wanted: HashSet<Hook>,
    kept: HashMap<Hook, Tensor>,
}

impl Tap for Recorder<'_> {
    fn wants(&self, hook: Hook) -> bool {
        self.wanted.contains(&hook) || self.edits(hook)
    }

    fn edits(&self, hook: Hook) -> bool {
        self.tape.edits(hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let t = match self.tape.edits.get(&hook) {
            None => t,
            Some(edits) => {
                let t = apply::apply(t, rows, |prompt| &edits[prompt], |_, _| {})?;
                if hook.kind == Kind::AttnScores {
                    apply::check_scores(&t, rows, hook)?;
                    self.kept.insert(hook, t.clone());
                }
                t
            }
        };
        if self.wanted.contains(&hook) {
            self.kept.insert(hook, t.clone());
        }
        Ok(t)
    }

    fn base_keys(&self, layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        Ok(self.tape.base_keys(layer))
    }
}

/// A recorder behind another tap.
struct Steered<'a> {
    tap: &'a mut dyn Tap,
    tape: &'a Tape,
    wanted: HashSet<Hook>,
    kept: HashMap<Hook, Tensor>,
}

impl Tap for Steered<'_> {
    fn wants(&self, hook: Hook) -> bool {
        // Keys and values come by in any case, and of each query head its own; nobody else may ask for these.
        let comes_by = matches!(hook.kind, Kind::K | Kind::V | Kind::RotK);
        self.tap.wants(hook) || self.wanted.contains(&hook) && !comes_by
    }

    fn edits(&self, hook: Hook) -> bool {
        self.tap.edits(hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        let t = self.tap.at(hook, t, rows)?;
        if self.wanted.contains(&hook) {
            self.kept.insert(hook, t.clone());
        }
        Ok(t)
    }

    fn base_keys(&self, layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        Ok(self.tape.base_keys(layer))
    }
}

/// A recorder that leaves alone the stream that enters a layer.
struct Again<'a, 'b>(&'b mut Recorder<'a>, usize);

impl Again<'_, '_> {
    fn is_entry(&self, hook: Hook) -> bool {
        hook == Hook::at(Kind::ResidPre, self.1)
    }
}

impl Tap for Again<'_, '_> {
    fn wants(&self, hook: Hook) -> bool {
        !self.is_entry(hook) && self.0.wants(hook)
    }

    fn edits(&self, hook: Hook) -> bool {
        !self.is_entry(hook) && self.0.edits(hook)
    }

    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor> {
        if self.is_entry(hook) {
            Ok(t)
        } else {
            self.0.at(hook, t, rows)
        }
    }

    fn base_keys(&self, layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        self.0.base_keys(layer)
    }
}
