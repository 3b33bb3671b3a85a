//! ACDC: edges are taken out one after another, from the logits back, and stay out where that hardly moves the output.
//!
//! Destinations are visited from the logits to layer 0, in a layer the MLP, then the heads from the highest to the lowest at their
//! values, keys and queries; of each the sources from the latest to the first. An edge is taken out (its source then writes there as at the
//! reference); if the distance to the clean run rises by less than `threshold`, it stays out. A destination that nothing reads loses
//! all its edges unseen. The order decides much of the result.
//!
//! Edges are tried in chains: the first taken out, the first two, the first three, ... from the current state, each taking over what it
//! shares with the one before, and read out together. The longest run in which each step rises by less than the threshold is
//! accepted, the first that fails is put back, and the next chain begins behind it: the result of trying one by one.
//!
//! Source: Conmy et al. 2023, "Towards Automated Circuit Discovery" (arXiv 2304.14997), section 3, with the graph of
//! [`Graph`], which has no separate node for a head's queries, keys and values. Left out on purpose: chains that cross
//! destinations.

use std::sync::Arc;

use super::evaluation::check_evaluated;
use super::ground::{Ground, matrix};
use super::masked::{Masked, State};
use crate::circuit::{EdgeSet, Graph};
use crate::error::{Error, Result};
use crate::hooks::{Letter, Node};
use crate::methods::exact_edges::Reference;
use crate::methods::exact_edges::runs::bytes_of_pair;
use crate::methods::method::{Running, Subject};
use crate::metric::Metric;
use crate::run::Progress;

/// Edges of a chain at most.
const LONGEST: usize = 32;
/// A rise that is so near to the threshold, relative to a distance above 1, is decided by runs that take over nothing.
const TIE: f64 = 1e-6;

/// How edges are tried.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AcdcConfig {
    /// An edge stays out if the distance rises by less than this: τ. In the unit of the metric.
    pub threshold: f64,
    /// What is kept low: a divergence from the clean run, or a metric of the task, which is kept high. [default: kl]
    pub metric: Metric,
    pub reference: Reference,
}

impl AcdcConfig {
    /// By the divergence from the clean run, against the pair's corrupted run.
    pub fn new(threshold: f64) -> Self {
        AcdcConfig {
            threshold,
            metric: Metric::Kl,
            reference: Reference::Pair,
        }
    }
}

/// What is left.
#[derive(Debug, Clone, PartialEq)]
pub struct AcdcCircuit {
    pub edges: EdgeSet,
    /// The distance of what is left from the clean run: the mean over pairs.
    pub distance: f64,
    /// Edges that were tried; the others fell with a destination that nothing reads.
    pub tried: usize,
    /// Circuits that were run to try them.
    pub evaluated: usize,
    /// Rises so near to the threshold that rounding could decide them: each was decided by runs of its own.
    pub ties: usize,
}

/// Takes out every edge that hardly matters.
/// # Units
/// `threshold` and `distance`: the metric's.
/// # Errors
/// Before anything runs: a threshold that is no number, a metric that the task does not support, an encoder, more pairs than
/// `running.memory` holds the runs of.
pub fn acdc(
    on: Subject<'_>,
    config: &AcdcConfig,
    running: &Running,
    progress: &dyn Progress,
) -> Result<AcdcCircuit> {
    if config.threshold.is_nan() {
        return Err(Error::invalid("a threshold must be a number"));
    }
    check_evaluated(on, config.metric, config.reference)?;
    let graph = Graph::new(&on.model.spec);
    let longest = longest_chain(on, running)?;
    let grounds = Ground::of_task(on, config.metric, config.reference, running.batch)?;
    let masked: Vec<Masked<'_>> = (grounds.iter())
        .map(|ground| Masked::new(on.model, ground))
        .collect::<Result<_>>()?;
    let mut search = Search {
        on,
        config,
        masked: &masked,
        grounds: &grounds,
        edges: EdgeSet::full(graph),
        states: Vec::new(),
        distance: 0.0,
        longest,
        tried: 0,
        evaluated: 0,
        ties: 0,
    };
    progress.start("acdc", graph.n_edges() as u64);
    search.look()?;
    for column in destinations(&graph) {
        search.visit(column, progress)?;
    }
    progress.finish();
    Ok(AcdcCircuit {
        edges: search.edges,
        distance: search.distance,
        tried: search.tried,
        evaluated: search.evaluated,
        ties: search.ties,
    })
}

/// How many edges a chain may have: what came of each of its circuits is held at once, beside the runs of all pairs.
fn longest_chain(on: Subject<'_>, running: &Running) -> Result<usize> {
    let (spec, graph) = (&on.model.spec, Graph::new(&on.model.spec));
    let (mut runs, mut state) = (0, 0);
    for pair in on.task.pairs() {
        let length = pair.clean.len();
        runs += 2 * bytes_of_pair(spec, length);
        state += 4 * graph.n_src() * graph.d_model * length;
    }
    let room = running.memory_now();
    let wanted = runs + 2 * state;
    if wanted > room {
        return Err(Error::invalid(format!(
            "the runs of {} pairs are held at once and take {} MB of memory, and there are {}; take fewer pairs (`ExpandOptions::n_pairs`), or give \
             more (`Running::memory`)",
            on.task.pairs().len(),
            wanted / 1_000_000 + 1,
            room / 1_000_000
        )));
    }
    Ok(((room - runs) / state.max(1))
        .saturating_sub(1)
        .clamp(1, LONGEST))
}

/// Columns in the order in which they are visited.
fn destinations(graph: &Graph) -> Vec<usize> {
    let column = |node, letter| graph.column(node, letter).expect("a reader of the graph");
    let mut columns = vec![column(Node::Logits, None)];
    for layer in (0..graph.n_layers).rev() {
        if graph.has_mlp {
            columns.push(column(Node::Mlp(layer), None));
        }
        for letter in [Letter::V, Letter::K, Letter::Q] {
            let heads = (0..graph.n_heads).rev();
            columns.extend(heads.map(|head| column(Node::Head { layer, head }, Some(letter))));
        }
    }
    columns
}

struct Search<'a> {
    on: Subject<'a>,
    config: &'a AcdcConfig,
    masked: &'a [Masked<'a>],
    grounds: &'a [Ground],
    /// What is left so far, what came of it batch by batch, and how far it is from the clean run.
    edges: EdgeSet,
    states: Vec<State>,
    distance: f64,
    /// Edges of a chain.
    longest: usize,
    tried: usize,
    evaluated: usize,
    ties: usize,
}

impl Search<'_> {
    /// Runs what is left.
    fn look(&mut self) -> Result<()> {
        let (distances, states) = self.chain(std::slice::from_ref(&self.edges), &self.states)?;
        self.evaluated += 1;
        self.distance = distances[0];
        self.states = states.into_iter().next().expect("one circuit");
        Ok(())
    }

    /// The distance of each of some circuits, each run from the one before it, the first from what came of another; and what
    /// came of each.
    fn chain(&self, circuits: &[EdgeSet], from: &[State]) -> Result<(Vec<f64>, Vec<Vec<State>>)> {
        let mut sums = vec![0.0; circuits.len()];
        let mut states: Vec<Vec<State>> = circuits.iter().map(|_| Vec::new()).collect();
        let mut pairs = 0;
        let whole = Arc::default();
        for (batch, (masked, ground)) in self.masked.iter().zip(self.grounds).enumerate() {
            let mut answers = Vec::new();
            for (i, edges) in circuits.iter().enumerate() {
                let before = match i {
                    0 => from.get(batch),
                    _ => states[i - 1].get(batch),
                };
                let state = masked.run(edges, &whole, before)?;
                answers.extend_from_slice(&state.answers);
                states[i].push(state);
            }
            let d_model = self.on.model.spec.d_model;
            let values = ground.metric(self.on.model, &matrix(answers, d_model)?)?;
            let n = ground.clean.len();
            for (sum, values) in sums.iter_mut().zip(values.chunks(n)) {
                *sum += values.iter().sum::<f64>();
            }
            pairs += n;
        }
        let sign = if self.config.metric.is_better_higher() {
            -1.0
        } else {
            1.0
        };
        let distances = sums.iter().map(|sum| sign * sum / pairs as f64).collect();
        Ok((distances, states))
    }

    /// Whether a distance rises by less than the threshold; so near to it that rounding could decide, by runs that take over
    /// nothing from one another.
    fn is_below(&mut self, [before, after]: [f64; 2], edges: [&EdgeSet; 2]) -> Result<bool> {
        let rise = after - before;
        if (rise - self.config.threshold).abs() >= TIE * before.abs().max(1.0) {
            return Ok(rise < self.config.threshold);
        }
        self.ties += 1;
        self.evaluated += 2;
        let alone = |edges: &EdgeSet| -> Result<f64> {
            Ok(self.chain(std::slice::from_ref(edges), &[])?.0[0])
        };
        let rise = alone(edges[1])? - alone(edges[0])?;
        Ok(rise < self.config.threshold)
    }

    /// Tries the edges into one destination.
    fn visit(&mut self, column: usize, progress: &dyn Progress) -> Result<()> {
        let graph = *self.edges.graph();
        let mut sources = self.edges.sources(column);
        sources.reverse();
        progress.advance(sources.len() as u64);
        let is_read = |row: usize| (0..graph.n_dst()).any(|column| self.edges.has(row, column));
        if graph.reader_row(column).is_some_and(|row| !is_read(row)) {
            for row in sources {
                self.edges.remove(row, column);
            }
            // Where a norm ties the heads of a layer together, even a head that nothing reads moves the others.
            return self.look();
        }
        let (mut next, mut length) = (0, 1);
        while next < sources.len() {
            if progress.cancelled() {
                return Err(Error::Interrupted {
                    kept: "nothing of the search is kept".into(),
                });
            }
            let rows = &sources[next..(next + length).min(sources.len())];
            let mut circuits = Vec::with_capacity(rows.len());
            let mut edges = self.edges.clone();
            for &row in rows {
                edges.remove(row, column);
                circuits.push(edges.clone());
            }
            let (distances, mut states) = self.chain(&circuits, &self.states)?;
            self.evaluated += circuits.len();
            let mut accepted = 0;
            let mut current = self.distance;
            let before = self.edges.clone();
            while accepted < distances.len() {
                let own = match accepted {
                    0 => &before,
                    _ => &circuits[accepted - 1],
                };
                let next = distances[accepted];
                if !self.is_below([current, next], [own, &circuits[accepted]])? {
                    break;
                }
                current = next;
                accepted += 1;
            }
            if accepted > 0 {
                self.edges = circuits.swap_remove(accepted - 1);
                self.states = states.swap_remove(accepted - 1);
                self.distance = current;
            }
            let failed = accepted < rows.len();
            self.tried += accepted + usize::from(failed);
            next += accepted + usize::from(failed);
            length = match failed {
                true => (length / 2).max(1),
                false => (2 * length).min(self.longest),
            };
        }
        Ok(())
    }
}
