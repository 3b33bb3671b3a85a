//! The backward pass, written once: from a gradient at the final stream to the gradients at every hook below it.
//!
//! It is explicit and gives gradients of activations only. What it does at each place that is not linear is said by
//! [`Rules`], so gradients, relevances and the stops of GradDrop are all this walk. A [`Probe`] is shown each gradient as it
//! passes and keeps what it wants; nothing else is held.
//!
//! Gradients flow from later positions to earlier ones only. A walk may therefore be told to carry only some last positions of each
//! prompt: those where the two runs of a pair can differ at all, since elsewhere every difference is zero.

mod attention;
mod final_norm;

use candle_core::Tensor;

pub(crate) use attention::reader_column;
pub(crate) use final_norm::{AnswerRows, final_norm};

use super::rows::Rows;
use super::tape::{Saved, Tape};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::host::on_host;
use crate::nn::rules::Rules;
use crate::nn::{linear, mlp, norm};
use crate::spec::{Block, BlockWeights, Mlp, ModelSpec, NormWeights};

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
    /// `[rows, n_heads, d_head]` each, before q/k-norm and rotation, and before anything is cut off.
    pub gradients: [&'a Tensor; 3],
    /// What was read, alike, in a model that cuts it off after that.
    pub read: Option<[Tensor; 3]>,
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

    /// From what the MLP of a layer writes to the stream that it reads.
    pub fn mlp(&self, layer: usize, gradient: &Tensor, probe: &mut dyn Probe) -> Result<Tensor> {
        let saved = self.tape.layer(self.model, layer)?;
        self.layer(layer).mlp(gradient, &saved, probe)
    }

    /// From z of a layer to the streams that its queries, keys and values read, where each query head read one of its own.
    /// # Shapes
    /// `at_z [rows, n_heads, d_head]`; `inputs`, what was read, `[rows, n_heads, d_model]` each, or `[rows, 1, d_model]` for
    /// all heads; gives `[rows, n_heads, d_model]` each.
    pub fn below_z(
        &self,
        layer: usize,
        at_z: Tensor,
        inputs: [&Tensor; 3],
        probe: &mut dyn Probe,
    ) -> Result<[Tensor; 3]> {
        let saved = self.tape.layer(self.model, layer)?;
        self.layer(layer).below_z(at_z, inputs, &saved, probe)
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

    fn layer(&self, index: usize) -> BackwardLayer<'_> {
        BackwardLayer {
            walk: self,
            spec: &self.model.spec,
            weights: &self.model.weights.blocks[index],
            index,
        }
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
        let layer = self.layer(index);
        let gradient = self.at(layer.hook(Kind::ResidPost), gradient, probe)?;
        if self.rules.stops(index) {
            let saved = match spec.norms_stream() {
                true => Some(self.tape.layer(self.model, index)?),
                false => None,
            };
            let gradient = layer.kept(gradient, Kind::ResidMid, saved.as_ref())?;
            let gradient = if spec.has_resid_mid() {
                self.at(layer.hook(Kind::ResidMid), gradient, probe)?
            } else {
                gradient
            };
            let gradient = layer.kept(gradient, Kind::ResidPre, saved.as_ref())?;
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
                let by_stream = layer.kept(gradient, Kind::ResidMid, Some(&saved))?;
                let at_mid = linear::add(&by_stream, &at_mlp_in)?;
                let at_mid = self.at(layer.hook(Kind::ResidMid), at_mid, probe)?;
                (at_mid.clone(), at_mid)
            }
            Some(at_mlp_in) => (gradient.clone(), linear::add(&gradient, &at_mlp_in)?),
            None => (gradient.clone(), gradient),
        };
        let by_attention = layer.attention(&at_mid, &saved, probe)?;
        let at_pre = layer.kept(at_pre, Kind::ResidPre, Some(&saved))?;
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

    /// From what a branch is added to, to the stream before it: past the norm that stands on the stream, where one does.
    fn kept(&self, gradient: Tensor, stream: Kind, saved: Option<&Saved<'_>>) -> Result<Tensor> {
        let of = match stream {
            Kind::ResidMid => self.weights.ln2.as_ref(),
            _ => self.weights.ln1.as_ref(),
        };
        let (Some(w), Some(saved), true) = (of, saved, self.spec.norms_stream()) else {
            return Ok(gradient);
        };
        let x = on_host(&saved.get(stream, self.walk.rows)?)?;
        let of = norm::parts(&x, &on_host_weights(w)?, self.spec.norm, self.spec.norm_eps)?;
        let (kind, rule) = (self.spec.norm, self.walk.rules.norm);
        norm::backward(&gradient, &of.normalized, &of.scale, w, kind, rule)
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
}

pub(crate) fn on_host_weights(w: &NormWeights) -> Result<NormWeights> {
    Ok(NormWeights {
        w: on_host(&w.w)?,
        b: w.b.as_ref().map(on_host).transpose()?,
    })
}
