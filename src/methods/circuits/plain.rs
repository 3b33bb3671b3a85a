//! A circuit evaluated the plain way: one whole forward pass in which every reader's stream is corrected for the edges whose
//! source it should see otherwise. It runs on every device and in every dtype, and the fast way is held against it.

use candle_core::{DType, Device, Tensor};

use super::limits::Limits;
use super::streams::At;
use crate::circuit::EdgeSet;
use crate::error::Result;
use crate::hooks::{Hook, Kind, Letter, Ln, Node};
use crate::methods::exact_edges::deltas::head_write;
use crate::model::Model;
use crate::nn::host::{tensor, to_host};
use crate::nn::rope;
use crate::run::Cache;
use crate::run::forward::{self, Stream, Tap};
use crate::run::rows::{Rows, regather};

/// What is changed to see what a circuit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CircuitMode {
    /// In the clean run, all edges outside of the circuit are put at the reference.
    #[default]
    Complement,
    /// In the corrupted run, the edges of the circuit are given what their sources write in the clean run. A circuit with gaps
    /// still does something here.
    Edge,
}

/// What one whole forward pass with masks gives.
pub(super) struct Walked {
    /// The final stream at the answer of each prompt, before the final norm, `[batch, d_model]`.
    pub answers: Tensor,
    /// What readers saw and nodes computed, by hook, f32 on the host; only if it was asked for.
    pub seen: Cache,
}

/// What readers see instead of what a source writes in the run.
pub(super) struct Swap<'a> {
    /// The edges that are about a circuit's sources in whole or in part: in `Complement` those outside of the circuit, in `Edge`
    /// those inside.
    pub edges: &'a EdgeSet,
    pub mode: CircuitMode,
    pub limits: &'a Limits,
    /// For each row of the graph `[batch * pos, d_model]`, f32 on the host.
    pub values: &'a [Tensor],
}

/// Runs `prompts` so that every reader sees, for each swapped edge, its source's value instead of what the source writes in this
/// run. Of a source that is in the circuit in part, the other edges are swapped in the rest (`Complement`), or these in the part
/// alone (`Edge`).
pub(super) fn walk(
    model: &Model,
    prompts: &[Vec<u32>],
    swap: Swap<'_>,
    keep: bool,
) -> Result<Walked> {
    let length = prompts[0].len();
    let examples: Vec<usize> = (0..prompts.len()).collect();
    let rows = Rows::whole_as(&examples, length);
    let mut tap = MaskTap {
        model,
        corrections: Vec::with_capacity(swap.values.len()),
        others: Vec::with_capacity(swap.values.len()),
        swap,
        z: None,
        seen: keep.then(|| Cache::new(&model.spec, prompts.len(), length)),
    };
    let ropes = rope::Tables::new(&model.spec, length);
    let x = forward::embed(model, &prompts.concat(), &rows, &mut tap)?;
    let mut stream = Stream { rows, x: Some(x) };
    for layer in 0..model.spec.n_layers {
        stream = forward::block(model, layer, &ropes, stream, &mut tap)?;
    }
    let x = stream.x.expect("a whole run has rows");
    let answers = regather(&x, &stream.rows, &stream.rows.last_of_each(), None)?;
    let empty = Cache::new(&model.spec, prompts.len(), length);
    Ok(Walked {
        answers,
        seen: tap.seen.unwrap_or(empty),
    })
}

struct MaskTap<'a> {
    model: &'a Model,
    swap: Swap<'a>,
    /// For each source so far, by row, its value less what it writes in this run: where its edge is swapped, and where not.
    corrections: Vec<Tensor>,
    others: Vec<Option<Tensor>>,
    /// z of the layer, and the scale of its post-norm where there is one.
    z: Option<(Tensor, Option<Tensor>)>,
    seen: Option<Cache>,
}

impl MaskTap<'_> {
    fn wrote(&mut self, own: &Tensor) -> Result<()> {
        let row = self.corrections.len();
        let whole = (&self.swap.values[row] - plain(own)?)?;
        if !self.swap.limits.has(row) {
            self.corrections.push(whole);
            self.others.push(None);
            return Ok(());
        }
        let mut part = to_host(&whole)?;
        let n_rows = whole.dim(0)?;
        self.swap.limits.keep(row, At::Every(n_rows), &mut part);
        let part = tensor(part, whole.dims())?;
        match self.swap.mode {
            CircuitMode::Complement => {
                self.others.push(Some((&whole - part)?));
                self.corrections.push(whole);
            }
            CircuitMode::Edge => {
                self.others.push(None);
                self.corrections.push(part);
            }
        }
        Ok(())
    }

    /// What a reader's stream must be corrected by; `None` where nothing is swapped.
    fn correction(&self, reader: Node, letter: Option<Letter>) -> Result<Option<Tensor>> {
        let graph = self.swap.edges.graph();
        let column = graph.column(reader, letter)?;
        let mut sum: Option<Tensor> = None;
        for row in 0..graph.n_sources(column) {
            let own = match self.swap.edges.has(row, column) {
                true => &self.corrections[row],
                false => match &self.others[row] {
                    Some(rest) => rest,
                    None => continue,
                },
            };
            sum = Some(match sum {
                Some(sum) => (sum + own)?,
                None => own.clone(),
            });
        }
        Ok(sum)
    }

    fn corrected(&self, t: Tensor, reader: Node) -> Result<Tensor> {
        Ok(match self.correction(reader, None)? {
            Some(correction) => (&t + like(&correction, &t)?)?,
            None => t,
        })
    }

    fn see(&mut self, hook: Hook, t: &Tensor) -> Result<()> {
        if let Some(seen) = &mut self.seen {
            seen.insert(hook, plain(t)?);
        }
        Ok(())
    }
}

/// f32 on the host.
fn plain(t: &Tensor) -> Result<Tensor> {
    Ok(t.to_dtype(DType::F32)?
        .to_device(&Device::Cpu)?
        .contiguous()?)
}

fn like(t: &Tensor, other: &Tensor) -> Result<Tensor> {
    Ok(t.to_device(other.device())?.to_dtype(other.dtype())?)
}

impl Tap for MaskTap<'_> {
    fn wants(&self, hook: Hook) -> bool {
        let readers = matches!(
            hook.kind,
            Kind::QInput | Kind::KInput | Kind::VInput | Kind::MlpIn
        );
        let scale = hook.kind == Kind::Scale(Ln::OnePost);
        let last = hook == Hook::at(Kind::ResidPost, self.model.spec.n_layers - 1);
        readers || scale || last
    }

    fn edits(&self, _: Hook) -> bool {
        false
    }

    fn at(&mut self, hook: Hook, t: Tensor, _: &Rows) -> Result<Tensor> {
        let Some(layer) = hook.layer else {
            if hook.kind == Kind::Embed {
                self.wrote(&t)?;
            }
            return Ok(t);
        };
        let letter = Letter::ALL
            .into_iter()
            .find(|letter| letter.input() == hook.kind);
        let t = match (hook.kind, letter) {
            (_, Some(letter)) => {
                let mut inputs = Vec::with_capacity(self.model.spec.n_heads);
                for head in 0..self.model.spec.n_heads {
                    let own = t.narrow(1, head, 1)?.squeeze(1)?;
                    let correction = self.correction(Node::Head { layer, head }, Some(letter))?;
                    inputs.push(match correction {
                        Some(correction) => (&own + like(&correction, &own)?)?,
                        None => own,
                    });
                }
                Tensor::stack(&inputs, 1)? // [rows, n_heads, d_model]
            }
            (Kind::MlpIn, _) => self.corrected(t, Node::Mlp(layer))?,
            (Kind::ResidPost, _) if layer + 1 == self.model.spec.n_layers => {
                self.corrected(t, Node::Logits)?
            }
            _ => t,
        };
        match hook.kind {
            Kind::Z => self.z = Some((plain(&t)?, None)),
            Kind::Scale(Ln::OnePost) => {
                if let Some((_, scale)) = &mut self.z {
                    *scale = Some(plain(&t)?);
                }
            }
            Kind::AttnOut => {
                let (z, scale) = self
                    .z
                    .take()
                    .expect("z stands before what attention writes");
                let share = match scale {
                    Some(scale) => z.broadcast_div(&scale.unsqueeze(1)?)?,
                    None => z,
                };
                for head in 0..self.model.spec.n_heads {
                    let z = share.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
                    let own = head_write(self.model, layer, head, &z)?;
                    self.wrote(&own)?;
                }
            }
            Kind::MlpOut => self.wrote(&t)?,
            _ => {}
        }
        if matches!(
            hook.kind,
            Kind::QInput
                | Kind::RotQ
                | Kind::RotK
                | Kind::V
                | Kind::Z
                | Kind::MlpIn
                | Kind::MlpOut
                | Kind::ResidPost
                | Kind::Scale(Ln::OnePost)
        ) {
            self.see(hook, &t)?;
        }
        Ok(t)
    }
}

/// Every edge that is not in a set.
pub(super) fn complement(edges: &EdgeSet) -> Result<EdgeSet> {
    EdgeSet::full(*edges.graph()).minus(edges)
}
