//! How much of a state of the stream each of its parts is.
//!
//! A part that brings the whole nearer to zero by being taken away counts by how much: the proximity `max(0, |y| - |y - p|)`
//! in L1, as a share of the sum of all parts' proximities. What attention writes is taken apart by source position and by head,
//! `f_h(t, s) = A_h[t, s] v_h[s] W_O[h]`, where `v` has its bias already; the bias of the projection is a part of its own. A norm on
//! attention's output is linear once its divisor is that of the run.
//!
//! Read into the paper: the bias of the projection counts as a part (the authors' code leaves it out, and adds that of the values
//! twice).

use std::ops::Range;

use rayon::prelude::*;

use crate::error::Result;
use crate::methods::tokens::Write;
use crate::model::Model;
use crate::nn::host::{host, on_host};
use crate::nn::linear;

/// Shares of the parts of one state; they sum to 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// Of each head from each source, `[source * n_heads + head]`, sources up to the state's own position; empty where no
    /// attention was added.
    pub heads: Vec<f64>,
    /// The state before, at the same position.
    pub stream: f64,
    /// What attention adds whatever it looks at: biases of its projection and of the norm on it.
    pub bias: f64,
    pub mlp: f64,
    /// No part brought the state nearer to zero: the state before counts as all of it.
    pub unmixed: bool,
    /// Largest difference of an entry of the state and the sum of its parts, as a share of its largest entry.
    pub gap: f64,
}

impl Importance {
    /// What comes from a source through all heads together.
    pub fn attention(&self, source: usize, n_heads: usize) -> f64 {
        self.heads[source * n_heads..][..n_heads].iter().sum()
    }

    /// Of how many sources attention was added.
    pub fn sources(&self, n_heads: usize) -> usize {
        self.heads.len() / n_heads
    }

    fn sum(&self) -> f64 {
        self.heads.iter().sum::<f64>() + self.stream + self.bias + self.mlp
    }

    fn scale(&mut self, factor: f64) {
        let rest = [&mut self.stream, &mut self.bias, &mut self.mlp];
        let all = self.heads.iter_mut().chain(rest);
        all.for_each(|share| *share *= factor);
    }
}

/// How much nearer to zero a whole is brought by a part of it: `max(0, |whole| - |whole - part|)` in L1.
pub fn proximity(part: &[f32], whole: &[f32]) -> f64 {
    Sum::new(whole).take(part, 1.0)
}

/// The same of `factor` times a part.
pub(super) fn scaled_proximity(part: &[f32], factor: f64, whole: &[f32]) -> f64 {
    let sizes = whole.iter().zip(part).map(|(whole, part)| {
        let whole = f64::from(*whole);
        whole.abs() - (whole - factor * f64::from(*part)).abs()
    });
    sizes.sum::<f64>().max(0.0)
}

/// A state, less the parts that were taken from it.
pub(super) struct Sum {
    whole: Vec<f64>,
    size: f64,
    left: Vec<f64>,
    pub importance: Importance,
}

/// A sum of parts that misses the state by more than this share of its largest entry is warned of.
pub(super) const GAP: f64 = 1e-3;

/// The larger of two, or the one that is no number.
pub(super) fn larger(a: f64, b: f64) -> f64 {
    match a.is_nan() || b <= a {
        true => a,
        false => b,
    }
}

impl Sum {
    pub fn new(whole: &[f32]) -> Self {
        let whole: Vec<f64> = whole.iter().map(|&x| f64::from(x)).collect();
        Sum {
            size: whole.iter().map(|x| x.abs()).sum(),
            left: whole.clone(),
            whole,
            importance: Importance::default(),
        }
    }

    /// The proximity of a part, which is `factor` times the values given.
    pub fn take(&mut self, part: &[f32], factor: f64) -> f64 {
        let mut rest = 0.0;
        let each = self.whole.iter().zip(&mut self.left).zip(part);
        for ((whole, left), part) in each {
            let part = factor * f64::from(*part);
            *left -= part;
            rest += (whole - part).abs();
        }
        (self.size - rest).max(0.0)
    }

    /// Proximities become shares of 1.
    pub fn finish(self) -> Importance {
        let mut importance = self.importance;
        let largest = |values: &[f64]| values.iter().fold(0.0, |most, x| larger(most, x.abs()));
        importance.gap = largest(&self.left) / largest(&self.whole).max(f64::MIN_POSITIVE);
        let sum = importance.sum();
        if sum > 0.0 {
            importance.scale(1.0 / sum);
        } else {
            importance.stream = 1.0;
            importance.unmixed = true;
        }
        importance
    }
}

/// Sources whose vectors of all heads are held at once, counted in vectors: tens of megabytes at most.
const VECTORS: usize = 4096;

/// What each head would write if it looked at one source alone, before any norm on attention's output.
/// # Shapes
/// `v [pos, n_kv_heads, d_head]`, with its bias; gives `[n_heads, sources, d_model]`.
pub(super) fn brought(
    model: &Model,
    layer: usize,
    v: &[f32],
    sources: Range<usize>,
) -> Result<Vec<f32>> {
    let spec = &model.spec;
    let (d_head, d) = (spec.d_head, spec.d_model);
    let w_o = on_host(&model.weights.blocks[layer].w_o)?;
    let w_o = host(&w_o)?; // [n_heads * d_head, d_model]
    let mut brought = vec![0.0; spec.n_heads * sources.len() * d];
    for (head, brought) in brought.chunks_exact_mut(sources.len() * d).enumerate() {
        let of_source = |source: usize| {
            let at = (source * spec.n_kv_heads + head / spec.group()) * d_head;
            &v[at..at + d_head]
        };
        let values: Vec<f32> = sources.clone().flat_map(of_source).copied().collect();
        linear::product(
            brought,
            &values,
            &w_o[head * d_head * d..][..d_head * d],
            [sources.len(), d_head, d],
            linear::Right::InOut,
            false,
        );
    }
    Ok(brought)
}

/// Attention of one layer on one prompt.
pub(super) struct Attention<'a> {
    pub model: &'a Model,
    pub layer: usize,
    pub length: usize,
    /// `[n_heads, query, key]`
    pub pattern: &'a [f32],
    /// `[pos, n_kv_heads, d_head]`
    pub v: &'a [f32],
    /// The divisor of the norm on attention's output at each position, where there is one.
    pub scale: Option<&'a [f32]>,
}

impl Attention<'_> {
    /// Takes what each head brings from each source, and the bias, from the states at some positions.
    pub fn take_from(&self, states: &mut [(usize, &mut Sum)]) -> Result<()> {
        let spec = &self.model.spec;
        let (n_heads, d) = (spec.n_heads, spec.d_model);
        let Some(last) = states.iter().map(|(pos, _)| *pos).max() else {
            return Ok(());
        };
        let weights = &self.model.weights.blocks[self.layer];
        let write = Write::new(self.model, weights.ln1_post.as_ref(), weights.b_o.as_ref())?;
        let scale = |pos: usize| self.scale.map_or(1.0, |scale| scale[pos]);
        for (pos, sum) in states.iter_mut() {
            let bias = write.bias(scale(*pos), d);
            sum.importance.bias = sum.take(&bias, 1.0);
            sum.importance.heads = vec![0.0; (*pos + 1) * n_heads];
        }
        let chunk = (VECTORS / n_heads).max(1);
        for first in (0..=last).step_by(chunk) {
            let sources = first..(first + chunk).min(last + 1);
            let mut brought = brought(self.model, self.layer, self.v, sources.clone())?;
            brought
                .par_chunks_exact_mut(d)
                .for_each(|part| write.part(part, 1.0));
            states.par_iter_mut().for_each(|(pos, sum)| {
                for (n, source) in sources.clone().enumerate().filter(|(_, s)| s <= pos) {
                    for head in 0..n_heads {
                        let weight =
                            self.pattern[(head * self.length + *pos) * self.length + source];
                        let factor = f64::from(weight) / f64::from(scale(*pos));
                        let part = &brought[(head * sources.len() + n) * d..][..d];
                        sum.importance.heads[source * n_heads + head] = sum.take(part, factor);
                    }
                }
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_points_the_other_way_has_no_share() {
        assert_eq!(proximity(&[1.0, 1.0], &[3.0, 1.0]), 2.0);
        assert_eq!(proximity(&[-1.0, 0.0], &[3.0, 1.0]), 0.0);
        let mut sum = Sum::new(&[3.0, 1.0]);
        sum.importance.stream = sum.take(&[2.0, 1.0], 1.0);
        sum.importance.mlp = sum.take(&[0.5, 0.0], 2.0);
        let shares = sum.finish();
        assert_eq!((shares.stream, shares.mlp), (0.75, 0.25));
        assert_eq!((shares.gap, shares.unmixed), (0.0, false));
    }

    #[test]
    fn a_state_of_no_parts_is_the_state_before() {
        let mut sum = Sum::new(&[1.0, -1.0]);
        sum.importance.mlp = sum.take(&[-1.0, 1.0], 1.0);
        let shares = sum.finish();
        assert!(shares.unmixed && shares.stream == 1.0);
    }
}
