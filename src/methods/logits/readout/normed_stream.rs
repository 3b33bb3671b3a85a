//! The read-out of a model whose norms stand on the stream (BERT): what a part of the stream is worth at the unembedding.
//!
//! There the stream is normed after each sum, and between the last norm and the unembedding stand a dense layer, an activation and a
//! norm. Taken with what the run itself had, all of it is linear up to biases: each norm with its own scale, as everywhere in this
//! read-out, and the activation as its value over its input, times the input (the ratio rule of [`crate::nn::rules`]). So every part of
//! the stream has a reader of its own, by where it enters, and the contributions and the biases still sum to the logit.

use candle_core::{DType, Tensor};

use super::{Ends, rowwise_dot};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::host::to_host;
use crate::nn::rules::ratio;
use crate::nn::{mlp, norm};
use crate::spec::NormWeights;

/// What reads the parts of the stream: one vector for all of them where the stream is their sum.
pub(crate) struct StreamReaders {
    /// Of what attention and MLP of each layer write, f32 `[batch, d_model]`.
    pub attn: Vec<Tensor>,
    pub mlp: Vec<Tensor>,
    /// Of the embeddings.
    pub input: Tensor,
    /// What the biases of norms on the stream contribute, and the embedding that says that every token is of the first segment.
    pub bias: Vec<f64>,
}

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
        let pre = pre.broadcast_add(&encoder.b_head.to_dtype(DType::F32)?)?;
        let post = mlp::forward(&pre, spec.activation)?;
        let (on_host, dims) = ((to_host(&post)?, to_host(&pre)?), pre.dims2()?);
        let each = on_host.0.iter().zip(&on_host.1);
        let gate: Vec<f32> = each.map(|(&post, &pre)| ratio(post, pre)).collect();
        Ok(Some(Head {
            gate: Tensor::from_vec(gate, dims, &model.device)?,
            scale: norm::scale(&post, spec.norm, spec.norm_eps)?,
        }))
    }
}

fn in_f32(w: &NormWeights) -> Result<NormWeights> {
    let b = w.b.as_ref().map(|b| b.to_dtype(DType::F32));
    Ok(NormWeights {
        w: w.w.to_dtype(DType::F32)?,
        b: b.transpose()?,
    })
}

impl Ends<'_> {
    /// The readers of all parts, from that of the final stream.
    pub fn stream_readers(&mut self, reader: &Tensor) -> Result<StreamReaders> {
        let n_layers = self.model.spec.n_layers;
        let mut bias = vec![0.0; self.batch];
        let (mut attn, mut mlp) = (Vec::new(), Vec::new());
        let mut at = reader.clone();
        for layer in (0..n_layers).rev() {
            mlp.push(at.clone());
            at = self.before_stream_norm(at, layer, Ln::Two, &mut bias)?;
            attn.push(at.clone());
            at = self.before_stream_norm(at, layer, Ln::One, &mut bias)?;
        }
        attn.reverse();
        mlp.reverse();
        if let Some(encoder) = &self.model.weights.encoder {
            let segment = encoder.segments.narrow(0, 0, 1)?;
            add_along(&segment, &at, &mut bias)?;
        }
        Ok(StreamReaders {
            attn,
            mlp,
            input: at,
            bias,
        })
    }

    /// The reader of what goes into a norm on the stream, from that of what comes out.
    fn before_stream_norm(
        &mut self,
        reader: Tensor,
        layer: usize,
        ln: Ln,
        bias: &mut [f64],
    ) -> Result<Tensor> {
        let Some(w) = self.stream_norm(layer, ln) else {
            return Ok(reader);
        };
        if let Some(b) = &w.b {
            add_along(b, &reader, bias)?;
        }
        let reader = reader.broadcast_mul(&w.w.to_dtype(DType::F32)?)?;
        let scale = self.at_end(Hook::at(Kind::Scale(ln), layer))?;
        Ok(self.centred(&reader)?.broadcast_div(&scale)?)
    }

    /// What the unembedding reads of something that a branch adds to the stream, without biases: the other way round.
    /// # Shapes
    /// `out [batch, d_model]`; gives the same.
    pub fn at_unembedding(&mut self, out: &Tensor, layer: usize, by_mlp: bool) -> Result<Tensor> {
        let mut x = out.clone();
        let later = (layer + 1..self.model.spec.n_layers)
            .flat_map(|layer| [Ln::One, Ln::Two].map(|ln| (layer, ln)));
        let own = (!by_mlp).then_some((layer, Ln::Two));
        for (layer, ln) in own.into_iter().chain(later) {
            if let Some(w) = self.stream_norm(layer, ln) {
                let scale = self.at_end(Hook::at(Kind::Scale(ln), layer))?;
                let normalized = self.centred(&x)?.broadcast_div(&scale)?;
                x = normalized.broadcast_mul(&w.w.to_dtype(DType::F32)?)?;
            }
        }
        let weights = &self.model.weights;
        x = self.centred(&x)?.broadcast_div(&self.scale)?;
        if let Some(norm) = &weights.ln_final {
            x = x.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?;
        }
        if let (Some(encoder), Some(head)) = (&weights.encoder, &self.head) {
            x = (x.matmul(&encoder.w_head.to_dtype(DType::F32)?)? * &head.gate)?;
            x = self.centred(&x)?.broadcast_div(&head.scale)?;
            x = x.broadcast_mul(&encoder.ln_head.w.to_dtype(DType::F32)?)?;
        }
        Ok((x * f64::from(self.model.spec.logit_scale.unwrap_or(1.0)))?)
    }

    /// From directions of the unembedding to those of what the final norm gives, and what the head's biases are worth along them.
    /// # Shapes
    /// `u [batch, d_model]`; gives the same, and `[batch]`.
    pub(super) fn before_head(&self, u: Tensor) -> Result<(Tensor, Vec<f64>)> {
        let mut bias = vec![0.0; self.batch];
        let (Some(encoder), Some(head)) = (&self.model.weights.encoder, &self.head) else {
            return Ok((u, bias));
        };
        if let Some(b) = &encoder.ln_head.b {
            add_along(b, &u, &mut bias)?;
        }
        let u = u.broadcast_mul(&encoder.ln_head.w.to_dtype(DType::F32)?)?;
        let u = (self.centred(&u)?.broadcast_div(&head.scale)? * &head.gate)?;
        add_along(&encoder.b_head, &u, &mut bias)?;
        let w_head = encoder.w_head.to_dtype(DType::F32)?;
        Ok((u.matmul(&w_head.t()?)?, bias))
    }

    /// The norm that stands on the stream itself.
    fn stream_norm(&self, layer: usize, ln: Ln) -> Option<NormWeights> {
        let block = &self.model.weights.blocks[layer];
        let norm = match ln {
            Ln::One => block.ln1.clone(),
            Ln::Two => block.ln2.clone(),
            Ln::OnePost | Ln::TwoPost | Ln::Final => None,
        };
        norm.filter(|_| self.model.spec.norms_stream())
    }
}

/// Adds what a vector is worth to each reader.
fn add_along(vector: &Tensor, readers: &Tensor, sums: &mut [f64]) -> Result<()> {
    let vector = vector.to_dtype(DType::F32)?.broadcast_as(readers.shape())?;
    let worth = rowwise_dot(&vector, readers)?;
    sums.iter_mut().zip(worth).for_each(|(sum, w)| *sum += w);
    Ok(())
}

/// The scales of the norms that stand on the stream, which readers are made of.
pub(in crate::methods::logits) fn stream_scales(model: &Model) -> Vec<Hook> {
    let layers = (0..model.spec.n_layers).filter(|_| model.spec.norms_stream());
    let scales = [Ln::One, Ln::Two].map(Kind::Scale);
    layers
        .flat_map(|layer| scales.map(|kind| Hook::at(kind, layer)))
        .collect()
}
