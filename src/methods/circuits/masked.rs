//! A circuit evaluated at the cost of what is alive in it.
//!
//! Where every edge is at the reference, every reader's stream is known ([`Ground`]). A circuit changes it by what its kept sources
//! write otherwise: `x_v = x^r_v + sum of (z_u - r_u) over the kept edges u -> v`. So only nodes with a kept path to the logits are
//! computed, and of these only such as see something else than the reference; all others do what they do there. Readers of a
//! layer that see the same sources share a stream.
//!
//! Two things tie the heads of a layer together, and then all of them are computed where one is: a norm on attention's output,
//! whose scale is of their sum, and a norm over the queries or keys of all heads. The share of an output bias under such a norm
//! moves with the scale; it belongs to no edge, and every later reader sees it.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use candle_core::Tensor;
use rayon::prelude::*;

use super::ground::{Ground, input_change, matrix};
use super::streams::{At, Delta, Written};
use crate::circuit::{EdgeSet, Graph};
use crate::error::Result;
use crate::hooks::Letter;
use crate::model::Model;
use crate::nn::attention::{self, KeysValues, SegmentPlace, Shape, Slopes};
use crate::nn::host::{host, room, tensor, to_host};
use crate::nn::linear::{View, small_product};
use crate::nn::{linear, norm, rope};
use crate::run::forward::{mlp_write, rotated};
use crate::run::gradients::Nobody;
use crate::spec::{NormKind, QkNorm};

/// Circuits of one batch of pairs.
pub(super) struct Masked<'a> {
    model: &'a Model,
    ground: &'a Ground,
    graph: Graph,
    ropes: rope::Tables,
    /// Rows of streams, and the row of each prompt's answer.
    n_rows: usize,
    answers: Vec<usize>,
    positions: Vec<u32>,
    every_position: Vec<u32>,
    input: Option<Arc<Delta>>,
    /// What each source writes otherwise although it sees the reference, once somebody asks.
    idle: Vec<OnceLock<Option<Arc<Delta>>>>,
}

/// What came of a circuit: the next one takes over what it shares with it.
pub(super) struct State {
    edges: EdgeSet,
    /// Whether a source was looked at; what does not reach the logits was not.
    known: Vec<bool>,
    written: Written,
    /// By layer, how the share of the output bias moved.
    shifts: Vec<Option<Arc<Delta>>>,
    /// The final stream at the answers, `[batch, d_model]`.
    pub answers: Vec<f32>,
}

/// The queries, keys or values of some heads: for each the head, and `[at, d_head]`.
type Letters = Vec<(usize, Vec<f32>)>;

impl<'a> Masked<'a> {
    pub fn new(model: &'a Model, ground: &'a Ground) -> Result<Self> {
        let graph = Graph::new(&model.spec);
        let rows = &ground.rows;
        let answers = rows.segments.iter();
        let change = input_change(ground)?;
        let input = Delta {
            data: change,
            at_answers: false,
        };
        Ok(Masked {
            model,
            ground,
            graph,
            ropes: rope::Tables::new(&model.spec, rows.length),
            n_rows: rows.total,
            answers: answers.map(|s| s.start + s.positions.len() - 1).collect(),
            positions: rows.positions(),
            every_position: (0..rows.length as u32).collect(),
            input: (input.data.iter().any(|&x| x != 0.0)).then(|| Arc::new(input)),
            idle: (0..graph.n_src()).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Runs a circuit, taking over from another one what is the same in both.
    pub fn run(&self, edges: &EdgeSet, from: Option<&State>) -> Result<State> {
        let n_layers = self.graph.n_layers;
        let mut state = State {
            edges: edges.clone(),
            known: self.needed(edges),
            written: Written::new(self.graph.n_src(), self.n_rows * self.graph.d_model),
            shifts: vec![None; n_layers],
            answers: Vec::new(),
        };
        state.written.of[0] = self.input.clone();
        state.written.add_to_total(0);
        for layer in 0..n_layers {
            self.attention(layer, &mut state, from)?;
            let heads = self.heads(layer);
            if self.graph.parallel {
                self.mlp(layer, &mut state, from)?;
                heads.for_each(|row| state.written.add_to_total(row));
            } else {
                heads.for_each(|row| state.written.add_to_total(row));
                self.mlp(layer, &mut state, from)?;
            }
            if self.graph.has_mlp {
                state.written.add_to_total(self.heads(layer).end);
            }
        }
        let sources = state.sources(self.graph.n_dst() - 1);
        let at = At::Answers(&self.answers);
        // The ending is one row a prompt already.
        let mut all = vec![0.0; self.n_rows * self.graph.d_model];
        let d = self.graph.d_model;
        for (i, &row) in self.answers.iter().enumerate() {
            all[row * d..][..d].copy_from_slice(&self.ground.ending[i * d..][..d]);
        }
        let shifts = state.shifts_before(n_layers);
        state.answers = state.written.streams(&all, at, &[&sources], &shifts, d);
        Ok(state)
    }

    /// The rows of a layer's heads.
    fn heads(&self, layer: usize) -> Range<usize> {
        let width = self.graph.n_heads + usize::from(self.graph.has_mlp);
        1 + layer * width..1 + layer * width + self.graph.n_heads
    }

    fn column(&self, layer: usize, letter: Letter, head: usize) -> usize {
        let width = 3 * self.graph.n_heads + usize::from(self.graph.has_mlp);
        layer * width + letter as usize * self.graph.n_heads + head
    }

    /// Whether the heads of a layer are computed together or not at all.
    fn is_tied(&self, layer: usize) -> bool {
        let spec = &self.model.spec;
        self.model.weights.blocks[layer].ln1_post.is_some() || spec.qk_norm == QkNorm::FullWidth
    }

    fn is_last(&self, layer: usize) -> bool {
        layer + 1 == self.graph.n_layers
    }

    /// The rows at which what a layer writes is looked at.
    fn at(&self, layer: usize) -> At<'_> {
        match self.is_last(layer) {
            true => At::Answers(&self.answers),
            false => At::Every(self.n_rows),
        }
    }

    /// For each row, whether a kept path leads from it to the logits, or it is tied to such a head.
    fn needed(&self, edges: &EdgeSet) -> Vec<bool> {
        let mut needed = vec![false; self.graph.n_src()];
        let per_layer = 3 * self.graph.n_heads + usize::from(self.graph.has_mlp);
        for column in (0..self.graph.n_dst()).rev() {
            let reader = self.graph.reader_row(column);
            let (layer, place) = (column / per_layer, column % per_layer);
            let is_last_of_heads = place + 1 == 3 * self.graph.n_heads;
            if reader.is_some() && is_last_of_heads && self.is_tied(layer) {
                let heads = self.heads(layer);
                // The share of the bias is read whether or not a head is.
                let weights = &self.model.weights.blocks[layer];
                let moves_bias = weights.ln1_post.is_some() && weights.b_o.is_some();
                let any = moves_bias || needed[heads.clone()].contains(&true);
                needed[heads].fill(any);
            }
            if reader.is_none_or(|row| needed[row]) {
                for row in edges.sources(column) {
                    needed[row] = true;
                }
            }
        }
        needed
    }

    /// Computes the heads of a layer that are needed and see something.
    fn attention(&self, layer: usize, state: &mut State, from: Option<&State>) -> Result<()> {
        let first = self.heads(layer).start;
        let needed: Vec<usize> = self.heads(layer).filter(|&row| state.known[row]).collect();
        if needed.is_empty() {
            return Ok(());
        }
        let columns =
            |row: usize| Letter::ALL.map(|letter| self.column(layer, letter, row - first));
        let shifts = state.shifts_before(layer);
        let sees = |row: &usize| {
            let mut columns = columns(*row).into_iter();
            !shifts.is_empty() || columns.any(|column| !state.sources(column).is_empty())
        };
        let same = |row: &usize| {
            from.filter(|from| from.known[*row] && state.same_shifts(from, layer))
                .is_some_and(|from| columns(*row).iter().all(|&column| state.same(from, column)))
        };
        let (mut seeing, mut idle): (Vec<usize>, Vec<usize>) = needed.iter().partition(|r| sees(r));
        let tied = self.is_tied(layer);
        if tied && !seeing.is_empty() {
            seeing = self.heads(layer).collect();
            idle.clear();
        }
        let mut taken = Vec::new();
        match tied {
            true if seeing.iter().all(same) => taken = std::mem::take(&mut seeing),
            true => {}
            false => (taken, seeing) = seeing.into_iter().partition(|row| same(row)),
        }
        for row in idle {
            state.written.of[row] = self.idle(row)?;
        }
        if let Some(from) = from {
            for row in taken {
                state.written.of[row] = from.written.of[row].clone();
                state.shifts[layer] = from.shifts[layer].clone();
            }
        }
        if seeing.is_empty() {
            return Ok(());
        }
        let heads: Vec<usize> = seeing.iter().map(|row| row - first).collect();
        let z = self.z(layer, &heads, state, &shifts)?;
        let (deltas, shift) = self.written_by_heads(layer, &heads, &z)?;
        for (row, delta) in seeing.into_iter().zip(deltas) {
            state.written.of[row] = Some(Arc::new(delta));
        }
        state.shifts[layer] = shift.map(Arc::new);
        Ok(())
    }

    /// z of some heads.
    /// # Shapes
    /// `[at, heads, d_head]`
    fn z(
        &self,
        layer: usize,
        heads: &[usize],
        state: &mut State,
        shifts: &[Arc<Delta>],
    ) -> Result<Tensor> {
        let (spec, weights) = (&self.model.spec, &self.model.weights.blocks[layer]);
        let (ground, d) = (&self.ground.layers[layer], spec.d_head);
        let (at, every) = (self.at(layer), At::Every(self.n_rows));
        // The slopes of ALiBi go by the head's number, so there all heads of the layer are computed.
        let alibi = Slopes::new(spec, 0);
        let asked = heads;
        let all: Vec<usize> = (0..spec.n_heads).collect();
        let heads = if alibi.is_some() { &all[..] } else { heads };
        let mut read = |letters: &[Letter], at| self.read(layer, letters, heads, at, state, shifts);
        let mut letters = if self.is_last(layer) {
            let mut letters = read(&[Letter::Q], at)?;
            letters.extend(read(&[Letter::K, Letter::V], every)?);
            letters
        } else {
            read(&Letter::ALL, every)?
        }
        .into_iter();
        let mut next = || letters.next().expect("three letters");
        let rotate = |own: Letters, w: &Option<Tensor>, at: At<'_>| -> Result<Letters> {
            if own.is_empty() {
                return Ok(own);
            }
            let positions: Vec<u32> = (0..at.len()).map(|i| self.positions[at.row(i)]).collect();
            let x = beside_each_other(&own, at.len(), d)?;
            let x = to_host(&rotated(
                spec,
                layer,
                &x,
                w.as_ref(),
                &positions,
                &self.ropes,
            )?)?;
            let n = own.len();
            let rotated = own.into_iter().enumerate().map(|(i, (head, mut data))| {
                for (row, data) in data.chunks_exact_mut(d).enumerate() {
                    data.copy_from_slice(&x[(row * n + i) * d..][..d]);
                }
                (head, data)
            });
            Ok(rotated.collect())
        };
        let q = rotate(next(), &weights.q_norm, at)?;
        let k = rotate(next(), &weights.k_norm, every)?;
        let v = next();

        let reference = to_host(&ground.q)?; // [rows, n_heads, d_head]
        let mut queries = room(at.len() * heads.len() * d);
        for (i, out) in queries.chunks_exact_mut(heads.len() * d).enumerate() {
            for (out, head) in out.chunks_exact_mut(d).zip(heads) {
                let at_reference = (at.row(i) * spec.n_heads + head) * d;
                out.copy_from_slice(&reference[at_reference..][..d]);
            }
        }
        put(&mut queries, &q, heads, |i| i, at.len(), d);
        let whole = self.ground.rows.in_whole();
        let keys_or_values = |reference: &Tensor, own: &Letters| -> Result<Tensor> {
            let n_own = reference.dim(1)?;
            let group = spec.n_heads / n_own;
            let (all, n) = (host(reference)?, reference.dim(0)?);
            let mut out = room(n * heads.len() * d);
            for (i, out) in out.chunks_exact_mut(heads.len() * d).enumerate() {
                for (out, head) in out.chunks_exact_mut(d).zip(heads) {
                    out.copy_from_slice(&all[(i * n_own + head / group) * d..][..d]);
                }
            }
            put(&mut out, own, heads, |i| whole[i] as usize, whole.len(), d);
            tensor(out, (n, heads.len(), d))
        };
        let (keys, values) = (
            keys_or_values(&ground.k, &k)?,
            keys_or_values(&ground.v, &v)?,
        );
        let n = heads.len();
        let shape = Shape {
            n_heads: n,
            key_heads: n,
            value_heads: n,
            n_kv_heads: n,
            d_head: d,
            scale: spec.attn_scale[layer],
            softcap: spec.attn_softcap,
            window: spec.windows[layer],
            alibi,
            causal: spec.is_causal(),
            length: self.ground.rows.length,
        };
        let last = [self.ground.rows.length as u32 - 1];
        let segments: Vec<SegmentPlace<'_>> = (self.ground.rows.segments.iter().enumerate())
            .map(|(i, segment)| SegmentPlace {
                query_start: if self.is_last(layer) {
                    i
                } else {
                    segment.start
                },
                query_positions: if self.is_last(layer) {
                    &last
                } else {
                    &segment.positions
                },
                key_start: i * shape.length,
                key_positions: &self.every_position,
                example: i,
            })
            .collect();
        let sources = KeysValues {
            k: &keys,
            v: &values,
            base: None,
        };
        let z = attention::forward(
            &tensor(queries, (at.len(), n, d))?,
            sources,
            &segments,
            &shape,
        )?;
        if alibi.is_none() {
            return Ok(z);
        }
        let asked: Vec<u32> = asked.iter().map(|&head| head as u32).collect();
        Ok(z.index_select(&Tensor::new(asked, z.device())?, 1)?)
    }

    /// Some letters of some heads, before their norm and rotation: those that see something else than the reference.
    fn read(
        &self,
        layer: usize,
        letters: &[Letter],
        heads: &[usize],
        at: At<'_>,
        state: &mut State,
        shifts: &[Arc<Delta>],
    ) -> Result<Vec<Letters>> {
        let (spec, weights) = (&self.model.spec, &self.model.weights.blocks[layer]);
        let (d, d_model) = (spec.d_head, spec.d_model);
        let always = self.is_tied(layer) || !shifts.is_empty();
        // Readers that see the same share a stream.
        let mut streams: Vec<Vec<usize>> = Vec::new();
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut asked = Vec::new();
        for (index, &letter) in letters.iter().enumerate() {
            for &head in heads {
                let sources = state.sources(self.column(layer, letter, head));
                if sources.is_empty() && !always {
                    continue;
                }
                let stream = *known.entry(sources).or_insert_with_key(|sources| {
                    streams.push(sources.clone());
                    streams.len() - 1
                });
                asked.push((index, letter, head, stream));
            }
        }
        let mut found: Vec<Letters> = vec![Vec::new(); letters.len()];
        if asked.is_empty() {
            return Ok(found);
        }
        let lists: Vec<&[usize]> = streams.iter().map(Vec::as_slice).collect();
        let base = &self.ground.layers[layer].attn_in;
        let x = matrix(
            state.written.streams(base, at, &lists, shifts, d_model),
            d_model,
        )?;
        let x = match &weights.ln1 {
            Some(w) => norm::forward(&x, w, spec.norm, spec.norm_eps)?,
            None => x,
        };
        let (x, w) = (host(&x)?, host(&weights.w_qkv)?);
        let b = weights.b_qkv.as_ref().map(host).transpose()?;
        let width = (spec.n_heads + 2 * spec.n_kv_heads) * d;
        let one = |&(index, letter, head, stream): &(usize, Letter, usize, usize)| {
            let shared = head / spec.group();
            let start = d * match letter {
                Letter::Q => head,
                Letter::K => spec.n_heads + shared,
                Letter::V => spec.n_heads + spec.n_kv_heads + shared,
            };
            let mut y = room(at.len() * d);
            if let Some(b) = &b {
                y.chunks_exact_mut(d)
                    .for_each(|row| row.copy_from_slice(&b[start..][..d]));
            }
            let of_stream = View::rows(lists.len() * d_model).from(stream * d_model);
            small_product(
                (&mut y, View::rows(d)),
                (&x, of_stream),
                (&w, View::rows(width).from(start)),
                [at.len(), d_model, d],
                1.0,
                b.is_some(),
            );
            (index, head, y)
        };
        for (index, head, y) in asked.par_iter().map(one).collect::<Vec<_>>() {
            found[index].push((head, y));
        }
        Ok(found)
    }

    /// What heads write less what they write at the reference, and how the bias's share moved, from their z (of all heads
    /// where there is a norm on their sum).
    fn written_by_heads(
        &self,
        layer: usize,
        heads: &[usize],
        z: &Tensor,
    ) -> Result<(Vec<Delta>, Option<Delta>)> {
        let (spec, weights) = (&self.model.spec, &self.model.weights.blocks[layer]);
        let (ground, at) = (&self.ground.layers[layer], self.at(layer));
        let (n, d) = (heads.len(), spec.d_head);
        let scale = match &weights.ln1_post {
            Some(_) => {
                let all = z.reshape((at.len(), n * d))?;
                let sum = linear::forward(&all, &weights.w_o, weights.b_o.as_ref())?;
                Some(to_host(&norm::scale(&sum, spec.norm, spec.norm_eps)?)?)
            }
            None => None,
        };
        let mut share = to_host(z)?; // [at, heads, d_head]
        for (i, row) in share.chunks_exact_mut(n * d).enumerate() {
            for (own, head) in row.chunks_exact_mut(d).zip(heads) {
                let reference = (at.row(i) * spec.n_heads + head) * d;
                for (own, reference) in own.iter_mut().zip(&ground.z[reference..][..d]) {
                    *own = scale.as_ref().map_or(*own, |scale| *own / scale[i]) - reference;
                }
            }
        }
        let w_o = host(&weights.w_o)?;
        let one = |(i, &head): (usize, &usize)| {
            let view = View::rows(n * d).from(i * d);
            self.written_by_head(layer, head, (&share, view), at, &w_o)
        };
        let deltas = heads
            .par_iter()
            .enumerate()
            .map(one)
            .collect::<Result<_>>()?;
        let shift = match (&scale, &ground.scale, &weights.b_o) {
            (Some(scale), Some(reference), Some(bias)) => {
                let share = self.through_post_norm(layer, to_host(bias)?)?;
                let mut data = Vec::with_capacity(at.len() * spec.d_model);
                for (i, scale) in scale.iter().enumerate() {
                    let moved = 1.0 / scale - 1.0 / reference[at.row(i)];
                    data.extend(share.iter().map(|share| share * moved));
                }
                Some(self.delta(layer, data))
            }
            _ => None,
        };
        Ok((deltas, shift))
    }

    fn written_by_head(
        &self,
        layer: usize,
        head: usize,
        (share, view): (&[f32], View),
        at: At<'_>,
        w_o: &[f32],
    ) -> Result<Delta> {
        let spec = &self.model.spec;
        let (d, d_model) = (spec.d_head, spec.d_model);
        let mut out = room(at.len() * d_model);
        small_product(
            (&mut out, View::rows(d_model)),
            (share, view),
            (w_o, View::rows(d_model).from(head * d * d_model)),
            [at.len(), d, d_model],
            1.0,
            false,
        );
        Ok(Delta {
            data: self.through_post_norm(layer, out)?,
            at_answers: matches!(at, At::Answers(_)),
        })
    }

    /// What a share of attention's sum becomes on its way to the stream, but for the division by the norm's scale.
    fn through_post_norm(&self, layer: usize, mut shares: Vec<f32>) -> Result<Vec<f32>> {
        let spec = &self.model.spec;
        if let Some(post) = &self.model.weights.blocks[layer].ln1_post {
            let w = host(&post.w)?;
            for row in shares.chunks_exact_mut(spec.d_model) {
                let mean = match spec.norm {
                    NormKind::Layer => row.iter().sum::<f32>() / spec.d_model as f32,
                    NormKind::Rms => 0.0,
                };
                row.iter_mut()
                    .zip(w.iter())
                    .for_each(|(x, w)| *x = (*x - mean) * w);
            }
        }
        if let Some(factor) = spec.residual_multiplier {
            shares.iter_mut().for_each(|x| *x *= factor);
        }
        Ok(shares)
    }

    fn delta(&self, layer: usize, data: Vec<f32>) -> Delta {
        Delta {
            data,
            at_answers: self.is_last(layer),
        }
    }

    /// Computes the MLP of a layer if it is needed and sees something.
    fn mlp(&self, layer: usize, state: &mut State, from: Option<&State>) -> Result<()> {
        let row = self.heads(layer).end;
        if !self.graph.has_mlp || !state.known[row] {
            return Ok(());
        }
        let column = self.column(layer, Letter::Q, 0) + 3 * self.graph.n_heads;
        let before = layer + usize::from(!self.graph.parallel);
        if let Some(from) = from
            && from.known[row]
            && state.same(from, column)
            && state.same_shifts(from, before)
        {
            state.written.of[row] = from.written.of[row].clone();
            return Ok(());
        }
        let (sources, shifts) = (state.sources(column), state.shifts_before(before));
        state.written.of[row] = if sources.is_empty() && shifts.is_empty() {
            self.idle(row)?
        } else {
            let (ground, at, d) = (
                &self.ground.layers[layer],
                self.at(layer),
                self.graph.d_model,
            );
            let x = state
                .written
                .streams(&ground.mlp_in, at, &[&sources], &shifts, d);
            let rows = &self.ground.rows;
            let out = mlp_write(self.model, layer, matrix(x, d)?, rows, &mut Nobody)?;
            let mut data = to_host(&out)?;
            let reference = at.of(&ground.mlp, d);
            data.iter_mut()
                .zip(&reference)
                .for_each(|(own, at)| *own -= at);
            Some(Arc::new(self.delta(layer, data)))
        };
        Ok(())
    }

    /// What a source writes less the reference where it sees the reference itself.
    fn idle(&self, row: usize) -> Result<Option<Arc<Delta>>> {
        if let Some(known) = self.idle[row].get() {
            return Ok(known.clone());
        }
        let width = self.graph.n_heads + usize::from(self.graph.has_mlp);
        let (layer, head) = ((row - 1) / width, (row - 1) % width);
        let delta = match &self.ground.layers[layer].idle {
            None => None,
            Some(idle) if head == self.graph.n_heads => Some(Delta {
                data: idle.mlp.clone(),
                at_answers: false,
            }),
            Some(idle) => {
                let spec = &self.model.spec;
                let view = View::rows(spec.n_heads * spec.d_head).from(head * spec.d_head);
                let w_o = host(&self.model.weights.blocks[layer].w_o)?;
                let every = At::Every(self.n_rows);
                Some(self.written_by_head(layer, head, (&idle.z, view), every, &w_o)?)
            }
        };
        Ok(self.idle[row].get_or_init(|| delta.map(Arc::new)).clone())
    }
}

impl State {
    /// The kept sources of a column that write something.
    fn sources(&self, column: usize) -> Vec<usize> {
        let mut sources = self.edges.sources(column);
        sources.retain(|&row| self.written.of[row].is_some());
        sources
    }

    /// Whether a column sees in both states the same.
    fn same(&self, from: &State, column: usize) -> bool {
        let sources = self.sources(column);
        let equal = |row: &usize| match (&self.written.of[*row], &from.written.of[*row]) {
            (Some(own), Some(theirs)) => Arc::ptr_eq(own, theirs),
            _ => false,
        };
        sources == from.sources(column) && sources.iter().all(equal)
    }

    fn shifts_before(&self, layer: usize) -> Vec<Arc<Delta>> {
        self.shifts[..layer].iter().flatten().cloned().collect()
    }

    fn same_shifts(&self, from: &State, layer: usize) -> bool {
        let (own, theirs) = (self.shifts_before(layer), from.shifts_before(layer));
        own.len() == theirs.len() && own.iter().zip(&theirs).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

/// Heads beside each other, `[rows, heads, d_head]`.
fn beside_each_other(own: &Letters, rows: usize, d: usize) -> Result<Tensor> {
    let mut data = Vec::with_capacity(rows * own.len() * d);
    for row in 0..rows {
        for (_, of_head) in own {
            data.extend_from_slice(&of_head[row * d..][..d]);
        }
    }
    tensor(data, (rows, own.len(), d))
}

/// Writes heads into their columns of `[.., heads, d_head]`; the `i`-th row goes to row `to(i)`.
fn put(
    out: &mut [f32],
    own: &Letters,
    heads: &[usize],
    to: impl Fn(usize) -> usize,
    rows: usize,
    d: usize,
) {
    for (head, data) in own {
        let place = heads
            .iter()
            .position(|h| h == head)
            .expect("a head that was asked for");
        for row in 0..rows {
            let start = (to(row) * heads.len() + place) * d;
            out[start..][..d].copy_from_slice(&data[row * d..][..d]);
        }
    }
}
