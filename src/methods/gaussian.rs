//! Gaussian noise on the embeddings of chosen tokens as the corruption of a prompt (causal tracing, Meng et al. 2022).
//!
//! The noise is drawn once per prompt and sample from the seed, and is the same in the corrupted and in every restored run.
//! Its standard deviation is `scale` times that of all embedding entries of the chosen tokens over the data set. Prefer a
//! counterfactual prompt where one exists: noise takes the model off its distribution (Zhang and Nanda 2024).

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Op, Pos, Positions, Site, Value};
use crate::model::Model;
use crate::nn::embed::embed;
use crate::nn::host::to_host;
use crate::task::{Pair, Task};

/// The corruption's settings.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct GaussianNoise {
    /// Which tokens, as in a site: `@S2`, `3`, `-1`.
    pub positions: Vec<String>,
    /// Noise in units of the embeddings' standard deviation; 3 in the paper.
    pub scale: f64,
    /// Draws per prompt, whose metrics are averaged; about 10.
    pub samples: usize,
}

impl GaussianNoise {
    fn places(&self) -> Result<Vec<Pos>> {
        self.positions.iter().map(|text| text.parse()).collect()
    }

    /// The absolute positions of the noised tokens in a pair.
    pub(crate) fn positions_in(&self, pair: &Pair) -> Result<Vec<usize>> {
        Positions::These(self.places()?).resolve(pair.clean.len(), &pair.roles)
    }

    /// Standard deviation of all embedding entries of the chosen tokens, over all pairs.
    pub(crate) fn sigma(&self, model: &Model, task: &Task) -> Result<f64> {
        let mut tokens = Vec::new();
        for pair in task.pairs() {
            tokens.extend(
                self.positions_in(pair)?
                    .into_iter()
                    .map(|pos| pair.clean[pos]),
            );
        }
        if tokens.is_empty() {
            return Err(Error::invalid(
                "`PatchConfig::noise` names no token of any prompt",
            ));
        }
        let entries = to_host(&embed(&model.spec, &model.weights, &tokens)?)?;
        let n = entries.len() as f64;
        let mean = entries.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        Ok((entries
            .iter()
            .map(|&x| (f64::from(x) - mean).powi(2))
            .sum::<f64>()
            / n)
            .sqrt())
    }

    /// The edit that adds the noise, for a run over `samples` copies of the pair's prompt.
    pub(crate) fn edit(&self, model: &Model, pair: &Pair, sigma: f64, seed: u64) -> Result<Edit> {
        let positions = self.positions_in(pair)?;
        // A stream of its own for each pair, so that the noise does not depend on which pairs run beside it.
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(pair.index as u64 + 1);
        let shape = (self.samples, positions.len(), model.spec.d_model);
        let deviation = (self.scale * sigma) as f32;
        let noise: Vec<f32> = (0..shape.0 * shape.1 * shape.2)
            .map(|_| deviation * normal(&mut rng))
            .collect();
        let noise = Tensor::from_vec(noise, shape, &candle_core::Device::Cpu)?;
        let site = Site::all(Hook::global(Kind::Embed))
            .at_positions(positions.into_iter().map(Pos::Index));
        Ok(Edit::new(site, Op::Add(Value::Tensor(noise))))
    }
}

/// One draw from the standard normal distribution (Box and Muller).
pub(crate) fn normal(rng: &mut ChaCha8Rng) -> f32 {
    use rand::Rng;
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    (radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_mean_zero_and_variance_one() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws: Vec<f64> = (0..20_000).map(|_| f64::from(normal(&mut rng))).collect();
        let mean = draws.iter().sum::<f64>() / 20_000.0;
        let variance = draws.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / 20_000.0;
        assert!(
            mean.abs() < 0.03 && (variance - 1.0).abs() < 0.05,
            "{mean} {variance}"
        );
    }
}
