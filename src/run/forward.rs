//! The forward pass, written once. A plain run, a capturing run, an edited run and a sweep are all this walk; they differ in
//! their [`Tap`].
//!
//! At each hook the order is: compute, intervene, capture. In a sweep, rows can join the walk at the [`Stage`]s of a block, with
//! what stands before taken from the base run; and after attention a tap may say which rows go on (the later tokens that can
//! have changed, or in the last layer the answer alone).

mod attention;
mod mlp;
mod norm;
mod stream;

use candle_core::{DType, Tensor};

pub(crate) use attention::rotated;
use attention::{attend, project, read};
pub(crate) use mlp::mlp_write;
use mlp::run_mlp;
pub(crate) use norm::final_norm;
use norm::kept;
pub use stream::Stage;
use stream::{Layer, Packed};
pub(crate) use stream::{Stream, Tap};

use super::rows::Rows;
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::model::Model;
use crate::nn::{linear, rope};
use crate::spec::{Block, Mlp};

/// Walks one block.
pub(crate) fn block(
    model: &Model,
    index: usize,
    ropes: &rope::Tables,
    stream: Stream,
    tap: &mut dyn Tap,
) -> Result<Stream> {
    let layer = Layer {
        model,
        spec: &model.spec,
        weights: &model.weights.blocks[index],
        index,
    };
    let length = stream.rows.length;
    let packed = Packed {
        rows: stream.rows,
        parts: stream.x.into_iter().collect(),
    };
    let mut packed = packed.join(tap, Stage::ResidPre, &layer)?;
    if !packed.rows.is_empty() {
        let (rows, [x]) = packed.take();
        let x = tap.at(layer.hook(Kind::ResidPre), x, &rows)?;
        let [q, k, v] = read(&layer, &x, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![x, q, k, v],
        };
    }
    let mut packed = packed.join(tap, Stage::Qkv, &layer)?;
    if !packed.rows.is_empty() {
        packed = attend(&layer, packed, ropes, tap)?; // x, z
    }
    let mut packed = packed.join(tap, Stage::Z, &layer)?;
    if !packed.rows.is_empty() {
        let (rows, [x, z]) = packed.take();
        let attn_out = project(&layer, z, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![x, attn_out],
        };
    }
    let mut packed = packed.join(tap, Stage::AttnOut, &layer)?;
    let sequential = layer.spec.block == Block::Sequential;
    if !packed.rows.is_empty() {
        let (rows, [x, attn_out]) = packed.take();
        let attn_out = tap.at(layer.hook(Kind::AttnOut), attn_out, &rows)?;
        let mid = linear::add(&kept(&layer, &x, layer.weights.ln1.as_ref())?, &attn_out)?;
        packed = Packed {
            rows,
            parts: if sequential { vec![mid] } else { vec![mid, x] },
        };
    }
    if layer.spec.mlp != Mlp::None {
        packed = run_mlp(&layer, packed, tap)?;
    }
    let packed = packed.join(tap, Stage::ResidPost, &layer)?;
    if packed.rows.is_empty() {
        return Ok(Stream::empty(length));
    }
    let (rows, [x]) = match layer.spec.mlp {
        // Attention-only parallel blocks do not exist, so one part is left either way.
        Mlp::None => Packed {
            rows: packed.rows,
            parts: packed.parts.into_iter().take(1).collect(),
        }
        .take(),
        _ => packed.take(),
    };
    let x = tap.at(layer.hook(Kind::ResidPost), x, &rows)?;
    Ok(Stream { rows, x: Some(x) })
}

/// The stream that enters the first block, with the hooks of the embeddings.
pub(crate) fn embed(
    model: &Model,
    tokens: &[u32],
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let x = crate::nn::embed::embed(&model.spec, &model.weights, tokens)?;
    let x = tap.at(Hook::global(Kind::Embed), x, rows)?;
    match &model.weights.w_pos {
        None => Ok(x),
        Some(w_pos) => {
            let pos = w_pos.index_select(&Tensor::new(rows.positions(), w_pos.device())?, 0)?;
            let pos = tap.at(Hook::global(Kind::PosEmbed), pos, rows)?;
            let x = (x + pos)?;
            match &model
                .weights
                .encoder
                .as_ref()
                .and_then(|e| e.segments.as_ref())
            {
                None => Ok(x),
                // Every token is taken to be of the first segment.
                Some(segments) => Ok(x.broadcast_add(&segments.narrow(0, 0, 1)?)?),
            }
        }
    }
}

/// Logits are f32 whatever the model's dtype.
pub(crate) fn as_logits(t: Tensor) -> Result<Tensor> {
    Ok(t.to_dtype(DType::F32)?)
}
