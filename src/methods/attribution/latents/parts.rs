//! Which cells the changes of a pair belong to, and what is made of cells that do not change in it.

use std::collections::{BTreeMap, HashMap};

use super::change::Change;
use crate::methods::sites::{Along, Extent, roles_with_other};
use crate::sae::Sae;
use crate::scores::{Cell, Direction, Measured};
use crate::task::{Pair, Task};

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
                if let Some(&cell) = self.at.get(&(place, None)) {
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

/// Cells in which some example's latent differs, in every example that has their place: what is not there is 0, exactly.
pub(super) fn fill(
    measured: &mut Measured,
    parts: &Parts,
    task: &Task,
    direction: Direction,
    all: bool,
) {
    let mut moves = vec![all; measured.cells.len()];
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
        let base = example.base(direction);
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

/// A note on how many latents are on; the facts were left by [`count`].
pub(super) fn noted(measured: &mut Measured, sae: &Sae) {
    let of = |fact: &str| -> Option<f64> {
        let facts = measured
            .examples
            .iter()
            .filter_map(|one| one.facts.get(fact));
        let facts: Vec<f64> = facts.copied().collect();
        (!facts.is_empty()).then(|| facts.iter().sum::<f64>() / facts.len() as f64)
    };
    if let Some(on) = of("latents_on") {
        measured.notes.push(format!(
            "of {} latents {on:.1} are on at a position of the run that is changed, in the mean; those that are the same in both ends \
             have no row",
            sae.d_sae
        ));
    }
}

pub(super) fn mean(counts: &[usize]) -> f64 {
    counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64
}
