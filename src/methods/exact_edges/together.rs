//! Sets of edges patched at once, by adding to what each reader sees; for sets of one, the slow twin of exact edges.

use std::collections::BTreeMap;

use candle_core::Tensor;

use super::runs::{Runs, batches, check_pairs, reference_means};
use super::{EdgeConfig, at};
use crate::circuit::Graph;
use crate::error::Result;
use crate::hooks::{Edge, Edit, Hook, Kind, Letter, Node, Op, Site, Value};
use crate::model::Model;
use crate::run::{Progress, Sources, Variant, sweep, sweep_plain};
use crate::task::Pair;

/// The slow twin of [`exact_edge_effects`](super::exact_edge_effects): for each edge one whole forward pass with one edit,
/// `hook_q_input[head=6] += ...`.
/// # Errors
/// Those of [`exact_edge_effects`](super::exact_edge_effects).
pub fn exact_edge_effects_plain(
    model: &Model,
    pairs: &[Pair],
    edges: &[Edge],
    config: &EdgeConfig,
) -> Result<Vec<Vec<f64>>> {
    model.spec.check_decoder("edges")?;
    let sets: Vec<Vec<Edge>> = edges.iter().map(|&edge| vec![edge]).collect();
    joint(model, pairs, &sets, config, |run, variants| {
        sweep_plain(
            model,
            &run.base,
            variants,
            &Sources::default(),
            &run.readout,
        )
    })
}

/// The effect of each *set* of edges, patched at once: every reader sees its own stream plus the differences of all the
/// sources that the set connects it to, taken from the two unpatched runs. Each reader's difference takes `pos * d_model`
/// floats, so in a large model a set should not have thousands of readers.
/// # Shapes
/// `[pairs][sets]`
/// # Errors
/// Those of [`exact_edge_effects`](super::exact_edge_effects).
pub fn exact_edges_together(
    model: &Model,
    pairs: &[Pair],
    sets: &[Vec<Edge>],
    config: &EdgeConfig,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    model.spec.check_decoder("edges")?;
    progress.start("patching sets of edges", (pairs.len() * sets.len()) as u64);
    let effects = joint(model, pairs, sets, config, |run, variants| {
        let (sources, options) = (Sources::default(), &config.sweep);
        sweep(
            model,
            &run.base,
            variants,
            &sources,
            &run.readout,
            options,
            progress,
        )
    })?;
    progress.finish();
    Ok(effects)
}

/// Patches sets of edges at the readers' own inputs, by whichever twin of the sweep is given.
fn joint(
    model: &Model,
    pairs: &[Pair],
    sets: &[Vec<Edge>],
    config: &EdgeConfig,
    values: impl Fn(&Runs, &[Variant]) -> Result<Vec<f64>>,
) -> Result<Vec<Vec<f64>>> {
    let graph = Graph::new(&model.spec);
    sets.iter()
        .flatten()
        .try_for_each(|edge| graph.place(edge).map(drop))?;
    check_pairs(pairs)?;
    let means = reference_means(model, pairs, config)?;
    let mut effects = vec![vec![0.0; sets.len()]; pairs.len()];
    for batch in batches(model, pairs, config) {
        let run = Runs::new(model, pairs, &batch, config, &means)?;
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
fn edits_of(model: &Model, run: &Runs, set: &[Edge], example: usize) -> Result<Vec<Edit>> {
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
