//! Estimates held against the exact effect: the strongest cells and as many drawn at random are measured by the exact twin of a
//! method ([`Method::exact`]).
//!
//! The strongest say how far the ranking can be trusted, the random ones what it may have missed. For AtP* a bound on what was
//! missed comes from patching random halves of the unverified nodes together.
//!
//! Source of the bound: Kramár et al. 2024, arXiv 2403.00745, section 4.2; the statistic is our reading of it: Welch's intervals of
//! the difference that a node's presence makes inside a random joint corruption, which is not its effect in the clean run.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::measure::{Watch, collect};
use super::method::{Method, Running, Subject, VerifyOptions};
use crate::error::{Error, Result};
use crate::scores::{Cell, Column, Detail, ExampleScores, Measured, Scores, statistics};

/// One cell, estimated and measured: means over pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// What was measured exactly.
    pub cell: Cell,
    /// Index among the table's cells, where the estimate is one of them (and not the sum of several).
    pub index: Option<usize>,
    /// Drawn at random rather than among the strongest.
    pub random: bool,
    pub estimate: f64,
    pub exact: f64,
}

/// What verification found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verification {
    pub checked: Vec<Checked>,
    /// The exact effect of each checked cell on each example, `[checked][examples]`; NaN where an example lacks the cell.
    pub effects: Vec<Vec<f64>>,
    /// Estimates are sizes without sign, and so are the exact effects beside them.
    pub sizes: bool,
    /// No unverified node has an effect above this, if it was asked for.
    pub bound: Option<Bound>,
}

/// A statistical bound on the largest effect among nodes that were not patched one by one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    pub effect: f64,
    /// Chance that it is wrong.
    pub risk: f64,
    /// Joint patches that it rests on.
    pub draws: usize,
    pub nodes: usize,
}

impl Verification {
    fn pairs(&self, of: impl Fn(&Checked) -> bool) -> Vec<(f64, f64)> {
        (self.checked.iter())
            .filter(|checked| of(checked))
            .map(|checked| (checked.estimate, checked.exact))
            .collect()
    }

    /// Pearson's correlation of estimates and exact effects; `None` if one of them does not vary.
    pub fn correlation(&self, of: impl Fn(&Checked) -> bool) -> Option<f64> {
        statistics::correlation(&self.pairs(of))
    }

    /// Spearman's correlation of the ranks.
    pub fn rank_correlation(&self, of: impl Fn(&Checked) -> bool) -> Option<f64> {
        statistics::rank_correlation(&self.pairs(of))
    }

    /// Pearson's correlation without the cell of the largest exact effect, which can carry it alone.
    pub fn correlation_without_largest(&self) -> Option<f64> {
        let mut pairs = self.pairs(|_| true);
        let size = |pair: &(f64, f64)| pair.1.abs().max(pair.0.abs());
        let largest =
            (0..pairs.len()).max_by(|&a, &b| size(&pairs[a]).total_cmp(&size(&pairs[b])))?;
        pairs.remove(largest);
        (pairs.len() > 2)
            .then(|| statistics::correlation(&pairs))
            .flatten()
    }

    /// The median of `|estimate - exact| / |exact|` over the cells whose exact effect is not zero.
    pub fn median_relative_error(&self) -> Option<f64> {
        statistics::median_relative_error(&self.pairs(|_| true))
    }

    /// The share of checked cells whose estimate has the sign of the exact effect; those whose exact effect is zero do not count.
    pub fn sign_agreement(&self) -> Option<f64> {
        let told: Vec<bool> = (self.checked.iter())
            .filter(|checked| checked.exact != 0.0)
            .map(|checked| checked.estimate * checked.exact > 0.0)
            .collect();
        let right = told.iter().filter(|&&right| right).count();
        (!self.sizes && !told.is_empty()).then(|| right as f64 / told.len() as f64)
    }

    /// The largest differences, worst first.
    pub fn worst(&self, n: usize) -> Vec<&Checked> {
        let mut worst: Vec<&Checked> = self.checked.iter().collect();
        let gap = |checked: &Checked| (checked.estimate - checked.exact).abs();
        worst.sort_by(|a, b| gap(b).total_cmp(&gap(a)));
        worst.truncate(n);
        worst
    }

    /// Adds the columns `exact` and `checked` (`top` or `random`) to the table, and the line to its notes.
    /// # Errors
    /// Those of building columns.
    pub fn add_to(
        &self,
        scores: &mut Scores,
        n_cells: usize,
        examples: &[ExampleScores],
        detail: Detail,
    ) -> Result<()> {
        let mut of_cell = vec![None; n_cells];
        for (i, checked) in self.checked.iter().enumerate() {
            if let Some(cell) = checked.index {
                of_cell[cell] = Some(i);
            }
        }
        let rows = crate::scores::rows(n_cells, examples, detail);
        let exact: Vec<Option<f64>> = rows
            .iter()
            .map(|&(cell, example)| {
                let i = of_cell[cell as usize]?;
                let effect = match example {
                    Some(example) if self.sizes => self.effects[i][example].abs(),
                    Some(example) => self.effects[i][example],
                    None => self.checked[i].exact,
                };
                effect.is_finite().then_some(effect)
            })
            .collect();
        let drawn: Vec<Option<&str>> = rows
            .iter()
            .map(|&(cell, _)| {
                let checked = &self.checked[of_cell[cell as usize]?];
                Some(if checked.random { "random" } else { "top" })
            })
            .collect();
        scores.set_floats(Column::Exact, &exact)?;
        scores.set_texts(Column::Checked, &drawn)?;
        scores.provenance.notes.push(self.line());
        Ok(())
    }

    /// One line that says how far the estimates can be trusted.
    pub fn line(&self) -> String {
        let random = self.checked.iter().filter(|checked| checked.random).count();
        let number = |x: Option<f64>| x.map_or("undefined".into(), |x| format!("{x:.3}"));
        let all = self.correlation(|_| true);
        let mut line = format!(
            "verified {} top and {random} random exactly: correlation {} (top {}, random {}), rank correlation {} (top {})",
            self.checked.len() - random,
            number(all),
            number(self.correlation(|checked| !checked.random)),
            number(self.correlation(|checked| checked.random)),
            number(self.rank_correlation(|_| true)),
            number(self.rank_correlation(|checked| !checked.random)),
        );
        // One large effect can make a correlation that the others do not have.
        if let (Some(all), Some(without)) = (all, self.correlation_without_largest())
            && (all - without).abs() > 0.02
        {
            line += &format!("; without the largest effect the correlation is {without:.3}");
        }
        if let Some(error) = self.median_relative_error() {
            line += &format!("; median relative error {:.0}%", 100.0 * error);
        }
        if let Some(agreement) = self.sign_agreement() {
            line += &format!(", signs agree in {:.0}%", 100.0 * agreement);
        }
        let worst: Vec<String> = (self.worst(3).iter())
            .map(|checked| {
                let (estimate, exact) = (checked.estimate, checked.exact);
                format!("{} {estimate:.3} for {exact:.3}", checked.cell)
            })
            .collect();
        line += &format!("; worst: {}", worst.join(", "));
        if let Some(bound) = &self.bound {
            line += &format!(
                "; none of the {} nodes not patched one by one has an effect above {:.3} (risk {}, {} joint patches)",
                bound.nodes, bound.effect, bound.risk, bound.draws
            );
        }
        line
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.4}", self.effect)
    }
}

/// # Errors
/// [`Error::Invalid`] unless there are `k` cells to verify.
pub fn check(k: usize, n_cells: usize) -> Result<()> {
    if k > 0 && k <= n_cells {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "`--verify {k}` cannot be done: there are {n_cells} cells with an exact twin; give a number from 1 to that"
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
            "`--verify` holds estimates against exact effects, and `{name}` is no estimate of an effect that could be measured; leave it out"
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
