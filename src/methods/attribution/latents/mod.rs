//! Latents of a sparse autoencoder as what is patched: estimates from gradients, and the exact effects.
//!
//! Where the dictionary is attached, `x = decode(encode(x)) + error`, and nothing changes as long as nothing is edited. Patching a latent adds
//! `(a' - a) W_dec[latent]` at its positions and leaves everything else there, the error with it, as it was; `a'` is the latent's value in
//! the pair's other run, or 0. The error is a part of its own, with a row. What all latents and the error do together is what patching the
//! whole hook does (with zeros: all but the decoder's bias).
//!
//! AtP is `<(a' - a) W_dec[latent], d metric / d x>`; integrated gradients average the gradient over the straight line of the hook's own
//! value between both ends, so that the estimates of all latents and the error sum to the exact effect of the whole, up to the
//! quadrature. The rows of a pair in which a latent is the same in both runs have effect 0, which is exact; latents that do nothing in any
//! pair have no row.
//!
//! Sources: Marks et al. 2024, "Sparse Feature Circuits" (arXiv 2403.19647), where the error node is; Syed et al. 2023 (AtP). Left out on
//! purpose: latents whose own gradients are taken through the encoder of another layer's (edges between latents).

mod change;
mod config;
mod exact;
mod parts;

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Value, json};

use change::{Change, changes};
pub use config::{LatentConfig, LatentEstimate};
use exact::Patching;
use parts::{ON, Part, Parts, conclude, mean};

use super::runs::{Gradients, Runs};
use super::setting::{Setting, check_metric};
use crate::error::{Error, Result};
use crate::hooks::{Hook, Kind, Ln};
use crate::methods::activation_patching::PatchSource;
use crate::methods::choice::{Heads, Layers};
use crate::methods::method::{
    Cost, Exact, Method, Needs, Preparation, Prepared, Running, Subject, Unit, unmeasured,
};
use crate::methods::sites::{Along, Extent};
use crate::nn::host::{on_host, to_host};
use crate::nn::rules::Rules;
use crate::run::Progress;
use crate::sae::{ERROR, LATENTS};
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

impl Method for LatentConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        let name = match self.estimate {
            LatentEstimate::Atp => "latent-atp",
            LatentEstimate::IntegratedGradients { .. } => "latent-ig",
            LatentEstimate::Exact => "latent_patching",
        };
        ScoresMeta::new(name, metric, metric.unit(), self.direction, task.seed)
    }

    fn settings(&self) -> Value {
        json!({
            "sae": self.sae.settings(),
            "estimate": self.estimate,
            "source": self.source,
            "along": self.along,
            "latents": self.latents,
        })
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            aligned: self.source == PatchSource::Pair,
            metric: Some(self.metric(task)),
            gradient: !self.is_exact(),
            whole_answers: true,
            roles: self.along == Along::Role,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.sae.check(spec)?;
        let of_pair = matches!(self.direction, Direction::Denoise | Direction::Noise);
        match self.source {
            PatchSource::Pair if of_pair => {}
            PatchSource::Zero if self.direction == Direction::Ablate => {}
            PatchSource::Pair | PatchSource::Zero => {
                return Err(Error::invalid(
                    "latents of the pair's other run are put in by `denoise` or `noise`; taking latents away is `ablate`, of the clean run",
                ));
            }
            source => {
                return Err(Error::invalid(format!(
                    "latents are set to the pair's other run (`pair`) or to zero, not to `{source}`"
                )));
            }
        }
        if self.along == Along::Cell {
            return Err(Error::invalid(
                "latents stand at positions; take them by `pos`, by `role`, or `all` together",
            ));
        }
        let chosen = self.latents.iter().flatten();
        for &latent in chosen.clone() {
            self.sae.check_latent(latent)?;
        }
        if self.latents.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::invalid(
                "name at least one latent, or leave them out",
            ));
        }
        self.path().check()?;
        if self.is_exact() {
            return Ok(());
        }
        let read = [self.sae.reads, self.sae.writes];
        let after_all = |hook: &&Hook| matches!(hook.kind, Kind::Normalized(Ln::Final));
        let by_head = |hook: &&Hook| {
            matches!(
                hook.kind,
                Kind::QInput | Kind::KInput | Kind::VInput | Kind::Result
            )
        };
        if let Some(hook) = read.iter().find(|hook| after_all(hook) || by_head(hook)) {
            return Err(Error::HookAbsent {
                hook: hook.to_string(),
                reason:
                    "no gradient is taken there; patch its latents exactly (`LatentConfig::exact`)"
                        .into(),
            });
        }
        let metric = self.metric(task);
        if self.estimate == LatentEstimate::Atp
            && metric.needs_reference()
            && self.direction != Direction::Denoise
        {
            return Err(Error::NoGradient {
                metric: metric.to_string(),
                reason: "it is smallest at the clean run, where its gradient is zero; take integrated gradients or exact effects, denoise, or \
                         another metric"
                    .into(),
            });
        }
        check_metric(metric, self.direction, false)
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        let sae = &self.sae;
        let extent = Extent::new(on.task, &Layers::default(), &Heads::default());
        let latents: Vec<usize> = match &self.latents {
            None => (0..sae.d_sae).collect(),
            Some(chosen) => {
                let mut chosen = chosen.clone();
                chosen.sort_unstable();
                chosen.dedup();
                chosen
            }
        };
        let (hook, layer) = (sae.writes.kind.name(), sae.writes.layer);
        let part = |place: &Cell, latent: Option<usize>| Cell {
            component: format!("{hook}.{}", latent.map_or(ERROR, |_| LATENTS)),
            layer: layer.map(|layer| layer as u32),
            neuron: latent.map(|latent| latent as u32),
            ..place.clone()
        };
        let places = extent.places(self.along);
        let only: Option<HashSet<&Cell>> = self.only.as_ref().map(|only| only.iter().collect());
        // Which cell each latent of a place is, and its error.
        let (mut cells, mut at) = (Vec::new(), HashMap::new());
        for (index, place) in places.iter().enumerate() {
            for latent in latents.iter().copied().map(Some).chain([None]) {
                let cell = part(place, latent);
                if only.as_ref().is_none_or(|only| only.contains(&cell)) {
                    at.insert((index, cell.neuron), cells.len() as u32);
                    cells.push(cell);
                }
            }
        }
        let parts = Parts {
            along: self.along,
            extent,
            places,
            at,
        };
        if self.is_exact() {
            let patching = Patching::new(on, self, cells, parts, running)?;
            return Ok(Box::new(patching));
        }
        let mut hooks = vec![sae.reads, sae.writes];
        hooks.dedup();
        Ok(Box::new(Attributing {
            config: self,
            setting: Setting {
                model: on.model,
                task: on.task,
                metric: self.metric(on.task),
                direction: self.direction,
                source: self.source,
                source_model: None,
                hooks,
                memory: running.memory_now(),
            },
            cells,
            parts,
        }))
    }

    fn exact(&self, cells: &[Cell]) -> Option<Exact> {
        (!self.is_exact()).then(|| Exact {
            method: Box::new(LatentConfig {
                estimate: LatentEstimate::Exact,
                only: Some(cells.to_vec()),
                ..self.clone()
            }),
            sign: 1.0,
            sizes: false,
        })
    }
}

/// A checked run in progress.
struct Attributing<'a> {
    config: &'a LatentConfig,
    setting: Setting<'a>,
    cells: Vec<Cell>,
    parts: Parts,
}

impl Prepared for Attributing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        // Inputs of the latents of some rows, in both runs.
        let sae = &self.config.sae;
        self.setting.bytes(length, 4 * sae.d_out) + 8 * length.min(128) * sae.d_sae
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let points = self.config.path().points(true).len() as f64;
        Ok(Cost::passes(unit.items.len() as f64 * (3.0 + 2.0 * points)))
    }

    fn measure(&self, unit: &Unit, _: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let (config, sae) = (self.config, &*self.config.sae);
        let runs = Runs::record(&self.setting, &unit.items, &BTreeMap::new(), &[])?;
        let values = |hook| Ok::<_, Error>([runs.base_values(hook)?, runs.other_values(hook)?]);
        let host = |values: [candle_core::Tensor; 2]| -> Result<[Vec<f32>; 2]> {
            let [base, other] = values;
            Ok([to_host(&base)?, to_host(&other)?])
        };
        let inputs = host(values(sae.reads)?)?;
        let apart = match sae.is_transcoder() {
            true => Some(host(values(sae.writes)?)?),
            false => None,
        };
        let outputs = apart.as_ref().unwrap_or(&inputs);
        let positions: Vec<usize> = (runs.rows.segments.iter())
            .flat_map(|segment| segment.positions.iter().map(|&pos| pos as usize))
            .collect();
        let zero = config.source == PatchSource::Zero;
        let (changes, on) = changes(sae, &positions, &inputs, outputs, zero);
        let gradient = self.gradient(&runs, &outputs[0], &changes)?;
        let mut examples = Vec::with_capacity(unit.items.len());
        for (i, &item) in unit.items.iter().enumerate() {
            let rows = runs.rows_of(i);
            let of_pair = self.parts.gather(runs.pairs[i], &changes[rows.clone()]);
            let mut one = unmeasured(self.setting.task, item, runs.clean[i], runs.corrupted[i]);
            one.judged(runs.judged[i]);
            one.tokens = self.setting.task.texts(&runs.base.prompts[i]);
            let base = one.base(config.direction);
            let effect = |parts: &Vec<Part<'_>>| -> f64 {
                let each = parts.iter().map(|part| {
                    let row = (rows.start + part.row) * sae.d_out;
                    part.what.along(sae, &gradient[row..row + sae.d_out])
                });
                each.sum()
            };
            one.values = of_pair.values().map(|parts| base + effect(parts)).collect();
            one.cells = of_pair.into_keys().collect();
            one.facts.insert(ON.into(), mean(&on[rows]));
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        conclude(measured, self.config, &self.parts, self.setting.task);
        Ok(())
    }
}

impl Attributing<'_> {
    /// The gradient at the hook that is written, averaged over the points of the path.
    /// # Shapes
    /// `base [rows, d_out]`; gives the same.
    fn gradient(&self, runs: &Runs<'_>, base: &[f32], changes: &[Change]) -> Result<Vec<f32>> {
        let sae = &*self.config.sae;
        let clean_is_base = self.config.direction != Direction::Denoise;
        let mut mean = vec![0.0; base.len()];
        let mut delta = vec![0.0; base.len()];
        for (change, delta) in changes.iter().zip(delta.chunks_exact_mut(sae.d_out)) {
            change.add_to(sae, delta);
        }
        for (point, share) in self.config.path().points(clean_is_base) {
            let mut gradients = Gradients::at([sae.writes]);
            let tape = match point == 1.0 {
                true => None,
                false => {
                    let mut values = to_host(runs.base.get(sae.writes)?)?;
                    let rows = delta.chunks_exact(sae.d_out);
                    for (delta, row) in rows.zip(runs.rows.in_whole()) {
                        let row = row as usize * sae.d_out;
                        let values = values[row..row + sae.d_out].iter_mut().zip(delta);
                        values.for_each(|(value, delta)| *value += (1.0 - point) * delta);
                    }
                    Some(runs.with_values(sae.writes, values, 0, &[])?)
                }
            };
            runs.descend(
                tape.as_ref().unwrap_or(&runs.base),
                &Rules::gradient(),
                &mut gradients,
            )?;
            let gradient = gradients.kept.get(&sae.writes).ok_or_else(|| {
                Error::invalid(format!(
                    "no gradient arrives at `{}`: nothing there moves the metric",
                    sae.writes
                ))
            })?;
            let gradient = to_host(&on_host(gradient)?)?;
            let sums = mean.iter_mut().zip(&gradient);
            sums.for_each(|(sum, gradient)| *sum += share * gradient);
        }
        Ok(mean)
    }
}
