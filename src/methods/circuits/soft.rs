//! Circuits with soft masks, and the gradient at every mask.
//!
//! Some edges, the candidates, carry the share `m` of what their source writes otherwise than at the reference, and all others
//! nothing: `x_v = x^r_v + sum of m_uv (z_u - r_u)`. With masks of 0 and 1 this is the circuit of those with 1. One forward and
//! one backward pass give the metric and its slope at every mask, `<z_u - r_u, d metric / d x_v>` summed over positions.
//!
//! Sources: Bhaskar et al. 2024, "Finding Transformer Circuits with Edge Pruning" (arXiv 2406.16778); Cao, Sanh and Rush 2021,
//! "Low-Complexity Probing via Finding Subnetworks" (arXiv 2104.03514), for masks on nodes.

mod back;
mod candidates;
mod tap;

use super::evaluation::check_evaluated;
use super::ground::Ground;
use crate::circuit::{EdgeSet, Graph};
use crate::error::{Error, Result};
use crate::hooks::Edge;
use crate::methods::exact_edges::Reference;
use crate::methods::exact_edges::runs::reference_means;
use crate::methods::method::{Running, Subject};
use crate::metric::Metric;
use crate::nn::host::{tensor, to_host};
use crate::nn::rules::Rules;
use crate::run::backward::Descent;
use crate::run::gradients::{Measured, Nobody};
use crate::run::tape::Tape;
use back::Back;
pub(super) use candidates::Candidates;
pub(super) use tap::Soft;
use tap::SoftTap;

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

impl Soft<'_> {
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
}
