//! Runs of one question with sentences left out: the answer is forced, and each of its tokens has a distribution.

use std::collections::BTreeMap;

use super::config::KlOrder;
use crate::error::{Error, Result};
use crate::hooks::Edit;
use crate::metric::{Metric, Target, log_softmax};
use crate::model::Model;
use crate::run::{GenerateRequest, Quiet, Sampling, check_room, generate, run_to_answers};
use crate::task::{Pair, QuestionSet, Task};

/// More prompts than this at once gain nothing.
const MOST_AT_ONCE: usize = 16;

/// The logits of each token of an answer: `[answer][vocabulary]`.
pub(super) type Answered = Vec<Vec<f32>>;

/// A question whose answer is known, on a model.
pub(super) struct Asked<'a> {
    pub model: &'a Model,
    pub task: &'a Task,
    pub questions: &'a QuestionSet,
    pub pair: &'a Pair,
    pub answer: Vec<u32>,
    /// Bytes for the runs of several prompts at once.
    pub memory: usize,
}

impl<'a> Asked<'a> {
    /// The answer is the pair's, or the model's own: greedy, up to its end token, and outside of a chat up to a line break; `None` where
    /// that leaves nothing.
    /// # Errors
    /// Those of running.
    pub fn new(
        model: &'a Model,
        task: &'a Task,
        questions: &'a QuestionSet,
        pair: &'a Pair,
        memory: usize,
    ) -> Result<Option<Self>> {
        let given = &pair.target;
        let mut answer: Vec<u32> = given.answers.iter().chain(&given.then).copied().collect();
        if answer.is_empty() {
            answer = own_answer(model, task, &pair.clean, questions.max_answer, &[])?;
        }
        if answer.is_empty() {
            return Ok(None);
        }
        Ok(Some(Asked {
            model,
            task,
            questions,
            pair,
            answer,
            memory,
        }))
    }

    pub fn n_sentences(&self) -> usize {
        self.questions.questions[self.pair.index].context.len()
    }

    /// The positions of a sentence in the prompt with all of them.
    pub fn positions(&self, sentence: usize) -> &[usize] {
        let role = QuestionSet::role(sentence);
        self.pair.roles.get(&role).map_or(&[], Vec::as_slice)
    }

    pub fn target(&self) -> Target {
        Target {
            answers: self.answer[..1].to_vec(),
            then: self.answer[1..].to_vec(),
            ..Target::default()
        }
    }

    /// The prompt with some sentences, and behind it the answer but for its last token.
    /// # Errors
    /// Those of the tokenizer; [`Error::Invalid`] if what is left is no prompt.
    pub fn prompt(&self, there: &[bool]) -> Result<Vec<u32>> {
        let order: Vec<usize> = (0..there.len()).filter(|&at| there[at]).collect();
        let mut prompt = self.prompt_of(&order)?;
        prompt.extend(&self.answer[..self.answer.len() - 1]);
        Ok(prompt)
    }

    /// The prompt alone, with sentences in an order.
    /// # Errors
    /// Those of [`Asked::prompt`].
    pub fn prompt_of(&self, order: &[usize]) -> Result<Vec<u32>> {
        let (task, index) = (self.task, self.pair.index);
        let tokenizer = task.tokenizer();
        let prompt = (self.questions).prompt_of(index, order, tokenizer, task.chat, task.bos)?;
        let prompt = prompt.map_err(|reason| {
            let order: Vec<String> = order.iter().map(|at| at.to_string()).collect();
            Error::invalid(format!(
                "question {index} with the sentences {} is no prompt: {reason}",
                order.join(", ")
            ))
        })?;
        Ok(prompt.ids)
    }

    /// What each choice of sentences says of the answer, through `read`; prompts of one length run together.
    pub fn each<T: Clone>(
        &self,
        choices: &[Vec<bool>],
        mut read: impl FnMut(usize, &Answered) -> Result<T>,
    ) -> Result<Vec<T>> {
        let prompts = choices.iter().map(|there| self.prompt(there));
        let prompts: Vec<Vec<u32>> = prompts.collect::<Result<_>>()?;
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (at, prompt) in prompts.iter().enumerate() {
            by_length.entry(prompt.len()).or_default().push(at);
        }
        let mut found: Vec<Option<T>> = vec![None; prompts.len()];
        for (&length, places) in &by_length {
            let room = self.memory / bytes(self.model, length, self.answer.len()).max(1);
            for places in places.chunks(room.clamp(1, MOST_AT_ONCE)) {
                let some: Vec<Vec<u32>> = places.iter().map(|&at| prompts[at].clone()).collect();
                let targets = vec![self.target(); some.len()];
                let (logits, _) = run_to_answers(self.model, &some, &targets, &[])?;
                for (&at, answered) in places.iter().zip(&logits) {
                    found[at] = Some(read(at, answered)?);
                }
            }
        }
        Ok(found.into_iter().flatten().collect())
    }

    /// The log probability of the answer, in nats.
    pub fn log_prob(&self, answered: &Answered) -> Result<f64> {
        let rows: Vec<&[f32]> = answered.iter().map(Vec::as_slice).collect();
        Metric::LogProb.value_whole(&rows, &self.target(), None)
    }
}

/// All sentences but one.
pub(super) fn without(n: usize, left_out: usize) -> Vec<bool> {
    (0..n).map(|at| at != left_out).collect()
}

/// How far the distributions of an answer are from each other, summed over its tokens, in nats.
/// # Errors
/// Those of [`Metric::value`].
pub(super) fn divergence(whole: &Answered, less: &Answered, order: KlOrder) -> Result<f64> {
    let mut sum = 0.0;
    for (p, q) in whole.iter().zip(less) {
        sum += match order {
            KlOrder::Bounded => Metric::Js.value(q, &Target::default(), Some(p))?,
            KlOrder::Released => released(&log_softmax(p), &log_softmax(q)),
        };
    }
    Ok(sum)
}

/// `KL(M||P) / 2 + KL(M||Q) / 2` of two log distributions, `M` their mean.
fn released(p: &[f64], q: &[f64]) -> f64 {
    let each = p.iter().zip(q).map(|(&p, &q)| {
        let m = 0.5 * (p.exp() + q.exp());
        if m > 0.0 {
            m * (m.ln() - 0.5 * (p + q))
        } else {
            0.0
        }
    });
    each.sum::<f64>().max(0.0)
}

/// What the model says itself, with edits in force: greedily, up to its end token, and outside of a chat up to a line break.
/// # Errors
/// Those of [`generate`].
pub(super) fn own_answer(
    model: &Model,
    task: &Task,
    prompt: &[u32],
    most: usize,
    edits: &[Edit],
) -> Result<Vec<u32>> {
    check_room(&model.spec, prompt.len(), most)?;
    let tokenizer = task.tokenizer();
    let stop = tokenizer.ends();
    let request = GenerateRequest {
        max_tokens: most,
        sampling: Sampling::Greedy,
        stop: &stop,
        edits,
        ..GenerateRequest::default()
    };
    let mut made = generate(model, &[prompt.to_vec()], &request, &Quiet)?.tokens;
    let mut answer = made.pop().unwrap_or_default();
    // A turn may end in another token than a text does.
    let end = answer
        .iter()
        .position(|&id| stop.contains(&id) || tokenizer.is_special(id));
    answer.truncate(end.unwrap_or(answer.len()));
    if !task.chat {
        let breaks = |&id: &u32| {
            tokenizer
                .decode(&[id])
                .is_ok_and(|text| text.contains('\n'))
        };
        let end = answer.iter().position(breaks);
        answer.truncate(end.unwrap_or(answer.len()));
    }
    Ok(answer)
}

/// Bytes that a run of a prompt needs: some streams, the scores of a layer, and the logits of the answer.
pub(super) fn bytes(model: &Model, length: usize, answer: usize) -> usize {
    let spec = &model.spec;
    let rows = length * (6 * spec.d_model + 3 * spec.d_mlp + 3 * spec.n_heads * spec.d_head);
    4 * (rows + 2 * spec.n_heads * length * length + 3 * answer * spec.d_vocab)
}
