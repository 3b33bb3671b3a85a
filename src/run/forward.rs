//! The forward pass, written once. A plain run, a capturing run, an edited run and a sweep are all this walk; they differ in
//! their [`Tap`].
//!
//! At each hook the order is: compute, intervene, capture. In a sweep, rows can join the walk at the [`Stage`]s of a block, with
//! what stands before taken from the base run; and after attention a tap may say which rows go on (the later tokens that can
//! have changed, or in the last layer the answer alone).

use candle_core::{DType, Tensor};

use super::rows::{Rows, regather};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::model::Model;
use crate::nn::attention::{self, KeysValues, SegmentPlace, Shape, Slopes};
use crate::nn::{linear, mlp, norm, rope};
use crate::spec::{Block, BlockWeights, Mlp, ModelSpec, NormWeights, QkNorm};

/// The places of a block where variants can join, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    ResidPre,
    Qkv,
    Z,
    AttnOut,
    /// The stream between attention and MLP, where the MLP begins.
    ResidMid,
    MlpPost,
    MlpOut,
    ResidPost,
}

impl Stage {
    /// The stage of a block at which a variant that edits this hook can start; `None` for hooks outside of blocks.
    pub(crate) fn of(kind: Kind) -> Option<Stage> {
        Some(match kind {
            Kind::Embed | Kind::PosEmbed | Kind::Scale(Ln::Final) | Kind::Normalized(Ln::Final) => {
                return None;
            }
            Kind::ResidPre | Kind::Scale(Ln::One) | Kind::Normalized(Ln::One) => Stage::ResidPre,
            Kind::QInput | Kind::KInput | Kind::VInput => Stage::ResidPre,
            Kind::Q
            | Kind::K
            | Kind::V
            | Kind::RotQ
            | Kind::RotK
            | Kind::AttnScores
            | Kind::Pattern => Stage::Qkv,
            Kind::Z | Kind::Result | Kind::Scale(Ln::OnePost) | Kind::Normalized(Ln::OnePost) => {
                Stage::Z
            }
            Kind::AttnOut => Stage::AttnOut,
            Kind::ResidMid | Kind::MlpIn | Kind::Scale(Ln::Two) | Kind::Normalized(Ln::Two) => {
                Stage::ResidMid
            }
            Kind::MlpPre | Kind::MlpPreLinear => Stage::ResidMid,
            Kind::MlpPost | Kind::Scale(Ln::TwoPost) | Kind::Normalized(Ln::TwoPost) => {
                Stage::MlpPost
            }
            Kind::MlpOut => Stage::MlpOut,
            Kind::ResidPost => Stage::ResidPost,
        })
    }

    /// What the rows that join here take from the base run, as it was after the base run's own edits.
    pub(crate) fn takes(self, block: Block) -> &'static [Kind] {
        match self {
            Stage::ResidPre => &[Kind::ResidPre],
            Stage::Qkv => &[Kind::ResidPre, Kind::Q, Kind::K, Kind::V],
            Stage::Z => &[Kind::ResidPre, Kind::Z],
            Stage::AttnOut => &[Kind::ResidPre, Kind::AttnOut],
            Stage::ResidMid if block == Block::Sequential => &[Kind::ResidMid],
            Stage::ResidMid => &[Kind::ResidMid, Kind::ResidPre],
            Stage::MlpPost => &[Kind::ResidMid, Kind::MlpPost],
            Stage::MlpOut => &[Kind::ResidMid, Kind::MlpOut],
            Stage::ResidPost => &[Kind::ResidPost],
        }
    }
}

/// What watches and steers a walk.
pub(crate) trait Tap {
    /// Whether a hook is read or edited. What nobody wants need not be computed on its own.
    fn wants(&self, hook: Hook) -> bool;

    /// Whether a hook is edited.
    fn edits(&self, hook: Hook) -> bool;

    /// Intervenes at a hook, then captures it.
    /// # Shapes
    /// Packed: `[rows, ..]`; scores and patterns `[rows, n_heads, length]`.
    fn at(&mut self, hook: Hook, t: Tensor, rows: &Rows) -> Result<Tensor>;

    /// The rows that join at a stage.
    fn joining(&mut self, _stage: Stage, _layer: usize) -> Option<Rows> {
        None
    }

    /// The base run's values of a hook, every position of every prompt.
    fn base(&self, hook: Hook) -> Result<&Tensor> {
        Err(Error::invalid(format!(
            "there is no base run to take `{hook}` from"
        )))
    }

    /// The rows that go on after attention, if they differ from those that came in; `rows`' segments in the same order.
    fn attended(&mut self, _layer: usize, _rows: &Rows) -> Option<Rows> {
        None
    }

    /// Rotated keys and values of the base run, for positions that a segment does not carry itself.
    fn base_keys(&self, _layer: usize) -> Result<Option<(&Tensor, &Tensor)>> {
        Ok(None)
    }
}

/// Tensors that share their rows.
struct Packed {
    rows: Rows,
    parts: Vec<Tensor>,
}

impl Packed {
    /// Lets rows join, with what the base run has for them.
    fn join(self, tap: &mut dyn Tap, stage: Stage, layer: &Layer<'_>) -> Result<Self> {
        let Some(new) = tap.joining(stage, layer.index) else {
            return Ok(self);
        };
        let kinds = stage.takes(layer.spec.block);
        let mut parts = Vec::with_capacity(kinds.len());
        for (i, &kind) in kinds.iter().enumerate() {
            let joined = super::rows::pick(tap.base(layer.hook(kind))?, &new)?;
            parts.push(match self.parts.get(i) {
                None => joined,
                Some(own) if own.rank() == 3 && own.dim(1)? > joined.dim(1)? => {
                    // Other rows have a key for each query head, after an edit of a reader's input.
                    let times = own.dim(1)? / joined.dim(1)?;
                    Tensor::cat(&[own, &attention::repeat(&joined, times)?], 0)?
                }
                Some(own) => Tensor::cat(&[own, &joined], 0)?,
            });
        }
        let mut rows = self.rows;
        rows.append(new);
        Ok(Packed { rows, parts })
    }

    fn take<const N: usize>(self) -> (Rows, [Tensor; N]) {
        (
            self.rows,
            self.parts.try_into().expect("as many parts as were packed"),
        )
    }
}

/// The stream between blocks. Without rows there is no tensor.
pub(crate) struct Stream {
    pub rows: Rows,
    pub x: Option<Tensor>,
}

impl Stream {
    pub fn empty(length: usize) -> Self {
        Stream {
            rows: Rows::new(length),
            x: None,
        }
    }
}

/// The parts of the model that one layer's walk needs.
struct Layer<'a> {
    model: &'a Model,
    spec: &'a ModelSpec,
    weights: &'a BlockWeights,
    index: usize,
}

impl Layer<'_> {
    fn hook(&self, kind: Kind) -> Hook {
        Hook::at(kind, self.index)
    }
}

/// Walks one block.
pub(crate) fn block(
    model: &Model,
    index: usize,
    ropes: &rope::Tables,
    stream: Stream,
    tap: &mut dyn Tap,
) -> Result<Stream> {
    let layer = Layer {
        model,
        spec: &model.spec,
        weights: &model.weights.blocks[index],
        index,
    };
    let length = stream.rows.length;
    let packed = Packed {
        rows: stream.rows,
        parts: stream.x.into_iter().collect(),
    };
    let mut packed = packed.join(tap, Stage::ResidPre, &layer)?;
    if !packed.rows.is_empty() {
        let (rows, [x]) = packed.take();
        let x = tap.at(layer.hook(Kind::ResidPre), x, &rows)?;
        let [q, k, v] = read(&layer, &x, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![x, q, k, v],
        };
    }
    let mut packed = packed.join(tap, Stage::Qkv, &layer)?;
    if !packed.rows.is_empty() {
        packed = attend(&layer, packed, ropes, tap)?; // x, z
    }
    let mut packed = packed.join(tap, Stage::Z, &layer)?;
    if !packed.rows.is_empty() {
        let (rows, [x, z]) = packed.take();
        let attn_out = project(&layer, z, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![x, attn_out],
        };
    }
    let mut packed = packed.join(tap, Stage::AttnOut, &layer)?;
    let sequential = layer.spec.block == Block::Sequential;
    if !packed.rows.is_empty() {
        let (rows, [x, attn_out]) = packed.take();
        let attn_out = tap.at(layer.hook(Kind::AttnOut), attn_out, &rows)?;
        let mid = linear::add(&kept(&layer, &x, layer.weights.ln1.as_ref())?, &attn_out)?;
        packed = Packed {
            rows,
            parts: if sequential { vec![mid] } else { vec![mid, x] },
        };
    }
    if layer.spec.mlp != Mlp::None {
        packed = run_mlp(&layer, packed, tap)?;
    }
    let packed = packed.join(tap, Stage::ResidPost, &layer)?;
    if packed.rows.is_empty() {
        return Ok(Stream::empty(length));
    }
    let (rows, [x]) = match layer.spec.mlp {
        // Attention-only parallel blocks do not exist, so one part is left either way.
        Mlp::None => Packed {
            rows: packed.rows,
            parts: packed.parts.into_iter().take(1).collect(),
        }
        .take(),
        _ => packed.take(),
    };
    let x = tap.at(layer.hook(Kind::ResidPost), x, &rows)?;
    Ok(Stream { rows, x: Some(x) })
}

/// The MLP of a block: from `[mid]` (sequential) or `[mid, what the MLP reads]` (parallel) to `[resid_post]`.
fn run_mlp(layer: &Layer<'_>, packed: Packed, tap: &mut dyn Tap) -> Result<Packed> {
    let sequential = layer.spec.block == Block::Sequential;
    let mut packed = packed.join(tap, Stage::ResidMid, layer)?;
    if !packed.rows.is_empty() {
        let Packed { rows, mut parts } = packed;
        if sequential {
            parts[0] = tap.at(layer.hook(Kind::ResidMid), parts[0].clone(), &rows)?;
        }
        let read = parts[parts.len() - 1].clone();
        let mid = parts.swap_remove(0);
        let mlp_in = tap.at(layer.hook(Kind::MlpIn), read, &rows)?;
        let post = neurons(layer, mlp_in, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![mid, post],
        };
    }
    let mut packed = packed.join(tap, Stage::MlpPost, layer)?;
    if !packed.rows.is_empty() {
        let (rows, [mid, post]) = packed.take();
        let post = tap.at(layer.hook(Kind::MlpPost), post, &rows)?;
        let out = written_by_neurons(layer, &post, &rows, tap)?;
        packed = Packed {
            rows,
            parts: vec![mid, out],
        };
    }
    let packed = packed.join(tap, Stage::MlpOut, layer)?;
    if packed.rows.is_empty() {
        return Ok(packed);
    }
    let (rows, [mid, out]) = packed.take();
    let out = tap.at(layer.hook(Kind::MlpOut), out, &rows)?;
    let x = linear::add(&kept(layer, &mid, layer.weights.ln2.as_ref())?, &out)?;
    Ok(Packed {
        rows,
        parts: vec![x],
    })
}

/// What the MLP of a layer writes for a stream of one's own.
/// # Shapes
/// `mlp_in [rows, d_model]`; gives the same.
pub(crate) fn mlp_write(
    model: &Model,
    index: usize,
    mlp_in: Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let layer = Layer {
        model,
        spec: &model.spec,
        weights: &model.weights.blocks[index],
        index,
    };
    let post = neurons(&layer, mlp_in, rows, tap)?;
    written_by_neurons(&layer, &post, rows, tap)
}

fn written_by_neurons(
    layer: &Layer<'_>,
    post: &Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let weights = layer
        .weights
        .mlp
        .as_ref()
        .expect("a spec with an MLP has its weights");
    let out = linear::forward(post, &weights.w_out, weights.b_out.as_ref())?;
    let post_norm = layer.weights.ln2_post.as_ref();
    write(layer, out, post_norm, Ln::TwoPost, rows, tap)
}

/// What a branch is added to: the stream, or what the branch's norm made of it where norms stand on the stream.
fn kept(layer: &Layer<'_>, x: &Tensor, norm: Option<&NormWeights>) -> Result<Tensor> {
    match norm {
        Some(w) if layer.spec.norms_stream() => {
            norm::forward(x, w, layer.spec.norm, layer.spec.norm_eps)
        }
        _ => Ok(x.clone()),
    }
}

/// A norm with its hooks.
fn normed(
    layer: &Layer<'_>,
    x: &Tensor,
    w: &NormWeights,
    ln: Ln,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let hooks = [
        layer.hook(Kind::Scale(ln)),
        layer.hook(Kind::Normalized(ln)),
    ];
    norm_with_hooks(layer.model, x, w, hooks, rows, tap)
}

fn norm_with_hooks(
    model: &Model,
    x: &Tensor,
    w: &NormWeights,
    hooks: [Hook; 2],
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let (kind, eps) = (model.spec.norm, model.spec.norm_eps);
    if !tap.wants(hooks[0]) && !tap.wants(hooks[1]) {
        return norm::forward(x, w, kind, eps);
    }
    let parts = norm::parts(x, w, kind, eps)?;
    let scale = tap.at(hooks[0], parts.scale.clone(), rows)?;
    let normalized = if scale.id() == parts.scale.id() {
        parts.normalized.clone()
    } else {
        norm::normalize(x, &scale, kind)?
    };
    let used = tap.at(hooks[1], normalized, rows)?;
    if used.id() == parts.normalized.id() {
        Ok(parts.y)
    } else {
        norm::apply_weight(&used, w)
    }
}

/// The final norm of some rows of the last stream.
pub(crate) fn final_norm(
    model: &Model,
    x: &Tensor,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let x = match &model.weights.ln_final {
        Some(w) => {
            let hooks = [
                Hook::global(Kind::Scale(Ln::Final)),
                Hook::global(Kind::Normalized(Ln::Final)),
            ];
            norm_with_hooks(model, x, w, hooks, rows, tap)?
        }
        None => x.clone(),
    };
    let Some(encoder) = &model.weights.encoder else {
        return Ok(x);
    };
    let pre = linear::forward(&x, &encoder.w_head, Some(&encoder.b_head))?;
    let post = mlp::forward(&pre, model.spec.activation)?;
    norm::forward(
        &post,
        &encoder.ln_head,
        model.spec.norm,
        model.spec.norm_eps,
    )
}

/// Queries, keys and values, before hooks of their own: `[rows, heads, d_head]`.
fn read(layer: &Layer<'_>, x: &Tensor, rows: &Rows, tap: &mut dyn Tap) -> Result<[Tensor; 3]> {
    let spec = layer.spec;
    let (heads, kv, d) = (spec.n_heads, spec.n_kv_heads, spec.d_head);
    let inputs = [Kind::QInput, Kind::KInput, Kind::VInput].map(|kind| layer.hook(kind));
    let mut edited: [Option<Tensor>; 3] = [None, None, None];
    for (slot, hook) in edited.iter_mut().zip(inputs) {
        if tap.wants(hook) {
            // One copy for each query head, as a view until somebody changes it.
            let each = x
                .unsqueeze(1)?
                .broadcast_as((x.dim(0)?, heads, spec.d_model))?;
            let used = tap.at(hook, each.clone(), rows)?;
            *slot = (used.id() != each.id()).then_some(used);
        }
    }
    let of_norm = [Kind::Scale(Ln::One), Kind::Normalized(Ln::One)].map(|kind| layer.hook(kind));
    if let Some(hook) = of_norm.into_iter().find(|&hook| tap.edits(hook))
        && edited.iter().any(Option::is_some)
    {
        let reason = "an edit of `hook_q_input`, `hook_k_input` or `hook_v_input` in the same layer gives each query head a \
                      stream of its own, which this norm does not see; make the two in separate runs"
            .into();
        return Err(Error::BadEdit {
            edit: hook.to_string(),
            reason,
        });
    }
    let normalized = match &layer.weights.ln1 {
        Some(w) => normed(layer, x, w, Ln::One, rows, tap)?,
        None => x.clone(),
    };
    let qkv = linear::forward(
        &normalized,
        &layer.weights.w_qkv,
        layer.weights.b_qkv.as_ref(),
    )?;
    let n = qkv.dim(0)?;
    let mut out = Vec::with_capacity(3);
    for (letter, edited) in edited.into_iter().enumerate() {
        let count = if letter == 0 { heads } else { kv };
        let start = [0, heads * d, (heads + kv) * d][letter];
        out.push(match edited {
            None => qkv.narrow(1, start, count * d)?.reshape((n, count, d))?,
            Some(input) => read_by_head(layer, &input, start, heads / count)?,
        });
    }
    Ok(out.try_into().expect("three letters"))
}

/// One letter of q, k, v from an input of its own for each query head: `[rows, n_heads, d_model]` to `[rows, n_heads, d_head]`.
/// Under grouped heads each query head then has a key or value of its own.
fn read_by_head(layer: &Layer<'_>, input: &Tensor, start: usize, group: usize) -> Result<Tensor> {
    let spec = layer.spec;
    let (heads, d) = (spec.n_heads, spec.d_head);
    let mut out = Vec::with_capacity(heads);
    for head in 0..heads {
        let x = input.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
        let x = match &layer.weights.ln1 {
            Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
            None => x,
        };
        let columns = start + head / group * d;
        let w = layer.weights.w_qkv.narrow(1, columns, d)?.contiguous()?;
        let b = layer
            .weights
            .b_qkv
            .as_ref()
            .map(|b| b.narrow(0, columns, d)?.contiguous())
            .transpose()?;
        out.push(linear::forward(&x, &w, b.as_ref())?);
    }
    Ok(Tensor::stack(&out, 1)?)
}

/// From `[x, q, k, v]` to `[x, z]`, over the rows that go on.
fn attend(
    layer: &Layer<'_>,
    packed: Packed,
    ropes: &rope::Tables,
    tap: &mut dyn Tap,
) -> Result<Packed> {
    let spec = layer.spec;
    let (rows, [x, q, k, v]) = packed.take();
    if k.dim(1)? != spec.n_kv_heads || v.dim(1)? != spec.n_kv_heads {
        let clash = [Kind::K, Kind::V, Kind::RotK]
            .map(|kind| layer.hook(kind))
            .into_iter()
            .find(|&hook| tap.wants(hook));
        if let Some(hook) = clash {
            let reason = "an edit of `hook_k_input` or `hook_v_input` in the same layer gives each query head a key of its own; \
                          make the two in separate runs"
                .into();
            return Err(Error::BadEdit {
                edit: hook.to_string(),
                reason,
            });
        }
    }
    let q = tap.at(layer.hook(Kind::Q), q, &rows)?;
    let k = tap.at(layer.hook(Kind::K), k, &rows)?;
    let v = tap.at(layer.hook(Kind::V), v, &rows)?;
    let positions = rows.positions();
    let (rot_q, rot_k) = rotate(layer, &q, &k, &positions, ropes)?;
    let rot_q = tap.at(layer.hook(Kind::RotQ), rot_q, &rows)?;
    let rot_k = tap.at(layer.hook(Kind::RotK), rot_k, &rows)?.contiguous()?;
    let v = v.contiguous()?;

    let (out, x, rot_q) = match tap.attended(layer.index, &rows) {
        None => (rows.clone(), x, rot_q),
        Some(out) => {
            // The base run's queries are kept rotated; a plain run that only drops rows has no base run and needs none.
            let bases = [Kind::ResidPre, Kind::RotQ].map(|kind| tap.base(layer.hook(kind)).ok());
            let x = regather(&x, &rows, &out, bases[0])?;
            let rot_q = regather(&rot_q, &rows, &out, bases[1])?;
            (out, x, rot_q)
        }
    };
    // Earlier tokens of a generation have keys for each query head where an edit of a reader's input gave them.
    let n_kv_heads = match tap.base_keys(layer.index)? {
        Some((keys, _)) => keys.dim(1)?,
        None => spec.n_kv_heads,
    };
    let shape = Shape {
        n_heads: spec.n_heads,
        key_heads: rot_k.dim(1)?,
        value_heads: v.dim(1)?,
        n_kv_heads,
        d_head: spec.d_head,
        scale: spec.attn_scale[layer.index],
        softcap: spec.attn_softcap,
        window: spec.windows[layer.index],
        alibi: Slopes::new(spec, 0),
        causal: spec.is_causal(),
        length: rows.length,
    };
    let segments: Vec<SegmentPlace<'_>> = out
        .segments
        .iter()
        .zip(&rows.segments)
        .map(|(queries, keys)| SegmentPlace {
            query_start: queries.start,
            query_positions: &queries.positions,
            key_start: keys.start,
            key_positions: &keys.positions,
            example: keys.example,
        })
        .collect();
    let hooks = [Kind::AttnScores, Kind::Pattern].map(|kind| layer.hook(kind));
    let wanted = hooks.map(|hook| tap.wants(hook));
    let base = tap.base_keys(layer.index)?;
    let sources = KeysValues {
        k: &rot_k,
        v: &v,
        base,
    };
    let z = if wanted == [false, false] {
        attention::forward(&rot_q, sources, &segments, &shape)?
    } else {
        let scores = attention::scores(&rot_q, sources, &segments, &shape)?;
        let scores = tap.at(hooks[0], scores, &out)?;
        let pattern = attention::softmax(&scores)?;
        let pattern = tap.at(hooks[1], pattern, &out)?;
        let sources = KeysValues {
            k: &rot_k,
            v: &v,
            base: tap.base_keys(layer.index)?,
        };
        attention::mix(&pattern, sources, &segments, &shape)?
    };
    Ok(Packed {
        rows: out,
        parts: vec![x, z],
    })
}

/// Q/k-norm, then rotation.
fn rotate(
    layer: &Layer<'_>,
    q: &Tensor,
    k: &Tensor,
    positions: &[u32],
    ropes: &rope::Tables,
) -> Result<(Tensor, Tensor)> {
    let rotated_through = |x: &Tensor, w: &Option<Tensor>| {
        rotated(layer.spec, layer.index, x, w.as_ref(), positions, ropes)
    };
    Ok((
        rotated_through(q, &layer.weights.q_norm)?,
        rotated_through(k, &layer.weights.k_norm)?,
    ))
}

/// The queries or the keys of a layer, through their norm (with weights `w`) and rotated.
/// # Shapes
/// `x [rows, heads, d_head]`; gives the same.
pub(crate) fn rotated(
    spec: &ModelSpec,
    layer: usize,
    x: &Tensor,
    w: Option<&Tensor>,
    positions: &[u32],
    ropes: &rope::Tables,
) -> Result<Tensor> {
    let x = match (spec.qk_norm, w) {
        (QkNorm::None, _) | (_, None) => x.clone(),
        (QkNorm::PerHead, Some(w)) => norm::heads(x, w, spec.norm_eps)?,
        (QkNorm::FullWidth, Some(w)) => {
            // Where each query head has a key of its own, it has its key head's weights.
            let d = spec.d_head;
            let times = x.dim(1)? * d / w.elem_count();
            let w = attention::repeat(&w.reshape((1, (), d))?, times)?.flatten_all()?;
            norm::heads(x, &w, spec.norm_eps)?
        }
    };
    match ropes.of(layer) {
        Some(table) => rope::forward(&x, positions, table),
        None => Ok(x),
    }
}

/// From z to what attention adds to the stream, `[rows, d_model]`.
fn project(layer: &Layer<'_>, z: Tensor, rows: &Rows, tap: &mut dyn Tap) -> Result<Tensor> {
    let spec = layer.spec;
    let z = tap.at(layer.hook(Kind::Z), z, rows)?;
    let n = z.dim(0)?;
    let result_hook = layer.hook(Kind::Result);
    let bias = layer.weights.b_o.as_ref();
    let mut out = None;
    if tap.wants(result_hook) {
        let mut heads = Vec::with_capacity(spec.n_heads);
        for head in 0..spec.n_heads {
            let z = z.narrow(1, head, 1)?.squeeze(1)?.contiguous()?;
            heads.push(linear::forward(
                &z,
                &layer
                    .weights
                    .w_o
                    .narrow(0, head * spec.d_head, spec.d_head)?,
                None,
            )?);
        }
        let result = Tensor::stack(&heads, 1)?; // [rows, n_heads, d_model]
        let used = tap.at(result_hook, result.clone(), rows)?;
        if used.id() != result.id() {
            let sum = used.sum(1)?;
            out = Some(match bias {
                Some(b) => sum.broadcast_add(b)?,
                None => sum,
            });
        }
    }
    let out = match out {
        Some(out) => out,
        None => linear::forward(
            &z.contiguous()?.reshape((n, spec.n_heads * spec.d_head))?,
            &layer.weights.w_o,
            bias,
        )?,
    };
    write(
        layer,
        out,
        layer.weights.ln1_post.as_ref(),
        Ln::OnePost,
        rows,
        tap,
    )
}

/// The activations of the neurons, from the stream that the MLP reads: `[rows, d_mlp]`.
fn neurons(layer: &Layer<'_>, mlp_in: Tensor, rows: &Rows, tap: &mut dyn Tap) -> Result<Tensor> {
    let spec = layer.spec;
    let weights = layer
        .weights
        .mlp
        .as_ref()
        .expect("a spec with an MLP has its weights");
    let shared = spec.block == (Block::Parallel { shared_norm: true });
    let x = match (&layer.weights.ln2, &layer.weights.ln1) {
        (Some(w), _) => normed(layer, &mlp_in, w, Ln::Two, rows, tap)?,
        // The hooks of a shared norm belong to attention, which came first.
        (None, Some(w)) if shared => norm::forward(&mlp_in, w, spec.norm, spec.norm_eps)?,
        _ => mlp_in,
    };
    let pre = linear::forward(&x, &weights.w_in, weights.b_in.as_ref())?;
    if spec.mlp == Mlp::Plain {
        let pre = tap.at(layer.hook(Kind::MlpPre), pre, rows)?;
        return mlp::forward(&pre, spec.activation);
    }
    let hooks = [Kind::MlpPre, Kind::MlpPreLinear].map(|kind| layer.hook(kind));
    if !hooks.iter().any(|&hook| tap.wants(hook)) {
        return mlp::gated(&pre, spec.activation);
    }
    let (gate, up) = (
        pre.narrow(1, 0, spec.d_mlp)?,
        pre.narrow(1, spec.d_mlp, spec.d_mlp)?,
    );
    let used_gate = tap.at(hooks[0], gate.clone(), rows)?;
    let used_up = tap.at(hooks[1], up.clone(), rows)?;
    if used_gate.id() == gate.id() && used_up.id() == up.id() {
        mlp::gated(&pre, spec.activation)
    } else {
        Ok((mlp::forward(&used_gate, spec.activation)? * used_up)?)
    }
}

/// What a branch adds to the stream: its output after the post-norm and the residual multiplier, where there are any.
fn write(
    layer: &Layer<'_>,
    out: Tensor,
    post: Option<&NormWeights>,
    ln: Ln,
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let out = match post {
        Some(w) => normed(layer, &out, w, ln, rows, tap)?,
        None => out,
    };
    Ok(match layer.spec.residual_multiplier {
        Some(factor) => (out * f64::from(factor))?,
        None => out,
    })
}

/// The stream that enters the first block, with the hooks of the embeddings.
pub(crate) fn embed(
    model: &Model,
    tokens: &[u32],
    rows: &Rows,
    tap: &mut dyn Tap,
) -> Result<Tensor> {
    let x = crate::nn::embed::embed(&model.spec, &model.weights, tokens)?;
    let x = tap.at(Hook::global(Kind::Embed), x, rows)?;
    match &model.weights.w_pos {
        None => Ok(x),
        Some(w_pos) => {
            let pos = w_pos.index_select(&Tensor::new(rows.positions(), w_pos.device())?, 0)?;
            let pos = tap.at(Hook::global(Kind::PosEmbed), pos, rows)?;
            let x = (x + pos)?;
            match &model.weights.encoder {
                None => Ok(x),
                // Every token is taken to be of the first segment.
                Some(encoder) => Ok(x.broadcast_add(&encoder.segments.narrow(0, 0, 1)?)?),
            }
        }
    }
}

/// Logits are f32 whatever the model's dtype.
pub(crate) fn as_logits(t: Tensor) -> Result<Tensor> {
    Ok(t.to_dtype(DType::F32)?)
}
