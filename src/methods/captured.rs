//! Runs for what they keep of some hooks, and how much that is.

use super::method::clean_prompts;
use crate::error::Result;
use crate::hooks::{Edit, Hook};
use crate::metric::Judgement;
use crate::model::{Model, ModelSpec};
use crate::run::{Cache, Logits, Request, run};
use crate::task::Pair;

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

/// The same of the clean prompts of pairs, and how the model does on them.
pub(super) fn captured_and_judged(
    model: &Model,
    pairs: &[&Pair],
    hooks: &[Hook],
) -> Result<(Cache, Vec<Judgement>)> {
    let request = Request {
        capture: hooks,
        logits: Logits::Last,
        ..Request::default()
    };
    let run = run(model, &clean_prompts(pairs), &request)?;
    let logits: Vec<Vec<f32>> = run.logits.expect("asked for").to_vec2()?;
    let judged = pairs
        .iter()
        .zip(&logits)
        .map(|(pair, logits)| pair.target.judge(logits));
    Ok((run.cache, judged.collect()))
}

/// Bytes of what a run over one prompt keeps of some hooks.
pub(super) fn captured_bytes(hooks: &[Hook], spec: &ModelSpec, length: usize) -> usize {
    let values = |hook: &Hook| hook.shape(spec, 1, length).iter().product::<usize>();
    4 * hooks.iter().map(values).sum::<usize>()
}
