//! The logit lens: the residual stream after each layer, through the final norm and the unembedding, as if the model ended there.
//!
//! Each stream is normalised with its own mean and scale (the norm applied as a function), not with those of the final stream:
//! an early stream is much smaller, and the frozen scale would shrink its logits with it. At the last layer the lens is the model.
//!
//! Source: nostalgebraist 2020, "Interpreting GPT: the logit lens". Left out on purpose: trained lenses (Belrose et al. 2023).

mod ends;
mod reading;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use serde_json::{Value, json};

use ends::{EndStreams, Ends};
use reading::{Reading, best, is_told_by_reading};

use super::readout::every_layer;
use super::vocabulary::{Look, normed, read, stretches};
use super::{NEEDS_DECODER, distinct_texts};
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::methods::captured::{captured, captured_bytes};
use crate::methods::columns::Columns;
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, check_answers,
    clean_prompts, pairs_of, stop_if_asked,
};
use crate::methods::sites::Extent;
use crate::metric::Metric;
use crate::model::{Model, ModelSpec};
use crate::nn::embed::{unembed, unembed_columns};
use crate::nn::host::{tensor, to_host};
use crate::run::{Cache, Progress};
use crate::scores::{
    Cell, Direction, ExampleScores, LayerColumn, Layers, Measured, ScoresMeta, View,
};
use crate::task::{Pair, Task};

/// What is measured beside the metric, in the order of the table.
const MEASURES: [&str; 6] = ["logit", "prob", "rank", "top1", "entropy", "kl"];

/// Where the lens looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum LensPositions {
    /// Every position; of each template, where there are several.
    All,
    /// Only the last position, where the answer belongs.
    End,
}

/// How to look through the lens: over every layer of every clean run, `hook_resid_pre` of layer 0, then `hook_resid_post` of each
/// layer.
///
/// The metric and six measures of one distribution: `logit` of the answer (mean of several), its `prob` and `rank`, `top1`
/// (1 where the rank is 1), `entropy`, and `kl`, the divergence of the model's own distribution at that position from the
/// layer's, `KL(final || layer)`. For the likeliest tokens at the last position, on average, `top_prob`.
/// # Units
/// `score`: the metric's unit; logits, probability, rank, fraction, nats and nats.
#[derive(Debug, Clone, PartialEq)]
pub struct LensConfig {
    /// [default: the task's]
    pub metric: Option<Metric>,
    /// [default: all, if the prompts align; else the end]
    pub positions: Option<LensPositions>,
    /// Likeliest tokens listed for each layer, at the last position.
    pub tokens: usize,
    /// Of the bootstrap [default: the task's].
    pub seed: Option<u64>,
}

impl Default for LensConfig {
    fn default() -> Self {
        LensConfig {
            metric: None,
            positions: None,
            tokens: 5,
            seed: None,
        }
    }
}

impl LensConfig {
    /// All positions where the prompts align, else the end, unless something else is asked for.
    fn positions_of(&self, task: &Task) -> LensPositions {
        let aligned = Extent::new(task, &Default::default(), &Default::default()).groups() == 1;
        let default = if aligned {
            LensPositions::All
        } else {
            LensPositions::End
        };
        self.positions.unwrap_or(default)
    }

    /// Only the last position.
    pub fn at_end() -> Self {
        LensConfig {
            positions: Some(LensPositions::End),
            ..LensConfig::default()
        }
    }

    fn metric(&self, task: &Task) -> Metric {
        self.metric.unwrap_or(task.metric)
    }
}

impl Method for LensConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta::new(
            "logit_lens",
            metric,
            metric.unit(),
            Direction::Direct,
            self.seed.unwrap_or(task.seed),
        )
    }

    fn settings(&self) -> Value {
        json!({ "positions": self.positions, "tokens": self.tokens })
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            decoder: Some(NEEDS_DECODER),
            metric: Some(self.metric(task)),
            ..Needs::default()
        }
    }

    fn check(&self, _: &ModelSpec, task: &Task) -> Result<()> {
        check_answers(task, "rank")
    }

    /// Each layer's measures at the last position, and before them a grid where other positions are read too.
    fn views(&self, task: &Task) -> Vec<View> {
        let metric = LayerColumn::of(&self.header(task).metric);
        let measures = ["prob", "rank", "top1", "entropy", "kl"].map(LayerColumn::of);
        let layers = Layers {
            heading: None,
            columns: [vec![metric], measures.to_vec()].concat(),
            tokens: Some("top_prob".into()),
        };
        let grids = (self.positions_of(task) != LensPositions::End).then_some(View::Grids);
        grids.into_iter().chain([View::Layers(layers)]).collect()
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let extent = Extent::new(on.task, &Default::default(), &Default::default());
        let positions = self.positions_of(on.task);
        let places = match positions {
            LensPositions::All => extent.positions(""),
            LensPositions::End => vec![Cell {
                pos: Some(-1),
                ..Cell::default()
            }],
        };
        let metric = self.metric(on.task);
        // What is the metric already has no second row.
        let is_beside = |name: &&str| *name != metric.to_string();
        let measures: Vec<&str> = MEASURES.into_iter().filter(is_beside).collect();
        let hooks = streams(on.model);
        Ok(Box::new(Looking {
            on,
            config: self,
            running,
            metric,
            positions,
            cells: cells(&hooks, &places, &measures),
            hooks,
            extent,
            places,
            measures,
            ends: Mutex::default(),
        }))
    }
}

/// The streams that the lens looks at.
pub(super) fn streams(model: &Model) -> Vec<Hook> {
    let mut hooks = vec![Hook::at(Kind::ResidPre, 0)];
    hooks.extend(every_layer(model, Kind::ResidPost));
    hooks
}

/// Streams of some places as the unembedding reads them.
/// # Shapes
/// `rows`: places in the packed tensors; gives `[place * stream, d_model]`.
pub(super) fn normed_at(
    model: &Model,
    cache: &Cache,
    hooks: &[Hook],
    rows: &[u32],
) -> Result<Tensor> {
    let index = Tensor::new(rows, &model.device)?;
    let of = |hook: &Hook| Ok(cache.packed(*hook)?.index_select(&index, 0)?);
    let of_streams: Vec<Tensor> = hooks.iter().map(of).collect::<Result<_>>()?;
    let stacked = Tensor::stack(&of_streams, 1)?; // [place, stream, d_model]
    normed(model, &stacked.flatten(0, 1)?)
}

fn cells(hooks: &[Hook], places: &[Cell], measures: &[&str]) -> Vec<Cell> {
    let mut cells = Vec::new();
    for hook in hooks {
        for place in places {
            let cell = Cell {
                component: hook.kind.name().into(),
                layer: hook.layer.map(|layer| layer as u32),
                ..place.clone()
            };
            let measure = |name: &&str| Cell {
                measure: Some(name.to_string()),
                ..cell.clone()
            };
            cells.push(cell.clone());
            cells.extend(measures.iter().map(measure));
        }
    }
    cells
}

/// A checked run in progress.
struct Looking<'a> {
    on: Subject<'a>,
    config: &'a LensConfig,
    running: &'a Running,
    metric: Metric,
    positions: LensPositions,
    hooks: Vec<Hook>,
    extent: Extent,
    /// The places of all prompts, as cells without a hook.
    places: Vec<Cell>,
    measures: Vec<&'static str>,
    cells: Vec<Cell>,
    /// What was seen at the ends while measuring here; what was measured elsewhere is looked at again in the end.
    ends: Mutex<Ends>,
}

impl Prepared for Looking<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        captured_bytes(&self.hooks, &self.on.model.spec, length)
    }

    /// Reading a stream costs an unembedding, which a forward pass has one of; how the model does takes a pass of its own.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let spec = &self.on.model.spec;
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        let places = match self.positions {
            LensPositions::All => length,
            LensPositions::End => 1,
        };
        let unembedding = (spec.d_model * spec.d_vocab) as f64;
        let attention = (2 * spec.n_heads + 2 * spec.n_kv_heads) * spec.d_head * spec.d_model;
        let block = (attention + 3 * spec.d_mlp * spec.d_model) as f64;
        let whole = (length * spec.n_layers) as f64 * block + unembedding;
        let each = 2.0 + (places * self.hooks.len()) as f64 * unembedding / whole;
        Ok(Cost::passes(unit.items.len() as f64 * each))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let readings = self.look(unit, self.positions, Some(&mut ends))?;
        let pairs = pairs_of(self.on.task, &unit.items);
        // Prompts of a unit are of one template and length, so they have the same places.
        let has =
            |place: &Cell| self.positions == LensPositions::End || self.extent.has(place, pairs[0]);
        let has: Vec<bool> = self.places.iter().map(has).collect();
        let streams = self.hooks.len();
        let mut columns = Columns::new(pairs.len());
        for stream in 0..streams {
            let mut own = 0;
            for &has in &has {
                if !has {
                    columns.skip(1 + self.measures.len());
                    continue;
                }
                let reading = |i: usize| &readings[i][own * streams + stream];
                columns.push_some(|i| Some(reading(i).metric));
                for measure in &self.measures {
                    columns.push_some(|i| Some(reading(i).value(measure)));
                }
                own += 1;
            }
        }
        // At the last layer and position the lens is the model.
        let clean: Vec<f64> = readings.iter().map(|of| of[of.len() - 1].metric).collect();
        Ok(columns.into_examples(self.on.task, &unit.items, &clean))
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        if self.config.tokens == 0 {
            return Ok(());
        }
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let units = self.units(self.on.task, self.running);
        let is_unseen = |unit: &&Unit| !ends.streams.contains_key(&unit.items[0]);
        let unseen: Vec<&Unit> = units.iter().filter(is_unseen).collect();
        progress.start("looking for the likeliest tokens", unseen.len() as u64);
        for unit in unseen {
            stop_if_asked(progress)?;
            self.look(unit, LensPositions::End, Some(&mut ends))?;
            progress.advance(1);
        }
        progress.finish();
        let likeliest: Vec<Vec<u32>> = (ends.sums.0)
            .chunks(self.on.model.spec.d_vocab)
            .map(|sums| first_by(sums, self.config.tokens))
            .collect();
        let mut cells = Vec::new();
        for (hook, tokens) in self.hooks.iter().zip(&likeliest) {
            let names = distinct_texts(self.on.task, tokens);
            cells.extend(names.into_iter().map(|token| Cell {
                src: Some(hook.to_string()),
                dst: Some(token),
                measure: Some("top_prob".into()),
                ..Cell::in_layer(hook.kind.name(), hook.layer.unwrap_or(0))
            }));
        }
        let mut probs: HashMap<usize, Vec<f64>> = HashMap::new();
        for unit in &units {
            stop_if_asked(progress)?;
            let mut again = Ends::default();
            if unit.items.iter().any(|&item| ends.of(item).is_none()) {
                self.look(unit, LensPositions::End, Some(&mut again))?;
            }
            for item in &unit.items {
                if let Some(kept) = ends.of(*item).or_else(|| again.of(*item)) {
                    let index = self.on.task.pairs()[*item].index;
                    probs.insert(index, self.probabilities(kept, &likeliest)?);
                }
            }
        }
        measured.append(cells, |_, example| {
            let probs = probs.remove(&example.example).unwrap_or_default();
            probs.into_iter().map(Some).collect()
        });
        Ok(())
    }
}

/// The indices of the `n` largest values, largest first.
fn first_by(values: &[f64], n: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    let by = |a: &u32, b: &u32| {
        let (x, y) = (values[*a as usize], values[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    let n = n.min(order.len());
    if n < order.len() {
        order.select_nth_unstable_by(n, by);
        order.truncate(n);
    }
    order.sort_by(by);
    order
}

impl Looking<'_> {
    /// For each prompt of a unit the readings of its places, stream by stream.
    fn look(
        &self,
        unit: &Unit,
        positions: LensPositions,
        mut ends: Option<&mut Ends>,
    ) -> Result<Vec<Vec<Reading>>> {
        let model = self.on.model;
        let pairs = pairs_of(self.on.task, &unit.items);
        let length = pairs[0].clean.len();
        let cache = captured(model, &clean_prompts(&pairs), &self.hooks, &[])?;
        let first = match positions {
            LensPositions::All => 0,
            LensPositions::End => length - 1,
        };
        let places: Vec<(usize, usize)> = (0..pairs.len())
            .flat_map(|i| (first..length).map(move |pos| (i, pos)))
            .collect();
        let columns: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.target.columns()).collect();
        let is_end: Vec<bool> = places.iter().map(|(_, pos)| pos + 1 == length).collect();
        let mut readings = vec![Vec::new(); pairs.len()];
        let adds = ends.is_some() && self.config.tokens > 0;
        let streams = self.hooks.len();
        for stretch in stretches(&is_end, streams, model.spec.d_vocab) {
            let places = &places[stretch.clone()];
            let rows: Vec<u32> = (places.iter())
                .map(|(i, pos)| (i * length + pos) as u32)
                .collect();
            let normed = normed_at(model, &cache, &self.hooks, &rows)?;
            let looks: Vec<Look<'_>> = (places.iter())
                .map(|&(i, pos)| Look {
                    columns: &columns[i],
                    watched: pairs[i].target.answers.len(),
                    is_end: pos + 1 == length,
                })
                .collect();
            let sums = ends
                .as_deref_mut()
                .filter(|_| adds)
                .map(|ends| &mut ends.sums);
            let read = read(model, &normed, streams, &looks, best, sums)?;
            for (place, &(i, pos)) in places.iter().enumerate() {
                let own = place * streams..(place + 1) * streams;
                let slow = self.slow_metric(&normed, own.clone(), pairs[i])?;
                for (stream, one) in read[own.clone()].iter().enumerate() {
                    let metric = slow.as_ref().map(|values| values[stream]);
                    readings[i].push(Reading::of(one, pairs[i], self.metric, metric)?);
                }
                if let Some(ends) = ends.as_deref_mut().filter(|_| adds && pos + 1 == length) {
                    let kept = EndStreams {
                        normed: to_host(&normed.narrow(0, own.start, streams)?)?,
                        lse: read[own].iter().map(|one| one.lse).collect(),
                    };
                    ends.keep(unit.items[i], kept);
                }
            }
        }
        Ok(readings)
    }

    /// The metric of each stream of a place, where it must be read off whole distributions.
    fn slow_metric(
        &self,
        normed: &Tensor,
        rows: std::ops::Range<usize>,
        pair: &Pair,
    ) -> Result<Option<Vec<f64>>> {
        if is_told_by_reading(self.metric) {
            return Ok(None);
        }
        let (spec, weights) = (&self.on.model.spec, &self.on.model.weights);
        let logits = unembed(spec, weights, &normed.narrow(0, rows.start, rows.len())?)?;
        let logits: Vec<Vec<f32>> = logits.to_vec2()?;
        let reference = logits.last().map(Vec::as_slice);
        let value = |logits: &Vec<f32>| self.metric.value(logits, &pair.target, reference);
        logits.iter().map(value).collect::<Result<_>>().map(Some)
    }

    /// The probabilities of each stream's tokens at the end of one prompt, stream by stream.
    fn probabilities(&self, kept: &EndStreams, tokens: &[Vec<u32>]) -> Result<Vec<f64>> {
        let model = self.on.model;
        let shape = (tokens.len(), model.spec.d_model);
        let normed = tensor(kept.normed.clone(), shape)?;
        let columns: Vec<&[u32]> = tokens.iter().map(Vec::as_slice).collect();
        let logits = unembed_columns(&model.spec, &model.weights, &normed, &columns)?;
        let of_streams = logits.iter().zip(&kept.lse);
        let probs = of_streams.flat_map(|(logits, lse)| {
            let prob = |&logit: &f32| (f64::from(logit) - lse).exp();
            logits.iter().map(prob).collect::<Vec<f64>>()
        });
        Ok(probs.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_are_the_largest_in_order() {
        assert_eq!(first_by(&[0.5, 2.0, 2.0, 1.0, 3.0], 3), [4, 1, 2]);
        assert_eq!(first_by(&[1.0, 2.0], 5), [1, 0]);
    }
}
