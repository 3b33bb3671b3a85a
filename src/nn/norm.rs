//! LayerNorm and RMSNorm: `y = (x [- mean]) / scale * w [+ b]`, with the statistics in f32.

use candle_core::{D, DType, Tensor};
use rayon::prelude::*;

use super::host::{dot_inline, fold, host, is_host, on_host, simd, sum, tensor};
use super::rules::NormRule;
use crate::error::Result;
use crate::spec::{NormKind, NormWeights, QkNorm};

/// What a norm computes on the way to its output.
pub struct Parts {
    /// `[tokens, d]`
    pub y: Tensor,
    /// `[tokens, d]`, before weight and bias.
    pub normalized: Tensor,
    /// `[tokens, 1]`, f32: the divisor.
    pub scale: Tensor,
}

/// The norm of each row.
/// # Shapes
/// `x [tokens, d]`; gives the same. Or `x [tokens, n, d]` and weights `[n, d]`, other ones for each of `n` rows in turn.
pub fn forward(x: &Tensor, w: &NormWeights, kind: NormKind, eps: f64) -> Result<Tensor> {
    if !is_host(x) {
        return Ok(parts(x, w, kind, eps)?.y);
    }
    let x = x.contiguous()?;
    let mut y = vec![0.0; x.elem_count()];
    run(&host(&x)?, x.dim(D::Minus1)?, w, kind, eps, &mut y, None)?;
    tensor(y, x.shape())
}

/// The norm with its intermediate values, for the hooks.
pub fn parts(x: &Tensor, w: &NormWeights, kind: NormKind, eps: f64) -> Result<Parts> {
    if !is_host(x) {
        let scale = scale(x, kind, eps)?;
        let normalized = normalize(x, &scale, kind)?;
        return Ok(Parts {
            y: apply_weight(&normalized, w)?,
            normalized,
            scale,
        });
    }
    let x = x.contiguous()?;
    let d = x.dim(D::Minus1)?;
    let (mut y, mut normalized, mut scale) = (
        vec![0.0; x.elem_count()],
        vec![0.0; x.elem_count()],
        vec![0.0; x.elem_count() / d],
    );
    run(
        &host(&x)?,
        d,
        w,
        kind,
        eps,
        &mut y,
        Some((&mut normalized, &mut scale)),
    )?;
    let rows = scale.len();
    Ok(Parts {
        y: tensor(y, x.shape())?,
        normalized: tensor(normalized, x.shape())?,
        scale: tensor(scale, (rows, 1))?,
    })
}

/// The divisor of each row, f32.
/// # Shapes
/// `x [.., d]`; gives `[.., 1]`.
pub fn scale(x: &Tensor, kind: NormKind, eps: f64) -> Result<Tensor> {
    let x = x.to_dtype(DType::F32)?;
    let centred = match kind {
        NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
        NormKind::Rms => x,
    };
    Ok((centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?)
}

/// `(x [- mean]) / scale`, with a scale that an edit may have changed.
pub fn normalize(x: &Tensor, scale: &Tensor, kind: NormKind) -> Result<Tensor> {
    let wide = x.to_dtype(DType::F32)?;
    let centred = match kind {
        NormKind::Layer => wide.broadcast_sub(&wide.mean_keepdim(D::Minus1)?)?,
        NormKind::Rms => wide,
    };
    Ok(centred.broadcast_div(scale)?.to_dtype(x.dtype())?)
}

/// `normalized * w [+ b]`.
pub fn apply_weight(normalized: &Tensor, w: &NormWeights) -> Result<Tensor> {
    let y = normalized.broadcast_mul(&w.w)?;
    Ok(match &w.b {
        Some(b) => y.broadcast_add(b)?,
        None => y,
    })
}

/// The gradient at the input of a norm, from what its forward pass made: with `n = normalized` and `g = dy w`,
/// `(g [- mean g] - n mean(g n)) / scale`; the last term is that of the scale.
/// # Shapes
/// `dy`, `normalized [tokens, d]` and `scale [tokens, 1]`, f32 on the host; gives `[tokens, d]`. Or with `n` rows for each token, as
/// [`forward`] has it.
pub fn backward(
    dy: &Tensor,
    normalized: &Tensor,
    scale: &Tensor,
    w: &NormWeights,
    kind: NormKind,
    rule: NormRule,
) -> Result<Tensor> {
    let (dy, normalized, scale) = (dy.contiguous()?, on_host(normalized)?, on_host(scale)?);
    let weight = on_host(&w.w)?;
    let d = dy.dim(D::Minus1)?;
    let mut dx = vec![0.0; dy.elem_count()];
    {
        let (dy, normalized) = (host(&dy)?, host(&normalized)?);
        let (scale, weight) = (host(&scale)?, host(&weight)?);
        let (dy, normalized, scale, weight) = (&*dy, &*normalized, &*scale, &*weight);
        let rows = rows_at_once(weight, d);
        let block = rows * d;
        dx.par_chunks_mut(block)
            .zip(dy.par_chunks(block))
            .zip(normalized.par_chunks(block))
            .zip(scale.par_chunks(rows))
            .for_each(|(((dx, dy), normalized), scale)| {
                simd(
                    #[inline(always)]
                    || {
                        let n = weight.len() / d;
                        for (i, dx) in dx.chunks_exact_mut(d).enumerate() {
                            let weight = &weight[i % n * d..][..d];
                            let row = i * d..(i + 1) * d;
                            let (dy, n) = (&dy[row.clone()], &normalized[row]);
                            for j in 0..d {
                                dx[j] = dy[j] * weight[j];
                            }
                            let along = match rule {
                                NormRule::Exact => dot_inline(dx, n) / d as f32,
                                NormRule::FrozenScale => 0.0,
                            };
                            let mean = match kind {
                                NormKind::Layer => sum(dx) / d as f32,
                                NormKind::Rms => 0.0,
                            };
                            let inverse = 1.0 / scale[i];
                            for j in 0..d {
                                dx[j] = (dx[j] - mean - along * n[j]) * inverse;
                            }
                        }
                    },
                )
            });
    }
    tensor(dx, dy.shape())
}

/// [`backward`] of [`heads`].
/// # Shapes
/// `dy`, `x [tokens, heads, d]`; gives the same.
pub fn heads_backward(
    dy: &Tensor,
    x: &Tensor,
    w: &NormWeights,
    norm: QkNorm,
    eps: f64,
    rule: NormRule,
) -> Result<Tensor> {
    let w = NormWeights {
        w: on_host(&w.w)?,
        b: w.b.as_ref().map(on_host).transpose()?,
    };
    let (rows, w) = by_head(&on_host(x)?, &w, norm)?;
    let dy = dy.contiguous()?.reshape(rows.shape())?;
    let of = parts(&rows, &w, norm.kind(), eps)?;
    let dx = backward(&dy, &of.normalized, &of.scale, &w, norm.kind(), rule)?;
    Ok(dx.reshape(x.shape())?)
}

/// The gradients at the two hooks of a norm: at `hook_scale` and at `hook_normalized`.
/// # Shapes
/// Those of [`backward`]; gives `[tokens, 1]` and `[tokens, d]`.
pub fn backward_at_hooks(
    dy: &Tensor,
    normalized: &Tensor,
    scale: &Tensor,
    w: &NormWeights,
) -> Result<(Tensor, Tensor)> {
    let at_normalized = dy.broadcast_mul(&on_host(&w.w)?)?;
    let normalized = on_host(normalized)?;
    let along = (&at_normalized * normalized)?.sum_keepdim(D::Minus1)?;
    Ok((along.broadcast_div(&on_host(scale)?)?.neg()?, at_normalized))
}

type Extra<'a> = Option<(&'a mut [f32], &'a mut [f32])>;

fn run(
    x: &[f32],
    d: usize,
    w: &NormWeights,
    kind: NormKind,
    eps: f64,
    y: &mut [f32],
    extra: Extra<'_>,
) -> Result<()> {
    let weight = host(&w.w)?;
    let bias = w.b.as_ref().map(host).transpose()?;
    let (weight, bias) = (&*weight, bias.as_deref());
    let rows_at_once = rows_at_once(weight, d);
    let block = rows_at_once * d;
    let norm_rows = |x: &[f32], y: &mut [f32], mut extra: Extra<'_>| {
        simd(
            #[inline(always)]
            || {
                // Of one row of weights, or of several in turn, the first of which is that of the block's first row.
                let n = weight.len() / d;
                for (i, (x, y)) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).enumerate() {
                    let of_row = i % n * d;
                    let weight = &weight[of_row..of_row + d];
                    let mean = if kind == NormKind::Layer {
                        sum(x) / d as f32
                    } else {
                        0.0
                    };
                    let scale = (squares(x, mean) / d as f32 + eps as f32).sqrt();
                    let inverse = 1.0 / scale;
                    match &mut extra {
                        Some((normalized, scales)) => {
                            scales[i] = scale;
                            let normalized = &mut normalized[i * d..(i + 1) * d];
                            for j in 0..d {
                                normalized[j] = (x[j] - mean) * inverse;
                                y[j] = normalized[j] * weight[j];
                            }
                        }
                        None => {
                            for j in 0..d {
                                y[j] = (x[j] - mean) * inverse * weight[j];
                            }
                        }
                    }
                    if let Some(bias) = bias {
                        let bias = &bias[of_row..of_row + d];
                        for j in 0..d {
                            y[j] += bias[j];
                        }
                    }
                }
            },
        )
    };
    match extra {
        Some((normalized, scales)) => {
            let rows = x.par_chunks(block).zip(y.par_chunks_mut(block));
            let rows = rows
                .zip(normalized.par_chunks_mut(block))
                .zip(scales.par_chunks_mut(rows_at_once));
            rows.for_each(|(((x, y), normalized), scales)| {
                norm_rows(x, y, Some((normalized, scales)))
            });
        }
        None => x
            .par_chunks(block)
            .zip(y.par_chunks_mut(block))
            .for_each(|(x, y)| norm_rows(x, y, None)),
    }
    Ok(())
}

/// A block of rows begins with the first of the rows of weights.
fn rows_at_once(weight: &[f32], d: usize) -> usize {
    32usize.next_multiple_of((weight.len() / d.max(1)).max(1))
}

#[inline(always)]
fn squares(x: &[f32], mean: f32) -> f32 {
    let mut sums = [0f32; 16];
    let (whole, rest) = x.as_chunks::<16>();
    for chunk in whole {
        for i in 0..16 {
            let centred = chunk[i] - mean;
            sums[i] = centred.mul_add(centred, sums[i]);
        }
    }
    fold(sums) + rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>()
}

/// The norm of queries or keys.
/// # Shapes
/// `x [tokens, heads, d]`; gives the same. `w [d]`, or `[heads * d]` where weights differ from head to head, for the heads of `x` or for
/// fewer, each of which serves as many in a row.
pub fn heads(x: &Tensor, w: &NormWeights, norm: QkNorm, eps: f64) -> Result<Tensor> {
    let (rows, w) = by_head(x, w, norm)?;
    Ok(forward(&rows, &w, norm.kind(), eps)?.reshape(x.shape())?)
}

/// What a norm of queries or keys takes for a row, and its weights beside each other.
fn by_head(x: &Tensor, w: &NormWeights, norm: QkNorm) -> Result<(Tensor, NormWeights)> {
    let (tokens, heads, d) = x.dims3()?;
    let x = x.contiguous()?;
    let weights = |shape: &[usize]| -> Result<NormWeights> {
        // Where each query head has a key of its own, it has its key head's weights.
        let of = |w: &Tensor| -> Result<Tensor> {
            let own = w.elem_count() / d;
            let w = w.reshape((own, 1, d))?;
            let w = w.broadcast_as((own, heads / own, d))?.contiguous()?;
            Ok(w.reshape(shape)?)
        };
        Ok(NormWeights {
            w: of(&w.w)?,
            b: w.b.as_ref().map(of).transpose()?,
        })
    };
    match norm {
        QkNorm::FullWidth => Ok((x.reshape((tokens, heads * d))?, weights(&[heads * d])?)),
        QkNorm::OwnLayer => Ok((x, weights(&[heads, d])?)),
        QkNorm::None | QkNorm::PerHead | QkNorm::PerHeadLayer => Ok((x, w.clone())),
    }
}

/// The weights of a norm of queries or keys for some heads alone, where it does not see all at once.
pub fn of_heads(
    w: &NormWeights,
    norm: QkNorm,
    heads: impl IntoIterator<Item = usize>,
    d: usize,
) -> Result<NormWeights> {
    if norm != QkNorm::OwnLayer {
        return Ok(w.clone());
    }
    let heads: Vec<u32> = heads.into_iter().map(|head| head as u32).collect();
    let heads = Tensor::new(heads, w.w.device())?;
    let own = |w: &Tensor| w.reshape(((), d))?.index_select(&heads, 0)?.flatten_all();
    Ok(NormWeights {
        w: own(&w.w)?,
        b: w.b.as_ref().map(own).transpose()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_norms_agree_with_hand_computed_rows() {
        let x = tensor(vec![1.0, 2.0, 3.0, 6.0], (1, 4)).expect("shape");
        let w = NormWeights {
            w: tensor(vec![1.0, 1.0, 2.0, 1.0], 4).expect("shape"),
            b: None,
        };
        // mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5; mean square 50 / 4 = 12.5
        let layer = forward(&x, &w, NormKind::Layer, 0.0)
            .expect("runs")
            .to_vec2::<f32>()
            .expect("reads");
        let rms = parts(&x, &w, NormKind::Rms, 0.0).expect("runs");
        let near = |a: f32, b: f32| assert!((a - b).abs() < 1e-6, "{a} {b}");
        near(layer[0][0], -2.0 / 3.5f32.sqrt());
        near(layer[0][3], 3.0 / 3.5f32.sqrt());
        near(
            rms.scale.to_vec2::<f32>().expect("reads")[0][0],
            12.5f32.sqrt(),
        );
        near(
            rms.y.to_vec2::<f32>().expect("reads")[0][2],
            6.0 / 12.5f32.sqrt(),
        );
    }

    #[test]
    fn the_fast_form_agrees_with_tensor_operations() {
        let data: Vec<f32> = (0..70 * 37)
            .map(|i| ((i * 7919) % 1000) as f32 / 300.0 - 1.0)
            .collect();
        let x = tensor(data, (70, 37)).expect("shape");
        let w: Vec<f32> = (0..37).map(|i| 0.5 + i as f32 / 37.0).collect();
        let weights = NormWeights {
            w: tensor(w.clone(), 37).expect("shape"),
            b: Some(tensor(w, 37).expect("shape")),
        };
        for kind in [NormKind::Layer, NormKind::Rms] {
            let fast = forward(&x, &weights, kind, 1e-5).expect("runs");
            let slow = normalize(&x, &scale(&x, kind, 1e-5).expect("runs"), kind).expect("runs");
            let slow = apply_weight(&slow, &weights).expect("runs");
            let gap = (fast - slow)
                .expect("same shape")
                .abs()
                .expect("abs")
                .max_all()
                .expect("max")
                .to_scalar::<f32>();
            assert!(gap.expect("scalar") < 3e-6);
        }
    }
}
