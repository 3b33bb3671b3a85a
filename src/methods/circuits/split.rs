//! Pairs in parts that do not see each other's.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::Result;
use crate::task::{Pair, Task};

/// The pairs of a task in parts of these sizes, drawn by the task's seed.
pub(super) fn split<const PARTS: usize>(
    task: &Task,
    sizes: [usize; PARTS],
) -> Result<[Task; PARTS]> {
    let mut order: Vec<usize> = (0..task.pairs().len()).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(task.seed));
    let mut rest = &order[..];
    let mut parts = Vec::with_capacity(PARTS);
    for size in sizes {
        let (part, others) = rest.split_at(size);
        rest = others;
        let mut chosen = part.to_vec();
        chosen.sort_unstable();
        let pairs: Vec<Pair> = (chosen.iter())
            .map(|&pair| task.pairs()[pair].clone())
            .collect();
        parts.push(task.with_pairs(pairs)?);
    }
    Ok(parts.try_into().expect("as many parts as sizes"))
}
