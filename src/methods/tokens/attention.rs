//! What attention itself says of the tokens: no explanation, but what every explanation is held against.
//!
//! [`last_layer`] is where the position that gives the answer looks in the last layer, the mean over heads. [`rollout`] follows it down:
//! with `A` the mean over heads and half of each position kept as itself, the row of `prod (A / 2 + I / 2)` at that position. Neither knows
//! a metric. [`times_gradient`] weighs every look with what it does to the metric, `sum A dF/dA` over layers, heads and queries; what a
//! position holds in a late layer is taken for its token.
//!
//! Sources: Abnar and Zuidema 2020, "Quantifying Attention Flow in Transformers" (rollout; the half is theirs); Barkan et al. 2021,
//! "Grad-SAM" (attention times gradient; there positive gradients alone and the mean over queries, here all, so that a layer's sum is
//! that of `z dF/dz`).

use super::batch::{Batch, Shares};
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::methods::captured::captured;
use crate::metric::Target;
use crate::nn::host::to_host;
use crate::run::{Cache, GradientRequest, gradients};

/// The mean over heads of the last layer's pattern, at the answer's position.
pub(super) fn last_layer(batch: &Batch<'_>) -> Result<Vec<Shares>> {
    let last = batch.model.spec.n_layers - 1;
    let patterns = patterns(batch, &[last])?;
    let mut all = one_hot(batch);
    let mean = mean_over_heads(&patterns, last)?;
    for (prompt, row) in all.iter_mut().enumerate() {
        *row = looked(row, of_prompt(batch, &mean, prompt));
    }
    finished(batch, all)
}

/// The row of the rollout at the answer's position, from the last layer down.
pub(super) fn rollout(batch: &Batch<'_>) -> Result<Vec<Shares>> {
    let layers: Vec<usize> = (0..batch.model.spec.n_layers).collect();
    let patterns = patterns(batch, &layers)?;
    let mut all = one_hot(batch);
    for &layer in layers.iter().rev() {
        let mean = mean_over_heads(&patterns, layer)?;
        for (prompt, row) in all.iter_mut().enumerate() {
            let looked = looked(row, of_prompt(batch, &mean, prompt));
            for (own, looked) in row.iter_mut().zip(looked) {
                *own = 0.5 * (*own + looked);
            }
        }
    }
    finished(batch, all)
}

/// The pattern times the metric's slope there, summed over layers, heads and queries.
pub(super) fn times_gradient(batch: &Batch<'_>) -> Result<Vec<Shares>> {
    let layers: Vec<usize> = (0..batch.model.spec.n_layers).collect();
    let hooks = hooks(&layers);
    let request = GradientRequest {
        reference: batch.reference.as_deref(),
        memory: Some(batch.memory),
        edits: batch.edits(),
        ..GradientRequest::new(batch.metric, &batch.targets, &hooks)
    };
    let slopes = gradients(batch.model, &batch.prompts, &request)?.cache;
    let patterns = patterns(batch, &layers)?;
    let mut all = vec![vec![0.0; batch.length]; batch.len()];
    for hook in hooks {
        let weighed = (patterns.get(hook)?.contiguous()? * slopes.get(hook)?.contiguous()?)?;
        let by_key = to_host(&weighed.sum(1)?.sum(1)?)?; // [batch, key]
        for (row, more) in all.iter_mut().zip(by_key.chunks_exact(batch.length)) {
            (row.iter_mut().zip(more)).for_each(|(sum, &more)| *sum += f64::from(more));
        }
    }
    finished(batch, all)
}

fn hooks(layers: &[usize]) -> Vec<Hook> {
    let hook = |&layer: &usize| Hook::at(Kind::Pattern, layer);
    layers.iter().map(hook).collect()
}

fn patterns(batch: &Batch<'_>, layers: &[usize]) -> Result<Cache> {
    captured(batch.model, &batch.prompts, &hooks(layers), batch.edits())
}

/// `[batch, query, key]`
fn mean_over_heads(patterns: &Cache, layer: usize) -> Result<Vec<f32>> {
    to_host(
        &patterns
            .get(Hook::at(Kind::Pattern, layer))?
            .contiguous()?
            .mean(1)?,
    )
}

/// `[query, key]`
fn of_prompt<'a>(batch: &Batch<'_>, mean: &'a [f32], prompt: usize) -> &'a [f32] {
    let size = batch.length * batch.length;
    &mean[prompt * size..][..size]
}

/// All of the position where the answer is read, and nothing of any other. `[batch][pos]`
fn one_hot(batch: &Batch<'_>) -> Vec<Vec<f64>> {
    let row = |target: &Target| {
        let at = target.positions(batch.length).start;
        let mut row = vec![0.0; batch.length];
        row[at] = 1.0;
        row
    };
    batch.targets.iter().map(row).collect()
}

/// Where the positions of a row look, `row pattern`.
fn looked(row: &[f64], pattern: &[f32]) -> Vec<f64> {
    let mut looked = vec![0.0; row.len()];
    for (share, of_query) in row.iter().zip(pattern.chunks_exact(row.len())) {
        for (sum, &weight) in looked.iter_mut().zip(of_query) {
            *sum += share * f64::from(weight);
        }
    }
    looked
}

fn finished(batch: &Batch<'_>, all: Vec<Vec<f64>>) -> Result<Vec<Shares>> {
    batch.progress.advance(batch.len() as u64);
    let share = |tokens| Shares {
        tokens,
        ..Shares::default()
    };
    Ok(all.into_iter().map(share).collect())
}
