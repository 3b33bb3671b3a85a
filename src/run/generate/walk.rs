//! Step after step over kept keys and values, whoever chooses the tokens.

use std::ops::Range;

use super::super::Progress;
use super::decode::decode;
use super::keys::Keys;
use super::request::{GenerateRequest, Generation, Unfinished};
use super::sampling::Choose;
use super::steps::{check, choose_tokens};
use crate::error::Result;
use crate::model::Model;
use crate::nn::rope;

/// [`generate`](super::generate), where `chooser` chooses the tokens and not the sampling of the request.
/// # Errors
/// Those of [`generate`](super::generate).
pub(super) fn walk(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GenerateRequest<'_>,
    chooser: &mut dyn Choose,
    progress: &dyn Progress,
) -> Result<Generation> {
    model.spec.check_decoder("continuations")?;
    let reach = check(model, prompts, request)?;
    let mut keys = Keys::new(&model.spec, prompts.len(), request.edits);
    let spec = &model.spec;
    let mut turned_for = prompts[0].len();
    let mut ropes = rope::Tables::with_room(spec, turned_for, reach);
    let step = |pass: Range<usize>, batch: &Unfinished<'_>| {
        if rope::Tables::are_alike(spec, turned_for, pass.end) {
            return decode(model, &ropes, &mut keys, request, pass, batch);
        }
        // The text has grown into other frequencies: what is kept was turned by the old ones.
        turned_for = pass.end;
        ropes = rope::Tables::with_room(spec, turned_for, reach);
        decode(model, &ropes, &mut keys, request, 0..pass.end, batch)
    };
    choose_tokens(model, prompts, request, chooser, progress, step)
}
