//! Which masks are drawn, and the linear function that tells the metric of a mask: no model is known here.

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::methods::lasso::{Linear, lasso};
use crate::scores::statistics::correlation;

/// Which components are there.
pub(super) type Mask = Vec<bool>;

/// Penalties that are tried, from the smallest at which all weights are 0 down to a ten-thousandth of it; and none.
const PENALTIES: u32 = 16;
const LAST: f64 = 1e-4;
/// Of the masks, so many choose the penalty.
const HELD_OUT: f64 = 0.1;

/// Sweeps over all weights that a fit takes in the mean, and seconds for a number of a sweep: measured on a slow core, good to a factor of three.
const SWEEPS: f64 = 60.0;
const SECONDS: f64 = 1.2e-9;

/// Bytes that a fit to so many masks of so many components holds at once: the masks as they are, as rows, as columns, and as columns of unit
/// variance.
pub(super) fn held(masks: usize, components: usize) -> usize {
    masks.saturating_mul(components).saturating_mul(1 + 3 * 8)
}

/// Seconds that the fits to the outcomes of one prompt take, and to shuffled ones: at each penalty, and at the one that is chosen.
pub(super) fn seconds(masks: usize, components: usize) -> f64 {
    let fits = 2.0 * f64::from(PENALTIES + 2);
    fits * SWEEPS * SECONDS * masks as f64 * components as f64
}

/// Masks whose components are there or not each by itself.
pub(super) fn drawn(n: usize, keep: f64, masks: usize, seed: u64) -> Vec<Mask> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut mask = || (0..n).map(|_| rng.random_bool(keep)).collect();
    (0..masks).map(|_| mask()).collect()
}

/// Masks without so many components, all such sets alike; `stream` tells draws of one seed apart.
pub(super) fn without(n: usize, removed: usize, masks: usize, seed: u64, stream: u64) -> Vec<Mask> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let mut mask: Mask = (0..n).map(|i| i >= removed).collect();
    let mut draw = || {
        mask.shuffle(&mut rng);
        mask.clone()
    };
    (0..masks).map(|_| draw()).collect()
}

/// Outcomes that belong to other masks: what a fit makes of nothing.
pub(super) fn shuffled(outcomes: &[f64], seed: u64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(u64::MAX);
    let mut outcomes = outcomes.to_vec();
    outcomes.shuffle(&mut rng);
    outcomes
}

/// What a mask is to a linear function: 1 for each component that is there.
pub(super) fn regressors(masks: &[Mask]) -> Vec<Vec<f64>> {
    let row = |mask: &Mask| mask.iter().map(|&is| f64::from(u8::from(is))).collect();
    masks.iter().map(row).collect()
}

/// The lasso whose penalty predicts best the last tenth of the masks, fitted to all of them then; and that penalty, in standard
/// deviations of the outcomes.
pub(super) fn fit(x: &[Vec<f64>], outcomes: &[f64]) -> (Linear, f64) {
    let held_out = ((x.len() as f64 * HELD_OUT) as usize).max(1);
    let (seen, unseen) = x.split_at(x.len() - held_out);
    let (of_seen, of_unseen) = outcomes.split_at(seen.len());
    let most = smallest_without_weights(seen, of_seen);
    let mut penalties: Vec<f64> = (0..PENALTIES)
        .map(|k| most * LAST.powf(f64::from(k) / f64::from(PENALTIES - 1)))
        .collect();
    // Fewer masks than weights can be followed exactly, and mean nothing then.
    if x.first().is_some_and(|row| seen.len() > row.len() + 1) {
        penalties.push(0.0);
    }
    let error = |penalty: f64| -> f64 {
        let found = lasso(seen, of_seen, penalty);
        let misses = unseen.iter().zip(of_unseen);
        misses.map(|(x, y)| (found.at(x) - y).powi(2)).sum()
    };
    let scored = penalties
        .into_iter()
        .map(|penalty| (error(penalty), penalty));
    let best = scored.min_by(|a, b| a.0.total_cmp(&b.0));
    let penalty = best.map_or(0.0, |best| best.1);
    (lasso(x, outcomes, penalty), penalty)
}

/// The largest correlation of a column with the outcomes.
fn smallest_without_weights(x: &[Vec<f64>], outcomes: &[f64]) -> f64 {
    let n = x.first().map_or(0, Vec::len);
    let with = |j: usize| {
        let pairs: Vec<(f64, f64)> = x.iter().zip(outcomes).map(|(x, y)| (x[j], *y)).collect();
        correlation(&pairs).map_or(0.0, f64::abs)
    };
    (0..n).map(with).fold(0.0, f64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_additive_is_found_again() {
        let n = 12;
        let masks = drawn(n, 0.8, 120, 3);
        let own: Vec<f64> = (0..n).map(|i| (i as f64 - 4.5) / 3.0).collect();
        let x = regressors(&masks);
        let y: Vec<f64> = (x.iter())
            .map(|row| 1.5 + row.iter().zip(&own).map(|(x, w)| x * w).sum::<f64>())
            .collect();
        let (found, penalty) = fit(&x, &y);
        assert_eq!(penalty, 0.0);
        for (found, own) in found.weights.iter().zip(&own) {
            assert!((found - own).abs() < 1e-6, "{found} {own}");
        }
        assert!((found.intercept - 1.5).abs() < 1e-6);
        // And nothing is found in outcomes of other masks.
        let fresh = without(n, 3, 200, 3, 1);
        let of = |masks: &[Mask], fit: &Linear| -> Option<f64> {
            let pairs: Vec<(f64, f64)> = (regressors(masks).iter())
                .map(|row| {
                    let own = row.iter().zip(&own).map(|(x, w)| x * w).sum();
                    (fit.at(row), own)
                })
                .collect();
            correlation(&pairs)
        };
        assert!(of(&fresh, &found).unwrap() > 1.0 - 1e-9);
        let (none, penalty) = fit(&x, &shuffled(&y, 3));
        assert!(penalty > 0.0);
        assert!(of(&fresh, &none).is_none_or(|r| r.abs() < 0.5));
    }

    #[test]
    fn masks_are_of_the_size_that_was_asked_for() {
        for (removed, mask) in [0, 1, 7].into_iter().flat_map(|removed| {
            without(7, removed, 5, 1, 2)
                .into_iter()
                .map(move |mask| (removed, mask))
        }) {
            assert_eq!(mask.iter().filter(|is| !**is).count(), removed);
        }
        let there = drawn(100, 0.9, 100, 5).concat();
        let share = there.iter().filter(|is| **is).count() as f64 / 1e4;
        assert!((share - 0.9).abs() < 0.02, "{share}");
        assert_ne!(without(50, 5, 1, 1, 0), without(50, 5, 1, 1, 1));
    }
}
