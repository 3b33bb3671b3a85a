//! Backward through the attention of one layer.

use candle_core::Tensor;

use super::{BackwardLayer, Probe, Readers, on_host_weights};
use crate::error::Result;
use crate::hooks::{Kind, Ln};
use crate::nn::attention::{self, KeysValues, Shape};
use crate::nn::host::{on_host, tensor};
use crate::nn::linear::{View, small_product};
use crate::nn::{clip, host, linear, norm, rope};
use crate::run::tape::Saved;
use crate::spec::ModelSpec;

impl BackwardLayer<'_> {
    /// From what attention adds to the stream that it reads.
    pub(super) fn attention(
        &self,
        gradient: &Tensor,
        saved: &Saved<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let (spec, walk) = (self.spec, self.walk);
        let rows = walk.rows;
        let (heads, kv, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
        let at_out = self.at(Kind::AttnOut, gradient.clone(), probe)?;
        let post = self.weights.ln1_post.as_ref();
        let at_out = self.write(at_out, post, Ln::OnePost, saved, probe)?;
        if probe.wants(self.hook(Kind::Result)) {
            let each = at_out
                .unsqueeze(1)?
                .broadcast_as((rows.total, heads, spec.d_model))?
                .contiguous()?;
            probe.at(self.hook(Kind::Result), &each, rows)?;
        }
        let at_z = linear::backward(&at_out, &self.weights.w_o)?.reshape((rows.total, heads, d))?;
        let at_z = self.at(Kind::Z, at_z, probe)?;

        let readers = self.readers(at_z, saved, probe)?;
        let ([q, k, at_v], read) = self.before_clip(readers, saved)?;
        let readers = Readers {
            gradients: [&q, &k, &at_v],
            read,
            saved,
            rows,
        };
        probe.readers(self.index, &readers)?;
        for (letter, kind) in [Kind::QInput, Kind::KInput, Kind::VInput]
            .into_iter()
            .enumerate()
        {
            if probe.wants(self.hook(kind)) {
                let x = saved.get(Kind::ResidPre, rows)?.unsqueeze(1)?;
                let at_input = self.reader_input(letter, readers.gradients[letter], &x)?;
                probe.at(self.hook(kind), &at_input, rows)?;
            }
        }
        let flat = |t: &Tensor, heads: usize| t.reshape((rows.total, heads * d));
        let qkv = [
            flat(&q, heads)?,
            flat(&self.shared(&k)?, kv)?,
            flat(&self.shared(&at_v)?, kv)?,
        ];
        let at_normed = linear::backward(&Tensor::cat(&qkv, 1)?, &self.weights.w_qkv)?;
        let norm = self.weights.ln1.as_ref().map(|w| (w, Some(Ln::One)));
        self.read(at_normed, Kind::ResidPre, norm, saved, probe)
    }

    /// From z to what queries, keys and values read, before their norm and rotation: each query head's own part.
    fn readers(
        &self,
        at_z: Tensor,
        saved: &Saved<'_>,
        probe: &mut dyn Probe,
    ) -> Result<[Tensor; 3]> {
        let of = self.through_attention(&at_z, saved, probe)?;
        let positions = self.walk.rows.positions();
        let (k, v) = (self.shared(&of.k)?, self.shared(&of.v)?);
        // Edits act on shared keys and values; without any, each query head's own part goes on.
        let rot_q = self.at(Kind::RotQ, of.q, probe)?;
        let rot_k = self.of_heads(Kind::RotK, of.k, k, probe)?;
        let at_v = self.of_heads(Kind::V, of.v, v, probe)?;
        let q = self.unrotate(rot_q, Kind::Q, &positions, saved)?;
        let q = self.at(Kind::Q, q, probe)?;
        let k = self.unrotate(rot_k, Kind::K, &positions, saved)?;
        let at_k = self.shared(&k)?;
        let k = self.of_heads(Kind::K, k, at_k, probe)?;
        Ok([q, k, at_v])
    }

    /// From z to the streams that each query head's queries, keys and values read, in a run that gave each its own.
    pub(super) fn below_z(
        &self,
        at_z: Tensor,
        inputs: [&Tensor; 3],
        saved: &Saved<'_>,
        probe: &mut dyn Probe,
    ) -> Result<[Tensor; 3]> {
        let of = self.readers(at_z, saved, probe)?;
        let at_input = |letter: usize| -> Result<Tensor> {
            let (x, at_letter) = (inputs[letter], &of[letter]);
            let Some(most) = self.spec.qkv_clip else {
                return self.reader_input(letter, at_letter, x);
            };
            let read = self.letter(letter, &self.read_again(x)?)?;
            let rule = self.walk.rules.activation;
            let before = clip::backward(at_letter, &read, most, rule)?;
            self.reader_input(letter, &before, x)
        };
        Ok([at_input(0)?, at_input(1)?, at_input(2)?])
    }

    /// From queries, keys and values, each query head's own part, to what they were before they were cut off, with what that was. It
    /// is read again, since what was kept has been through the edits of its hooks.
    fn before_clip(
        &self,
        readers: [Tensor; 3],
        saved: &Saved<'_>,
    ) -> Result<([Tensor; 3], Option<[Tensor; 3]>)> {
        let Some(most) = self.spec.qkv_clip else {
            return Ok((readers, None));
        };
        let x = saved.get(Kind::ResidPre, self.walk.rows)?.unsqueeze(1)?;
        let again = self.read_again(&x)?;
        let read = [0, 1, 2].map(|letter| self.letter(letter, &again));
        let [q, k, v] = read;
        let read = [q?, k?, v?];
        let rule = self.walk.rules.activation;
        let before = |letter: usize| clip::backward(&readers[letter], &read[letter], most, rule);
        Ok(([before(0)?, before(1)?, before(2)?], Some(read)))
    }

    /// Queries, keys and values side by side, before they are cut off, of some streams.
    /// # Shapes
    /// `x [rows, streams, d_model]`; gives `[rows, streams, (n_heads + 2 n_kv_heads) d_head]`, on the host.
    fn read_again(&self, x: &Tensor) -> Result<Tensor> {
        let (spec, weights) = (self.spec, self.weights);
        let (rows, streams, d) = x.dims3()?;
        let x = x.contiguous()?.reshape((rows * streams, d))?;
        let x = x.to_device(weights.w_qkv.device())?;
        let x = match &weights.ln1 {
            Some(w) => norm::forward(&x.to_dtype(w.w.dtype())?, w, spec.norm, spec.norm_eps)?,
            None => x,
        };
        let all = linear::forward(&x, &weights.w_qkv, weights.b_qkv.as_ref())?;
        Ok(on_host(&all)?.reshape((rows, streams, ()))?)
    }

    /// One letter of what was read, of each query head.
    /// # Shapes
    /// `read [rows, 1 or n_heads, columns]`; gives `[rows, n_heads, d_head]`.
    fn letter(&self, letter: usize, read: &Tensor) -> Result<Tensor> {
        let spec = self.spec;
        let mut heads = Vec::with_capacity(spec.n_heads);
        for head in 0..spec.n_heads {
            let own = read.narrow(1, head.min(read.dim(1)? - 1), 1)?;
            heads.push(own.narrow(2, reader_column(spec, letter, head), spec.d_head)?);
        }
        Ok(Tensor::cat(&heads, 1)?.contiguous()?)
    }

    /// From z to rotated queries and keys and to values.
    fn through_attention(
        &self,
        at_z: &Tensor,
        saved: &Saved<'_>,
        probe: &mut dyn Probe,
    ) -> Result<attention::AttentionGradients> {
        let (spec, walk) = (self.spec, self.walk);
        let rows = walk.rows;
        // Where the tape has all positions, those without a gradient serve as the base run's.
        let whole = [Kind::RotK, Kind::V].map(|kind| saved.whole(kind));
        let [whole_k, whole_v] = whole;
        let (whole_k, whole_v) = (whole_k?, whole_v?);
        let partial = rows.total != walk.tape.rows.total;
        let base = match walk.tape.base_keys(self.index) {
            Some(base) => Some(base),
            None if partial => Some((&whole_k, &whole_v)),
            None => None,
        };
        let k = saved.get(Kind::RotK, rows)?;
        let v = saved.get(Kind::V, rows)?;
        let shape = Shape {
            key_heads: k.dim(1)?,
            value_heads: v.dim(1)?,
            n_kv_heads: base.map_or(Ok(spec.n_kv_heads), |(keys, _)| keys.dim(1))?,
            ..Shape::of(spec, self.index, rows.length)
        };
        let scores = if walk.tape.edits(self.hook(Kind::AttnScores)) {
            Some(saved.get(Kind::AttnScores, rows)?)
        } else {
            None
        };
        let hooks = [Kind::Pattern, Kind::AttnScores].map(|kind| self.hook(kind));
        let with_pattern = hooks.iter().any(|&hook| probe.wants(hook));
        let forward = attention::Forward {
            q: &saved.get(Kind::RotQ, rows)?,
            sources: KeysValues { k: &k, v: &v, base },
            scores: scores.as_ref(),
            segments: &rows.places(rows),
            shape: &shape,
        };
        let of = attention::backward(at_z, forward, walk.rules, with_pattern)?;
        for (hook, gradient) in hooks.into_iter().zip(of.pattern.iter().flatten()) {
            if probe.wants(hook) {
                probe.at(hook, gradient, rows)?;
            }
        }
        Ok(of)
    }

    /// Sums over the query heads that share a key head.
    /// # Shapes
    /// `x [rows, n_heads, d_head]`; gives `[rows, n_kv_heads, d_head]`.
    fn shared(&self, x: &Tensor) -> Result<Tensor> {
        let group = self.spec.group();
        if group == 1 {
            return Ok(x.clone());
        }
        let (rows, heads, d) = x.dims3()?;
        let x = x.contiguous()?;
        let data = host::host(&x)?;
        let mut sums = vec![0f32; rows * heads / group * d];
        for (sum, heads) in sums.chunks_exact_mut(d).zip(data.chunks_exact(group * d)) {
            for head in heads.chunks_exact(d) {
                sum.iter_mut().zip(head).for_each(|(sum, x)| *sum += x);
            }
        }
        tensor(sums, (rows, heads / group, d))
    }

    /// Shows the shared gradient of keys or values, and takes each query head's part past the edits of the hook.
    fn of_heads(
        &self,
        kind: Kind,
        each: Tensor,
        shared: Tensor,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let hook = self.hook(kind);
        if probe.wants(hook) {
            probe.at(hook, &shared, self.walk.rows)?;
        }
        if !self.walk.tape.edits(hook) {
            return Ok(each);
        }
        let (rows, heads, d) = each.dims3()?;
        let group = self.spec.group();
        let grouped = each.reshape((rows, heads / group, group, d))?;
        let mut parts = Vec::with_capacity(group);
        for i in 0..group {
            let part = grouped.narrow(2, i, 1)?.squeeze(2)?.contiguous()?;
            parts.push(self.walk.tape.before_edits(hook, part, self.walk.rows)?);
        }
        Ok(Tensor::stack(&parts, 2)?.reshape((rows, heads, d))?)
    }

    /// Past the rotation and the q/k-norm.
    fn unrotate(
        &self,
        gradient: Tensor,
        kind: Kind,
        positions: &[u32],
        saved: &Saved<'_>,
    ) -> Result<Tensor> {
        let gradient = match self.walk.tape.ropes.of(self.index) {
            Some(table) => rope::backward(&gradient, positions, table)?,
            None => gradient,
        };
        let w = match kind {
            Kind::Q => &self.weights.q_norm,
            _ => &self.weights.k_norm,
        };
        let Some(w) = w else { return Ok(gradient) };
        let x = on_host(&saved.get(kind, self.walk.rows)?)?;
        // A key is normed once for each query head that uses it, as if each had a copy of its own.
        let times = self.spec.n_heads / x.dim(1)?;
        let x = attention::repeat(&x, times)?.contiguous()?;
        let (spec, rule) = (self.spec, self.walk.rules.norm);
        norm::heads_backward(&gradient, &x, w, spec.qk_norm, spec.norm_eps, rule)
    }

    /// The gradient at the stream that each query head's q, k or v reads, `[rows, n_heads, d_model]`. As large as that: only
    /// for whoever asks for these hooks by name.
    /// # Shapes
    /// `x`, what was read: `[rows, n_heads, d_model]`, or `[rows, 1, d_model]` for all heads.
    fn reader_input(&self, letter: usize, gradient: &Tensor, x: &Tensor) -> Result<Tensor> {
        let (spec, walk) = (self.spec, self.walk);
        let (rows, heads, d) = (walk.rows.total, spec.n_heads, spec.d_model);
        let mut at_normed = vec![0f32; rows * heads * d];
        {
            let w = on_host(&self.weights.w_qkv)?;
            let columns = w.dim(1)?;
            let (w, gradient) = (host::host(&w)?, gradient.contiguous()?);
            let gradient = host::host(&gradient)?;
            for head in 0..heads {
                small_product(
                    (&mut at_normed, View::rows(heads * d).from(head * d)),
                    (
                        &gradient,
                        View::rows(heads * spec.d_head).from(head * spec.d_head),
                    ),
                    (
                        &w,
                        View::rows(columns)
                            .from(reader_column(spec, letter, head))
                            .t(),
                    ),
                    [rows, spec.d_head, d],
                    1.0,
                    false,
                );
            }
        }
        let at_normed = tensor(at_normed, (rows * heads, d))?;
        let Some(w) = &self.weights.ln1 else {
            return Ok(at_normed.reshape((rows, heads, d))?);
        };
        let x = attention::repeat(&on_host(x)?, heads / x.dim(1)?)?.reshape((rows * heads, d))?;
        let parts = norm::parts(&x, &on_host_weights(w)?, spec.norm, spec.norm_eps)?;
        let at_input = norm::backward(
            &at_normed,
            &parts.normalized,
            &parts.scale,
            w,
            spec.norm,
            walk.rules.norm,
        )?;
        Ok(at_input.reshape((rows, heads, d))?)
    }
}

/// The first column in `w_qkv` of what query head `head` reads as letter 0, 1, 2: q, k, v.
pub(crate) fn reader_column(spec: &ModelSpec, letter: usize, head: usize) -> usize {
    let (heads, kv, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
    match letter {
        0 => head * d,
        1 => (heads + head / spec.group()) * d,
        _ => (heads + kv + head / spec.group()) * d,
    }
}
