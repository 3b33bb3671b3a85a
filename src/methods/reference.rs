//! The mean activations that ablations put in place.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;

use super::captured::captured;
use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::model::{Model, ModelSpec};
use crate::run::{Cache, MeanOf, Source};
use crate::task::{Pair, Task};

/// The prompts that means are taken over: one side of every pair of a task.
#[derive(Clone, Copy)]
pub(super) struct ReferenceSet<'a> {
    pub task: &'a Task,
    pub corrupted: bool,
}

impl ReferenceSet<'_> {
    /// By template and length: one mean for each position, or one vector for all of them, which prompts of every template and
    /// length then share.
    pub fn means(
        &self,
        model: &Model,
        hooks: &[Hook],
        by_position: bool,
        batches: &[Vec<usize>],
    ) -> Result<Means> {
        let mut sums: BTreeMap<(usize, usize), MeanOf> = BTreeMap::new();
        for batch in batches {
            let pair = &self.task.pairs()[batch[0]];
            let of = if by_position {
                (pair.template, pair.clean.len())
            } else {
                (0, 0)
            };
            let sum = sums.entry(of).or_insert_with(|| MeanOf::new(by_position));
            sum.add(&self.run(model, hooks, batch)?)?;
        }
        let finish = |(key, sum): (_, MeanOf)| Ok((key, sum.finish(&model.spec)?));
        let means = sums.into_iter().map(finish).collect::<Result<_>>()?;
        Ok(Means { by_position, means })
    }

    /// One mean for each set of roles that a position can have, over every position of every prompt that has them.
    pub fn means_by_role(&self, model: &Model, hooks: &[Hook], batch: usize) -> Result<RoleMeans> {
        let mut sums: BTreeMap<Vec<String>, MeanOf> = BTreeMap::new();
        for batch in self.task.batches(batch) {
            let cache = self.run(model, hooks, &batch)?;
            let mut rows: BTreeMap<Vec<String>, Vec<u32>> = BTreeMap::new();
            for (i, &pair) in batch.iter().enumerate() {
                for (pos, roles) in roles_of_positions(&self.task.pairs()[pair])
                    .into_iter()
                    .enumerate()
                {
                    let row = (i * cache.length + pos) as u32;
                    rows.entry(roles).or_default().push(row);
                }
            }
            for (roles, rows) in rows {
                let picked = pick_rows(model, &cache, hooks, &rows)?;
                let sum = sums.entry(roles).or_insert_with(|| MeanOf::new(false));
                sum.add(&picked)?;
            }
        }
        let mut by_role = BTreeMap::new();
        for (roles, sum) in sums {
            by_role.insert(roles, sum.finish_cache(&model.spec)?);
        }
        Ok(RoleMeans {
            hooks: hooks.to_vec(),
            by_role,
        })
    }

    /// Refuses a task some of whose positions would find no mean by role here.
    /// # Errors
    /// [`Error::UnknownRole`] naming the roles of such a position.
    pub fn check_roles(&self, task: &Task) -> Result<()> {
        let of = |task: &Task| -> BTreeSet<Vec<String>> {
            task.pairs().iter().flat_map(roles_of_positions).collect()
        };
        let known = of(self.task);
        let has = |roles: &Vec<String>| matching(roles, |one| known.get(one)).is_some();
        match of(task).iter().find(|roles| !has(roles)) {
            None => Ok(()),
            Some(roles) => Err(lacking(roles, known.iter())),
        }
    }

    fn run(&self, model: &Model, hooks: &[Hook], batch: &[usize]) -> Result<Cache> {
        let prompt = |&pair: &usize| {
            let pair = &self.task.pairs()[pair];
            if self.corrupted {
                pair.corrupted.clone()
            } else {
                pair.clean.clone()
            }
        };
        let prompts: Vec<_> = batch.iter().map(prompt).collect();
        captured(model, &prompts, hooks, &[])
    }
}

/// Means by template and length, or one for all.
#[derive(Default)]
pub(super) struct Means {
    by_position: bool,
    means: BTreeMap<(usize, usize), Source>,
}

impl Means {
    /// What prompts like this one take; `None` if the reference set has no prompt like it.
    pub fn of(&self, pair: &Pair) -> Option<&Source> {
        let key = if self.by_position {
            (pair.template, pair.clean.len())
        } else {
            (0, 0)
        };
        self.means.get(&key)
    }
}

/// A mean for each role. Positions of no role are a role of their own; one that has several roles is another.
pub(super) struct RoleMeans {
    hooks: Vec<Hook>,
    by_role: BTreeMap<Vec<String>, Cache>,
}

impl RoleMeans {
    /// The values that a batch of prompts takes: at each position the mean of what has the same roles, or else has the first of them
    /// that the reference set has alone.
    /// # Errors
    /// [`Error::UnknownRole`] if the reference set has neither.
    pub fn source(&self, spec: &ModelSpec, pairs: &[&Pair]) -> Result<Source> {
        let length = pairs[0].clean.len();
        let mut cache = Cache::new(spec, pairs.len(), length);
        let roles: Vec<Vec<String>> = pairs
            .iter()
            .flat_map(|pair| roles_of_positions(pair))
            .collect();
        for &hook in &self.hooks {
            let mut rows = Vec::with_capacity(roles.len());
            for roles in &roles {
                let of = matching(roles, |one| self.by_role.get(one));
                let of = of.ok_or_else(|| lacking(roles, self.by_role.keys()))?;
                rows.push(of.packed(hook)?.clone());
            }
            let rows: Vec<&Tensor> = rows.iter().collect();
            cache.insert(hook, Tensor::cat(&rows, 0)?);
        }
        Source::run(cache)
    }
}

/// What is known of these roles together, or of the first of them of which something is known alone.
fn matching<'m, T>(roles: &[String], known: impl Fn(&[String]) -> Option<&'m T>) -> Option<&'m T> {
    let alone = || {
        let mut roles = roles.iter();
        roles.find_map(|role| known(std::slice::from_ref(role)))
    };
    known(roles).or_else(alone)
}

fn lacking<'r>(roles: &[String], known: impl Iterator<Item = &'r Vec<String>>) -> Error {
    let name = |roles: &[String]| match roles {
        [] => "none".to_string(),
        roles => roles.join(" and "),
    };
    let known: Vec<String> = known.map(|roles| name(roles)).collect();
    Error::UnknownRole {
        role: name(roles),
        known: format!(
            "{} in the reference prompts; take means over all positions (`PatchConfig::source = mean-all`), or another reference",
            known.join(", ")
        ),
    }
}

/// For each position of a prompt the roles that it has, in alphabetical order.
fn roles_of_positions(pair: &Pair) -> Vec<Vec<String>> {
    let mut roles = vec![Vec::new(); pair.clean.len()];
    for (role, positions) in &pair.roles {
        for &pos in positions {
            if let Some(of_pos) = roles.get_mut(pos) {
                of_pos.push(role.clone());
            }
        }
    }
    roles
}

/// Some rows of a run, as a run of that many prompts of one token.
fn pick_rows(model: &Model, cache: &Cache, hooks: &[Hook], rows: &[u32]) -> Result<Cache> {
    let mut picked = Cache::new(&model.spec, rows.len(), 1);
    for &hook in hooks {
        let whole = cache.packed(hook)?;
        let index = Tensor::new(rows, whole.device())?;
        picked.insert(hook, whole.index_select(&index, 0)?);
    }
    Ok(picked)
}
