//! PINE, inference that does not know in which order the segments of a prompt stand: documents, options, examples.
//!
//! A prompt is a prefix, segments, and a suffix. Prefix and suffix are read as ever. Tokens of one segment see all other segments too, those
//! behind it in the text as well, and each query head puts the segments where it wants them: its own nearest, before it the one that it
//! looks at most by queries and keys without positions, and so on. A token of the suffix does the same with all segments. What comes out
//! is the same for every order of the segments, but for rounding.
//!
//! Source: Wang, Zhang, Li, Zhang, Liu, Cotterell, Han, Ji 2024, "Eliminating Position Bias of Language Models: A Mechanistic Approach", arXiv
//! 2407.01100. As in the authors' code the importance of a segment is the mean attention to its tokens, summed over the query tokens of a segment;
//! each token of the suffix ranks by itself. Positions may be rotary, slopes (ALiBi) or none: whatever depends on where a key is put.
//! Learned positions are added to the embeddings, before anybody can put a segment anywhere, and are refused. Sliding windows are counted in
//! the positions that a head gives. Nothing is kept from token to token: a continuation runs the whole text again for each.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::forward::{self, Tap, rotated};
use super::progress::Progress;
use super::rows::Rows;
use super::{check_prompts, check_room};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind};
use crate::model::Model;
use crate::nn::attention::Shape;
use crate::nn::embed::unembed;
use crate::nn::host::{tensor, to_host};
use crate::nn::rope;
use crate::spec::{ModelSpec, Position};

/// Where the segments of a prompt are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    /// Tokens before the first.
    pub prefix: usize,
    /// Tokens of each, one after another; what follows is the suffix.
    pub lengths: Vec<usize>,
}

impl Segments {
    /// The positions of a segment in the prompt as it stands.
    pub fn positions(&self, segment: usize) -> Range<usize> {
        let start = self.prefix + self.lengths[..segment].iter().sum::<usize>();
        start..start + self.lengths[segment]
    }

    /// Where the suffix begins.
    pub fn end(&self) -> usize {
        self.prefix + self.lengths.iter().sum::<usize>()
    }

    /// The prompt with its segments in another order, and where they are then.
    pub fn ordered(&self, tokens: &[u32], order: &[usize]) -> (Vec<u32>, Segments) {
        let mut out = tokens[..self.prefix].to_vec();
        for &segment in order {
            out.extend_from_slice(&tokens[self.positions(segment)]);
        }
        out.extend_from_slice(&tokens[self.end()..]);
        let lengths = order.iter().map(|&segment| self.lengths[segment]);
        let segments = Segments {
            prefix: self.prefix,
            lengths: lengths.collect(),
        };
        (out, segments)
    }

    /// # Errors
    /// [`Error::Invalid`] for an empty segment, or where no token of the suffix is left.
    fn check(&self, length: usize) -> Result<()> {
        if self.lengths.is_empty() || self.lengths.contains(&0) {
            return Err(Error::invalid(
                "each segment needs a token, and there must be one; write what the prompt is made of",
            ));
        }
        if self.end() >= length {
            return Err(Error::invalid(format!(
                "the segments end at token {}, and the prompt has {length}; a suffix must follow them, from which the model goes on",
                self.end()
            )));
        }
        Ok(())
    }
}

/// Refuses a model whose positions cannot be given by each head.
/// # Errors
/// [`Error::Invalid`] naming the family and why.
pub fn check_pine(spec: &ModelSpec) -> Result<()> {
    spec.check_decoder("PINE")?;
    if spec.position == Position::Learned {
        return Err(Error::invalid(format!(
            "family `{}` adds learned positions to the embeddings, so no head can put a segment elsewhere; PINE needs rotary positions, slopes \
             (ALiBi), or none",
            spec.family
        )));
    }
    Ok(())
}

/// The logits at positions from `from` on, which must be in the suffix.
/// # Shapes
/// f32, `[tokens - from, d_vocab]`.
/// # Errors
/// [`check_pine`]; bad prompts and segments; [`Error::NotFiniteLogits`].
pub fn pine_logits(
    model: &Model,
    tokens: &[u32],
    segments: &Segments,
    from: usize,
) -> Result<Tensor> {
    check_pine(&model.spec)?;
    let length = check_prompts(model, &[tokens.to_vec()])?;
    segments.check(length)?;
    if !(segments.end()..length).contains(&from) {
        return Err(Error::invalid(format!(
            "logits are read in the suffix, at tokens {} to {}, not from {from} on",
            segments.end(),
            length - 1
        )));
    }
    let ropes = rope::Tables::new(&model.spec, length);
    let mut tap = PineTap {
        model,
        ropes: &ropes,
        plan: Plan::new(tokens, segments),
        qkv: [None, None, None],
    };
    let rows = Rows::whole_as(&[0], length);
    let x = forward::embed(model, tokens, &rows, &mut tap)?;
    let mut stream = forward::Stream { rows, x: Some(x) };
    for layer in 0..model.spec.n_layers {
        stream = forward::block(model, layer, &ropes, stream, &mut tap)?;
    }
    let x = stream.x.expect("a whole run has rows");
    let x = x.narrow(0, from, length - from)?.contiguous()?;
    let normed = forward::final_norm(model, &x, &Rows::whole_as(&[0], length - from), &mut tap)?;
    let logits = forward::as_logits(unembed(&model.spec, &model.weights, &normed)?)?;
    if to_host(&logits)?.iter().any(|x| x.is_nan()) {
        return Err(Error::NotFiniteLogits {
            index: 0,
            hook: "the run without order".into(),
        });
    }
    Ok(logits)
}

/// The most probable continuation, up to `max_tokens` or a token of `stop`, which is then the last.
/// # Errors
/// Those of [`pine_logits`], and [`Error::NoRoom`].
pub fn pine_greedy(
    model: &Model,
    tokens: &[u32],
    segments: &Segments,
    max_tokens: usize,
    stop: &[u32],
    progress: &dyn Progress,
) -> Result<Vec<u32>> {
    check_room(&model.spec, tokens.len(), max_tokens)?;
    let mut text = tokens.to_vec();
    progress.start("generating", max_tokens as u64);
    while text.len() < tokens.len() + max_tokens {
        if progress.cancelled() {
            let kept = "a generation that is cut short is not kept".into();
            return Err(Error::Interrupted { kept });
        }
        let logits = pine_logits(model, &text, segments, text.len() - 1)?;
        let token = logits.argmax(1)?.to_vec1::<u32>()?[0];
        text.push(token);
        progress.advance(1);
        if stop.contains(&token) {
            break;
        }
    }
    progress.finish();
    Ok(text.split_off(tokens.len()))
}

/// What of the prompt decides where heads put segments.
struct Plan {
    segments: Segments,
    /// Segments by their tokens: whatever is summed over segments goes this way, and equals are told apart by it, so that no order
    /// of the prompt shows in rounding.
    by_content: Vec<usize>,
    /// The rank of each segment in that order.
    content_rank: Vec<usize>,
    length: usize,
}

impl Plan {
    fn new(tokens: &[u32], segments: &Segments) -> Self {
        let mut by_content: Vec<usize> = (0..segments.lengths.len()).collect();
        by_content.sort_by_key(|&segment| &tokens[segments.positions(segment)]);
        let mut content_rank = vec![0; by_content.len()];
        for (rank, &segment) in by_content.iter().enumerate() {
            content_rank[segment] = rank;
        }
        Plan {
            segments: segments.clone(),
            by_content,
            content_rank,
            length: tokens.len(),
        }
    }

    /// The segment that a position is in.
    fn segment_of(&self, pos: usize) -> Option<usize> {
        (0..self.segments.lengths.len()).find(|&one| self.segments.positions(one).contains(&pos))
    }

    /// Where the token at a position stands for its own queries.
    fn query_position(&self, pos: usize) -> usize {
        match self.segment_of(pos) {
            None => pos,
            Some(own) => {
                let place = self.segments.positions(own);
                self.segments.end() - place.len() + (pos - place.start)
            }
        }
    }

    /// Where each segment begins, for the queries of segment `own` or of one token of the suffix.
    fn starts(&self, own: Option<usize>, importance: &[f64]) -> Vec<usize> {
        let mut order: Vec<usize> = (self.by_content.iter().copied())
            .filter(|&segment| Some(segment) != own)
            .collect();
        order.sort_by(|&a, &b| match importance[b].total_cmp(&importance[a]) {
            Ordering::Equal => self.content_rank[a].cmp(&self.content_rank[b]),
            other => other,
        });
        let mut starts = vec![0; importance.len()];
        let mut end = self.segments.end();
        for segment in own.into_iter().chain(order) {
            end -= self.segments.lengths[segment];
            starts[segment] = end;
        }
        starts
    }
}

/// The tap of such a run: what attention mixes is replaced.
struct PineTap<'a> {
    model: &'a Model,
    ropes: &'a rope::Tables,
    plan: Plan,
    qkv: [Option<Tensor>; 3],
}

impl Tap for PineTap<'_> {
    fn wants(&self, _: Hook) -> bool {
        false
    }

    fn edits(&self, _: Hook) -> bool {
        false
    }

    fn at(&mut self, hook: Hook, t: Tensor, _: &Rows) -> Result<Tensor> {
        let letter = match hook.kind {
            Kind::Q => 0,
            Kind::K => 1,
            Kind::V => 2,
            Kind::Z => {
                let [q, k, v] =
                    std::mem::take(&mut self.qkv).map(|t| t.expect("z follows q, k, v"));
                let z = self.layer(hook.layer.unwrap_or(0), &q, &k, &v)?;
                return Ok(z.to_dtype(t.dtype())?.to_device(t.device())?);
            }
            _ => return Ok(t),
        };
        self.qkv[letter] = Some(t.clone());
        Ok(t)
    }
}

impl PineTap<'_> {
    /// What the heads of a layer mix.
    /// # Shapes
    /// `q [tokens, n_heads, d_head]`, `k`, `v [tokens, n_kv_heads, d_head]`, before rotation; gives the shape of `q`.
    fn layer(&self, layer: usize, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let (spec, weights) = (&self.model.spec, &self.model.weights.blocks[layer]);
        let cpu = |t: &Tensor| -> Result<Tensor> {
            let t = t.to_dtype(candle_core::DType::F32)?;
            Ok(t.to_device(&candle_core::Device::Cpu)?.contiguous()?)
        };
        // Through the norms of queries and keys; without a table nothing rotates.
        let none = rope::Tables::default();
        let positions: Vec<u32> = (0..self.plan.length as u32).collect();
        let q = cpu(&rotated(
            spec,
            layer,
            q,
            weights.q_norm.as_ref(),
            &positions,
            &none,
        )?)?;
        let k = cpu(&rotated(
            spec,
            layer,
            k,
            weights.k_norm.as_ref(),
            &positions,
            &none,
        )?)?;
        let v = cpu(v)?;
        let attention = Attention {
            plan: &self.plan,
            shape: Shape::of(spec, layer, self.plan.length),
            spec,
            table: self.ropes.of(layer),
            q: to_host(&q)?,
            rot_q: self.turned_queries(layer, &q)?,
            v: to_host(&v)?,
            raw_k: to_host(&k)?,
            k,
        };
        let heads: Vec<usize> = (0..spec.n_heads).collect();
        let mixed: Vec<Vec<f32>> =
            (heads.into_par_iter().map(|head| attention.head(head))).collect::<Result<_>>()?;
        let (n, d) = (self.plan.length, spec.d_head);
        let mut z = vec![0.0; n * spec.n_heads * d];
        for (head, mixed) in mixed.iter().enumerate() {
            for (row, values) in mixed.chunks_exact(d).enumerate() {
                let at = (row * spec.n_heads + head) * d;
                z[at..at + d].copy_from_slice(values);
            }
        }
        tensor(z, (n, spec.n_heads, d))
    }

    /// Queries, each turned to its own position.
    fn turned_queries(&self, layer: usize, q: &Tensor) -> Result<Vec<f32>> {
        let Some(table) = self.ropes.of(layer) else {
            return to_host(q);
        };
        let positions = (0..self.plan.length).map(|pos| self.plan.query_position(pos) as u32);
        to_host(&rope::forward(q, &positions.collect::<Vec<_>>(), table)?)
    }
}

/// One layer's attention, head by head.
struct Attention<'a> {
    plan: &'a Plan,
    shape: Shape,
    spec: &'a ModelSpec,
    table: Option<&'a rope::Table>,
    /// `[tokens, n_heads, d_head]`, without rotation and with.
    q: Vec<f32>,
    rot_q: Vec<f32>,
    /// `[tokens, n_kv_heads, d_head]`
    raw_k: Vec<f32>,
    k: Tensor,
    v: Vec<f32>,
}

/// Keys of a head as they stand at the position that their part of the prompt was put at.
struct TurnedKeys<'a> {
    attention: &'a Attention<'a>,
    group: usize,
    /// By first token and position.
    blocks: HashMap<(usize, usize), Vec<f32>>,
}

impl Attention<'_> {
    /// What one head mixes, `[tokens, d_head]`.
    fn head(&self, head: usize) -> Result<Vec<f32>> {
        let group = head * self.shape.n_kv_heads / self.shape.n_heads;
        let mut keys = TurnedKeys {
            attention: self,
            group,
            blocks: HashMap::new(),
        };
        let (plan, segments) = (self.plan, &self.plan.segments);
        let end = segments.end();
        let mut z = Vec::with_capacity(plan.length * self.shape.d_head);
        for pos in 0..segments.prefix {
            z.extend(self.mix(head, pos, &[(0..pos + 1, 0)], &mut keys)?);
        }
        for own in 0..segments.lengths.len() {
            let mut importance = vec![0.0; segments.lengths.len()];
            for pos in segments.positions(own) {
                self.add_importance(head, group, pos, Some(own), &mut importance);
            }
            let starts = plan.starts(Some(own), &importance);
            for pos in segments.positions(own) {
                let place = segments.positions(own);
                let mut parts = self.others(Some(own), &starts);
                parts.push((place.start..pos + 1, starts[own]));
                z.extend(self.mix(head, pos, &parts, &mut keys)?);
            }
        }
        for pos in end..plan.length {
            let mut importance = vec![0.0; segments.lengths.len()];
            self.add_importance(head, group, pos, None, &mut importance);
            let mut parts = self.others(None, &plan.starts(None, &importance));
            parts.push((end..pos + 1, end));
            z.extend(self.mix(head, pos, &parts, &mut keys)?);
        }
        Ok(z)
    }

    /// The prefix and the segments but `own`, by where they are put: tokens, and the position of the first.
    fn others(&self, own: Option<usize>, starts: &[usize]) -> Vec<(Range<usize>, usize)> {
        let segments = &self.plan.segments;
        let mut parts: Vec<(Range<usize>, usize)> = (0..segments.lengths.len())
            .filter(|&segment| Some(segment) != own)
            .map(|segment| (segments.positions(segment), starts[segment]))
            .collect();
        parts.push((0..segments.prefix, 0));
        parts.sort_by_key(|(place, start)| (*start, place.len()));
        parts
    }

    /// Adds, for each segment but `own`, the mean attention from a token to its tokens, as it would be without positions.
    fn add_importance(
        &self,
        head: usize,
        group: usize,
        pos: usize,
        own: Option<usize>,
        importance: &mut [f64],
    ) {
        let d = self.shape.d_head;
        let q = &self.q[(pos * self.shape.n_heads + head) * d..][..d];
        let mut scores: Vec<(usize, Vec<f32>)> = Vec::new();
        let mut max = f32::NEG_INFINITY;
        for &segment in self.plan.by_content.iter().filter(|&&one| Some(one) != own) {
            let of_token = |key: usize| {
                let k = &self.raw_k[(key * self.shape.n_kv_heads + group) * d..][..d];
                self.capped(product(q, k))
            };
            let of_segment: Vec<f32> = self
                .plan
                .segments
                .positions(segment)
                .map(of_token)
                .collect();
            max = of_segment.iter().copied().fold(max, f32::max);
            scores.push((segment, of_segment));
        }
        let sums: Vec<(usize, f64, usize)> = (scores.into_iter())
            .map(|(segment, scores)| {
                let weights = scores.iter().map(|score| f64::from(score - max).exp());
                (segment, weights.sum(), scores.len())
            })
            .collect();
        let total: f64 = sums.iter().map(|(_, sum, _)| sum).sum();
        for (segment, sum, n) in sums {
            importance[segment] += sum / total / n as f64;
        }
    }

    fn capped(&self, product: f32) -> f32 {
        let score = product * self.shape.scale;
        match self.shape.softcap {
            Some(cap) => cap * (score / cap).tanh(),
            None => score,
        }
    }

    /// What a query mixes of some parts of the prompt, which stand in the order of their positions.
    fn mix(
        &self,
        head: usize,
        pos: usize,
        parts: &[(Range<usize>, usize)],
        keys: &mut TurnedKeys<'_>,
    ) -> Result<Vec<f32>> {
        let d = self.shape.d_head;
        let own = self.plan.query_position(pos);
        let q = &self.rot_q[(pos * self.shape.n_heads + head) * d..][..d];
        let slope = match self.spec.position {
            Position::Alibi(alibi) => alibi.slope(head, self.spec.n_heads),
            _ => 0.0,
        };
        let mut scores: Vec<(usize, f32)> = Vec::new();
        for (place, start) in parts {
            let block = keys.block(place.clone(), *start)?;
            for (i, key) in place.clone().enumerate() {
                let at = start + i;
                let is_near = self.shape.window.is_none_or(|window| own - at < window);
                if is_near {
                    let score = self.capped(product(q, &block[i * d..][..d]));
                    scores.push((key, score + slope * (at as f32 - own as f32)));
                }
            }
        }
        let max = scores
            .iter()
            .map(|(_, score)| *score)
            .fold(f32::NEG_INFINITY, f32::max);
        let mut z = vec![0.0; d];
        let mut total = 0.0;
        for (key, score) in scores {
            let weight = (score - max).exp();
            total += weight;
            let v = &self.v[(key * self.shape.n_kv_heads + keys.group) * d..][..d];
            z.iter_mut().zip(v).for_each(|(z, v)| *z += weight * v);
        }
        z.iter_mut().for_each(|z| *z /= total);
        Ok(z)
    }
}

impl TurnedKeys<'_> {
    /// Keys of some tokens, the first of them at position `start`: `[tokens, d_head]`.
    fn block(&mut self, place: Range<usize>, start: usize) -> Result<&[f32]> {
        let Attention { k, table, plan, .. } = self.attention;
        // The whole part is turned, whichever of its tokens a query sees.
        let whole = match plan.segment_of(place.start) {
            Some(segment) => plan.segments.positions(segment),
            None if place.start < plan.segments.prefix => 0..plan.segments.prefix,
            None => plan.segments.end()..plan.length,
        };
        let block = match self.blocks.entry((whole.start, start)) {
            std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
            std::collections::hash_map::Entry::Vacant(free) => {
                let own = k
                    .narrow(1, self.group, 1)?
                    .narrow(0, whole.start, whole.len())?;
                let turned = match table {
                    None => own.contiguous()?,
                    Some(table) => {
                        let positions = start as u32..(start + whole.len()) as u32;
                        rope::forward(&own.contiguous()?, &positions.collect::<Vec<_>>(), table)?
                    }
                };
                free.insert(to_host(&turned)?)
            }
        };
        Ok(block)
    }
}

/// Sum of products, in eight partial sums.
fn product(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; 8];
    let (whole_a, rest_a) = a.as_chunks::<8>();
    let (whole_b, rest_b) = b.as_chunks::<8>();
    for (x, y) in whole_a.iter().zip(whole_b) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    let tail: f32 = rest_a.iter().zip(rest_b).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f32>() + tail
}
