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
//! tokens (leave-one-out, Shapley values), which are [`super::removal`].

mod alti;
mod attention;
mod baseline;
mod batch;
mod cells;
mod config;
mod frozen;
mod gradient;
mod integrated;
mod method;
mod noise;
mod quadrature;
mod relevance;
mod score;
mod shares;

use serde_json::{Value, json};

pub use alti::{Alti, alti};
pub(super) use alti::{LogitFlow, passed_down};
pub use baseline::{Baseline, ReferenceSet};
use baseline::{Start, baseline_token, check_references};
use batch::Batch;
pub(super) use batch::InCells;
use cells::{Cells, EMBED};
pub use config::{Prompts, TokenConfig};
pub(super) use frozen::Write;
pub use method::TokenMethod;
pub use noise::{NoiseTunnel, OverNoise};
pub use quadrature::Quadrature;
pub use score::{ScoreConfig, TokenScore};
use shares::shares_of;

use super::activation_patching::{PatchConfig, PatchSource};
use super::method::{Cost, Exact, Method, Needs, Preparation, Prepared, Running, Subject, Unit};
use super::sites::parse_sites;
use crate::error::{Error, Result};
use crate::metric::Metric;
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// How well the shares of one prompt account for what they should sum to.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
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

impl Method for TokenConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta {
            method: self.name(),
            metric: metric.to_string(),
            unit: self.unit(metric),
            direction: Direction::Direct,
            base: (self.prompts == Prompts::Corrupted).then_some("corrupted"),
            seed: self.seed(task),
        }
    }

    fn settings(&self) -> Value {
        let mut settings = json!({ "method": self.method, "prompts": self.prompts });
        if let Some(tunnel) = self.tunnel {
            settings["tunnel"] = json!(tunnel);
        }
        settings
    }

    fn needs(&self, task: &Task) -> Needs {
        // ALTI takes the stream to be a sum, and reads it at one position.
        let mixes = self.method.needs_decoder();
        Needs {
            decoder: mixes.then_some("ALTI's mixtures"),
            aligned: true,
            metric: Some(self.metric(task)),
            gradient: self.method.knows_metric(),
            whole_answers: !self.method.reads_one_position(),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.method.check()?;
        for baseline in self.method.baselines() {
            baseline_token(spec, task.tokenizer(), baseline)?;
        }
        if let TokenMethod::ExpectedGradients { reference, .. }
        | TokenMethod::GradientShap { reference, .. } = &self.method
        {
            check_references(task, reference)?;
        }
        if let Some(tunnel) = self.tunnel {
            tunnel.check()?;
            if !self.method.goes_through_noise() {
                return Err(Error::invalid(format!(
                    "`{}` goes through no noise tunnel: it has noise of its own, or takes no gradient at the embeddings; leave `TokenConfig::tunnel` \
                     out, or take a gradient method such as `grad-x-input`",
                    self.method
                )));
            }
        }
        let metric = self.metric(task);
        if metric.needs_reference() && self.prompts == Prompts::Clean && self.method.at_the_prompt()
        {
            return Err(Error::NoGradient {
                metric: metric.to_string(),
                reason: format!(
                    "at the clean prompt it is at its minimum, so `{}` would be zero everywhere; use `ExpandOptions::metric = log_prob`, \
                     explain the corrupted prompts, or integrate from a baseline (`ig`)",
                    self.method
                ),
            });
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Sharing {
            on,
            config: self,
            running,
            starts: self.starts(on)?,
            cells: Cells::new(on),
        }))
    }

    /// Taking a token away changes the metric by minus its share, as far as the method is right.
    fn exact(&self, cells: &[Cell]) -> Option<Exact> {
        let source = self.removal();
        Some(Exact {
            method: Box::new(PatchConfig {
                only: Some(cells.to_vec()),
                metric: self.metric,
                direction: if source == PatchSource::Pair {
                    Direction::Noise
                } else {
                    Direction::Ablate
                },
                source,
                ..PatchConfig::new(parse_sites("embed:pos").ok()?)
            }),
            sign: -1.0,
            // Squares, variances and saliencies have no sign to be held against.
            sizes: self
                .tunnel
                .is_some_and(|tunnel| tunnel.over != OverNoise::Smoothgrad)
                || matches!(
                    self.method,
                    TokenMethod::SaliencyL1 | TokenMethod::SaliencyL2
                ),
        })
    }

    /// Only tokens can be taken away; what a method puts into rows of its own cannot.
    fn exact_cell(&self, cell: &Cell) -> Option<Cell> {
        let is_token = cell.component == EMBED && self.prompts == Prompts::Clean;
        is_token.then(|| cell.clone())
    }
}

impl TokenConfig {
    /// The baselines of the method, looked up.
    fn starts(&self, on: Subject<'_>) -> Result<Vec<Start>> {
        let baselines = self.method.baselines().into_iter();
        let start = |baseline| Start::new(on.model, on.task.tokenizer(), baseline);
        baselines.map(start).collect()
    }

    fn unit(&self, metric: Metric) -> String {
        let unit = match self.method {
            TokenMethod::SaliencyL1 | TokenMethod::SaliencyL2 => {
                format!("{} per unit of embedding", metric.unit())
            }
            TokenMethod::Random => "standard deviation".into(),
            _ if !self.method.knows_metric() => "share of 1".into(),
            _ => metric.unit().to_string(),
        };
        match self.tunnel.map(|tunnel| tunnel.over) {
            Some(OverNoise::SmoothgradSq | OverNoise::Vargrad) => format!("square of {unit}"),
            Some(OverNoise::Smoothgrad) | None => unit,
        }
    }
}

/// A checked run in progress.
struct Sharing<'a> {
    on: Subject<'a>,
    config: &'a TokenConfig,
    running: &'a Running,
    starts: Vec<Start>,
    cells: Cells,
}

impl Prepared for Sharing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells.all
    }

    fn bytes(&self, length: usize) -> usize {
        batch::bytes(
            &self.on.model.spec,
            length,
            self.config,
            self.config.metric(self.on.task),
        )
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        // A forward and a backward pass for each point, the metric of both prompts, and how the model does on the clean one.
        let passes = 3.0 + 2.0 * self.config.passes() as f64;
        Ok(Cost::passes(unit.items.len() as f64 * passes))
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let points = self.config.passes();
        let progress = InCells::new(progress, unit.cells.len(), points);
        let batch = Batch::new(self.on, &unit.items, self.config, self.running, &progress)?;
        let (shares, unmixed) = shares_of(&batch, &self.starts)?;
        let mut examples = Vec::with_capacity(shares.len());
        for (i, shares) in shares.iter().enumerate() {
            let mut example = self.cells.example(&batch, i, unit.items[i], shares)?;
            if let Some(total) = shares.total {
                example.facts.insert("total".into(), total);
            }
            if i == 0 && unmixed > 0 {
                example.facts.insert("unmixed".into(), unmixed as f64);
            }
            examples.push(example);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        measured.drop_unmeasured();
        let completeness: Vec<Completeness> =
            measured.examples.iter().filter_map(completeness).collect();
        if !completeness.is_empty() {
            measured
                .found
                .insert("completeness".into(), json!(completeness));
        }
        if matches!(
            self.config.method,
            TokenMethod::AltiLogit | TokenMethod::AltiRollout
        ) {
            let unmixed = measured
                .examples
                .iter()
                .filter_map(|one| one.facts.get("unmixed"));
            let unmixed: f64 = unmixed.sum();
            measured
                .found
                .insert("unmixed_rows".into(), json!(unmixed as u64));
        }
        measured.warnings.extend(doubts(self.config, &completeness));
        Ok(())
    }
}

/// How attention hands the metric of some pairs to their tokens under ALTI-Logit, and the metric of each pair's explained prompt and of its
/// other one.
pub(super) fn logit_flows(
    on: Subject<'_>,
    items: &[usize],
    config: &TokenConfig,
    running: &Running,
    progress: &dyn Progress,
) -> Result<Vec<(LogitFlow, f64, f64)>> {
    let batch = Batch::new(on, items, config, running, progress)?;
    let flows = alti::logit_flows(&batch)?.into_iter();
    let values = batch.values.iter().zip(&batch.other_values);
    Ok(flows
        .zip(values)
        .map(|(flow, (own, other))| (flow, *own, *other))
        .collect())
}

/// The shares of the tokens of some pairs' explained prompts, special tokens included. `[prompt][pos]`
pub(super) fn token_shares(
    on: Subject<'_>,
    items: &[usize],
    config: &TokenConfig,
    running: &Running,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    let batch = Batch::new(on, items, config, running, progress)?;
    let (shares, _) = shares_of(&batch, &config.starts(on)?)?;
    Ok(shares.into_iter().map(|one| one.tokens).collect())
}

/// Bytes of a prompt that is explained.
pub(super) fn batch_bytes(
    spec: &ModelSpec,
    length: usize,
    config: &TokenConfig,
    metric: Metric,
) -> usize {
    batch::bytes(spec, length, config, metric)
}

/// What the shares of a prompt sum to, if the method promises a sum.
fn completeness(example: &ExampleScores) -> Option<Completeness> {
    let total = *example.facts.get("total")?;
    let sum: f64 = example.values.iter().sum();
    Some(Completeness {
        example: example.example,
        sum,
        total,
        delta: sum - total,
    })
}

/// Lawful but doubtful results of the method itself, each with a remedy.
fn doubts(config: &TokenConfig, completeness: &[Completeness]) -> Option<String> {
    let off = completeness.iter().filter(|one| one.is_off());
    let worst = off
        .clone()
        .max_by(|a, b| a.delta.abs().total_cmp(&b.delta.abs()))?;
    let remedy = match config.method {
        _ if config.tunnel.is_some() => {
            "the method misses it at noisy prompts; take less noise, or see what it does without"
        }
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
        TokenMethod::GradientShap { .. } => {
            "the sum is only expected to agree, but for what the noise does; take more draws, or less noise"
        }
        _ => {
            "this should not happen in f32; if the model is in f16 or bf16, try `LoadOptions::dtype = f32`"
        }
    };
    Some(format!(
        "the shares of {} of {} prompts miss what they should sum to by more than {:.0}% (worst: prompt {} has {:.4} of {:.4}); {remedy}",
        off.count(),
        completeness.len(),
        100.0 * Completeness::TOLERANCE,
        worst.example,
        worst.sum,
        worst.total
    ))
}
