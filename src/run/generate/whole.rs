//! What was generated so far as one whole run, with every edit at the positions where it was in force.

use super::super::{Request, first_not_finite};
use super::in_force::in_force;
use super::request::{GenerateRequest, Unfinished};
use crate::error::{Error, Result};
use crate::hooks::Edit;
use crate::model::Model;

/// The edits of one prompt that were in force in any pass up to `end`, each at the positions of its pass.
pub(super) fn edits_so_far(
    request: &GenerateRequest<'_>,
    prompt: usize,
    end: usize,
    batch: &Unfinished<'_>,
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
pub(super) fn whole_run<'a>(request: &GenerateRequest<'_>, edits: &'a [Edit]) -> Request<'a> {
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
    batch: &Unfinished<'_>,
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
