//! Relevance propagation over the input tokens: CP-LRP and AttnLRP, as input times a modified gradient.
//!
//! The rules of [`Rules`] replace the derivative wherever the model is not linear, so that the relevance of each output is that
//! of its inputs: `R = u dF~/du` at any place `u`. CP-LRP counts pattern and gate as constants; what reaches the embeddings is then
//! the metric less what biases brought, and each layer's biases have a row. AttnLRP shares each product between its factors and
//! takes the plain gradient of the softmax, which does not conserve: what goes into the softmax of a layer, `R_A = <A, dF~/dA> / 2`,
//! less what comes out at the scores, `R_S = <S, dF~/dS> / 2`, is the row `attn.hook_pattern`. With these rows the sum is the
//! metric.
//!
//! `R_A` is the half of z's relevance that the values do not get, so it equals theirs; and `R_S` is what queries and keys get
//! together. We read both there, so that no pattern need be kept.
//!
//! Sources: Ali et al. 2022, "XAI for Transformers" (CP-LRP); Achtibat et al. 2024, "AttnLRP" (arXiv 2402.05602). Left out on
//! purpose: explicit epsilon rules for linear maps; the zero rule lets biases keep their share.

use std::collections::HashMap;

use candle_core::Tensor;

use super::batch::{Batch, Shares, dot};
use super::frozen::Write;
use super::gradient::by_token;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::metric::Metric;
use crate::model::Model;
use crate::nn::host::to_host;
use crate::nn::linear;
use crate::nn::rules::{PatternRule, Rules};
use crate::run::backward::{Descent, Probe, Readers, reader_column};
use crate::run::gradients::Measured;
use crate::run::rows::Rows;
use crate::spec::{Block, BlockWeights, Mlp, NormWeights};

/// The row of what biases bring.
pub(super) const BIAS: &str = "bias";
/// The row of what a metric is beyond its slope times the logits; zero for differences of logits.
pub(super) const METRIC: &str = "metric";

pub(super) fn relevance(batch: &Batch<'_>, rules: &Rules) -> Result<Vec<Shares>> {
    let (model, d) = (batch.model, batch.model.spec.d_model);
    let tape = batch.record()?;
    let measured = batch.measured(&tape)?;
    let mut ledger = Ledger::new(batch, rules);
    let start = measured.gradient(model, rules, &tape.rows, &mut ledger)?;
    let mut end = at_the_end(batch, &measured, &start)?;
    let descent = Descent {
        model,
        tape: &tape,
        rules,
        rows: &tape.rows,
    };
    descent.run(start, &mut ledger)?;
    let gradient = ledger.take(Kind::Embed);
    let positions = batch.positions()?;
    let gradient = to_host(&gradient)?;
    let encoder = model.weights.encoder.as_ref();
    if let Some(segments) = encoder.and_then(|encoder| encoder.segments.as_ref()) {
        // What every token is given because it is of the first segment, is of no token.
        let segment = to_host(&segments.narrow(0, 0, 1)?)?;
        let of_prompts = gradient.chunks_exact(batch.width());
        let of_segment =
            of_prompts.map(|rows| rows.chunks_exact(d).map(|g| dot(&segment, g)).sum());
        let of_segment: Vec<f64> = of_segment.collect();
        for (_, shares) in end.iter_mut().filter(|(name, _)| *name == BIAS) {
            (shares.iter_mut().zip(&of_segment)).for_each(|(share, more)| *share += more);
        }
    }
    let mut all = Vec::with_capacity(batch.len());
    for (prompt, gradient) in gradient.chunks_exact(batch.width()).enumerate() {
        let of_layers = ledger.parts.iter();
        let mut parts: Vec<_> = of_layers
            .map(|(name, layer, shares)| (*name, Some(*layer), shares[prompt]))
            .collect();
        // The walk met the layers from the last to the first.
        parts.reverse();
        parts.extend(
            end.iter()
                .map(|(name, shares)| (*name, None, shares[prompt])),
        );
        all.push(Shares {
            tokens: by_token(batch.embedding(prompt), gradient, d),
            positions: by_token(&positions, gradient, d),
            parts,
            total: Some(measured.values[prompt]),
        });
    }
    Ok(all)
}

/// What stands between the final stream and the metric: the biases of the final norm, of an encoder's head and of the unembedding, and
/// what the metric is beyond its slope. Soft-capped logits count as their ratio to the raw ones times those.
/// # Shapes
/// `start [rows, d_model]`, of every position of every prompt.
pub(super) fn at_the_end(
    batch: &Batch<'_>,
    measured: &Measured<'_>,
    start: &Tensor,
) -> Result<Vec<(&'static str, Vec<f64>)>> {
    let d = batch.model.spec.d_model;
    let along = measured.along_slopes()?;
    let mut end = Vec::new();
    let weights = &batch.model.weights;
    let norm_bias = weights.ln_final.as_ref().and_then(|norm| norm.b.as_ref());
    if norm_bias.is_some() || weights.b_u.is_some() || weights.encoder.is_some() {
        let (answer, start) = (to_host(&measured.answer)?, to_host(start)?);
        // The gradient stands where the answer is read, and nowhere else.
        let places = measured.answers.in_whole();
        let of_stream = measured.by_prompt(|row| {
            let at = places[row] as usize * d;
            dot(&start[at..at + d], &answer[row * d..][..d])
        });
        let bias = along.iter().zip(of_stream);
        end.push((BIAS, bias.map(|(all, x)| all - x).collect()));
    }
    if batch.metric != Metric::LogitDiff {
        let beyond = measured
            .values
            .iter()
            .zip(&along)
            .map(|(f, along)| f - along);
        end.push((METRIC, beyond.collect()));
    }
    Ok(end)
}

/// Watches a descent and writes down what does not reach the tokens.
struct Ledger<'a> {
    model: &'a Model,
    prompts: usize,
    with_softmax: bool,
    /// Gradients of the layer that is being passed.
    at: HashMap<Kind, Tensor>,
    /// Row, layer, share of each prompt; the last layer first.
    parts: Vec<(&'static str, usize, Vec<f64>)>,
}

/// Where a layer's biases and its softmax are read off.
const WATCHED: [Kind; 9] = [
    Kind::MlpOut,
    Kind::MlpPre,
    Kind::MlpPreLinear,
    Kind::AttnOut,
    Kind::RotQ,
    Kind::RotK,
    Kind::Q,
    Kind::K,
    Kind::V,
];

impl Probe for Ledger<'_> {
    fn wants(&self, hook: Hook) -> bool {
        let on_stream = matches!(hook.kind, Kind::ResidPost | Kind::ResidMid);
        hook.kind == Kind::Embed
            || on_stream && self.model.spec.norms_stream()
            || WATCHED.contains(&hook.kind) && hook.kind.absent(&self.model.spec).is_none()
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        self.at.insert(hook.kind, gradient.clone());
        Ok(())
    }

    /// Attention is passed after the MLP, so that here everything of a layer has been seen.
    fn readers(&mut self, layer: usize, readers: &Readers<'_>) -> Result<()> {
        let weights = &self.model.weights.blocks[layer];
        let of_norms = self.query_key_norms(weights, readers)?;
        if self.with_softmax {
            let [q, k, v] = [Kind::RotQ, Kind::RotK, Kind::V].map(|kind| {
                let gradient = self.take(kind);
                let value = readers.saved.get(kind, readers.rows)?;
                self.by_prompt(&value, &gradient)
            });
            let (q, k, v) = (q?, k?, v?);
            let leak = v.iter().zip(q).zip(k).map(|((v, q), k)| v - q - k);
            self.parts
                .push(("attn.hook_pattern", layer, leak.collect()));
        }
        if has_bias(weights) {
            let mut share = vec![0.0; self.prompts];
            let mut add = |more: Vec<f64>| {
                for (sum, more) in share.iter_mut().zip(more) {
                    *sum += more;
                }
            };
            if self.model.spec.norms_stream() {
                // Of the norms that stand on the stream itself, by what goes on in it.
                for (norm, kind) in [
                    (&weights.ln1, Kind::ResidMid),
                    (&weights.ln2, Kind::ResidPost),
                ] {
                    if let Some(bias) = norm.as_ref().and_then(|norm| norm.b.as_ref()) {
                        add(self.along(&to_host(bias)?, &[kind])?);
                    }
                }
            }
            add(of_norms);
            add(self.attention_inputs(weights, readers)?);
            let b_o = weights.b_o.as_ref();
            let attention = Write::new(self.model, weights.ln1_post.as_ref(), b_o)?;
            add(self.written(&attention, Kind::AttnOut, Ln::OnePost, readers)?);
            if let Some(mlp) = &weights.mlp {
                add(self.mlp_inputs(weights)?);
                let b_out = mlp.b_out.as_ref();
                let mlp = Write::new(self.model, weights.ln2_post.as_ref(), b_out)?;
                add(self.written(&mlp, Kind::MlpOut, Ln::TwoPost, readers)?);
            }
            self.parts.push((BIAS, layer, share));
        }
        self.at.clear();
        Ok(())
    }
}

impl<'a> Ledger<'a> {
    fn new(batch: &Batch<'a>, rules: &Rules) -> Self {
        Ledger {
            model: batch.model,
            prompts: batch.len(),
            with_softmax: rules.pattern == PatternRule::Exact,
            at: HashMap::new(),
            parts: Vec::new(),
        }
    }

    fn take(&mut self, kind: Kind) -> Tensor {
        let gradient = self.at.remove(&kind);
        gradient.expect("the descent shows every gradient that it was asked for")
    }

    /// Products summed over all rows of each prompt.
    fn by_prompt(&self, value: &Tensor, gradient: &Tensor) -> Result<Vec<f64>> {
        let (value, gradient) = (to_host(value)?, to_host(gradient)?);
        let each = value.len() / self.prompts;
        let prompts = value.chunks_exact(each).zip(gradient.chunks_exact(each));
        Ok(prompts
            .map(|(value, gradient)| dot(value, gradient))
            .collect())
    }

    /// A bias, the same in every row, along the gradients of some kinds, side by side.
    fn along(&mut self, bias: &[f32], kinds: &[Kind]) -> Result<Vec<f64>> {
        let mut shares = vec![0.0; self.prompts];
        let mut rest = bias;
        for &kind in kinds {
            let gradient = self.take(kind);
            let rows = gradient.dim(0)?;
            let gradient = to_host(&gradient)?;
            let (own, after) = rest.split_at(gradient.len() / rows);
            rest = after;
            let prompts = gradient.chunks_exact(gradient.len() / self.prompts);
            for (share, rows) in shares.iter_mut().zip(prompts) {
                *share += rows
                    .chunks_exact(own.len())
                    .map(|row| dot(own, row))
                    .sum::<f64>();
            }
        }
        Ok(shares)
    }

    /// Of the norms of queries and keys: what comes out of them less what went in, as their divisor is held.
    fn query_key_norms(&self, weights: &BlockWeights, readers: &Readers<'_>) -> Result<Vec<f64>> {
        let mut shares = vec![0.0; self.prompts];
        let has_bias = |norm: &Option<NormWeights>| norm.as_ref().is_some_and(|w| w.b.is_some());
        for (norm, after, before) in [
            (&weights.q_norm, Kind::RotQ, Kind::Q),
            (&weights.k_norm, Kind::RotK, Kind::K),
        ] {
            if !has_bias(norm) {
                continue;
            }
            for (kind, sign) in [(after, 1.0), (before, -1.0)] {
                let value = readers.saved.get(kind, readers.rows)?;
                let products = self.by_prompt(&value, &self.at[&kind])?;
                let more = products.into_iter().map(|product| sign * product);
                shares
                    .iter_mut()
                    .zip(more)
                    .for_each(|(share, more)| *share += more);
            }
        }
        Ok(shares)
    }

    /// Of queries, keys and values: their own bias, and what the norm's makes of them, by what went on before they were cut off.
    fn attention_inputs(&self, weights: &BlockWeights, readers: &Readers<'_>) -> Result<Vec<f64>> {
        let (spec, norm) = (&self.model.spec, weights.ln1.as_ref());
        let mut shares = vec![0.0; self.prompts];
        let Some(bias) = read_bias(norm, &weights.w_qkv, weights.b_qkv.as_ref())? else {
            return Ok(shares);
        };
        for (letter, gradient) in readers.gradients.into_iter().enumerate() {
            let of_heads: Vec<f32> = (0..spec.n_heads)
                .flat_map(|head| &bias[reader_column(spec, letter, head)..][..spec.d_head])
                .copied()
                .collect();
            let gradient = to_host(gradient)?;
            let prompts = gradient.chunks_exact(gradient.len() / self.prompts);
            for (share, rows) in shares.iter_mut().zip(prompts) {
                let rows = rows.chunks_exact(of_heads.len());
                *share += rows.map(|row| dot(&of_heads, row)).sum::<f64>();
            }
        }
        Ok(shares)
    }

    fn mlp_inputs(&mut self, weights: &BlockWeights) -> Result<Vec<f64>> {
        let spec = &self.model.spec;
        let mlp = weights.mlp.as_ref().expect("asked of layers with an MLP");
        let shared = spec.block == (Block::Parallel { shared_norm: true });
        let norm = if shared {
            weights.ln1.as_ref()
        } else {
            weights.ln2.as_ref()
        };
        let kinds: &[Kind] = match spec.mlp {
            Mlp::Gated => &[Kind::MlpPre, Kind::MlpPreLinear],
            _ => &[Kind::MlpPre],
        };
        match read_bias(norm, &mlp.w_in, mlp.b_in.as_ref())? {
            Some(bias) => self.along(&bias, kinds),
            None => Ok(vec![0.0; self.prompts]),
        }
    }

    /// Of what a branch adds to the stream: the biases of its projection and its post-norm.
    fn written(
        &mut self,
        write: &Write,
        kind: Kind,
        ln: Ln,
        readers: &Readers<'_>,
    ) -> Result<Vec<f64>> {
        let mut shares = vec![0.0; self.prompts];
        if !write.has_bias() {
            return Ok(shares);
        }
        let d = self.model.spec.d_model;
        let gradient = to_host(&self.take(kind))?;
        let scales = if self.model.spec.has_post_norm() {
            to_host(&readers.saved.get(Kind::Scale(ln), readers.rows)?)?
        } else {
            vec![1.0; gradient.len() / d]
        };
        let each = scales.len() / self.prompts;
        for (row, (gradient, scale)) in gradient.chunks_exact(d).zip(scales).enumerate() {
            shares[row / each] += dot(&write.bias(scale, d), gradient);
        }
        Ok(shares)
    }
}

/// What a reading matrix gives where its normed input is zero: its own bias, and the norm's through it.
fn read_bias(
    norm: Option<&NormWeights>,
    w: &Tensor,
    b: Option<&Tensor>,
) -> Result<Option<Vec<f32>>> {
    let own = b.map(to_host).transpose()?;
    let Some(of_norm) = norm.and_then(|norm| norm.b.as_ref()) else {
        return Ok(own);
    };
    let through = linear::forward(&of_norm.unsqueeze(0)?, w, None)?;
    let mut sum = to_host(&through)?;
    for (sum, own) in sum.iter_mut().zip(own.iter().flatten()) {
        *sum += own;
    }
    Ok(Some(sum))
}

fn has_bias(weights: &BlockWeights) -> bool {
    let norms = [
        &weights.ln1,
        &weights.q_norm,
        &weights.k_norm,
        &weights.ln1_post,
        &weights.ln2,
        &weights.ln2_post,
    ];
    let of_norm = |norm: &&Option<NormWeights>| norm.as_ref().is_some_and(|norm| norm.b.is_some());
    let mlp = weights.mlp.as_ref();
    norms.iter().any(of_norm)
        || weights.b_qkv.is_some()
        || weights.b_o.is_some()
        || mlp.is_some_and(|mlp| mlp.b_in.is_some() || mlp.b_out.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::host::tensor;

    #[test]
    fn a_reading_bias_is_what_the_matrix_gives_for_the_norms_own() {
        let w = tensor(vec![1.0, 2.0, 3.0, 4.0], (2, 2)).unwrap();
        let b = tensor(vec![10.0, 20.0], 2).unwrap();
        let norm = NormWeights {
            w: tensor(vec![7.0, 7.0], 2).unwrap(),
            b: Some(tensor(vec![1.0, -1.0], 2).unwrap()),
        };
        let read = |norm, b| read_bias(norm, &w, b).unwrap();
        assert_eq!(read(Some(&norm), Some(&b)), Some(vec![8.0, 18.0]));
        assert_eq!(read(Some(&norm), None), Some(vec![-2.0, -2.0]));
        assert_eq!(read(None, Some(&b)), Some(vec![10.0, 20.0]));
        assert_eq!(read(None, None), None);
    }
}
