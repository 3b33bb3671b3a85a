//! Runs for what they keep of some hooks, and how much that is.

use crate::error::Result;
use crate::hooks::{Edit, Hook};
use crate::model::{Model, ModelSpec};
use crate::run::{Cache, Logits, Request, run};

/// What a run of prompts of one length keeps of some hooks; it makes no logits.
pub(super) fn captured(
    model: &Model,
    prompts: &[Vec<u32>],
    hooks: &[Hook],
    edits: &[Edit],
) -> Result<Cache> {
    let request = Request {
        edits,
        capture: hooks,
        logits: Logits::None,
        ..Request::default()
    };
    Ok(run(model, prompts, &request)?.cache)
}

/// Bytes of what a run over one prompt keeps of some hooks.
pub(super) fn captured_bytes(hooks: &[Hook], spec: &ModelSpec, length: usize) -> usize {
    let values = |hook: &Hook| hook.shape(spec, 1, length).iter().product::<usize>();
    4 * hooks.iter().map(values).sum::<usize>()
}
