//! PINE against the order of segments: how often a model is right whichever order the documents of a prompt stand in, with attention that
//! does not know the order and without.
//!
//! The engine's part, and what is taken from the paper and what not, is in `run/pine.rs`. Segments keep their tokens in every order: they are
//! cut out of the prompt as it is written, so that one order differs from another by nothing but the order.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::columns::{Columns, judged};
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, check_answers,
    stop_if_asked,
};
use crate::error::{Error, Result};
use crate::metric::{Judgement, Metric};
use crate::model::ModelSpec;
use crate::run::{Progress, Segments, check_pine, pine_logits, run_to_answers};
use crate::scores::{Bars, Cell, Direction, ExampleScores, Measured, ScoresMeta, View};
use crate::task::{Pair, QuestionSet, Task};

/// With attention as it is, and without order.
const MODES: [&str; 2] = ["ordinary", "pine"];
const ACCURACY: &str = "accuracy";
/// Besides accuracy, of each mode.
const MEASURES: [&str; 4] = [
    "log_prob",
    "log_prob_spread",
    "largest_logit_gap",
    "always_right",
];
/// More segments than this have more orders than are all tried.
const ALL_ORDERS_OF: usize = 4;

/// A task whose prompts hold segments (the roles `s0`, `s1`, ..., as in those of a [`QuestionSet`]), in several orders.
///
/// Rows, each with attention as it is (`ordinary`) and without order (`pine`): `accuracy`, the share of orders in which each token of the answer is the
/// likeliest; the same by the place of the segment that holds the answer (`pos`), where that is known. Beside them, in the mean over prompts, `log_prob` of
/// the answer in the mean over orders, `log_prob_spread` from the worst to the best order, `largest_logit_gap` between the written order and any other,
/// and `always_right`, the share of prompts that are right in every order.
/// # Units
/// Shares of orders; nats; logits.
/// # Source
/// Wang et al. 2024, "Eliminating Position Bias of Language Models", arXiv 2407.01100.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PineConfig {
    /// So many orders of each prompt, the written one and drawn ones. `None`: all of up to four segments, of more five.
    pub orders: Option<usize>,
    /// The segment that holds the answer, by the number of the pair.
    pub gold: BTreeMap<usize, usize>,
    /// Of the drawn orders [default: the task's].
    pub seed: Option<u64>,
}

impl PineConfig {
    /// About the questions of a set, whose right sentences it knows.
    pub fn of(questions: &QuestionSet) -> Self {
        let gold = questions.questions.iter().enumerate();
        PineConfig {
            gold: gold
                .filter_map(|(index, one)| Some((index, one.gold?)))
                .collect(),
            ..PineConfig::default()
        }
    }

    /// The orders in which a prompt's segments are put, the written one first, and no two alike.
    fn orders(&self, n: usize, seed: u64, example: usize) -> Vec<Vec<usize>> {
        let written: Vec<usize> = (0..n).collect();
        let all: Option<usize> = (1..=n).try_fold(1usize, |all, i| all.checked_mul(i));
        let most = self.orders.unwrap_or(match n <= ALL_ORDERS_OF {
            true => usize::MAX,
            false => 5,
        });
        if all.is_some_and(|all| all <= most) {
            let mut orders = vec![Vec::new()];
            for segment in written {
                orders = (orders.iter())
                    .flat_map(|order: &Vec<usize>| {
                        (0..=order.len()).rev().map(move |at| {
                            let mut order = order.clone();
                            order.insert(at, segment);
                            order
                        })
                    })
                    .collect();
            }
            return orders;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(example as u64);
        let mut orders = vec![written.clone()];
        while orders.len() < most {
            let mut order = written.clone();
            order.shuffle(&mut rng);
            if !orders.contains(&order) {
                orders.push(order);
            }
        }
        orders
    }
}

/// Where the segments of a pair's clean prompt are. What stands between two of them belongs to the later one.
fn segments_of(pair: &Pair) -> Result<Segments> {
    let bad = |reason: String| {
        Error::invalid(format!(
            "pair {}: {reason}; a prompt is a prefix, segments one after another as roles `s0`, `s1`, ..., and a suffix",
            pair.index
        ))
    };
    let mut lengths = Vec::new();
    let (mut prefix, mut end) = (0, 0);
    while let Some(positions) = pair.roles.get(&QuestionSet::role(lengths.len())) {
        let (Some(&first), Some(&last)) = (positions.iter().min(), positions.iter().max()) else {
            return Err(bad(format!("segment {} has no token", lengths.len())));
        };
        if lengths.is_empty() {
            (prefix, end) = (first, first);
        }
        if first < end {
            return Err(bad(format!(
                "segment {} begins before the one before it ends",
                lengths.len()
            )));
        }
        lengths.push(last + 1 - end);
        end = last + 1;
    }
    if lengths.len() < 2 {
        return Err(bad(format!(
            "it has {} segments, and two can be put in another order",
            lengths.len()
        )));
    }
    if end > pair.target.positions(pair.clean.len()).start {
        return Err(bad(
            "no token stands between the last segment and the answer".into(),
        ));
    }
    Ok(Segments { prefix, lengths })
}

impl Method for PineConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let seed = self.seed.unwrap_or(task.seed);
        ScoresMeta::new("pine", ACCURACY, "share of orders", Direction::Direct, seed)
    }

    fn settings(&self) -> Value {
        json!({ "orders": self.orders, "gold": self.gold })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("PINE"),
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_pine(spec)?;
        if self.orders.is_some_and(|orders| orders < 2) {
            return Err(Error::invalid(
                "one order is compared with no other; take two or more (`PineConfig::orders`)",
            ));
        }
        check_answers(task, ACCURACY)?;
        task.pairs()
            .iter()
            .try_for_each(|pair| segments_of(pair).map(|_| ()))
    }

    fn views(&self, _: &Task) -> Vec<View> {
        let bars = |measure: &str, heading: &str| {
            View::Bars(Bars {
                heading: heading.into(),
                component: None,
                measure: measure.into(),
                item: "{component} {role}".into(),
                text: String::new(),
            })
        };
        vec![
            bars(
                ACCURACY,
                "share of orders in which the answer is the likeliest, and by the place of the segment that holds it",
            ),
            bars(
                MEASURES[3],
                "share of prompts that are right in every order",
            ),
            bars(MEASURES[0], "log probability of the answer, nats"),
            bars(MEASURES[1], "from its worst order to its best, nats"),
            bars(
                MEASURES[2],
                "largest difference of a logit between the written order and another",
            ),
        ]
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Preparation<'a> {
        let gold = on.task.pairs().iter();
        let gold = gold.filter(|pair| self.gold.contains_key(&pair.index));
        let mut places = 0;
        for pair in gold {
            places = places.max(segments_of(pair)?.lengths.len());
        }
        let mut cells = Vec::new();
        for mode in MODES {
            let cell = |measure: Option<&str>, place: Option<usize>| Cell {
                component: mode.into(),
                measure: measure.map(String::from),
                role: place.map(|place| format!("answer in {}", place + 1)),
                ..Cell::default()
            };
            cells.push(cell(None, None));
            cells.extend((0..places).map(|place| cell(None, Some(place))));
            cells.extend(MEASURES.map(|measure| cell(Some(measure), None)));
        }
        Ok(Box::new(Ordering {
            on,
            config: self,
            places,
            cells,
        }))
    }
}

/// A checked run in progress.
struct Ordering<'a> {
    on: Subject<'a>,
    config: &'a PineConfig,
    /// Places that an answer's segment can be at.
    places: usize,
    cells: Vec<Cell>,
}

/// What the model does on a prompt in one order.
struct InOrder {
    order: Vec<usize>,
    is_right: bool,
    log_prob: f64,
    /// `[tokens of the answer][d_vocab]`
    logits: Vec<Vec<f32>>,
    judged: Judgement,
}

impl Ordering<'_> {
    fn orders_of(&self, pair: &Pair, n: usize) -> Vec<Vec<usize>> {
        let seed = self.config.seed.unwrap_or(self.on.task.seed);
        self.config.orders(n, seed, pair.index)
    }

    /// The prompt in each order, with attention as it is or without order.
    fn run(&self, pair: &Pair, is_pine: bool, progress: &dyn Progress) -> Result<Vec<InOrder>> {
        let (model, segments) = (self.on.model, segments_of(pair)?);
        let from = pair.target.positions(pair.clean.len()).start;
        let mut all = Vec::new();
        for order in self.orders_of(pair, segments.lengths.len()) {
            stop_if_asked(progress)?;
            let (tokens, ordered) = segments.ordered(&pair.clean, &order);
            let logits: Vec<Vec<f32>> = if is_pine {
                pine_logits(model, &tokens, &ordered, from)?.to_vec2()?
            } else {
                let target = std::slice::from_ref(&pair.target);
                run_to_answers(model, &[tokens], target, &[])?.0.remove(0)
            };
            let rows: Vec<&[f32]> = logits.iter().map(Vec::as_slice).collect();
            let judged = pair.target.judge_whole(&rows);
            all.push(InOrder {
                order,
                is_right: judged.top1 == Some(true),
                log_prob: Metric::LogProb.value_whole(&rows, &pair.target, None)?,
                judged,
                logits,
            });
        }
        Ok(all)
    }
}

/// The share of those that are right.
fn share<'a>(runs: impl Iterator<Item = &'a InOrder>) -> Option<f64> {
    let (mut right, mut n) = (0, 0);
    for run in runs {
        right += usize::from(run.is_right);
        n += 1;
    }
    (n > 0).then(|| f64::from(right as u32) / f64::from(n))
}

fn largest_gap(runs: &[InOrder]) -> f64 {
    let first = runs[0].logits.iter().flatten();
    let gaps = runs.iter().flat_map(|run| {
        let pairs = run.logits.iter().flatten().zip(first.clone());
        pairs.map(|(a, b)| f64::from((a - b).abs()))
    });
    gaps.fold(0.0, f64::max)
}

impl Prepared for Ordering<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.on.model.spec;
        4 * length * (spec.d_vocab + spec.n_layers * spec.d_model)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let mut passes = 0.0;
        for &item in &unit.items {
            let pair = &self.on.task.pairs()[item];
            let n = segments_of(pair)?.lengths.len();
            // Attention without order turns keys anew for each query, which takes about as long as the rest of a pass.
            passes += 3.0 * self.orders_of(pair, n).len() as f64;
        }
        Ok(Cost::passes(passes))
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let task = self.on.task;
        let mut found: [Vec<Vec<InOrder>>; MODES.len()] = Default::default();
        for &item in &unit.items {
            let pair = &task.pairs()[item];
            for (mode, found) in found.iter_mut().enumerate() {
                found.push(self.run(pair, mode == 1, progress)?);
            }
            progress.advance(self.cells.len() as u64);
        }
        let gold = |i: usize| self.config.gold.get(&task.pairs()[unit.items[i]].index);
        let mut columns = Columns::new(unit.items.len());
        for of_mode in &found {
            let runs = |i: usize| -> &[InOrder] { &of_mode[i] };
            columns.push_some(|i| share(runs(i).iter()));
            for place in 0..self.places {
                columns.push_some(|i| {
                    let gold = *gold(i)?;
                    share(
                        runs(i)
                            .iter()
                            .filter(|run| run.order.get(place) == Some(&gold)),
                    )
                });
            }
            let log_probs = |i: usize| runs(i).iter().map(|run| run.log_prob);
            columns.push_some(|i| Some(log_probs(i).sum::<f64>() / runs(i).len() as f64));
            columns.push_some(|i| {
                let (least, most) = (
                    log_probs(i).fold(f64::INFINITY, f64::min),
                    log_probs(i).fold(f64::NEG_INFINITY, f64::max),
                );
                Some(most - least)
            });
            columns.push_some(|i| Some(largest_gap(runs(i))));
            columns
                .push_some(|i| Some(f64::from(u8::from(runs(i).iter().all(|run| run.is_right)))));
        }
        let written = |i: usize| &found[0][i][0];
        let clean: Vec<f64> = (0..unit.items.len())
            .map(|i| f64::from(u8::from(written(i).is_right)))
            .collect();
        let judgements = (0..unit.items.len()).map(|i| written(i).judged).collect();
        let examples = columns.into_examples(task, &unit.items, &clean);
        Ok(judged(examples, judgements))
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        measured.drop_unmeasured();
        Ok(())
    }
}
