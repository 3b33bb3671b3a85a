//! Which coalitions of players a summary asks for, and what it makes of their values: no model is known here.

use std::collections::{HashMap, HashSet};

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

#[cfg(test)]
mod tests {
    use super::*;

    fn game(n: usize) -> Game {
        Game {
            n,
            seed: 3,
            stream: 1,
        }
    }

    fn shares(summary: Summary, game: Game, v: impl Fn(&[bool]) -> f64) -> Vec<Share> {
        let coalitions = summary.coalitions(game);
        let values: Values = (coalitions.into_iter())
            .map(|coalition| {
                let value = v(&coalition);
                (coalition, value)
            })
            .collect();
        summary.shares(game, &values).expect("it can be fitted")
    }

    /// Player 0 does nothing, 1 and 2 are alike and work only together, 3 hurts, the others add their number; all of it bent.
    fn bent(coalition: &[bool]) -> f64 {
        let is = |i: usize| f64::from(u8::from(coalition[i]));
        let sum: f64 = (4..coalition.len()).map(|i| 0.1 * i as f64 * is(i)).sum();
        (2.0 * is(1) * is(2) - is(3) + sum).tanh() + 0.3 * sum * is(3)
    }

    /// Coefficients 0, 1, 2, ...
    fn linear(coalition: &[bool]) -> f64 {
        let terms = coalition.iter().enumerate();
        5.0 + terms
            .map(|(i, &it)| i as f64 * f64::from(u8::from(it)))
            .sum::<f64>()
    }

    fn near(one: f64, other: f64, tolerance: f64, what: &str) {
        assert!(
            (one - other).abs() <= tolerance,
            "{what}: {one} against {other}"
        );
    }

    #[test]
    fn shapley_of_two_players_by_hand() {
        // v: none 1, {0} 3, {1} 2, both 8. 0 adds 2 first and 6 last.
        let v = |it: &[bool]| [1.0, 3.0, 2.0, 8.0][usize::from(it[0]) + 2 * usize::from(it[1])];
        let of = shares(Summary::ALL[2], game(2), v);
        assert_eq!((of[0].value, of[1].value), (4.0, 3.0));
        assert_eq!(of[0].error, None);
    }

    #[test]
    fn efficiency_dummies_and_symmetry_hold_exactly_and_sampled() {
        for n in [6, 12, 15] {
            for summary in [Summary::ALL[2], Summary::ALL[3]] {
                let of = shares(summary, game(n), bent);
                let sum: f64 = of.iter().map(|share| share.value).sum();
                let whole = bent(&vec![true; n]) - bent(&vec![false; n]);
                near(sum, whole, 1e-9, summary.name());
                assert_eq!(of[0].error.is_some(), n > EXACT);
                if n <= EXACT || summary == Summary::ALL[2] {
                    near(of[0].value, 0.0, 1e-9, "a dummy");
                }
                let slack = 1e-9 + 5.0 * of[1].error.unwrap_or(0.0);
                near(of[1].value, of[2].value, slack, "players that are alike");
            }
        }
    }

    #[test]
    fn kernel_shap_over_all_coalitions_is_shapley() {
        for n in 1..=9 {
            let v = |it: &[bool]| bent(&[it, &[false; 4][..4 - n.min(4)]].concat());
            let exact = shares(Summary::ALL[2], game(n), v);
            let fitted = shares(Summary::ALL[3], game(n), v);
            for (one, other) in exact.iter().zip(&fitted) {
                near(one.value, other.value, 1e-9, "kernel");
            }
        }
    }

    #[test]
    fn samples_agree_with_all_coalitions_within_their_errors() {
        // Fifteen players, three of which do nothing: what the first twelve do is known exactly.
        let v = |it: &[bool]| bent(&it[..12]);
        for summary in Summary::ALL {
            let exact = shares(summary, game(12), v);
            let sampled = shares(summary, game(15), |it| bent(&it[..12]));
            // LIME's kernel knows how many players there are, and ridge pulls.
            if matches!(summary, Summary::Lime { .. }) {
                continue;
            }
            for (i, (one, other)) in exact.iter().zip(&sampled).enumerate() {
                let error = other.error.unwrap_or(0.0);
                let what = format!("{} {i}", summary.name());
                // The error of a Sobol index leaves out that of the variance.
                let slack = if matches!(summary, Summary::Sobol { .. }) {
                    0.2 * one.value
                } else {
                    0.0
                };
                near(one.value, other.value, 1e-9 + 4.0 * error + slack, &what);
                assert_eq!(other.error.is_some(), summary.samples(15), "{what}");
            }
        }
    }

    #[test]
    fn a_linear_game_gives_its_coefficients() {
        for n in [2, 5, 14] {
            for summary in Summary::ALL {
                let summary = match summary {
                    // Of draws the ridge takes a little; where all coalitions count it plays no part.
                    Summary::Lime { draws, width, .. } if n > EXACT => Summary::Lime {
                        draws,
                        width,
                        ridge: 0.0,
                    },
                    other => other,
                };
                let of = shares(summary, game(n), linear);
                let squares: f64 = (0..n).map(|i| (i * i) as f64).sum();
                for (i, share) in of.iter().enumerate() {
                    let (wanted, slack) = match summary {
                        Summary::Sobol { .. } if n > EXACT => ((i * i) as f64 / squares, 0.2),
                        Summary::Sobol { .. } => ((i * i) as f64 / squares, 1e-9),
                        _ => (i as f64, 1e-8),
                    };
                    near(
                        share.value,
                        wanted,
                        slack,
                        &format!("{} {i} of {n}", summary.name()),
                    );
                }
            }
        }
    }

    #[test]
    fn sobol_indices_count_what_players_do_together() {
        // v = x y of two coins: Var v = 3/16; of each alone is left E[y^2] / 4 = 1/8.
        let v = |it: &[bool]| f64::from(u8::from(it[0] && it[1]));
        for share in shares(Summary::ALL[5], game(2), v) {
            near(share.value, 2.0 / 3.0, 1e-12, "sobol");
        }
        for share in shares(Summary::ALL[5], game(3), |_| 7.0) {
            assert_eq!(share.value, 0.0, "nothing varies");
        }
    }

    #[test]
    fn a_coalition_is_asked_for_once() {
        for (summary, n, count) in [
            (Summary::ALL[0], 20, 21),
            (Summary::ALL[1], 20, 21),
            (Summary::ALL[2], 12, 4096),
            (Summary::ALL[4], 3, 8),
        ] {
            assert_eq!(summary.coalitions(game(n)).len(), count);
        }
        let all = Summary::ALL[2].coalitions(game(13));
        let distinct: HashSet<&Coalition> = all.iter().collect();
        assert!(all.len() == distinct.len() && all.len() <= 2 * 100 * 12 + 2);
        // The same seed draws the same, another stream something else.
        assert_eq!(all, Summary::ALL[2].coalitions(game(13)));
        let other = Game {
            stream: 2,
            ..game(13)
        };
        assert_ne!(all, Summary::ALL[2].coalitions(other));
    }

    #[test]
    fn too_few_draws_for_a_fit_are_refused() {
        let summary = Summary::KernelShap { draws: 3 };
        let coalitions = summary.coalitions(game(20));
        let values = coalitions.into_iter().map(|it| (it, 1.0)).collect();
        let error = summary.shares(game(20), &values).unwrap_err().to_string();
        assert!(error.contains("more draws"), "{error}");
    }
}
