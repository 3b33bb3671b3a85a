//! A subspace of a hook's activations, and the exchange along it.

use nalgebra::{DMatrix, DVector};

/// Singular values below this share of the largest are rounding: activations are in f32.
const ROUNDING: f64 = 1e-6;

/// What is exchanged between two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Subspace {
    /// `[width, dims]`, its columns orthonormal; `None` for all of the activation.
    basis: Option<DMatrix<f64>>,
}

impl Subspace {
    /// All of the activation.
    pub fn full() -> Self {
        Subspace { basis: None }
    }

    /// The span of some directions, which must be independent.
    /// # Shapes
    /// `directions [dims][width]`.
    /// # Errors
    /// `None` where the directions do not have so many dimensions.
    pub fn spanned(directions: &[Vec<f64>]) -> Option<Self> {
        let columns: Vec<DVector<f64>> = directions
            .iter()
            .map(|direction| {
                let column = DVector::from_column_slice(direction);
                let length = column.norm();
                (length > 0.0 && length.is_finite()).then(|| column / length)
            })
            .collect::<Option<_>>()?;
        if columns.is_empty() {
            return Some(Subspace {
                basis: Some(DMatrix::zeros(0, 0)),
            });
        }
        // More directions than dimensions are dependent, and have no square triangle.
        if columns.len() > columns[0].len() {
            return None;
        }
        let (q, r) = orthonormal(DMatrix::from_columns(&columns));
        let is_full_rank = r.diagonal().iter().all(|on| on.abs() > ROUNDING);
        is_full_rank.then_some(Subspace { basis: Some(q) })
    }

    /// A basis that is orthonormal already.
    pub(super) fn of(basis: DMatrix<f64>) -> Self {
        Subspace { basis: Some(basis) }
    }

    /// How many dimensions are exchanged, of an activation so wide.
    pub fn dims(&self, width: usize) -> usize {
        self.basis.as_ref().map_or(width, DMatrix::ncols)
    }

    /// The directions, orthonormal; `None` for all of the activation.
    /// # Shapes
    /// `[dims][width]`.
    pub fn directions(&self) -> Option<Vec<Vec<f64>>> {
        let basis = self.basis.as_ref()?;
        let columns = basis.column_iter();
        Some(
            columns
                .map(|column| column.iter().copied().collect())
                .collect(),
        )
    }

    /// `base + (source - base) W W^T`: the base's activation with the source's part in the subspace.
    /// # Source
    /// Geiger et al. 2024, arXiv 2303.02536, equation 4, with the base outside of the subspace.
    pub fn exchanged(&self, base: &[f32], source: &[f32]) -> Vec<f32> {
        let Some(basis) = &self.basis else {
            return source.to_vec();
        };
        let mut moved: Vec<f64> = base.iter().map(|&x| f64::from(x)).collect();
        for column in basis.column_iter() {
            let each = base.iter().zip(source).zip(column.iter());
            let along: f64 = each
                .map(|((&base, &source), w)| (f64::from(source) - f64::from(base)) * w)
                .sum();
            let parts = moved.iter_mut().zip(column.iter());
            parts.for_each(|(x, w)| *x += along * w);
        }
        moved.into_iter().map(|x| x as f32).collect()
    }
}

/// The orthonormal factor whose triangle has a diagonal above zero, so that a small step moves it little; and the triangle.
pub(super) fn orthonormal(matrix: DMatrix<f64>) -> (DMatrix<f64>, DMatrix<f64>) {
    let qr = matrix.qr();
    let (mut q, r) = (qr.q(), qr.r());
    for (mut column, on) in q.column_iter_mut().zip(r.diagonal().iter()) {
        if *on < 0.0 {
            column.neg_mut();
        }
    }
    (q, r)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exchanged_is_the_part_along_the_directions() {
        // Along (1, 1, 0) the source differs by (4 + 2) / sqrt 2, that is by 3 on each of the two axes.
        let along = Subspace::spanned(&[vec![2.0, 2.0, 0.0]]).expect("a direction");
        let moved = along.exchanged(&[1.0, 0.0, 5.0], &[5.0, 2.0, 9.0]);
        for (moved, expected) in moved.iter().zip([4.0, 3.0, 5.0]) {
            assert!((moved - expected).abs() < 1e-6, "{moved}");
        }
        let turned = Subspace::spanned(&[vec![-1.0, -1.0, 0.0]]).expect("a direction");
        assert_eq!(moved, turned.exchanged(&[1.0, 0.0, 5.0], &[5.0, 2.0, 9.0]));
        let all = Subspace::full().exchanged(&[1.0, 0.0], &[5.0, 2.0]);
        assert_eq!(all, [5.0, 2.0]);
    }

    #[test]
    fn directions_that_are_not_independent_span_nothing() {
        let double = [vec![1.0, 2.0, 0.0], vec![2.0, 4.0, 0.0]];
        assert_eq!(Subspace::spanned(&double), None);
        assert_eq!(Subspace::spanned(&[vec![0.0; 3]]), None);
        let too_many = [vec![1.0, 0.0], vec![0.0, 1.0], vec![1.0, 1.0]];
        assert_eq!(Subspace::spanned(&too_many), None);
    }
}
