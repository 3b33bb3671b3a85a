//! The frozen read-out: the final norm with the scale that it had in the run itself, then one direction of the unembedding.
//!
//! With `x` the final stream, `s` the norm's scale there, `w` its weight and `u = sum c_t W_U[t]` over the target's tokens, the
//! target's logit is `<C(x), w * u> / s` and a bias, where `C` takes the mean out under LayerNorm and nothing under RMSNorm.
//! That is linear in `x`, so a part `p` of the stream contributes `<p, reader>` with `reader = C(w * u) / s`: one vector a
//! prompt, and every projection is folded into it. A tensor of parts by positions by `d_model` is never made.
//!
//! A norm on the output of a branch is treated the same way: with its own run's scale it is linear in what goes into it. So are the
//! norms that stand on the stream itself (`normed_stream.rs`).

use std::cell::OnceCell;
use std::collections::HashMap;

use candle_core::{DType, Tensor};

pub(crate) use super::head::rowwise_dot;
use super::head::{self, Head};
use super::single_tokens;
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::method::clean_prompts;
use crate::metric::Judgement;
use crate::model::{Model, Tokenizer};
use crate::nn::{embed::unembed, host::to_host, norm};
use crate::run::{Cache, Logits, Request, walk};
use crate::spec::{NormPlacement, NormWeights};
use crate::task::Pair;

/// Which logit, or combination of logits, contributions are to.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DirectTarget {
    /// Mean logit of the answers less that of the wrong answers.
    #[default]
    Difference,
    /// Mean logit of the answers. All logits can move together without a probability changing: prefer the other two.
    Answer,
    /// Mean logit of the answers less the mean over the vocabulary.
    Centred,
    /// The same tokens in every prompt: mean logit of some less that of others (which may be none).
    Tokens { for_: Vec<u32>, against: Vec<u32> },
}

impl DirectTarget {
    /// As it is typed: `difference`, `answer` or `centred`, or words that are one token each; `against` goes with those.
    /// # Errors
    /// [`Error::Invalid`] for a word that is not one token, and for `against` beside a target that every pair has of its own.
    pub fn of_words(words: &[String], against: &[String], tokenizer: &Tokenizer) -> Result<Self> {
        let of_pairs = match words {
            [word] => match word.as_str() {
                "difference" => Some(DirectTarget::Difference),
                "answer" => Some(DirectTarget::Answer),
                "centred" => Some(DirectTarget::Centred),
                _ => None,
            },
            _ => None,
        };
        match of_pairs {
            Some(target) if against.is_empty() => Ok(target),
            Some(_) => Err(Error::invalid(
                "`DirectTarget::against` goes with tokens of your own in `DlaConfig::target`; a pair's own answers are compared with its wrong ones",
            )),
            None => Ok(DirectTarget::Tokens {
                for_: single_tokens(words, tokenizer)?,
                against: single_tokens(against, tokenizer)?,
            }),
        }
    }

    /// Each token's coefficient, for one pair.
    fn coefficients(&self, pair: &Pair) -> Vec<(u32, f32)> {
        let (plus, minus): (&[u32], &[u32]) = match self {
            DirectTarget::Difference => (&pair.target.answers, &pair.target.wrong),
            DirectTarget::Answer | DirectTarget::Centred => (&pair.target.answers, &[]),
            DirectTarget::Tokens { for_, against } => (for_, against),
        };
        let share = |tokens: &[u32], sign: f32| {
            let part = sign / tokens.len().max(1) as f32;
            tokens
                .iter()
                .map(|&token| (token, part))
                .collect::<Vec<_>>()
        };
        [share(plus, 1.0), share(minus, -1.0)].concat()
    }

    /// The name that tables give it as their metric.
    pub fn name(&self) -> &'static str {
        match self {
            DirectTarget::Difference => "logit_diff",
            DirectTarget::Answer => "logit",
            DirectTarget::Centred => "centred_logit",
            DirectTarget::Tokens { .. } => "logits_of_tokens",
        }
    }

    /// Whether it needs wrong answers.
    pub fn needs_wrong(&self) -> bool {
        *self == DirectTarget::Difference
    }
}

/// One run of some prompts of equal length, as it was where their answers are read.
pub(crate) struct Ends<'a> {
    pub model: &'a Model,
    pub batch: usize,
    pub length: usize,
    pub cache: Cache,
    /// Row of each prompt's answer position in packed tensors.
    rows: Tensor,
    at_end: HashMap<Hook, Tensor>,
    /// What the unembedding read, f32 `[batch, d_model]`.
    pub normed: Tensor,
    /// The scale of the final norm there, f32 `[batch, 1]`; 1 without norms.
    pub scale: Tensor,
    pub(super) head: Option<Head>,
    /// The mean direction of the vocabulary, f32 `[1, d_model]`, once somebody asked for it.
    mean_direction: OnceCell<Tensor>,
    /// The logits, f32 `[batch][d_vocab]`, once somebody asked for them.
    logits: OnceCell<Vec<Vec<f32>>>,
}

/// A direction of the unembedding for each prompt, through the final norm of the prompt's own run.
pub(crate) struct Readout {
    /// f32 `[batch, d_model]`: `<part of the stream, reader>` is what the part contributes.
    pub reader: Tensor,
    /// What the biases of the final norm, of an encoder's head and of the unembedding contribute.
    pub bias: Vec<f64>,
    /// The target itself, from what the unembedding read, before any soft-cap.
    pub total: Vec<f64>,
}

impl<'a> Ends<'a> {
    /// Runs the clean prompts of pairs of one length, keeping some hooks.
    pub fn keeping(model: &'a Model, pairs: &[&Pair], capture: &[Hook]) -> Result<Self> {
        let request = Request {
            capture,
            ..Request::default()
        };
        Ends::run(model, pairs, &request)
    }

    /// Runs the clean prompts of pairs of one length as asked for, for the logits where their answers, of one token each, are read.
    pub fn run(model: &'a Model, pairs: &[&Pair], request: &Request<'_>) -> Result<Self> {
        let prompts = clean_prompts(pairs);
        let at_last = pairs.iter().all(|pair| pair.target.after == 0);
        let last = Hook::at(Kind::ResidPost, model.spec.n_layers - 1);
        let mut capture = request.capture.to_vec();
        capture.push(last);
        let request = Request {
            capture: &capture,
            logits: if at_last { Logits::Last } else { Logits::All },
            ..request.clone()
        };
        let examples: Vec<usize> = (0..prompts.len()).collect();
        let (normed, cache) = walk(model, &prompts, &examples, &request)?;
        let normed = normed.expect("asked for").to_dtype(DType::F32)?;
        let (batch, length) = (cache.batch, cache.length);
        let row =
            |(i, pair): (usize, &&Pair)| (i * length + pair.target.positions(length).start) as u32;
        let rows: Vec<u32> = pairs.iter().enumerate().map(row).collect();
        let rows = Tensor::new(rows, &model.device)?;
        let normed = match at_last {
            true => normed,
            false => normed.index_select(&rows, 0)?,
        };
        let stream = cache.packed(last)?.index_select(&rows, 0)?;
        let stream = stream.to_dtype(DType::F32)?;
        let scale = match model.spec.norm_placement {
            NormPlacement::None => Tensor::ones((batch, 1), DType::F32, &model.device)?,
            _ => norm::scale(&stream, model.spec.norm, model.spec.norm_eps)?,
        };
        Ok(Ends {
            model,
            batch,
            length,
            cache,
            rows,
            at_end: HashMap::new(),
            normed,
            head: Head::of(model, &stream)?,
            scale,
            mean_direction: OnceCell::new(),
            logits: OnceCell::new(),
        })
    }

    /// A hook's tensor where the answer of each prompt is read, f32.
    /// # Shapes
    /// `[batch, ..]`, the axes after position as [`Hook::shape`] says; a pattern's row `[batch, n_heads, key]`.
    pub fn at_end(&mut self, hook: Hook) -> Result<Tensor> {
        if let Some(t) = self.at_end.get(&hook) {
            return Ok(t.clone());
        }
        let t = self.cache.packed(hook)?.index_select(&self.rows, 0)?;
        let t = t.to_dtype(DType::F32)?;
        self.at_end.insert(hook, t.clone());
        Ok(t)
    }

    /// How the model does on each prompt.
    pub fn judge(&self, pairs: &[&Pair]) -> Result<Vec<Judgement>> {
        let judged = pairs.iter().zip(self.logits()?);
        Ok(judged
            .map(|(pair, logits)| pair.target.judge(logits))
            .collect())
    }

    /// The logits where the answer of each prompt is read, after any soft-cap.
    fn logits(&self) -> Result<&[Vec<f32>]> {
        if self.logits.get().is_none() {
            let normed = self.normed.to_dtype(self.model.dtype)?;
            let logits = unembed(&self.model.spec, &self.model.weights, &normed)?;
            let _ = self.logits.set(logits.to_dtype(DType::F32)?.to_vec2()?);
        }
        Ok(self.logits.get().expect("they were just made"))
    }

    /// Lets go of all but what was looked at where answers are read.
    pub fn let_go(&mut self) {
        self.cache = Cache::new(&self.model.spec, self.batch, self.length);
        self.logits.take();
    }

    /// Bytes of what was looked at.
    pub fn bytes(&self) -> usize {
        self.at_end.values().map(|t| 4 * t.elem_count()).sum()
    }

    /// The read-out of a target, one for each prompt.
    pub fn readout(&self, target: &DirectTarget, pairs: &[&Pair]) -> Result<Readout> {
        let coefficients: Vec<_> = pairs.iter().map(|pair| target.coefficients(pair)).collect();
        self.readout_of(&coefficients, *target == DirectTarget::Centred)
    }

    /// The read-out of a sum of logits, `sum c_t logit_t` with its own tokens and coefficients for each prompt; if `centred`,
    /// less the mean over the vocabulary.
    pub fn readout_of(&self, coefficients: &[Vec<(u32, f32)>], centred: bool) -> Result<Readout> {
        let weights = &self.model.weights;
        let mut u = self.directions(coefficients)?;
        if centred {
            u = u.broadcast_sub(&self.mean_direction()?)?;
        }
        let factor = f64::from(self.model.spec.logit_scale.unwrap_or(1.0));
        let b_u = match &weights.b_u {
            None => vec![0.0; self.batch],
            Some(b) => {
                let b = to_host(b)?;
                let mean = if centred {
                    b.iter().sum::<f32>() / b.len() as f32
                } else {
                    0.0
                };
                let of = |tokens: &Vec<(u32, f32)>| {
                    let sum: f32 = tokens.iter().map(|(t, c)| c * b[*t as usize]).sum();
                    f64::from(sum - mean)
                };
                coefficients.iter().map(of).collect()
            }
        };
        let along = |v: &Tensor| rowwise_dot(v, &u);
        let total = along(&self.normed)?;
        let (u, of_head) = match &self.head {
            Some(head) => head.before(self.model, &u)?,
            None => (u, vec![0.0; self.batch]),
        };
        let along = |v: &Tensor| rowwise_dot(v, &u);
        let mut shift = match weights.ln_final.as_ref().and_then(|norm| norm.b.as_ref()) {
            None => vec![0.0; self.batch],
            Some(b) => along(&b.to_dtype(DType::F32)?.broadcast_as(u.shape())?)?,
        };
        (shift.iter_mut().zip(of_head)).for_each(|(shift, head)| *shift += head);
        let with_bias = |values: Vec<f64>| -> Vec<f64> {
            let sums = values.into_iter().zip(&b_u);
            sums.map(|(value, b)| factor * (value + b)).collect()
        };
        let total = with_bias(total);
        let u = match &weights.ln_final {
            Some(norm) => u.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?,
            None => u,
        };
        let reader = (self.centred(&u)?.broadcast_div(&self.scale)? * factor)?;
        Ok(Readout {
            reader,
            bias: with_bias(shift),
            total,
        })
    }

    /// The mean of `W_U[t]` over the vocabulary: `[1, d_model]`.
    fn mean_direction(&self) -> Result<Tensor> {
        if let Some(mean) = self.mean_direction.get() {
            return Ok(mean.clone());
        }
        let mean = mean_unembedding(self.model)?;
        Ok(self.mean_direction.get_or_init(|| mean).clone())
    }

    /// `sum c_t W_U[t]` for each prompt: `[batch, d_model]`.
    fn directions(&self, coefficients: &[Vec<(u32, f32)>]) -> Result<Tensor> {
        let device = &self.model.device;
        let mut rows = Vec::with_capacity(coefficients.len());
        for tokens in coefficients {
            let (ids, factors): (Vec<u32>, Vec<f32>) = tokens.iter().copied().unzip();
            let n = ids.len();
            let of = self
                .model
                .weights
                .w_u
                .index_select(&Tensor::new(ids, device)?, 0)?;
            let factors = Tensor::from_vec(factors, (n, 1), device)?;
            rows.push(of.to_dtype(DType::F32)?.broadcast_mul(&factors)?.sum(0)?);
        }
        Ok(Tensor::stack(&rows, 0)?)
    }

    /// The target of the soft-capped logits, where there is a soft-cap.
    pub fn capped(&self, target: &DirectTarget, pairs: &[&Pair]) -> Result<Option<Vec<f64>>> {
        if self.model.spec.final_softcap.is_none() {
            return Ok(None);
        }
        let coefficients: Vec<_> = pairs.iter().map(|pair| target.coefficients(pair)).collect();
        let value = |(logits, tokens): (&Vec<f32>, &Vec<(u32, f32)>)| {
            let sum: f32 = tokens.iter().map(|(t, c)| c * logits[*t as usize]).sum();
            let mean = match target {
                DirectTarget::Centred => logits.iter().sum::<f32>() / logits.len() as f32,
                _ => 0.0,
            };
            f64::from(sum - mean)
        };
        Ok(Some(
            self.logits()?
                .iter()
                .zip(&coefficients)
                .map(value)
                .collect(),
        ))
    }

    /// `C(v)`: the mean over `d_model` taken out under LayerNorm.
    pub fn centred(&self, v: &Tensor) -> Result<Tensor> {
        head::centred(&self.model.spec, v)
    }

    /// The reader of what comes out of a branch, before the norm on its output and the residual multiplier, where it has them;
    /// and what the bias of that norm contributes.
    /// # Shapes
    /// `reader [batch, d_model]`; gives the same, and `[batch]`.
    pub fn before_post_norm(
        &mut self,
        reader: &Tensor,
        layer: usize,
        ln: Ln,
    ) -> Result<(Tensor, Option<Vec<f64>>)> {
        let factor = f64::from(self.model.spec.residual_multiplier.unwrap_or(1.0));
        let reader = (reader * factor)?;
        let Some(norm) = self.post_norm(layer, ln) else {
            return Ok((reader, None));
        };
        let norm = norm.clone();
        let scale = self.at_end(Hook::at(Kind::Scale(ln), layer))?;
        let bias = match &norm.b {
            None => None,
            Some(b) => {
                let b = b.to_dtype(DType::F32)?.broadcast_as(reader.shape())?;
                Some(rowwise_dot(&b, &reader)?)
            }
        };
        let before = reader.broadcast_mul(&norm.w.to_dtype(DType::F32)?)?;
        Ok((self.centred(&before)?.broadcast_div(&scale)?, bias))
    }

    /// What a branch's output adds to the stream, from what goes into the norm on it: the other way round.
    /// # Shapes
    /// `out [batch, d_model]`, a part of the branch's output; gives the same.
    pub fn after_post_norm(&mut self, out: &Tensor, layer: usize, ln: Ln) -> Result<Tensor> {
        let factor = f64::from(self.model.spec.residual_multiplier.unwrap_or(1.0));
        let Some(norm) = self.post_norm(layer, ln).cloned() else {
            return Ok((out * factor)?);
        };
        let scale = self.at_end(Hook::at(Kind::Scale(ln), layer))?;
        let normalised = self.centred(out)?.broadcast_div(&scale)?;
        Ok((normalised.broadcast_mul(&norm.w.to_dtype(DType::F32)?)? * factor)?)
    }

    fn post_norm(&self, layer: usize, ln: Ln) -> Option<&'a NormWeights> {
        let block = &self.model.weights.blocks[layer];
        match ln {
            Ln::OnePost => block.ln1_post.as_ref(),
            Ln::TwoPost => block.ln2_post.as_ref(),
            Ln::One | Ln::Two | Ln::Final => None,
        }
    }
}

/// The mean of `W_U[t]` over the vocabulary, f32 `[1, d_model]`.
pub(crate) fn mean_unembedding(model: &Model) -> Result<Tensor> {
    let w_u = model.weights.w_u.to_dtype(DType::F32)?;
    let share = 1.0 / w_u.dim(0)? as f32;
    Ok(Tensor::full(share, (1, w_u.dim(0)?), w_u.device())?.matmul(&w_u)?)
}

/// The hooks of a kind in every layer, none where the model has no such hook.
pub(crate) fn every_layer(model: &Model, kind: Kind) -> Vec<Hook> {
    match kind.absent(&model.spec) {
        Some(_) => Vec::new(),
        None => (0..model.spec.n_layers)
            .map(|l| Hook::at(kind, l))
            .collect(),
    }
}
