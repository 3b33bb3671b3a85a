//! The additive model that fits the values of coalitions best: weighted least squares, with standard errors that hold whatever the
//! noise is (the sandwich of Huber and White).

use crate::error::{Error, Result};

/// Who is there.
pub type Coalition = Vec<bool>;

/// What a player is credited with.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    pub value: f64,
    /// The standard error of an estimate; `None` where every coalition counted, or too few were drawn to tell.
    pub error: Option<f64>,
}

/// One coalition of a fit.
pub struct Row {
    coalition: Coalition,
    weight: f64,
    value: f64,
}

impl Row {
    pub fn new(coalition: Coalition, weight: f64, value: impl Fn(&[bool]) -> f64) -> Row {
        let value = value(&coalition);
        Row {
            coalition,
            weight,
            value,
        }
    }

    fn is_there(&self, player: usize) -> f64 {
        f64::from(u8::from(self.coalition[player]))
    }
}

/// What holds the shares together.
#[derive(Debug, Clone, Copy)]
pub enum Sum {
    /// An intercept, which is fitted.
    Free,
    /// The empty coalition has the value `none`, and all shares together lead from there to `all`.
    Fixed { none: f64, all: f64 },
}

impl Sum {
    /// What a row is fitted by. A fixed sum makes the last share follow from the others; a free one has an intercept behind them.
    fn regressors(self, row: &Row) -> Vec<f64> {
        let n = row.coalition.len();
        match self {
            Sum::Free => (0..n).map(|i| row.is_there(i)).chain([1.0]).collect(),
            Sum::Fixed { .. } => (0..n - 1)
                .map(|i| row.is_there(i) - row.is_there(n - 1))
                .collect(),
        }
    }

    /// What a row is fitted to.
    fn target(self, row: &Row) -> f64 {
        match self {
            Sum::Free => row.value,
            Sum::Fixed { none, all } => {
                row.value - none - row.is_there(row.coalition.len() - 1) * (all - none)
            }
        }
    }
}

/// The shares of `n` players that minimise `sum of weight (value - model)^2 + ridge |shares|^2`. With `together`, so many rows that
/// follow each other were drawn together, and shares have standard errors, to which the ridge adds nothing.
/// # Errors
/// [`Error::Invalid`] if the rows do not tell the players apart.
pub fn fit(
    n: usize,
    rows: &[Row],
    sum: Sum,
    ridge: f64,
    together: Option<usize>,
) -> Result<Vec<Share>> {
    let (columns, penalised) = match sum {
        Sum::Free => (n + 1, n),
        Sum::Fixed { .. } => (n - 1, n - 1),
    };
    let mut normal = vec![vec![0.0; columns]; columns];
    let mut right = vec![0.0; columns];
    for row in rows {
        let x = sum.regressors(row);
        add_outer(&mut normal, &x, row.weight);
        add(&mut right, &x, row.weight * sum.target(row));
    }
    (0..penalised).for_each(|i| normal[i][i] += ridge);
    let factor = Cholesky::new(&normal).ok_or_else(|| {
        Error::invalid(format!(
            "{} coalitions do not tell {n} players apart; take more draws (`Summary::draws`)",
            rows.len()
        ))
    })?;
    let found = factor.solve(&right);
    let meat = together.map(|together| {
        let mut meat = vec![vec![0.0; columns]; columns];
        // A fit follows what it is fitted to: the residuals of few draws are too small by so much.
        let drawn = rows.len().div_ceil(together) as f64;
        let followed = drawn / (drawn - columns as f64).max(1.0);
        for drawn in rows.chunks(together) {
            let mut pull = vec![0.0; columns];
            for row in drawn {
                let x = sum.regressors(row);
                let residual = sum.target(row) - dot(&x, &found);
                add(&mut pull, &x, row.weight * residual);
            }
            add_outer(&mut meat, &pull, followed);
        }
        meat
    });
    // The variance of a combination c of what is found is a' meat a, with a = normal^-1 c.
    let error = |combination: &[f64]| {
        let a = factor.solve(combination);
        let rows = meat.as_ref()?.iter();
        let variance: f64 = rows.zip(&a).map(|(row, a_i)| a_i * dot(row, &a)).sum();
        Some(variance.max(0.0).sqrt())
    };
    let unit =
        |i: usize| -> Vec<f64> { (0..columns).map(|j| f64::from(u8::from(i == j))).collect() };
    let mut shares: Vec<Share> = (0..penalised)
        .map(|i| Share {
            value: found[i],
            error: error(&unit(i)),
        })
        .collect();
    if let Sum::Fixed { none, all } = sum {
        shares.push(Share {
            value: all - none - found.iter().sum::<f64>(),
            error: error(&vec![1.0; columns]),
        });
    }
    Ok(shares)
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f64], x: &[f64], factor: f64) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += factor * x);
}

fn add_outer(to: &mut [Vec<f64>], x: &[f64], factor: f64) {
    for (row, x_i) in to.iter_mut().zip(x).filter(|(_, x_i)| **x_i != 0.0) {
        add(row, x, factor * x_i);
    }
}

/// `A = L L'` of a symmetric matrix whose directions all count: a crate of linear algebra for these lines would have candle and all
/// that stands on it compiled with other features.
struct Cholesky(Vec<Vec<f64>>);

impl Cholesky {
    /// Nothing if what is left of a column is no more than rounding.
    fn new(matrix: &[Vec<f64>]) -> Option<Cholesky> {
        let n = matrix.len();
        let mut lower = vec![vec![0.0; n]; n];
        for i in 0..n {
            for j in 0..=i {
                let rest = matrix[i][j] - dot(&lower[i][..j], &lower[j][..j]);
                if i > j {
                    lower[i][j] = rest / lower[j][j];
                } else if rest > 1e-12 * matrix[i][i] {
                    lower[i][i] = rest.sqrt();
                } else {
                    return None;
                }
            }
        }
        Some(Cholesky(lower))
    }

    fn solve(&self, right: &[f64]) -> Vec<f64> {
        let Cholesky(lower) = self;
        let n = lower.len();
        let mut x = right.to_vec();
        for i in 0..n {
            x[i] = (x[i] - dot(&lower[i][..i], &x[..i])) / lower[i][i];
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|j| lower[j][i] * x[j]).sum();
            x[i] = (x[i] - known) / lower[i][i];
        }
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_solves_and_a_singular_matrix_has_none() {
        // [[4, 2], [2, 3]] (1, 2) = (8, 8).
        let factor = Cholesky::new(&[vec![4.0, 2.0], vec![2.0, 3.0]]).unwrap();
        let x = factor.solve(&[8.0, 8.0]);
        assert!(
            (x[0] - 1.0).abs() < 1e-12 && (x[1] - 2.0).abs() < 1e-12,
            "{x:?}"
        );
        assert!(Cholesky::new(&[vec![1.0, 2.0], vec![2.0, 4.0]]).is_none());
        assert!(Cholesky::new(&[vec![0.0]]).is_none());
        assert!(Cholesky::new(&[]).unwrap().solve(&[]).is_empty());
    }

    #[test]
    fn the_error_of_a_mean_is_the_textbook_one() {
        // One player, there in two rows (values 2 and 4) and away in two (1 and 1): the difference of means is 2, and its
        // variance 2 / 2 + 0 / 2.
        let rows: Vec<Row> = [(true, 2.0), (true, 4.0), (false, 1.0), (false, 1.0)]
            .map(|(there, value)| Row::new(vec![there], 1.0, |_| value))
            .into();
        let share = fit(1, &rows, Sum::Free, 0.0, Some(1)).unwrap()[0];
        assert!((share.value - 2.0).abs() < 1e-12, "{share:?}");
        assert!((share.error.unwrap() - 1.0).abs() < 1e-12, "{share:?}");
    }
}
