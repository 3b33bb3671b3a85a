//! What nodes write, less what they write at the reference.

use candle_core::Tensor;
use rayon::prelude::*;

use super::ground::Layer;
use super::streams::{At, Delta};
use crate::error::Result;
use crate::model::Model;
use crate::nn::host::{host, to_host};
use crate::nn::linear::{View, small_product};
use crate::nn::{linear, norm};
use crate::spec::NormKind;

/// What heads write less what they write at the reference, and how the bias's share moved, from their z (of all heads
/// where there is a norm on their sum).
/// # Shapes
/// `z [at, heads, d_head]`
pub(super) fn by_heads(
    model: &Model,
    ground: &Layer,
    layer: usize,
    heads: &[usize],
    z: &Tensor,
    at: At<'_>,
) -> Result<(Vec<Delta>, Option<Delta>)> {
    let (spec, weights) = (&model.spec, &model.weights.blocks[layer]);
    let (n, d) = (heads.len(), spec.d_head);
    let scale = match &weights.ln1_post {
        Some(_) => {
            let all = z.reshape((at.len(), n * d))?;
            let sum = linear::forward(&all, &weights.w_o, weights.b_o.as_ref())?;
            Some(to_host(&norm::scale(&sum, spec.norm, spec.norm_eps)?)?)
        }
        None => None,
    };
    let mut share = to_host(z)?; // [at, heads, d_head]
    for (i, row) in share.chunks_exact_mut(n * d).enumerate() {
        for (own, head) in row.chunks_exact_mut(d).zip(heads) {
            let reference = (at.row(i) * spec.n_heads + head) * d;
            for (own, reference) in own.iter_mut().zip(&ground.z[reference..][..d]) {
                *own = scale.as_ref().map_or(*own, |scale| *own / scale[i]) - reference;
            }
        }
    }
    let w_o = host(&weights.w_o)?;
    let one = |(i, &head): (usize, &usize)| {
        let view = View::rows(n * d).from(i * d);
        by_head(model, layer, head, (&share, view), at, &w_o)
    };
    let deltas = heads
        .par_iter()
        .enumerate()
        .map(one)
        .collect::<Result<_>>()?;
    let shift = match (&scale, &ground.scale, &weights.b_o) {
        (Some(scale), Some(reference), Some(bias)) => {
            let share = through_post_norm(model, layer, to_host(bias)?)?;
            let mut data = Vec::with_capacity(at.len() * spec.d_model);
            for (i, scale) in scale.iter().enumerate() {
                let moved = 1.0 / scale - 1.0 / reference[at.row(i)];
                data.extend(share.iter().map(|share| share * moved));
            }
            Some(Delta {
                data,
                at_answers: at.is_answers(),
            })
        }
        _ => None,
    };
    Ok((deltas, shift))
}

/// What a head writes for its share of z, after the division by the scale of a post-norm.
pub(super) fn by_head(
    model: &Model,
    layer: usize,
    head: usize,
    (share, view): (&[f32], View),
    at: At<'_>,
    w_o: &[f32],
) -> Result<Delta> {
    let spec = &model.spec;
    let (d, d_model) = (spec.d_head, spec.d_model);
    let mut out = vec![0.0; at.len() * d_model];
    small_product(
        (&mut out, View::rows(d_model)),
        (share, view),
        (w_o, View::rows(d_model).from(head * d * d_model)),
        [at.len(), d, d_model],
        1.0,
        false,
    );
    Ok(Delta {
        data: through_post_norm(model, layer, out)?,
        at_answers: at.is_answers(),
    })
}

/// What a share of attention's sum becomes on its way to the stream, but for the division by the norm's scale.
pub(super) fn through_post_norm(
    model: &Model,
    layer: usize,
    mut shares: Vec<f32>,
) -> Result<Vec<f32>> {
    let spec = &model.spec;
    if let Some(post) = &model.weights.blocks[layer].ln1_post {
        let w = host(&post.w)?;
        for row in shares.chunks_exact_mut(spec.d_model) {
            let mean = match spec.norm {
                NormKind::Layer => row.iter().sum::<f32>() / spec.d_model as f32,
                NormKind::Rms => 0.0,
            };
            row.iter_mut()
                .zip(w.iter())
                .for_each(|(x, w)| *x = (*x - mean) * w);
        }
    }
    if let Some(factor) = spec.residual_multiplier {
        shares.iter_mut().for_each(|x| *x *= factor);
    }
    Ok(shares)
}
