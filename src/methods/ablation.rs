//! Ablation: take a part of the model out of the clean run, and see what the metric does without it.
//!
//! Taking out means writing something else in its place: zeros, a mean over a reference set (per position, per role, or over
//! all positions), the value from another prompt, or the part's own value times a factor. For attention it can also mean that
//! chosen queries do not see chosen keys, whose weight then goes to the other keys. Parts go one at a time, as named sets
//! (backup heads step in for single ones, so effects of heads do not add up), or as pairs of heads with the interaction of
//! the two: what the pair does beyond the sum of both alone.
//!
//! All of it is [`activation_patching`](super::activation_patching) with other values, through the sweep engine. What is
//! taken out is the value at the hook: a zeroed `hook_z` leaves the layer's output bias in place, a zeroed `hook_mlp_out` does
//! not leave the MLP's.
//!
//! Sources: Wang et al. 2023, "Interpretability in the wild" (means per template and position, sets of heads); Geva et al. 2023,
//! "Dissecting recall of factual associations" (attention knockout); Yu, Merullo and Pavlick 2023, "Characterizing mechanisms
//! for factual recall" (scaling). Left out on purpose: constants that are optimised to hurt least.

use std::collections::{BTreeSet, HashMap};

use serde_json::json;

use super::activation_patching::{PatchConfig, Patched, SiteSet, patch_every_cell};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Node, Pos, Positions, Site};
use crate::model::{Model, ModelSpec};
use crate::run::Progress;
use crate::scores::{Cell, Direction, PartStore, Scores};
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

/// What to take out besides the sweeps of [`PatchConfig::sites`], and where.
#[derive(Debug, Clone)]
pub struct AblationConfig {
    /// How: `source`, `direction: Ablate`, metric, memory and so on; its `sites` are swept one by one.
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
        }
    }

    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        let graph = Graph::new(spec);
        for node in self.nodes() {
            graph.row(node)?;
        }
        if let Some(node) = self
            .pairs
            .iter()
            .find(|node| !matches!(node, Node::Head { .. }))
        {
            return Err(Error::invalid(format!(
                "`{node}` is no head, and pairs are pairs of heads; ablate it with others by `--together`"
            )));
        }
        if let Some(set) = self.sets.iter().find(|set| set.nodes.is_empty()) {
            return Err(Error::invalid(format!(
                "the set `{}` has no members",
                set.name
            )));
        }
        self.patching(spec)?.check(spec, task)
    }

    fn nodes(&self) -> impl Iterator<Item = Node> + '_ {
        let of_sets = self.sets.iter().flat_map(|set| &set.nodes);
        of_sets.chain(&self.pairs).copied()
    }

    /// The patching that this ablation is.
    fn patching(&self, spec: &ModelSpec) -> Result<PatchConfig> {
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
            sets.push(self.set(single(one), [one]));
            for &other in &self.pairs[i + 1..] {
                sets.push(self.set(pair(one, other), [one, other]));
            }
        }
        for knockout in &self.knockouts {
            sets.extend(self.knocked_out(knockout, spec));
        }
        Ok(PatchConfig {
            sets,
            ..self.patch.clone()
        })
    }

    fn set(&self, cell: Cell, nodes: impl IntoIterator<Item = Node>) -> SiteSet {
        let nodes: BTreeSet<Node> = nodes.into_iter().collect();
        let mut sites: Vec<Site> = Vec::new();
        for node in nodes {
            let site = Site {
                positions: self.positions.clone(),
                ..site_of(node)
            };
            // Heads of one layer are one site.
            match sites.last_mut().filter(|last| last.hook == site.hook) {
                Some(last) => last
                    .heads
                    .get_or_insert_default()
                    .extend(site.heads.unwrap_or_default()),
                None => sites.push(site),
            }
        }
        SiteSet { cell, sites }
    }

    /// One set for each layer, or for each head of each layer; the layers of a window around it go together.
    fn knocked_out(&self, knockout: &Knockout, spec: &ModelSpec) -> Vec<SiteSet> {
        let chosen = |all: usize, only: &[usize]| -> Vec<usize> {
            (0..all)
                .filter(|i| only.is_empty() || only.contains(i))
                .collect()
        };
        let layers = chosen(spec.n_layers, &self.patch.layers);
        let heads = chosen(spec.n_heads, &self.patch.heads);
        let groups: Vec<(Option<usize>, Vec<usize>)> = match self.whole_layers {
            true => vec![(None, heads)],
            false => heads
                .into_iter()
                .map(|head| (Some(head), vec![head]))
                .collect(),
        };
        let label = format!("{}->{}", places(&knockout.queries), places(&knockout.keys));
        let (before, after) = ((self.patch.window.max(1) - 1) / 2, self.patch.window / 2);
        let mut sets = Vec::new();
        for &layer in &layers {
            let window = layer.saturating_sub(before)..=(layer + after).min(spec.n_layers - 1);
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
const PAIR: &str = "pair";
/// The measure of a pair beyond its two heads.
const INTERACTION: &str = "interaction";

fn single(node: Node) -> Cell {
    let (layer, head) = match node {
        Node::Head { layer, head } => (Some(layer as u32), Some(head as u32)),
        other => (other.layer().map(|layer| layer as u32), None),
    };
    Cell {
        component: Kind::Z.name().into(),
        layer,
        head,
        ..Cell::default()
    }
}

fn pair(one: Node, other: Node) -> Cell {
    Cell {
        component: PAIR.into(),
        src: Some(one.to_string()),
        dst: Some(other.to_string()),
        ..Cell::default()
    }
}

/// The site that holds what a node writes. A head is its `z`.
pub(super) fn site_of(node: Node) -> Site {
    match node {
        Node::Input => Site::all(Hook::global(Kind::Embed)),
        Node::Head { layer, head } => Site::all(Hook::at(Kind::Z, layer)).heads([head]),
        Node::Mlp(layer) => Site::all(Hook::at(Kind::MlpOut, layer)),
        // Checked before: it writes nothing.
        Node::Logits => Site::all(Hook::global(Kind::Embed)),
    }
}

fn places(positions: &Positions) -> String {
    match positions {
        Positions::All => "all".into(),
        Positions::These(list) => {
            let names: Vec<String> = list.iter().map(Pos::to_string).collect();
            names.join(",")
        }
    }
}

/// Ablates every cell of every sweep, every set, every pair and every knockout in every clean prompt.
///
/// Pairs also have a row of the measure `interaction`: the score of the pair less the scores of its two heads. It is negative
/// where the two do more harm together than apart, as heads do that stand in for each other.
/// # Units
/// `value` and `score`: the metric's; `base` is `clean`.
/// # Errors
/// Those of [`AblationConfig::check`], before anything runs; [`Error::Interrupted`].
pub fn ablation(
    model: &Model,
    task: &Task,
    config: &AblationConfig,
    parts: Option<&mut PartStore>,
    progress: &dyn Progress,
) -> Result<Scores> {
    config.check(&model.spec, task)?;
    let patching = config.patching(&model.spec)?;
    let mut patched = patch_every_cell(model, task, &patching, parts, progress)?;
    add_interactions(&mut patched);
    let provenance = &mut patched.provenance;
    provenance.notes.extend(notes(config, &model.spec));
    if let Some(reference) = &config.patch.reference {
        provenance.config["reference"] = json!(reference.name);
    }
    patched.assemble("ablation", &patching)
}

/// Everything that decides a measurement, for a store of its parts.
/// # Errors
/// Those of [`AblationConfig::check`].
pub fn fingerprint(
    model: &Model,
    task: &Task,
    config: &AblationConfig,
) -> Result<serde_json::Value> {
    let mut settings = config.patching(&model.spec)?.fingerprint(model, task);
    settings["method"] = json!("ablation");
    Ok(settings)
}

/// For each pair a row more: joint score less both single scores. The value is the clean metric plus that, so that one sign
/// holds in the whole table.
fn add_interactions(patched: &mut Patched) {
    let cells = &patched.cells;
    let places: HashMap<&Cell, usize> = cells
        .iter()
        .enumerate()
        .map(|(at, cell)| (cell, at))
        .collect();
    let find = |wanted: &Cell| places.get(wanted).copied();
    let node = |name: &Option<String>| -> Option<Node> { name.as_deref()?.parse().ok() };
    let mut triples: Vec<[usize; 3]> = Vec::new();
    let mut added: Vec<Cell> = Vec::new();
    for (joint, cell) in cells
        .iter()
        .enumerate()
        .filter(|(_, cell)| cell.component == PAIR)
    {
        let ends = node(&cell.src).zip(node(&cell.dst));
        let singles = ends.and_then(|(a, b)| find(&single(a)).zip(find(&single(b))));
        if let Some((a, b)) = singles {
            triples.push([joint, a, b]);
            added.push(Cell {
                measure: Some(INTERACTION.into()),
                ..cell.clone()
            });
        }
    }
    for example in &mut patched.examples {
        let of = |cell: usize| {
            let at = example.cells.binary_search(&(cell as u32)).ok()?;
            Some(example.values[at] - example.clean)
        };
        let mut indices = example.cells.to_vec();
        let mut values = example.values.clone();
        for (n, [joint, a, b]) in triples.iter().enumerate() {
            if let (Some(joint), Some(a), Some(b)) = (of(*joint), of(*a), of(*b)) {
                indices.push((cells.len() + n) as u32);
                values.push(example.clean + joint - a - b);
            }
        }
        (example.cells, example.values) = (indices.into(), values);
    }
    patched.cells.extend(added);
}

/// What a reader of the table should know of this model.
fn notes(config: &AblationConfig, spec: &ModelSpec) -> Vec<String> {
    let mut notes = Vec::new();
    let shared = [Kind::K, Kind::V, Kind::RotK];
    let sweeps = &config.patch.sites;
    if spec.group() > 1 && sweeps.iter().any(|sites| shared.contains(&sites.kind)) {
        notes.push(format!(
            "keys and values are shared: head 0 of k or v serves query heads 0 to {}, and so on, so a row changes all {} of them; \
             z belongs to one head alone",
            spec.group() - 1,
            spec.group()
        ));
    }
    if !config.pairs.is_empty() {
        notes.push(
            "interaction: the score of a pair less the scores of its two heads; negative where each stands in for the other".into(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::scores::{ExampleScores, Provenance};

    fn config() -> AblationConfig {
        AblationConfig::new(PatchConfig::new(Vec::new(), Metric::LogitDiff))
    }

    #[test]
    fn heads_of_a_layer_are_one_site() {
        let nodes = ["a1.h3", "m0", "a1.h0", "a0.h2"].map(|text| text.parse().expect(text));
        let set = config().set(Cell::default(), nodes);
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

    #[test]
    fn an_interaction_is_what_a_pair_does_beyond_its_heads() {
        let [a, b]: [Node; 2] = ["a0.h0", "a1.h1"].map(|text| text.parse().expect(text));
        let mut patched = Patched {
            cells: vec![single(a), pair(a, b), single(b)],
            examples: vec![ExampleScores {
                clean: 5.0,
                cells: [0, 1, 2].into(),
                values: vec![4.0, 1.0, 3.0],
                ..ExampleScores::default()
            }],
            provenance: Provenance::default(),
        };
        add_interactions(&mut patched);
        // Alone they cost 1 and 2, together 4: one more than the sum.
        assert_eq!(patched.examples[0].values, [4.0, 1.0, 3.0, 4.0]);
        assert_eq!(patched.cells[3].measure.as_deref(), Some("interaction"));
    }
}
