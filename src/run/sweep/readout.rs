//! What is asked of a sweep: variants, and how their logits become numbers.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::hooks::Edit;
use crate::metric::{Judgement, Metric, Reads, Target};
use crate::model::Model;
use crate::nn::embed::{unembed, unembed_columns};
use crate::nn::host::to_host;
use crate::run::BaseRun;
use crate::run::rows::{Rows, pick};

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

impl BaseRun {
    /// The metric of each prompt of the base run.
    /// # Errors
    /// [`Error::NotFiniteLogits`], and what the metric refuses.
    pub fn metric(&self, model: &Model, readout: &Readout) -> Result<Vec<f64>> {
        check_variants(model, self, &[], readout)?;
        let examples: Vec<usize> = (0..self.prompts.len()).collect();
        read(model, &self.answers(&readout.targets)?, &examples, readout)
    }

    /// How the model does on each prompt.
    /// # Errors
    /// Those of the tensor product; of a target that is read outside of its prompt.
    pub fn judge(&self, model: &Model, targets: &[Target]) -> Result<Vec<Judgement>> {
        let logits = self.logits_of_answers(model, targets)?;
        let mut rows = logits.iter().map(Vec::as_slice);
        let judged = targets.iter().map(|target| {
            let own: Vec<&[f32]> = rows.by_ref().take(target.n_tokens()).collect();
            target.judge_whole(&own)
        });
        Ok(judged.collect())
    }

    /// The logits where the answer of each prompt is read (of an answer of several tokens the first), for metrics that compare with a
    /// reference.
    /// # Shapes
    /// `targets`: one for each prompt. Gives `[prompts, d_vocab]`.
    /// # Errors
    /// Those of the tensor product; of a target that is read outside of its prompt.
    pub fn logits(&self, model: &Model, targets: &[Target]) -> Result<Vec<Vec<f32>>> {
        let mut rows = self.logits_of_answers(model, targets)?.into_iter();
        let first = |target: &Target| {
            let first = rows.next();
            rows.by_ref().take(target.then.len()).for_each(drop);
            first.expect("every target has a position")
        };
        Ok(targets.iter().map(first).collect())
    }

    fn logits_of_answers(&self, model: &Model, targets: &[Target]) -> Result<Vec<Vec<f32>>> {
        let answers = self.answers(targets)?;
        Ok(unembed(&model.spec, &model.weights, &answers)?.to_vec2()?)
    }

    /// What the unembedding reads where the answers are read: a row for each token of each prompt's answer.
    fn answers(&self, targets: &[Target]) -> Result<Tensor> {
        let examples: Vec<usize> = (0..self.prompts.len()).collect();
        check_targets(self, targets)?;
        pick(
            &self.normed,
            &Rows::whole_as(&examples, self.length).answers(targets),
        )
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
    check_targets(base, &readout.targets)?;
    for target in &readout.targets {
        readout.metric.check_tokens(target)?;
    }
    let vocab = model.spec.d_vocab;
    let mut tokens = readout.targets.iter().flat_map(Target::tokens);
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

fn check_targets(base: &BaseRun, targets: &[Target]) -> Result<()> {
    if targets.len() != base.prompts.len() {
        return Err(Error::invalid(format!(
            "the base run has {} prompts, and {} targets were given; give one for every prompt",
            base.prompts.len(),
            targets.len()
        )));
    }
    let mut targets = targets.iter();
    targets.try_for_each(|target| target.check_length(base.length))
}

/// The metric from what the unembedding reads: for each of some prompts the rows of its answer.
pub(crate) fn read(
    model: &Model,
    x: &Tensor,
    examples: &[usize],
    readout: &Readout,
) -> Result<Vec<f64>> {
    let value = |example: usize, logits: &[&[f32]]| -> Result<f64> {
        let mut all = logits.iter().copied().flatten();
        if all.any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(Error::NotFiniteLogits {
                index: example,
                hook: "the answer position".into(),
            });
        }
        let reference = readout
            .reference
            .as_ref()
            .map(|logits| logits[example].as_slice());
        let metric = readout.metric;
        metric.value_whole(logits, &readout.targets[example], reference)
    };
    match readout.metric.reads() {
        Reads::Answers => {
            let wanted: Vec<Vec<u32>> = examples
                .iter()
                .map(|&example| readout.targets[example].columns())
                .collect();
            let columns: Vec<&[u32]> = wanted.iter().map(Vec::as_slice).collect();
            let logits = unembed_columns(&model.spec, &model.weights, x, &columns)?;
            let rows = examples.iter().zip(logits);
            rows.map(|(&example, logits)| value(example, &[&logits]))
                .collect()
        }
        Reads::Vocabulary => {
            let mut values = Vec::with_capacity(examples.len());
            let mut start = 0;
            // A few rows at a time: the vocabulary is wide.
            for examples in examples.chunks(64) {
                let n_tokens = |&example: &usize| readout.targets[example].n_tokens();
                let count = examples.iter().map(n_tokens).sum();
                let x = x.narrow(0, start, count)?;
                start += count;
                let logits = to_host(&unembed(&model.spec, &model.weights, &x)?)?;
                let mut rows = logits.chunks_exact(model.spec.d_vocab);
                let of_examples: Vec<(usize, Vec<&[f32]>)> = (examples.iter())
                    .map(|example| (*example, rows.by_ref().take(n_tokens(example)).collect()))
                    .collect();
                let found: Result<Vec<f64>> = (of_examples.par_iter())
                    .map(|(example, logits)| value(*example, logits))
                    .collect();
                values.extend(found?);
            }
            Ok(values)
        }
    }
}
