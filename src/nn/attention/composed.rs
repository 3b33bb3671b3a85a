//! Attention in tensor operations, for any device and number format.

use candle_core::{DType, Device, Tensor};

use super::shape::{KeysValues, SegmentPlace, Shape, visible};
use crate::error::Result;

/// The keys or values of one segment in tensor operations, `[length, heads, d_head]`.
fn assemble(
    own: &Tensor,
    base: Option<&Tensor>,
    segment: &SegmentPlace<'_>,
    heads: usize,
    shape: &Shape,
) -> Result<Tensor> {
    let own = own.narrow(0, segment.key_start, segment.key_positions.len())?;
    let Some(base) = base else { return Ok(own) };
    let base = base.narrow(0, segment.example * shape.length, shape.length)?;
    let base = if heads == shape.n_kv_heads {
        base
    } else {
        repeat(&base, heads / shape.n_kv_heads)?
    };
    let mut index: Vec<u32> = (0..shape.length as u32)
        .map(|pos| pos + segment.key_positions.len() as u32)
        .collect();
    for (row, &pos) in segment.key_positions.iter().enumerate() {
        index[pos as usize] = row as u32;
    }
    Ok(Tensor::cat(&[&own, &base], 0)?.index_select(&Tensor::new(index, own.device())?, 0)?)
}

/// Repeats each head `times` times.
/// # Shapes
/// `x [rows, heads, d]`; gives `[rows, heads * times, d]`.
pub fn repeat(x: &Tensor, times: usize) -> Result<Tensor> {
    let (rows, heads, d) = x.dims3()?;
    Ok(x.unsqueeze(2)?
        .broadcast_as((rows, heads, times, d))?
        .reshape((rows, heads * times, d))?)
}

pub(super) fn composed_scores(
    q: &Tensor,
    sources: KeysValues<'_>,
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Result<Tensor> {
    let mut all = Vec::with_capacity(segments.len());
    for segment in segments {
        let k = assemble(
            sources.k,
            sources.base.map(|base| base.0),
            segment,
            shape.key_heads,
            shape,
        )?;
        let k = repeat(&k, shape.n_heads / shape.key_heads)?;
        let q = q.narrow(0, segment.query_start, segment.query_positions.len())?;
        let q = q.transpose(0, 1)?.contiguous()?; // [head, query, d_head]
        let kt = k.transpose(0, 1)?.transpose(1, 2)?.contiguous()?; // [head, d_head, key]
        let scores = (q.matmul(&kt)?.to_dtype(DType::F32)? * f64::from(shape.scale))?;
        let scores = match shape.softcap {
            Some(cap) => ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?,
            None => scores,
        };
        // With ALiBi what is added differs from head to head.
        let heads = if shape.alibi.is_some() {
            shape.n_heads
        } else {
            1
        };
        let queries = segment.query_positions.len();
        let mut mask = vec![f32::NEG_INFINITY; heads * queries * shape.length];
        for (i, mask) in mask.chunks_exact_mut(shape.length).enumerate() {
            let pos = segment.query_positions[i % queries] as usize;
            let (low, high) = visible(shape, pos);
            mask[low..high].fill(0.0);
            if let Some(slopes) = shape.alibi {
                slopes.take_off(mask, i / queries, pos);
            }
        }
        let mask = Tensor::from_vec(mask, (heads, queries, shape.length), &Device::Cpu)?;
        let scores = scores.broadcast_add(&mask.to_device(q.device())?)?;
        all.push(scores.transpose(0, 1)?); // [query, head, key]
    }
    Ok(Tensor::cat(&all, 0)?)
}

pub(super) fn composed_mix(
    pattern: &Tensor,
    sources: KeysValues<'_>,
    segments: &[SegmentPlace<'_>],
    shape: &Shape,
) -> Result<Tensor> {
    let mut all = Vec::with_capacity(segments.len());
    for segment in segments {
        let v = assemble(
            sources.v,
            sources.base.map(|base| base.1),
            segment,
            shape.value_heads,
            shape,
        )?;
        let v = repeat(&v, shape.n_heads / shape.value_heads)?
            .transpose(0, 1)?
            .contiguous()?; // [head, key, d_head]
        let pattern = pattern.narrow(0, segment.query_start, segment.query_positions.len())?;
        let pattern = pattern.transpose(0, 1)?.contiguous()?.to_dtype(v.dtype())?; // [head, query, key]
        all.push(pattern.matmul(&v)?.transpose(0, 1)?); // [query, head, d_head]
    }
    Ok(Tensor::cat(&all, 0)?.contiguous()?)
}
