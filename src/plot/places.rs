//! What stands at a position or a role of the prompts: its text, two texts where the runs differ, or a sign that it depends on
//! the pair.

use crate::scores::{PromptTokens, Provenance};
use crate::text::visible;

/// Stands for text that differs from pair to pair.
const VARIES: &str = "~";

/// The tokens of all pairs.
pub(super) struct Places<'a> {
    about: &'a Provenance,
}

impl<'a> Places<'a> {
    pub fn of(about: &'a Provenance) -> Self {
        Places { about }
    }

    /// The label of a position, safe to show: the token if all pairs have it, `clean/corrupted` where the two runs differ, and
    /// `~` in place of what depends on the pair. `known` is the token that the table has there; a template keeps to its pairs.
    pub fn token(&self, pos: i64, template: Option<i64>, known: Option<&str>) -> Option<String> {
        let at = |prompt: &PromptTokens| {
            let token = |ids: &[u32]| {
                let index = match pos {
                    0.. => pos as usize,
                    _ => ids.len().checked_sub(pos.unsigned_abs() as usize)?,
                };
                Some(vec![*ids.get(index)?])
            };
            Some((token(&prompt.clean)?, token(&prompt.corrupted)?))
        };
        self.label(template, known, at)
    }

    /// The same for the tokens of a role; nothing if the pairs do not say where it is.
    pub fn role(&self, role: &str, template: Option<i64>) -> Option<String> {
        let at = |prompt: &PromptTokens| {
            let positions = prompt.roles.get(role)?;
            let tokens = |ids: &[u32]| {
                let ids = positions.iter().map(|&pos| ids.get(pos).copied());
                ids.collect::<Option<Vec<u32>>>()
            };
            Some((tokens(&prompt.clean)?, tokens(&prompt.corrupted)?))
        };
        self.label(template, None, at)
    }

    fn label(
        &self,
        template: Option<i64>,
        known: Option<&str>,
        at: impl Fn(&PromptTokens) -> Option<(Vec<u32>, Vec<u32>)>,
    ) -> Option<String> {
        let is_meant = |prompt: &&PromptTokens| {
            template.is_none_or(|template| prompt.template as i64 == template)
        };
        let prompts = self.about.prompts.iter().filter(is_meant);
        let pairs: Vec<(Vec<u32>, Vec<u32>)> = prompts.filter_map(at).collect();
        let Some((clean, corrupted)) = pairs.first() else {
            return known.map(visible);
        };
        let is_changed = pairs.iter().any(|(clean, corrupted)| clean != corrupted);
        let varies = pairs.iter().any(|pair| *pair != pairs[0]);
        match (is_changed, varies) {
            (false, false) => self.text(clean).or_else(|| known.map(visible)),
            (true, false) => match (self.text(clean), self.text(corrupted)) {
                (Some(clean), Some(corrupted)) => Some(format!("{clean}/{corrupted}")),
                _ => known.map(|token| format!("{} (changed)", visible(token))),
            },
            (false, true) => Some(VARIES.into()),
            (true, true) => Some(format!("{VARIES}/{VARIES}")),
        }
    }

    /// The text of some tokens. The space in front of a word says little in a picture.
    fn text(&self, ids: &[u32]) -> Option<String> {
        let texts = ids.iter().map(|id| self.about.token_texts.get(id));
        let text: String = texts
            .map(|text| text.map(String::as_str))
            .collect::<Option<_>>()?;
        let word = text.trim_start_matches(' ');
        Some(visible(if word.is_empty() { &text } else { word }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `When Mary`, `When John` and so on: clean and corrupted ids of each pair.
    fn about(pairs: &[(&[u32], &[u32])]) -> Provenance {
        let prompt = |(clean, corrupted): &(&[u32], &[u32])| PromptTokens {
            clean: clean.to_vec(),
            corrupted: corrupted.to_vec(),
            roles: [("NAME".to_string(), vec![1])].into(),
            ..PromptTokens::default()
        };
        let texts = ["When", " Mary", " John", " Anna", "\x1b"];
        Provenance {
            prompts: pairs.iter().map(prompt).collect(),
            token_texts: (0..).zip(texts.map(String::from)).collect(),
            ..Provenance::default()
        }
    }

    #[test]
    fn a_changed_position_has_both_tokens() {
        let about = about(&[(&[0, 1, 4], &[0, 2, 4]), (&[0, 1, 4], &[0, 2, 4])]);
        let places = Places::of(&about);
        let token = |pos| places.token(pos, None, None);
        assert_eq!(token(0).as_deref(), Some("When"));
        assert_eq!(token(1).as_deref(), Some("Mary/John"));
        assert_eq!(token(-2).as_deref(), Some("Mary/John"));
        assert_eq!(token(2).as_deref(), Some("\\u{1b}"));
        assert_eq!(token(9), None);
        assert_eq!(places.role("NAME", None).as_deref(), Some("Mary/John"));
        assert_eq!(places.role("PLACE", None), None);
    }

    #[test]
    fn what_depends_on_the_pair_is_a_sign() {
        let about = about(&[(&[0, 1], &[0, 2]), (&[0, 3], &[0, 2])]);
        assert_eq!(
            Places::of(&about).token(1, None, None).as_deref(),
            Some("~/~")
        );
        let about = self::about(&[(&[0, 1], &[0, 1]), (&[0, 3], &[0, 3])]);
        assert_eq!(
            Places::of(&about).token(1, None, None).as_deref(),
            Some("~")
        );
    }

    #[test]
    fn a_template_keeps_to_its_own_pairs() {
        let mut about = about(&[(&[0, 1], &[0, 2]), (&[3, 3], &[3, 3])]);
        about.prompts[1].template = 1;
        let places = Places::of(&about);
        assert_eq!(places.token(1, Some(0), None).as_deref(), Some("Mary/John"));
        assert_eq!(places.token(1, Some(1), None).as_deref(), Some("Anna"));
    }
}
