//! From the gradient at the answers to that at the final stream.

use candle_core::{D, Tensor};

use super::{Probe, on_host_weights};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::host::{on_host, tensor};
use crate::nn::rules::Rules;
use crate::nn::{host, norm};
use crate::run::rows::Rows;

/// From the gradient at the final norm's output, at the last position of each prompt, to that at the final stream.
/// # Shapes
/// `gradient [batch, d_model]`, `answer [batch, d_model]` the stream there; gives `[rows, d_model]`.
pub(crate) fn final_norm(
    model: &Model,
    gradient: &Tensor,
    answer: &Tensor,
    rules: &Rules,
    rows: &Rows,
    probe: &mut dyn Probe,
) -> Result<Tensor> {
    let spec = &model.spec;
    let at_stream = match &model.weights.ln_final {
        None => gradient.clone(),
        Some(w) => {
            let answer = on_host(answer)?;
            let parts = norm::parts(&answer, &on_host_weights(w)?, spec.norm, spec.norm_eps)?;
            let hooks = [Kind::Scale(Ln::Final), Kind::Normalized(Ln::Final)].map(Hook::global);
            if hooks.iter().any(|&hook| probe.wants(hook)) {
                let (at_scale, at_normalized) =
                    norm::backward_at_hooks(gradient, &parts.normalized, &parts.scale, w)?;
                for (hook, gradient) in hooks.into_iter().zip([at_scale, at_normalized]) {
                    if probe.wants(hook) {
                        probe.at(hook, &at_last(&gradient, rows)?, rows)?;
                    }
                }
            }
            let (normalized, scale) = (&parts.normalized, &parts.scale);
            norm::backward(gradient, normalized, scale, w, spec.norm, rules.norm)?
        }
    };
    at_last(&at_stream, rows)
}

/// Puts one row for each prompt at its last position; the other rows are zero.
fn at_last(last: &Tensor, rows: &Rows) -> Result<Tensor> {
    let width = last.dim(D::Minus1)?;
    let mut all = vec![0f32; rows.total * width];
    let data = host::to_host(last)?;
    for (segment, values) in rows.segments.iter().zip(data.chunks_exact(width)) {
        let row = segment.start + segment.positions.len() - 1;
        all[row * width..(row + 1) * width].copy_from_slice(values);
    }
    tensor(all, (rows.total, width))
}
