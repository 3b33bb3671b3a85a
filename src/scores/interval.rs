//! Percentile bootstrap intervals of a mean, for many cells at once.
//!
//! The resamples are drawn once and serve every cell: a resample is a row of counts (how often each example was drawn),
//! so that the resampled means of all cells are one matrix product, `[cell, example] x [example, resample]`.
//! Percentiles interpolate linearly between order statistics, as numpy does by default.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use crate::error::Result;

/// Resamples of one interval.
pub const RESAMPLES: usize = 1000;
/// The interval leaves out this much on either side: 95% are inside.
const TAIL: f64 = 0.025;

/// Draws of examples with replacement, the same for every cell with the same number of examples.
pub struct Bootstrap {
    seed: u64,
    /// For `n` examples: `[n, RESAMPLES]`, each column summing to 1.
    weights: BTreeMap<usize, Tensor>,
}

impl Bootstrap {
    pub fn new(seed: u64) -> Self {
        Bootstrap {
            seed,
            weights: BTreeMap::new(),
        }
    }

    /// The 95% intervals of the row means of `scores`.
    /// # Shapes
    /// `scores`: `[cell, example]`, row-major, with `examples` columns.
    pub fn intervals(&mut self, scores: &[f64], examples: usize) -> Result<Vec<(f64, f64)>> {
        let cells = scores.len() / examples;
        let scores = Tensor::from_slice(scores, (cells, examples), &Device::Cpu)?;
        let means = scores.matmul(self.weights(examples)?)?; // [cell, resample]
        let mut means = means.flatten_all()?.to_vec1::<f64>()?;
        Ok(means
            .par_chunks_mut(RESAMPLES)
            .map(|cell| (percentile(cell, TAIL), percentile(cell, 1.0 - TAIL)))
            .collect())
    }

    fn weights(&mut self, examples: usize) -> Result<&Tensor> {
        if !self.weights.contains_key(&examples) {
            let counts = resample_counts(examples, self.seed);
            let weights = Tensor::from_vec(counts, (examples, RESAMPLES), &Device::Cpu)?;
            self.weights.insert(examples, (weights / examples as f64)?);
        }
        Ok(&self.weights[&examples])
    }
}

/// How often each example stands in each resample: `[example, resample]`, row-major.
fn resample_counts(examples: usize, seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut counts = vec![0.0; examples * RESAMPLES];
    for resample in 0..RESAMPLES {
        for _ in 0..examples {
            counts[rng.random_range(0..examples) * RESAMPLES + resample] += 1.0;
        }
    }
    counts
}

/// The value below which the fraction `q` of `values` lies; reorders them.
fn percentile(values: &mut [f64], q: f64) -> f64 {
    let rank = q * (values.len() - 1) as f64;
    let below = rank.floor() as usize;
    let (_, &mut low, above) = values.select_nth_unstable_by(below, f64::total_cmp);
    let high = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    low + (rank - below as f64) * (high - low)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_interpolates_between_order_statistics() {
        // Ranks 0..4: the 10% point lies at rank 0.4, between 1 and 2; the 75% point is the value at rank 3.
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert!((percentile(&mut values.clone(), 0.1) - 1.4).abs() < 1e-12);
        assert_eq!(percentile(&mut values.clone(), 0.75), 4.0);
        assert_eq!(percentile(&mut values.clone(), 1.0), 5.0);
    }

    #[test]
    fn every_resample_draws_as_many_examples_as_there_are() {
        let counts = resample_counts(7, 3);
        for resample in 0..RESAMPLES {
            assert_eq!(
                (0..7)
                    .map(|e| counts[e * RESAMPLES + resample])
                    .sum::<f64>(),
                7.0
            );
        }
    }

    #[test]
    fn equal_scores_have_an_interval_of_no_width() {
        let intervals = Bootstrap::new(0)
            .intervals(&[2.0, 2.0, 2.0, 2.0, -1.0, -1.0, -1.0, -1.0], 4)
            .unwrap();
        for ((low, high), mean) in intervals.into_iter().zip([2.0, -1.0]) {
            assert!(
                (low - mean).abs() < 1e-12 && (high - mean).abs() < 1e-12,
                "{low} {high}"
            );
        }
    }

    #[test]
    fn the_interval_is_about_two_standard_errors_either_side() {
        // 100 even steps from 0 to 1: mean 0.5, deviation 0.2916, standard error 0.02916, so about 0.443 to 0.557.
        // The ends of 1000 resamples scatter by some 0.0025.
        let scores: Vec<f64> = (0..100).map(|i| i as f64 / 99.0).collect();
        let (low, high) = Bootstrap::new(1).intervals(&scores, 100).unwrap()[0];
        assert!((low - 0.443).abs() < 0.008, "{low}");
        assert!((high - 0.557).abs() < 0.008, "{high}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_other_ones() {
        let scores: Vec<f64> = (0..300).map(|i| ((i * 37) % 101) as f64 / 7.0).collect();
        let bits = |seed| -> Vec<u64> {
            let intervals = Bootstrap::new(seed).intervals(&scores, 10).unwrap();
            intervals
                .iter()
                .flat_map(|(low, high)| [low.to_bits(), high.to_bits()])
                .collect()
        };
        assert_eq!(bits(5), bits(5));
        assert_ne!(bits(5), bits(6));
    }
}
