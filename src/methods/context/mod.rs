//! Which sentences of a context an answer rests on.
//!
//! The prompt is made anew without some sentences, through the chat template, and the same answer is forced.
//! **ARC-JSD** sums over the tokens of the answer how far the distribution there moves without a sentence, a Jensen-Shannon divergence each,
//! so `0 <= J <= m ln 2` for `m` tokens; it is blind to the direction, and a sentence that speaks against the answer counts as one that speaks
//! for it. **Leave-one-out** is how much the answer's log probability falls. Both together cost a forward pass a sentence and one for
//! the whole. A **sparse fit** takes the log odds of the answer over random choices of sentences for a linear function (`sparse.rs`).
//!
//! Others only look at the run itself (`looks.rs`), which costs one pass: mean **attention** from where the answer is written, the **cosine** of
//! states, and **AttnAttrib**, the highest weight of one head, which is found on other questions than the one it is asked about (`head.rs`).
//! The **lens** says whose output moves with the best sentence (`lens.rs`).
//!
//! Where it is known which sentence holds the answer (`Question::gold`), each method is judged by its best sentence, beside chance.
//!
//! Sources: Li et al. 2025, "Attributing Response to Context: A Jensen-Shannon Divergence Driven Mechanistic Study of Context Attribution"
//! (ARC-JSD and the lens; their released code has the divergences the other way round, [`KlOrder::Released`], and slices `W_O` by rows, which
//! is not repeated); Cohen-Wang et al. 2024, "ContextCite" (leave-one-out, the sparse fit and its penalty); Basu et al. 2025, "On Mechanistic Circuits
//! for Extractive Question-Answering" (AttnAttrib: the choice of the head and the score of a sentence are ours as far as the text leaves them
//! open); the cosine is an arm of LAQuer (Hirsch et al. 2025). Left out on purpose: spans inside of a sentence.

mod config;
mod head;
mod judged;
mod lens;
mod looks;
mod rows;
mod runs;
mod sparse;
mod steer;
mod views;

use std::collections::{BTreeMap, HashMap};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

pub use config::{ContextConfig, ContextMethod, KlOrder, Steer};

use super::captured::judged as judgements;
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, stop_if_asked, unmeasured,
};
use super::tokens::InCells;
use crate::error::{Error, Result};
use crate::model::ModelSpec;
use crate::run::{Progress, check_room};
use crate::scores::statistics::mean;
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta, View};
use crate::task::questions::AskedPrompt;
use crate::task::{Pair, Task};
use head::OnOne;
use judged::{best, reciprocal_rank, top1};
use rows::{ANSWER_LOG_PROB, Found, HELD_OUT, Rows};
use runs::{Answered, Asked, divergence, without};

/// The name of a fact: a token of an answer that the model gave itself.
const TOKEN: &str = "token:";
const FORWARDS: &str = "forwards";

/// What is drawn of a question, each from a stream of its own.
#[derive(Clone, Copy)]
enum Draw {
    Masks,
    LensControl,
    SteerControl,
}

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
            "methods": self.methods, "kl_order": self.kl_order, "draws": self.draws, "head": self.head, "layer": self.layer, "lens": self.lens, "steer": self.steer, "own_answers": questions.own_answers,
            "expected": self.steer.map(|_| questions.questions.iter().map(|one| one.answer.clone()).collect::<Vec<_>>()), "layout": questions.layout, "max_answer": questions.max_answer,
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

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.check_settings(spec, self.questions.known_contexts(task))?;
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
            let is_its_own = |prompt: &AskedPrompt| {
                let question = &self.questions.questions[pair.index];
                let is_given = !self.questions.own_answers && question.answer.is_some();
                pair.clean.starts_with(&prompt.ids) && is_given != pair.target.answers.is_empty()
            };
            if !prompt.as_ref().is_some_and(is_its_own) {
                return Err(Error::invalid(format!(
                    "pair {} of task `{}` is not question {} of `{}`; make the task of these questions",
                    pair.index, task.name, pair.index, self.questions.name
                )));
            }
            if self.steer == Some(Steer::Hint) {
                let order: Vec<usize> = (0..n).collect();
                for hint in 0..n {
                    let order = [&order[..], &[hint]].concat();
                    let prompt = (self.questions).prompt_of(
                        pair.index,
                        &order,
                        task.tokenizer(),
                        task.chat,
                        task.bos,
                    )?;
                    let length = prompt.map_or(0, |prompt| prompt.ids.len());
                    check_room(spec, length, self.questions.max_answer)?;
                }
            }
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Asking::new(on, self, running)))
    }

    fn views(&self, task: &Task) -> Vec<View> {
        views::views(self, task)
    }
}

/// A checked run in progress.
struct Asking<'a> {
    on: Subject<'a>,
    config: &'a ContextConfig,
    running: &'a Running,
    rows: Rows,
}

impl<'a> Asking<'a> {
    fn new(on: Subject<'a>, config: &'a ContextConfig, running: &'a Running) -> Self {
        Asking {
            on,
            config,
            running,
            rows: Rows::new(config, &on.model.spec, on.task),
        }
    }

    /// The sentence that the answer ought to rest on, where it is known: a wrong answer of the model's own may rest on any.
    fn gold(&self, example: usize, answer: &[u32]) -> Result<Option<usize>> {
        let questions = &self.config.questions;
        let question = &questions.questions[example];
        if let (true, Some(expected)) = (questions.own_answers, &question.answer) {
            let said = self.on.task.tokenizer().decode(answer)?;
            if !steer::has(&said, expected) {
                return Ok(None);
            }
        }
        Ok(question.gold)
    }

    /// Random numbers of a question.
    fn rng(&self, example: usize, of: Draw) -> ChaCha8Rng {
        let seed = self.config.seed.unwrap_or(self.on.task.seed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(3 * example as u64 + of as u64);
        rng
    }

    /// Choices of sentences that are run for a fit: those that nobody else runs.
    fn masks(&self, example: usize, n: usize) -> (Vec<Vec<bool>>, usize) {
        sparse::masks(n, self.config.draws, self.rng(example, Draw::Masks))
    }

    /// Forward passes of a question, an answer of the model's own not counted.
    fn forwards(&self, example: usize, n: usize) -> usize {
        let config = self.config;
        let left_out = if config.leaves_out() { n } else { 0 };
        let is_run = |mask: &Vec<bool>| {
            let away = mask.iter().filter(|&&there| !there).count();
            away == 0 || (away == 1 && config.leaves_out())
        };
        let fitted = if config.asks(ContextMethod::SparseFit) {
            let (masks, _) = self.masks(example, n);
            masks.iter().filter(|mask| !is_run(mask)).count()
        } else {
            0
        };
        let looks = usize::from(config.looks());
        let lens = if config.lens { 3 } else { 0 };
        // A token that the model writes is a step of one row; the prompt is walked once for all of them.
        let steered = if config.steer.is_some() { 2 } else { 0 };
        1 + left_out + fitted + looks + lens + steered
    }

    /// All that is found of a question.
    fn found(&self, asked: &Asked<'_>, progress: &dyn Progress) -> Result<(Found, Answered)> {
        let config = self.config;
        let (n, example) = (asked.n_sentences(), asked.pair.index);
        let step = |passes: u64| {
            progress.advance(passes);
            stop_if_asked(progress)
        };
        let mut whole = asked.each(&[vec![true; n]], |_, answered| Ok(answered.clone()))?;
        let whole = whole.pop().expect("one prompt was run");
        step(1)?;
        let log_prob = asked.log_prob(&whole)?;
        let mut known = HashMap::from([(vec![true; n], log_prob)]);
        let mut jsd = Vec::new();
        if config.leaves_out() {
            let choices: Vec<Vec<bool>> = (0..n).map(|at| without(n, at)).collect();
            let wants_jsd = config.asks(ContextMethod::ArcJsd);
            let left_out = asked.each(&choices, |_, less| {
                step(1)?;
                let jsd = match wants_jsd {
                    true => divergence(&whole, less, config.kl_order)?,
                    false => 0.0,
                };
                Ok((jsd, asked.log_prob(less)?))
            })?;
            jsd = left_out.iter().map(|it| it.0).collect();
            known.extend(choices.into_iter().zip(left_out.iter().map(|it| it.1)));
        }
        let (mut weights, mut held_out) = (Vec::new(), None);
        if config.asks(ContextMethod::SparseFit) {
            let (masks, fitted) = self.masks(example, n);
            let more: Vec<Vec<bool>> = (masks.iter())
                .filter(|mask| !known.contains_key(*mask))
                .cloned()
                .collect();
            let values = asked.each(&more, |_, answered| {
                step(1)?;
                asked.log_prob(answered)
            })?;
            known.extend(more.into_iter().zip(values));
            let values: Vec<f64> = masks.iter().map(|mask| known[mask]).collect();
            (weights, held_out) = sparse::fit(&masks, &values, fitted);
        }
        let mut looks = None;
        if config.looks() {
            looks = Some(looks::look(asked, config.layer(&asked.model.spec))?);
            step(1)?;
        }
        let mut lens = None;
        if config.lens {
            let best = best(&jsd);
            let mut rng = self.rng(example, Draw::LensControl);
            let control = (best + rng.random_range(1..n)) % n;
            lens = Some(lens::lens(asked, best, control)?);
            step(3)?;
        }
        let by_looking = |of: &dyn Fn(&looks::Looks) -> Vec<f64>| looks.as_ref().map(of);
        let scores = |method: &ContextMethod| {
            let scores = match method {
                ContextMethod::ArcJsd => Some(jsd.clone()),
                ContextMethod::LeaveOneOut => {
                    Some((0..n).map(|at| log_prob - known[&without(n, at)]).collect())
                }
                ContextMethod::SparseFit => Some(weights.clone()),
                ContextMethod::Attention => by_looking(&|looks| looks.mean.clone()),
                ContextMethod::Cosine => by_looking(&|looks| looks.cosine.clone()),
                ContextMethod::AttnAttrib => config.head.and_then(|(layer, head)| {
                    let at = layer * asked.model.spec.n_heads + head;
                    by_looking(&|looks| looks.heads[at].highest.clone())
                }),
            };
            Some((*method, scores?))
        };
        let scores: Vec<(ContextMethod, Vec<f64>)> =
            config.methods.iter().filter_map(scores).collect();
        let mut steered = None;
        if let (Some(how), Some((_, first))) = (config.steer, scores.first()) {
            let mut rng = self.rng(example, Draw::SteerControl);
            steered = Some(steer::steer(
                asked,
                how,
                config.head,
                best(first),
                &mut rng,
            )?);
            step(2)?;
        }
        let found = Found {
            scores,
            steered,
            log_prob,
            tokens: asked.answer.len(),
            held_out,
            looks,
            lens,
            gold: self.gold(example, &asked.answer)?,
            sentences: n,
        };
        Ok((found, whole))
    }

    /// Adds the rows of the head that the other questions choose.
    fn add_chosen_heads(&self, measured: &mut Measured, place_of: &HashMap<Cell, usize>) {
        let spec = &self.on.model.spec;
        let n_heads = spec.n_layers * spec.n_heads;
        let most = self.rows.most();
        // Cells that nobody has are gone, so places are looked up by what the cells are.
        let value = |one: &ExampleScores, head: usize, at: usize| {
            let cell = &self.rows.cells[self.rows.of_head(head)? + at];
            one.value(*place_of.get(cell)?)
        };
        let on_one = |one: &ExampleScores| {
            let column = |at: usize| (0..n_heads).map(|head| value(one, head, at)).collect();
            let hits: Option<Vec<f64>> = column(most);
            let entropies: Option<Vec<f64>> = column(most + 1);
            OnOne {
                hits,
                entropies: entropies.unwrap_or_default(),
            }
        };
        let all: Vec<OnOne> = measured.examples.iter().map(on_one).collect();
        // Questions about one context are not others to each other.
        let questions = &self.config.questions.questions;
        let context = |one: &ExampleScores| questions.get(one.example).map(|it| &it.context);
        let contexts: Vec<_> = measured.examples.iter().map(context).collect();
        let chosen = head::chosen(&all, &contexts);
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        chosen
            .iter()
            .flatten()
            .for_each(|&head| *counts.entry(head).or_default() += 1);
        let names = counts.iter().map(|(head, n)| {
            let (layer, head) = (head / spec.n_heads, head % spec.n_heads);
            (format!("a{layer}.h{head}"), n)
        });
        let mut names: Vec<(String, &usize)> = names.collect();
        names.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
        let said: Vec<String> = names
            .iter()
            .map(|(name, n)| format!("{name} for {n}"))
            .collect();
        measured.notes.push(match said.is_empty() {
            true => "no head of `attn-attrib`: no question about another context is judged".into(),
            false => format!(
                "the head of `attn-attrib`, chosen by the other questions: {}",
                said.join(", ")
            ),
        });
        measured.found.insert("heads".into(), json!(names));
        if counts.is_empty() {
            return;
        }
        let cells = self.rows.found_later(self.config, spec, self.on.task);
        let has_gold = all.iter().any(|one| one.hits.is_some());
        let cells = cells[..most + if has_gold { 2 } else { 0 }].to_vec();
        measured.append(cells, |i, one| {
            let mut values = vec![None; most];
            if let Some(head) = chosen[i] {
                values = (0..most).map(|at| value(one, head, at)).collect();
            }
            let scores: Vec<f64> = values.iter().copied().flatten().collect();
            let gold = questions[one.example].gold;
            let gold = gold.filter(|&gold| all[i].hits.is_some() && gold < scores.len());
            let judged = [top1, reciprocal_rank].map(|judge| Some(judge(&scores, gold?)));
            values.extend(judged.into_iter().take(if has_gold { 2 } else { 0 }));
            values
        });
    }
}

impl Prepared for Asking<'_> {
    fn cells(&self) -> &[Cell] {
        &self.rows.cells
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
            self.forwards(pair.index, n) + own
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
            let Some(asked) = asked else {
                examples.push(unmeasured(task, item, f64::NAN, f64::NAN));
                continue;
            };
            let n = asked.n_sentences();
            let forwards = self.forwards(pair.index, n);
            let progress = InCells::new(progress, self.rows.cells.len(), forwards);
            let (found, whole) = self.found(&asked, &progress)?;
            let looks = found.looks.as_ref();
            let on_one = looks.map(|looks| head::on_one(&looks.heads, found.gold, top1));
            let values = self.rows.values(&found, on_one.as_ref());
            let mut one = unmeasured(task, item, f64::NAN, f64::NAN);
            if !pair.target.answers.is_empty() {
                let judged = judgements(&[asked.target()], &[whole]);
                one.judged(judged.into_iter().next().unwrap_or_default());
            }
            let cells = (0u32..).zip(&values).filter(|(_, value)| value.is_some());
            one.cells = cells.map(|(cell, _)| cell).collect();
            one.values = values.into_iter().flatten().collect();
            for (at, &token) in asked.answer.iter().enumerate() {
                one.facts
                    .insert(format!("{TOKEN}{at:04}"), f64::from(token));
            }
            one.facts.insert(FORWARDS.into(), forwards as f64);
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let silent = |one: &ExampleScores| !one.facts.contains_key(FORWARDS);
        let unanswered: Vec<String> = (measured.examples.iter().filter(|one| silent(one)))
            .map(|one| one.example.to_string())
            .collect();
        measured.examples.retain(|one| !silent(one));
        if measured.examples.is_empty() {
            return Err(Error::invalid(
                "the model has no answer to any of the questions: what it says first ends the text or the line; give answers, or word the \
                 questions (`QuestionSet::layout`) so that it answers",
            ));
        }
        if !unanswered.is_empty() {
            measured.notes.push(format!(
                "left out: question {}, to which the model has no answer (what it says first ends the text or the line)",
                unanswered.join(", ")
            ));
        }
        measured.drop_unmeasured();
        let place_of: HashMap<Cell, usize> = (measured.cells.iter().cloned())
            .enumerate()
            .map(|(at, cell)| (cell, at))
            .collect();
        if self.config.searches() {
            self.add_chosen_heads(measured, &place_of);
        }
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
        let held_out = measured
            .cells
            .iter()
            .position(|cell| cell.measure.as_deref() == Some(HELD_OUT));
        if let Some(cell) = held_out {
            let of: Vec<f64> = measured
                .examples
                .iter()
                .filter_map(|one| one.value(cell))
                .collect();
            measured.notes.push(format!(
                "the sparse fit has a correlation of {:.3} with masks that it was not made of (the mean of {})",
                mean(&of),
                of.len()
            ));
        }
        measured.notes.push(format!(
            "{:.1} forward passes a question, for all methods together; the writing of answers is not counted",
            forwards / n
        ));
        measured
            .found
            .insert("answers".into(), Value::from(answers));
        Ok(())
    }
}
