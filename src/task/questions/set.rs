//! Questions as values, and what each must have.

use crate::error::{Error, Result};
use crate::text::clipped;

/// More sentences than this are refused: each is a run of its own.
const MOST_SENTENCES: usize = 512;
/// Tokens of an answer that the model gives itself, where nobody says.
pub const MAX_ANSWER: usize = 16;

/// A question about a context.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// Sentences, or other parts; at least two. A space stands between them in the prompt.
    pub context: Vec<String>,
    pub question: String,
    /// The answer that is asked about. `None`: the model's own, greedily.
    pub answer: Option<String>,
    /// The sentence that holds the answer, from 0.
    pub gold: Option<usize>,
}

/// Questions, and how they become prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuestionSet {
    pub name: String,
    pub questions: Vec<Question>,
    /// A text with `{context}` and `{question}` in it. `None`: the context, an empty line and the question in a chat, else
    /// with `Question:` and `Answer:`.
    pub layout: Option<String>,
    /// The model's own answers are asked about, also where others are given; these then are what is expected.
    pub own_answers: bool,
    /// An answer that the model gives itself has at most so many tokens.
    pub max_answer: usize,
    /// The file as it was read, for the provenance.
    pub source: String,
}

impl QuestionSet {
    /// Questions of one's own.
    pub fn new(name: impl Into<String>, questions: impl Into<Vec<Question>>) -> Self {
        QuestionSet {
            name: name.into(),
            questions: questions.into(),
            layout: None,
            own_answers: false,
            max_answer: MAX_ANSWER,
            source: String::new(),
        }
    }

    /// The role of a sentence.
    pub fn role(sentence: usize) -> String {
        format!("s{sentence}")
    }

    /// Refuses questions that no model could be asked.
    /// # Errors
    /// [`Error::Invalid`] naming the first, and the layout if it has not one place for the context and one for the question.
    pub fn check(&self) -> Result<()> {
        if let Some(layout) = &self.layout {
            for slot in ["{context}", "{question}"] {
                let n = layout.matches(slot).count();
                if n != 1 {
                    return Err(Error::invalid(format!(
                        "the layout `{}` has {n} places `{slot}`, and a prompt needs one",
                        clipped(layout, 60)
                    )));
                }
            }
        }
        if self.questions.is_empty() {
            return Err(Error::invalid(format!(
                "`{}` has no question in it",
                clipped(&self.name, 60)
            )));
        }
        if self.max_answer == 0 {
            return Err(Error::invalid(
                "an answer has at least one token (`QuestionSet::max_answer`)",
            ));
        }
        let has = |one: &Question| one.answer.is_some();
        if !self.own_answers
            && let Some(without) = self.questions.iter().position(|one| !has(one))
            && let Some(with) = self.questions.iter().position(has)
        {
            return Err(Error::invalid(format!(
                "question {with} has an answer and question {without} has none; give all of them one, or none to have the model answer, or have it \
                 answer all of them (`QuestionSet::own_answers`)"
            )));
        }
        (self.questions.iter().enumerate()).try_for_each(|(index, question)| {
            question
                .check()
                .map_err(|reason| Error::invalid(format!("question {index}: {reason}")))
        })
    }
}

impl Question {
    fn check(&self) -> Result<(), String> {
        let n = self.context.len();
        if n == 0 {
            return Err(
                "its context is empty; give the sentences that the answer may rest on".into(),
            );
        }
        if n == 1 {
            return Err(
                "its context is one sentence, and there is nothing to rank; write it as several, one a line if need be"
                    .into(),
            );
        }
        if n > MOST_SENTENCES {
            return Err(format!(
                "its context has {n} sentences, and at most {MOST_SENTENCES} are taken, each in a run of its own; write paragraphs as one part each"
            ));
        }
        if let Some(empty) = (self.context.iter()).position(|sentence| sentence.trim().is_empty()) {
            return Err(format!("sentence {empty} of its context is empty"));
        }
        if self.question.trim().is_empty() {
            return Err("it asks nothing; fill in `question`".into());
        }
        if self.answer.as_ref().is_some_and(|it| it.trim().is_empty()) {
            return Err("its answer is empty; leave it out to have the model answer".into());
        }
        match self.gold {
            Some(gold) if gold >= n => Err(format!(
                "`gold` is {gold}, and its {n} sentences are numbered from 0"
            )),
            _ => Ok(()),
        }
    }
}
