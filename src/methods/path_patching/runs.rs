//! The two unpatched runs of a batch of pairs, what senders write otherwise in the corrupted one, and the two sweeps of a row.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use candle_core::{DType, Device, Tensor};

use super::choice::Receiver;
use super::config::PathConfig;
use super::rows::PathRow;
use crate::error::Result;
use crate::hooks::{Edit, Hook, Kind, Node, Op, Pos, Positions, Site, Value};
use crate::methods::ablation::site_of;
use crate::methods::exact_edges::deltas::{self, Deltas};
use crate::methods::exact_edges::runs::readout_of;
use crate::methods::method::{Running, Subject, Unchanged, Unit, pairs_of};
use crate::metric::{Judgement, Metric};
use crate::model::Model;
use crate::nn::host::to_host;
use crate::run::{
    BaseRun, Captured, Progress, Readout, Source, Sources, SweepOptions, Variant, sweep,
    sweep_with_capture,
};
use crate::scores::ExampleScores;
use crate::spec::{Block, Mlp, ModelSpec, NormPlacement};
use crate::task::Task;

/// Streams, branches, queries, keys, values and z of every layer of two runs, and what sources write in both and in between.
pub(super) fn bytes_of_pair(spec: &ModelSpec, length: usize) -> usize {
    let of_run = 7 * spec.d_model + (2 * spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head;
    let of_sources = spec.d_model + spec.n_heads * spec.d_head;
    4 * spec.n_layers * length * (2 * of_run + 3 * of_sources)
}

/// The two unpatched runs of some pairs of one length.
pub(super) struct PathRuns<'a> {
    pub model: &'a Model,
    pub clean: BaseRun,
    pub sources: Sources,
    pub readout: Readout,
    pub options: SweepOptions,
    /// What every source writes more in the corrupted run, where somebody asks for it.
    pub deltas: Option<Deltas>,
    /// For each prompt the first position at which the pair differs.
    first: Vec<usize>,
    pub clean_metric: Vec<f64>,
    pub corrupted_metric: Vec<f64>,
    pub judged: Vec<Judgement>,
}

impl<'a> PathRuns<'a> {
    pub fn new(
        on: Subject<'a>,
        metric: Metric,
        items: &[usize],
        running: &Running,
        with_deltas: bool,
    ) -> Result<Self> {
        let model = on.model;
        let pairs = pairs_of(on.task, items);
        let mut kinds = vec![
            Kind::Embed,
            Kind::Z,
            Kind::AttnOut,
            Kind::MlpIn,
            Kind::MlpOut,
            Kind::ResidPost,
            Kind::QInput,
        ];
        if with_deltas {
            kinds.extend(deltas::KINDS);
        }
        kinds.retain(|kind| kind.absent(&model.spec).is_none());
        let roles: Vec<_> = pairs.iter().map(|pair| pair.roles.clone()).collect();
        let run = |prompts: Vec<Vec<u32>>| {
            let sources = Sources::default();
            BaseRun::new(model, prompts, roles.clone(), Vec::new(), sources, &kinds)
        };
        let clean = run(pairs.iter().map(|pair| pair.clean.clone()).collect())?;
        let corrupted = run(pairs.iter().map(|pair| pair.corrupted.clone()).collect())?;
        let readout = readout_of(model, metric, &pairs, &clean)?;
        let deltas = if with_deltas {
            let written = Source::run(deltas::writes(model, &corrupted)?)?;
            Some(Deltas::new(model, &clean, Some(&written))?)
        } else {
            None
        };
        let sources = Sources::default()
            .with("base", clean.source()?)
            .with("corrupted", corrupted.source()?);
        Ok(PathRuns {
            clean_metric: clean.metric(model, &readout)?,
            corrupted_metric: corrupted.metric(model, &readout)?,
            judged: clean.judge(model, &readout.targets)?,
            model,
            clean,
            sources,
            readout,
            options: SweepOptions {
                memory: running.memory_now(),
                ..SweepOptions::default()
            },
            deltas,
            first: pairs.iter().map(|pair| pair.first_difference()).collect(),
        })
    }

    /// The metric of each row, for each pair.
    /// # Shapes
    /// `[pairs][rows]`
    pub fn patch(
        &self,
        rows: &[PathRow],
        config: &PathConfig,
        progress: &dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        let of_pair = |&metric: &f64| vec![metric; rows.len()];
        let mut values: Vec<Vec<f64>> = self.clean_metric.iter().map(of_pair).collect();
        // Rows with the same senders share the recording.
        let mut by_senders: BTreeMap<&[Node], Vec<usize>> = BTreeMap::new();
        for (index, row) in rows.iter().enumerate() {
            by_senders.entry(&row.senders).or_default().push(index);
        }
        let groups: Vec<(&[Node], Vec<usize>)> = by_senders.into_iter().collect();
        let of_rows = rows.iter().flat_map(|row| &row.receivers);
        let streams: BTreeSet<Hook> = of_rows
            .map(|&receiver| stream_of(receiver, &self.model.spec))
            .collect();
        for chunk in groups.chunks(self.recordings_at_once(streams.len())) {
            self.patch_groups(chunk, rows, config, &mut values, progress)?;
        }
        Ok(values)
    }

    /// Recordings are whole streams: so many sets of senders that theirs take a quarter of the memory.
    fn recordings_at_once(&self, n_streams: usize) -> usize {
        let pairs = self.clean.prompts.len();
        let stream = 4 * self.clean.length * self.model.spec.d_model;
        // What was captured, and what readers are given of it.
        let one = 2 * pairs * n_streams * stream;
        (self.options.memory / 4 / one.max(1)).max(1)
    }

    fn patch_groups(
        &self,
        groups: &[(&[Node], Vec<usize>)],
        rows: &[PathRow],
        config: &PathConfig,
        values: &mut [Vec<f64>],
        progress: &dyn Progress,
    ) -> Result<()> {
        let (spec, n) = (&self.model.spec, self.clean.prompts.len());
        let of_groups = groups
            .iter()
            .flat_map(|(_, of)| of.iter().flat_map(|&row| &rows[row].receivers));
        let streams: BTreeSet<Hook> = of_groups
            .map(|&receiver| stream_of(receiver, spec))
            .collect();
        let streams: Vec<Hook> = streams.into_iter().collect();
        let mut sending = Vec::with_capacity(groups.len() * n);
        for (senders, _) in groups {
            for example in 0..n {
                sending.push(Variant {
                    example,
                    edits: self.sending(senders, config, example)?,
                });
            }
        }
        let (_, recorded) = sweep_with_capture(
            self.model,
            &self.clean,
            &sending,
            &self.sources,
            &self.readout,
            &streams,
            &self.options,
            &OnlyStops(progress),
        )?;
        let (mut receiving, mut of) = (Vec::new(), Vec::new());
        let mut without_change = 0;
        for (group, (_, of_group)) in groups.iter().enumerate() {
            for example in 0..n {
                let mut heard = HashMap::new();
                for &hook in &streams {
                    let stream = recorded.get(group * n + example, hook);
                    if let Some((positions, stream)) = stream {
                        let heard_here =
                            self.heard(example, positions, stream, &config.at_receivers)?;
                        heard.insert(hook, heard_here);
                    }
                }
                for &row in of_group {
                    let edits: Vec<Edit> = (rows[row].receivers.iter())
                        .filter_map(|&receiver| {
                            let heard = heard.get(&stream_of(receiver, spec))?.as_ref()?;
                            Some(heard.by(receiver, spec))
                        })
                        .collect();
                    if edits.is_empty() {
                        without_change += 1;
                        continue;
                    }
                    receiving.push(Variant { example, edits });
                    of.push((example, row));
                }
            }
        }
        drop(recorded);
        progress.advance(without_change);
        let metrics = sweep(
            self.model,
            &self.clean,
            &receiving,
            &self.sources,
            &self.readout,
            &self.options,
            progress,
        )?;
        for (&(example, row), metric) in of.iter().zip(metrics) {
            values[example][row] = metric;
        }
        Ok(())
    }

    /// The edits of a run in which these nodes send: they write what they write in the corrupted run, and every head after the
    /// first of them is frozen, with the MLPs if so asked.
    fn sending(&self, senders: &[Node], config: &PathConfig, example: usize) -> Result<Vec<Edit>> {
        let spec = &self.model.spec;
        let layers = senders.iter().map(|sender| sender.layer().unwrap_or(0));
        let first = layers.min().unwrap_or(0);
        let mut edits = Vec::new();
        for layer in first..spec.n_layers {
            let freeze = |kind| Edit::new(Site::all(Hook::at(kind, layer)), Op::Freeze);
            edits.push(freeze(Kind::Z));
            if config.freeze_mlps && spec.mlp != Mlp::None {
                edits.push(freeze(Kind::MlpOut));
            }
        }
        edits.extend(self.writing(senders, &config.at_senders, example)?);
        Ok(edits)
    }

    /// The edits by which these nodes write what they write in the corrupted run. Where a norm stands on attention's output a head
    /// writes its share of the normed sum, which is added, so that the other heads' shares stay.
    fn writing(&self, senders: &[Node], at: &Positions, example: usize) -> Result<Vec<Edit>> {
        let mut edits = Vec::new();
        let mut shares: BTreeMap<usize, Tensor> = BTreeMap::new();
        for &sender in senders {
            match sender {
                Node::Head { layer, .. } if self.has_post_norm(layer) => {
                    if let Some(more) = self.written_more(sender, example)? {
                        let sum = match shares.remove(&layer) {
                            Some(sum) => (sum + more)?,
                            None => more,
                        };
                        shares.insert(layer, sum);
                    }
                }
                _ => {
                    let site = Site {
                        positions: at.clone(),
                        ..site_of(sender)
                    };
                    edits.push(Edit::new(site, Op::FromRun("corrupted".into())));
                }
            }
        }
        let wanted = at.resolve(self.clean.length, &self.clean.roles[example])?;
        for (layer, share) in shares {
            let site = Site::all(Hook::at(Kind::AttnOut, layer));
            edits.extend(added(site, &share, &wanted)?);
        }
        Ok(edits)
    }

    pub fn has_post_norm(&self, layer: usize) -> bool {
        self.model.weights.blocks[layer].ln1_post.is_some()
    }

    /// What a node adds to the stream of a prompt in the corrupted run more than in the clean one; `None` where that is nothing.
    /// # Shapes
    /// `[length, d_model]`, f32 on the host.
    pub fn written_more(&self, node: Node, example: usize) -> Result<Option<Tensor>> {
        let first = self.first[example];
        let deltas = self.deltas.as_ref().filter(|_| first < self.clean.length);
        let Some(deltas) = deltas else {
            return Ok(None);
        };
        let Some(later) = deltas.of(self.model, node, example, first)? else {
            return Ok(None);
        };
        let nothing = Tensor::zeros((first, later.dim(1)?), DType::F32, &Device::Cpu)?;
        Ok(Some(Tensor::cat(&[nothing, later], 0)?))
    }

    /// What readers of a recorded stream are given: the positions that differ, of those where receivers read.
    fn heard(
        &self,
        example: usize,
        positions: &[u32],
        stream: &Tensor,
        at: &Positions,
    ) -> Result<Option<Heard>> {
        let wanted = at.resolve(self.clean.length, &self.clean.roles[example])?;
        let kept: Vec<u32> = (0..positions.len() as u32)
            .filter(|&row| wanted.contains(&(positions[row as usize] as usize)))
            .collect();
        if kept.is_empty() {
            return Ok(None);
        }
        let stream = stream.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Some(Heard {
            stream: stream.index_select(&Tensor::new(kept.as_slice(), &Device::Cpu)?, 0)?,
            positions: kept.iter().map(|&row| positions[row as usize]).collect(),
        }))
    }
}

/// Some rows of a recorded stream.
struct Heard {
    positions: Vec<u32>,
    /// `[positions, d_model]`, f32 on the host.
    stream: Tensor,
}

impl Heard {
    /// The edit that lets a receiver, and nobody else, read it.
    fn by(&self, receiver: Receiver, spec: &ModelSpec) -> Edit {
        let positions = self.positions.iter().map(|&pos| Pos::Index(pos as usize));
        let site = read_site(receiver, spec).at_positions(positions);
        Edit::new(site, Op::Replace(Value::Tensor(self.stream.clone())))
    }
}

/// Passes on whether to stop. Steps are counted elsewhere.
pub(super) struct OnlyStops<'a>(pub &'a dyn Progress);

impl Progress for OnlyStops<'_> {
    fn cancelled(&self) -> bool {
        self.0.cancelled()
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
pub(super) fn read_site(receiver: Receiver, spec: &ModelSpec) -> Site {
    match (receiver.node, receiver.letter) {
        (Node::Head { layer, head }, Some(letter)) => {
            Site::all(Hook::at(letter.input(), layer)).heads([head])
        }
        (Node::Mlp(layer), _) => Site::all(Hook::at(Kind::MlpIn, layer)),
        // Checked before: heads have a letter, and the input reads nothing.
        _ => Site::all(Hook::at(Kind::ResidPost, spec.n_layers - 1)),
    }
}

/// Adds a change `[length, d_model]` at those of some positions where it is something.
pub(super) fn added(site: Site, change: &Tensor, wanted: &[usize]) -> Result<Option<Edit>> {
    let width = change.dim(1)?;
    let values = to_host(&change.contiguous()?)?;
    let rows = values.chunks_exact(width).enumerate();
    let (positions, rows): (Vec<usize>, Vec<&[f32]>) = rows
        .filter(|(pos, row)| wanted.contains(pos) && row.iter().any(|&x| x != 0.0))
        .unzip();
    if positions.is_empty() {
        return Ok(None);
    }
    let value = Tensor::from_vec(rows.concat(), (positions.len(), width), &Device::Cpu)?;
    let site = site.at_positions(positions.into_iter().map(Pos::Index));
    Ok(Some(Edit::new(site, Op::Add(Value::Tensor(value)))))
}

/// Rows of some positions, as those of all; the rest is 0.
/// # Shapes
/// `rows [positions, width]`; gives `[length, width]`, f32 on the host.
pub(super) fn spread(rows: &Tensor, positions: &[u32], length: usize) -> Result<Tensor> {
    let width = rows.dim(1)?;
    let values = to_host(&rows.contiguous()?)?;
    let mut all = vec![0.0; length * width];
    for (row, &pos) in values.chunks_exact(width).zip(positions) {
        all[pos as usize * width..][..width].copy_from_slice(row);
    }
    Ok(Tensor::from_vec(all, (length, width), &Device::Cpu)?)
}

/// The rows that a variant carried past a hook, f32 on the host.
pub(super) fn carried(
    captured: &Captured,
    variant: usize,
    hook: Hook,
) -> Result<Option<(&[u32], Tensor)>> {
    let Some((positions, rows)) = captured.get(variant, hook) else {
        return Ok(None);
    };
    let rows = rows.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
    Ok(Some((positions, rows)))
}

/// Whether a norm stands on attention's output, so that what a head writes is its share of the normed sum.
pub(super) fn has_post_norm(spec: &ModelSpec) -> bool {
    matches!(
        spec.norm_placement,
        NormPlacement::Post | NormPlacement::Sandwich
    )
}

/// What a walk from a node's layer to the answer costs, in forward passes of one prompt, from the first position that differs.
pub(super) fn walk(node: Node, spec: &ModelSpec, share: f64) -> f64 {
    let n_layers = spec.n_layers as f64;
    let left = match node {
        Node::Input => n_layers,
        Node::Head { layer, .. } => n_layers - layer as f64 - 0.5,
        Node::Mlp(layer) => n_layers - layer as f64 - 0.7,
        Node::Logits => 0.0,
    };
    share * left / n_layers
}

impl PathRuns<'_> {
    /// The examples of a unit, from a value for each of its pairs and cells.
    pub fn examples(&self, task: &Task, unit: &Unit, values: Vec<Vec<f64>>) -> Vec<ExampleScores> {
        unit.examples(task, values, |i| Unchanged {
            clean: self.clean_metric[i],
            corrupted: self.corrupted_metric[i],
            judged: self.judged[i],
        })
    }
}
