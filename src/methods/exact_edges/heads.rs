//! The z of a head one of whose three inputs reads another stream.
//!
//! Streams that differ from the clean one by what one source writes go through the layer's norm and its queries, keys and values
//! together; then, head by head and letter by letter, attention runs with that one letter and the base run's other two.
//! Under grouped heads the key or value is that of this query head alone.

use candle_core::Tensor;

use super::runs::EdgeRuns;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Letter};
use crate::metric::Target;
use crate::model::{Model, ModelSpec};
use crate::nn::attention::{self, KeysValues, Shape, Slopes};
use crate::nn::{clip, linear, norm, rope};
use crate::run::BaseRun;
use crate::run::forward::rotated;
use crate::run::rows::{self, Rows, pick, regather};
use crate::spec::{NormWeights, QkNorm};

/// What [`Read`] needs of the base run besides what every sweep does.
pub(super) fn kinds(spec: &ModelSpec) -> &'static [Kind] {
    match spec.qk_norm {
        // A norm over all heads sees the other heads' queries and keys before it.
        QkNorm::FullWidth => &[Kind::Q, Kind::K],
        QkNorm::None | QkNorm::PerHead | QkNorm::PerHeadLayer | QkNorm::OwnLayer => &[],
    }
}

/// Queries, keys and values of one layer from several streams of their own.
pub(super) struct Read<'a> {
    model: &'a Model,
    base: &'a BaseRun,
    /// Of each prompt of the base run.
    targets: &'a [Target],
    layer: usize,
    ropes: rope::Tables,
    /// A segment for each stream.
    rows: Rows,
    /// `[rows, (n_heads + 2 n_kv_heads) d_head]`
    qkv: Tensor,
}

impl<'a> Read<'a> {
    /// `streams`: of which prompt, and what is added to its stream at its last positions.
    /// # Shapes
    /// Each of `streams`: `[positions, d_model]`, f32 on the host.
    pub fn new(
        model: &'a Model,
        EdgeRuns { base, readout, .. }: &'a EdgeRuns,
        layer: usize,
        streams: &[(usize, &Tensor)],
    ) -> Result<Self> {
        let (spec, weights) = (&model.spec, &model.weights.blocks[layer]);
        let mut rows = Rows::new(base.length);
        for (i, (example, delta)) in streams.iter().enumerate() {
            let first = base.length - delta.dim(0)?;
            let positions = (first as u32..base.length as u32).collect();
            rows.push(i, *example, positions);
        }
        let deltas: Vec<&Tensor> = streams.iter().map(|(_, delta)| *delta).collect();
        let deltas = Tensor::cat(&deltas, 0)?.to_device(&model.device)?;
        let clean = pick(base.cache.packed(Hook::at(Kind::ResidPre, layer))?, &rows)?;
        let x = linear::add(&clean.to_dtype(deltas.dtype())?, &deltas)?.to_dtype(model.dtype)?;
        let x = match &weights.ln1 {
            Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
            None => x,
        };
        let qkv = linear::forward(&x, &weights.w_qkv, weights.b_qkv.as_ref())?;
        Ok(Read {
            model,
            base,
            targets: &readout.targets,
            layer,
            ropes: rope::Tables::new(spec, base.length),
            rows,
            qkv: clip::forward(qkv, spec.qkv_clip)?,
        })
    }

    /// For each of some streams, what z of a head becomes if that stream is what one letter of it reads: the prompt, the
    /// positions, and z there. In the last layer the answer alone.
    /// # Shapes
    /// z `[positions, 1, d_head]`; `[positions, n_heads, d_head]` where a norm over all heads carries the change to the others.
    pub fn z(
        &self,
        letter: Letter,
        head: usize,
        streams: &[usize],
    ) -> Result<Vec<(usize, Vec<u32>, Tensor)>> {
        let (own, rows) = self.letter(letter, head, streams)?;
        let asking = if self.layer + 1 == self.model.spec.n_layers {
            rows.answers(self.targets)
        } else {
            rows.clone()
        };
        let z = self.attend(letter, head, own, &rows, &asking)?;
        let of_segment = |segment: rows::Segment| {
            let z = z.narrow(0, segment.start, segment.positions.len())?;
            Ok((segment.example, segment.positions, z))
        };
        asking.segments.into_iter().map(of_segment).collect()
    }

    /// One letter of one head from some of the streams.
    /// # Shapes
    /// `[rows, d_head]`
    fn letter(&self, letter: Letter, head: usize, streams: &[usize]) -> Result<(Tensor, Rows)> {
        let spec = &self.model.spec;
        let (heads, kv, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
        let shared = head / spec.group();
        let column = match letter {
            Letter::Q => head,
            Letter::K => heads + shared,
            Letter::V => heads + kv + shared,
        };
        let own = self.qkv.narrow(1, column * d, d)?.contiguous()?;
        let mut rows = Rows::new(self.rows.length);
        let mut index = Vec::new();
        for (i, &stream) in streams.iter().enumerate() {
            let segment = &self.rows.segments[stream];
            let end = segment.start + segment.positions.len();
            index.extend(segment.start as u32..end as u32);
            rows.push(i, segment.example, segment.positions.clone());
        }
        let own = own.index_select(&Tensor::new(index, own.device())?, 0)?;
        Ok((own, rows))
    }

    fn attend(
        &self,
        letter: Letter,
        head: usize,
        own: Tensor,
        rows: &Rows,
        asking: &Rows,
    ) -> Result<Tensor> {
        let (spec, layer) = (&self.model.spec, self.layer);
        let base = |kind: Kind| self.base.cache.packed(Hook::at(kind, layer));
        let all_heads = spec.qk_norm == QkNorm::FullWidth && letter != Letter::V;
        let (first, count, first_kv, count_kv) = if all_heads {
            (0, spec.n_heads, 0, spec.n_kv_heads)
        } else {
            (head, 1, head / spec.group(), 1)
        };
        let base_q = base(Kind::RotQ)?.narrow(1, first, count)?.contiguous()?;
        let base_k = base(Kind::RotK)?
            .narrow(1, first_kv, count_kv)?
            .contiguous()?;
        let base_v = base(Kind::V)?.narrow(1, first_kv, count_kv)?.contiguous()?;

        let own = own.unsqueeze(1)?; // [rows, 1, d_head]
        let beside = |kind: Kind, times: usize| -> Result<Tensor> {
            if !all_heads {
                return Ok(own.clone());
            }
            let others = attention::repeat(&pick(base(kind)?, rows)?, times)?; // [rows, n_heads, d_head]
            let after = spec.n_heads - head - 1;
            let parts = [
                others.narrow(1, 0, head)?,
                own.clone(),
                others.narrow(1, head + 1, after)?,
            ];
            Ok(Tensor::cat(&parts, 1)?)
        };
        let weights = &self.model.weights.blocks[layer];
        let rotate = |x: Tensor, w: &Option<NormWeights>, head: usize| {
            let of_head = |w| norm::of_heads(w, spec.qk_norm, [head], spec.d_head);
            let w = w.as_ref().map(of_head).transpose()?;
            rotated(spec, layer, &x, w.as_ref(), &rows.positions(), &self.ropes)
        };
        let q = match letter {
            Letter::Q => {
                let q = rotate(beside(Kind::Q, 1)?, &weights.q_norm, head)?;
                regather(&q, rows, asking, None)?
            }
            _ => pick(&base_q, asking)?,
        };
        let k = match letter {
            Letter::K => {
                let shared = head / spec.group();
                rotate(beside(Kind::K, spec.group())?, &weights.k_norm, shared)?
            }
            _ => pick(&base_k, rows)?,
        };
        let v = match letter {
            Letter::V => own.clone(),
            _ => pick(&base_v, rows)?,
        };
        let shape = Shape {
            n_heads: count,
            key_heads: k.dim(1)?,
            value_heads: v.dim(1)?,
            n_kv_heads: count_kv,
            alibi: Slopes::new(spec, first),
            ..Shape::of(spec, layer, rows.length)
        };
        let sources = KeysValues {
            k: &k.contiguous()?,
            v: &v.contiguous()?,
            base: Some((&base_k, &base_v)),
        };
        attention::forward(&q, sources, &asking.places(rows), &shape)
    }
}
