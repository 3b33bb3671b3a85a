//! Inner products of a change and a gradient, as the gradients of a backward pass go by.

use std::collections::HashMap;
use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::nodes::{Estimates, Places};
use super::qk_fix::{self, Prompt};
use super::runs::Runs;
use crate::error::Result;
use crate::hooks::{Axes, Hook, Kind};
use crate::methods::sites::{Along, roles_with_other};
use crate::nn::host::{dot_inline, host, on_host, simd};
use crate::run::backward::Probe;
use crate::run::rows::Rows;
use crate::scores::Cell;

/// Takes the inner products as the gradients pass, and keeps nothing else.
pub(super) struct NodeProbe<'a> {
    runs: &'a Runs<'a>,
    places: &'a Places,
    pub estimates: Estimates,
    /// The gradient at the stream that leaves each layer, where GradDrop will go on from.
    pub streams: Option<Vec<(usize, Tensor)>>,
    /// Whether queries and keys get their exact softmax; and those of the layer that is passed just now.
    qk_fix: bool,
    fixed: HashMap<Hook, Inner>,
}

impl<'a> NodeProbe<'a> {
    pub fn new(runs: &'a Runs<'a>, places: &'a Places, qk_fix: bool) -> Self {
        NodeProbe {
            runs,
            places,
            estimates: places.nothing(runs.pairs.len()),
            streams: None,
            qk_fix,
            fixed: HashMap::new(),
        }
    }

    /// The queries and keys of the cells in a layer.
    fn queries_and_keys(&self, layer: usize) -> Vec<Hook> {
        [Kind::Q, Kind::RotQ, Kind::K, Kind::RotK]
            .map(|kind| Hook::at(kind, layer))
            .into_iter()
            .filter(|hook| self.places.of_hook.contains_key(hook))
            .collect()
    }

    fn fix(&mut self, layer: usize, slope: &Tensor) -> Result<()> {
        let runs = self.runs;
        let spec = &runs.model.spec;
        let (rot_q, rot_k) = (Hook::at(Kind::RotQ, layer), Hook::at(Kind::RotK, layer));
        let q = [runs.base_values(rot_q)?, runs.other_values(rot_q)?];
        let (k, k_other) = (on_host(runs.base.get(rot_k)?)?, runs.other_values(rot_k)?);
        let of = qk_fix::Layer {
            spec,
            layer,
            length: runs.rows.length,
            q: [&host(&q[0])?, &host(&q[1])?],
            k: &host(&k)?,
            k_other: &host(&k_other)?,
            slope: &host(slope)?,
        };
        let (mut queries, mut keys) = (Vec::new(), Vec::new());
        for (index, segment) in runs.rows.segments.iter().enumerate() {
            let prompt = Prompt {
                index,
                first_row: segment.start,
                first_pos: segment.positions[0] as usize,
            };
            let (of_queries, of_keys) = qk_fix::estimates(&of, prompt);
            queries.extend(of_queries);
            keys.extend(of_keys);
        }
        for hook in self.queries_and_keys(layer) {
            let (values, units) = match hook.kind {
                Kind::Q | Kind::RotQ => (queries.clone(), spec.n_heads),
                _ => (keys.clone(), spec.n_kv_heads),
            };
            let inner = Inner {
                values,
                units,
                keys: 1,
            };
            self.fixed.insert(hook, inner);
        }
        Ok(())
    }
}

impl Probe for NodeProbe<'_> {
    fn wants(&self, hook: Hook) -> bool {
        if self.places.of_hook.contains_key(&hook) {
            return true;
        }
        match (hook.kind, hook.layer) {
            (Kind::ResidPost, _) => self.streams.is_some(),
            (Kind::Pattern, Some(layer)) => self.qk_fix && !self.queries_and_keys(layer).is_empty(),
            _ => false,
        }
    }

    fn at(&mut self, hook: Hook, gradient: &Tensor, _: &Rows) -> Result<()> {
        if let (Some(streams), Kind::ResidPost, Some(layer)) =
            (&mut self.streams, hook.kind, hook.layer)
        {
            streams.push((layer, gradient.clone()));
        }
        if let (true, Kind::Pattern, Some(layer)) = (self.qk_fix, hook.kind, hook.layer)
            && !self.queries_and_keys(layer).is_empty()
        {
            self.fix(layer, gradient)?;
        }
        let Some(cells) = self.places.of_hook.get(&hook) else {
            return Ok(());
        };
        let inner = match self.fixed.remove(&hook) {
            Some(inner) => inner,
            None => Inner::new(self.runs, hook, &self.runs.delta(hook)?, gradient)?,
        };
        inner.add_to(&mut self.estimates, self.runs, self.places, cells);
        Ok(())
    }
}

/// Numbers that one thread takes at a time.
const BLOCK: usize = 16 * 1024;

/// Inner products of a change and a gradient, one for each row and unit (head or neuron; one for a stream), and for patterns each key.
pub(super) struct Inner {
    /// `[rows, units, keys]`
    values: Vec<f64>,
    units: usize,
    keys: usize,
}

impl Inner {
    pub fn new(runs: &Runs<'_>, hook: Hook, change: &Tensor, gradient: &Tensor) -> Result<Self> {
        let spec = &runs.model.spec;
        let (units, keys, width) = match hook.kind.axes(spec) {
            Axes::Stream => (1, 1, spec.d_model),
            Axes::Scale => (1, 1, 1),
            Axes::Heads { heads, width } => (heads, 1, width),
            Axes::Pattern => (spec.n_heads, runs.rows.length, 1),
            Axes::Neurons => (spec.d_mlp, 1, 1),
        };
        let (change, gradient) = (change.contiguous()?, gradient.contiguous()?);
        let (change, gradient) = (host(&change)?, host(&gradient)?);
        let mut values = vec![0.0; change.len() / width];
        let block = (BLOCK / width).max(1);
        let (change, gradient) = (&*change, &*gradient);
        values
            .par_chunks_mut(block)
            .zip(change.par_chunks(block * width))
            .zip(gradient.par_chunks(block * width))
            .for_each(|((values, a), b)| {
                simd(
                    #[inline(always)]
                    || {
                        let rows = a.chunks_exact(width).zip(b.chunks_exact(width));
                        for (value, (a, b)) in values.iter_mut().zip(rows) {
                            *value = f64::from(dot_inline(a, b));
                        }
                    },
                )
            });
        Ok(Inner {
            values,
            units,
            keys,
        })
    }

    /// Adds them to the cells that they belong to.
    pub fn add_to(
        &self,
        estimates: &mut Estimates,
        runs: &Runs<'_>,
        places: &Places,
        cells: &[(Along, Range<usize>)],
    ) {
        for (i, estimates) in estimates.iter_mut().enumerate() {
            let rows = runs.rows_of(i);
            let roles = roles_with_other(&runs.pairs[i].roles, runs.rows.length);
            let first = runs.rows.segments[i].positions[0] as usize;
            let row_of = |pos: usize| {
                let row = (rows.start + pos).checked_sub(first)?;
                rows.contains(&row).then_some(row)
            };
            for (_, range) in cells {
                for index in range.clone() {
                    let cell = &places.cells[index];
                    let mut sum = 0.0;
                    match (cell.pos, &cell.role) {
                        (Some(pos), _) => {
                            if let Some(row) = row_of(pos as usize) {
                                sum += self.at(row, cell);
                            }
                        }
                        (None, Some(role)) => {
                            let positions = roles.get(role).into_iter().flatten();
                            sum += positions
                                .filter_map(|&pos| row_of(pos))
                                .map(|row| self.at(row, cell))
                                .sum::<f64>();
                        }
                        (None, None) => {
                            sum += rows.clone().map(|row| self.at(row, cell)).sum::<f64>();
                        }
                    }
                    estimates[index] += sum;
                }
            }
        }
    }

    fn at(&self, row: usize, cell: &Cell) -> f64 {
        let width = self.units * self.keys;
        let row = &self.values[row * width..(row + 1) * width];
        let units = match cell.head.or(cell.neuron) {
            Some(unit) => unit as usize..unit as usize + 1,
            None => 0..self.units,
        };
        let keys = match cell.key {
            Some(key) => key as usize..key as usize + 1,
            None => 0..self.keys,
        };
        units
            .map(|unit| row[unit * self.keys..][keys.clone()].iter().sum::<f64>())
            .sum()
    }
}
