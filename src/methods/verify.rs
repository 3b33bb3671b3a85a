//! Estimates held against the exact effect: the strongest cells and as many drawn at random are measured by the exact twin of a
//! method ([`Method::exact`]).
//!
//! The strongest say how far the ranking can be trusted, the random ones what it may have missed. For AtP* a bound on what was
//! missed comes from patching random halves of the unverified nodes together.
//!
//! Source of the bound: Kramár et al. 2024, arXiv 2403.00745, section 4.2; the statistic is our reading of it: Welch's intervals of
//! the difference that a node's presence makes inside a random joint corruption, which is not its effect in the clean run.

mod found;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

pub use found::{Bound, Checked, Verification};

use super::measure::{Watch, collect};
use super::method::{Method, Running, Subject, VerifyOptions};
use crate::error::{Error, Result};
use crate::scores::{Cell, Detail, ExampleScores, Measured};

/// # Errors
/// [`Error::Invalid`] unless there are `k` cells to verify.
pub fn check(k: usize, n_cells: usize) -> Result<()> {
    if k > 0 && k <= n_cells {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "`Running::verify = {k}` cannot be done: there are {n_cells} cells with an exact twin; give a number from 1 to that"
    )))
}

/// The `k` strongest of some estimates, and `k` others drawn at random: indices ascending, with whether each was drawn.
/// # Errors
/// [`Error::Invalid`] if there are fewer than `k`.
pub fn choose(estimates: &[f64], k: usize, seed: u64) -> Result<Vec<(usize, bool)>> {
    check(k, estimates.len())?;
    let mut order: Vec<usize> = (0..estimates.len()).collect();
    order.sort_by(|&a, &b| estimates[b].abs().total_cmp(&estimates[a].abs()));
    let mut rest = order.split_off(k);
    rest.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    rest.truncate(k);
    let top = order.into_iter().map(|cell| (cell, false));
    let mut chosen: Vec<(usize, bool)> = top
        .chain(rest.into_iter().map(|cell| (cell, true)))
        .collect();
    chosen.sort_unstable();
    Ok(chosen)
}

/// The cells of a method's exact twin, each with the cells that are estimates of it or of parts of it.
fn exact_cells(method: &dyn Method, cells: &[Cell]) -> Vec<(Cell, Vec<usize>)> {
    let mut places: HashMap<Cell, usize> = HashMap::new();
    let mut of: Vec<(Cell, Vec<usize>)> = Vec::new();
    for (index, cell) in cells.iter().enumerate() {
        let Some(exact) = method.exact_cell(cell) else {
            continue;
        };
        let at = *places.entry(exact.clone()).or_insert_with(|| {
            of.push((exact, Vec::new()));
            of.len() - 1
        });
        of[at].1.push(index);
    }
    of
}

/// Fewer joint patches than this bound nothing.
const LEAST_DRAWS: usize = 8;

/// Whether what is asked for can be verified, before anything runs.
/// # Errors
/// [`Error::Invalid`] if the method has no exact twin, or too few cells; for a bound from too few joint patches.
pub(super) fn check_method(
    method: &dyn Method,
    name: &str,
    cells: &[Cell],
    options: VerifyOptions,
) -> Result<()> {
    if method.exact(&[]).is_none() {
        return Err(Error::invalid(format!(
            "`Running::verify` holds estimates against exact effects, and `{name}` is no estimate of an effect that could be measured; leave it out"
        )));
    }
    if (1..LEAST_DRAWS).contains(&options.bound_draws) {
        return Err(Error::invalid(format!(
            "a bound on what was missed needs at least {LEAST_DRAWS} joint patches, not {}; leave it out with 0",
            options.bound_draws
        )));
    }
    check(options.k, exact_cells(method, cells).len())
}

/// Measures the strongest cells and random ones of what a method [measured](super::measurements) exactly.
/// # Errors
/// [`Error::Invalid`] if the method has no exact twin, or too few cells; those of measuring.
pub fn verify(
    on: Subject<'_>,
    method: &dyn Method,
    measured: &Measured,
    options: VerifyOptions,
    running: &Running,
    watch: &Watch<'_>,
) -> Result<Verification> {
    let header = method.header(on.task);
    let places = exact_cells(method, &measured.cells);
    let sizes = method.exact(&[]).is_some_and(|exact| exact.sizes);
    let means = measured.means(header.direction, sizes);
    let estimates: Vec<f64> = (places.iter())
        .map(|(_, of)| of.iter().map(|&cell| means[cell]).sum())
        .collect();
    check_method(method, &header.method, &measured.cells, options)?;
    let chosen = choose(&estimates, options.k, header.seed)?;
    let wanted: Vec<Cell> = chosen.iter().map(|&(at, _)| places[at].0.clone()).collect();
    let exact = method
        .exact(&wanted)
        .ok_or_else(|| Error::invalid(format!("`{}` has no exact twin", header.method)))?;
    let direction = exact.method.header(on.task).direction;
    let running = Running {
        verify: None,
        shard: None,
        detail: Detail::Mean,
        ..running.clone()
    };
    let found = collect(on, &*exact.method, &running, watch, "verifying")?.measured;
    let place: HashMap<&Cell, usize> = found
        .cells
        .iter()
        .enumerate()
        .map(|(i, c)| (c, i))
        .collect();
    let by_example: BTreeMap<usize, &ExampleScores> = found
        .examples
        .iter()
        .map(|one| (one.example, one))
        .collect();
    let mut effects = vec![vec![f64::NAN; measured.examples.len()]; wanted.len()];
    for (effects, cell) in effects.iter_mut().zip(&wanted) {
        let at = *place.get(cell).ok_or_else(|| {
            Error::invalid(format!(
                "`{}` does not measure {cell}",
                exact.method.header(on.task).method
            ))
        })?;
        for (effect, example) in effects.iter_mut().zip(&measured.examples) {
            if let Some(one) = by_example.get(&example.example)
                && let Some(value) = one.value(at)
            {
                *effect = exact.sign * (value - one.base(direction));
            }
        }
    }
    let mean = |effects: &[f64]| {
        let there: Vec<f64> = (effects.iter().copied())
            .filter(|effect| effect.is_finite())
            .map(|effect| if sizes { effect.abs() } else { effect })
            .collect();
        there.iter().sum::<f64>() / there.len().max(1) as f64
    };
    let checked =
        (chosen.iter().zip(&effects).zip(wanted)).map(|((&(at, random), effects), cell)| {
            let of = &places[at].1;
            let is_itself = of.len() == 1 && measured.cells[of[0]] == cell;
            Checked {
                cell,
                index: is_itself.then(|| of[0]),
                random,
                estimate: estimates[at],
                exact: mean(effects),
            }
        });
    let mut verification = Verification {
        checked: checked.collect(),
        effects,
        sizes,
        bound: None,
    };
    if options.bound_draws > 0 {
        let draws = options.bound_draws;
        verification.bound = method.bound(on, &running, &verification, draws, watch.progress)?;
    }
    Ok(verification)
}

/// The bound that joint patches give. Each draw patched a random half of the cells that were not verified in a random pair. For a
/// cell, let `d` be the difference between the mean effects of the draws with and without it, and `se` its standard error: with
/// probability `1 - risk` the cell's effect (inside such a joint corruption) is below `|d| + t se`, with Student's `t` at
/// Welch's degrees of freedom. The bound is the largest of these.
pub(super) fn bound_of(
    rest: &[usize],
    sets: &[BTreeSet<usize>],
    effects: &[f64],
    risk: f64,
) -> Bound {
    let mut bound = 0f64;
    for cell in rest {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for (set, &effect) in sets.iter().zip(effects) {
            if set.contains(cell) {
                with.push(effect);
            } else {
                without.push(effect);
            }
        }
        bound = bound.max(upper(&with, &without, risk).unwrap_or(f64::INFINITY));
    }
    Bound {
        effect: bound,
        risk,
        draws: sets.len(),
        nodes: rest.len(),
    }
}

/// `|d| + t se` of Welch's test; `None` with too few draws on a side.
fn upper(with: &[f64], without: &[f64], risk: f64) -> Option<f64> {
    let moments = |xs: &[f64]| {
        let n = xs.len() as f64;
        let mean = xs.iter().sum::<f64>() / n;
        let variance = xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0);
        (mean, variance / n, n)
    };
    if with.len() < 2 || without.len() < 2 {
        return None;
    }
    let ((a, va, na), (b, vb, nb)) = (moments(with), moments(without));
    let error = va + vb;
    if error == 0.0 {
        return Some((a - b).abs());
    }
    let freedom = error * error / (va * va / (na - 1.0) + vb * vb / (nb - 1.0));
    let t = StudentsT::new(0.0, 1.0, freedom)
        .ok()?
        .inverse_cdf(1.0 - risk);
    Some((a - b).abs() + t * error.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_are_taken_and_as_many_others_drawn() {
        let estimates = [0.1, -5.0, 0.2, 3.0, 0.0, 0.3];
        let chosen = choose(&estimates, 2, 1).unwrap();
        let top: Vec<usize> = chosen
            .iter()
            .filter(|(_, random)| !random)
            .map(|(i, _)| *i)
            .collect();
        assert_eq!(top, [1, 3]);
        assert_eq!(chosen.len(), 4);
        assert_eq!(choose(&estimates, 6, 1).unwrap().len(), 6);
        let message = choose(&estimates, 7, 1).unwrap_err().to_string();
        assert!(message.contains("there are 6 cells"), "{message}");
        assert!(choose(&estimates, 0, 1).is_err());
    }

    fn found(pairs: &[(f64, f64)]) -> Verification {
        let checked = |&(estimate, exact): &(f64, f64)| Checked {
            cell: Cell::default(),
            index: None,
            random: false,
            estimate,
            exact,
        };
        Verification {
            checked: pairs.iter().map(checked).collect(),
            effects: Vec::new(),
            sizes: false,
            bound: None,
        }
    }

    #[test]
    fn correlations_and_signs_are_those_of_the_pairs() {
        let found = found(&[(2.5, 2.0), (1.0, -1.0), (0.1, 0.0)]);
        assert_eq!(found.sign_agreement(), Some(0.5));
        assert_eq!(found.worst(1)[0].estimate, 1.0);
        assert_eq!(found.median_relative_error(), Some(0.5 * (0.25 + 2.0)));
    }

    #[test]
    fn one_large_effect_does_not_hide_that_the_others_are_wrong() {
        let found = found(&[(10.0, 10.0), (0.1, 0.3), (0.2, 0.2), (0.3, 0.1)]);
        assert!(found.correlation(|_| true).unwrap() > 0.99);
        assert!((found.correlation_without_largest().unwrap() + 1.0).abs() < 1e-12);
        // Ranks of the estimates 4 1 2 3, of the effects 4 3 2 1: 1 - 6 (4 + 4) / 60.
        assert!((found.rank_correlation(|_| true).unwrap() - 0.2).abs() < 1e-12);
        assert!(found.line().contains("without the largest effect"));
    }

    #[test]
    fn the_bound_of_two_samples_is_welchs() {
        // Means 2 and 0, variances 1 each, four draws each: se = sqrt(1/2), 6 degrees of freedom, t(0.99) = 3.1427.
        let spread = |mean: f64| [-1.0, -1.0, 1.0, 1.0].map(|x| mean + x * 0.75f64.sqrt());
        let bound = upper(&spread(2.0), &spread(0.0), 0.01).unwrap();
        assert!(
            (bound - (2.0 + 3.1427 * 0.5f64.sqrt())).abs() < 1e-3,
            "{bound}"
        );
        assert_eq!(upper(&[1.0], &[2.0, 3.0], 0.01), None);
    }
}
