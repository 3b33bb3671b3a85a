//! How much of the task a circuit does when everything outside of it is at a reference.
//!
//! In the clean run, every edge outside of the circuit carries what its source writes at the reference; edges inside carry what
//! their sources write in this very run. `normalised` is the faithfulness: `(m(circuit) - m(empty)) / (m(model) - m(empty))`, a ratio
//! of means over pairs with its interval, where `empty` is every edge at the reference (for pairs, the corrupted run).
//!
//! ```
//! use candlewick::circuit::{EdgeSet, Graph};
//! use candlewick::prelude::*;
//!
//! let lab = Lab::open("embedded", "embedded")?.first(4);
//! let graph = Graph::new(&lab.model.spec);
//! let scores = lab.measure(&CircuitEval::of([("all", EdgeSet::full(graph))]))?;
//! let faithfulness = scores.floats("normalised").expect("the task has a gap")[0];
//! assert!((faithfulness.expect("a number") - 1.0).abs() < 1e-4);
//! # Ok::<(), candlewick::Error>(())
//! ```
//!
//! Sources: Hanna, Pezzelle and Belinkov 2024, "Have Faith in Faithfulness" (arXiv 2403.17806), for the measure; Conmy et al. 2023
//! (arXiv 2304.14997) for replacing edges in the run itself; Miller, Chughtai and Saunders 2024 (arXiv 2407.08734) for how much the
//! choices matter. Where a norm stands on attention's output, a head's output is its share of the normed sum under the scale of
//! its own run, and the share of an output bias is in no edge. Nodes may be in a circuit at some positions or in some dimensions
//! of the stream alone ([`Parts`]), as in Wang et al. 2022 (arXiv 2211.00593) and MIB (Mueller et al. 2025, arXiv 2504.13151).

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::ground::{Ground, NO_OTHER_MODEL, matrix, values};
use super::limits::{Limits, positions, roles_of};
use super::masked::Masked;
use super::plain::{self, CircuitMode};
use crate::circuit::{EdgeSet, Graph, Part, Parts};
use crate::error::{Error, Result};
use crate::hooks::Node;
use crate::methods::exact_edges::Reference;
use crate::methods::exact_edges::runs::{Means, bytes_of_pair, reference_means};
use crate::methods::measure::{Watch, check, measure};
use crate::methods::method::{Cost, Method, Needs, Prepared, Running, Subject, Unit, unmeasured};
use crate::metric::Metric;
use crate::nn::host::is_host;
use crate::run::Progress;
use crate::run::rows::Rows;
use crate::scores::{Cell, Direction, ExampleScores, Scores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// A circuit, with what its row is called.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedCircuit {
    pub name: String,
    /// What it is evaluated for, where circuits are of several kinds: `random`, `without an edge`.
    pub class: Option<String>,
    /// Taken as they are: [`EdgeSet::pruned`] drops dead ends.
    pub edges: EdgeSet,
    /// Nodes of which only a part is in the circuit ([`crate::circuit::Circuit::parts`]).
    pub parts: Parts,
}

impl NamedCircuit {
    pub fn new(name: impl Into<String>, edges: EdgeSet) -> Self {
        NamedCircuit {
            name: name.into(),
            class: None,
            edges,
            parts: Parts::new(),
        }
    }

    /// With only these parts of some of its nodes.
    pub fn in_parts(mut self, parts: &Parts) -> Self {
        self.parts = parts.clone();
        self
    }

    pub fn of_class(mut self, class: &str) -> Self {
        self.class = Some(class.into());
        self
    }
}

/// Circuits to evaluate, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct CircuitEval {
    pub circuits: Vec<NamedCircuit>,
    pub mode: CircuitMode,
    /// What edges outside of the circuit carry.
    pub reference: Reference,
    /// [default: the task's]
    pub metric: Option<Metric>,
}

impl CircuitEval {
    /// These circuits, against the pair's corrupted run.
    pub fn of<'n>(circuits: impl IntoIterator<Item = (&'n str, EdgeSet)>) -> Self {
        let circuits = circuits.into_iter();
        CircuitEval {
            circuits: circuits
                .map(|(name, edges)| NamedCircuit::new(name, edges))
                .collect(),
            mode: CircuitMode::default(),
            reference: Reference::default(),
            metric: None,
        }
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }
}

/// Refuses what the fast way cannot evaluate.
/// # Errors
/// Those of measuring a [`CircuitEval`]; [`Error::Invalid`] for a model that is not f32 on the CPU.
pub(super) fn check_evaluated(on: Subject<'_>, metric: Metric, reference: Reference) -> Result<()> {
    let all = EdgeSet::full(Graph::new(&on.model.spec));
    let config = CircuitEval {
        metric: Some(metric),
        reference,
        ..CircuitEval::of([("all", all)])
    };
    if !is_host(&on.model.weights.w_e) {
        return Err(Error::invalid(
            "edges are taken out one at a time in f32 on the CPU; leave `LoadOptions::dtype` and `LoadOptions::device` out",
        ));
    }
    check(&config, &on.model.spec, on.task)
}

/// One circuit with all other edges at the reference; and, against pairs, given its clean values in the corrupted run.
pub(super) fn in_both_modes(
    on: Subject<'_>,
    circuit: &NamedCircuit,
    reference: Reference,
    running: &Running,
    watch: &Watch<'_>,
) -> Result<(Scores, Option<Scores>)> {
    let eval = CircuitEval {
        circuits: vec![circuit.clone()],
        reference,
        ..CircuitEval::of([])
    };
    let running = Running {
        shard: None,
        verify: None,
        ..running.clone()
    };
    // An evaluation is over before it would be worth going on with.
    let table = |eval: &CircuitEval| measure(on, eval, &running, &Watch::progress(watch.progress));
    let given = match reference {
        Reference::Pair => {
            let mode = CircuitMode::Edge;
            Some(table(&CircuitEval {
                mode,
                ..eval.clone()
            })?)
        }
        Reference::Zero | Reference::Mean | Reference::Same => None,
    };
    Ok((table(&eval)?, given))
}

/// The slow twin: each circuit by one whole forward pass with a mask for every reader, on whatever device the model is.
/// # Shapes
/// `[pairs][circuits]`
/// # Units
/// The metric's.
/// # Errors
/// Those of measuring a [`CircuitEval`].
pub fn circuit_values_plain(on: Subject<'_>, config: &CircuitEval) -> Result<Vec<Vec<f64>>> {
    let running = Running::default();
    check(config, &on.model.spec, on.task)?;
    let means = reference_means(on, config.reference, running.batch)?;
    let mut found = vec![Vec::new(); on.task.pairs().len()];
    for batch in on.task.batches(running.batch) {
        let ground = Ground::new(on, config.metric(on.task), config.reference, &batch, &means)?;
        let plainly = Plainly::new(on, config, &ground)?;
        for circuit in &config.circuits {
            for (&pair, value) in batch.iter().zip(plainly.values(circuit, &batch)?) {
                found[pair].push(value);
            }
        }
    }
    Ok(found)
}

/// The parts of a circuit's nodes in the rows of a batch.
fn limits(on: Subject<'_>, circuit: &NamedCircuit, rows: &Rows, batch: &[usize]) -> Result<Limits> {
    let pairs: Vec<&Pair> = batch.iter().map(|&pair| &on.task.pairs()[pair]).collect();
    Limits::new(
        &circuit.parts,
        circuit.edges.graph(),
        rows,
        (on.task, &pairs),
    )
}

/// Circuits one by one, each by one whole forward pass.
struct Plainly<'a> {
    on: Subject<'a>,
    mode: CircuitMode,
    ground: &'a Ground,
    /// By row, what swapped edges carry.
    values: Vec<Tensor>,
}

impl<'a> Plainly<'a> {
    fn new(on: Subject<'a>, config: &CircuitEval, ground: &'a Ground) -> Result<Self> {
        let carried = match config.mode {
            CircuitMode::Complement => &ground.reference,
            CircuitMode::Edge => &ground.clean_writes,
        };
        Ok(Plainly {
            on,
            mode: config.mode,
            ground,
            values: values(on.model, carried)?,
        })
    }

    fn values(&self, circuit: &NamedCircuit, batch: &[usize]) -> Result<Vec<f64>> {
        let edges = &circuit.edges;
        let (prompts, swapped) = match self.mode {
            CircuitMode::Complement => (&self.ground.clean_prompts, &plain::complement(edges)?),
            CircuitMode::Edge => (&self.ground.corrupted_prompts, edges),
        };
        let examples: Vec<usize> = (0..prompts.len()).collect();
        let rows = Rows::whole_as(&examples, prompts[0].len());
        let swap = plain::Swap {
            edges: swapped,
            mode: self.mode,
            limits: &limits(self.on, circuit, &rows, batch)?,
            values: &self.values,
        };
        let walked = plain::walk(self.on.model, prompts, swap, false)?;
        self.ground.metric(self.on.model, &walked.answers)
    }
}

impl Method for CircuitEval {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta {
            method: "circuit-eval".into(),
            metric: metric.to_string(),
            unit: metric.unit().into(),
            base: match self.reference {
                Reference::Pair => None,
                Reference::Zero => Some("zero"),
                Reference::Mean => Some("mean"),
                Reference::Same => Some("same"),
            },
            direction: Direction::Denoise,
            seed: task.seed,
        }
    }

    fn settings(&self) -> Value {
        let circuit = |circuit: &NamedCircuit| {
            let NamedCircuit {
                name, edges, parts, ..
            } = circuit;
            let mut hash = Sha256::new();
            for (row, column) in edges.places() {
                hash.update((row as u64).to_le_bytes());
                hash.update((column as u64).to_le_bytes());
            }
            let hash = hash.finalize();
            let hex: String = hash
                .iter()
                .take(8)
                .map(|byte| format!("{byte:02x}"))
                .collect();
            let mut said = json!({ "name": name, "edges": edges.len(), "hash": hex });
            if !parts.is_empty() {
                let part = |(node, part): (&Node, &Part)| {
                    let positions = part.positions.to_string();
                    (
                        node.to_string(),
                        json!({ "positions": positions, "dims": part.dims }),
                    )
                };
                said["parts"] = parts.iter().map(part).collect();
            }
            said
        };
        let circuits: Vec<Value> = self.circuits.iter().map(circuit).collect();
        json!({ "mode": self.mode, "reference": self.reference, "circuits": circuits })
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            decoder: Some("circuits"),
            aligned: true,
            metric: Some(self.metric(task)),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        let graph = Graph::new(spec);
        if self.circuits.is_empty() {
            return Err(Error::invalid("there is no circuit to evaluate; give one"));
        }
        let roles = roles_of(task.pairs());
        let mut names = std::collections::HashSet::new();
        for NamedCircuit {
            name, edges, parts, ..
        } in &self.circuits
        {
            for (&node, part) in parts {
                graph.row(node)?;
                for pair in task.pairs() {
                    positions(part, pair, &roles).map_err(|error| {
                        Error::invalid(format!(
                            "`{node}` of the circuit: {error}; take the nodes whole (`Circuit::in_whole_nodes`), or the task that it was found on"
                        ))
                    })?;
                }
            }
            graph.check_same(edges.graph())?;
            if !names.insert(name) {
                return Err(Error::invalid(format!(
                    "two circuits are called `{}`; give each a name of its own",
                    crate::text::shortened(name)
                )));
            }
        }
        if self.reference == Reference::Same {
            return Err(Error::invalid(NO_OTHER_MODEL));
        }
        if self.mode == CircuitMode::Edge && self.reference != Reference::Pair {
            return Err(Error::invalid(
                "giving edges their clean values needs a corrupted run to give them in; take the reference `pair`, or the mode `complement`",
            ));
        }
        Ok(())
    }

    fn prepare<'a>(
        &'a self,
        on: Subject<'a>,
        running: &'a Running,
    ) -> Result<Box<dyn Prepared + 'a>> {
        let cell = |circuit: &NamedCircuit| Cell {
            component: "circuit".into(),
            src: Some(circuit.name.clone()),
            class: circuit.class.clone(),
            ..Cell::default()
        };
        Ok(Box::new(Evaluating {
            on,
            config: self,
            running,
            cells: self.circuits.iter().map(cell).collect(),
            means: Means::new(),
        }))
    }
}

/// A checked run in progress.
struct Evaluating<'a> {
    on: Subject<'a>,
    config: &'a CircuitEval,
    running: &'a Running,
    cells: Vec<Cell>,
    means: Means,
}

impl Evaluating<'_> {
    /// The fast way is made of f32 slices, and of edges that are replaced in the run itself.
    fn is_fast(&self) -> bool {
        let weights = &self.on.model.weights;
        self.config.mode == CircuitMode::Complement && is_host(&weights.w_e)
    }
}

impl Prepared for Evaluating<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let graph = Graph::new(&self.on.model.spec);
        // The runs, and what every source writes in two circuits at a time.
        2 * bytes_of_pair(&self.on.model.spec, length)
            + 3 * 4 * graph.n_src() * graph.d_model * length
    }

    fn splits(&self) -> bool {
        true
    }

    fn begin(&mut self, _: &dyn Progress) -> Result<()> {
        self.means = reference_means(self.on, self.config.reference, self.running.batch)?;
        Ok(())
    }

    /// Two runs, and for each circuit at most the layers that are alive in it.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        let graph = Graph::new(&self.on.model.spec);
        let circuits = &self.config.circuits[unit.cells.clone()];
        let passes = |NamedCircuit { edges, .. }: &NamedCircuit| match self.is_fast() {
            // A full circuit costs about two passes; a small one its nodes.
            true => 0.2 + 1.8 * (edges.nodes().len() as f64 / (graph.n_src() + 1) as f64),
            false => 4.0,
        };
        Ok(Cost {
            variants: unit.cells.len(),
            bytes: self.bytes(length),
            ..Cost::passes(2.0 + circuits.iter().map(passes).sum::<f64>())
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let (model, metric) = (self.on.model, self.config.metric(self.on.task));
        let ground = Ground::new(
            self.on,
            metric,
            self.config.reference,
            &unit.items,
            &self.means,
        )?;
        let circuits = &self.config.circuits[unit.cells.clone()];
        let mut found: Vec<Vec<f64>> = vec![Vec::new(); unit.items.len()];
        let mut keep = |values: Vec<f64>| {
            found
                .iter_mut()
                .zip(values)
                .for_each(|(found, value)| found.push(value));
            progress.advance(unit.items.len() as u64);
            match progress.cancelled() {
                true => Err(Error::Interrupted {
                    kept: "nothing of the batch in flight is kept".into(),
                }),
                false => Ok(()),
            }
        };
        if self.is_fast() {
            let masked = Masked::new(model, &ground)?;
            let mut before = None;
            for circuit in circuits {
                let limits = limits(self.on, circuit, &ground.rows, &unit.items)?;
                let state = masked.run(&circuit.edges, &Arc::new(limits), before.as_ref())?;
                let answers = matrix(state.answers.clone(), model.spec.d_model)?;
                keep(ground.metric(model, &answers)?)?;
                before = Some(state);
            }
        } else {
            let plainly = Plainly::new(self.on, self.config, &ground)?;
            for circuit in circuits {
                keep(plainly.values(circuit, &unit.items)?)?;
            }
        }
        let cells: Arc<[u32]> = (unit.cells.start as u32..unit.cells.end as u32).collect();
        let example = |(i, values): (usize, Vec<f64>)| {
            let (clean, empty) = (ground.clean[i], ground.empty[i]);
            let mut one = unmeasured(self.on.task, unit.items[i], clean, empty);
            one.judged(ground.judged[i]);
            one.cells = cells.clone();
            one.values = values;
            one.facts = BTreeMap::from([("corrupted".to_string(), ground.corrupted[i])]);
            one
        };
        Ok(found.into_iter().enumerate().map(example).collect())
    }
}
