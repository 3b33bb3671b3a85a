//! Latents patched for real: a variant of the sweep for each cell, which adds what it changes at its positions.

use candle_core::Tensor;

use super::change::changes;
use super::config::LatentConfig;
use super::parts::{ON, Parts, conclude, mean};
use crate::error::Result;
use crate::hooks::{Axes, Edit, Op, Pos, Site, Value};
use crate::methods::activation_patching::{self, PatchConfig, PatchSource, SiteSet};
use crate::methods::captured::captured;
use crate::methods::method::{Cost, Prepared, Running, Subject, Unit, pairs_of, unmeasured};
use crate::nn::host::{tensor, to_host};
use crate::run::{Progress, Variant, sweep};
use crate::sae::Activation;
use crate::scores::{Cell, Direction, ExampleScores, Measured};

/// Latents that are on at a position, where a plan has to guess.
const GUESSED: usize = 64;

pub(super) struct Patching<'a> {
    on: Subject<'a>,
    config: &'a LatentConfig,
    cells: Vec<Cell>,
    parts: Parts,
    /// Both runs and their metric.
    runs: activation_patching::Patching<'a>,
}

impl<'a> Patching<'a> {
    pub fn new(
        on: Subject<'a>,
        config: &'a LatentConfig,
        cells: Vec<Cell>,
        parts: Parts,
        running: &'a Running,
    ) -> Result<Self> {
        let patch = PatchConfig {
            sets: vec![SiteSet {
                cell: Cell::default(),
                sites: vec![Site::all(config.sae.writes)],
            }],
            source: config.source,
            direction: config.direction,
            metric: config.metric,
            ..PatchConfig::new(Vec::new())
        };
        Ok(Patching {
            on,
            config,
            cells,
            parts,
            runs: activation_patching::Patching::new(on, patch, running)?,
        })
    }

    /// Latents that are on at a position, at most, or as a guess.
    fn at_a_position(&self) -> usize {
        match self.config.sae.activation {
            Activation::TopK { k } => k,
            _ => GUESSED.min(self.config.sae.d_sae),
        }
    }

    /// The values that a variant adds at its positions, in the shape of the hook.
    fn value(&self, rows: usize, values: Vec<f32>) -> Result<Tensor> {
        match self.config.sae.writes.kind.axes(&self.on.model.spec) {
            Axes::Heads { heads, width } => tensor(values, (rows, heads, width)),
            _ => tensor(values, (rows, self.config.sae.d_out)),
        }
    }
}

impl Prepared for Patching<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let sae = &self.config.sae;
        let added = 4 * (4 + self.at_a_position()) * length * sae.d_out;
        self.runs.bytes(length) + 8 * length.min(128) * sae.d_sae + added
    }

    /// Which latents change is known only once both runs are there, so all that could are counted, at most 64 a position.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let pairs = pairs_of(self.on.task, &unit.items);
        let variants = |length: usize| {
            self.cells
                .len()
                .min((2 * self.at_a_position() + 1) * length)
        };
        let variants: usize = (pairs.iter()).map(|pair| variants(pair.clean.len())).sum();
        Ok(Cost {
            variants,
            packed: variants as f64,
            bytes: unit.items.len() * self.bytes(pairs[0].clean.len()),
            ..Cost::passes(4.0 * unit.items.len() as f64)
        })
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let (model, task, sae) = (self.on.model, self.on.task, &*self.config.sae);
        let contrast = self.runs.contrast(&unit.items)?;
        let pairs = pairs_of(task, &unit.items);
        let clean_is_base = self.config.direction != Direction::Denoise;
        let length = contrast.base.length;
        let mut hooks = vec![sae.reads, sae.writes];
        hooks.dedup();
        let run = |clean: bool| -> Result<[Vec<f32>; 2]> {
            let prompts: Vec<Vec<u32>> = (pairs.iter())
                .map(|pair| match clean {
                    true => pair.clean.clone(),
                    false => pair.corrupted.clone(),
                })
                .collect();
            let cache = captured(model, &prompts, &hooks, &[])?;
            Ok([
                to_host(cache.packed(sae.reads)?)?,
                to_host(cache.packed(sae.writes)?)?,
            ])
        };
        let [own_in, own_out] = run(clean_is_base)?;
        let to_zero = self.config.source == PatchSource::Zero;
        let [other_in, other_out] = match to_zero {
            true => [Vec::new(), Vec::new()],
            false => run(!clean_is_base)?,
        };
        let positions: Vec<usize> = pairs.iter().flat_map(|_| 0..length).collect();
        let (changes, on) = changes(
            sae,
            &positions,
            &[own_in, other_in],
            &[own_out, other_out],
            to_zero,
        );
        let (mut variants, mut of) = (Vec::new(), Vec::new());
        for (i, pair) in pairs.iter().enumerate() {
            let cells = self
                .parts
                .gather(pair, &changes[i * length..(i + 1) * length]);
            for (cell, parts) in cells {
                let mut values = vec![0.0; parts.len() * sae.d_out];
                for (part, row) in parts.iter().zip(values.chunks_exact_mut(sae.d_out)) {
                    part.what.add_to(sae, row);
                }
                let at = parts.iter().map(|part| Pos::Index(part.pos));
                let site = Site::all(sae.writes).at_positions(at);
                let value = Value::Tensor(self.value(parts.len(), values)?);
                variants.push(Variant {
                    example: i,
                    edits: vec![Edit::new(site, Op::Add(value))],
                });
                of.push((i, cell));
            }
        }
        let values = sweep(
            model,
            &contrast.base,
            &variants,
            &contrast.sources,
            &contrast.readout,
            &self.runs.options(),
            progress,
        )?;
        let mut examples = Vec::with_capacity(unit.items.len());
        for (i, &item) in unit.items.iter().enumerate() {
            let ends = (contrast.base_metric[i], contrast.other_metric[i]);
            let (clean, corrupted) = match clean_is_base {
                true => ends,
                false => (ends.1, ends.0),
            };
            let mut one = unmeasured(task, item, clean, corrupted);
            one.judged(contrast.judged(i));
            one.tokens = task.texts(&contrast.base.prompts[i]);
            let own = of.iter().zip(&values).filter(|((pair, _), _)| *pair == i);
            let (cells, values): (Vec<u32>, Vec<f64>) =
                own.map(|((_, cell), value)| (*cell, *value)).unzip();
            one.cells = cells.into();
            one.values = values;
            let first = match to_zero {
                true => 0,
                false => pairs[i].first_difference().min(length - 1),
            };
            let rows = i * length + first..(i + 1) * length;
            one.facts.insert(ON.into(), mean(&on[rows]));
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        conclude(measured, self.config, &self.parts, self.on.task);
        Ok(())
    }
}
