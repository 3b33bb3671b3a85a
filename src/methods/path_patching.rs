//! Path patching: let some readers see what a sender would have written in the other prompt, along chosen paths only.
//!
//! The form of "Interpretability in the wild": in a run of the clean prompt with every head frozen, the senders write what they
//! write in the corrupted run, and what each receiver then reads is recorded. In a last run of the clean prompt the receivers
//! alone read what was recorded, and everything after them is recomputed. MLPs between sender and receiver are part of the
//! path, or frozen like the heads, in which case one sender and one receiver are an exact edge.
//!
//! A receiver is one input of a head (`a9.h6<q>`), an MLP, or the final stream. Freezing a head's z is freezing its queries, keys
//! and values, and giving a receiver the recorded stream to read is giving it the recorded query; under grouped heads it is
//! the only way to change the key of one query head. So every sender is a variant of one sweep that starts where the sender
//! writes, and every last run a variant of another that starts where the receiver reads: less than the two whole forwards
//! each that the definition asks for.
//!
//! A general path (`input->a0.h1<v>->a3.h0<q>->logits`) is patched node by node: each node is run with the change that the
//! one before it passes on, at that input alone, and passes on the change of its own output. Of a set of paths that share
//! their ends, every node sees the sum of what its own predecessors pass on, as in a network unfolded into a tree.
//!
//! Sources: Wang et al. 2023, "Interpretability in the wild", section 3.1; Goldowsky-Dill et al. 2023, "Localizing model
//! behavior with path patching". Left out on purpose: the linearised variant with frozen norms, which is an approximation.

mod paths;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use serde_json::json;

use super::ablation::site_of;
use super::logits::{BATCH, provenance, unmeasured};
use crate::circuit::Graph;
use crate::error::{Error, Result};
use crate::hooks::{Edge, Edit, Hook, Kind, Letter, Node, Op, Positions, Site, Value};
use crate::metric::Metric;
use crate::model::{Model, ModelSpec};
use crate::run::{
    BaseRun, Progress, Quiet, Readout, Sources, SweepOptions, Variant, sweep, sweep_with_capture,
};
use crate::scores::{Cell, Detail, Direction, ExampleScores, Scores, ScoresMeta};
use crate::spec::{Block, Mlp};
use crate::task::{Pair, Task};

pub use paths::{Path, patch_paths, path_effects};

/// A place that reads the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Receiver {
    pub node: Node,
    /// Which input, where it is a head.
    pub letter: Option<Letter>,
}

/// How senders and receivers make up rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Over {
    /// A row for each sender; all receivers together.
    #[default]
    Senders,
    /// A row for each receiver; all senders together.
    Receivers,
    /// One row.
    Together,
    /// A row for each sender and receiver.
    Both,
}

/// What to patch, and how.
#[derive(Debug, Clone)]
pub struct PathConfig {
    pub senders: Vec<Node>,
    pub receivers: Vec<Receiver>,
    pub over: Over,
    /// Freeze the MLPs between senders and receivers as well as the heads.
    pub freeze_mlps: bool,
    /// Where the senders are patched, and where the receivers read what was recorded.
    pub at_senders: Positions,
    pub at_receivers: Positions,
    pub metric: Metric,
    pub detail: Detail,
    pub seed: u64,
    pub sweep: SweepOptions,
}

impl PathConfig {
    /// A row for each sender, everywhere, with MLPs as part of the paths.
    pub fn new(senders: Vec<Node>, receivers: Vec<Receiver>, metric: Metric) -> Self {
        PathConfig {
            senders,
            receivers,
            over: Over::Senders,
            freeze_mlps: false,
            at_senders: Positions::All,
            at_receivers: Positions::All,
            metric,
            detail: Detail::Mean,
            seed: 0,
            sweep: SweepOptions::default(),
        }
    }

    /// # Errors
    /// What cannot be run as asked, before anything is.
    pub fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        task.check_aligned()?;
        task.check_metric(self.metric)?;
        let graph = Graph::new(spec);
        self.senders
            .iter()
            .try_for_each(|&sender| graph.row(sender).map(drop))?;
        for receiver in &self.receivers {
            graph.column(receiver.node, receiver.letter)?;
        }
        if self.receivers.is_empty() {
            return Err(Error::invalid(
                "nothing receives; name a receiver such as `a3.h0<q>` or `logits`",
            ));
        }
        for pair in task.pairs() {
            for positions in [&self.at_senders, &self.at_receivers] {
                positions.resolve(pair.clean.len(), &pair.roles)?;
            }
        }
        Ok(())
    }

    /// The rows: who sends, who receives, and the row's place in the table.
    fn rows(&self) -> Vec<Row> {
        let all: Vec<Node> = self.senders.clone();
        let receivers = &self.receivers;
        match self.over {
            Over::Senders => (all.into_iter())
                .map(|sender| Row {
                    cell: place(sender, None),
                    senders: vec![sender],
                    receivers: receivers.clone(),
                })
                .collect(),
            Over::Receivers => (receivers.iter())
                .map(|&receiver| Row {
                    cell: place(receiver.node, receiver.letter),
                    senders: all.clone(),
                    receivers: vec![receiver],
                })
                .collect(),
            Over::Together => vec![Row {
                cell: Cell {
                    component: "path".into(),
                    src: Some(names(&all)),
                    dst: Some(names(receivers)),
                    ..Cell::default()
                },
                senders: all,
                receivers: receivers.clone(),
            }],
            Over::Both => {
                let of = |sender: Node| {
                    receivers.iter().map(move |&receiver| Row {
                        cell: Cell {
                            component: "path".into(),
                            src: Some(sender.to_string()),
                            dst: Some(receiver.to_string()),
                            ..Cell::default()
                        },
                        senders: vec![sender],
                        receivers: vec![receiver],
                    })
                };
                all.into_iter().flat_map(of).collect()
            }
        }
    }
}

/// One row of the table.
struct Row {
    cell: Cell,
    senders: Vec<Node>,
    receivers: Vec<Receiver>,
}

/// A node's row: a head in a grid of layers and heads.
fn place(node: Node, letter: Option<Letter>) -> Cell {
    let (kind, head) = match (node, letter) {
        (Node::Head { head, .. }, None) => (Kind::Result, Some(head as u32)),
        (Node::Head { head, .. }, Some(letter)) => (letter.input(), Some(head as u32)),
        (Node::Mlp(_), _) => (Kind::MlpOut, None),
        (Node::Input, _) => (Kind::Embed, None),
        (Node::Logits, _) => (Kind::ResidPost, None),
    };
    Cell {
        component: kind.name().into(),
        layer: node.layer().map(|layer| layer as u32),
        head,
        ..Cell::default()
    }
}

fn names<T: ToString>(list: &[T]) -> String {
    let names: Vec<String> = list.iter().map(T::to_string).collect();
    names.join(",")
}

/// Patches every row's paths in every clean prompt.
/// # Units
/// `value` and `score`: the metric's, with the receivers reading what was recorded; `base` is `clean`. `normalised` is the share
/// of the way to the corrupted run.
/// # Errors
/// Those of [`PathConfig::check`], before anything runs; [`Error::Interrupted`].
pub fn path_patching(
    model: &Model,
    task: &Task,
    config: &PathConfig,
    progress: &dyn Progress,
) -> Result<Scores> {
    model.spec.check_decoder("paths")?;
    config.check(&model.spec, task)?;
    let began = Instant::now();
    let rows = config.rows();
    let cells: Vec<Cell> = rows.iter().map(|row| row.cell.clone()).collect();
    let all: Arc<[u32]> = (0..cells.len() as u32).collect();
    let mut examples: Vec<ExampleScores> = Vec::with_capacity(task.pairs().len());
    progress.start("patching paths", (task.pairs().len() * rows.len()) as u64);
    for batch in task.batches(BATCH) {
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &task.pairs()[pair]).collect();
        let runs = Runs::new(model, &pairs, config.metric, &config.sweep)?;
        let values = runs.patch(&rows, config, progress)?;
        for ((i, pair), values) in pairs.iter().enumerate().zip(values) {
            examples.push(ExampleScores {
                corrupted: runs.corrupted_metric[i],
                cells: Arc::clone(&all),
                values,
                ..unmeasured(task, pair, runs.clean_metric[i])
            });
        }
    }
    progress.finish();
    examples.sort_by_key(|example| example.example);
    let settings = json!({
        "senders": names(&config.senders),
        "receivers": names(&config.receivers),
        "over": config.over,
        "freeze_mlps": config.freeze_mlps,
        "at_senders": format!("{:?}", config.at_senders),
        "at_receivers": format!("{:?}", config.at_receivers),
        "corruption": task.corruption,
    });
    let mut provenance = provenance(model, task, settings, began.elapsed().as_secs_f64());
    let (senders, receivers) = (names(&config.senders), names(&config.receivers));
    provenance.notes.push(match config.over {
        Over::Senders => format!("what each sender passes to {receivers}"),
        Over::Receivers => format!("what each receiver reads from {senders}"),
        Over::Together | Over::Both => "paths from src to dst".into(),
    });
    provenance.notes.push(match config.freeze_mlps {
        true => "heads and MLPs between are frozen: direct paths alone".into(),
        false => "heads between are frozen, MLPs between are part of the paths".into(),
    });
    let meta = ScoresMeta {
        method: "path_patching".into(),
        metric: config.metric.to_string(),
        unit: config.metric.unit().into(),
        direction: Direction::Noise,
        seed: config.seed,
    };
    Scores::assemble(&cells, &examples, &meta, config.detail, provenance)
}

/// The two unpatched runs of some pairs of one length.
pub(super) struct Runs<'a> {
    model: &'a Model,
    clean: BaseRun,
    corrupted: BaseRun,
    sources: Sources,
    readout: Readout,
    options: &'a SweepOptions,
    pub clean_metric: Vec<f64>,
    pub corrupted_metric: Vec<f64>,
}

impl<'a> Runs<'a> {
    pub(super) fn new(
        model: &'a Model,
        pairs: &[&Pair],
        metric: Metric,
        options: &'a SweepOptions,
    ) -> Result<Self> {
        let mut kinds = vec![
            Kind::Embed,
            Kind::Z,
            Kind::AttnOut,
            Kind::MlpIn,
            Kind::MlpOut,
            Kind::ResidPost,
            Kind::QInput,
        ];
        kinds.retain(|kind| kind.absent(&model.spec).is_none());
        let roles: Vec<_> = pairs.iter().map(|pair| pair.roles.clone()).collect();
        let run = |prompts: Vec<Vec<u32>>| {
            BaseRun::new(
                model,
                prompts,
                roles.clone(),
                Vec::new(),
                Sources::default(),
                &kinds,
            )
        };
        let clean = run(pairs.iter().map(|pair| pair.clean.clone()).collect())?;
        let corrupted = run(pairs.iter().map(|pair| pair.corrupted.clone()).collect())?;
        let readout = Readout {
            metric,
            targets: pairs.iter().map(|pair| pair.target.clone()).collect(),
            reference: match metric.needs_reference() {
                true => Some(clean.logits(model)?),
                false => None,
            },
        };
        let sources = Sources::default()
            .with("base", clean.source()?)
            .with("corrupted", corrupted.source()?);
        Ok(Runs {
            clean_metric: clean.metric(model, &readout)?,
            corrupted_metric: corrupted.metric(model, &readout)?,
            model,
            clean,
            corrupted,
            sources,
            readout,
            options,
        })
    }

    /// The metric of each row, for each pair.
    fn patch(
        &self,
        rows: &[Row],
        config: &PathConfig,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        let n = self.clean.prompts.len();
        let mut values: Vec<Vec<f64>> = self
            .clean_metric
            .iter()
            .map(|&m| vec![m; rows.len()])
            .collect();
        // Rows with the same senders share the recording; a few sets at a time, since recordings are whole streams.
        let mut by_senders: BTreeMap<&[Node], Vec<usize>> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate() {
            by_senders.entry(&row.senders).or_default().push(index);
        }
        let groups: Vec<(&[Node], Vec<usize>)> = by_senders.into_iter().collect();
        for chunk in groups.chunks(16) {
            let readers: BTreeSet<Hook> = (chunk.iter())
                .flat_map(|(_, of)| of.iter().flat_map(|&row| &rows[row].receivers))
                .map(|receiver| stream_of(*receiver, &self.model.spec))
                .collect();
            let readers: Vec<Hook> = readers.into_iter().collect();
            let mut sending = Vec::new();
            for (senders, _) in chunk {
                let edits = self.sending(senders, config);
                sending.extend((0..n).map(|example| Variant {
                    example,
                    edits: edits.clone(),
                }));
            }
            let (_, recorded) = sweep_with_capture(
                self.model,
                &self.clean,
                &sending,
                &self.sources,
                &self.readout,
                &readers,
                self.options,
                &Quiet,
            )?;
            let (mut receiving, mut of) = (Vec::new(), Vec::new());
            for (group, (_, of_group)) in chunk.iter().enumerate() {
                for &row in of_group {
                    for example in 0..n {
                        let mut edits = Vec::new();
                        for &receiver in &rows[row].receivers {
                            let hook = stream_of(receiver, &self.model.spec);
                            let stream = recorded.get(group * n + example, hook);
                            let stream = stream.map(|(at, t)| (at.to_vec(), t.clone()));
                            let at = &config.at_receivers;
                            edits.extend(self.receiving(receiver, example, stream, at)?);
                        }
                        if !edits.is_empty() {
                            receiving.push(Variant { example, edits });
                            of.push((example, row));
                        }
                    }
                }
            }
            let metrics = sweep(
                self.model,
                &self.clean,
                &receiving,
                &self.sources,
                &self.readout,
                self.options,
                &Quiet,
            )?;
            for (&(example, row), metric) in of.iter().zip(metrics) {
                values[example][row] = metric;
            }
            if progress.cancelled() {
                return Err(Error::Interrupted {
                    kept: "nothing was asked to be kept".into(),
                });
            }
            let done: usize = chunk.iter().map(|(_, of)| of.len()).sum();
            progress.advance((done * n) as u64);
        }
        Ok(values)
    }

    /// The edits of a run in which these nodes send: they write what they write in the corrupted run, and every head after the
    /// first of them is frozen, with the MLPs if so asked.
    fn sending(&self, senders: &[Node], config: &PathConfig) -> Vec<Edit> {
        let spec = &self.model.spec;
        let first = senders
            .iter()
            .map(|sender| sender.layer().unwrap_or(0))
            .min();
        let first = first.unwrap_or(0);
        let mut edits = Vec::new();
        for layer in first..spec.n_layers {
            let freeze = |kind| Edit::new(Site::all(Hook::at(kind, layer)), Op::Freeze);
            edits.push(freeze(Kind::Z));
            if config.freeze_mlps && spec.mlp != Mlp::None {
                edits.push(freeze(Kind::MlpOut));
            }
        }
        edits.extend(senders.iter().map(|&sender| {
            let site = Site {
                positions: config.at_senders.clone(),
                ..site_of(sender)
            };
            Edit::new(site, Op::FromRun("corrupted".into()))
        }));
        edits
    }

    /// The edit that lets a receiver read a recorded stream at the positions that differ; none if it is what it reads anyway.
    fn receiving(
        &self,
        receiver: Receiver,
        example: usize,
        recorded: Option<(Vec<u32>, Tensor)>,
        at: &Positions,
    ) -> Result<Option<Edit>> {
        let Some((positions, stream)) = recorded else {
            return Ok(None);
        };
        let roles = &self.clean.roles[example];
        let length = self.clean.length;
        let wanted = at.resolve(length, roles)?;
        let kept: Vec<u32> = (0..positions.len() as u32)
            .filter(|&row| wanted.contains(&(positions[row as usize] as usize)))
            .collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let stream = stream.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let value = stream.index_select(&Tensor::new(kept.as_slice(), &Device::Cpu)?, 0)?; // [positions, d_model]
        let site = read_site(receiver, &self.model.spec);
        let kept = kept.iter().map(|&row| positions[row as usize] as usize);
        let site = site.at_positions(kept.map(crate::hooks::Pos::Index));
        Ok(Some(Edit::new(site, Op::Replace(Value::Tensor(value)))))
    }
}

/// The hook that holds the stream which a receiver reads.
fn stream_of(receiver: Receiver, spec: &ModelSpec) -> Hook {
    match receiver.node {
        Node::Head { layer, .. } => Hook::at(Kind::ResidPre, layer),
        // An MLP of a parallel block reads what its attention reads.
        Node::Mlp(layer) if spec.block != Block::Sequential => Hook::at(Kind::ResidPre, layer),
        Node::Mlp(layer) => Hook::at(Kind::ResidMid, layer),
        Node::Input | Node::Logits => Hook::at(Kind::ResidPost, spec.n_layers - 1),
    }
}

/// The site at which a receiver, and nobody else, reads.
fn read_site(receiver: Receiver, spec: &ModelSpec) -> Site {
    match (receiver.node, receiver.letter) {
        (Node::Head { layer, head }, Some(letter)) => {
            Site::all(Hook::at(letter.input(), layer)).heads([head])
        }
        (Node::Mlp(layer), _) => Site::all(Hook::at(Kind::MlpIn, layer)),
        // Checked before: heads have a letter, and the input reads nothing.
        _ => Site::all(Hook::at(Kind::ResidPost, spec.n_layers - 1)),
    }
}

impl std::fmt::Display for Receiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.letter {
            Some(letter) => write!(f, "{}<{letter}>", self.node),
            None => write!(f, "{}", self.node),
        }
    }
}

impl std::str::FromStr for Receiver {
    type Err = Error;

    /// As it is printed, or `a3.h0.q`, which a shell leaves alone.
    fn from_str(text: &str) -> Result<Self> {
        let text = match text.trim().rsplit_once('.') {
            Some((head, letter @ ("q" | "k" | "v"))) => format!("{head}<{letter}>"),
            _ => text.to_string(),
        };
        // What may stand after the arrow of an edge is what reads.
        let edge: Edge = format!("input->{text}").parse()?;
        Ok(Receiver {
            node: edge.dst,
            letter: edge.letter,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_print_and_parse_back() {
        for text in ["a3.h0<q>", "a10.h2<v>", "m4", "logits"] {
            let receiver: Receiver = text.parse().expect(text);
            assert_eq!(receiver.to_string(), text);
        }
        assert_eq!(
            "a3.h0.q"
                .parse::<Receiver>()
                .expect("for shells")
                .to_string(),
            "a3.h0<q>"
        );
        for text in ["a3.h0", "a3.h0.z", "input", "m4<q>", ""] {
            assert!(text.parse::<Receiver>().is_err(), "{text}");
        }
    }
}
