//! A sparse linear fit of an answer's log odds to which sentences are there, as ContextCite has it.

use std::collections::HashSet;

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::methods::lasso::lasso;
use crate::scores::statistics::correlation;

/// Of the fit, where answers and masks are scaled to a variance of 1: that of the released code.
const PENALTY: f64 = 0.01;
/// Masks that a fit is tried on, one for so many that it is made of.
const HELD_OUT: usize = 4;
/// A correlation over fewer masks says nothing.
const FEWEST: usize = 4;

/// Different choices of sentences, each sentence there by the toss of a coin: `draws` to fit to, and behind them a quarter as many to try
/// the fit on. Of few sentences there are not so many, and all are taken.
pub(super) fn masks(n: usize, draws: usize, mut rng: ChaCha8Rng) -> (Vec<Vec<bool>>, usize) {
    let wanted = draws + worth(draws / HELD_OUT);
    let all = 1usize
        .checked_shl(n as u32)
        .filter(|&all| n < 20 && all <= wanted);
    let total = all.unwrap_or(wanted);
    let mut seen = HashSet::new();
    let mut masks = Vec::with_capacity(total);
    while masks.len() < total {
        let mask: Vec<bool> = (0..n).map(|_| rng.random::<bool>()).collect();
        if seen.insert(mask.clone()) {
            masks.push(mask);
        }
    }
    let fitted = if all.is_some() {
        total - worth(total / (HELD_OUT + 1))
    } else {
        draws
    };
    (masks, fitted)
}

/// Masks that are kept apart: none where they are too few to say anything.
fn worth(held_out: usize) -> usize {
    if held_out < FEWEST { 0 } else { held_out }
}

/// The weight of each sentence, and how well the fit agrees with the masks behind the first `fitted`: Pearson's correlation, `None` where
/// they are too few or do not vary.
/// # Units
/// Log odds of the whole answer.
pub(super) fn fit(
    masks: &[Vec<bool>],
    log_probs: &[f64],
    fitted: usize,
) -> (Vec<f64>, Option<f64>) {
    let x: Vec<Vec<f64>> = (masks.iter())
        .map(|mask| {
            mask.iter()
                .map(|&there| f64::from(u8::from(there)))
                .collect()
        })
        .collect();
    let y: Vec<f64> = log_probs.iter().map(|&it| log_odds(it)).collect();
    let found = lasso(&x[..fitted], &y[..fitted], PENALTY);
    let held_out = x[fitted..].iter().zip(&y[fitted..]);
    let pairs: Vec<(f64, f64)> = held_out.map(|(x, &y)| (found.at(x), y)).collect();
    let agreement = (pairs.len() >= FEWEST)
        .then(|| correlation(&pairs))
        .flatten();
    (found.weights, agreement)
}

/// `ln p / (1 - p)` of `ln p`; finite where p is 1 to rounding.
fn log_odds(log_prob: f64) -> f64 {
    let log_prob = log_prob.min(-1e-9);
    log_prob - (-log_prob.exp_m1()).ln()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn rng(seed: u64) -> ChaCha8Rng {
        ChaCha8Rng::seed_from_u64(seed)
    }

    #[test]
    fn masks_differ_and_few_sentences_have_all_of_theirs() {
        let (few, fitted) = masks(3, 32, rng(1));
        assert_eq!((few.len(), fitted), (8, 8));
        let (many, fitted) = masks(10, 32, rng(1));
        assert_eq!((many.len(), fitted), (40, 32));
        assert_eq!(many.iter().collect::<HashSet<_>>().len(), 40);
        assert_eq!(masks(10, 32, rng(1)).0, many);
        assert_ne!(masks(10, 32, rng(2)).0, many);
    }

    #[test]
    fn additive_log_odds_give_their_weights_back() {
        let own = [2.0, -1.0, 0.0, 0.5, 0.0, 0.0, 0.3, -0.2];
        let (masks, fitted) = masks(8, 48, rng(7));
        let log_probs: Vec<f64> = (masks.iter())
            .map(|mask| {
                let odds: f64 = mask
                    .iter()
                    .zip(own)
                    .map(|(&it, w)| if it { w } else { 0.0 })
                    .sum();
                -(1.0 + (-odds).exp()).ln()
            })
            .collect();
        let (weights, agreement) = fit(&masks, &log_probs, fitted);
        assert!(agreement.unwrap() > 0.99, "{agreement:?}");
        // The price of a weight, in standardised units, is all that is missing.
        let missing = weights
            .iter()
            .zip(own)
            .map(|(found, own)| (found - own).abs());
        assert!(missing.fold(0.0, f64::max) < 0.06, "{weights:?}");
        assert!((log_odds(0.25f64.ln()) - (1.0f64 / 3.0).ln()).abs() < 1e-12);
        assert!(log_odds(0.0).is_finite());
    }
}
