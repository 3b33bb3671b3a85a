//! What is exchanged, and where, as a value.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

use super::inputs::{InputTable, Side};
use super::program::Program;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind};
use crate::methods::choice::{Layers, check_range};
use crate::methods::subspace::{Subspace, check_kind, check_role};
use crate::methods::taken::TakenModel;
use crate::model::checkpoint::hex;
use crate::spec::ModelSpec;
use crate::task::{END, Task};

/// More exchanges than anybody would wait for.
const MOST_DRAWS: usize = 10_000;

/// Which part of an activation a variable may be.
#[derive(Debug, Clone, PartialEq)]
pub enum AlignedPart {
    Whole,
    /// Heads at `z`, neurons at `mlp.post`, dimensions elsewhere.
    Units(Vec<usize>),
    /// The subspace of each place, by `HOOK@ROLE`; only these places are looked at.
    Subspaces(BTreeMap<String, Subspace>),
}

/// Where a variable may be.
#[derive(Debug, Clone, PartialEq)]
pub struct Alignment {
    pub kind: Kind,
    pub layers: Layers,
    /// The last token of each of these roles, each by itself.
    pub roles: Vec<String>,
    pub part: AlignedPart,
}

impl Alignment {
    /// The whole stream after each layer, where the answer is read.
    pub fn at(roles: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Alignment {
            kind: Kind::ResidPost,
            layers: Layers::default(),
            roles: roles.into_iter().map(Into::into).collect(),
            part: AlignedPart::Whole,
        }
    }
}

impl Default for Alignment {
    fn default() -> Self {
        Alignment::at([END])
    }
}

/// Of which prompts something is exchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Draws {
    /// So many for each variable: as many whose exchange changes what the program says as others, and of each as many for one output as
    /// for another, where there are enough.
    Balanced(usize),
    /// A base, and a source for each variable that is exchanged together (of one variable, one).
    Given(Vec<(PromptOf, Vec<PromptOf>)>),
}

/// A prompt: the place of its pair in the task, and which of the two.
pub type PromptOf = (usize, Side);

/// How an answer is read from the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// The likeliest of all that the program says.
    #[default]
    Outputs,
    /// The likeliest token of the vocabulary.
    Vocabulary,
}

/// A program, and where its variables may be in the model.
#[derive(Debug, Clone)]
pub struct InterchangeConfig {
    pub program: Arc<Program>,
    /// Of each variable of the program; `None` for one that is not exchanged.
    pub alignments: Vec<Option<Alignment>>,
    /// Also all variables at once, each from a source of its own.
    pub together: bool,
    /// Prompts that are bases and sources.
    pub sides: Vec<Side>,
    /// Columns besides the words of roles.
    pub inputs: Option<InputTable>,
    pub draws: Draws,
    pub decode: Decode,
    /// The models that directions which are exchanged were found in, where their files say so.
    pub directions_of: Vec<TakenModel>,
    /// Of the draws and of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl InterchangeConfig {
    /// All variables of a program, each at one alignment.
    pub fn new(program: Program, alignment: Alignment) -> Self {
        InterchangeConfig {
            alignments: vec![Some(alignment); program.variables.len()],
            program: Arc::new(program),
            together: false,
            sides: vec![Side::Clean, Side::Corrupted],
            inputs: None,
            draws: Draws::Balanced(100),
            decode: Decode::default(),
            directions_of: Vec::new(),
            seed: None,
        }
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    /// The variables that are exchanged, with their names and alignments.
    pub(super) fn aligned(&self) -> impl Iterator<Item = (usize, &str, &Alignment)> {
        let all = self.program.variables.iter().zip(&self.alignments);
        all.enumerate().filter_map(|(at, ((name, _), alignment))| {
            Some((at, name.as_str(), alignment.as_ref()?))
        })
    }

    pub(super) fn settings(&self) -> Json {
        let place = |(_, name, of): (usize, &str, &Alignment)| {
            let part = match &of.part {
                AlignedPart::Whole => json!("whole"),
                AlignedPart::Units(units) => json!(units),
                AlignedPart::Subspaces(all) => {
                    json!({"places": all.keys().collect::<Vec<_>>(), "directions": hash_of(all)})
                }
            };
            json!({"variable": name, "kind": of.kind.name(), "layers": of.layers, "roles": of.roles, "part": part})
        };
        json!({
            "program": self.program.settings(),
            "alignments": self.aligned().map(place).collect::<Vec<_>>(),
            "together": self.together,
            "sides": self.sides,
            "inputs": self.inputs.as_ref().map(hash_of),
            "draws": self.draws,
            "decode": self.decode,
            "directions_of": self.directions_of,
        })
    }

    /// Refuses what the model or the task does not have.
    /// # Errors
    /// [`Error::Invalid`], [`Error::BadEdit`], [`Error::OutOfRange`], [`Error::UnknownRole`], naming the variable where it is one's own.
    pub(super) fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        if self.alignments.len() != self.program.variables.len() {
            return Err(Error::invalid(format!(
                "program `{}` has {} variables, and there are {} alignments; give one for each, or `None`",
                self.program.name,
                self.program.variables.len(),
                self.alignments.len()
            )));
        }
        let n = self.aligned().count();
        if n == 0 {
            return Err(Error::invalid(format!(
                "no variable of program `{}` is exchanged; write one as a table with `value`, or name some (`InterchangeConfig::alignments`)",
                self.program.name
            )));
        }
        if self.together && n < 2 {
            return Err(Error::invalid(
                "variables are exchanged together (`InterchangeConfig::together`) where there are two or more",
            ));
        }
        if self.sides.is_empty() {
            return Err(Error::invalid(
                "no prompts are bases and sources (`InterchangeConfig::sides`)",
            ));
        }
        if let Draws::Balanced(n) = self.draws
            && !(2..=MOST_DRAWS).contains(&n)
        {
            return Err(Error::invalid(format!(
                "{n} exchanges of each variable; take from 2 to {MOST_DRAWS} (`InterchangeConfig::draws`)"
            )));
        }
        for (_, name, alignment) in self.aligned() {
            check_alignment(name, alignment, spec, task)?;
        }
        Ok(())
    }
}

fn check_alignment(name: &str, of: &Alignment, spec: &ModelSpec, task: &Task) -> Result<()> {
    check_kind(of.kind)?;
    of.layers.check(spec)?;
    let layers = (0..spec.n_layers).filter(|&layer| of.layers.has(layer));
    let hooks: Vec<Hook> = layers.map(|layer| Hook::at(of.kind, layer)).collect();
    hooks.iter().try_for_each(|hook| hook.check(spec))?;
    if of.roles.is_empty() {
        return Err(Error::invalid(format!(
            "variable `{name}` is at no position; name roles (`Alignment::roles`)"
        )));
    }
    let mut known = BTreeSet::new();
    if let Some(twice) = of.roles.iter().find(|role| !known.insert(*role)) {
        return Err(Error::invalid(format!("the role `{twice}` is named twice")));
    }
    (of.roles.iter()).try_for_each(|role| check_role(task, role))?;
    match &of.part {
        AlignedPart::Whole => Ok(()),
        AlignedPart::Units(units) => {
            let mut known = BTreeSet::new();
            if let Some(twice) = units.iter().find(|unit| !known.insert(**unit)) {
                return Err(Error::invalid(format!(
                    "variable `{name}`: unit {twice} is named twice"
                )));
            }
            let (n, what) = units_of(hooks[0], spec);
            check_range(what, units, n, &format!("`{}`", of.kind.short()))
        }
        AlignedPart::Subspaces(all) => {
            let width = hooks[0].width(spec);
            let wide = all.iter().find_map(|(place, space)| {
                let found = space.directions()?.first().map_or(width, Vec::len);
                (found != width).then_some((place, found))
            });
            if let Some((place, found)) = wide {
                return Err(Error::invalid(format!(
                    "variable `{name}`: the directions of `{place}` have {found} dimensions and the hook has {width}; are they another \
                     model's?"
                )));
            }
            let has = |hook: &Hook| {
                let mut roles = of.roles.iter();
                roles.any(|role| all.contains_key(&format!("{hook}@{role}")))
            };
            if !hooks.iter().any(has) {
                let there: Vec<&str> = all.keys().map(String::as_str).collect();
                return Err(Error::invalid(format!(
                    "variable `{name}`: none of its places has a subspace; there are {}",
                    there.join(", ")
                )));
            }
            Ok(())
        }
    }
}

/// What tells a value from another one.
fn hash_of(value: &impl std::fmt::Debug) -> String {
    hex(&Sha256::digest(format!("{value:?}")))
}

/// How many units a hook has, and what they are.
pub(super) fn units_of(hook: Hook, spec: &ModelSpec) -> (usize, &'static str) {
    let what = match hook.kind {
        Kind::Z => "head",
        Kind::MlpPost => "neuron",
        _ => "dimension",
    };
    (hook.shape(spec, 1, 1)[2], what)
}
