//! Which heads and MLPs carry what a sentence says to the answer: each part's own output, read out as a distribution over the vocabulary,
//! with the sentence and without.
//!
//! A part `u` at a position that writes the answer is taken through the final norm with its own scale and the unembedding,
//! `P_u = softmax(N_f(u) W_U)` (a norm on a branch's output keeps the scale of its run), and `J_u` sums the Jensen-Shannon divergences of
//! `P_u` between both runs over the answer. It says whose word moved, not who moved the answer: beside it stands the same where another
//! sentence is left out.

use candle_core::{DType, Tensor};

use super::config::KlOrder;
use super::runs::{Asked, divergence, without};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::captured::captured;
use crate::model::Model;
use crate::nn::embed::unembed;
use crate::nn::norm;
use crate::run::Cache;
use crate::spec::{Mlp, NormKind, NormPlacement};

/// `J_u` of every part, layer by layer, its heads and then its MLP where it has one.
#[derive(Debug, Clone, Default)]
pub(super) struct Lens {
    /// Without the sentence.
    pub top: Vec<f64>,
    /// Without another one.
    pub control: Vec<f64>,
}

/// Reads three runs: the whole, one without the sentence `top`, one without `control`.
pub(super) fn lens(asked: &Asked<'_>, top: usize, control: usize) -> Result<Lens> {
    let (model, n) = (asked.model, asked.n_sentences());
    let runs = [vec![true; n], without(n, top), without(n, control)];
    let run = |there: &Vec<bool>| captured(model, &[asked.prompt(there)?], &hooks(model), &[]);
    let caches: Vec<Cache> = runs.iter().map(run).collect::<Result<_>>()?;
    let m = asked.answer.len();
    let mut found = Lens::default();
    for layer in 0..model.spec.n_layers {
        let parts = |cache: &Cache| parts(model, cache, layer, m);
        let [whole, less, other] = [parts(&caches[0])?, parts(&caches[1])?, parts(&caches[2])?];
        for ((whole, less), other) in whole.iter().zip(&less).zip(&other) {
            found.top.push(divergence(whole, less, KlOrder::Bounded)?);
            found
                .control
                .push(divergence(whole, other, KlOrder::Bounded)?);
        }
    }
    Ok(found)
}

fn hooks(model: &Model) -> Vec<Hook> {
    let kinds = [Kind::Z, Kind::Scale(Ln::OnePost), Kind::MlpOut];
    let there = kinds
        .into_iter()
        .filter(|kind| kind.absent(&model.spec).is_none());
    there
        .flat_map(|kind| (0..model.spec.n_layers).map(move |layer| Hook::at(kind, layer)))
        .collect()
}

/// The logits of every part of a layer at the last `m` positions: `[part][position][vocabulary]`.
fn parts(model: &Model, cache: &Cache, layer: usize, m: usize) -> Result<Vec<Vec<Vec<f32>>>> {
    let (spec, block) = (&model.spec, &model.weights.blocks[layer]);
    let at_end = |kind| -> Result<Tensor> {
        let values = cache
            .get(Hook::at(kind, layer))?
            .squeeze(0)?
            .to_dtype(DType::F32)?;
        Ok(values.narrow(0, cache.length - m, m)?.contiguous()?)
    };
    let z = at_end(Kind::Z)?.transpose(0, 1)?.contiguous()?; // [n_heads, m, d_head]
    let w_o = block
        .w_o
        .to_dtype(DType::F32)?
        .reshape((spec.n_heads, spec.d_head, spec.d_model))?;
    let mut heads = z.matmul(&w_o)?; // [n_heads, m, d_model]
    if let Some(after) = &block.ln1_post {
        let scale = at_end(Kind::Scale(Ln::OnePost))?;
        let centred = match spec.norm {
            NormKind::Layer => heads.broadcast_sub(&heads.mean_keepdim(2)?)?,
            NormKind::Rms => heads,
        };
        let weight = after.w.to_dtype(DType::F32)?;
        heads = centred.broadcast_div(&scale)?.broadcast_mul(&weight)?;
    }
    let mut n_parts = spec.n_heads;
    let mut rows = heads.reshape((n_parts * m, spec.d_model))?;
    if spec.mlp != Mlp::None {
        rows = Tensor::cat(&[&rows, &at_end(Kind::MlpOut)?], 0)?;
        n_parts += 1;
    }
    let normed = match &model.weights.ln_final {
        Some(weights) if spec.norm_placement != NormPlacement::None => norm::forward(
            &rows.to_dtype(model.dtype)?,
            weights,
            spec.norm,
            spec.norm_eps,
        )?,
        _ => rows.to_dtype(model.dtype)?,
    };
    let logits = unembed(spec, &model.weights, &normed)?.to_vec2::<f32>()?;
    let parts = logits.chunks_exact(m).map(<[Vec<f32>]>::to_vec);
    debug_assert_eq!(parts.len(), n_parts);
    Ok(parts.collect())
}
