//! Estimates at edges: EAP and its integrals.
//!
//! The effect of an edge from `u` to `v` is to first order `<dz_u, d metric / d x_v>`: what `u` writes differently, along the
//! gradient at the stream that `v` reads, before `v`'s norm. There are hundreds of sources and readers a layer, so neither side
//! is ever held for all layers at full width: sources are kept as differences of z and readers as gradients of q, k and v, both in
//! head space, and are spread to the width of the model for a few tokens at a time, where all edges into a layer are one product.
//!
//! With `n` the normed stream, `s` its scale and `w` the norm's weight, the gradient at a reader's input is
//! `(w W g [centred]) / s - n <n, w W g> / (s d)` for the gradient `g` at its query, key or value. The first term is linear in
//! `g / s`, so an integral over many points is spread once; and `<n, w W g>` is `<W^T (w n), g>`, the inner product of a query (without
//! its bias) and its gradient, so the factor of the second term is found in head space, for each point, and costs one row.
//!
//! Sources: Syed et al. 2023 (EAP); Hanna et al. 2024, arXiv 2403.17806 (EAP-IG); Marks et al. 2024 (integrals over activations).
//! Where a family norms what attention writes, a head's share is `w_post z_h W_O / s_post` with its own run's scale, which
//! sums to `attn_out` exactly.

mod conductance;
mod contract;
mod readers;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde_json::{Value, json};

use super::runs::Runs;
use super::setting::{Setting, check_metric};
use super::{GradientPath, StepRule, check_steps, name_with_rules, no_line_between_models};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::SourceModel;
use crate::methods::activation_patching::read_weights;
use crate::methods::exact_edges::{EdgeConfig, Reference, cell, edge_of};
use crate::methods::method::{
    Cost, Exact, Method, Needs, Prepared, Running, Subject, Unit, units, unmeasured,
};
use crate::metric::Metric;
use crate::nn::rules::Rules;
use crate::run::{Progress, Source};
use crate::scores::{Cell, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;
use contract::{EdgeWeights, Edges, Written};

/// Where the gradients of an edge method are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EdgePath {
    /// As for nodes.
    Along(GradientPath),
    /// Along the line between the two runs' embeddings, where each step of the line counts with what the source itself writes
    /// differently over that step (CEAP). The rule says at which ends of a step the gradient is taken.
    Conductance { steps: usize, rule: StepRule },
    /// For each layer's attention, each MLP and the input in turn: averaged while what it writes goes from the other run's to the
    /// base run's and all else stays the base run's.
    Activations {
        steps: usize,
        rule: StepRule,
        /// Credit every edge in every one of these runs and average over them all, as the reference code does, rather than
        /// only the edges that leave what is interpolated.
        every_edge: bool,
    },
}

/// Which edges' effects are estimated, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct EdgeAttributionConfig {
    /// [default: the task's]
    pub metric: Option<Metric>,
    /// What an edge carries when it is patched.
    pub reference: Reference,
    /// The model whose runs that is taken from [default: the model that is patched]; see [`EdgeConfig::source_model`].
    pub source_model: Option<SourceModel>,
    pub path: EdgePath,
    pub rules: Rules,
    /// A score for each position of a template, in place of their sum.
    pub by_position: bool,
}

impl EdgeAttributionConfig {
    /// EAP; all else at its default.
    pub fn eap() -> Self {
        EdgeAttributionConfig {
            metric: None,
            reference: Reference::Pair,
            source_model: None,
            path: EdgePath::Along(GradientPath::Base),
            rules: Rules::gradient(),
            by_position: false,
        }
    }

    /// EAP-IG over the inputs, at midpoints.
    pub fn eap_ig(steps: usize) -> Self {
        EdgeAttributionConfig::along(EdgePath::Along(GradientPath::inputs(steps)))
    }

    /// The mean of EAP at both runs.
    pub fn clean_corrupted() -> Self {
        EdgeAttributionConfig::along(EdgePath::Along(GradientPath::Ends))
    }

    /// CEAP, the conductance of edges, by the trapezoid rule.
    pub fn ceap(steps: usize) -> Self {
        EdgeAttributionConfig::along(EdgePath::Conductance {
            steps,
            rule: StepRule::Trapezoid,
        })
    }

    /// EAP-IG over what each component writes, at midpoints.
    pub fn eap_ig_activations(steps: usize) -> Self {
        EdgeAttributionConfig::along(EdgePath::Activations {
            steps,
            rule: StepRule::Midpoint,
            every_edge: false,
        })
    }

    /// EAP with the rules of RelP.
    pub fn relp() -> Self {
        EdgeAttributionConfig {
            rules: Rules::relp(),
            ..EdgeAttributionConfig::eap()
        }
    }

    /// EAP along another path.
    pub fn along(path: EdgePath) -> Self {
        EdgeAttributionConfig {
            path,
            ..EdgeAttributionConfig::eap()
        }
    }

    /// The method's name, which follows from what it does.
    pub fn name(&self) -> String {
        let name = match self.path {
            EdgePath::Activations { .. } => "eap-ig-activations",
            EdgePath::Conductance { .. } => "ceap",
            EdgePath::Along(GradientPath::Inputs { .. }) => "eap-ig",
            EdgePath::Along(GradientPath::Ends) => "clean-corrupted",
            EdgePath::Along(GradientPath::Base) if self.rules == Rules::relp() => {
                return "relp-edges".into();
            }
            EdgePath::Along(GradientPath::Base) => "eap",
        };
        name_with_rules(name, &self.rules)
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }

    /// Bytes that a batch is made for where nobody says how much there is: a quarter of what the differences would take at full
    /// width.
    fn planned_memory(&self, spec: &ModelSpec, task: &Task, batch: usize) -> usize {
        let rows = batch.min(task.pairs().len()) * task.longest();
        let dense = 4 * rows * Graph::new(spec).n_src() * spec.d_model;
        (dense / 4).clamp(256 << 20, Running::PLANNED_MEMORY)
    }
}

impl Method for EdgeAttributionConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta {
            method: self.name(),
            metric: metric.to_string(),
            unit: metric.unit().into(),
            base: None,
            direction: self.reference.direction(),
            seed: task.seed,
        }
    }

    fn settings(&self) -> Value {
        let mut settings = json!({
            "reference": self.reference,
            "path": self.path,
            "rules": self.rules,
            "by_position": self.by_position,
        });
        if let Some(other) = &self.source_model {
            settings["source_model"] = other.settings();
        }
        settings
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            decoder: Some("edges"),
            aligned: true,
            metric: Some(self.metric(task)),
            gradient: true,
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.reference
            .check(self.source_model.as_ref(), spec, task)?;
        let at_base = self.path == EdgePath::Along(GradientPath::Base);
        check_metric(self.metric(task), self.reference.direction(), at_base)?;
        match self.path {
            EdgePath::Along(path) => path.check()?,
            EdgePath::Activations { steps, .. } | EdgePath::Conductance { steps, .. } => {
                check_steps(steps)?;
            }
        }
        let to_other_run = match self.path {
            EdgePath::Along(path) => path != GradientPath::Base,
            EdgePath::Conductance { .. } => true,
            EdgePath::Activations { .. } => false,
        };
        if to_other_run && self.source_model.is_some() {
            return Err(no_line_between_models(
                "`EdgePath::Along` or `EdgePath::Activations`",
            ));
        }
        if to_other_run && self.reference != Reference::Pair {
            return Err(Error::invalid(
                "an integral over the inputs goes to the pair's other run; with zeros or means use `EdgePath::Along` or \
                 `EdgePath::Activations`",
            ));
        }
        if self.by_position && task.batches(usize::MAX).len() > 1 {
            return Err(Error::invalid(
                "scores by position need prompts of one template and one length; take one (`ExpandOptions::templates = 0`)",
            ));
        }
        Ok(())
    }

    fn load(&self) -> Result<()> {
        read_weights(self.source_model.as_ref())
    }

    fn prepare<'a>(
        &'a self,
        on: Subject<'a>,
        running: &'a Running,
    ) -> Result<Box<dyn Prepared + 'a>> {
        let Subject { model, task } = on;
        let planned = self.planned_memory(&model.spec, task, running.batch);
        let planned = running.memory.unwrap_or(planned);
        let graph = Graph::new(&model.spec);
        let positions = if self.by_position { task.longest() } else { 1 };
        let (mut cells, mut places) = (Vec::new(), Vec::new());
        for edge in graph.edges() {
            let (row, column) = graph.place(&edge)?;
            for position in 0..positions {
                let pos = self.by_position.then_some(position as i32);
                cells.push(Cell { pos, ..cell(&edge) });
                places.push((position * graph.n_src() + row) * graph.n_dst() + column);
            }
        }
        Ok(Box::new(EdgeAttribution {
            config: self,
            setting: Setting {
                model,
                task,
                metric: self.metric(task),
                direction: self.reference.direction(),
                source: self.reference.source(),
                source_model: self.source_model.as_ref(),
                hooks: written(&model.spec, self.path),
                memory: planned.min(running.memory_now()),
            },
            graph,
            positions,
            cells,
            places,
            means: BTreeMap::new(),
            weights: None,
            batch: running.batch,
            planned,
        }))
    }

    fn exact(&self, cells: &[Cell]) -> Option<Exact> {
        let edges = cells.iter().filter_map(edge_of).collect();
        Some(Exact {
            method: Box::new(EdgeConfig {
                edges: Some(edges),
                metric: self.metric,
                reference: self.reference,
                source_model: self.source_model.clone(),
            }),
            sign: 1.0,
            sizes: false,
        })
    }

    /// Exact effects are those of whole edges.
    fn exact_cell(&self, cell: &Cell) -> Option<Cell> {
        Some(Cell {
            pos: None,
            ..cell.clone()
        })
    }
}

/// A checked run in progress.
struct EdgeAttribution<'a> {
    config: &'a EdgeAttributionConfig,
    setting: Setting<'a>,
    graph: Graph,
    /// Tokens of a prompt where scores are by position, else 1.
    positions: usize,
    cells: Vec<Cell>,
    /// Of each cell, its place in `[positions, n_src, n_dst]`.
    places: Vec<usize>,
    means: BTreeMap<(usize, usize), Source>,
    weights: Option<EdgeWeights>,
    batch: usize,
    planned: usize,
}

impl Prepared for EdgeAttribution<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let spec = &self.setting.model.spec;
        let (heads, d) = (spec.n_heads * spec.d_head, spec.d_model);
        // Readers' gradients, and the differences of what is written; along a line also what is written at three points.
        let points = match self.config.path {
            EdgePath::Conductance { .. } => 3,
            EdgePath::Along(_) | EdgePath::Activations { .. } => 0,
        };
        let per_row = spec.n_layers * (2 * (3 * heads + 2 * d) + points * (heads + d));
        self.setting.bytes(length, per_row)
    }

    fn units(&self, task: &Task, running: &Running) -> Vec<Unit> {
        let running = Running {
            memory: Some(self.planned),
            ..running.clone()
        };
        units(
            task,
            &running,
            |length| self.bytes(length),
            self.cells.len(),
            false,
        )
    }

    fn begin(&mut self, _: &dyn Progress) -> Result<()> {
        self.means = self.setting.means(self.batch)?;
        self.weights = Some(EdgeWeights::new(self.setting.model)?);
        Ok(())
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        // Contracting what is written with what is read costs about a pass each time.
        let passes = match self.config.path {
            EdgePath::Along(path) => 3 * path.points(true).len(),
            EdgePath::Conductance { steps, rule } => match rule {
                StepRule::Left | StepRule::Right => 3 * steps + 1,
                StepRule::Trapezoid => 3 * (steps + 1),
                // What is written at the ends of a step takes runs of their own.
                StepRule::Midpoint => 4 * steps,
            },
            EdgePath::Activations { steps, .. } => {
                // From its layer on, half the layers on average.
                let groups = 1 + 2 * self.setting.model.spec.n_layers;
                steps * groups * 3 / 2
            }
        };
        let each = (2 + passes) as f64 + self.setting.passes_for_values();
        Ok(Cost::passes(unit.items.len() as f64 * each))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let model = self.setting.model;
        let mut runs = Runs::record(&self.setting, &unit.items, &self.means, &read(&model.spec))?;
        let size = self.positions * self.graph.n_src() * self.graph.n_dst();
        let mut scores = vec![vec![0f32; size]; unit.items.len()];
        match self.config.path {
            EdgePath::Along(path) => {
                let written = Written::differently(&runs)?;
                runs.forget(|hook| matches!(hook.kind, Kind::Z | Kind::MlpOut));
                self.edges(&runs).along(path, &written, &mut scores)?;
            }
            EdgePath::Conductance { steps, rule } => {
                runs.forget(|_| false);
                self.edges(&runs).conductance(steps, rule, &mut scores)?;
            }
            EdgePath::Activations {
                steps,
                rule,
                every_edge,
            } => {
                let written = Written::differently(&runs)?;
                let path = GradientPath::Inputs { steps, rule };
                let edges = self.edges(&runs);
                edges.activations(path, every_edge, &written, &mut scores)?;
            }
        }
        let all: Arc<[u32]> = (0..self.cells.len() as u32).collect();
        let example = |(i, scores): (usize, &Vec<f32>)| {
            let (clean, corrupted) = (runs.clean[i], runs.corrupted[i]);
            let values = self
                .places
                .iter()
                .map(|&place| clean + f64::from(scores[place]));
            let mut one = unmeasured(self.setting.task, unit.items[i], clean, corrupted);
            one.judged(runs.judged[i]);
            one.values = values.collect();
            one.cells = Arc::clone(&all);
            one
        };
        Ok(scores.iter().enumerate().map(example).collect())
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        self.setting.tell(self.batch, measured, progress)
    }
}

impl EdgeAttribution<'_> {
    fn edges<'b>(&'b self, runs: &'b Runs<'b>) -> Edges<'b> {
        Edges {
            runs,
            graph: self.graph,
            config: self.config,
            hooks: &self.setting.hooks,
            memory: self.setting.memory,
            weights: self.weights.as_ref().expect("taken when the run began"),
        }
    }
}

/// What nodes write, as hooks.
fn written(spec: &ModelSpec, path: EdgePath) -> Vec<Hook> {
    let mut kinds = vec![Kind::Z, Kind::Scale(Ln::OnePost), Kind::MlpOut];
    if matches!(path, EdgePath::Activations { .. }) {
        kinds.push(Kind::AttnOut);
    }
    let mut hooks = vec![Hook::global(Kind::Embed)];
    hooks.extend(per_layer(spec, &kinds));
    hooks
}

/// What the gradients at readers' inputs are made with, besides what a backward pass keeps.
fn read(spec: &ModelSpec) -> Vec<Hook> {
    per_layer(spec, &[Kind::Q, Kind::K])
}

fn per_layer(spec: &ModelSpec, kinds: &[Kind]) -> Vec<Hook> {
    let here = |kind: &&Kind| kind.absent(spec).is_none();
    (0..spec.n_layers)
        .flat_map(|layer| {
            kinds
                .iter()
                .filter(here)
                .map(move |&kind| Hook::at(kind, layer))
        })
        .collect()
}
