//! How much of what an MLP writes each of its neurons is.

use candle_core::Tensor;
use rayon::prelude::*;

use super::parts::{Sum, scaled_proximity};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::tokens::Write;
use crate::model::Model;
use crate::nn::host::{on_host, to_host};
use crate::run::Cache;

/// The MLP of one layer, of all prompts.
pub(super) struct Neurons {
    d_model: usize,
    write: Write,
    /// What each neuron writes where it is 1, `[d_mlp, d_model]`, before the divisor of a norm on the MLP's output.
    written: Vec<f32>,
    /// `[batch * pos, d_mlp]`
    active: Vec<f32>,
    /// `[batch * pos, d_model]`
    mlp_out: Vec<f32>,
    /// `[batch * pos]`, where a norm stands on the MLP's output.
    scale: Option<Vec<f32>>,
}

impl Neurons {
    pub fn of(model: &Model, cache: &Cache, layer: usize) -> Result<Self> {
        let read = |kind| -> Result<Vec<f32>> { to_host(&cache.get(Hook::at(kind, layer))?) };
        let weights = &model.weights.blocks[layer];
        let mlp = weights.mlp.as_ref().ok_or_else(|| {
            Error::invalid(format!("layer {layer} has no MLP to take apart by neuron"))
        })?;
        let bias: Option<&Tensor> = mlp.b_out.as_ref();
        let write = Write::new(model, weights.ln2_post.as_ref(), bias)?;
        let mut written = to_host(&on_host(&mlp.w_out)?)?;
        written
            .par_chunks_exact_mut(model.spec.d_model)
            .for_each(|part| write.part(part, 1.0));
        let scale = Kind::Scale(Ln::TwoPost);
        let has_scale = cache.contains(Hook::at(scale, layer));
        Ok(Neurons {
            d_model: model.spec.d_model,
            write,
            written,
            active: read(Kind::MlpPost)?,
            mlp_out: read(Kind::MlpOut)?,
            scale: has_scale.then(|| read(scale)).transpose()?,
        })
    }

    /// The share of each neuron in what the MLP writes at a row; they and that of the bias sum to 1. Nothing where no part
    /// brings it nearer to zero.
    pub fn shares(&self, row: usize) -> Vec<f64> {
        let d = self.d_model;
        let scale = self.scale.as_ref().map_or(1.0, |scale| scale[row]);
        let whole = &self.mlp_out[row * d..][..d];
        let bias = Sum::new(whole).take(&self.write.bias(scale, d), 1.0);
        let n = self.written.len() / d;
        let active = &self.active[row * n..][..n];
        let parts = self.written.par_chunks_exact(d).zip(active);
        let mut shares: Vec<f64> = parts
            .map(|(part, active)| {
                scaled_proximity(part, f64::from(*active) / f64::from(scale), whole)
            })
            .collect();
        let sum = bias + shares.iter().sum::<f64>();
        if sum > 0.0 {
            shares.iter_mut().for_each(|share| *share /= sum);
        }
        shares
    }
}
