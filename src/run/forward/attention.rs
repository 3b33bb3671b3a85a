//! Attention of one layer: from the stream to queries, keys and values, to z, and to what it adds.

use candle_core::Tensor;

use super::norm::{normed, write};
use super::stream::{Layer, Packed, Tap};
use crate::error::{Error, Result};
use crate::hooks::{Kind, Ln};
use crate::nn::attention::{self, KeysValues, Shape};
use crate::nn::{clip, linear, norm, rope};
use crate::run::rows::{Rows, regather};
use crate::spec::{ModelSpec, NormWeights};

/// Queries, keys and values, cut off where the model does that, before hooks of their own: `[rows, heads, d_head]`.
pub(super) fn read(
    layer: &Layer<'_>,
    x: &Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<[Tensor; 3]> {
    let spec = layer.spec;
    let (heads, kv, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
    let inputs = [Kind::QInput, Kind::KInput, Kind::VInput].map(|kind| layer.hook(kind));
    let mut edited: [Option<Tensor>; 3] = [None, None, None];
    for (slot, hook) in edited.iter_mut().zip(inputs) {
        if tap.wants(hook) {
            // One copy for each query head, as a view until somebody changes it.
            let each = x
                .unsqueeze(1)?
                .broadcast_as((x.dim(0)?, heads, spec.d_model))?;
            let used = tap.at(hook, each.clone(), rows)?;
            *slot = (used.id() != each.id()).then_some(used);
        }
    }
    let of_norm = [Kind::Scale(Ln::One), Kind::Normalized(Ln::One)].map(|kind| layer.hook(kind));
    if let Some(hook) = of_norm.into_iter().find(|&hook| tap.edits(hook))
        && edited.iter().any(Option::is_some)
    {
        let reason = "an edit of `hook_q_input`, `hook_k_input` or `hook_v_input` in the same layer gives each query head a \
                      stream of its own, which this norm does not see; make the two in separate runs"
            .into();
        return Err(Error::BadEdit {
            edit: hook.to_string(),
            reason,
        });
    }
    let normalized = match &layer.weights.ln1 {
        Some(w) => normed(layer, x, w, Ln::One, rows, tap)?,
        None => x.clone(),
    };
    let qkv = linear::forward(
        &normalized,
        &layer.weights.w_qkv,
        layer.weights.b_qkv.as_ref(),
    )?;
    let qkv = clip::forward(qkv, spec.qkv_clip)?;
    let n = qkv.dim(0)?;
    let mut out = Vec::with_capacity(3);
    for (letter, edited) in edited.into_iter().enumerate() {
        let count = if letter == 0 { heads } else { kv };
        let start = [0, heads * d, (heads + kv) * d][letter];
        out.push(match edited {
            None => qkv.narrow(1, start, count * d)?.reshape((n, count, d))?,
            Some(input) => read_by_head(layer, &input, start, heads / count)?,
        });
    }
    Ok(out.try_into().expect("three letters"))
}

/// One letter of q, k, v from an input of its own for each query head: `[rows, n_heads, d_model]` to `[rows, n_heads, d_head]`.
/// Under grouped heads each query head then has a key or value of its own.
fn read_by_head(layer: &Layer<'_>, input: &Tensor, start: usize, group: usize) -> Result<Tensor> {
    let spec = layer.spec;
    let (heads, d) = (spec.n_heads, spec.d_head);
    let mut out = Vec::with_capacity(heads);
    for head in 0..heads {
        let x = input.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
        let x = match &layer.weights.ln1 {
            Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
            None => x,
        };
        let columns = start + head / group * d;
        let w = layer.weights.w_qkv.narrow(1, columns, d)?.contiguous()?;
        let b = layer
            .weights
            .b_qkv
            .as_ref()
            .map(|b| b.narrow(0, columns, d)?.contiguous())
            .transpose()?;
        out.push(linear::forward(&x, &w, b.as_ref())?);
    }
    clip::forward(Tensor::stack(&out, 1)?, spec.qkv_clip)
}

/// From `[x, q, k, v]` to `[x, z]`, over the rows that go on.
pub(super) fn attend(
    layer: &Layer<'_>,
    packed: Packed,
    ropes: &rope::Tables,
    tap: &mut dyn Tap,
) -> Result<Packed> {
    let spec = layer.spec;
    let (rows, [x, q, k, v]) = packed.take();
    if k.dim(1)? != spec.n_kv_heads || v.dim(1)? != spec.n_kv_heads {
        let clash = [Kind::K, Kind::V, Kind::RotK]
            .map(|kind| layer.hook(kind))
            .into_iter()
            .find(|&hook| tap.wants(hook));
        if let Some(hook) = clash {
            let reason = "an edit of `hook_k_input` or `hook_v_input` in the same layer gives each query head a key of its own; \
                          make the two in separate runs"
                .into();
            return Err(Error::BadEdit {
                edit: hook.to_string(),
                reason,
            });
        }
    }
    let q = tap.at(layer.hook(Kind::Q), q, &rows)?;
    let k = tap.at(layer.hook(Kind::K), k, &rows)?;
    let v = tap.at(layer.hook(Kind::V), v, &rows)?;
    let positions = rows.positions();
    let (rot_q, rot_k) = rotate(layer, &q, &k, &positions, ropes)?;
    let rot_q = tap.at(layer.hook(Kind::RotQ), rot_q, &rows)?;
    let rot_k = tap.at(layer.hook(Kind::RotK), rot_k, &rows)?.contiguous()?;
    let v = v.contiguous()?;

    let (out, x, rot_q) = match tap.attended(layer.index, &rows) {
        None => (rows.clone(), x, rot_q),
        Some(out) => {
            // The base run's queries are kept rotated; a plain run that only drops rows has no base run and needs none.
            let bases = [Kind::ResidPre, Kind::RotQ].map(|kind| tap.base(layer.hook(kind)).ok());
            let x = regather(&x, &rows, &out, bases[0])?;
            let rot_q = regather(&rot_q, &rows, &out, bases[1])?;
            (out, x, rot_q)
        }
    };
    // Earlier tokens of a generation have keys for each query head where an edit of a reader's input gave them.
    let n_kv_heads = match tap.base_keys(layer.index)? {
        Some((keys, _)) => keys.dim(1)?,
        None => spec.n_kv_heads,
    };
    let shape = Shape {
        key_heads: rot_k.dim(1)?,
        value_heads: v.dim(1)?,
        n_kv_heads,
        ..Shape::of(spec, layer.index, rows.length)
    };
    let segments = out.places(&rows);
    let hooks = [Kind::AttnScores, Kind::Pattern].map(|kind| layer.hook(kind));
    let wanted = hooks.map(|hook| tap.wants(hook));
    let base = tap.base_keys(layer.index)?;
    let sources = KeysValues {
        k: &rot_k,
        v: &v,
        base,
    };
    let z = if wanted == [false, false] {
        attention::forward(&rot_q, sources, &segments, &shape)?
    } else {
        let scores = attention::scores(&rot_q, sources, &segments, &shape)?;
        let scores = tap.at(hooks[0], scores, &out)?;
        let pattern = attention::softmax(&scores)?;
        let pattern = tap.at(hooks[1], pattern, &out)?;
        let sources = KeysValues {
            k: &rot_k,
            v: &v,
            base: tap.base_keys(layer.index)?,
        };
        attention::mix(&pattern, sources, &segments, &shape)?
    };
    Ok(Packed {
        rows: out,
        parts: vec![x, z],
    })
}

/// Q/k-norm, then rotation.
fn rotate(
    layer: &Layer<'_>,
    q: &Tensor,
    k: &Tensor,
    positions: &[u32],
    ropes: &rope::Tables,
) -> Result<(Tensor, Tensor)> {
    let rotated_through = |x: &Tensor, w: &Option<NormWeights>| {
        rotated(layer.spec, layer.index, x, w.as_ref(), positions, ropes)
    };
    Ok((
        rotated_through(q, &layer.weights.q_norm)?,
        rotated_through(k, &layer.weights.k_norm)?,
    ))
}

/// The queries or the keys of a layer, through their norm (with weights `w`) and rotated.
/// # Shapes
/// `x [rows, heads, d_head]`; gives the same.
pub(crate) fn rotated(
    spec: &ModelSpec,
    layer: usize,
    x: &Tensor,
    w: Option<&NormWeights>,
    positions: &[u32],
    ropes: &rope::Tables,
) -> Result<Tensor> {
    let x = match w {
        None => x.clone(),
        Some(w) => norm::heads(x, w, spec.qk_norm, spec.norm_eps)?,
    };
    match ropes.of(layer) {
        Some(table) => rope::forward(&x, positions, table),
        None => Ok(x),
    }
}

/// From z to what attention adds to the stream, `[rows, d_model]`.
pub(super) fn project(
    layer: &Layer<'_>,
    z: Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let spec = layer.spec;
    let z = tap.at(layer.hook(Kind::Z), z, rows)?;
    let n = z.dim(0)?;
    let result_hook = layer.hook(Kind::Result);
    let bias = layer.weights.b_o.as_ref();
    let mut out = None;
    if tap.wants(result_hook) {
        let mut heads = Vec::with_capacity(spec.n_heads);
        for head in 0..spec.n_heads {
            let z = z.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
            heads.push(linear::forward(
                &z,
                &layer
                    .weights
                    .w_o
                    .narrow(0, head * spec.d_head, spec.d_head)?,
                None,
            )?);
        }
        let result = Tensor::stack(&heads, 1)?; // [rows, n_heads, d_model]
        let used = tap.at(result_hook, result.clone(), rows)?;
        if used.id() != result.id() {
            let sum = used.sum(1)?;
            out = Some(match bias {
                Some(b) => sum.broadcast_add(b)?,
                None => sum,
            });
        }
    }
    let out = match out {
        Some(out) => out,
        None => linear::forward(
            &z.contiguous()?.reshape((n, spec.n_heads * spec.d_head))?,
            &layer.weights.w_o,
            bias,
        )?,
    };
    write(
        layer,
        out,
        layer.weights.ln1_post.as_ref(),
        Ln::OnePost,
        rows,
        tap,
    )
}
