//! The MLP of one layer.

use candle_core::Tensor;

use super::norm::{kept, normed, write};
use super::stream::{Layer, Packed, Stage, Tap};
use crate::error::Result;
use crate::hooks::{Kind, Ln};
use crate::model::Model;
use crate::nn::{linear, mlp, norm};
use crate::run::rows::Rows;
use crate::spec::{Block, Mlp};

/// The MLP of a block: from `[mid]` (sequential) or `[mid, what the MLP reads]` (parallel) to `[resid_post]`.
pub(super) fn run_mlp(layer: &Layer<'_>, packed: Packed, tap: &mut dyn Tap) -> Result<Packed> {
    let sequential = layer.spec.block == Block::Sequential;
    let mut packed = packed.join(tap, Stage::ResidMid, layer)?;
    if !packed.rows.is_empty() {
        let Packed { rows, mut parts } = packed;
        if sequential {
            parts[0] = tap.at(layer.hook(Kind::ResidMid), parts[0].clone(), &rows)?;
        }
        let read = parts[parts.len() - 1].clone();
        let mid = parts.swap_remove(0);
        let mlp_in = tap.at(layer.hook(Kind::MlpIn), read, &rows)?;
        let post = neurons(layer, mlp_in, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![mid, post],
        };
    }
    let mut packed = packed.join(tap, Stage::MlpPost, layer)?;
    if !packed.rows.is_empty() {
        let (rows, [mid, post]) = packed.take();
        let post = tap.at(layer.hook(Kind::MlpPost), post, &rows)?;
        let out = written_by_neurons(layer, &post, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![mid, out],
        };
    }
    let packed = packed.join(tap, Stage::MlpOut, layer)?;
    if packed.rows.is_empty() {
        return Ok(packed);
    }
    let (rows, [mid, out]) = packed.take();
    let out = tap.at(layer.hook(Kind::MlpOut), out, &rows)?;
    let x = linear::add(&kept(layer, &mid, layer.weights.ln2.as_ref())?, &out)?;
    Ok(Packed {
        rows,
        parts: vec![x],
    })
}

/// What the MLP of a layer writes for a stream of one's own.
/// # Shapes
/// `mlp_in [rows, d_model]`; gives the same.
pub(crate) fn mlp_write(
    model: &Model,
    index: usize,
    mlp_in: Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let layer = Layer {
        model,
        spec: &model.spec,
        weights: &model.weights.blocks[index],
        index,
    };
    let post = neurons(&layer, mlp_in, rows, tap)?;
    written_by_neurons(&layer, &post, rows, tap)
}

fn written_by_neurons(
    layer: &Layer<'_>,
    post: &Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let weights = layer
        .weights
        .mlp
        .as_ref()
        .expect("a spec with an MLP has its weights");
    let out = linear::forward(post, &weights.w_out, weights.b_out.as_ref())?;
    let post_norm = layer.weights.ln2_post.as_ref();
    write(layer, out, post_norm, Ln::TwoPost, rows, tap)
}

/// The activations of the neurons, from the stream that the MLP reads: `[rows, d_mlp]`.
fn neurons(layer: &Layer<'_>, mlp_in: Tensor, rows: &Rows, tap: &mut dyn Tap) -> Result<Tensor> {
    let spec = layer.spec;
    let weights = layer
        .weights
        .mlp
        .as_ref()
        .expect("a spec with an MLP has its weights");
    let shared = spec.block == (Block::Parallel { shared_norm: true });
    let x = match (&layer.weights.ln2, &layer.weights.ln1) {
        (Some(w), _) => normed(layer, &mlp_in, w, Ln::Two, rows, tap)?,
        // The hooks of a shared norm belong to attention, which came first.
        (None, Some(w)) if shared => norm::forward(&mlp_in, w, spec.norm, spec.norm_eps)?,
        _ => mlp_in,
    };
    let pre = linear::forward(&x, &weights.w_in, weights.b_in.as_ref())?;
    if spec.mlp == Mlp::Plain {
        let pre = tap.at(layer.hook(Kind::MlpPre), pre, rows)?;
        return mlp::forward(&pre, spec.activation);
    }
    let hooks = [Kind::MlpPre, Kind::MlpPreLinear].map(|kind| layer.hook(kind));
    if !hooks.iter().any(|&hook| tap.wants(hook)) {
        return mlp::gated(&pre, spec.activation);
    }
    let (gate, up) = (
        pre.narrow(1, 0, spec.d_mlp)?,
        pre.narrow(1, spec.d_mlp, spec.d_mlp)?,
    );
    let used_gate = tap.at(hooks[0], gate.clone(), rows)?;
    let used_up = tap.at(hooks[1], up.clone(), rows)?;
    if used_gate.id() == gate.id() && used_up.id() == up.id() {
        mlp::gated(&pre, spec.activation)
    } else {
        Ok((mlp::forward(&used_gate, spec.activation)? * used_up)?)
    }
}
