//! Positive and negative heads: what an answer's probability is where a head says what the others of its layer say in the mean.
//!
//! `z` of the head is replaced at every position by the mean of the other heads' `z` at that position. A head is *positive* by what the
//! answers that the model has right lose of their probability, and *negative* by what those gain that it has wrong.
//!
//! Source: V-SEAM, its part about heads; there on visual question answering, here on any task with answers of one token.

use serde::Serialize;
use serde_json::{Value, json};

use super::EachHead;
use super::each::n_heads;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Op};
use crate::methods::columns::Columns;
use crate::methods::method::{Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit};
use crate::metric::Metric;
use crate::model::{Model, ModelSpec};
use crate::run::{BaseRun, Cache, Progress, Source, Sources};
use crate::scores::{Cell, Direction, ExampleScores, Lists, Measured, ScoresMeta, View};
use crate::task::Task;

/// Probability lost, of the answer as it is.
const DROP: &str = "drop";
/// Lost where the model is right, 0 where it gains.
const POSITIVE: &str = "pos";
/// Gained where the model is wrong, 0 where it loses.
const NEGATIVE: &str = "neg";
/// Heads that are listed of each.
const LISTED: usize = 8;
const OTHERS: &str = "others";

/// What stands in the place of a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplaceBy {
    /// The mean of the layer's other heads at each position; zeros where there is one head a layer.
    #[default]
    Others,
    /// Zeros.
    Zero,
}

/// Positive and negative heads, by replacement.
///
/// Rows: each head, with the probability of the answer without it, `score` less that with it; beside it `drop` (the same the other way
/// round, as the paper has it), `pos` over the prompts that the model answers right (its likeliest token is the answer) and `neg` over the
/// others. Both are cut at 0 prompt by prompt before the mean is taken, so neither is ever below 0; `drop` is not cut. Of these the `score` is the measure itself.
/// # Units
/// Probability.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ReplacementConfig {
    pub by: ReplaceBy,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl Method for ReplacementConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let (metric, seed) = (Metric::Prob, self.seed.unwrap_or(task.seed));
        ScoresMeta::new(
            "head_replacement",
            metric,
            metric.unit(),
            Direction::Ablate,
            seed,
        )
    }

    fn settings(&self) -> Value {
        json!({ "by": self.by })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            metric: Some(Metric::Prob),
            ..Needs::default()
        }
    }

    fn check(&self, _: &ModelSpec, _: &Task) -> Result<()> {
        Ok(())
    }

    /// The drop by layer and head, then the heads of either kind.
    fn views(&self, _: &Task) -> Vec<View> {
        let of_kind = |measure: &str, heading: &str| {
            View::Lists(Lists {
                heading: Some(heading.into()),
                measures: vec![measure.into()],
                title: "{measure}".into(),
                item: "{head}".into(),
                highest: Some(LISTED),
                ..Lists::default()
            })
        };
        vec![
            View::Grids,
            of_kind(
                POSITIVE,
                "positive heads: the probability that right answers lose without them (0 for a prompt that gains)",
            ),
            of_kind(
                NEGATIVE,
                "negative heads: the probability that the answer gains without them where the model is wrong (0 for a prompt that loses)",
            ),
            View::Strongest,
        ]
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let each = EachHead {
            on,
            running,
            kind: Kind::Z,
            metric: Metric::Prob,
        };
        let measures = [None, Some(DROP), Some(POSITIVE), Some(NEGATIVE)];
        let of_measure = |measure: Option<&str>| {
            let cells = each.cells().into_iter();
            let measure = measure.map(String::from);
            cells.map(move |cell| Cell {
                measure: measure.clone(),
                ..cell
            })
        };
        Ok(Box::new(Replacing {
            cells: measures.into_iter().flat_map(of_measure).collect(),
            by: self.by,
            each,
        }))
    }
}

/// A checked run in progress.
struct Replacing<'a> {
    by: ReplaceBy,
    each: EachHead<'a>,
    /// Of each measure those of all heads.
    cells: Vec<Cell>,
}

impl Replacing<'_> {
    /// Whether there are other heads to take the mean of.
    fn has_others(&self) -> bool {
        self.by == ReplaceBy::Others && self.each.on.model.spec.n_heads > 1
    }
}

impl Prepared for Replacing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        self.each.bytes(length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        self.each.cost(unit)
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.each.on;
        let base = self.each.base(&unit.items)?;
        let mut sources = Sources::default();
        if self.has_others() {
            sources = sources.with(OTHERS, Source::run(means_of_others(model, &base)?)?);
        }
        let op = match self.has_others() {
            true => Op::FromRun(OTHERS.into()),
            false => Op::Zero,
        };
        let swept = self
            .each
            .swept(&base, &unit.items, &sources, &op, progress)?;
        let mut columns = Columns::new(unit.items.len());
        let is_right = |i: usize| swept.judged[i].top1 == Some(true);
        for measure in 0..4 {
            for head in 0..n_heads(&model.spec) {
                columns.push_some(|i| {
                    let (clean, changed) = (swept.clean[i], swept.changed[i][head]);
                    let drop = clean - changed;
                    match measure {
                        0 => Some(changed),
                        1 => Some(clean + drop),
                        2 => is_right(i).then_some(clean + drop.max(0.0)),
                        _ => (!is_right(i)).then_some(clean + (-drop).max(0.0)),
                    }
                });
            }
        }
        Ok(swept.examples(task, unit, columns))
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let all = measured.examples.len();
        let right = measured.examples.iter();
        let right = right.filter(|one| one.top1 == Some(true)).count();
        measured.notes.push(match (right, all - right) {
            (_, 0) => format!("`{NEGATIVE}` has no rows: the model answers all {all} prompts right"),
            (0, _) => {
                format!("`{POSITIVE}` has no rows: the model answers none of {all} prompts right")
            }
            (right, wrong) => format!(
                "`{POSITIVE}` is over {right} prompts that the model answers right, `{NEGATIVE}` over {wrong} others; both are cut at 0 on each prompt"
            ),
        });
        if self.by == ReplaceBy::Others && !self.has_others() {
            measured.notes.push(
                "this model has one head a layer, so zeros stand in the place of each: there are no other heads to take the mean of".into(),
            );
        }
        measured.drop_unmeasured();
        Ok(())
    }
}

/// For each head the mean of the other heads of its layer, at each position of each prompt, where `z` of the head stood.
fn means_of_others(model: &Model, base: &BaseRun) -> Result<Cache> {
    let spec = &model.spec;
    let mut cache = Cache::new(spec, base.prompts.len(), base.length);
    for layer in 0..spec.n_layers {
        let hook = Hook::at(Kind::Z, layer);
        let z = base.cache.packed(hook)?;
        let z = z.to_dtype(candle_core::DType::F32)?; // [row, head, d_head]
        let others = z.broadcast_sub(&z.sum_keepdim(1)?)?;
        let mean = -1.0 / (spec.n_heads as f64 - 1.0);
        cache.insert(hook, (others * mean)?);
    }
    Ok(cache)
}
