//! Which cells a patching sweep has: a hook, and along which axes it is taken apart.
//!
//! Written `HOOK` or `HOOK:AXES`: `resid_pre` (layer x position), `z` (layer x head), `z:pos` (layer x position x head),
//! `pattern:query`, `pattern:cell`, `mlp.post` (layer x neuron), `resid_pre:role`, `attn_out:all`; and the bundles of
//! TransformerLens, `block_every` (resid_pre, attn_out, mlp_out) and `head_all` (z, q, k, v, pattern).

use std::fmt;

use crate::error::{Error, Result};
use crate::hooks::{Axes, Edit, Hook, Kind, Op, Pos, Site};
use crate::model::ModelSpec;
use crate::scores::Cell;

/// How a hook's tensor is taken apart besides layer and head or neuron.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Along {
    /// All positions at once.
    All,
    /// Each position (of patterns: each query row).
    Pos,
    /// The positions of each role of the task.
    Role,
    /// Each query and key position of a pattern.
    Cell,
}

/// One sweep: a kind of hook and its axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sites {
    pub kind: Kind,
    pub along: Along,
}

/// Reads a comma-separated list of sweeps.
/// # Errors
/// [`Error::UnknownHook`], [`Error::HookAbsent`], [`Error::Parse`] for axes that a hook does not have.
pub fn parse_sites(text: &str, spec: &ModelSpec) -> Result<Vec<Sites>> {
    let mut sites: Vec<Sites> = Vec::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
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
            if let Some(reason) = kind.absent(spec) {
                return Err(Error::HookAbsent {
                    hook: kind.name().into(),
                    reason: reason.into(),
                });
            }
            let along = read_axes(part, axes, kind, spec)?;
            if !sites.contains(&Sites { kind, along }) {
                sites.push(Sites { kind, along });
            }
        }
    }
    match sites.is_empty() {
        true => Err(Error::Parse {
            what: "a list of sites",
            text: text.into(),
            reason: "name at least one, such as `resid_pre`".into(),
        }),
        false => Ok(sites),
    }
}

fn read_axes(part: &str, axes: Option<&str>, kind: Kind, spec: &ModelSpec) -> Result<Along> {
    let is_pattern = kind.axes(spec) == Axes::Pattern;
    match axes {
        None if matches!(kind.axes(spec), Axes::Stream | Axes::Scale) => Ok(Along::Pos),
        None | Some("all") => Ok(Along::All),
        Some("pos") => Ok(Along::Pos),
        Some("role") => Ok(Along::Role),
        Some("query") if is_pattern => Ok(Along::Pos),
        Some("cell") if is_pattern => Ok(Along::Cell),
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

/// The part of a task that cells are made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extent<'a> {
    /// Tokens of the longest prompt.
    pub length: usize,
    pub roles: &'a [String],
    /// Only these layers, if any are named.
    pub layers: &'a [usize],
    /// Only these heads, if any are named.
    pub heads: &'a [usize],
}

impl Sites {
    /// Every cell, in the order of the table: layer, then position or role, then head or neuron, then key.
    pub(crate) fn cells(&self, spec: &ModelSpec, extent: &Extent<'_>) -> Vec<Cell> {
        let (heads, neurons) = match self.kind.axes(spec) {
            Axes::Heads { heads, .. } => (heads, 0),
            Axes::Pattern => (spec.n_heads, 0),
            Axes::Neurons => (0, spec.d_mlp),
            Axes::Stream | Axes::Scale => (0, 0),
        };
        let layers: Vec<Option<u32>> = match self.kind.per_layer() {
            false => vec![None],
            true if extent.layers.is_empty() => (0..spec.n_layers as u32).map(Some).collect(),
            true => extent
                .layers
                .iter()
                .map(|&layer| Some(layer as u32))
                .collect(),
        };
        let chosen: Vec<Option<u32>> = match heads {
            0 => vec![None],
            _ if extent.heads.is_empty() => (0..heads as u32).map(Some).collect(),
            _ => extent
                .heads
                .iter()
                .filter(|&&head| head < heads)
                .map(|&head| Some(head as u32))
                .collect(),
        };
        let neurons: Vec<Option<u32>> = match neurons {
            0 => vec![None],
            n => (0..n as u32).map(Some).collect(),
        };
        let mut cells = Vec::new();
        for &layer in &layers {
            for (pos, role) in self.places(extent) {
                for &head in &chosen {
                    for &neuron in &neurons {
                        let cell = Cell {
                            component: self.kind.name().to_string(),
                            layer,
                            head,
                            pos: pos.map(|pos| pos as i32),
                            role: role.clone(),
                            neuron,
                            ..Cell::default()
                        };
                        match (self.along, pos) {
                            // A causal pattern has keys up to its query.
                            (Along::Cell, Some(query)) => {
                                let key = |key: usize| Cell {
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

    fn places(&self, extent: &Extent<'_>) -> Vec<(Option<usize>, Option<String>)> {
        match self.along {
            Along::All => vec![(None, None)],
            Along::Pos | Along::Cell => (0..extent.length).map(|pos| (Some(pos), None)).collect(),
            Along::Role => extent
                .roles
                .iter()
                .map(|role| (None, Some(role.clone())))
                .collect(),
        }
    }

    /// The edits of a cell: `op` at its site, in the layers `l - (w-1)/2 ..= l + w/2` of its window.
    pub(crate) fn edits(&self, cell: &Cell, op: &Op, window: usize, n_layers: usize) -> Vec<Edit> {
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
            Some(layer) => {
                let layer = layer as usize;
                let first = layer.saturating_sub(window.saturating_sub(1) / 2);
                let last = (layer + window / 2).min(n_layers - 1);
                (first..=last)
                    .map(|layer| site(Hook::at(self.kind, layer)))
                    .collect()
            }
        }
    }
}

/// Whether a prompt of `length` tokens has this cell.
pub(crate) fn fits(cell: &Cell, length: usize, has_role: impl Fn(&str) -> bool) -> bool {
    cell.pos.is_none_or(|pos| (pos as usize) < length) && cell.role.as_deref().is_none_or(has_role)
}

impl fmt::Display for Sites {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let along = match self.along {
            Along::All => "all",
            Along::Pos => "pos",
            Along::Role => "role",
            Along::Cell => "cell",
        };
        write!(f, "{}:{along}", self.kind.short())
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

    #[test]
    fn sweeps_have_the_axes_that_people_expect() {
        let spec = spec();
        let roles = ["S2".to_string(), "END".to_string()];
        let extent = Extent {
            length: 5,
            roles: &roles,
            layers: &[],
            heads: &[],
        };
        let count = |text: &str| -> Vec<usize> {
            let sites = parse_sites(text, &spec).expect(text);
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
            [layers * neurons, layers * 2]
        );
        assert_eq!(count("embed, embed"), [5]);
    }

    #[test]
    fn a_window_is_centred_and_clipped() {
        let spec = spec();
        let sites = parse_sites("attn_out:all", &spec).expect("a hook")[0];
        let layers = |centre: u32, window: usize| -> Vec<usize> {
            let cell = Cell {
                layer: Some(centre),
                ..Cell::default()
            };
            let edits = sites.edits(&cell, &Op::Zero, window, 10);
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
        let spec = spec();
        for text in ["", "zz", "z:cell", "pos_embed", "resid_pre:foo"] {
            assert!(parse_sites(text, &spec).is_err(), "{text}");
        }
    }
}
