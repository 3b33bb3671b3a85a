//! A task file to begin with, from a few example prompts.

use std::fmt::Write as _;
use std::str::FromStr;

use super::file::TaskFile;
use crate::error::{Error, Result};

/// A prompt and what should follow it, written `The capital of France is => Paris`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptExample {
    pub prompt: String,
    pub answer: String,
}

impl FromStr for PromptExample {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text
            .split_once("=>")
            .map(|(prompt, answer)| (prompt.trim(), answer.trim()));
        match parts {
            Some((prompt, answer)) if !prompt.is_empty() && !answer.is_empty() => Ok(PromptExample {
                prompt: prompt.into(),
                answer: answer.into(),
            }),
            _ => Err(Error::Parse {
                what: "an example",
                text: text.into(),
                reason: "write the prompt and its answer with `=>` between, as in `The capital of France is => Paris`".into(),
            }),
        }
    }
}

/// The text of a task file, with comments. The words in which the examples differ are its slot; without examples it is a task
/// that the embedded model does.
/// # Errors
/// [`Error::Invalid`] for a name that is none, a single example, two of one prompt, and examples that all have one answer.
pub fn draft(name: &str, examples: &[PromptExample]) -> Result<String> {
    let is_name = !name.is_empty()
        && !name.starts_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    if !is_name {
        return Err(Error::invalid(format!(
            "`{}` is no name for a task; use letters, digits, `_` and `-`",
            crate::text::visible(name)
        )));
    }
    let text = if examples.is_empty() {
        STARTER.replace("NAME", name)
    } else {
        of_examples(name, examples)?
    };
    // What is written can be read.
    TaskFile::parse(&text, name)?;
    Ok(text)
}

fn of_examples(name: &str, examples: &[PromptExample]) -> Result<String> {
    if examples.len() < 2 {
        return Err(Error::invalid(
            "one example says nothing about what changes; give two or more that differ in one place",
        ));
    }
    if examples
        .iter()
        .all(|example| example.answer == examples[0].answer)
    {
        return Err(Error::invalid(format!(
            "all examples have the answer `{}`, so none can be the wrong one",
            crate::text::visible(&examples[0].answer)
        )));
    }
    let words: Vec<Vec<&str>> = (examples.iter())
        .map(|example| example.prompt.split(' ').collect())
        .collect();
    let shortest = words.iter().map(Vec::len).min().unwrap_or(0);
    let first = &words[0];
    let shared = |at: &dyn Fn(&[&str], usize) -> String| {
        (0..shortest)
            .take_while(|&i| words.iter().all(|words| at(words, i) == at(first, i)))
            .count()
    };
    let before = shared(&|words, i| words[i].into()).min(shortest.saturating_sub(1));
    let after = shared(&|words, i| words[words.len() - 1 - i].into()).min(shortest - before - 1);
    let changing: Vec<String> = (words.iter())
        .map(|words| words[before..words.len() - after].join(" "))
        .collect();
    for (i, (one, example)) in changing.iter().zip(examples).enumerate() {
        if let Some(j) = changing[..i].iter().position(|other| other == one) {
            return Err(Error::invalid(format!(
                "examples {j} and {i} are the same prompt, `{}`",
                crate::text::visible(&example.prompt)
            )));
        }
    }
    let literal = |text: String| text.replace('{', "{{").replace('}', "}}");
    let pieces = [
        literal(first[..before].join(" ")),
        "{WORD}".to_string(),
        literal(first[first.len() - after..].join(" ")),
    ];
    let pieces: Vec<&str> = (pieces.iter())
        .map(String::as_str)
        .filter(|piece| !piece.is_empty())
        .collect();
    let quoted = |text: &str| toml::Value::String(text.to_string()).to_string();
    let list =
        |texts: &mut dyn Iterator<Item = &str>| texts.map(quoted).collect::<Vec<_>>().join(", ");
    let mut text = String::new();
    let _ = write!(
        text,
        "# {name}: a sentence on what the model should do.\n\
         #\n\
         # See how a tokenizer reads it:  candlewick tokens --task {name}.toml --model MODEL\n\
         # and measure:                   candlewick patch --task {name}.toml --model MODEL\n\
         \n\
         name = {}\n\
         about = \"What the model should say, in a sentence.\"\n\
         # What `value` and `score` measure (docs/metrics.md); logit_diff compares `answer` with `wrong`.\n\
         metric = \"logit_diff\"\n\
         # Pairs that are drawn unless `--n-pairs` says otherwise.\n\
         n_pairs = {}\n\
         # The corruption below that is used unless `--corruption` names another.\n\
         corruption = \"other\"\n\
         # What should follow the prompt, and what should follow the corrupted one instead: with the space in front.\n\
         answer = \" {{WORD.answer}}\"\n\
         wrong = \" {{corrupted.WORD.answer}}\"\n\
         \n\
         # {{WORD}} is a slot, and a role: `--at @WORD` and `--block @END:@WORD` name its place. Several templates are drawn in turn;\n\
         # their positions do not align, so sweeps of several go by role. A brace itself is written twice.\n\
         templates = [\n    {},\n]\n\
         \n\
         [slots]\n\
         WORD = \"word\"\n\
         \n\
         # All entries should be as many tokens in your model's vocabulary; pairs that do not align are dropped with the reason.\n\
         # The answer should be one token.\n\
         [lists.word]\n\
         text = [{}]\n\
         answer = [{}]\n\
         \n\
         [corruptions.other]\n\
         about = \"Another word; the wrong answer is its answer.\"\n\
         draw = {{ WORD = \"word\" }}\n",
        quoted(name),
        100.min(examples.len() * (examples.len() - 1)),
        quoted(&pieces.join(" ")),
        list(&mut changing.iter().map(String::as_str)),
        list(&mut examples.iter().map(|example| example.answer.as_str())),
    );
    Ok(text)
}

/// A task that the embedded model does.
const STARTER: &str = r#"# NAME: who received something, from a text that names two people.
#
# See how it is read:  candlewick tokens --task NAME.toml
# and measure:         candlewick patch --task NAME.toml
#
# Only `templates` and `corruptions` must be there.

name = "NAME"
about = "Of two people one gives something: the model should name the other."
# What `value` and `score` measure (docs/metrics.md); logit_diff compares `answer` with `wrong`.
metric = "logit_diff"
# The seed of the draws, and how many pairs are drawn, unless `--seed` and `--n-pairs` say otherwise.
seed = 0
n_pairs = 16
# The corruption below that is used unless `--corruption` names another.
corruption = "giver"
# What should follow the prompt, and what should follow the corrupted one instead: with the space in front.
answer = " {IO}"
wrong = " {S}"
# Roles beside those of the slots and END: `S1+1` is the token after S1.
roles = ["S1+1"]

# {IO} is a slot, and a role: `--at @IO` and `--block @END:@IO` name its place. `{S:S1}` is the slot S, and this occurrence is the
# role S1. Several templates are drawn in turn; their positions do not align, so sweeps of several go by role. A brace itself is
# written twice.
templates = [
    "then {IO} and {S:S1} went to the store . {S:S2} gave a drink to",
]

# Which list each slot is drawn from. Slots of one list are filled with different entries.
[slots]
IO = "name"
S = "name"

# Words, or a table of columns of which one is `text`: `{IO.pronoun}` would be the column `pronoun`.
[lists]
name = ["Mary", "John", "Alice", "Peter", "Susan"]

# How the corrupted prompt differs. `set` says what stands there instead, `draw` takes another entry of a list.
[corruptions.giver]
about = "The other one gives."
set = { S2 = "{IO}" }

[corruptions.other_giver]
about = "Somebody else gives."
draw = { S2 = "name" }
"#;

/// The JSON schema of task files, for editors.
#[cfg(feature = "cli")]
pub fn schema() -> serde_json::Value {
    let mut schema = schemars::schema_for!(TaskFile).to_value();
    schema["title"] = "A task file of candlewick".into();
    schema["properties"]["metric"]["pattern"] =
        "^(logit_diff|prob_diff|log_prob|prob|kl|js|rank|accuracy|top[0-9]+)$".into();
    schema
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::tests::word_level;
    use crate::task::{ExpandOptions, expand};

    fn examples(texts: &[&str]) -> Vec<PromptExample> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_words_in_which_examples_differ_become_a_slot() {
        let examples = examples(&[
            "The capital of France is => Paris",
            "The capital of Italy is => Rome",
            "The capital of Spain is => Madrid",
        ]);
        let text = draft("capitals", &examples).unwrap();
        let file = TaskFile::parse(&text, "capitals").unwrap();
        let words = "The capital of France Italy Spain is Paris Rome Madrid";
        let tokenizer = word_level(words.split(' '));
        let task = expand(&file, &tokenizer, &ExpandOptions::default()).unwrap();
        assert_eq!((task.pairs().len(), task.asked), (6, 6), "{text}");
        for pair in task.pairs() {
            let is_known = examples
                .iter()
                .any(|one| pair.clean_text.trim() == one.prompt && pair.target.answers.len() == 1);
            assert!(is_known, "{}", pair.clean_text);
            assert_eq!(pair.roles["WORD"], [pair.clean.len() - 2]);
        }
    }

    #[test]
    fn what_a_word_holds_cannot_break_the_file() {
        let hostile = [
            "say \"{x}\" and \\ 'a' => b\"\nc",
            "say \"{x}\" and \\ ''' ] # => {d}",
        ];
        let text = draft("odd", &examples(&hostile)).unwrap();
        let file = TaskFile::parse(&text, "odd").unwrap();
        let list = &file.lists["word"].columns;
        assert_eq!(list["text"], ["'a'", "''' ] #"]);
        assert_eq!(list["answer"], ["b\"\nc", "{d}"]);
    }

    #[test]
    fn what_makes_no_task_is_refused() {
        let refused = |name: &str, texts: &[&str], says: &str| {
            let error = draft(name, &examples(texts)).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        };
        refused("../x", &[], "no name for a task");
        refused("-a", &[], "no name for a task");
        refused("a", &["one => two"], "one example says nothing");
        refused(
            "a",
            &["one is => two", "four is => two"],
            "all examples have the answer",
        );
        refused(
            "a",
            &["one is => two", "one is => three"],
            "the same prompt",
        );
        for text in ["one", "=> two", "one =>"] {
            assert!(text.parse::<PromptExample>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_starter_is_a_task_and_the_schema_knows_every_key_of_the_shipped_ones() {
        let starter = draft("mine", &[]).unwrap();
        let texts = crate::task::shipped().map(|name| TaskFile::open(name).unwrap().text);
        #[cfg(feature = "cli")]
        for text in texts.chain([starter]) {
            let schema = schema();
            let table: toml::Table = toml::from_str(&text).unwrap();
            for key in table.keys() {
                assert!(schema["properties"].get(key).is_some(), "{key}");
            }
        }
    }
}
