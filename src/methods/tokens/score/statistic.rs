//! What shares come to, by arithmetic alone: no model is known here.

pub(super) fn length(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

/// One over the rank of the best of the right ones, their part of what is positive, whether they have the top, or one of the top three;
/// nothing where a share is no number.
pub(super) fn pointing(shares: &[f64], gold: &[bool]) -> Option<[f64; 4]> {
    if shares.iter().any(|share| !share.is_finite()) {
        return None;
    }
    let of_gold = shares.iter().zip(gold).filter(|(_, is_gold)| **is_gold);
    let best = of_gold
        .clone()
        .map(|(share, _)| *share)
        .fold(f64::NEG_INFINITY, f64::max);
    // Of equals a wrong one comes first, so that shares without a difference point nowhere.
    let before = shares
        .iter()
        .zip(gold)
        .filter(|(share, is_gold)| !**is_gold && **share >= best);
    let rank = 1 + before.count();
    let positive: f64 = shares.iter().map(|share| share.max(0.0)).sum();
    let right: f64 = of_gold.map(|(share, _)| share.max(0.0)).sum();
    Some([
        1.0 / rank as f64,
        if positive > 0.0 {
            right / positive
        } else {
            0.0
        },
        f64::from(u8::from(rank == 1)),
        f64::from(u8::from(rank <= 3)),
    ])
}

/// Mean squared difference of what shares say of changes and what these did; and the same for the shares' best multiple, none of it
/// negative, over the mean square of what they did: nothing where they did nothing.
pub(super) fn infidelity(said: &[f64], found: &[f64]) -> [Option<f64>; 2] {
    let sum = |of: &dyn Fn(f64, f64) -> f64| -> f64 {
        said.iter()
            .zip(found)
            .map(|(&said, &found)| of(said, found))
            .sum()
    };
    let (squares, of_said) = (sum(&|_, found| found * found), sum(&|said, _| said * said));
    // Shares the wrong way round explain nothing.
    let along = sum(&|said, found| said * found).max(0.0);
    let explained = if of_said > 0.0 {
        along * along / of_said
    } else {
        0.0
    };
    let missed = sum(&|said, found| (said - found).powi(2)) / said.len() as f64;
    [
        Some(missed).filter(|missed| missed.is_finite()),
        (squares > 0.0)
            .then(|| 1.0 - explained / squares)
            .filter(|left| left.is_finite()),
    ]
}

/// Of the sizes as shares of their sum, in nats; nothing where they are all 0, or one is no number.
pub(super) fn entropy(shares: &[f64]) -> Option<f64> {
    let sum: f64 = shares.iter().map(|share| share.abs()).sum();
    if sum == 0.0 || !sum.is_finite() {
        return None;
    }
    let sizes = shares
        .iter()
        .map(|share| share.abs() / sum)
        .filter(|size| *size > 0.0);
    Some(sizes.map(|size| -size * size.ln()).sum())
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;
    use crate::methods::gaussian::normal;

    #[test]
    fn an_indicator_of_the_right_tokens_points_best_and_its_opposite_worst() {
        let gold = [false, true, false, true, false];
        assert_eq!(pointing(&[0.0, 1.0, 0.0, 1.0, 0.0], &gold), Some([1.0; 4]));
        assert_eq!(
            pointing(&[2.0, -1.0, 2.0, -1.0, 1.0], &gold),
            Some([0.25, 0.0, 0.0, 0.0])
        );
        // Without any difference between tokens nothing is pointed at.
        assert_eq!(pointing(&[0.5; 5], &gold), Some([0.25, 0.4, 0.0, 0.0]));
        assert_eq!(pointing(&[f64::NAN; 5], &gold), None);
        assert_eq!(
            pointing(&[3.0, 2.0, -4.0, 0.0, 1.0], &gold),
            Some([0.5, 2.0 / 6.0, 0.0, 1.0])
        );
    }

    #[test]
    fn random_shares_find_the_right_tokens_as_often_as_there_are() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        let gold = [true, false, true, false, false, false, false, false];
        let mut found = 0.0;
        for _ in 0..4000 {
            let shares: Vec<f64> = gold.iter().map(|_| f64::from(normal(&mut rng))).collect();
            found += pointing(&shares, &gold).expect("numbers")[2] / 4000.0;
        }
        // Two of eight; three standard errors are 0.02.
        assert!((found - 0.25).abs() < 0.02, "{found}");
    }

    #[test]
    fn exact_shares_of_a_linear_metric_have_no_infidelity() {
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        let weights = [2.0, -1.0, 0.5];
        let (mut exact, mut doubled, mut blind, mut found) = (vec![], vec![], vec![], vec![]);
        for _ in 0..200 {
            let changes = [0; 3].map(|_| 0.03 * f64::from(normal(&mut rng)));
            let change: f64 = changes.iter().zip(weights).map(|(e, w)| e * w).sum();
            exact.push(change);
            doubled.push(2.0 * change);
            blind.push(changes[0] + 2.0 * changes[1]);
            found.push(change);
        }
        let infidelity = |said: &[f64], found: &[f64]| infidelity(said, found).map(Option::unwrap);
        assert_eq!(infidelity(&exact, &found)[0], 0.0);
        assert!(infidelity(&exact, &found)[1].abs() < 1e-12);
        // The wrong way round is no multiple of what is right.
        let turned: Vec<f64> = exact.iter().map(|change| -change).collect();
        assert_eq!(infidelity(&turned, &found)[1], 1.0);
        // The variance of the change, 0.0009 (4 + 1 + 0.25); scaled it says all that there is.
        let [raw, scaled] = infidelity(&doubled, &found);
        assert!(
            (raw - 0.0047).abs() < 0.0012 && scaled.abs() < 1e-12,
            "{raw} {scaled}"
        );
        // Weights at a right angle say nothing.
        assert!(infidelity(&blind, &found)[1] > 0.95);
        assert_eq!(infidelity(&[0.0; 3], &[1.0, 2.0, 3.0]), [14.0 / 3.0, 1.0]);
    }

    #[test]
    fn complexity_is_none_for_one_token_and_most_for_equal_ones() {
        assert_eq!(entropy(&[0.0, -3.0, 0.0]), Some(0.0));
        assert!((entropy(&[1.0, -1.0, 1.0, -1.0]).unwrap() - 4f64.ln()).abs() < 1e-12);
        assert_eq!(entropy(&[0.0; 3]), None);
    }
}
