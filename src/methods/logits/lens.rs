//! The logit lens: what the model would say if it stopped after a layer.
//!
//! The stream after each layer goes through the final norm, with the statistics of that stream itself, and through the
//! unembedding with its bias and soft-cap. (With the final run's scale in their place, as a cache would offer it, early
//! layers look far less sure than they are.) At the last layer the lens is the model.
//!
//! Source: nostalgebraist 2020, "Interpreting GPT: the logit lens". Left out on purpose: trained lenses (Belrose et al. 2023).

use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Tensor};
use rayon::prelude::*;
use serde_json::json;

use super::readout::every_layer;
use super::{BATCH, in_layer, provenance, unmeasured};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind};
use crate::metric::{Metric, Reads, Target};
use crate::model::Model;
use crate::nn::embed::{unembed, unembed_columns};
use crate::nn::{host::to_host, norm};
use crate::run::{Logits, Progress, Request, run};
use crate::scores::{
    Cell, Detail, Direction, ExampleScores, LayerColumn, Layers, Scores, ScoresMeta, View,
};
use crate::task::{Pair, Task};

/// Streams that are read together: a vocabulary of logits each.
const ROWS: usize = 64;

/// What is measured beside the metric, in the order of the table.
const MEASURES: [&str; 6] = ["logit", "prob", "rank", "top1", "entropy", "kl"];

/// How to look through the lens.
#[derive(Debug, Clone)]
pub struct LensConfig {
    pub metric: Metric,
    /// Only the last position, where the answer belongs; else all of them.
    pub end_only: bool,
    /// Likeliest tokens listed for each layer, at the last position.
    pub tokens: usize,
    pub detail: Detail,
    pub seed: u64,
}

impl LensConfig {
    /// All positions, five tokens.
    pub fn new(metric: Metric) -> Self {
        LensConfig {
            metric,
            end_only: false,
            tokens: 5,
            detail: Detail::Mean,
            seed: 0,
        }
    }

    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, task: &Task) -> Result<()> {
        task.check_metric(self.metric)?;
        match task
            .pairs()
            .iter()
            .find(|pair| pair.target.answers.is_empty())
        {
            None => Ok(()),
            Some(pair) => Err(Error::BadMetric {
                metric: "rank".into(),
                reason: format!(
                    "follows an answer through the layers, and pair {} of task `{}` has none; fill the column `answer`",
                    pair.index, task.name
                ),
            }),
        }
    }
}

/// The lens over every layer of every clean run: `hook_resid_pre` of layer 0, then `hook_resid_post` of each layer.
///
/// The metric and six measures of one distribution: `logit` of the answer (mean of several), its `prob` and `rank`, `top1`
/// (1 where the rank is 1), `entropy`, and `kl`, the divergence of the model's own distribution at that position from the
/// layer's, `KL(final || layer)`.
/// # Units
/// `score`: the metric's unit; logits, probability, rank, fraction, nats and nats.
/// # Errors
/// Those of [`LensConfig::check`].
pub fn logit_lens(
    model: &Model,
    task: &Task,
    config: &LensConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    model
        .spec
        .check_decoder("direct logit attribution and lenses")?;
    config.check(task)?;
    let began = Instant::now();
    let hooks = streams(model);
    let longest = task.pairs().iter().map(|pair| pair.clean.len()).max();
    let places = if config.end_only {
        1
    } else {
        longest.unwrap_or(1)
    };
    let mut cells = cells(&hooks, places, config.end_only);
    let mut all: Vec<ExampleScores> = Vec::with_capacity(task.pairs().len());
    let mut ends = Ends::new(hooks.len(), model.spec.d_vocab);
    progress.start("looking through the lens", task.pairs().len() as u64);
    for batch in task.batches(BATCH) {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing was asked to be kept".into(),
            });
        }
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &task.pairs()[pair]).collect();
        let readings = read_batch(model, &hooks, &pairs, config, &mut ends)?;
        for (pair, readings) in pairs.iter().zip(readings) {
            let last = readings.len() / hooks.len();
            // At the last layer and position the lens is the model.
            let clean = readings[readings.len() - 1].metric;
            let mut example = unmeasured(task, pair, clean);
            let cell = |layer: usize, place: usize| (layer * places + place) * (MEASURES.len() + 1);
            let (mut indices, mut values) = (Vec::new(), Vec::new());
            for (i, reading) in readings.iter().enumerate() {
                let first = cell(i / last, i % last) as u32;
                indices.extend(first..first + MEASURES.len() as u32 + 1);
                values.extend(reading.values());
            }
            (example.cells, example.values) = (Arc::from(indices), values);
            all.push(example);
        }
        progress.advance(pairs.len() as u64);
    }
    progress.finish();
    add_top_tokens(
        model,
        task,
        &hooks,
        &ends,
        config.tokens,
        &mut cells,
        &mut all,
    )?;
    all.sort_by_key(|example| example.example);
    let settings = json!({
        "metric": config.metric.to_string(),
        "end_only": config.end_only,
        "tokens": config.tokens,
    });
    let mut provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    provenance.views = views(config);
    let meta = ScoresMeta {
        method: "logit_lens".into(),
        metric: config.metric.to_string(),
        unit: config.metric.unit().into(),
        direction: Direction::Direct,
        seed: config.seed,
    };
    Scores::assemble(&cells, &all, &meta, config.detail, provenance)
}

/// Each layer's measures at the last position, and before them a grid where other positions are read too.
fn views(config: &LensConfig) -> Vec<View> {
    let metric = LayerColumn::of(&config.metric.to_string());
    let measures = ["prob", "rank", "top1", "entropy", "kl"].map(LayerColumn::of);
    let layers = Layers {
        columns: [vec![metric], measures.to_vec()].concat(),
        tokens: Some("top_prob".into()),
    };
    let grids = (!config.end_only).then_some(View::Grids);
    grids.into_iter().chain([View::Layers(layers)]).collect()
}

/// What one stream says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Reading {
    metric: f64,
    logit: f64,
    prob: f64,
    rank: f64,
    entropy: f64,
    kl: f64,
}

impl Reading {
    fn values(&self) -> [f64; 7] {
        let top1 = f64::from(u8::from(self.rank == 1.0));
        [
            self.metric,
            self.logit,
            self.prob,
            self.rank,
            top1,
            self.entropy,
            self.kl,
        ]
    }
}

/// The streams that the lens looks at.
pub(crate) fn streams(model: &Model) -> Vec<Hook> {
    let mut hooks = vec![Hook::at(Kind::ResidPre, 0)];
    hooks.extend(every_layer(model, Kind::ResidPost));
    hooks
}

/// The logits of streams, as the model would make them of its last one.
/// # Shapes
/// `x [rows, d_model]`, before the final norm; gives f32 `[rows, d_vocab]`, and what the unembedding read.
pub(crate) fn decode(model: &Model, x: &Tensor) -> Result<(Tensor, Tensor)> {
    let normed = match &model.weights.ln_final {
        Some(w) => norm::forward(x, w, model.spec.norm, model.spec.norm_eps)?,
        None => x.clone(),
    };
    Ok((
        unembed(&model.spec, &model.weights, &normed)?.to_dtype(DType::F32)?,
        normed,
    ))
}

fn cells(hooks: &[Hook], places: usize, end_only: bool) -> Vec<Cell> {
    let mut cells = Vec::new();
    for hook in hooks {
        for place in 0..places {
            let cell = Cell {
                pos: Some(if end_only { -1 } else { place as i32 }),
                ..in_layer(hook.kind.name(), hook.layer.unwrap_or(0))
            };
            let measure = |name: &&str| Cell {
                measure: Some(name.to_string()),
                ..cell.clone()
            };
            cells.push(cell.clone());
            cells.extend(MEASURES.iter().map(measure));
        }
    }
    cells
}

/// The distributions at the ends of all prompts: their sums, and enough to find any one probability again.
struct Ends {
    /// `[stream][token]`, sums of probabilities over prompts.
    sums: Vec<Vec<f64>>,
    /// `[stream]`, one tensor `[d_model]` and one logarithm of the sum of exponentials for each prompt, in the order they ran.
    normed: Vec<Vec<(Tensor, f64)>>,
}

impl Ends {
    fn new(streams: usize, d_vocab: usize) -> Self {
        Ends {
            sums: vec![vec![0.0; d_vocab]; streams],
            normed: vec![Vec::new(); streams],
        }
    }
}

/// For each prompt of a batch the readings of its streams, layer by layer, position by position.
fn read_batch(
    model: &Model,
    hooks: &[Hook],
    pairs: &[&Pair],
    config: &LensConfig,
    ends: &mut Ends,
) -> Result<Vec<Vec<Reading>>> {
    let prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
    let length = prompts[0].len();
    let request = Request {
        capture: hooks,
        logits: Logits::None,
        ..Request::default()
    };
    let cache = run(model, &prompts, &request)?.cache;
    let rows: Vec<u32> = match config.end_only {
        true => (0..pairs.len())
            .map(|i| ((i + 1) * length - 1) as u32)
            .collect(),
        false => (0..(pairs.len() * length) as u32).collect(),
    };
    let places = rows.len() / pairs.len();
    let none = Reading {
        metric: 0.0,
        logit: 0.0,
        prob: 0.0,
        rank: 0.0,
        entropy: 0.0,
        kl: 0.0,
    };
    let mut readings = vec![vec![none; hooks.len() * places]; pairs.len()];
    for (chunk, rows) in rows.chunks(ROWS).enumerate() {
        let index = Tensor::new(rows, &model.device)?;
        let decoded = |hook: &Hook| decode(model, &cache.packed(*hook)?.index_select(&index, 0)?);
        let (last, _) = decoded(hooks.last().expect("a model has a layer"))?;
        let reference = to_host(&last)?;
        for (layer, hook) in hooks.iter().enumerate() {
            let (logits, normed) = decoded(hook)?;
            let logits = to_host(&logits)?;
            let vocab = model.spec.d_vocab;
            let read: Vec<(Reading, f64)> = logits
                .par_chunks(vocab)
                .zip(reference.par_chunks(vocab))
                .zip(rows)
                .map(|((logits, reference), &row)| {
                    let target = &pairs[row as usize / length].target;
                    read_row(logits, reference, target, config.metric)
                })
                .collect::<Result<_>>()?;
            for (i, ((reading, lse), &row)) in read.into_iter().zip(rows).enumerate() {
                let at = chunk * ROWS + i;
                readings[at / places][layer * places + at % places] = reading;
                if (row as usize + 1).is_multiple_of(length) {
                    ends.normed[layer].push((normed.get(i)?, lse));
                    let sums = ends.sums[layer].iter_mut();
                    let logits = &logits[i * vocab..(i + 1) * vocab];
                    sums.zip(logits)
                        .for_each(|(sum, &l)| *sum += (f64::from(l) - lse).exp());
                }
            }
        }
    }
    Ok(readings)
}

/// Reads one distribution; also gives the logarithm of the sum of the exponentials of its logits.
fn read_row(
    logits: &[f32],
    reference: &[f32],
    target: &Target,
    metric: Metric,
) -> Result<(Reading, f64)> {
    let lse = log_sum_exp(logits);
    let reference_lse = log_sum_exp(reference);
    let (mut entropy, mut kl) = (0.0, 0.0);
    for (&logit, &of_reference) in logits.iter().zip(reference) {
        let here = f64::from(logit) - lse;
        let there = f64::from(of_reference) - reference_lse;
        entropy -= here.exp() * here;
        kl += there.exp() * (there - here);
    }
    let at = |ids: &[u32]| {
        ids.iter()
            .map(|&id| logits[id as usize])
            .collect::<Vec<f32>>()
    };
    let answers = at(&target.answers);
    let best = answers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let chances = answers.iter().map(|&logit| (f64::from(logit) - lse).exp());
    let prob: f64 = chances.sum();
    let metric = match metric.reads() {
        Reads::Answers => metric.value(&at(&target.columns()), target, None)?,
        Reads::Vocabulary => metric.value(logits, target, Some(reference))?,
    };
    let reading = Reading {
        metric,
        logit: answers.iter().map(|&l| f64::from(l)).sum::<f64>() / answers.len() as f64,
        prob,
        rank: (1 + logits.iter().filter(|&&logit| logit > best).count()) as f64,
        entropy,
        // Rounding can put it a hair below zero, where it cannot be.
        kl: kl.max(0.0),
    };
    Ok((reading, lse))
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - largest).exp()).sum();
    largest + sum.ln()
}

/// Rows for the tokens that are likeliest on average after each layer.
fn add_top_tokens(
    model: &Model,
    task: &Task,
    hooks: &[Hook],
    ends: &Ends,
    tokens: usize,
    cells: &mut Vec<Cell>,
    all: &mut [ExampleScores],
) -> Result<()> {
    for (layer, hook) in hooks.iter().enumerate() {
        let sums = &ends.sums[layer];
        let mut order: Vec<u32> = (0..sums.len() as u32).collect();
        order.sort_by(|&a, &b| sums[b as usize].total_cmp(&sums[a as usize]));
        order.truncate(tokens);
        let first = cells.len() as u32;
        cells.extend(order.iter().map(|&token| Cell {
            src: Some(hook.to_string()),
            dst: Some(task.text(token)),
            measure: Some("top_prob".into()),
            ..in_layer(hook.kind.name(), hook.layer.unwrap_or(0))
        }));
        let indices: Vec<u32> = (first..cells.len() as u32).collect();
        for (example, (normed, lse)) in all.iter_mut().zip(&ends.normed[layer]) {
            let logits = unembed_columns(
                &model.spec,
                &model.weights,
                &normed.unsqueeze(0)?,
                &[&order],
            )?;
            let probs = logits[0]
                .iter()
                .map(|&logit| (f64::from(logit) - lse).exp());
            example.cells = example.cells.iter().chain(&indices).copied().collect();
            example.values.extend(probs);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_is_read_as_by_hand() {
        // Probabilities 1/8, 1/8, 1/4, 1/2 here; the model ends at 1/4 each.
        let logits: Vec<f32> = [1.0f32, 1.0, 2.0, 4.0]
            .iter()
            .map(|p| p.ln() - 2.0)
            .collect();
        let target = Target {
            answers: vec![2],
            wrong: vec![3],
        };
        let (reading, lse) =
            read_row(&logits, &[7.0; 4], &target, Metric::LogitDiff).expect("reads");
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} against {b}");
        near(reading.metric, -(2f64.ln()));
        near(reading.logit, 2f64.ln() - 2.0);
        near(reading.prob, 0.25);
        near(reading.rank, 2.0);
        // 2/8 ln 8 + 1/4 ln 4 + 1/2 ln 2 = (6/8 + 4/8 + 4/8) ln 2.
        near(reading.entropy, 1.75 * 2f64.ln());
        // Mean of ln(1/4) - ln p over the four: (1 + 1 + 0 - 1) / 4 ln 2.
        near(reading.kl, 0.25 * 2f64.ln());
        near(lse, 8f64.ln() - 2.0);
    }
}
