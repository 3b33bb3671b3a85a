//! Coalitions as prompts of their own: with tokens taken out, or with another token in their place.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::model::Model;
use crate::run::{BaseRun, Readout, Sources};
use crate::task::Pair;

/// More prompts than this at once gain nothing.
const MOST_AT_ONCE: usize = 64;

/// A pair's clean prompt with a filler at these positions; without one they are taken out, but for the tokens where the answer is read.
pub(super) fn changed(pair: &Pair, positions: &[usize], filler: Option<u32>) -> Vec<u32> {
    let read = pair.target.positions(pair.clean.len());
    let tokens = pair.clean.iter().enumerate();
    tokens
        .filter_map(|(at, &token)| match (positions.contains(&at), filler) {
            (false, _) => Some(token),
            (true, Some(filler)) => Some(filler),
            (true, None) => read.contains(&at).then_some(token),
        })
        .collect()
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
        assert_eq!(changed(&pair, &[1, 3], None), [5, 7, 8]);
        assert_eq!(changed(&pair, &[1, 3], Some(0)), [5, 0, 7, 0]);
        assert_eq!(changed(&pair, &[], None), prompt);
        assert_eq!(changed(&pair, &[0, 1, 2, 3], None), [8]);
        // The prompt ends with all of an answer but its last token.
        let whole = Pair::new(prompt, prompt).whole_answer([1, 2]);
        assert_eq!(changed(&whole, &[0, 1, 2, 3, 4], None), [8, 1]);
    }
}
