//! What a branch adds to the stream, part by part: through its post-norm with the divisor of the run, and its multiplier.
//!
//! With a frozen divisor a norm is linear up to its bias, so the parts and what no part brings (the biases of projection and
//! norm) sum to the branch's output.

use crate::error::Result;
use crate::model::Model;
use crate::nn::host::to_host;
use crate::spec::{NormKind, NormWeights};

pub(in crate::methods) struct Write {
    post: Option<(Vec<f32>, Option<Vec<f32>>)>,
    kind: NormKind,
    multiplier: f32,
    /// Of the projection before the post-norm.
    bias: Option<Vec<f32>>,
}

impl Write {
    pub fn new(
        model: &Model,
        post: Option<&NormWeights>,
        bias: Option<&candle_core::Tensor>,
    ) -> Result<Self> {
        let post = match post {
            Some(norm) => Some((to_host(&norm.w)?, norm.b.as_ref().map(to_host).transpose()?)),
            None => None,
        };
        Ok(Write {
            post,
            kind: model.spec.norm,
            multiplier: model.spec.residual_multiplier.unwrap_or(1.0),
            bias: bias.map(to_host).transpose()?,
        })
    }

    /// What becomes of one part, in place; `scale` is the post-norm's divisor at its position.
    pub fn part(&self, part: &mut [f32], scale: f32) {
        if let Some((w, _)) = &self.post {
            let mean = match self.kind {
                NormKind::Layer => part.iter().sum::<f32>() / part.len() as f32,
                NormKind::Rms => 0.0,
            };
            for (x, w) in part.iter_mut().zip(w) {
                *x = (*x - mean) / scale * w;
            }
        }
        part.iter_mut().for_each(|x| *x *= self.multiplier);
    }

    pub fn has_bias(&self) -> bool {
        self.bias.is_some() || matches!(&self.post, Some((_, Some(_))))
    }

    /// What no part brings.
    pub fn bias(&self, scale: f32, d_model: usize) -> Vec<f32> {
        let mut sum = match &self.bias {
            Some(bias) => bias.clone(),
            None => vec![0.0; d_model],
        };
        self.part(&mut sum, scale);
        if let Some((_, Some(bias))) = &self.post {
            for (sum, bias) in sum.iter_mut().zip(bias) {
                *sum += bias * self.multiplier;
            }
        }
        sum
    }
}
