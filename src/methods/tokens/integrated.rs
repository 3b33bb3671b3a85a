//! Integrated and expected gradients: the way from a baseline to the prompt, times the mean slope along it.
//!
//! Gradients along a straight line integrate to the change of the metric, so the scores of integrated gradients sum to
//! `F(x) - F(x')`, up to the quadrature. That difference, `delta`, is kept with the results: a large one means too few steps.
//! Everything inside the model (norms, patterns) is computed anew at each point; learned positions are held constant. Expected
//! gradients take baselines from real prompts, and sum to the mean difference only as the draws increase.
//!
//! Sources: Sundararajan et al. 2017; Erion et al. 2021.

use std::collections::BTreeMap;

use rand::Rng;

use super::batch::{Batch, Shares};
use super::method::{Baseline, Quadrature, ReferenceSet};
use crate::error::{Error, Result};
use crate::model::{Model, Tokenizer};
use crate::nn::embed::embed;
use crate::nn::host::to_host;
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// Where a path begins.
#[derive(Clone, Copy)]
enum Origin<'a> {
    /// One vector at every position.
    Vector(&'a [f32]),
    /// The embeddings of a prompt, looked up when they are needed.
    Prompt(&'a [u32]),
}

impl Origin<'_> {
    /// `[pos, d_model]`
    fn embeddings(self, batch: &Batch<'_>) -> Result<Vec<f32>> {
        match self {
            Origin::Vector(vector) => Ok(vector.repeat(batch.length)),
            Origin::Prompt(tokens) => {
                to_host(&embed(&batch.model.spec, &batch.model.weights, tokens)?)
            }
        }
    }
}

/// One point of the line from a baseline to a prompt.
struct PathPoint<'a> {
    prompt: usize,
    from: Origin<'a>,
    /// 0 at the baseline, 1 at the prompt.
    along: f64,
    weight: f64,
}

pub(super) fn integrated(
    batch: &Batch<'_>,
    steps: usize,
    rule: Quadrature,
    start: &Start,
) -> Result<Vec<Shares>> {
    let from = |prompt: usize| match start {
        Start::Vector(vector) => Origin::Vector(vector),
        Start::Pair => Origin::Prompt(&batch.others[prompt]),
    };
    let nodes = rule.points(steps)?;
    let points: Vec<PathPoint> = (0..batch.len())
        .flat_map(|prompt| {
            nodes.iter().map(move |&(along, weight)| PathPoint {
                prompt,
                from: from(prompt),
                along,
                weight,
            })
        })
        .collect();
    let tokens = along_paths(batch, &points)?;
    let prompts: Vec<usize> = (0..batch.len()).collect();
    let place = |&prompt: &usize| Ok((prompt, from(prompt).embeddings(batch)?));
    let at_start = batch.values_at(&prompts, place)?;
    Ok(with_totals(batch, tokens, &at_start))
}

pub(super) fn expected(
    batch: &Batch<'_>,
    draws: usize,
    reference: ReferenceSet,
) -> Result<Vec<Shares>> {
    let mut points = Vec::with_capacity(batch.len() * draws);
    // How often each prompt drew each reference, and what that is.
    let mut drawn: BTreeMap<(usize, usize), (usize, &[u32])> = BTreeMap::new();
    for prompt in 0..batch.len() {
        let others = references(batch.task, batch.pairs[prompt], reference);
        let mut rng = batch.rng(prompt, 0);
        for _ in 0..draws {
            let of = rng.random_range(0..others.len());
            drawn.entry((prompt, of)).or_insert((0, others[of])).0 += 1;
            points.push(PathPoint {
                prompt,
                from: Origin::Prompt(others[of]),
                along: rng.random::<f64>(),
                weight: 1.0 / draws as f64,
            });
        }
    }
    let tokens = along_paths(batch, &points)?;
    let starts: Vec<_> = drawn.into_iter().collect();
    let place = |(of, (_, tokens)): &((usize, usize), (usize, &[u32]))| {
        Ok((of.0, Origin::Prompt(tokens).embeddings(batch)?))
    };
    let values = batch.values_at(&starts, place)?;
    let mut mean = vec![0.0; batch.len()];
    for (((prompt, _), (times, _)), value) in starts.into_iter().zip(values) {
        mean[prompt] += value * times as f64 / draws as f64;
    }
    Ok(with_totals(batch, tokens, &mean))
}

/// For each prompt and token the sum over its points of `weight <x - x', gradient there>`.
fn along_paths(batch: &Batch<'_>, points: &[PathPoint<'_>]) -> Result<Vec<Vec<f64>>> {
    let d = batch.model.spec.d_model;
    let place = |point: &PathPoint<'_>| {
        let from = point.from.embeddings(batch)?;
        let between = |(from, to): (&f32, &f32)| {
            (f64::from(*from) * (1.0 - point.along) + f64::from(*to) * point.along) as f32
        };
        let to = batch.embedding(point.prompt);
        Ok((point.prompt, from.iter().zip(to).map(between).collect()))
    };
    let mut tokens = vec![vec![0.0; batch.length]; batch.len()];
    batch.slopes_at(points, place, |point, gradient| {
        let from = point.from.embeddings(batch)?;
        let way = from
            .chunks_exact(d)
            .zip(batch.embedding(point.prompt).chunks_exact(d));
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

/// The prompts of a reference set that a pair may draw; [`check_references`] has seen to it that there is one.
fn references<'a>(task: &'a Task, pair: &Pair, set: ReferenceSet) -> Vec<&'a [u32]> {
    let fits = |other: &&Pair| {
        other.template == pair.template
            && other.clean.len() == pair.clean.len()
            && (set == ReferenceSet::Corrupted || other.index != pair.index)
    };
    let prompt = |other: &'a Pair| match set {
        ReferenceSet::Corrupted => other.corrupted.as_slice(),
        ReferenceSet::Clean => other.clean.as_slice(),
    };
    task.pairs().iter().filter(fits).map(prompt).collect()
}

/// A baseline, looked up: one vector for every position, or the pair's other prompt.
pub(super) enum Start {
    Vector(Vec<f32>),
    Pair,
}

impl Start {
    /// # Errors
    /// Those of [`baseline_token`].
    pub fn new(model: &Model, tokenizer: &Tokenizer, baseline: &Baseline) -> Result<Self> {
        let spec = &model.spec;
        if let Some(token) = baseline_token(spec, tokenizer, baseline)? {
            let embedding = to_host(&embed(spec, &model.weights, &[token])?)?;
            return Ok(Start::Vector(embedding));
        }
        if *baseline == Baseline::Pair {
            return Ok(Start::Pair);
        }
        if *baseline == Baseline::Zero {
            return Ok(Start::Vector(vec![0.0; spec.d_model]));
        }
        let every_token: Vec<u32> = (0..spec.d_vocab as u32).collect();
        let embeddings = embed(spec, &model.weights, &every_token)?; // [d_vocab, d_model]
        let mean = embeddings.to_dtype(candle_core::DType::F32)?.mean(0)?;
        Ok(Start::Vector(to_host(&mean)?.into_iter().collect()))
    }
}

/// The token of a baseline that is one.
/// # Errors
/// [`Error::Tokenizer`] for a token that the vocabulary does not have.
pub(super) fn baseline_token(
    spec: &ModelSpec,
    tokenizer: &Tokenizer,
    baseline: &Baseline,
) -> Result<Option<u32>> {
    let refuse = |reason: String| Err(Error::Tokenizer { reason });
    match baseline {
        Baseline::Zero | Baseline::Mean | Baseline::Pair => Ok(None),
        Baseline::Bos => match tokenizer.bos() {
            Some(token) => Ok(Some(token)),
            None => refuse(
                "it has no BOS token to serve as a baseline; use `zero`, `mean` or `token:...`"
                    .into(),
            ),
        },
        Baseline::Token(text) => match tokenizer.id(text) {
            Some(token) if (token as usize) < spec.d_vocab => Ok(Some(token)),
            _ => refuse(format!(
                "`{text}` is not in its vocabulary, so it cannot be a baseline; write the token as tokenizer.json does, \
                 or use `zero`, `mean`, `bos`"
            )),
        },
    }
}

/// Whether every pair has a prompt to draw.
/// # Errors
/// [`Error::Invalid`] naming the first pair that has none.
pub(super) fn check_references(task: &Task, set: ReferenceSet) -> Result<()> {
    if set == ReferenceSet::Corrupted {
        return Ok(());
    }
    let key = |pair: &Pair| (pair.template, pair.clean.len());
    let mut alike: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for pair in task.pairs() {
        *alike.entry(key(pair)).or_default() += 1;
    }
    match task.pairs().iter().find(|pair| alike[&key(pair)] == 1) {
        None => Ok(()),
        Some(pair) => Err(Error::invalid(format!(
            "expected gradients draw from the clean prompts of other pairs, and pair {} (template {}, {} tokens) has none beside \
             it; use more pairs (`ExpandOptions::n_pairs`), or the reference set `corrupted`",
            pair.index,
            pair.template,
            pair.clean.len()
        ))),
    }
}
