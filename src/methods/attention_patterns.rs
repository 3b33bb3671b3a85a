//! Attention patterns as numbers: how much each position looks at each other, head by head, on the task's clean prompts.
//!
//! The pattern alone says where a head looks, not whether it takes much from there: a head that has nothing to do looks at the
//! first token, whose value is small. Value-weighted attention is the pattern times the size of what it brings, `|v_key W_O|`,
//! the norm that Kobayashi et al. analyse; it is in units of the residual stream.
//!
//! Source: Kobayashi, Kuribayashi, Yokoi and Inui 2020, "Attention is not only a weight", arXiv 2004.10102. Where a norm stands on
//! attention's output, the size is that before the norm. Left out on purpose: rollout over layers (`alti-rollout` is one).

use candle_core::{D, DType, Tensor};
use serde_json::{Value, json};

use super::captured::{captured_and_judged, captured_bytes};
use super::choice::check_range;
use super::columns::{Columns, judged};
use super::method::{Cost, Method, Needs, Prepared, Running, Subject, Unit, pairs_of};
use super::sites::Extent;
use super::{Heads, Layers};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind};
use crate::model::{Model, ModelSpec};
use crate::run::{Cache, Progress};
use crate::scores::{Cell, Direction, ExampleScores, ScoresMeta};
use crate::task::Task;

/// More rows than this are more than anybody reads, and fill gigabytes.
const MOST_CELLS: usize = 4_000_000;

/// Which patterns to read.
///
/// Rows: `layer`, `head`, query `pos`, `key`; of an aligned task the mean over its pairs. Those of `value_weighted` stand in the
/// side table.
/// # Units
/// `score`: attention, which sums to 1 over the keys of a query unless the model has an attention sink; `value_weighted`: the norm
/// of what is added to the stream.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AttentionConfig {
    pub layers: Layers,
    pub heads: Heads,
    /// Also the pattern times the size of what each key brings.
    pub value_weighted: bool,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

const VALUE_WEIGHTED: &str = "value_weighted";

impl Method for AttentionConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta {
            method: "attention_patterns".into(),
            metric: "attention".into(),
            unit: "attention".into(),
            base: None,
            direction: Direction::Direct,
            seed: self.seed.unwrap_or(task.seed),
        }
    }

    fn settings(&self) -> Value {
        json!({ "layers": self.layers, "heads": self.heads, "value_weighted": self.value_weighted })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            decoder: Some("table of attention patterns"),
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_range("layer", &self.layers.0, spec.n_layers, "the model")?;
        let heads: Vec<usize> = self.heads.0.iter().map(|chosen| chosen.head).collect();
        check_range("head", &heads, spec.n_heads, "the model")?;
        let of: Vec<usize> = self
            .heads
            .0
            .iter()
            .filter_map(|chosen| chosen.layer)
            .collect();
        check_range("layer", &of, spec.n_layers, "the model")?;
        let n_heads = self.chosen(spec).count();
        if n_heads == 0 {
            return Err(Error::invalid(
                "no head is both in `AttentionConfig::layers` and in `AttentionConfig::heads`; leave one of them out",
            ));
        }
        let places = Extent::new(task, &self.layers, &self.heads).positions("");
        let keys: usize = places.iter().map(n_keys).sum();
        let n_cells = keys
            .saturating_mul(n_heads)
            .saturating_mul(1 + usize::from(self.value_weighted));
        if n_cells > MOST_CELLS {
            return Err(Error::invalid(format!(
                "the patterns of {n_heads} heads on these prompts are {n_cells} numbers, and a table takes {MOST_CELLS}; choose fewer heads \
                 (`AttentionConfig::layers`, `AttentionConfig::heads`) or shorter prompts"
            )));
        }
        Ok(())
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, _: &'a Running) -> Result<Box<dyn Prepared + 'a>> {
        let spec = &on.model.spec;
        let mut layers: Vec<usize> = self.chosen(spec).map(|(layer, _)| layer).collect();
        layers.dedup();
        let kinds: &[Kind] = match self.value_weighted {
            true => &[Kind::Pattern, Kind::V],
            false => &[Kind::Pattern],
        };
        let hooks = |layer| kinds.iter().map(move |&kind| Hook::at(kind, layer));
        let extent = Extent::new(on.task, &self.layers, &self.heads);
        let places = extent.positions(Kind::Pattern.name());
        Ok(Box::new(Reading {
            on,
            config: self,
            capture: layers.iter().flat_map(|&layer| hooks(layer)).collect(),
            cells: self.cells(spec, &places),
            extent,
            places,
        }))
    }
}

impl AttentionConfig {
    /// The chosen heads, layer by layer.
    fn chosen(&self, spec: &ModelSpec) -> impl Iterator<Item = (usize, usize)> {
        let is_chosen =
            |&(layer, head): &(usize, usize)| self.layers.has(layer) && self.heads.has(layer, head);
        spec.heads().filter(is_chosen)
    }

    /// Head by head, place by place, key by key; a weighted cell after its own.
    fn cells(&self, spec: &ModelSpec, places: &[Cell]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for (layer, head) in self.chosen(spec) {
            for place in places {
                for key in 0..n_keys(place) {
                    let cell = Cell {
                        layer: Some(layer as u32),
                        head: Some(head as u32),
                        key: Some(key as u32),
                        ..place.clone()
                    };
                    let weighted = self.value_weighted.then(|| Cell {
                        measure: Some(VALUE_WEIGHTED.into()),
                        ..cell.clone()
                    });
                    cells.push(cell);
                    cells.extend(weighted);
                }
            }
        }
        cells
    }
}

/// The keys that a query sees: up to itself.
fn n_keys(place: &Cell) -> usize {
    place.pos.map_or(0, |pos| pos as usize + 1)
}

/// A checked run in progress.
struct Reading<'a> {
    on: Subject<'a>,
    config: &'a AttentionConfig,
    capture: Vec<Hook>,
    extent: Extent,
    /// The query positions of all prompts, as cells without a head.
    places: Vec<Cell>,
    cells: Vec<Cell>,
}

impl Prepared for Reading<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        captured_bytes(&self.capture, &self.on.model.spec, length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        Ok(Cost {
            bytes: self.bytes(length),
            ..Cost::passes(unit.items.len() as f64)
        })
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let (cache, judgements) = captured_and_judged(model, &pairs, &self.capture)?;
        let has: Vec<bool> = self
            .places
            .iter()
            .map(|place| self.extent.has(place, pairs[0]))
            .collect();
        let mut columns = Columns::new(pairs.len());
        let mut of_layer: Option<(usize, Patterns)> = None;
        for (layer, head) in self.config.chosen(&model.spec) {
            if of_layer.as_ref().is_none_or(|(known, _)| *known != layer) {
                let read = Patterns::of(model, &cache, layer, self.config.value_weighted)?;
                of_layer = Some((layer, read));
            }
            let (_, patterns) = of_layer.as_ref().expect("it was read");
            for (place, has) in self.places.iter().zip(&has) {
                for key in 0..n_keys(place) {
                    let query = n_keys(place) - 1;
                    let pattern = |i| has.then(|| patterns.pattern(i, head, query, key));
                    columns.push_some(pattern);
                    if let Some(norms) = &patterns.norms {
                        let norm = |i| norms[patterns.place(i, head, key)];
                        columns.push_some(|i| pattern(i).map(|value| value * f64::from(norm(i))));
                    }
                }
            }
        }
        let examples = columns.into_examples_without_metric(task, &unit.items);
        Ok(judged(examples, judgements))
    }
}

/// What a layer's heads look at in a batch, and how much it brings.
struct Patterns {
    n_heads: usize,
    length: usize,
    /// `[batch * n_heads * query * key]`
    patterns: Vec<f32>,
    /// `|v_key W_O|`: `[batch * n_heads * key]`
    norms: Option<Vec<f32>>,
}

impl Patterns {
    fn of(model: &Model, cache: &Cache, layer: usize, weighted: bool) -> Result<Self> {
        let flat = |t: &Tensor| Ok::<_, Error>(t.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?);
        let pattern = cache.get(Hook::at(Kind::Pattern, layer))?; // [batch, n_heads, query, key]
        let norms = match weighted {
            true => Some(flat(&value_norms(model, cache, layer)?)?),
            false => None,
        };
        Ok(Patterns {
            n_heads: model.spec.n_heads,
            length: cache.length,
            patterns: flat(&pattern)?,
            norms,
        })
    }

    fn place(&self, example: usize, head: usize, pos: usize) -> usize {
        (example * self.n_heads + head) * self.length + pos
    }

    fn pattern(&self, example: usize, head: usize, query: usize, key: usize) -> f64 {
        f64::from(self.patterns[self.place(example, head, query) * self.length + key])
    }
}

/// The size of what each head brings from each position: `|v W_O|`, as `sqrt(v (W_O W_O') v')`, so that no tensor is as wide as the
/// stream.
/// # Shapes
/// Gives `[batch, n_heads, pos]`.
fn value_norms(model: &Model, cache: &Cache, layer: usize) -> Result<Tensor> {
    let spec = &model.spec;
    let (batch, length, kv) = (cache.batch, cache.length, spec.n_kv_heads);
    let w_o = model.weights.blocks[layer].w_o.to_dtype(DType::F32)?;
    let w_o = w_o.reshape((spec.n_heads, spec.d_head, ()))?;
    let gram = w_o.matmul(&w_o.t()?)?; // [n_heads, d_head, d_head]
    let v = cache.get(Hook::at(Kind::V, layer))?.to_dtype(DType::F32)?; // [batch, pos, n_kv_heads, d_head]
    let v = v
        .permute((2, 0, 1, 3))?
        .reshape((kv, batch * length, spec.d_head))?;
    let v = v
        .unsqueeze(1)?
        .broadcast_as((kv, spec.group(), batch * length, spec.d_head))?
        .reshape((spec.n_heads, batch * length, spec.d_head))?
        .contiguous()?; // [n_heads, batch * pos, d_head]
    let squares = (v.matmul(&gram)? * &v)?.sum(D::Minus1)?; // [n_heads, batch * pos]
    // Rounding can make the square of nothing negative.
    let norms = squares.relu()?.sqrt()?;
    Ok(norms
        .reshape((spec.n_heads, batch, length))?
        .transpose(0, 1)?)
}
