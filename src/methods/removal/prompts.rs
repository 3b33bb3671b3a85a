//! Coalitions as prompts of their own: with tokens taken out, or with another token in their place.

use std::collections::{BTreeMap, HashMap};

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::model::Model;
use crate::run::{BaseRun, Readout, Sources};
use crate::task::{Pair, Task};

/// More prompts than this at once gain nothing.
const MOST_AT_ONCE: usize = 64;

/// What stands where a token was.
#[derive(Debug, Clone, Copy)]
pub(super) enum Filler<'a> {
    /// Nothing: tokens are taken out, but for those where the answer is read.
    Nothing,
    Token(u32),
    /// What stands there in another prompt of the same length.
    Prompt(&'a [u32]),
}

/// A pair's clean prompt with a filler at these positions.
pub(super) fn changed(pair: &Pair, positions: &[usize], filler: Filler<'_>) -> Vec<u32> {
    let read = pair.target.positions(pair.clean.len());
    let tokens = pair.clean.iter().enumerate();
    tokens
        .filter_map(|(at, &token)| match (positions.contains(&at), filler) {
            (false, _) => Some(token),
            (true, Filler::Token(filler)) => Some(filler),
            (true, Filler::Prompt(other)) => Some(other[at]),
            (true, Filler::Nothing) => read.contains(&at).then_some(token),
        })
        .collect()
}

/// For each pair the clean prompt of another one of the same template and length: a permutation of each such group in which nobody stays
/// where it was.
/// # Errors
/// [`Error::Invalid`] naming a pair that has no other.
pub(super) fn permuted(task: &Task, seed: u64) -> Result<HashMap<usize, Vec<u32>>> {
    let mut groups: BTreeMap<(usize, usize), Vec<&Pair>> = BTreeMap::new();
    for pair in task.pairs() {
        let key = (pair.template, pair.clean.len());
        groups.entry(key).or_default().push(pair);
    }
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut others = HashMap::new();
    for (_, mut group) in groups {
        if let [pair] = group[..] {
            return Err(Error::invalid(format!(
                "`permute` takes tokens from the prompts of other pairs, and pair {} (template {}, {} tokens) has none beside it; use more pairs \
                 (`ExpandOptions::n_pairs`), or another `RemovalConfig::removal`",
                pair.index,
                pair.template,
                pair.clean.len()
            )));
        }
        group.shuffle(&mut rng);
        let next = group.iter().cycle().skip(1);
        others.extend(
            group
                .iter()
                .zip(next)
                .map(|(pair, next)| (pair.index, next.clean.clone())),
        );
    }
    Ok(others)
}

/// The metric at the end of prompts that stand for prompt `example` of a readout; those of one length run together.
pub(super) fn metrics(
    model: &Model,
    prompts: Vec<Vec<u32>>,
    readout: &Readout,
    example: usize,
    at_once: usize,
) -> Result<Vec<f64>> {
    let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, prompt) in prompts.iter().enumerate() {
        by_length.entry(prompt.len()).or_default().push(at);
    }
    let mut values = vec![0.0; prompts.len()];
    for places in by_length.values() {
        for places in places.chunks(at_once.clamp(1, MOST_AT_ONCE)) {
            let some: Vec<Vec<u32>> = places.iter().map(|&at| prompts[at].clone()).collect();
            let readout = Readout {
                metric: readout.metric,
                targets: vec![readout.targets[example].clone(); some.len()],
                reference: (readout.reference.as_ref())
                    .map(|all| vec![all[example].clone(); some.len()]),
            };
            let run = BaseRun::new(model, some, vec![], vec![], Sources::default(), &[])?;
            for (&at, value) in places.iter().zip(run.metric(model, &readout)?) {
                values[at] = value;
            }
        }
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_is_taken_out_or_filled_and_the_end_stays() {
        let prompt = [5, 6, 7, 8];
        let pair = Pair::new(prompt, prompt).answer(1);
        assert_eq!(changed(&pair, &[1, 3], Filler::Nothing), [5, 7, 8]);
        assert_eq!(changed(&pair, &[1, 3], Filler::Token(0)), [5, 0, 7, 0]);
        let other = Filler::Prompt(&[10, 11, 12, 13]);
        assert_eq!(changed(&pair, &[1, 3], other), [5, 11, 7, 13]);
        assert_eq!(changed(&pair, &[], Filler::Nothing), prompt);
        assert_eq!(changed(&pair, &[0, 1, 2, 3], Filler::Nothing), [8]);
        // The prompt ends with all of an answer but its last token.
        let whole = Pair::new(prompt, prompt).whole_answer([1, 2]);
        assert_eq!(changed(&whole, &[0, 1, 2, 3, 4], Filler::Nothing), [8, 1]);
    }
}
