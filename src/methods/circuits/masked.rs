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

mod attention;

use std::sync::{Arc, OnceLock};

use super::ground::{Ground, input_change, matrix};
use super::limits::Limits;
use super::streams::{At, Delta, Written};
use super::writes;
use crate::circuit::{EdgeSet, Graph};
use crate::error::Result;
use crate::hooks::{Letter, Node};
use crate::model::Model;
use crate::nn::host::{host, to_host};
use crate::nn::linear::View;
use crate::nn::rope;
use crate::run::forward::mlp_write;
use crate::run::gradients::Nobody;
use crate::spec::QkNorm;

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
    limits: Arc<Limits>,
    /// Whether a source was looked at; what does not reach the logits was not.
    known: Vec<bool>,
    written: Written,
    /// By layer, how the share of the output bias moved.
    shifts: Vec<Option<Arc<Delta>>>,
    /// The final stream at the answers, `[batch, d_model]`.
    pub answers: Vec<f32>,
}

impl<'a> Masked<'a> {
    pub fn new(model: &'a Model, ground: &'a Ground) -> Result<Self> {
        let graph = Graph::new(&model.spec);
        let rows = &ground.rows;
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
            answers: rows.last_rows(),
            positions: rows.positions(),
            every_position: (0..rows.length as u32).collect(),
            input: (input.data.iter().any(|&x| x != 0.0)).then(|| Arc::new(input)),
            idle: (0..graph.n_src()).map(|_| OnceLock::new()).collect(),
        })
    }

    /// Runs a circuit, taking over from another one what is the same in both.
    pub fn run(
        &self,
        edges: &EdgeSet,
        limits: &Arc<Limits>,
        from: Option<&State>,
    ) -> Result<State> {
        let from = from.filter(|from| from.limits == *limits);
        let n_layers = self.graph.n_layers;
        let mut state = State {
            edges: edges.clone(),
            limits: limits.clone(),
            known: self.needed(edges),
            written: Written::new(self.graph.n_src(), self.n_rows * self.graph.d_model),
            shifts: vec![None; n_layers],
            answers: Vec::new(),
        };
        state.wrote(0, self.input.clone(), At::Every(self.n_rows));
        state.written.add_to_total(0);
        for layer in 0..n_layers {
            self.attention(layer, &mut state, from)?;
            let heads = self.graph.head_rows(layer);
            if self.graph.parallel {
                self.mlp(layer, &mut state, from)?;
                heads.for_each(|row| state.written.add_to_total(row));
            } else {
                heads.for_each(|row| state.written.add_to_total(row));
                self.mlp(layer, &mut state, from)?;
            }
            if self.graph.has_mlp {
                state.written.add_to_total(self.graph.mlp_row(layer));
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
        let last_head = self.graph.n_heads - 1;
        for column in (0..self.graph.n_dst()).rev() {
            let reader = self.graph.reader_row(column);
            // The last of a layer's readers that are heads.
            if let Some((Node::Head { layer, head }, Some(Letter::V))) = self.graph.reader(column)
                && head == last_head
                && self.is_tied(layer)
            {
                let heads = self.graph.head_rows(layer);
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
        let first = self.graph.head_rows(layer).start;
        let needed: Vec<usize> = self
            .graph
            .head_rows(layer)
            .filter(|&row| state.known[row])
            .collect();
        if needed.is_empty() {
            return Ok(());
        }
        let columns = |row: usize| {
            Letter::ALL.map(|letter| self.graph.head_column(layer, letter, row - first))
        };
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
            seeing = self.graph.head_rows(layer).collect();
            idle.clear();
        }
        let mut taken = Vec::new();
        match tied {
            true if seeing.iter().all(same) => taken = std::mem::take(&mut seeing),
            true => {}
            false => (taken, seeing) = seeing.into_iter().partition(|row| same(row)),
        }
        for row in idle {
            state.wrote(row, self.idle(row)?, At::Every(self.n_rows));
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
        let (deltas, shift) = writes::by_heads(
            self.model,
            &self.ground.layers[layer],
            layer,
            &heads,
            &z,
            self.at(layer),
        )?;
        for (row, delta) in seeing.into_iter().zip(deltas) {
            state.wrote(row, Some(Arc::new(delta)), self.at(layer));
        }
        state.shifts[layer] = shift.map(Arc::new);
        Ok(())
    }

    fn delta(&self, layer: usize, data: Vec<f32>) -> Delta {
        Delta {
            data,
            at_answers: self.is_last(layer),
        }
    }

    /// Computes the MLP of a layer if it is needed and sees something.
    fn mlp(&self, layer: usize, state: &mut State, from: Option<&State>) -> Result<()> {
        let row = self.graph.mlp_row(layer);
        if !self.graph.has_mlp || !state.known[row] {
            return Ok(());
        }
        let column = self.graph.mlp_column(layer);
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
        if sources.is_empty() && shifts.is_empty() {
            state.wrote(row, self.idle(row)?, At::Every(self.n_rows));
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
            let delta = self.delta(layer, data);
            state.wrote(row, Some(Arc::new(delta)), at);
        }
        Ok(())
    }

    /// What a source writes less the reference where it sees the reference itself.
    fn idle(&self, row: usize) -> Result<Option<Arc<Delta>>> {
        if let Some(known) = self.idle[row].get() {
            return Ok(known.clone());
        }
        let node = self.graph.source(row);
        let layer = node.and_then(Node::layer).expect("a node of a layer");
        let delta = match (&self.ground.layers[layer].idle, node) {
            (Some(idle), Some(Node::Mlp(_))) => Some(Delta {
                data: idle.mlp.clone(),
                at_answers: false,
            }),
            (Some(idle), Some(Node::Head { head, .. })) => {
                let spec = &self.model.spec;
                let view = View::rows(spec.n_heads * spec.d_head).from(head * spec.d_head);
                let w_o = host(&self.model.weights.blocks[layer].w_o)?;
                let every = At::Every(self.n_rows);
                Some(writes::by_head(
                    self.model,
                    layer,
                    head,
                    (&idle.z, view),
                    every,
                    &w_o,
                )?)
            }
            _ => None,
        };
        Ok(self.idle[row].get_or_init(|| delta.map(Arc::new)).clone())
    }
}

impl State {
    /// Takes in what a source writes otherwise, as far as it is in the circuit.
    fn wrote(&mut self, row: usize, delta: Option<Arc<Delta>>, at: At<'_>) {
        self.written.of[row] = match delta {
            Some(delta) if self.limits.has(row) => {
                let (mut data, at_answers) = (delta.data.clone(), delta.at_answers);
                self.limits.keep(row, at, &mut data);
                Some(Arc::new(Delta { data, at_answers }))
            }
            delta => delta,
        };
    }

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
