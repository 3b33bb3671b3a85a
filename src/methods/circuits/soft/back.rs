//! The way back under soft masks: from readers, the last first, to the masks of their edges and to what their sources write.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::streams::add;
use super::candidates::Seen;
use super::tap::SoftTap;
use crate::error::Result;
use crate::hooks::{Kind, Letter, Ln};
use crate::model::Model;
use crate::nn::host::{dot, dot_inline, host, simd, tensor, to_host};
use crate::nn::linear::{View, small_product};
use crate::run::backward::Descent;
use crate::run::gradients::Nobody;
use crate::spec::NormKind;

/// The way back: from readers, the last first, to the masks of their edges and to what their sources write.
pub(super) struct Back<'a> {
    pub tap: &'a SoftTap<'a>,
    pub slopes: Vec<f64>,
    /// By row, the gradient at what a source writes.
    pub at_writes: Vec<Option<Vec<f32>>>,
    /// The gradient at what every later reader sees, where a layer moves its bias.
    pub at_shifts: Option<Vec<f32>>,
}

impl Back<'_> {
    pub fn run(&mut self, descent: &Descent<'_>, at_logits: &[f32]) -> Result<()> {
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
                        sum += f64::from(dot_inline(a, b));
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
        let Some(at_out) = self.at_writes[candidates.graph.mlp_row(layer)].take() else {
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
        let rows = soft.ground.rows.total;
        let of_heads = &mut self.at_writes[soft.candidates.graph.head_rows(layer)];
        let at_writes: Vec<_> = of_heads.iter_mut().map(Option::take).collect();
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
