//! Exact edge patching: one reader sees the other run's output of one source, and everything downstream is recomputed.
//!
//! The stream that a reader sees is a sum of what earlier nodes wrote, so the edge `u -> v` is patched in the clean run by
//! `x_v <- x_v + (z'_u - z_u)`, for that reader alone. The effect is the metric then minus the metric before: what
//! every gradient score of an edge estimates. The slow way is a whole forward pass for each edge ([`exact_edge_effects_plain`]).
//!
//! Here an edge into a head costs one head's attention, after which it is a variant of the sweep that writes the head's new
//! z: all sources of a layer go through its norm and its queries, keys and values in one product. An edge into an MLP joins
//! where the MLP begins, and one into the logits at the end.
//!
//! ```
//! use candlewick::hooks::Edge;
//! use candlewick::methods::{EdgeConfig, exact_edge_effects};
//! use candlewick::model::load::{LoadOptions, load};
//! use candlewick::run::Quiet;
//! use candlewick::task::{ExpandOptions, TaskFile, expand};
//!
//! let loaded = load("embedded", &LoadOptions::default())?;
//! let options = ExpandOptions { n_pairs: Some(2), ..ExpandOptions::default() };
//! let task = expand(&TaskFile::open("embedded")?, &loaded.tokenizer, &options)?;
//! let edges: Vec<Edge> = vec!["input->a0.h1<v>".parse()?, "m0->logits".parse()?];
//! let config = EdgeConfig::new(task.metric);
//! let effects = exact_edge_effects(&loaded.model, task.pairs(), &edges, &config, &Quiet)?;
//! assert_eq!((effects.len(), effects[0].len()), (2, 2)); // [pairs][edges]
//! # Ok::<(), candlewick::Error>(())
//! ```
//!
//! Sources: Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching"; Hanna, Pezzelle and Belinkov 2024,
//! "Have Faith in Faithfulness" (arXiv 2403.17806), for the graph. Where a norm stands on the output of attention, a head's
//! output is its share of the normed sum, `w * (z_h W_O[h]) / scale` with the scale of its own run, so that shares add up. An
//! output bias under such a norm moves with the scale too, and belongs to no source. Left out on purpose: edges by position,
//! and circuits (where an edge that is replaced is replaced in the patched run, not in the clean one).

mod deltas;
mod heads;
mod runs;
mod together;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use serde_json::json;

use crate::circuit::Graph;
use crate::error::Result;
use crate::hooks::{Edge, Edit, Hook, Kind, Letter, Node, Op, Pos, Site, Value};
use crate::methods::record::provenance;
use crate::metric::Metric;
use crate::model::Model;
use crate::run::{Progress, Sources, SweepOptions, Variant, sweep};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Scores, ScoresMeta};
use crate::task::{Pair, Task};
use runs::{Runs, batches, check_pairs, reference_means};

pub use together::{exact_edge_effects_plain, exact_edges_together};

/// What a source's output is replaced by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub enum Reference {
    /// Its output in the corrupted run of the pair.
    #[default]
    Pair,
    Zero,
    /// Its mean output over the corrupted prompts of the same template and length, position by position.
    Mean,
}

impl Reference {
    /// What kind of change this is, for the table.
    pub fn direction(self) -> Direction {
        match self {
            Reference::Pair => Direction::Noise,
            Reference::Zero | Reference::Mean => Direction::Ablate,
        }
    }
}

/// How edges are patched.
#[derive(Debug, Clone)]
pub struct EdgeConfig {
    pub metric: Metric,
    pub reference: Reference,
    pub sweep: SweepOptions,
    /// Pairs that run together, at most; memory may allow fewer.
    pub batch: usize,
}

impl EdgeConfig {
    /// Patching from the pair's corrupted run; all else at its default.
    pub fn new(metric: Metric) -> Self {
        EdgeConfig {
            metric,
            reference: Reference::Pair,
            sweep: SweepOptions::default(),
            batch: 8,
        }
    }
}

/// Measured edges, ready for [`Scores::assemble`](crate::scores::Scores::assemble).
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeMeasurements {
    /// One for each edge, in the order in which they were given.
    pub cells: Vec<Cell>,
    /// One for each pair of the task.
    pub examples: Vec<ExampleScores>,
}

/// Patches edges one at a time in every pair of a task.
/// # Units
/// `values`: the metric's, with the edge patched in the clean run.
/// # Errors
/// Before anything runs: [`Error::UnknownNode`], [`Error::NoSuchEdge`], an empty task, a metric that the task does not support.
/// [`Error::Interrupted`].
pub fn exact_edges(
    model: &Model,
    task: &Task,
    edges: &[Edge],
    config: &EdgeConfig,
    progress: &dyn Progress,
) -> Result<EdgeMeasurements> {
    model.spec.check_decoder("edges")?;
    task.check_metric(config.metric)?;
    let all: Arc<[u32]> = (0..edges.len() as u32).collect();
    let measured = measure(model, task.pairs(), edges, config, progress)?;
    let example = |(pair, one): (&Pair, Measured)| ExampleScores {
        example: pair.index,
        clean: one.clean,
        corrupted: one.corrupted,
        roles: pair.roles.clone(),
        cells: Arc::clone(&all),
        values: one
            .effects
            .iter()
            .map(|effect| one.clean + effect)
            .collect(),
        ..ExampleScores::default()
    };
    Ok(EdgeMeasurements {
        cells: edges.iter().map(cell).collect(),
        examples: task.pairs().iter().zip(measured).map(example).collect(),
    })
}

/// [`exact_edges`] as a table, beside the measurements.
/// # Units
/// `value` and `score`: the metric's.
/// # Errors
/// Those of [`exact_edges`].
pub fn exact_edge_scores(
    model: &Model,
    task: &Task,
    edges: &[Edge],
    config: &EdgeConfig,
    detail: Detail,
    progress: &dyn Progress,
) -> Result<(Scores, EdgeMeasurements)> {
    let began = Instant::now();
    let measured = exact_edges(model, task, edges, config, progress)?;
    let meta = ScoresMeta {
        method: "exact-edges".into(),
        metric: config.metric.to_string(),
        unit: config.metric.unit().into(),
        direction: config.reference.direction(),
        seed: task.seed,
    };
    let settings = json!({
        "method": meta.method,
        "version": env!("CARGO_PKG_VERSION"),
        "weights": model.origin.weight_hash,
        "reference": config.reference,
        "edges": edges.len(),
    });
    let provenance = provenance(
        model,
        task,
        settings,
        began.elapsed().as_secs_f64(),
        Vec::new(),
    );
    let (cells, examples) = (&measured.cells, &measured.examples);
    let scores = Scores::assemble(cells, examples, &meta, detail, provenance)?;
    Ok((scores, measured))
}

impl EdgeMeasurements {
    /// The mean effect of each edge over pairs, in the order in which they were given.
    pub fn mean(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.cells.len()];
        for example in &self.examples {
            for (mean, value) in mean.iter_mut().zip(&example.values) {
                *mean += (value - example.clean) / self.examples.len() as f64;
            }
        }
        mean
    }
}

/// An edge's row in a table of scores.
pub fn cell(edge: &Edge) -> Cell {
    Cell {
        component: "edge".into(),
        src: Some(edge.src.to_string()),
        dst: Some(edge.reader()),
        ..Cell::default()
    }
}

/// The effect of each edge on each pair: the metric with the edge patched in the clean run, minus the clean metric.
/// # Shapes
/// `[pairs][edges]`
/// # Units
/// The metric's.
/// # Errors
/// [`Error::UnknownNode`], [`Error::NoSuchEdge`] and [`Error::LengthMismatch`] before anything runs; [`Error::Interrupted`].
pub fn exact_edge_effects(
    model: &Model,
    pairs: &[Pair],
    edges: &[Edge],
    config: &EdgeConfig,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    model.spec.check_decoder("edges")?;
    let measured = measure(model, pairs, edges, config, progress)?;
    Ok(measured.into_iter().map(|one| one.effects).collect())
}

/// What was measured on one pair.
#[derive(Debug, Clone, Default)]
struct Measured {
    clean: f64,
    corrupted: f64,
    effects: Vec<f64>,
}

fn measure(
    model: &Model,
    pairs: &[Pair],
    edges: &[Edge],
    config: &EdgeConfig,
    progress: &dyn Progress,
) -> Result<Vec<Measured>> {
    let wanted = by_reader(&Graph::new(&model.spec), edges)?;
    check_pairs(pairs)?;
    let means = reference_means(model, pairs, config)?;
    progress.start("patching edges", (pairs.len() * edges.len()) as u64);
    let mut measured = vec![Measured::default(); pairs.len()];
    for batch in batches(model, pairs, config) {
        let run = Runs::new(model, pairs, &batch, config, &means)?;
        let mut sweeping = Sweeping {
            model,
            run: &run,
            config,
            progress,
            variants: Vec::new(),
            of: Vec::new(),
            bytes: 0,
            effects: vec![vec![0.0; edges.len()]; batch.len()],
        };
        for (&reader, sources) in &wanted {
            sweeping.patch(reader, sources)?;
        }
        sweeping.flush()?;
        let effects = sweeping.effects;
        for ((i, &pair), effects) in batch.iter().enumerate().zip(effects) {
            measured[pair] = Measured {
                clean: run.clean[i],
                corrupted: run.corrupted[i],
                effects,
            };
        }
    }
    progress.finish();
    Ok(measured)
}

/// A place where the stream is read, without the heads and letters of attention: what is prepared for many edges at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Reader {
    layer: usize,
    of: ReaderOf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ReaderOf {
    Attention,
    Mlp,
    Logits,
}

/// For each source, the edges from it into one reader: their index, and which input of which head.
type Wanted = BTreeMap<Node, Vec<(usize, Option<(Letter, usize)>)>>;

fn by_reader(graph: &Graph, edges: &[Edge]) -> Result<BTreeMap<Reader, Wanted>> {
    let mut readers: BTreeMap<Reader, Wanted> = BTreeMap::new();
    for (index, edge) in edges.iter().enumerate() {
        graph.place(edge)?;
        let (layer, of, input) = match (edge.dst, edge.letter) {
            (Node::Head { layer, head }, Some(letter)) => {
                (layer, ReaderOf::Attention, Some((letter, head)))
            }
            (Node::Mlp(layer), _) => (layer, ReaderOf::Mlp, None),
            _ => (graph.n_layers - 1, ReaderOf::Logits, None),
        };
        let wanted = readers.entry(Reader { layer, of }).or_default();
        wanted.entry(edge.src).or_default().push((index, input));
    }
    Ok(readers)
}

/// Variants on their way through the sweep, and what came of them.
struct Sweeping<'a> {
    model: &'a Model,
    run: &'a Runs,
    config: &'a EdgeConfig,
    progress: &'a dyn Progress,
    variants: Vec<Variant>,
    /// The edge of each variant.
    of: Vec<usize>,
    bytes: usize,
    /// `[batch][edges]`
    effects: Vec<Vec<f64>>,
}

/// One source of one prompt, whose difference many edges carry.
struct Unit<'a> {
    example: usize,
    delta: Tensor,
    wanted: &'a [(usize, Option<(Letter, usize)>)],
}

impl Sweeping<'_> {
    /// Patches all wanted edges into one reader.
    fn patch(&mut self, reader: Reader, wanted: &Wanted) -> Result<()> {
        let mut units = Vec::new();
        let limit = self.units_at_once();
        for (&source, wanted) in wanted {
            for example in 0..self.effects.len() {
                match self.run.delta(self.model, source, example)? {
                    Some(delta) => units.push(Unit {
                        example,
                        delta,
                        wanted,
                    }),
                    // What carries no difference has no effect.
                    None => self.progress.advance(wanted.len() as u64),
                }
                if units.len() >= limit {
                    self.patch_units(reader, &std::mem::take(&mut units))?;
                }
            }
        }
        self.patch_units(reader, &units)
    }

    /// So many that their streams, queries, keys and values take a quarter of the memory.
    fn units_at_once(&self) -> usize {
        let spec = &self.model.spec;
        let qkv = (spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
        let width = 4 * spec.d_model + qkv + 8 * spec.d_head;
        (self.config.sweep.memory / (16 * self.run.base.length * width)).max(1)
    }

    fn patch_units(&mut self, reader: Reader, units: &[Unit<'_>]) -> Result<()> {
        if units.is_empty() {
            return Ok(());
        }
        match reader.of {
            ReaderOf::Attention => self.patch_heads(reader.layer, units),
            ReaderOf::Mlp => self.patch_stream(Hook::at(Kind::MlpIn, reader.layer), units),
            ReaderOf::Logits => self.patch_stream(Hook::at(Kind::ResidPost, reader.layer), units),
        }
    }

    /// Edges into an MLP or the logits: the difference is added to what they read.
    fn patch_stream(&mut self, hook: Hook, units: &[Unit<'_>]) -> Result<()> {
        for unit in units {
            let mut positions = self.run.positions(unit.example);
            let mut delta = unit.delta.clone();
            if hook.kind == Kind::ResidPost {
                // The answer alone is read.
                let answer = positions.len() - 1;
                delta = delta.narrow(0, answer, 1)?.copy()?;
                positions.drain(..answer);
            }
            let site = Site::all(hook).at_positions(positions.into_iter().map(at));
            let edit = Edit::new(site, Op::Add(Value::Tensor(delta)));
            for &(edge, _) in unit.wanted {
                self.push(unit.example, edge, edit.clone())?;
            }
        }
        Ok(())
    }

    /// Edges into heads: the layer's norm, queries, keys and values of all units at once; then, input by input, z.
    fn patch_heads(&mut self, layer: usize, units: &[Unit<'_>]) -> Result<()> {
        let spec = &self.model.spec;
        let streams: Vec<(usize, &Tensor)> = units
            .iter()
            .map(|unit| (unit.example, &unit.delta))
            .collect();
        let read = heads::Read::new(self.model, &self.run.base, layer, &streams)?;
        let mut by_input: BTreeMap<(Letter, usize), Vec<(usize, usize)>> = BTreeMap::new();
        for (i, unit) in units.iter().enumerate() {
            for &(edge, input) in unit.wanted {
                let input = input.expect("edges into attention name an input");
                by_input.entry(input).or_default().push((i, edge));
            }
        }
        for ((letter, head), of) in by_input {
            let units: Vec<usize> = of.iter().map(|&(unit, _)| unit).collect();
            let patched = read.z(letter, head, &units)?;
            for ((_, edge), (example, positions, z)) in of.into_iter().zip(patched) {
                let mut site = Site::all(Hook::at(Kind::Z, layer));
                if z.dim(1)? != spec.n_heads {
                    site = site.heads([head]);
                }
                let site = site.at_positions(positions.into_iter().map(at));
                self.push(
                    example,
                    edge,
                    Edit::new(site, Op::Replace(Value::Tensor(z))),
                )?;
            }
        }
        Ok(())
    }

    fn push(&mut self, example: usize, edge: usize, edit: Edit) -> Result<()> {
        if let Op::Add(Value::Tensor(t)) | Op::Replace(Value::Tensor(t)) = &edit.op {
            // Beside the values, what an edit and its site weigh.
            self.bytes += 4 * t.elem_count() + 32 * self.run.base.length + 512;
        }
        let edits = vec![edit];
        self.variants.push(Variant { example, edits });
        self.of.push(edge);
        match self.bytes > self.config.sweep.memory / 4 {
            true => self.flush(),
            false => Ok(()),
        }
    }

    /// Runs the variants that have gathered.
    fn flush(&mut self) -> Result<()> {
        let variants = std::mem::take(&mut self.variants);
        let of = std::mem::take(&mut self.of);
        self.bytes = 0;
        let options = SweepOptions {
            memory: self.config.sweep.memory / 4,
            ..self.config.sweep.clone()
        };
        let values = sweep(
            self.model,
            &self.run.base,
            &variants,
            &Sources::default(),
            &self.run.readout,
            &options,
            self.progress,
        )?;
        for ((variant, edge), value) in variants.iter().zip(of).zip(values) {
            let example = variant.example;
            self.effects[example][edge] = value - self.run.clean[example];
        }
        Ok(())
    }
}

fn at(position: u32) -> Pos {
    Pos::Index(position as usize)
}
