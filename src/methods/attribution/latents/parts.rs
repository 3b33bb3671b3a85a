//! Which cells the changes of a pair belong to, and what is made of cells that do not change in it.

use std::collections::{BTreeMap, HashMap};

use super::change::Change;
use super::config::LatentConfig;
use crate::methods::activation_patching::PatchSource;
use crate::methods::sites::{Along, Extent, roles_with_other};
use crate::sae::Sae;
use crate::scores::{Cell, Measured};
use crate::task::{Pair, Task};
use crate::text::visible;

/// The fact of an example that is told of: latents that are on at a position.
pub(super) const ON: &str = "latents_on";

/// Which cells the latents and the error of a position belong to.
pub(super) struct Parts {
    pub along: Along,
    pub extent: Extent,
    pub places: Vec<Cell>,
    /// The cell of each place and latent, or of its error.
    pub at: HashMap<(usize, Option<u32>), u32>,
}

impl Parts {
    /// The places that a position of a pair is in.
    fn places_of(&self, pair: &Pair, pos: usize) -> Vec<usize> {
        if self.along == Along::All {
            return vec![0];
        }
        let roles = roles_with_other(&pair.roles, pair.clean.len());
        let is_here = |place: &Cell| match (&place.role, place.pos) {
            (Some(role), _) => roles.get(role).is_some_and(|at| at.contains(&pos)),
            (None, at) => at == Some(pos as i32) && self.extent.has(place, pair),
        };
        let places = self.places.iter().enumerate();
        let here = places.filter(|(_, place)| is_here(place));
        here.map(|(index, _)| index).collect()
    }

    /// The changes that belong to each cell, ascending: position, latent (or the error) and how much of it.
    pub fn gather<'c>(&self, pair: &Pair, changes: &'c [Change]) -> BTreeMap<u32, Vec<Part<'c>>> {
        let mut cells: BTreeMap<u32, Vec<Part<'c>>> = BTreeMap::new();
        for (row, change) in changes.iter().enumerate() {
            for place in self.places_of(pair, change.pos) {
                for &(latent, amount) in &change.latents {
                    if let Some(&cell) = self.at.get(&(place, Some(latent))) {
                        cells.entry(cell).or_default().push(Part {
                            row,
                            pos: change.pos,
                            what: What::Latent(latent, amount),
                        });
                    }
                }
                let moves = change.error.iter().any(|&x| x != 0.0);
                if let Some(&cell) = self.at.get(&(place, None)).filter(|_| moves) {
                    cells.entry(cell).or_default().push(Part {
                        row,
                        pos: change.pos,
                        what: What::Error(&change.error),
                    });
                }
            }
        }
        cells
    }
}

/// What one cell changes at one position.
pub(super) struct Part<'a> {
    /// Which of the pair's changes it is of.
    pub row: usize,
    pub pos: usize,
    pub what: What<'a>,
}

pub(super) enum What<'a> {
    /// A latent, and the multiple of its decoder row that is added.
    Latent(u32, f32),
    Error(&'a [f32]),
}

impl What<'_> {
    /// What is added to the hook.
    pub fn add_to(&self, sae: &Sae, sum: &mut [f32]) {
        match self {
            What::Latent(latent, amount) => {
                let direction = sae.direction(*latent as usize);
                (sum.iter_mut().zip(direction)).for_each(|(sum, w)| *sum += amount * w);
            }
            What::Error(error) => (sum.iter_mut().zip(*error)).for_each(|(sum, e)| *sum += e),
        }
    }

    /// Its product with a gradient.
    pub fn along(&self, sae: &Sae, gradient: &[f32]) -> f64 {
        let dot = |a: &[f32]| -> f64 {
            let each = a.iter().zip(gradient);
            each.map(|(a, g)| f64::from(*a) * f64::from(*g)).sum()
        };
        match self {
            What::Latent(latent, amount) => {
                f64::from(*amount) * dot(sae.direction(*latent as usize))
            }
            What::Error(error) => dot(error),
        }
    }
}

/// What is said of the dictionary; and the cells in which some example's latent differs (or that were asked for), in every example that
/// has their place: what is not there is 0, exactly.
pub(super) fn conclude(measured: &mut Measured, config: &LatentConfig, parts: &Parts, task: &Task) {
    note(measured, config);
    let asked_for = config.only.is_some() || config.latents.is_some();
    let mut moves = vec![asked_for; measured.cells.len()];
    let cells = measured.examples.iter().flat_map(|one| one.cells.iter());
    cells.for_each(|&cell| moves[cell as usize] = true);
    for example in &mut measured.examples {
        let Some(pair) = task
            .pairs()
            .iter()
            .find(|pair| pair.index == example.example)
        else {
            continue;
        };
        let base = example.base(config.direction);
        let (mut cells, mut values) = (Vec::new(), Vec::new());
        let of_example = std::mem::take(&mut example.values);
        let mut own = example.cells.iter().zip(of_example).peekable();
        for (index, cell) in measured.cells.iter().enumerate() {
            let measured = own.next_if(|(at, _)| **at as usize == index);
            match measured {
                Some((_, value)) => values.push(value),
                None if moves[index] && parts.extent.has(cell, pair) => values.push(base),
                None => continue,
            }
            cells.push(index as u32);
        }
        example.cells = cells.into();
        example.values = values;
    }
    measured.drop_unmeasured();
}

/// What the dictionary is, how many of its latents are on, and what has no row.
fn note(measured: &mut Measured, config: &LatentConfig) {
    let sae = &config.sae;
    let facts = measured.examples.iter();
    let on: Vec<f64> = facts.filter_map(|one| one.facts.get(ON).copied()).collect();
    let mut text = format!("`{}`: {sae}", visible(&sae.id));
    if !on.is_empty() {
        let mean = on.iter().sum::<f64>() / on.len() as f64;
        text += &format!("; {mean:.1} are on at a position that is looked at, in the mean");
    }
    if config.latents.is_none() && config.only.is_none() {
        text += match config.source {
            PatchSource::Zero => "; those that are off everywhere have no row",
            _ => "; those that are the same in both runs of every pair have no row",
        };
    }
    measured.notes.push(text);
    measured.warnings.extend(sae.doubts.iter().cloned());
}

pub(super) fn mean(counts: &[usize]) -> f64 {
    counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64
}
