//! The mean activations that ablations put in place.

use std::collections::BTreeMap;

use crate::error::Result;
use crate::hooks::Hook;
use crate::model::Model;
use crate::run::{Logits, MeanOf, Request, Source, run};
use crate::task::Task;

/// Means over the corrupted prompts of all pairs, by template and length: one for each position, or one vector for all.
pub(super) fn reference_means(
    model: &Model,
    task: &Task,
    hooks: &[Hook],
    by_position: bool,
    batches: &[Vec<usize>],
) -> Result<BTreeMap<(usize, usize), Source>> {
    let mut sums: BTreeMap<(usize, usize), MeanOf> = BTreeMap::new();
    let mut keys = Vec::new();
    for batch in batches {
        let pair = &task.pairs[batch[0]];
        let key = (pair.template, pair.clean.len());
        keys.push(key);
        let prompts: Vec<_> = (batch.iter())
            .map(|&pair| task.pairs[pair].corrupted.clone())
            .collect();
        let request = Request {
            capture: hooks,
            logits: Logits::None,
            ..Request::default()
        };
        let cache = run(model, &prompts, &request)?.cache;
        let of = if by_position { key } else { (0, 0) };
        let sum = sums.entry(of).or_insert_with(|| MeanOf::new(by_position));
        sum.add(&cache)?;
    }
    let mut means = BTreeMap::new();
    for (key, sum) in sums {
        means.insert(key, sum.finish(&model.spec)?);
    }
    if let (false, Some(mean)) = (by_position, means.remove(&(0, 0))) {
        means = keys.into_iter().map(|key| (key, mean.clone())).collect();
    }
    Ok(means)
}
