//! From the gradient at the answers to that at the final stream.

use candle_core::{D, Tensor};

use super::{Probe, on_host_weights};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::host::{on_host, tensor};
use crate::nn::rules::Rules;
use crate::nn::{host, linear, mlp, norm};
use crate::run::rows::Rows;
use crate::spec::{EncoderWeights, ModelSpec};

/// Where answers are read, and the final stream there.
#[derive(Clone, Copy)]
pub(crate) struct AnswerRows<'a> {
    pub rows: &'a Rows,
    /// `[answer rows, d_model]`
    pub stream: &'a Tensor,
}

/// From the gradient at what the unembedding reads to that at the final stream.
/// # Shapes
/// `gradient [answer rows, d_model]`; gives `[rows, d_model]`.
pub(crate) fn final_norm(
    model: &Model,
    gradient: &Tensor,
    ends: AnswerRows<'_>,
    rules: &Rules,
    rows: &Rows,
    probe: &mut dyn Probe,
) -> Result<Tensor> {
    let spec = &model.spec;
    let answer = on_host(ends.stream)?;
    let Some(w) = &model.weights.ln_final else {
        return placed(gradient, ends.rows, rows);
    };
    let parts = norm::parts(&answer, &on_host_weights(w)?, spec.norm, spec.norm_eps)?;
    let gradient = match &model.weights.encoder {
        None => gradient.clone(),
        Some(encoder) => head(spec, encoder, gradient, &parts.y, rules)?,
    };
    let hooks = [Kind::Scale(Ln::Final), Kind::Normalized(Ln::Final)].map(Hook::global);
    if hooks.iter().any(|&hook| probe.wants(hook)) {
        let (at_scale, at_normalized) =
            norm::backward_at_hooks(&gradient, &parts.normalized, &parts.scale, w)?;
        for (hook, gradient) in hooks.into_iter().zip([at_scale, at_normalized]) {
            if probe.wants(hook) {
                probe.at(hook, &placed(&gradient, ends.rows, rows)?, rows)?;
            }
        }
    }
    let (normalized, scale) = (&parts.normalized, &parts.scale);
    let at_stream = norm::backward(&gradient, normalized, scale, w, spec.norm, rules.norm)?;
    placed(&at_stream, ends.rows, rows)
}

/// Through the dense layer, the activation and the norm that stand before an encoder's unembedding.
/// # Shapes
/// `gradient` at what comes out and `x`, what goes in: `[answer rows, d_model]`; gives the same.
fn head(
    spec: &ModelSpec,
    encoder: &EncoderWeights,
    gradient: &Tensor,
    x: &Tensor,
    rules: &Rules,
) -> Result<Tensor> {
    let w_head = on_host(&encoder.w_head)?;
    let b_head = encoder.b_head.as_ref().map(on_host).transpose()?;
    let pre = linear::forward(x, &w_head, b_head.as_ref())?;
    let post = mlp::forward(&pre, spec.activation)?;
    let w = on_host_weights(&encoder.ln_head)?;
    let of = norm::parts(&post, &w, spec.norm, spec.norm_eps)?;
    let (normalized, scale) = (&of.normalized, &of.scale);
    let at_post = norm::backward(gradient, normalized, scale, &w, spec.norm, rules.norm)?;
    let at_pre = mlp::backward(&at_post, &pre, spec.activation, rules)?;
    linear::backward(&at_pre, &w_head)
}

/// Puts the rows of the answers at their places; the other rows are zero.
fn placed(answers: &Tensor, at: &Rows, rows: &Rows) -> Result<Tensor> {
    let width = answers.dim(D::Minus1)?;
    let mut all = vec![0f32; rows.total * width];
    let data = host::to_host(answers)?;
    let mut values = data.chunks_exact(width);
    for (segment, answers) in rows.segments.iter().zip(&at.segments) {
        for (pos, values) in answers.positions.iter().zip(values.by_ref()) {
            let row = segment.positions.binary_search(pos);
            let row = segment.start + row.expect("gradients are carried from the answer down");
            all[row * width..(row + 1) * width].copy_from_slice(values);
        }
    }
    tensor(all, (rows.total, width))
}
