//! Edits, resolved for one prompt and applied to packed rows.
//!
//! Edits touch few values, so they are applied in host memory whatever the device: a hook that nobody edits costs nothing.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use super::cache::{Source, Sources};
use super::rows::{Rows, Segment};
use crate::error::{Error, Result};
use crate::hooks::{Axes, Closure, Edit, Hook, Op, Positions, Value};
use crate::model::ModelSpec;
use crate::nn::host::{host, tensor, to_host};

/// The roles of one prompt's tokens.
pub use crate::hooks::Roles;

/// One edit, for one prompt: absolute positions, and which stretches of a packed row it takes.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Index among the edits of its variant, for the check that all fired.
    pub index: usize,
    pub hook: Hook,
    pub positions: Vec<u32>,
    /// Stretches of the row, ascending where the edit named them so.
    spans: Vec<Range<usize>>,
    /// Indices of the last axis that each head (or the row) takes.
    width: usize,
    action: Action,
}

#[derive(Debug, Clone)]
enum Action {
    Set(Values),
    Add(Values),
    Scale(f32),
    Closure(Closure),
}

#[derive(Debug, Clone)]
enum Values {
    Scalar(f32),
    Vector(Arc<[f32]>),
    /// One value for each (position, span element), for this prompt.
    Each(Arc<[f32]>),
    Source(Arc<Source>),
}

/// Resolves an edit for one prompt.
/// # Errors
/// [`Error::BadEdit`], [`Error::OutOfRange`], [`Error::UnknownRole`].
pub(crate) fn resolve(
    edit: &Edit,
    index: usize,
    spec: &ModelSpec,
    length: usize,
    roles: &Roles,
    sources: &Sources,
    example: usize,
) -> Result<Resolved> {
    edit.check(spec)?;
    let site = &edit.site;
    let positions: Vec<u32> = site
        .positions
        .resolve(length, roles)?
        .into_iter()
        .map(|pos| pos as u32)
        .collect();
    if positions.is_empty() {
        return Err(Error::BadEdit {
            edit: edit.to_string(),
            reason: "it names no position of this prompt".into(),
        });
    }
    let (heads, inner) = match site.hook.kind.axes(spec) {
        Axes::Stream => (1, spec.d_model),
        Axes::Scale => (1, 1),
        Axes::Neurons => (1, spec.d_mlp),
        Axes::Heads { heads, width } => (heads, width),
        Axes::Pattern => (spec.n_heads, length),
    };
    let taken: Option<Vec<usize>> = match (&site.keys, &site.neurons) {
        (Positions::These(_), _) => Some(site.keys.resolve(length, roles)?),
        (Positions::All, neurons) => neurons.clone(),
    };
    let all_heads: Vec<usize> = (0..heads).collect();
    let chosen = site.heads.as_ref().unwrap_or(&all_heads);
    let mut spans = Vec::new();
    for head in chosen {
        match &taken {
            None => spans.push(head * inner..(head + 1) * inner),
            Some(indices) => spans.extend(
                indices
                    .iter()
                    .map(|index| head * inner + index..head * inner + index + 1),
            ),
        }
    }
    if taken.is_none() {
        merge(&mut spans);
    }
    let width = taken.as_ref().map_or(inner, Vec::len);
    let named =
        |name: &str| -> Result<Values> { Ok(Values::Source(Arc::clone(sources.get(name, edit)?))) };
    let counts = [positions.len(), chosen.len(), width];
    let action = match &edit.op {
        Op::Replace(value) => Action::Set(given(value, edit, counts, example)?),
        Op::Add(value) => Action::Add(given(value, edit, counts, example)?),
        Op::FromRun(run) => Action::Set(named(run)?),
        Op::Mean => Action::Set(named("mean")?),
        Op::Freeze => Action::Set(named("base")?),
        Op::Scale(factor) => Action::Scale(*factor),
        Op::Zero => Action::Set(Values::Scalar(0.0)),
        Op::Block => Action::Set(Values::Scalar(f32::NEG_INFINITY)),
        Op::Closure(closure) => Action::Closure(closure.clone()),
    };
    Ok(Resolved {
        index,
        hook: site.hook,
        positions,
        spans,
        width,
        action,
    })
}

/// Joins spans that follow each other, so that whole rows are copied at once.
fn merge(spans: &mut Vec<Range<usize>>) {
    let mut merged: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for span in spans.drain(..) {
        match merged.last_mut().filter(|last| last.end == span.start) {
            Some(last) => last.end = span.end,
            None => merged.push(span),
        }
    }
    *spans = merged;
}

fn given(value: &Value, edit: &Edit, counts: [usize; 3], example: usize) -> Result<Values> {
    let [positions, heads, width] = counts;
    let bad = |reason: String| Error::BadEdit {
        edit: edit.to_string(),
        reason,
    };
    match value {
        Value::Scalar(value) => Ok(Values::Scalar(*value)),
        Value::Vector(values) if values.len() == width => {
            Ok(Values::Vector(values.as_slice().into()))
        }
        Value::Vector(values) => Err(bad(format!(
            "it gives {} values where the site takes {width}",
            values.len()
        ))),
        Value::Tensor(t) => {
            // An axis of one may be left out.
            let shape = |dims: &[usize]| -> Vec<usize> {
                dims.iter().copied().filter(|&dim| dim != 1).collect()
            };
            let wanted = shape(&counts);
            let of_this = match t.dims() {
                dims if shape(dims) == wanted => t.clone(),
                [batch, dims @ ..] if example < *batch && shape(dims) == wanted => {
                    t.get(example)?
                }
                dims => {
                    return Err(bad(format!(
                        "its tensor is {dims:?}, the site takes [{positions} positions, {heads} heads, {width}], or that for each prompt",
                    )));
                }
            };
            Ok(Values::Each(to_host(&of_this)?.into()))
        }
    }
}

impl Resolved {
    /// What this edit does to a gradient on its way up: what was overwritten gets none, what was scaled gets as much more.
    /// `None` where the gradient passes as it is.
    /// # Errors
    /// [`Error::BadEdit`] for a closure, whose derivative nobody knows.
    pub fn adjoint(&self) -> Result<Option<Self>> {
        let action = match &self.action {
            Action::Set(_) => Action::Set(Values::Scalar(0.0)),
            Action::Add(_) => return Ok(None),
            Action::Scale(factor) => Action::Scale(*factor),
            Action::Closure(closure) => {
                return Err(Error::BadEdit {
                    edit: format!("{} = {}", self.hook, closure.name),
                    reason:
                        "a closure has no known gradient; use a named operation, or patch exactly"
                            .into(),
                });
            }
        };
        Ok(Some(Resolved {
            action,
            ..self.clone()
        }))
    }

    /// The edit, for a run that does not ask whether it fires.
    pub fn uncounted(self) -> Self {
        Resolved {
            index: usize::MAX,
            ..self
        }
    }

    /// The positions at which the edit writes something else than what the base run has there, bit for bit; all of them where
    /// that cannot be told.
    /// # Shapes
    /// `base [examples * length, ..]`: the hook's values, or one stretch that all its heads share (the stream that readers see).
    pub fn changed(&self, base: &Tensor, example: usize, length: usize) -> Result<Vec<u32>> {
        let Action::Set(Values::Source(source)) = &self.action else {
            return Ok(self.positions.clone());
        };
        let (theirs, row_of) = source.lookup(self.hook)?;
        let width = row_width(theirs.elem_count(), theirs)?;
        let own_width = row_width(base.elem_count(), base)?;
        if own_width == 0 || !width.is_multiple_of(own_width) {
            return Ok(self.positions.clone());
        }
        let (base, theirs) = (host(base)?, host(theirs)?);
        let is_same = |pos: u32| {
            let Some(row) = row_of(example, pos as usize) else {
                return false;
            };
            let (a, b) = (
                &base[(example * length + pos as usize) * own_width..][..own_width],
                &theirs[row * width..][..width],
            );
            let same = |at: usize| a[at % own_width].to_bits() == b[at].to_bits();
            let mut taken = self.spans.iter().cloned().flatten();
            taken.all(|at| at < width && same(at))
        };
        Ok(self
            .positions
            .iter()
            .copied()
            .filter(|&pos| !is_same(pos))
            .collect())
    }

    /// Applies the edit to the rows of one segment. Returns how many of its positions were there.
    fn apply(&self, data: &mut [f32], row_width: usize, segment: &Segment) -> Result<usize> {
        if let Action::Closure(closure) = &self.action {
            return self.apply_closure(closure, data, row_width, segment);
        }
        let elements: usize = self.spans.iter().map(Range::len).sum();
        let mut fired = 0;
        for (n, &pos) in self.positions.iter().enumerate() {
            let Ok(found) = segment.positions.binary_search(&pos) else {
                continue;
            };
            fired += 1;
            let row = &mut data[(segment.start + found) * row_width..][..row_width];
            match &self.action {
                Action::Scale(factor) => self.each(row, |_, x| *x *= factor),
                Action::Set(Values::Scalar(value)) => self.each(row, |_, x| *x = *value),
                Action::Add(Values::Scalar(value)) => self.each(row, |_, x| *x += value),
                Action::Set(Values::Vector(values)) => {
                    self.each(row, |i, x| *x = values[i % self.width])
                }
                Action::Add(Values::Vector(values)) => {
                    self.each(row, |i, x| *x += values[i % self.width])
                }
                Action::Set(Values::Each(values)) => {
                    self.each(row, |i, x| *x = values[n * elements + i])
                }
                Action::Add(Values::Each(values)) => {
                    self.each(row, |i, x| *x += values[n * elements + i])
                }
                Action::Set(Values::Source(source)) => {
                    self.take_from(row, source, segment.example, pos)?
                }
                Action::Add(Values::Source(_)) | Action::Closure(_) => {
                    unreachable!("no such edit is resolved")
                }
            }
        }
        Ok(fired)
    }

    fn each(&self, row: &mut [f32], mut change: impl FnMut(usize, &mut f32)) {
        for (i, at) in self.spans.iter().cloned().flatten().enumerate() {
            change(i, &mut row[at]);
        }
    }

    fn take_from(&self, row: &mut [f32], source: &Source, example: usize, pos: u32) -> Result<()> {
        let bad = |reason: String| Error::BadEdit {
            edit: self.hook.to_string(),
            reason,
        };
        let (values, row_of) = source.lookup(self.hook)?;
        let at = row_of(example, pos as usize).ok_or_else(|| {
            bad(format!(
                "the run that its values come from has no position {pos} of prompt {example}; take them from a run of as many \
                 prompts of the same length"
            ))
        })?;
        let width = row.len();
        let found = row_width(values.elem_count(), values)?;
        if found != width {
            return Err(bad(format!(
                "the run that its values come from has {found} of them at each position, this one {width}; take them from \
                 prompts of the same length"
            )));
        }
        let values = host(values)?;
        let theirs = &values[at * width..(at + 1) * width];
        for span in &self.spans {
            row[span.clone()].copy_from_slice(&theirs[span.clone()]);
        }
        Ok(())
    }

    fn apply_closure(
        &self,
        closure: &Closure,
        data: &mut [f32],
        row_width: usize,
        segment: &Segment,
    ) -> Result<usize> {
        let found: Vec<usize> = self
            .positions
            .iter()
            .filter_map(|pos| segment.positions.binary_search(pos).ok())
            .collect();
        if found.is_empty() {
            return Ok(0);
        }
        let row = |found: usize| (segment.start + found) * row_width;
        let taken = self.spans.iter().cloned().flatten();
        let values: Vec<f32> = found
            .iter()
            .flat_map(|&f| taken.clone().map(move |at| row(f) + at))
            .map(|at| data[at])
            .collect();
        let heads = values.len() / found.len() / self.width;
        let before = tensor(values, (found.len(), heads, self.width))?;
        let after = (closure.apply)(&before)?;
        if after.dims() != before.dims() {
            let reason = format!("the closure made {:?} of {:?}", after.dims(), before.dims());
            return Err(Error::BadEdit {
                edit: format!("{} = closure {}", self.hook, closure.name),
                reason,
            });
        }
        let places = found
            .iter()
            .flat_map(|&f| taken.clone().map(move |at| row(f) + at));
        for (at, value) in places.zip(to_host(&after)?) {
            data[at] = value;
        }
        Ok(found.len())
    }
}

fn row_width(elements: usize, t: &Tensor) -> Result<usize> {
    Ok(elements / t.dim(0)?.max(1))
}

/// Applies the edits of each segment to a packed tensor. `edits(variant)` are those at this hook; `fired(variant, index)` is told
/// of each that found a row.
pub(crate) fn apply<'e>(
    t: Tensor,
    rows: &Rows,
    edits: impl Fn(usize) -> &'e [Resolved],
    mut fired: impl FnMut(usize, usize),
) -> Result<Tensor> {
    if rows
        .segments
        .iter()
        .all(|segment| edits(segment.variant).is_empty())
    {
        return Ok(t);
    }
    let mut data = to_host(&t)?;
    let width = row_width(data.len(), &t)?;
    for segment in &rows.segments {
        for edit in edits(segment.variant) {
            if edit.apply(&mut data, width, segment)? > 0 {
                fired(segment.variant, edit.index);
            }
        }
    }
    let edited = tensor(data, t.shape())?;
    Ok(edited.to_dtype(t.dtype())?.to_device(t.device())?)
}

/// A softmax over nothing would be NaN: every query must have a key left.
pub(crate) fn check_scores(scores: &Tensor, rows: &Rows, hook: Hook) -> Result<()> {
    let data = to_host(scores)?;
    let length = scores.dim(2)?;
    let heads = scores.dim(1)?;
    let positions = rows.positions();
    match data
        .chunks_exact(length)
        .position(|row| row.iter().all(|&x| x == f32::NEG_INFINITY))
    {
        None => Ok(()),
        Some(at) => Err(Error::BadEdit {
            edit: format!("{hook} = block"),
            reason: format!(
                "it leaves head {} at position {} no key to attend to; leave it at least one",
                at % heads,
                positions[at / heads]
            ),
        }),
    }
}
