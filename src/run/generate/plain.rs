//! The plain twin of generation: a whole forward pass for each token.

use std::ops::Range;

use candle_core::Tensor;

use super::super::{Progress, run_examples};
use super::request::{GenerateRequest, Generation, Unfinished};
use super::steps::{check, choose_tokens};
use super::whole::{edits_so_far, whole_run};
use crate::error::Result;
use crate::model::Model;

/// [`generate`](super::generate) without kept keys and values: each token from a whole forward pass over all tokens before it.
/// Slow, and what the other must agree with.
/// # Errors
/// Those of [`generate`](super::generate).
pub fn generate_plain(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GenerateRequest<'_>,
    progress: &dyn Progress,
) -> Result<Generation> {
    check(model, prompts, request)?;
    let step = |pass: Range<usize>, batch: &Unfinished<'_>| {
        let rows = batch.active.iter().map(|&prompt| {
            let edits = edits_so_far(request, prompt, pass.end, batch)?;
            let request = whole_run(request, &edits);
            let sequence = [batch.sequences[prompt].clone()];
            let run = run_examples(model, &sequence, &[prompt], &request)?;
            Ok(run.logits.expect("asked for"))
        });
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    };
    let mut choosers = request.choosers(prompts.len());
    choose_tokens(model, prompts, request, &mut choosers, progress, step)
}
