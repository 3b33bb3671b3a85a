//! A question as a prompt, with all of its sentences or some.

use std::ops::Range;

use super::set::QuestionSet;
use crate::error::Result;
use crate::model::Tokenizer;
use crate::model::tokenizer::Encoded;
use crate::task::tokenise::check_known;
use crate::text::{clipped, printable};

const IN_A_CHAT: &str = "{context}\n\n{question}";
const PLAIN: &str = "{context}\n\nQuestion: {question}\nAnswer:";
/// The words that it brings.
const WORDS_OF_PLAIN: &str = "Question: Answer:";
const CONTEXT: &str = "{context}";
const QUESTION: &str = "{question}";

/// A question as the model reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AskedPrompt {
    pub text: String,
    pub ids: Vec<u32>,
    /// The positions of each sentence; none of one that is left out.
    pub sentences: Vec<Vec<usize>>,
}

impl QuestionSet {
    /// The prompt of a question, without the answer, with those sentences that are `there`.
    /// # Errors
    /// Of the outer result: a tokenizer or a chat template that fails. Of the inner one: why the question is no prompt.
    pub fn prompt(
        &self,
        question: usize,
        there: &[bool],
        tokenizer: &Tokenizer,
        chat: bool,
        bos: bool,
    ) -> Result<Result<AskedPrompt, String>> {
        let order: Vec<usize> = (0..there.len()).filter(|&at| there[at]).collect();
        self.prompt_of(question, &order, tokenizer, chat, bos)
    }

    /// The same with sentences in an order of one's own, which may say one twice; its positions are then those of the first time.
    /// # Errors
    /// As [`QuestionSet::prompt`].
    pub fn prompt_of(
        &self,
        question: usize,
        order: &[usize],
        tokenizer: &Tokenizer,
        chat: bool,
        bos: bool,
    ) -> Result<Result<AskedPrompt, String>> {
        let (mut text, mut spans) = self.laid_out(question, order, chat);
        if chat {
            let message = text.trim();
            let rendered = tokenizer.chat(&text)?;
            // A template may trim the message, so it is looked for without the white space around it.
            let Some(at) = rendered.rfind(message) else {
                return Ok(Err(
                    "message changed: the chat template does not repeat it word by word, so its sentences cannot be found".into(),
                ));
            };
            for span in spans.iter_mut().flatten() {
                *span = span.start + at..span.end + at;
            }
            text = rendered;
        }
        let encoded = tokenizer.encode(&text, bos)?;
        if encoded.ids.is_empty() {
            return Ok(Err("empty prompt: it has no tokens".into()));
        }
        if let Err(reason) = check_known(tokenizer, &encoded, &text) {
            let of_the_layout = tokenizer.encode(WORDS_OF_PLAIN, false)?;
            let is_ours = self.layout.is_none()
                && !chat
                && check_known(tokenizer, &of_the_layout, WORDS_OF_PLAIN).is_err();
            let remedy = match is_ours {
                true => {
                    "; the usual layout has words that it lacks, so write one without (`QuestionSet::layout = '{context} {question}'`)"
                }
                false => "",
            };
            return Ok(Err(reason + remedy));
        }
        let mut sentences = Vec::with_capacity(spans.len());
        for (at, span) in spans.iter().enumerate() {
            let positions = span.as_ref().map(|span| ending_in(&encoded, span));
            let positions = positions.unwrap_or_default();
            if span.is_some() && positions.is_empty() {
                return Ok(Err(format!(
                    "sentence without token: no token of the prompt ends in sentence {at}"
                )));
            }
            let special = |&&pos: &&usize| tokenizer.is_special(encoded.ids[pos]);
            if let Some(&pos) = positions.iter().find(special) {
                return Ok(Err(format!(
                    "special token in the context: sentence {at} holds `{}`, which means something else to the model than text; take it out",
                    tokenizer.token(encoded.ids[pos])
                )));
            }
            sentences.push(positions);
        }
        Ok(Ok(AskedPrompt {
            text,
            ids: encoded.ids,
            sentences,
        }))
    }

    /// The message, and where each sentence stands in it.
    fn laid_out(
        &self,
        question: usize,
        order: &[usize],
        chat: bool,
    ) -> (String, Vec<Option<Range<usize>>>) {
        let asked = &self.questions[question];
        let layout = match &self.layout {
            Some(layout) => layout.as_str(),
            None if chat => IN_A_CHAT,
            None => PLAIN,
        };
        let mut context = String::new();
        let mut spans: Vec<Option<Range<usize>>> = vec![None; asked.context.len()];
        for &at in order {
            if !context.is_empty() {
                context.push(' ');
            }
            let start = context.len();
            context.push_str(asked.context[at].trim());
            spans[at].get_or_insert(start..context.len());
        }
        // What stands in the place of one slot is no slot, whatever it says.
        let slot = |slot: &str| layout.find(slot).unwrap_or(layout.len());
        let (c, q) = (slot(CONTEXT), slot(QUESTION));
        let after = |at: usize, slot: &str| &layout[(at + slot.len()).min(layout.len())..];
        let own = asked.question.trim();
        let (text, start) = if c < q {
            let between = &after(c, CONTEXT)[..q - c - CONTEXT.len()];
            let (head, tail) = (&layout[..c], after(q, QUESTION));
            (format!("{head}{context}{between}{own}{tail}"), c)
        } else {
            let between = &after(q, QUESTION)[..c - q - QUESTION.len()];
            let (head, tail) = (&layout[..q], after(c, CONTEXT));
            let before = format!("{head}{own}{between}");
            (format!("{before}{context}{tail}"), before.len())
        };
        // Without any sentence nothing is left above the question.
        let cut = text.len() - text.trim_start().len();
        for span in spans.iter_mut().flatten() {
            *span = span.start + start - cut..span.end + start - cut;
        }
        (text[cut..].to_string(), spans)
    }
}

impl AskedPrompt {
    /// The tokens of an answer behind the prompt. Outside of a chat a space stands in front of it, unless there is one.
    /// # Errors
    /// As [`QuestionSet::prompt`].
    pub fn answer(
        &self,
        answer: &str,
        tokenizer: &Tokenizer,
        chat: bool,
        bos: bool,
    ) -> Result<Result<Vec<u32>, String>> {
        let is_spaced = |text: &str, at_end: bool| {
            let edge = if at_end {
                text.chars().next_back()
            } else {
                text.chars().next()
            };
            edge.is_some_and(char::is_whitespace)
        };
        let answer = answer.trim_end();
        let answer = match chat {
            true => answer.trim_start().to_string(),
            false if is_spaced(answer, false) || is_spaced(&self.text, true) => answer.to_string(),
            false => format!(" {answer}"),
        };
        let joined = format!("{}{answer}", self.text);
        let encoded = tokenizer.encode(&joined, bos)?;
        if let Err(reason) = check_known(tokenizer, &encoded, &joined) {
            return Ok(Err(reason));
        }
        let shown = printable(&clipped(&answer, 40));
        let Some(rest) = encoded.ids.strip_prefix(self.ids.as_slice()) else {
            return Ok(Err(format!(
                "answer joins the prompt: `{shown}` changes the prompt's last token"
            )));
        };
        if rest.is_empty() {
            return Ok(Err(format!(
                "answer without token: `{shown}` adds none to the prompt"
            )));
        }
        if let Some(&id) = rest.iter().find(|&&id| tokenizer.is_special(id)) {
            return Ok(Err(format!(
                "special token in the answer: `{}` means something else to the model than text",
                tokenizer.token(id)
            )));
        }
        Ok(Ok(rest.to_vec()))
    }
}

/// The tokens whose last byte is in a range of the text: each token is of one sentence.
fn ending_in(encoded: &Encoded, range: &Range<usize>) -> Vec<usize> {
    let is_in = |span: &Range<usize>| {
        span.end > span.start && span.end > range.start && span.end <= range.end
    };
    let spans = encoded.spans.iter().enumerate();
    spans
        .filter(|(_, span)| is_in(span))
        .map(|(at, _)| at)
        .collect()
}
