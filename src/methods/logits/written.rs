//! Which tokens the strongest parts write for: what a part adds to the stream, through the final norm of its own run and the
//! unembedding, less what it does to all tokens.
//!
//! Which parts are strongest is known when all prompts are measured. What every part wrote at the ends of the first prompts is kept
//! until then; later prompts, and those that another run measured, run once more for what these parts wrote. A part's tokens are
//! chosen by what it writes on average, and then read for each prompt.

use std::collections::HashMap;

use candle_core::Tensor;

use super::distinct_texts;
use super::dla::DlaConfig;
use super::normed_stream::stream_scales;
use super::readout::{Ends, mean_unembedding};
use crate::error::Result;
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::method::{Subject, Unit, pairs_of, stop_if_asked};
use crate::model::Model;
use crate::nn::embed::times_unembedding;
use crate::nn::host::to_host;
use crate::run::Progress;
use crate::scores::{Cell, Measured};

/// Bytes that are kept of the measured prompts, and again between the two readings; what is beyond runs again.
const KEPT_BYTES: usize = 64 << 20;

/// The ends of units that this run measured, as many as fit.
#[derive(Default)]
pub(super) struct KeptEnds<'a> {
    bytes: usize,
    of: HashMap<Vec<usize>, Ends<'a>>,
}

impl<'a> KeptEnds<'a> {
    /// Keeps what was looked at of a unit, if there is room.
    pub fn keep(&mut self, unit: &Unit, mut ends: Ends<'a>) {
        self.bytes += ends.bytes();
        if self.bytes <= KEPT_BYTES {
            ends.let_go();
            self.of.insert(unit.items.clone(), ends);
        }
    }
}

/// A part of the model whose writing can be read out over the whole vocabulary.
#[derive(Debug, Clone, PartialEq)]
struct Writer {
    /// Its coordinates, without a place that it reads.
    cell: Cell,
    kind: Kind,
}

/// Adds the rows `written_logit` of the strongest parts, for [`DlaConfig::writes`] of them.
pub(super) fn add_written(
    on: Subject<'_>,
    config: &DlaConfig,
    units: &[Unit],
    mut ends: KeptEnds<'_>,
    measured: &mut Measured,
    progress: &dyn Progress,
) -> Result<()> {
    let writers = strongest(measured, config.writes);
    if writers.is_empty() || config.tokens == 0 {
        return Ok(());
    }
    let capture = hooks(&writers, on.model);
    let (mut kept, mut bytes) = (HashMap::new(), 0);
    let mut sums: Vec<Option<Tensor>> = vec![None; writers.len()];
    progress.start("reading what parts write", on.task.pairs().len() as u64);
    for (at, unit) in units.iter().enumerate() {
        stop_if_asked(progress)?;
        let writes = match ends.of.remove(&unit.items) {
            Some(mut ends) => written_by(&writers, &mut ends)?,
            None => writes(on, unit, &writers, &capture)?,
        };
        for (sum, rows) in sums.iter_mut().zip(&writes) {
            let of_batch = rows.sum_keepdim(0)?;
            *sum = Some(match sum.take() {
                Some(sum) => (sum + of_batch)?,
                None => of_batch,
            });
            bytes += 4 * rows.elem_count();
        }
        if bytes <= KEPT_BYTES {
            kept.insert(at, writes);
        }
        progress.advance(unit.items.len() as u64);
    }
    progress.finish();
    let w_u = &on.model.weights.w_u;
    let mean_u = mean_unembedding(on.model)?;
    let sums: Vec<Tensor> = sums
        .into_iter()
        .map(|sum| sum.expect("a task has pairs"))
        .collect();
    let extremes = extremes(on.model, &Tensor::cat(&sums, 0)?, config.tokens)?;
    let mut cells = Vec::new();
    // Of each writer the directions that its tokens are read by, less the mean over the vocabulary: [d_model, token].
    let mut directions = Vec::new();
    for (writer, tokens) in writers.iter().zip(extremes) {
        let names = distinct_texts(on.task, &tokens);
        cells.extend(names.into_iter().map(|token| Cell {
            src: Some(writer.name()),
            dst: Some(token),
            measure: Some("written_logit".into()),
            ..writer.cell.clone()
        }));
        let rows = w_u.index_select(&Tensor::new(tokens, &on.model.device)?, 0)?;
        let rows = rows.to_dtype(candle_core::DType::F32)?;
        directions.push(rows.broadcast_sub(&mean_u)?.t()?);
    }
    let mut values: HashMap<usize, Vec<f64>> = HashMap::new();
    for (at, unit) in units.iter().enumerate() {
        let writes = match kept.remove(&at) {
            Some(writes) => writes,
            None => writes(on, unit, &writers, &capture)?,
        };
        for (rows, directions) in writes.iter().zip(&directions) {
            let logits: Vec<Vec<f32>> = rows.matmul(directions)?.to_vec2()?; // [prompt, token]
            for (&item, logits) in unit.items.iter().zip(logits) {
                let of_prompt = values.entry(on.task.pairs()[item].index).or_default();
                of_prompt.extend(logits.into_iter().map(f64::from));
            }
        }
    }
    measured.append(cells, |_, example| {
        let written = values.remove(&example.example).unwrap_or_default();
        written.into_iter().map(Some).collect()
    });
    Ok(())
}

impl Writer {
    /// `a3.h0`, `m2`, `m2.n17`.
    fn name(&self) -> String {
        let layer = self.layer();
        match (self.kind, self.cell.head, self.cell.neuron) {
            (_, Some(head), _) => format!("a{layer}.h{head}"),
            (_, _, Some(neuron)) => format!("m{layer}.n{neuron}"),
            (Kind::AttnOut, ..) => format!("a{layer}"),
            _ => format!("m{layer}"),
        }
    }

    fn layer(&self) -> usize {
        self.cell.layer.unwrap_or(0) as usize
    }

    /// The hooks that hold what it writes.
    fn hooks(&self, model: &Model) -> Vec<Hook> {
        let kinds: &[Kind] = match self.kind {
            Kind::Result => &[Kind::Z, Kind::Scale(Ln::OnePost)],
            Kind::MlpPost => &[Kind::MlpPost, Kind::Scale(Ln::TwoPost)],
            Kind::AttnOut => &[Kind::AttnOut],
            _ => &[Kind::MlpOut],
        };
        let is_there = |kind: &&Kind| kind.absent(&model.spec).is_none();
        let kinds = kinds.iter().filter(is_there);
        kinds.map(|&kind| Hook::at(kind, self.layer())).collect()
    }

    /// What it adds to the stream at the end of each prompt: `[batch, d_model]`.
    fn output(&self, ends: &mut Ends<'_>) -> Result<Tensor> {
        let layer = self.layer();
        let block = &ends.model.weights.blocks[layer];
        let d_head = ends.model.spec.d_head;
        let f32 = candle_core::DType::F32;
        match (self.kind, self.cell.head, self.cell.neuron, &block.mlp) {
            (Kind::Result, Some(head), ..) => {
                let head = head as usize;
                let z = ends.at_end(Hook::at(Kind::Z, layer))?.narrow(1, head, 1)?;
                let w_o = block.w_o.narrow(0, head * d_head, d_head)?.to_dtype(f32)?;
                let out = z.squeeze(1)?.contiguous()?.matmul(&w_o)?;
                ends.after_post_norm(&out, layer, Ln::OnePost)
            }
            (Kind::MlpPost, _, Some(neuron), Some(mlp)) => {
                let w_out = mlp.w_out.narrow(0, neuron as usize, 1)?.to_dtype(f32)?;
                let post = ends.at_end(Hook::at(Kind::MlpPost, layer))?;
                let post = post.narrow(1, neuron as usize, 1)?.contiguous()?;
                ends.after_post_norm(&post.matmul(&w_out)?, layer, Ln::TwoPost)
            }
            (kind, ..) => ends.at_end(Hook::at(kind, layer)),
        }
    }
}

/// The parts that contribute most on average, in magnitude; a head's contributions by what it reads count together.
fn strongest(measured: &Measured, n: usize) -> Vec<Writer> {
    let kinds = [Kind::Result, Kind::AttnOut, Kind::MlpOut, Kind::MlpPost];
    let mut places: HashMap<Cell, usize> = HashMap::new();
    let mut writers: Vec<(f64, Writer)> = Vec::new();
    let mut place_of = Vec::with_capacity(measured.cells.len());
    for cell in &measured.cells {
        let is_part = |kind: &Kind| cell.measure.is_none() && kind.name() == cell.component;
        place_of.push(kinds.into_iter().find(is_part).map(|kind| {
            let cell = Cell {
                pos: None,
                role: None,
                template: None,
                ..cell.clone()
            };
            *places.entry(cell.clone()).or_insert_with(|| {
                writers.push((0.0, Writer { cell, kind }));
                writers.len() - 1
            })
        }));
    }
    for example in &measured.examples {
        for (&cell, value) in example.cells.iter().zip(&example.values) {
            if let Some(place) = place_of[cell as usize] {
                writers[place].0 += value;
            }
        }
    }
    writers.sort_by(|(a, _), (b, _)| b.abs().total_cmp(&a.abs()));
    writers.truncate(n);
    writers.into_iter().map(|(_, writer)| writer).collect()
}

fn hooks(writers: &[Writer], model: &Model) -> Vec<Hook> {
    let mut hooks: Vec<Hook> = Vec::new();
    for hook in writers.iter().flat_map(|writer| writer.hooks(model)) {
        if !hooks.contains(&hook) {
            hooks.push(hook);
        }
    }
    hooks.extend(stream_scales(model));
    hooks
}

/// What the unembedding reads of each writer, `[prompts, d_model]`.
fn writes(
    on: Subject<'_>,
    unit: &Unit,
    writers: &[Writer],
    capture: &[Hook],
) -> Result<Vec<Tensor>> {
    let pairs = pairs_of(on.task, &unit.items);
    written_by(writers, &mut Ends::keeping(on.model, &pairs, capture)?)
}

fn written_by(writers: &[Writer], ends: &mut Ends<'_>) -> Result<Vec<Tensor>> {
    let mut all = Vec::with_capacity(writers.len());
    for writer in writers {
        let out = writer.output(ends)?;
        let by_mlp = matches!(writer.kind, Kind::MlpOut | Kind::MlpPost);
        all.push(ends.at_unembedding(&out, writer.layer(), by_mlp)?);
    }
    Ok(all)
}

/// For each row of `x [rows, d_model]` the tokens whose logits it raises most, then those that it lowers most, the most lowered last.
fn extremes(model: &Model, x: &Tensor, n: usize) -> Result<Vec<Vec<u32>>> {
    let x = x.to_dtype(model.dtype)?;
    let logits = to_host(&times_unembedding(&model.weights, &x)?)?;
    let of_row = |logits: &[f32]| {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit = |&a: &u32, &b: &u32| {
            let larger = logits[b as usize].total_cmp(&logits[a as usize]);
            larger.then(a.cmp(&b))
        };
        let few = n.min(order.len() / 2);
        if 0 < few && 2 * few < order.len() {
            order.select_nth_unstable_by(few - 1, by_logit);
            let rest = order.len() - few;
            order[few..].select_nth_unstable_by(rest - few, by_logit);
        }
        let end = order.len() - few;
        order[..few].sort_unstable_by(by_logit);
        order[end..].sort_unstable_by(by_logit);
        [&order[..few], &order[end..]].concat()
    };
    Ok(logits.chunks(model.spec.d_vocab).map(of_row).collect())
}
