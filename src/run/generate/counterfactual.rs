//! Counterfactual strings: what a text would have been under edits, by the very noise that made it.
//!
//! A model that draws its tokens is a structural causal model: `w_t = argmax(phi_t + n_t)`, the logits by what stands before, Gumbel
//! noise from outside. Of a string that is there the noise is drawn in hindsight, and the edited model then draws with that noise after
//! its own prefix. What the edits leave alone comes out as it was; without them the string comes back.
//!
//! Source: Ravfogel, Svete, Snaebjarnarson, Cotterell 2024, "Gumbel Counterfactual Generation From Language Models", arXiv 2411.07180.
//! Temperature divides the logits of both models. Cut-offs (top-k, top-p) are left out on purpose: a token that only one of the two
//! models cuts off has no noise in common.

use super::super::Progress;
use super::gumbel::{fresh, hindsight, uniforms};
use super::request::{GenerateRequest, Generation};
use super::sampling::{Choose, Normaliser, Sampling, argmax};
use super::walk::walk;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::nn::host::to_host;

/// Strings and their counterfactuals, for each prompt.
#[derive(Debug, Clone, Default)]
pub struct Counterfactual {
    /// By the model as it is.
    pub original: Generation,
    /// By the edited model, with the same noise.
    pub counterfactual: Generation,
}

/// What the continuations of prompts would have been with the request's edits in force. The original continuations are `originals`, or
/// drawn by the model without the edits where that is empty. Noise is drawn from `noise_seed`; another one gives other counterfactuals
/// of the same originals. A counterfactual is as long as its original at most; where a stop token ended that, it may go on to `max_tokens`, with
/// fresh noise.
/// # Shapes
/// `prompts [batch, pos]`, token ids, of one length; `originals`: one a prompt, of any length from 1 to `max_tokens`.
/// # Units
/// Log probabilities are of the logits as they are, in nats, before temperature.
/// # Errors
/// Those of [`generate`](super::generate); [`Error::Invalid`] for a sampling that draws nothing or cuts tokens off, and for originals that are
/// missing, empty, too long, or of probability 0.
pub fn counterfactuals(
    model: &Model,
    prompts: &[Vec<u32>],
    originals: &[Vec<u32>],
    request: &GenerateRequest<'_>,
    noise_seed: u64,
    progress: &dyn Progress,
) -> Result<Counterfactual> {
    let Sampling::Temperature {
        temperature,
        top_k: None,
        top_p: None,
    } = request.sampling
    else {
        return Err(Error::invalid(
            "a counterfactual has noise in common with its original, so tokens are drawn, and among all of them: give \
             `Sampling::temperature` alone, without a cut-off",
        ));
    };
    check_originals(model, originals, prompts.len(), request.max_tokens)?;
    let unedited = GenerateRequest {
        edits: &[],
        keep_logits: true,
        ..request.clone()
    };
    let mut original = if originals.is_empty() {
        walk(
            model,
            prompts,
            &unedited,
            &mut request.choosers(prompts.len()),
            progress,
        )?
    } else {
        walk(model, prompts, &unedited, &mut Forced(originals), progress)?
    };
    let mut chooser = SameNoise {
        original: &original,
        temperature,
        seed: noise_seed,
        request,
    };
    let impossible = |log_probs: &Vec<f64>| log_probs.contains(&f64::NEG_INFINITY);
    if let Some(index) = original.log_probs.iter().position(impossible) {
        return Err(Error::invalid(format!(
            "the model gives a token of the original continuation of prompt {index} the probability 0, so no noise can have made it"
        )));
    }
    let counterfactual = walk(model, prompts, request, &mut chooser, progress)?;
    if !request.keep_logits {
        original.logits.clear();
    }
    Ok(Counterfactual {
        original,
        counterfactual,
    })
}

fn check_originals(
    model: &Model,
    originals: &[Vec<u32>],
    prompts: usize,
    most: usize,
) -> Result<()> {
    if originals.is_empty() {
        return Ok(());
    }
    if originals.len() != prompts {
        return Err(Error::invalid(format!(
            "there are {} original continuations for {prompts} prompts; give one for each, or none to have them drawn",
            originals.len()
        )));
    }
    for (index, original) in originals.iter().enumerate() {
        if original.is_empty() || original.len() > most {
            return Err(Error::invalid(format!(
                "the original continuation of prompt {index} has {} tokens, and 1 to {most} are taken (`GenerateRequest::max_tokens`)",
                original.len()
            )));
        }
        let d_vocab = model.spec.d_vocab;
        if let Some(token) = original.iter().find(|&&token| token as usize >= d_vocab) {
            return Err(Error::OutOfRange {
                hook: "the vocabulary".into(),
                what: "token",
                value: token.to_string(),
                limit: format!("{d_vocab} tokens"),
            });
        }
    }
    Ok(())
}

/// Tokens that are known.
struct Forced<'a>(&'a [Vec<u32>]);

impl Choose for Forced<'_> {
    fn choose(&mut self, prompt: usize, step: usize, logits: &[f32]) -> Option<(u32, f64)> {
        let token = self.0[prompt][step];
        let log_prob = Normaliser::of(logits)?.log_prob(logits[token as usize]);
        Some((token, log_prob))
    }

    fn most(&self, prompt: usize) -> usize {
        self.0[prompt].len()
    }
}

/// Tokens drawn by the noise of another string.
struct SameNoise<'a> {
    original: &'a Generation,
    temperature: f64,
    seed: u64,
    request: &'a GenerateRequest<'a>,
}

impl SameNoise<'_> {
    /// # Shapes
    /// `[d_vocab]`.
    fn noise(&self, prompt: usize, step: usize, d_vocab: usize) -> Option<Vec<f64>> {
        let stream = self.request.stream_of(prompt);
        let uniforms = uniforms(self.seed, stream, step, d_vocab);
        let Some(&token) = self.original.tokens[prompt].get(step) else {
            return Some(fresh(&uniforms));
        };
        let logits = self.original.logits[prompt].get(step).ok()?;
        let scaled = to_host(&logits).ok()?;
        let scaled: Vec<f64> = scaled
            .into_iter()
            .map(|logit| f64::from(logit) / self.temperature)
            .collect();
        let normaliser = Normaliser::of(&scaled)?;
        let log_probs: Vec<f64> = (scaled.iter())
            .map(|&logit| normaliser.log_prob(logit))
            .collect();
        Some(hindsight(&log_probs, token as usize, &uniforms))
    }
}

impl Choose for SameNoise<'_> {
    fn choose(&mut self, prompt: usize, step: usize, logits: &[f32]) -> Option<(u32, f64)> {
        let normaliser = Normaliser::of(logits)?;
        let noise = self.noise(prompt, step, logits.len())?;
        let noisy = logits.iter().zip(&noise);
        let noisy = noisy.map(|(&logit, noise)| f64::from(logit) / self.temperature + noise);
        let token = argmax(&noisy.collect::<Vec<f64>>())?;
        Some((token as u32, normaliser.log_prob(logits[token])))
    }

    fn most(&self, prompt: usize) -> usize {
        let original = &self.original.tokens[prompt];
        let last = original.last();
        match last.is_some_and(|token| self.request.stop.contains(token)) {
            true => usize::MAX,
            false => original.len(),
        }
    }
}
