//! Path patching: let some readers see what a sender would have written in the other prompt, along chosen paths only.
//!
//! The form of "Interpretability in the wild": in a run of the clean prompt with every head frozen, the senders write what they
//! write in the corrupted run, and what each receiver then reads is recorded. In a last run of the clean prompt the receivers
//! alone read what was recorded, and everything after them is recomputed. MLPs between sender and receiver are part of the
//! path, or frozen like the heads, in which case one sender and one receiver are an exact edge
//! ([`exact_edges`](super::exact_edges)): where a norm stands on attention's output, a head writes its share of the normed sum, with
//! the scale of its own run, and the shares of the other heads stay as they are.
//!
//! A receiver is one input of a head (`a9.h6<q>`), an MLP, or the final stream. Freezing a head's z is freezing its queries, keys
//! and values, and giving a receiver the recorded stream to read is giving it the recorded query; under grouped heads it is
//! the only way to change the key of one query head. So every sender is a variant of one sweep that starts where the sender
//! writes, and every last run a variant of another that starts where the receiver reads: less than the two whole forwards
//! each that the definition asks for.
//!
//! A general path (`input->a0.h1<v>->a3.h0<q>->logits`) is patched node by node ([`NodePathConfig`]).
//!
//! ```
//! use candlewick::prelude::*;
//!
//! let lab = Lab::open("embedded", "embedded")?.first(2);
//! let to_queries = PathConfig::between("heads", "a3.h0.q,a3.h1.q")?;
//! assert_eq!(lab.measure(&to_queries)?.table.height(), 12);
//! # Ok::<(), candlewick::Error>(())
//! ```
//!
//! Sources: Wang et al. 2023, "Interpretability in the wild", section 3.1; Goldowsky-Dill et al. 2023, "Localizing model
//! behavior with path patching". Left out on purpose: the linearised variant with frozen norms, which is an approximation.

mod choice;
mod node_paths;
mod runs;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::{Value, json};

pub use choice::{Receiver, ReceiverChoice, Receivers, Senders};
pub use node_paths::{NodePath, NodePathConfig, PathSet};

use super::measure::{Watch, measure};
use super::method::{Cost, Method, Needs, Prepared, Running, Subject, Unit, unmeasured};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Edge, Kind, Node, Positions};
use crate::metric::Metric;
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Measured, Scores, ScoresMeta};
use crate::spec::{ModelSpec, NormPlacement};
use crate::task::Task;
use runs::{PathRuns, bytes_of_pair};

/// How senders and receivers make up rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// A row for each sender, into all receivers together.
    #[default]
    Senders,
    /// A row for each receiver, from all senders together.
    Receivers,
    /// One row.
    Together,
    /// A row for each sender and receiver, where the sender is computed before the receiver reads.
    Both,
}

/// What to patch, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct PathConfig {
    pub senders: Senders,
    pub receivers: Receivers,
    pub over: Over,
    /// Freeze the MLPs between senders and receivers as well as the heads.
    pub freeze_mlps: bool,
    /// Where the senders are patched, and where the receivers read what was recorded.
    pub at_senders: Positions,
    pub at_receivers: Positions,
    /// [default: the task's]
    pub metric: Option<Metric>,
}

impl PathConfig {
    /// A row for each sender, everywhere, with MLPs as part of the paths.
    pub fn new(senders: Senders, receivers: Receivers) -> Self {
        PathConfig {
            senders,
            receivers,
            over: Over::Senders,
            freeze_mlps: false,
            at_senders: Positions::All,
            at_receivers: Positions::All,
            metric: None,
        }
    }

    /// The same, from senders and receivers as they are written: `heads` or `a0.h1,m0`, and `q` or `a3.h0.q,logits`.
    /// # Errors
    /// [`Error::Parse`].
    pub fn between(senders: &str, receivers: &str) -> Result<Self> {
        Ok(PathConfig::new(senders.parse()?, receivers.parse()?))
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    /// Who sends and who receives in this model.
    /// # Errors
    /// What the model does not have; [`Error::NoSuchEdge`] for one that is named and has nobody to send to, or nobody to receive
    /// from.
    fn ends(&self, spec: &ModelSpec) -> Result<Ends> {
        let graph = Graph::new(spec);
        let mut senders = self.senders.nodes(spec);
        let mut receivers = self.receivers.places(spec);
        for &sender in &senders {
            graph.row(sender)?;
        }
        for receiver in &receivers {
            graph.column(receiver.node, receiver.letter)?;
        }
        named_once(&senders)?;
        named_once(&receivers)?;
        if senders.is_empty() {
            return Err(Error::invalid(
                "nothing sends; name a sender such as `a0.h1`, or `heads`",
            ));
        }
        if receivers.is_empty() {
            return Err(Error::invalid(
                "nothing receives; name a receiver such as `a3.h0<q>` or `logits`",
            ));
        }
        let is_path = |sender: Node, receiver: Receiver| path_exists(&graph, sender, receiver);
        let sends = |sender: &Node| receivers.iter().any(|&receiver| is_path(*sender, receiver));
        if let Senders::These(named) = &self.senders
            && let Some(&idle) = named.iter().find(|sender| !sends(sender))
        {
            return Err(no_path(&graph, idle, &receivers));
        }
        let receives =
            |receiver: &Receiver| senders.iter().any(|&sender| is_path(sender, *receiver));
        let named = self.receivers.named();
        if let Some(idle) = receivers
            .iter()
            .find(|receiver| named.contains(receiver) && !receives(receiver))
        {
            return Err(Error::NoSuchEdge {
                edge: format!("{}->{idle}", self.senders),
                reason: format!("no sender is computed before `{idle}` reads"),
            });
        }
        // What was not named but meant as one of all is left out where it cannot be part of a path.
        let (sending, receiving): (Vec<bool>, Vec<bool>) = (
            senders.iter().map(sends).collect(),
            receivers.iter().map(receives).collect(),
        );
        keep(&mut senders, &sending);
        keep(&mut receivers, &receiving);
        if senders.is_empty() {
            return Err(Error::NoSuchEdge {
                edge: format!("{}->{}", self.senders, self.receivers),
                reason: "no sender is computed before a receiver reads".into(),
            });
        }
        Ok(Ends { senders, receivers })
    }

    /// The rows: who sends, who receives, and the row's place in the table.
    fn rows(&self, spec: &ModelSpec) -> Result<Vec<PathRow>> {
        let graph = Graph::new(spec);
        let Ends { senders, receivers } = self.ends(spec)?;
        let all = Arc::<[Node]>::from(senders.as_slice());
        Ok(match self.over {
            Over::Senders => (senders.into_iter())
                .map(|sender| PathRow {
                    cell: sender_cell(sender),
                    senders: [sender].into(),
                    receivers: receivers.clone(),
                })
                .collect(),
            Over::Receivers => (receivers.into_iter())
                .map(|receiver| PathRow {
                    cell: receiver_cell(receiver),
                    senders: Arc::clone(&all),
                    receivers: vec![receiver],
                })
                .collect(),
            Over::Together => vec![PathRow {
                cell: path_cell(names(&senders), names(&receivers)),
                senders: all,
                receivers,
            }],
            Over::Both => {
                let of_sender = |sender: Node| {
                    let read = (receivers.iter())
                        .filter(|&&receiver| path_exists(&graph, sender, receiver));
                    let row = move |&receiver: &Receiver| PathRow {
                        cell: path_cell(sender.to_string(), receiver.to_string()),
                        senders: [sender].into(),
                        receivers: vec![receiver],
                    };
                    read.map(row).collect::<Vec<_>>()
                };
                senders.iter().copied().flat_map(of_sender).collect()
            }
        })
    }
}

/// Nodes that send and places that receive, each with at least one on the other side.
struct Ends {
    senders: Vec<Node>,
    receivers: Vec<Receiver>,
}

/// One row of the table.
struct PathRow {
    cell: Cell,
    senders: Arc<[Node]>,
    receivers: Vec<Receiver>,
}

fn path_exists(graph: &Graph, sender: Node, receiver: Receiver) -> bool {
    let edge = Edge {
        src: sender,
        dst: receiver.node,
        letter: receiver.letter,
    };
    graph.place(&edge).is_ok()
}

/// Why a sender reaches none of these receivers.
fn no_path(graph: &Graph, sender: Node, receivers: &[Receiver]) -> Error {
    if let [receiver] = receivers {
        let edge = Edge {
            src: sender,
            dst: receiver.node,
            letter: receiver.letter,
        };
        if let Err(error) = graph.place(&edge) {
            return error;
        }
    }
    Error::NoSuchEdge {
        edge: format!("{sender}->{}", names(receivers)),
        reason: format!("`{sender}` is computed after all of them read"),
    }
}

fn named_once<T: Ord + Copy + std::fmt::Display>(list: &[T]) -> Result<()> {
    let mut seen = BTreeSet::new();
    match list.iter().find(|&&one| !seen.insert(one)) {
        None => Ok(()),
        Some(twice) => Err(Error::invalid(format!("`{twice}` is named twice"))),
    }
}

fn keep<T>(list: &mut Vec<T>, kept: &[bool]) {
    let mut kept = kept.iter();
    list.retain(|_| kept.next().is_some_and(|&kept| kept));
}

/// A sender's row: a head in a grid of layers and heads.
fn sender_cell(sender: Node) -> Cell {
    let (kind, head) = match sender {
        Node::Head { head, .. } => (Kind::Result, Some(head as u32)),
        Node::Mlp(_) => (Kind::MlpOut, None),
        Node::Input | Node::Logits => (Kind::Embed, None),
    };
    node_cell(kind, sender, head)
}

/// A receiver's row.
fn receiver_cell(receiver: Receiver) -> Cell {
    let (kind, head) = match (receiver.node, receiver.letter) {
        (Node::Head { head, .. }, Some(letter)) => (letter.input(), Some(head as u32)),
        (Node::Mlp(_), _) => (Kind::MlpIn, None),
        _ => (Kind::ResidPost, None),
    };
    node_cell(kind, receiver.node, head)
}

fn node_cell(kind: Kind, node: Node, head: Option<u32>) -> Cell {
    Cell {
        component: kind.name().into(),
        layer: node.layer().map(|layer| layer as u32),
        head,
        ..Cell::default()
    }
}

/// A row with both ends.
fn path_cell(src: String, dst: String) -> Cell {
    Cell {
        component: "path".into(),
        src: Some(src),
        dst: Some(dst),
        ..Cell::default()
    }
}

fn names<T: ToString>(list: &[T]) -> String {
    let names: Vec<String> = list.iter().map(T::to_string).collect();
    names.join(",")
}

/// Patches every row's paths in every clean prompt: [`measure`] with the defaults of [`Running`].
/// # Units
/// `value` and `score`: the metric's, with the receivers reading what was recorded; `base` is `clean`. `normalised` is the share
/// of the way to the corrupted run.
/// # Errors
/// What cannot be run as asked, before anything runs; [`Error::NoSuchEdge`] for a path that cannot be.
pub fn path_patching(on: Subject<'_>, config: &PathConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

impl Method for PathConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        header(self.metric(task), task)
    }

    fn settings(&self) -> Value {
        json!({
            "senders": self.senders.to_string(),
            "receivers": self.receivers.to_string(),
            "over": self.over,
            "freeze_mlps": self.freeze_mlps,
            "at_senders": self.at_senders.to_string(),
            "at_receivers": self.at_receivers.to_string(),
        })
    }

    fn needs(&self, task: &Task) -> Needs {
        needs(self.metric(task))
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.ends(spec)?;
        for pair in task.pairs() {
            for positions in [&self.at_senders, &self.at_receivers] {
                positions.resolve(pair.clean.len(), &pair.roles)?;
            }
        }
        Ok(())
    }

    fn prepare<'a>(
        &'a self,
        on: Subject<'a>,
        running: &'a Running,
    ) -> Result<Box<dyn Prepared + 'a>> {
        let rows = self.rows(&on.model.spec)?;
        Ok(Box::new(PathPatching {
            on,
            running,
            config: self,
            cells: rows.iter().map(|row| row.cell.clone()).collect(),
            rows,
        }))
    }
}

/// What both kinds of path patching share.
fn header(metric: Metric, task: &Task) -> ScoresMeta {
    ScoresMeta {
        method: "path_patching".into(),
        metric: metric.to_string(),
        unit: metric.unit().into(),
        direction: Direction::Noise,
        base: None,
        seed: task.seed,
    }
}

fn needs(metric: Metric) -> Needs {
    Needs {
        decoder: Some("paths"),
        aligned: true,
        metric: Some(metric),
        ..Needs::default()
    }
}

/// Whether a norm stands on attention's output, so that what a head writes is its share of the normed sum.
fn has_post_norm(spec: &ModelSpec) -> bool {
    matches!(
        spec.norm_placement,
        NormPlacement::Post | NormPlacement::Sandwich
    )
}

/// What a walk from a node's layer to the answer costs, in forward passes of one prompt, from the first position that differs.
fn walk(node: Node, spec: &ModelSpec, share: f64) -> f64 {
    let n_layers = spec.n_layers as f64;
    let left = match node {
        Node::Input => n_layers,
        Node::Head { layer, .. } => n_layers - layer as f64 - 0.5,
        Node::Mlp(layer) => n_layers - layer as f64 - 0.7,
        Node::Logits => 0.0,
    };
    share * left / n_layers
}

/// A checked run in progress.
struct PathPatching<'a> {
    on: Subject<'a>,
    running: &'a Running,
    config: &'a PathConfig,
    rows: Vec<PathRow>,
    cells: Vec<Cell>,
}

impl Prepared for PathPatching<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        // The runs may take a quarter of the memory; recordings and variants take the rest.
        4 * bytes_of_pair(&self.on.model.spec, length)
    }

    fn splits(&self) -> bool {
        true
    }

    /// For each set of senders a walk from the first of them, and for each row one from the first of its receivers.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let pair = &self.on.task.pairs()[unit.items[0]];
        let (spec, length) = (&self.on.model.spec, pair.clean.len());
        let share = (length - pair.first_difference().min(length)) as f64 / length as f64;
        let rows = &self.rows[unit.cells.clone()];
        let sets: BTreeSet<&[Node]> = rows.iter().map(|row| &*row.senders).collect();
        let sending = sets.iter().filter_map(|senders| senders.iter().min());
        let receivers = |row: &PathRow| row.receivers.iter().map(|receiver| receiver.node).min();
        let receiving = rows.iter().filter_map(receivers);
        let packed = sending
            .copied()
            .chain(receiving)
            .map(|node| walk(node, spec, share))
            .sum();
        Ok(Cost {
            variants: sets.len() + rows.len(),
            without_effect: if share > 0.0 {
                0
            } else {
                sets.len() + rows.len()
            },
            passes: 2.0,
            packed,
            bytes: self.bytes(length),
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let with_deltas = has_post_norm(&self.on.model.spec);
        let metric = self.config.metric(self.on.task);
        let runs = PathRuns::new(self.on, metric, &unit.items, self.running, with_deltas)?;
        let rows = &self.rows[unit.cells.clone()];
        let values = runs.patch(rows, self.config, progress)?;
        Ok(runs.examples(self.on.task, unit, values))
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let config = self.config;
        measured.notes.push(match config.over {
            Over::Senders => format!("what each sender passes to {}", config.receivers),
            Over::Receivers => format!("what each receiver reads from {}", config.senders),
            Over::Together | Over::Both => "paths from src to dst".into(),
        });
        measured.notes.push(
            if config.freeze_mlps {
                "heads and MLPs between are frozen: direct paths alone"
            } else {
                "heads between are frozen, MLPs between are part of the paths"
            }
            .into(),
        );
        Ok(())
    }
}

impl PathRuns<'_> {
    /// The examples of a unit, from a value for each of its pairs and cells.
    fn examples(&self, task: &Task, unit: &Unit, values: Vec<Vec<f64>>) -> Vec<ExampleScores> {
        let cells: Arc<[u32]> = (unit.cells.start as u32..unit.cells.end as u32).collect();
        let example = |(i, values): (usize, Vec<f64>)| {
            let (clean, corrupted) = (self.clean_metric[i], self.corrupted_metric[i]);
            let mut one = unmeasured(task, unit.items[i], clean, corrupted);
            one.judged(self.judged[i]);
            one.cells = Arc::clone(&cells);
            one.values = values;
            one
        };
        values.into_iter().enumerate().map(example).collect()
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

    fn rows(senders: &str, receivers: &str, over: Over) -> Result<Vec<String>> {
        let config = PathConfig {
            over,
            ..PathConfig::between(senders, receivers)?
        };
        let rows = config.rows(&spec())?.into_iter();
        Ok(rows.map(|row| row.cell.to_string()).collect())
    }

    #[test]
    fn a_path_that_cannot_be_has_no_row() {
        let found = rows("a0.h0,a1.h0", "a1.h1.q,a2.h0.v", Over::Both).expect("rows");
        assert_eq!(
            found,
            ["a0.h0->a1.h1<q>", "a0.h0->a2.h0<v>", "a1.h0->a2.h0<v>"]
        );
        // Of all heads, those of layers 0 to 2 send to a head of layer 3.
        let of_all = rows("heads", "a3.h0.q", Over::Senders).expect("rows");
        assert_eq!(of_all.len(), 12);
        // Nothing writes before layer 0 but the input, so its queries are no receivers.
        let of_queries = rows("heads", "q", Over::Receivers).expect("rows");
        assert_eq!(of_queries.len(), 12);
    }

    #[test]
    fn what_is_named_and_has_no_path_is_refused_by_name() {
        let says = |senders: &str, receivers: &str, over: Over, what: &str| {
            let message = rows(senders, receivers, over).expect_err(what).to_string();
            assert!(message.contains(what), "{message}");
        };
        says("a1.h0", "a0.h1.v", Over::Both, "`a1.h0->a0.h1<v>`");
        says("a1.h0", "a1.h1.q", Over::Senders, "heads of one layer");
        says("a0.h0,a3.h0", "a1.h1.q,a2.h1.k", Over::Both, "`a3.h0`");
        says(
            "a1.h0",
            "a0.h0.q,logits",
            Over::Together,
            "before `a0.h0<q>` reads",
        );
        says("heads", "a0.h0.q", Over::Senders, "before `a0.h0<q>` reads");
        says("a0.h0,a0.h0", "logits", Over::Senders, "named twice");
        says("a0.h9", "logits", Over::Senders, "a0.h9");
        says("a0.h0", "a9.h0.q", Over::Senders, "a9.h0");
    }
}
