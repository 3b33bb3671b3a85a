//! Small statistics of plain numbers, each once for the crate. Sums are in f64, and in the order of the list.

/// Normal quantile of a 95% interval.
const Z: f64 = 1.959_963_984_540_054;

/// The sum of products of two lists of one length.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// `1 / (1 + e^-x)`.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `e^x` as shares of their sum.
pub fn softmax(values: &[f64]) -> Vec<f64> {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let each: Vec<f64> = values.iter().map(|value| (value - most).exp()).collect();
    let sum: f64 = each.iter().sum();
    each.into_iter().map(|one| one / sum).collect()
}

/// The mean; NaN of an empty list.
pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The value below which the fraction `q` of `values` lies, between order statistics by a line, as numpy does by default;
/// NaN of an empty list. It reorders them.
pub fn percentile(values: &mut [f64], q: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let rank = q.clamp(0.0, 1.0) * (values.len() - 1) as f64;
    at_rank(values, rank)
}

/// The value at a rank from 0, between order statistics by a line. It reorders the values.
pub(super) fn at_rank(values: &mut [f64], rank: f64) -> f64 {
    let below = rank.floor() as usize;
    let (_, &mut low, above) = values.select_nth_unstable_by(below, f64::total_cmp);
    let high = above.iter().copied().min_by(f64::total_cmp).unwrap_or(low);
    let step = rank - below as f64;
    // An infinite neighbour that is not reached must not make a NaN.
    if step == 0.0 {
        low
    } else {
        low + step * (high - low)
    }
}

/// The median; NaN of an empty list.
pub fn median(values: &[f64]) -> f64 {
    percentile(&mut values.to_vec(), 0.5)
}

/// Pearson's correlation of pairs; `None` if one side does not vary.
pub fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let a = pairs.iter().map(|pair| pair.0).sum::<f64>() / n;
    let b = pairs.iter().map(|pair| pair.1).sum::<f64>() / n;
    let (mut of_a, mut of_b, mut together) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        of_a += (x - a).powi(2);
        of_b += (y - b).powi(2);
        together += (x - a) * (y - b);
    }
    let spread = of_a * of_b;
    (spread > 0.0).then(|| together / spread.sqrt())
}

/// Spearman's correlation: Pearson's of the ranks, equal values sharing their mean rank; `None` if one side does not vary.
pub fn rank_correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let a = ranks(pairs.iter().map(|pair| pair.0));
    let b = ranks(pairs.iter().map(|pair| pair.1));
    correlation(&a.into_iter().zip(b).collect::<Vec<_>>())
}

/// The median of `|estimate - exact| / |exact|` over pairs `(estimate, exact)` whose exact value is not zero; `None` if there
/// is none.
pub fn median_relative_error(pairs: &[(f64, f64)]) -> Option<f64> {
    let measured = pairs.iter().filter(|(_, exact)| *exact != 0.0);
    let errors: Vec<f64> = measured
        .map(|(estimate, exact)| (estimate - exact).abs() / exact.abs())
        .collect();
    (!errors.is_empty()).then(|| median(&errors))
}

/// The share of the variance of `y` that a line in `x` explains, from pairs `(x, y)`: the correlation squared.
pub fn r_squared(pairs: &[(f64, f64)]) -> Option<f64> {
    correlation(pairs).map(|r| r * r)
}

/// The rank of each value from 1, equal values sharing their mean rank.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut before = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        for &i in equal {
            ranks[i] = before as f64 + (equal.len() + 1) as f64 / 2.0;
        }
        before += equal.len();
    }
    ranks
}

/// Wilson's 95% interval of a share, `count` of `of`: it stays within 0 and 1, and is no point where all or none were counted.
pub fn wilson(count: usize, of: usize) -> (f64, f64) {
    let n = of.max(1) as f64;
    let fraction = count as f64 / n;
    let square = Z * Z / n;
    let centre = (fraction + square / 2.0) / (1.0 + square);
    let spread = fraction * (1.0 - fraction) / n + square / (4.0 * n);
    let half = Z * spread.sqrt() / (1.0 + square);
    // Where all or none were counted one end is exact, and rounding must not move it.
    let low = if count == 0 { 0.0 } else { centre - half };
    let high = if count == of { 1.0 } else { centre + half };
    (low.max(0.0), high.min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wilson_intervals_are_those_of_the_formula() {
        // By hand: n = 10, z^2 / n = 0.384146; centre (0.5 + 0.192073) / 1.384146 = 0.5; half 1.96 sqrt(0.025 + 0.0096036) / 1.384146.
        for (count, low, high) in [
            (5, 0.236_593, 0.763_407),
            (10, 0.722_467, 1.0),
            (0, 0.0, 0.277_533),
        ] {
            let found = wilson(count, 10);
            assert!(
                (found.0 - low).abs() < 1e-5 && (found.1 - high).abs() < 1e-5,
                "{found:?}"
            );
        }
    }

    #[test]
    fn none_and_all_have_exact_ends() {
        for n in 1..200 {
            assert_eq!((wilson(0, n).0, wilson(n, n).1), (0.0, 1.0), "{n}");
        }
    }

    #[test]
    fn a_percentile_interpolates_between_order_statistics() {
        // Ranks 0..4: the 10% point lies at rank 0.4, between 1 and 2; the 75% point is the value at rank 3.
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert!((percentile(&mut values.clone(), 0.1) - 1.4).abs() < 1e-12);
        assert_eq!(percentile(&mut values.clone(), 0.75), 4.0);
        assert_eq!(percentile(&mut values.clone(), 1.0), 5.0);
        assert_eq!(percentile(&mut [1.0, f64::INFINITY], 0.0), 1.0);
        assert!(percentile(&mut [], 0.5).is_nan());
        assert_eq!(median(&[3.0, 1.0, 10.0, 2.0]), 2.5);
    }

    #[test]
    fn correlations_know_lines_orders_and_what_does_not_vary() {
        let line = [(1.0, 3.0), (2.0, 5.0), (3.0, 7.0)];
        assert_eq!(correlation(&line), Some(1.0));
        assert_eq!(r_squared(&line.map(|(x, y)| (x, -y))), Some(1.0));
        assert_eq!(correlation(&[(1.0, 2.0), (2.0, 2.0)]), None);
        assert_eq!(correlation(&[]), None);
        // A monotone curve: the order agrees entirely, the line does not.
        let curve = [(1.0, 1.0), (2.0, 8.0), (3.0, 27.0), (4.0, 1000.0)];
        assert_eq!(rank_correlation(&curve), Some(1.0));
        assert!(correlation(&curve).is_some_and(|r| r < 0.9));
        // By hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4 give 4.5 / sqrt(4.5 * 5).
        let tied = [(0.0, 1.0), (7.0, 2.0), (7.0, 3.0), (9.0, 4.0)];
        let found = rank_correlation(&tied).unwrap();
        assert!((found - (4.5f64 / 5.0).sqrt()).abs() < 1e-12, "{found}");
    }

    #[test]
    fn relative_errors_are_of_what_was_measured() {
        // Errors 1/2, 0, 2 of the exact values; the pair whose exact value is zero has none.
        let pairs = [(1.0, 2.0), (3.0, 3.0), (-1.0, 1.0), (5.0, 0.0)];
        assert_eq!(median_relative_error(&pairs), Some(0.5));
        assert_eq!(median_relative_error(&[(1.0, 0.0)]), None);
        assert_eq!(dot(&[1.0, 2.0], &[3.0, -1.0]), 1.0);
        assert_eq!(mean(&[1.0, 2.0, 6.0]), 3.0);
    }
}
