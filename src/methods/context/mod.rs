//! Which sentences of a context an answer rests on.
//!
//! Sentence by sentence the prompt is made anew without it, through the chat template, and the same answer is forced. **ARC-JSD** sums over
//! the tokens of the answer how far the distribution there moves, a Jensen-Shannon divergence each, so `0 <= J <= m ln 2` for `m` tokens;
//! it is blind to the direction, and a sentence that speaks against the answer counts as one that speaks for it. **Leave-one-out** is
//! how much the answer's log probability falls. One of them costs a forward pass a sentence and one for the whole; both together cost
//! no more.
//!
//! Where it is known which sentence holds the answer (`Question::gold`), each method is judged by its best sentence, beside chance.
//!
//! Sources: Li et al. 2025, "Attributing Response to Context: A Jensen-Shannon Divergence Driven Mechanistic Study of Context Attribution"
//! (ARC-JSD; their released code has the divergences the other way round, [`KlOrder::Released`]); Cohen-Wang et al. 2024, "ContextCite"
//! (leave-one-out and the scoring). Scores are of the forced answer, whoever gave it.

mod config;
mod judged;
mod runs;

use std::collections::BTreeMap;

use serde_json::{Value, json};

pub use config::{ContextConfig, ContextMethod, KlOrder};

use super::captured::judged as judgements;
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, stop_if_asked, unmeasured,
};
use super::tokens::InCells;
use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::run::Progress;
use crate::scores::{Bars, Cell, Direction, ExampleScores, Measured, ScoresMeta, View};
use crate::task::{Pair, QuestionSet, Task};
use judged::{reciprocal_rank, top1};
use runs::{Asked, divergence, without};

/// How often the best sentence is the right one.
const TOP1: &str = "top1";
const RECIPROCAL_RANK: &str = "reciprocal_rank";
const ANSWER_LOG_PROB: &str = "answer_log_prob";
const JSD_PER_TOKEN: &str = "jsd_per_token";
const RANDOM: &str = "random";
/// The name of a fact: a token of an answer that the model gave itself.
const TOKEN: &str = "token:";
const FORWARDS: &str = "forwards";

impl Method for ContextConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let first = self
            .methods
            .first()
            .copied()
            .unwrap_or(ContextMethod::ArcJsd);
        let seed = self.seed.unwrap_or(task.seed);
        let measure = first.measure(self.kl_order);
        ScoresMeta::new("context", measure, first.unit(), Direction::Direct, seed)
    }

    fn settings(&self) -> Value {
        let questions = &self.questions;
        json!({
            "methods": self.methods, "kl_order": self.kl_order, "layout": questions.layout, "max_answer": questions.max_answer,
            "gold": questions.questions.iter().map(|one| one.gold).collect::<Vec<_>>(),
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("answers without some sentences"),
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, _: &ModelSpec, task: &Task) -> Result<()> {
        self.check_methods()?;
        self.questions.check()?;
        for pair in task.pairs() {
            let n = (self.questions.questions.get(pair.index)).map_or(0, |one| one.context.len());
            let prompt = match n {
                0 => None,
                n => {
                    let tokenizer = task.tokenizer();
                    let all = vec![true; n];
                    let made = (self.questions)
                        .prompt(pair.index, &all, tokenizer, task.chat, task.bos)?;
                    made.ok()
                }
            };
            let begins = |prompt: &[u32]| pair.clean.starts_with(prompt);
            if !prompt.is_some_and(|prompt| begins(&prompt.ids)) {
                return Err(Error::invalid(format!(
                    "pair {} of task `{}` is not question {} of `{}`; make the task of these questions",
                    pair.index, task.name, pair.index, self.questions.name
                )));
            }
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Asking::new(on, self, running)))
    }

    fn views(&self, task: &Task) -> Vec<View> {
        let mut views = Vec::new();
        let mut measures: Vec<&str> = Vec::new();
        for method in &self.methods {
            let measure = method.measure(self.kl_order);
            if !measures.contains(&measure) {
                measures.push(measure);
            }
        }
        for measure in measures {
            let of_measure = |method: &&ContextMethod| method.measure(self.kl_order) == measure;
            let of: Vec<&ContextMethod> = self.methods.iter().filter(of_measure).collect();
            for method in of {
                views.push(View::Bars(Bars {
                    heading: format!("{method}: {measure}, {}", method.unit()),
                    component: Some(method.name().into()),
                    measure: measure.into(),
                    item: "{role}".into(),
                    text: "{src}".into(),
                }));
            }
        }
        if has_gold(&self.questions, task) {
            views.push(View::Bars(Bars {
                heading: "top-1: how often the best sentence is the right one".into(),
                component: None,
                measure: TOP1.into(),
                item: "{component}".into(),
                ..Bars::default()
            }));
        }
        views
    }
}

fn has_gold(questions: &QuestionSet, task: &Task) -> bool {
    let gold = |pair: &Pair| questions.questions.get(pair.index).and_then(|one| one.gold);
    task.pairs().iter().any(|pair| gold(pair).is_some())
}

/// A checked run in progress.
struct Asking<'a> {
    on: Subject<'a>,
    config: &'a ContextConfig,
    running: &'a Running,
    /// Sentences of the longest context.
    most: usize,
    cells: Vec<Cell>,
}

impl<'a> Asking<'a> {
    fn new(on: Subject<'a>, config: &'a ContextConfig, running: &'a Running) -> Self {
        let questions = &config.questions.questions;
        let of = |pair: &Pair| questions[pair.index].context.len();
        let pairs = on.task.pairs();
        let most = pairs.iter().map(of).max().unwrap_or(0);
        let own = config
            .methods
            .first()
            .map(|first| first.measure(config.kl_order));
        let sentence = |component: &str, measure: &str, at: usize| Cell {
            component: component.into(),
            role: Some(QuestionSet::role(at)),
            // One question's sentences are known by their text.
            src: match pairs {
                [one] => Some(questions[one.index].context[at].trim().to_string()),
                _ => None,
            },
            measure: Some(measure.to_string()).filter(|measure| own != Some(measure)),
            ..Cell::default()
        };
        let mut cells = Vec::new();
        for method in &config.methods {
            let measure = method.measure(config.kl_order);
            cells.extend((0..most).map(|at| sentence(method.name(), measure, at)));
        }
        if config.asks(ContextMethod::ArcJsd) {
            cells.extend((0..most).map(|at| sentence("arc-jsd", JSD_PER_TOKEN, at)));
        }
        let whole = |component: &str, measure: &str| Cell {
            component: component.into(),
            measure: Some(measure.into()),
            ..Cell::default()
        };
        cells.push(whole("answer", ANSWER_LOG_PROB));
        if has_gold(&config.questions, on.task) {
            let names = config.methods.iter().map(|method| method.name());
            for name in names.chain([RANDOM]) {
                cells.extend([TOP1, RECIPROCAL_RANK].map(|measure| whole(name, measure)));
            }
        }
        Asking {
            on,
            config,
            running,
            most,
            cells,
        }
    }

    fn gold(&self, pair: &Pair) -> Option<usize> {
        self.config.questions.questions[pair.index].gold
    }

    /// Forward passes of a question of so many sentences, an answer of the model's own not counted.
    fn forwards(&self, n: usize) -> usize {
        n + 1
    }

    /// The scores of each sentence by each method.
    fn scores(
        &self,
        asked: &Asked<'_>,
        whole: &runs::Answered,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        let n = asked.n_sentences();
        let log_prob = asked.log_prob(whole)?;
        let choices: Vec<Vec<bool>> = (0..n).map(|at| without(n, at)).collect();
        let wants_jsd = self.config.asks(ContextMethod::ArcJsd);
        let without: Vec<(f64, f64)> = asked.each(&choices, |_, less| {
            stop_if_asked(progress)?;
            progress.advance(1);
            let jsd = match wants_jsd {
                true => divergence(whole, less, self.config.kl_order)?,
                false => 0.0,
            };
            Ok((jsd, log_prob - asked.log_prob(less)?))
        })?;
        let of = |method: &ContextMethod| match method {
            ContextMethod::ArcJsd => without.iter().map(|it| it.0).collect(),
            ContextMethod::LeaveOneOut => without.iter().map(|it| it.1).collect(),
        };
        Ok(self.config.methods.iter().map(of).collect())
    }
}

impl Prepared for Asking<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        runs::bytes(self.on.model, length, self.config.questions.max_answer)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let pairs = self.on.task.pairs();
        let of = |&item: &usize| {
            let pair = &pairs[item];
            let n = self.config.questions.questions[pair.index].context.len();
            // A token of the model's own is a step of one row; the prompt is walked once for it.
            let own = usize::from(pair.target.answers.is_empty());
            self.forwards(n) + own
        };
        let passes: usize = unit.items.iter().map(of).sum();
        Ok(Cost::passes(passes as f64))
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let mut examples = Vec::with_capacity(unit.items.len());
        for &item in &unit.items {
            let pair = &task.pairs()[item];
            let questions = &self.config.questions;
            let asked = Asked::new(model, task, questions, pair, self.running.memory_now())?;
            let n = asked.n_sentences();
            let progress = InCells::new(progress, self.cells.len(), self.forwards(n));
            let mut whole = asked.each(&[vec![true; n]], |_, answered| Ok(answered.clone()))?;
            let whole = whole.pop().expect("one prompt was run");
            progress.advance(1);
            let scores = self.scores(&asked, &whole, &progress)?;
            let mut values: Vec<Option<f64>> = Vec::with_capacity(self.cells.len());
            let padded = |scores: &mut dyn Iterator<Item = f64>| -> Vec<Option<f64>> {
                let scores = scores.map(Some).chain(std::iter::repeat(None));
                scores.take(self.most).collect()
            };
            for scores in &scores {
                values.extend(padded(&mut scores.iter().copied()));
            }
            let jsd = self.config.methods.iter().zip(&scores);
            for (_, jsd) in jsd.filter(|(method, _)| **method == ContextMethod::ArcJsd) {
                let tokens = asked.answer.len() as f64;
                values.extend(padded(&mut jsd.iter().map(|j| j / tokens)));
            }
            values.push(Some(asked.log_prob(&whole)?));
            let gold = self.gold(pair);
            if values.len() < self.cells.len() {
                for scores in &scores {
                    let of = |score: fn(&[f64], usize) -> f64| gold.map(|gold| score(scores, gold));
                    values.extend([of(top1), of(reciprocal_rank)]);
                }
                let chance = vec![0.0; n];
                let of = |score: fn(&[f64], usize) -> f64| gold.map(|_| score(&chance, 0));
                values.extend([of(top1), of(judged::reciprocal_rank_by_chance)]);
            }
            let mut one = unmeasured(task, item, f64::NAN, f64::NAN);
            if !pair.target.answers.is_empty() {
                let judged = judgements(&[asked.target()], std::slice::from_ref(&whole));
                one.judged(judged.into_iter().next().unwrap_or_default());
            }
            let cells = (0u32..).zip(&values).filter(|(_, value)| value.is_some());
            one.cells = cells.map(|(cell, _)| cell).collect();
            one.values = values.into_iter().flatten().collect();
            for (at, &token) in asked.answer.iter().enumerate() {
                one.facts
                    .insert(format!("{TOKEN}{at:04}"), f64::from(token));
            }
            one.facts.insert(FORWARDS.into(), self.forwards(n) as f64);
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        measured.drop_unmeasured();
        let tokenizer = self.on.task.tokenizer();
        let pairs: BTreeMap<usize, &Pair> = (self.on.task.pairs().iter())
            .map(|pair| (pair.index, pair))
            .collect();
        let log_prob = (measured.cells.iter())
            .position(|cell| cell.measure.as_deref() == Some(ANSWER_LOG_PROB))
            .expect("every example has it");
        let mut answers = Vec::new();
        let (mut sum, mut forwards) = (0.0, 0.0);
        for one in &measured.examples {
            let tokens = one.facts.iter().filter(|(fact, _)| fact.starts_with(TOKEN));
            let tokens: Vec<u32> = tokens.map(|(_, &id)| id as u32).collect();
            let given = pairs.get(&one.example);
            let is_given = given.is_some_and(|pair| !pair.target.answers.is_empty());
            let of_one = one.value(log_prob).unwrap_or(f64::NAN);
            answers.push(json!({
                "example": one.example, "text": tokenizer.decode(&tokens)?, "given": is_given, "log_prob": of_one,
            }));
            sum += of_one;
            forwards += one.facts.get(FORWARDS).copied().unwrap_or(0.0);
        }
        let n = measured.examples.len().max(1) as f64;
        let whose = |is_given: bool| if is_given { "given" } else { "the model's own" };
        measured.notes.push(match &answers[..] {
            [one] => format!(
                "the answer is `{}` ({}), of log probability {:.2} nats",
                crate::text::clipped(one["text"].as_str().unwrap_or_default(), 200).trim(),
                whose(one["given"] == json!(true)),
                sum
            ),
            all => format!(
                "{} answers are {}, of log probability {:.2} nats in the mean",
                all.len(),
                whose(all.iter().all(|one| one["given"] == json!(true))),
                sum / n
            ),
        });
        measured.notes.push(format!(
            "{:.1} forward passes a question, for all methods together",
            forwards / n
        ));
        measured
            .found
            .insert("answers".into(), Value::from(answers));
        Ok(())
    }
}
