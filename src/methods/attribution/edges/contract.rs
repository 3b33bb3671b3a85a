//! What sources write differently, times what readers ask for: all edges of a layer in one product.

use std::ops::Range;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::readers::{LayerSums, Sums, accumulate_into};
use super::{EdgeAttributionConfig, read};
use crate::circuit::Graph;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Letter, Node};
use crate::methods::attribution::GradientPath;
use crate::methods::attribution::runs::{Runs, at_rows, over, post_scale};
use crate::model::Model;
use crate::nn::host::{host, on_host, simd, sum, to_host};
use crate::nn::inner::{RowsOf, inner_products};
use crate::nn::linear::{View, small_product};
use crate::nn::matrix::host_matrix;
use crate::run::backward::reader_column;
use crate::run::tape::Tape;
use crate::spec::{BlockWeights, Mlp, ModelSpec, NormKind};

/// What each node writes, in one run or differently in two.
pub(super) struct Written {
    /// `[rows, d_model]`
    input: Vec<f32>,
    /// For each layer `[rows, n_heads, d_head]`: of z over the post-norm's scale.
    z: Vec<Vec<f32>>,
    /// For each layer `[rows, d_model]`.
    mlp: Vec<Vec<f32>>,
}

impl Written {
    /// What is put in place minus what was there.
    pub fn differently(runs: &Runs<'_>) -> Result<Self> {
        let z = |layer| runs.delta_of_heads(layer);
        Written::made(&runs.model.spec, z, |hook| runs.delta(hook))
    }

    /// What is written in one recorded run.
    pub fn on(tape: &Tape, runs: &Runs<'_>) -> Result<Self> {
        let values = |hook: Hook| on_host(&at_rows(tape, hook, &runs.rows)?);
        let z = |layer: usize| {
            let z = values(Hook::at(Kind::Z, layer))?;
            match post_scale(&runs.model.spec, layer) {
                Some(scale) => over(z, values(scale)?),
                None => Ok(z),
            }
        };
        Written::made(&runs.model.spec, z, values)
    }

    fn made(
        spec: &ModelSpec,
        z: impl Fn(usize) -> Result<Tensor>,
        stream: impl Fn(Hook) -> Result<Tensor>,
    ) -> Result<Self> {
        let factor = f64::from(spec.residual_multiplier.unwrap_or(1.0));
        let z = |layer: usize| to_host(&(z(layer)? * factor)?);
        let mlp = |layer: usize| to_host(&stream(Hook::at(Kind::MlpOut, layer))?);
        let layers = 0..spec.n_layers;
        Ok(Written {
            input: to_host(&stream(Hook::global(Kind::Embed))?)?,
            z: layers.clone().map(z).collect::<Result<_>>()?,
            mlp: match spec.mlp {
                Mlp::None => Vec::new(),
                _ => layers.map(mlp).collect::<Result<_>>()?,
            },
        })
    }

    /// What is written here beyond what is written there.
    pub fn beyond(&self, there: &Written) -> Self {
        let less = |here: &Vec<f32>, there: &Vec<f32>| -> Vec<f32> {
            here.iter().zip(there).map(|(a, b)| a - b).collect()
        };
        let each = |here: &[Vec<f32>], there: &[Vec<f32>]| -> Vec<Vec<f32>> {
            here.iter().zip(there).map(|(a, b)| less(a, b)).collect()
        };
        Written {
            input: less(&self.input, &there.input),
            z: each(&self.z, &there.z),
            mlp: each(&self.mlp, &there.mlp),
        }
    }
}

/// The edges of one batch of pairs.
pub(super) struct Edges<'a> {
    pub runs: &'a Runs<'a>,
    pub graph: Graph,
    pub config: &'a EdgeAttributionConfig,
    /// What nodes write.
    pub hooks: &'a [Hook],
    pub memory: usize,
    pub weights: &'a EdgeWeights,
}

/// The weights that edges go through, on the host in f32: taken once, since a device or 16 bits would make a copy each time.
pub(super) struct EdgeWeights {
    layers: Vec<LayerWeights>,
}

struct LayerWeights {
    w_o: Tensor,
    w_qkv: Tensor,
    /// Of the norm on what attention writes, and of the norm before it.
    post: Option<Vec<f32>>,
    pre: Option<Vec<f32>>,
}

impl EdgeWeights {
    pub fn new(model: &Model) -> Result<Self> {
        let layer = |block: &BlockWeights| -> Result<LayerWeights> {
            Ok(LayerWeights {
                w_o: block.w_o.to_device(&Device::Cpu)?,
                w_qkv: block.w_qkv.to_device(&Device::Cpu)?,
                post: block.ln1_post.as_ref().map(|w| to_host(&w.w)).transpose()?,
                pre: block.ln1.as_ref().map(|w| to_host(&w.w)).transpose()?,
            })
        };
        let layers = model.weights.blocks.iter().map(layer);
        Ok(EdgeWeights {
            layers: layers.collect::<Result<_>>()?,
        })
    }
}

/// Most values held at once at the width of the model.
const SPREAD: usize = 16 << 20;

/// Room that is used again for each stretch of tokens.
#[derive(Default)]
struct Scratch {
    /// `[sources, rows, d_model]`
    sources: Vec<f32>,
    /// `[readers, rows, d_model]`
    readers: Vec<f32>,
    /// `[sources, readers]`
    block: Vec<f32>,
}

impl Edges<'_> {
    /// The gradient averaged along one line for all, times what is written differently.
    pub fn along(
        &self,
        path: GradientPath,
        written: &Written,
        scores: &mut [Vec<f32>],
    ) -> Result<()> {
        let keep = read(&self.runs.model.spec);
        let mut sums = Sums::new(self.runs, self.config)?;
        for (point, share) in path.points(true) {
            let tape = self.runs.at(point, &keep)?;
            sums.add(&tape, 0, share)?;
        }
        self.contract(&sums, written, 0..self.graph.n_src(), scores)
    }

    /// For each group of sources, the gradient averaged while what it writes goes from one run to the other.
    pub fn activations(
        &self,
        path: GradientPath,
        every_edge: bool,
        written: &Written,
        scores: &mut [Vec<f32>],
    ) -> Result<()> {
        let keep = read(&self.runs.model.spec);
        let groups = self.groups()?;
        let of_group = if every_edge { groups.len() as f32 } else { 1.0 };
        for (hook, own_rows) in groups {
            let (from, rows) = if every_edge {
                (0, 0..self.graph.n_src())
            } else {
                (hook.layer.unwrap_or(0), own_rows)
            };
            let mut sums = Sums::new(self.runs, self.config)?;
            for (point, share) in path.points(true) {
                let tape = self.runs.with_hook_at(hook, point, from, &keep)?;
                sums.add(&tape, from, share / of_group)?;
            }
            self.contract(&sums, written, rows, scores)?;
        }
        Ok(())
    }

    /// What is interpolated as one, and the rows of the nodes that it holds.
    fn groups(&self) -> Result<Vec<(Hook, Range<usize>)>> {
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

    /// Multiplies what sources write with what readers ask for, as many tokens at a time as there is room for.
    pub fn contract(
        &self,
        sums: &Sums<'_>,
        written: &Written,
        sources: Range<usize>,
        scores: &mut [Vec<f32>],
    ) -> Result<()> {
        let d = self.runs.model.spec.d_model;
        // A quarter of the memory, in f32, for both sides.
        let room = SPREAD.min(self.memory / 16);
        let at_once = (room / (d * (sources.len() + self.readers()))).max(1);
        let size = self.graph.n_src() * self.graph.n_dst();
        // The rows of each table of scores: those of a prompt, or one by one.
        let mut tables: Vec<(Range<usize>, &mut [f32])> = Vec::new();
        for (i, scores) in scores.iter_mut().enumerate() {
            let rows = self.runs.rows_of(i);
            if self.config.by_position {
                let first = self.runs.rows.segments[i].positions[0] as usize;
                let at = scores.chunks_exact_mut(size).skip(first);
                tables.extend(rows.zip(at).map(|(row, scores)| (row..row + 1, scores)));
            } else {
                tables.push((rows, scores));
            }
        }
        let mut scratch = Scratch::default();
        let mut tables = tables.as_mut_slice();
        for start in (0..self.runs.rows.total).step_by(at_once) {
            let rows = start..self.runs.rows.total.min(start + at_once);
            self.contract_rows(sums, written, &sources, &rows, &mut scratch, tables)?;
            let done = tables.partition_point(|(of, _)| of.end <= rows.end);
            tables = &mut tables[done..];
        }
        Ok(())
    }

    /// Queries, keys and values of every head of a layer, and what its MLP reads.
    fn readers(&self) -> usize {
        3 * self.graph.n_heads + usize::from(self.graph.has_mlp)
    }

    /// Adds what some rows give to the tables that have any of them.
    fn contract_rows(
        &self,
        sums: &Sums<'_>,
        written: &Written,
        sources: &Range<usize>,
        rows: &Range<usize>,
        scratch: &mut Scratch,
        tables: &mut [(Range<usize>, &mut [f32])],
    ) -> Result<()> {
        let d = self.runs.model.spec.d_model;
        self.spread_sources(written, sources, rows.clone(), &mut scratch.sources)?;
        let n_dst = self.graph.n_dst();
        // Of the sources here, how many a column reads.
        let read_by = |column: usize| {
            self.graph
                .n_sources(column)
                .clamp(sources.start, sources.end)
                - sources.start
        };
        let apart = rows.len() * d;
        // The rows of a table that are here, as a stretch of each source and reader.
        let here = |of: &Range<usize>| {
            let of = of.start.max(rows.start)..of.end.min(rows.end);
            (of.start < of.end).then(|| ((of.start - rows.start) * d, of.len() * d))
        };
        for (layer, of_layer) in sums.layers.iter().enumerate() {
            if of_layer.letters.is_empty() {
                continue;
            }
            let head = Node::Head { layer, head: 0 };
            let first = self.graph.column(head, Some(Letter::Q))?;
            let by_heads = read_by(first);
            // The MLP's column follows those of the heads; it reads the heads of its own layer too where it comes after them.
            let columns = self.readers();
            let count = by_heads.max(read_by(first + columns - 1));
            if count == 0 {
                continue;
            }
            self.spread_readers(layer, of_layer, rows.clone(), &mut scratch.readers)?;
            for (of, scores) in tables.iter_mut() {
                let Some((start, length)) = here(of) else {
                    break;
                };
                let written = RowsOf::new(&scratch.sources, start, apart, count);
                let read = RowsOf::new(&scratch.readers, start, apart, columns);
                scratch.block.clear();
                scratch.block.resize(count * columns, 0.0);
                inner_products(&mut scratch.block, columns, written, read, length);
                for (i, row) in scratch.block.chunks_exact(columns).enumerate() {
                    let at = (sources.start + i) * n_dst + first;
                    let from = if i < by_heads { 0 } else { columns - 1 };
                    let scores = &mut scores[at + from..at + columns];
                    let more = scores.iter_mut().zip(&row[from..]);
                    more.for_each(|(score, x)| *score += x);
                }
            }
        }
        let count = read_by(n_dst - 1);
        for (of, scores) in tables.iter_mut() {
            let Some((start, length)) = here(of) else {
                break;
            };
            let written = RowsOf::new(&scratch.sources, start, apart, count);
            let read = RowsOf::new(&sums.logits, rows.start * d + start, apart, 1);
            let at = sources.start * n_dst + n_dst - 1;
            inner_products(&mut scores[at..], n_dst, written, read, length);
        }
        Ok(())
    }

    /// What each source writes differently, at full width: `[sources, rows, d_model]`.
    fn spread_sources(
        &self,
        written: &Written,
        sources: &Range<usize>,
        rows: Range<usize>,
        dense: &mut Vec<f32>,
    ) -> Result<()> {
        let model = self.runs.model;
        let spec = &model.spec;
        let (d, d_head, heads) = (spec.d_model, spec.d_head, spec.n_heads);
        dense.resize(sources.len() * rows.len() * d, 0.0);
        let weights = (self.weights.layers.iter())
            .map(|layer| Ok((host_matrix(&layer.w_o)?, layer.post.as_deref())))
            .collect::<Result<Vec<_>>>()?;
        dense
            .par_chunks_exact_mut(rows.len() * d)
            .zip(sources.clone())
            .for_each_init(Vec::new, |wide, (dense, row)| {
                let node = self.graph.source(row).expect("a row of the graph");
                match node {
                    Node::Input => {
                        dense.copy_from_slice(&written.input[rows.start * d..rows.end * d]);
                    }
                    Node::Mlp(layer) => {
                        dense.copy_from_slice(&written.mlp[layer][rows.start * d..rows.end * d]);
                    }
                    Node::Head { layer, head } => {
                        let (w_o, post) = &weights[layer];
                        let width = heads * d_head;
                        let first = head * d_head * d;
                        let w_o = w_o.numbers().range(first..first + d_head * d, wide);
                        small_product(
                            (dense, View::rows(d)),
                            (
                                &written.z[layer],
                                View::rows(width).from(rows.start * width + head * d_head),
                            ),
                            (w_o, View::rows(d)),
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
        rows: Range<usize>,
        dense: &mut Vec<f32>,
    ) -> Result<()> {
        let model = self.runs.model;
        let spec = &model.spec;
        let (d, d_head, heads) = (spec.d_model, spec.d_head, spec.n_heads);
        let of_layer = &self.weights.layers[layer];
        let width_qkv = of_layer.w_qkv.dim(1)?;
        let w_qkv = on_host(&of_layer.w_qkv)?;
        let w_qkv = host(&w_qkv)?;
        let weight = &of_layer.pre;
        let columns = self.readers();
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
                if let Some(weight) = weight {
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
    simd(
        #[inline(always)]
        || {
            for row in rows.chunks_exact_mut(d) {
                if centre && first {
                    centred(row);
                }
                for (x, w) in row.iter_mut().zip(weight) {
                    *x *= w;
                }
                if centre && !first {
                    centred(row);
                }
            }
        },
    )
}

#[inline(always)]
fn centred(row: &mut [f32]) {
    let mean = sum(row) / row.len() as f32;
    for x in row {
        *x -= mean;
    }
}
