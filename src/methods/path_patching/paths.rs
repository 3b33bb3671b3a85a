//! General paths: one chain of nodes, or several, patched node by node.
//!
//! Along a path each node is run on the clean prompt with one change, at the one input that the path enters, and passes the
//! change of its own output on; at the end the change arrives at the final stream. In between everything is recomputed in
//! full: norms, attention and MLPs see what they would see. Paths of a set that meet are patched together from there on.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};

use serde_json::json;

use super::{Receiver, Runs, read_site};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Edge, Edit, Hook, Kind, Node, Op, Pos, Site, Value};
use crate::methods::ablation::site_of;
use crate::methods::logits::{BATCH, provenance, unmeasured};
use crate::metric::Metric;
use crate::model::{Model, ModelSpec};
use crate::nn::host::to_host;
use crate::run::{Progress, Quiet, SweepOptions, Variant, sweep, sweep_with_capture};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Scores, ScoresMeta};
use crate::task::{Pair, Task};

/// A chain from the node whose corrupted output enters it to the logits, written `input->a0.h1<v>->m2->logits`, or, where a
/// shell would take the arrows for its own, `input:a0.h1.v:m2:logits`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    pub source: Node,
    /// The places that read, in order; the last is `logits`.
    pub steps: Vec<Receiver>,
}

impl Path {
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

/// The metric of each pair with the paths of each set patched together into the clean run.
/// # Shapes
/// `[pairs][sets]`
/// # Units
/// The metric's.
/// # Errors
/// Those of [`Path::check`] and [`Error::LengthMismatch`], before anything runs; [`Error::Interrupted`].
pub fn path_effects(
    model: &Model,
    task: &Task,
    sets: &[Vec<Path>],
    metric: Metric,
    options: &SweepOptions,
    progress: &dyn Progress,
) -> Result<Vec<Vec<f64>>> {
    model.spec.check_decoder("paths")?;
    let measured = measure(model, task, sets, metric, options, progress)?;
    Ok(measured.into_iter().map(|one| one.values).collect())
}

/// A table of paths: a row for each alone (`src` its source, `dst` the rest of it), and with several one for all of them together.
/// # Units
/// `value` and `score`: the metric's; `base` is `clean`.
/// # Errors
/// Those of [`path_effects`].
pub fn patch_paths(
    model: &Model,
    task: &Task,
    paths: &[Path],
    metric: Metric,
    detail: Detail,
    progress: &dyn Progress,
) -> Result<Scores> {
    model.spec.check_decoder("paths")?;
    let began = Instant::now();
    let mut sets: Vec<Vec<Path>> = paths.iter().map(|path| vec![path.clone()]).collect();
    let mut cells: Vec<Cell> = paths.iter().map(cell).collect();
    if paths.len() > 1 {
        sets.push(paths.to_vec());
        cells.push(Cell {
            component: "paths together".into(),
            src: Some("all".into()),
            dst: Some("logits".into()),
            ..Cell::default()
        });
    }
    let options = SweepOptions::default();
    let measured = measure(model, task, &sets, metric, &options, progress)?;
    let all: Arc<[u32]> = (0..cells.len() as u32).collect();
    let example = |(pair, one): (&Pair, Measured)| ExampleScores {
        corrupted: one.corrupted,
        cells: Arc::clone(&all),
        values: one.values,
        ..unmeasured(task, pair, one.clean)
    };
    let examples: Vec<ExampleScores> = task.pairs().iter().zip(measured).map(example).collect();
    let names: Vec<String> = paths.iter().map(Path::to_string).collect();
    let settings = json!({ "paths": names, "corruption": task.corruption });
    let provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    let meta = ScoresMeta {
        method: "path_patching".into(),
        metric: metric.to_string(),
        unit: metric.unit().into(),
        direction: Direction::Noise,
        seed: task.seed,
    };
    Scores::assemble(&cells, &examples, &meta, detail, provenance)
}

fn cell(path: &Path) -> Cell {
    let steps: Vec<String> = path.steps.iter().map(Receiver::to_string).collect();
    Cell {
        component: "path".into(),
        src: Some(path.source.to_string()),
        dst: Some(steps.join("->")),
        ..Cell::default()
    }
}

/// What was measured on one pair.
#[derive(Debug, Clone, Default)]
struct Measured {
    clean: f64,
    corrupted: f64,
    values: Vec<f64>,
}

fn measure(
    model: &Model,
    task: &Task,
    sets: &[Vec<Path>],
    metric: Metric,
    options: &SweepOptions,
    progress: &dyn Progress,
) -> Result<Vec<Measured>> {
    task.check_aligned()?;
    sets.iter()
        .flatten()
        .try_for_each(|path| path.check(&model.spec))?;
    task.check_metric(metric)?;
    progress.start("patching paths", (task.pairs().len() * sets.len()) as u64);
    let mut measured = vec![Measured::default(); task.pairs().len()];
    for batch in task.batches(BATCH) {
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &task.pairs()[pair]).collect();
        let runs = Runs::new(model, &pairs, metric, options)?;
        for (i, &pair) in batch.iter().enumerate() {
            measured[pair].clean = runs.clean_metric[i];
            measured[pair].corrupted = runs.corrupted_metric[i];
        }
        for set in sets {
            if progress.cancelled() {
                return Err(Error::Interrupted {
                    kept: "nothing was asked to be kept".into(),
                });
            }
            for (&pair, value) in batch.iter().zip(runs.along(set)?) {
                measured[pair].values.push(value);
            }
            progress.advance(batch.len() as u64);
        }
    }
    progress.finish();
    Ok(measured)
}

/// What a node writes more than in the clean run, for each prompt; `None` where that is nothing.
/// # Shapes
/// `[length, d_model]`, f32 on the host.
type Changes = Vec<Option<Tensor>>;

/// The way to a node: its source, and the places read on the way, the node's own last.
type Way<'p> = (Node, &'p [Receiver]);

impl Runs<'_> {
    /// The metric of each prompt with all of these paths patched.
    fn along(&self, set: &[Path]) -> Result<Vec<f64>> {
        let ways: Vec<Way<'_>> = set
            .iter()
            .map(|path| (path.source, path.steps.as_slice()))
            .collect();
        let mut metrics = self.clean_metric.clone();
        let edits = self.edits(&ways)?;
        let (of, variants) = variants(edits);
        let (sources, options) = (&self.sources, self.options);
        let values = sweep(
            self.model,
            &self.clean,
            &variants,
            sources,
            &self.readout,
            options,
            &Quiet,
        )?;
        for (example, value) in of.into_iter().zip(values) {
            metrics[example] = value;
        }
        Ok(metrics)
    }

    /// For each prompt, the edits that bring what comes along these ways, all to one node, to where the node reads.
    fn edits(&self, ways: &[Way<'_>]) -> Result<Vec<Vec<Edit>>> {
        let mut inputs: BTreeMap<Receiver, BTreeMap<Node, Vec<Way<'_>>>> = BTreeMap::new();
        for &(source, steps) in ways {
            let Some((&last, before)) = steps.split_last() else {
                continue;
            };
            let from = before.last().map_or(source, |step| step.node);
            let of_input = inputs.entry(last).or_default();
            of_input.entry(from).or_default().push((source, before));
        }
        let mut edits = vec![Vec::new(); self.clean.prompts.len()];
        for (input, from) in inputs {
            let mut sum: Changes = vec![None; edits.len()];
            for (node, ways) in from {
                for (sum, change) in sum.iter_mut().zip(self.changes(node, &ways)?) {
                    *sum = match (sum.take(), change) {
                        (Some(a), Some(b)) => Some((a + b)?),
                        (a, b) => a.or(b),
                    };
                }
            }
            for (edits, change) in edits.iter_mut().zip(sum) {
                let Some(change) = change else { continue };
                let site = read_site(input, &self.model.spec);
                edits.extend(added(site, &change)?);
            }
        }
        Ok(edits)
    }

    /// What a node passes on, if it is reached along these ways. One that a path starts in writes as in the corrupted run.
    fn changes(&self, node: Node, ways: &[Way<'_>]) -> Result<Changes> {
        let starts_here = ways.iter().any(|(_, steps)| steps.is_empty());
        let n = self.clean.prompts.len();
        let edits = match starts_here {
            true => {
                let edit = Edit::new(site_of(node), Op::FromRun("corrupted".into()));
                vec![vec![edit]; n]
            }
            false => self.edits(ways)?,
        };
        let written = match node {
            // A head is alone in changing what its layer's attention adds.
            Node::Head { layer, .. } => Hook::at(Kind::AttnOut, layer),
            Node::Mlp(layer) => Hook::at(Kind::MlpOut, layer),
            Node::Input | Node::Logits => return self.change_of_input(),
        };
        let (of, variants) = variants(edits);
        let (_, captured) = sweep_with_capture(
            self.model,
            &self.clean,
            &variants,
            &self.sources,
            &self.readout,
            &[written],
            self.options,
            &Quiet,
        )?;
        let own = self.clean.cache.get(written)?; // [batch, pos, d_model]
        let mut changes = vec![None; n];
        for (variant, example) in of.into_iter().enumerate() {
            let Some((positions, now)) = captured.get(variant, written) else {
                continue;
            };
            let index = Tensor::new(positions, own.device())?;
            let before = own.get(example)?.index_select(&index, 0)?;
            let change = to_host(&(now - before)?)?;
            changes[example] = Some(spread(&change, positions, self.clean.length)?);
        }
        Ok(changes)
    }

    fn change_of_input(&self) -> Result<Changes> {
        let embed = Hook::global(Kind::Embed);
        let of = |run: &crate::run::BaseRun| -> Result<Tensor> {
            let embed = run.cache.get(embed)?;
            Ok(embed.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
        };
        let change = (of(&self.corrupted)? - of(&self.clean)?)?;
        (0..change.dim(0)?)
            .map(|i| Ok(Some(change.get(i)?)))
            .collect()
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

/// Adds a change at the positions where it is something.
fn added(site: Site, change: &Tensor) -> Result<Option<Edit>> {
    let width = change.dim(1)?;
    let values = to_host(&change.contiguous()?)?;
    let rows = values.chunks_exact(width).enumerate();
    let (positions, rows): (Vec<usize>, Vec<&[f32]>) = rows
        .filter(|(_, row)| row.iter().any(|&x| x != 0.0))
        .unzip();
    if positions.is_empty() {
        return Ok(None);
    }
    let value = Tensor::from_vec(rows.concat(), (positions.len(), width), &Device::Cpu)?;
    let site = site.at_positions(positions.into_iter().map(Pos::Index));
    Ok(Some(Edit::new(site, Op::Add(Value::Tensor(value)))))
}

/// Rows of some positions, as those of all; the rest is 0.
fn spread(rows: &[f32], positions: &[u32], length: usize) -> Result<Tensor> {
    let width = rows.len() / positions.len();
    let mut all = vec![0.0; length * width];
    for (row, &pos) in rows.chunks_exact(width).zip(positions) {
        all[pos as usize * width..][..width].copy_from_slice(row);
    }
    Ok(Tensor::from_vec(all, (length, width), &Device::Cpu)?)
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        self.steps.iter().try_for_each(|step| write!(f, "->{step}"))
    }
}

impl FromStr for Path {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.replace("->", ":");
        let mut parts = text.split(':');
        let source = parts.next().unwrap_or_default().parse()?;
        let steps: Vec<Receiver> = parts.map(str::parse).collect::<Result<_>>()?;
        match steps.is_empty() {
            false => Ok(Path { source, steps }),
            true => Err(Error::Parse {
                what: "a path",
                text,
                reason: "write its nodes in order, such as `input:a0.h1.v:logits`".into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_print_and_parse_back() {
        for text in ["input->logits", "a0.h1->m2->a3.h0<q>->logits"] {
            assert_eq!(text.parse::<Path>().expect(text).to_string(), text);
        }
        let typed: Path = "input:a0.h1.v:logits".parse().expect("for shells");
        assert_eq!(typed.to_string(), "input->a0.h1<v>->logits");
        for text in ["", "input", "input->a0.h1->logits", "input->->logits"] {
            assert!(text.parse::<Path>().is_err(), "{text}");
        }
    }
}
