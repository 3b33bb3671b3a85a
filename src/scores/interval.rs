//! Percentile bootstrap intervals of means and of ratios of means, for many cells at once.
//!
//! A resample draws as many examples as there are, with replacement; the draws follow from the seed and the number of examples
//! alone, so that they serve every cell. They are kept as counts of how often each example was drawn, and the resampled means of a
//! cell are its scores times these counts, summed. The ends of an interval are order statistics: they are looked for among the few
//! resamples that lie far out, which are found in one pass.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::statistics::at_rank;
use crate::nn::host::simd;

/// Resamples of one interval.
pub const RESAMPLES: usize = 1000;
/// The interval leaves out this much on either side: 95% are inside.
const TAIL: f64 = 0.025;
/// Deviations from the mean beyond which the ends are looked for first: of normal means 8% lie there on either side.
const FAR: f64 = 1.4;
/// Rows whose means are made together, so that counts are read from memory once for all of them.
pub const ROWS: usize = 16;

/// Draws of examples with replacement, the same for every cell with the same number of examples.
#[derive(Debug, Clone)]
pub struct Bootstrap {
    examples: usize,
    /// How often each example stands in each resample: `[example, resample]`, row-major.
    counts: Vec<u8>,
}

impl Bootstrap {
    pub fn new(seed: u64, examples: usize) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut counts = vec![0u8; examples * RESAMPLES];
        for resample in 0..RESAMPLES {
            for _ in 0..examples {
                let count = &mut counts[rng.random_range(0..examples) * RESAMPLES + resample];
                // 256 draws of one example are not to be seen in the age of the universe.
                *count = count.saturating_add(1);
            }
        }
        Bootstrap { examples, counts }
    }

    /// The mean of some rows in every resample.
    /// # Shapes
    /// `rows`: `[row, example]`; `means`, which is written: `[row, RESAMPLES]`; row-major.
    pub fn resampled_means(&self, rows: &[f64], means: &mut [f64]) {
        let n = self.examples;
        let rows = rows.chunks(ROWS * n);
        for (rows, means) in rows.zip(means.chunks_mut(ROWS * RESAMPLES)) {
            simd(
                #[inline(always)]
                || self.sum(rows, means),
            );
        }
    }

    #[inline(always)]
    fn sum(&self, rows: &[f64], means: &mut [f64]) {
        let n = self.examples;
        let share = 1.0 / n as f64;
        means.fill(0.0);
        let (fours, rest) = self.counts.as_chunks::<{ 4 * RESAMPLES }>();
        for (four, counts) in fours.iter().enumerate() {
            let (a, others) = counts.split_at(RESAMPLES);
            let (b, others) = others.split_at(RESAMPLES);
            let (c, d) = others.split_at(RESAMPLES);
            for (row, means) in rows
                .chunks_exact(n)
                .zip(means.as_chunks_mut::<RESAMPLES>().0)
            {
                let weights: [f64; 4] = std::array::from_fn(|i| row[4 * four + i] * share);
                for (i, mean) in means.iter_mut().enumerate() {
                    *mean += weights[0] * f64::from(a[i])
                        + weights[1] * f64::from(b[i])
                        + weights[2] * f64::from(c[i])
                        + weights[3] * f64::from(d[i]);
                }
            }
        }
        for (one, counts) in rest.as_chunks::<RESAMPLES>().0.iter().enumerate() {
            for (row, means) in rows
                .chunks_exact(n)
                .zip(means.as_chunks_mut::<RESAMPLES>().0)
            {
                let weight = row[4 * fours.len() + one] * share;
                for (mean, count) in means.iter_mut().zip(counts) {
                    *mean += weight * f64::from(*count);
                }
            }
        }
    }

    /// The 95% interval of the mean of as many values as there are examples; `None` if there are fewer than two.
    pub fn interval_of_mean(&self, values: &[f64]) -> Option<(f64, f64)> {
        if values.len() < 2 {
            return None;
        }
        let mut means = [0.0; RESAMPLES];
        self.resampled_means(values, &mut means);
        Some(interval(&mut means))
    }
}

/// The 95% interval of a statistic in at most [`RESAMPLES`] resamples, which it reorders; NaN of none.
pub fn interval(resampled: &mut [f64]) -> (f64, f64) {
    let n = resampled.len();
    if n == 0 {
        return (f64::NAN, f64::NAN);
    }
    let last = (n - 1) as f64;
    let (low, high) = (TAIL * last, (1.0 - TAIL) * last);
    let (mut below, mut above) = ([0.0; RESAMPLES], [0.0; RESAMPLES]);
    let (n_below, n_above) = simd(
        #[inline(always)]
        || far_out(resampled, &mut below, &mut above),
    );
    // An end lies between two order statistics.
    let low = if n_below >= low as usize + 2 {
        at_rank(&mut below[..n_below], low)
    } else {
        at_rank(resampled, low)
    };
    let high = if n_above >= n - high as usize {
        at_rank(&mut above[..n_above], high - (n - n_above) as f64)
    } else {
        at_rank(resampled, high)
    };
    (low, high)
}

/// Copies the values that lie far below and far above the mean, and counts them.
#[inline(always)]
fn far_out(values: &[f64], below: &mut [f64], above: &mut [f64]) -> (usize, usize) {
    // A guess is enough, so that a rest of the list need not be looked at.
    let (mut sums, mut squares) = ([0.0; 8], [0.0; 8]);
    let lanes = values.as_chunks::<8>().0;
    for lane in lanes {
        for ((sum, square), x) in sums.iter_mut().zip(&mut squares).zip(lane) {
            let x = x - values[0];
            *sum += x;
            *square += x * x;
        }
    }
    let n = (8 * lanes.len()) as f64;
    let mean = sums.iter().sum::<f64>() / n;
    let far = FAR * (squares.iter().sum::<f64>() / n - mean * mean).sqrt();
    let (low, high) = (values[0] + mean - far, values[0] + mean + far);
    let (mut n_below, mut n_above) = (0, 0);
    // Without branches: where the next one goes depends on whether this one stays.
    for &x in values {
        below[n_below] = x;
        n_below += usize::from(x < low);
        above[n_above] = x;
        n_above += usize::from(x > high);
    }
    (n_below, n_above)
}

#[cfg(test)]
mod tests {
    use super::super::statistics::percentile;
    use super::*;

    #[test]
    fn every_resample_draws_as_many_examples_as_there_are() {
        let counts = Bootstrap::new(3, 7).counts;
        for resample in 0..RESAMPLES {
            let drawn = (0..7).map(|example| u32::from(counts[example * RESAMPLES + resample]));
            assert_eq!(drawn.sum::<u32>(), 7);
        }
    }

    #[test]
    fn resampled_means_are_those_of_the_examples_drawn() {
        // Rows and examples that fill no block; drawn one resample at a time they are the same numbers.
        for (rows, examples) in [(1, 3000), (ROWS + 3, 6), (2, 1), (3, 4)] {
            let values: Vec<f64> = (0..rows * examples)
                .map(|i| ((i * 37) % 101) as f64 - 50.0)
                .collect();
            let mut means = vec![f64::NAN; rows * RESAMPLES];
            Bootstrap::new(5, examples).resampled_means(&values, &mut means);
            let mut rng = ChaCha8Rng::seed_from_u64(5);
            for resample in 0..RESAMPLES {
                let drawn: Vec<usize> = (0..examples)
                    .map(|_| rng.random_range(0..examples))
                    .collect();
                for row in 0..rows {
                    let of_row = &values[row * examples..][..examples];
                    let sum: f64 = drawn.iter().map(|&example| of_row[example]).sum();
                    let (found, expected) =
                        (means[row * RESAMPLES + resample], sum / examples as f64);
                    assert!((found - expected).abs() < 1e-9, "{found} {expected}");
                }
            }
        }
    }

    #[test]
    fn an_interval_is_that_of_the_percentiles_of_all_resamples() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let mut normal = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() + 1e6;
        let mut lists: Vec<Vec<f64>> = [1000, 999, 57, 3, 1]
            .map(|n| (0..n).map(|_| normal()).collect())
            .into();
        // Two values, all in one tail, one far out, equal ones, what is no number.
        lists.push((0..1000).map(|i| f64::from(i % 2)).collect());
        lists.push((0..1000).map(|i| f64::from(u8::from(i < 30))).collect());
        lists.push(
            (0..1000)
                .map(|i| if i == 7 { 1e300 } else { f64::from(i) })
                .collect(),
        );
        lists.push(vec![2.5; 1000]);
        lists.push(
            (0..1000)
                .map(|i| if i < 5 { f64::INFINITY } else { f64::from(i) })
                .collect(),
        );
        for list in lists {
            let of = |q| percentile(&mut list.clone(), q);
            let expected = [of(TAIL), of(1.0 - TAIL)];
            let (low, high) = interval(&mut list.clone());
            for (found, expected) in [low, high].into_iter().zip(expected) {
                let near = (found - expected).abs() <= 1e-9 * expected.abs().max(1.0);
                assert!(
                    near || found == expected,
                    "{found} {expected} of {}",
                    list.len()
                );
            }
        }
        assert!(interval(&mut []).0.is_nan());
    }

    #[test]
    fn equal_scores_have_an_interval_of_no_width() {
        let of = |values: &[f64]| Bootstrap::new(0, values.len()).interval_of_mean(values);
        let (low, high) = of(&[2.0; 4]).unwrap();
        assert!((low - 2.0).abs() < 1e-12 && (high - 2.0).abs() < 1e-12);
        assert_eq!(of(&[2.0]), None);
    }

    #[test]
    fn the_interval_is_about_two_standard_errors_either_side() {
        // 100 even steps from 0 to 1: mean 0.5, deviation 0.2916, standard error 0.02916, so about 0.443 to 0.557.
        // The ends of 1000 resamples scatter by some 0.0025.
        let scores: Vec<f64> = (0..100).map(|i| i as f64 / 99.0).collect();
        let (low, high) = Bootstrap::new(1, 100).interval_of_mean(&scores).unwrap();
        assert!((low - 0.443).abs() < 0.008, "{low}");
        assert!((high - 0.557).abs() < 0.008, "{high}");
    }

    #[test]
    fn the_same_seed_gives_the_same_draws_and_another_seed_other_ones() {
        let counts = |seed| Bootstrap::new(seed, 10).counts;
        assert_eq!(counts(5), counts(5));
        assert_ne!(counts(5), counts(6));
    }
}
