//! What stands between the final norm of an encoder and its unembedding, as it was in the run itself: a dense layer, an activation, a norm.
//!
//! The activation counts as its value over its input, times the input (the ratio rule of [`crate::nn::rules`]), and the norm has the
//! scale of the run; so all of it is linear up to biases.

use candle_core::{D, DType, Tensor};

use crate::error::Result;
use crate::model::{Model, ModelSpec};
use crate::nn::host::to_host;
use crate::nn::rules::ratio;
use crate::nn::{mlp, norm};
use crate::spec::{NormKind, NormPlacement, NormWeights};

/// What an encoder's head did in the run, at the ends of the prompts.
pub(super) struct Head {
    /// The activation over its input, f32 `[batch, d_model]`.
    gate: Tensor,
    /// The scale of the norm behind it, f32 `[batch, 1]`.
    scale: Tensor,
}

impl Head {
    /// `None` for a model without one. `stream [batch, d_model]`, f32: the final stream.
    pub fn of(model: &Model, stream: &Tensor) -> Result<Option<Self>> {
        let (spec, weights) = (&model.spec, &model.weights);
        let (Some(encoder), Some(ln_final)) = (&weights.encoder, &weights.ln_final) else {
            return Ok(None);
        };
        let x = norm::parts(stream, &in_f32(ln_final)?, spec.norm, spec.norm_eps)?.y;
        let pre = x.matmul(&encoder.w_head.to_dtype(DType::F32)?)?;
        let pre = match &encoder.b_head {
            Some(b) => pre.broadcast_add(&b.to_dtype(DType::F32)?)?,
            None => pre,
        };
        let post = mlp::forward(&pre, spec.activation)?;
        let (on_host, dims) = ((to_host(&post)?, to_host(&pre)?), pre.dims2()?);
        let each = on_host.0.iter().zip(&on_host.1);
        let gate: Vec<f32> = each.map(|(&post, &pre)| ratio(post, pre)).collect();
        Ok(Some(Head {
            gate: Tensor::from_vec(gate, dims, &model.device)?,
            scale: norm::scale(&post, spec.norm, spec.norm_eps)?,
        }))
    }

    /// From directions of the unembedding to those of what the final norm gives, and what the biases between are worth along them.
    /// # Shapes
    /// `u [batch, d_model]`; gives the same, and `[batch]`.
    pub fn before(&self, model: &Model, u: &Tensor) -> Result<(Tensor, Vec<f64>)> {
        let mut bias = vec![0.0; u.dim(0)?];
        let Some(encoder) = &model.weights.encoder else {
            return Ok((u.clone(), bias));
        };
        if let Some(b) = &encoder.ln_head.b {
            add_along(b, u, &mut bias)?;
        }
        let u = u.broadcast_mul(&encoder.ln_head.w.to_dtype(DType::F32)?)?;
        let u = (centred(&model.spec, &u)?.broadcast_div(&self.scale)? * &self.gate)?;
        if let Some(b) = &encoder.b_head {
            add_along(b, &u, &mut bias)?;
        }
        let w_head = encoder.w_head.to_dtype(DType::F32)?;
        Ok((u.matmul(&w_head.t()?)?, bias))
    }

    /// The other way round: what the unembedding reads of a part of what the final norm gives, without biases.
    /// # Shapes
    /// `x [batch, d_model]`; gives the same.
    pub fn after(&self, model: &Model, x: Tensor) -> Result<Tensor> {
        let Some(encoder) = &model.weights.encoder else {
            return Ok(x);
        };
        let x = (x.matmul(&encoder.w_head.to_dtype(DType::F32)?)? * &self.gate)?;
        let x = centred(&model.spec, &x)?.broadcast_div(&self.scale)?;
        Ok(x.broadcast_mul(&encoder.ln_head.w.to_dtype(DType::F32)?)?)
    }
}

fn in_f32(w: &NormWeights) -> Result<NormWeights> {
    let b = w.b.as_ref().map(|b| b.to_dtype(DType::F32));
    Ok(NormWeights {
        w: w.w.to_dtype(DType::F32)?,
        b: b.transpose()?,
    })
}

/// `C(v)`: the mean over `d_model` taken out under LayerNorm.
pub(super) fn centred(spec: &ModelSpec, v: &Tensor) -> Result<Tensor> {
    if spec.norm_placement != NormPlacement::None && spec.norm == NormKind::Layer {
        Ok(v.broadcast_sub(&v.mean_keepdim(D::Minus1)?)?)
    } else {
        Ok(v.clone())
    }
}

/// The products of each row of `a` with that row of `b`.
/// # Shapes
/// `[batch, n]` both; gives `[batch]`.
pub(crate) fn rowwise_dot(a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
    let products = (a * b)?.to_dtype(DType::F64)?;
    Ok(products.sum(D::Minus1)?.to_vec1()?)
}

/// Adds what a vector is worth to each reader.
pub(super) fn add_along(vector: &Tensor, readers: &Tensor, sums: &mut [f64]) -> Result<()> {
    let vector = vector.to_dtype(DType::F32)?.broadcast_as(readers.shape())?;
    let worth = rowwise_dot(&vector, readers)?;
    sums.iter_mut().zip(worth).for_each(|(sum, w)| *sum += w);
    Ok(())
}
