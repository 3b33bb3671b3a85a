//! What a user can do about an error, as a value. Messages of the library name what can be set by its path, as rustdoc does:
//! `ExpandOptions::n_pairs`, or `ExpandOptions::metric = kl` with the value to give it. A front end finds these and says them in its own
//! words: the command line as flags.

use std::fmt;
use std::ops::Range;

/// What can be done about an error, so that a front end can say it in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// Take a config key on, knowing that it does not change the function; results record it.
    AcceptConfigKey(String),
    /// Say which day a chat template is to print.
    GiveDate,
    /// Set a field of a configuration, or a parameter of a function, perhaps to some value.
    Set {
        /// The type or the function.
        owner: String,
        field: String,
        value: Option<String>,
    },
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Remedy::AcceptConfigKey(key) => {
                write!(f, "`LoadOptions::accept_config_keys = {key}`")
            }
            Remedy::GiveDate => write!(f, "`Tokenizer::with_date`"),
            Remedy::Set {
                owner,
                field,
                value: None,
            } => write!(f, "`{owner}::{field}`"),
            Remedy::Set {
                owner,
                field,
                value: Some(value),
            } => write!(f, "`{owner}::{field} = {value}`"),
        }
    }
}

/// The remedies that a text of the library names, and where.
pub(super) fn named(text: &str) -> impl Iterator<Item = (Range<usize>, Remedy)> + '_ {
    text.match_indices('`').filter_map(|(start, _)| {
        let inner = text[start + 1..].split('`').next()?;
        let end = start + 1 + inner.len() + 1;
        let (path, value) = match inner.split_once(" = ") {
            Some((path, value)) => (path, Some(value.to_string())),
            None => (inner, None),
        };
        let (owner, field) = path.split_once("::")?;
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        let remedy = Remedy::Set {
            owner: owner.to_string(),
            field: field.to_string(),
            value,
        };
        (is_name(owner) && is_name(field) && end <= text.len()).then_some((start..end, remedy))
    })
}

/// A text of the library with what it names in the words of a front end; what that has no word for stays.
pub fn worded(text: &str, word: impl Fn(&Remedy) -> Option<String>) -> String {
    let (mut said, mut from) = (String::new(), 0);
    for (place, remedy) in named(text) {
        if let Some(word) = word(&remedy) {
            said += &text[from..place.start];
            said += &word;
            from = place.end;
        }
    }
    said + &text[from..]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(owner: &str, field: &str, value: Option<&str>) -> Remedy {
        Remedy::Set {
            owner: owner.into(),
            field: field.into(),
            value: value.map(Into::into),
        }
    }

    #[test]
    fn what_a_text_names_is_found_and_prints_as_it_stands() {
        let text = "`x` of `a b::c` is bad; take `Options::n`, or `Options::mean = a b` (`f`, `::g`, `Options::open";
        let found: Vec<Remedy> = named(text).map(|(_, remedy)| remedy).collect();
        let expected = [
            set("Options", "n", None),
            set("Options", "mean", Some("a b")),
        ];
        assert_eq!(found, expected);
        for remedy in expected {
            assert!(text.contains(&remedy.to_string()), "{remedy}");
        }
    }

    #[test]
    fn a_front_end_says_what_it_has_a_word_for() {
        let word = |remedy: &Remedy| match remedy {
            Remedy::Set { field, value, .. } if field == "n" => {
                Some(format!("--n {}", value.as_deref().unwrap_or("N")))
            }
            _ => None,
        };
        assert_eq!(
            worded("`ü`: `O::n`, `O::m`, `O::n = 3`", word),
            "`ü`: --n N, `O::m`, --n 3"
        );
    }
}
