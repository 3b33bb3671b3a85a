//! Ablation: take a part of the model out of the clean run, and see what the metric does without it.
//!
//! Taking out means writing something else in its place: zeros, a mean over a reference set (per position, per role, or over
//! all positions), the value from another prompt, or the part's own value times a factor. For attention it can also mean that
//! chosen queries do not see chosen keys, whose weight then goes to the other keys. Parts go one at a time, as named sets
//! (backup heads step in for single ones, so effects of heads do not add up), or as pairs of heads with the interaction of
//! the two: what the pair does beyond the sum of both alone.
//!
//! All of it is [`activation_patching`](mod@super::activation_patching) with other values, through the sweep engine. What is
//! taken out is the value at the hook: a zeroed `hook_z` leaves the layer's output bias in place, a zeroed `hook_mlp_out` does
//! not leave the MLP's.
//!
//! Sources: Wang et al. 2023, "Interpretability in the wild" (means per template and position, sets of heads); Geva et al. 2023,
//! "Dissecting recall of factual associations" (attention knockout); Yu, Merullo and Pavlick 2023, "Characterizing mechanisms
//! for factual recall" (scaling). Left out on purpose: constants that are optimised to hurt least.

mod config;
mod ranked;
mod ranked_by;
mod sets;

use std::collections::HashMap;

use serde_json::{Value, json};

pub use config::{AblationConfig, Knockout, NodeSet};
pub use ranked::Ranking;
pub(super) use ranked::node_values;
pub use ranked_by::RankedBy;
use sets::PAIR;
pub(super) use sets::{cell_of, heads_and_mlps, site_of};

use super::activation_patching::Patching;
use super::measure::{Watch, measure};
use super::method::{Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit};
use crate::error::Result;
use crate::hooks::{Kind, Node};
use crate::run::Progress;
use crate::scores::{Cell, ExampleScores, Measured, Scores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// The measure of a pair beyond its two heads.
const INTERACTION: &str = "interaction";

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
        if let Some(by) = &self.ranked_by {
            settings["ranked_by"] = by.settings();
        }
        settings
    }

    fn needs(&self, task: &Task) -> Needs {
        self.patch.needs(task)
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.check_parts(spec)?;
        self.patching(spec).check(spec, task)?;
        self.check_reach(spec, task)
    }

    fn load(&self) -> Result<()> {
        self.patch.load()
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
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
        let Patching { model, task, .. } = self.patching;
        if let Some(by) = &self.config.ranked_by {
            by.tell(model, task, measured);
        }
        measured.notes.extend(notes(self.config, &model.spec));
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
    notes.extend(config.sets.iter().filter_map(ranked::words));
    notes
}

#[cfg(test)]
mod tests {
    use super::sets::pair;
    use super::*;
    use crate::methods::PatchConfig;

    fn config() -> AblationConfig {
        AblationConfig::new(PatchConfig::new(Vec::new()))
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
