//! Estimates at edges: EAP and its integrals.
//!
//! The effect of an edge from `u` to `v` is to first order `<dz_u, d metric / d x_v>`: what `u` writes differently, along the
//! gradient at the stream that `v` reads, before `v`'s norm. There are hundreds of sources and readers a layer, so neither side
//! is ever held for all layers at full width: sources are kept as differences of z and readers as gradients of q, k and v, both in
//! head space, and are spread to the width of the model for a few tokens at a time, where all edges into a layer are one product.
//!
//! With `n` the normed stream, `s` its scale and `w` the norm's weight, the gradient at a reader's input is
//! `(w W g [centred]) / s - n <n, w W g> / (s d)` for the gradient `g` at its query, key or value. The first term is linear in
//! `g / s`, so an integral over many points is spread once; and `<n, w W g>` is `<W^T (w n), g>`, the inner product of a query (without
//! its bias) and its gradient, so the factor of the second term is found in head space, for each point, and costs one row.
//!
//! Sources: Syed et al. 2023 (EAP); Hanna et al. 2024, arXiv 2403.17806 (EAP-IG); Marks et al. 2024 (integrals over activations).
//! Where a family norms what attention writes, a head's share is `w_post z_h W_O / s_post` with its own run's scale, which
//! sums to `attn_out` exactly.

use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;
use rayon::prelude::*;
use serde::Serialize;
use serde_json::json;

use super::runs::{Runs, Setting, at_rows, check_metric};
use super::verify::verify_edges;
use super::{Path, StepRule, no_steps};
use crate::circuit::{Graph, ScoredGraph};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Letter, Ln, Node};
use crate::methods::PatchSource;
use crate::methods::exact_edges::{EdgeConfig, Reference, cell};
use crate::methods::record::provenance;
use crate::metric::Metric;
use crate::model::Model;
use crate::nn::host::{dot, host, on_host, simd, to_host};
use crate::nn::linear::{Right, View, product, small_product};
use crate::nn::norm;
use crate::nn::rules::{NormRule, Rules};
use crate::run::backward::{Probe, Readers, on_host_weights, reader_column};
use crate::run::rows::Rows;
use crate::run::tape::Tape;
use crate::run::{Progress, available_memory};
use crate::scores::{Cell, Detail, ExampleScores, Scores, ScoresMeta};
use crate::spec::{Mlp, NormKind};
use crate::task::Task;

/// Where the gradients of an edge method are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EdgePath {
    /// As for nodes.
    Along(Path),
    /// For each layer's attention, each MLP and the input in turn: averaged while what it writes goes from the other run's to the
    /// base run's and all else stays the base run's.
    Activations {
        steps: usize,
        rule: StepRule,
        /// Credit every edge in every one of these runs and average over them all, as the reference code does, rather than
        /// only the edges that leave what is interpolated.
        every_edge: bool,
    },
}

/// Which edges' effects are estimated, and how.
#[derive(Debug, Clone)]
pub struct EdgeAttributionConfig {
    /// The method's name, as it stands in the table: `eap`, `eap-ig`, ...
    pub method: String,
    pub metric: Metric,
    /// What an edge carries when it is patched.
    pub reference: Reference,
    pub path: EdgePath,
    pub rules: Rules,
    /// A score for each position of a template, in place of their sum.
    pub by_position: bool,
    pub detail: Detail,
    pub seed: u64,
    /// Bytes for activations: batches get smaller and layers are run twice rather than hold more. `None`: a quarter of what the
    /// differences would take at full width, but at least 256 MB and at most a quarter of what is free.
    pub memory: Option<usize>,
    /// Pairs that run together, at most.
    pub batch: usize,
}

impl EdgeAttributionConfig {
    /// EAP; all else at its default.
    pub fn eap(metric: Metric) -> Self {
        EdgeAttributionConfig {
            method: "eap".into(),
            metric,
            reference: Reference::Pair,
            path: EdgePath::Along(Path::Base),
            rules: Rules::gradient(),
            by_position: false,
            detail: Detail::Mean,
            seed: 0,
            memory: None,
            batch: 8,
        }
    }

    /// EAP-IG over the inputs, at midpoints.
    pub fn eap_ig(metric: Metric, steps: usize) -> Self {
        let path = Path::Inputs {
            steps,
            rule: StepRule::Midpoint,
        };
        EdgeAttributionConfig {
            method: "eap-ig".into(),
            path: EdgePath::Along(path),
            ..EdgeAttributionConfig::eap(metric)
        }
    }

    /// # Errors
    /// What cannot be estimated as asked, before anything runs.
    pub fn check(&self, task: &Task) -> Result<()> {
        task.check_metric(self.metric)?;
        let at_base = self.path == EdgePath::Along(Path::Base);
        check_metric(self.metric, self.reference.direction(), at_base)?;
        match self.path {
            EdgePath::Along(path) => path.check()?,
            EdgePath::Activations { steps: 0, .. } => return Err(no_steps()),
            EdgePath::Activations { .. } => {}
        }
        let to_other_run = matches!(self.path, EdgePath::Along(path) if path != Path::Base);
        if to_other_run && self.reference != Reference::Pair {
            return Err(Error::invalid(
                "an integral over the inputs goes to the pair's other run; with zeros or means use `--method eap` or \
                 `eap-ig-activations`",
            ));
        }
        task.check_aligned()?;
        if self.by_position && task.batches(usize::MAX).len() > 1 {
            return Err(Error::invalid(
                "scores by position need prompts of one template and one length; take one (`--template 0`)",
            ));
        }
        Ok(())
    }
}

/// The estimates of every edge for each pair.
#[derive(Debug, Clone)]
pub struct EdgeScores {
    pub graph: Graph,
    /// Tokens of a prompt where scores are by position, else 1.
    pub positions: usize,
    pub examples: Vec<EdgeExample>,
}

/// The estimates of one pair.
#[derive(Debug, Clone)]
pub struct EdgeExample {
    /// Index of the pair in the task.
    pub example: usize,
    /// Its place among the task's usable pairs.
    pub pair: usize,
    pub clean: f64,
    pub corrupted: f64,
    /// `[positions, n_src, n_dst]`; zero where there is no edge.
    pub scores: Vec<f32>,
}

impl EdgeScores {
    /// The mean over pairs, `[n_src, n_dst]`, summed over positions.
    pub fn mean(&self) -> Vec<f64> {
        let size = self.graph.n_src() * self.graph.n_dst();
        let mut mean = vec![0.0; size];
        for example in &self.examples {
            for scores in example.scores.chunks_exact(size) {
                for (mean, score) in mean.iter_mut().zip(scores) {
                    *mean += f64::from(*score) / self.examples.len() as f64;
                }
            }
        }
        mean
    }

    /// The mean scores as the field's interchange format has them.
    /// # Errors
    /// None that a graph of its own edges could give.
    pub fn scored_graph(&self) -> Result<ScoredGraph> {
        let mean = self.mean();
        let mut graph = ScoredGraph::new(self.graph);
        for edge in self.graph.edges() {
            let (row, column) = self.graph.place(&edge)?;
            graph.set_score(&edge, mean[row * self.graph.n_dst() + column])?;
        }
        Ok(graph)
    }

    /// Cells and measurements, ready for [`Scores::assemble`]; edges by row, then by column, then by position.
    pub fn examples(&self, task: &Task) -> (Vec<Cell>, Vec<ExampleScores>) {
        let (n_dst, size) = (self.graph.n_dst(), self.graph.n_src() * self.graph.n_dst());
        let mut cells = Vec::new();
        let mut places = Vec::new();
        for edge in self.graph.edges() {
            let (row, column) = self.graph.place(&edge).expect("an edge of this graph");
            for position in 0..self.positions {
                let pos = (self.positions > 1).then_some(position as i32);
                cells.push(Cell { pos, ..cell(&edge) });
                places.push(position * size + row * n_dst + column);
            }
        }
        let all: Arc<[u32]> = (0..cells.len() as u32).collect();
        let of = |example: &EdgeExample| {
            let pair = &task.pairs()[example.pair];
            ExampleScores {
                example: example.example,
                clean: example.clean,
                corrupted: example.corrupted,
                tokens: task.texts(&pair.clean),
                roles: pair.roles.clone(),
                cells: Arc::clone(&all),
                values: places
                    .iter()
                    .map(|&place| example.clean + f64::from(example.scores[place]))
                    .collect(),
                ..ExampleScores::default()
            }
        };
        let examples = self.examples.iter().map(of).collect();
        (cells, examples)
    }
}

/// Estimates the effect of patching each edge of the model, and patches the strongest so many and as many random ones exactly if
/// `verify` says so. Gives the table, and the scores as a matrix.
/// # Units
/// `value` and `score`: the metric's. `contribution`, the mean over pairs of the estimate's size, is there with
/// [`Detail::Mean`].
/// # Errors
/// What cannot be estimated as asked, before anything runs; [`Error::NoGradient`]; [`Error::Interrupted`].
pub fn attribute_edges(
    model: &Model,
    task: &Task,
    config: &EdgeAttributionConfig,
    verify: Option<usize>,
    progress: &dyn Progress,
) -> Result<(Scores, EdgeScores)> {
    if let Some(k) = verify {
        super::verify::check(k, Graph::new(&model.spec).n_edges())?;
    }
    let began = Instant::now();
    let estimates = edge_scores(model, task, config, progress)?;
    let (cells, examples) = estimates.examples(task);
    let meta = ScoresMeta {
        method: config.method.clone(),
        metric: config.metric.to_string(),
        unit: config.metric.unit().into(),
        direction: config.reference.direction(),
        seed: config.seed,
    };
    let settings = json!({
        "method": config.method,
        "version": env!("CARGO_PKG_VERSION"),
        "weights": model.origin.weight_hash,
        "reference": config.reference,
        "path": config.path,
        "rules": config.rules,
        "by_position": config.by_position,
    });
    let seconds = began.elapsed().as_secs_f64();
    let provenance = provenance(model, task, settings, seconds, Vec::new());
    let mut table = Scores::assemble(&cells, &examples, &meta, config.detail, provenance)?;
    if let Some(k) = verify {
        let mut exact = EdgeConfig::new(config.metric);
        exact.reference = config.reference;
        exact.sweep.memory = config.memory.unwrap_or(exact.sweep.memory);
        let found = verify_edges(model, task, &estimates, &exact, k, config.seed, progress)?;
        // Exact effects are those of whole edges, so they stand in tables of whole edges alone.
        match config.by_position {
            false => found.add_to(&mut table, &cells, &examples, config.detail)?,
            true => {
                let edges: Vec<Cell> = estimates.graph.edges().map(|edge| cell(&edge)).collect();
                table.provenance.notes.push(found.line(&edges));
            }
        }
    }
    Ok((table, estimates))
}

/// The estimates behind [`attribute_edges`].
/// # Errors
/// Those of [`attribute_edges`].
pub fn edge_scores(
    model: &Model,
    task: &Task,
    config: &EdgeAttributionConfig,
    progress: &dyn Progress,
) -> Result<EdgeScores> {
    config.check(task)?;
    let spec = &model.spec;
    let graph = Graph::new(spec);
    let source = match config.reference {
        Reference::Pair => PatchSource::Pair,
        Reference::Zero => PatchSource::Zero,
        Reference::Mean => PatchSource::Mean,
    };
    let memory = config.memory.unwrap_or_else(|| {
        let longest = task.pairs().iter().map(|pair| pair.clean.len()).max();
        let rows = config.batch.min(task.pairs().len()) * longest.unwrap_or(0);
        let dense = 4 * rows * graph.n_src() * spec.d_model;
        (dense / 4).max(256 << 20).min(available_memory() / 4)
    });
    let setting = Setting {
        model,
        task,
        metric: config.metric,
        direction: config.reference.direction(),
        source,
        hooks: written(model, config.path),
        memory,
        batch: config.batch,
    };
    let means = setting.means()?;
    progress.start("attributing", task.pairs().len() as u64);
    let positions = match config.by_position {
        true => task.pairs()[0].clean.len(),
        false => 1,
    };
    // Readers' gradients, and the differences of what is written.
    let per_row = spec.n_layers * 2 * (3 * spec.n_heads * spec.d_head + 2 * spec.d_model);
    let mut examples = Vec::new();
    for batch in setting.batches(per_row) {
        let mut runs = Runs::record(&setting, &batch, &means, &read(model))?;
        let written = Written::new(&runs)?;
        if matches!(config.path, EdgePath::Along(_)) {
            runs.forget(|hook| matches!(hook.kind, Kind::Z | Kind::MlpOut));
        }
        let mut scores = vec![vec![0f32; positions * graph.n_src() * graph.n_dst()]; batch.len()];
        let edges = Edges {
            runs: &runs,
            graph,
            config,
            memory,
            written,
        };
        edges.score(&mut scores)?;
        for (i, scores) in scores.into_iter().enumerate() {
            examples.push(EdgeExample {
                example: runs.pairs[i].index,
                pair: batch[i],
                clean: runs.clean[i],
                corrupted: runs.corrupted[i],
                scores,
            });
        }
        progress.advance(batch.len() as u64);
        if progress.cancelled() {
            let kept = "attribution keeps no parts, and starts again".into();
            return Err(Error::Interrupted { kept });
        }
    }
    progress.finish();
    examples.sort_by_key(|scores| scores.example);
    Ok(EdgeScores {
        graph,
        positions,
        examples,
    })
}

/// What nodes write, as hooks.
fn written(model: &Model, path: EdgePath) -> Vec<Hook> {
    let mut kinds = vec![Kind::Z, Kind::Scale(Ln::OnePost), Kind::MlpOut];
    if matches!(path, EdgePath::Activations { .. }) {
        kinds.push(Kind::AttnOut);
    }
    let mut hooks = vec![Hook::global(Kind::Embed)];
    hooks.extend(per_layer(model, &kinds));
    hooks
}

/// What the gradients at readers' inputs are made with, besides what a backward pass keeps.
fn read(model: &Model) -> Vec<Hook> {
    per_layer(model, &[Kind::Q, Kind::K])
}

fn per_layer(model: &Model, kinds: &[Kind]) -> Vec<Hook> {
    let here = |kind: &&Kind| kind.absent(&model.spec).is_none();
    (0..model.spec.n_layers)
        .flat_map(|layer| {
            kinds
                .iter()
                .filter(here)
                .map(move |&kind| Hook::at(kind, layer))
        })
        .collect()
}

/// How what each node writes differs between the runs.
struct Written {
    /// `[rows, d_model]`
    input: Vec<f32>,
    /// For each layer `[rows, n_heads, d_head]`: of z over the post-norm's scale.
    z: Vec<Vec<f32>>,
    /// For each layer `[rows, d_model]`.
    mlp: Vec<Vec<f32>>,
}

impl Written {
    fn new(runs: &Runs<'_>) -> Result<Self> {
        let spec = &runs.model.spec;
        let z = |layer: usize| -> Result<Vec<f32>> {
            let hook = Hook::at(Kind::Z, layer);
            let (base, other) = (runs.base_values(hook)?, runs.other_values(hook)?);
            let difference = match Kind::Scale(Ln::OnePost).absent(spec) {
                Some(_) => (other - base)?,
                None => {
                    let scale = Hook::at(Kind::Scale(Ln::OnePost), layer);
                    let over = |z: Tensor, scale: Tensor| z.broadcast_div(&scale.unsqueeze(1)?);
                    let base = over(base, runs.base_values(scale)?)?;
                    // Zeros stay zeros, whatever their scale.
                    let other = match runs.puts_zeros() {
                        true => other,
                        false => over(other, runs.other_values(scale)?)?,
                    };
                    (other - base)?
                }
            };
            let factor = f64::from(spec.residual_multiplier.unwrap_or(1.0));
            to_host(&(difference * factor)?)
        };
        let mlp = |layer: usize| to_host(&runs.delta(Hook::at(Kind::MlpOut, layer))?);
        let layers = 0..spec.n_layers;
        Ok(Written {
            input: to_host(&runs.delta(Hook::global(Kind::Embed))?)?,
            z: layers.clone().map(z).collect::<Result<_>>()?,
            mlp: match spec.mlp {
                Mlp::None => Vec::new(),
                _ => layers.map(mlp).collect::<Result<_>>()?,
            },
        })
    }
}

/// The edges of one batch of pairs.
struct Edges<'a> {
    runs: &'a Runs<'a>,
    graph: Graph,
    config: &'a EdgeAttributionConfig,
    memory: usize,
    written: Written,
}

/// Most values of spread differences held at once.
const SPREAD: usize = 12 << 20;

/// Room that is used again for each stretch of tokens.
#[derive(Default)]
struct Scratch {
    /// `[sources, rows, d_model]`
    sources: Vec<f32>,
    /// `[3 n_heads, rows, d_model]`
    readers: Vec<f32>,
}

impl Edges<'_> {
    fn score(&self, scores: &mut [Vec<f32>]) -> Result<()> {
        let keep = read(self.runs.model);
        match self.config.path {
            EdgePath::Along(path) => {
                let points = path.points();
                let mut sums = Sums::new(self.runs, self.config, 1.0 / points.len() as f32)?;
                for point in points {
                    let tape = self.runs.at(point, &keep)?;
                    sums.add(&tape, 0)?;
                }
                self.contract(&sums, 0..self.graph.n_src(), scores)
            }
            EdgePath::Activations {
                steps,
                rule,
                every_edge,
            } => {
                let groups = self.groups()?;
                let runs = match every_edge {
                    true => steps * groups.len(),
                    false => steps,
                };
                for (hook, rows) in groups {
                    let mut sums = Sums::new(self.runs, self.config, 1.0 / runs as f32)?;
                    let from = match every_edge {
                        true => 0,
                        false => hook.layer.unwrap_or(0),
                    };
                    for point in (Path::Inputs { steps, rule }).points() {
                        let tape = self.runs.with_hook_at(hook, point, from, &keep)?;
                        sums.add(&tape, from)?;
                    }
                    let rows = match every_edge {
                        true => 0..self.graph.n_src(),
                        false => rows,
                    };
                    self.contract(&sums, rows, scores)?;
                }
                Ok(())
            }
        }
    }

    /// What is interpolated as one, and the rows of the nodes that it holds.
    fn groups(&self) -> Result<Vec<(Hook, std::ops::Range<usize>)>> {
        let heads = self.graph.n_heads;
        let mut groups = vec![(Hook::global(Kind::Embed), 0..1)];
        for layer in 0..self.graph.n_layers {
            let first = self.graph.row(Node::Head { layer, head: 0 })?;
            groups.push((Hook::at(Kind::AttnOut, layer), first..first + heads));
            if self.graph.has_mlp {
                let row = self.graph.row(Node::Mlp(layer))?;
                groups.push((Hook::at(Kind::MlpOut, layer), row..row + 1));
            }
        }
        Ok(groups)
    }

    /// Multiplies what sources write with what readers ask for, a few tokens at a time.
    fn contract(
        &self,
        sums: &Sums<'_>,
        sources: std::ops::Range<usize>,
        scores: &mut [Vec<f32>],
    ) -> Result<()> {
        let d = self.runs.model.spec.d_model;
        let at_once = match self.config.by_position {
            true => 1,
            // A quarter of the memory, in f32.
            false => (SPREAD.min(self.memory / 16) / (d * sources.len())).max(1),
        };
        let mut scratch = Scratch::default();
        let size = self.graph.n_src() * self.graph.n_dst();
        for (i, scores) in scores.iter_mut().enumerate() {
            let rows = self.runs.rows_of(i);
            let first_pos = self.runs.rows.segments[i].positions[0] as usize;
            let mut start = rows.start;
            while start < rows.end {
                let stretch = start..rows.end.min(start + at_once);
                let at = match self.config.by_position {
                    true => (first_pos + start - rows.start) * size,
                    false => 0,
                };
                let scores = &mut scores[at..at + size];
                self.contract_rows(sums, &sources, stretch.clone(), &mut scratch, scores)?;
                start = stretch.end;
            }
        }
        Ok(())
    }

    fn contract_rows(
        &self,
        sums: &Sums<'_>,
        sources: &std::ops::Range<usize>,
        rows: std::ops::Range<usize>,
        scratch: &mut Scratch,
        scores: &mut [f32],
    ) -> Result<()> {
        let spec = &self.runs.model.spec;
        let (d, n) = (spec.d_model, rows.len());
        self.spread_sources(sources, rows.clone(), &mut scratch.sources)?;
        let dense = scratch.sources.as_slice();
        let n_dst = self.graph.n_dst();
        // Of the sources here, how many a column reads.
        let read_by = |column: usize| {
            self.graph
                .n_sources(column)
                .clamp(sources.start, sources.end)
                - sources.start
        };
        for (layer, of_layer) in sums.layers.iter().enumerate() {
            if of_layer.letters.is_empty() {
                continue;
            }
            let head = Node::Head { layer, head: 0 };
            let first = self.graph.column(head, Some(Letter::Q))?;
            let by_heads = read_by(first);
            // The MLP's column follows those of the heads; it reads the heads of its own layer too where it comes after them.
            let columns = 3 * spec.n_heads + usize::from(self.graph.has_mlp);
            let count = by_heads.max(read_by(first + columns - 1));
            if count == 0 {
                continue;
            }
            let readers = &mut scratch.readers;
            self.spread_readers(layer, of_layer, rows.clone(), readers)?;
            let mut block = vec![0f32; count * columns];
            let sizes = [count, n * d, columns];
            product(
                &mut block,
                &dense[..count * n * d],
                readers,
                sizes,
                Right::OutIn,
                false,
            );
            for (i, row) in block.chunks_exact(columns).enumerate().take(by_heads) {
                let at = (sources.start + i) * n_dst + first;
                let scores = &mut scores[at..at + columns];
                scores
                    .iter_mut()
                    .zip(row)
                    .for_each(|(score, x)| *score += x);
            }
            for (i, row) in block.chunks_exact(columns).enumerate().skip(by_heads) {
                let column = first + columns - 1;
                scores[(sources.start + i) * n_dst + column] += row[columns - 1];
            }
        }
        let count = read_by(n_dst - 1);
        let mut block = vec![0f32; count];
        let at_logits = &sums.logits[rows.start * d..rows.end * d];
        let sizes = [count, n * d, 1];
        product(
            &mut block,
            &dense[..count * n * d],
            at_logits,
            sizes,
            Right::OutIn,
            false,
        );
        for (i, x) in block.iter().enumerate() {
            scores[(sources.start + i) * n_dst + n_dst - 1] += x;
        }
        Ok(())
    }

    /// What each source writes differently, at full width: `[sources, rows, d_model]`.
    fn spread_sources(
        &self,
        sources: &std::ops::Range<usize>,
        rows: std::ops::Range<usize>,
        dense: &mut Vec<f32>,
    ) -> Result<()> {
        let model = self.runs.model;
        let spec = &model.spec;
        let (d, d_head, heads) = (spec.d_model, spec.d_head, spec.n_heads);
        dense.resize(sources.len() * rows.len() * d, 0.0);
        let weights = model
            .weights
            .blocks
            .iter()
            .map(|block| -> Result<_> {
                let post = block.ln1_post.as_ref().map(|w| to_host(&w.w)).transpose()?;
                Ok((on_host(&block.w_o)?, post))
            })
            .collect::<Result<Vec<_>>>()?;
        let weights = weights
            .iter()
            .map(|(w_o, post)| Ok((host(w_o)?, post.as_deref())))
            .collect::<Result<Vec<_>>>()?;
        dense
            .par_chunks_exact_mut(rows.len() * d)
            .zip(sources.clone())
            .for_each(|(dense, row)| {
                let node = self.graph.source(row).expect("a row of the graph");
                match node {
                    Node::Input => {
                        dense.copy_from_slice(&self.written.input[rows.start * d..rows.end * d]);
                    }
                    Node::Mlp(layer) => {
                        dense.copy_from_slice(
                            &self.written.mlp[layer][rows.start * d..rows.end * d],
                        );
                    }
                    Node::Head { layer, head } => {
                        let (w_o, post) = &weights[layer];
                        let width = heads * d_head;
                        small_product(
                            (dense, View::rows(d)),
                            (
                                &self.written.z[layer],
                                View::rows(width).from(rows.start * width + head * d_head),
                            ),
                            (w_o, View::rows(d).from(head * d_head * d)),
                            [rows.len(), d_head, d],
                            1.0,
                            false,
                        );
                        if let Some(post) = post {
                            weigh(dense, post, spec.norm == NormKind::Layer, true);
                        }
                    }
                    Node::Logits => unreachable!("nothing reads the logits"),
                }
            });
        Ok(())
    }

    /// The gradient at what each query, key and value of a layer reads, and last at what its MLP reads:
    /// `[3 n_heads + 1, rows, d_model]`.
    fn spread_readers(
        &self,
        layer: usize,
        sums: &LayerSums,
        rows: std::ops::Range<usize>,
        dense: &mut Vec<f32>,
    ) -> Result<()> {
        let model = self.runs.model;
        let spec = &model.spec;
        let (d, d_head, heads) = (spec.d_model, spec.d_head, spec.n_heads);
        let block = &model.weights.blocks[layer];
        let w_qkv = on_host(&block.w_qkv)?;
        let width_qkv = w_qkv.dim(1)?;
        let w_qkv = host(&w_qkv)?;
        let weight = block.ln1.as_ref().map(|w| to_host(&w.w)).transpose()?;
        let columns = 3 * heads + usize::from(self.graph.has_mlp);
        dense.resize(columns * rows.len() * d, 0.0);
        dense
            .par_chunks_exact_mut(rows.len() * d)
            .enumerate()
            .for_each(|(reader, dense)| {
                if reader == 3 * heads {
                    dense.copy_from_slice(&sums.mlp[rows.start * d..rows.end * d]);
                    return;
                }
                let (letter, head) = (reader / heads, reader % heads);
                let width = heads * d_head;
                small_product(
                    (dense, View::rows(d)),
                    (
                        &sums.letters[letter],
                        View::rows(width).from(rows.start * width + head * d_head),
                    ),
                    (
                        &w_qkv,
                        View::rows(width_qkv)
                            .from(reader_column(spec, letter, head))
                            .t(),
                    ),
                    [rows.len(), d_head, d],
                    1.0,
                    false,
                );
                if let Some(weight) = &weight {
                    weigh(dense, weight, spec.norm == NormKind::Layer, false);
                }
                for along in &sums.along {
                    for (dense, row) in dense.chunks_exact_mut(d).zip(rows.clone()) {
                        let factor = along.factors[row * 3 * heads + reader];
                        let normalized = &along.normalized[row * d..(row + 1) * d];
                        accumulate_into(dense, normalized, -factor);
                    }
                }
            });
        Ok(())
    }
}

/// Multiplies rows by a norm's weight and centres them, before (`first`) or after.
fn weigh(rows: &mut [f32], weight: &[f32], centre: bool, first: bool) {
    let d = weight.len();
    let centred = |row: &mut [f32]| {
        if centre {
            let mean = row.iter().sum::<f32>() / d as f32;
            row.iter_mut().for_each(|x| *x -= mean);
        }
    };
    for row in rows.chunks_exact_mut(d) {
        if first {
            centred(row);
        }
        row.iter_mut().zip(weight).for_each(|(x, w)| *x *= w);
        if !first {
            centred(row);
        }
    }
}

/// What readers ask for, summed over the points of a path.
struct Sums<'a> {
    runs: &'a Runs<'a>,
    rules: &'a Rules,
    /// Share of each point.
    share: f32,
    layers: Vec<LayerSums>,
    /// Gradient at the final stream, `[rows, d_model]`.
    logits: Vec<f32>,
    /// For each layer what its queries, keys and values are where the normed stream is zero.
    offsets: Vec<Option<Vec<f32>>>,
}

#[derive(Default)]
struct LayerSums {
    /// Gradients at q, k, v over the norm's scale, `[rows, n_heads, d_head]`.
    letters: Vec<Vec<f32>>,
    along: Vec<Along>,
    /// Gradient at what the MLP reads, `[rows, d_model]`.
    mlp: Vec<f32>,
}

/// The part of one point's gradients that lies along its own normed stream.
struct Along {
    /// `[rows, d_model]`
    normalized: Vec<f32>,
    /// `<reader without bias, gradient> / (scale d)`, `[rows, 3 n_heads]`.
    factors: Vec<f32>,
}

impl<'a> Sums<'a> {
    fn new(runs: &'a Runs<'a>, config: &'a EdgeAttributionConfig, share: f32) -> Result<Self> {
        let model = runs.model;
        let offset = |layer: usize| -> Result<Option<Vec<f32>>> {
            let block = &model.weights.blocks[layer];
            let bias = block.b_qkv.as_ref().map(to_host).transpose()?;
            let shift = block.ln1.as_ref().and_then(|w| w.b.as_ref());
            let Some(shift) = shift else { return Ok(bias) };
            let through = crate::nn::linear::forward(
                &shift.unsqueeze(0)?,
                &block.w_qkv,
                block.b_qkv.as_ref(),
            )?;
            Ok(Some(to_host(&through)?))
        };
        let layers = 0..model.spec.n_layers;
        Ok(Sums {
            runs,
            rules: &config.rules,
            share,
            layers: layers.clone().map(|_| LayerSums::default()).collect(),
            logits: vec![0.0; runs.rows.total * model.spec.d_model],
            offsets: layers.map(offset).collect::<Result<_>>()?,
        })
    }

    /// Adds one point: a backward pass through the layers `from..`.
    fn add(&mut self, tape: &Tape, from: usize) -> Result<()> {
        let start = self.runs.start(tape, self.rules)?;
        accumulate(&mut self.logits, &host(&start)?, self.share);
        let (runs, rules) = (self.runs, self.rules);
        let mut probe = EdgeProbe { tape, sums: self };
        runs.descent(tape, rules).down_to(from, start, &mut probe)
    }
}

fn accumulate(sum: &mut Vec<f32>, more: &[f32], share: f32) {
    sum.resize(more.len(), 0.0);
    accumulate_into(sum, more, share);
}

fn accumulate_into(sum: &mut [f32], more: &[f32], share: f32) {
    simd(
        #[inline(always)]
        || {
            for (sum, more) in sum.iter_mut().zip(more) {
                *sum += share * more;
            }
        },
    )
}

struct EdgeProbe<'a, 'b> {
    tape: &'a Tape,
    sums: &'a mut Sums<'b>,
}

impl Probe for EdgeProbe<'_, '_> {
    fn wants(&self, hook: Hook) -> bool {
        hook.kind == Kind::MlpIn
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        let layer = hook.layer.expect("every block has one");
        let gradient = gradient.contiguous()?;
        let share = self.sums.share;
        accumulate(&mut self.sums.layers[layer].mlp, &host(&gradient)?, share);
        Ok(())
    }

    fn readers(&mut self, layer: usize, readers: &Readers<'_>) -> Result<()> {
        let runs = self.sums.runs;
        let (model, rows) = (runs.model, readers.rows);
        let spec = &model.spec;
        let (d, d_head, heads) = (spec.d_model, spec.d_head, spec.n_heads);
        let width = heads * d_head;
        let parts = match &model.weights.blocks[layer].ln1 {
            None => None,
            Some(w) => {
                let x = on_host(&readers.saved.get(Kind::ResidPre, rows)?)?;
                let w = on_host_weights(w)?;
                Some(norm::parts(&x, &w, spec.norm, spec.norm_eps)?)
            }
        };
        let share = self.sums.share;
        let scales: Vec<f32> = match &parts {
            Some(parts) => to_host(&parts.scale)?,
            None => vec![1.0; rows.total],
        };
        let of_layer = &mut self.sums.layers[layer];
        of_layer.letters.resize(3, Vec::new());
        for (sum, gradient) in of_layer.letters.iter_mut().zip(readers.gradients) {
            sum.resize(rows.total * width, 0.0);
            let gradient = gradient.contiguous()?;
            let gradient = host(&gradient)?;
            let rows = sum
                .chunks_exact_mut(width)
                .zip(gradient.chunks_exact(width));
            for ((sum, gradient), scale) in rows.zip(&scales) {
                let factor = share / scale;
                for (sum, gradient) in sum.iter_mut().zip(gradient) {
                    *sum += factor * gradient;
                }
            }
        }
        let (Some(parts), NormRule::Exact) = (parts, self.sums.rules.norm) else {
            return Ok(());
        };
        let mut factors = vec![0f32; rows.total * 3 * heads];
        for (letter, kind) in [Kind::Q, Kind::K, Kind::V].into_iter().enumerate() {
            let values = on_host(&at_rows(self.tape, Hook::at(kind, layer), rows)?)?;
            let own = values.dim(1)?;
            let (values, gradient) = (host(&values)?, readers.gradients[letter].contiguous()?);
            let gradient = host(&gradient)?;
            let offset = self.sums.offsets[layer].as_deref();
            for (row, scale) in scales.iter().enumerate() {
                for head in 0..heads {
                    let from = (row * heads + head) * d_head;
                    let gradient = &gradient[from..from + d_head];
                    let from = (row * own + head / (heads / own)) * d_head;
                    let mut along = dot(&values[from..from + d_head], gradient);
                    if let Some(offset) = offset {
                        let from = reader_column(spec, letter, head);
                        along -= dot(&offset[from..from + d_head], gradient);
                    }
                    factors[(row * 3 + letter) * heads + head] = share * along / (scale * d as f32);
                }
            }
        }
        self.sums.layers[layer].along.push(Along {
            normalized: to_host(&parts.normalized)?,
            factors,
        });
        Ok(())
    }
}
