//! Which places the pairs of a task have: roles, positions, and where their prompts begin to differ.

use std::collections::BTreeMap;

use super::{Pair, Task};

impl Task {
    /// The roles that any pair has, in the order of their first position. Those that every pair has are [`Task::roles`].
    pub fn all_roles(&self) -> Vec<String> {
        let mut first: BTreeMap<&String, usize> = BTreeMap::new();
        for (role, positions) in self.pairs().iter().flat_map(|pair| &pair.roles) {
            if let Some(&position) = positions.first() {
                first.entry(role).or_insert(position);
            }
        }
        let mut roles: Vec<(usize, &String)> = first
            .into_iter()
            .map(|(role, position)| (position, role))
            .collect();
        roles.sort();
        roles.into_iter().map(|(_, role)| role.clone()).collect()
    }

    /// Tokens of the longest clean prompt.
    pub fn longest(&self) -> usize {
        let lengths = self.pairs().iter().map(|pair| pair.clean.len());
        lengths.max().unwrap_or(0)
    }

    /// Only the first so many pairs (at least one).
    pub fn first(&self, n_pairs: usize) -> Task {
        let pairs = self.pairs().iter().take(n_pairs.max(1)).cloned();
        self.with_pairs(pairs)
            .expect("pairs of a checked task are checked")
    }
}

/// Two tasks are equal that measure the same on the same pairs, whatever file they came from.
impl PartialEq for Task {
    fn eq(&self, other: &Self) -> bool {
        let measured = |task: &Task| (task.name.clone(), task.metric, task.seed);
        measured(self) == measured(other) && self.pairs() == other.pairs()
    }
}

impl Pair {
    /// The first position at which the prompts read different tokens; their length if nowhere.
    pub fn first_difference(&self) -> usize {
        let mut tokens = self.clean.iter().zip(&self.corrupted);
        let same = tokens.position(|(clean, corrupted)| clean != corrupted);
        same.unwrap_or(self.clean.len().min(self.corrupted.len()))
    }
}
