//! Which other pair each pair takes its values from, when values are resampled.

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};
use crate::task::Task;

/// A seeded permutation without fixed points inside each group of pairs that align position by position.
pub(super) fn draw_donors(task: &Task, seed: u64) -> Result<Vec<usize>> {
    let mut donors: Vec<usize> = (0..task.pairs().len()).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for group in task.batches(usize::MAX) {
        if group.len() < 2 {
            let pair = &task.pairs()[group[0]];
            return Err(Error::invalid(format!(
                "resampling takes values from another pair of the same template and length, and pair {} (template {}, {} tokens) \
                 has none; use more pairs (`ExpandOptions::n_pairs`), or `PatchConfig::source = mean`",
                pair.index,
                pair.template,
                pair.clean.len()
            )));
        }
        // One cycle through the group in random order: nobody is his own donor.
        let mut order = group.clone();
        order.shuffle(&mut rng);
        for (i, &pair) in order.iter().enumerate() {
            donors[pair] = order[(i + 1) % order.len()];
        }
    }
    Ok(donors)
}
