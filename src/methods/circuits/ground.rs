//! What every circuit of a batch of pairs stands on: the runs, the reference, and what readers see and nodes compute where every
//! edge is at the reference.

use candle_core::{DType, Device, Tensor};

use super::limits::Limits;
use super::plain::{self, CircuitMode};
use crate::circuit::{EdgeSet, Graph};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln, Node};
use crate::methods::exact_edges::Reference;
use crate::methods::exact_edges::deltas::{head_write, of_reference, writes};
use crate::methods::exact_edges::runs::{Means, group_of, readout_of, reference_means, run_of};
use crate::methods::method::Subject;
use crate::metric::{Judgement, Metric};
use crate::model::Model;
use crate::nn::host::{tensor, to_host};
use crate::run::forward::final_norm;
use crate::run::gradients::Nobody;
use crate::run::rows::{Rows, pick};
use crate::run::{Cache, Readout, read_metric};
use crate::task::Pair;

pub(super) const NO_OTHER_MODEL: &str = "what is outside a circuit takes values of the same model; use the pair's other run, zeros or means";

/// A batch of pairs of equal length.
pub(super) struct Ground {
    pub clean_prompts: Vec<Vec<u32>>,
    pub corrupted_prompts: Vec<Vec<u32>>,
    /// What every source writes at the reference, and in the clean run; z divided by the scale of its post-norm.
    pub reference: Cache,
    pub clean_writes: Cache,
    /// The rows that can differ from the reference, from the first difference of a pair on.
    pub rows: Rows,
    pub layers: Vec<Layer>,
    /// The final stream at the answers where every edge is at the reference, `[batch, d_model]`.
    pub ending: Vec<f32>,
    pub readout: Readout,
    /// The metric of the clean run, of the corrupted run, and where every edge is at the reference.
    pub clean: Vec<f64>,
    pub corrupted: Vec<f64>,
    pub empty: Vec<f64>,
    pub judged: Vec<Judgement>,
}

/// One layer where every edge is at the reference: what is seen, and what comes of it.
pub(super) struct Layer {
    /// `[rows, d_model]`
    pub attn_in: Vec<f32>,
    pub mlp_in: Vec<f32>,
    /// `[rows, n_heads, d_head]`, rotated.
    pub q: Tensor,
    /// `[batch * pos, n_kv_heads or n_heads, d_head]`, keys rotated.
    pub k: Tensor,
    pub v: Tensor,
    /// The divisor of the norm on attention's output, where there is one, `[rows, 1]`.
    pub scale: Option<Vec<f32>>,
    /// What heads (as z) and MLP write at the reference, `[rows, n_heads, d_head]` and `[rows, d_model]`.
    pub z: Vec<f32>,
    pub mlp: Vec<f32>,
    /// How what they compute from streams at the reference differs from it; `None` where it does not, as in a run of the model.
    pub idle: Option<Idle>,
}

pub(super) struct Idle {
    pub z: Vec<f32>,
    pub mlp: Vec<f32>,
}

impl Ground {
    /// All pairs of a task, a batch after the other.
    pub fn of_task(
        on: Subject<'_>,
        metric: Metric,
        reference: Reference,
        batch: usize,
    ) -> Result<Vec<Self>> {
        let means = reference_means(on, reference, batch)?;
        let batches = on.task.batches(batch).into_iter();
        let one = |batch: Vec<usize>| Ground::new(on, metric, reference, &batch, &means);
        batches.map(one).collect()
    }

    pub fn new(
        on: Subject<'_>,
        metric: Metric,
        reference: Reference,
        batch: &[usize],
        means: &Means,
    ) -> Result<Self> {
        let model = on.model;
        let pairs: Vec<&Pair> = batch.iter().map(|&pair| &on.task.pairs()[pair]).collect();
        let clean_prompts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
        let corrupted_prompts: Vec<Vec<u32>> =
            pairs.iter().map(|pair| pair.corrupted.clone()).collect();
        let clean_run = run_of(model, clean_prompts.clone())?;
        let corrupted_run = run_of(model, corrupted_prompts.clone())?;
        let readout = readout_of(model, metric, &pairs, &clean_run)?;
        let clean_writes = writes(model, &clean_run)?;
        let at_reference = match reference {
            Reference::Same => {
                return Err(Error::invalid(NO_OTHER_MODEL));
            }
            Reference::Pair => writes(model, &corrupted_run)?,
            Reference::Zero => mapped(model, &clean_writes, |_, own| Ok(own.zeros_like()?))?,
            Reference::Mean => {
                let source = &means[&group_of(pairs[0])];
                mapped(model, &clean_writes, |hook, _| {
                    of_reference(source, hook, &clean_writes)
                })?
            }
        };
        let length = clean_run.length;
        let mut rows = Rows::new(length);
        for (i, pair) in pairs.iter().enumerate() {
            let first = match reference {
                // Equal prompts still have an answer to read.
                Reference::Pair => pair.first_difference().min(length - 1),
                Reference::Zero | Reference::Mean | Reference::Same => 0,
            };
            rows.push(i, i, (first as u32..length as u32).collect());
        }
        let corrupted = corrupted_run.metric(model, &readout)?;
        let (layers, ending, empty) = match reference {
            Reference::Pair => {
                let seen = |hook: Hook| {
                    let hook = match hook.kind {
                        Kind::QInput => Hook {
                            kind: Kind::ResidPre,
                            ..hook
                        },
                        _ => hook,
                    };
                    Ok(corrupted_run.cache.packed(hook)?.clone())
                };
                let layers = layers(model, &rows, &at_reference, seen, true)?;
                let last = Hook::at(Kind::ResidPost, model.spec.n_layers - 1);
                let ending = pick(corrupted_run.cache.packed(last)?, &rows.last_of_each())?;
                (layers, to_host(&ending)?, corrupted.clone())
            }
            Reference::Zero | Reference::Mean | Reference::Same => {
                let graph = Graph::new(&model.spec);
                let values = values(model, &at_reference)?;
                let nothing_kept = plain::Swap {
                    edges: &EdgeSet::full(graph),
                    mode: CircuitMode::Complement,
                    limits: &Limits::default(),
                    values: &values,
                };
                let walked = plain::walk(model, &clean_prompts, nothing_kept, true)?;
                let seen = |hook: Hook| {
                    let t = walked.seen.packed(hook)?;
                    Ok(match hook.kind {
                        // All heads see one stream.
                        Kind::QInput => t.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?,
                        _ => t.clone(),
                    })
                };
                let layers = layers(model, &rows, &at_reference, seen, false)?;
                let empty = metric_of(model, &walked.answers, &rows, &readout)?;
                (layers, to_host(&walked.answers)?, empty)
            }
        };
        Ok(Ground {
            clean: clean_run.metric(model, &readout)?,
            judged: clean_run.judge(model, &readout.targets)?,
            clean_prompts,
            corrupted_prompts,
            reference: at_reference,
            clean_writes,
            rows,
            layers,
            ending,
            readout,
            corrupted,
            empty,
        })
    }

    /// The metric of final streams at the answers of this batch, once or several times over.
    /// # Shapes
    /// `answers [times * batch, d_model]`, before the final norm.
    pub fn metric(&self, model: &Model, answers: &Tensor) -> Result<Vec<f64>> {
        metric_of(model, answers, &self.rows, &self.readout)
    }
}

fn metric_of(model: &Model, answers: &Tensor, rows: &Rows, readout: &Readout) -> Result<Vec<f64>> {
    let batch = rows.segments.len();
    let examples: Vec<usize> = (0..answers.dim(0)?).map(|i| i % batch).collect();
    let mut at = Rows::new(rows.length);
    for (i, &example) in examples.iter().enumerate() {
        at.push(i, example, vec![rows.length as u32 - 1]);
    }
    let answers = answers.to_dtype(model.dtype)?.to_device(&model.device)?;
    let normed = final_norm(model, &answers, &at, &mut Nobody)?;
    read_metric(model, &normed, &examples, readout)
}

/// The same hooks with other values.
fn mapped(
    model: &Model,
    writes: &Cache,
    value: impl Fn(Hook, &Tensor) -> Result<Tensor>,
) -> Result<Cache> {
    let mut out = Cache::new(&model.spec, writes.batch, writes.length);
    for hook in writes.hooks() {
        out.insert(hook, value(hook, writes.packed(hook)?)?);
    }
    Ok(out)
}

/// What every source writes, by its row in the graph.
/// # Shapes
/// Each `[batch * pos, d_model]`, f32 on the host.
pub(super) fn values(model: &Model, writes: &Cache) -> Result<Vec<Tensor>> {
    let graph = Graph::new(&model.spec);
    let nodes = (0..graph.n_src()).map_while(|row| graph.source(row));
    let value = |node| match node {
        Node::Head { layer, head } => {
            let z = writes
                .packed(Hook::at(Kind::Z, layer))?
                .narrow(1, head, 1)?;
            head_write(model, layer, head, &z.squeeze(1)?.contiguous()?)
        }
        Node::Mlp(layer) => Ok(writes.packed(Hook::at(Kind::MlpOut, layer))?.clone()),
        _ => Ok(writes.packed(Hook::global(Kind::Embed))?.clone()),
    };
    nodes.map(value).collect()
}

/// What is seen and computed at the reference, layer by layer.
fn layers(
    model: &Model,
    rows: &Rows,
    reference: &Cache,
    seen: impl Fn(Hook) -> Result<Tensor>,
    is_a_run: bool,
) -> Result<Vec<Layer>> {
    let spec = &model.spec;
    let has_mlp = Kind::MlpOut.absent(spec).is_none();
    let at_rows = |t: &Tensor| -> Result<Tensor> {
        let on_host = t.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        pick(&on_host, rows)
    };
    let mut layers = Vec::with_capacity(spec.n_layers);
    for layer in 0..spec.n_layers {
        let hook = |kind| Hook::at(kind, layer);
        let get = |kind| seen(hook(kind));
        let of_mlp = |t: Result<Tensor>| match has_mlp {
            true => to_host(&at_rows(&t?)?),
            false => Ok(Vec::new()),
        };
        let scale = match &model.weights.blocks[layer].ln1_post {
            Some(_) => Some(get(Kind::Scale(Ln::OnePost))?),
            None => None,
        };
        let reference_z = at_rows(reference.packed(hook(Kind::Z))?)?;
        let reference_mlp = of_mlp(reference.packed(hook(Kind::MlpOut)).cloned())?;
        let idle = match is_a_run {
            true => None,
            false => {
                let z = get(Kind::Z)?;
                let share = match &scale {
                    Some(scale) => z.broadcast_div(&scale.unsqueeze(1)?)?,
                    None => z,
                };
                let own = of_mlp(get(Kind::MlpOut))?;
                let mlp = own.iter().zip(&reference_mlp).map(|(own, at)| own - at);
                Some(Idle {
                    z: to_host(&(at_rows(&share)? - &reference_z)?)?,
                    mlp: mlp.collect(),
                })
            }
        };
        let plain = |t: Tensor| -> Result<Tensor> {
            Ok(t.to_dtype(DType::F32)?
                .to_device(&Device::Cpu)?
                .contiguous()?)
        };
        layers.push(Layer {
            attn_in: to_host(&at_rows(&get(Kind::QInput)?)?)?,
            mlp_in: of_mlp(get(Kind::MlpIn))?,
            q: at_rows(&get(Kind::RotQ)?)?,
            k: plain(get(Kind::RotK)?)?,
            v: plain(get(Kind::V)?)?,
            scale: scale.map(|scale| to_host(&at_rows(&scale)?)).transpose()?,
            z: to_host(&reference_z)?,
            mlp: reference_mlp,
            idle,
        });
    }
    Ok(layers)
}

/// What the input node writes in the clean run, less what it writes at the reference, `[rows, d_model]`.
pub(super) fn input_change(ground: &Ground) -> Result<Vec<f32>> {
    let embed = Hook::global(Kind::Embed);
    let change = (ground.clean_writes.packed(embed)? - ground.reference.packed(embed)?)?;
    to_host(&pick(&change, &ground.rows)?)
}

/// A matrix of floats as a tensor.
pub(super) fn matrix(data: Vec<f32>, width: usize) -> Result<Tensor> {
    let rows = data.len() / width.max(1);
    tensor(data, (rows, width))
}
