//! Sparse linear fits: least squares with a price on the size of every weight.
//!
//! Source: Tibshirani 1996, "Regression Shrinkage and Selection via the Lasso"; coordinate descent as Friedman, Hastie and Tibshirani 2010.
//! By hand, since the crates that have it (linfa-elasticnet 0.8: thirteen crates, twenty seconds) would have candle's arithmetic and all
//! that stands on it compiled with other features.

/// A linear function.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    pub weights: Vec<f64>,
    pub intercept: f64,
}

/// Sweeps over all weights; a few dozen do.
const MOST_SWEEPS: usize = 10_000;
const SMALL: f64 = 1e-12;

/// The function that minimises `|y - x w - b|^2 / 2n + penalty |w|_1`, where every column of `x`, and `y`, are first scaled to a mean of 0 and
/// a variance of 1. A column that does not vary has no weight. Weights are given in the units of `x` and `y`.
/// # Shapes
/// `x [n][columns]`, `y [n]`.
pub(super) fn lasso(x: &[Vec<f64>], y: &[f64], penalty: f64) -> Linear {
    let n = y.len().max(1) as f64;
    let n_columns = x.first().map_or(0, Vec::len);
    let columns: Vec<Vec<f64>> = (0..n_columns)
        .map(|j| x.iter().map(|row| row[j]).collect())
        .collect();
    let (y_mean, y_spread, mut residual) = standardised(y);
    let columns: Vec<(f64, f64, Vec<f64>)> = columns.iter().map(|it| standardised(it)).collect();
    let mut weights = vec![0.0; n_columns];
    if y_spread > SMALL {
        for _ in 0..MOST_SWEEPS {
            let mut moved: f64 = 0.0;
            for (weight, (_, spread, column)) in weights.iter_mut().zip(&columns) {
                if *spread <= SMALL {
                    continue;
                }
                let pull: f64 = column.iter().zip(&residual).map(|(x, r)| x * r).sum();
                let whole = *weight + pull / n;
                let new = whole.signum() * (whole.abs() - penalty).max(0.0);
                let step = new - *weight;
                if step != 0.0 {
                    (residual.iter_mut().zip(column)).for_each(|(r, x)| *r -= step * x);
                    *weight = new;
                    moved = moved.max(step.abs());
                }
            }
            if moved < SMALL {
                break;
            }
        }
    }
    let mut intercept = y_mean;
    for (weight, (mean, spread, _)) in weights.iter_mut().zip(&columns) {
        if *weight != 0.0 {
            *weight *= y_spread / spread;
            intercept -= *weight * mean;
        }
    }
    Linear { weights, intercept }
}

impl Linear {
    pub fn at(&self, x: &[f64]) -> f64 {
        let products = self.weights.iter().zip(x).map(|(w, x)| w * x);
        self.intercept + products.sum::<f64>()
    }
}

/// Mean, standard deviation, and the values without both.
fn standardised(values: &[f64]) -> (f64, f64, Vec<f64>) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let spread = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    let scale = if spread > SMALL { spread } else { 1.0 };
    let scaled = values.iter().map(|v| (v - mean) / scale).collect();
    (mean, spread, scaled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_price_a_linear_function_is_found_and_with_one_weights_are_cut() {
        let f = |x: &[f64]| 3.0 * x[0] - x[1] + 0.05 * x[2] + 7.0;
        let x: Vec<Vec<f64>> = (0..8u32)
            .map(|bits| (0..3).map(|j| f64::from(bits >> j & 1)).collect())
            .collect();
        let y: Vec<f64> = x.iter().map(|row| f(row)).collect();
        let free = lasso(&x, &y, 0.0);
        for (found, own) in free.weights.iter().zip([3.0, -1.0, 0.05]) {
            assert!((found - own).abs() < 1e-9, "{free:?}");
        }
        assert!((free.intercept - 7.0).abs() < 1e-9 && (free.at(&x[3]) - y[3]).abs() < 1e-9);
        // All columns are orthogonal here, so each standardised weight is cut by the price: y has a spread of
        // sqrt(3^2 + 1 + 0.05^2) / 2, each column one of 1/2.
        let spread = (9.0f64 + 1.0 + 0.0025).sqrt() / 2.0;
        let cut = lasso(&x, &y, 0.1);
        assert!(
            (cut.weights[0] - (3.0 - 0.1 * 2.0 * spread)).abs() < 1e-9,
            "{cut:?}"
        );
        assert_eq!(cut.weights[2], 0.0);
    }

    #[test]
    fn what_does_not_vary_has_no_weight() {
        let x = vec![vec![1.0, 0.0], vec![1.0, 1.0]];
        assert_eq!(lasso(&x, &[2.0, 2.0], 0.0).weights, [0.0, 0.0]);
        let found = lasso(&x, &[2.0, 5.0], 0.0);
        assert_eq!(found.weights[0], 0.0);
        assert!((found.at(&[1.0, 1.0]) - 5.0).abs() < 1e-9);
        assert_eq!(lasso(&[], &[], 0.1).intercept, 0.0);
    }
}
