//! Angles between the spaces that the first left singular vectors of two matrices span.

use nalgebra::DMatrix;

/// The first left singular vectors of a matrix, as columns.
pub(super) fn singular(states: &DMatrix<f64>, rank: usize) -> DMatrix<f64> {
    let eigen = (states * states.transpose()).symmetric_eigen();
    let mut order: Vec<usize> = (0..eigen.eigenvalues.len()).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let columns: Vec<_> = order[..rank]
        .iter()
        .map(|&at| eigen.eigenvectors.column(at))
        .collect();
    DMatrix::from_columns(&columns)
}

/// The sum of the principal angles between two spaces of orthonormal columns, in degrees.
pub(super) fn principal_angle(a: &DMatrix<f64>, b: &DMatrix<f64>) -> f64 {
    let cosines = (a.transpose() * b).singular_values();
    cosines
        .iter()
        .map(|cosine| cosine.clamp(0.0, 1.0).acos().to_degrees())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_those_between_spaces() {
        let space = |columns: &[[f64; 3]]| {
            let columns: Vec<_> = columns
                .iter()
                .map(|column| nalgebra::DVector::from_column_slice(column))
                .collect();
            DMatrix::from_columns(&columns)
        };
        let (x, y, z) = ([1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]);
        let half = std::f64::consts::FRAC_1_SQRT_2;
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} against {b}");
        near(principal_angle(&space(&[x]), &space(&[x])), 0.0);
        near(
            principal_angle(&space(&[x]), &space(&[[-1.0, 0.0, 0.0]])),
            0.0,
        );
        near(
            principal_angle(&space(&[x]), &space(&[[half, half, 0.0]])),
            45.0,
        );
        near(principal_angle(&space(&[x, y]), &space(&[y, x])), 0.0);
        near(principal_angle(&space(&[x, y]), &space(&[x, z])), 90.0);
        // diag(3, 2, 1) stretches along its axes, whatever is behind it.
        let states = DMatrix::from_row_slice(3, 2, &[3.0, 0.0, 0.0, 2.0, 0.0, 0.0]);
        near(principal_angle(&singular(&states, 1), &space(&[x])), 0.0);
        near(principal_angle(&singular(&states, 2), &space(&[y, x])), 0.0);
    }
}
