//! Which parts of a model are components, and how they are removed.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Node, Site};
use crate::methods::ablation::{cell_of, heads_and_mlps, site_of};
use crate::methods::activation_patching::{PatchConfig, SiteSet};
use crate::methods::attribution::NodeAttributionConfig;
use crate::methods::choice::Layers;
use crate::methods::measure::check;
use crate::methods::removal::Removal;
use crate::methods::sites::parse_sites;
use crate::metric::Metric;
use crate::scores::Cell;
use crate::spec::ModelSpec;
use crate::task::Task;

/// Masks a component, where nobody says how many.
const MASKS: usize = 8;
/// More masks than anybody would wait for.
const MOST_MASKS: usize = 100_000;
/// Numbers of all masks together: a fit holds them some three times over, in eight bytes each.
const MOST_NUMBERS: usize = 1 << 26;

/// The parts that are there or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ComponentKind {
    /// Attention heads, at `attn.hook_z`.
    #[default]
    Heads,
    /// MLPs, at `hook_mlp_out`.
    Mlps,
    /// Heads and MLPs.
    Both,
    /// Neurons, at `mlp.hook_post`.
    Neurons,
}

impl ComponentKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            ComponentKind::Heads => "heads",
            ComponentKind::Mlps => "MLPs",
            ComponentKind::Both => "heads and MLPs",
            ComponentKind::Neurons => "neurons",
        }
    }
}

/// Which components are judged, by how many masks.
#[derive(Debug, Clone, PartialEq)]
pub struct ComponentsConfig {
    pub kind: ComponentKind,
    /// Only of these layers, if any are named; all others are always there.
    pub layers: Layers,
    /// What a component is that is not there: its value in the pair's corrupted run, zero, or the mean over the corrupted prompts.
    pub removal: Removal,
    /// The share of components that a mask keeps, in the mean.
    pub keep: f64,
    /// Masks that the weights are fitted to [default: 8 a component].
    pub masks: Option<usize>,
    /// Shares of the components that fresh masks remove.
    pub rates: Vec<f64>,
    /// Fresh masks at each of these shares.
    pub fresh: usize,
    /// [default: the task's]
    pub metric: Option<Metric>,
    /// Of masks and bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl ComponentsConfig {
    /// Removal by zeros, a tenth at a time; fresh masks at the shares of the paper.
    pub fn new(kind: ComponentKind) -> Self {
        ComponentsConfig {
            kind,
            layers: Layers::default(),
            removal: Removal::Zero,
            keep: 0.9,
            masks: None,
            rates: vec![0.01, 0.025, 0.05, 0.1],
            fresh: 50,
            metric: None,
            seed: None,
        }
    }

    pub(super) fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    pub(super) fn seed(&self, task: &Task) -> u64 {
        self.seed.unwrap_or(task.seed)
    }

    pub(super) fn n_masks(&self, components: usize) -> usize {
        self.masks.unwrap_or(MASKS * components)
    }

    /// The components, each as it is named and where it is removed.
    pub(super) fn components(&self, spec: &ModelSpec) -> Vec<(Cell, Site)> {
        let takes = |node: &Node| match node {
            Node::Head { .. } => matches!(self.kind, ComponentKind::Heads | ComponentKind::Both),
            _ => self.kind != ComponentKind::Heads,
        };
        let nodes = heads_and_mlps(spec).filter(takes);
        let nodes = nodes.filter(|node| node.layer().is_some_and(|layer| self.layers.has(layer)));
        let parts = |node: Node| -> Vec<(Cell, Site)> {
            let Node::Mlp(layer) = node else {
                return vec![(cell_of(node), site_of(node))];
            };
            if self.kind != ComponentKind::Neurons {
                return vec![(cell_of(node), site_of(node))];
            }
            let hook = Hook::at(Kind::MlpPost, layer);
            let neuron = |neuron: usize| {
                let cell = Cell {
                    neuron: Some(neuron as u32),
                    ..Cell::in_layer(hook.kind.name(), layer)
                };
                (cell, Site::all(hook).neurons([neuron]))
            };
            (0..spec.d_mlp).map(neuron).collect()
        };
        nodes.flat_map(parts).collect()
    }

    /// How many components each rate removes, and the rate; each number once.
    pub(super) fn removed(&self, components: usize) -> Vec<(usize, f64)> {
        let mut counts: BTreeMap<usize, f64> = BTreeMap::new();
        for &rate in &self.rates {
            let removed = (rate * components as f64).round() as usize;
            counts.insert(removed.clamp(1, components - 1), rate);
        }
        counts.into_iter().collect()
    }

    /// The patching whose runs and values removals are made of.
    pub(super) fn patching(&self, spec: &ModelSpec) -> PatchConfig {
        let set = |(cell, site)| SiteSet {
            cell,
            sites: vec![site],
        };
        let sets = self.components(spec).into_iter().map(set).collect();
        self.removal.patching(sets, self.metric, self.seed)
    }

    /// The estimates of the same removals, where there are any.
    pub(super) fn estimates(&self, spec: &ModelSpec, task: &Task) -> Result<NodeAttributionConfig> {
        let sites = match self.kind {
            ComponentKind::Heads => "z:all",
            ComponentKind::Mlps => "mlp_out:all",
            ComponentKind::Both => "z:all,mlp_out:all",
            ComponentKind::Neurons => {
                return Err(Error::invalid("it is an estimate of heads and MLPs"));
            }
        };
        let config = NodeAttributionConfig::atp(PatchConfig {
            sites: parse_sites(sites)?,
            layers: self.layers.clone(),
            sets: Vec::new(),
            ..self.patching(spec)
        });
        check(&config, spec, task)?;
        Ok(config)
    }

    /// Refuses numbers that make no masks.
    /// # Errors
    /// [`Error::Invalid`] with what to take; [`Error::OutOfRange`] for a layer.
    pub(super) fn check_numbers(&self, spec: &ModelSpec) -> Result<()> {
        self.layers.check(spec)?;
        if self.removal.edits_the_prompt() {
            return Err(Error::invalid(format!(
                "`{}` is for pieces of the prompt, and components are none; remove them by `pair`, `zero` or `mean`",
                self.removal
            )));
        }
        let n = self.components(spec).len();
        if n < 2 {
            return Err(Error::invalid(format!(
                "there are {n} {} here, and masks are made of two or more; name more layers, or other components (`ComponentsConfig::kind`)",
                self.kind.name()
            )));
        }
        let is_share = |share: f64| share > 0.0 && share < 1.0;
        if !is_share(self.keep) {
            return Err(Error::invalid(format!(
                "a mask keeps a share between 0 and 1 of the components, not {}",
                self.keep
            )));
        }
        if let Some(rate) = self.rates.iter().find(|rate| !is_share(**rate)) {
            return Err(Error::invalid(format!(
                "fresh masks remove a share between 0 and 1 of the components, not {rate}"
            )));
        }
        let masks = self.n_masks(n);
        if !(20..=MOST_MASKS).contains(&masks) {
            return Err(Error::invalid(format!(
                "{masks} masks of {n} {}; take from 20 to {MOST_MASKS} (`ComponentsConfig::masks`), or fewer layers",
                self.kind.name()
            )));
        }
        let all = (masks.saturating_add(n))
            .saturating_add(self.fresh.saturating_mul(self.removed(n).len()));
        if all.saturating_mul(n) > MOST_NUMBERS {
            return Err(Error::invalid(format!(
                "{all} masks of {n} {} are more than memory is taken for; take fewer (`ComponentsConfig::masks`), or fewer layers",
                self.kind.name()
            )));
        }
        if self.fresh < 3 {
            return Err(Error::invalid(
                "a correlation takes 3 fresh masks or more (`ComponentsConfig::fresh`)",
            ));
        }
        Ok(())
    }
}
