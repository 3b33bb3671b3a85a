//! Estimates held against the exact effect: the strongest sites or edges and as many drawn at random are patched by the sweep engine.
//!
//! The strongest say how far the ranking can be trusted, the random ones what it may have missed. For AtP* a bound on what was
//! missed comes from patching random halves of the unverified nodes together ([`false_negative_bound`]).
//!
//! Source of the bound: Kramár et al. 2024, arXiv 2403.00745, section 4.2; the statistic is our reading of it: Welch's intervals of
//! the difference that a node's presence makes inside a random joint corruption, which is not its effect in the clean run.

use std::fmt;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use statrs::distribution::{ContinuousCDF, StudentsT};

use super::NodeAttributionConfig;
use super::edges::EdgeScores;
use crate::error::{Error, Result};
use crate::hooks::Edge;
use crate::methods::PatchConfig;
use crate::methods::activation_patching::{patch_chosen, patch_together};
use crate::methods::exact_edges::{EdgeConfig, exact_edge_effects};
use crate::methods::tokens::{TokenConfig, token_attribution_with};
use crate::model::Model;
use crate::run::Progress;
use crate::scores::{Cell, Column, Detail, Direction, ExampleScores, Scores};
use crate::task::Task;

/// One site or edge, estimated and measured: means over pairs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checked {
    /// Index among the table's cells.
    pub cell: usize,
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
    /// Pearson's correlation of estimates and exact effects; `None` if one of them does not vary.
    pub fn correlation(&self, of: impl Fn(&Checked) -> bool) -> Option<f64> {
        let pairs: Vec<(f64, f64)> = (self.checked.iter())
            .filter(|checked| of(checked))
            .map(|checked| (checked.estimate, checked.exact))
            .collect();
        correlation(&pairs)
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
    pub fn worst(&self, n: usize) -> Vec<Checked> {
        let mut worst = self.checked.clone();
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
        cells: &[Cell],
        examples: &[ExampleScores],
        detail: Detail,
    ) -> Result<()> {
        let mut of_cell = vec![None; cells.len()];
        for (i, checked) in self.checked.iter().enumerate() {
            of_cell[checked.cell] = Some(i);
        }
        let rows = crate::scores::rows(cells.len(), examples, detail);
        let exact: Vec<Option<f64>> = rows
            .iter()
            .map(|&(cell, example)| {
                let i = of_cell[cell as usize]?;
                let effect = match example {
                    Some(example) => self.effects[i][example],
                    None => self.checked[i].exact,
                };
                effect.is_finite().then_some(effect)
            })
            .collect();
        let drawn: Vec<Option<&str>> = rows
            .iter()
            .map(|&(cell, _)| {
                let checked = self.checked[of_cell[cell as usize]?];
                Some(if checked.random { "random" } else { "top" })
            })
            .collect();
        scores.set_floats(Column::Exact, &exact)?;
        scores.set_texts(Column::Checked, &drawn)?;
        scores.provenance.notes.push(self.line(cells));
        Ok(())
    }

    /// One line that says how far the estimates can be trusted.
    pub fn line(&self, cells: &[Cell]) -> String {
        let (top, random): (Vec<&Checked>, Vec<&Checked>) =
            self.checked.iter().partition(|checked| !checked.random);
        let number = |x: Option<f64>| x.map_or("undefined".into(), |x| format!("{x:.3}"));
        let mut line = format!(
            "verified {} top and {} random exactly: correlation {} (top {}, random {})",
            top.len(),
            random.len(),
            number(self.correlation(|_| true)),
            number(self.correlation(|checked| !checked.random)),
            number(self.correlation(|checked| checked.random)),
        );
        if let Some(agreement) = self.sign_agreement() {
            line += &format!(", signs agree in {:.0}%", 100.0 * agreement);
        }
        let worst: Vec<String> = (self.worst(3).iter())
            .map(|checked| {
                let name = &cells[checked.cell];
                format!("{name} {:.3} for {:.3}", checked.estimate, checked.exact)
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

/// Pearson's correlation; `None` if one side does not vary.
pub fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (a, b) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let sum = |of: &dyn Fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>();
    let spread = sum(&|pair| (pair.0 - a).powi(2)) * sum(&|pair| (pair.1 - b).powi(2));
    let together = sum(&|pair| (pair.0 - a) * (pair.1 - b));
    (spread > 0.0).then(|| together / spread.sqrt())
}

/// # Errors
/// [`Error::Invalid`] unless there are `k` cells to verify.
pub fn check(k: usize, n_cells: usize) -> Result<()> {
    match k > 0 && k <= n_cells {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "`--verify {k}` cannot be done: there are {n_cells} sites to verify; give a number from 1 to that"
        ))),
    }
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

/// The mean of each cell over the examples that have it; of sizes where `sizes`.
fn means(
    n_cells: usize,
    examples: &[ExampleScores],
    direction: Direction,
    sizes: bool,
) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0; n_cells], vec![0usize; n_cells]);
    for example in examples {
        let base = match direction {
            Direction::Denoise => example.corrupted,
            Direction::Noise | Direction::Ablate => example.clean,
            Direction::Direct => 0.0,
        };
        for (&cell, value) in example.cells.iter().zip(&example.values) {
            let score = value - base;
            sums[cell as usize] += if sizes { score.abs() } else { score };
            counts[cell as usize] += 1;
        }
    }
    sums.iter()
        .zip(counts)
        .map(|(sum, count)| sum / count.max(1) as f64)
        .collect()
}

fn verification(
    chosen: &[(usize, bool)],
    estimates: &[f64],
    effects: Vec<Vec<f64>>,
    sizes: bool,
) -> Verification {
    let mean = |effects: &[f64]| {
        let effects = effects.iter().filter(|effect| effect.is_finite());
        let (mut sum, mut count) = (0.0, 0usize);
        for effect in effects {
            sum += if sizes { effect.abs() } else { *effect };
            count += 1;
        }
        sum / count.max(1) as f64
    };
    let checked = chosen
        .iter()
        .zip(&effects)
        .map(|(&(cell, random), effects)| Checked {
            cell,
            random,
            estimate: estimates[cell],
            exact: mean(effects),
        });
    Verification {
        checked: checked.collect(),
        effects,
        sizes,
        bound: None,
    }
}

/// What is verified: a model and a task.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub model: &'a Model,
    pub task: &'a Task,
}

/// Patches the `k` strongest cells and `k` random ones exactly.
/// # Errors
/// `k` larger than the number of cells; those of [`activation_patching`](crate::methods::activation_patching()).
pub fn verify_nodes(
    subject: Subject<'_>,
    config: &NodeAttributionConfig,
    cells: &[Cell],
    examples: &[ExampleScores],
    k: usize,
    progress: &dyn Progress,
) -> Result<Verification> {
    let patch = &config.patch;
    let estimates = means(cells.len(), examples, patch.direction, config.grad_drop);
    let chosen = choose(&estimates, k, patch.seed)?;
    let effects = effects_of(subject, patch, &chosen, examples, progress)?;
    Ok(verification(&chosen, &estimates, effects, config.grad_drop))
}

/// Removes the embeddings of the `k` most important token positions and of `k` random ones. A share says what a token
/// brings, so it is held against minus the effect of taking it away.
/// # Errors
/// As [`verify_nodes`].
pub fn verify_tokens(
    subject: Subject<'_>,
    removal: &PatchConfig,
    cells: &[Cell],
    examples: &[ExampleScores],
    k: usize,
    progress: &dyn Progress,
) -> Result<Verification> {
    let estimates = means(cells.len(), examples, Direction::Direct, false);
    // Only tokens can be removed; what a method puts into rows of its own cannot.
    let tokens: Vec<usize> = (0..cells.len())
        .filter(|&cell| cells[cell].pos.is_some())
        .collect();
    let of_tokens: Vec<f64> = tokens.iter().map(|&cell| estimates[cell]).collect();
    let chosen = choose(&of_tokens, k, removal.seed)?;
    // The cells of `embed:pos` are the positions in order.
    let places: Vec<(usize, bool)> = chosen
        .iter()
        .map(|&(token, random)| (cells[tokens[token]].pos.unwrap_or(0) as usize, random))
        .collect();
    let mut effects = effects_of(subject, removal, &places, examples, progress)?;
    effects
        .iter_mut()
        .flatten()
        .for_each(|effect| *effect = -*effect);
    let chosen: Vec<(usize, bool)> = chosen
        .iter()
        .map(|&(token, random)| (tokens[token], random))
        .collect();
    Ok(verification(&chosen, &estimates, effects, false))
}

/// [`token_attribution`](crate::methods::tokens::token_attribution) with [`verify_tokens`]: the table with its verification.
/// # Errors
/// Those of both.
pub fn verified_tokens(
    model: &Model,
    task: &Task,
    config: &TokenConfig,
    removal: &PatchConfig,
    k: usize,
    progress: &dyn Progress,
) -> Result<Scores> {
    let longest = task.pairs().iter().map(|pair| pair.clean.len()).max();
    check(k, longest.unwrap_or(0))?;
    let (mut scores, measured) = token_attribution_with(model, task, config, progress)?;
    let (cells, examples) = (&measured.cells, &measured.examples);
    let subject = Subject { model, task };
    let found = verify_tokens(subject, removal, cells, examples, k, progress)?;
    found.add_to(&mut scores, cells, examples, config.detail)?;
    Ok(scores)
}

/// The exact effect of each chosen cell of a patching sweep on each example, `[chosen][examples]`.
fn effects_of(
    subject: Subject<'_>,
    patch: &PatchConfig,
    chosen: &[(usize, bool)],
    examples: &[ExampleScores],
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    let Subject { model, task } = subject;
    let indices: Vec<usize> = chosen.iter().map(|&(cell, _)| cell).collect();
    let measured = patch_chosen(model, task, patch, &indices, progress)?;
    let mut effects = vec![vec![f64::NAN; examples.len()]; chosen.len()];
    for (at, example) in examples.iter().enumerate() {
        let Some(exact) = measured
            .iter()
            .find(|exact| exact.example == example.example)
        else {
            continue;
        };
        let base = match patch.direction {
            Direction::Denoise => exact.corrupted,
            _ => exact.clean,
        };
        for (&cell, value) in exact.cells.iter().zip(&exact.values) {
            effects[cell as usize][at] = value - base;
        }
    }
    Ok(effects)
}

/// Patches the `k` strongest edges and `k` random ones exactly.
/// # Errors
/// `k` larger than the number of edges; those of [`exact_edge_effects`].
pub fn verify_edges(
    model: &Model,
    task: &Task,
    scores: &EdgeScores,
    config: &EdgeConfig,
    k: usize,
    seed: u64,
    progress: &dyn Progress,
) -> Result<Verification> {
    let graph = &scores.graph;
    let edges: Vec<Edge> = graph.edges().collect();
    let mean = scores.mean();
    let mut estimates = Vec::with_capacity(edges.len());
    for edge in &edges {
        let (row, column) = graph.place(edge)?;
        estimates.push(mean[row * graph.n_dst() + column]);
    }
    let chosen = choose(&estimates, k, seed)?;
    let wanted: Vec<Edge> = chosen.iter().map(|&(edge, _)| edges[edge]).collect();
    let by_pair = exact_edge_effects(model, task.pairs(), &wanted, config, progress)?;
    let effects = (0..wanted.len())
        .map(|edge| {
            scores
                .examples
                .iter()
                .map(|example| by_pair[example.pair][edge])
                .collect()
        })
        .collect();
    Ok(verification(&chosen, &estimates, effects, false))
}

/// Bounds the largest effect among the nodes that were not patched one by one.
///
/// Each draw patches a random half of them together in a random pair. For a node, let `d` be the difference between the mean
/// effects of the draws with and without it, and `se` its standard error: with probability `1 - risk` the node's effect (inside such
/// a joint corruption) is below `|d| + t se`, with Student's `t` at Welch's degrees of freedom. The bound is the largest of these.
/// # Errors
/// [`Error::Invalid`] for fewer than eight draws; those of the sweep.
pub fn false_negative_bound(
    subject: Subject<'_>,
    patch: &PatchConfig,
    n_cells: usize,
    verified: &Verification,
    draws: usize,
    progress: &dyn Progress,
) -> Result<Option<Bound>> {
    const RISK: f64 = 0.01;
    let Subject { model, task } = subject;
    if draws < 8 {
        return Err(Error::invalid(
            "a bound on what was missed needs at least 8 joint patches",
        ));
    }
    let mut rest: Vec<usize> = (0..n_cells).collect();
    rest.retain(|cell| !verified.checked.iter().any(|checked| checked.cell == *cell));
    if rest.is_empty() {
        return Ok(None);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(patch.seed ^ 0x6a09_e667);
    let sets: Vec<(usize, Vec<usize>)> = (0..draws)
        .map(|_| {
            let pair = rng.random_range(0..task.pairs().len());
            let set = rest.iter().copied().filter(|_| rng.random_bool(0.5));
            (pair, set.collect())
        })
        .collect();
    let effects = patch_together(model, task, patch, &sets, progress)?;
    let mut bound = 0f64;
    for &cell in &rest {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for ((_, set), &effect) in sets.iter().zip(&effects) {
            match set.binary_search(&cell) {
                Ok(_) => with.push(effect),
                Err(_) => without.push(effect),
            }
        }
        bound = bound.max(upper(&with, &without, RISK).unwrap_or(f64::INFINITY));
    }
    Ok(Some(Bound {
        effect: bound,
        risk: RISK,
        draws,
        nodes: rest.len(),
    }))
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
        assert!(message.contains("there are 6 sites"), "{message}");
        assert!(choose(&estimates, 0, 1).is_err());
    }

    #[test]
    fn correlations_and_signs_are_those_of_the_pairs() {
        assert_eq!(
            correlation(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]),
            Some(1.0)
        );
        assert_eq!(correlation(&[(1.0, 1.0), (1.0, 2.0)]), None);
        let chosen = [(0, false), (1, false), (2, true)];
        let exact = vec![vec![1.0, 3.0], vec![-1.0, -1.0], vec![0.0, 0.0]];
        let found = verification(&chosen, &[2.5, 1.0, 0.1], exact, false);
        assert_eq!(found.checked[0].exact, 2.0);
        assert_eq!(found.sign_agreement(), Some(0.5));
        assert_eq!(found.worst(1)[0].cell, 1);
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
