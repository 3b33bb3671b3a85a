//! Prompts of one length that are explained together, and their metric's slope at any point of embedding space.

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::config::{Prompts, TokenConfig};
use super::method::TokenMethod;
use crate::error::{Error, Result};
use crate::hooks::{Edit, Hook, Kind, Op, Site, Value};
use crate::methods::method::{Running, Subject, pairs_of, targets_of};
use crate::metric::{Metric, Reads, Target};
use crate::model::Model;
use crate::nn::embed::embed;
use crate::nn::host::{tensor, to_host};
use crate::nn::rules::Rules;
use crate::run::backward::{Descent, Probe};
use crate::run::gradients::Measured;
use crate::run::rows::Rows;
use crate::run::tape::{Tape, TapeRequest};
use crate::run::{Progress, run_to_answers};
use crate::spec::{Mlp, ModelSpec};
use crate::task::{Pair, Task};

/// What one prompt's metric was found to be made of.
#[derive(Debug, Clone, Default)]
pub(super) struct Shares {
    /// Of each input token.
    pub tokens: Vec<f64>,
    /// Of each learned position embedding, where the method does not hold them constant.
    pub positions: Vec<f64>,
    /// What belongs to no token: a component, its layer, its share. The same components for every prompt.
    pub parts: Vec<(&'static str, Option<usize>, f64)>,
    /// What all of these should sum to, where the method promises a sum.
    pub total: Option<f64>,
}

/// A batch in progress.
#[derive(Clone)]
pub(super) struct Batch<'a> {
    pub model: &'a Model,
    pub task: &'a Task,
    pub config: &'a TokenConfig,
    pub metric: Metric,
    /// Bytes of activations that may be kept at once, and points that run together at most.
    pub memory: usize,
    at_once: usize,
    pub progress: &'a dyn Progress,
    pub pairs: Vec<&'a Pair>,
    /// The prompts that are explained, and the pairs' other ones.
    pub prompts: Vec<Vec<u32>>,
    pub others: Vec<Vec<u32>>,
    pub targets: Vec<Target>,
    /// The clean run's logits, for metrics that compare with them.
    pub reference: Option<Vec<Vec<f32>>>,
    /// The metric of the explained prompts and of the others.
    pub values: Vec<f64>,
    pub other_values: Vec<f64>,
    pub length: usize,
    /// `[batch, pos, d_model]`, after any multiplier.
    pub embeddings: Vec<f32>,
    /// Puts them in place, where they are not those of the tokens.
    edits: Vec<Edit>,
}

impl<'a> Batch<'a> {
    pub fn new(
        on: Subject<'a>,
        indices: &[usize],
        config: &'a TokenConfig,
        running: &Running,
        progress: &'a dyn Progress,
    ) -> Result<Self> {
        let Subject { model, task } = on;
        let metric = config.metric(task);
        let pairs = pairs_of(task, indices);
        let targets = targets_of(&pairs);
        let clean: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.clean.clone()).collect();
        let corrupted: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.corrupted.clone()).collect();
        let reference = if metric.needs_reference() {
            // Metrics that compare with a reference have answers of one token.
            Some(run_to_answers(model, &clean, &targets, &[])?.0.concat())
        } else {
            None
        };
        let (prompts, others) = match config.prompts {
            Prompts::Clean => (clean, corrupted),
            Prompts::Corrupted => (corrupted, clean),
        };
        let mut batch = Batch {
            model,
            task,
            config,
            metric,
            memory: running.memory_now(),
            at_once: running.batch,
            progress,
            targets,
            reference,
            length: prompts[0].len(),
            embeddings: to_host(&embed(&model.spec, &model.weights, &prompts.concat())?)?,
            values: Vec::new(),
            other_values: Vec::new(),
            pairs,
            prompts,
            others,
            edits: Vec::new(),
        };
        batch.values = batch.metric(&batch.prompts)?;
        batch.other_values = batch.metric(&batch.others)?;
        Ok(batch)
    }

    /// The same prompts at other places of embedding space, where `place` moves the embeddings of each, otherwise in each round. What
    /// methods draw themselves stays the same.
    pub fn moved(
        &self,
        round: u64,
        place: impl Fn(&[f32], &mut ChaCha8Rng) -> Vec<f32>,
    ) -> Result<Self> {
        self.check_cancelled()?;
        let mut moved = self.clone();
        let mut embeddings = Vec::with_capacity(self.embeddings.len());
        for prompt in 0..self.len() {
            embeddings.extend(place(
                self.embedding(prompt),
                &mut self.rng_of(round, prompt, MOVES),
            ));
        }
        let shape = (self.len(), self.length, self.model.spec.d_model);
        moved.edits = vec![at_embed(tensor(embeddings.clone(), shape)?)];
        moved.embeddings = embeddings;
        moved.values = moved.measured(&moved.record()?)?.values;
        Ok(moved)
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Elements of one prompt's embeddings.
    pub fn width(&self) -> usize {
        self.length * self.model.spec.d_model
    }

    /// The embeddings of one prompt, `[pos, d_model]`.
    pub fn embedding(&self, prompt: usize) -> &[f32] {
        &self.embeddings[prompt * self.width()..][..self.width()]
    }

    /// The learned position embeddings, `[pos, d_model]`; none where positions are not learned.
    pub fn positions(&self) -> Result<Vec<f32>> {
        match &self.model.weights.w_pos {
            Some(w_pos) => to_host(&w_pos.narrow(0, 0, self.length)?),
            None => Ok(Vec::new()),
        }
    }

    /// A generator of its own for each draw of each pair, so that nothing depends on which pairs run together.
    pub fn rng(&self, prompt: usize, draw: usize) -> ChaCha8Rng {
        self.rng_of(0, prompt, draw)
    }

    fn rng_of(&self, round: u64, prompt: usize, draw: usize) -> ChaCha8Rng {
        let of_round = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut rng = ChaCha8Rng::seed_from_u64(self.config.seed(self.task) ^ of_round);
        rng.set_stream(((self.pairs[prompt].index as u64) << 20) + draw as u64 + 1);
        rng
    }

    /// What puts the prompts where they are, where that is not at their tokens' embeddings.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// Where the prompts are, if not at their tokens' embeddings. `[rows, d_model]`
    pub fn place(&self) -> Result<Option<Tensor>> {
        if self.edits.is_empty() {
            return Ok(None);
        }
        let shape = (self.len() * self.length, self.model.spec.d_model);
        Ok(Some(tensor(self.embeddings.clone(), shape)?))
    }

    /// A forward pass of the explained prompts, ready to be walked back.
    pub fn record(&self) -> Result<Tape> {
        self.tape(&self.prompts, &self.edits)
    }

    /// A forward pass of these prompts, ready to be walked back.
    pub fn tape(&self, prompts: &[Vec<u32>], edits: &[Edit]) -> Result<Tape> {
        let request = TapeRequest {
            edits,
            memory: Some(self.memory),
            ..TapeRequest::default()
        };
        Tape::record(self.model, prompts, &request)
    }

    /// The metric at the end of a tape that has the batch's prompts.
    pub fn measured<'b>(&'b self, tape: &Tape) -> Result<Measured<'b>> {
        Measured::new(
            self.model,
            tape,
            self.metric,
            &self.targets,
            self.reference.as_deref(),
        )
    }

    fn metric(&self, prompts: &[Vec<u32>]) -> Result<Vec<f64>> {
        let tape = self.tape(prompts, &[])?;
        Ok(self.measured(&tape)?.values)
    }

    /// The metric's gradient at the embeddings, at points of embedding space, a few at a time. `place` says to which prompt of
    /// the batch a point belongs and where it lies; `each` is shown the point and the gradient there.
    /// # Shapes
    /// Places and gradients `[pos, d_model]`.
    pub fn slopes_at<P>(
        &self,
        points: &[P],
        place: impl Fn(&P) -> Result<(usize, Vec<f32>)>,
        mut each: impl FnMut(&P, &[f32]) -> Result<()>,
    ) -> Result<()> {
        for chunk in points.chunks(self.room()) {
            self.check_cancelled()?;
            let at = Points::new(self, chunk, &place)?;
            let tape = self.tape(&at.prompts, &at.edits)?;
            let measured = at.measured(self, &tape)?;
            let rules = Rules::gradient();
            let mut probe = AtEmbed(None);
            let start = measured.gradient(self.model, &rules, &tape.rows, &mut probe)?;
            let descent = Descent {
                model: self.model,
                tape: &tape,
                rules: &rules,
                rows: &tape.rows,
            };
            descent.run(start, &mut probe)?;
            let gradient = probe.0.expect("every descent ends at the embeddings");
            let gradient = to_host(&gradient)?;
            for (point, gradient) in chunk.iter().zip(gradient.chunks_exact(self.width())) {
                each(point, gradient)?;
            }
            self.progress.advance(chunk.len() as u64);
        }
        Ok(())
    }

    /// The metric at points of embedding space.
    pub fn values_at<P>(
        &self,
        points: &[P],
        place: impl Fn(&P) -> Result<(usize, Vec<f32>)>,
    ) -> Result<Vec<f64>> {
        let mut values = Vec::with_capacity(points.len());
        for chunk in points.chunks(self.room()) {
            self.check_cancelled()?;
            let at = Points::new(self, chunk, &place)?;
            let tape = self.tape(&at.prompts, &at.edits)?;
            values.extend(at.measured(self, &tape)?.values);
        }
        Ok(values)
    }

    /// How many points run together: as many as asked for, fewer where memory is short.
    fn room(&self) -> usize {
        let bytes = bytes(&self.model.spec, self.length, self.config, self.metric);
        (self.memory / bytes.max(1)).clamp(1, self.at_once.max(1))
    }

    fn check_cancelled(&self) -> Result<()> {
        if self.progress.cancelled() {
            return Err(Error::Interrupted {
                kept: "the prompts in flight are not kept".into(),
            });
        }
        Ok(())
    }
}

/// The draw that moves a prompt; methods have fewer of their own.
const MOVES: usize = (1 << 20) - 2;

fn at_embed(embeddings: Tensor) -> Edit {
    let site = Site::all(Hook::global(Kind::Embed));
    Edit::new(site, Op::Replace(Value::Tensor(embeddings)))
}

/// Some points of embedding space, as prompts whose embeddings are replaced.
struct Points {
    prompts: Vec<Vec<u32>>,
    targets: Vec<Target>,
    reference: Option<Vec<Vec<f32>>>,
    edits: Vec<Edit>,
}

impl Points {
    fn new<P>(
        batch: &Batch<'_>,
        points: &[P],
        place: &impl Fn(&P) -> Result<(usize, Vec<f32>)>,
    ) -> Result<Self> {
        let mut of = Vec::with_capacity(points.len());
        let mut embeddings = Vec::with_capacity(points.len() * batch.width());
        for point in points {
            let (prompt, embedding) = place(point)?;
            of.push(prompt);
            embeddings.extend(embedding);
        }
        let shape = (points.len(), batch.length, batch.model.spec.d_model);
        let reference = batch.reference.as_ref();
        Ok(Points {
            prompts: of.iter().map(|&i| batch.prompts[i].clone()).collect(),
            targets: of.iter().map(|&i| batch.targets[i].clone()).collect(),
            reference: reference.map(|all| of.iter().map(|&i| all[i].clone()).collect()),
            edits: vec![at_embed(tensor(embeddings, shape)?)],
        })
    }

    fn measured<'b>(&'b self, batch: &Batch<'_>, tape: &Tape) -> Result<Measured<'b>> {
        let reference = self.reference.as_deref();
        Measured::new(batch.model, tape, batch.metric, &self.targets, reference)
    }
}

/// Passes on points of embedding space as the cells that they are a part of.
pub(in crate::methods) struct InCells<'a> {
    inner: &'a dyn Progress,
    /// Of a prompt.
    cells: u64,
    points: u64,
    /// Points that are done.
    done: AtomicU64,
}

impl<'a> InCells<'a> {
    pub fn new(inner: &'a dyn Progress, cells: usize, points: usize) -> Self {
        InCells {
            inner,
            cells: cells as u64,
            points: points.max(1) as u64,
            done: AtomicU64::new(0),
        }
    }
}

impl Progress for InCells<'_> {
    fn advance(&self, points: u64) {
        let before = self.done.fetch_add(points, Ordering::Relaxed);
        let in_cells = |points: u64| points * self.cells / self.points;
        self.inner
            .advance(in_cells(before + points) - in_cells(before));
    }

    fn note(&self, message: &str) {
        self.inner.note(message);
    }

    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}

/// Bytes that a prompt of this length needs.
pub(super) fn bytes(
    spec: &ModelSpec,
    length: usize,
    config: &TokenConfig,
    metric: Metric,
) -> usize {
    let branches = match spec.mlp {
        Mlp::None => 0,
        Mlp::Plain => 3,
        Mlp::Gated => 5,
    };
    let heads = (spec.n_heads + spec.n_kv_heads) * spec.d_head;
    // Kept of every layer at the least; then what one layer works with, and the logits.
    let kept = spec.d_model + 2 * spec.n_kv_heads * spec.d_head;
    let layer = 8 * spec.d_model + 6 * heads + branches * spec.d_mlp;
    let logits = match metric.reads() {
        Reads::Answers => 0,
        Reads::Vocabulary => 4 * spec.d_vocab,
    };
    // ALTI looks at whole patterns, and mixes in f64.
    let patterns = match config.method {
        TokenMethod::AltiLogit | TokenMethod::AltiRollout => length * (2 * spec.n_heads + 6),
        TokenMethod::LastAttention => length * spec.n_heads,
        TokenMethod::AttentionRollout => length * spec.n_heads * spec.n_layers,
        TokenMethod::AttentionTimesGradient => 2 * length * spec.n_heads * spec.n_layers,
        _ => 0,
    };
    4 * (length * (spec.n_layers * kept + layer + patterns) + logits)
}

/// Takes the gradient at the embeddings.
struct AtEmbed(Option<Tensor>);

impl Probe for AtEmbed {
    fn wants(&self, hook: Hook) -> bool {
        hook.kind == Kind::Embed
    }

    fn at(&mut self, _: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        self.0 = Some(gradient.clone());
        Ok(())
    }
}

/// Sum of products in f64.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let each = a.iter().zip(b);
    each.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}
