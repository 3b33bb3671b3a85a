//! One place of the model that a variable may be at, what is exchanged there, and a random one of its size.

use candle_core::Tensor;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::config::{AlignedPart, Alignment, units_of};
use crate::error::Result;
use crate::hooks::{Edit, Hook, Op, Site, Value};
use crate::methods::gaussian::normal;
use crate::methods::subspace::Subspace;
use crate::nn::host::{tensor, to_host};
use crate::scores::statistics::dot;
use crate::spec::ModelSpec;

/// Directions whose products are below this have nothing in common.
const ORTHOGONAL: f64 = 1e-3;

/// What is exchanged of an activation.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Taken {
    Whole,
    Units(Vec<usize>),
    Along(Subspace),
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Place {
    pub hook: Hook,
    pub layer: usize,
    pub role: String,
    pub taken: Taken,
}

/// The places of an alignment, by layer and role; what takes all units or dimensions of an activation is the whole of it.
pub(super) fn places(of: &Alignment, spec: &ModelSpec) -> Vec<Place> {
    let layers = (0..spec.n_layers).filter(|&layer| of.layers.has(layer));
    let mut all = Vec::new();
    for layer in layers {
        let hook = Hook::at(of.kind, layer);
        for role in &of.roles {
            let taken = match &of.part {
                AlignedPart::Whole => Some(Taken::Whole),
                AlignedPart::Units(units) if units.len() == units_of(hook, spec).0 => {
                    Some(Taken::Whole)
                }
                AlignedPart::Units(units) => Some(Taken::Units(units.clone())),
                AlignedPart::Subspaces(spaces) => {
                    let space = spaces.get(&format!("{hook}@{role}"));
                    let width = hook.width(spec);
                    space.map(|space| match space.dims(width) == width {
                        true => Taken::Whole,
                        false => Taken::Along(space.clone()),
                    })
                }
            };
            all.extend(taken.map(|taken| Place {
                hook,
                layer,
                role: role.clone(),
                taken,
            }));
        }
    }
    all
}

impl Place {
    pub fn name(&self) -> String {
        format!("{}@{}", self.hook, self.role)
    }

    /// Whether two places are one, or have something in common.
    pub fn overlaps(&self, other: &Place) -> bool {
        if (self.hook, &self.role) != (other.hook, &other.role) {
            return false;
        }
        match (&self.taken, &other.taken) {
            (Taken::Units(a), Taken::Units(b)) => a.iter().any(|unit| b.contains(unit)),
            (Taken::Along(a), Taken::Along(b)) => match (a.directions(), b.directions()) {
                (Some(a), Some(b)) => a
                    .iter()
                    .any(|a| b.iter().any(|b| dot(a, b).abs() > ORTHOGONAL)),
                _ => true,
            },
            _ => true,
        }
    }

    /// Puts the source's part into the activation at a position of the base.
    pub fn edit(&self, spec: &ModelSpec, pos: usize, theirs: &[f32]) -> Result<Edit> {
        let site = Site::all(self.hook).at(pos);
        let dims = self.hook.shape(spec, 1, 1).split_off(1);
        Ok(match &self.taken {
            Taken::Whole => {
                let value = tensor(theirs.to_vec(), dims)?;
                Edit::new(site, Op::Replace(Value::Tensor(value)))
            }
            taken => {
                let (taken, theirs) = (taken.clone(), theirs.to_vec());
                let units = dims[1];
                Edit::with(site, "interchange", move |x: &Tensor| {
                    let moved = taken.exchanged(&to_host(x)?, &theirs, units);
                    let moved = tensor(moved, x.shape().clone())?;
                    Ok(moved.to_device(x.device())?.to_dtype(x.dtype())?)
                })
            }
        })
    }

    /// Of a part that is more than half of the activation, so that no other of its size has nothing in common with it: how many units or
    /// dimensions it has, and how many there are.
    pub fn crowded(&self, spec: &ModelSpec) -> Option<(usize, usize)> {
        let (taken, all) = match &self.taken {
            Taken::Whole => return None,
            Taken::Units(units) => (units.len(), units_of(self.hook, spec).0),
            Taken::Along(space) => {
                let width = self.hook.width(spec);
                (space.dims(width), width)
            }
        };
        (2 * taken > all).then_some((taken, all))
    }

    /// The same of another part of as many units or dimensions; the whole has none, and moves to another position instead.
    pub fn random(&self, spec: &ModelSpec, rng: &mut ChaCha8Rng) -> Place {
        let taken = match &self.taken {
            Taken::Whole => Taken::Whole,
            Taken::Units(units) => {
                let (n, _) = units_of(self.hook, spec);
                let mut others: Vec<usize> = (0..n).filter(|unit| !units.contains(unit)).collect();
                others.shuffle(rng);
                // Where most of them are taken, some stay, and the result says so.
                let mut own = units.clone();
                own.shuffle(rng);
                others.extend(own);
                others.truncate(units.len());
                others.sort_unstable();
                Taken::Units(others)
            }
            Taken::Along(space) => {
                let width = self.hook.width(spec);
                let mut direction =
                    |_| -> Vec<f64> { (0..width).map(|_| f64::from(normal(rng))).collect() };
                let directions: Vec<Vec<f64>> =
                    (0..space.dims(width)).map(&mut direction).collect();
                Taken::Along(Subspace::spanned(&directions).unwrap_or_else(Subspace::full))
            }
        };
        Place {
            taken,
            ..self.clone()
        }
    }
}

impl Taken {
    /// The base's activation with the source's part.
    /// # Shapes
    /// `[width]`, of `units` equal parts.
    pub fn exchanged(&self, own: &[f32], theirs: &[f32], units: usize) -> Vec<f32> {
        match self {
            Taken::Whole => theirs.to_vec(),
            Taken::Along(space) => space.exchanged(own, theirs),
            Taken::Units(chosen) => {
                let mut moved = own.to_vec();
                let width = own.len() / units;
                for &unit in chosen {
                    let range = unit * width..(unit + 1) * width;
                    moved[range.clone()].copy_from_slice(&theirs[range]);
                }
                moved
            }
        }
    }
}
