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

use serde_json::{Value, json};

use super::activation_patching::{PatchConfig, Patching, SiteSet};
use super::measure::{Watch, measure};
use super::method::{Cost, Method, Needs, Prepared, Running, Subject, Unit, check_range};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Node, Positions, Site};
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Measured, Scores, ScoresMeta};
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
    fn label(&self) -> String {
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

    fn check_parts(&self, spec: &ModelSpec) -> Result<()> {
        let graph = Graph::new(spec);
        for node in self.nodes() {
            graph.row(node)?;
        }
        let mut pairs = self.pairs.iter();
        if let Some(node) = pairs.find(|node| !matches!(node, Node::Head { .. })) {
            return Err(Error::invalid(format!(
                "`{node}` is no head, and pairs are pairs of heads; ablate it with others by `--together`"
            )));
        }
        self.check_names()?;
        if !self.knockouts.is_empty() {
            let heads: Vec<usize> = self
                .patch
                .heads
                .0
                .iter()
                .map(|chosen| chosen.head)
                .collect();
            check_range("head", &heads, spec.n_heads, "attention")?;
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

    /// The patching that this ablation is.
    fn patching(&self, spec: &ModelSpec) -> PatchConfig {
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
    fn single(&self, node: Node) -> Cell {
        Cell {
            component: SET.into(),
            src: Some(node.to_string()),
            ..Cell::default()
        }
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
const PAIR: &str = "pair";
/// The measure of a pair beyond its two heads.
const INTERACTION: &str = "interaction";

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

/// Ablates every cell of every sweep, every set, every pair and every knockout in every clean prompt: [`measure`] with the
/// defaults of [`Running`].
///
/// Pairs also have a row of the measure `interaction`: the score of the pair less the scores of its two heads. It is negative
/// where the two do more harm together than apart, as heads do that stand in for each other.
/// # Units
/// `value` and `score`: the metric's; `base` is `clean`. The `value` of an interaction is the clean metric plus the interaction.
/// # Errors
/// What cannot be run as asked, before anything runs.
pub fn ablation(on: Subject<'_>, config: &AblationConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

impl Method for AblationConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta {
            method: "ablation".into(),
            ..self.patch.header(task)
        }
    }

    fn settings(&self) -> Value {
        let mut settings = self.patch.settings();
        let names = |nodes: &[Node]| nodes.iter().map(Node::to_string).collect::<Vec<_>>();
        let sets: Vec<_> = self
            .sets
            .iter()
            .map(|set| (&set.name, names(&set.nodes)))
            .collect();
        let knockouts: Vec<_> = (self.knockouts.iter())
            .map(|knockout| (knockout.queries.to_string(), knockout.keys.to_string()))
            .collect();
        settings["sets"] = json!(sets);
        settings["pairs"] = json!(names(&self.pairs));
        settings["knockouts"] = json!(knockouts);
        settings["whole_layers"] = json!(self.whole_layers);
        settings["positions"] = json!(self.positions.to_string());
        settings
    }

    fn needs(&self, task: &Task) -> Needs {
        self.patch.needs(task)
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.check_parts(spec)?;
        self.patching(spec).check(spec, task)
    }

    fn prepare<'a>(
        &'a self,
        on: Subject<'a>,
        running: &'a Running,
    ) -> Result<Box<dyn Prepared + 'a>> {
        Ok(Box::new(Ablating {
            config: self,
            patching: Patching::new(on, self.patching(&on.model.spec), running)?,
        }))
    }
}

/// An ablation is patching, and what follows for pairs.
struct Ablating<'a> {
    config: &'a AblationConfig,
    patching: Patching<'a>,
}

impl Prepared for Ablating<'_> {
    fn cells(&self) -> &[Cell] {
        self.patching.cells()
    }

    fn bytes(&self, length: usize) -> usize {
        self.patching.bytes(length)
    }

    fn splits(&self) -> bool {
        self.patching.splits()
    }

    fn units(&self, task: &Task, running: &Running) -> Vec<Unit> {
        self.patching.units(task, running)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        self.patching.cost(unit)
    }

    fn begin(&mut self, progress: &dyn Progress) -> Result<()> {
        self.patching.begin(progress)
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        self.patching.measure(unit, progress)
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        self.patching.conclude(measured, progress)?;
        add_interactions(measured, |node| self.config.single(node));
        measured
            .notes
            .extend(notes(self.config, &self.patching.model.spec));
        Ok(())
    }
}

/// For each pair a row more: joint score less both single scores. The value is the clean metric plus that, so that one sign
/// holds in the whole table.
fn add_interactions(measured: &mut Measured, single: impl Fn(Node) -> Cell) {
    let cells = &measured.cells;
    let places: HashMap<&Cell, usize> = cells
        .iter()
        .enumerate()
        .map(|(at, cell)| (cell, at))
        .collect();
    let node = |name: &Option<String>| -> Option<Node> { name.as_deref()?.parse().ok() };
    let mut triples: Vec<[usize; 3]> = Vec::new();
    let mut added: Vec<Cell> = Vec::new();
    for (joint, cell) in (cells.iter().enumerate()).filter(|(_, cell)| cell.component == PAIR) {
        let ends = node(&cell.src).zip(node(&cell.dst));
        let find = |node| places.get(&single(node)).copied();
        if let Some((a, b)) = ends.and_then(|(a, b)| find(a).zip(find(b))) {
            triples.push([joint, a, b]);
            added.push(Cell {
                measure: Some(INTERACTION.into()),
                ..cell.clone()
            });
        }
    }
    if added.is_empty() {
        return;
    }
    measured.append(added, |_, example| {
        let score = |cell: usize| Some(example.value(cell)? - example.clean);
        let beyond = |&[joint, a, b]: &[usize; 3]| {
            Some(example.clean + score(joint)? - score(a)? - score(b)?)
        };
        triples.iter().map(beyond).collect()
    });
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

    fn config() -> AblationConfig {
        AblationConfig::new(PatchConfig::new(Vec::new()))
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
        let single = |node| config().single(node);
        let mut measured = Measured {
            cells: vec![single(a), pair(a, b), single(b)],
            examples: vec![ExampleScores {
                clean: 5.0,
                cells: [0, 1, 2].into(),
                values: vec![4.0, 1.0, 3.0],
                ..ExampleScores::default()
            }],
            ..Measured::default()
        };
        add_interactions(&mut measured, single);
        // Alone they cost 1 and 2, together 4: one more than the sum.
        assert_eq!(measured.examples[0].values, [4.0, 1.0, 3.0, 4.0]);
        assert_eq!(measured.cells[3].measure.as_deref(), Some("interaction"));
    }
}
