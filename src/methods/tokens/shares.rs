//! The shares of a batch, by whichever method.

use super::baseline::Start;
use super::batch::{Batch, Shares};
use super::gradient::{self, Reading};
use super::method::TokenMethod;
use super::{alti, attention, integrated, noise, relevance};
use crate::error::Result;
use crate::nn::rules::Rules;

/// The shares of a batch, and how many rows of ALTI were unmixed. `starts` are the method's baselines, looked up.
pub(super) fn shares_of(batch: &Batch<'_>, starts: &[Start]) -> Result<(Vec<Shares>, usize)> {
    match batch.config.tunnel {
        None => run(batch, starts),
        Some(tunnel) => {
            let of = |noisy: &Batch<'_>| Ok(run(noisy, starts)?.0);
            Ok((noise::through(batch, tunnel, of)?, 0))
        }
    }
}

/// By the method itself, at the batch's own prompts.
fn run(batch: &Batch<'_>, starts: &[Start]) -> Result<(Vec<Shares>, usize)> {
    let relevance = |rules: &Rules| -> Result<Vec<Shares>> {
        let shares = relevance::relevance(batch, rules)?;
        batch.progress.advance(batch.len() as u64);
        Ok(shares)
    };
    let shares = match &batch.config.method {
        TokenMethod::GradientTimesInput => gradient::gradient(batch, &Reading::TimesInput)?,
        TokenMethod::SaliencyL1 => gradient::gradient(batch, &Reading::L1)?,
        TokenMethod::SaliencyL2 => gradient::gradient(batch, &Reading::L2)?,
        TokenMethod::SmoothGrad { draws, noise } => gradient::smooth(batch, *draws, *noise)?,
        TokenMethod::IntegratedGradients { steps, rule, .. } => {
            integrated::integrated(batch, *steps, *rule, starts)?
        }
        TokenMethod::ExpectedGradients { draws, reference } => {
            integrated::drawn(batch, *draws, 0.0, reference, starts.first())?
        }
        TokenMethod::GradientShap {
            draws,
            noise,
            reference,
        } => integrated::drawn(batch, *draws, *noise, reference, starts.first())?,
        TokenMethod::Lrp => relevance(&Rules::cp_lrp())?,
        TokenMethod::AttnLrp => relevance(&Rules::attn_lrp())?,
        TokenMethod::AltiLogit => return alti::logit(batch),
        TokenMethod::AltiRollout => return alti::rollout(batch),
        TokenMethod::Random => gradient::random(batch),
        TokenMethod::LastAttention => attention::last_layer(batch)?,
        TokenMethod::AttentionRollout => attention::rollout(batch)?,
        TokenMethod::AttentionTimesGradient => attention::times_gradient(batch)?,
    };
    Ok((shares, 0))
}
