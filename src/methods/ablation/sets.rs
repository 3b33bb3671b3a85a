//! The sets of sites that an ablation patches together: sets of nodes, pairs of heads, attention that is knocked out.

use std::collections::BTreeSet;

use super::config::{AblationConfig, Knockout};
use crate::hooks::{Hook, Kind, Node, Site};
use crate::methods::activation_patching::{PatchConfig, SiteSet};
use crate::scores::Cell;
use crate::spec::{Mlp, ModelSpec};

impl AblationConfig {
    /// The patching that this ablation is.
    pub(super) fn patching(&self, spec: &ModelSpec) -> PatchConfig {
        let mut sets: Vec<SiteSet> = Vec::new();
        for set in &self.sets {
            let cell = Cell {
                component: SET.into(),
                src: Some(set.name.clone()),
                ..Cell::default()
            };
            sets.push(self.set(cell, set.nodes.iter().copied()));
        }
        for (i, &one) in self.pairs.iter().enumerate() {
            let single = self.single(one);
            // A set of this head alone is the same row.
            if !sets.iter().any(|set| set.cell == single) {
                sets.push(self.set(single, [one]));
            }
            for &other in &self.pairs[i + 1..] {
                sets.push(self.set(pair(one, other), [one, other]));
            }
        }
        for knockout in &self.knockouts {
            sets.extend(self.knocked_out(knockout, spec));
        }
        PatchConfig {
            sets,
            ..self.patch.clone()
        }
    }

    /// One head of a pair, ablated alone: a set of one, told from the cells of sweeps by its component.
    pub(super) fn single(&self, node: Node) -> Cell {
        Cell {
            component: SET.into(),
            src: Some(node.to_string()),
            ..Cell::default()
        }
    }

    fn set(&self, cell: Cell, nodes: impl IntoIterator<Item = Node>) -> SiteSet {
        let nodes: BTreeSet<Node> = nodes.into_iter().collect();
        let site = |node| Site {
            positions: self.positions.clone(),
            ..site_of(node)
        };
        let sites = Site::joined(nodes.into_iter().map(site));
        SiteSet { cell, sites }
    }

    /// One set for each layer, or for each head of each layer; the layers of a window around it go together.
    fn knocked_out(&self, knockout: &Knockout, spec: &ModelSpec) -> Vec<SiteSet> {
        let layers = (0..spec.n_layers).filter(|&layer| self.patch.layers.has(layer));
        let label = knockout.label();
        let mut sets = Vec::new();
        for layer in layers {
            let heads: Vec<usize> = (0..spec.n_heads)
                .filter(|&head| self.patch.heads.has(layer, head))
                .collect();
            if heads.is_empty() {
                continue;
            }
            let groups: Vec<(Option<usize>, Vec<usize>)> = if self.whole_layers {
                vec![(None, heads)]
            } else {
                let alone = heads.into_iter().map(|head| (Some(head), vec![head]));
                alone.collect()
            };
            let window = spec.window(layer, self.patch.window);
            for (head, taken) in &groups {
                let site = |layer: usize| Site {
                    positions: knockout.queries.clone(),
                    heads: Some(taken.clone()),
                    keys: knockout.keys.clone(),
                    ..Site::all(Hook::at(Kind::AttnScores, layer))
                };
                let cell = Cell {
                    component: Kind::AttnScores.name().into(),
                    layer: Some(layer as u32),
                    head: head.map(|head| head as u32),
                    role: Some(label.clone()),
                    ..Cell::default()
                };
                sets.push(SiteSet {
                    cell,
                    sites: window.clone().map(site).collect(),
                });
            }
        }
        sets
    }
}

/// Names of rows in the `component` column.
const SET: &str = "set";
pub(super) const PAIR: &str = "pair";

pub(super) fn pair(one: Node, other: Node) -> Cell {
    Cell {
        component: PAIR.into(),
        src: Some(one.to_string()),
        dst: Some(other.to_string()),
        ..Cell::default()
    }
}

/// The site that holds what a node writes. A head is its `z`.
pub(in crate::methods) fn site_of(node: Node) -> Site {
    match node {
        Node::Input => Site::all(Hook::global(Kind::Embed)),
        Node::Head { layer, head } => Site::all(Hook::at(Kind::Z, layer)).heads([head]),
        Node::Mlp(layer) => Site::all(Hook::at(Kind::MlpOut, layer)),
        // Checked before: it writes nothing.
        Node::Logits => Site::all(Hook::global(Kind::Embed)),
    }
}

/// What its row is called in a table of heads and MLPs.
pub(in crate::methods) fn cell_of(node: Node) -> Cell {
    match node {
        Node::Head { layer, head } => Cell {
            head: Some(head as u32),
            ..Cell::in_layer(Kind::Z.name(), layer)
        },
        Node::Mlp(layer) => Cell::in_layer(Kind::MlpOut.name(), layer),
        Node::Input | Node::Logits => Cell::default(),
    }
}

/// Every head, and every MLP where a model has any, layer by layer.
pub(in crate::methods) fn heads_and_mlps(spec: &ModelSpec) -> impl Iterator<Item = Node> {
    let has_mlp = spec.mlp != Mlp::None;
    (0..spec.n_layers).flat_map(move |layer| {
        let heads = (0..spec.n_heads).map(move |head| Node::Head { layer, head });
        heads.chain(has_mlp.then_some(Node::Mlp(layer)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_of_a_layer_are_one_site() {
        let nodes = ["a1.h3", "m0", "a1.h0", "a0.h2"].map(|text| text.parse().expect(text));
        let set = AblationConfig::new(PatchConfig::new(Vec::new())).set(Cell::default(), nodes);
        let sites: Vec<String> = set.sites.iter().map(Site::to_string).collect();
        assert_eq!(
            sites,
            [
                "blocks.0.attn.hook_z[head=2]",
                "blocks.0.hook_mlp_out",
                "blocks.1.attn.hook_z[head=0,3]",
            ]
        );
    }
}
