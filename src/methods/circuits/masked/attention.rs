//! Attention of the heads of a layer that are alive in a circuit.

use std::collections::HashMap;
use std::sync::Arc;

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::ground::matrix;
use super::super::streams::{At, Delta};
use super::{Masked, State};
use crate::error::Result;
use crate::hooks::Letter;
use crate::nn::attention::{self, KeysValues, SegmentPlace, Shape, Slopes};
use crate::nn::host::{host, tensor, to_host};
use crate::nn::linear::{View, small_product};
use crate::nn::norm;
use crate::run::backward::reader_column;
use crate::run::forward::rotated;
use crate::spec::NormWeights;

/// The queries, keys or values of some heads: for each the head, and `[at, d_head]`.
type Letters = Vec<(usize, Vec<f32>)>;

impl Masked<'_> {
    /// z of some heads.
    /// # Shapes
    /// `[at, heads, d_head]`
    pub(super) fn z(
        &self,
        layer: usize,
        heads: &[usize],
        state: &mut State,
        shifts: &[Arc<Delta>],
    ) -> Result<Tensor> {
        let (spec, weights) = (&self.model.spec, &self.model.weights.blocks[layer]);
        let (ground, d) = (&self.ground.layers[layer], spec.d_head);
        let (at, every) = (self.at(layer), At::Every(self.n_rows));
        // The slopes of ALiBi go by the head's number, so there all heads of the layer are computed.
        let alibi = Slopes::new(spec, 0);
        let asked = heads;
        let all: Vec<usize> = (0..spec.n_heads).collect();
        let heads = if alibi.is_some() { &all[..] } else { heads };
        let mut read = |letters: &[Letter], at| self.read(layer, letters, heads, at, state, shifts);
        let mut letters = if self.is_last(layer) {
            let mut letters = read(&[Letter::Q], at)?;
            letters.extend(read(&[Letter::K, Letter::V], every)?);
            letters
        } else {
            read(&Letter::ALL, every)?
        }
        .into_iter();
        let mut next = || letters.next().expect("three letters");
        type Norm = Option<NormWeights>;
        let rotate = |own: Letters, w: &Norm, group: usize, at: At<'_>| -> Result<Letters> {
            if own.is_empty() {
                return Ok(own);
            }
            let read = own.iter().map(|(head, _)| head / group);
            let of_heads = |w| norm::of_heads(w, spec.qk_norm, read, d);
            let w = w.as_ref().map(of_heads).transpose()?;
            let positions: Vec<u32> = (0..at.len()).map(|i| self.positions[at.row(i)]).collect();
            let x = beside_each_other(&own, at.len(), d)?;
            let x = to_host(&rotated(
                spec,
                layer,
                &x,
                w.as_ref(),
                &positions,
                &self.ropes,
            )?)?;
            let n = own.len();
            let rotated = own.into_iter().enumerate().map(|(i, (head, mut data))| {
                for (row, data) in data.chunks_exact_mut(d).enumerate() {
                    data.copy_from_slice(&x[(row * n + i) * d..][..d]);
                }
                (head, data)
            });
            Ok(rotated.collect())
        };
        let q = rotate(next(), &weights.q_norm, 1, at)?;
        let k = rotate(next(), &weights.k_norm, spec.group(), every)?;
        let v = next();

        let reference = to_host(&ground.q)?; // [rows, n_heads, d_head]
        let mut queries = vec![0.0; at.len() * heads.len() * d];
        for (i, out) in queries.chunks_exact_mut(heads.len() * d).enumerate() {
            for (out, head) in out.chunks_exact_mut(d).zip(heads) {
                let at_reference = (at.row(i) * spec.n_heads + head) * d;
                out.copy_from_slice(&reference[at_reference..][..d]);
            }
        }
        put(&mut queries, &q, heads, |i| i, at.len(), d);
        let whole = self.ground.rows.in_whole();
        let keys_or_values = |reference: &Tensor, own: &Letters| -> Result<Tensor> {
            let n_own = reference.dim(1)?;
            let group = spec.n_heads / n_own;
            let (all, n) = (host(reference)?, reference.dim(0)?);
            let mut out = vec![0.0; n * heads.len() * d];
            for (i, out) in out.chunks_exact_mut(heads.len() * d).enumerate() {
                for (out, head) in out.chunks_exact_mut(d).zip(heads) {
                    out.copy_from_slice(&all[(i * n_own + head / group) * d..][..d]);
                }
            }
            put(&mut out, own, heads, |i| whole[i] as usize, whole.len(), d);
            tensor(out, (n, heads.len(), d))
        };
        let (keys, values) = (
            keys_or_values(&ground.k, &k)?,
            keys_or_values(&ground.v, &v)?,
        );
        let n = heads.len();
        let shape = Shape {
            n_heads: n,
            key_heads: n,
            value_heads: n,
            n_kv_heads: n,
            alibi,
            ..Shape::of(spec, layer, self.ground.rows.length)
        };
        let last = [self.ground.rows.length as u32 - 1];
        let segments: Vec<SegmentPlace<'_>> = (self.ground.rows.segments.iter().enumerate())
            .map(|(i, segment)| SegmentPlace {
                query_start: if self.is_last(layer) {
                    i
                } else {
                    segment.start
                },
                query_positions: if self.is_last(layer) {
                    &last
                } else {
                    &segment.positions
                },
                key_start: i * shape.length,
                key_positions: &self.every_position,
                example: i,
            })
            .collect();
        let sources = KeysValues {
            k: &keys,
            v: &values,
            base: None,
        };
        let z = attention::forward(
            &tensor(queries, (at.len(), n, d))?,
            sources,
            &segments,
            &shape,
        )?;
        if alibi.is_none() {
            return Ok(z);
        }
        let asked: Vec<u32> = asked.iter().map(|&head| head as u32).collect();
        Ok(z.index_select(&Tensor::new(asked, z.device())?, 1)?)
    }

    /// Some letters of some heads, before their norm and rotation: those that see something else than the reference.
    fn read(
        &self,
        layer: usize,
        letters: &[Letter],
        heads: &[usize],
        at: At<'_>,
        state: &mut State,
        shifts: &[Arc<Delta>],
    ) -> Result<Vec<Letters>> {
        let (spec, weights) = (&self.model.spec, &self.model.weights.blocks[layer]);
        let (d, d_model) = (spec.d_head, spec.d_model);
        let always = self.is_tied(layer) || !shifts.is_empty();
        // Readers that see the same share a stream.
        let mut streams: Vec<Vec<usize>> = Vec::new();
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut asked = Vec::new();
        for (index, &letter) in letters.iter().enumerate() {
            for &head in heads {
                let sources = state.sources(self.graph.head_column(layer, letter, head));
                if sources.is_empty() && !always {
                    continue;
                }
                let stream = *known.entry(sources).or_insert_with_key(|sources| {
                    streams.push(sources.clone());
                    streams.len() - 1
                });
                asked.push((index, letter, head, stream));
            }
        }
        let mut found: Vec<Letters> = vec![Vec::new(); letters.len()];
        if asked.is_empty() {
            return Ok(found);
        }
        let lists: Vec<&[usize]> = streams.iter().map(Vec::as_slice).collect();
        let base = &self.ground.layers[layer].attn_in;
        let x = matrix(
            state.written.streams(base, at, &lists, shifts, d_model),
            d_model,
        )?;
        let x = match &weights.ln1 {
            Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
            None => x,
        };
        let (x, w) = (host(&x)?, host(&weights.w_qkv)?);
        let b = weights.b_qkv.as_ref().map(host).transpose()?;
        let width = (spec.n_heads + 2 * spec.n_kv_heads) * d;
        let one = |&(index, letter, head, stream): &(usize, Letter, usize, usize)| {
            let start = reader_column(spec, letter as usize, head);
            let mut y = vec![0.0; at.len() * d];
            if let Some(b) = &b {
                y.chunks_exact_mut(d)
                    .for_each(|row| row.copy_from_slice(&b[start..][..d]));
            }
            let of_stream = View::rows(lists.len() * d_model).from(stream * d_model);
            small_product(
                (&mut y, View::rows(d)),
                (&x, of_stream),
                (&w, View::rows(width).from(start)),
                [at.len(), d_model, d],
                1.0,
                b.is_some(),
            );
            if let Some(most) = spec.qkv_clip {
                y.iter_mut().for_each(|y| *y = y.min(most).max(-most));
            }
            (index, head, y)
        };
        for (index, head, y) in asked.par_iter().map(one).collect::<Vec<_>>() {
            found[index].push((head, y));
        }
        Ok(found)
    }
}

/// Heads beside each other, `[rows, heads, d_head]`.
fn beside_each_other(own: &Letters, rows: usize, d: usize) -> Result<Tensor> {
    let mut data = Vec::with_capacity(rows * own.len() * d);
    for row in 0..rows {
        for (_, of_head) in own {
            data.extend_from_slice(&of_head[row * d..][..d]);
        }
    }
    tensor(data, (rows, own.len(), d))
}

/// Writes heads into their columns of `[.., heads, d_head]`; the `i`-th row goes to row `to(i)`.
fn put(
    out: &mut [f32],
    own: &Letters,
    heads: &[usize],
    to: impl Fn(usize) -> usize,
    rows: usize,
    d: usize,
) {
    for (head, data) in own {
        let place = heads
            .iter()
            .position(|h| h == head)
            .expect("a head that was asked for");
        for row in 0..rows {
            let start = (to(row) * heads.len() + place) * d;
            out[start..][..d].copy_from_slice(&data[row * d..][..d]);
        }
    }
}
