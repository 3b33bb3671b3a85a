//! How far two lists of numbers agree.

use std::collections::HashSet;

use super::statistics::{correlation, rank_correlation};

/// Of the strongest numbers of each, so many are looked for in the other.
const STRONGEST: usize = 10;

/// How far the numbers agree that two results have of the same things.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Agreement {
    /// Numbers that both have.
    pub n: usize,
    /// Pearson's and Spearman's; `None` where one of the two does not vary.
    pub correlation: Option<f64>,
    pub rank_correlation: Option<f64>,
    /// Of the strongest of each, how many are among the strongest of the other, and of how many.
    pub shared_strongest: (usize, usize),
}

impl Agreement {
    /// Of pairs of numbers.
    pub fn of(pairs: &[(f64, f64)]) -> Self {
        Agreement {
            n: pairs.len(),
            correlation: correlation(pairs),
            rank_correlation: rank_correlation(pairs),
            shared_strongest: shared_strongest(pairs),
        }
    }

    /// In words; `what` is the name of the numbers.
    pub fn line(&self, what: &str) -> String {
        let number =
            |value: Option<f64>| value.map_or("none".into(), |value| format!("{value:.3}"));
        let (shared, of) = self.shared_strongest;
        format!(
            "correlation of {what} {}, rank correlation {}; of the {of} strongest of each {shared} are shared",
            number(self.correlation),
            number(self.rank_correlation)
        )
    }
}

fn shared_strongest(numbers: &[(f64, f64)]) -> (usize, usize) {
    let of = STRONGEST.min(numbers.len());
    let strongest = |number: fn(&(f64, f64)) -> f64| -> HashSet<usize> {
        let mut order: Vec<usize> = (0..numbers.len()).collect();
        order.sort_by(|&i, &j| {
            number(&numbers[j])
                .abs()
                .total_cmp(&number(&numbers[i]).abs())
        });
        order.into_iter().take(of).collect()
    };
    let (ours, theirs) = (strongest(|pair| pair.0), strongest(|pair| pair.1));
    (ours.intersection(&theirs).count(), of)
}
