//! General paths: one chain of nodes, or several, patched node by node.
//!
//! Along a path each node is run on the clean prompt with one change, at the one input that the path enters, and passes the
//! change of its own output on; at the end the change arrives at the final stream. In between everything is recomputed in
//! full: norms, attention and MLPs see what they would see. Of a set of paths that share their ends, every node sees the sum of
//! what its own predecessors pass on, as in a network unfolded into a tree. Where a norm stands on attention's output, what a
//! head passes on is its share of the normed sum, as in [`exact_edges`](crate::methods::exact_edges).

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use candle_core::{DType, Device, Tensor};
use serde_json::{Value, json};

use super::choice::Receiver;
use super::rows::path_cell;
use super::runs::{OnlyStops, PathRuns, added, bytes_of_pair, carried, read_site, spread, walk};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Edge, Edit, Hook, Kind, Ln, Node};
use crate::methods::exact_edges::deltas::head_write;
use crate::methods::method::{Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit};
use crate::metric::Metric;
use crate::run::{Captured, Progress, Variant, sweep, sweep_with_capture};
use crate::scores::{Cell, Direction, ExampleScores, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// A chain from the node whose corrupted output enters it to the logits, written `input->a0.h1<v>->m2->logits`, or, where a
/// shell would take the arrows for its own, `input:a0.h1.v:m2:logits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePath {
    pub source: Node,
    /// The places that read, in order; the last is `logits`.
    pub steps: Vec<Receiver>,
}

/// Paths that are patched together, as one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathSet {
    /// Names the row of several; a path alone is named by itself.
    pub name: String,
    pub paths: Vec<NodePath>,
}

/// Which chains of nodes to patch.
#[derive(Debug, Clone, PartialEq)]
pub struct NodePathConfig {
    pub sets: Vec<PathSet>,
    /// [default: the task's]
    pub metric: Option<Metric>,
}

impl NodePathConfig {
    /// A row for each path alone (`src` its source, `dst` the rest of it), and with several one for all of them together.
    pub fn each(paths: Vec<NodePath>) -> Self {
        let alone = |path: &NodePath| PathSet {
            name: path.to_string(),
            paths: vec![path.clone()],
        };
        let mut sets: Vec<PathSet> = paths.iter().map(alone).collect();
        if paths.len() > 1 {
            sets.push(PathSet {
                name: "all".into(),
                paths,
            });
        }
        NodePathConfig { sets, metric: None }
    }

    /// [`NodePathConfig::each`] of paths as they are written: `input->a0.h1<v>->logits`.
    /// # Errors
    /// [`Error::Parse`].
    pub fn of<'t>(paths: impl IntoIterator<Item = &'t str>) -> Result<Self> {
        let paths: Result<Vec<NodePath>> = paths.into_iter().map(str::parse).collect();
        Ok(NodePathConfig::each(paths?))
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }
}

impl NodePath {
    /// # Errors
    /// [`Error::UnknownNode`], [`Error::NoSuchEdge`] for a step that does not exist, [`Error::Parse`] for a path without an end.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        let graph = Graph::new(spec);
        let mut src = self.source;
        graph.row(src)?;
        for step in &self.steps {
            graph.place(&Edge {
                src,
                dst: step.node,
                letter: step.letter,
            })?;
            src = step.node;
        }
        match src {
            Node::Logits => Ok(()),
            _ => Err(Error::Parse {
                what: "a path",
                text: self.to_string(),
                reason: "it ends in the middle of the model; go on to `->logits`".into(),
            }),
        }
    }
}

impl PathSet {
    fn cell(&self) -> Cell {
        match &self.paths[..] {
            [path] => {
                let steps: Vec<String> = path.steps.iter().map(Receiver::to_string).collect();
                path_cell(path.source.to_string(), steps.join("->"))
            }
            _ => Cell {
                component: "paths together".into(),
                ..path_cell(self.name.clone(), "logits".into())
            },
        }
    }
}

impl Method for NodePathConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta::new(
            "path_patching",
            metric,
            metric.unit(),
            Direction::Noise,
            task.seed,
        )
    }

    fn settings(&self) -> Value {
        let names =
            |set: &PathSet| -> Vec<String> { set.paths.iter().map(NodePath::to_string).collect() };
        let sets: Vec<_> = self
            .sets
            .iter()
            .map(|set| (&set.name, names(set)))
            .collect();
        json!({ "paths": sets })
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            decoder: Some("paths"),
            aligned: true,
            metric: Some(self.metric(task)),
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, _: &Task) -> Result<()> {
        if self.sets.is_empty() {
            return Err(Error::invalid(
                "there is no path to patch; write one such as `input:a0.h1.v:logits`",
            ));
        }
        let mut cells = std::collections::HashSet::new();
        for set in &self.sets {
            if set.paths.is_empty() {
                return Err(Error::invalid(format!(
                    "the set `{}` has no paths",
                    set.name
                )));
            }
            set.paths.iter().try_for_each(|path| path.check(spec))?;
            let mut paths = set.paths.iter().enumerate();
            let is_again = |(at, path): &(usize, &NodePath)| set.paths[..*at].contains(path);
            if let Some((_, path)) = paths.find(is_again) {
                return Err(Error::invalid(format!("the path `{path}` is named twice")));
            }
            if !cells.insert(set.cell()) {
                return Err(Error::invalid(format!("`{}` is named twice", set.name)));
            }
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(NodePaths {
            on,
            running,
            config: self,
            cells: self.sets.iter().map(PathSet::cell).collect(),
        }))
    }
}

/// A checked run in progress.
struct NodePaths<'a> {
    on: Subject<'a>,
    running: &'a Running,
    config: &'a NodePathConfig,
    cells: Vec<Cell>,
}

impl Prepared for NodePaths<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        4 * bytes_of_pair(&self.on.model.spec, length)
    }

    fn splits(&self) -> bool {
        true
    }

    /// A walk from every node that a path goes through.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let pair = &self.on.task.pairs()[unit.items[0]];
        let (spec, length) = (&self.on.model.spec, pair.clean.len());
        let share = (length - pair.first_difference().min(length)) as f64 / length as f64;
        let sets = &self.config.sets[unit.cells.clone()];
        let steps = || {
            let paths = sets.iter().flat_map(|set| &set.paths);
            paths.flat_map(|path| &path.steps)
        };
        Ok(Cost {
            variants: steps().count(),
            without_effect: if share > 0.0 { 0 } else { steps().count() },
            passes: 2.0,
            packed: steps().map(|step| walk(step.node, spec, share)).sum(),
            bytes: self.bytes(length),
            ..Cost::default()
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let metric = self.config.metric(self.on.task);
        let runs = PathRuns::new(self.on, metric, &unit.items, self.running, true)?;
        let mut values = vec![Vec::with_capacity(unit.cells.len()); unit.items.len()];
        for set in &self.config.sets[unit.cells.clone()] {
            for (values, value) in values.iter_mut().zip(runs.along(&set.paths, progress)?) {
                values.push(value);
            }
            progress.advance(unit.items.len() as u64);
        }
        Ok(runs.examples(self.on.task, unit, values))
    }
}

/// What a node writes more than in the clean run, for each prompt; `None` where that is nothing.
/// # Shapes
/// `[length, d_model]`, f32 on the host.
type Changes = Vec<Option<Tensor>>;

/// The way to a node: its source, and the places read on the way, the node's own last.
type Way<'p> = (Node, &'p [Receiver]);

impl PathRuns<'_> {
    /// The metric of each prompt with all of these paths patched.
    fn along(&self, set: &[NodePath], progress: &dyn Progress) -> Result<Vec<f64>> {
        let ways: Vec<Way<'_>> = set
            .iter()
            .map(|path| (path.source, path.steps.as_slice()))
            .collect();
        let mut metrics = self.clean_metric.clone();
        let (of, variants) = variants(self.arriving(&ways, progress)?);
        let values = sweep(
            self.model,
            &self.clean,
            &variants,
            &self.sources,
            &self.readout,
            &self.options,
            &OnlyStops(progress),
        )?;
        for (example, value) in of.into_iter().zip(values) {
            metrics[example] = value;
        }
        Ok(metrics)
    }

    /// For each prompt, the edits that bring what comes along these ways, all to one node, to where the node reads.
    fn arriving(&self, ways: &[Way<'_>], progress: &dyn Progress) -> Result<Vec<Vec<Edit>>> {
        let mut inputs: BTreeMap<Receiver, BTreeMap<Node, Vec<Way<'_>>>> = BTreeMap::new();
        for &(source, steps) in ways {
            let Some((&last, before)) = steps.split_last() else {
                continue;
            };
            let from = before.last().map_or(source, |step| step.node);
            let of_input = inputs.entry(last).or_default();
            of_input.entry(from).or_default().push((source, before));
        }
        let everywhere: Vec<usize> = (0..self.clean.length).collect();
        let mut edits = vec![Vec::new(); self.clean.prompts.len()];
        for (input, from) in inputs {
            let mut sum: Changes = vec![None; edits.len()];
            for (node, ways) in from {
                for (sum, change) in sum.iter_mut().zip(self.changes(node, &ways, progress)?) {
                    *sum = match (sum.take(), change) {
                        (Some(a), Some(b)) => Some((a + b)?),
                        (a, b) => a.or(b),
                    };
                }
            }
            for (edits, change) in edits.iter_mut().zip(sum) {
                let Some(change) = change else { continue };
                let site = read_site(input, &self.model.spec);
                edits.extend(added(site, &change, &everywhere)?);
            }
        }
        Ok(edits)
    }

    /// What a node passes on, if it is reached along these ways. One that a path starts in writes as in the corrupted run.
    fn changes(&self, node: Node, ways: &[Way<'_>], progress: &dyn Progress) -> Result<Changes> {
        let n = self.clean.prompts.len();
        let starts_here = ways.iter().any(|(_, steps)| steps.is_empty());
        if starts_here {
            let of_prompts = (0..n).map(|example| self.written_more(node, example));
            return of_prompts.collect();
        }
        let read = match node {
            Node::Head { layer, .. } if self.has_post_norm(layer) => {
                vec![
                    Hook::at(Kind::Z, layer),
                    Hook::at(Kind::Scale(Ln::OnePost), layer),
                ]
            }
            // A head is alone in changing what its layer's attention adds.
            Node::Head { layer, .. } => vec![Hook::at(Kind::AttnOut, layer)],
            Node::Mlp(layer) => vec![Hook::at(Kind::MlpOut, layer)],
            // Nothing leads to the input, and the logits pass nothing on.
            Node::Input | Node::Logits => return Ok(vec![None; n]),
        };
        let (of, variants) = variants(self.arriving(ways, progress)?);
        let (_, captured) = sweep_with_capture(
            self.model,
            &self.clean,
            &variants,
            &self.sources,
            &self.readout,
            &read,
            &self.options,
            &OnlyStops(progress),
        )?;
        let mut changes = vec![None; n];
        for (variant, example) in of.into_iter().enumerate() {
            changes[example] = match node {
                Node::Head { layer, head } if self.has_post_norm(layer) => {
                    self.change_of_share(&captured, variant, example, layer, head)?
                }
                _ => self.change_of_branch(&captured, variant, example, read[0])?,
            };
        }
        Ok(changes)
    }

    /// The change of what a branch adds to the stream.
    fn change_of_branch(
        &self,
        captured: &Captured,
        variant: usize,
        example: usize,
        written: Hook,
    ) -> Result<Option<Tensor>> {
        let Some((positions, now)) = carried(captured, variant, written)? else {
            return Ok(None);
        };
        let before = self.clean_rows(written, example, positions)?;
        Ok(Some(spread(
            &(now - before)?,
            positions,
            self.clean.length,
        )?))
    }

    /// The change of a head's share of a normed sum, each with the scale of its own run.
    fn change_of_share(
        &self,
        captured: &Captured,
        variant: usize,
        example: usize,
        layer: usize,
        head: usize,
    ) -> Result<Option<Tensor>> {
        let (z, scale) = (
            Hook::at(Kind::Z, layer),
            Hook::at(Kind::Scale(Ln::OnePost), layer),
        );
        let (Some((positions, z_now)), Some((scaled, scale_now))) = (
            carried(captured, variant, z)?,
            carried(captured, variant, scale)?,
        ) else {
            return Ok(None);
        };
        if positions != scaled {
            return Err(Error::invalid(format!(
                "layer {layer} norms other positions than its attention wrote, which is a fault in the sweep; please report it"
            )));
        }
        // z [positions, n_heads, d_head], scale [positions, 1]
        let share = |z: Tensor, scale: Tensor| -> Result<Tensor> {
            let own = z.narrow(1, head, 1)?.squeeze(1)?.broadcast_div(&scale)?;
            head_write(self.model, layer, head, &own.contiguous()?)
        };
        let now = share(z_now, scale_now)?;
        let before = share(
            self.clean_rows(z, example, positions)?,
            self.clean_rows(scale, example, positions)?,
        )?;
        Ok(Some(spread(
            &(now - before)?,
            positions,
            self.clean.length,
        )?))
    }

    /// Some positions of a prompt in the clean run, f32 on the host.
    fn clean_rows(&self, hook: Hook, example: usize, positions: &[u32]) -> Result<Tensor> {
        let own = self.clean.cache.get(hook)?.get(example)?;
        let rows = own.index_select(&Tensor::new(positions, own.device())?, 0)?;
        Ok(rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
    }
}

/// The prompts that have edits, and their variants.
fn variants(edits: Vec<Vec<Edit>>) -> (Vec<usize>, Vec<Variant>) {
    let some = edits
        .into_iter()
        .enumerate()
        .filter(|(_, edits)| !edits.is_empty());
    some.map(|(example, edits)| (example, Variant { example, edits }))
        .unzip()
}

impl fmt::Display for NodePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        self.steps.iter().try_for_each(|step| write!(f, "->{step}"))
    }
}

impl FromStr for NodePath {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.replace("->", ":");
        let mut parts = text.split(':');
        let source = parts.next().unwrap_or_default().parse()?;
        let steps: Vec<Receiver> = parts.map(str::parse).collect::<Result<_>>()?;
        if steps.is_empty() {
            return Err(Error::Parse {
                what: "a path",
                text,
                reason: "write its nodes in order, such as `input:a0.h1.v:logits`".into(),
            });
        }
        Ok(NodePath { source, steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_print_and_parse_back() {
        for text in ["input->logits", "a0.h1->m2->a3.h0<q>->logits"] {
            assert_eq!(text.parse::<NodePath>().expect(text).to_string(), text);
        }
        let typed: NodePath = "input:a0.h1.v:logits".parse().expect("for shells");
        assert_eq!(typed.to_string(), "input->a0.h1<v>->logits");
        for text in ["", "input", "input->a0.h1->logits", "input->->logits"] {
            assert!(text.parse::<NodePath>().is_err(), "{text}");
        }
    }
}
