//! What the gradient at the embeddings says by itself: gradient times input, saliency, SmoothGrad.
//!
//! The input is `hook_embed`; a learned position embedding is an input of its own and gets its own row under gradient times
//! input. A gradient is the slope at one point, and a token whose removal matters can stand where the metric is flat.
//!
//! Sources: Simonyan et al. 2014 (saliency); Shrikumar et al. 2017 (gradient times input); Smilkov et al. 2017 (SmoothGrad),
//! where we average the gradient and not its magnitude, so that the score keeps its sign.

use super::batch::{Batch, Shares, dot};
use super::noise::{noisy, span};
use crate::error::Result;
use crate::methods::gaussian::normal;

/// What is read off a gradient.
pub(super) enum Reading {
    TimesInput,
    L1,
    L2,
}

/// One backward pass for each prompt.
pub(super) fn gradient(batch: &Batch<'_>, reading: &Reading) -> Result<Vec<Shares>> {
    let d = batch.model.spec.d_model;
    let positions = batch.positions()?;
    let prompts: Vec<usize> = (0..batch.len()).collect();
    let mut all = vec![Shares::default(); batch.len()];
    let place = |&prompt: &usize| Ok((prompt, batch.embedding(prompt).to_vec()));
    batch.slopes_at(&prompts, place, |&prompt, gradient| {
        let rows = gradient.chunks_exact(d);
        all[prompt] = match reading {
            Reading::TimesInput => Shares {
                tokens: by_token(batch.embedding(prompt), gradient, d),
                positions: by_token(&positions, gradient, d),
                ..Shares::default()
            },
            Reading::L1 => Shares {
                tokens: rows
                    .map(|row| row.iter().map(|g| f64::from(g.abs())).sum())
                    .collect(),
                ..Shares::default()
            },
            Reading::L2 => Shares {
                tokens: rows.map(|row| dot(row, row).sqrt()).collect(),
                ..Shares::default()
            },
        };
        Ok(())
    })?;
    Ok(all)
}

/// Gradient times input, with the mean gradient of `draws` noisy copies.
pub(super) fn smooth(batch: &Batch<'_>, draws: usize, noise: f64) -> Result<Vec<Shares>> {
    let points: Vec<(usize, usize)> = (0..batch.len())
        .flat_map(|prompt| (0..draws).map(move |draw| (prompt, draw)))
        .collect();
    let spans: Vec<f64> = (0..batch.len())
        .map(|prompt| span(batch.embedding(prompt)))
        .collect();
    let place = |&(prompt, draw): &(usize, usize)| {
        let mut rng = batch.rng(prompt, draw);
        let deviation = (noise * spans[prompt]) as f32;
        Ok((prompt, noisy(batch.embedding(prompt), deviation, &mut rng)))
    };
    let mut all = vec![vec![0.0; batch.length]; batch.len()];
    batch.slopes_at(&points, place, |&(prompt, _), gradient| {
        let shares = by_token(batch.embedding(prompt), gradient, batch.model.spec.d_model);
        for (sum, share) in all[prompt].iter_mut().zip(shares) {
            *sum += share / draws as f64;
        }
        Ok(())
    })?;
    Ok(all
        .into_iter()
        .map(|tokens| Shares {
            tokens,
            ..Shares::default()
        })
        .collect())
}

/// Of no method: normal draws.
pub(super) fn random(batch: &Batch<'_>) -> Vec<Shares> {
    let of = |prompt: usize| {
        let mut rng = batch.rng(prompt, 0);
        Shares {
            tokens: (0..batch.length)
                .map(|_| f64::from(normal(&mut rng)))
                .collect(),
            ..Shares::default()
        }
    };
    batch.progress.advance(batch.len() as u64);
    (0..batch.len()).map(of).collect()
}

/// `<x_t, g_t>` for each token.
/// # Shapes
/// `x`, `gradient [pos, d]`
pub(super) fn by_token(x: &[f32], gradient: &[f32], d: usize) -> Vec<f64> {
    let rows = x.chunks_exact(d).zip(gradient.chunks_exact(d));
    rows.map(|(x, g)| dot(x, g)).collect()
}
