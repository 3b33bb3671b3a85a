//! Positions of a prompt by the role that they play.

use super::super::columns::Columns;
use super::super::sites::{OTHER, roles_with_other};
use crate::task::{Pair, Task};

/// The roles of a task, and under `other` the positions of none. A position with several roles counts for the first of them, so
/// that sums over the groups of a prompt are sums over its positions.
#[derive(Debug, Clone)]
pub(super) struct Groups {
    pub names: Vec<String>,
}

impl Groups {
    pub fn of(task: &Task) -> Self {
        let mut names = task.all_roles();
        let has_other =
            |pair: &Pair| roles_with_other(&pair.roles, pair.clean.len()).contains_key(OTHER);
        if task.pairs().iter().any(has_other) && !names.iter().any(|name| name == OTHER) {
            names.push(OTHER.into());
        }
        Groups { names }
    }

    /// The group that a position counts for.
    fn at(&self, pair: &Pair, pos: usize) -> usize {
        let has = |name: &String| pair.roles.get(name).is_some_and(|at| at.contains(&pos));
        let is_other = |name: &String| name == OTHER;
        let place = self.names.iter().position(has);
        place
            .or_else(|| self.names.iter().position(is_other))
            .expect("a position without a role makes the task have the group of others")
    }

    /// Which of the groups a prompt has.
    fn present(&self, pair: &Pair) -> Vec<bool> {
        let roles = roles_with_other(&pair.roles, pair.clean.len());
        let has = |name: &String| roles.get(name).is_some_and(|at| !at.is_empty());
        self.names.iter().map(has).collect()
    }

    /// A cell for each group: its sum over positions, for the prompts that have it.
    /// # Shapes
    /// `by_position [position][prompt]`.
    pub fn push(&self, columns: &mut Columns, by_position: &[Vec<f64>], pairs: &[&Pair]) {
        let sums = by_group(by_position, self.names.len(), pairs.len(), |i, pos| {
            self.at(pairs[i], pos)
        });
        let present: Vec<Vec<bool>> = pairs.iter().map(|pair| self.present(pair)).collect();
        for (group, sums) in sums.iter().enumerate() {
            columns.push_some(|i| present[i][group].then_some(sums[i]));
        }
    }
}

/// Sums over positions, where `group_at(prompt, position)` says to which group one belongs.
/// # Shapes
/// `by_position [position][prompt]`; gives `[group][prompt]`.
pub(super) fn by_group(
    by_position: &[Vec<f64>],
    groups: usize,
    prompts: usize,
    group_at: impl Fn(usize, usize) -> usize,
) -> Vec<Vec<f64>> {
    let mut sums = vec![vec![0.0; prompts]; groups];
    for (pos, values) in by_position.iter().enumerate() {
        for (i, value) in values.iter().enumerate() {
            sums[group_at(i, pos)][i] += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_prompt_has_its_own_groups() {
        let groups = Groups {
            names: ["A", "B", OTHER].map(String::from).to_vec(),
        };
        // Position 1 has two roles and counts for the first; the second prompt has no `B` and no other position.
        let of = |roles: &[(&str, &[usize])]| {
            let mut pair = Pair::new([1, 2, 3], [1, 2, 3]);
            pair.roles = (roles.iter())
                .map(|(name, at)| (name.to_string(), at.to_vec()))
                .collect();
            pair
        };
        let pairs = [of(&[("A", &[1]), ("B", &[1, 2])]), of(&[("A", &[0, 1, 2])])];
        let mut columns = Columns::new(2);
        let by_position = [vec![1.0, 10.0], vec![2.0, 20.0], vec![4.0, 40.0]];
        groups.push(&mut columns, &by_position, &pairs.each_ref());
        let examples: Vec<_> = columns.into_cells().collect();
        assert_eq!(
            (&*examples[0].0, &*examples[0].1),
            (&[0, 1, 2][..], &[2.0, 4.0, 1.0][..])
        );
        assert_eq!((&*examples[1].0, &*examples[1].1), (&[0][..], &[70.0][..]));
    }
}
