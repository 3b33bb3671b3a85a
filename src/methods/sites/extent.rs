//! The part of a task that cells are made for: its groups of prompts that align, their positions and roles.

use std::collections::BTreeMap;

use crate::methods::choice::{Heads, Layers};
use crate::scores::Cell;
use crate::task::{Pair, Task};

/// How a hook's tensor is taken apart besides layer and head or neuron.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Along {
    /// All positions at once.
    All,
    /// Each position (of patterns: each query row).
    Pos,
    /// The positions of each role of the task, and those of no role together.
    Role,
    /// Each query and key position of a pattern.
    Cell,
}

/// The prompts of one template and one length, whose positions align.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Group {
    pub template: usize,
    pub length: usize,
}

/// The part of a task that cells are made for.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    /// Groups with their names in the `template` column; the only one needs none.
    pub(super) groups: BTreeMap<Group, Option<String>>,
    pub roles: Vec<String>,
    /// Whether some prompt has a position of no role.
    pub(super) has_other: bool,
    /// Only these layers, if any are named.
    pub(super) layers: Layers,
    /// Only these heads, if any are named.
    pub(super) heads: Heads,
}

/// The role of all positions that have none, together.
pub(crate) const OTHER: &str = "other";

fn group_of(pair: &Pair) -> Group {
    Group {
        template: pair.template,
        length: pair.clean.len(),
    }
}

/// The positions of each role, and under [`OTHER`] those of none.
pub(crate) fn roles_with_other(
    roles: &BTreeMap<String, Vec<usize>>,
    length: usize,
) -> BTreeMap<String, Vec<usize>> {
    let is_free = |pos: &usize| !roles.values().any(|at| at.contains(pos));
    let free: Vec<usize> = (0..length).filter(is_free).collect();
    let mut all = roles.clone();
    if !free.is_empty() {
        all.entry(OTHER.into()).or_insert(free);
    }
    all
}

impl Extent {
    pub fn new(task: &Task, layers: &Layers, heads: &Heads) -> Self {
        let mut lengths: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for pair in task.pairs() {
            let of = lengths.entry(pair.template).or_default();
            if !of.contains(&pair.clean.len()) {
                of.push(pair.clean.len());
            }
        }
        let is_one = lengths.len() == 1 && lengths.values().all(|of| of.len() == 1);
        let mut groups = BTreeMap::new();
        for (&template, of) in &lengths {
            for &length in of {
                let name = match of.len() {
                    _ if is_one => None,
                    1 => Some(template.to_string()),
                    _ => Some(format!("{template} ({length} tokens)")),
                };
                groups.insert(Group { template, length }, name);
            }
        }
        let has_other =
            |pair: &Pair| roles_with_other(&pair.roles, pair.clean.len()).contains_key(OTHER);
        Extent {
            groups,
            roles: task.all_roles(),
            has_other: task.pairs().iter().any(has_other),
            layers: layers.clone(),
            heads: heads.clone(),
        }
    }

    /// How many groups of prompts do not align with each other.
    pub fn groups(&self) -> usize {
        self.groups.len()
    }

    /// What stands in the `template` column of the rows of a pair.
    pub fn label(&self, pair: &Pair) -> Option<String> {
        self.groups.get(&group_of(pair)).cloned().flatten()
    }

    /// A cell of a component for each position, of each template where there are several.
    pub fn positions(&self, component: &str) -> Vec<Cell> {
        let with = |place: Cell| Cell {
            component: component.into(),
            ..place
        };
        places(Along::Pos, self).into_iter().map(with).collect()
    }

    /// The places along a hook's positions, as cells without a hook.
    pub fn places(&self, along: Along) -> Vec<Cell> {
        places(along, self)
    }

    /// Whether a prompt has this cell.
    pub fn has(&self, cell: &Cell, pair: &Pair) -> bool {
        let in_group = |pos: i32| {
            (pos as usize) < pair.clean.len()
                && self
                    .groups
                    .get(&group_of(pair))
                    .is_some_and(|name| *name == cell.template)
        };
        let has_role = |role: &str| match pair.roles.get(role) {
            Some(at) => !at.is_empty(),
            None => {
                role == OTHER && roles_with_other(&pair.roles, pair.clean.len()).contains_key(OTHER)
            }
        };
        cell.pos.is_none_or(in_group) && cell.role.as_deref().is_none_or(has_role)
    }
}

/// The places along a hook's positions, as cells without a hook.
pub(super) fn places(along: Along, extent: &Extent) -> Vec<Cell> {
    match along {
        Along::All => vec![Cell::default()],
        Along::Pos | Along::Cell => (extent.groups.iter())
            .flat_map(|(group, name)| {
                (0..group.length).map(move |pos| Cell {
                    pos: Some(pos as i32),
                    template: name.clone(),
                    ..Cell::default()
                })
            })
            .collect(),
        Along::Role => (extent.roles.iter().map(String::as_str))
            .chain(extent.has_other.then_some(OTHER))
            .map(|role| Cell {
                role: Some(role.to_string()),
                ..Cell::default()
            })
            .collect(),
    }
}
