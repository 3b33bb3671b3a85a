//! Which input tokens a metric rests on: gradients, integrated gradients, relevance and ALTI over the embeddings of a prompt.
//!
//! A score here is a *share*: how much of the metric a token is given credit for. It stands in the table with direction
//! `direct`, where `score` and `value` are both the share and nothing is subtracted; a positive share speaks for the answer.
//! Note the sign when lining a share up with an exact effect: replacing the token's embedding by the baseline *changes* the metric by
//! minus its share, as far as the method is right. Rows of tokens have the component `hook_embed` and a position. What belongs
//! to no token is a row of its own, a component without a position: `bias`, `attn.hook_pattern` (what the softmax leaks under
//! AttnLRP), `hook_mlp_out` (under ALTI-Logit), `metric` (what a metric is beyond its slope times the logits), so that methods
//! which promise a sum show all of it.
//!
//! The methods, their papers and what we read into them stand in their files. Left out on purpose: methods that remove
//! tokens (occlusion, Shapley values), which the sweep engine does exactly.

mod alti;
mod batch;
mod frozen;
mod gradient;
mod integrated;
mod method;
mod relevance;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use polars::prelude::Column;
use serde_json::json;

use super::record;
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::model::Model;
use crate::nn::rules::Rules;
use crate::run::{Progress, available_memory};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Provenance, Scores, ScoresMeta};
use crate::task::Task;
pub use alti::{Alti, alti};
use batch::{Batch, Shares};
use gradient::Reading;
use integrated::Start;
pub use method::{Baseline, Quadrature, ReferenceSet, TokenMethod};

/// Which prompts of the pairs are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prompts {
    #[default]
    Clean,
    Corrupted,
}

/// What to explain, and how.
#[derive(Debug, Clone)]
pub struct TokenConfig {
    pub method: TokenMethod,
    pub metric: Metric,
    pub prompts: Prompts,
    pub detail: Detail,
    /// Of noise, draws and bootstrap.
    pub seed: u64,
    /// Prompts, or points of a path, that run together at most; memory may allow fewer.
    pub batch: usize,
    /// Bytes of activations that may be kept at once.
    pub memory: usize,
}

impl TokenConfig {
    /// The clean prompts by one method; all else at its default.
    pub fn new(method: TokenMethod, metric: Metric) -> Self {
        TokenConfig {
            method,
            metric,
            prompts: Prompts::Clean,
            detail: Detail::Mean,
            seed: 0,
            batch: 8,
            memory: available_memory() / 4,
        }
    }

    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, task: &Task) -> Result<()> {
        self.method.check()?;
        task.check_metric(self.metric)?;
        if self.method != TokenMethod::AltiRollout {
            self.metric.check_differentiable()?;
        }
        if self.metric.needs_reference()
            && self.prompts == Prompts::Clean
            && self.method.at_the_prompt()
        {
            return Err(Error::NoGradient {
                metric: self.metric.to_string(),
                reason: format!(
                    "at the clean prompt it is at its minimum, so `{}` would be zero everywhere; use `--metric log_prob`, \
                     explain the corrupted prompts, or integrate from a baseline (`ig`)",
                    self.method
                ),
            });
        }
        task.check_aligned()
    }
}

/// How well the shares of one prompt account for what they should sum to.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Completeness {
    /// Index of the pair in the task as written.
    pub example: usize,
    pub sum: f64,
    /// `F(x) - F(x')` for integrated and expected gradients; the metric for relevances and ALTI-Logit.
    pub total: f64,
    /// `sum - total`
    pub delta: f64,
}

impl Completeness {
    /// Sums that differ by more than this share of the total are warned of.
    pub const TOLERANCE: f64 = 0.05;
    /// Differences below this are the rounding of f32 logits.
    const ROUNDING: f64 = 1e-3;

    fn is_off(&self) -> bool {
        // A NaN is off too.
        let limit = (Completeness::TOLERANCE * self.total.abs()).max(Completeness::ROUNDING);
        self.delta.abs().partial_cmp(&limit) != Some(std::cmp::Ordering::Less)
    }
}

/// Shares before they are a table: for [`Scores::assemble`] with [`Direction::Direct`].
#[derive(Debug, Clone, PartialEq)]
pub struct TokenMeasurements {
    pub cells: Vec<Cell>,
    /// One for each pair of the task, in its order; `values` are shares.
    pub examples: Vec<ExampleScores>,
    /// One for each pair, if the method promises a sum.
    pub completeness: Vec<Completeness>,
    /// Rows of ALTI that count as themselves alone because no part brought them nearer to zero.
    pub unmixed: usize,
}

/// Shares out the metric of each prompt of a task over its tokens.
/// # Units
/// `value` and `score`, which are equal: the metric's; of saliencies, the metric's per unit of the embedding; of ALTI rollout, a
/// share of 1.
/// # Errors
/// Those of [`TokenConfig::check`], before anything runs; [`Error::Tokenizer`] for a baseline token that does not exist;
/// [`Error::Interrupted`].
pub fn token_attribution(
    model: &Model,
    task: &Task,
    config: &TokenConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    Ok(token_attribution_with(model, task, config, progress)?.0)
}

/// [`token_attribution`] with the measurements behind the table.
pub(super) fn token_attribution_with(
    model: &Model,
    task: &Task,
    config: &TokenConfig,
    progress: &dyn Progress,
) -> Result<(Scores, TokenMeasurements)> {
    let began = Instant::now();
    let measured = token_scores(model, task, config, progress)?;
    let meta = ScoresMeta {
        method: config.method.name().into(),
        metric: config.metric.to_string(),
        unit: unit(config),
        direction: Direction::Direct,
        seed: config.seed,
    };
    let provenance = provenance(
        model,
        task,
        config,
        &measured,
        began.elapsed().as_secs_f64(),
    );
    let (cells, examples) = (&measured.cells, &measured.examples);
    let mut scores = Scores::assemble(cells, examples, &meta, config.detail, provenance)?;
    if config.prompts == Prompts::Corrupted {
        // A direct share belongs to the clean run unless something else is said.
        let base = vec!["corrupted"; scores.table.height()];
        scores.table.with_column(Column::new("base".into(), base))?;
    }
    Ok((scores, measured))
}

fn unit(config: &TokenConfig) -> String {
    match config.method {
        TokenMethod::SaliencyL1 | TokenMethod::SaliencyL2 => {
            format!("{} per unit of embedding", config.metric.unit())
        }
        TokenMethod::AltiRollout => "share of 1".into(),
        _ => config.metric.unit().into(),
    }
}

/// [`token_attribution`] before the table.
/// # Errors
/// Those of [`token_attribution`].
pub fn token_scores(
    model: &Model,
    task: &Task,
    config: &TokenConfig,
    progress: &dyn Progress,
) -> Result<TokenMeasurements> {
    config.check(task)?;
    let start = match &config.method {
        TokenMethod::IntegratedGradients { baseline, .. } => {
            Some(Start::new(model, task.tokenizer(), baseline)?)
        }
        _ => None,
    };
    let longest = task.pairs().iter().map(|pair| pair.clean.len()).max();
    let longest = longest.expect("checked to have a pair");
    let steps = task.pairs().len() * config.method.passes();
    progress.start(config.method.name(), steps as u64);
    let mut cells = Cells::new(longest);
    let mut all: Vec<(usize, ExampleScores, Option<Completeness>)> = Vec::new();
    let mut unmixed = 0;
    for indices in task.batches(batch::room(&model.spec, longest, config)) {
        if progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "nothing was asked to be kept".into(),
            });
        }
        let batch = Batch::new(model, task, &indices, config, progress)?;
        let (shares, rows) = run(&batch, start.as_ref())?;
        unmixed += rows;
        for (i, shares) in shares.iter().enumerate() {
            let example = cells.example(&batch, i, shares);
            all.push((indices[i], example, completeness(&batch, i, shares)));
        }
    }
    progress.finish();
    all.sort_by_key(|(at, _, _)| *at);
    let completeness = all.iter().filter_map(|(_, _, closed)| *closed).collect();
    Ok(TokenMeasurements {
        cells: cells.all,
        examples: all.into_iter().map(|(_, example, _)| example).collect(),
        completeness,
        unmixed,
    })
}

/// The shares of a batch, and how many rows of ALTI were unmixed.
fn run(batch: &Batch<'_>, start: Option<&Start>) -> Result<(Vec<Shares>, usize)> {
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
            let start = start.expect("looked up for this method");
            integrated::integrated(batch, *steps, *rule, start)?
        }
        TokenMethod::ExpectedGradients { draws, reference } => {
            integrated::expected(batch, *draws, *reference)?
        }
        TokenMethod::Lrp => relevance(&Rules::cp_lrp())?,
        TokenMethod::AttnLrp => relevance(&Rules::attn_lrp())?,
        TokenMethod::AltiLogit => return alti::logit(batch),
        TokenMethod::AltiRollout => return alti::rollout(batch),
    };
    Ok((shares, 0))
}

fn completeness(batch: &Batch<'_>, i: usize, shares: &Shares) -> Option<Completeness> {
    let total = shares.total?;
    let parts = shares.parts.iter().map(|(_, _, share)| share);
    let sum: f64 = shares
        .tokens
        .iter()
        .chain(&shares.positions)
        .chain(parts)
        .sum();
    Some(Completeness {
        example: batch.pairs[i].index,
        sum,
        total,
        delta: sum - total,
    })
}

/// The cells of a table as they come up: tokens by position, position embeddings, then components.
struct Cells {
    longest: usize,
    all: Vec<Cell>,
}

impl Cells {
    fn new(longest: usize) -> Self {
        Cells {
            longest,
            all: (0..longest)
                .map(|pos| by_position("hook_embed", pos))
                .collect(),
        }
    }

    fn example(&mut self, batch: &Batch<'_>, i: usize, shares: &Shares) -> ExampleScores {
        if self.all.len() == self.longest {
            // Every prompt has the same kinds of rows, so the first one tells which there are.
            if !shares.positions.is_empty() {
                let positions = 0..self.longest;
                self.all
                    .extend(positions.map(|pos| by_position("hook_pos_embed", pos)));
            }
            self.all
                .extend(shares.parts.iter().map(|&(name, layer, _)| Cell {
                    component: name.into(),
                    layer: layer.map(|layer| layer as u32),
                    ..Cell::default()
                }));
        }
        let tokens = 0..shares.tokens.len();
        let positions = self.longest..self.longest + shares.positions.len();
        let parts = self.all.len() - shares.parts.len()..self.all.len();
        let cells = tokens.chain(positions).chain(parts).map(|cell| cell as u32);
        let parts = shares.parts.iter().map(|(_, _, share)| share);
        let values = shares.tokens.iter().chain(&shares.positions).chain(parts);
        let pair = batch.pairs[i];
        let (own, other) = (batch.values[i], batch.other_values[i]);
        let (clean, corrupted) = match batch.config.prompts {
            Prompts::Clean => (own, other),
            Prompts::Corrupted => (other, own),
        };
        ExampleScores {
            example: pair.index,
            clean,
            corrupted,
            tokens: batch.task.texts(&batch.prompts[i]),
            roles: pair.roles.clone(),
            cells: Arc::from(cells.collect::<Vec<u32>>()),
            values: values.copied().collect(),
            ..ExampleScores::default()
        }
    }
}

fn by_position(component: &str, pos: usize) -> Cell {
    Cell {
        component: component.into(),
        pos: Some(pos as i32),
        ..Cell::default()
    }
}

fn provenance(
    model: &Model,
    task: &Task,
    config: &TokenConfig,
    measured: &TokenMeasurements,
    seconds: f64,
) -> Provenance {
    let mut settings = json!({
        "method": config.method,
        "prompts": config.prompts,
    });
    if !measured.completeness.is_empty() {
        settings["completeness"] = json!(measured.completeness);
    }
    if matches!(
        config.method,
        TokenMethod::AltiLogit | TokenMethod::AltiRollout
    ) {
        settings["unmixed_rows"] = json!(measured.unmixed);
    }
    record::provenance(
        model,
        task,
        settings,
        seconds,
        warnings(task, config, measured),
    )
}

/// Lawful but doubtful results, each with a remedy.
fn warnings(task: &Task, config: &TokenConfig, measured: &TokenMeasurements) -> Vec<String> {
    let mut warnings = Vec::new();
    if task.pairs().len() < task.asked {
        warnings.push(format!(
            "{} of {} pairs are usable; `candlewick tokens` shows why the others were dropped",
            task.pairs().len(),
            task.asked
        ));
    }
    let examples = measured.examples.len();
    let wrong = measured
        .examples
        .iter()
        .filter(|one| one.clean <= 0.0)
        .count();
    if config.metric == Metric::LogitDiff && 2 * wrong > examples {
        warnings.push(format!(
            "the model prefers the wrong answer on {wrong} of {examples} clean prompts: it does not do this task, so shares \
             mean little"
        ));
    }
    let off = measured.completeness.iter().filter(|one| one.is_off());
    let worst = off
        .clone()
        .max_by(|a, b| a.delta.abs().total_cmp(&b.delta.abs()));
    if let Some(worst) = worst {
        let remedy = match config.method {
            TokenMethod::IntegratedGradients {
                baseline: Baseline::Zero,
                ..
            } => {
                "near zero, norms turn faster than steps can follow; use the baseline `mean`, `bos` or `pair`"
            }
            TokenMethod::IntegratedGradients { .. } => "take more steps, or a nearer baseline",
            TokenMethod::ExpectedGradients { .. } => {
                "the sum is only expected to agree; take more draws"
            }
            _ => "this should not happen in f32; if the model is in f16 or bf16, try `--dtype f32`",
        };
        warnings.push(format!(
            "the shares of {} of {examples} prompts miss what they should sum to by more than {:.0}% (worst: prompt {} has {:.4} \
             of {:.4}); {remedy}",
            off.count(),
            100.0 * Completeness::TOLERANCE,
            worst.example,
            worst.sum,
            worst.total
        ));
    }
    let groups: BTreeSet<(usize, usize)> = task
        .pairs()
        .iter()
        .map(|pair| (pair.template, pair.clean.len()))
        .collect();
    if groups.len() > 1 && config.detail == Detail::Mean {
        warnings.push(format!(
            "the pairs come from {} templates or lengths, so one position is not one role of the sentence and rows mix them: take one \
             template (`--template 0`), or a row for each example",
            groups.len()
        ));
    }
    warnings
}
