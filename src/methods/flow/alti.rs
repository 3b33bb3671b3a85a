//! ALTI and ALTI-Logit as flow: what passes from state to state on its way to one state, or to the answer's logit.
//!
//! A layer's `C` says of which positions the stream after its attention is a mixture ([`crate::methods::tokens::alti`]). What comes
//! to a state is shared out by its row to the states of the layer below, down to the tokens, so that as much leaves a state as came to
//! it: the tokens get ALTI's rollout. Under ALTI-Logit, what comes down is what attention at the last position brings to the metric from each
//! position of what enters each layer, in the metric's unit and with its sign; the tokens get its shares. MLPs and biases are no part of
//! either flow.
//!
//! Sources: as [`crate::methods::tokens::alti`]. Ours: an edge is shown if, in the mean over prompts, more than a share of
//! all that is handed out passes along it.

use serde_json::{Value, json};

use super::layered::{Layered, LayeredCells, drop_weak};
use super::place::{check_threshold, position};
use crate::error::{Error, Result};
use crate::hooks::Pos;
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, clean_prompts, pairs_of,
    unmeasured,
};
use crate::methods::tokens::{
    LogitFlow, TokenConfig, TokenMethod, alti, batch_bytes, logit_flows, passed_down,
};
use crate::metric::Metric;
use crate::run::Progress;
use crate::scores::{ExampleScores, Measured, ScoresMeta, View};
use crate::spec::ModelSpec;
use crate::task::Task;

/// What flows.
///
/// Rows: `alti` are edges between states; `read` and `embed`, under ALTI-Logit, are edges to the logits; `hook_embed` is what comes to a
/// token in all.
/// # Units
/// `score`: a share of 1 of the state that is explained; under ALTI-Logit the metric's.
#[derive(Debug, Clone, PartialEq)]
pub struct AltiFlowConfig {
    /// To the metric instead of to a state.
    pub logit: bool,
    /// An edge has a row if, in the mean, more than this share of all that is handed out passes along it.
    pub threshold: f64,
    /// The position whose last state is explained; the metric is read at the last.
    pub start: Pos,
    /// Of ALTI-Logit [default: the task's].
    pub metric: Option<Metric>,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl AltiFlowConfig {
    pub fn alti() -> Self {
        AltiFlowConfig {
            logit: false,
            threshold: 0.02,
            start: Pos::FromEnd(1),
            metric: None,
            seed: None,
        }
    }

    pub fn alti_logit() -> Self {
        AltiFlowConfig {
            logit: true,
            ..AltiFlowConfig::alti()
        }
    }

    /// The same among the token methods.
    fn tokens(&self) -> TokenConfig {
        let method = match self.logit {
            true => TokenMethod::AltiLogit,
            false => TokenMethod::AltiRollout,
        };
        TokenConfig {
            metric: self.metric,
            seed: self.seed,
            ..TokenConfig::new(method)
        }
    }
}

impl Method for AltiFlowConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let of_tokens = self.tokens().header(task);
        ScoresMeta {
            method: if self.logit {
                "flow_alti_logit"
            } else {
                "flow_alti"
            }
            .into(),
            metric: if self.logit {
                of_tokens.metric
            } else {
                "flow".into()
            },
            ..of_tokens
        }
    }

    fn settings(&self) -> Value {
        json!({ "threshold": self.threshold, "start": self.start.to_string() })
    }

    fn needs(&self, task: &Task) -> Needs {
        match self.logit {
            true => self.tokens().needs(task),
            false => Needs {
                decoder: Some("ALTI"),
                whole_answers: true,
                ..Needs::default()
            },
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_threshold(self.threshold)?;
        if self.logit && self.start != Pos::FromEnd(1) {
            return Err(Error::invalid(
                "the metric is read at the last position, so ALTI-Logit starts there; leave the position out",
            ));
        }
        for pair in task.pairs() {
            position(&self.start, pair.clean.len(), &pair.roles)?;
        }
        LayeredCells::check(spec, task)?;
        if self.logit {
            let metric = self.metric.unwrap_or(task.metric);
            if metric.needs_reference() {
                return Err(Error::NoGradient {
                    metric: metric.to_string(),
                    reason: "at the clean prompt it is at its minimum, so every share would be zero; use `ExpandOptions::metric = log_prob`".into(),
                });
            }
            self.tokens().check(spec, task)?;
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Flowing {
            on,
            config: self,
            tokens: self.tokens(),
            running,
            cells: LayeredCells::new(
                on.model.spec.n_layers,
                on.task,
                "alti",
                self.logit,
                &["hook_embed".into()],
            ),
        }))
    }

    fn views(&self, _: &Task) -> Vec<View> {
        vec![View::Graph, View::Grids]
    }
}

/// A checked run in progress.
struct Flowing<'a> {
    on: Subject<'a>,
    config: &'a AltiFlowConfig,
    tokens: TokenConfig,
    running: &'a Running,
    cells: LayeredCells,
}

impl Prepared for Flowing<'_> {
    fn cells(&self) -> &[crate::scores::Cell] {
        &self.cells.all
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.on.model.spec;
        let metric = self.config.metric.unwrap_or(self.on.task.metric);
        batch_bytes(spec, length, &self.tokens, metric) + 8 * spec.n_layers * length * length
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        // As the token methods; ALTI alone is one forward pass.
        let passes = if self.config.logit { 5.0 } else { 1.0 };
        Ok(Cost::passes(passes * unit.items.len() as f64))
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let flows: Vec<(Layered, f64, f64, usize)> = if self.config.logit {
            logit_flows(self.on, &unit.items, &self.tokens, self.running, progress)?
                .into_iter()
                .map(|(flow, own, other)| (of_logit(&flow), own, other, flow.unmixed))
                .collect()
        } else {
            let all = alti(model, &clean_prompts(&pairs))?;
            let each = pairs.iter().zip(all).map(|(pair, alti)| {
                let length = pair.clean.len();
                let start = position(&self.config.start, length, &pair.roles)?;
                let mut entering = vec![vec![0.0; length]; alti.layers.len() + 1];
                entering[alti.layers.len()][start] = 1.0;
                let flow = Layered {
                    masses: passed_down(&alti.layers, &entering),
                    mixing: alti.layers,
                    read: Vec::new(),
                    embed: 0.0,
                };
                Ok((flow, f64::NAN, f64::NAN, alti.unmixed))
            });
            each.collect::<Result<_>>()?
        };
        let each = pairs.iter().zip(&unit.items).zip(flows);
        Ok(each
            .map(|((pair, &item), (flow, own, other, unmixed))| {
                let tokens = &flow.masses[..1];
                let mut example = unmeasured(task, item, own, other);
                self.cells.fill(&mut example, pair, &flow, tokens);
                example.facts.insert("unmixed".into(), unmixed as f64);
                example
            })
            .collect())
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let unmixed = measured
            .examples
            .iter()
            .filter_map(|one| one.facts.get("unmixed"));
        let unmixed = unmixed.sum::<f64>() as u64;
        measured.found.insert("unmixed_rows".into(), json!(unmixed));
        if self.config.logit {
            measured.notes.push(
                "only what attention brings flows to tokens; what MLPs and biases write is in the method `alti-logit`".into(),
            );
        }
        drop_weak(measured, self.config.threshold);
        Ok(())
    }
}

fn of_logit(flow: &LogitFlow) -> Layered {
    Layered {
        masses: flow.masses(),
        mixing: flow.mixing.clone(),
        read: flow.read.clone(),
        embed: flow.embed,
    }
}
