//! Stability: how much a circuit would differ on other pairs of the same kind.
//!
//! A method scores every edge on every pair, and a circuit is chosen by the means. Had other pairs been drawn, other edges
//! would have been chosen. The bootstrap draws as many pairs as there are with replacement, chooses again, and asks how far the
//! circuits of two draws overlap (edges in both over edges in either), and how often each edge is chosen. Two halves of the
//! pairs, and all templates but one, give circuits that share no pair, or no wording.
//!
//! The same draws say how often the sign of an edge's mean agrees with that over all pairs: [`consistent`] leaves only
//! edges whose sign can be trusted to choose from.
//!
//! Sources: Méloux et al. 2025 (circuits under resampling); Nikankin et al. 2025, arXiv 2510.25786 (edges with a consistent sign).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::{EdgeSet, Graph, ScoredGraph, Selection, select_from};
use crate::error::{Error, Result};
use crate::hooks::Edge;
use crate::scores::statistics::{mean, percentile};
use crate::scores::{Cell, Direction, ExampleScores, Measured, Scores};
use crate::task::Task;

/// What a method found of every edge on each pair.
#[derive(Debug, Clone)]
pub struct PairScores {
    graph: Graph,
    /// For each pair `[n_src, n_dst]`, row by row; NaN is no score.
    scores: Vec<Vec<f64>>,
    /// The template of each pair.
    templates: Vec<usize>,
}

/// How the pairs are drawn again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resampling {
    /// Bootstrap draws of the pairs, and random halvings of them.
    pub draws: usize,
    pub seed: u64,
}

impl Default for Resampling {
    fn default() -> Self {
        Resampling {
            draws: 1000,
            seed: 0,
        }
    }
}

/// How far circuits of the same kind of pairs overlap.
#[derive(Debug, Clone)]
pub struct Stability {
    pub pairs: usize,
    pub resampling: Resampling,
    /// The mean overlap of the circuits of any two bootstrap draws.
    pub bootstrap: f64,
    /// The overlaps that 2.5% and 97.5% of pairs of draws stay below.
    pub bootstrap_range: (f64, f64),
    /// The mean overlap of a draw's circuit with that of all pairs.
    pub with_whole: f64,
    /// The mean overlap of the circuits of two random halves.
    pub split_half: f64,
    /// For each template, the overlap of the circuit without it with that of all pairs; empty where there is one template.
    pub without_template: BTreeMap<usize, f64>,
    /// The share of draws that choose an edge, for every edge that any draw chose.
    pub shares: BTreeMap<Edge, f64>,
}

impl PairScores {
    /// # Shapes
    /// `scores`: a matrix `[n_src, n_dst]` for each pair, NaN where there is no score; `templates`: one for each pair.
    /// # Errors
    /// [`Error::Invalid`] for matrices of another graph, and for numbers of pairs that differ.
    pub fn new(graph: Graph, scores: Vec<Vec<f64>>, templates: Vec<usize>) -> Result<Self> {
        let places = graph.n_src() * graph.n_dst();
        if scores.len() != templates.len() {
            return Err(Error::invalid(format!(
                "there are scores of {} pairs and templates of {}",
                scores.len(),
                templates.len()
            )));
        }
        match scores.iter().find(|scores| scores.len() != places) {
            Some(other) => Err(Error::invalid(format!(
                "a pair has scores at {} places, and its graph has {places}",
                other.len()
            ))),
            None => Ok(PairScores {
                graph,
                scores,
                templates,
            }),
        }
    }

    /// What a method measured of a task.
    /// # Errors
    /// [`Error::Invalid`] for a measurement without edges; those of [`Graph::place`].
    pub fn measured(
        measured: &Measured,
        direction: Direction,
        task: &Task,
        graph: Graph,
    ) -> Result<Self> {
        let place = |cell: &Cell| -> Result<Option<usize>> {
            let (Some(src), Some(dst)) = (&cell.src, &cell.dst) else {
                return Ok(None);
            };
            let (row, column) = graph.place(&format!("{src}->{dst}").parse()?)?;
            Ok(Some(row * graph.n_dst() + column))
        };
        let places: Vec<Option<usize>> =
            (measured.cells.iter()).map(place).collect::<Result<_>>()?;
        if places.iter().all(Option::is_none) {
            return Err(Error::invalid(
                "what was measured has no edges; take an edge method, such as `eap-ig`",
            ));
        }
        let templates: HashMap<usize, usize> = (task.pairs().iter())
            .map(|pair| (pair.index, pair.template))
            .collect();
        let of_pair = |example: &ExampleScores| {
            let mut scores = vec![f64::NAN; graph.n_src() * graph.n_dst()];
            let base = example.base(direction);
            for (&cell, value) in example.cells.iter().zip(&example.values) {
                if let Some(place) = places[cell as usize] {
                    // Scores by position add up to that of the edge.
                    let before = if scores[place].is_nan() {
                        0.0
                    } else {
                        scores[place]
                    };
                    scores[place] = before + (value - base);
                }
            }
            let template = templates.get(&example.example).copied();
            (scores, template.unwrap_or_default())
        };
        let (scores, templates) = measured.examples.iter().map(of_pair).unzip();
        PairScores::new(graph, scores, templates)
    }

    /// The scores of a table that has a row for each example. A table does not say which template a pair is of: all count as one.
    /// # Errors
    /// [`Error::Invalid`] for a table without edges, or of means alone; those of [`Graph::place`].
    pub fn from_scores(table: &Scores, graph: Graph) -> Result<Self> {
        let texts = |name| table.texts(name);
        let (Some(sources), Some(readers), Some(values)) =
            (texts("src"), texts("dst"), table.floats("score"))
        else {
            return Err(Error::invalid(format!(
                "a table of `{}` has no edges; take an edge method, such as `eap-ig`",
                table.provenance.method
            )));
        };
        let Some(examples) = table.integers("example") else {
            return Err(Error::invalid(
                "the table has only means over pairs, and stability is asked of scores of each pair; measure with `Running::detail = PerExample`",
            ));
        };
        let mut pairs: BTreeMap<i64, Vec<f64>> = BTreeMap::new();
        let mut places: HashMap<(&str, &str), usize> = HashMap::new();
        for row in 0..values.len() {
            let (Some(src), Some(dst), Some(value), Some(example)) =
                (sources[row], readers[row], values[row], examples[row])
            else {
                continue;
            };
            let place = match places.get(&(src, dst)) {
                Some(&place) => place,
                None => {
                    let (row, column) = graph.place(&format!("{src}->{dst}").parse()?)?;
                    let place = row * graph.n_dst() + column;
                    places.insert((src, dst), place);
                    place
                }
            };
            let nothing = || vec![f64::NAN; graph.n_src() * graph.n_dst()];
            let score = &mut pairs.entry(example).or_insert_with(nothing)[place];
            *score = if score.is_nan() {
                value
            } else {
                *score + value
            };
        }
        let templates = vec![0; pairs.len()];
        PairScores::new(graph, pairs.into_values().collect(), templates)
    }

    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    pub fn len(&self) -> usize {
        self.scores.len()
    }

    pub fn is_empty(&self) -> bool {
        self.scores.is_empty()
    }

    /// The means over some pairs, each as often as it is named.
    /// # Shapes
    /// `[n_src, n_dst]`, row by row; NaN for an edge without a score.
    pub fn means(&self, pairs: &[usize]) -> Vec<f64> {
        let mut sums = vec![0f64; self.graph.n_src() * self.graph.n_dst()];
        for &pair in pairs {
            for (sum, score) in sums.iter_mut().zip(&self.scores[pair]) {
                *sum += score;
            }
        }
        sums.iter_mut().for_each(|sum| *sum /= pairs.len() as f64);
        sums
    }

    /// The means over all pairs, as a graph.
    /// # Errors
    /// Those of [`ScoredGraph::set_score`], which edges of the graph do not meet.
    pub fn scored(&self) -> Result<ScoredGraph> {
        let means = self.means(&self.all());
        let mut scored = ScoredGraph::new(self.graph);
        for edge in self.graph.edges() {
            let (row, column) = self.graph.place(&edge)?;
            scored.set_score(&edge, means[row * self.graph.n_dst() + column])?;
        }
        Ok(scored)
    }

    fn all(&self) -> Vec<usize> {
        (0..self.len()).collect()
    }

    /// Bootstrap draws of the pairs.
    fn draws(&self, resampling: Resampling) -> Vec<Vec<usize>> {
        let mut rng = ChaCha8Rng::seed_from_u64(resampling.seed);
        let draw = |_| {
            let one = |_| rng.random_range(0..self.len());
            (0..self.len()).map(one).collect()
        };
        (0..resampling.draws).map(draw).collect()
    }

    fn check(&self, resampling: Resampling) -> Result<()> {
        if self.len() < 2 {
            return Err(Error::invalid(format!(
                "stability needs at least 2 pairs to draw from, and there are {}; ask for more with `ExpandOptions::n_pairs`",
                self.len()
            )));
        }
        if resampling.draws < 2 {
            return Err(Error::invalid(
                "stability compares two draws or more; take 1000",
            ));
        }
        Ok(())
    }
}

/// How far the circuits of other draws of the pairs overlap.
/// # Errors
/// [`Error::Invalid`] for fewer than 2 pairs or draws; those of [`select_from`].
pub fn stability(
    scores: &PairScores,
    selection: &Selection,
    resampling: Resampling,
) -> Result<Stability> {
    scores.check(resampling)?;
    let circuit = |pairs: &[usize]| -> Result<EdgeSet> {
        Ok(select_from(scores.graph, &scores.means(pairs), selection)?.edges)
    };
    let whole = circuit(&scores.all())?;
    let draws = scores.draws(resampling);
    let drawn: Vec<EdgeSet> = draws
        .par_iter()
        .map(|pairs| circuit(pairs))
        .collect::<Result<_>>()?;
    let mut overlaps: Vec<f64> = (0..drawn.len())
        .into_par_iter()
        .flat_map_iter(|i| {
            let drawn = &drawn;
            (i + 1..drawn.len())
                .map(move |j| (i, j))
                .map(|(i, j)| overlap(&drawn[i], &drawn[j]))
        })
        .collect();
    let mut chosen: BTreeMap<Edge, usize> = BTreeMap::new();
    for edge in drawn.iter().flat_map(EdgeSet::edges) {
        *chosen.entry(edge).or_default() += 1;
    }
    let shares = chosen
        .into_iter()
        .map(|(edge, times)| (edge, times as f64 / drawn.len() as f64));
    Ok(Stability {
        pairs: scores.len(),
        resampling,
        bootstrap: mean(&overlaps),
        bootstrap_range: (
            percentile(&mut overlaps, 0.025),
            percentile(&mut overlaps, 0.975),
        ),
        with_whole: mean(
            &drawn
                .iter()
                .map(|one| overlap(one, &whole))
                .collect::<Vec<_>>(),
        ),
        split_half: split_half(scores, &circuit, resampling)?,
        without_template: without_template(scores, &circuit, &whole)?,
        shares: shares.collect(),
    })
}

/// The mean overlap of the circuits of two halves, over random halvings.
fn split_half(
    scores: &PairScores,
    circuit: &(impl Fn(&[usize]) -> Result<EdgeSet> + Sync),
    resampling: Resampling,
) -> Result<f64> {
    // Other numbers than those of the bootstrap.
    let mut rng = ChaCha8Rng::seed_from_u64(resampling.seed);
    rng.set_stream(1);
    let mut pairs = scores.all();
    let halvings: Vec<Vec<usize>> = (0..resampling.draws)
        .map(|_| {
            pairs.shuffle(&mut rng);
            pairs.clone()
        })
        .collect();
    let overlaps: Vec<f64> = halvings
        .par_iter()
        .map(|pairs| {
            let (one, other) = pairs.split_at(pairs.len() / 2);
            Ok(overlap(&circuit(one)?, &circuit(other)?))
        })
        .collect::<Result<_>>()?;
    Ok(mean(&overlaps))
}

fn without_template(
    scores: &PairScores,
    circuit: &impl Fn(&[usize]) -> Result<EdgeSet>,
    whole: &EdgeSet,
) -> Result<BTreeMap<usize, f64>> {
    let templates: BTreeSet<usize> = scores.templates.iter().copied().collect();
    if templates.len() < 2 {
        return Ok(BTreeMap::new());
    }
    let of = |template| {
        let pairs = scores.all().into_iter();
        let others: Vec<usize> = pairs.filter(|&i| scores.templates[i] != template).collect();
        Ok((template, overlap(&circuit(&others)?, whole)))
    };
    templates.into_iter().map(of).collect()
}

/// The scores to choose a circuit by, without those of edges whose sign is not to be trusted: the sign of the mean over a bootstrap
/// draw must agree with that over all pairs in a share of at least `least` of the draws.
/// # Shapes
/// `[n_src, n_dst]`, row by row; NaN where an edge has no score or no consistent one.
/// # Errors
/// [`Error::Invalid`] for fewer than 2 pairs or draws, and for a share that is not between 0 and 1.
pub fn consistent(scores: &PairScores, least: f64, resampling: Resampling) -> Result<Vec<f64>> {
    scores.check(resampling)?;
    if !(0.0..=1.0).contains(&least) {
        return Err(Error::invalid(format!(
            "the share of draws in which a sign agrees lies between 0 and 1, and {least} was asked for; take 0.95"
        )));
    }
    let mut means = scores.means(&scores.all());
    let nothing = || vec![0u32; means.len()];
    let agree = scores
        .draws(resampling)
        .par_iter()
        .fold(nothing, |mut agree, pairs| {
            for ((agree, drawn), mean) in agree.iter_mut().zip(scores.means(pairs)).zip(&means) {
                // A score of zero has no sign, and agrees with none.
                *agree += u32::from(drawn * mean > 0.0);
            }
            agree
        })
        .reduce(nothing, |mut agree, more| {
            agree.iter_mut().zip(more).for_each(|(a, b)| *a += b);
            agree
        });
    for (mean, agree) in means.iter_mut().zip(agree) {
        if f64::from(agree) < least * resampling.draws as f64 {
            *mean = f64::NAN;
        }
    }
    Ok(means)
}

fn overlap(a: &EdgeSet, b: &EdgeSet) -> f64 {
    a.overlap(b).expect("circuits of one graph")
}

#[cfg(test)]
mod tests;
