//! Safety heads: how far the next token's distribution moves without a head's attention (Ships), and which heads together turn what the
//! model holds of all prompts the most (Sahara).
//!
//! Ships is, for each prompt, `KL(p || p~)` of the next token's distribution at its end without and with the change of one head. Sahara
//! looks at all prompts at once: the states at their ends after the last norm make a matrix `[prompt, d_model]`, whose first left singular
//! vectors span a space over prompts; the angle between those of the model as it is and of the changed one says how much is turned. Heads are
//! added one by one, each time the one that turns the most beside those before it.
//!
//! Three changes, which answer different questions: `undifferentiated` attention (the queries, after their norm and rotation, times 1e-5, so
//! that every key that is seen weighs the same), a `scaled` contribution (`z` times 1e-5), and the `mean` of `z` over all positions of all
//! prompts. Under grouped heads keys and values are shared, so that only the query's side is the head's own.
//!
//! Source: "On the Role of Attention Heads in Large Language Model Safety" (Ships and Sahara). There 1e-12 is added to
//! probabilities; here logarithms are taken of logits. Left out on purpose: a judge model.

use std::fmt;
use std::sync::OnceLock;

use serde::Serialize;
use serde_json::{Value, json};

use super::EachHead;
use super::changing::Changing;
use super::each::n_heads;
use super::sahara::{self, Search};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Op};
use crate::methods::columns::Columns;
use crate::methods::method::{Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit};
use crate::methods::reference::ReferenceSet;
use crate::metric::Metric;
use crate::model::ModelSpec;
use crate::run::{Progress, Source, Sources};
use crate::scores::{Bars, Cell, Direction, ExampleScores, Lists, Measured, ScoresMeta, View};
use crate::spec::Position;
use crate::task::Task;

/// Heads that are listed.
const LISTED: usize = 10;

/// What is done to a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeadChange {
    /// Its queries after norm and rotation times [`ShipsConfig::factor`]: it looks everywhere alike.
    #[default]
    Undifferentiated,
    /// Its `z` times [`ShipsConfig::factor`].
    Scaled,
    /// Its `z` is the mean over all positions of all clean prompts.
    Mean,
}

impl fmt::Display for HeadChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HeadChange::Undifferentiated => "undifferentiated",
            HeadChange::Scaled => "scaled",
            HeadChange::Mean => "mean",
        })
    }
}

/// How far the next token's distribution moves with each head changed; and which heads turn the model together.
///
/// Rows: each head, with the divergence for each clean prompt (of lines of text too: no answer is needed). With [`ShipsConfig::group`], which
/// needs two prompts or more, beside them: `angle` of each head alone, in degrees; for each step (`src`) the heads that are `chosen` (the last one
/// in `dst`) and as many at `random`: `group_angle`, `group_kl`, and what is asked of them by [`Search::decline`] and [`Search::refusals`].
/// # Units
/// Nats; degrees; shares of prompts.
#[derive(Debug, Clone, PartialEq)]
pub struct ShipsConfig {
    pub change: HeadChange,
    /// Of `undifferentiated` and `scaled`; 1 changes nothing.
    pub factor: f32,
    pub group: Option<Search>,
    /// Of random heads and the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl ShipsConfig {
    /// A factor of 1e-5, no group.
    pub fn new(change: HeadChange) -> Self {
        ShipsConfig {
            change,
            factor: 1e-5,
            group: None,
            seed: None,
        }
    }

    fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    fn kind(&self) -> Kind {
        match self.change {
            HeadChange::Undifferentiated => Kind::RotQ,
            HeadChange::Scaled | HeadChange::Mean => Kind::Z,
        }
    }

    fn op(&self) -> Op {
        match self.change {
            HeadChange::Undifferentiated | HeadChange::Scaled => Op::Scale(self.factor),
            HeadChange::Mean => Op::Mean,
        }
    }
}

impl Method for ShipsConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let (name, metric) = match self.group {
            None => ("ships", Metric::Kl),
            Some(_) => ("sahara", Metric::Kl),
        };
        let seed = self.seed(task);
        ScoresMeta::new(name, metric, metric.unit(), Direction::Ablate, seed)
    }

    fn settings(&self) -> Value {
        json!({ "change": self.change, "factor": self.factor, "group": self.group })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            metric: Some(Metric::Kl),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        if !self.factor.is_finite() {
            return Err(Error::invalid(format!(
                "heads are scaled by a finite number, not {}",
                self.factor
            )));
        }
        match &self.group {
            Some(search) => search.check(spec, task),
            None => Ok(()),
        }
    }

    /// The divergence by layer and head, the heads that move it most, and the search.
    fn views(&self, _: &Task) -> Vec<View> {
        let listed = |measure: &str, heading: &str| {
            View::Lists(Lists {
                heading: Some(heading.into()),
                measures: vec![measure.into()],
                title: "{measure}".into(),
                item: "{head}".into(),
                highest: Some(LISTED),
                ..Lists::default()
            })
        };
        let mut views = vec![View::Grids];
        if let Some(search) = &self.group {
            views.push(listed(
                sahara::ANGLE,
                "heads that turn the states of all prompts most, in degrees",
            ));
            let bars = |(measure, heading): (&str, &str)| {
                View::Bars(Bars {
                    heading: heading.into(),
                    measure: measure.into(),
                    item: "{component} {src} {dst}".into(),
                    ..Bars::default()
                })
            };
            views.extend(search.measures().into_iter().map(bars));
        }
        views.push(View::Strongest);
        views
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let each = EachHead {
            on,
            running,
            kind: self.kind(),
            metric: Metric::Kl,
        };
        Ok(Box::new(Moving {
            config: self,
            cells: each.cells(),
            each,
            means: OnceLock::new(),
        }))
    }
}

/// A checked run in progress.
struct Moving<'a> {
    config: &'a ShipsConfig,
    each: EachHead<'a>,
    cells: Vec<Cell>,
    means: OnceLock<Source>,
}

impl Moving<'_> {
    /// Where the written values come from.
    fn sources(&self) -> Result<Sources> {
        if self.config.change != HeadChange::Mean {
            return Ok(Sources::default());
        }
        let Subject { model, task } = self.each.on;
        if self.means.get().is_none() {
            let over = ReferenceSet {
                task,
                corrupted: false,
            };
            let hooks: Vec<Hook> = (0..model.spec.n_layers)
                .map(|layer| Hook::at(Kind::Z, layer))
                .collect();
            let batches = task.batches(self.each.running.batch);
            let means = over.means(model, &hooks, false, &batches)?;
            let means = means.of(&task.pairs()[0]).cloned();
            let means =
                means.ok_or_else(|| Error::invalid("there is no prompt to take means over"))?;
            // Whoever was first made the same.
            let _ = self.means.set(means);
        }
        let means = self.means.get().cloned();
        Ok(means.map_or_else(Sources::default, |means| {
            Sources::default().with("mean", means)
        }))
    }
}

impl Prepared for Moving<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        self.each.bytes(length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let cost = self.each.cost(unit)?;
        let n = unit.items.len() as f64;
        let mut passes = cost.passes;
        if self.config.change == HeadChange::Mean {
            passes += n;
        }
        let mut packed = cost.packed;
        if let Some(search) = &self.config.group {
            packed *= 1.0 + search.steps as f64;
            passes += n * search.passes();
        }
        Ok(Cost {
            packed,
            passes,
            ..cost
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let base = self.each.base(&unit.items)?;
        let (sources, op) = (self.sources()?, self.config.op());
        let swept = self
            .each
            .swept(&base, &unit.items, &sources, &op, progress)?;
        let mut columns = Columns::new(unit.items.len());
        for head in 0..n_heads(&self.each.on.model.spec) {
            columns.push_some(|i| Some(swept.changed[i][head]));
        }
        Ok(swept.examples(self.each.on.task, unit, columns))
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        let spec = &self.each.on.model.spec;
        measured.notes.push(match self.config.change {
            HeadChange::Mean => {
                "of each head `z` is the mean over all positions of all clean prompts".into()
            }
            change => format!(
                "of each head {} times {:e} ({change})",
                match change {
                    HeadChange::Undifferentiated => "the queries are",
                    _ => "`z` is",
                },
                self.config.factor
            ),
        });
        if self.config.change == HeadChange::Undifferentiated
            && matches!(spec.position, Position::Alibi(_))
        {
            measured.notes.push(
                "this model weighs keys by their distance (ALiBi) whatever its queries are, so attention is not the same for all of them".into(),
            );
        }
        match &self.config.group {
            Some(search) => {
                let Subject { task, .. } = self.each.on;
                let changing = Changing {
                    on: self.each.on,
                    running: self.each.running,
                    kind: self.config.kind(),
                    op: self.config.op(),
                    sources: self.sources()?,
                    seed: self.config.seed(task),
                };
                sahara::search(&changing, search, measured, progress)
            }
            None => Ok(()),
        }
    }
}
