//! Gradients of a metric at hooks, for whoever wants them as tensors.

use std::collections::HashSet;

use candle_core::Tensor;

use super::backward::{AnswerRows, Descent, Probe, final_norm};
use super::rows::{Rows, Segment};
use super::tape::{Tape, TapeRequest};
use super::{Cache, Roles, Sources};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook};
use crate::metric::{Metric, Reads, Target};
use crate::model::Model;
use crate::nn::embed::{unembed, unembed_backward, unembed_columns, unembed_columns_backward};
use crate::nn::host::to_host;
use crate::nn::rules::Rules;
use crate::run::forward::as_logits;

/// What is differentiated, by which rules, and where.
#[derive(Debug, Clone)]
pub struct GradientRequest<'a> {
    pub metric: Metric,
    /// One for each prompt.
    pub targets: &'a [Target],
    /// The clean run's logits where the answer of each prompt is read, for metrics that compare with them.
    pub reference: Option<&'a [Vec<f32>]>,
    pub rules: Rules,
    pub hooks: &'a [Hook],
    /// Edits in force; a gradient at an edited hook is with respect to the value after the edit.
    pub edits: &'a [Edit],
    pub sources: Sources,
    pub roles: &'a [Roles],
    /// Bytes of activations that may be kept; layers that do not fit are run twice. `None`: keep all.
    pub memory: Option<usize>,
}

impl<'a> GradientRequest<'a> {
    /// Plain gradients of a metric at some hooks.
    pub fn new(metric: Metric, targets: &'a [Target], hooks: &'a [Hook]) -> Self {
        GradientRequest {
            metric,
            targets,
            reference: None,
            rules: Rules::gradient(),
            hooks,
            edits: &[],
            sources: Sources::default(),
            roles: &[],
            memory: None,
        }
    }
}

/// What [`gradients`] gives.
#[derive(Debug, Clone)]
pub struct Gradients {
    /// The metric of each prompt.
    pub values: Vec<f64>,
    /// The gradient with respect to a hook, under its name and in its shape.
    pub cache: Cache,
}

/// The gradient of each prompt's metric with respect to its own activations at some hooks: one forward and one backward pass.
/// # Shapes
/// `prompts [batch, pos]`; gradients as [`Hook::shape`] says.
/// # Units
/// [`Metric::unit`] per unit of the activation.
/// # Errors
/// Those of [`super::run`]; [`Error::NoGradient`]; [`Error::BadEdit`] for an edit that no gradient passes.
pub fn gradients(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GradientRequest<'_>,
) -> Result<Gradients> {
    let spec = &model.spec;
    request.hooks.iter().try_for_each(|hook| hook.check(spec))?;
    request.metric.check_differentiable()?;
    if request.targets.len() != prompts.len() {
        return Err(Error::invalid(format!(
            "{} prompts need a target each, not {}",
            prompts.len(),
            request.targets.len()
        )));
    }
    if let Some(reference) = request.reference.filter(|r| r.len() != prompts.len()) {
        return Err(Error::invalid(format!(
            "{} prompts need the clean run's logits for each, not for {}",
            prompts.len(),
            reference.len()
        )));
    }
    let of_tape = TapeRequest {
        edits: request.edits,
        sources: request.sources.clone(),
        roles: request.roles,
        memory: request.memory,
        ..TapeRequest::default()
    };
    let tape = Tape::record(model, prompts, &of_tape)?;
    let mut collect = Collect {
        wanted: request.hooks.iter().copied().collect(),
        cache: Cache::new(spec, prompts.len(), tape.rows.length),
    };
    let measured = Measured::new(
        model,
        &tape,
        request.metric,
        request.targets,
        request.reference,
    )?;
    let rows = tape.rows.clone();
    let start = measured.gradient(model, &request.rules, &rows, &mut collect)?;
    let descent = Descent {
        model,
        tape: &tape,
        rules: &request.rules,
        rows: &rows,
    };
    descent.run(start, &mut collect)?;
    // A stopped layer's hooks are never passed: nothing there moves the metric.
    for &hook in request.hooks {
        if !collect.cache.contains(hook) {
            let mut shape = hook.shape(spec, prompts.len(), rows.length);
            if hook.kind.axes(spec) == crate::hooks::Axes::Pattern {
                shape.swap(1, 2);
            }
            let mut packed = vec![shape[0] * shape[1]];
            packed.extend_from_slice(&shape[2..]);
            let zeros = vec![0f32; packed.iter().product()];
            let zeros = crate::nn::host::tensor(zeros, packed)?;
            collect.cache.insert(hook, zeros);
        }
    }
    Ok(Gradients {
        values: measured.values,
        cache: collect.cache,
    })
}

/// A metric measured at the end of a recorded run, ready to be differentiated.
pub(crate) struct Measured<'a> {
    pub values: Vec<f64>,
    metric: Metric,
    targets: &'a [Target],
    reference: Option<&'a [Vec<f32>]>,
    /// The rows where the answers are read, and the final stream there, `[answer rows, d_model]`.
    pub answers: Rows,
    pub answer: Tensor,
    columns: Vec<Vec<u32>>,
    /// The logits that the metric reads, of each of these rows.
    logits: Vec<Vec<f32>>,
}

impl<'a> Measured<'a> {
    /// # Errors
    /// [`Error::OutOfRange`] for a target outside of the vocabulary; [`Error::NotFiniteLogits`]; those of [`Metric::value`].
    pub fn new(
        model: &Model,
        tape: &Tape,
        metric: Metric,
        targets: &'a [Target],
        reference: Option<&'a [Vec<f32>]>,
    ) -> Result<Self> {
        for target in targets {
            target.check_length(tape.rows.length)?;
            metric.check_tokens(target)?;
        }
        let answers = tape.rows.answers(targets);
        let answer = tape.ends(model, &answers)?;
        let normed = super::forward::final_norm(model, &answer, &answers, &mut Nobody)?;
        let columns: Vec<Vec<u32>> = targets.iter().map(Target::columns).collect();
        let vocab = model.spec.d_vocab;
        let mut tokens = targets.iter().flat_map(Target::tokens);
        if let Some(token) = tokens.find(|&id| id as usize >= vocab) {
            return Err(Error::OutOfRange {
                hook: "the vocabulary".into(),
                what: "token",
                value: token.to_string(),
                limit: format!("{vocab} tokens"),
            });
        }
        let logits: Vec<Vec<f32>> = match metric.reads() {
            Reads::Answers => {
                let columns: Vec<&[u32]> = columns.iter().map(Vec::as_slice).collect();
                unembed_columns(&model.spec, &model.weights, &normed, &columns)?
            }
            Reads::Vocabulary => {
                to_host(&as_logits(unembed(&model.spec, &model.weights, &normed)?)?)?
                    .chunks_exact(vocab)
                    .map(<[f32]>::to_vec)
                    .collect()
            }
        };
        if let Some(row) = logits
            .iter()
            .position(|logits| logits.iter().any(|l| !l.is_finite()))
        {
            let of = |segment: &&Segment| segment.start <= row;
            let segment = answers.segments.iter().rfind(of);
            return Err(Error::NotFiniteLogits {
                index: segment.map_or(row, |segment| segment.example),
                hook: "the unembedding".into(),
            });
        }
        let mut measured = Measured {
            values: Vec::with_capacity(targets.len()),
            metric,
            targets,
            reference,
            answers,
            answer,
            columns,
            logits,
        };
        for (i, target) in targets.iter().enumerate() {
            let logits = measured.logits_of(i);
            let value = metric.value_whole(&logits, target, measured.reference_of(i))?;
            measured.values.push(value);
        }
        Ok(measured)
    }

    /// The logits of each row of one prompt's answer.
    fn logits_of(&self, i: usize) -> Vec<&[f32]> {
        let segment = &self.answers.segments[i];
        let rows = self.logits[segment.start..][..segment.positions.len()].iter();
        rows.map(Vec::as_slice).collect()
    }

    fn reference_of(&self, i: usize) -> Option<&[f32]> {
        self.reference.map(|reference| reference[i].as_slice())
    }

    /// The slope of each prompt's metric at the logits that it reads, row by row.
    fn slopes(&self) -> Result<Vec<Vec<f64>>> {
        let mut slopes = Vec::with_capacity(self.logits.len());
        for (i, target) in self.targets.iter().enumerate() {
            let (logits, reference) = (self.logits_of(i), self.reference_of(i));
            slopes.extend(self.metric.gradient_whole(&logits, target, reference)?);
        }
        Ok(slopes)
    }

    /// Each prompt's logits along the slope of its metric: the metric itself where that is linear in the logits.
    pub fn along_slopes(&self) -> Result<Vec<f64>> {
        let slopes = self.slopes()?;
        let along = |row: usize| -> f64 {
            let each = slopes[row].iter().zip(&self.logits[row]);
            each.map(|(slope, &logit)| slope * f64::from(logit)).sum()
        };
        Ok(self.by_prompt(along))
    }

    /// The sum over the rows of each prompt's answer.
    pub fn by_prompt(&self, of_row: impl Fn(usize) -> f64) -> Vec<f64> {
        let rows = |segment: &Segment| segment.start..segment.start + segment.positions.len();
        let segments = self.answers.segments.iter();
        segments
            .map(|segment| rows(segment).map(&of_row).sum())
            .collect()
    }

    /// The gradient of each prompt's metric at the final stream, `[rows, d_model]`.
    pub fn gradient(
        &self,
        model: &Model,
        rules: &Rules,
        rows: &Rows,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let narrow = |slope: Vec<f64>| slope.into_iter().map(|slope| slope as f32).collect();
        let slopes: Vec<Vec<f32>> = self.slopes()?.into_iter().map(narrow).collect();
        let at_normed = match self.metric.reads() {
            Reads::Answers => {
                let columns: Vec<&[u32]> = self.columns.iter().map(Vec::as_slice).collect();
                unembed_columns_backward(
                    &model.spec,
                    &model.weights,
                    &columns,
                    &slopes,
                    &self.logits,
                    rules.softcap,
                )?
            }
            Reads::Vocabulary => unembed_backward(
                &model.spec,
                &model.weights,
                &slopes,
                &self.logits,
                rules.softcap,
            )?,
        };
        let ends = AnswerRows {
            rows: &self.answers,
            stream: &self.answer,
        };
        final_norm(model, &at_normed, ends, rules, rows, probe)
    }
}

/// Neither reads nor edits anything.
pub(crate) struct Nobody;

impl super::forward::Tap for Nobody {
    fn wants(&self, _: Hook) -> bool {
        false
    }

    fn edits(&self, _: Hook) -> bool {
        false
    }

    fn at(&mut self, _: Hook, t: Tensor, _: &Rows) -> Result<Tensor> {
        Ok(t)
    }
}

impl Probe for Nobody {
    fn wants(&self, _: Hook) -> bool {
        false
    }

    fn at(&mut self, _: Hook, _: &Tensor, _: &Rows) -> Result<()> {
        Ok(())
    }
}

/// Keeps gradients as they come.
struct Collect {
    wanted: HashSet<Hook>,
    cache: Cache,
}

impl Probe for Collect {
    fn wants(&self, hook: Hook) -> bool {
        self.wanted.contains(&hook)
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        self.cache.insert(hook, gradient.clone());
        Ok(())
    }
}
