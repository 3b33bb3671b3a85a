//! The way forward under soft masks: every reader gets its stream, and what every source writes is taken.

use candle_core::Tensor;
use rayon::prelude::*;

use super::super::ground::{Ground, Layer, input_change};
use super::super::streams::{At, add};
use super::super::writes;
use super::candidates::{Candidates, Seen};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Letter};
use crate::model::Model;
use crate::nn::host::{simd, tensor, to_host};
use crate::run::forward::Tap;
use crate::run::rows::Rows;
use crate::spec::BlockWeights;

/// Soft circuits of one batch of pairs.
pub(in super::super) struct Soft<'a> {
    pub(super) model: &'a Model,
    pub(super) ground: &'a Ground,
    pub(super) candidates: &'a Candidates,
    /// What `input` writes otherwise.
    pub(super) input: Vec<f32>,
    /// Rows of the last position of each prompt.
    pub(super) answers: Vec<usize>,
}

impl<'a> Soft<'a> {
    pub fn new(model: &'a Model, ground: &'a Ground, candidates: &'a Candidates) -> Result<Self> {
        Ok(Soft {
            model,
            ground,
            candidates,
            input: input_change(ground)?,
            answers: ground.rows.last_rows(),
        })
    }

    pub(super) fn width(&self) -> usize {
        self.model.spec.d_model
    }

    pub(super) fn layer(&self, layer: usize) -> &Layer {
        &self.ground.layers[layer]
    }

    pub(super) fn weights(&self, layer: usize) -> &BlockWeights {
        &self.model.weights.blocks[layer]
    }

    /// Whether the share of an output bias moves with the scale of a post-norm.
    pub(super) fn moves_bias(&self, layer: usize) -> bool {
        let weights = self.weights(layer);
        weights.ln1_post.is_some() && weights.b_o.is_some()
    }

    /// Whether anybody reads what attention of a layer writes.
    pub(super) fn attends(&self, layer: usize) -> bool {
        let heads = self.candidates.graph.head_rows(layer);
        self.moves_bias(layer) || self.candidates.is_source[heads].contains(&true)
    }
}

/// Gives every reader its stream and takes what every source writes.
pub(super) struct SoftTap<'a> {
    pub soft: &'a Soft<'a>,
    pub masks: &'a [f32],
    /// By row, what a source writes otherwise than at the reference, `[rows, d_model]`; of those with a candidate edge.
    pub deltas: Vec<Option<Vec<f32>>>,
    /// By layer, how the share of an output bias under a post-norm moved.
    pub shifts: Vec<Option<Vec<f32>>>,
    /// By layer, `[rows, n_heads, d_head]`.
    pub z: Vec<Option<Tensor>>,
}

impl SoftTap<'_> {
    /// The stream of a reader of some sources, which also sees the shifts of the layers before `layer`.
    fn stream(&self, base: &[f32], list: &Seen, layer: usize) -> Vec<f32> {
        let d = self.soft.width();
        let mut out = base.to_vec();
        out.par_chunks_mut(8 * d)
            .enumerate()
            .for_each(|(block, out)| {
                let rows = block * 8 * d..block * 8 * d + out.len();
                simd(
                    #[inline(always)]
                    || {
                        for shift in self.shifts[..layer].iter().flatten() {
                            add(out, &shift[rows.clone()], 1.0);
                        }
                        for &(row, mask) in list {
                            if let (Some(delta), true) =
                                (&self.deltas[row], self.masks[mask] != 0.0)
                            {
                                add(out, &delta[rows.clone()], self.masks[mask]);
                            }
                        }
                    },
                );
            });
        out
    }

    /// What the queries, keys or values of a layer read: `[rows, n_heads, d_model]`, or `[rows, 1, d_model]` if all read the same.
    pub fn inputs(&self, layer: usize, letter: Letter) -> Result<Tensor> {
        let (lists, which) = self.soft.candidates.lists(layer, &[letter]);
        let base = &self.soft.layer(layer).attn_in;
        let (d, rows) = (self.soft.width(), self.soft.ground.rows.total);
        let streams = lists.iter().map(|list| self.stream(base, list, layer));
        let streams: Vec<Vec<f32>> = streams.collect();
        let heads = if lists.len() == 1 {
            &which[..1]
        } else {
            &which[..]
        };
        let mut out = vec![0.0; rows * heads.len() * d];
        for (row, out) in out.chunks_exact_mut(heads.len() * d).enumerate() {
            for (out, &stream) in out.chunks_exact_mut(d).zip(heads) {
                out.copy_from_slice(&streams[stream][row * d..][..d]);
            }
        }
        tensor(out, (rows, heads.len(), d))
    }

    /// Takes what the heads of a layer write.
    fn heads_wrote(&mut self, layer: usize) -> Result<()> {
        let soft = self.soft;
        let Some(z) = self.z[layer].as_ref().filter(|_| soft.attends(layer)) else {
            return Ok(());
        };
        let all: Vec<usize> = (0..soft.candidates.graph.n_heads).collect();
        let every = At::Every(soft.ground.rows.total);
        let (deltas, shift) =
            writes::by_heads(soft.model, soft.layer(layer), layer, &all, z, every)?;
        for (row, delta) in soft.candidates.graph.head_rows(layer).zip(deltas) {
            self.deltas[row] = soft.candidates.is_source[row].then_some(delta.data);
        }
        self.shifts[layer] = shift.map(|shift| shift.data);
        Ok(())
    }

    /// The layers whose shifts the MLP of a layer sees.
    fn before_mlp(&self, layer: usize) -> usize {
        layer + usize::from(!self.soft.candidates.graph.parallel)
    }
}

impl Tap for SoftTap<'_> {
    fn wants(&self, hook: Hook) -> bool {
        matches!(hook.kind, Kind::QInput | Kind::KInput | Kind::VInput)
            && hook.layer.is_some_and(|layer| self.soft.attends(layer))
    }

    fn edits(&self, _: Hook) -> bool {
        false
    }

    fn at(&mut self, hook: Hook, t: Tensor, _: &Rows) -> Result<Tensor> {
        let Some(layer) = hook.layer else {
            return Ok(t);
        };
        let (soft, d) = (self.soft, self.soft.width());
        let candidates = soft.candidates;
        let letter = Letter::ALL
            .into_iter()
            .find(|letter| letter.input() == hook.kind);
        match (hook.kind, letter) {
            (_, Some(letter)) if self.wants(hook) => {
                let inputs = self.inputs(layer, letter)?;
                return Ok(inputs.broadcast_as((t.dim(0)?, t.dim(1)?, d))?);
            }
            (Kind::Z, _) => self.z[layer] = Some(t.clone()),
            (Kind::AttnOut, _) => self.heads_wrote(layer)?,
            (Kind::MlpIn, _) if candidates.is_source[candidates.graph.mlp_row(layer)] => {
                let base = &soft.layer(layer).mlp_in;
                let x = self.stream(base, candidates.mlp(layer), self.before_mlp(layer));
                return tensor(x, t.dims());
            }
            (Kind::MlpOut, _) => {
                let row = candidates.graph.mlp_row(layer);
                if candidates.is_source[row] {
                    let mut own = to_host(&t)?;
                    add(&mut own, &soft.layer(layer).mlp, -1.0);
                    self.deltas[row] = Some(own);
                }
            }
            (Kind::ResidPost, _) if layer + 1 == soft.model.spec.n_layers => {
                let mut base = vec![0.0; soft.ground.rows.total * d];
                for (i, &row) in soft.answers.iter().enumerate() {
                    base[row * d..][..d].copy_from_slice(&soft.ground.ending[i * d..][..d]);
                }
                let x = self.stream(&base, candidates.logits(), layer + 1);
                return tensor(x, t.dims());
            }
            _ => {}
        }
        Ok(t)
    }
}
