//! The columns of a prompt, which a program reads: the words at its roles, their positions, and what a table says beside.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::expression::Value;
use super::program::Inputs;
use crate::error::{Error, Result};
use crate::hooks::Roles;
use crate::model::checkpoint::read_at_most;
use crate::task::{Pair, Task};
use crate::text::one_line;

/// A larger table is refused: all of it is held.
const FILE_LIMIT: u64 = 64 << 20;

/// Which prompts of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Clean,
    Corrupted,
}

impl Side {
    fn named(name: &str) -> Option<Self> {
        match name {
            "clean" => Some(Side::Clean),
            "corrupted" => Some(Side::Corrupted),
            _ => None,
        }
    }
}

/// Columns of one's own: for each pair by its number, and where it says so for one of its prompts alone.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct InputTable {
    rows: BTreeMap<(usize, Option<Side>), Inputs>,
}

impl InputTable {
    /// A CSV file with a column `example` (the number of the pair in the task), and if need be `side` (`clean` or `corrupted`); all others
    /// are inputs: numbers, `true`, `false` and texts. An empty cell is no input.
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] naming the line.
    pub fn read(path: &Path) -> Result<Self> {
        let malformed = |reason: String| Error::Malformed {
            path: path.into(),
            format: "CSV",
            reason,
        };
        if !path.exists() {
            return Err(Error::Missing {
                path: path.into(),
                hint: "give a CSV file with a column `example` and inputs beside it".into(),
            });
        }
        let bytes = read_at_most(path, FILE_LIMIT)?;
        let text = String::from_utf8(bytes).map_err(|_| malformed("it is not UTF-8".into()))?;
        InputTable::parse(text.trim_start_matches('\u{feff}')).map_err(malformed)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let said = |error: csv::Error| one_line(&error.to_string());
        let mut reader = csv::Reader::from_reader(text.as_bytes());
        let headers = reader.headers().map_err(said)?.clone();
        let column = |name: &str| headers.iter().position(|header| header == name);
        let example = column("example").ok_or("it has no column `example`")?;
        let side = column("side");
        let mut rows = BTreeMap::new();
        for (line, record) in reader.records().enumerate() {
            let record = record.map_err(said)?;
            let line = line + 2;
            let cell = |at: usize| record.get(at).unwrap_or_default();
            let number = cell(example).trim().parse::<usize>().map_err(|_| {
                format!(
                    "line {line}: `{}` is no number of a pair",
                    one_line(cell(example))
                )
            })?;
            let named = match side.map(cell) {
                None | Some("") => None,
                Some(name) => Some(Side::named(name).ok_or_else(|| {
                    format!(
                        "line {line}: `{}` is neither `clean` nor `corrupted`",
                        one_line(name)
                    )
                })?),
            };
            let columns = headers.iter().zip(&record).enumerate();
            let inputs = columns
                .filter(|(at, (_, cell))| *at != example && Some(*at) != side && !cell.is_empty())
                .map(|(_, (header, cell))| (header.to_string(), value(cell)));
            if rows.insert((number, named), inputs.collect()).is_some() {
                return Err(format!("line {line}: pair {number} stands there twice"));
            }
        }
        Ok(InputTable { rows })
    }
}

fn value(cell: &str) -> Value {
    match (cell, cell.parse::<f64>()) {
        ("true", _) => Value::Truth(true),
        ("false", _) => Value::Truth(false),
        (_, Ok(number)) if number.is_finite() => Value::Number(number),
        _ => Value::Text(cell.into()),
    }
}

/// A prompt that can be a base or a source.
#[derive(Debug, Clone)]
pub(super) struct Prompt<'a> {
    pub pair: &'a Pair,
    /// The place of the pair in the task.
    pub at: usize,
    pub side: Side,
    pub inputs: Inputs,
}

impl Prompt<'_> {
    pub fn tokens(&self) -> &Vec<u32> {
        match self.side {
            Side::Clean => &self.pair.clean,
            Side::Corrupted => &self.pair.corrupted,
        }
    }

    pub fn roles(&self) -> &Roles {
        match self.side {
            Side::Clean => &self.pair.roles,
            Side::Corrupted => self.pair.corrupted_roles(),
        }
    }

    /// Where a role is read and written: at its last token.
    pub fn position(&self, role: &str) -> Option<usize> {
        self.roles().get(role)?.last().copied()
    }
}

impl InputTable {
    /// What of it does nothing: rows of pairs that the task does not have, and columns that nothing reads, of all that are read.
    pub(super) fn idle(&self, task: &Task, read: Option<&BTreeSet<&str>>) -> Vec<String> {
        let known: BTreeSet<usize> = task.pairs().iter().map(|pair| pair.index).collect();
        let pairs: BTreeSet<usize> = self.rows.keys().map(|(pair, _)| *pair).collect();
        let foreign: Vec<usize> = pairs.difference(&known).copied().collect();
        let mut idle = Vec::new();
        if let Some(first) = foreign.first() {
            idle.push(format!(
                "the inputs have rows of {} pairs that are not among the {} of the task, the first of pair {first}",
                foreign.len(),
                known.len()
            ));
        }
        let columns: BTreeSet<&str> = self
            .rows
            .values()
            .flat_map(|row| row.keys().map(String::as_str))
            .collect();
        let unread = columns
            .iter()
            .filter(|name| read.is_some_and(|read| !read.contains(*name)));
        let unread: Vec<String> = unread.map(|name| format!("`{}`", one_line(name))).collect();
        if !unread.is_empty() {
            idle.push(format!(
                "the program reads nothing of these columns of the inputs: {}",
                unread.join(", ")
            ));
        }
        idle
    }
}

/// The prompts of a task, each once, with their columns.
/// # Errors
/// Those of decoding; [`Error::Invalid`] for a column of a table that would replace what the task says.
pub(super) fn prompts<'a>(
    task: &'a Task,
    sides: &[Side],
    table: Option<&InputTable>,
) -> Result<Vec<Prompt<'a>>> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (at, pair) in task.pairs().iter().enumerate() {
        for &side in sides {
            let mut prompt = Prompt {
                pair,
                at,
                side,
                inputs: Inputs::new(),
            };
            if !seen.insert(prompt.tokens().clone()) {
                continue;
            }
            let mut inputs = Inputs::new();
            for (role, positions) in prompt.roles() {
                let tokens: Vec<u32> = positions.iter().map(|&at| prompt.tokens()[at]).collect();
                let text = task.tokenizer().decode(&tokens)?;
                inputs.insert(role.clone(), Value::Text(text.trim().into()));
                if let Some(&last) = positions.last() {
                    inputs.insert(format!("{role}.pos"), Value::Number(last as f64));
                }
            }
            for side in [None, Some(side)] {
                let row = table.and_then(|table| table.rows.get(&(pair.index, side)));
                let mut names = row.into_iter().flat_map(Inputs::keys);
                let of_a_role = |name: &&String| {
                    let role = name.strip_suffix(".pos").unwrap_or(name);
                    prompt.roles().contains_key(role)
                };
                if let Some(name) = names.find(of_a_role) {
                    return Err(Error::invalid(format!(
                        "the inputs have a column `{}`, which is what the task says of a role; give it another name",
                        one_line(name)
                    )));
                }
                inputs.extend(
                    row.into_iter()
                        .flatten()
                        .map(|(name, value)| (name.clone(), value.clone())),
                );
            }
            prompt.inputs = inputs;
            all.push(prompt);
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_inputs_of_pairs_or_of_one_prompt_of_them() {
        let table =
            InputTable::parse("example,side,colour,n,ok\n3,,red,2,true\n3,clean,,5,\n").unwrap();
        assert_eq!(table.rows[&(3, None)]["colour"], "red".into());
        assert_eq!(table.rows[&(3, None)]["ok"], true.into());
        assert_eq!(
            table.rows[&(3, Some(Side::Clean))],
            Inputs::from([("n".into(), 5.0.into())])
        );
        for (text, says) in [
            ("a,b\n1,2\n", "no column `example`"),
            ("example,b\nx,2\n", "line 2: `x` is no number"),
            ("example,side\n1,left\n", "line 2: `left` is neither"),
            ("example,b\n1,2\n1,3\n", "line 3: pair 1 stands there twice"),
            ("example,b\n1\n", "record"),
        ] {
            let error = InputTable::parse(text).unwrap_err();
            assert!(error.contains(says) && !error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn what_of_a_table_does_nothing_is_named_and_what_would_replace_the_task_is_refused() {
        let tokenizer = crate::model::tokenizer::tests::word_level(["Al", "Bo", "met"]);
        let pair = Pair::new([0, 2, 1], [1, 2, 0]).role("S", [0]);
        let task = Task::new("t", &tokenizer, crate::metric::Metric::Kl, [pair]).unwrap();
        let table = InputTable::parse("example,colour,n\n0,red,2\n7,red,2\n9,red,1\n").unwrap();
        let idle = table.idle(&task, Some(&BTreeSet::from(["n", "S"])));
        assert!(
            idle[0].contains("2 pairs") && idle[0].contains("pair 7"),
            "{idle:?}"
        );
        assert!(idle[1].ends_with(": `colour`"), "{idle:?}");
        assert_eq!(table.idle(&task, None).len(), 1);
        for name in ["S", "S.pos"] {
            let table = InputTable::parse(&format!("example,{name}\n0,1\n")).unwrap();
            let error = prompts(&task, &[Side::Clean], Some(&table)).unwrap_err();
            assert!(
                error.to_string().contains(&format!("column `{name}`")),
                "{error}"
            );
        }
    }
}
