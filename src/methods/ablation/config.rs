//! What to take out, and where.

use std::collections::BTreeSet;

use super::ranked_by::RankedBy;
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Node, Positions};
use crate::methods::activation_patching::PatchConfig;
use crate::scores::Direction;
use crate::spec::ModelSpec;
use crate::task::Task;

/// Nodes that are ablated together, under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeSet {
    pub name: String,
    pub nodes: Vec<Node>,
}

/// Attention that is knocked out: in these layers and heads the queries do not see the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Knockout {
    pub queries: Positions,
    pub keys: Positions,
}

impl Knockout {
    /// What stands in the `role` column.
    pub(super) fn label(&self) -> String {
        format!("{}->{}", self.queries, self.keys)
    }
}

/// What to take out besides the sweeps of [`PatchConfig::sites`], and where.
#[derive(Debug, Clone, PartialEq)]
pub struct AblationConfig {
    /// How: `source`, `direction: Ablate`, metric and so on; its `sites` are swept one by one.
    pub patch: PatchConfig,
    /// Sets that go together, a row each (`component` `set`, the name in `src`).
    pub sets: Vec<NodeSet>,
    /// Heads of which every pair goes together (`component` `pair`), with the interaction beside.
    pub pairs: Vec<Node>,
    /// Attention to knock out in each head of each layer, or in all heads of each window where `whole_layers` says so.
    pub knockouts: Vec<Knockout>,
    pub whole_layers: bool,
    /// Where sets and pairs are ablated.
    pub positions: Positions,
    /// What the sets were ranked by ([`super::Ranking::by`]), which the result says; `None` for sets of one's own.
    pub ranked_by: Option<RankedBy>,
}

impl AblationConfig {
    /// The sweeps of `patch`, made an ablation; no sets.
    pub fn new(patch: PatchConfig) -> Self {
        AblationConfig {
            patch: PatchConfig {
                direction: Direction::Ablate,
                ..patch
            },
            sets: Vec::new(),
            pairs: Vec::new(),
            knockouts: Vec::new(),
            whole_layers: false,
            positions: Positions::All,
            ranked_by: None,
        }
    }

    pub(super) fn check_parts(&self, spec: &ModelSpec) -> Result<()> {
        let graph = Graph::new(spec);
        for node in self.nodes() {
            graph.row(node)?;
        }
        let mut pairs = self.pairs.iter();
        if let Some(node) = pairs.find(|node| !matches!(node, Node::Head { .. })) {
            return Err(Error::invalid(format!(
                "`{node}` is no head, and pairs are pairs of heads; ablate it with others by `AblationConfig::sets`"
            )));
        }
        self.check_names()?;
        if !self.knockouts.is_empty() {
            self.patch.heads.check(spec)?;
        }
        let has_parts = !(self.sets.is_empty() && self.pairs.is_empty());
        if self.positions != Positions::All && !has_parts {
            return Err(Error::invalid(
                "positions are those of sets and pairs, and there are none; sweeps are taken apart by position with `z:pos` or `z:role`",
            ));
        }
        if !self.patch.sets.is_empty() {
            return Err(Error::invalid(
                "an ablation makes its own sets of sites; give nodes in `sets`, or patch the sites themselves",
            ));
        }
        Ok(())
    }

    /// Refuses a knockout of what a model that looks back does not see anyway.
    pub(super) fn check_reach(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        if !spec.is_causal() {
            return Ok(());
        }
        for knockout in &self.knockouts {
            let mut reaches = task.pairs().is_empty();
            for pair in task.pairs() {
                let places = |of: &Positions| of.resolve(pair.clean.len(), &pair.roles);
                let (queries, keys) = (places(&knockout.queries)?, places(&knockout.keys)?);
                reaches |= queries.iter().max() >= keys.iter().min();
            }
            if !reaches {
                return Err(Error::invalid(format!(
                    "attention `{}` is none: the model looks back, and in every pair these keys stand behind the queries; queries stand first, as in \
                     `@END:@S2`",
                    knockout.label()
                )));
            }
        }
        Ok(())
    }

    /// Every row of a set or a pair has a name of its own, and a set that is called like a node is that node.
    fn check_names(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for set in &self.sets {
            if set.nodes.is_empty() {
                return Err(Error::invalid(format!(
                    "the set `{}` has no members",
                    set.name
                )));
            }
            if !names.insert(&set.name) {
                return Err(Error::invalid(format!(
                    "two sets are called `{}`; give each a name of its own",
                    set.name
                )));
            }
            let node = set.name.parse::<Node>().ok();
            if node.is_some_and(|node| set.nodes != [node]) {
                return Err(Error::invalid(format!(
                    "the set `{}` is called like a node, and is another; give it another name",
                    set.name
                )));
            }
        }
        let mut labels = BTreeSet::new();
        if let Some(twice) =
            (self.knockouts.iter().map(Knockout::label)).find(|label| !labels.insert(label.clone()))
        {
            return Err(Error::invalid(format!(
                "attention `{twice}` is knocked out twice"
            )));
        }
        let mut heads = BTreeSet::new();
        if let Some(twice) = self.pairs.iter().find(|head| !heads.insert(**head)) {
            return Err(Error::invalid(format!(
                "`{twice}` is named twice among the heads of pairs"
            )));
        }
        if let [alone] = self.pairs[..] {
            return Err(Error::invalid(format!(
                "`{alone}` alone makes no pair; name at least two heads"
            )));
        }
        Ok(())
    }

    fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        let of_sets = self.sets.iter().flat_map(|set| &set.nodes);
        of_sets.chain(&self.pairs).copied()
    }
}
