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
//! use candlewick::prelude::*;
//!
//! let lab = Lab::open("embedded", "embedded")?.first(2);
//! let scores = lab.measure(&EdgeConfig::of(["input->a0.h1<v>", "m0->logits"])?)?;
//! assert_eq!(scores.table.height(), 2);
//! # Ok::<(), candlewick::Error>(())
//! ```
//!
//! Sources: Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching"; Hanna, Pezzelle and Belinkov 2024,
//! "Have Faith in Faithfulness" (arXiv 2403.17806), for the graph. Where a norm stands on the output of attention, a head's
//! output is its share of the normed sum, `w * (z_h W_O[h]) / scale` with the scale of its own run, so that shares add up. An
//! output bias under such a norm moves with the scale too, and belongs to no source. Left out on purpose: edges by position,
//! and circuits (where an edge that is replaced is replaced in the patched run, not in the clean one).

pub(super) mod deltas;
mod heads;
mod reference;
pub(super) mod runs;
mod together;

use std::collections::BTreeMap;

use candle_core::Tensor;
use serde_json::{Value, json};

use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{self, Edge, Edit, Hook, Kind, Letter, Node, Op, Pos, Site};
use crate::methods::activation_patching::{SourceModel, passes_for_values, read_weights};
use crate::methods::measure::{Watch, measure};
use crate::methods::method::{Cost, Method, Needs, Prepared, Running, Subject, Unit, unmeasured};
use crate::metric::Metric;
use crate::model::Model;
use crate::run::{Progress, Sources, SweepOptions, Variant, sweep};
use crate::scores::{Cell, ExampleScores, Measured, Scores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;
pub use reference::Reference;
use runs::{EdgeRuns, bytes_of_pair, reference_means, values_of};

pub use together::{exact_edge_effects_plain, exact_edges_together};

/// Which edges are patched one at a time, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EdgeConfig {
    /// [default: every edge of the model]
    pub edges: Option<Vec<Edge>>,
    /// [default: the task's]
    pub metric: Option<Metric>,
    pub reference: Reference,
    /// The model whose runs give what sources write instead [default: the model that is patched]. Of a head that is its z, seen through
    /// the patched model's own `W_O`, as where z is patched.
    pub source_model: Option<SourceModel>,
}

impl EdgeConfig {
    /// Every edge of the model, from the pair's corrupted run.
    pub fn all() -> Self {
        EdgeConfig::default()
    }

    /// These edges, as they are written: `a0.h1->m3`.
    /// # Errors
    /// [`Error::Parse`].
    pub fn of<'t>(edges: impl IntoIterator<Item = &'t str>) -> Result<Self> {
        let edges: Result<Vec<Edge>> = edges.into_iter().map(str::parse).collect();
        Ok(EdgeConfig::these(edges?))
    }

    /// These edges.
    pub fn these(edges: Vec<Edge>) -> Self {
        EdgeConfig {
            edges: Some(edges),
            ..EdgeConfig::default()
        }
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    fn edges(&self, graph: &Graph) -> Vec<Edge> {
        match &self.edges {
            Some(edges) => edges.clone(),
            None => graph.edges().collect(),
        }
    }
}

/// Patches edges one at a time in every pair of a task: [`measure`] with the defaults of [`Running`].
/// # Units
/// `value` and `score`: the metric's, with the edge patched in the clean run.
/// # Errors
/// Before anything runs: [`Error::UnknownNode`], [`Error::NoSuchEdge`], a metric that the task does not support.
pub fn exact_edges(on: Subject<'_>, config: &EdgeConfig) -> Result<Scores> {
    measure(on, config, &Running::default(), &Watch::default())
}

impl Method for EdgeConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta {
            method: "exact-edges".into(),
            metric: metric.to_string(),
            unit: metric.unit().into(),
            base: None,
            direction: self.reference.direction(),
            seed: task.seed,
        }
    }

    fn settings(&self) -> Value {
        let edges = self.edges.as_ref().map(Vec::len);
        let mut settings = json!({ "reference": self.reference, "edges": edges });
        if let Some(other) = &self.source_model {
            settings["source_model"] = other.settings();
        }
        settings
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            decoder: Some("edges"),
            aligned: true,
            metric: Some(self.metric(task)),
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.reference
            .check(self.source_model.as_ref(), spec, task)?;
        let graph = Graph::new(spec);
        let edges = self.edges.iter().flatten();
        let mut seen = std::collections::HashSet::new();
        for edge in edges {
            graph.place(edge)?;
            if !seen.insert(edge) {
                return Err(Error::invalid(format!("the edge `{edge}` is named twice")));
            }
        }
        if self.edges.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid(
                "there is no edge to patch; name one such as `a0.h1->m1`, or leave the list out for all",
            ));
        }
        Ok(())
    }

    fn load(&self) -> Result<()> {
        read_weights(self.source_model.as_ref())
    }

    fn prepare<'a>(
        &'a self,
        on: Subject<'a>,
        running: &'a Running,
    ) -> Result<Box<dyn Prepared + 'a>> {
        let edges = self.edges(&Graph::new(&on.model.spec));
        Ok(Box::new(ExactEdges {
            on,
            config: self,
            metric: self.metric(on.task),
            running,
            cells: edges.iter().map(cell).collect(),
            edges,
            means: BTreeMap::new(),
        }))
    }
}

/// A checked run in progress.
struct ExactEdges<'a> {
    on: Subject<'a>,
    config: &'a EdgeConfig,
    metric: Metric,
    running: &'a Running,
    edges: Vec<Edge>,
    cells: Vec<Cell>,
    means: runs::Means,
}

impl Prepared for ExactEdges<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        // Runs may take a quarter of the memory; variants take the rest.
        4 * bytes_of_pair(&self.on.model.spec, length)
    }

    fn splits(&self) -> bool {
        true
    }

    fn begin(&mut self, _: &dyn Progress) -> Result<()> {
        let other = self.config.source_model.as_ref();
        self.means = reference_means(
            values_of(self.on, other)?,
            self.config.reference,
            self.running.batch,
        )?;
        Ok(())
    }

    /// An edge into layer `l` makes a variant that walks the layers above it, from the first position that differs.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let pair = &self.on.task.pairs()[unit.items[0]];
        let (spec, length) = (&self.on.model.spec, pair.clean.len());
        let EdgeConfig {
            reference,
            source_model,
            ..
        } = self.config;
        let first = reference.first_difference(source_model.as_ref(), pair);
        let share = (length - first.min(length)) as f64 / length as f64;
        let mut packed = 0.0;
        for edge in &self.edges[unit.cells.clone()] {
            let above = match edge.dst {
                Node::Head { layer, .. } => spec.n_layers as f64 - layer as f64 - 0.5,
                Node::Mlp(layer) => spec.n_layers as f64 - layer as f64 - 0.3,
                Node::Input | Node::Logits => 0.0,
            };
            packed += share * above / spec.n_layers as f64;
        }
        Ok(Cost {
            variants: unit.cells.len(),
            without_effect: if share > 0.0 { 0 } else { unit.cells.len() },
            passes: 2.0 + self.passes_for_values(unit.cells.start == 0),
            packed,
            bytes: self.bytes(length),
            ..Cost::default()
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let model = self.on.model;
        let edges = &self.edges[unit.cells.clone()];
        let wanted = by_reader(&Graph::new(&model.spec), edges)?;
        let run = EdgeRuns::new(self.on, self.metric, self.config, &unit.items, &self.means)?;
        let mut sweeping = Sweeping {
            model,
            run: &run,
            memory: self.running.memory_now(),
            progress,
            variants: Vec::new(),
            of: Vec::new(),
            bytes: 0,
            effects: vec![vec![0.0; edges.len()]; unit.items.len()],
        };
        for (&reader, sources) in &wanted {
            sweeping.patch(reader, sources)?;
        }
        sweeping.flush()?;
        let effects = sweeping.effects;
        let cells: std::sync::Arc<[u32]> =
            (unit.cells.start as u32..unit.cells.end as u32).collect();
        let example = |(i, effects): (usize, Vec<f64>)| {
            let (clean, corrupted) = (run.clean[i], run.corrupted[i]);
            let mut one = unmeasured(self.on.task, unit.items[i], clean, corrupted);
            one.judged(run.judged[i]);
            one.cells = cells.clone();
            one.values = effects.iter().map(|effect| clean + effect).collect();
            one
        };
        Ok(effects.into_iter().enumerate().map(example).collect())
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        match &self.config.source_model {
            Some(other) => other.tell(self.on, self.metric, self.running.batch, measured, progress),
            None => Ok(()),
        }
    }
}

impl ExactEdges<'_> {
    fn passes_for_values(&self, is_first: bool) -> f64 {
        let source = self.config.reference.source();
        let other = self.config.source_model.as_ref();
        passes_for_values(source, other, self.metric, 1.0, is_first)
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

/// The edge of such a row; `None` for any other cell.
pub fn edge_of(cell: &Cell) -> Option<Edge> {
    let (src, dst) = (cell.src.as_deref()?, cell.dst.as_deref()?);
    (cell.component == "edge").then(|| format!("{src}->{dst}").parse().ok())?
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
    run: &'a EdgeRuns,
    memory: usize,
    progress: &'a dyn Progress,
    variants: Vec<Variant>,
    /// The edge of each variant.
    of: Vec<usize>,
    bytes: usize,
    /// `[batch][edges]`
    effects: Vec<Vec<f64>>,
}

/// One source of one prompt, whose difference many edges carry.
struct Carried<'a> {
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
                    Some(delta) => units.push(Carried {
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
        (self.memory / (16 * self.run.base.length * width)).max(1)
    }

    fn patch_units(&mut self, reader: Reader, units: &[Carried<'_>]) -> Result<()> {
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
    fn patch_stream(&mut self, hook: Hook, units: &[Carried<'_>]) -> Result<()> {
        for unit in units {
            let mut positions = self.run.positions(unit.example);
            let mut delta = unit.delta.clone();
            if hook.kind == Kind::ResidPost {
                // The answer alone is read.
                let target = &self.run.readout.targets[unit.example];
                let read = target.positions(self.run.base.length).start as u32;
                let before = positions.iter().filter(|&&pos| pos < read).count();
                delta = delta.narrow(0, before, positions.len() - before)?.copy()?;
                positions.drain(..before);
            }
            let site = Site::all(hook).at_positions(positions.into_iter().map(at));
            let edit = Edit::new(site, Op::Add(hooks::Value::Tensor(delta)));
            for &(edge, _) in unit.wanted {
                self.push(unit.example, edge, edit.clone())?;
            }
        }
        Ok(())
    }

    /// Edges into heads: the layer's norm, queries, keys and values of all units at once; then, input by input, z.
    fn patch_heads(&mut self, layer: usize, units: &[Carried<'_>]) -> Result<()> {
        let spec = &self.model.spec;
        let streams: Vec<(usize, &Tensor)> = units
            .iter()
            .map(|unit| (unit.example, &unit.delta))
            .collect();
        let read = heads::Read::new(self.model, self.run, layer, &streams)?;
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
                    Edit::new(site, Op::Replace(hooks::Value::Tensor(z))),
                )?;
            }
        }
        Ok(())
    }

    fn push(&mut self, example: usize, edge: usize, edit: Edit) -> Result<()> {
        if let Op::Add(hooks::Value::Tensor(t)) | Op::Replace(hooks::Value::Tensor(t)) = &edit.op {
            // Beside the values, what an edit and its site weigh.
            self.bytes += 4 * t.elem_count() + 32 * self.run.base.length + 512;
        }
        let edits = vec![edit];
        self.variants.push(Variant { example, edits });
        self.of.push(edge);
        if self.bytes > self.memory / 4 {
            self.flush()?;
        }
        Ok(())
    }

    /// Runs the variants that have gathered.
    fn flush(&mut self) -> Result<()> {
        let variants = std::mem::take(&mut self.variants);
        let of = std::mem::take(&mut self.of);
        self.bytes = 0;
        let options = SweepOptions {
            memory: self.memory / 4,
            ..SweepOptions::default()
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
