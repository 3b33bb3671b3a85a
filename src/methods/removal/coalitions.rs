//! Which coalitions of players a summary asks for, and what it makes of their values: no model is known here.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::{EXACT, Summary};
use super::fit::{Coalition, Row, Share, Sum, fit};
use crate::error::Result;

/// The metric of coalitions, each measured once.
pub type Values = HashMap<Coalition, f64>;

/// A game of `n` players, and the random numbers of its draws.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Game {
    pub n: usize,
    pub seed: u64,
    /// Games of one seed draw from streams of their own.
    pub stream: u64,
}

impl Game {
    fn rng(self) -> ChaCha8Rng {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.stream);
        rng
    }

    fn is_exact(self) -> bool {
        self.n <= EXACT
    }

    /// Every coalition, of at most [`EXACT`] players: player `i` is there where bit `i` is set.
    fn all(self) -> impl Iterator<Item = Coalition> {
        (0..1usize << self.n).map(move |bits| (0..self.n).map(|i| bits >> i & 1 == 1).collect())
    }

    fn with(self, i: usize) -> Coalition {
        (0..self.n).map(|j| j == i).collect()
    }

    /// Neighbours, every `stride` players so many, and none left out at the end.
    fn windows(self, size: usize, stride: usize) -> Vec<Range<usize>> {
        let more = self.n.saturating_sub(size).div_ceil(stride);
        let window = |k: usize| k * stride..(k * stride + size).min(self.n);
        (0..=more).map(window).collect()
    }

    fn without(self, absent: &Range<usize>) -> Coalition {
        (0..self.n).map(|i| !absent.contains(&i)).collect()
    }

    /// Orders and their reverses, one after the other.
    fn orders(self, draws: usize) -> Vec<Vec<usize>> {
        let mut rng = self.rng();
        let mut orders = Vec::with_capacity(2 * draws);
        for _ in 0..draws {
            let mut order: Vec<usize> = (0..self.n).collect();
            order.shuffle(&mut rng);
            let reversed = order.iter().rev().copied().collect();
            orders.extend([order, reversed]);
        }
        orders
    }

    /// Coalitions and their complements, one after the other: sizes as the kernel weighs them, and each of a size alike.
    fn by_kernel(self, draws: usize) -> Vec<Coalition> {
        let n = self.n;
        let weights: Vec<f64> = (1..n).map(|k| 1.0 / (k * (n - k)) as f64).collect();
        let total: f64 = weights.iter().sum();
        let mut rng = self.rng();
        let mut drawn = Vec::with_capacity(2 * draws);
        for _ in 0..draws {
            let mut left = rng.random::<f64>() * total;
            let past = |weight: &f64| {
                left -= weight;
                left < 0.0
            };
            let size = 1 + weights.iter().position(past).unwrap_or(n - 2);
            let mut order: Vec<usize> = (0..n).collect();
            order.shuffle(&mut rng);
            let mut coalition = vec![false; n];
            order[..size].iter().for_each(|&i| coalition[i] = true);
            let complement = coalition.iter().map(|is_there| !is_there).collect();
            drawn.extend([coalition, complement]);
        }
        drawn
    }

    /// Coalitions in which each player is there by the toss of a coin.
    fn by_coin(self, draws: usize) -> Vec<Coalition> {
        if self.is_exact() {
            return self.all().collect();
        }
        let mut rng = self.rng();
        let mut coalition = || (0..self.n).map(|_| rng.random::<bool>()).collect();
        (0..draws).map(|_| coalition()).collect()
    }
}

/// A coalition with one player changed.
fn flipped(coalition: &[bool], i: usize) -> Coalition {
    let mut other = coalition.to_vec();
    other[i] = !other[i];
    other
}

impl Summary {
    /// The coalitions that it needs the values of, each once.
    pub fn coalitions(self, game: Game) -> Vec<Coalition> {
        let n = game.n;
        let (all, none) = (vec![true; n], vec![false; n]);
        let mut wanted: Vec<Coalition> = Vec::new();
        match self {
            Summary::LeaveOneOut => {
                wanted.extend((0..n).map(|i| flipped(&all, i)));
                wanted.push(all);
            }
            Summary::IncludeOne => {
                wanted.extend((0..n).map(|i| game.with(i)));
                wanted.push(none);
            }
            Summary::Occlusion { window, stride } => {
                let windows = game.windows(window, stride).into_iter();
                wanted.extend(windows.map(|window| game.without(&window)));
                wanted.push(all);
            }
            _ if game.is_exact() => wanted.extend(game.all()),
            Summary::Shapley { draws } => {
                for order in game.orders(draws) {
                    let mut coalition = none.clone();
                    wanted.push(coalition.clone());
                    for i in order {
                        coalition[i] = true;
                        wanted.push(coalition.clone());
                    }
                }
            }
            Summary::KernelShap { draws } => {
                wanted.extend(game.by_kernel(draws));
                wanted.extend([all, none]);
            }
            Summary::Lime { draws, .. } => wanted.extend(game.by_coin(draws)),
            Summary::Sobol { draws } => {
                for coalition in game.by_coin(draws) {
                    wanted.extend((0..n).map(|i| flipped(&coalition, i)));
                    wanted.push(coalition);
                }
            }
        }
        let mut seen = HashSet::new();
        wanted.retain(|coalition| seen.insert(coalition.clone()));
        wanted
    }

    /// The share of each player, from the values of [`Summary::coalitions`].
    /// # Errors
    /// [`crate::Error::Invalid`] where too few coalitions were drawn for a fit.
    pub fn shares(self, game: Game, values: &Values) -> Result<Vec<Share>> {
        let n = game.n;
        let v = |coalition: &[bool]| values[coalition];
        let exact = |value| Share { value, error: None };
        let (all, none) = (vec![true; n], vec![false; n]);
        if n == 0 {
            return Ok(Vec::new());
        }
        Ok(match self {
            Summary::LeaveOneOut => (0..n)
                .map(|i| exact(v(&all) - v(&flipped(&all, i))))
                .collect(),
            Summary::IncludeOne => (0..n).map(|i| exact(v(&game.with(i)) - v(&none))).collect(),
            Summary::Occlusion { window, stride } => {
                let mut of_player = vec![Vec::new(); n];
                for window in game.windows(window, stride) {
                    let lost = v(&all) - v(&game.without(&window));
                    of_player[window].iter_mut().for_each(|of| of.push(lost));
                }
                let mean = |of: &Vec<f64>| exact(of.iter().sum::<f64>() / of.len() as f64);
                of_player.iter().map(mean).collect()
            }
            Summary::Shapley { .. } if game.is_exact() => shapley(game, v),
            Summary::Shapley { draws } => by_orders(game, draws, v),
            Summary::KernelShap { draws } => {
                let mut rows = Vec::new();
                if game.is_exact() {
                    // Subsets of a size have its weight together.
                    for coalition in game.all() {
                        let k = coalition.iter().filter(|&&is_there| is_there).count();
                        if k > 0 && k < n {
                            let weight = (n - 1) as f64 / (choose(n, k) * (k * (n - k)) as f64);
                            rows.push(Row::new(coalition, weight, v));
                        }
                    }
                } else {
                    let drawn = game.by_kernel(draws);
                    rows.extend(drawn.into_iter().map(|it| Row::new(it, 1.0, v)));
                }
                let sum = Sum::Fixed {
                    none: v(&none),
                    all: v(&all),
                };
                fit(n, &rows, sum, 0.0, (!game.is_exact()).then_some(2))?
            }
            Summary::Lime {
                draws,
                width,
                ridge,
            } => {
                let kernel = |coalition: &[bool]| {
                    let removed = coalition.iter().filter(|&&is_there| !is_there).count();
                    (-(removed as f64 / n as f64) / (width * width)).exp()
                };
                let rows: Vec<Row> = (game.by_coin(draws).into_iter())
                    .map(|it| Row::new(it.clone(), kernel(&it), v))
                    .collect();
                // A few coalitions would mostly be fitted by the ridge, which is for the noise of draws.
                let ridge = if game.is_exact() { 0.0 } else { ridge };
                fit(n, &rows, Sum::Free, ridge, (!game.is_exact()).then_some(1))?
            }
            Summary::Sobol { draws } => sobol(game, draws, v),
        })
    }
}

fn choose(n: usize, k: usize) -> f64 {
    (0..k).fold(1.0, |ways, i| ways * (n - i) as f64 / (i + 1) as f64)
}

/// `phi_i = sum over S without i of |S|! (n-|S|-1)! / n! (v(S+i) - v(S))`.
fn shapley(game: Game, v: impl Fn(&[bool]) -> f64) -> Vec<Share> {
    let n = game.n;
    let mut shares = vec![0.0; n];
    for coalition in game.all() {
        let size = coalition.iter().filter(|&&is_there| is_there).count();
        let here = v(&coalition);
        for (i, share) in shares.iter_mut().enumerate() {
            if !coalition[i] {
                let weight = 1.0 / (n as f64 * choose(n - 1, size));
                *share += weight * (v(&flipped(&coalition, i)) - here);
            }
        }
    }
    let exact = |value| Share { value, error: None };
    shares.into_iter().map(exact).collect()
}

/// The mean over drawn orders; an order and its reverse are one draw.
fn by_orders(game: Game, draws: usize, v: impl Fn(&[bool]) -> f64) -> Vec<Share> {
    let n = game.n;
    let mut of_draws = vec![Vec::with_capacity(draws); n];
    for pair in game.orders(draws).chunks(2) {
        let mut added = vec![0.0; n];
        for order in pair {
            let mut coalition = vec![false; n];
            let mut before = v(&coalition);
            for &i in order {
                coalition[i] = true;
                let after = v(&coalition);
                added[i] += (after - before) / pair.len() as f64;
                before = after;
            }
        }
        (of_draws.iter_mut().zip(added)).for_each(|(of, added)| of.push(added));
    }
    of_draws.iter().map(|of| mean(of, 1.0)).collect()
}

/// The mean of draws over a scale, with its standard error.
fn mean(draws: &[f64], scale: f64) -> Share {
    let n = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / n;
    let squares: f64 = draws.iter().map(|x| (x - mean).powi(2)).sum();
    let error = (draws.len() > 1).then(|| (squares / (n - 1.0) / n).sqrt() / scale);
    let value = mean / scale;
    Share { value, error }
}

/// `E[Var(v | all but i)] / Var(v)`: a player that is there by the toss of a coin has the variance `(v(S+i) - v(S))^2 / 4`. Where `v`
/// does not vary nobody has a share. The error leaves out that of `Var(v)`.
fn sobol(game: Game, draws: usize, v: impl Fn(&[bool]) -> f64) -> Vec<Share> {
    let coalitions = game.by_coin(draws);
    let values: Vec<f64> = coalitions.iter().map(|it| v(it)).collect();
    let n = values.len() as f64;
    let center = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|value| (value - center).powi(2)).sum();
    let variance = squares / if game.is_exact() { n } else { n - 1.0 };
    let share = |i: usize| {
        let left = |(coalition, here): (&Coalition, &f64)| {
            (v(&flipped(coalition, i)) - here).powi(2) / 4.0
        };
        let left: Vec<f64> = coalitions.iter().zip(&values).map(left).collect();
        if variance == 0.0 {
            return Share {
                value: 0.0,
                error: None,
            };
        }
        let estimate = mean(&left, variance);
        Share {
            error: estimate.error.filter(|_| !game.is_exact()),
            ..estimate
        }
    };
    (0..game.n).map(share).collect()
}
