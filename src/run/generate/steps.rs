//! What both ways to generate share: the checks before the long part, and token after token from the logits of each pass.

use std::ops::Range;

use candle_core::Tensor;

use super::super::check_prompts;
use super::super::progress::Progress;
use super::in_force::check_edits;
use super::request::{GenerateRequest, Generation, Unfinished};
use super::sampling::Choose;
use super::whole::not_finite;
use crate::error::{Error, Result};
use crate::model::{Model, ModelSpec};
use crate::nn::host::tensor;

/// How many positions are run for prompts of `length` tokens: those and the generated tokens' but the last, which nobody reads.
/// # Errors
/// [`Error::NoRoom`] if the model has not as many; [`Error::Invalid`] if nothing is to be generated.
pub fn check_room(spec: &ModelSpec, length: usize, max_tokens: usize) -> Result<usize> {
    if max_tokens == 0 {
        return Err(Error::invalid(
            "nothing is to be generated: `max_tokens` is 0; ask for 1 or more",
        ));
    }
    let limit = spec.n_ctx;
    let reach = length.saturating_add(max_tokens - 1);
    if reach > limit {
        Err(Error::NoRoom {
            prompt: length,
            more: max_tokens,
            limit,
            most: (limit + 1).saturating_sub(length),
        })
    } else {
        Ok(reach)
    }
}

/// What can be wrong, before the long part. Gives how many positions are run.
pub(super) fn check(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GenerateRequest<'_>,
) -> Result<usize> {
    let length = check_prompts(model, prompts)?;
    let reach = check_room(&model.spec, length, request.max_tokens)?;
    request.sampling.check()?;
    if !request.streams.is_empty() && request.streams.len() != prompts.len() {
        return Err(Error::invalid(format!(
            "streams of draws were given for {} prompts of {}; give them for each, or for none",
            request.streams.len(),
            prompts.len()
        )));
    }
    if !request.roles.is_empty() && request.roles.len() != prompts.len() {
        return Err(Error::invalid(format!(
            "roles were given for {} prompts of {}; give them for each, or for none",
            request.roles.len(),
            prompts.len()
        )));
    }
    for prompt in 0..prompts.len() {
        check_edits(&model.spec, request, prompt, length, reach)?;
    }
    Ok(reach)
}

/// Token after token, from the logits that `step` gives for the positions of a pass: `[active prompts, d_vocab]`.
pub(super) fn choose_tokens(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GenerateRequest<'_>,
    chooser: &mut dyn Choose,
    progress: &dyn Progress,
    mut step: impl FnMut(Range<usize>, &Unfinished<'_>) -> Result<Tensor>,
) -> Result<Generation> {
    let prompt_length = prompts[0].len();
    let mut sequences = prompts.to_vec();
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    let mut log_probs = vec![Vec::new(); prompts.len()];
    let mut kept = vec![Vec::new(); prompts.len()];
    progress.start("generating", request.max_tokens as u64);
    for generated in 0..request.max_tokens {
        if progress.cancelled() {
            let kept = "a generation that is cut short is not kept".into();
            return Err(Error::Interrupted { kept });
        }
        let pass = match generated {
            0 => 0..prompt_length,
            n => prompt_length + n - 1..prompt_length + n,
        };
        let batch = Unfinished {
            prompt_length,
            active: &active,
            sequences: &sequences,
        };
        let logits = step(pass.clone(), &batch)?.to_vec2::<f32>()?;
        let mut chosen = Vec::with_capacity(active.len());
        for (row, &prompt) in logits.iter().zip(&active) {
            let Some((token, log_prob)) = chooser.choose(prompt, generated, row) else {
                return Err(not_finite(model, request, prompt, pass.end, &batch));
            };
            log_probs[prompt].push(log_prob);
            chosen.push(token);
        }
        if request.keep_logits {
            for (row, &prompt) in logits.into_iter().zip(&active) {
                kept[prompt].extend(row);
            }
        }
        for (&token, &prompt) in chosen.iter().zip(&active) {
            sequences[prompt].push(token);
        }
        active.retain(|&prompt| {
            let last = sequences[prompt].last();
            let is_ended = last.is_some_and(|token| request.stop.contains(token));
            !is_ended && generated + 1 < chooser.most(prompt)
        });
        progress.advance(1);
        if active.is_empty() {
            break;
        }
    }
    progress.finish();
    let vocab = model.spec.d_vocab;
    let kept: Result<Vec<Tensor>> = if request.keep_logits {
        (kept.into_iter())
            .map(|values| {
                let generated = values.len() / vocab;
                tensor(values, (generated, vocab))
            })
            .collect()
    } else {
        Ok(Vec::new())
    };
    Ok(Generation {
        tokens: (sequences.into_iter())
            .map(|sequence| sequence[prompt_length..].to_vec())
            .collect(),
        log_probs,
        logits: kept?,
    })
}
