//! All heads scaled at once by what a table says each is worth: `z` of a head times `clip(1 + lambda * worth, 0, 2)`.
//!
//! Whether a score of heads means anything for what the model answers is told by three things beside it: the model as it is, the same
//! factors dealt out to the heads at random, and at random among the heads of each layer. The prompts that the table was measured on are
//! left out.
//!
//! Source: V-SEAM ([`super::super::head_scores`]), which takes the drop in probability for the worth and 1 for lambda.

use std::collections::{BTreeMap, HashSet};

use candle_core::DType;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{Class, wilson};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Node, Op, Site};
use crate::methods::ablation::node_values;
use crate::methods::choice::Heads;
use crate::methods::columns::{Columns, judged};
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, check_answers,
    clean_prompts, pairs_of, stop_if_asked, targets_of, units,
};
use crate::methods::taken::TakenTable;
use crate::metric::{Judgement, Metric, Target};
use crate::run::{Logits, Progress, Request, run};
use crate::scores::statistics::mean;
use crate::scores::{Bars, Cell, Direction, ExampleScores, Measured, Scores, ScoresMeta, View};
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// Most lambdas and deals: more than anybody would wait for.
const MOST: usize = 1000;

/// Heads scaled by what each is worth.
///
/// Rows: the model as it is (`unscaled`), and for each lambda (`src`) by the table's scores, by the same dealt out at random (`shuffled`)
/// and at random within each layer, the mean of [`ModulationConfig::shuffles`] deals. Beside `top1` stand `wrong` and `other`, the shares of
/// prompts whose likeliest token is a wrong answer or any other token, and `prob`.
/// # Units
/// Shares of prompts, and probability.
#[derive(Debug, Clone, PartialEq)]
pub struct ModulationConfig {
    /// What each head is worth; others are left alone.
    pub worth: BTreeMap<Node, f64>,
    pub lambdas: Vec<f32>,
    /// Times that the worths are dealt out at random.
    pub shuffles: usize,
    /// The table that they are from, if they are from one: prompts that it was measured on are left out of the task.
    pub table: Option<TakenTable>,
    /// Of the deals and the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl ModulationConfig {
    /// By a table of any method that scores heads whole, lambda 1, ten deals. Where its scores are changes by a removal (`ablate`, `noise`),
    /// a head is worth what is lost without it: the score with its sign turned round, but for metrics that are better lower.
    /// # Errors
    /// [`Error::Invalid`] for a table without heads, with heads by position, or without its prompts (which stand in the main file of a
    /// result alone); that of a head which the model does not have.
    pub fn by_scores(scores: &Scores, spec: &ModelSpec) -> Result<Self> {
        let about = &scores.provenance;
        if about.side.is_some() || about.prompts.is_empty() {
            return Err(Error::invalid(format!(
                "this table of `{}` does not hold the prompts that it was measured on, which must be left out; give the result's main file",
                about.method
            )));
        }
        let table = TakenTable::of(scores);
        let metric = about.metric.parse::<Metric>();
        let worse_is_higher = metric.is_ok_and(|metric| !metric.is_better_higher());
        let sign = if table.is_of_removals() == worse_is_higher {
            1.0
        } else {
            -1.0
        };
        let all = node_values(scores, spec)?.into_iter();
        let heads = all.filter(|(node, _)| matches!(node, Node::Head { .. }));
        let worth: BTreeMap<Node, f64> = heads
            .map(|(node, values)| (node, sign * mean(&values)))
            .collect();
        Ok(ModulationConfig {
            worth,
            lambdas: vec![1.0],
            shuffles: 10,
            table: Some(table),
            seed: None,
        })
    }

    /// Only some of its heads.
    pub fn only(mut self, heads: &Heads) -> Self {
        self.worth.retain(|node, _| match *node {
            Node::Head { layer, head } => heads.has(layer, head),
            _ => false,
        });
        self
    }

    /// The pairs whose clean prompt the worths were not measured on.
    fn held_out(&self, task: &Task) -> Vec<usize> {
        let pairs = task.pairs().iter().enumerate();
        let is_seen = |pair: &Pair| self.table.as_ref().is_some_and(|it| it.has_seen(pair));
        let unseen = pairs.filter(|(_, pair)| !is_seen(pair));
        unseen.map(|(item, _)| item).collect()
    }

    /// The worths in the order of their heads, each dealt to a head at random; within its layer, if so.
    fn dealt(&self, rng: &mut ChaCha8Rng, in_layer: bool) -> Vec<f64> {
        let mut values: Vec<f64> = self.worth.values().copied().collect();
        if !in_layer {
            values.shuffle(rng);
            return values;
        }
        let layers: Vec<Option<usize>> = self.worth.keys().map(|node| node.layer()).collect();
        let mut from = 0;
        for of_layer in layers.chunk_by(|a, b| a == b) {
            values[from..from + of_layer.len()].shuffle(rng);
            from += of_layer.len();
        }
        values
    }

    /// The edits that scale each head by a worth; a factor of 1 is none.
    fn edits(&self, lambda: f32, worth: &[f64]) -> Vec<Edit> {
        let scaled = self.worth.keys().zip(worth).filter_map(|(node, worth)| {
            let Node::Head { layer, head } = *node else {
                return None;
            };
            let factor = factor(lambda, *worth);
            let site = Site::all(Hook::at(Kind::Z, layer)).heads([head]);
            (factor != 1.0).then(|| Edit::new(site, Op::Scale(factor)))
        });
        scaled.collect()
    }
}

/// What a head is multiplied by.
fn factor(lambda: f32, worth: f64) -> f32 {
    (1.0 + f64::from(lambda) * worth).clamp(0.0, 2.0) as f32
}

impl Method for ModulationConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let (metric, seed) = (Metric::TopK(1), self.seed.unwrap_or(task.seed));
        ScoresMeta::new("modulation", metric, metric.unit(), Direction::Direct, seed)
    }

    fn settings(&self) -> Value {
        let worth = self.worth.iter();
        let worth: BTreeMap<String, f64> =
            worth.map(|(node, of)| (node.to_string(), *of)).collect();
        json!({
            "worth": worth, "lambdas": self.lambdas, "shuffles": self.shuffles,
            "table": self.table.as_ref().map(TakenTable::settings),
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            metric: Some(Metric::TopK(1)),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        super::check_causal(spec)?;
        let n = self.worth.len();
        if n < 2 || self.worth.values().any(|worth| !worth.is_finite()) {
            return Err(Error::invalid(format!(
                "{n} heads of the table are to be scaled; that takes two or more, each with a finite score"
            )));
        }
        let mut seen = HashSet::new();
        let is_bad =
            |lambda: &&f32| !lambda.is_finite() || !seen.insert((**lambda + 0.0).to_bits());
        if let Some(lambda) = self.lambdas.iter().find(is_bad) {
            return Err(Error::invalid(format!(
                "lambdas are finite numbers, each once, and {lambda} is not (`ModulationConfig::lambdas`)"
            )));
        }
        if self.lambdas.is_empty() || self.lambdas.len() > MOST || self.shuffles > MOST {
            return Err(Error::invalid(format!(
                "{} lambdas and {} deals; take at least one lambda and at most {MOST} of each (`ModulationConfig::lambdas`, \
                 `ModulationConfig::shuffles`)",
                self.lambdas.len(),
                self.shuffles
            )));
        }
        if self.held_out(task).is_empty() {
            return Err(Error::invalid(format!(
                "the table was measured on all {} prompts of this task, and heads are scaled on others; draw others (`ExpandOptions::seed`)",
                task.pairs().len()
            )));
        }
        check_answers(task, "top1")
    }

    fn views(&self, _: &Task) -> Vec<View> {
        let bars = |heading: &str, measure: &str| {
            View::Bars(Bars {
                heading: heading.into(),
                measure: measure.into(),
                item: "{component} {src}".into(),
                ..Bars::default()
            })
        };
        vec![
            bars(
                "prompts whose likeliest token is an answer, by lambda",
                "top1",
            ),
            bars("the answer's probability", "prob"),
        ]
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed.unwrap_or(on.task.seed));
        let own: Vec<f64> = self.worth.values().copied().collect();
        let mut arms = vec![Arm {
            name: "unscaled",
            lambda: None,
            worths: vec![own.clone()],
        }];
        for &lambda in &self.lambdas {
            let mut arm = |name, worths: Vec<Vec<f64>>| {
                if !worths.is_empty() {
                    arms.push(Arm {
                        name,
                        lambda: Some(lambda),
                        worths,
                    });
                }
            };
            arm("scores", vec![own.clone()]);
            // The same deals for every lambda.
            let deal = |stream: u64, in_layer: bool, rng: &mut ChaCha8Rng| {
                rng.set_stream(stream);
                rng.set_word_pos(0);
                (0..self.shuffles)
                    .map(|_| self.dealt(rng, in_layer))
                    .collect()
            };
            arm("shuffled", deal(1, false, &mut rng));
            arm("shuffled in layer", deal(2, true, &mut rng));
        }
        let cells = |arm: &Arm| {
            MEASURES.map(|measure| Cell {
                component: arm.name.into(),
                src: arm.lambda.map(|lambda| lambda.to_string()),
                measure: measure.map(String::from),
                ..Cell::default()
            })
        };
        Ok(Box::new(Modulating {
            on,
            config: self,
            cells: arms.iter().flat_map(cells).collect(),
            arms,
        }))
    }
}

/// What is measured of each arm, in the order of its cells.
const MEASURES: [Option<&str>; 4] = [None, Some("wrong"), Some("other"), Some("prob")];

/// One way to scale: a lambda, and the worths of one or more runs whose mean is taken.
struct Arm {
    name: &'static str,
    lambda: Option<f32>,
    worths: Vec<Vec<f64>>,
}

/// A checked run in progress.
struct Modulating<'a> {
    on: Subject<'a>,
    config: &'a ModulationConfig,
    arms: Vec<Arm>,
    cells: Vec<Cell>,
}

/// What one run said of a prompt: the class of its likeliest token, and the answer's probability.
struct Answered {
    values: [f64; 4],
    judged: Judgement,
}

impl Modulating<'_> {
    fn answered(&self, unit: &Unit, edits: &[Edit]) -> Result<Vec<Answered>> {
        let pairs = pairs_of(self.on.task, &unit.items);
        let request = Request {
            edits,
            logits: Logits::Last,
            ..Request::default()
        };
        let run = run(self.on.model, &clean_prompts(&pairs), &request)?;
        let logits = run.logits.expect("asked for").to_dtype(DType::F32)?;
        let rows: Vec<Vec<f32>> = logits.to_vec2()?;
        let targets = targets_of(&pairs);
        let rows = rows.iter().zip(&targets);
        rows.map(|(row, target)| answered(row, target)).collect()
    }
}

fn answered(row: &[f32], target: &Target) -> Result<Answered> {
    let most = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let class = most.map(|token| Class::of(token as u32, target));
    let is = |of: Class| f64::from(u8::from(class == Some(of)));
    Ok(Answered {
        values: [
            is(Class::Answer),
            is(Class::Wrong),
            is(Class::Other),
            Metric::Prob.value(row, target, None)?,
        ],
        judged: target.judge(row),
    })
}

impl Prepared for Modulating<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        super::bytes_of_a_run(&self.on.model.spec, length)
    }

    /// Those of the pairs that are held out.
    fn units(&self, task: &Task, running: &Running) -> Vec<Unit> {
        let held_out: HashSet<usize> = self.config.held_out(task).into_iter().collect();
        let n_cells = self.cells.len();
        let mut all = units(task, running, |length| self.bytes(length), n_cells, false);
        for unit in &mut all {
            unit.items.retain(|item| held_out.contains(item));
        }
        all.retain(|unit| !unit.items.is_empty());
        all
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        let runs: usize = self.arms.iter().map(|arm| arm.worths.len()).sum();
        Ok(Cost {
            variants: runs - 1,
            bytes: self.bytes(length),
            ..Cost::passes((unit.items.len() * runs) as f64)
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let n = unit.items.len();
        let mut columns = Columns::new(n);
        let mut judgements = Vec::new();
        for arm in &self.arms {
            let mut sums = vec![[0.0; 4]; n];
            for worth in &arm.worths {
                stop_if_asked(progress)?;
                let edits = match arm.lambda {
                    Some(lambda) => self.config.edits(lambda, worth),
                    None => Vec::new(),
                };
                let answered = self.answered(unit, &edits)?;
                for (sums, one) in sums.iter_mut().zip(&answered) {
                    sums.iter_mut()
                        .zip(one.values)
                        .for_each(|(sum, of)| *sum += of);
                }
                if arm.lambda.is_none() {
                    judgements = answered.iter().map(|one| one.judged).collect();
                }
            }
            for (measure, _) in MEASURES.iter().enumerate() {
                columns.push_some(|i| Some(sums[i][measure] / arm.worths.len() as f64));
            }
            progress.advance((n * MEASURES.len()) as u64);
        }
        let right: Vec<f64> = (judgements.iter())
            .map(|one: &Judgement| f64::from(u8::from(one.top1 == Some(true))))
            .collect();
        let examples = columns.into_examples(self.on.task, &unit.items, &right);
        Ok(judged(examples, judgements))
    }

    /// Shares of prompts have Wilson's interval; what is the mean of several deals, the bootstrap's.
    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let Subject { model, task } = self.on;
        for (cell, arm) in self.arms.iter().enumerate() {
            for measure in 0..3 {
                let cell = cell * MEASURES.len() + measure;
                if arm.worths.len() == 1 {
                    let values = measured.examples.iter().filter_map(|one| one.value(cell));
                    let count = values.filter(|value| *value > 0.5).count();
                    let interval = wilson(count, measured.examples.len());
                    measured.intervals.insert(cell, Some(interval));
                }
            }
        }
        let (seen, all) = (
            task.pairs().len() - measured.examples.len(),
            task.pairs().len(),
        );
        measured.notes.push(match seen {
            0 => format!("the table was measured on none of the {all} prompts"),
            _ => format!("the table was measured on {seen} of {all} prompts, which are left out"),
        });
        for &lambda in &self.config.lambdas {
            let factors = self
                .config
                .worth
                .values()
                .map(|&worth| factor(lambda, worth));
            let (low, high) = factors
                .fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), of| {
                    (low.min(of), high.max(of))
                });
            measured.notes.push(format!(
                "lambda {lambda}: {} heads times {low:.3} to {high:.3}; dealt out {} times",
                self.config.worth.len(),
                self.config.shuffles
            ));
        }
        let table = self.config.table.as_ref();
        let other = table.and_then(|table| {
            let what = "the table whose scores scale heads is";
            table.model.warning(what, model)
        });
        measured.warnings.extend(other);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worths_are_dealt_among_all_heads_or_within_their_layers() {
        let worth = (0..12usize).map(|i| {
            let (layer, head) = (i / 4, i % 4);
            (Node::Head { layer, head }, i as f64)
        });
        let config = ModulationConfig {
            worth: worth.collect(),
            lambdas: vec![1.0],
            shuffles: 1,
            table: None,
            seed: None,
        };
        let sorted = |mut values: Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values
        };
        let own: Vec<f64> = config.worth.values().copied().collect();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let [all, in_layer] = [false, true].map(|in_layer| config.dealt(&mut rng, in_layer));
        assert!(all != own && in_layer != own);
        assert_eq!(sorted(all.clone()), own);
        for layer in 0..3 {
            let of = |values: &[f64]| sorted(values[4 * layer..4 * layer + 4].to_vec());
            assert_eq!(of(&in_layer), of(&own), "layer {layer}");
        }
        assert!(
            (0..3).any(|layer| sorted(all[4 * layer..4 * layer + 4].to_vec())
                != own[4 * layer..4 * layer + 4])
        );
    }

    #[test]
    fn factors_stay_between_nothing_and_twice() {
        assert_eq!(factor(0.0, 5.0), 1.0);
        assert_eq!(factor(1.0, 0.25), 1.25);
        assert_eq!(factor(2.0, -0.25), 0.5);
        assert_eq!([factor(1.0, 7.0), factor(-1.0, 7.0)], [2.0, 0.0]);
    }
}
