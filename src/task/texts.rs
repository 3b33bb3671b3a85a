//! Lines of text as a task: prompts without an answer, for methods that only read what a model does with them.

use std::path::Path;

use super::checked::{MAX_PAIRS, Task};
use super::options::ExpandOptions;
use super::pair::Pair;
use super::tokenise::check_known;
use crate::error::{Dropped, Error, Result};
use crate::metric::Metric;
use crate::model::Tokenizer;
use crate::model::checkpoint::read_at_most;

/// A larger file of text is refused: all of it is held.
const MOST_BYTES: u64 = 64 << 20;

/// # Errors
/// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] for what is too long or no UTF-8.
fn read(path: &Path) -> Result<String> {
    if !path.exists() {
        return Err(Error::Missing {
            path: path.to_path_buf(),
            hint: "give a file of text, a prompt a line".into(),
        });
    }
    String::from_utf8(read_at_most(path, MOST_BYTES)?).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        Error::Malformed {
            path: path.to_path_buf(),
            format: "text",
            reason: format!("line {line} is not UTF-8; save it as UTF-8"),
        }
    })
}

/// Makes a prompt of each line of a file that is not empty; of a line that is longer than the model takes, its beginning. `Pair::index` is the
/// line, from 0, and a line that repeats another is dropped. Both prompts of a pair are the text, and the metric is `kl`, which needs no
/// answer. Lines with a word that the vocabulary cannot spell are dropped.
/// # Errors
/// [`Error::Missing`], [`Error::Read`] for the file; [`Error::EmptyTask`] if no line has a token.
pub fn from_text_file(path: &Path, tokenizer: &Tokenizer, options: &ExpandOptions) -> Result<Task> {
    let name = path.file_stem().map_or_else(
        || "texts".to_owned(),
        |stem| stem.to_string_lossy().into_owned(),
    );
    let text = read(path)?;
    let text = text.trim_start_matches('\u{feff}');
    let bos = options.bos.resolve(tokenizer)?;
    let lines = text.lines().enumerate();
    let lines = lines.filter(|(_, line)| !line.trim().is_empty());
    let (mut pairs, mut dropped): (Vec<Pair>, Vec<Dropped>) = (Vec::new(), Vec::new());
    let mut cut = 0;
    let most = options.n_pairs.unwrap_or(MAX_PAIRS);
    let left = lines.clone().skip(most).count();
    for (index, line) in lines.take(most) {
        let line = match options.chat {
            true => tokenizer.chat(line)?,
            false => line.to_string(),
        };
        let encoded = tokenizer.encode(&line, bos)?;
        let unfit = match encoded.ids.is_empty() {
            true => Err("empty prompt: it has no tokens".to_string()),
            false => check_known(tokenizer, &encoded, &line),
        };
        if let Err(reason) = unfit {
            dropped.push(Dropped {
                index,
                clean_text: line.clone(),
                corrupted_text: line,
                reason,
            });
            continue;
        }
        let mut tokens = encoded.ids;
        let most = options.max_tokens.unwrap_or(usize::MAX);
        cut += usize::from(tokens.len() > most);
        tokens.truncate(most);
        pairs.push(Pair {
            index,
            ..Pair::new(tokens.clone(), tokens)
        });
    }
    let asked = pairs.len() + dropped.len();
    let mut notes = Vec::new();
    if cut > 0 {
        notes.push(format!(
            "{cut} of {asked} lines are longer than the model's context; their beginnings are taken"
        ));
    }
    if left > 0 && options.n_pairs.is_none() {
        notes.push(format!(
            "the last {left} lines are left out: {MAX_PAIRS} are taken at most"
        ));
    }
    Ok(Task {
        seed: options.seed.unwrap_or(0),
        bos,
        chat: options.chat,
        source: path.display().to_string(),
        asked,
        notes,
        ..Task::of_numbered(name, tokenizer, Metric::Kl, pairs, dropped)?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::tokenizer::tests::word_level;

    #[test]
    fn each_line_is_a_prompt_and_long_ones_are_cut() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lines.txt");
        std::fs::write(&path, "Al met Bo\n\nBo saw\nAl met Bo\n").unwrap();
        let tokenizer = word_level(["Al", "Bo", "met", "saw"]);
        let options = ExpandOptions {
            max_tokens: Some(3),
            bos: crate::task::BosChoice::Yes,
            ..ExpandOptions::default()
        };
        let task = from_text_file(&path, &tokenizer, &options).unwrap();
        let indices: Vec<usize> = task.pairs().iter().map(|pair| pair.index).collect();
        assert_eq!((indices, task.name.as_str()), (vec![0, 2], "lines"));
        let pair = &task.pairs()[0];
        assert_eq!((pair.clean.len(), &pair.corrupted), (3, &pair.clean));
        assert!(
            task.notes[0].starts_with("2 of 3 lines"),
            "{:?}",
            task.notes
        );
        assert_eq!(task.dropped[0].kind(), "repeated");
        let missing = from_text_file(Path::new("nowhere.txt"), &tokenizer, &options);
        assert!(matches!(missing, Err(Error::Missing { .. })));
        std::fs::write(&path, "\u{feff}Al met Zed\nAl saw Bo\n").unwrap();
        let task = from_text_file(&path, &tokenizer, &options).unwrap();
        assert_eq!(
            (task.pairs().len(), task.dropped[0].kind()),
            (1, "unknown word")
        );
        std::fs::write(&path, b"Al met Bo\n\xff\n").unwrap();
        let broken = from_text_file(&path, &tokenizer, &options).unwrap_err();
        assert!(broken.to_string().contains("line 2"), "{broken}");
        std::fs::write(&path, " \n").unwrap();
        assert!(from_text_file(&path, &tokenizer, &options).is_err());
    }
}
