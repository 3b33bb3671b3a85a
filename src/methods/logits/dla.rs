//! Direct logit attribution: how much each part of the model adds to a logit, by what it writes to the stream itself.
//!
//! The final stream is a sum of what its parts wrote, and the read-out with the run's own final scale is linear
//! (`readout.rs`), so the logit is exactly the sum of the parts' contributions and a bias. That sum is taken, its
//! residual is stored, and a residual that is more than rounding is an error.
//!
//! It sees only what a part writes to the logits directly. What later parts make of it is the matter of patching, and removing
//! a part also changes the final scale, which is held fixed here.
//!
//! Sources: Elhage et al. 2021, "A mathematical framework for transformer circuits"; by source token Chughtai et al. 2024,
//! "Summing up the facts", arXiv 2402.07321.

mod config;
mod shares;

use std::sync::{Mutex, PoisonError};

use candle_core::DType;
use serde_json::{Value, json};

pub use config::{DlaConfig, Part};
pub(crate) use shares::head_readers;
pub(super) use shares::{attention_bias, has_attention_bias, sources};
use shares::{has_mlp_bias, heads, neurons};

use super::check_tokens;
use super::groups::Groups;
use super::normed_stream::stream_scales;
use super::readout::{DirectTarget, Ends, Readout, every_layer, rowwise_dot};
use super::written::{KeptEnds, add_written};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::captured::captured_bytes;
use crate::methods::columns::{Columns, judged};
use crate::methods::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, pairs_of,
};
use crate::methods::sites::Extent;
use crate::model::{Model, ModelSpec};
use crate::run::Progress;
use crate::scores::{Cell, Direction, ExampleScores, Lists, Measured, ScoresMeta, View};
use crate::spec::Mlp;
use crate::task::{Pair, Task};

impl Method for DlaConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        ScoresMeta::new(
            "direct_logit_attribution",
            self.target.name(),
            "logits",
            Direction::Direct,
            self.seed.unwrap_or(task.seed),
        )
    }

    fn settings(&self) -> Value {
        json!({
            "by": self.by,
            "target": self.target,
            "writes": self.writes,
            "tokens": self.tokens,
        })
    }

    fn needs(&self, _: &Task) -> Needs {
        Needs {
            roles: self.by == Part::HeadRole,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        check_target(&self.target, spec, task)?;
        if self.by == Part::Neuron && spec.mlp == Mlp::None {
            return Err(Error::HookAbsent {
                hook: Kind::MlpPost.name().into(),
                reason: "its blocks have no MLP".into(),
            });
        }
        Ok(())
    }

    /// Grids, what the strongest parts write for and against, and the strongest parts.
    fn views(&self, _: &Task) -> Vec<View> {
        let written = Lists {
            measures: vec!["written_logit".into()],
            title: "{src} writes for".into(),
            below_zero: Some("{src} writes against".into()),
            item: "{dst}".into(),
            ..Lists::default()
        };
        vec![View::Grids, View::Lists(written), View::Strongest]
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let extent = Extent::new(on.task, &Default::default(), &Default::default());
        let places = Places {
            positions: extent.positions(Kind::Result.name()),
            groups: Groups::of(on.task),
            extent,
        };
        Ok(Box::new(Attributing {
            on,
            config: self,
            running,
            cells: cells(self.by, on.model, &places),
            capture: hooks(self.by, on.model),
            places,
            kept: Mutex::default(),
        }))
    }
}

/// # Errors
/// [`Error::BadMetric`] naming the first pair that has no such target, [`Error::OutOfRange`] for a token that is not there.
pub(crate) fn check_target(target: &DirectTarget, spec: &ModelSpec, task: &Task) -> Result<()> {
    if let DirectTarget::Tokens { for_, against } = target {
        if for_.is_empty() {
            return Err(Error::invalid(
                "a target of tokens needs at least one token to be for (`DlaConfig::target`)",
            ));
        }
        check_tokens(for_, spec)?;
        return check_tokens(against, spec);
    }
    for pair in task.pairs() {
        let lacks = match (&pair.target.answers[..], &pair.target.wrong[..]) {
            ([], _) => "an answer",
            (_, []) if target.needs_wrong() => "a wrong answer",
            _ => continue,
        };
        return Err(Error::BadMetric {
            metric: target.name().into(),
            reason: format!(
                "needs {lacks}, and pair {} of task `{}` has none; add it, or choose `DlaConfig::target = centred` or tokens",
                pair.index, task.name
            ),
        });
    }
    Ok(())
}

/// Where the heads of a task's prompts look.
struct Places {
    extent: Extent,
    /// A cell for each position, of each template where there are several.
    positions: Vec<Cell>,
    groups: Groups,
}

/// A checked run in progress.
struct Attributing<'a> {
    on: Subject<'a>,
    config: &'a DlaConfig,
    running: &'a Running,
    cells: Vec<Cell>,
    capture: Vec<Hook>,
    places: Places,
    /// What was measured in this run, so that what the strongest parts write can be read without running the prompts again.
    kept: Mutex<KeptEnds<'a>>,
}

const RESIDUAL: &str = "residual";
const CAPPED: &str = "capped";

impl Prepared for Attributing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        captured_bytes(&self.capture, &self.on.model.spec, length)
    }

    /// What the strongest parts write takes a second run of each prompt where the first cannot keep it.
    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let runs_again = self.config.writes > 0 && !keeps_writes(self.config.by);
        let passes = if runs_again { 2.0 } else { 1.0 };
        Ok(Cost::passes(unit.items.len() as f64 * passes))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let pairs = pairs_of(task, &unit.items);
        let mut ends = Ends::keeping(model, &pairs, &self.capture)?;
        let readout = ends.readout(&self.config.target, &pairs)?;
        let columns = self.contributions(&mut ends, &readout, &pairs)?;
        let examples = columns.into_examples(task, &unit.items, &readout.total);
        let mut examples = judged(examples, ends.judge(&pairs)?);
        for ((example, pair), total) in examples.iter_mut().zip(&pairs).zip(&readout.total) {
            let residual = residual(model, pair, &example.values, *total)?;
            example.facts.insert(RESIDUAL.into(), residual);
        }
        if let Some(capped) = ends.capped(&self.config.target, &pairs)? {
            for (example, capped) in examples.iter_mut().zip(capped) {
                example.facts.insert(CAPPED.into(), capped);
            }
        }
        if self.config.writes > 0 && keeps_writes(self.config.by) {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.keep(unit, ends);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        measured.drop_unmeasured();
        let target = self.config.target.name();
        let facts = |name: &str| -> Vec<f64> {
            let examples = measured.examples.iter();
            examples
                .filter_map(|one| one.facts.get(name).copied())
                .collect()
        };
        let (residuals, capped) = (facts(RESIDUAL), facts(CAPPED));
        let worst = residuals.into_iter().fold(0.0, f64::max);
        measured.found.insert("completeness".into(), json!(worst));
        measured.notes.push(format!(
            "the rows of every prompt sum to its {target}; the largest residual is {worst:.1e} of it"
        ));
        if let Some(cap) = self.on.model.spec.final_softcap {
            let mean = capped.iter().sum::<f64>() / capped.len() as f64;
            measured.notes.push(format!(
                "logits are taken apart before the soft-cap at {cap}; after it the mean {target} is {mean:.4}"
            ));
        }
        if matches!(self.config.by, Part::Component | Part::Head) {
            add_shares(measured);
        }
        let units = self.units(self.on.task, self.running);
        let kept = std::mem::take(&mut *self.kept.lock().unwrap_or_else(PoisonError::into_inner));
        add_written(self.on, self.config, &units, kept, measured, progress)
    }
}

/// Each part's share of the sum of magnitudes over all parts of its prompt.
fn add_shares(measured: &mut Measured) {
    let share = |cell: &Cell| Cell {
        measure: Some("share".into()),
        ..cell.clone()
    };
    let shares: Vec<Cell> = measured.cells.iter().map(share).collect();
    measured.append(shares, |_, example| {
        let magnitude: f64 = example.values.iter().map(|value| value.abs()).sum();
        let magnitude = magnitude.max(f64::MIN_POSITIVE);
        let mut shares = Vec::new();
        for (&cell, value) in example.cells.iter().zip(&example.values) {
            shares.resize(cell as usize, None);
            shares.push(Some(value / magnitude));
        }
        shares
    });
}

/// Relative to the target, or to 1 where it is smaller.
fn residual(model: &Model, pair: &Pair, parts: &[f64], total: f64) -> Result<f64> {
    let sum: f64 = parts.iter().sum();
    let magnitude: f64 = parts.iter().map(|value| value.abs()).sum();
    // In half precision the stream itself is rounded after every addition, in proportion to what is added.
    let (tolerance, scale) = match model.dtype {
        DType::F32 | DType::F64 => (1e-3, total.abs().max(1.0)),
        _ => (2e-2, magnitude.max(1.0)),
    };
    let residual = (sum - total).abs() / scale;
    // A NaN is no such residual either.
    if residual <= tolerance {
        Ok(residual)
    } else {
        Err(Error::Incomplete {
            index: pair.index,
            sum,
            total,
        })
    }
}

/// What a run keeps for the parts.
fn hooks(by: Part, model: &Model) -> Vec<Hook> {
    let of = |kind| every_layer(model, kind);
    let mut capture = vec![Hook::global(Kind::Embed)];
    if model.weights.w_pos.is_some() {
        capture.push(Hook::global(Kind::PosEmbed));
    }
    capture.extend(match by {
        Part::Component | Part::Neuron => of(Kind::AttnOut),
        Part::Head => of(Kind::Z),
        Part::HeadSource | Part::HeadRole => [of(Kind::Pattern), of(Kind::V)].concat(),
    });
    capture.extend(match by {
        Part::Neuron => [of(Kind::MlpPost), of(Kind::Scale(Ln::TwoPost))].concat(),
        _ => of(Kind::MlpOut),
    });
    if by_head(by) {
        capture.extend(of(Kind::Scale(Ln::OnePost)));
    }
    capture.extend(stream_scales(model));
    capture
}

/// Whether a run captures what its parts write: where a head is taken apart by what it reads, z is not captured.
fn keeps_writes(by: Part) -> bool {
    matches!(by, Part::Component | Part::Neuron | Part::Head)
}

fn by_head(by: Part) -> bool {
    matches!(by, Part::Head | Part::HeadSource | Part::HeadRole)
}

/// The parts in the order of [`Attributing::contributions`].
fn cells(by: Part, model: &Model, places: &Places) -> Vec<Cell> {
    let spec = &model.spec;
    let outside = |component: &str| Cell {
        component: component.into(),
        ..Cell::default()
    };
    let mut cells = vec![outside(Kind::Embed.name())];
    if Kind::PosEmbed.absent(spec).is_none() {
        cells.push(outside(Kind::PosEmbed.name()));
    }
    for layer in 0..spec.n_layers {
        let heads = (0..spec.n_heads).map(|head| Cell {
            head: Some(head as u32),
            ..Cell::in_layer(Kind::Result.name(), layer)
        });
        match by {
            Part::Component | Part::Neuron => {
                cells.push(Cell::in_layer(Kind::AttnOut.name(), layer));
            }
            Part::Head => cells.extend(heads),
            Part::HeadSource => cells.extend(heads.flat_map(|head| {
                let at = move |place: &Cell| Cell {
                    layer: head.layer,
                    head: head.head,
                    ..place.clone()
                };
                places.positions.iter().map(at)
            })),
            Part::HeadRole => cells.extend(heads.flat_map(|head| {
                let of = move |group: &String| Cell {
                    role: Some(group.clone()),
                    ..head.clone()
                };
                places.groups.names.iter().map(of)
            })),
        }
        if by_head(by) && has_attention_bias(model, layer) {
            cells.push(Cell::in_layer("attn.b_O", layer));
        }
        match (spec.mlp, by) {
            (Mlp::None, _) => {}
            (_, Part::Neuron) => {
                cells.extend((0..spec.d_mlp).map(|neuron| Cell {
                    neuron: Some(neuron as u32),
                    ..Cell::in_layer(Kind::MlpPost.name(), layer)
                }));
                if has_mlp_bias(model, layer) {
                    cells.push(Cell::in_layer("mlp.b_out", layer));
                }
            }
            _ => cells.push(Cell::in_layer(Kind::MlpOut.name(), layer)),
        }
    }
    cells.push(outside("bias"));
    cells
}

impl Attributing<'_> {
    /// The contribution of each part to each prompt of a batch that has it.
    fn contributions(
        &self,
        ends: &mut Ends<'_>,
        readout: &Readout,
        pairs: &[&Pair],
    ) -> Result<Columns> {
        let (model, by) = (self.on.model, self.config.by);
        let readers = ends.stream_readers(&readout.reader)?;
        let mut columns = Columns::new(pairs.len());
        for hook in [Kind::Embed, Kind::PosEmbed].map(Hook::global) {
            if ends.cache.contains(hook) {
                columns.push(&rowwise_dot(&ends.at_end(hook)?, &readers.input)?);
            }
        }
        for layer in 0..model.spec.n_layers {
            let reader = &readers.attn[layer];
            match by {
                Part::Component | Part::Neuron => {
                    let out = ends.at_end(Hook::at(Kind::AttnOut, layer))?;
                    columns.push(&rowwise_dot(&out, reader)?);
                }
                Part::Head => {
                    for head in heads(ends, reader, layer)? {
                        columns.push(&head);
                    }
                }
                Part::HeadSource => {
                    // Prompts of a batch are of one template and length, so they have the same places.
                    let extent = &self.places.extent;
                    let cells = self.places.positions.iter();
                    let has: Vec<bool> = cells.map(|cell| extent.has(cell, pairs[0])).collect();
                    for by_position in sources(ends, reader, layer)? {
                        let mut own = by_position.iter();
                        for &has in &has {
                            match if has { own.next() } else { None } {
                                Some(values) => columns.push(values),
                                None => columns.skip(1),
                            }
                        }
                    }
                }
                Part::HeadRole => {
                    for by_position in sources(ends, reader, layer)? {
                        self.places.groups.push(&mut columns, &by_position, pairs);
                    }
                }
            }
            if by_head(by) && has_attention_bias(model, layer) {
                columns.push(&attention_bias(ends, reader, layer)?);
            }
            let reader = &readers.mlp[layer];
            if by == Part::Neuron {
                let (neurons, bias) = neurons(ends, reader, layer)?;
                neurons.iter().for_each(|neuron| columns.push(neuron));
                if has_mlp_bias(model, layer) {
                    columns.push(&bias);
                }
            } else if model.spec.mlp != Mlp::None {
                let out = ends.at_end(Hook::at(Kind::MlpOut, layer))?;
                columns.push(&rowwise_dot(&out, reader)?);
            }
        }
        let biases = readout.bias.iter().zip(&readers.bias);
        columns.push(
            &biases
                .map(|(end, stream)| end + stream)
                .collect::<Vec<f64>>(),
        );
        debug_assert_eq!(columns.len(), self.cells.len());
        Ok(columns)
    }
}
