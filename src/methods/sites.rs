//! Which cells a patching sweep has: a hook, and along which axes it is taken apart.
//!
//! Written `HOOK` or `HOOK:AXES`: `resid_pre` (layer x position), `z` (layer x head), `z:pos` (layer x position x head),
//! `pattern:query`, `pattern:cell`, `mlp.post` (layer x neuron), `resid_pre:role`, `attn_out:all`; and the bundles of
//! TransformerLens, `block_every` (resid_pre, attn_out, mlp_out) and `head_all` (z, q, k, v, pattern).
//!
//! A position means one thing only among prompts of one template and one length. Where a task has several, a hook that is taken
//! apart by position is taken apart by role instead, if the task has roles; and `:pos` has a row for each template.

mod extent;
#[cfg(test)]
mod tests;

use std::fmt;
use std::str::FromStr;

pub use extent::Along;
use extent::places;
pub(crate) use extent::{Extent, OTHER, roles_with_other};

use super::choice::Heads;
use crate::error::{Error, Result};
use crate::hooks::{Axes, Edit, Hook, Kind, Op, Pos, Site};
use crate::scores::Cell;
use crate::spec::ModelSpec;

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
        layers.retain(|layer| {
            layer.is_none_or(|layer| {
                let hook = Hook::at(self.kind, layer as usize);
                extent.layers.has(layer as usize) && hook.absent(spec).is_none()
            })
        });
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
                .map(|layer| Hook::at(self.kind, layer))
                .filter(|hook| hook.absent(spec).is_none())
                .map(site)
                .collect(),
        }
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
