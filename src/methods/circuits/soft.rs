//! Circuits with soft masks, and the gradient at every mask.
//!
//! Some edges, the candidates, carry the share `m` of what their source writes otherwise than at the reference, and all others
//! nothing: `x_v = x^r_v + sum of m_uv (z_u - r_u)`. With masks of 0 and 1 this is the circuit of those with 1. One forward and
//! one backward pass give the metric and its slope at every mask, `<z_u - r_u, d metric / d x_v>` summed over positions.
//!
//! Sources: Bhaskar et al. 2024, "Finding Transformer Circuits with Edge Pruning" (arXiv 2406.16778); Cao, Sanh and Rush 2021,
//! "Low-Complexity Probing via Finding Subnetworks" (arXiv 2104.03514), for masks on nodes.

use std::collections::HashMap;

use candle_core::Tensor;
use rayon::prelude::*;

use super::evaluation::check_evaluated;
use super::ground::{Ground, Layer, input_change};
use super::streams::{At, add};
use super::writes;
use crate::circuit::{EdgeSet, Graph};
use crate::error::{Error, Result};
use crate::hooks::{Edge, Hook, Kind, Letter, Ln};
use crate::methods::exact_edges::Reference;
use crate::methods::exact_edges::runs::reference_means;
use crate::methods::method::{Running, Subject};
use crate::metric::Metric;
use crate::model::Model;
use crate::nn::host::{dot, host, simd, tensor, to_host};
use crate::nn::linear::{View, small_product};
use crate::nn::rules::Rules;
use crate::run::backward::Descent;
use crate::run::forward::Tap;
use crate::run::gradients::{Measured, Nobody};
use crate::run::rows::Rows;
use crate::run::tape::Tape;
use crate::spec::{BlockWeights, NormKind};

/// What [`mask_gradient`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct MaskGradient {
    /// The metric of each pair.
    pub values: Vec<f64>,
    /// How the mean over pairs changes with the mask of each edge.
    pub slopes: Vec<f64>,
}

/// The metric where each of some edges carries a share of what its source writes otherwise than at the reference, and all others
/// nothing of it; and its slope at each share.
/// # Units
/// `values`: the metric's; `slopes`: the metric's per whole edge.
/// # Errors
/// Before anything runs: an edge named twice, one that the model has not, a share that is no number, a metric without a gradient,
/// an encoder, a model that is not f32 on the CPU.
pub fn mask_gradient(
    on: Subject<'_>,
    masks: &[(Edge, f32)],
    metric: Metric,
    reference: Reference,
) -> Result<MaskGradient> {
    check_evaluated(on, metric, reference)?;
    metric.check_differentiable()?;
    let graph = Graph::new(&on.model.spec);
    let edges = EdgeSet::of(graph, masks.iter().map(|(edge, _)| edge))?;
    if let Some((edge, _)) = masks.iter().find(|(_, mask)| !mask.is_finite()) {
        return Err(Error::invalid(format!("the mask of `{edge}` is no number")));
    }
    if edges.len() != masks.len() {
        return Err(Error::invalid("an edge has two masks; give it one"));
    }
    // Masks stand in the order of the graph.
    let mut order: Vec<(usize, usize)> = Vec::with_capacity(masks.len());
    for (i, (edge, _)) in masks.iter().enumerate() {
        let (row, column) = graph.place(edge)?;
        order.push((row * graph.n_dst() + column, i));
    }
    order.sort_unstable();
    let candidates = Candidates::edges(&edges);
    let sorted: Vec<f32> = order.iter().map(|&(_, i)| masks[i].1).collect();
    let running = Running::default();
    let means = reference_means(on, reference, running.batch)?;
    let n_pairs = on.task.pairs().len();
    let mut found = MaskGradient {
        values: vec![0.0; n_pairs],
        slopes: vec![0.0; masks.len()],
    };
    for batch in on.task.batches(running.batch) {
        let ground = Ground::new(on, metric, reference, &batch, &means)?;
        let (values, slopes) =
            Soft::new(on.model, &ground, &candidates)?.run(&sorted, |_, _| 1.0)?;
        for (&pair, value) in batch.iter().zip(values) {
            found.values[pair] = value;
        }
        for (&(_, i), slope) in order.iter().zip(slopes) {
            found.slopes[i] += slope / n_pairs as f64;
        }
    }
    Ok(found)
}

/// What a reader sees: the row of each source, and which mask stands on it.
type Seen = [(usize, usize)];

/// The edges that have masks: for each reader its sources, and the mask of each.
pub(super) struct Candidates {
    graph: Graph,
    /// By column: the row of a source and its mask. The mask past the last is always 1.
    columns: Vec<Vec<(usize, usize)>>,
    pub n_masks: usize,
    /// By row, whether a candidate edge leaves it.
    is_source: Vec<bool>,
}

impl Candidates {
    /// A mask for each edge, in the order of the set.
    pub fn edges(edges: &EdgeSet) -> Self {
        let places = edges.places().enumerate();
        Candidates::of(
            edges,
            places.map(|(mask, (row, column))| (row, column, mask)),
        )
    }

    /// A mask for each node that writes, in the order of the graph, on all its edges; `input` has none and always writes.
    pub fn nodes(edges: &EdgeSet) -> Self {
        let mut rows: Vec<usize> = edges.places().map(|(row, _)| row).collect();
        rows.dedup();
        rows.retain(|&row| row != 0);
        let mask = |row: usize| rows.binary_search(&row).unwrap_or(rows.len());
        let places = edges.places();
        let mut candidates =
            Candidates::of(edges, places.map(|(row, column)| (row, column, mask(row))));
        candidates.n_masks = rows.len();
        candidates
    }

    fn of(edges: &EdgeSet, masks: impl Iterator<Item = (usize, usize, usize)>) -> Self {
        let graph = *edges.graph();
        let mut candidates = Candidates {
            graph,
            columns: vec![Vec::new(); graph.n_dst()],
            n_masks: edges.len(),
            is_source: vec![false; graph.n_src()],
        };
        for (row, column, mask) in masks {
            candidates.columns[column].push((row, mask));
            candidates.is_source[row] = true;
        }
        candidates
    }

    fn first_column(&self, layer: usize) -> usize {
        layer * (3 * self.graph.n_heads + usize::from(self.graph.has_mlp))
    }

    /// The row of a layer's first head, and of its MLP.
    fn first_row(&self, layer: usize) -> usize {
        1 + layer * (self.graph.n_heads + usize::from(self.graph.has_mlp))
    }

    fn mlp_row(&self, layer: usize) -> usize {
        self.first_row(layer) + self.graph.n_heads
    }

    /// What the MLP of a layer sees.
    fn mlp(&self, layer: usize) -> &Seen {
        &self.columns[self.first_column(layer) + 3 * self.graph.n_heads]
    }

    fn logits(&self) -> &Seen {
        &self.columns[self.graph.n_dst() - 1]
    }

    /// The lists of sources that some readers of a layer see, each once, and for each reader which of them.
    fn lists(&self, layer: usize, letters: &[Letter]) -> (Vec<&Seen>, Vec<usize>) {
        let (mut lists, mut known) = (Vec::new(), HashMap::new());
        let readers = letters.iter().flat_map(|&letter| {
            (0..self.graph.n_heads).map(move |head| letter as usize * self.graph.n_heads + head)
        });
        let which = readers.map(|place| {
            let list = &self.columns[self.first_column(layer) + place][..];
            *known.entry(list).or_insert_with(|| {
                lists.push(list);
                lists.len() - 1
            })
        });
        let which = which.collect();
        (lists, which)
    }
}

/// Soft circuits of one batch of pairs.
pub(super) struct Soft<'a> {
    model: &'a Model,
    ground: &'a Ground,
    candidates: &'a Candidates,
    /// What `input` writes otherwise.
    input: Vec<f32>,
    /// Rows of the last position of each prompt.
    answers: Vec<usize>,
}

impl<'a> Soft<'a> {
    pub fn new(model: &'a Model, ground: &'a Ground, candidates: &'a Candidates) -> Result<Self> {
        let segments = ground.rows.segments.iter();
        Ok(Soft {
            model,
            ground,
            candidates,
            input: input_change(ground)?,
            answers: segments.map(|s| s.start + s.positions.len() - 1).collect(),
        })
    }

    /// The metric of each pair under some masks; and the slopes at each mask, summed over pairs with the weight that a pair and
    /// its metric are given.
    pub fn run(
        &self,
        masks: &[f32],
        weight: impl Fn(usize, f64) -> f64,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let mut all = masks.to_vec();
        all.push(1.0);
        let n_layers = self.model.spec.n_layers;
        let mut tap = SoftTap {
            soft: self,
            masks: &all,
            deltas: vec![None; self.candidates.graph.n_src()],
            shifts: vec![None; n_layers],
            z: vec![None; n_layers],
        };
        tap.deltas[0] = Some(self.input.clone());
        let rows = &self.ground.rows;
        let d = self.model.spec.d_model;
        let stream = match self.ground.layers.first() {
            Some(layer) => tensor(layer.attn_in.clone(), (rows.total, d))?,
            None => return Err(Error::invalid("the model has no layer")),
        };
        let base = self.ground.layers.iter();
        let base = base
            .map(|layer| (layer.k.clone(), layer.v.clone()))
            .collect();
        let tape = Tape::steered(self.model, rows, stream, base, &mut tap)?;
        let readout = &self.ground.readout;
        let reference = readout.reference.as_deref();
        let measured = Measured::new(
            self.model,
            &tape,
            readout.metric,
            &readout.targets,
            reference,
        )?;
        let rules = Rules::gradient();
        let start = measured.gradient(self.model, &rules, rows, &mut Nobody)?;
        let mut start = to_host(&start)?;
        for (pair, (segment, &value)) in rows.segments.iter().zip(&measured.values).enumerate() {
            let weight = weight(pair, value) as f32;
            let own = segment.start * d..(segment.start + segment.positions.len()) * d;
            start[own].iter_mut().for_each(|x| *x *= weight);
        }
        let mut back = Back {
            tap: &tap,
            slopes: vec![0.0; all.len()],
            at_writes: vec![None; tap.deltas.len()],
            at_shifts: None,
        };
        let descent = Descent {
            model: self.model,
            tape: &tape,
            rules: &rules,
            rows,
        };
        back.run(&descent, &start)?;
        let mut slopes = back.slopes;
        slopes.truncate(self.candidates.n_masks);
        Ok((measured.values, slopes))
    }

    fn width(&self) -> usize {
        self.model.spec.d_model
    }

    fn layer(&self, layer: usize) -> &Layer {
        &self.ground.layers[layer]
    }

    fn weights(&self, layer: usize) -> &BlockWeights {
        &self.model.weights.blocks[layer]
    }

    /// Whether the share of an output bias moves with the scale of a post-norm.
    fn moves_bias(&self, layer: usize) -> bool {
        let weights = self.weights(layer);
        weights.ln1_post.is_some() && weights.b_o.is_some()
    }

    /// Whether anybody reads what attention of a layer writes.
    fn attends(&self, layer: usize) -> bool {
        let first = self.candidates.first_row(layer);
        let heads = first..first + self.candidates.graph.n_heads;
        self.moves_bias(layer) || self.candidates.is_source[heads].contains(&true)
    }
}

/// Gives every reader its stream and takes what every source writes.
struct SoftTap<'a> {
    soft: &'a Soft<'a>,
    masks: &'a [f32],
    /// By row, what a source writes otherwise than at the reference, `[rows, d_model]`; of those with a candidate edge.
    deltas: Vec<Option<Vec<f32>>>,
    /// By layer, how the share of an output bias under a post-norm moved.
    shifts: Vec<Option<Vec<f32>>>,
    /// By layer, `[rows, n_heads, d_head]`.
    z: Vec<Option<Tensor>>,
}

impl SoftTap<'_> {
    /// The stream of a reader of some sources, which also sees the shifts of the layers before `layer`.
    fn stream(&self, base: &[f32], list: &Seen, layer: usize) -> Vec<f32> {
        let d = self.soft.width();
        let mut out = base.to_vec();
        out.par_chunks_mut(8 * d)
            .enumerate()
            .for_each(|(block, out)| {
                let rows = block * 8 * d..block * 8 * d + out.len();
                simd(
                    #[inline(always)]
                    || {
                        for shift in self.shifts[..layer].iter().flatten() {
                            add(out, &shift[rows.clone()], 1.0);
                        }
                        for &(row, mask) in list {
                            if let (Some(delta), true) =
                                (&self.deltas[row], self.masks[mask] != 0.0)
                            {
                                add(out, &delta[rows.clone()], self.masks[mask]);
                            }
                        }
                    },
                );
            });
        out
    }

    /// What the queries, keys or values of a layer read: `[rows, n_heads, d_model]`, or `[rows, 1, d_model]` if all read the same.
    fn inputs(&self, layer: usize, letter: Letter) -> Result<Tensor> {
        let (lists, which) = self.soft.candidates.lists(layer, &[letter]);
        let base = &self.soft.layer(layer).attn_in;
        let (d, rows) = (self.soft.width(), self.soft.ground.rows.total);
        let streams = lists.iter().map(|list| self.stream(base, list, layer));
        let streams: Vec<Vec<f32>> = streams.collect();
        let heads = if lists.len() == 1 {
            &which[..1]
        } else {
            &which[..]
        };
        let mut out = vec![0.0; rows * heads.len() * d];
        for (row, out) in out.chunks_exact_mut(heads.len() * d).enumerate() {
            for (out, &stream) in out.chunks_exact_mut(d).zip(heads) {
                out.copy_from_slice(&streams[stream][row * d..][..d]);
            }
        }
        tensor(out, (rows, heads.len(), d))
    }

    /// Takes what the heads of a layer write.
    fn heads_wrote(&mut self, layer: usize) -> Result<()> {
        let soft = self.soft;
        let first = soft.candidates.first_row(layer);
        let Some(z) = self.z[layer].as_ref().filter(|_| soft.attends(layer)) else {
            return Ok(());
        };
        let all: Vec<usize> = (0..soft.candidates.graph.n_heads).collect();
        let every = At::Every(soft.ground.rows.total);
        let (deltas, shift) =
            writes::by_heads(soft.model, soft.layer(layer), layer, &all, z, every)?;
        for (row, delta) in (first..).zip(deltas) {
            self.deltas[row] = soft.candidates.is_source[row].then_some(delta.data);
        }
        self.shifts[layer] = shift.map(|shift| shift.data);
        Ok(())
    }

    /// The layers whose shifts the MLP of a layer sees.
    fn before_mlp(&self, layer: usize) -> usize {
        layer + usize::from(!self.soft.candidates.graph.parallel)
    }
}

impl Tap for SoftTap<'_> {
    fn wants(&self, hook: Hook) -> bool {
        matches!(hook.kind, Kind::QInput | Kind::KInput | Kind::VInput)
            && hook.layer.is_some_and(|layer| self.soft.attends(layer))
    }

    fn edits(&self, _: Hook) -> bool {
        false
    }

    fn at(&mut self, hook: Hook, t: Tensor, _: &Rows) -> Result<Tensor> {
        let Some(layer) = hook.layer else {
            return Ok(t);
        };
        let (soft, d) = (self.soft, self.soft.width());
        let candidates = soft.candidates;
        let letter = Letter::ALL
            .into_iter()
            .find(|letter| letter.input() == hook.kind);
        match (hook.kind, letter) {
            (_, Some(letter)) if self.wants(hook) => {
                let inputs = self.inputs(layer, letter)?;
                return Ok(inputs.broadcast_as((t.dim(0)?, t.dim(1)?, d))?);
            }
            (Kind::Z, _) => self.z[layer] = Some(t.clone()),
            (Kind::AttnOut, _) => self.heads_wrote(layer)?,
            (Kind::MlpIn, _) if candidates.is_source[candidates.mlp_row(layer)] => {
                let base = &soft.layer(layer).mlp_in;
                let x = self.stream(base, candidates.mlp(layer), self.before_mlp(layer));
                return tensor(x, t.dims());
            }
            (Kind::MlpOut, _) => {
                let row = candidates.mlp_row(layer);
                if candidates.is_source[row] {
                    let mut own = to_host(&t)?;
                    add(&mut own, &soft.layer(layer).mlp, -1.0);
                    self.deltas[row] = Some(own);
                }
            }
            (Kind::ResidPost, _) if layer + 1 == soft.model.spec.n_layers => {
                let mut base = vec![0.0; soft.ground.rows.total * d];
                for (i, &row) in soft.answers.iter().enumerate() {
                    base[row * d..][..d].copy_from_slice(&soft.ground.ending[i * d..][..d]);
                }
                let x = self.stream(&base, candidates.logits(), layer + 1);
                return tensor(x, t.dims());
            }
            _ => {}
        }
        Ok(t)
    }
}

/// The way back: from readers, the last first, to the masks of their edges and to what their sources write.
struct Back<'a> {
    tap: &'a SoftTap<'a>,
    slopes: Vec<f64>,
    /// By row, the gradient at what a source writes.
    at_writes: Vec<Option<Vec<f32>>>,
    /// The gradient at what every later reader sees, where a layer moves its bias.
    at_shifts: Option<Vec<f32>>,
}

impl Back<'_> {
    fn run(&mut self, descent: &Descent<'_>, at_logits: &[f32]) -> Result<()> {
        let soft = self.tap.soft;
        let candidates = soft.candidates;
        self.arrive(at_logits, candidates.logits());
        for layer in (0..soft.model.spec.n_layers).rev() {
            // In a parallel block the MLP does not see what attention writes, nor how its bias moved.
            if candidates.graph.parallel {
                self.attention(layer, descent)?;
                self.mlp(layer, descent)?;
            } else {
                self.mlp(layer, descent)?;
                self.attention(layer, descent)?;
            }
        }
        Ok(())
    }

    /// The gradient at the stream of readers of some sources.
    fn arrive(&mut self, gradient: &[f32], list: &Seen) {
        let tap = self.tap;
        let d = tap.soft.width();
        let along = |&(row, _): &(usize, usize)| -> f64 {
            let Some(delta) = &tap.deltas[row] else {
                return 0.0;
            };
            let rows = delta.chunks_exact(d).zip(gradient.chunks_exact(d));
            simd(
                #[inline(always)]
                || {
                    // A loop: what `sum` calls is not compiled for the machine that `simd` chose.
                    let mut sum = 0.0;
                    for (a, b) in rows {
                        sum += f64::from(dot(a, b));
                    }
                    sum
                },
            )
        };
        let along: Vec<f64> = list.par_iter().map(along).collect();
        for (&(_, mask), along) in list.iter().zip(along) {
            self.slopes[mask] += along;
        }
        for &(row, mask) in list {
            let share = tap.masks[mask];
            if share != 0.0 && row != 0 {
                let sum = self.at_writes[row].get_or_insert_with(|| vec![0.0; gradient.len()]);
                simd(
                    #[inline(always)]
                    || add(sum, gradient, share),
                );
            }
        }
        if (0..tap.soft.model.spec.n_layers).any(|layer| tap.soft.moves_bias(layer)) {
            let sum = self
                .at_shifts
                .get_or_insert_with(|| vec![0.0; gradient.len()]);
            add(sum, gradient, 1.0);
        }
    }

    fn mlp(&mut self, layer: usize, descent: &Descent<'_>) -> Result<()> {
        let candidates = self.tap.soft.candidates;
        if !candidates.graph.has_mlp {
            return Ok(());
        }
        let Some(at_out) = self.at_writes[candidates.mlp_row(layer)].take() else {
            return Ok(());
        };
        let at_out = tensor(
            at_out,
            (self.tap.soft.ground.rows.total, self.tap.soft.width()),
        )?;
        let at_in = descent.mlp(layer, &at_out, &mut Nobody)?;
        self.arrive(&to_host(&at_in)?, candidates.mlp(layer));
        Ok(())
    }

    fn attention(&mut self, layer: usize, descent: &Descent<'_>) -> Result<()> {
        let soft = self.tap.soft;
        let Some(at_z) = self.at_z(layer, descent)? else {
            return Ok(());
        };
        let inputs = Letter::ALL.map(|letter| self.tap.inputs(layer, letter));
        let [q, k, v] = inputs;
        let at_inputs = descent.below_z(layer, at_z, [&q?, &k?, &v?], &mut Nobody)?;
        let (lists, which) = soft.candidates.lists(layer, &Letter::ALL);
        let (heads, d) = (soft.candidates.graph.n_heads, soft.width());
        let mut sums = vec![vec![0.0; soft.ground.rows.total * d]; lists.len()];
        for (letter, at_input) in at_inputs.iter().enumerate() {
            let all = host(at_input)?;
            for (row, all) in all.chunks_exact(heads * d).enumerate() {
                for (head, gradient) in all.chunks_exact(d).enumerate() {
                    let sum = &mut sums[which[letter * heads + head]];
                    add(&mut sum[row * d..][..d], gradient, 1.0);
                }
            }
        }
        for (sum, list) in sums.iter().zip(lists) {
            self.arrive(sum, list);
        }
        Ok(())
    }

    /// The gradient at z of a layer's heads, from that at what each writes; `None` where it is zero.
    ///
    /// Under a norm on attention's output a head writes `w z_h W_O / s`, and `s` is of all heads and the bias together: with
    /// `a_h` the gradient at `z_h` but for `1 / s`, and `n` the normed sum, that at `z_h` is
    /// `a_h / s - n W_O^T (sum of <a_h, z_h> + <a_b, b>) / (s^2 d)`.
    fn at_z(&mut self, layer: usize, descent: &Descent<'_>) -> Result<Option<Tensor>> {
        let soft = self.tap.soft;
        let (spec, weights) = (&soft.model.spec, soft.weights(layer));
        let (heads, d, d_model) = (spec.n_heads, spec.d_head, spec.d_model);
        let first = soft.candidates.first_row(layer);
        let rows = soft.ground.rows.total;
        let mut at_writes = Vec::with_capacity(heads);
        for row in first..first + heads {
            at_writes.push(self.at_writes[row].take());
        }
        let moves_bias = soft.moves_bias(layer);
        if !moves_bias && at_writes.iter().all(Option::is_none) {
            return Ok(None);
        }
        let w_o = host(&weights.w_o)?;
        let mut at_z = vec![0.0; rows * heads * d];
        for (head, at_write) in at_writes.into_iter().enumerate() {
            let Some(at_write) = at_write else { continue };
            let at_result = before_post_norm(soft.model, layer, at_write)?;
            let of_head = View::rows(d_model).from(head * d * d_model).t();
            small_product(
                (&mut at_z, View::rows(heads * d).from(head * d)),
                (&at_result, View::rows(d_model)),
                (&w_o, of_head),
                [rows, d_model, d],
                1.0,
                false,
            );
        }
        if weights.ln1_post.is_some() {
            let saved = descent.tape.layer(soft.model, layer)?;
            let of_norm = |kind| -> Result<Vec<f32>> { to_host(&saved.get(kind, descent.rows)?) };
            let (scale, normalized) = (
                of_norm(Kind::Scale(Ln::OnePost))?,
                of_norm(Kind::Normalized(Ln::OnePost))?,
            );
            let z = self.tap.z[layer].as_ref().expect("z came by");
            let z = to_host(z)?;
            let mut along_bias = vec![0.0; rows];
            if let (Some(at_shifts), Some(bias)) = (&self.at_shifts, &weights.b_o) {
                let bias = to_host(bias)?;
                let at_bias = before_post_norm(soft.model, layer, at_shifts.clone())?;
                for (along, at_bias) in along_bias.iter_mut().zip(at_bias.chunks_exact(d_model)) {
                    *along = dot(at_bias, &bias);
                }
            }
            let mut by_scale = vec![0.0; rows * heads * d];
            small_product(
                (&mut by_scale, View::rows(heads * d)),
                (&normalized, View::rows(d_model)),
                (&w_o, View::rows(d_model).t()),
                [rows, d_model, heads * d],
                1.0,
                false,
            );
            let width = heads * d;
            for (row, at_z) in at_z.chunks_exact_mut(width).enumerate() {
                let scale = scale[row];
                let along = dot(at_z, &z[row * width..][..width]) + along_bias[row];
                let factor = along / (scale * scale * d_model as f32);
                let by_scale = &by_scale[row * width..][..width];
                for (at_z, by_scale) in at_z.iter_mut().zip(by_scale) {
                    *at_z = *at_z / scale - factor * by_scale;
                }
            }
        }
        Ok(Some(tensor(at_z, (rows, heads, d))?))
    }
}

/// The way back through [`writes::through_post_norm`].
fn before_post_norm(model: &Model, layer: usize, mut gradient: Vec<f32>) -> Result<Vec<f32>> {
    let spec = &model.spec;
    if let Some(factor) = spec.residual_multiplier {
        gradient.iter_mut().for_each(|x| *x *= factor);
    }
    if let Some(post) = &model.weights.blocks[layer].ln1_post {
        let w = host(&post.w)?;
        for row in gradient.chunks_exact_mut(spec.d_model) {
            row.iter_mut().zip(w.iter()).for_each(|(x, w)| *x *= w);
            if spec.norm == NormKind::Layer {
                let mean = row.iter().sum::<f32>() / spec.d_model as f32;
                row.iter_mut().for_each(|x| *x -= mean);
            }
        }
    }
    Ok(gradient)
}
