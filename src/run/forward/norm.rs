//! The norms of the walk, and what a branch adds behind them.

use candle_core::Tensor;

use super::stream::{Layer, Tap};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::{linear, mlp, norm};
use crate::run::rows::Rows;
use crate::spec::NormWeights;

/// What a branch is added to: the stream, or what the branch's norm made of it where norms stand on the stream.
pub(super) fn kept(layer: &Layer<'_>, x: &Tensor, norm: Option<&NormWeights>) -> Result<Tensor> {
    match norm {
        Some(w) if layer.spec.norms_stream() => {
            norm::forward(x, w, layer.spec.norm, layer.spec.norm_eps)
        }
        _ => Ok(x.clone()),
    }
}

/// A norm with its hooks.
pub(super) fn normed(
    layer: &Layer<'_>,
    x: &Tensor,
    w: &NormWeights,
    ln: Ln,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let hooks = [
        layer.hook(Kind::Scale(ln)),
        layer.hook(Kind::Normalized(ln)),
    ];
    norm_with_hooks(layer.model, x, w, hooks, rows, tap)
}

fn norm_with_hooks(
    model: &Model,
    x: &Tensor,
    w: &NormWeights,
    hooks: [Hook; 2],
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let (kind, eps) = (model.spec.norm, model.spec.norm_eps);
    if !tap.wants(hooks[0]) && !tap.wants(hooks[1]) {
        return norm::forward(x, w, kind, eps);
    }
    let parts = norm::parts(x, w, kind, eps)?;
    let scale = tap.at(hooks[0], parts.scale.clone(), rows)?;
    let normalized = if scale.id() == parts.scale.id() {
        parts.normalized.clone()
    } else {
        norm::normalize(x, &scale, kind)?
    };
    let used = tap.at(hooks[1], normalized, rows)?;
    if used.id() == parts.normalized.id() {
        Ok(parts.y)
    } else {
        norm::apply_weight(&used, w)
    }
}

/// The final norm of some rows of the last stream.
pub(crate) fn final_norm(
    model: &Model,
    x: &Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let x = match &model.weights.ln_final {
        Some(w) => {
            let hooks = [
                Hook::global(Kind::Scale(Ln::Final)),
                Hook::global(Kind::Normalized(Ln::Final)),
            ];
            norm_with_hooks(model, x, w, hooks, rows, tap)?
        }
        None => x.clone(),
    };
    let Some(encoder) = &model.weights.encoder else {
        return Ok(x);
    };
    let pre = linear::forward(&x, &encoder.w_head, encoder.b_head.as_ref())?;
    let post = mlp::forward(&pre, model.spec.activation)?;
    norm::forward(
        &post,
        &encoder.ln_head,
        model.spec.norm,
        model.spec.norm_eps,
    )
}

/// What a branch adds to the stream: its output after the post-norm and the residual multiplier, where there are any.
pub(super) fn write(
    layer: &Layer<'_>,
    out: Tensor,
    post: Option<&NormWeights>,
    ln: Ln,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let out = match post {
        Some(w) => normed(layer, &out, w, ln, rows, tap)?,
        None => out,
    };
    Ok(match layer.spec.residual_multiplier {
        Some(factor) => (out * f64::from(factor))?,
        None => out,
    })
}
