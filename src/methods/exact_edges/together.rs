//! Sets of edges patched at once, by adding to what each reader sees; for sets of one, the slow twin of exact edges.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::runs::{EdgeRuns, reference_means, values_of};
use super::{EdgeConfig, at};
use crate::circuit::Graph;
use crate::error::Result;
use crate::hooks::{Edge, Edit, Hook, Kind, Letter, Node, Op, Site, Value};
use crate::methods::measure::check;
use crate::methods::method::{Running, Subject};
use crate::model::Model;
use crate::run::{Progress, Sources, SweepOptions, Variant, sweep, sweep_plain};

/// The slow twin of [`exact_edges`](super::exact_edges()): for each edge of the config one whole forward pass with one edit,
/// `hook_q_input[head=6] += ...`.
/// # Shapes
/// `[pairs][edges]`
/// # Errors
/// Those of [`exact_edges`](super::exact_edges()).
pub fn exact_edge_effects_plain(on: Subject<'_>, config: &EdgeConfig) -> Result<Vec<Vec<f64>>> {
    let edges = config.edges(&Graph::new(&on.model.spec));
    let sets: Vec<Vec<Edge>> = edges.iter().map(|&edge| vec![edge]).collect();
    joint(on, &sets, config, &Running::default(), |run, variants| {
        sweep_plain(
            on.model,
            &run.base,
            variants,
            &Sources::default(),
            &run.readout,
        )
    })
}

/// The effect of each *set* of edges, patched at once: every reader sees its own stream plus the differences of all the
/// sources that the set connects it to, taken from the two unpatched runs. Each reader's difference takes `pos * d_model`
/// floats, so in a large model a set should not have thousands of readers. The config's own list of edges is not looked at.
/// # Shapes
/// `[pairs][sets]`
/// # Errors
/// Those of [`exact_edges`](super::exact_edges()).
pub fn exact_edges_together(
    on: Subject<'_>,
    sets: &[Vec<Edge>],
    config: &EdgeConfig,
    running: &Running,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    progress.start(
        "patching sets of edges",
        (on.task.pairs().len() * sets.len()) as u64,
    );
    let options = SweepOptions {
        memory: running.memory_now(),
        ..SweepOptions::default()
    };
    let effects = joint(on, sets, config, running, |run, variants| {
        let sources = Sources::default();
        sweep(
            on.model,
            &run.base,
            variants,
            &sources,
            &run.readout,
            &options,
            progress,
        )
    })?;
    progress.finish();
    Ok(effects)
}

/// Patches sets of edges at the readers' own inputs, by whichever twin of the sweep is given.
fn joint(
    on: Subject<'_>,
    sets: &[Vec<Edge>],
    config: &EdgeConfig,
    running: &Running,
    values: impl Fn(&EdgeRuns, &[Variant]) -> Result<Vec<f64>>,
) -> Result<Vec<Vec<f64>>> {
    let Subject { model, task } = on;
    let graph = Graph::new(&model.spec);
    sets.iter()
        .flatten()
        .try_for_each(|edge| graph.place(edge).map(drop))?;
    check(config, &model.spec, task)?;
    let metric = config.metric(task);
    let of_values = values_of(on, config.source_model.as_ref())?;
    let means = reference_means(of_values, config.reference, running.batch)?;
    let mut effects = vec![vec![0.0; sets.len()]; task.pairs().len()];
    for batch in task.batches(running.batch) {
        let run = EdgeRuns::new(on, metric, config, &batch, &means)?;
        for (index, set) in sets.iter().enumerate() {
            let mut variants = Vec::with_capacity(batch.len());
            for example in 0..batch.len() {
                let edits = edits_of(model, &run, set, example)?;
                if !edits.is_empty() {
                    variants.push(Variant { example, edits });
                }
            }
            for (variant, value) in variants.iter().zip(values(&run, &variants)?) {
                let example = variant.example;
                effects[batch[example]][index] = value - run.clean[example];
            }
        }
    }
    Ok(effects)
}

/// One edit for each reader: the sum of the differences that a set of edges carries to it.
fn edits_of(model: &Model, run: &EdgeRuns, set: &[Edge], example: usize) -> Result<Vec<Edit>> {
    let mut sums: BTreeMap<(Node, Option<Letter>), Tensor> = BTreeMap::new();
    for edge in set {
        if let Some(delta) = run.delta(model, edge.src, example)? {
            let key = (edge.dst, edge.letter);
            let sum = match sums.remove(&key) {
                Some(sum) => (sum + delta)?,
                None => delta,
            };
            sums.insert(key, sum);
        }
    }
    let last = model.spec.n_layers - 1;
    let edit = |((node, letter), sum): ((Node, Option<Letter>), Tensor)| {
        let site = match (node, letter) {
            (Node::Head { layer, head }, Some(letter)) => {
                Site::all(Hook::at(letter.input(), layer)).heads([head])
            }
            (Node::Mlp(layer), _) => Site::all(Hook::at(Kind::MlpIn, layer)),
            _ => Site::all(Hook::at(Kind::ResidPost, last)),
        };
        let positions = run.positions(example).into_iter().map(at);
        Edit::new(site.at_positions(positions), Op::Add(Value::Tensor(sum)))
    };
    Ok(sums.into_iter().map(edit).collect())
}
