//! What a model answers with heads zeroed: precision and recall of one of two answers.

use std::collections::HashMap;

use rand::Rng;
use rand::seq::index::sample;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Op, Site};
use crate::methods::method::{Subject, clean_prompts, pairs_of, stop_if_asked};
use crate::run::{Logits, Progress, Request, run};
use crate::scores::Cell;
use crate::scores::statistics::{mean, percentile};

/// Resamples of an interval of a ratio.
const RESAMPLES: usize = 1000;
pub(super) const MEASURES: [&str; 3] = ["precision", "recall", "gap"];

/// Prompts that are asked again, whether the positive answer is the right one of each, and which heads are zeroed.
pub(super) struct Again<'a> {
    pub on: Subject<'a>,
    pub items: &'a [usize],
    pub truths: &'a [bool],
    /// Heads by their number in the model, the highest first.
    pub ranked: &'a [usize],
    /// So many of the highest are zeroed.
    pub sizes: &'a [usize],
    /// Random sets of as many.
    pub draws: usize,
    /// Prompts that run at once.
    pub batch: usize,
}

/// A number that all prompts make together, with its interval: 95% of resamples of the prompts.
pub(super) struct Fact {
    pub cell: Cell,
    pub value: Option<f64>,
    pub interval: Option<(f64, f64)>,
    /// The sets of heads that have the number, and all.
    pub sets: (usize, usize),
    /// The share of resamples of the prompts that do not have it.
    pub undefined: f64,
}

impl Again<'_> {
    fn n_heads(&self) -> usize {
        self.on.model.spec.n_layers * self.on.model.spec.n_heads
    }

    /// Precision, recall and gap with no head zeroed, with some of the highest, and with random ones.
    pub fn facts(&self, rng: &mut ChaCha8Rng, progress: &dyn Progress) -> Result<Vec<Fact>> {
        let mut arms: Vec<(&str, usize, Vec<Vec<usize>>)> = vec![("unchanged", 0, vec![vec![]])];
        for &size in self.sizes {
            arms.push(("highest", size, vec![self.ranked[..size].to_vec()]));
            let draw = |_| sample(rng, self.n_heads(), size).into_vec();
            let random: Vec<Vec<usize>> = (0..self.draws).map(draw).collect();
            if !random.is_empty() {
                arms.push(("random", size, random));
            }
        }
        let mut facts = Vec::new();
        for (name, size, sets) in &arms {
            let mut said: Vec<Vec<bool>> = Vec::with_capacity(sets.len());
            for heads in sets {
                stop_if_asked(progress)?;
                said.push(self.said(heads)?);
            }
            let n = self.items.len();
            let all: Vec<usize> = (0..n).collect();
            let found = mean_of(&said, self.truths, &all);
            let mut resampled = || {
                let drawn: Vec<usize> = (0..n).map(|_| rng.random_range(0..n)).collect();
                mean_of(&said, self.truths, &drawn)
            };
            let resampled: Vec<[Option<f64>; 3]> = (0..RESAMPLES).map(|_| resampled()).collect();
            for (which, measure) in MEASURES.iter().enumerate() {
                let mut of: Vec<f64> = resampled.iter().filter_map(|all| all[which]).collect();
                let has_it = |said: &&Vec<bool>| quality(said, self.truths, &all)[which].is_some();
                let ends = [0.025, 0.975].map(|q| percentile(&mut of, q));
                facts.push(Fact {
                    cell: Cell {
                        component: (*name).into(),
                        src: (*size > 0).then(|| size.to_string()),
                        measure: Some((*measure).into()),
                        ..Cell::default()
                    },
                    value: found[which],
                    interval: (of.len() > RESAMPLES / 2).then_some((ends[0], ends[1])),
                    sets: (said.iter().filter(has_it).count(), said.len()),
                    undefined: 1.0 - of.len() as f64 / RESAMPLES as f64,
                });
            }
        }
        Ok(facts)
    }

    /// Whether the model gives the positive answer to each prompt, with some heads zeroed.
    fn said(&self, heads: &[usize]) -> Result<Vec<bool>> {
        let Subject { model, task } = self.on;
        let items = self.items;
        let all: Vec<(usize, usize)> = model.spec.heads().collect();
        let zeroed = |&at: &usize| {
            let (layer, head) = all[at];
            Edit::new(Site::all(Hook::at(Kind::Z, layer)).heads([head]), Op::Zero)
        };
        let edits: Vec<Edit> = heads.iter().map(zeroed).collect();
        let mut said = vec![false; items.len()];
        let places: HashMap<usize, usize> = items.iter().copied().zip(0..).collect();
        for mut batch in task.batches(self.batch) {
            batch.retain(|item| places.contains_key(item));
            if batch.is_empty() {
                continue;
            }
            let pairs = pairs_of(task, &batch);
            let request = Request {
                edits: &edits,
                logits: Logits::Last,
                ..Request::default()
            };
            let logits = run(model, &clean_prompts(&pairs), &request)?.logits;
            let rows: Vec<Vec<f32>> = logits.expect("asked for").to_vec2()?;
            for ((item, pair), row) in batch.iter().zip(&pairs).zip(&rows) {
                let at = places[item];
                let is_right = pair.target.judge(row).beats == Some(true);
                said[at] = is_right == self.truths[at];
            }
        }
        Ok(said)
    }
}

/// Precision, recall and gap of some prompts, the mean over several runs; `None` where no run has any.
fn mean_of(said: &[Vec<bool>], truths: &[bool], items: &[usize]) -> [Option<f64>; 3] {
    let found: Vec<[Option<f64>; 3]> = said
        .iter()
        .map(|said| quality(said, truths, items))
        .collect();
    std::array::from_fn(|which| {
        let values: Vec<f64> = found.iter().filter_map(|all| all[which]).collect();
        (!values.is_empty()).then(|| mean(&values))
    })
}

/// Precision and recall of saying the positive answer, and precision less recall.
fn quality(said: &[bool], truths: &[bool], items: &[usize]) -> [Option<f64>; 3] {
    let count = |is: &dyn Fn(usize) -> bool| items.iter().filter(|&&at| is(at)).count() as f64;
    let hits = count(&|at| said[at] && truths[at]);
    let share = |of: f64| (of > 0.0).then(|| hits / of);
    let (precision, recall) = (share(count(&|at| said[at])), share(count(&|at| truths[at])));
    let gap = precision
        .zip(recall)
        .map(|(precision, recall)| precision - recall);
    [precision, recall, gap]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_and_recall_are_those_of_the_positive_answer() {
        let truths = [true, true, true, false];
        let all = [0, 1, 2, 3];
        let found = quality(&[true, false, false, true], &truths, &all);
        assert_eq!(found, [Some(0.5), Some(1.0 / 3.0), Some(0.5 - 1.0 / 3.0)]);
        assert_eq!(quality(&[false; 4], &truths, &all), [None, Some(0.0), None]);
        assert_eq!(quality(&[true; 4], &truths, &[3]), [Some(0.0), None, None]);
    }
}
