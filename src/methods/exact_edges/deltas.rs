//! What every source adds to the stream, and how that differs between two runs.
//!
//! A head is kept as its z and multiplied with its part of `W_O` when it is asked for: all heads at once would be
//! `[batch, pos, n_heads, d_model]`. Where a norm stands on attention's output, z is kept divided by that norm's scale in its own
//! run, so that the heads' shares sum to what attention writes and can be averaged and subtracted.

use candle_core::{D, DType, Device, Tensor};

use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln, Node};
use crate::model::Model;
use crate::nn::host::host;
use crate::nn::linear;
use crate::run::{BaseRun, Cache, Source};
use crate::spec::NormKind;

/// The hooks that tell what sources write.
pub(in crate::methods) const KINDS: [Kind; 4] =
    [Kind::Embed, Kind::Z, Kind::MlpOut, Kind::Scale(Ln::OnePost)];

/// What every source of a run writes, under the hook that it is read from; z divided by the scale of its post-norm.
pub(in crate::methods) fn writes(model: &Model, run: &BaseRun) -> Result<Cache> {
    let spec = &model.spec;
    let mut writes = Cache::new(spec, run.prompts.len(), run.length);
    let get = |hook: Hook| -> Result<Tensor> {
        let t = run.cache.packed(hook)?;
        Ok(t.to_dtype(DType::F32)?.to_device(&Device::Cpu)?)
    };
    let embed = Hook::global(Kind::Embed);
    writes.insert(embed, get(embed)?);
    for layer in 0..spec.n_layers {
        let [z, mlp_out, scale] =
            [Kind::Z, Kind::MlpOut, Kind::Scale(Ln::OnePost)].map(|kind| Hook::at(kind, layer));
        let mut share = get(z)?; // [batch * pos, n_heads, d_head]
        if model.weights.blocks[layer].ln1_post.is_some() {
            share = share.broadcast_div(&get(scale)?.unsqueeze(1)?)?;
        }
        writes.insert(z, share);
        if mlp_out.kind.absent(spec).is_none() {
            writes.insert(mlp_out, get(mlp_out)?);
        }
    }
    Ok(writes)
}

/// The differences, reference minus clean, of what every source writes.
pub(in crate::methods) struct Deltas {
    differences: Cache,
}

impl Deltas {
    /// Without a reference the sources are silenced.
    pub fn new(model: &Model, clean: &BaseRun, reference: Option<&Source>) -> Result<Self> {
        let clean = writes(model, clean)?;
        let mut differences = Cache::new(&model.spec, clean.batch, clean.length);
        for hook in clean.hooks() {
            let own = clean.packed(hook)?;
            let difference = match reference {
                None => own.neg()?,
                Some(source) => (of_reference(source, hook, &clean)? - own)?,
            };
            differences.insert(hook, difference.contiguous()?);
        }
        Ok(Deltas { differences })
    }

    /// What a source writes more in the reference than in the clean run, from position `first` of a prompt on; `None` if
    /// it is nothing at all.
    /// # Shapes
    /// `[length - first, d_model]`, f32 on the host.
    pub fn of(
        &self,
        model: &Model,
        source: Node,
        example: usize,
        first: usize,
    ) -> Result<Option<Tensor>> {
        let length = self.differences.length;
        let rows = |hook: Hook| -> Result<Tensor> {
            let t = self.differences.packed(hook)?;
            Ok(t.narrow(0, example * length + first, length - first)?)
        };
        let delta = match source {
            Node::Input => rows(Hook::global(Kind::Embed))?,
            Node::Mlp(layer) => rows(Hook::at(Kind::MlpOut, layer))?,
            Node::Head { layer, head } => {
                let z = rows(Hook::at(Kind::Z, layer))?.narrow(1, head, 1)?;
                head_write(model, layer, head, &z.squeeze(1)?.contiguous()?)?
            }
            Node::Logits => return Err(Error::invalid("the logits write nothing")),
        };
        let is_nothing = host(&delta)?.iter().all(|&x| x == 0.0);
        Ok((!is_nothing).then_some(delta))
    }
}

/// The reference's values for every position of every prompt.
pub(in crate::methods) fn of_reference(
    source: &Source,
    hook: Hook,
    clean: &Cache,
) -> Result<Tensor> {
    let (values, row_of) = source.lookup(hook)?;
    let places = (0..clean.batch).flat_map(|i| (0..clean.length).map(move |pos| (i, pos)));
    let row = |(example, pos)| {
        let row = row_of(example, pos).ok_or_else(|| {
            Error::invalid(format!(
                "the reference run has no position {pos} of prompt {example}"
            ))
        })?;
        Ok(row as u32)
    };
    let rows = places.map(row).collect::<Result<Vec<u32>>>()?;
    Ok(values.index_select(&Tensor::new(rows, &Device::Cpu)?, 0)?)
}

/// What a head adds to the stream, by its z.
/// # Shapes
/// `z [rows, d_head]`, divided by the scale of the post-norm where there is one; gives `[rows, d_model]`.
pub(in crate::methods) fn head_write(
    model: &Model,
    layer: usize,
    head: usize,
    z: &Tensor,
) -> Result<Tensor> {
    let (spec, weights) = (&model.spec, &model.weights.blocks[layer]);
    let on_host =
        |t: &Tensor| -> Result<Tensor> { Ok(t.to_dtype(DType::F32)?.to_device(&Device::Cpu)?) };
    let w_o = weights.w_o.narrow(0, head * spec.d_head, spec.d_head)?;
    let mut out = linear::forward(z, &on_host(&w_o)?, None)?;
    if let Some(post) = &weights.ln1_post {
        if spec.norm == NormKind::Layer {
            out = out.broadcast_sub(&out.mean_keepdim(D::Minus1)?)?;
        }
        out = out.broadcast_mul(&on_host(&post.w)?)?;
    }
    Ok(match spec.residual_multiplier {
        Some(factor) => (out * f64::from(factor))?,
        None => out,
    })
}
