//! Models of seeded random weights: any [`ModelSpec`], small enough for a test, and with nothing at the value where a mistake would hide
//! (norm weights are not 1, biases are not 0).

use std::collections::HashMap;

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::layout::{Need, Slot};
use super::load::assemble;
use super::spec::ModelSpec;
use super::{Model, Origin};
use crate::error::Result;

impl Model {
    /// A model of random weights on the CPU in f32, with every bias that the spec allows. The same seed gives the same model.
    /// # Errors
    /// Those of [`Model::new`].
    pub fn random(spec: ModelSpec, seed: u64) -> Result<Model> {
        random(spec, seed, true)
    }

    /// [`Model::random`] without any bias.
    /// # Errors
    /// Those of [`Model::new`].
    pub fn random_without_biases(spec: ModelSpec, seed: u64) -> Result<Model> {
        random(spec, seed, false)
    }
}

fn random(spec: ModelSpec, seed: u64, biases: bool) -> Result<Model> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let origin = Origin {
        id: format!("random {} (seed {seed})", spec.family),
        storage: "random f32".to_string(),
        ..Origin::default()
    };
    filled(spec, biases, origin, |slot, spec| {
        random_slot(slot, spec, &mut rng)
    })
}

/// A model whose slots are filled one by one, those of the first block before those of the second.
pub(super) fn filled(
    spec: ModelSpec,
    biases: bool,
    origin: Origin,
    mut fill: impl FnMut(Slot, &ModelSpec) -> Result<Tensor>,
) -> Result<Model> {
    let mut slots = HashMap::new();
    let once = Slot::MODEL.map(|slot| (slot, 0));
    let per_block = (0..spec.n_layers).flat_map(|layer| Slot::BLOCK.map(|slot| (slot, layer)));
    for (slot, layer) in once.into_iter().chain(per_block) {
        let is_wanted = match slot.need(&spec, layer) {
            Need::Required => slot != Slot::Unembed || !spec.tied,
            Need::Optional => biases,
            Need::Absent => false,
        };
        if is_wanted {
            slots.insert((slot, layer), fill(slot, &spec)?);
        }
    }
    let weights = assemble(&spec, slots)?;
    Model::new(spec, weights, origin)
}

/// Matrices keep the scale of what they read, so that no layer drowns another; norm weights lie around 1.
pub(super) fn random_slot(slot: Slot, spec: &ModelSpec, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let shape = slot.shape(spec);
    let (centre, width) = match (slot, shape.as_slice()) {
        (Slot::Embed | Slot::Positions | Slot::Segments, _) => (0.0, 1.0),
        (Slot::Unembed, [_, d_model]) => (0.0, (3.0 / *d_model as f32).sqrt()),
        (_, [rows, _]) => (0.0, (3.0 / *rows as f32).sqrt()),
        (
            Slot::Ln1
            | Slot::Ln2
            | Slot::Ln1Post
            | Slot::Ln2Post
            | Slot::LnFinal
            | Slot::LnEmbed
            | Slot::LnHead
            | Slot::QNorm
            | Slot::KNorm,
            _,
        ) => (1.0, 0.4),
        _ => (0.0, 0.2),
    };
    let n: usize = shape.iter().product();
    let values: Vec<f32> = (0..n)
        .map(|_| centre + width * rng.random_range(-1.0f32..1.0))
        .collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}
