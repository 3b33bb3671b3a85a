//! One candidate pair: a template, words for its slots, and what the corruption puts in their places.
//!
//! Here a task file is held against itself: a slot without a list, an occurrence without a name, a corruption of something that
//! is not there. The reasons are texts; [`expand`](super::expand()) puts the task's name before them.

use std::collections::BTreeMap;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::task::file::{Answer, Corruption, Draw, List, TaskFile, TemplateEntry, bad, names};
use crate::task::template::{SlotReference, Template, TemplatePart, Word};
use crate::task::tokenise::{Continuation, Draft};

/// One template with its answers, parsed.
pub(super) struct Frame {
    text: Template,
    /// The slot of each occurrence, by role, in the order of the text.
    slot_of_role: Vec<(String, String)>,
    answers: Expression,
    wrong: Expression,
}

/// An [`Answer`], parsed.
enum Expression {
    Texts(Vec<Template>),
    Above {
        after: Template,
        list: String,
        inclusive: bool,
    },
}

pub(super) fn frames(file: &TaskFile) -> Result<Vec<Frame>> {
    let frame = |entry: &TemplateEntry| -> Result<Frame, String> {
        let text = Template::parse(entry.text())?;
        let mut slot_of_role: Vec<(String, String)> = Vec::new();
        for slot in text.slots() {
            if slot.corrupted {
                return Err(format!(
                    "a prompt cannot name `corrupted.{}`; only answers can",
                    slot.name
                ));
            }
            if !file.slots.contains_key(&slot.name) {
                return Err(format!(
                    "slot `{}` has no list; add it to `slots`, which has {}",
                    slot.name,
                    names(&file.slots)
                ));
            }
            if slot.role() != slot.name && file.slots.contains_key(slot.role()) {
                return Err(format!(
                    "an occurrence of `{}` is called `{}`, which is another slot",
                    slot.name,
                    slot.role()
                ));
            }
            if slot_of_role.iter().any(|(role, _)| role == slot.role()) {
                return Err(format!(
                    "role `{0}` stands twice in `{1}`; name the occurrences, e.g. `{{{2}:{2}1}}` and `{{{2}:{2}2}}`",
                    slot.role(),
                    entry.text(),
                    slot.name
                ));
            }
            slot_of_role.push((slot.role().to_owned(), slot.name.clone()));
        }
        let Some(answer) = entry.answer().or(file.answer.as_ref()) else {
            return Err("it has no `answer`, and a template gives none of its own".into());
        };
        let answers = Expression::parse(answer, file)?;
        let wrong = match entry.wrong().or(file.wrong.as_ref()) {
            Some(wrong) => Expression::parse(wrong, file)?,
            None => Expression::Texts(Vec::new()),
        };
        Ok(Frame {
            text,
            slot_of_role,
            answers,
            wrong,
        })
    };
    file.templates
        .iter()
        .map(frame)
        .collect::<Result<_, String>>()
        .map_err(|reason| bad(&file.name, reason))
}

impl Expression {
    fn parse(answer: &Answer, file: &TaskFile) -> Result<Self, String> {
        let (at, list, inclusive) = match answer {
            Answer::One(text) => return Ok(Expression::Texts(vec![Template::parse(text)?])),
            Answer::Several(texts) => {
                return Ok(Expression::Texts(
                    texts
                        .iter()
                        .map(|t| Template::parse(t))
                        .collect::<Result<_, _>>()?,
                ));
            }
            Answer::Above { above, list } => (above, list, false),
            Answer::UpTo { upto, list } => (upto, list, true),
        };
        if !file.lists.contains_key(list) {
            return Err(format!(
                "an answer names list `{list}`, which is not there; it has {}",
                names(&file.lists)
            ));
        }
        Ok(Expression::Above {
            after: Template::parse(at)?,
            list: list.clone(),
            inclusive,
        })
    }

    fn texts(&self, filling: &Filling) -> Result<Vec<String>, String> {
        let fill = |template: &Template| {
            template
                .fill(|reference| filling.text(reference))
                .map(|prompt| prompt.text)
        };
        match self {
            Expression::Texts(templates) => templates.iter().map(fill).collect(),
            Expression::Above {
                after,
                list,
                inclusive,
            } => {
                let (at, words) = (fill(after)?, filling.lists[list].words());
                let Some(place) = words.iter().position(|word| *word == at) else {
                    return Err(format!(
                        "`{at}` is not in list `{list}`, so nothing there is above it"
                    ));
                };
                Ok(if *inclusive {
                    words[..=place].to_vec()
                } else {
                    words[place + 1..].to_vec()
                })
            }
        }
    }
}

/// A [`Corruption`], parsed.
pub(super) struct Change {
    set: BTreeMap<String, Template>,
    draw: BTreeMap<String, Draw>,
}

impl Change {
    pub fn parse(file: &TaskFile, name: &str) -> Result<Self> {
        let Some(Corruption { set, draw, .. }) = file.corruptions.get(name) else {
            return Err(bad(&file.name, file.unknown_corruption(name)));
        };
        if let Some(both) = set.keys().find(|key| draw.contains_key(*key)) {
            return Err(bad(
                &file.name,
                format!("corruption `{name}` both sets and draws `{both}`"),
            ));
        }
        let parsed = set
            .iter()
            .map(|(key, text)| Ok((key.clone(), Template::parse(text)?)))
            .collect::<Result<_, String>>();
        let set = parsed.map_err(|reason| bad(&file.name, reason))?;
        Ok(Change {
            set,
            draw: draw.clone(),
        })
    }
}

/// What stands in one candidate pair: a word per slot, and what the corruption puts at some roles instead.
struct Filling<'a> {
    lists: &'a BTreeMap<String, List>,
    slots: BTreeMap<String, Word>,
    slot_of_role: &'a [(String, String)],
    corrupted: BTreeMap<String, Word>,
}

impl Filling<'_> {
    fn slot_of_role(&self, role: &str) -> Option<&str> {
        self.slot_of_role
            .iter()
            .find(|(r, _)| r == role)
            .map(|(_, slot)| slot.as_str())
    }

    fn word(&self, corrupted: bool, name: &str) -> Result<&Word, String> {
        if corrupted && let Some(word) = self.corrupted.get(name) {
            return Ok(word);
        }
        self.slots
            .get(name)
            .or_else(|| self.slots.get(self.slot_of_role(name)?))
            .ok_or_else(|| {
                format!(
                    "`{name}` is neither a slot nor a role of this template; slots are {}",
                    names(&self.slots)
                )
            })
    }

    fn text(&self, reference: &SlotReference) -> Result<String, String> {
        self.word(reference.corrupted, &reference.name)?
            .text(reference.column.as_deref(), self.lists)
    }
}

/// Candidate number `index`, from one of the templates.
pub(super) fn draft(
    file: &TaskFile,
    frames: &[Frame],
    change: &Change,
    seed: u64,
    index: usize,
    template: usize,
) -> Result<Draft, String> {
    let frame = &frames[template];
    let mut filling = Filling {
        lists: &file.lists,
        slots: BTreeMap::new(),
        slot_of_role: &frame.slot_of_role,
        corrupted: BTreeMap::new(),
    };
    let mut taken = Taken::default();
    let rng = &mut stream(seed, index, 0);
    for (slot, list) in &file.slots {
        let word = taken.draw(rng, list, &file.lists[list], |_| true)?;
        filling.slots.insert(slot.clone(), word);
    }
    corrupt(
        &mut filling,
        change,
        &mut taken,
        &mut stream(seed, index, 1),
    )?;

    let clean = frame.text.fill(|reference| filling.text(reference))?;
    let corrupted = frame.text.fill(|reference| {
        filling
            .word(true, reference.role())?
            .text(reference.column.as_deref(), filling.lists)
    })?;
    let spaced = |text: String| {
        if file.answer_space && !text.starts_with(char::is_whitespace) {
            format!(" {text}")
        } else {
            text
        }
    };
    let texts = |texts: Vec<String>| {
        let texts = texts.into_iter().map(spaced);
        texts.map(Continuation::Text).collect()
    };
    let answers = texts(frame.answers.texts(&filling)?);
    let wrong = texts(frame.wrong.texts(&filling)?);
    Ok(Draft {
        index,
        template,
        clean,
        corrupted,
        answers,
        wrong,
    })
}

fn corrupt(
    filling: &mut Filling,
    change: &Change,
    taken: &mut Taken,
    rng: &mut ChaCha8Rng,
) -> Result<(), String> {
    for (key, draw) in &change.draw {
        let (list_name, unlike) = match draw {
            Draw::List(list) => (list, None),
            Draw::Unlike { list, unlike } => (list, Some(unlike.as_str())),
        };
        let Some(list) = filling.lists.get(list_name) else {
            return Err(format!(
                "the corruption draws from list `{list_name}`, which is not there; it has {}",
                names(filling.lists)
            ));
        };
        let clean = filling.word(false, key)?.text(unlike, filling.lists)?;
        let differs = |row: usize| match unlike.map(|column| list.columns.get(column)) {
            Some(Some(column)) => column[row] != clean,
            Some(None) => false,
            None => true,
        };
        let word = taken.draw(rng, list_name, list, differs)?;
        put(filling, key, word)?;
    }
    for (key, template) in &change.set {
        // One bare slot keeps its entry, so that its columns can still be asked for.
        let word = match template.0.as_slice() {
            [TemplatePart::Slot(one)] if one.column.is_none() => {
                filling.word(false, &one.name)?.clone()
            }
            _ => Word::Text(template.fill(|reference| filling.text(reference))?.text),
        };
        put(filling, key, word)?;
    }
    Ok(())
}

/// Puts a word at a role of the corrupted prompt, or at all occurrences of a slot.
fn put(filling: &mut Filling, key: &str, word: Word) -> Result<(), String> {
    let by_role = filling.slot_of_role(key).is_some();
    let roles: Vec<String> = filling
        .slot_of_role
        .iter()
        .filter(|(role, slot)| if by_role { role == key } else { slot == key })
        .map(|(role, _)| role.clone())
        .collect();
    if roles.is_empty() {
        let known: Vec<&str> = filling
            .slot_of_role
            .iter()
            .map(|(role, _)| role.as_str())
            .collect();
        return Err(format!(
            "the corruption changes `{key}`, which is not in every template; roles are {}",
            known.join(", ")
        ));
    }
    for role in roles {
        filling.corrupted.insert(role, word.clone());
    }
    Ok(())
}

/// The rows of each list that the pair already uses.
#[derive(Default)]
struct Taken(BTreeMap<String, Vec<usize>>);

impl Taken {
    fn draw(
        &mut self,
        rng: &mut ChaCha8Rng,
        name: &str,
        list: &List,
        allowed: impl Fn(usize) -> bool,
    ) -> Result<Word, String> {
        let taken = self.0.entry(name.to_owned()).or_default();
        let free: Vec<usize> = (0..list.len())
            .filter(|&row| !taken.contains(&row) && allowed(row))
            .collect();
        if free.is_empty() {
            return Err(format!(
                "list `{name}` has {} entries, of which none is left to draw for one pair; add some",
                list.len()
            ));
        }
        let row = free[rng.random_range(0..free.len())];
        taken.push(row);
        Ok(Word::Entry {
            list: name.to_owned(),
            row,
        })
    }
}

/// A random stream of its own for each candidate and purpose.
pub(super) fn stream(seed: u64, index: usize, purpose: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(2 * index as u64 + purpose);
    rng
}
