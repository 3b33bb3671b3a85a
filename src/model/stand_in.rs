//! A model that stands in for one whose weights are not read: enough to say what a run on it would cost.

use std::collections::{BTreeSet, HashMap};

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::layout::Slot;
use super::random::{filled, random_slot};
use super::spec::ModelSpec;
use super::{Model, Origin};
use crate::error::Result;

impl Model {
    /// A model of these sizes, for dry runs: what is done on it is what would be done on the model itself, and takes about as
    /// long. Its layers share the same random weights, and of its vocabulary only `tokens` have any, so that it takes the memory of
    /// one layer.
    /// # Errors
    /// Those of [`Model::new`].
    pub fn stand_in(spec: &ModelSpec, device: &Device, tokens: &BTreeSet<u32>) -> Result<Model> {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut first: HashMap<Slot, Tensor> = HashMap::new();
        filled(spec.clone(), false, Origin::default(), |slot, spec| {
            if let Some(tensor) = first.get(&slot) {
                return Ok(tensor.clone());
            }
            let tensor = match slot {
                Slot::Embed | Slot::Unembed => vocabulary(spec, tokens, &mut rng)?,
                _ => random_slot(slot, spec, &mut rng)?,
            };
            let tensor = tensor.to_device(device)?;
            first.insert(slot, tensor.clone());
            Ok(tensor)
        })
    }
}

/// Zeros that the system need not hold, but for the rows of some tokens.
fn vocabulary(spec: &ModelSpec, tokens: &BTreeSet<u32>, rng: &mut ChaCha8Rng) -> Result<Tensor> {
    let width = spec.d_model;
    let mut values = vec![0.0_f32; spec.d_vocab * width];
    for &token in tokens {
        let at = token as usize * width;
        if let Some(row) = values.get_mut(at..at + width) {
            row.fill_with(|| rng.random_range(-1.0..1.0));
        }
    }
    Ok(Tensor::from_vec(
        values,
        (spec.d_vocab, width),
        &Device::Cpu,
    )?)
}
