//! What training pairs have at a place, and the batches that a direction is trained on.

use std::collections::BTreeMap;

use nalgebra::DMatrix;

use super::fit::Points;
use super::places::{Classes, Place, SIDES, check_kind, check_role, position, prompt};
use super::train::{Batch, Problem, ROWS, Row};
use crate::error::{Error, Result};
use crate::hooks::Hook;
use crate::methods::captured::captured;
use crate::methods::method::Subject;
use crate::metric::Target;
use crate::nn::host::host;
use crate::run::Cache;
use crate::task::{Pair, Task};

/// The activations of two runs of each of some pairs, at one place.
pub(super) struct At {
    pub values: Vec<[Vec<f32>; 2]>,
    pub positions: Vec<[usize; 2]>,
}

impl At {
    /// Whether nothing differs between the two runs of any pair.
    pub fn is_the_same(&self) -> bool {
        self.values
            .iter()
            .all(|[clean, corrupted]| clean == corrupted)
    }

    pub fn points(&self, pairs: &[&Pair], classes: &Classes) -> Points {
        let width = self.values[0][0].len();
        let x = DMatrix::from_fn(2 * pairs.len(), width, |i, j| {
            f64::from(self.values[i / 2][i % 2][j])
        });
        let second = pairs
            .iter()
            .flat_map(|pair| SIDES.map(|side| classes.is_second(pair, side)));
        Points {
            x,
            second: second.collect(),
        }
    }
}

/// Pairs of one template and lengths, at most so many together.
pub(super) fn alike(task: &Task, pairs: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<(usize, usize, usize), Vec<usize>> = BTreeMap::new();
    for &at in pairs {
        let pair = &task.pairs()[at];
        let key = (pair.template, pair.clean.len(), pair.corrupted.len());
        groups.entry(key).or_default().push(at);
    }
    let chunks = |group: Vec<usize>| -> Vec<Vec<usize>> {
        group.chunks(most.max(1)).map(<[usize]>::to_vec).collect()
    };
    groups.into_values().flat_map(chunks).collect()
}

/// One prompt's activation at a position.
pub(super) fn activation(cache: &Cache, hook: Hook, prompt: usize, pos: usize) -> Result<Vec<f32>> {
    let packed = cache.packed(hook)?.contiguous()?;
    let width: usize = packed.dims()[1..].iter().product();
    let row = prompt * cache.length + pos;
    Ok(host(&packed)?[row * width..][..width].to_vec())
}

/// What some pairs have at each place.
/// # Errors
/// Those of running; [`Error::Invalid`] naming a place where the two runs of every pair are the same, or where an activation is no number.
pub(super) fn gather(
    on: Subject<'_>,
    places: &[Place],
    pairs: &[usize],
    most: usize,
) -> Result<Vec<At>> {
    let mut hooks: Vec<Hook> = places.iter().map(|place| place.hook).collect();
    hooks.dedup();
    let number: BTreeMap<usize, usize> = pairs.iter().enumerate().map(|(n, &at)| (at, n)).collect();
    let mut all: Vec<At> = (places.iter())
        .map(|_| At {
            values: vec![Default::default(); pairs.len()],
            positions: vec![[0; 2]; pairs.len()],
        })
        .collect();
    for batch in alike(on.task, pairs, most) {
        for side in SIDES {
            let of = |&at: &usize| prompt(&on.task.pairs()[at], side).clone();
            let prompts: Vec<Vec<u32>> = batch.iter().map(of).collect();
            let cache = captured(on.model, &prompts, &hooks, &[])?;
            for (place, of_place) in places.iter().zip(&mut all) {
                for (i, at) in batch.iter().enumerate() {
                    let pos = position(&on.task.pairs()[*at], side, &place.role).expect("checked");
                    let n = number[at];
                    of_place.positions[n][side] = pos;
                    let values = activation(&cache, place.hook, i, pos)?;
                    if values.iter().any(|x| !x.is_finite()) {
                        return Err(Error::invalid(format!(
                            "`{}` holds a NaN or an infinity in a training pair, so no subspace is found there; take an earlier layer \
                             (`SubspaceConfig::layers`) or another role (`SubspaceConfig::roles`)",
                            place.name()
                        )));
                    }
                    of_place.values[n][side] = values;
                }
            }
        }
    }
    if let Some((place, _)) = places.iter().zip(&all).find(|(_, at)| at.is_the_same()) {
        return Err(Error::invalid(format!(
            "at `{}` the clean and the corrupted run of each of {} training pairs are the same, so there is nothing to exchange; take a \
             later layer (`SubspaceConfig::layers`) or another role (`SubspaceConfig::roles`)",
            place.name(),
            pairs.len()
        )));
    }
    Ok(all)
}

/// Both ways round of each pair, two pairs together where their lengths allow it.
pub(super) fn batches(on: Subject<'_>, pairs: &[usize], hold: bool) -> Result<Vec<Batch>> {
    let mut by_length: BTreeMap<usize, Vec<(Row, Vec<u32>)>> = BTreeMap::new();
    for (n, &at) in pairs.iter().enumerate() {
        for side in SIDES {
            let prompt = prompt(&on.task.pairs()[at], side).clone();
            let rows = by_length.entry(prompt.len()).or_default();
            rows.push((Row { pair: n, side }, prompt));
        }
    }
    let mut all = Vec::new();
    for rows in by_length.into_values() {
        for rows in rows.chunks(ROWS) {
            let (rows, prompts) = rows.iter().cloned().unzip();
            all.push(Batch::new(on.model, rows, prompts, hold)?);
        }
    }
    Ok(all)
}

/// The mean loss of distributed alignment search over both ways round of all pairs of a task, and its slope along each direction's
/// entries: what a trainer of one's own needs.
/// # Shapes
/// `directions [dims][width]`, which are to be orthonormal; the slope has the same shape.
/// # Units
/// Nats: `-log p(source's label)` among the two labels.
/// # Errors
/// Those of running; [`Error::Invalid`] where there is nothing to exchange; [`Error::UnknownRole`]; [`Error::BadEdit`] at other kinds of hook
/// than [`SubspaceConfig::KINDS`](super::SubspaceConfig::KINDS).
pub fn das_loss(
    on: Subject<'_>,
    hook: Hook,
    role: &str,
    directions: &[Vec<f64>],
) -> Result<(f64, Vec<Vec<f64>>)> {
    let task = on.task;
    check_role(task, role)?;
    check_kind(hook.kind)?;
    hook.check(&on.model.spec)?;
    let pairs: Vec<usize> = (0..task.pairs().len()).collect();
    let place = Place {
        hook,
        layer: hook.layer.unwrap_or(0),
        role: role.into(),
    };
    let at = gather(on, std::slice::from_ref(&place), &pairs, 8)?.remove(0);
    let targets: Vec<Target> = task
        .pairs()
        .iter()
        .map(|pair| pair.target.clone())
        .collect();
    let batches = batches(on, &pairs, true)?;
    let problem = Problem {
        model: on.model,
        hook,
        layer: place.layer,
        batches: &batches,
        values: &at.values,
        positions: &at.positions,
        targets: &targets,
    };
    let width = at.values[0][0].len();
    if let Some(other) = directions.iter().find(|direction| direction.len() != width) {
        return Err(Error::invalid(format!(
            "a direction has {} entries, and `{hook}` is {width} wide",
            other.len()
        )));
    }
    let basis = DMatrix::from_fn(width, directions.len(), |i, j| directions[j][i]);
    let mask = vec![1.0; directions.len()];
    let (mut loss, mut slope) = (0.0, DMatrix::zeros(width, directions.len()));
    for batch in &batches {
        let of = problem.slope(batch, &basis, &mask)?;
        loss += of.loss;
        slope += of.basis;
    }
    let n = 2.0 * pairs.len() as f64;
    let columns = slope.column_iter();
    let slopes = columns.map(|column| column.iter().map(|x| x / n).collect());
    Ok((loss / n, slopes.collect()))
}
