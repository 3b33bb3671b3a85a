//! What an exchange and its controls change, and what the sources hold for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::design::Design;
use super::places::{Place, Taken};
use crate::error::Result;
use crate::hooks::Hook;
use crate::methods::captured::captured;
use crate::methods::method::stop_if_asked;
use crate::model::Model;
use crate::nn::host::to_host;
use crate::run::Progress;
use crate::spec::ModelSpec;

/// What is measured at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As the program says.
    Exchanged,
    /// Another place of the same size.
    Random,
    /// The sources of another exchange.
    Shuffled,
}

const HOW: [How; 3] = [How::Exchanged, How::Random, How::Shuffled];

/// What is put where: the activation of a source at a position, into one of the base.
pub(super) struct Change {
    pub place: Place,
    pub pos: usize,
    pub source: usize,
    pub source_pos: usize,
}

/// What is done with one exchange at the places of one sweep.
pub(super) struct Planned {
    /// Its place in the list of those that were asked for.
    pub item: usize,
    pub place: usize,
    pub how: How,
    pub changes: Vec<Change>,
}

/// What is needed of sources: by prompt, at which hooks and positions.
pub(super) type Needed = BTreeMap<usize, BTreeSet<(Hook, usize)>>;

/// What sources hold: by prompt, hook and position.
pub(super) type Held = HashMap<(usize, Hook, usize), Vec<f32>>;

impl Design<'_> {
    /// What one exchange changes at the places of one sweep; `None` for a control that there is none of.
    pub fn changes(
        &self,
        spec: &ModelSpec,
        number: usize,
        places: usize,
        how: How,
    ) -> Option<Vec<Change>> {
        let item = self.item(number);
        if how != How::Exchanged && !item.changes {
            return None;
        }
        let prompts = &self.prompts;
        let sources = match how {
            How::Shuffled => item.others.as_ref()?,
            _ => &item.sources,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream((1 << 40) + ((number as u64) << 16) + places as u64);
        let mut taken: Vec<usize> = Vec::new();
        let places = &self.exchanged[item.of].places[places];
        let mut all = Vec::with_capacity(places.len());
        for (place, &source) in places.iter().zip(sources) {
            let at = |prompt: usize| prompts[prompt].position(&place.role).expect("checked");
            let (mut pos, mut source_pos) = (at(item.base), at(source));
            let mut place = place.clone();
            if how == How::Random {
                place = place.random(spec, &mut rng);
                if place.taken == Taken::Whole {
                    taken.push(pos);
                    let lengths = [item.base, source].map(|prompt| prompts[prompt].tokens().len());
                    let free = (0..lengths[0].min(lengths[1])).filter(|at| !taken.contains(at));
                    let free: Vec<usize> = free.collect();
                    if free.is_empty() {
                        return None;
                    }
                    pos = free[rng.random_range(0..free.len())];
                    source_pos = pos;
                    taken.push(pos);
                }
            }
            all.push(Change {
                place,
                pos,
                source,
                source_pos,
            });
        }
        Some(all)
    }

    /// All that some items change: each item's place in the list, where it is, and what.
    pub fn all_changes(&self, spec: &ModelSpec, items: &[usize]) -> Vec<Planned> {
        let mut all = Vec::new();
        for (i, &number) in items.iter().enumerate() {
            let places = self.exchanged[self.item(number).of].places.len();
            for place in 0..places {
                for how in HOW {
                    let changes = self.changes(spec, number, place, how);
                    all.extend(changes.map(|changes| Planned {
                        item: i,
                        place,
                        how,
                        changes,
                    }));
                }
            }
        }
        all
    }

    /// What is needed of sources, by prompt.
    pub fn needed(&self, spec: &ModelSpec, items: &[usize]) -> Needed {
        let mut needed = Needed::new();
        let all = self.all_changes(spec, items);
        for change in all.iter().flat_map(|planned| &planned.changes) {
            let of = needed.entry(change.source).or_default();
            of.insert((change.place.hook, change.source_pos));
        }
        needed
    }

    /// Runs each source once for what it holds.
    pub fn hold(
        &self,
        model: &Model,
        needed: &Needed,
        batch: usize,
        progress: &dyn Progress,
    ) -> Result<Held> {
        let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &prompt in needed.keys() {
            let length = self.prompts[prompt].tokens().len();
            by_length.entry(length).or_default().push(prompt);
        }
        let mut held = Held::new();
        let most = batch.max(1);
        for chunk in by_length.values().flat_map(|all| all.chunks(most)) {
            stop_if_asked(progress)?;
            let prompts: Vec<Vec<u32>> = (chunk.iter())
                .map(|&prompt| self.prompts[prompt].tokens().clone())
                .collect();
            let hooks: BTreeSet<Hook> = (chunk.iter())
                .flat_map(|prompt| needed[prompt].iter().map(|(hook, _)| *hook))
                .collect();
            let hooks: Vec<Hook> = hooks.into_iter().collect();
            let cache = captured(model, &prompts, &hooks, &[])?;
            for (i, prompt) in chunk.iter().enumerate() {
                for &(hook, pos) in &needed[prompt] {
                    let row = cache.packed(hook)?.narrow(0, i * cache.length + pos, 1)?;
                    held.insert((*prompt, hook, pos), to_host(&row)?);
                }
            }
        }
        Ok(held)
    }
}
