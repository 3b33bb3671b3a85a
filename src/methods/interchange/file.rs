//! A program as a TOML file, with where its variables may be looked for.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::expression::{Tables, Value};
use super::program::{Function, Program};
use crate::error::{Error, Result};
use crate::hooks::Kind;
use crate::methods::choice::Layers;
use crate::model::checkpoint::read_at_most;
use crate::text::{nearest, one_line};

/// A larger file is refused.
const FILE_LIMIT: u64 = 1 << 20;
/// More variables than anybody could read.
const MOST_VARIABLES: usize = 100;

/// The programs that are part of the library.
const SHIPPED: [(&str, &str); 1] = [(
    "ioi",
    include_str!("../../../examples/data/ioi_program.toml"),
)];

/// A program, and where each of its variables may be looked for.
#[derive(Debug, Clone)]
pub struct ProgramFile {
    pub program: Program,
    /// Of each variable; `None` for a helper that is not exchanged.
    pub places: Vec<Option<WrittenPlace>>,
}

/// Where a variable may be looked for, as far as the file says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WrittenPlace {
    pub kind: Option<Kind>,
    pub roles: Option<Vec<String>>,
    pub layers: Option<Layers>,
    /// Heads at `z`, neurons at `mlp.post`, dimensions of a stream.
    pub units: Option<Vec<usize>>,
    /// Directions that `candlewick subspace` saved, by the path as it is from here, and the method whose directions they are.
    pub subspace: Option<PathBuf>,
    pub method: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "about")]
    _about: String,
    output: String,
    #[serde(default)]
    variables: toml::Table,
    #[serde(default)]
    tables: BTreeMap<String, BTreeMap<String, Entry>>,
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "an entry of a table is a text, a number, or true or false"
)]
enum Entry {
    Text(String),
    Truth(bool),
    Number(f64),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a list of roles, or one of them")]
enum Roles {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenVariable {
    value: String,
    hook: Option<String>,
    at: Option<Roles>,
    layers: Option<String>,
    units: Option<String>,
    subspace: Option<PathBuf>,
    method: Option<String>,
}

impl ProgramFile {
    /// The names of the programs that ship.
    pub fn shipped() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }

    /// A program that ships, by its name, or one of a file.
    /// # Errors
    /// [`Error::Missing`], [`Error::Read`]; [`Error::Malformed`] with what is wrong, naming the variable.
    pub fn open(path: &str) -> Result<Self> {
        if let Some((name, text)) = SHIPPED.iter().find(|(name, _)| *name == path) {
            return ProgramFile::parse(text, Path::new(name));
        }
        let file = Path::new(path);
        if !file.exists() {
            return Err(Error::Missing {
                path: file.into(),
                hint: format!(
                    "give a TOML file, or a program that ships, such as {}",
                    nearest(path, ProgramFile::shipped())
                ),
            });
        }
        let bytes = read_at_most(file, FILE_LIMIT)?;
        let text = String::from_utf8(bytes).map_err(|_| malformed(file, "it is not UTF-8"))?;
        ProgramFile::parse(&text, file)
    }

    /// Reads a file's text; paths in it are taken from the folder that it lies in.
    /// # Errors
    /// [`Error::Malformed`] with what is wrong, naming the variable.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let text = text.trim_start_matches('\u{feff}');
        let written: Written =
            toml::from_str(text).map_err(|error| malformed(path, &one_line(error.message())))?;
        if written.variables.len() > MOST_VARIABLES {
            return Err(malformed(
                path,
                &format!(
                    "it has {} variables, at most {MOST_VARIABLES} are taken",
                    written.variables.len()
                ),
            ));
        }
        let function = |what: &str, text: &str| {
            Function::expression(text).map_err(|error| malformed(path, &format!("{what}: {error}")))
        };
        let mut program = Program::new(&written.name, function("`output`", &written.output)?);
        if program.name.is_empty() {
            let stem = path.file_stem().unwrap_or_default();
            program.name = stem.to_string_lossy().into_owned();
        }
        program.tables = written.tables.into_iter().map(table).collect::<Tables>();
        let mut places = Vec::new();
        for (name, variable) in written.variables {
            let what = format!("variable `{}`", one_line(&name));
            let (text, place) = match variable {
                toml::Value::String(text) => (text, None),
                table => {
                    let variable: WrittenVariable =
                        table.try_into().map_err(|error: toml::de::Error| {
                            let reason = one_line(error.message());
                            malformed(
                                path,
                                &format!(
                                    "{what}: {reason}; it is an expression, or a table with `value`"
                                ),
                            )
                        })?;
                    let text = variable.value.clone();
                    let place = variable
                        .place(path)
                        .map_err(|error| malformed(path, &format!("{what}: {error}")))?;
                    (text, Some(place))
                }
            };
            program.variables.push((name, function(&what, &text)?));
            places.push(place);
        }
        Ok(ProgramFile { program, places })
    }
}

impl WrittenVariable {
    fn place(self, path: &Path) -> Result<WrittenPlace> {
        let numbers = |text: Option<String>| text.map(|text| text.parse::<Layers>()).transpose();
        let folder = path.parent().unwrap_or(Path::new(""));
        Ok(WrittenPlace {
            kind: self.hook.map(|hook| hook.parse()).transpose()?,
            roles: self.at.map(|roles| match roles {
                Roles::One(role) => vec![role],
                Roles::Several(roles) => roles,
            }),
            layers: numbers(self.layers)?,
            units: numbers(self.units)?.map(|Layers(units)| units),
            subspace: self.subspace.map(|file| folder.join(file)),
            method: self.method,
        })
    }
}

fn table((name, entries): (String, BTreeMap<String, Entry>)) -> (String, BTreeMap<String, Value>) {
    let value = |(key, entry)| {
        let value = match entry {
            Entry::Text(text) => Value::Text(text),
            Entry::Truth(truth) => Value::Truth(truth),
            Entry::Number(number) => Value::Number(number),
        };
        (key, value)
    };
    (name, entries.into_iter().map(value).collect())
}

fn malformed(path: &Path, reason: &str) -> Error {
    Error::Malformed {
        path: path.into(),
        format: "program",
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<ProgramFile> {
        ProgramFile::parse(text, Path::new("folder/x.toml"))
    }

    #[test]
    fn a_file_says_what_variables_are_and_where_they_may_be() {
        let file = parsed(
            "output = 'if b then town[a] else a'\n[variables]\na = 'IO'\n[variables.b]\nvalue = 'S2 == S1'\nat = 'S2'\nhook = 'z'\n\
             units = '0-1,3'\nsubspace = 'd.safetensors'\n[tables.town]\nMary = 'Rome'\n",
        )
        .unwrap();
        assert_eq!(
            (file.program.name.as_str(), file.program.variables.len()),
            ("x", 2)
        );
        assert_eq!(file.places[0], None);
        let place = file.places[1].clone().unwrap();
        assert_eq!(
            (place.kind, place.units),
            (Some(Kind::Z), Some(vec![0, 1, 3]))
        );
        assert_eq!(place.subspace, Some("folder/d.safetensors".into()));
        assert_eq!(file.program.tables["town"]["Mary"], "Rome".into());
        for name in ProgramFile::shipped() {
            ProgramFile::open(name).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said_in_one_line() {
        for (text, says) in [
            ("", "missing field `output`"),
            ("output = 'IO'\nx = 1", "unknown field `x`"),
            ("output = '('", "`output`: "),
            ("output = 'IO'\n[variables]\na = 1", "variable `a`: "),
            ("output = 'IO'\n[variables]\na = '('", "variable `a`: "),
            (
                "output = 'IO'\n[variables.a]\nvalue = 'IO'\nhook = 'nose'",
                "variable `a`: ",
            ),
            (
                "output = 'IO'\n[variables.a]\nvalue = 'IO'\nlayers = 'x'",
                "variable `a`: ",
            ),
            (
                "output = 'IO'\n[variables.a]\nhook = 'z'",
                "missing field `value`",
            ),
            ("output = 'IO'\n[tables.t]\na = [1]", "an entry of a table"),
        ] {
            let error = parsed(text).unwrap_err().to_string();
            assert!(
                error.contains(says) && !error.contains('\n'),
                "{text}: {error}"
            );
        }
    }
}
