//! The read-out of a model whose norms stand on the stream (BERT): what a part of the stream is worth at the unembedding.
//!
//! There the stream is normed after each sum, and between the last norm and the unembedding stand a dense layer, an activation and a
//! norm (`head.rs`). Taken with what the run itself had, all of it is linear up to biases: each norm with its own scale, as everywhere in
//! this read-out. So every part of the stream has a reader of its own, by where it enters, and the contributions and the biases still sum
//! to the logit.

use candle_core::{DType, Tensor};

use super::head::add_along;
use super::readout::Ends;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::spec::NormWeights;

/// What reads the parts of the stream: one vector for all of them where the stream is their sum.
pub(crate) struct StreamReaders {
    /// Of what attention and MLP of each layer write, f32 `[batch, d_model]`.
    pub attn: Vec<Tensor>,
    pub mlp: Vec<Tensor>,
    /// Of the embeddings.
    pub input: Tensor,
    /// What the biases of norms on the stream contribute, and the embedding that says that every token is of the first segment.
    pub bias: Vec<f64>,
}

impl Ends<'_> {
    /// The readers of all parts, from that of the final stream.
    pub fn stream_readers(&mut self, reader: &Tensor) -> Result<StreamReaders> {
        let n_layers = self.model.spec.n_layers;
        let mut bias = vec![0.0; self.batch];
        let (mut attn, mut mlp) = (Vec::new(), Vec::new());
        let mut at = reader.clone();
        for layer in (0..n_layers).rev() {
            mlp.push(at.clone());
            at = self.before_stream_norm(at, layer, Ln::Two, &mut bias)?;
            attn.push(at.clone());
            at = self.before_stream_norm(at, layer, Ln::One, &mut bias)?;
        }
        attn.reverse();
        mlp.reverse();
        let encoder = self.model.weights.encoder.as_ref();
        if let Some(segments) = encoder.and_then(|encoder| encoder.segments.as_ref()) {
            add_along(&segments.narrow(0, 0, 1)?, &at, &mut bias)?;
        }
        Ok(StreamReaders {
            attn,
            mlp,
            input: at,
            bias,
        })
    }

    /// The reader of what goes into a norm on the stream, from that of what comes out.
    fn before_stream_norm(
        &mut self,
        reader: Tensor,
        layer: usize,
        ln: Ln,
        bias: &mut [f64],
    ) -> Result<Tensor> {
        let Some(w) = self.stream_norm(layer, ln) else {
            return Ok(reader);
        };
        if let Some(b) = &w.b {
            add_along(b, &reader, bias)?;
        }
        let reader = reader.broadcast_mul(&w.w.to_dtype(DType::F32)?)?;
        let scale = self.at_end(Hook::at(Kind::Scale(ln), layer))?;
        Ok(self.centred(&reader)?.broadcast_div(&scale)?)
    }

    /// What the unembedding reads of something that a branch adds to the stream, without biases: the other way round.
    /// # Shapes
    /// `out [batch, d_model]`; gives the same.
    pub fn at_unembedding(&mut self, out: &Tensor, layer: usize, by_mlp: bool) -> Result<Tensor> {
        let mut x = out.clone();
        let later = (layer + 1..self.model.spec.n_layers)
            .flat_map(|layer| [Ln::One, Ln::Two].map(|ln| (layer, ln)));
        let own = (!by_mlp).then_some((layer, Ln::Two));
        for (layer, ln) in own.into_iter().chain(later) {
            if let Some(w) = self.stream_norm(layer, ln) {
                let scale = self.at_end(Hook::at(Kind::Scale(ln), layer))?;
                let normalized = self.centred(&x)?.broadcast_div(&scale)?;
                x = normalized.broadcast_mul(&w.w.to_dtype(DType::F32)?)?;
            }
        }
        let weights = &self.model.weights;
        x = self.centred(&x)?.broadcast_div(&self.scale)?;
        if let Some(norm) = &weights.ln_final {
            x = x.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?;
        }
        if let Some(head) = &self.head {
            x = head.after(self.model, x)?;
        }
        Ok((x * f64::from(self.model.spec.logit_scale.unwrap_or(1.0)))?)
    }

    /// The norm that stands on the stream itself.
    fn stream_norm(&self, layer: usize, ln: Ln) -> Option<NormWeights> {
        let block = &self.model.weights.blocks[layer];
        let norm = match ln {
            Ln::One => block.ln1.clone(),
            Ln::Two => block.ln2.clone(),
            Ln::OnePost | Ln::TwoPost | Ln::Final => None,
        };
        norm.filter(|_| self.model.spec.norms_stream())
    }
}

/// The scales of the norms that stand on the stream, which readers are made of.
pub(super) fn stream_scales(model: &Model) -> Vec<Hook> {
    let layers = (0..model.spec.n_layers).filter(|_| model.spec.norms_stream());
    let scales = [Ln::One, Ln::Two].map(Kind::Scale);
    layers
        .flat_map(|layer| scales.map(|kind| Hook::at(kind, layer)))
        .collect()
}
