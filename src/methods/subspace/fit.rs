//! Subspaces that are read off activations: no gradient, and of the model nothing but what it has at the hook.

use nalgebra::{Cholesky, DMatrix, DVector};
use rand::Rng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::SubspaceMethod;
use super::space::{Subspace, orthonormal};
use crate::methods::gaussian::normal;
use crate::scores::statistics::sigmoid;

/// Activations, each of one of two classes.
#[derive(Debug, Clone)]
pub struct Points {
    /// `[points, width]`
    pub x: DMatrix<f64>,
    /// Whether a point is of the second class.
    pub second: Vec<bool>,
}

/// The share of a sphere in the covariance of [`SubspaceMethod::Lda`].
const SHRINKAGE: f64 = 0.1;
/// Starts of k-means, of which the tightest counts.
const STARTS: usize = 10;
const ROUNDS: usize = 100;
/// Rounds of a singular value decomposition for each value: it takes two or three.
const SVD_ROUNDS: usize = 100;
/// Parts that a probe is tested on one after the other.
pub(super) const FOLDS: usize = 5;

impl Points {
    fn mean_of(&self, second: bool) -> DVector<f64> {
        let rows = self.x.row_iter().zip(&self.second);
        let own: Vec<_> = rows
            .filter(|(_, of)| **of == second)
            .map(|(row, _)| row.transpose())
            .collect();
        let n = own.len().max(1) as f64;
        own.into_iter()
            .fold(DVector::zeros(self.x.ncols()), |sum, row| sum + row)
            / n
    }

    /// The points less a mean: their own class's, or that of all.
    fn centred(&self, by_class: bool) -> DMatrix<f64> {
        let means = match by_class {
            true => [false, true].map(|second| self.mean_of(second)),
            false => [self.x.row_mean().transpose(), self.x.row_mean().transpose()],
        };
        let mut x = self.x.clone();
        for (mut row, &second) in x.row_iter_mut().zip(&self.second) {
            row -= means[usize::from(second)].transpose();
        }
        x
    }

    /// The smallest length that is no rounding.
    fn least(&self) -> f64 {
        1e-6 * self.x.amax().max(f64::MIN_POSITIVE)
    }

    fn difference(&self) -> Option<DVector<f64>> {
        let difference = self.mean_of(true) - self.mean_of(false);
        (difference.norm() > self.least()).then_some(difference)
    }

    /// Singular values and right singular vectors of centred points, those of rounding left out; `None` where they are not found.
    fn axes(&self, by_class: bool) -> Option<(DVector<f64>, DMatrix<f64>)> {
        let centred = self.centred(by_class);
        let most = SVD_ROUNDS * centred.nrows().min(centred.ncols()).max(1);
        let svd = centred.try_svd(false, true, 5.0 * f64::EPSILON, most)?;
        let v_t = svd.v_t.expect("asked for");
        let least = (1e-6 * svd.singular_values.max()).max(self.least());
        let rank = svd.singular_values.iter().filter(|&&s| s > least).count();
        Some((
            svd.singular_values.rows(0, rank).into_owned(),
            v_t.rows(0, rank).into_owned(),
        ))
    }

    /// A subspace by one of the methods that need no training.
    /// # Errors
    /// Why there is none.
    pub fn fit(
        &self,
        method: SubspaceMethod,
        dims: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Subspace, String> {
        let one = |direction: DVector<f64>| {
            Subspace::spanned(&[direction.iter().copied().collect()])
                .ok_or_else(|| "it found no direction".to_string())
        };
        let apart = || {
            self.difference()
                .ok_or_else(|| "the means of the two classes are the same".to_string())
        };
        if self.x.iter().any(|x| !x.is_finite()) {
            return Err("an activation holds a NaN or an infinity".into());
        }
        let no_axes = || "the axes along which the activations vary were not found".to_string();
        match method {
            SubspaceMethod::MeanDifference => one(apart()?),
            SubspaceMethod::Lda => one(self.discriminant(&apart()?).ok_or_else(no_axes)?),
            SubspaceMethod::Logistic => one(self.probe().direction),
            SubspaceMethod::KMeans => one(self.clusters(rng)?),
            SubspaceMethod::Pca => {
                let (_, axes) = self.axes(false).ok_or_else(no_axes)?;
                if axes.nrows() < dims {
                    return Err(format!(
                        "{dims} dimensions were asked for, and these {} activations vary along {} alone; take fewer dimensions \
                         (`SubspaceConfig::dims`) or more pairs",
                        self.x.nrows(),
                        axes.nrows()
                    ));
                }
                Ok(Subspace::of(axes.rows(0, dims).transpose()))
            }
            SubspaceMethod::Random => Ok(random(self.x.ncols(), dims, rng)),
            SubspaceMethod::Full => Ok(Subspace::full()),
            SubspaceMethod::Das | SubspaceMethod::BoundlessDas => {
                Err("it is trained, not fitted".into())
            }
        }
    }

    /// `(S + shrinkage)^-1 (mean - mean)`, with S the covariance within classes; without any the difference of the means.
    fn discriminant(&self, apart: &DVector<f64>) -> Option<DVector<f64>> {
        let (singular, axes) = self.axes(true)?;
        let n = self.x.nrows() as f64;
        let variances = singular.map(|s| (1.0 - SHRINKAGE) * s * s / n);
        let sphere = (SHRINKAGE * singular.norm_squared() / n / self.x.ncols() as f64)
            .max(f64::MIN_POSITIVE);
        let along = &axes * apart;
        // Times the sphere, so that a small one does not make it large.
        let kept = DVector::from_fn(along.len(), |i, _| {
            along[i] * (sphere / (variances[i] + sphere) - 1.0)
        });
        Some(apart + axes.transpose() * kept)
    }

    /// An L2 logistic probe (C = 1) on z-scored features, by Newton's steps in as many unknowns as there are points.
    pub fn probe(&self) -> Probe {
        let (n, d) = self.x.shape();
        let mean = self.x.row_mean();
        let mut z = self.centred(false);
        let least = self.least();
        let deviations = DVector::from_fn(d, |j, _| {
            let deviation = z.column(j).norm() / (n as f64).sqrt();
            if deviation > least {
                deviation
            } else {
                f64::INFINITY
            }
        });
        for (mut column, deviation) in z.column_iter_mut().zip(deviations.iter()) {
            column /= *deviation;
        }
        // One more feature, which is always 1, is the intercept.
        let kernel = (&z * z.transpose()).add_scalar(1.0);
        let mut alpha = DVector::zeros(n);
        let y = DVector::from_fn(n, |i, _| f64::from(u8::from(self.second[i])));
        for _ in 0..ROUNDS {
            let f = &kernel * &alpha;
            let p = f.map(sigmoid);
            let w = p.map(|p| (p * (1.0 - p)).max(1e-12));
            let root = w.map(f64::sqrt);
            let mut b = DMatrix::from_fn(n, n, |i, j| root[i] * kernel[(i, j)] * root[j]);
            (0..n).for_each(|i| b[(i, i)] += 1.0);
            let Some(factor) = Cholesky::new(b) else {
                break;
            };
            let right = w.component_mul(&f) + (&y - &p);
            let inner = factor.solve(&root.component_mul(&(&kernel * &right)));
            let next = &right - root.component_mul(&inner);
            let step = (&next - &alpha).norm();
            alpha = next;
            if step <= 1e-9 * alpha.norm().max(1.0) {
                break;
            }
        }
        let direction = (z.transpose() * &alpha).component_div(&deviations);
        let intercept = alpha.sum() - (mean * &direction)[0];
        Probe {
            direction,
            intercept,
        }
    }

    /// The share of points that a probe tells which did not see them, with their own classes and with shuffled ones: pairs of points in so
    /// many folds, each tested by a probe of those others that are not the same as a tested one. A fold that leaves nothing of a class is not
    /// tested; NaN where none is.
    pub(super) fn cross_validated(&self, folds: usize, rng: &mut ChaCha8Rng) -> [f64; 2] {
        let mut shuffled = self.second.clone();
        shuffled.shuffle(rng);
        let shuffled = Points {
            x: self.x.clone(),
            second: shuffled,
        };
        let pairs = self.x.nrows() / 2;
        let folds = folds.min(pairs);
        // By rounding alone: equal prompts may have run in different batches.
        let least = self.least();
        let are_same = |a: usize, b: usize| {
            (0..self.x.ncols()).all(|j| (self.x[(a, j)] - self.x[(b, j)]).abs() <= least)
        };
        [self, &shuffled].map(|points| {
            let (mut right, mut tested) = (0, 0);
            for fold in 0..folds {
                let is_here = |point: usize| point / 2 % folds == fold;
                let of = |here: bool| (0..2 * pairs).filter(move |&point| is_here(point) == here);
                let is_seen = |&other: &usize| of(true).any(|point| are_same(point, other));
                let others: Vec<usize> = of(false).filter(|other| !is_seen(other)).collect();
                let has = |second: bool| others.iter().any(|&at| points.second[at] == second);
                if !has(false) || !has(true) {
                    continue;
                }
                let probe = Points {
                    x: points.x.select_rows(&others),
                    second: others.iter().map(|&point| points.second[point]).collect(),
                }
                .probe();
                let told =
                    |point: &usize| probe.is_second(&points.x, *point) == points.second[*point];
                right += of(true).filter(told).count();
                tested += of(true).count();
            }
            right as f64 / tested as f64
        })
    }

    /// IsoScore: how evenly the points' variance is spread over the dimensions, 1 where it is equal in all, 0 where it is along one.
    /// # Source
    /// Rudman, Gillman, Rayne and Eickhoff 2022, arXiv 2108.07344.
    pub fn isotropy(&self) -> f64 {
        let Some((singular, _)) = self.axes(false) else {
            return f64::NAN;
        };
        let mut variances: Vec<f64> = singular.iter().map(|s| s * s).collect();
        variances.resize(self.x.ncols(), 0.0);
        iso_score(&variances)
    }

    /// The difference of two centres, by Lloyd's steps from far starts.
    fn clusters(&self, rng: &mut ChaCha8Rng) -> Result<DVector<f64>, String> {
        let rows: Vec<DVector<f64>> = self.x.row_iter().map(|row| row.transpose()).collect();
        let mut best: Option<(f64, DVector<f64>)> = None;
        for _ in 0..STARTS {
            let first = rows[rng.random_range(0..rows.len())].clone();
            // The second in proportion to its squared distance (k-means++).
            let far: Vec<f64> = rows
                .iter()
                .map(|row| (row - &first).norm_squared())
                .collect();
            let mut left = rng.random::<f64>() * far.iter().sum::<f64>();
            let second = far.iter().position(|far| {
                left -= far;
                left <= 0.0
            });
            let mut centres = [first, rows[second.unwrap_or(rows.len() - 1)].clone()];
            let mut spread = f64::INFINITY;
            for _ in 0..ROUNDS {
                let mut sums = [
                    DVector::zeros(self.x.ncols()),
                    DVector::zeros(self.x.ncols()),
                ];
                let (mut counts, mut now) = ([0usize; 2], 0.0);
                for row in &rows {
                    let [a, b] = [0, 1].map(|of: usize| (row - &centres[of]).norm_squared());
                    let of = usize::from(b < a);
                    sums[of] += row;
                    counts[of] += 1;
                    now += a.min(b);
                }
                for of in 0..2 {
                    if counts[of] > 0 {
                        centres[of] = &sums[of] / counts[of] as f64;
                    }
                }
                if now >= spread * (1.0 - 1e-12) {
                    break;
                }
                spread = now;
            }
            if best.as_ref().is_none_or(|(least, _)| spread < *least) {
                best = Some((spread, &centres[1] - &centres[0]));
            }
        }
        let (_, direction) = best.expect("there are starts");
        if direction.norm() <= self.least() {
            return Err("all activations are the same".into());
        }
        Ok(direction)
    }
}

/// A linear probe: of the second class where `x . direction + intercept` is above zero.
#[derive(Debug, Clone, PartialEq)]
pub struct Probe {
    pub direction: DVector<f64>,
    pub intercept: f64,
}

impl Probe {
    fn is_second(&self, x: &DMatrix<f64>, point: usize) -> bool {
        (x.row(point) * &self.direction)[0] + self.intercept > 0.0
    }
}

/// The score of variances along principal axes.
fn iso_score(variances: &[f64]) -> f64 {
    let n = variances.len() as f64;
    let length = variances.iter().map(|v| v * v).sum::<f64>().sqrt();
    if length == 0.0 {
        return f64::NAN;
    }
    if n <= 1.0 {
        return 1.0;
    }
    let from_even = variances
        .iter()
        .map(|v| (v * n.sqrt() / length - 1.0).powi(2));
    let defect = from_even.sum::<f64>().sqrt() / (2.0 * (n - n.sqrt())).sqrt();
    let share = (n - defect * defect * (n - n.sqrt())).powi(2) / (n * n);
    (n * share - 1.0) / (n - 1.0)
}

/// A subspace of so many dimensions, drawn without looking.
pub(super) fn random(width: usize, dims: usize, rng: &mut ChaCha8Rng) -> Subspace {
    let drawn = DMatrix::from_fn(width, dims, |_, _| f64::from(normal(rng)));
    Subspace::of(orthonormal(drawn).0)
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    /// Two clouds apart along the first axis, wide along the second; so few that covariance has no full rank.
    fn clouds(d: usize) -> Points {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let n = 24;
        let second: Vec<bool> = (0..n).map(|i| i % 2 == 1).collect();
        let mut x = DMatrix::from_fn(n, d, |_, _| 0.1 * f64::from(normal(&mut rng)));
        for (i, &second) in second.iter().enumerate() {
            x[(i, 0)] += if second { 2.0 } else { -2.0 };
            x[(i, 1)] += 9.0 * f64::from(normal(&mut rng));
        }
        Points { x, second }
    }

    fn direction(points: &Points, method: SubspaceMethod) -> Vec<f64> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let found = points.fit(method, 1, &mut rng).expect("it finds one");
        found.directions().expect("a direction").remove(0)
    }

    #[test]
    fn each_method_finds_what_it_looks_for() {
        let points = clouds(40);
        for (method, axis) in [
            (SubspaceMethod::Lda, 0),
            // The largest variance is not what tells the classes apart.
            (SubspaceMethod::Pca, 1),
            (SubspaceMethod::KMeans, 1),
        ] {
            let found = direction(&points, method);
            assert!(found[axis].abs() > 0.9, "{method}: {}", found[axis]);
            let length: f64 = found.iter().map(|x| x * x).sum();
            assert!((length - 1.0).abs() < 1e-9);
        }
        // A probe weighs its features as they are z-scored.
        let probe = points.probe().direction;
        let z = points.centred(false);
        let weights = probe
            .iter()
            .enumerate()
            .map(|(j, w)| w.abs() * z.column(j).norm());
        let weights: Vec<f64> = weights.collect();
        assert!(weights[1..].iter().all(|weight| *weight < weights[0]));
        let apart = points.mean_of(true) - points.mean_of(false);
        let found = direction(&points, SubspaceMethod::MeanDifference);
        let along: f64 = found.iter().zip(apart.iter()).map(|(a, b)| a * b).sum();
        assert!((along.abs() - apart.norm()).abs() < 1e-9);
    }

    #[test]
    fn the_probe_is_where_its_loss_is_flat() {
        // At the least of `|w|^2 / 2 + loss` the weights are the sum of the points by their residuals.
        let points = clouds(40);
        let probe = points.probe();
        let (n, d) = points.x.shape();
        let z = points.centred(false);
        for j in 0..d {
            let deviation = z.column(j).norm() / (n as f64).sqrt();
            let slope: f64 = (0..n)
                .map(|i| {
                    let f = (points.x.row(i) * &probe.direction)[0] + probe.intercept;
                    let y = f64::from(u8::from(points.second[i]));
                    (y - sigmoid(f)) * z[(i, j)] / deviation
                })
                .sum();
            let weight = probe.direction[j] * deviation;
            assert!((weight - slope).abs() < 1e-6, "{j}: {weight} {slope}");
        }
    }

    #[test]
    fn a_probe_is_tested_on_what_it_did_not_see() {
        let mut rng = ChaCha8Rng::seed_from_u64(4);
        let [own, shuffled] = clouds(3).cross_validated(FOLDS, &mut rng);
        assert!(own > 0.9 && shuffled < 0.8, "{own} {shuffled}");
        // Where each class is one point over and over, nothing is left to learn from.
        let points = clouds(3);
        let again = Points {
            x: DMatrix::from_fn(24, 3, |i, j| points.x[(i % 2, j)]),
            second: points.second,
        };
        let [own, shuffled] = again.cross_validated(FOLDS, &mut rng);
        assert!(own.is_nan() && shuffled.is_nan(), "{own} {shuffled}");
    }

    #[test]
    fn without_variance_within_classes_the_discriminant_is_the_difference_of_means() {
        let points = clouds(5);
        let flat = Points {
            x: DMatrix::from_fn(24, 5, |i, j| points.x[(i % 2, j)]),
            second: points.second,
        };
        let [lda, means] = [SubspaceMethod::Lda, SubspaceMethod::MeanDifference]
            .map(|method| direction(&flat, method));
        let along: f64 = lda.iter().zip(&means).map(|(a, b)| a * b).sum();
        assert!((along.abs() - 1.0).abs() < 1e-9, "{along}");
    }

    #[test]
    fn isotropy_is_one_where_all_is_equal_and_zero_along_a_line() {
        assert!((iso_score(&[2.0; 5]) - 1.0).abs() < 1e-12);
        assert!(iso_score(&[3.0, 0.0, 0.0, 0.0]).abs() < 1e-12);
        // Half of the dimensions used evenly is half of the way.
        let half = iso_score(&[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
        assert!((half - 3.0 / 7.0).abs() < 1e-12, "{half}");
    }

    #[test]
    fn what_is_not_there_is_not_found() {
        let same = Points {
            x: DMatrix::from_element(6, 4, 1.5),
            second: vec![false, true, false, true, false, true],
        };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        for method in [
            SubspaceMethod::MeanDifference,
            SubspaceMethod::Lda,
            SubspaceMethod::KMeans,
            SubspaceMethod::Logistic,
        ] {
            assert!(same.fit(method, 1, &mut rng).is_err(), "{method}");
        }
        let mut no_number = clouds(4);
        no_number.x[(0, 0)] = f64::NAN;
        let refused = no_number.fit(SubspaceMethod::Pca, 1, &mut rng);
        assert!(refused.is_err_and(|reason| reason.contains("a NaN")));
        let refused = clouds(40).fit(SubspaceMethod::Pca, 24, &mut rng);
        assert!(refused.is_err_and(|reason| reason.contains("vary along 23")));
    }
}
