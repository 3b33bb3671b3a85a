//! Which pairs find subspaces and which judge them; where the two runs of a pair are edited; what they are told apart by.

use std::collections::BTreeSet;

use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::config::SubspaceConfig;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind};
use crate::metric::Target;
use crate::spec::ModelSpec;
use crate::task::{Pair, Task};

/// The run that is changed: the clean prompt's or the corrupted one's. The other one is the source.
pub(super) const SIDES: [usize; 2] = [0, 1];

/// One place of the model and of the prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub hook: Hook,
    pub layer: usize,
    pub role: String,
}

impl Place {
    pub fn all(config: &SubspaceConfig, spec: &ModelSpec) -> Vec<Place> {
        let layers = (0..spec.n_layers).filter(|&layer| config.layers.has(layer));
        let of_layer = |layer: usize| {
            config.roles.iter().map(move |role| Place {
                hook: Hook::at(config.kind, layer),
                layer,
                role: role.clone(),
            })
        };
        layers.flat_map(of_layer).collect()
    }

    pub fn name(&self) -> String {
        format!("{}@{}", self.hook, self.role)
    }
}

/// The tokens of one side's prompt, and the position at which it is edited: the last of the role.
pub(super) fn prompt(pair: &Pair, side: usize) -> &Vec<u32> {
    [&pair.clean, &pair.corrupted][side]
}

pub(super) fn position(pair: &Pair, side: usize, role: &str) -> Option<usize> {
    [&pair.roles, pair.corrupted_roles()][side]
        .get(role)?
        .last()
        .copied()
}

/// The pairs in two parts, by their places in the task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Split {
    pub train: Vec<usize>,
    pub held_out: Vec<usize>,
    /// Pairs in neither part, since a training pair has one of their prompts, or a held-out pair both.
    pub shared: usize,
}

/// The least that has a covariance.
const LEAST_TRAIN: usize = 2;

impl Split {
    /// # Errors
    /// [`Error::Invalid`] for a task with too few pairs to hold any out.
    pub fn of(config: &SubspaceConfig, task: &Task) -> Result<Self> {
        let pairs = task.pairs();
        let train = config.train.unwrap_or((pairs.len() / 2).max(LEAST_TRAIN));
        if train < LEAST_TRAIN || train >= pairs.len() {
            let most = pairs.len().saturating_sub(1);
            return Err(Error::invalid(match config.train {
                Some(_) if most >= LEAST_TRAIN => format!(
                    "a subspace cannot be found on {train} of {} pairs and judged by at least one other; take from {LEAST_TRAIN} to {most} for \
                     training (`SubspaceConfig::train`)",
                    pairs.len()
                ),
                _ => format!(
                    "a subspace is found on {LEAST_TRAIN} pairs or more and judged by others, and there are {} in all; take at least {} \
                     (`ExpandOptions::n_pairs`)",
                    pairs.len(),
                    LEAST_TRAIN + 1
                ),
            }));
        }
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.shuffle(&mut ChaCha8Rng::seed_from_u64(task.seed));
        let (first, rest) = order.split_at(train);
        let seen: BTreeSet<&Vec<u32>> = (first.iter())
            .flat_map(|&pair| SIDES.map(|side| prompt(&pairs[pair], side)))
            .collect();
        let is_new = |pair: &usize| {
            SIDES
                .iter()
                .all(|&side| !seen.contains(prompt(&pairs[*pair], side)))
        };
        let sorted = |mut of: Vec<usize>| {
            of.sort_unstable();
            of
        };
        // A pair and the same turned round are judged both ways each, and so alike.
        let mut judged = BTreeSet::new();
        let is_another = |pair: &usize| {
            let [a, b] = SIDES.map(|side| prompt(&pairs[*pair], side));
            judged.insert(if a <= b { [a, b] } else { [b, a] })
        };
        let held_out = rest.iter().copied().filter(is_new).filter(is_another);
        let held_out = sorted(held_out.collect());
        if held_out.is_empty() {
            return Err(Error::invalid(format!(
                "every pair beside the {train} that a subspace is found on shares a prompt with one of them, so none is left to judge it; \
                 take more pairs (`ExpandOptions::n_pairs`) or fewer for training (`SubspaceConfig::train`)"
            )));
        }
        Ok(Split {
            shared: rest.len() - held_out.len(),
            train: sorted(first.to_vec()),
            held_out,
        })
    }
}

/// # Errors
/// [`Error::BadEdit`] for a kind of hook at which nothing can be exchanged.
pub(in crate::methods) fn check_kind(kind: Kind) -> Result<()> {
    if SubspaceConfig::KINDS.contains(&kind) {
        return Ok(());
    }
    let kinds = SubspaceConfig::KINDS.map(|kind| format!("`{}`", kind.short()));
    Err(Error::BadEdit {
        edit: format!("an exchange at `{}`", kind.short()),
        reason: format!("activations can be exchanged at {}", kinds.join(", ")),
    })
}

/// # Errors
/// [`Error::UnknownRole`] for a role that some prompt does not have.
pub(in crate::methods) fn check_role(task: &Task, role: &str) -> Result<()> {
    let has = |pair: &Pair| {
        let mut sides = SIDES.iter();
        sides.all(|&side| position(pair, side, role).is_some())
    };
    if task.pairs().iter().all(has) {
        return Ok(());
    }
    Err(Error::UnknownRole {
        role: role.into(),
        known: format!("{}, in every pair", task.roles().join(", ")),
    })
}

/// What the prompts of a task are told apart by, for methods that want classes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Classes {
    /// The task has two answers: a prompt is of the one that it asks for.
    Answers([Vec<u32>; 2]),
    /// Answers differ from pair to pair: clean prompts against corrupted ones.
    Sides,
}

impl Classes {
    pub fn of(task: &Task) -> Self {
        let labels =
            (task.pairs().iter()).flat_map(|pair| [&pair.target.answers, &pair.target.wrong]);
        let labels: BTreeSet<&Vec<u32>> = labels.collect();
        match labels.into_iter().cloned().collect::<Vec<_>>().try_into() {
            Ok(two) => Classes::Answers(two),
            Err(_) => Classes::Sides,
        }
    }

    /// Whether a prompt is of the second class.
    pub fn is_second(&self, pair: &Pair, side: usize) -> bool {
        let label = [&pair.target.answers, &pair.target.wrong][side];
        match self {
            Classes::Answers(two) => *label == two[1],
            Classes::Sides => side == 1,
        }
    }
}

/// Two tokens that have nothing to do with a task: words of the vocabulary that it does not name, drawn by its seed.
pub(super) fn arbitrary(task: &Task, spec: &ModelSpec) -> [u32; 2] {
    let named: BTreeSet<u32> = task.tokens().into_iter().collect();
    let is_word = |id: &u32| {
        let text = task.text(*id);
        let word = text.trim();
        word.len() >= 3 && word.chars().all(|c| c.is_ascii_lowercase())
    };
    let others = || (0..spec.d_vocab as u32).filter(|id| !named.contains(id));
    let mut words: Vec<u32> = others().filter(is_word).collect();
    if words.len() < 2 {
        words = others().collect();
    }
    if words.len() < 2 {
        words = (0..spec.d_vocab as u32).collect();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(task.seed);
    let first = words.swap_remove(rng.random_range(0..words.len()));
    [first, words[rng.random_range(0..words.len())]]
}

/// What is read of a pair: its own labels, or two arbitrary ones, the first of which belongs to the first class.
pub(super) fn target(pair: &Pair, classes: &Classes, arbitrary: Option<[u32; 2]>) -> Target {
    let Some([first, second]) = arbitrary else {
        return pair.target.clone();
    };
    let (answer, wrong) = match classes.is_second(pair, 0) {
        false => (first, second),
        true => (second, first),
    };
    Target {
        answers: vec![answer],
        wrong: vec![wrong],
        ..pair.target.clone()
    }
}
