//! Token methods held against what is asked of them: a row for each, with random shares beside.
//!
//! [`TokenScore`] lists the questions. Those about known tokens take a role of the task for the truth (the subject that a verb agrees
//! with). All others ask the model itself: without the tokens that are said to matter (the mean embedding in their place) a right method's
//! prompt loses the most, and where each token's embedding is a little longer or shorter the metric changes by the shares. Special tokens are left out of every ranking and removed by none, but changes near the prompt and complexity
//! are of all tokens.
//!
//! Sources: Arras et al. 2025, "A Close Look at Decomposition-based XAI-Methods" (MRR and its kin; the exact definitions are ours); DeYoung et
//! al. 2020, "ERASER" (comprehensiveness, sufficiency); Yeh et al. 2019, "On the (In)fidelity and Sensitivity of Explanations" (changes of
//! 0.03 of each token, and radii of 0.02 of the embeddings' span, where Captum has both in absolute units); Bhatt et al. 2020 (complexity). Left out on
//! purpose: agreement between methods as a sign of truth. Not here: curves of deletion and insertion, label leakage, and the choice of pairs that
//! the model gets right.

mod asked;
mod catalogue;
mod statistic;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use asked::{Questions, Scored, TOP, tokens};
pub use catalogue::TokenScore;

use super::baseline::{Baseline, Start};
use super::batch::{Batch, InCells};
use super::config::TokenConfig;
use super::method::TokenMethod;
use crate::error::{Error, Result};
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, unmeasured,
};
use crate::metric::Metric;
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// Which methods are scored, and by what.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreConfig {
    /// Each name once. Their prompts are the clean ones.
    pub methods: Vec<TokenMethod>,
    /// The first is the table's own; the others stand beside it.
    pub scores: Vec<TokenScore>,
    /// The role whose tokens are the right ones, for those that take one.
    pub gold: Option<String>,
    /// Random changes of each prompt behind an infidelity, whose standard deviation is 0.03 of each token's embedding.
    pub changes: usize,
    /// Random changes behind a sensitivity, of at most 0.02 of the embeddings' span.
    pub places: usize,
    /// [default: the task's]
    pub metric: Option<Metric>,
    /// [default: the task's]
    pub seed: Option<u64>,
}

impl ScoreConfig {
    /// These methods by every score that needs no known tokens.
    pub fn new(methods: Vec<TokenMethod>) -> Self {
        let mut scores = TokenScore::ALL.to_vec();
        scores.retain(|score| !score.needs_gold());
        ScoreConfig {
            methods,
            scores,
            gold: None,
            changes: 50,
            places: 10,
            metric: None,
            seed: None,
        }
    }

    /// And, before these, by how well they find the tokens of a role.
    pub fn with_gold(mut self, role: impl Into<String>) -> Self {
        self.gold = Some(role.into());
        self.scores = TokenScore::ALL.to_vec();
        self
    }

    fn configs(&self) -> Vec<TokenConfig> {
        let config = |method: &TokenMethod| TokenConfig {
            metric: self.metric,
            seed: self.seed,
            ..TokenConfig::new(method.clone())
        };
        self.methods.iter().map(config).collect()
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    fn asks(&self, score: TokenScore) -> bool {
        self.scores.contains(&score)
    }

    /// Forward passes with a gradient that a method takes of a prompt.
    fn passes(&self, config: &TokenConfig) -> usize {
        let places = if self.asks(TokenScore::MaxSensitivity) {
            self.places
        } else {
            0
        };
        config.passes() * (1 + places)
    }

    /// Forward passes besides.
    fn values(&self) -> usize {
        let asks = |score| usize::from(self.asks(score));
        let curves = asks(TokenScore::Comprehensiveness) + asks(TokenScore::Sufficiency);
        let changes = asks(TokenScore::Infidelity) | asks(TokenScore::InfidelityScaled);
        TOP.len() * curves + self.changes * changes
    }
}

impl Method for ScoreConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let own = self
            .scores
            .first()
            .copied()
            .unwrap_or(TokenScore::Complexity);
        let unit = match own {
            TokenScore::Comprehensiveness | TokenScore::Sufficiency => self.metric(task).unit(),
            TokenScore::Infidelity => "square of the metric's unit",
            TokenScore::Complexity => "nats",
            _ => "share of 1",
        };
        let seed = self.seed.unwrap_or(task.seed);
        ScoresMeta::new("token_scores", own.name(), unit, Direction::Direct, seed)
    }

    fn settings(&self) -> Value {
        json!({
            "methods": self.methods, "scores": self.scores, "gold": self.gold, "changes": self.changes, "places": self.places,
            "of": self.metric.map(|metric| metric.to_string()),
        })
    }

    fn needs(&self, task: &Task) -> Needs {
        let needs: Vec<Needs> = self.configs().iter().map(|one| one.needs(task)).collect();
        Needs {
            decoder: needs.iter().find_map(|one| one.decoder),
            aligned: true,
            metric: Some(self.metric(task)),
            gradient: needs.iter().any(|one| one.gradient),
            whole_answers: needs.iter().all(|one| one.whole_answers),
            roles: self.gold.is_some(),
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        for config in self.configs() {
            config.check(spec, task)?;
        }
        let names: BTreeSet<&str> = self.methods.iter().map(TokenMethod::name).collect();
        let scores: BTreeSet<TokenScore> = self.scores.iter().copied().collect();
        if names.len() < self.methods.len() || scores.len() < self.scores.len() {
            return Err(Error::invalid(
                "a method or a score stands twice in the list, and rows could not be told apart; name each once",
            ));
        }
        if names.is_empty() || scores.is_empty() {
            return Err(Error::invalid(
                "there is nothing to score, or nothing to score it by (`ScoreConfig::methods`, `ScoreConfig::scores`)",
            ));
        }
        if self.changes == 0 || self.places == 0 {
            return Err(Error::invalid(
                "infidelity and sensitivity are taken over at least one random change each, not 0",
            ));
        }
        let metric = self.metric(task);
        let curves = [TokenScore::Comprehensiveness, TokenScore::Sufficiency];
        if let Some(score) = curves.into_iter().find(|score| self.asks(*score))
            && !metric.is_better_higher()
        {
            return Err(Error::invalid(format!(
                "`{}` is what the metric loses, and less of `{metric}` is better; take another metric (`ExpandOptions::metric = log_prob`), or other \
                 scores (`ScoreConfig::scores`)",
                score.name()
            )));
        }
        let known = task.all_roles();
        match &self.gold {
            Some(role) if !known.contains(role) => Err(Error::UnknownRole {
                role: role.clone(),
                known: known.join(", "),
            }),
            None if self.scores.iter().any(|score| score.needs_gold()) => {
                Err(Error::invalid(format!(
                    "`{}` needs to be told which tokens are right: name a role of the task (`ScoreConfig::gold`), one of {}",
                    self.scores
                        .iter()
                        .find(|score| score.needs_gold())
                        .map_or("", |score| score.name()),
                    known.join(", ")
                )))
            }
            Some(role) if !self.scores.iter().any(|score| score.needs_gold()) => {
                Err(Error::invalid(format!(
                    "`{role}` is named as what is right, and no score asks for it; leave `ScoreConfig::gold` out, or score by `mrr`"
                )))
            }
            _ => Ok(()),
        }
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let start = |baseline: &Baseline| Start::new(on.model, on.task.tokenizer(), baseline);
        let mut methods = Vec::new();
        for config in self.configs() {
            let starts = config.method.baselines().into_iter().map(start);
            let starts = starts.collect::<Result<Vec<Start>>>()?;
            methods.push(Scored { config, starts });
        }
        let cell = |(method, (i, score)): (&Scored, (usize, &TokenScore))| Cell {
            component: method.config.method.name().into(),
            measure: (i > 0).then(|| score.name().into()),
            ..Cell::default()
        };
        let cells = methods.iter().flat_map(|method| {
            let scores = self.scores.iter().enumerate();
            scores.map(move |score| cell((method, score)))
        });
        Ok(Box::new(Scoring {
            on,
            config: self,
            running,
            cells: cells.collect(),
            questions: Questions {
                scores: &self.scores,
                gold: self.gold.as_deref(),
                changes: self.changes,
                places: self.places,
                fill: start(&Baseline::Mean)?,
                nothing: start(&Baseline::Zero)?,
            },
            methods,
        }))
    }
}

/// A checked run in progress.
struct Scoring<'a> {
    on: Subject<'a>,
    config: &'a ScoreConfig,
    running: &'a Running,
    methods: Vec<Scored>,
    questions: Questions<'a>,
    cells: Vec<Cell>,
}

impl Prepared for Scoring<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let (spec, metric) = (&self.on.model.spec, self.config.metric(self.on.task));
        let of = |method: &Scored| super::batch::bytes(spec, length, &method.config, metric);
        self.methods.iter().map(of).max().unwrap_or(0)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let of =
            |method: &Scored| 3 + self.config.values() + 2 * self.config.passes(&method.config);
        let passes: usize = self.methods.iter().map(of).sum();
        Ok(Cost::passes((unit.items.len() * passes) as f64))
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let points: usize = (self.methods.iter())
            .map(|method| self.config.passes(&method.config))
            .sum();
        let progress = InCells::new(progress, unit.cells.len(), points);
        let mut examples: Vec<ExampleScores> = Vec::new();
        for (at, method) in self.methods.iter().enumerate() {
            let batch = Batch::new(
                self.on,
                &unit.items,
                &method.config,
                self.running,
                &progress,
            )?;
            let started = Instant::now();
            let shares = tokens(&batch, method)?;
            let seconds = started.elapsed().as_secs_f64() / batch.len() as f64;
            let found = self.questions.scores(&batch, method, &shares)?;
            for (prompt, found) in found.into_iter().enumerate() {
                if at == 0 {
                    let item = unit.items[prompt];
                    examples.push(unmeasured(self.on.task, item, f64::NAN, f64::NAN));
                }
                let one = &mut examples[prompt];
                let first = at * self.config.scores.len();
                let cells = (first..).zip(&found).filter(|(_, value)| value.is_some());
                let cells = one
                    .cells
                    .iter()
                    .copied()
                    .chain(cells.map(|(cell, _)| cell as u32));
                one.cells = cells.collect::<Arc<[u32]>>();
                one.values.extend(found.into_iter().flatten());
                let fact = format!("{SECONDS}{}", method.config.method);
                one.facts.insert(fact, seconds);
            }
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        measured.drop_unmeasured();
        let metric = self.config.metric(self.on.task).to_string();
        measured.notes.push(format!("the methods explain {metric}"));
        measured
            .found
            .insert("explained_metric".into(), json!(metric));
        let seconds = self.methods.iter().map(|method| {
            let fact = format!("{SECONDS}{}", method.config.method);
            let of = measured
                .examples
                .iter()
                .filter_map(|one| one.facts.get(&fact));
            let mean = of.sum::<f64>() / measured.examples.len().max(1) as f64;
            format!("{} {mean:.4}", method.config.method)
        });
        let seconds: Vec<String> = seconds.collect();
        measured
            .notes
            .push(format!("seconds a prompt: {}", seconds.join(", ")));
        Ok(())
    }
}

const SECONDS: &str = "seconds:";
