//! Runs for what they keep of some hooks, and how much that is.

use super::method::{clean_prompts, targets_of};
use crate::error::Result;
use crate::hooks::{Edit, Hook};
use crate::metric::{Judgement, Target};
use crate::model::{Model, ModelSpec};
use crate::run::{Cache, Logits, Request, run, run_to_answers};
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
    let targets = targets_of(pairs);
    let (logits, cache) = run_to_answers(model, &clean_prompts(pairs), &targets, hooks)?;
    Ok((cache, judged(&targets, &logits)))
}

/// How the model does, from the logits of each token of each answer.
pub(super) fn judged(targets: &[Target], logits: &[Vec<Vec<f32>>]) -> Vec<Judgement> {
    let judge = |(target, logits): (&Target, &Vec<Vec<f32>>)| {
        let rows: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
        target.judge_whole(&rows)
    };
    targets.iter().zip(logits).map(judge).collect()
}

/// Bytes of what a run over one prompt keeps of some hooks.
pub(super) fn captured_bytes(hooks: &[Hook], spec: &ModelSpec, length: usize) -> usize {
    let values = |hook: &Hook| hook.shape(spec, 1, length).iter().product::<usize>();
    4 * hooks.iter().map(values).sum::<usize>()
}

/// Bytes of the run of one prompt that a sweep starts from at hooks of a width.
pub(super) fn base_bytes(spec: &ModelSpec, length: usize, width: usize) -> usize {
    let kept = 3 * spec.d_model + (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head + width;
    4 * length * spec.n_layers * kept
}
