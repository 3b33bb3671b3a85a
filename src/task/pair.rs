//! One prompt pair under a tokenizer, and everything that makes it usable.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Dropped, Error, Result};
use crate::hooks::Roles;
use crate::metric::{Metric, Target};
use crate::model::Tokenizer;

/// The role of the token at which the answer is read, which every prompt has: the last, or the mask of an encoder; of an answer of
/// several tokens, the one that its first token follows.
pub const END: &str = "END";
/// The role of what a prompt has of an answer of several tokens: all but its last.
pub const ANSWER: &str = "ANSWER";

/// One prompt pair, tokenised. Most pairs have prompts of equal length with every role at the same positions, and can then be
/// compared position by position; those with [`shifted_roles`](Pair::shifted_roles) only role by role.
///
/// A pair of one's own token ids is built up from [`Pair::new`]; [`Task::new`](super::Task::new) checks it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    /// Index of the pair in the task as written (before any was dropped): the `example` of result rows.
    pub index: usize,
    pub clean: Vec<u32>,
    pub corrupted: Vec<u32>,
    pub clean_text: String,
    pub corrupted_text: String,
    pub target: Target,
    /// Token positions of each role (`IO`, `S1`, `S2`, `END`, ...) in the clean prompt, ascending.
    pub roles: Roles,
    /// Token positions of the same roles in the corrupted prompt, as many of each, where the prompts do not align position by
    /// position. `None`: they are those of the clean prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shifted_roles: Option<Roles>,
    /// Which template made it; pairs of one template and length align position by position.
    pub template: usize,
}

impl Pair {
    /// A pair that was tokenised and is not used.
    pub(super) fn dropped(self, reason: String) -> Dropped {
        Dropped {
            index: self.index,
            clean_text: self.clean_text,
            corrupted_text: self.corrupted_text,
            reason,
        }
    }

    /// A pair of token ids with nothing but the role `END`, at the last token. Add the answers, and roles where there are any. For
    /// methods that run only clean prompts (ablations, read-outs) the corrupted prompt may be the same.
    pub fn new(clean: impl Into<Vec<u32>>, corrupted: impl Into<Vec<u32>>) -> Self {
        let (clean, corrupted) = (clean.into(), corrupted.into());
        Pair {
            index: 0,
            roles: end_of(&clean),
            clean,
            corrupted,
            clean_text: String::new(),
            corrupted_text: String::new(),
            target: Target::default(),
            shifted_roles: None,
            template: 0,
        }
    }

    /// With one more token that counts as right.
    pub fn answer(mut self, token: u32) -> Self {
        self.target.answers.push(token);
        self
    }

    /// With an answer of several tokens, which is measured whole: of both prompts it becomes the end, but for its last token. The
    /// prompts are given without it.
    pub fn whole_answer(mut self, tokens: impl Into<Vec<u32>>) -> Self {
        let tokens = tokens.into();
        let Some((&first, then)) = tokens.split_first() else {
            return self;
        };
        self.target.answers = vec![first];
        self.target.then = then.to_vec();
        let forced = &tokens[..then.len()];
        if forced.is_empty() {
            return self;
        }
        for (tokens, roles) in [
            (&mut self.clean, Some(&mut self.roles)),
            (&mut self.corrupted, self.shifted_roles.as_mut()),
        ] {
            let places = tokens.len()..tokens.len() + forced.len();
            tokens.extend(forced);
            if let Some(roles) = roles {
                roles
                    .entry(ANSWER.to_owned())
                    .or_insert_with(|| places.collect());
            }
        }
        self
    }

    /// With an answer that is read before the last token, in an encoder at its mask: so many tokens stand behind it, in both prompts.
    pub fn read_before(mut self, after: usize) -> Self {
        self.target.after = after;
        let end = |tokens: &[u32]| tokens.len().saturating_sub(1 + after);
        self.roles.insert(END.to_owned(), vec![end(&self.clean)]);
        if let Some(roles) = &mut self.shifted_roles {
            roles.insert(END.to_owned(), vec![end(&self.corrupted)]);
        }
        self
    }

    /// With one more token that a right one is compared with.
    pub fn wrong(mut self, token: u32) -> Self {
        self.target.wrong.push(token);
        self
    }

    /// With a role, at the same positions in both prompts.
    pub fn role(self, name: impl Into<String>, positions: impl Into<Vec<usize>>) -> Self {
        let (name, positions) = (name.into(), positions.into());
        let shifted = self.shifted_roles.is_some().then(|| positions.clone());
        let mut pair = self;
        if let (Some(roles), Some(positions)) = (&mut pair.shifted_roles, shifted) {
            roles.insert(name.clone(), positions);
        }
        pair.roles.insert(name, positions);
        pair
    }

    /// With a role that stands elsewhere in the corrupted prompt, token for token. The prompts may then differ in length, and
    /// only methods that compare role by role take the pair.
    pub fn shifted_role(
        mut self,
        name: impl Into<String>,
        clean: impl Into<Vec<usize>>,
        corrupted: impl Into<Vec<usize>>,
    ) -> Self {
        let name = name.into();
        let shifted = self.shifted_roles.get_or_insert_with(|| {
            let mut roles = self.roles.clone();
            roles.extend(end_of(&self.corrupted));
            roles
        });
        shifted.insert(name.clone(), corrupted.into());
        self.roles.insert(name, clean.into());
        self
    }

    /// As one of several templates: pairs of one template align with each other.
    pub fn template(self, template: usize) -> Self {
        Pair { template, ..self }
    }

    /// Token positions of each role in the corrupted prompt.
    pub fn corrupted_roles(&self) -> &Roles {
        self.shifted_roles.as_ref().unwrap_or(&self.roles)
    }

    /// Whether position `i` of one prompt is position `i` of the other.
    pub fn is_aligned(&self) -> bool {
        self.check_aligned().is_ok()
    }

    /// Refuses a pair that does not align position by position.
    /// # Errors
    /// [`Error::LengthMismatch`]; [`Error::RoleMismatch`] if a role stands elsewhere in the corrupted prompt.
    pub fn check_aligned(&self) -> Result<()> {
        if self.clean.len() != self.corrupted.len() {
            return Err(Error::LengthMismatch {
                index: self.index,
                clean: self.clean.len(),
                corrupted: self.corrupted.len(),
            });
        }
        let there = self.corrupted_roles();
        let shifted = self
            .roles
            .iter()
            .find(|(role, at)| there.get(*role) != Some(*at));
        match shifted {
            None => Ok(()),
            Some((role, at)) => Err(Error::RoleMismatch {
                index: self.index,
                role: role.clone(),
                clean: at.clone(),
                corrupted: there.get(role).cloned().unwrap_or_default(),
            }),
        }
    }

    /// What a metric asks of a pair.
    /// # Errors
    /// What the pair lacks: `an answer`, `a wrong answer`.
    pub(super) fn check_metric(&self, metric: Metric) -> Result<(), &'static str> {
        if self.target.answers.is_empty() && !metric.needs_reference() {
            return Err("an answer");
        }
        if self.target.wrong.is_empty() && metric.needs_wrong() {
            return Err("a wrong answer");
        }
        Ok(())
    }

    /// Everything that holds for the pair of any task.
    /// # Errors
    /// Why it is not usable: the kind of reason, a colon, and the values seen.
    pub(super) fn check(&self, tokenizer: &Tokenizer) -> Result<(), String> {
        for (side, tokens) in [("clean", &self.clean), ("corrupted", &self.corrupted)] {
            if tokens.is_empty() {
                return Err(format!("empty prompt: {side} has no tokens"));
            }
        }
        let Target { answers, wrong, .. } = &self.target;
        for (side, tokens) in [("clean", &self.clean), ("corrupted", &self.corrupted)] {
            let target = &self.target;
            if target.n_tokens() + target.after > tokens.len() {
                return Err(format!(
                    "answer outside the prompt: {} tokens are read and {} stand behind them, and {side} has {}",
                    target.n_tokens(),
                    target.after,
                    tokens.len()
                ));
            }
        }
        if !self.target.then.is_empty() && (answers.len() != 1 || !wrong.is_empty()) {
            return Err(
                "answer of several tokens: it stands alone, without other answers or wrong ones, since no run holds two of them"
                    .into(),
            );
        }
        if let Some(&both) = answers.iter().find(|id| wrong.contains(id)) {
            return Err(format!(
                "answer is also wrong: `{}` stands on both sides",
                tokenizer.token(both)
            ));
        }
        if self.shifted_roles.is_none() && self.clean.len() != self.corrupted.len() {
            return Err(self.lengths_differ());
        }
        check_positions("clean", &self.roles, self.clean.len())?;
        check_positions("corrupted", self.corrupted_roles(), self.corrupted.len())?;
        self.check_one_to_one()
    }

    fn lengths_differ(&self) -> String {
        format!(
            "lengths differ: clean has {} tokens, corrupted has {}",
            self.clean.len(),
            self.corrupted.len()
        )
    }

    /// Both prompts must have the same roles, and as many tokens of each, so that one token stands for one.
    fn check_one_to_one(&self) -> Result<(), String> {
        let there = self.corrupted_roles();
        for role in self.roles.keys().chain(there.keys()) {
            let count = |roles: &Roles| roles.get(role).map_or(0, Vec::len);
            let (clean, corrupted) = (count(&self.roles), count(there));
            if clean != corrupted {
                return Err(format!(
                    "roles not one to one: {role} is {clean} tokens in clean and {corrupted} in corrupted"
                ));
            }
        }
        Ok(())
    }
}

fn end_of(tokens: &[u32]) -> Roles {
    BTreeMap::from([(END.to_owned(), vec![tokens.len().saturating_sub(1)])])
}

fn check_positions(side: &str, roles: &Roles, length: usize) -> Result<(), String> {
    for (role, at) in roles {
        if at.is_empty() {
            return Err(format!(
                "role without token: no token of {side} is inside {role}"
            ));
        }
        if !at.is_sorted_by(|a, b| a < b) {
            return Err(format!(
                "role out of order: {role} is at {at:?} in {side}; give each position once, ascending"
            ));
        }
        if let Some(outside) = at.iter().find(|&&at| at >= length) {
            return Err(format!(
                "role outside the prompt: {role} is at {outside} in {side}, which has {length} tokens"
            ));
        }
    }
    Ok(())
}
