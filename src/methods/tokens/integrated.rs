//! Integrated and expected gradients: the way from a baseline to the prompt, times the mean slope along it.
//!
//! Gradients along a straight line integrate to the change of the metric, so the scores of integrated gradients sum to
//! `F(x) - F(x')`, up to the quadrature. That difference, `delta`, is kept with the results: a large one means too few steps.
//! Everything inside the model (norms, patterns) is computed anew at each point; learned positions are held constant. Expected
//! gradients take baselines from real prompts, and sum to the mean difference only as the draws increase.
//!
//! A path may bend: through other baselines on the way, leg by leg, each with its own points. The legs' changes add up, so the sum is
//! the same, and what each token gets is not. Gradient-SHAP is expected gradients to a noisy prompt.
//!
//! Sources: Sundararajan et al. 2017 (paths in its section 4); Erion et al. 2021; Lundberg and Lee 2017 (gradient-SHAP, as Captum has it:
//! the noise is on the prompt, and in the way too).

use std::collections::BTreeMap;

use rand::Rng;

use super::baseline::{Place, ReferenceSet, Start, references};
use super::batch::{Batch, Shares};
use super::noise::span;
use super::quadrature::Quadrature;
use crate::error::Result;

/// One point of a leg of a path.
struct PathPoint<'a> {
    prompt: usize,
    from: Place<'a>,
    to: Place<'a>,
    /// 0 where the leg begins, 1 where it ends.
    along: f64,
    weight: f64,
}

/// Along the path that leads through `starts`, from the first of them to the prompt.
pub(super) fn integrated(
    batch: &Batch<'_>,
    steps: usize,
    rule: Quadrature,
    starts: &[Start],
) -> Result<Vec<Shares>> {
    let nodes = rule.points(steps)?;
    let mut points = Vec::with_capacity(batch.len() * starts.len() * nodes.len());
    for prompt in 0..batch.len() {
        let stations = starts.iter().map(|start| start.place(batch, prompt));
        let stations: Vec<Place<'_>> = stations.chain([Place::Input]).collect();
        for leg in stations.windows(2) {
            points.extend(nodes.iter().map(|&(along, weight)| PathPoint {
                prompt,
                from: leg[0],
                to: leg[1],
                along,
                weight,
            }));
        }
    }
    let tokens = along_paths(batch, &points)?;
    let prompts: Vec<usize> = (0..batch.len()).collect();
    let place = |&prompt: &usize| {
        let start = starts[0].place(batch, prompt);
        Ok((prompt, start.embeddings(batch, prompt)?))
    };
    let at_start = batch.values_at(&prompts, place)?;
    Ok(with_totals(batch, tokens, &at_start))
}

/// At one random point of a way from a drawn baseline, for each draw; to the prompt with `noise`, a share of its span, on it.
pub(super) fn drawn(
    batch: &Batch<'_>,
    draws: usize,
    noise: f64,
    set: &ReferenceSet,
    one: Option<&Start>,
) -> Result<Vec<Shares>> {
    let mut points = Vec::with_capacity(batch.len() * draws);
    // How often each prompt drew each baseline, and what that is.
    let mut times: BTreeMap<(usize, usize), (usize, Place<'_>)> = BTreeMap::new();
    for prompt in 0..batch.len() {
        let baselines = references(batch, prompt, set, one);
        let deviation = (noise * span(batch.embedding(prompt))) as f32;
        let mut rng = batch.rng(prompt, 0);
        for draw in 1..=draws {
            let of = rng.random_range(0..baselines.len());
            times.entry((prompt, of)).or_insert((0, baselines[of])).0 += 1;
            points.push(PathPoint {
                prompt,
                from: baselines[of],
                to: if noise > 0.0 {
                    Place::Noisy { draw, deviation }
                } else {
                    Place::Input
                },
                along: rng.random::<f64>(),
                weight: 1.0 / draws as f64,
            });
        }
    }
    let tokens = along_paths(batch, &points)?;
    let starts: Vec<_> = times.into_iter().collect();
    let place = |(of, (_, from)): &((usize, usize), (usize, Place<'_>))| {
        Ok((of.0, from.embeddings(batch, of.0)?))
    };
    let values = batch.values_at(&starts, place)?;
    let mut mean = vec![0.0; batch.len()];
    for (((prompt, _), (times, _)), value) in starts.into_iter().zip(values) {
        mean[prompt] += value * times as f64 / draws as f64;
    }
    Ok(with_totals(batch, tokens, &mean))
}

/// For each prompt and token the sum over its points of `weight <to - from, gradient there>`.
fn along_paths(batch: &Batch<'_>, points: &[PathPoint<'_>]) -> Result<Vec<Vec<f64>>> {
    let d = batch.model.spec.d_model;
    let ends = |point: &PathPoint<'_>| -> Result<(Vec<f32>, Vec<f32>)> {
        let at = |place: Place<'_>| place.embeddings(batch, point.prompt);
        Ok((at(point.from)?, at(point.to)?))
    };
    let place = |point: &PathPoint<'_>| {
        let (from, to) = ends(point)?;
        let between = |(from, to): (&f32, &f32)| {
            (f64::from(*from) * (1.0 - point.along) + f64::from(*to) * point.along) as f32
        };
        Ok((point.prompt, from.iter().zip(&to).map(between).collect()))
    };
    let mut tokens = vec![vec![0.0; batch.length]; batch.len()];
    batch.slopes_at(points, place, |point, gradient| {
        let (from, to) = ends(point)?;
        let way = from.chunks_exact(d).zip(to.chunks_exact(d));
        let rows = way.zip(gradient.chunks_exact(d));
        for (sum, ((from, to), gradient)) in tokens[point.prompt].iter_mut().zip(rows) {
            let each = from.iter().zip(to).zip(gradient);
            let term = |((from, to), g): ((&f32, &f32), &f32)| {
                (f64::from(*to) - f64::from(*from)) * f64::from(*g)
            };
            *sum += point.weight * each.map(term).sum::<f64>();
        }
        Ok(())
    })?;
    Ok(tokens)
}

fn with_totals(batch: &Batch<'_>, tokens: Vec<Vec<f64>>, from: &[f64]) -> Vec<Shares> {
    let each = tokens.into_iter().zip(&batch.values).zip(from);
    each.map(|((tokens, value), from)| Shares {
        tokens,
        total: Some(value - from),
        ..Shares::default()
    })
    .collect()
}
