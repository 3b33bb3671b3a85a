//! The twin of the engine: the same transformer in composed tensor operations and f64, which candle's own autograd can
//! differentiate.
//!
//! It shares no arithmetic with the engine, so that neither repeats the other's mistakes. At every hook it adds a [`Var`] of
//! zeros: autograd drops the gradient of whatever is not a variable, and the gradient at such a delta is the gradient at its hook.
//! Only composed operations may stand here. The fused softmax, norms and rotation of `candle_nn` cut the graph without a word.
//!
//! A rule other than calculus is made by detaching: `x * detach(f(x) / x)` has the value of `f(x)` and the slope `f(x) / x`. What
//! counts as a constant is detached where it is made, before its hook: the gradient at `hook_pattern` tells how the metric moves
//! with the pattern also where nothing flows on to the scores.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candlewick::hooks::{Hook, Kind, Ln};
use candlewick::metric::{Metric, Target};
use candlewick::model::Model;
use candlewick::nn::rules::{ActivationRule, GateRule, NormRule, PatternRule, Rules, SoftcapRule};
use candlewick::spec::{
    Activation, Block, BlockWeights, Mlp, MlpWeights, ModelSpec, NormKind, NormWeights, Position,
    QkNorm, RopeScaling, Rotary, RotaryBase, RotaryStyle,
};

/// What stands for a masked score: finite, since zero times infinity has no gradient, and far below any score.
pub const MASKED: f64 = -1e30;

/// What keeps the ratio rule of activations from dividing by zero, as its authors have it.
const ACTIVATION_FLOOR: f64 = 1e-6;
/// The same for soft-caps, whose ratio is one at zero.
const SOFTCAP_FLOOR: f64 = 1e-12;

/// `t * times + plus` at a hook, in the hook's shape.
pub struct Change {
    pub times: Tensor,
    pub plus: Tensor,
}

pub type Changes = HashMap<Hook, Change>;

/// One run of the twin, with its graph.
pub struct Run {
    /// `[batch, pos, d_vocab]`
    pub all: Tensor,
    /// `[batch, d_vocab]`, at the last position.
    pub logits: Tensor,
    /// What the model went on with at each hook, in the hook's shape; masked scores are [`MASKED`].
    pub values: HashMap<Hook, Tensor>,
    deltas: HashMap<Hook, Var>,
}

/// Runs the twin. `rules` say how its graph differentiates; they change no value.
pub fn run(model: &Model, prompts: &[Vec<u32>], rules: &Rules, changes: &Changes) -> Run {
    let mut walk = Walk {
        spec: &model.spec,
        rules,
        changes,
        batch: prompts.len(),
        length: prompts[0].len(),
        values: HashMap::new(),
        deltas: HashMap::new(),
    };
    let all = walk.model(model, &prompts.concat());
    let all = all.expect("the shapes of a model fit together");
    let last = all.narrow(1, walk.length - 1, 1).and_then(|t| t.squeeze(1));
    Run {
        logits: last.expect("a prompt has a last position"),
        all,
        values: walk.values,
        deltas: walk.deltas,
    }
}

impl Run {
    /// The gradient of the sum of `metric` at every hook, in the hook's shape.
    /// # Shapes
    /// `metric [batch]`, from [`metric`] of these logits.
    pub fn gradients(&self, metric: &Tensor) -> HashMap<Hook, Tensor> {
        let total = metric.sum_all().expect("a sum");
        let gradients = total.backward().expect("every operation has a backward");
        let at = |delta: &Var| match gradients.get(delta) {
            Some(gradient) => gradient.clone(),
            None => delta.zeros_like().expect("zeros"),
        };
        self.deltas
            .iter()
            .map(|(&hook, delta)| (hook, at(delta)))
            .collect()
    }
}

/// The metric of each prompt, `[batch]`, with its graph.
/// # Shapes
/// `logits [batch, d_vocab]`, and so `reference`.
pub fn metric(
    metric: Metric,
    logits: &Tensor,
    targets: &[Target],
    reference: Option<&Tensor>,
) -> Tensor {
    composed_metric(metric, logits, targets, reference).expect("the shapes of a metric fit")
}

fn composed_metric(
    metric: Metric,
    logits: &Tensor,
    targets: &[Target],
    reference: Option<&Tensor>,
) -> Result<Tensor> {
    let vocab = logits.dim(1)?;
    // One row per prompt, 1 at each of its tokens.
    let at = |tokens: fn(&Target) -> &Vec<u32>| -> Result<Tensor> {
        let mut marks = vec![0f64; targets.len() * vocab];
        for (i, target) in targets.iter().enumerate() {
            for &token in tokens(target) {
                marks[i * vocab + token as usize] = 1.0;
            }
        }
        Tensor::from_vec(marks, (targets.len(), vocab), &Device::Cpu)
    };
    let answers = at(|target| &target.answers)?;
    let wrong = at(|target| &target.wrong)?;
    let among = |t: &Tensor, marks: &Tensor| (t * marks)?.sum(1);
    let mean = |t: &Tensor, marks: &Tensor| among(t, marks)? / marks.sum(1)?;
    let p = softmax(logits)?;
    let reference = || softmax(&wide(reference.expect("a divergence has a reference"))?);
    let divergence = |p: &Tensor, q: &Tensor| (p * (p.log()? - q.log()?)?)?.sum(1);
    match metric {
        Metric::LogitDiff => mean(logits, &answers)? - mean(logits, &wrong)?,
        Metric::Prob => among(&p, &answers),
        Metric::LogProb => among(&p, &answers)?.log(),
        Metric::ProbDiff => among(&p, &answers)? - among(&p, &wrong)?,
        Metric::Kl => divergence(&reference()?, &p),
        Metric::Js => {
            let q = reference()?;
            let middle = ((&p + &q)? / 2.0)?;
            (divergence(&p, &middle)? + divergence(&q, &middle)?)? / 2.0
        }
        Metric::Rank | Metric::TopK(_) | Metric::Accuracy | Metric::Custom(_) => {
            unreachable!("flat almost everywhere, so nobody asks for its gradient")
        }
    }
}

struct Walk<'a> {
    spec: &'a ModelSpec,
    rules: &'a Rules,
    changes: &'a Changes,
    batch: usize,
    length: usize,
    values: HashMap<Hook, Tensor>,
    deltas: HashMap<Hook, Var>,
}

impl Walk<'_> {
    /// Changes a hook, notes its value and adds its delta. A tensor with more heads than its hook holds copies: each of the
    /// hook's heads, or its only one, several times in a row.
    fn at(&mut self, hook: Hook, t: &Tensor) -> Result<Tensor> {
        let shape = hook.shape(self.spec, self.batch, self.length);
        let copied = t.dims() != shape;
        let (width, elements) = (shape[shape.len() - 1], shape.iter().product::<usize>());
        let heads = elements / (self.batch * self.length * width);
        let copies = t.elem_count() / elements;
        let split = [self.batch, self.length, heads, copies, width];
        let spread = |x: &Tensor| -> Result<Tensor> {
            if copied {
                x.reshape(vec![self.batch, self.length, heads, 1, width])?
                    .broadcast_as(split.to_vec())?
                    .reshape(t.dims())
            } else {
                Ok(x.clone())
            }
        };
        let t = match self.changes.get(&hook) {
            Some(change) => ((t * spread(&change.times)?)? + spread(&change.plus)?)?,
            None => t.clone(),
        };
        let value = if copied {
            t.reshape(split.to_vec())?
                .narrow(3, 0, 1)?
                .reshape(shape.as_slice())?
        } else {
            t.clone()
        };
        let delta = Var::zeros(shape, DType::F64, &Device::Cpu)?;
        let used = (t + spread(delta.as_tensor())?)?;
        self.values.insert(hook, value.detach());
        self.deltas.insert(hook, delta);
        Ok(used)
    }

    fn at_layer(&mut self, kind: Kind, layer: usize, t: &Tensor) -> Result<Tensor> {
        self.at(Hook::at(kind, layer), t)
    }

    /// From tokens to logits, `[batch, pos, d_vocab]`.
    fn model(&mut self, model: &Model, tokens: &[u32]) -> Result<Tensor> {
        let spec = self.spec;
        let weights = &model.weights;
        let stream = (self.batch, self.length, spec.d_model);
        let x = wide(&weights.w_e)?
            .index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)?
            .reshape(stream)?;
        let x = match &weights.ln_embed {
            Some(w) => self.norm(&x, w, None)?,
            None => x,
        };
        let x = (x * f64::from(spec.embed_scale.unwrap_or(1.0)))?;
        let mut x = self.at(Hook::global(Kind::Embed), &x)?;
        if let Some(w_pos) = &weights.w_pos {
            let pos = wide(w_pos)?.narrow(0, 0, self.length)?;
            let pos = pos.broadcast_as(stream)?.contiguous()?;
            x = (x + self.at(Hook::global(Kind::PosEmbed), &pos)?)?;
        }
        let encoder = weights.encoder.as_ref();
        if let Some(segments) = encoder.and_then(|encoder| encoder.segments.as_ref()) {
            x = x.broadcast_add(&wide(&segments.narrow(0, 0, 1)?)?)?;
        }
        for (layer, block) in weights.blocks.iter().enumerate() {
            x = self.block(layer, block, &x)?;
        }
        if let Some(w) = &weights.ln_final {
            let hooks = norm_hooks(Ln::Final, None);
            x = self.norm(&x, w, Some(hooks))?;
        }
        if let Some(encoder) = &weights.encoder {
            let pre = linear(&x, &encoder.w_head, encoder.b_head.as_ref())?;
            x = self.norm(&self.activation(&pre)?, &encoder.ln_head, None)?;
        }
        let logits = linear(&x, &weights.w_u.t()?, weights.b_u.as_ref())?;
        let logits = (logits * f64::from(spec.logit_scale.unwrap_or(1.0)))?;
        self.softcap(&logits, spec.final_softcap)
    }

    fn block(&mut self, layer: usize, w: &BlockWeights, x: &Tensor) -> Result<Tensor> {
        let x = self.at_layer(Kind::ResidPre, layer, x)?;
        let attn_out = self.attention(layer, w, &x)?;
        let attn_out = self.branch(Kind::AttnOut, layer, &attn_out)?;
        let mut mid = (self.kept(&x, w.ln1.as_ref())? + attn_out)?;
        if let Some(mlp) = &w.mlp {
            if self.spec.block == Block::Sequential {
                mid = self.at_layer(Kind::ResidMid, layer, &mid)?;
            }
            let read = match self.spec.block {
                Block::Sequential => &mid,
                Block::Parallel { .. } => &x,
            };
            let mlp_out = self.mlp(layer, w, mlp, read)?;
            mid =
                (self.kept(&mid, w.ln2.as_ref())? + self.branch(Kind::MlpOut, layer, &mlp_out)?)?;
        }
        self.at_layer(Kind::ResidPost, layer, &mid)
    }

    /// What a branch is added to.
    fn kept(&mut self, x: &Tensor, w: Option<&NormWeights>) -> Result<Tensor> {
        match w {
            Some(w) if self.spec.norms_stream() => self.norm(x, w, None),
            _ => Ok(x.clone()),
        }
    }

    /// What a branch adds to the stream, stopped where the rules say so.
    fn branch(&mut self, kind: Kind, layer: usize, out: &Tensor) -> Result<Tensor> {
        let out = (out * f64::from(self.spec.residual_multiplier.unwrap_or(1.0)))?;
        let out = self.at_layer(kind, layer, &out)?;
        Ok(if self.rules.stop.contains(&layer) {
            out.detach()
        } else {
            out
        })
    }

    /// Attention up to the post-norm, each query head with a stream, a key and a value of its own.
    fn attention(&mut self, layer: usize, w: &BlockWeights, x: &Tensor) -> Result<Tensor> {
        let spec = self.spec;
        let (batch, length, heads) = (self.batch, self.length, spec.n_heads);
        let each = x
            .unsqueeze(2)?
            .broadcast_as((batch, length, heads, spec.d_model))?
            .contiguous()?;
        let inputs = [Kind::QInput, Kind::KInput, Kind::VInput]
            .map(|kind| self.at_layer(kind, layer, &each));
        let [q, k, v] = inputs;
        // One norm sees all three, so that its hooks reach every copy.
        let mut read = Tensor::cat(&[q?, k?, v?], 2)?; // [batch, pos, 3 n_heads, d_model]
        if let Some(w) = &w.ln1 {
            read = self.norm(&read, w, Some(norm_hooks(Ln::One, Some(layer))))?;
        }
        let mut column = 0;
        let mut letters = Vec::new();
        for (i, kind) in [Kind::Q, Kind::K, Kind::V].into_iter().enumerate() {
            let own = if i == 0 { heads } else { spec.n_kv_heads };
            let columns = own * spec.d_head;
            let cut = |t: &Tensor, dim: usize| -> Result<Tensor> {
                let each =
                    wide(&t.narrow(dim, column, columns)?)?.reshape(((), own, spec.d_head))?;
                copy_heads(&each, heads / own) // [d_model or 1, n_heads, d_head]
            };
            let mut t = per_head(
                &read.narrow(2, i * heads, heads)?,
                &cut(&w.w_qkv, 1)?.transpose(0, 1)?,
            )?;
            if let Some(b) = &w.b_qkv {
                t = t.broadcast_add(&cut(b, 0)?.squeeze(0)?)?;
            }
            let t = self.clip(&t)?;
            letters.push(self.at_layer(kind, layer, &t)?);
            column += columns;
        }
        let q = self.heads_norm(&letters[0], w.q_norm.as_ref())?;
        let k = self.heads_norm(&letters[1], w.k_norm.as_ref())?;
        let q = self.at_layer(Kind::RotQ, layer, &self.rotate(layer, &q)?)?;
        let k = self.at_layer(Kind::RotK, layer, &self.rotate(layer, &k)?)?;
        let q = weaken(&q, self.rules.query_key)?.transpose(1, 2)?; // [batch, n_heads, pos, d_head]
        let k = weaken(&k, self.rules.query_key)?.transpose(1, 2)?;
        let v = weaken(&letters[2], self.rules.value)?.transpose(1, 2)?;
        let products = q.contiguous()?.matmul(&k.t()?.contiguous()?)?;
        let scores = (products * f64::from(spec.attn_scale[layer]))?;
        let scores = self.softcap(&scores, spec.attn_softcap)?;
        let scores = match spec.position {
            Position::Alibi(_) => scores.broadcast_add(&distances(spec, length)?)?,
            _ => scores,
        };
        let visible = visible(spec, layer, length); // [query, key]
        let masked = ((&visible - 1.0)? * -MASKED)?;
        let scores = scores.broadcast_mul(&visible)?.broadcast_add(&masked)?;
        let scores = self.at_layer(Kind::AttnScores, layer, &scores)?;
        let pattern = match self.rules.pattern {
            PatternRule::Exact => softmax(&scores)?,
            PatternRule::Frozen => softmax(&scores)?.detach(),
        };
        let pattern = self.at_layer(Kind::Pattern, layer, &pattern)?;
        let z = pattern.matmul(&v.contiguous()?)?.transpose(1, 2)?; // [batch, pos, n_heads, d_head]
        let z = self.at_layer(Kind::Z, layer, &z.contiguous()?)?;
        let w_o = wide(&w.w_o)?.reshape((heads, spec.d_head, spec.d_model))?;
        let result = self.at_layer(Kind::Result, layer, &per_head(&z, &w_o)?)?;
        let mut out = result.sum(2)?;
        if let Some(b) = &w.b_o {
            out = out.broadcast_add(&wide(b)?)?;
        }
        match &w.ln1_post {
            Some(w) => self.norm(&out, w, Some(norm_hooks(Ln::OnePost, Some(layer)))),
            None => Ok(out),
        }
    }

    /// The MLP up to the post-norm, from the stream that it reads.
    fn mlp(
        &mut self,
        layer: usize,
        block: &BlockWeights,
        w: &MlpWeights,
        x: &Tensor,
    ) -> Result<Tensor> {
        let spec = self.spec;
        let mut x = self.at_layer(Kind::MlpIn, layer, x)?;
        match (&block.ln2, &block.ln1) {
            (Some(w), _) => x = self.norm(&x, w, Some(norm_hooks(Ln::Two, Some(layer))))?,
            // The hooks of a shared norm are those of attention's copy.
            (None, Some(w)) if spec.block == (Block::Parallel { shared_norm: true }) => {
                x = self.norm(&x, w, None)?;
            }
            _ => {}
        }
        let pre = linear(&x, &w.w_in, w.b_in.as_ref())?;
        let gate = pre.narrow(2, 0, spec.d_mlp)?;
        let gate = self.at_layer(Kind::MlpPre, layer, &gate)?;
        let post = match spec.mlp {
            Mlp::Gated => {
                let linear = pre.narrow(2, spec.d_mlp, spec.d_mlp)?;
                let linear = self.at_layer(Kind::MlpPreLinear, layer, &linear)?;
                let gate = self.activation(&gate)?;
                match self.rules.gate {
                    GateRule::Exact => (gate * linear)?,
                    GateRule::Half => weaken(&(gate * linear)?, 0.5)?,
                    GateRule::LinearOnly => (gate.detach() * linear)?,
                }
            }
            Mlp::Plain | Mlp::None => self.activation(&gate)?,
        };
        let post = self.at_layer(Kind::MlpPost, layer, &post)?;
        let out = linear(&post, &w.w_out, w.b_out.as_ref())?;
        match &block.ln2_post {
            Some(w) => self.norm(&out, w, Some(norm_hooks(Ln::TwoPost, Some(layer)))),
            None => Ok(out),
        }
    }

    /// A norm over the last axis, with the hooks of its divisor and of what it divides.
    fn norm(&mut self, x: &Tensor, w: &NormWeights, hooks: Option<[Hook; 2]>) -> Result<Tensor> {
        let centred = match self.spec.norm {
            NormKind::Layer => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?,
            NormKind::Rms => x.clone(),
        };
        let mut scale = self.divisor(&centred)?;
        if let Some([hook, _]) = hooks {
            scale = self.at(hook, &scale)?;
        }
        let mut normalized = centred.broadcast_div(&scale)?;
        if let Some([_, hook]) = hooks {
            normalized = self.at(hook, &normalized)?;
        }
        let y = normalized.broadcast_mul(&wide(&w.w)?)?;
        match &w.b {
            Some(b) => y.broadcast_add(&wide(b)?),
            None => Ok(y),
        }
    }

    /// Between minus and plus the largest size that the model allows, with no slope beyond it.
    fn clip(&self, x: &Tensor) -> Result<Tensor> {
        let Some(most) = self.spec.qkv_clip.map(f64::from) else {
            return Ok(x.clone());
        };
        let within = x.abs()?.le(most)?.to_dtype(DType::F64)?;
        let beyond = ((within.neg()? + 1.0)? * most)?;
        let signs = ((x.ge(0f64)?.to_dtype(DType::F64)? * 2.0)? - 1.0)?;
        let limit = (&beyond * signs)?;
        let cut = match self.rules.activation {
            ActivationRule::Exact => limit,
            ActivationRule::Ratio => {
                let is_beyond = (beyond / most)?;
                ratio_rule(&(x * is_beyond)?, &limit, ACTIVATION_FLOOR)?
            }
        };
        (x * within)? + cut
    }

    /// The norm of queries or keys, where the model has one.
    /// # Shapes
    /// `x [batch, pos, n_heads, d_head]`.
    fn heads_norm(&self, x: &Tensor, w: Option<&NormWeights>) -> Result<Tensor> {
        let Some(NormWeights { w, b }) = w else {
            return Ok(x.clone());
        };
        let (batch, length, heads, width) = x.dims4()?;
        let of_heads = |w: &Tensor| -> Result<Tensor> {
            let w = wide(w)?.reshape((1, (), width))?;
            copy_heads(&w, heads / w.dim(1)?)?.squeeze(0) // [n_heads, d_head]
        };
        let is_full = self.spec.qk_norm == QkNorm::FullWidth;
        let rows = match is_full {
            true => x.reshape((batch, length, heads * width))?,
            false => x.clone(),
        };
        let rows = match self.spec.qk_norm {
            QkNorm::PerHeadLayer | QkNorm::OwnLayer => {
                rows.broadcast_sub(&rows.mean_keepdim(D::Minus1)?)?
            }
            QkNorm::FullWidth | QkNorm::PerHead | QkNorm::None => rows,
        };
        let y = rows.broadcast_div(&self.divisor(&rows)?)?;
        let y = y.reshape(x.shape())?.broadcast_mul(&of_heads(w)?)?;
        match b {
            Some(b) => y.broadcast_add(&of_heads(b)?),
            None => Ok(y),
        }
    }

    /// The root mean square of each row.
    fn divisor(&self, x: &Tensor) -> Result<Tensor> {
        let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + self.spec.norm_eps)?.sqrt()?;
        Ok(match self.rules.norm {
            NormRule::Exact => scale,
            NormRule::FrozenScale => scale.detach(),
        })
    }

    /// Rotates each head by its position: `x cos + (x with each pair swapped and one of it negated) sin`.
    fn rotate(&self, layer: usize, x: &Tensor) -> Result<Tensor> {
        let Position::Rotary(rotary) = &self.spec.position else {
            return Ok(x.clone());
        };
        let Some(base) = rotary.base_of_layer[layer] else {
            return Ok(x.clone());
        };
        let width = self.spec.d_head;
        let base = &rotary.bases[base];
        let (frequencies, factor) = frequencies(rotary, base, self.length);
        let mut swap = vec![0f64; width * width];
        let mut cos = vec![1f64; self.length * width];
        let mut sin = vec![0f64; self.length * width];
        for (i, frequency) in frequencies.iter().enumerate() {
            let (a, b) = match rotary.style {
                RotaryStyle::Half => (i, i + rotary.dims / 2),
                RotaryStyle::Interleaved => (2 * i, 2 * i + 1),
            };
            (swap[b * width + a], swap[a * width + b]) = (-1.0, 1.0);
            for pos in 0..self.length {
                let angle = pos as f64 * frequency;
                for dim in [a, b] {
                    cos[pos * width + dim] = factor * angle.cos();
                    sin[pos * width + dim] = factor * angle.sin();
                }
            }
        }
        let swap = Tensor::from_vec(swap, (width, width), &Device::Cpu)?;
        let table = |values| Tensor::from_vec(values, (1, self.length, 1, width), &Device::Cpu);
        let swapped = x.reshape(((), width))?.matmul(&swap)?.reshape(x.shape())?;
        x.broadcast_mul(&table(cos)?)? + swapped.broadcast_mul(&table(sin)?)?
    }

    fn activation(&self, x: &Tensor) -> Result<Tensor> {
        let kind = self.spec.activation;
        let y = activation(x, kind)?;
        match self.rules.activation {
            ActivationRule::Ratio if kind != Activation::Relu => {
                ratio_rule(x, &y, ACTIVATION_FLOOR)
            }
            ActivationRule::Ratio | ActivationRule::Exact => Ok(y),
        }
    }

    fn softcap(&self, x: &Tensor, cap: Option<f32>) -> Result<Tensor> {
        let Some(cap) = cap.map(f64::from) else {
            return Ok(x.clone());
        };
        let y = ((x / cap)?.tanh()? * cap)?;
        match self.rules.softcap {
            SoftcapRule::Exact => Ok(y),
            SoftcapRule::Ratio => ratio_rule(x, &y, SOFTCAP_FLOOR),
        }
    }
}

/// The value of `y`, with the slope `y / x`.
fn ratio_rule(x: &Tensor, y: &Tensor, floor: f64) -> Result<Tensor> {
    let sign = ((x.ge(0f64)?.to_dtype(DType::F64)? * 2.0)? - 1.0)?;
    let divisor = (x + (sign * floor)?)?;
    let slope = (y / divisor)?.detach();
    // What the floor takes from the value is put back, so that the rules change no value.
    let value = (x * slope)?;
    (y - &value)?.detach() + value
}

/// The same value, and `factor` times its gradient.
fn weaken(x: &Tensor, factor: f32) -> Result<Tensor> {
    let part = (x * f64::from(factor))?;
    &part + (x - &part)?.detach()
}

/// Spelt out, since candle's own derivatives of these have constants of six digits.
fn activation(x: &Tensor, kind: Activation) -> Result<Tensor> {
    match kind {
        Activation::Gelu => (x * 0.5)? * ((x * 0.5f64.sqrt())?.erf()? + 1.0)?,
        Activation::GeluTanh => {
            let inner = ((x * 0.044_715)? * x.sqr()?)? + x;
            let inner = (inner? * (2.0 / std::f64::consts::PI).sqrt())?;
            (x * 0.5)? * (inner.tanh()? + 1.0)?
        }
        Activation::Silu => x / (x.neg()?.exp()? + 1.0)?,
        Activation::Relu => x.relu(),
    }
}

/// Softmax over the last axis. The shift by the largest is a constant, as it changes no value.
fn softmax(x: &Tensor) -> Result<Tensor> {
    let largest = x.max_keepdim(D::Minus1)?.detach();
    let exponentials = x.broadcast_sub(&largest)?.exp()?;
    exponentials.broadcast_div(&exponentials.sum_keepdim(D::Minus1)?)
}

/// `x @ w + b`.
/// # Shapes
/// `x [.., in]`, `w [in, out]`, `b [out]`.
fn linear(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let width = dims.pop().expect("a row has a width");
    dims.push(w.dim(1)?);
    let y = x.reshape(((), width))?.matmul(&wide(w)?)?.reshape(dims)?;
    match b {
        Some(b) => y.broadcast_add(&wide(b)?),
        None => Ok(y),
    }
}

/// Each head through a matrix of its own.
/// # Shapes
/// `x [batch, pos, heads, in]`, `w [heads, in, out]`; gives `[batch, pos, heads, out]`.
fn per_head(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let (batch, length, heads, width) = x.dims4()?;
    let x = x.reshape((batch * length, heads, width))?.transpose(0, 1)?;
    let y = x.contiguous()?.matmul(&w.contiguous()?)?; // [heads, batch * pos, out]
    y.transpose(0, 1)?
        .reshape((batch, length, heads, w.dim(2)?))
}

/// Each head `copies` times in a row.
/// # Shapes
/// `t [rows, heads, width]`; gives `[rows, heads * copies, width]`.
fn copy_heads(t: &Tensor, copies: usize) -> Result<Tensor> {
    let (rows, heads, width) = t.dims3()?;
    let each = t.unsqueeze(2)?.broadcast_as((rows, heads, copies, width))?;
    each.reshape((rows, heads * copies, width))
}

fn norm_hooks(ln: Ln, layer: Option<usize>) -> [Hook; 2] {
    [Kind::Scale(ln), Kind::Normalized(ln)].map(|kind| Hook { layer, kind })
}

/// What ALiBi adds to scores, `[head, query, key]`.
fn distances(spec: &ModelSpec, length: usize) -> Result<Tensor> {
    let mut added = Vec::new();
    for head in 0..spec.n_heads {
        let slope = f64::from(spec.alibi_slope(head).unwrap_or(0.0));
        for query in 0..length {
            added.extend((0..length).map(|key| slope * (key as f64 - query as f64)));
        }
    }
    Tensor::from_vec(added, (spec.n_heads, length, length), &Device::Cpu)
}

fn wide(t: &Tensor) -> Result<Tensor> {
    t.to_dtype(DType::F64)
}

/// The frequency of each pair that rotates in prompts of `length` tokens, and what multiplies cosines and sines.
fn frequencies(rotary: &Rotary, base: &RotaryBase, length: usize) -> (Vec<f64>, f64) {
    let dims = rotary.dims as f64;
    let turn = 2.0 * std::f64::consts::PI;
    let plain = |i: usize| base.theta.powf(-2.0 * i as f64 / dims);
    let each = |f: &dyn Fn(usize) -> f64| (0..rotary.dims / 2).map(f).collect();
    match &base.scaling {
        RopeScaling::None => (each(&plain), 1.0),
        RopeScaling::Linear { factor } => (each(&|i| plain(i) / factor), 1.0),
        RopeScaling::Factors { factors } => (each(&|i| plain(i) / factors[i]), 1.0),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor: low,
            high_freq_factor: high,
            original_max_position,
        } => {
            // How many turns a pair makes in the original context decides how much it is slowed.
            let slowed = |i| {
                let turns = *original_max_position as f64 * plain(i) / turn;
                let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                plain(i) * (smooth + (1.0 - smooth) / factor)
            };
            (each(&slowed), 1.0)
        }
        RopeScaling::Dynamic {
            factor,
            original_max_position,
        } => {
            let excess = (length as f64 / *original_max_position as f64 - 1.0).max(0.0);
            let growth = (1.0 + factor * excess).powf(dims / (dims - 2.0));
            let slowed = |i| plain(i) * growth.powf(-2.0 * i as f64 / dims);
            (each(&slowed), 1.0)
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
            original_max_position,
        } => {
            // The pair, as a real number, that makes so many turns in the original context.
            let pair = |turns: f64| {
                let wavelength = *original_max_position as f64 / turns;
                dims / 2.0 * (wavelength / turn).ln() / base.theta.ln()
            };
            let (mut low, mut high) = (pair(*beta_fast), pair(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, high) = (low.max(0.0), high.min(dims - 1.0));
            let slowed = |i| {
                let share = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                plain(i) * (share / factor + 1.0 - share)
            };
            (each(&slowed), *attention_factor)
        }
        RopeScaling::LongRope {
            short,
            long,
            attention_factor,
            original_max_position,
        } => {
            let is_long = length > *original_max_position;
            let factors = if is_long { long } else { short };
            (each(&|i| plain(i) / factors[i]), *attention_factor)
        }
    }
}

/// 1 where a query sees a key.
/// # Shapes
/// `[query, key]`.
pub fn visible(spec: &ModelSpec, layer: usize, length: usize) -> Tensor {
    let window = spec.windows[layer].unwrap_or(length);
    let causal = spec.is_causal();
    let sees = |q: usize, k: usize| {
        let is_seen = q.abs_diff(k) < window && (k <= q || !causal);
        f64::from(u8::from(is_seen))
    };
    let all = (0..length).flat_map(|q| (0..length).map(move |k| sees(q, k)));
    Tensor::from_vec(all.collect(), (length, length), &Device::Cpu).expect("a square")
}
