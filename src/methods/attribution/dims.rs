//! Estimates of single dimensions of what nodes write to the stream.
//!
//! The effect of putting another run's value in one dimension `d` of what node `u` writes, to first order:
//! `sum over positions of (z'_u - z_u)[d] (d metric / d z_u)[d]`, where the gradient is that of the stream which `u` writes to. It is
//! the node's estimate without the sum over `d`: summed over the dimensions it is AtP of the whole node, and over all nodes of an
//! affine model what the whole change does.
//!
//! Source: Mueller et al. 2025, "MIB" (arXiv 2504.13151), who call a dimension of a node's write a neuron.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::GradientPath;
use super::runs::{Gradients, Runs};
use super::setting::{Setting, check_metric};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln, Node};
use crate::methods::activation_patching::PatchSource;
use crate::methods::exact_edges::Reference;
use crate::methods::exact_edges::deltas::head_write;
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, unmeasured,
};
use crate::metric::Metric;
use crate::nn::host::{on_host, to_host};
use crate::nn::rules::Rules;
use crate::run::Progress;
use crate::scores::{Cell, ExampleScores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// How dimensions of what nodes write are scored.
#[derive(Debug, Clone, PartialEq)]
pub struct DimAttributionConfig {
    pub path: GradientPath,
    /// [default: the task's]
    pub metric: Option<Metric>,
}

impl DimAttributionConfig {
    /// With gradients at the clean run, or along the line between the runs' embeddings.
    pub fn along(path: GradientPath) -> Self {
        DimAttributionConfig { path, metric: None }
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }
}

impl Method for DimAttributionConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        let name = match self.path {
            GradientPath::Base => "nap-dims",
            GradientPath::Ends => "nap-dims-clean-corrupted",
            GradientPath::Inputs { .. } => "nap-ig-dims",
        };
        ScoresMeta {
            method: name.into(),
            metric: metric.to_string(),
            unit: metric.unit().into(),
            base: None,
            direction: Reference::Pair.direction(),
            seed: task.seed,
        }
    }

    fn settings(&self) -> Value {
        json!({ "path": self.path })
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            aligned: true,
            metric: Some(self.metric(task)),
            gradient: true,
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, _: &ModelSpec, task: &Task) -> Result<()> {
        let at_base = self.path == GradientPath::Base;
        check_metric(self.metric(task), Reference::Pair.direction(), at_base)?;
        self.path.check()
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let spec = &on.model.spec;
        let graph = Graph::new(spec);
        let nodes = (0..graph.n_src()).map_while(|row| graph.source(row));
        let cell = |node: Node, dim: usize| Cell {
            component: "dim".into(),
            layer: node.layer().map(|layer| layer as u32),
            head: match node {
                Node::Head { head, .. } => Some(head as u32),
                _ => None,
            },
            src: Some(node.to_string()),
            neuron: Some(dim as u32),
            ..Cell::default()
        };
        let cells = nodes.flat_map(|node| (0..graph.d_model).map(move |dim| cell(node, dim)));
        let kinds = [Kind::Z, Kind::Scale(Ln::OnePost), Kind::MlpOut];
        let hooks = (0..spec.n_layers)
            .flat_map(|layer| kinds.map(|kind| Hook::at(kind, layer)))
            .filter(|hook| hook.kind.absent(spec).is_none());
        Ok(Box::new(Attributing {
            config: self,
            setting: Setting {
                model: on.model,
                task: on.task,
                metric: self.metric(on.task),
                direction: Reference::Pair.direction(),
                source: PatchSource::Pair,
                source_model: None,
                hooks: hooks.collect(),
                memory: running.memory_now(),
            },
            cells: cells.collect(),
        }))
    }
}

/// A checked run in progress.
struct Attributing<'a> {
    config: &'a DimAttributionConfig,
    setting: Setting<'a>,
    cells: Vec<Cell>,
}

impl Prepared for Attributing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.setting.model.spec;
        // Gradients at what each branch of each layer writes, twice over where they are averaged; and the scores.
        let per_row = 4 * spec.n_layers * spec.d_model;
        self.setting.bytes(length, per_row) + 8 * self.cells.len()
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let points = self.config.path.points(true).len() as f64;
        Ok(Cost::passes(unit.items.len() as f64 * (3.0 + 2.0 * points)))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let runs = Runs::record(&self.setting, &unit.items, &BTreeMap::new(), &[])?;
        // What nodes write stands at these hooks, heads together.
        let layers = 0..self.setting.model.spec.n_layers;
        let of_layers = layers
            .flat_map(|layer| [Kind::AttnOut, Kind::MlpOut].map(|kind| Hook::at(kind, layer)));
        let written: Vec<Hook> = of_layers.chain([Hook::global(Kind::Embed)]).collect();
        let mut mean = HashMap::<Hook, Vec<f32>>::new();
        for (point, share) in self.config.path.points(true) {
            let tape = runs.at(point, &[])?;
            let mut gradients = Gradients::at(written.iter().copied());
            runs.descend(&tape, &Rules::gradient(), &mut gradients)?;
            for (hook, gradient) in gradients.kept {
                let gradient = to_host(&on_host(&gradient)?)?;
                let sum = mean
                    .entry(hook)
                    .or_insert_with(|| vec![0.0; gradient.len()]);
                sum.iter_mut()
                    .zip(&gradient)
                    .for_each(|(sum, gradient)| *sum += share * gradient);
            }
        }
        let estimates = self.estimates(&runs, &mean)?;
        let all: Arc<[u32]> = (0..self.cells.len() as u32).collect();
        let example = |(i, estimates): (usize, Vec<f64>)| {
            let (clean, corrupted) = (runs.clean[i], runs.corrupted[i]);
            let mut one = unmeasured(self.setting.task, unit.items[i], clean, corrupted);
            one.judged(runs.judged[i]);
            one.values = estimates.into_iter().map(|effect| clean + effect).collect();
            one.cells = Arc::clone(&all);
            one
        };
        Ok(estimates.into_iter().enumerate().map(example).collect())
    }
}

impl Attributing<'_> {
    /// For each pair, the estimates of every dimension of every node.
    /// # Shapes
    /// `[pairs][n_src * d_model]`
    fn estimates(&self, runs: &Runs<'_>, mean: &HashMap<Hook, Vec<f32>>) -> Result<Vec<Vec<f64>>> {
        let graph = Graph::new(&self.setting.model.spec);
        let d = graph.d_model;
        let mut found = vec![Vec::with_capacity(self.cells.len()); runs.pairs.len()];
        let mut share: Option<(usize, Tensor)> = None;
        for node in (0..graph.n_src()).map_while(|row| graph.source(row)) {
            let (hook, change) = match node {
                Node::Head { layer, head } => {
                    let of_layer = match share.take() {
                        Some((of, share)) if of == layer => share,
                        _ => runs.delta_of_heads(layer)?,
                    };
                    let own = of_layer.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
                    share = Some((layer, of_layer));
                    let write = head_write(runs.model, layer, head, &own)?;
                    (Hook::at(Kind::AttnOut, layer), write)
                }
                Node::Mlp(layer) => {
                    let hook = Hook::at(Kind::MlpOut, layer);
                    (hook, runs.delta(hook)?)
                }
                Node::Input | Node::Logits => {
                    let hook = Hook::global(Kind::Embed);
                    (hook, runs.delta(hook)?)
                }
            };
            let gradient = mean.get(&hook).ok_or_else(|| {
                Error::invalid(format!(
                    "no gradient arrives at `{hook}`, so nothing can be said of `{node}`"
                ))
            })?;
            let change = to_host(&change)?;
            for (pair, found) in found.iter_mut().enumerate() {
                let rows = runs.rows_of(pair);
                let of = rows.start * d..rows.end * d;
                let mut sums = vec![0.0; d];
                for (change, gradient) in
                    (change[of.clone()].chunks_exact(d)).zip(gradient[of].chunks_exact(d))
                {
                    for ((sum, change), gradient) in sums.iter_mut().zip(change).zip(gradient) {
                        *sum += f64::from(change * gradient);
                    }
                }
                found.extend(sums);
            }
        }
        Ok(found)
    }
}
