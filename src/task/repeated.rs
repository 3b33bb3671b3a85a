//! Random tokens, then the same ones again: the task on which induction heads were found (Olsson et al. 2022,
//! "In-context learning and induction heads").
//!
//! The clean prompt is `r0 ... r(n-1) r0 ... r(m-1)`, and the answer is `r(m)`, which followed the last token when it first
//! came. Two corruptions: `successor` puts another token in the place of that first `r(m)`, which the model should then say
//! instead; `first` changes the token before it, so that the last token was never seen and nothing follows from it.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::file::{RepeatedTokens, TaskFile, bad};
use super::options::ExpandOptions;
use super::pair::Pair;
use super::tokenise::Candidate;
use crate::error::Result;
use crate::model::Tokenizer;

pub(super) struct RepeatedTokensSource<'a> {
    tokenizer: &'a Tokenizer,
    /// Ordinary tokens of the vocabulary.
    ordinary: Vec<u32>,
    sizes: RepeatedTokens,
    bos: Option<u32>,
    corruption: Corrupted,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Corrupted {
    Successor,
    First,
}

impl<'a> RepeatedTokensSource<'a> {
    pub fn new(
        file: &TaskFile,
        tokenizer: &'a Tokenizer,
        bos: bool,
        corruption: &str,
        options: &ExpandOptions,
    ) -> Result<Self> {
        let Some(sizes) = file.repeated_tokens else {
            return Err(bad(&file.name, "it needs a table `[repeated_tokens]`"));
        };
        let corruption = match corruption {
            "successor" => Corrupted::Successor,
            "first" => Corrupted::First,
            other => {
                return Err(bad(
                    &file.name,
                    format!("it has no corruption `{other}`; it has first, successor"),
                ));
            }
        };
        if options.chat {
            return Err(bad(
                &file.name,
                "its prompts are random tokens, which no chat template can wrap; leave out `ExpandOptions::chat`",
            ));
        }
        let tokens = usize::from(bos) + sizes.block + sizes.repeated;
        if let Some(limit) = options.max_tokens
            && tokens > limit
        {
            return Err(bad(
                &file.name,
                format!(
                    "its prompts have {tokens} tokens, the model takes at most {limit}; lower `block`"
                ),
            ));
        }
        let ordinary = ordinary(tokenizer);
        if ordinary.len() <= sizes.block {
            return Err(bad(
                &file.name,
                format!(
                    "the vocabulary has {} ordinary tokens, a block needs {} different ones",
                    ordinary.len(),
                    sizes.block + 1
                ),
            ));
        }
        let bos = tokenizer.bos().filter(|_| bos);
        Ok(RepeatedTokensSource {
            tokenizer,
            ordinary,
            sizes,
            bos,
            corruption,
        })
    }

    /// # Errors
    /// [`crate::Error::Tokenizer`] if the tokens cannot be decoded.
    pub fn candidate(&self, rng: &mut ChaCha8Rng, index: usize) -> Result<Candidate> {
        let RepeatedTokens { block, repeated } = self.sizes;
        // All different, so that only one token can follow the last one.
        let mut drawn: Vec<u32> = Vec::with_capacity(block + 1);
        while drawn.len() <= block {
            let id = self.ordinary[rng.random_range(0..self.ordinary.len())];
            if !drawn.contains(&id) {
                drawn.push(id);
            }
        }
        let (r, other) = (&drawn[..block], drawn[block]);
        let clean: Vec<u32> = self
            .bos
            .iter()
            .chain(r)
            .chain(&r[..repeated])
            .copied()
            .collect();

        let start = usize::from(self.bos.is_some());
        let (first, successor) = (start + repeated - 1, start + repeated);
        let mut corrupted = clean.clone();
        match self.corruption {
            Corrupted::Successor => corrupted[successor] = other,
            Corrupted::First => corrupted[first] = other,
        }
        let (clean_text, corrupted_text) = (
            self.tokenizer.decode(&clean)?,
            self.tokenizer.decode(&corrupted)?,
        );
        let pair = Pair::new(clean, corrupted)
            .role("FIRST", [first])
            .role("SUCCESSOR", [successor])
            .answer(r[repeated])
            .wrong(other);
        Ok(Ok(Pair {
            index,
            clean_text,
            corrupted_text,
            ..pair
        }))
    }
}

/// Tokens that show as letters, with or without a space in front: no markers, bytes or punctuation.
fn ordinary(tokenizer: &Tokenizer) -> Vec<u32> {
    let is_word = |id: &u32| {
        let shown = tokenizer.token(*id);
        let word = shown.trim_start();
        !word.is_empty() && word.chars().all(char::is_alphabetic)
    };
    let all =
        (0..=tokenizer.max_id()).filter(|&id| tokenizer.has_id(id) && !tokenizer.is_special(id));
    all.filter(|&id| Some(id) != tokenizer.unknown())
        .filter(is_word)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::tests::word_level;
    use crate::task::{BosChoice, Task, expand};

    const FILE: &str = r#"
        name = "again"
        about = "a"
        source = "b"
        claim = "c"
        kind = "repeated_tokens"
        metric = "logit_diff"
        corruption = "successor"
        repeated_tokens = { block = 4, repeated = 2 }
    "#;

    fn task(corruption: &str, bos: BosChoice) -> Task {
        let tokenizer = word_level(["a", "b", "c", "d", "e", "f", "g", ",", "12"]);
        let file = TaskFile::parse(FILE, "again").unwrap();
        let options = ExpandOptions {
            n_pairs: Some(5),
            corruption: Some(corruption.into()),
            bos,
            ..Default::default()
        };
        expand(&file, &tokenizer, &options).unwrap()
    }

    #[test]
    fn the_answer_followed_the_last_token_when_it_first_came() {
        let task = task("successor", BosChoice::Yes);
        assert_eq!(task.pairs().len(), 5);
        for pair in task.pairs() {
            assert_eq!((pair.clean.len(), pair.clean[0]), (7, 0));
            assert_eq!(pair.clean[1..3], pair.clean[5..7]);
            assert_eq!(pair.target.answers, [pair.clean[3]]);
            assert_eq!(pair.target.wrong, [pair.corrupted[3]]);
            assert_eq!(
                (&pair.clean[..3], &pair.clean[4..]),
                (&pair.corrupted[..3], &pair.corrupted[4..])
            );
            assert!(
                pair.clean[1..].iter().all(|id| (2..9).contains(id)),
                "{:?} are words",
                pair.clean
            );
            assert_eq!(
                (
                    pair.roles["FIRST"][0],
                    pair.roles["SUCCESSOR"][0],
                    pair.roles["END"][0]
                ),
                (2, 3, 6)
            );
        }
    }

    #[test]
    fn the_other_corruption_removes_the_first_occurrence() {
        for pair in task("first", BosChoice::No).pairs() {
            let last = pair.corrupted[5];
            assert_eq!(pair.corrupted.iter().filter(|&&id| id == last).count(), 1);
            assert_eq!(pair.clean.iter().filter(|&&id| id == last).count(), 2);
        }
    }

    #[test]
    fn what_cannot_be_made_is_an_error() {
        let file = TaskFile::parse(FILE, "again").unwrap();
        let few = word_level(["a", "b", "c", "d"]);
        let check = |tokenizer: &Tokenizer, options: ExpandOptions, says: &str| {
            let message = expand(&file, tokenizer, &options).unwrap_err().to_string();
            assert!(message.contains(says), "{message}");
        };
        check(&few, ExpandOptions::default(), "has 4 ordinary tokens");
        check(
            &few,
            ExpandOptions {
                chat: true,
                ..Default::default()
            },
            "chat template",
        );
        check(
            &few,
            ExpandOptions {
                max_tokens: Some(5),
                ..Default::default()
            },
            "at most 5",
        );
        check(
            &few,
            ExpandOptions {
                corruption: Some("x".into()),
                ..Default::default()
            },
            "first, successor",
        );
        assert!(TaskFile::parse(&FILE.replace("repeated = 2", "repeated = 4"), "x").is_err());
    }
}
