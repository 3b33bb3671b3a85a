//! The backward pass, written once: from a gradient at the final stream to the gradients at every hook below it.
//!
//! It is explicit and gives gradients of activations only. What it does at each place that is not linear is said by
//! [`Rules`], so gradients, relevances and the stops of GradDrop are all this walk. A [`Probe`] is shown each gradient as it
//! passes and keeps what it wants; nothing else is held.
//!
//! Gradients flow from later positions to earlier ones only. A walk may therefore be told to carry only some last positions of each
//! prompt: those where the two runs of a pair can differ at all, since elsewhere every difference is zero.

use candle_core::{D, Tensor};

use super::rows::Rows;
use super::tape::{Saved, Tape};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::attention::{self, KeysValues, SegmentPlace, Shape, Slopes};
use crate::nn::host::{on_host, tensor};
use crate::nn::linear::{View, small_product};
use crate::nn::rules::Rules;
use crate::nn::{host, linear, mlp, norm, rope};
use crate::spec::{Block, BlockWeights, Mlp, ModelSpec, NormWeights, QkNorm};

/// What watches a backward pass.
pub(crate) trait Probe {
    /// Whether the gradient at a hook is asked for. What nobody wants is not made where making it costs something.
    fn wants(&self, hook: Hook) -> bool;

    /// The gradient at a hook, with respect to the value that the model went on to use.
    /// # Shapes
    /// Packed as the hook's values are: `[rows, ..]`, patterns and scores `[rows, n_heads, length]`; keys and values summed over
    /// the query heads that share them.
    fn at(&mut self, hook: Hook, gradient: &Tensor, rows: &Rows) -> Result<()>;

    /// The gradients at queries, keys and values of a layer, for each query head.
    fn readers(&mut self, _layer: usize, _readers: &Readers<'_>) -> Result<()> {
        Ok(())
    }
}

/// What arrives at queries, keys and values of one layer, each of one query head.
pub(crate) struct Readers<'a> {
    /// `[rows, n_heads, d_head]` each, at `hook_q`, `hook_k`, `hook_v`: before q/k-norm and rotation.
    pub gradients: [&'a Tensor; 3],
    pub saved: &'a Saved<'a>,
    pub rows: &'a Rows,
}

/// One backward pass.
pub(crate) struct Descent<'a> {
    pub model: &'a Model,
    pub tape: &'a Tape,
    pub rules: &'a Rules,
    /// The rows that carry gradients: of each prompt some last positions.
    pub rows: &'a Rows,
}

impl Descent<'_> {
    /// From the gradient at the final stream to that at the embeddings.
    /// # Shapes
    /// `gradient [rows, d_model]`, f32 on the host.
    pub fn run(&self, gradient: Tensor, probe: &mut dyn Probe) -> Result<()> {
        self.below(self.model.spec.n_layers, gradient, probe)
    }

    /// From the gradient at the stream that leaves layer `end - 1`, through the layers `0..end`.
    pub fn below(&self, end: usize, gradient: Tensor, probe: &mut dyn Probe) -> Result<()> {
        let mut gradient = gradient;
        for layer in (0..end).rev() {
            gradient = self.block(layer, gradient, probe)?;
        }
        self.embeddings(gradient, probe)
    }

    /// From the gradient at the final stream through the layers `begin..`, and no further.
    pub fn down_to(&self, begin: usize, gradient: Tensor, probe: &mut dyn Probe) -> Result<()> {
        let mut gradient = gradient;
        for layer in (begin..self.model.spec.n_layers).rev() {
            gradient = self.block(layer, gradient, probe)?;
        }
        Ok(())
    }

    /// Past the embeddings.
    pub fn embeddings(&self, gradient: Tensor, probe: &mut dyn Probe) -> Result<()> {
        for kind in [Kind::PosEmbed, Kind::Embed] {
            let hook = Hook::global(kind);
            if kind.absent(&self.model.spec).is_none() && probe.wants(hook) {
                probe.at(hook, &gradient, self.rows)?;
            }
        }
        Ok(())
    }

    /// Shows a gradient to the probe, and takes it past the edits of its hook.
    fn at(&self, hook: Hook, gradient: Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        if probe.wants(hook) {
            probe.at(hook, &gradient, self.rows)?;
        }
        self.tape.before_edits(hook, gradient, self.rows)
    }

    /// Through one block: from the gradient at the stream that leaves it to that at the stream that enters it.
    pub fn block(&self, index: usize, gradient: Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let spec = &self.model.spec;
        let layer = BackwardLayer {
            walk: self,
            spec,
            weights: &self.model.weights.blocks[index],
            index,
        };
        let gradient = self.at(layer.hook(Kind::ResidPost), gradient, probe)?;
        if self.rules.stops(index) {
            let gradient = if spec.has_resid_mid() {
                self.at(layer.hook(Kind::ResidMid), gradient, probe)?
            } else {
                gradient
            };
            return self.at(layer.hook(Kind::ResidPre), gradient, probe);
        }
        let saved = self.tape.layer(self.model, index)?;
        let at_mlp_in = match spec.mlp {
            Mlp::None => None,
            _ => Some(layer.mlp(&gradient, &saved, probe)?),
        };
        // In a sequential block the MLP reads what attention has written to; in a parallel one both read the same stream.
        let sequential = spec.block == Block::Sequential;
        let (at_mid, at_pre) = match at_mlp_in {
            Some(at_mlp_in) if sequential => {
                let at_mid = linear::add(&gradient, &at_mlp_in)?;
                let at_mid = self.at(layer.hook(Kind::ResidMid), at_mid, probe)?;
                (at_mid.clone(), at_mid)
            }
            Some(at_mlp_in) => (gradient.clone(), linear::add(&gradient, &at_mlp_in)?),
            None => (gradient.clone(), gradient),
        };
        let by_attention = layer.attention(&at_mid, &saved, probe)?;
        let at_pre = linear::add(&at_pre, &by_attention)?;
        self.at(layer.hook(Kind::ResidPre), at_pre, probe)
    }
}

struct BackwardLayer<'a> {
    walk: &'a Descent<'a>,
    spec: &'a ModelSpec,
    weights: &'a BlockWeights,
    index: usize,
}

impl BackwardLayer<'_> {
    fn hook(&self, kind: Kind) -> Hook {
        Hook::at(kind, self.index)
    }

    fn at(&self, kind: Kind, gradient: Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        self.walk.at(self.hook(kind), gradient, probe)
    }

    /// From what a branch adds to the stream to what it computed before its post-norm and multiplier.
    fn write(
        &self,
        gradient: Tensor,
        post: Option<&NormWeights>,
        ln: Ln,
        saved: &Saved<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let gradient = match self.spec.residual_multiplier {
            Some(factor) => (gradient * f64::from(factor))?,
            None => gradient,
        };
        let Some(w) = post else { return Ok(gradient) };
        let normalized = saved.get(Kind::Normalized(ln), self.walk.rows)?;
        let scale = saved.get(Kind::Scale(ln), self.walk.rows)?;
        self.norm(&gradient, &normalized, &scale, w, ln, probe)
    }

    /// From the stream after a norm to the stream before it.
    fn read(
        &self,
        gradient: Tensor,
        x: Kind,
        norm: Option<(&NormWeights, Option<Ln>)>,
        saved: &Saved<'_>,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let Some((w, ln)) = norm else {
            return Ok(gradient);
        };
        let x = on_host(&saved.get(x, self.walk.rows)?)?;
        let weights = on_host_weights(w)?;
        let parts = norm::parts(&x, &weights, self.spec.norm, self.spec.norm_eps)?;
        match ln {
            Some(ln) => self.norm(&gradient, &parts.normalized, &parts.scale, w, ln, probe),
            None => norm::backward(
                &gradient,
                &parts.normalized,
                &parts.scale,
                w,
                self.spec.norm,
                self.walk.rules.norm,
            ),
        }
    }

    fn norm(
        &self,
        gradient: &Tensor,
        normalized: &Tensor,
        scale: &Tensor,
        w: &NormWeights,
        ln: Ln,
        probe: &mut dyn Probe,
    ) -> Result<Tensor> {
        let hooks = [Kind::Scale(ln), Kind::Normalized(ln)].map(|kind| self.hook(kind));
        if hooks.iter().any(|&hook| probe.wants(hook)) {
            let (at_scale, at_normalized) =
                norm::backward_at_hooks(gradient, normalized, scale, w)?;
            for (hook, gradient) in hooks.into_iter().zip([at_scale, at_normalized]) {
                if probe.wants(hook) {
                    probe.at(hook, &gradient, self.walk.rows)?;
                }
            }
        }
        let (kind, rule) = (self.spec.norm, self.walk.rules.norm);
        norm::backward(gradient, normalized, scale, w, kind, rule)
    }

    /// From what the MLP adds to the stream that it reads.
    fn mlp(&self, gradient: &Tensor, saved: &Saved<'_>, probe: &mut dyn Probe) -> Result<Tensor> {
        let (spec, rules, rows) = (self.spec, self.walk.rules, self.walk.rows);
        let weights = self
            .weights
            .mlp
            .as_ref()
            .expect("a spec with an MLP has its weights");
        let at_out = self.at(Kind::MlpOut, gradient.clone(), probe)?;
        let post = self.weights.ln2_post.as_ref();
        let at_out = self.write(at_out, post, Ln::TwoPost, saved, probe)?;
        let at_post = linear::backward(&at_out, &weights.w_out)?;
        let at_post = self.at(Kind::MlpPost, at_post, probe)?;
        let pre = saved.get(Kind::MlpPre, rows)?;
        let at_pre = if spec.mlp == Mlp::Gated {
            let linear = saved.get(Kind::MlpPreLinear, rows)?;
            let both = mlp::gated_backward(&at_post, &pre, &linear, spec.activation, rules)?;
            let branches = [Kind::MlpPre, Kind::MlpPreLinear];
            let hooks = branches.map(|kind| self.hook(kind));
            if hooks
                .iter()
                .any(|&hook| probe.wants(hook) || self.walk.tape.edits(hook))
            {
                let mut halves = Vec::with_capacity(2);
                for (i, kind) in branches.into_iter().enumerate() {
                    let half = both.narrow(1, i * spec.d_mlp, spec.d_mlp)?.contiguous()?;
                    halves.push(self.at(kind, half, probe)?);
                }
                Tensor::cat(&halves, 1)?
            } else {
                both
            }
        } else {
            let at_pre = mlp::backward(&at_post, &pre, spec.activation, rules)?;
            self.at(Kind::MlpPre, at_pre, probe)?
        };
        let at_normed = linear::backward(&at_pre, &weights.w_in)?;
        let shared = spec.block == (Block::Parallel { shared_norm: true });
        let norm = match (&self.weights.ln2, &self.weights.ln1) {
            (Some(w), _) => Some((w, Some(Ln::Two))),
            // The hooks of a shared norm belong to attention.
            (None, Some(w)) if shared => Some((w, None)),
            _ => None,
        };
        let at_mlp_in = self.read(at_normed, Kind::MlpIn, norm, saved, probe)?;
        self.at(Kind::MlpIn, at_mlp_in, probe)
    }

    /// From what attention adds to the stream that it reads.
    fn attention(
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

        let of = self.through_attention(&at_z, saved, probe)?;
        let positions = rows.positions();
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
        let readers = Readers {
            gradients: [&q, &k, &at_v],
            saved,
            rows,
        };
        probe.readers(self.index, &readers)?;
        for (letter, kind) in [Kind::QInput, Kind::KInput, Kind::VInput]
            .into_iter()
            .enumerate()
        {
            if probe.wants(self.hook(kind)) {
                let at_input = self.reader_input(letter, readers.gradients[letter], saved)?;
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

    /// From z to rotated queries and keys and to values.
    fn through_attention(
        &self,
        at_z: &Tensor,
        saved: &Saved<'_>,
        probe: &mut dyn Probe,
    ) -> Result<attention::AttentionGradients> {
        let (spec, walk) = (self.spec, self.walk);
        let rows = walk.rows;
        let shape = Shape {
            n_heads: spec.n_heads,
            key_heads: spec.n_kv_heads,
            value_heads: spec.n_kv_heads,
            n_kv_heads: spec.n_kv_heads,
            d_head: spec.d_head,
            scale: spec.attn_scale[self.index],
            softcap: spec.attn_softcap,
            window: spec.windows[self.index],
            alibi: Slopes::new(spec, 0),
            causal: spec.is_causal(),
            length: rows.length,
        };
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
        let segments: Vec<SegmentPlace<'_>> = rows
            .segments
            .iter()
            .map(|segment| SegmentPlace {
                query_start: segment.start,
                query_positions: &segment.positions,
                key_start: segment.start,
                key_positions: &segment.positions,
                example: segment.example,
            })
            .collect();
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
            segments: &segments,
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
        let (Some(w), true) = (w, self.spec.qk_norm != QkNorm::None) else {
            return Ok(gradient);
        };
        let x = on_host(&saved.get(kind, self.walk.rows)?)?;
        // A key is normed once for each query head that uses it, as if each had a copy of its own.
        let times = self.spec.n_heads / x.dim(1)?;
        let x = attention::repeat(&x, times)?.contiguous()?;
        let w = match self.spec.qk_norm {
            QkNorm::FullWidth => {
                let heads = on_host(w)?.reshape((1, (), self.spec.d_head))?;
                attention::repeat(&heads, times)?.flatten_all()?
            }
            _ => w.clone(),
        };
        norm::heads_backward(&gradient, &x, &w, self.spec.norm_eps, self.walk.rules.norm)
    }

    /// The gradient at the stream that each query head's q, k or v reads, `[rows, n_heads, d_model]`. As large as that: only
    /// for whoever asks for these hooks by name.
    fn reader_input(&self, letter: usize, gradient: &Tensor, saved: &Saved<'_>) -> Result<Tensor> {
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
        let x = on_host(&saved.get(Kind::ResidPre, walk.rows)?)?;
        let x = attention::repeat(&x.unsqueeze(1)?, heads)?.reshape((rows * heads, d))?;
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

pub(crate) fn on_host_weights(w: &NormWeights) -> Result<NormWeights> {
    Ok(NormWeights {
        w: on_host(&w.w)?,
        b: w.b.as_ref().map(on_host).transpose()?,
    })
}

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
