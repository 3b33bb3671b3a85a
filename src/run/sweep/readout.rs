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

/// The metric from normalised answer rows, each of one prompt.
pub(crate) fn read(
    model: &Model,
    x: &Tensor,
    examples: &[usize],
    readout: &Readout,
) -> Result<Vec<f64>> {
    let value = |example: usize, logits: &[f32]| -> Result<f64> {
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
        let metric = readout.metric;
        metric.value(logits, &readout.targets[example], reference)
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
            rows.map(|(&example, logits)| value(example, &logits))
                .collect()
        }
        Reads::Vocabulary => {
            let mut values = Vec::with_capacity(examples.len());
            // A few rows at a time: the vocabulary is wide.
            for (chunk, examples) in examples.chunks(64).enumerate() {
                let x = x.narrow(0, chunk * 64, examples.len())?;
                let logits = to_host(&unembed(&model.spec, &model.weights, &x)?)?;
                let rows = examples
                    .par_iter()
                    .zip(logits.par_chunks_exact(model.spec.d_vocab));
                let found: Result<Vec<f64>> = rows
                    .map(|(&example, logits)| value(example, logits))
                    .collect();
                values.extend(found?);
            }
            Ok(values)
        }
    }
}
