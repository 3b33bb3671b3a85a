//! Whether a model declines, with some heads changed: what a declining text is worth to it, and what its own answers say.

use super::changing::{Changing, Head};
use crate::error::Result;
use crate::methods::method::{Subject, clean_prompts, pairs_of};
use crate::metric::log_softmax;
use crate::run::{GenerateRequest, Logits, Quiet, Request, generate, run};

/// The log probability of the declining text behind each prompt, with some heads changed.
pub(super) fn declining(on: &Changing<'_>, decline: &[u32], heads: &[Head]) -> Result<Vec<f64>> {
    let Subject { model, task } = on.on;
    let edits = on.edits(heads);
    let mut all = vec![0.0; task.pairs().len()];
    for items in task.batches(on.running.batch) {
        let mut prompts = clean_prompts(&pairs_of(task, &items));
        let length = prompts[0].len();
        let forced = &decline[..decline.len() - 1];
        prompts.iter_mut().for_each(|prompt| prompt.extend(forced));
        let request = Request {
            edits: &edits,
            sources: on.sources.clone(),
            logits: Logits::All,
            ..Request::default()
        };
        let logits = run(model, &prompts, &request)?.logits.expect("asked for");
        for (i, &item) in items.iter().enumerate() {
            let rows: Vec<Vec<f32>> = logits
                .get(i)?
                .narrow(0, length - 1, decline.len())?
                .to_vec2()?;
            let of = |(row, &token): (&Vec<f32>, &u32)| log_softmax(row)[token as usize];
            all[item] = rows.iter().zip(decline).map(of).sum();
        }
    }
    Ok(all)
}

/// Whether the model's own answer to each prompt refuses, with some heads changed.
pub(super) fn refusing(
    on: &Changing<'_>,
    refusals: &[String],
    tokens: usize,
    heads: &[Head],
) -> Result<Vec<f64>> {
    let Subject { model, task } = on.on;
    let edits = on.edits(heads);
    let mut all = vec![0.0; task.pairs().len()];
    let refusals: Vec<String> = refusals.iter().map(|text| text.to_lowercase()).collect();
    for items in task.batches(on.running.batch) {
        let request = GenerateRequest {
            edits: &edits,
            sources: on.sources.clone(),
            max_tokens: tokens,
            ..GenerateRequest::default()
        };
        let prompts = clean_prompts(&pairs_of(task, &items));
        let written = generate(model, &prompts, &request, &Quiet)?.tokens;
        for (&item, tokens) in items.iter().zip(&written) {
            let said = task.tokenizer().decode(tokens)?.to_lowercase();
            let is_one = refusals.iter().any(|text| said.contains(text));
            all[item] = f64::from(u8::from(is_one));
        }
    }
    Ok(all)
}
