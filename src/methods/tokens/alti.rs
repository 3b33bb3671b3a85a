//! ALTI: which tokens the vectors of a layer are mixtures of; and ALTI-Logit: what that makes of attention's share of a logit.
//!
//! Attention writes at position `i` a sum over source positions, `a_ij = sum_h A_h[i,j] v_h[j] W_O[h]` (through the post-norm with
//! its divisor frozen, where there is one), so `y_i = sum_j T_i(j) + biases` with `T_i(j) = a_ij + [i = j] x_i`. A part that
//! brings `y_i` nearer to zero by being taken away counts by how much, `C[i,j] = max(0, |y_i| - |y_i - T_i(j)|)` in L1, and rows are divided by
//! their sums. The product of the layers' `C` is the rollout `M`. ALTI-Logit reads each `a_ij` of the last position off at the
//! logits and hands it to the tokens through the rollout of the layers below. What MLPs and biases write goes to no token and
//! has rows of its own; with them the sum is the metric.
//!
//! In parallel blocks `y` is the stream plus what attention adds, a sum that feeds nothing. A soft-capped logit is taken apart in
//! proportion to the raw one, so that the parts sum to the metric that is reported. The rollout ignores MLPs, and its rows
//! are shares without a sign.
//!
//! Sources: Ferrando et al. 2022 (ALTI); Ferrando et al. 2023, "Explaining How Transformers Use Context to Build Predictions"
//! (ALTI-Logit).

use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;

use super::batch::{Batch, Shares, dot};
use super::frozen::Write;
use super::relevance::at_the_end;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::host;
use crate::nn::host::{on_host, to_host};
use crate::nn::linear;
use crate::nn::rope;
use crate::nn::rules::Rules;
use crate::run::forward::{self, Stream, Tap};
use crate::run::gradients::Nobody;
use crate::run::rows::Rows;

/// How the positions of one prompt mix.
#[derive(Debug, Clone, PartialEq)]
pub struct Alti {
    /// Of each layer: row `i` says of which positions the stream after attention at `i` is a mixture. `[layers][pos * pos]`
    pub layers: Vec<Vec<f64>>,
    /// Of all layers: row `i` says of which tokens the final stream at `i` is a mixture. `[pos * pos]`
    pub rollout: Vec<f64>,
    /// Rows that no part brought nearer to zero, and that therefore count as themselves alone.
    pub unmixed: usize,
    /// Largest difference of an entry of attention's output and the sum of its parts.
    pub gap: f64,
}

/// ALTI of some prompts of one length.
/// # Shapes
/// `prompts [batch, pos]`; memory grows with the square of the length, times the layers.
/// # Errors
/// Those of a run.
pub fn alti(model: &Model, prompts: &[Vec<u32>]) -> Result<Vec<Alti>> {
    crate::run::check_prompts(model, prompts)?;
    let length = prompts[0].len();
    let fresh = Alti {
        layers: Vec::new(),
        rollout: identity(length),
        unmixed: 0,
        gap: 0.0,
    };
    let mut all = vec![fresh; prompts.len()];
    walk(model, prompts, None, &mut |layer| {
        for (prompt, alti) in all.iter_mut().enumerate() {
            let mixing = layer.mixing(prompt)?;
            alti.unmixed += mixing.unmixed;
            alti.gap = alti.gap.max(mixing.gap);
            alti.rollout = product(&mixing.shares, &alti.rollout, length);
            alti.layers.push(mixing.shares);
        }
        Ok(())
    })?;
    Ok(all)
}

/// Each prompt's shares, and how many rows were unmixed.
pub(super) fn rollout(batch: &Batch<'_>) -> Result<(Vec<Shares>, usize)> {
    let length = batch.length;
    let mut mixed = vec![identity(length); batch.len()];
    let mut unmixed = 0;
    walk(batch.model, &batch.prompts, batch.place()?, &mut |layer| {
        for (prompt, rollout) in mixed.iter_mut().enumerate() {
            let mixing = layer.mixing(prompt)?;
            unmixed += mixing.unmixed;
            *rollout = product(&mixing.shares, rollout, length);
        }
        Ok(())
    })?;
    batch.progress.advance(batch.len() as u64);
    let share = |rollout: Vec<f64>| Shares {
        tokens: rollout[(length - 1) * length..].to_vec(),
        ..Shares::default()
    };
    Ok((mixed.into_iter().map(share).collect(), unmixed))
}

/// How attention hands a prompt's metric to its tokens, layer by layer.
#[derive(Debug, Clone, Default, PartialEq)]
pub(in crate::methods) struct LogitFlow {
    /// What the last token brings by itself, through no attention.
    pub embed: f64,
    /// What attention at the last position brings from each position of what enters a layer, in the unit of the metric.
    /// `[layers][pos]`
    pub read: Vec<Vec<f64>>,
    /// `C` of each layer but the last. `[layers - 1][pos * pos]`
    pub mixing: Vec<Vec<f64>>,
    /// What goes to no token: a component, its layer, its share.
    pub parts: Vec<(&'static str, Option<usize>, f64)>,
    /// The metric, which all of it sums to.
    pub total: f64,
    pub unmixed: usize,
}

impl LogitFlow {
    /// What comes through each position of what enters each layer, from the first: the first are the tokens. `[layers][pos]`
    pub fn masses(&self) -> Vec<Vec<f64>> {
        let mut masses = passed_down(&self.mixing, &self.read);
        if let Some(last) = masses.first_mut().and_then(|tokens| tokens.last_mut()) {
            *last += self.embed;
        }
        masses
    }
}

/// What comes through each position of what enters each layer, if `entering` of it enters the walk down there and the rows of each
/// layer's mixing share out what is above.
pub(in crate::methods) fn passed_down(mixing: &[Vec<f64>], entering: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut masses = entering.to_vec();
    for layer in (0..mixing.len()).rev() {
        let (below, above) = masses.split_at_mut(layer + 1);
        let (below, above) = (&mut below[layer], &above[0]);
        for (row, mass) in mixing[layer].chunks_exact(below.len()).zip(above) {
            for (below, share) in below.iter_mut().zip(row) {
                *below += mass * share;
            }
        }
    }
    masses
}

/// Each prompt's shares, and how many rows were unmixed.
pub(super) fn logit(batch: &Batch<'_>) -> Result<(Vec<Shares>, usize)> {
    let flows = logit_flows(batch)?;
    let unmixed = flows.iter().map(|flow| flow.unmixed).sum();
    let shares = flows.into_iter().map(|flow| Shares {
        tokens: flow.masses().swap_remove(0),
        parts: flow.parts,
        total: Some(flow.total),
        ..Shares::default()
    });
    Ok((shares.collect(), unmixed))
}

/// The flows behind the shares.
pub(super) fn logit_flows(batch: &Batch<'_>) -> Result<Vec<LogitFlow>> {
    let (model, length, d) = (batch.model, batch.length, batch.model.spec.d_model);
    let tape = batch.record()?;
    let measured = batch.measured(&tape)?;
    // The read-out with the final norm's divisor frozen: what a part of the final stream is worth is its product with this.
    let readout = measured.gradient(model, &Rules::cp_lrp(), &tape.rows, &mut Nobody)?;
    let end = at_the_end(batch, &measured, &readout)?;
    let readout = to_host(&readout)?;
    let readout = |prompt: usize| &readout[(prompt + 1) * batch.width() - d..][..d];
    drop(tape);

    let mut all = vec![LogitFlow::default(); batch.len()];
    let last_layer = model.spec.n_layers - 1;
    walk(model, &batch.prompts, batch.place()?, &mut |layer| {
        let index = layer.index;
        for (prompt, flow) in all.iter_mut().enumerate() {
            let readout = readout(prompt);
            let end = layer.row(prompt, length - 1);
            if index == 0 {
                flow.embed = dot(layer.of(Kind::ResidPre, end), readout);
            }
            let sources = layer.sources(prompt, length - 1..length)?;
            let read = sources.chunks_exact(d).map(|source| dot(source, readout));
            flow.read.push(read.collect());
            if layer.write.has_bias() {
                let bias = dot(&layer.write.bias(layer.scale(end), d), readout);
                flow.parts.push(("bias", Some(index), bias));
            }
            if layer.kept.contains_key(&Kind::MlpOut) {
                let mlp = dot(layer.of(Kind::MlpOut, end), readout);
                flow.parts.push(("hook_mlp_out", Some(index), mlp));
            }
            if index < last_layer {
                let mixing = layer.mixing(prompt)?;
                flow.unmixed += mixing.unmixed;
                flow.mixing.push(mixing.shares);
            }
        }
        Ok(())
    })?;
    batch.progress.advance(batch.len() as u64);
    for (prompt, flow) in all.iter_mut().enumerate() {
        let of_end = end
            .iter()
            .map(|(name, values)| (*name, None, values[prompt]));
        flow.parts.extend(of_end);
        flow.total = measured.values[prompt];
    }
    Ok(all)
}

/// One layer of one forward pass.
struct Layer<'a> {
    model: &'a Model,
    index: usize,
    length: usize,
    write: Write,
    w_o: Tensor,
    kept: HashMap<Kind, Vec<f32>>,
}

struct Mixing {
    /// `[pos * pos]`, rows of sum 1.
    shares: Vec<f64>,
    unmixed: usize,
    gap: f64,
}

/// Rows of a product at most: sources of several queries share one, in bounded memory.
const ROWS: usize = 2048;

impl Layer<'_> {
    fn row(&self, prompt: usize, pos: usize) -> usize {
        prompt * self.length + pos
    }

    /// One row of a stream.
    fn of(&self, kind: Kind, row: usize) -> &[f32] {
        let d = self.model.spec.d_model;
        &self.kept[&kind][row * d..][..d]
    }

    /// The divisor of the norm on attention's output; 1 where there is none.
    fn scale(&self, row: usize) -> f32 {
        let scales = self.kept.get(&Kind::Scale(Ln::OnePost));
        scales.map_or(1.0, |scales| scales[row])
    }

    /// What each query's sources write there: for each query in turn, a row for each position up to its own.
    /// # Shapes
    /// `[sum of (query + 1), d_model]`
    fn sources(&self, prompt: usize, queries: Range<usize>) -> Result<Vec<f32>> {
        let spec = &self.model.spec;
        let (heads, d_head, length) = (spec.n_heads, spec.d_head, self.length);
        let (pattern, v) = (&self.kept[&Kind::Pattern], &self.kept[&Kind::V]);
        let rows: usize = queries.clone().map(|query| query + 1).sum();
        let mut mixed = Vec::with_capacity(rows * heads * d_head);
        for query in queries.clone() {
            let row = self.row(prompt, query);
            for source in 0..=query {
                let values = self.row(prompt, source) * spec.n_kv_heads;
                for head in 0..heads {
                    let weight = pattern[(row * heads + head) * length + source];
                    let value = &v[(values + head / spec.group()) * d_head..][..d_head];
                    mixed.extend(value.iter().map(|v| weight * v));
                }
            }
        }
        let mut written = vec![0.0; rows * spec.d_model];
        let sizes = [rows, heads * d_head, spec.d_model];
        let w_o = host::host(&self.w_o)?;
        linear::product(
            &mut written,
            &mixed,
            &*w_o,
            sizes,
            linear::Right::InOut,
            false,
        );
        let mut parts = written.chunks_exact_mut(spec.d_model);
        for query in queries {
            let scale = self.scale(self.row(prompt, query));
            for part in parts.by_ref().take(query + 1) {
                self.write.part(part, scale);
            }
        }
        Ok(written)
    }

    /// `C` of one prompt.
    fn mixing(&self, prompt: usize) -> Result<Mixing> {
        let (d, length) = (self.model.spec.d_model, self.length);
        let mut mixing = Mixing {
            shares: vec![0.0; length * length],
            unmixed: 0,
            gap: 0.0,
        };
        let mut first = 0;
        while first < length {
            let mut next = first + 1;
            while next < length && (first + 1..=next + 1).sum::<usize>() <= ROWS {
                next += 1;
            }
            let sources = self.sources(prompt, first..next)?;
            let mut parts = sources.chunks_exact(d);
            for query in first..next {
                let row = self.row(prompt, query);
                let parts: Vec<&[f32]> = parts.by_ref().take(query + 1).collect();
                mixing.gap = mixing.gap.max(self.gap(row, &parts));
                let shares = &mut mixing.shares[query * length..(query + 1) * length];
                mixing.unmixed += usize::from(!self.share_out(row, query, &parts, shares));
            }
            first = next;
        }
        Ok(mixing)
    }

    /// Fills one row of `C`; whether any part counts.
    fn share_out(&self, row: usize, query: usize, parts: &[&[f32]], shares: &mut [f64]) -> bool {
        let (x, out) = (self.of(Kind::ResidPre, row), self.of(Kind::AttnOut, row));
        let y: Vec<f64> = x
            .iter()
            .zip(out)
            .map(|(x, out)| f64::from(x + out))
            .collect();
        let whole: f64 = y.iter().map(|y| y.abs()).sum();
        for (source, part) in parts.iter().enumerate() {
            let own = if source == query { 1.0 } else { 0.0 };
            let each = y.iter().zip(*part).zip(x);
            let rest: f64 = each
                .map(|((y, part), x)| (y - f64::from(*part) - own * f64::from(*x)).abs())
                .sum();
            shares[source] = (whole - rest).max(0.0);
        }
        let sum: f64 = shares.iter().sum();
        if sum > 0.0 {
            shares.iter_mut().for_each(|share| *share /= sum);
        } else {
            shares[query] = 1.0;
        }
        sum > 0.0
    }

    /// How far the parts and the bias are from attention's output.
    fn gap(&self, row: usize, parts: &[&[f32]]) -> f64 {
        let d = self.model.spec.d_model;
        let bias = self.write.bias(self.scale(row), d);
        let out = self.of(Kind::AttnOut, row);
        let missing = |at: usize| {
            let sum: f64 = parts.iter().map(|part| f64::from(part[at])).sum();
            (sum + f64::from(bias[at]) - f64::from(out[at])).abs()
        };
        (0..d).map(missing).fold(0.0, f64::max)
    }
}

/// Shows each layer of one forward pass in turn; nothing of it is kept afterwards. The prompts begin at `place`, `[rows, d_model]`, or at
/// their tokens' embeddings.
fn walk(
    model: &Model,
    prompts: &[Vec<u32>],
    place: Option<Tensor>,
    each: &mut dyn FnMut(&Layer<'_>) -> Result<()>,
) -> Result<()> {
    let length = prompts[0].len();
    let examples: Vec<usize> = (0..prompts.len()).collect();
    let rows = Rows::whole_as(&examples, length);
    let ropes = rope::Tables::new(&model.spec, length);
    let mut keep = Keep {
        kept: HashMap::new(),
        place,
    };
    let x = forward::embed(model, &prompts.concat(), &rows, &mut keep)?;
    let mut stream = Stream { rows, x: Some(x) };
    for index in 0..model.spec.n_layers {
        stream = forward::block(model, index, &ropes, stream, &mut keep)?;
        let mut kept = HashMap::new();
        for (kind, t) in keep.kept.drain() {
            kept.insert(kind, to_host(&t)?);
        }
        let weights = &model.weights.blocks[index];
        each(&Layer {
            model,
            index,
            length,
            write: Write::new(model, weights.ln1_post.as_ref(), weights.b_o.as_ref())?,
            w_o: on_host(&weights.w_o)?,
            kept,
        })?;
    }
    Ok(())
}

/// Keeps what ALTI reads.
struct Keep {
    kept: HashMap<Kind, Tensor>,
    place: Option<Tensor>,
}

impl Tap for Keep {
    fn wants(&self, hook: Hook) -> bool {
        matches!(
            hook.kind,
            Kind::ResidPre
                | Kind::V
                | Kind::Pattern
                | Kind::AttnOut
                | Kind::MlpOut
                | Kind::Scale(Ln::OnePost)
        )
    }

    fn edits(&self, hook: Hook) -> bool {
        hook.kind == Kind::Embed && self.place.is_some()
    }

    fn at(&mut self, hook: Hook, t: Tensor, _: &Rows) -> Result<Tensor> {
        if hook.kind == Kind::Embed {
            return Ok(match self.place.take() {
                Some(place) => place.to_device(t.device())?.to_dtype(t.dtype())?,
                None => t,
            });
        }
        if self.wants(hook) {
            self.kept.insert(hook.kind, t.clone());
        }
        Ok(t)
    }
}

fn identity(n: usize) -> Vec<f64> {
    let one = |at: usize| f64::from(u8::from(at / n == at % n));
    (0..n * n).map(one).collect()
}

/// Of two causal square matrices.
fn product(a: &[f64], b: &[f64], n: usize) -> Vec<f64> {
    let mut out = vec![0.0; n * n];
    for (i, row) in out.chunks_exact_mut(n).enumerate() {
        for k in 0..=i {
            let factor = a[i * n + k];
            for (out, b) in row.iter_mut().zip(&b[k * n..=k * n + k]) {
                *out += factor * b;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causal_products_are_products() {
        let a = [1.0, 0.0, 0.25, 0.75];
        let b = [1.0, 0.0, 0.5, 0.5];
        assert_eq!(product(&a, &b, 2), [1.0, 0.0, 0.625, 0.375]);
        assert_eq!(product(&a, &identity(2), 2), a);
    }
}
