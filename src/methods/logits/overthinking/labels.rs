//! Labels of a classification task as the model gives them: what demonstrations show, what is decoded, and when that is right.

use std::collections::BTreeMap;

use super::super::vocabulary::Distribution;
use crate::error::{Error, Result};
use crate::scores::statistics::percentile;
use crate::task::{Pair, Task};

/// The labels, ascending by id.
pub(super) fn labels(task: &Task) -> Result<Vec<u32>> {
    let of = |pair: &Pair| {
        let mut labels = pair.target.columns();
        labels.sort_unstable();
        labels.dedup();
        labels
    };
    let first = of(&task.pairs()[0]);
    for pair in task.pairs() {
        if pair.target.answers.len() != 1 || of(pair) != first || first.len() < 2 {
            return Err(Error::BadTask {
                task: task.name.clone(),
                reason: format!(
                    "early decoding needs one true label and all other labels as wrong answers in every pair; pair {} has {} and {}",
                    pair.index,
                    pair.target.answers.len(),
                    pair.target.wrong.len()
                ),
            });
        }
    }
    Ok(first)
}

/// What a pair's demonstrations show.
pub(super) struct Shown {
    /// The index of the query's label.
    pub truth: usize,
    /// Positions of labels before the last token, with the index of the true label there.
    pub positions: Vec<(usize, usize)>,
    /// What false demonstrations call the query's class most often.
    pub false_label: Option<usize>,
}

impl Shown {
    /// # Errors
    /// [`Error::BadTask`] for a prompt that shows no label.
    pub fn of(pair: &Pair, labels: &[u32], task: &Task) -> Result<Self> {
        let before = &pair.clean[..pair.clean.len() - 1];
        let positions: Vec<(usize, usize)> = (before.iter().enumerate())
            .filter_map(|(pos, id)| Some((pos, labels.binary_search(id).ok()?)))
            .collect();
        if positions.is_empty() {
            return Err(Error::BadTask {
                task: task.name.clone(),
                reason: format!("the clean prompt of pair {} shows no label", pair.index),
            });
        }
        let truth = index_of(labels, pair.target.answers[0]);
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for (pos, _) in positions.iter().filter(|(_, label)| *label == truth) {
            if let Ok(label) = labels.binary_search(&pair.corrupted[*pos]) {
                *counts.entry(label).or_default() += 1;
            }
        }
        let most = counts
            .into_iter()
            .max_by_key(|(label, n)| (*n, usize::MAX - label));
        Ok(Shown {
            truth,
            positions,
            false_label: most.map(|(label, _)| label),
        })
    }

    /// Attention from the last position to labels of the query's class, less that to the others (over K-1).
    pub fn matching(&self, row: &[f32], labels: usize) -> f64 {
        let at = |&(pos, label): &(usize, usize)| {
            if label == self.truth {
                f64::from(row[pos])
            } else {
                -f64::from(row[pos]) / (labels - 1) as f64
            }
        };
        self.positions.iter().map(at).sum()
    }
}

pub(super) fn index_of(labels: &[u32], id: u32) -> usize {
    labels
        .binary_search(&id)
        .expect("every answer is one of the labels")
}

/// One input after one layer.
#[derive(Debug, Clone)]
pub(super) struct Decoded {
    /// Probabilities of the labels among themselves.
    pub of_labels: Vec<f64>,
    /// Probability of all labels together.
    pub mass: f64,
    /// Whether the likeliest tokens are the labels.
    pub on_top: bool,
}

impl Decoded {
    pub fn best(&self) -> usize {
        let labels = (0..self.of_labels.len()).rev();
        let by = |a: &usize, b: &usize| self.of_labels[*a].total_cmp(&self.of_labels[*b]);
        labels.max_by(by).expect("there are at least two labels")
    }

    /// Of a distribution whose columns are the labels, watched for the least of them.
    pub fn of(read: &Distribution) -> Self {
        Decoded {
            of_labels: among(&read.logits),
            mass: read.logits.iter().map(|&logit| read.prob(logit)).sum(),
            on_top: read.above == 0,
        }
    }
}

pub(super) fn least(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::INFINITY, f32::min)
}

/// Probabilities among some logits alone.
pub(super) fn among(logits: &[f32]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp = |&logit: &f32| (f64::from(logit) - f64::from(highest)).exp();
    let exps: Vec<f64> = logits.iter().map(exp).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|exp| exp / sum).collect()
}

/// 1 for each input whose true label is above that label's quantile over all inputs, `1/K` at it, else 0.
/// # Shapes
/// `of_labels [input][label]`, `truths [input]`.
pub(super) fn calibrated(of_labels: &[&[f64]], truths: &[usize]) -> Vec<f64> {
    let k = of_labels[0].len();
    let threshold = |label: usize| {
        let mut all: Vec<f64> = of_labels.iter().map(|input| input[label]).collect();
        percentile(&mut all, (k - 1) as f64 / k as f64)
    };
    let thresholds: Vec<f64> = (0..k).map(threshold).collect();
    let right =
        |(input, &truth): (&&[f64], &usize)| match input[truth].total_cmp(&thresholds[truth]) {
            std::cmp::Ordering::Greater => 1.0,
            std::cmp::Ordering::Equal => 1.0 / k as f64,
            std::cmp::Ordering::Less => 0.0,
        };
    of_labels.iter().zip(truths).map(right).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_renormalised_among_themselves() {
        // Probabilities 1/8, 1/8, 1/4, 1/2; the labels are the second and the last.
        let read = Distribution {
            logits: vec![0.0, 4f32.ln()],
            lse: 8f64.ln(),
            entropy: 0.0,
            kl: 0.0,
            above: 1,
        };
        let decoded = Decoded::of(&read);
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} against {b}");
        near(decoded.of_labels[0], 0.2);
        near(decoded.mass, 0.625);
        assert_eq!((decoded.best(), decoded.on_top), (1, false));
    }

    #[test]
    fn a_label_that_is_likely_everywhere_is_not_right_everywhere() {
        // Two labels: the first is likelier in every input, and right where it is above its own median.
        let inputs = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]];
        let inputs: Vec<&[f64]> = inputs.iter().map(|input| &input[..]).collect();
        assert_eq!(calibrated(&inputs, &[0, 0, 1, 1]), [1.0; 4]);
        assert_eq!(calibrated(&inputs, &[1, 1, 0, 0]), [0.0; 4]);
        assert_eq!(calibrated(&inputs[..3], &[0, 0, 0]), [1.0, 0.5, 0.0]);
    }
}
