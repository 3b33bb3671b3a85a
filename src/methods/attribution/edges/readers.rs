//! What readers ask for: gradients at the inputs of every query, key, value and MLP.

use candle_core::Tensor;

use super::EdgeAttributionConfig;
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::methods::attribution::runs::{Runs, at_rows};
use crate::nn::host::{dot, host, on_host, simd, to_host};
use crate::nn::norm;
use crate::nn::rules::{NormRule, Rules};
use crate::run::backward::{Probe, Readers, on_host_weights, reader_column};
use crate::run::rows::Rows;
use crate::run::tape::Tape;

/// What readers ask for, summed over the points of a path.
pub(super) struct Sums<'a> {
    runs: &'a Runs<'a>,
    rules: &'a Rules,
    pub layers: Vec<LayerSums>,
    /// Gradient at the final stream, `[rows, d_model]`.
    pub logits: Vec<f32>,
    /// For each layer what its queries, keys and values are where the normed stream is zero.
    offsets: Vec<Option<Vec<f32>>>,
}

#[derive(Default)]
pub(super) struct LayerSums {
    /// Gradients at q, k, v over the norm's scale, `[rows, n_heads, d_head]`.
    pub letters: Vec<Vec<f32>>,
    pub along: Vec<Along>,
    /// Gradient at what the MLP reads, `[rows, d_model]`.
    pub mlp: Vec<f32>,
}

/// The part of one point's gradients that lies along its own normed stream.
pub(super) struct Along {
    /// `[rows, d_model]`
    pub normalized: Vec<f32>,
    /// `<reader without bias, gradient> / (scale d)`, `[rows, 3 n_heads]`.
    pub factors: Vec<f32>,
}

impl<'a> Sums<'a> {
    pub fn new(runs: &'a Runs<'a>, config: &'a EdgeAttributionConfig) -> Result<Self> {
        let model = runs.model;
        let offset = |layer: usize| -> Result<Option<Vec<f32>>> {
            let block = &model.weights.blocks[layer];
            let bias = block.b_qkv.as_ref().map(to_host).transpose()?;
            let shift = block.ln1.as_ref().and_then(|w| w.b.as_ref());
            let Some(shift) = shift else { return Ok(bias) };
            let through = crate::nn::linear::forward(
                &shift.unsqueeze(0)?,
                &block.w_qkv,
                block.b_qkv.as_ref(),
            )?;
            Ok(Some(to_host(&through)?))
        };
        let layers = 0..model.spec.n_layers;
        Ok(Sums {
            runs,
            rules: &config.rules,
            layers: layers.clone().map(|_| LayerSums::default()).collect(),
            logits: vec![0.0; runs.rows.total * model.spec.d_model],
            offsets: layers.map(offset).collect::<Result<_>>()?,
        })
    }

    /// Adds one point with its share: a backward pass through the layers `from..`.
    pub fn add(&mut self, tape: &Tape, from: usize, share: f32) -> Result<()> {
        let start = self.runs.start(tape, self.rules)?;
        accumulate(&mut self.logits, &host(&start)?, share);
        let (runs, rules) = (self.runs, self.rules);
        let mut probe = EdgeProbe {
            tape,
            share,
            sums: self,
        };
        runs.descent(tape, rules).down_to(from, start, &mut probe)
    }
}

fn accumulate(sum: &mut Vec<f32>, more: &[f32], share: f32) {
    sum.resize(more.len(), 0.0);
    accumulate_into(sum, more, share);
}

pub(super) fn accumulate_into(sum: &mut [f32], more: &[f32], share: f32) {
    simd(
        #[inline(always)]
        || {
            for (sum, more) in sum.iter_mut().zip(more) {
                *sum += share * more;
            }
        },
    )
}

struct EdgeProbe<'a, 'b> {
    tape: &'a Tape,
    share: f32,
    sums: &'a mut Sums<'b>,
}

impl Probe for EdgeProbe<'_, '_> {
    fn wants(&self, hook: Hook) -> bool {
        hook.kind == Kind::MlpIn
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        let layer = hook.layer.expect("every block has one");
        let gradient = gradient.contiguous()?;
        let share = self.share;
        accumulate(&mut self.sums.layers[layer].mlp, &host(&gradient)?, share);
        Ok(())
    }

    fn readers(&mut self, layer: usize, readers: &Readers<'_>) -> Result<()> {
        let runs = self.sums.runs;
        let (model, rows) = (runs.model, readers.rows);
        let spec = &model.spec;
        let (d, d_head, heads) = (spec.d_model, spec.d_head, spec.n_heads);
        let width = heads * d_head;
        let parts = match &model.weights.blocks[layer].ln1 {
            None => None,
            Some(w) => {
                let x = on_host(&readers.saved.get(Kind::ResidPre, rows)?)?;
                let w = on_host_weights(w)?;
                Some(norm::parts(&x, &w, spec.norm, spec.norm_eps)?)
            }
        };
        let share = self.share;
        let scales: Vec<f32> = match &parts {
            Some(parts) => to_host(&parts.scale)?,
            None => vec![1.0; rows.total],
        };
        let of_layer = &mut self.sums.layers[layer];
        of_layer.letters.resize(3, Vec::new());
        for (sum, gradient) in of_layer.letters.iter_mut().zip(readers.gradients) {
            sum.resize(rows.total * width, 0.0);
            let gradient = gradient.contiguous()?;
            let gradient = host(&gradient)?;
            let rows = sum
                .chunks_exact_mut(width)
                .zip(gradient.chunks_exact(width));
            for ((sum, gradient), scale) in rows.zip(&scales) {
                accumulate_into(sum, gradient, share / scale);
            }
        }
        let (Some(parts), NormRule::Exact) = (parts, self.sums.rules.norm) else {
            return Ok(());
        };
        let mut factors = vec![0f32; rows.total * 3 * heads];
        for (letter, kind) in [Kind::Q, Kind::K, Kind::V].into_iter().enumerate() {
            let values = match &readers.read {
                Some(read) => read[letter].clone(),
                None => on_host(&at_rows(self.tape, Hook::at(kind, layer), rows)?)?,
            };
            let own = values.dim(1)?;
            let (values, gradient) = (host(&values)?, readers.gradients[letter].contiguous()?);
            let gradient = host(&gradient)?;
            let offset = self.sums.offsets[layer].as_deref();
            for (row, scale) in scales.iter().enumerate() {
                for head in 0..heads {
                    let from = (row * heads + head) * d_head;
                    let gradient = &gradient[from..from + d_head];
                    let from = (row * own + head / (heads / own)) * d_head;
                    let mut along = dot(&values[from..from + d_head], gradient);
                    if let Some(offset) = offset {
                        let from = reader_column(spec, letter, head);
                        along -= dot(&offset[from..from + d_head], gradient);
                    }
                    factors[(row * 3 + letter) * heads + head] = share * along / (scale * d as f32);
                }
            }
        }
        self.sums.layers[layer].along.push(Along {
            normalized: to_host(&parts.normalized)?,
            factors,
        });
        Ok(())
    }
}
