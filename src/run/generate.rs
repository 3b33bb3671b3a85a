//! Generation: one token after another, each computed from its own row and the kept keys and values of those before it, with
//! edits in force all the while.
//!
//! A step is the same walk as every run (`forward`), over one row a prompt. Keys and values are kept as the edits left them, so
//! a step needs nothing else of the past. [`generate_plain`] runs the whole sequence again for each token, with the same edits;
//! the tests hold one to the other.

mod decode;
mod in_force;
mod keys;
mod plain;
mod sampling;

use std::ops::Range;
use std::sync::LazyLock;

use candle_core::Tensor;

use super::progress::Progress;
use super::{Roles, Sources, check_prompts};
use crate::error::{Error, Result};
use crate::hooks::Edit;
use crate::model::{Model, ModelSpec};
use crate::nn::host::tensor;
use crate::nn::rope;
use decode::decode;
use in_force::check_edits;
use keys::Keys;
use plain::not_finite;
use sampling::Chooser;

pub use plain::generate_plain;
pub use sampling::Sampling;

/// What a generation is asked for, besides its prompts.
#[derive(Debug, Clone, Default)]
pub struct GenerateRequest<'a> {
    /// In force all the while; [`generate`] says at which positions.
    pub edits: &'a [Edit],
    /// Where edits find the values that they name.
    pub sources: Sources,
    /// Positions of each role, per prompt; empty if no edit names a role.
    pub roles: &'a [Roles],
    /// At most so many tokens for each prompt.
    pub max_tokens: usize,
    pub sampling: Sampling,
    /// Tokens that end a prompt's generation.
    pub stop: &'a [u32],
    /// Of the draws. Each prompt draws from a stream of its own, whatever else is in the batch before or after it.
    pub seed: u64,
    /// Whether to keep the logits that each token was chosen from.
    pub keep_logits: bool,
}

impl GenerateRequest<'_> {
    fn roles_of(&self, prompt: usize) -> &Roles {
        static NONE: LazyLock<Roles> = LazyLock::new(Roles::new);
        self.roles.get(prompt).unwrap_or(&NONE)
    }
}

/// What was generated, for each prompt.
#[derive(Debug, Clone, Default)]
pub struct Generation {
    /// The generated tokens, without the prompt; the stop token, where one ended it, is the last.
    pub tokens: Vec<Vec<u32>>,
    /// The log probability of each of them under the edited model, in nats, before temperature and cut-offs.
    pub log_probs: Vec<Vec<f64>>,
    /// f32, `[generated, d_vocab]` for each prompt; empty if they were not kept.
    pub logits: Vec<Tensor>,
}

/// Continues each prompt, with edits in force. Which positions an edit applies to:
///
/// - An edit without positions applies to every position, those of the prompt and those of the generated tokens.
/// - An absolute position (`pos=12`) is that position, also where a generated token stands when it comes.
/// - A position from the end (`pos=-1`) and a role (`pos=@S2`) are the prompt's; they do not move while tokens are generated.
/// - A key of scores and patterns (`key=`) is counted in the same way. A row of a pattern has an entry for each token that was
///   there when the row was computed: the prompt's rows for the prompt, a generated token's for those up to itself.
/// - A closure is called once for the prompt, and then for each generated token by itself.
///
/// The last token that is generated is read by nobody, so no edit reaches its position.
/// # Shapes
/// `prompts [batch, pos]`, token ids, of one length.
/// # Errors
/// Before anything runs: bad prompts, hooks, sites and edits, an edit whose source has no value for a position that generation
/// reaches, [`Error::NoRoom`] if the model has not enough positions. Then [`Error::NotFiniteLogits`] and [`Error::Interrupted`].
pub fn generate(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GenerateRequest<'_>,
    progress: &dyn Progress,
) -> Result<Generation> {
    model.spec.check_decoder("continuations")?;
    let reach = check(model, prompts, request)?;
    let mut keys = Keys::new(&model.spec, prompts.len(), request.edits);
    let ropes = rope::Tables::new(&model.spec, reach);
    let step = |pass: Range<usize>, batch: &Batch<'_>| {
        decode(model, &ropes, &mut keys, request, pass, batch)
    };
    choose_tokens(model, prompts, request, progress, step)
}

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
    match reach > limit {
        true => Err(Error::NoRoom {
            prompt: length,
            more: max_tokens,
            limit,
            most: (limit + 1).saturating_sub(length),
        }),
        false => Ok(reach),
    }
}

/// The prompts on their way.
struct Batch<'a> {
    /// Tokens of every prompt.
    prompt_length: usize,
    /// Prompts that no stop token has ended yet.
    active: &'a [usize],
    /// Each prompt with what was generated so far.
    sequences: &'a [Vec<u32>],
}

/// What can be wrong, before the long part. Gives how many positions are run.
fn check(model: &Model, prompts: &[Vec<u32>], request: &GenerateRequest<'_>) -> Result<usize> {
    let length = check_prompts(model, prompts)?;
    let reach = check_room(&model.spec, length, request.max_tokens)?;
    request.sampling.check()?;
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
fn choose_tokens(
    model: &Model,
    prompts: &[Vec<u32>],
    request: &GenerateRequest<'_>,
    progress: &dyn Progress,
    mut step: impl FnMut(Range<usize>, &Batch<'_>) -> Result<Tensor>,
) -> Result<Generation> {
    let prompt_length = prompts[0].len();
    let mut sequences = prompts.to_vec();
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    let mut choosers: Vec<Chooser> = (active.iter())
        .map(|&prompt| Chooser::new(request.sampling, request.seed, prompt))
        .collect();
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
        let batch = Batch {
            prompt_length,
            active: &active,
            sequences: &sequences,
        };
        let logits = step(pass.clone(), &batch)?.to_vec2::<f32>()?;
        let mut chosen = Vec::with_capacity(active.len());
        for (row, &prompt) in logits.iter().zip(&active) {
            let Some((token, log_prob)) = choosers[prompt].choose(row) else {
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
            !sequences[prompt]
                .last()
                .is_some_and(|t| request.stop.contains(t))
        });
        progress.advance(1);
        if active.is_empty() {
            break;
        }
    }
    progress.finish();
    let vocab = model.spec.d_vocab;
    let kept: Result<Vec<Tensor>> = match request.keep_logits {
        true => (kept.into_iter())
            .map(|values| {
                let generated = values.len() / vocab;
                tensor(values, (generated, vocab))
            })
            .collect(),
        false => Ok(Vec::new()),
    };
    Ok(Generation {
        tokens: (sequences.into_iter())
            .map(|sequence| sequence[prompt_length..].to_vec())
            .collect(),
        log_probs,
        logits: kept?,
    })
}
