//! The two runs of a batch of pairs, and what every source writes otherwise in the reference.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::deltas::{self, Deltas};
use super::{EdgeConfig, Reference, heads};
use crate::error::Result;
use crate::hooks::{Kind, Node};
use crate::model::Model;
use crate::run::{BaseRun, MeanOf, Readout, Source, Sources};
use crate::task::Pair;

pub(super) fn check_pairs(pairs: &[Pair]) -> Result<()> {
    pairs.iter().try_for_each(Pair::check_aligned)
}

/// Indices of pairs that run together: one template and one length, as many as memory allows.
pub(super) fn batches(model: &Model, pairs: &[Pair], config: &EdgeConfig) -> Vec<Vec<usize>> {
    let spec = &model.spec;
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (i, pair) in pairs.iter().enumerate() {
        groups.entry(group_of(pair)).or_default().push(i);
    }
    let mut batches = Vec::new();
    for ((_, length), group) in groups {
        // Streams, branches, queries, keys, values and z of every layer, of two runs and their difference.
        let width = 6 * spec.d_model + (3 * spec.n_heads + 4 * spec.n_kv_heads) * spec.d_head;
        let bytes = 3 * 4 * spec.n_layers * length * width;
        let room = (config.sweep.memory / (4 * bytes).max(1)).clamp(1, config.batch.max(1));
        batches.extend(group.chunks(room).map(<[usize]>::to_vec));
    }
    batches
}

/// Pairs of one group align position by position.
fn group_of(pair: &Pair) -> (usize, usize) {
    (pair.template, pair.clean.len())
}

/// Mean outputs of every source over the corrupted prompts of each group; none unless they are asked for.
pub(super) fn reference_means(
    model: &Model,
    pairs: &[Pair],
    config: &EdgeConfig,
) -> Result<BTreeMap<(usize, usize), Source>> {
    let mut means: BTreeMap<(usize, usize), MeanOf> = BTreeMap::new();
    if config.reference == Reference::Mean {
        for batch in batches(model, pairs, config) {
            let prompts = batch.iter().map(|&pair| pairs[pair].corrupted.clone());
            let run = run_of(model, prompts.collect())?;
            let mean = means.entry(group_of(&pairs[batch[0]]));
            let mean = mean.or_insert_with(|| MeanOf::new(true));
            mean.add(&deltas::writes(model, &run)?)?;
        }
    }
    let finish = |(key, mean): ((usize, usize), MeanOf)| Ok((key, mean.finish(&model.spec)?));
    means.into_iter().map(finish).collect()
}

/// A run that keeps what every source writes, and what variants that patch edges start from.
fn run_of(model: &Model, prompts: Vec<Vec<u32>>) -> Result<BaseRun> {
    let mut starts = deltas::KINDS.to_vec();
    starts.extend([Kind::Z, Kind::MlpIn]);
    starts.extend(heads::kinds(&model.spec));
    BaseRun::new(model, prompts, vec![], vec![], Sources::default(), &starts)
}

/// The two runs of a batch, as far as edges need them.
pub(super) struct Runs {
    pub base: BaseRun,
    deltas: Deltas,
    /// For each prompt the first position at which a source can differ.
    first: Vec<usize>,
    pub readout: Readout,
    pub clean: Vec<f64>,
    pub corrupted: Vec<f64>,
}

impl Runs {
    pub fn new(
        model: &Model,
        pairs: &[Pair],
        batch: &[usize],
        config: &EdgeConfig,
        means: &BTreeMap<(usize, usize), Source>,
    ) -> Result<Self> {
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &pairs[pair]).collect();
        let clean = pairs.iter().map(|pair| pair.clean.clone());
        let corrupted = pairs.iter().map(|pair| pair.corrupted.clone());
        let base = run_of(model, clean.collect())?;
        let other = run_of(model, corrupted.collect())?;
        let reference = match config.metric.needs_reference() {
            true => Some(base.logits(model)?),
            false => None,
        };
        let readout = Readout {
            metric: config.metric,
            targets: pairs.iter().map(|pair| pair.target.clone()).collect(),
            reference,
        };
        let (clean, corrupted) = (
            base.metric(model, &readout)?,
            other.metric(model, &readout)?,
        );
        let of_pair;
        let reference = match config.reference {
            Reference::Pair => {
                of_pair = Source::run(deltas::writes(model, &other)?)?;
                Some(&of_pair)
            }
            Reference::Zero => None,
            Reference::Mean => Some(&means[&group_of(pairs[0])]),
        };
        let deltas = Deltas::new(model, &base, reference)?;
        let first = |pair: &&Pair| match config.reference {
            Reference::Pair => {
                let mut tokens = pair.clean.iter().zip(&pair.corrupted);
                tokens.position(|(a, b)| a != b).unwrap_or(base.length)
            }
            Reference::Zero | Reference::Mean => 0,
        };
        Ok(Runs {
            first: pairs.iter().map(first).collect(),
            base,
            deltas,
            readout,
            clean,
            corrupted,
        })
    }

    pub fn positions(&self, example: usize) -> Vec<u32> {
        (self.first[example] as u32..self.base.length as u32).collect()
    }

    /// What a source writes otherwise in the reference, `[positions, d_model]` from the first position that can differ on;
    /// `None` where it writes the same.
    pub fn delta(&self, model: &Model, source: Node, example: usize) -> Result<Option<Tensor>> {
        let first = self.first[example];
        match first < self.base.length {
            true => self.deltas.of(model, source, example, first),
            false => Ok(None),
        }
    }
}
