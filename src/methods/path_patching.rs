//! Path patching: let some readers see what a sender would have written in the other prompt, along chosen paths only.
//!
//! The form of "Interpretability in the wild": in a run of the clean prompt with every head frozen, the senders write what they
//! write in the corrupted run, and what each receiver then reads is recorded. In a last run of the clean prompt the receivers
//! alone read what was recorded, and everything after them is recomputed. MLPs between sender and receiver are part of the
//! path, or frozen like the heads, in which case one sender and one receiver are an exact edge
//! ([`exact_edges`](mod@super::exact_edges)): where a norm stands on attention's output, a head writes its share of the normed sum, with
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
mod config;
mod node_paths;
mod rows;
mod runs;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde_json::{Value, json};

pub use choice::{Receiver, ReceiverChoice, Receivers, Senders};
pub use config::{Over, PathConfig};
pub use node_paths::{NodePath, NodePathConfig, PathSet};
use rows::PathRow;
use runs::{PathRuns, bytes_of_pair, has_post_norm, walk};

use super::measure::{Watch, measure};
use super::method::{Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit};
use crate::error::Result;
use crate::hooks::Node;
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Measured, Scores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// Patches every row's paths in every clean prompt: [`measure`] with the defaults of [`Running`].
/// # Units
/// `value` and `score`: the metric's, with the receivers reading what was recorded; `base` is `clean`. `normalised` is the share
/// of the way to the corrupted run.
/// # Errors
/// What cannot be run as asked, before anything runs; [`Error::NoSuchEdge`](crate::Error::NoSuchEdge) for a path that cannot be.
pub fn path_patching(on: Subject<'_>, config: &PathConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

impl Method for PathConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta::new(
            "path_patching",
            metric,
            metric.unit(),
            Direction::Noise,
            task.seed,
        )
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
        Needs {
            decoder: Some("paths"),
            aligned: true,
            metric: Some(self.metric(task)),
            whole_answers: true,
            ..Needs::default()
        }
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

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
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
            ..Cost::default()
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
