//! Percentile bootstrap intervals of means and of ratios of means, for many cells at once.
//!
//! A resample draws as many examples as there are, with replacement; the draws follow from the seed and the number of examples
//! alone, so that they serve every cell. As counts of how often each example was drawn they make the resampled means of all
//! cells a matrix product, `[row, example] x [example, resample]`, taken some resamples at a time: the counts of all resamples
//! are never held at once, and are drawn again for the next block of cells.

use candle_core::{Device, Tensor};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::statistics::percentile;
use crate::error::Result;

/// Resamples of one interval.
pub const RESAMPLES: usize = 1000;
/// The interval leaves out this much on either side: 95% are inside.
const TAIL: f64 = 0.025;
/// Counts held at once: 8 MB.
const MOST_COUNTS: usize = 1 << 20;

/// Draws of examples with replacement, the same for every cell with the same number of examples.
#[derive(Debug, Clone, Copy)]
pub struct Bootstrap {
    seed: u64,
}

impl Bootstrap {
    pub fn new(seed: u64) -> Self {
        Bootstrap { seed }
    }

    /// The mean of every row in every resample.
    /// # Shapes
    /// `rows`: `[row, example]`, row-major, with `examples` columns; gives `[row, RESAMPLES]`.
    pub fn resampled_means(&self, rows: &[f64], examples: usize) -> Result<Vec<f64>> {
        let n_rows = rows.len() / examples;
        let values = Tensor::from_slice(rows, (n_rows, examples), &Device::Cpu)?;
        let mut means = vec![0.0; n_rows * RESAMPLES];
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let at_once = (MOST_COUNTS / examples).clamp(1, RESAMPLES);
        for first in (0..RESAMPLES).step_by(at_once) {
            let n = at_once.min(RESAMPLES - first);
            let counts = counts(&mut rng, examples, n);
            let weights =
                (Tensor::from_vec(counts, (examples, n), &Device::Cpu)? / examples as f64)?;
            let part = values.matmul(&weights)?.flatten_all()?.to_vec1::<f64>()?; // [row, n]
            for (row, part) in part.chunks(n).enumerate() {
                means[row * RESAMPLES + first..][..n].copy_from_slice(part);
            }
        }
        Ok(means)
    }

    /// The 95% interval of the mean of some values; `None` if there are fewer than two.
    pub fn interval_of_mean(&self, values: &[f64]) -> Result<Option<(f64, f64)>> {
        if values.len() < 2 {
            return Ok(None);
        }
        let mut means = self.resampled_means(values, values.len())?;
        Ok(Some(interval(&mut means)))
    }
}

/// The 95% interval of a resampled statistic; reorders it.
pub fn interval(resampled: &mut [f64]) -> (f64, f64) {
    (
        percentile(resampled, TAIL),
        percentile(resampled, 1.0 - TAIL),
    )
}

/// How often each example stands in each of the next `resamples`: `[example, resample]`, row-major.
fn counts(rng: &mut ChaCha8Rng, examples: usize, resamples: usize) -> Vec<f64> {
    let mut counts = vec![0.0; examples * resamples];
    for resample in 0..resamples {
        for _ in 0..examples {
            counts[rng.random_range(0..examples) * resamples + resample] += 1.0;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_resample_draws_as_many_examples_as_there_are() {
        let counts = counts(&mut ChaCha8Rng::seed_from_u64(3), 7, RESAMPLES);
        for resample in 0..RESAMPLES {
            let drawn = (0..7).map(|example| counts[example * RESAMPLES + resample]);
            assert_eq!(drawn.sum::<f64>(), 7.0);
        }
    }

    #[test]
    fn resamples_taken_in_pieces_are_the_ones_taken_at_once() {
        // 3,000 examples need three pieces and more; drawn one resample at a time they are the same numbers.
        let examples = 3000;
        let values: Vec<f64> = (0..examples).map(|i| ((i * 37) % 101) as f64).collect();
        let found = Bootstrap::new(5)
            .resampled_means(&values, examples)
            .unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for found in found {
            let drawn = (0..examples).map(|_| values[rng.random_range(0..examples)]);
            let expected = drawn.sum::<f64>() / examples as f64;
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn equal_scores_have_an_interval_of_no_width() {
        let (low, high) = Bootstrap::new(0)
            .interval_of_mean(&[2.0; 4])
            .unwrap()
            .unwrap();
        assert!((low - 2.0).abs() < 1e-12 && (high - 2.0).abs() < 1e-12);
        assert_eq!(Bootstrap::new(0).interval_of_mean(&[2.0]).unwrap(), None);
    }

    #[test]
    fn the_interval_is_about_two_standard_errors_either_side() {
        // 100 even steps from 0 to 1: mean 0.5, deviation 0.2916, standard error 0.02916, so about 0.443 to 0.557.
        // The ends of 1000 resamples scatter by some 0.0025.
        let scores: Vec<f64> = (0..100).map(|i| i as f64 / 99.0).collect();
        let interval = Bootstrap::new(1).interval_of_mean(&scores).unwrap();
        let (low, high) = interval.unwrap();
        assert!((low - 0.443).abs() < 0.008, "{low}");
        assert!((high - 0.557).abs() < 0.008, "{high}");
    }

    #[test]
    fn the_same_seed_gives_the_same_bytes_and_another_seed_other_ones() {
        let scores: Vec<f64> = (0..300).map(|i| ((i * 37) % 101) as f64 / 7.0).collect();
        let bits = |seed| -> Vec<u64> {
            let means = Bootstrap::new(seed).resampled_means(&scores, 10).unwrap();
            means.iter().map(|mean| mean.to_bits()).collect()
        };
        assert_eq!(bits(5), bits(5));
        assert_ne!(bits(5), bits(6));
    }
}
