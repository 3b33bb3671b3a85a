//! Which cells a patching sweep has: a hook, and along which axes it is taken apart.
//!
//! Written `HOOK` or `HOOK:AXES`: `resid_pre` (layer x position), `z` (layer x head), `z:pos` (layer x position x head),
//! `pattern:query`, `pattern:cell`, `mlp.post` (layer x neuron), `resid_pre:role`, `attn_out:all`; and the bundles of
//! TransformerLens, `block_every` (resid_pre, attn_out, mlp_out) and `head_all` (z, q, k, v, pattern).
//!
//! A position means one thing only among prompts of one template and one length. Where a task has several, a hook that is taken
//! apart by position is taken apart by role instead, if the task has roles; and `:pos` has a row for each template.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use super::choice::{Heads, Layers};
use crate::error::{Error, Result};
use crate::hooks::{Axes, Edit, Hook, Kind, Op, Pos, Site};
use crate::scores::Cell;
use crate::spec::ModelSpec;
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

/// One sweep: a kind of hook and its axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sites {
    pub kind: Kind,
    /// `None`: by position for the residual stream and what is like it (by role where positions do not align), else all at once.
    pub along: Option<Along>,
}

/// Reads a comma-separated list of sweeps. Whether a model has the hooks is checked with the model.
/// # Errors
/// [`Error::UnknownHook`]; [`Error::Parse`] for axes that a hook does not have.
pub fn parse_sites(text: &str) -> Result<Vec<Sites>> {
    let mut sites: Vec<Sites> = Vec::new();
    let parts = text.split(',').map(str::trim);
    for part in parts.filter(|part| !part.is_empty()) {
        let (name, axes) = match part.split_once(':') {
            Some((name, axes)) => (name, Some(axes)),
            None => (part, None),
        };
        let kinds = match name {
            "block_every" => vec![Kind::ResidPre, Kind::AttnOut, Kind::MlpOut],
            "head_all" => vec![Kind::Z, Kind::Q, Kind::K, Kind::V, Kind::Pattern],
            _ => vec![name.parse::<Kind>()?],
        };
        for kind in kinds {
            let along = read_axes(part, axes, kind)?;
            if !sites.contains(&Sites { kind, along }) {
                sites.push(Sites { kind, along });
            }
        }
    }
    if sites.is_empty() {
        return Err(Error::Parse {
            what: "a list of sites",
            text: text.into(),
            reason: "name at least one, such as `resid_pre`".into(),
        });
    }
    Ok(sites)
}

impl FromStr for Sites {
    type Err = Error;

    /// One sweep; a bundle is several, which [`parse_sites`] reads.
    fn from_str(text: &str) -> Result<Self> {
        match parse_sites(text)?[..] {
            [one] => Ok(one),
            _ => Err(Error::Parse {
                what: "one sweep",
                text: text.into(),
                reason: "it names several; take `parse_sites`".into(),
            }),
        }
    }
}

fn read_axes(part: &str, axes: Option<&str>, kind: Kind) -> Result<Option<Along>> {
    let is_pattern = matches!(kind, Kind::AttnScores | Kind::Pattern);
    match axes {
        None => Ok(None),
        Some("all") => Ok(Some(Along::All)),
        Some("pos") => Ok(Some(Along::Pos)),
        Some("role") => Ok(Some(Along::Role)),
        Some("query") if is_pattern => Ok(Some(Along::Pos)),
        Some("cell") if is_pattern => Ok(Some(Along::Cell)),
        Some(other) => {
            let known = if is_pattern {
                "all, pos (or query), cell, role"
            } else {
                "all, pos, role"
            };
            let reason = format!("`{other}` is none of {known}");
            Err(Error::Parse {
                what: "a sweep",
                text: part.into(),
                reason,
            })
        }
    }
}

/// The prompts of one template and one length, whose positions align.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    template: usize,
    length: usize,
}

/// The part of a task that cells are made for.
#[derive(Debug, Clone)]
pub(crate) struct Extent {
    /// Groups with their names in the `template` column; the only one needs none.
    groups: BTreeMap<Group, Option<String>>,
    pub roles: Vec<String>,
    /// Whether some prompt has a position of no role.
    has_other: bool,
    /// Only these layers, if any are named.
    layers: Layers,
    /// Only these heads, if any are named.
    heads: Heads,
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

impl Sites {
    /// How the hook is taken apart for this task.
    pub(crate) fn resolved(&self, extent: &Extent) -> Along {
        let is_stream = !matches!(
            self.kind,
            Kind::QInput
                | Kind::KInput
                | Kind::VInput
                | Kind::Result
                | Kind::Q
                | Kind::K
                | Kind::V
                | Kind::RotQ
                | Kind::RotK
                | Kind::Z
                | Kind::AttnScores
                | Kind::Pattern
                | Kind::MlpPre
                | Kind::MlpPreLinear
                | Kind::MlpPost
        );
        match self.along {
            Some(along) => along,
            None if !is_stream => Along::All,
            None if extent.groups() > 1 && !extent.roles.is_empty() => Along::Role,
            None => Along::Pos,
        }
    }

    /// Refuses what a model does not have.
    /// # Errors
    /// [`Error::HookAbsent`]; [`Error::OutOfRange`] for a head that the hook does not have.
    pub(crate) fn check(&self, spec: &ModelSpec, heads: &Heads) -> Result<()> {
        if let Some(reason) = self.kind.absent(spec) {
            return Err(Error::HookAbsent {
                hook: self.kind.name().into(),
                reason: reason.into(),
            });
        }
        let limit = self.n_heads(spec);
        match heads
            .0
            .iter()
            .find(|chosen| limit > 0 && chosen.head >= limit)
        {
            None => Ok(()),
            Some(chosen) => Err(Error::OutOfRange {
                hook: format!("`{}`", self.kind.short()),
                what: "head",
                value: chosen.head.to_string(),
                limit: format!("{limit} heads, 0 to {}", limit - 1),
            }),
        }
    }

    /// Heads of the hook; 0 where it has no such axis.
    pub(crate) fn n_heads(&self, spec: &ModelSpec) -> usize {
        match self.kind.axes(spec) {
            Axes::Heads { heads, .. } => heads,
            Axes::Pattern => spec.n_heads,
            Axes::Stream | Axes::Scale | Axes::Neurons => 0,
        }
    }

    /// Every cell, in the order of the table: layer, then position or role, then head or neuron, then key.
    pub(crate) fn cells(&self, spec: &ModelSpec, extent: &Extent) -> Vec<Cell> {
        let all = |n: usize| -> Vec<Option<u32>> {
            if n == 0 {
                return vec![None];
            }
            (0..n as u32).map(Some).collect()
        };
        let mut layers = all(if self.kind.per_layer() {
            spec.n_layers
        } else {
            0
        });
        layers.retain(|layer| layer.is_none_or(|layer| extent.layers.has(layer as usize)));
        let heads = all(self.n_heads(spec));
        let n_neurons = match self.kind.axes(spec) {
            Axes::Neurons => spec.d_mlp,
            _ => 0,
        };
        let neurons = all(n_neurons);
        let along = self.resolved(extent);
        let places = places(along, extent);
        let mut cells = Vec::new();
        for &layer in &layers {
            let is_chosen = |head: &&Option<u32>| {
                let of = |head: u32| extent.heads.has(layer.unwrap_or(0) as usize, head as usize);
                head.is_none_or(of)
            };
            for place in &places {
                for &head in heads.iter().filter(is_chosen) {
                    for &neuron in &neurons {
                        let cell = Cell {
                            component: self.kind.name().to_string(),
                            layer,
                            head,
                            neuron,
                            ..place.clone()
                        };
                        match (along, cell.pos) {
                            // A causal pattern has keys up to its query.
                            (Along::Cell, Some(query)) => {
                                let key = |key: i32| Cell {
                                    key: Some(key as u32),
                                    ..cell.clone()
                                };
                                cells.extend((0..=query).map(key));
                            }
                            _ => cells.push(cell),
                        }
                    }
                }
            }
        }
        cells
    }

    /// The edits of a cell: `op` at its site, in the layers of its window.
    pub(crate) fn edits(&self, cell: &Cell, op: &Op, window: usize, spec: &ModelSpec) -> Vec<Edit> {
        let site = |hook: Hook| {
            let mut site = Site::all(hook);
            if let Some(pos) = cell.pos {
                site = site.at(pos as usize);
            }
            if let Some(role) = &cell.role {
                site = site.at_positions([Pos::Role(role.clone())]);
            }
            if let Some(head) = cell.head {
                site = site.heads([head as usize]);
            }
            if let Some(key) = cell.key {
                site = site.keys([Pos::Index(key as usize)]);
            }
            if let Some(neuron) = cell.neuron {
                site = site.neurons([neuron as usize]);
            }
            Edit::new(site, op.clone())
        };
        match cell.layer {
            None => vec![site(Hook::global(self.kind))],
            Some(layer) => (spec.window(layer as usize, window))
                .map(|layer| site(Hook::at(self.kind, layer)))
                .collect(),
        }
    }
}

/// The places along a hook's positions, as cells without a hook.
fn places(along: Along, extent: &Extent) -> Vec<Cell> {
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

impl fmt::Display for Sites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind.short())?;
        f.write_str(match self.along {
            None => "",
            Some(Along::All) => ":all",
            Some(Along::Pos) => ":pos",
            Some(Along::Role) => ":role",
            Some(Along::Cell) => ":cell",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::families::from_config;

    fn spec() -> ModelSpec {
        let config = include_str!("../../models/embedded/config.json");
        from_config(config).expect("the embedded model").spec
    }

    fn extent(groups: &[(usize, usize)], roles: &[&str]) -> Extent {
        let named = |&(template, length): &(usize, usize)| {
            let name = (groups.len() > 1).then(|| template.to_string());
            (Group { template, length }, name)
        };
        Extent {
            groups: groups.iter().map(named).collect(),
            roles: roles.iter().map(|role| role.to_string()).collect(),
            has_other: !roles.is_empty(),
            layers: Layers::default(),
            heads: Heads::default(),
        }
    }

    #[test]
    fn sweeps_have_the_axes_that_people_expect() {
        let spec = spec();
        let extent = extent(&[(0, 5)], &["S2", "END"]);
        let count = |text: &str| -> Vec<usize> {
            let sites = parse_sites(text).expect(text);
            sites
                .iter()
                .map(|sites| sites.cells(&spec, &extent).len())
                .collect()
        };
        let (layers, heads, neurons) = (spec.n_layers, spec.n_heads, spec.d_mlp);
        assert_eq!(count("block_every"), [layers * 5; 3]);
        assert_eq!(count("head_all"), [layers * heads; 5]);
        assert_eq!(count("z:pos"), [layers * 5 * heads]);
        assert_eq!(count("pattern:query"), [layers * 5 * heads]);
        assert_eq!(
            count("pattern:cell"),
            [layers * heads * (1 + 2 + 3 + 4 + 5)]
        );
        assert_eq!(
            count("mlp.post,resid_pre:role"),
            [layers * neurons, layers * 3]
        );
        assert_eq!(count("embed, embed"), [5]);
    }

    #[test]
    fn positions_of_several_templates_are_rows_of_their_own() {
        let spec = spec();
        let several = extent(&[(0, 5), (1, 7)], &["END"]);
        let cells =
            |text: &str, extent: &Extent| parse_sites(text).expect(text)[0].cells(&spec, extent);
        let by_default = cells("resid_pre", &several);
        assert!(
            by_default
                .iter()
                .all(|cell| cell.role.is_some() && cell.pos.is_none())
        );
        let by_position = cells("resid_pre:pos", &several);
        assert_eq!(by_position.len(), spec.n_layers * (5 + 7));
        assert!(by_position.iter().all(|cell| cell.template.is_some()));
        // Without roles there is nothing else to go by.
        let without = cells("resid_pre", &extent(&[(0, 5), (1, 7)], &[]));
        assert_eq!(without, by_position);
    }

    #[test]
    fn a_window_is_centred_and_clipped() {
        let spec = ModelSpec {
            n_layers: 10,
            ..spec()
        };
        let sites = parse_sites("attn_out:all").expect("a hook")[0];
        let layers = |centre: u32, window: usize| -> Vec<usize> {
            let cell = Cell {
                layer: Some(centre),
                ..Cell::default()
            };
            let edits = sites.edits(&cell, &Op::Zero, window, &spec);
            edits
                .iter()
                .map(|edit| edit.site.hook.layer.expect("a layer"))
                .collect()
        };
        assert_eq!(layers(4, 1), [4]);
        assert_eq!(layers(4, 3), [3, 4, 5]);
        assert_eq!(layers(4, 4), [3, 4, 5, 6]);
        assert_eq!(layers(0, 5), [0, 1, 2]);
        assert_eq!(layers(9, 5), [7, 8, 9]);
    }

    #[test]
    fn what_is_no_sweep_is_said() {
        for text in ["", "zz", "z:cell", "resid_pre:foo"] {
            assert!(parse_sites(text).is_err(), "{text}");
        }
        // That a model has no such hook is known with the model.
        let absent: Sites = "pos_embed".parse().expect("a hook");
        assert!(absent.check(&spec(), &Heads::default()).is_err());
        assert!("head_all".parse::<Sites>().is_err());
    }
}
