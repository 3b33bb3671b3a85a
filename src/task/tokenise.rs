//! One pair of texts to one pair of token sequences, or the reason why not. Everything that makes a pair unusable for patching
//! is decided here, for generated pairs and the user's own alike.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::pair::{END, Pair};
use super::template::PromptText;
use crate::error::{Dropped, Result};
use crate::hooks::Roles;
use crate::metric::{Metric, Target};
use crate::model::Tokenizer;
use crate::model::tokenizer::Encoded;
use crate::text::printable;

/// A pair of prompts before any tokenizer saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Draft {
    pub index: usize,
    pub template: usize,
    pub clean: PromptText,
    pub corrupted: PromptText,
    /// What continues the prompt, exactly as it would go on.
    pub answers: Vec<Continuation>,
    pub wrong: Vec<Continuation>,
}

/// An answer before it is a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Continuation {
    Text(String),
    /// A token of the tokenizer that the file was made with, which must be this one.
    Id(u32),
}

/// What holds for all pairs of a task.
#[derive(Clone, Copy)]
pub(super) struct TokeniseSetting<'a> {
    pub tokenizer: &'a Tokenizer,
    pub bos: bool,
    pub chat: bool,
    pub max_tokens: Option<usize>,
    pub metric: Metric,
    /// Whether prompts may differ in length, and roles in position, as long as the tokens of roles correspond one to one.
    pub unequal: bool,
    /// Whether an answer that would melt into the prompt's last token is the token that it is alone; else the pair is dropped.
    pub may_melt: bool,
    /// Roles such as `S1+1`.
    pub derived_roles: &'a [DerivedRole],
}

/// The token `offset` after the last (or, negative, before the first) token of another role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DerivedRole {
    pub name: String,
    pub base: String,
    pub offset: isize,
}

/// A pair that fits, or one that is dropped. An error is one that no other pair would be spared.
pub(super) type Candidate = std::result::Result<Pair, Dropped>;

/// # Errors
/// [`crate::Error::Tokenizer`] if the tokenizer or its chat template fails.
pub(super) fn tokenise(draft: Draft, setting: &TokeniseSetting) -> Result<Candidate> {
    let clean = frame(&draft.clean, setting)?;
    let corrupted = frame(&draft.corrupted, setting)?;
    Ok(match pair(&draft, &clean, &corrupted, setting)? {
        Ok(pair) => Ok(pair),
        Err(reason) => Err(Dropped {
            index: draft.index,
            clean_text: clean.prompt.text,
            corrupted_text: corrupted.prompt.text,
            reason,
        }),
    })
}

/// A prompt as the model sees it, and its tokens.
struct Framed {
    prompt: PromptText,
    encoded: Encoded,
}

fn frame(prompt: &PromptText, setting: &TokeniseSetting) -> Result<Framed> {
    let mut prompt = prompt.clone();
    if setting.chat {
        let inner = prompt.text.trim();
        let cut = prompt.text.len() - prompt.text.trim_start().len();
        let rendered = setting.tokenizer.chat(&prompt.text)?;
        // Templates may trim the message, so it is looked for without the white space around it.
        match rendered.rfind(inner) {
            Some(at) => {
                for (_, span) in &mut prompt.roles {
                    *span = shift(span, cut, at)..shift(&(span.end..span.end), cut, at);
                }
            }
            None => prompt.roles.clear(),
        }
        prompt.text = rendered;
    }
    let encoded = setting.tokenizer.encode(&prompt.text, setting.bos)?;
    Ok(Framed { prompt, encoded })
}

fn shift(span: &Range<usize>, cut: usize, at: usize) -> usize {
    span.start.saturating_sub(cut) + at
}

fn pair(
    draft: &Draft,
    clean: &Framed,
    corrupted: &Framed,
    setting: &TokeniseSetting,
) -> Result<Result<Pair, String>> {
    if let Err(reason) = check_prompts(clean, corrupted, setting) {
        return Ok(Err(reason));
    }
    let (here, there) = match roles(clean, corrupted, setting) {
        Ok(roles) => roles,
        Err(reason) => return Ok(Err(reason)),
    };
    let answers = match answers(&draft.answers, clean, setting)? {
        Ok(answers) => answers,
        Err(reason) => return Ok(Err(reason)),
    };
    let whole = answers.iter().find(|answer| answer.len() > 1).cloned();
    if whole.is_some() && answers.len() > 1 {
        return Ok(Err(format!(
            "answer of several tokens: it stands alone, and here are {}, of which no run holds two",
            answers.len()
        )));
    }
    // A wrong answer is compared token with token; beside a whole answer, whose metric knows none, it would have no place.
    let wrong = match (&whole, answers_of_one(&draft.wrong, clean, setting)?) {
        (Some(_), _) => Vec::new(),
        (None, Ok(ids)) => ids,
        (None, Err(reason)) => return Ok(Err(reason)),
    };
    if wrong.is_empty() && setting.metric.needs_wrong() {
        return Ok(Err(
            "no wrong answer: the metric compares with one; fill it in, or use `ExpandOptions::metric = log_prob`"
                .into(),
        ));
    }
    let answers = answers.concat();
    if let Some(&both) = answers.iter().find(|id| wrong.contains(id)) {
        return Ok(Err(format!(
            "answer is also wrong: `{}` stands on both sides",
            setting.tokenizer.token(both)
        )));
    }
    let pair = Pair {
        index: draft.index,
        clean: clean.encoded.ids.clone(),
        corrupted: corrupted.encoded.ids.clone(),
        clean_text: clean.prompt.text.clone(),
        corrupted_text: corrupted.prompt.text.clone(),
        target: Target {
            answers,
            wrong,
            after: behind_the_mask(&clean.encoded.ids, setting).unwrap_or(0),
            ..Target::default()
        },
        shifted_roles: (clean.encoded.ids.len() != corrupted.encoded.ids.len() || here != there)
            .then_some(there),
        roles: here,
        template: draft.template,
    };
    let Some(whole) = whole else {
        return Ok(Ok(pair));
    };
    let pair = pair.whole_answer(whole);
    let longest = pair.clean.len().max(pair.corrupted.len());
    match setting.max_tokens.filter(|&limit| longest > limit) {
        None => Ok(Ok(pair)),
        Some(limit) => Ok(Err(format!(
            "too long: {longest} tokens with the answer, the model takes at most {limit}"
        ))),
    }
}

fn check_prompts(
    clean: &Framed,
    corrupted: &Framed,
    setting: &TokeniseSetting,
) -> Result<(), String> {
    let (clean_ids, corrupted_ids) = (&clean.encoded.ids, &corrupted.encoded.ids);
    if clean_ids.is_empty() || corrupted_ids.is_empty() {
        return Err("empty prompt: it has no tokens".into());
    }
    if let Some(limit) = setting.max_tokens
        && clean_ids.len().max(corrupted_ids.len()) > limit
    {
        let longest = clean_ids.len().max(corrupted_ids.len());
        return Err(format!(
            "too long: {longest} tokens, the model takes at most {limit}"
        ));
    }
    for framed in [clean, corrupted] {
        check_known(setting.tokenizer, &framed.encoded, &framed.prompt.text)?;
    }
    let behind = (
        behind_the_mask(clean_ids, setting)?,
        behind_the_mask(corrupted_ids, setting)?,
    );
    if behind.0 != behind.1 {
        return Err(format!(
            "mask misaligned: {} tokens stand behind it in clean and {} in corrupted",
            behind.0, behind.1
        ));
    }
    if !setting.unequal && clean_ids.len() != corrupted_ids.len() {
        return Err(format!(
            "lengths differ: clean has {} tokens, corrupted has {}",
            clean_ids.len(),
            corrupted_ids.len()
        ));
    }
    if clean_ids == corrupted_ids {
        return Err("no difference: clean and corrupted are the same tokens".into());
    }
    Ok(())
}

/// # Errors
/// A word that the vocabulary cannot spell.
pub(super) fn check_known(
    tokenizer: &Tokenizer,
    encoded: &Encoded,
    text: &str,
) -> Result<(), String> {
    let unknown = tokenizer.unknown();
    let Some(at) = encoded.ids.iter().position(|&id| Some(id) == unknown) else {
        return Ok(());
    };
    let word = text.get(encoded.spans[at].clone()).unwrap_or("?");
    Err(format!(
        "unknown word: the vocabulary cannot spell `{}`",
        printable(word)
    ))
}

/// How many tokens stand behind the one at which an answer is read: the only mask of an encoder's prompt, the last token of any other.
fn behind_the_mask(ids: &[u32], setting: &TokeniseSetting) -> Result<usize, String> {
    let Some(mask) = setting.tokenizer.mask_to_fill() else {
        return Ok(0);
    };
    let mut places = (0..ids.len()).filter(|&at| ids[at] == mask);
    match (places.next(), places.count()) {
        (Some(place), 0) => Ok(ids.len() - 1 - place),
        (found, more) => Err(format!(
            "not one mask: the answer is read at `{}`, and a prompt has {} of it; write it once, where the answer stands",
            setting.tokenizer.token(mask),
            usize::from(found.is_some()) + more
        )),
    }
}

/// The token positions of every role in each prompt, which must be the same unless the setting allows otherwise, and then as many.
fn roles(
    clean: &Framed,
    corrupted: &Framed,
    setting: &TokeniseSetting,
) -> Result<(Roles, Roles), String> {
    let [mut here, mut there] = [clean, corrupted].map(|framed| {
        let ids = &framed.encoded.ids;
        let behind = behind_the_mask(ids, setting).unwrap_or(0);
        Roles::from([(END.to_owned(), vec![ids.len() - 1 - behind])])
    });
    for ((role, clean_span), (_, corrupted_span)) in
        clean.prompt.roles.iter().zip(&corrupted.prompt.roles)
    {
        let (at, other) = (
            covering(&clean.encoded, clean_span),
            covering(&corrupted.encoded, corrupted_span),
        );
        if at != other && !setting.unequal {
            return Err(format!(
                "roles misaligned: {role} is at {at:?} in clean and {other:?} in corrupted"
            ));
        }
        if at.is_empty() || other.is_empty() {
            return Err(format!("role without token: no token is inside {role}"));
        }
        here.insert(role.clone(), at);
        there.insert(role.clone(), other);
    }
    for derived in setting.derived_roles {
        let at = derived.position(&here, clean.encoded.ids.len())?;
        let other = derived.position(&there, corrupted.encoded.ids.len())?;
        here.insert(derived.name.clone(), vec![at]);
        there.insert(derived.name.clone(), vec![other]);
    }
    for (role, at) in &here {
        let (clean, corrupted) = (at.len(), there[role].len());
        if clean != corrupted {
            return Err(format!(
                "roles not one to one: {role} is {clean} tokens in clean and {corrupted} in corrupted"
            ));
        }
    }
    Ok((here, there))
}

/// The tokens that share a byte with a range of the text.
fn covering(encoded: &Encoded, range: &Range<usize>) -> Vec<usize> {
    let overlaps = |span: &Range<usize>| span.start.max(range.start) < span.end.min(range.end);
    (0..encoded.spans.len())
        .filter(|&at| overlaps(&encoded.spans[at]))
        .collect()
}

/// The tokens that each answer is as the continuation of the prompt, several where the metric takes them.
fn answers(
    answers: &[Continuation],
    clean: &Framed,
    setting: &TokeniseSetting,
) -> Result<Result<Vec<Vec<u32>>, String>> {
    let mut all = Vec::with_capacity(answers.len());
    for answer in answers {
        let tokens = match answer {
            Continuation::Id(id) => token_by_id(*id, setting.tokenizer).map(|id| vec![id]),
            Continuation::Text(text) => tokens_of(text, clean, setting)?,
        };
        match tokens {
            Err(reason) => return Ok(Err(reason)),
            Ok(tokens) if all.contains(&tokens) => {}
            Ok(tokens) => all.push(tokens),
        }
    }
    Ok(Ok(all))
}

/// The token that each answer is.
fn answers_of_one(
    answers: &[Continuation],
    clean: &Framed,
    setting: &TokeniseSetting,
) -> Result<Result<Vec<u32>, String>> {
    let one_token = TokeniseSetting {
        metric: Metric::LogitDiff,
        ..*setting
    };
    let tokens = self::answers(answers, clean, &one_token)?;
    Ok(tokens.map(|tokens| tokens.concat()))
}

/// An id from a file must be a piece of text in this vocabulary.
fn token_by_id(id: u32, tokenizer: &Tokenizer) -> Result<u32, String> {
    if !tokenizer.has_id(id) {
        return Err(format!(
            "no such token: the vocabulary has no id {id}; was the file made with this tokenizer?"
        ));
    }
    if tokenizer.is_special(id) || Some(id) == tokenizer.unknown() {
        return Err(format!(
            "answer is a special token: {id} is `{}`; was the file made with this tokenizer?",
            tokenizer.token(id)
        ));
    }
    Ok(id)
}

/// A tokenizer may spell a word otherwise behind a prompt than alone (` Mary`, not `Mary`), so prompt and answer are encoded together
/// and should differ by the answer's tokens at the end: one, or several where the metric takes them. Where they melt together instead (`cat` and `s`, `np.` and `array`) and may, the answer is
/// the token that it is behind a line break, with which nothing melts.
fn tokens_of(
    text: &str,
    clean: &Framed,
    setting: &TokeniseSetting,
) -> Result<Result<Vec<u32>, String>> {
    let tokenizer = setting.tokenizer;
    // After a chat template's own line break an answer begins without its space.
    let text = if setting.chat {
        text.trim_start()
    } else {
        text
    };
    let (before, text) = match tokenizer.mask_to_fill() {
        Some(mask) => before_the_mask(clean, mask, text, tokenizer)?,
        None => {
            let before = Before {
                text: clean.prompt.text.clone(),
                ids: clean.encoded.ids.clone(),
                bos: setting.bos,
            };
            (before, text.to_owned())
        }
    };
    let (masked, text) = (tokenizer.mask_to_fill().is_some(), text.as_str());
    let joined = format!("{}{text}", before.text);
    let whole = tokenizer.encode(&joined, before.bos)?.ids;
    let rest = match whole.strip_prefix(before.ids.as_slice()) {
        Some(rest) => rest.to_vec(),
        None => {
            let alone = if setting.may_melt && !masked {
                behind_a_line_break(text, tokenizer)?
            } else {
                None
            };
            let Some(rest) = alone else {
                return Ok(Err(format!(
                    "answer joins the prompt: `{}` changes the prompt's last token",
                    printable(text)
                )));
            };
            rest
        }
    };
    let whole_is_measured = setting.metric.takes_several_tokens() && !masked;
    if rest.is_empty() || (rest.len() > 1 && !whole_is_measured) {
        let pieces: Vec<String> = rest.iter().map(|&id| tokenizer.token(id)).collect();
        let spaced = format!("{} {text}", before.text);
        let spaced = tokenizer.encode(&spaced, before.bos)?.ids;
        let would_fit = spaced
            .strip_prefix(before.ids.as_slice())
            .is_some_and(|rest| rest.len() == 1 && !text.starts_with(char::is_whitespace));
        return Ok(Err(format!(
            "answer is not one token: `{}` is {} ({}){}",
            printable(text),
            pieces.len(),
            pieces.join("|"),
            if would_fit {
                "; with a space in front it is one"
            } else if masked {
                "; a mask is filled by one"
            } else if rest.is_empty() {
                ""
            } else {
                "; `log_prob` and `prob` measure all of a right answer"
            }
        )));
    }
    if rest.iter().any(|&id| Some(id) == tokenizer.unknown()) {
        return Ok(Err(format!(
            "unknown word: the vocabulary cannot spell the answer `{}`",
            printable(text)
        )));
    }
    Ok(Ok(rest))
}

/// What an answer continues.
struct Before {
    text: String,
    ids: Vec<u32>,
    bos: bool,
}

/// The text before the mask of a prompt, and the answer that stands in the mask's place: behind the space that the mask stands behind.
fn before_the_mask(
    clean: &Framed,
    mask: u32,
    answer: &str,
    tokenizer: &Tokenizer,
) -> Result<(Before, String)> {
    let text = &clean.prompt.text;
    let at = clean.encoded.ids.iter().position(|&id| id == mask);
    let start = at.map_or(text.len(), |at| clean.encoded.spans[at].start);
    // Some masks take the space before them as their own.
    let left = text.get(..start).unwrap_or(text).trim_end();
    let ids = match left.is_empty() {
        true => Vec::new(),
        false => tokenizer.encode(left, false)?.ids,
    };
    let stands_apart = text[left.len()..].starts_with(char::is_whitespace);
    let space = match stands_apart && !answer.starts_with(char::is_whitespace) {
        true => " ",
        false => "",
    };
    let before = Before {
        text: left.to_owned(),
        ids,
        bos: false,
    };
    Ok((before, format!("{space}{answer}")))
}

/// The tokens of a text behind a line break, if it does not melt with that either.
fn behind_a_line_break(text: &str, tokenizer: &Tokenizer) -> Result<Option<Vec<u32>>> {
    let line_break = tokenizer.encode("\n", false)?.ids;
    let both = tokenizer.encode(&format!("\n{text}"), false)?.ids;
    Ok(both
        .strip_prefix(line_break.as_slice())
        .filter(|rest| !rest.is_empty())
        .map(<[u32]>::to_vec))
}

impl DerivedRole {
    /// Its token in a prompt of `length` tokens.
    fn position(&self, roles: &Roles, length: usize) -> Result<usize, String> {
        let Some(base) = roles.get(&self.base) else {
            return Err(format!(
                "role without token: {} counts from {}, which is not there",
                self.name, self.base
            ));
        };
        let from = if self.offset < 0 {
            base.first()
        } else {
            base.last()
        };
        from.and_then(|&from| from.checked_add_signed(self.offset))
            .filter(|&at| at < length)
            .ok_or_else(|| format!("role without token: {} lies outside the prompt", self.name))
    }

    /// Reads `S1+1`, `IO-1`.
    pub fn parse(name: &str) -> Option<Self> {
        let at = name.rfind(['+', '-'])?;
        let (base, offset) = name.split_at(at);
        let offset: isize = offset.parse().ok()?;
        (!base.is_empty() && offset != 0).then(|| DerivedRole {
            name: name.to_owned(),
            base: base.to_owned(),
            offset,
        })
    }
}
