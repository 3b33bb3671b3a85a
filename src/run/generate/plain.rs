//! The plain twin of generation: a whole forward pass for each token.

use std::ops::Range;

use candle_core::Tensor;

use super::super::{Progress, Request, first_not_finite, run_examples};
use super::in_force::in_force;
use super::{Batch, GenerateRequest, Generation, check, choose_tokens};
use crate::error::{Error, Result};
use crate::hooks::Edit;
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
    let step = |pass: Range<usize>, batch: &Batch<'_>| {
        let rows = batch.active.iter().map(|&prompt| {
            let edits = edits_so_far(request, prompt, pass.end, batch)?;
            let request = whole_run(request, &edits);
            let sequence = [batch.sequences[prompt].clone()];
            let run = run_examples(model, &sequence, &[prompt], &request)?;
            Ok(run.logits.expect("asked for"))
        });
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    };
    choose_tokens(model, prompts, request, progress, step)
}

/// The edits of one prompt that were in force in any pass up to `end`, each at the positions of its pass.
fn edits_so_far(
    request: &GenerateRequest<'_>,
    prompt: usize,
    end: usize,
    batch: &Batch<'_>,
) -> Result<Vec<Edit>> {
    let length = batch.prompt_length;
    let generated = (length..end).map(|pos| pos..pos + 1);
    let mut edits = Vec::new();
    for pass in std::iter::once(0..length).chain(generated) {
        for edit in request.edits {
            edits.extend(in_force(edit, &pass, length, request.roles_of(prompt))?);
        }
    }
    Ok(edits)
}

/// One whole run with edits that name absolute positions.
fn whole_run<'a>(request: &GenerateRequest<'_>, edits: &'a [Edit]) -> Request<'a> {
    Request {
        edits,
        sources: request.sources.clone(),
        ..Request::default()
    }
}

/// Logits that hold a NaN are traced to the first hook that shows it, by a whole run of the sequence so far.
pub(super) fn not_finite(
    model: &Model,
    request: &GenerateRequest<'_>,
    prompt: usize,
    end: usize,
    batch: &Batch<'_>,
) -> Error {
    let hook = edits_so_far(request, prompt, end, batch).map(|edits| {
        let request = whole_run(request, &edits);
        first_not_finite(model, &batch.sequences[prompt], prompt, 0, &request)
    });
    match hook {
        Ok(hook) => Error::NotFiniteLogits {
            index: prompt,
            hook,
        },
        Err(error) => error,
    }
}
