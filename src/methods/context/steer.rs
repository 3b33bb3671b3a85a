//! Whether an answer becomes better when the model is led to the sentence that it rests on: by a hint, or by a stronger head.
//!
//! The model answers by itself, three times: as it is, led by what was found, and led as much by something else. An answer is right that
//! has the words of the expected one in it, in their order; case, punctuation and articles do not count.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::config::Steer;
use super::runs::{Asked, own_answer};
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Op, Site};

/// Whether each answer is right, and whether it differs from the one without help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Steered {
    pub before: bool,
    pub led: Outcome,
    pub control: Outcome,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    pub is_right: bool,
    pub is_new: bool,
}

/// Answers again with the sentence `best` said once more behind the context, or a head scaled; and with another sentence, or another head
/// of the layer, drawn by `rng`.
/// # Errors
/// Those of running; [`Error::Invalid`] for a question without an expected answer.
pub(super) fn steer(
    asked: &Asked<'_>,
    how: Steer,
    head: Option<(usize, usize)>,
    best: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Steered> {
    let (model, task, questions) = (asked.model, asked.task, asked.questions);
    let question = &questions.questions[asked.pair.index];
    let expected = question.answer.as_deref().unwrap_or_default();
    let n = asked.n_sentences();
    let text = |answer: &[u32]| -> Result<String> { task.tokenizer().decode(answer) };
    let before = text(&asked.answer)?;
    let outcome = |answer: Vec<u32>| -> Result<Outcome> {
        let answer = text(&answer)?;
        Ok(Outcome {
            is_right: has(&answer, expected),
            is_new: answer != before,
        })
    };
    let answer = |order: &[usize], edits: &[Edit]| {
        let prompt = asked.prompt_of(order)?;
        outcome(own_answer(
            model,
            task,
            &prompt,
            questions.max_answer,
            edits,
        )?)
    };
    let all: Vec<usize> = (0..n).collect();
    let (led, control) = match how {
        Steer::Hint => {
            let other = (best + rng.random_range(1..n)) % n;
            let hint = |at: usize| answer(&[&all[..], &[at]].concat(), &[]);
            (hint(best)?, hint(other)?)
        }
        Steer::Scale(factor) => {
            let (layer, head) = head.ok_or_else(|| {
                Error::invalid("there is no head to scale (`ContextConfig::head`)")
            })?;
            let other = (head + rng.random_range(1..model.spec.n_heads)) % model.spec.n_heads;
            let scaled = |head: usize| {
                let site = Site {
                    heads: Some(vec![head]),
                    ..Site::all(Hook::at(Kind::Z, layer))
                };
                answer(&all, &[Edit::new(site, Op::Scale(factor))])
            };
            (scaled(head)?, scaled(other)?)
        }
    };
    Ok(Steered {
        before: has(&before, expected),
        led,
        control,
    })
}

/// Whether the words of `expected` stand in an answer; where it has none, its signs.
pub(super) fn has(answer: &str, expected: &str) -> bool {
    match words(expected).trim() {
        "" => answer
            .to_lowercase()
            .contains(expected.to_lowercase().trim()),
        _ => words(answer).contains(&words(expected)),
    }
}

/// The words of a text between spaces, without articles.
fn words(text: &str) -> String {
    let text = text.to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric());
    let words = words.filter(|word| !matches!(*word, "" | "a" | "an" | "the"));
    words.fold(" ".into(), |all, word| all + word + " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_found_by_its_words() {
        assert!(has("It is the Harp.", "a harp"));
        assert!(has("in October, they say", "October"));
        assert!(!has("the roof is covered", "red"));
        assert!(!has("someone", "one"));
        assert!(has("so?", "?") && !has("so", "?"));
    }
}
