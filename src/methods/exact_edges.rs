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
//! Sources: Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching"; Hanna, Pezzelle and Belinkov 2024,
//! "Have Faith in Faithfulness" (arXiv 2403.17806), for the graph. Where a norm stands on the output of attention, a head's
//! output is its share of the normed sum, `w * (z_h W_O[h]) / scale` with the scale of its own run, so that shares add up. An
//! output bias under such a norm moves with the scale too, and belongs to no source. Left out on purpose: edges by position,
//! and circuits (where an edge that is replaced is replaced in the patched run, not in the clean one).

mod deltas;
mod heads;

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Edge, Edit, Hook, Kind, Letter, Node, Op, Pos, Site, Value};
use crate::metric::Metric;
use crate::model::Model;
use crate::run::{
    BaseRun, MeanOf, Progress, Readout, Source, Sources, SweepOptions, Variant, sweep, sweep_plain,
};
use crate::scores::{Cell, Direction, ExampleScores};
use crate::task::{Pair, Task};
use deltas::Deltas;

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
    if task.pairs.is_empty() {
        return Err(Error::EmptyTask {
            task: task.name.clone(),
            reason: "it has none".into(),
        });
    }
    task.check_metric(config.metric)?;
    let all: Arc<[u32]> = (0..edges.len() as u32).collect();
    let measured = measure(model, &task.pairs, edges, config, progress)?;
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
        examples: task.pairs.iter().zip(measured).map(example).collect(),
    })
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
    let measured = measure(model, pairs, edges, config, progress)?;
    Ok(measured.into_iter().map(|one| one.effects).collect())
}

/// The slow twin of [`exact_edge_effects`]: one whole forward pass with one edit, `hook_q_input[head=6] += ...`, for each edge.
/// # Errors
/// Those of [`exact_edge_effects`].
pub fn exact_edge_effects_plain(
    model: &Model,
    pairs: &[Pair],
    edges: &[Edge],
    config: &EdgeConfig,
) -> Result<Vec<Vec<f64>>> {
    let sets: Vec<Vec<Edge>> = edges.iter().map(|&edge| vec![edge]).collect();
    joint(model, pairs, &sets, config, |run, variants| {
        sweep_plain(
            model,
            &run.base,
            variants,
            &Sources::default(),
            &run.readout,
        )
    })
}

/// The effect of each *set* of edges, patched at once: every reader sees its own stream plus the differences of all the
/// sources that the set connects it to, taken from the two unpatched runs. Each reader's difference takes `pos * d_model`
/// floats, so in a large model a set should not have thousands of readers.
/// # Shapes
/// `[pairs][sets]`
/// # Errors
/// Those of [`exact_edge_effects`].
pub fn exact_edges_together(
    model: &Model,
    pairs: &[Pair],
    sets: &[Vec<Edge>],
    config: &EdgeConfig,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    progress.start("patching sets of edges", (pairs.len() * sets.len()) as u64);
    let effects = joint(model, pairs, sets, config, |run, variants| {
        let (sources, options) = (Sources::default(), &config.sweep);
        sweep(
            model,
            &run.base,
            variants,
            &sources,
            &run.readout,
            options,
            progress,
        )
    })?;
    progress.finish();
    Ok(effects)
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

fn check_pairs(pairs: &[Pair]) -> Result<()> {
    match pairs
        .iter()
        .find(|pair| pair.clean.len() != pair.corrupted.len())
    {
        None => Ok(()),
        Some(pair) => Err(Error::LengthMismatch {
            index: pair.index,
            clean: pair.clean.len(),
            corrupted: pair.corrupted.len(),
        }),
    }
}

/// Indices of pairs that run together: one template and one length, as many as memory allows.
fn batches(model: &Model, pairs: &[Pair], config: &EdgeConfig) -> Vec<Vec<usize>> {
    let spec = &model.spec;
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (i, pair) in pairs.iter().enumerate() {
        groups.entry(group_of(pair)).or_default().push(i);
    }
    let mut batches = Vec::new();
    for ((_, length), group) in groups {
        // Streams, branches, queries, keys, values and z of every layer, of two runs and their difference.
        let width = 6 * spec.d_model + (3 * spec.n_heads + 4 * spec.n_kv_heads) * spec.d_head;
        let bytes = 3 * 4 * spec.n_layers * length * width;
        let room = (config.sweep.memory / (4 * bytes).max(1)).clamp(1, config.batch.max(1));
        batches.extend(group.chunks(room).map(<[usize]>::to_vec));
    }
    batches
}

/// Pairs of one group align position by position.
fn group_of(pair: &Pair) -> (usize, usize) {
    (pair.template, pair.clean.len())
}

/// Mean outputs of every source over the corrupted prompts of each group; none unless they are asked for.
fn reference_means(
    model: &Model,
    pairs: &[Pair],
    config: &EdgeConfig,
) -> Result<BTreeMap<(usize, usize), Source>> {
    let mut means: BTreeMap<(usize, usize), MeanOf> = BTreeMap::new();
    if config.reference == Reference::Mean {
        for batch in batches(model, pairs, config) {
            let prompts = batch.iter().map(|&pair| pairs[pair].corrupted.clone());
            let run = run_of(model, prompts.collect())?;
            let mean = means.entry(group_of(&pairs[batch[0]]));
            let mean = mean.or_insert_with(|| MeanOf::new(true));
            mean.add(&deltas::writes(model, &run)?)?;
        }
    }
    let finish = |(key, mean): ((usize, usize), MeanOf)| Ok((key, mean.finish(&model.spec)?));
    means.into_iter().map(finish).collect()
}

/// A run that keeps what every source writes, and what variants that patch edges start from.
fn run_of(model: &Model, prompts: Vec<Vec<u32>>) -> Result<BaseRun> {
    let mut starts = deltas::KINDS.to_vec();
    starts.extend([Kind::Z, Kind::MlpIn]);
    starts.extend(heads::kinds(&model.spec));
    BaseRun::new(model, prompts, vec![], vec![], Sources::default(), &starts)
}

/// The two runs of a batch, as far as edges need them.
struct Runs {
    base: BaseRun,
    deltas: Deltas,
    /// For each prompt the first position at which a source can differ.
    first: Vec<usize>,
    readout: Readout,
    clean: Vec<f64>,
    corrupted: Vec<f64>,
}

impl Runs {
    fn new(
        model: &Model,
        pairs: &[Pair],
        batch: &[usize],
        config: &EdgeConfig,
        means: &BTreeMap<(usize, usize), Source>,
    ) -> Result<Self> {
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &pairs[pair]).collect();
        let clean = pairs.iter().map(|pair| pair.clean.clone());
        let corrupted = pairs.iter().map(|pair| pair.corrupted.clone());
        let base = run_of(model, clean.collect())?;
        let other = run_of(model, corrupted.collect())?;
        let reference = match config.metric.needs_reference() {
            true => Some(base.logits(model)?),
            false => None,
        };
        let readout = Readout {
            metric: config.metric,
            targets: pairs.iter().map(|pair| pair.target.clone()).collect(),
            reference,
        };
        let (clean, corrupted) = (
            base.metric(model, &readout)?,
            other.metric(model, &readout)?,
        );
        let of_pair;
        let reference = match config.reference {
            Reference::Pair => {
                of_pair = Source::run(deltas::writes(model, &other)?)?;
                Some(&of_pair)
            }
            Reference::Zero => None,
            Reference::Mean => Some(&means[&group_of(pairs[0])]),
        };
        let deltas = Deltas::new(model, &base, reference)?;
        let first = |pair: &&Pair| match config.reference {
            Reference::Pair => {
                let mut tokens = pair.clean.iter().zip(&pair.corrupted);
                tokens.position(|(a, b)| a != b).unwrap_or(base.length)
            }
            Reference::Zero | Reference::Mean => 0,
        };
        Ok(Runs {
            first: pairs.iter().map(first).collect(),
            base,
            deltas,
            readout,
            clean,
            corrupted,
        })
    }

    fn positions(&self, example: usize) -> Vec<u32> {
        (self.first[example] as u32..self.base.length as u32).collect()
    }

    /// What a source writes otherwise in the reference, `[positions, d_model]` from the first position that can differ on;
    /// `None` where it writes the same.
    fn delta(&self, model: &Model, source: Node, example: usize) -> Result<Option<Tensor>> {
        let first = self.first[example];
        match first < self.base.length {
            true => self.deltas.of(model, source, example, first),
            false => Ok(None),
        }
    }
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

/// Patches sets of edges at the readers' own inputs, by whichever twin of the sweep is given.
fn joint(
    model: &Model,
    pairs: &[Pair],
    sets: &[Vec<Edge>],
    config: &EdgeConfig,
    values: impl Fn(&Runs, &[Variant]) -> Result<Vec<f64>>,
) -> Result<Vec<Vec<f64>>> {
    let graph = Graph::new(&model.spec);
    sets.iter()
        .flatten()
        .try_for_each(|edge| graph.place(edge).map(drop))?;
    check_pairs(pairs)?;
    let means = reference_means(model, pairs, config)?;
    let mut effects = vec![vec![0.0; sets.len()]; pairs.len()];
    for batch in batches(model, pairs, config) {
        let run = Runs::new(model, pairs, &batch, config, &means)?;
        for (index, set) in sets.iter().enumerate() {
            let mut variants = Vec::with_capacity(batch.len());
            for example in 0..batch.len() {
                let edits = edits_of(model, &run, set, example)?;
                if !edits.is_empty() {
                    variants.push(Variant { example, edits });
                }
            }
            for (variant, value) in variants.iter().zip(values(&run, &variants)?) {
                let example = variant.example;
                effects[batch[example]][index] = value - run.clean[example];
            }
        }
    }
    Ok(effects)
}

/// One edit for each reader: the sum of the differences that a set of edges carries to it.
fn edits_of(model: &Model, run: &Runs, set: &[Edge], example: usize) -> Result<Vec<Edit>> {
    let mut sums: BTreeMap<(Node, Option<Letter>), Tensor> = BTreeMap::new();
    for edge in set {
        if let Some(delta) = run.delta(model, edge.src, example)? {
            let key = (edge.dst, edge.letter);
            let sum = match sums.remove(&key) {
                Some(sum) => (sum + delta)?,
                None => delta,
            };
            sums.insert(key, sum);
        }
    }
    let last = model.spec.n_layers - 1;
    let edit = |((node, letter), sum): ((Node, Option<Letter>), Tensor)| {
        let site = match (node, letter) {
            (Node::Head { layer, head }, Some(letter)) => {
                Site::all(Hook::at(letter.input(), layer)).heads([head])
            }
            (Node::Mlp(layer), _) => Site::all(Hook::at(Kind::MlpIn, layer)),
            _ => Site::all(Hook::at(Kind::ResidPost, last)),
        };
        let positions = run.positions(example).into_iter().map(at);
        Edit::new(site.at_positions(positions), Op::Add(Value::Tensor(sum)))
    };
    Ok(sums.into_iter().map(edit).collect())
}
