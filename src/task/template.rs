//! Texts with slots: `When {IO} and {S:S1} went to the {PLACE}, {S:S2} gave a {OBJECT} to`.
//!
//! Between braces stands a slot, then optionally `.column` (another column of the slot's list) and `:ROLE` (a name for this
//! occurrence; without one, the slot's own name). In answers `{corrupted.ROLE}` is what stands there in the corrupted prompt. A
//! brace itself is written twice.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::task::file::List;

/// A parsed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Template(pub Vec<TemplatePart>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TemplatePart {
    Literal(String),
    Slot(SlotReference),
}

/// What stands between a pair of braces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SlotReference {
    pub corrupted: bool,
    /// A slot, or, outside prompts, the role of one of its occurrences.
    pub name: String,
    pub column: Option<String>,
    pub role: Option<String>,
}

/// What fills a slot: an entry of a list, which has columns, or a bare text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    Entry { list: String, row: usize },
    Text(String),
}

/// A prompt, and the bytes of each role in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PromptText {
    pub text: String,
    pub roles: Vec<(String, Range<usize>)>,
}

impl Template {
    /// # Errors
    /// What is wrong with the text, for the caller to put into an error of the task.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            let brace = &rest[at..at + 1];
            rest = &rest[at + 1..];
            if let Some(after) = rest.strip_prefix(brace) {
                literal.push_str(brace);
                rest = after;
            } else if brace == "{" {
                let Some((inside, after)) = rest.split_once('}') else {
                    return Err(format!(
                        "`{text}` opens a brace and does not close it; write `{{{{` for a brace itself"
                    ));
                };
                if !literal.is_empty() {
                    pieces.push(TemplatePart::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(TemplatePart::Slot(SlotReference::parse(inside)?));
                rest = after;
            } else {
                return Err(format!(
                    "`{text}` closes a brace that it did not open; write `}}}}` for a brace itself"
                ));
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(TemplatePart::Literal(literal));
        }
        Ok(Template(pieces))
    }

    pub fn slots(&self) -> impl Iterator<Item = &SlotReference> {
        self.0.iter().filter_map(|piece| match piece {
            TemplatePart::Slot(reference) => Some(reference),
            TemplatePart::Literal(_) => None,
        })
    }

    /// The text with every slot filled by `word_of`, and where each occurrence came to stand.
    /// # Errors
    /// Whatever `word_of` says.
    pub fn fill(
        &self,
        mut word_of: impl FnMut(&SlotReference) -> Result<String, String>,
    ) -> Result<PromptText, String> {
        let mut prompt = PromptText::default();
        for piece in &self.0 {
            match piece {
                TemplatePart::Literal(literal) => prompt.text.push_str(literal),
                TemplatePart::Slot(reference) => {
                    let start = prompt.text.len();
                    prompt.text.push_str(&word_of(reference)?);
                    prompt
                        .roles
                        .push((reference.role().to_owned(), start..prompt.text.len()));
                }
            }
        }
        Ok(prompt)
    }
}

impl SlotReference {
    fn parse(inside: &str) -> Result<Self, String> {
        let (inside_role, role) = match inside.split_once(':') {
            Some((before, role)) => (before, Some(role.to_owned())),
            None => (inside, None),
        };
        let (corrupted, name) = match inside_role.strip_prefix("corrupted.") {
            Some(name) => (true, name),
            None => (false, inside_role),
        };
        let (name, column) = match name.split_once('.') {
            Some((name, column)) => (name, Some(column.to_owned())),
            None => (name, None),
        };
        let well_formed = |word: &str| {
            !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let all_well_formed = well_formed(name)
            && column.as_deref().is_none_or(well_formed)
            && role.as_deref().is_none_or(well_formed);
        if !all_well_formed {
            return Err(format!(
                "`{{{inside}}}` is not a slot; write `{{SLOT}}`, `{{SLOT.column}}` or `{{SLOT:ROLE}}` in letters, digits and `_`"
            ));
        }
        Ok(SlotReference {
            corrupted,
            name: name.to_owned(),
            column,
            role,
        })
    }

    /// The role of this occurrence.
    pub fn role(&self) -> &str {
        self.role.as_deref().unwrap_or(&self.name)
    }
}

impl Word {
    /// The word as text, in its own column or another.
    /// # Errors
    /// If there is no such column.
    pub fn text(
        &self,
        column: Option<&str>,
        lists: &BTreeMap<String, List>,
    ) -> Result<String, String> {
        match (self, column) {
            (Word::Text(text), None) => Ok(text.clone()),
            (Word::Text(text), Some(column)) => Err(format!(
                "`{text}` was set as a text and has no column `{column}`; draw it from a list instead"
            )),
            (Word::Entry { list, row }, column) => {
                let columns = &lists[list].columns;
                let name = column.unwrap_or(List::TEXT);
                columns
                    .get(name)
                    .map(|words| words[*row].clone())
                    .ok_or_else(|| {
                        let known: Vec<&str> = columns.keys().map(String::as_str).collect();
                        format!(
                            "list `{list}` has no column `{name}`; it has {}",
                            known.join(", ")
                        )
                    })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_parsed_with_column_and_role() {
        let template = Template::parse("{{When}} {IO} and {S:S1}, {corrupted.S2.pronoun}").unwrap();
        let slots: Vec<&SlotReference> = template.slots().collect();
        assert_eq!(template.0[0], TemplatePart::Literal("{When} ".into()));
        assert_eq!((slots[0].name.as_str(), slots[0].role()), ("IO", "IO"));
        assert_eq!((slots[1].name.as_str(), slots[1].role()), ("S", "S1"));
        assert!(slots[2].corrupted && slots[2].column.as_deref() == Some("pronoun"));
    }

    #[test]
    fn what_is_no_template_says_why() {
        for (text, says) in [
            ("{IO", "does not close"),
            ("IO}", "did not open"),
            ("{}", "is not a slot"),
            ("{a b}", "is not a slot"),
        ] {
            let message = Template::parse(text).unwrap_err();
            assert!(message.contains(says), "{message}");
        }
    }

    #[test]
    fn filling_remembers_the_bytes_of_each_role() {
        let template = Template::parse("Zoë met {A} and {A:AGAIN}").unwrap();
        let prompt = template.fill(|_| Ok("Mary".into())).unwrap();
        assert_eq!(prompt.text, "Zoë met Mary and Mary");
        assert_eq!(
            prompt.roles,
            [("A".to_owned(), 9..13), ("AGAIN".to_owned(), 18..22)]
        );
    }
}
