//! Negative heads: attention heads that look at the negative one of two answers which a prompt names, whatever is asked.
//!
//! With `t+` and `t-` the positions of the two answers in the prompt, a head's negative attention score is
//! `sum_i (A[i, t-] + A[i, t+]) ln(A[i, t-] / A[i, t+])` over the queries `i` behind both: above 0 where it prefers the negative one, and the more
//! so the more it looks at either. It costs one pass a prompt. What the highest do to the answers is measured on the half of the prompts that
//! they were not chosen on, by zeroing them: precision and recall of the positive answer, and their gap, beside as many random heads.
//!
//! Source: "Correcting Negative Bias in Large Language Models through Negative Attention Score Alignment"; the formula is put together from its
//! text, and weights are taken as 1e-9 at least. Left out on purpose: tuning the heads.

use std::collections::HashSet;

use candle_core::DType;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::answers::{Again, Fact, MEASURES};
use super::candidate::{Candidate, Looked, score};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Node};
use crate::methods::captured::{captured_and_judged, captured_bytes};
use crate::methods::columns::{Columns, judged};
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, pairs_of,
};
use crate::model::ModelSpec;
use crate::run::Progress;
use crate::scores::statistics::{mean, rank_correlation};
use crate::scores::{Bars, Cell, Direction, ExampleScores, Lists, Measured, ScoresMeta, View};
use crate::task::{Pair, Task};

/// Heads that are listed.
const LISTED: usize = 10;
/// Heads that count as highest in a model that has many.
const HIGHEST: usize = 20;

/// Negative heads, by the attention from behind two answers that each prompt names.
///
/// Rows: each head, with its score over the clean prompts. Beside them, of the half of the prompts that the heads were not chosen on:
/// `precision`, `recall` and `gap` (precision less recall) of the positive answer with no head zeroed (`unchanged`), with so many of the highest heads of
/// the other half (`highest`, the number in `src`), and with as many `random` ones, the mean of [`NegativeConfig::draws`]. Which answer is the positive one
/// is told by its text: that which stands at [`NegativeConfig::positive`].
/// # Units
/// Nats times attention; fractions.
#[derive(Debug, Clone, PartialEq)]
pub struct NegativeConfig {
    pub positive: Candidate,
    pub negative: Candidate,
    /// Heads that count as highest [default: 20, or a quarter of all where there are fewer than 80].
    pub highest: Option<usize>,
    /// Random sets of heads.
    pub draws: usize,
    /// Of the halves, random heads and the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl NegativeConfig {
    /// Twenty heads, ten random sets.
    pub fn new(positive: Candidate, negative: Candidate) -> Self {
        NegativeConfig {
            positive,
            negative,
            highest: None,
            draws: 10,
            seed: None,
        }
    }

    fn n_highest(&self, heads: usize) -> usize {
        self.highest
            .unwrap_or_else(|| HIGHEST.min(heads / 4).max(1))
    }

    /// How many heads are zeroed together: one, a quarter of the highest, all of them.
    fn sizes(&self, heads: usize) -> Vec<usize> {
        let most = self.n_highest(heads);
        let mut sizes = vec![1, most.div_ceil(4), most];
        sizes.dedup();
        sizes
    }

    fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }
}

impl NegativeConfig {
    /// # Errors
    /// [`Error::Invalid`] where the prompt does not name one of the answers, or nothing stands behind them.
    fn looked(&self, task: &Task, pair: &Pair) -> Result<Looked> {
        let find = |candidate: &Candidate| {
            let found = candidate.positions(task, pair);
            if found.is_empty() {
                return Err(Error::invalid(format!(
                    "pair {} of task `{}` does not name the answer `{candidate}`; name one that every prompt has, as a role (`@YES`) or a word",
                    pair.index, task.name
                )));
            }
            Ok(found)
        };
        let (positive, negative) = (find(&self.positive)?, find(&self.negative)?);
        if positive.iter().any(|at| negative.contains(at)) {
            return Err(Error::invalid(format!(
                "`{}` and `{}` stand at one place in pair {} of task `{}`; name two answers",
                self.positive, self.negative, pair.index, task.name
            )));
        }
        let last = positive.iter().chain(&negative).max().copied().unwrap_or(0);
        if last + 1 >= pair.clean.len() {
            return Err(Error::invalid(format!(
                "nothing stands behind the answers that pair {} of task `{}` names, so nobody looks back at them",
                pair.index, task.name
            )));
        }
        Ok(Looked {
            positive,
            negative,
            queries: last + 1..pair.clean.len(),
        })
    }

    /// Whether a pair's answer is the positive one; `None` if it is neither.
    fn is_positive(&self, task: &Task, pair: &Pair) -> Option<bool> {
        let text = |tokens: &mut dyn Iterator<Item = u32>| -> String {
            let text: String = tokens.map(|token| task.text(token)).collect();
            text.trim().to_lowercase()
        };
        let named = |candidate: &Candidate| {
            let at = candidate.positions(task, pair);
            text(&mut at.into_iter().map(|pos| pair.clean[pos]))
        };
        let answer = pair.target.answers.first()?;
        pair.target.wrong.first()?;
        let answer = text(&mut [*answer].into_iter());
        match (
            answer == named(&self.positive),
            answer == named(&self.negative),
        ) {
            (true, false) => Some(true),
            (false, true) => Some(false),
            _ => None,
        }
    }
}

impl Method for NegativeConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "negative_attention",
            "nas",
            "attention x nats",
            Direction::Direct,
            self.seed(task),
        )
    }

    fn settings(&self) -> Value {
        json!({
            "positive": self.positive.to_string(), "negative": self.negative.to_string(), "highest": self.highest, "draws": self.draws,
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("negative attention scores"),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        for pair in task.pairs() {
            self.looked(task, pair)?;
        }
        let heads = spec.n_layers * spec.n_heads;
        if let Some(highest) = self.highest.filter(|n| !(1..=heads).contains(n)) {
            return Err(Error::invalid(format!(
                "{highest} highest heads of {heads}; take from 1 to {heads} (`NegativeConfig::highest`)"
            )));
        }
        if self.draws > heads * 1000 {
            return Err(Error::invalid(format!(
                "{} random sets of {heads} heads; take at most {} (`NegativeConfig::draws`)",
                self.draws,
                heads * 1000
            )));
        }
        Ok(())
    }

    fn views(&self, _: &Task) -> Vec<View> {
        let bars = |measure: &str| {
            View::Bars(Bars {
                heading: match measure {
                    "gap" => "gap: precision less recall of the positive answer, on the other half of the prompts, so many heads zeroed".into(),
                    other => other.into(),
                },
                measure: measure.into(),
                item: "{component} {src}".into(),
                ..Bars::default()
            })
        };
        let mut views = vec![
            View::Grids,
            View::Lists(Lists {
                heading: Some("heads that look at the negative answer".into()),
                measures: vec!["nas".into()],
                title: "{measure}".into(),
                item: "{head}".into(),
                highest: Some(LISTED),
                ..Lists::default()
            }),
        ];
        views.extend(MEASURES.map(bars));
        views.push(View::Strongest);
        views
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let spec = &on.model.spec;
        let cell = |(layer, head): (usize, usize)| Cell {
            head: Some(head as u32),
            ..Cell::in_layer(Kind::Pattern.name(), layer)
        };
        Ok(Box::new(Looking {
            on,
            config: self,
            batch: running.batch,
            capture: (0..spec.n_layers)
                .map(|layer| Hook::at(Kind::Pattern, layer))
                .collect(),
            cells: spec.heads().map(cell).collect(),
        }))
    }
}

/// A checked run in progress.
struct Looking<'a> {
    on: Subject<'a>,
    config: &'a NegativeConfig,
    batch: usize,
    capture: Vec<Hook>,
    cells: Vec<Cell>,
}

impl Prepared for Looking<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        2 * captured_bytes(&self.capture, &self.on.model.spec, length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        let sizes = self.config.sizes(self.cells.len()).len();
        // Half of the prompts answer again.
        let again = (1 + sizes * (1 + self.config.draws)) as f64 / 2.0;
        Ok(Cost {
            bytes: self.bytes(length),
            ..Cost::passes(unit.items.len() as f64 * (1.0 + again))
        })
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let (cache, judgements) = captured_and_judged(model, &pairs, &self.capture)?;
        let looked: Vec<Looked> = (pairs.iter())
            .map(|pair| self.config.looked(task, pair))
            .collect::<Result<_>>()?;
        let mut columns = Columns::new(pairs.len());
        for &hook in &self.capture {
            let pattern = cache.get(hook)?.to_dtype(DType::F32)?;
            let mut scores: Vec<Vec<f64>> = Vec::with_capacity(pairs.len()); // [pair][head]
            for (i, looked) in looked.iter().enumerate() {
                let heads: Vec<Vec<Vec<f32>>> = pattern.get(i)?.to_vec3()?; // [head, query, key]
                scores.push(heads.iter().map(|pattern| score(pattern, looked)).collect());
            }
            let heads = 0..model.spec.n_heads;
            heads.for_each(|head| columns.push_some(|i| Some(scores[i][head])));
        }
        let examples = columns.into_examples_without_metric(task, &unit.items);
        Ok(judged(examples, judgements))
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        let (config, task) = (self.config, self.on.task);
        let n_heads = self.cells.len();
        if measured.examples.len() < 4 {
            measured.notes.push(format!(
                "{} prompts are too few for two halves: no heads are chosen on one and tried on the other",
                measured.examples.len()
            ));
            return Ok(());
        }
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed(task));
        let mut order: Vec<usize> = (0..measured.examples.len()).collect();
        order.shuffle(&mut rng);
        let halves = order.split_at(order.len() / 2);
        let means = |half: &[usize]| -> Vec<f64> {
            let of = |head: usize| {
                let values = half
                    .iter()
                    .filter_map(|&i| measured.examples[i].value(head));
                mean(&values.collect::<Vec<_>>())
            };
            (0..n_heads).map(of).collect()
        };
        let (first, second) = (means(halves.0), means(halves.1));
        let most = config.n_highest(n_heads);
        let highest = |means: &[f64]| -> Vec<usize> {
            let mut order: Vec<usize> = (0..n_heads).collect();
            order.sort_by(|&a, &b| means[b].total_cmp(&means[a]).then(a.cmp(&b)));
            order.truncate(most);
            order
        };
        let (ranked, others) = (highest(&first), highest(&second));
        let common = ranked.iter().filter(|head| others.contains(head)).count();
        let pairs: Vec<(f64, f64)> = first.into_iter().zip(second).collect();
        measured.notes.push(format!(
            "two halves of the prompts have {common} of their highest {most} heads in common ({:.1} by chance); the rank correlation of all {n_heads} is {}",
            (most * most) as f64 / n_heads as f64,
            rank_correlation(&pairs).map_or("not there, since they do not differ".into(), |of| format!("{of:.3}"))
        ));
        let all: Vec<(usize, usize)> = self.on.model.spec.heads().collect();
        let node = |&at: &usize| {
            let (layer, head) = all[at];
            Node::Head { layer, head }.to_string()
        };
        let chosen: Vec<String> = ranked.iter().map(node).collect();
        measured.found.insert("highest".into(), json!(chosen));
        let tried: Vec<usize> = (halves.1.iter())
            .filter_map(|&i| {
                let example = measured.examples[i].example;
                task.pairs().iter().position(|pair| pair.index == example)
            })
            .collect();
        let truths: Option<Vec<bool>> = (tried.iter())
            .map(|&item| config.is_positive(task, &task.pairs()[item]))
            .collect();
        match truths {
            Some(truths) => {
                let again = Again {
                    on: self.on,
                    items: &tried,
                    truths: &truths,
                    ranked: &ranked,
                    sizes: &config.sizes(n_heads),
                    draws: config.draws,
                    batch: self.batch,
                };
                add(&again, &again.facts(&mut rng, progress)?, measured);
                Ok(())
            }
            None => {
                measured.notes.push(
                    "some answers are neither of the two that the prompt names, or have no wrong answer beside them, so there is no precision and no recall".into(),
                );
                Ok(())
            }
        }
    }
}

/// Adds the rows of what is asked again.
fn add(again: &Again<'_>, facts: &[Fact], measured: &mut Measured) {
    let has_value = |fact: &&Fact| fact.value.is_some();
    let undefined = facts.len() - facts.iter().filter(has_value).count();
    if undefined > 0 {
        measured.notes.push(format!(
            "{undefined} numbers have no row: there is no precision where the positive answer is never given, and no recall where it is never right"
        ));
    }
    measured.notes.push(format!(
        "precision and recall are of {} prompts that the heads were not chosen on, {} of them with the positive answer",
        again.items.len(),
        again.truths.iter().filter(|is| **is).count()
    ));
    // A mean or an interval that some runs or resamples have no part in is of the others alone.
    let is_partial =
        |fact: &&Fact| fact.value.is_some() && (fact.undefined > 0.0 || fact.sets.0 < fact.sets.1);
    for fact in facts.iter().filter(is_partial) {
        let Cell { component, src, .. } = &fact.cell;
        let arm = match src {
            Some(size) => format!("{component} {size}"),
            None => component.clone(),
        };
        let measure = fact.cell.measure.as_deref().unwrap_or_default();
        let (there, all) = fact.sets;
        let of_sets = match there < all {
            true => format!(
                "is the mean of {there} of {all} sets (the others never give the positive answer); "
            ),
            false => String::new(),
        };
        measured.notes.push(format!(
            "`{measure}` of {arm} {of_sets}is not there in {:.0}% of the resamples of its interval, which is of the others",
            100.0 * fact.undefined
        ));
    }
    let facts: Vec<&Fact> = facts.iter().filter(has_value).collect();
    let cells = facts.iter().map(|fact| fact.cell.clone()).collect();
    // The prompts that were asked make one value together, and each has it.
    let task = again.on.task;
    let asked: HashSet<usize> = (again.items.iter())
        .map(|&item| task.pairs()[item].index)
        .collect();
    let first = measured.append(cells, |_, one| {
        let value = |fact: &&Fact| fact.value.filter(|_| asked.contains(&one.example));
        facts.iter().map(value).collect()
    });
    for (at, fact) in facts.iter().enumerate() {
        measured.intervals.insert(first + at, fact.interval);
    }
}
