//! The two runs of a batch of pairs, and what every source writes otherwise in the reference.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::deltas::{self, Deltas};
use super::{EdgeConfig, Reference, heads};
use crate::error::Result;
use crate::hooks::{Kind, Node};
use crate::methods::activation_patching::SourceModel;
use crate::methods::method::{Subject, targets_of};
use crate::metric::{Judgement, Metric};
use crate::model::Model;
use crate::run::{BaseRun, MeanOf, Readout, Source, Sources};
use crate::spec::ModelSpec;
use crate::task::Pair;

/// Mean outputs of every source, by template and length.
pub(in crate::methods) type Means = BTreeMap<(usize, usize), Source>;

/// Streams, branches, queries, keys, values and z of every layer, of two runs and their difference.
pub(in crate::methods) fn bytes_of_pair(spec: &ModelSpec, length: usize) -> usize {
    let width = 6 * spec.d_model + (3 * spec.n_heads + 4 * spec.n_kv_heads) * spec.d_head;
    3 * 4 * spec.n_layers * length * width
}

/// Pairs of one group align position by position.
pub(in crate::methods) fn group_of(pair: &Pair) -> (usize, usize) {
    (pair.template, pair.clean.len())
}

/// The model whose values are put in place, and the prompts.
pub(super) fn values_of<'a>(
    on: Subject<'a>,
    other: Option<&'a SourceModel>,
) -> Result<Subject<'a>> {
    match other {
        Some(other) => Ok(Subject {
            model: other.load()?,
            ..on
        }),
        None => Ok(on),
    }
}

/// Mean outputs of every source over the corrupted prompts of each group; none unless they are asked for.
pub(in crate::methods) fn reference_means(
    on: Subject<'_>,
    reference: Reference,
    batch: usize,
) -> Result<Means> {
    let mut means: BTreeMap<(usize, usize), MeanOf> = BTreeMap::new();
    if reference == Reference::Mean {
        let pairs = on.task.pairs();
        for batch in on.task.batches(batch) {
            let prompts = batch.iter().map(|&pair| pairs[pair].corrupted.clone());
            let run = run_of(on.model, prompts.collect())?;
            let mean = means.entry(group_of(&pairs[batch[0]]));
            let mean = mean.or_insert_with(|| MeanOf::new(true));
            mean.add(&deltas::writes(on.model, &run)?)?;
        }
    }
    let finish = |(key, mean): ((usize, usize), MeanOf)| Ok((key, mean.finish(&on.model.spec)?));
    means.into_iter().map(finish).collect()
}

/// A run that keeps what every source writes, and what variants that patch edges start from.
pub(in crate::methods) fn run_of(model: &Model, prompts: Vec<Vec<u32>>) -> Result<BaseRun> {
    let mut starts = deltas::KINDS.to_vec();
    starts.extend([Kind::Z, Kind::MlpIn]);
    starts.extend(heads::kinds(&model.spec));
    BaseRun::new(model, prompts, vec![], vec![], Sources::default(), &starts)
}

/// How the metric of some pairs is read; `clean` is the run of their clean prompts.
pub(in crate::methods) fn readout_of(
    model: &Model,
    metric: Metric,
    pairs: &[&Pair],
    clean: &BaseRun,
) -> Result<Readout> {
    let targets = targets_of(pairs);
    let reference = match metric.needs_reference() {
        true => Some(clean.logits(model, &targets)?),
        false => None,
    };
    Ok(Readout {
        metric,
        targets,
        reference,
    })
}

/// The two runs of a batch, as far as edges need them.
pub(super) struct EdgeRuns {
    pub base: BaseRun,
    deltas: Deltas,
    /// For each prompt the first position at which a source can differ.
    first: Vec<usize>,
    pub readout: Readout,
    pub clean: Vec<f64>,
    pub corrupted: Vec<f64>,
    pub judged: Vec<Judgement>,
}

impl EdgeRuns {
    pub fn new(
        on: Subject<'_>,
        metric: Metric,
        config: &EdgeConfig,
        batch: &[usize],
        means: &Means,
    ) -> Result<Self> {
        let model = on.model;
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &on.task.pairs()[pair]).collect();
        let clean = pairs.iter().map(|pair| pair.clean.clone());
        let corrupted = pairs.iter().map(|pair| pair.corrupted.clone());
        let (clean, corrupted): (Vec<_>, Vec<_>) = (clean.collect(), corrupted.collect());
        let source_model = config.source_model.as_ref();
        let values = match (source_model, config.reference) {
            (Some(other), Reference::Pair) => Some((other.load()?, corrupted.clone())),
            (Some(other), Reference::Same) => Some((other.load()?, clean.clone())),
            _ => None,
        };
        let base = run_of(model, clean)?;
        let other = run_of(model, corrupted)?;
        let readout = readout_of(model, metric, &pairs, &base)?;
        let (clean, corrupted) = (
            base.metric(model, &readout)?,
            other.metric(model, &readout)?,
        );
        let of_run;
        let source = match (config.reference, values) {
            (_, Some((model, prompts))) => {
                of_run = Source::run(deltas::writes(model, &run_of(model, prompts)?)?)?;
                Some(&of_run)
            }
            (Reference::Pair | Reference::Same, None) => {
                of_run = Source::run(deltas::writes(model, &other)?)?;
                Some(&of_run)
            }
            (Reference::Zero, None) => None,
            (Reference::Mean, None) => Some(&means[&group_of(pairs[0])]),
        };
        let deltas = Deltas::new(model, &base, source)?;
        let first = |pair: &&Pair| config.reference.first_difference(source_model, pair);
        Ok(EdgeRuns {
            first: pairs.iter().map(first).collect(),
            judged: base.judge(model, &readout.targets)?,
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
        if first >= self.base.length {
            return Ok(None);
        }
        self.deltas.of(model, source, example, first)
    }
}
