//! Component attribution by regression (COAR): how much each part of the model is worth to the metric where many others are missing.
//!
//! Parts (heads, MLPs, neurons) are removed at random, many at a time, by masks that all prompts share; a sparse linear function of the
//! masks is fitted to the metric of each prompt (lasso, its penalty chosen on a tenth of the masks), and a part's score is its weight:
//! what the metric gains by its presence. Whether such a function says anything is measured on fresh masks that remove other shares of the
//! parts: the correlation of what it predicts with what happens, beside that of leaving one out at a time, of attribution patching, and
//! of a fit to shuffled outcomes.
//!
//! Source: Shah, Ilyas and Madry 2024, "Decomposing and Editing Predictions by Modeling Model Computation", arXiv 2404.11534. There the
//! outcome is a margin over all classes; here it is the metric. Left out on purpose: masks over rows of weights, which are other models and
//! not other runs.

mod config;
mod regression;

use std::collections::{BTreeSet, HashMap};

use serde_json::{Value, json};

pub use config::{ComponentKind, ComponentsConfig};
use regression::{Mask, drawn, fit, regressors, shuffled, without};

use super::activation_patching::Patching;
use super::attribution::NodeAttributionConfig;
use super::method::{
    Cost, Method, Needs, Preparation, Prepared, Running, Subject, Unit, stop_if_asked, unmeasured,
};
use super::removal::Removal;
use super::tokens::InCells;
use crate::error::{Error, Result};
use crate::hooks::{Edit, Site};
use crate::run::{Progress, Quiet, Variant};
use crate::scores::statistics::{correlation, dot, mean};
use crate::scores::{Cell, Direction, ExampleScores, Measured, ScoresMeta};
use crate::spec::ModelSpec;
use crate::task::Task;

/// Runs that are handed to the engine together.
const AT_ONCE: usize = 256;

impl Method for ComponentsConfig {
    fn header(&self, task: &Task) -> ScoresMeta {
        let metric = self.metric(task);
        ScoresMeta::new(
            "coar",
            metric.to_string(),
            metric.unit(),
            Direction::Direct,
            self.seed(task),
        )
    }

    fn settings(&self) -> Value {
        json!({
            "components": self.kind, "layers": self.layers, "removal": self.removal, "keep": self.keep, "masks": self.masks,
            "rates": self.rates, "fresh": self.fresh,
        })
    }

    fn needs(&self, task: &Task) -> Needs {
        Needs {
            aligned: self.removal == Removal::Pair,
            metric: Some(self.metric(task)),
            whole_answers: true,
            ..Needs::default()
        }
    }

    fn check(&self, spec: &ModelSpec, task: &Task) -> Result<()> {
        self.check_numbers(spec)?;
        self.patching(spec).check(spec, task)
    }

    fn prepare<'a>(&'a self, on: Subject<'a>, running: &'a Running) -> Preparation<'a> {
        Ok(Box::new(Regressing::new(on, self, running)?))
    }
}

/// Who predicts what fresh masks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Predictor {
    Coar,
    LeaveOneOut,
    Atp,
    Shuffled,
}

impl Predictor {
    const ALL: [Predictor; 4] = [
        Predictor::Coar,
        Predictor::LeaveOneOut,
        Predictor::Atp,
        Predictor::Shuffled,
    ];

    fn name(self) -> &'static str {
        match self {
            Predictor::Coar => "coar",
            Predictor::LeaveOneOut => "leave-one-out",
            Predictor::Atp => "atp",
            Predictor::Shuffled => "shuffled",
        }
    }
}

/// A checked run in progress.
struct Regressing<'a> {
    on: Subject<'a>,
    config: &'a ComponentsConfig,
    running: &'a Running,
    patching: Patching<'a>,
    sites: Vec<Site>,
    /// Weights, and after them the correlations: for each rate those of each predictor.
    cells: Vec<Cell>,
    /// Masks that weights are fitted to, those that leave one out, and fresh ones for each rate.
    fitted: Vec<Mask>,
    single: Vec<Mask>,
    fresh: Vec<Vec<Mask>>,
    /// All that remove something, each once.
    changing: Vec<Mask>,
    /// Attribution patching of the same, or why there is none.
    estimates: std::result::Result<NodeAttributionConfig, String>,
}

impl<'a> Regressing<'a> {
    fn new(on: Subject<'a>, config: &'a ComponentsConfig, running: &'a Running) -> Result<Self> {
        let Subject { model, task } = on;
        let (mut cells, sites): (Vec<Cell>, Vec<Site>) =
            config.components(&model.spec).into_iter().unzip();
        let n = cells.len();
        let (masks, held) = (config.n_masks(n), regression::held(config.n_masks(n), n));
        if let Some(memory) = running.memory.filter(|memory| *memory < held) {
            return Err(Error::invalid(format!(
                "a fit to {masks} masks of {n} {} holds {} MB, and {} MB may be taken (`Running::memory`); take fewer masks \
                 (`ComponentsConfig::masks`), fewer layers, or more memory",
                config.kind.name(),
                held.div_ceil(1_000_000),
                memory / 1_000_000
            )));
        }
        let seed = config.seed(task);
        let removed = config.removed(n);
        for (_, rate) in &removed {
            cells.extend(Predictor::ALL.map(|predictor| Cell {
                component: predictor.name().into(),
                measure: Some(format!("pearson_{rate}")),
                ..Cell::default()
            }));
        }
        let fresh = |(k, &(removed, _)): (usize, &(usize, f64))| {
            without(n, removed, config.fresh, seed, 1 + k as u64)
        };
        let mut regressing = Regressing {
            on,
            config,
            running,
            patching: Patching::new(on, config.patching(&model.spec), running)?,
            sites,
            cells,
            fitted: drawn(n, config.keep, config.n_masks(n), seed),
            single: (0..n).map(|i| (0..n).map(|j| i != j).collect()).collect(),
            fresh: removed.iter().enumerate().map(fresh).collect(),
            changing: Vec::new(),
            estimates: (config.estimates(&model.spec, task)).map_err(|error| error.to_string()),
        };
        let some_are_missing = |mask: &&Mask| mask.contains(&false);
        let changing: BTreeSet<&Mask> = regressing.masks().filter(some_are_missing).collect();
        regressing.changing = changing.into_iter().cloned().collect();
        Ok(regressing)
    }

    fn n(&self) -> usize {
        self.sites.len()
    }

    fn masks(&self) -> impl Iterator<Item = &Mask> {
        let fresh = self.fresh.iter().flatten();
        self.fitted.iter().chain(&self.single).chain(fresh)
    }

    /// The sites that a mask changes; those of one hook are one.
    fn removed(&self, mask: &Mask) -> Vec<Site> {
        let removed = self.sites.iter().zip(mask).filter(|(_, is)| !**is);
        Site::joined(removed.map(|(site, _)| site.clone()))
    }

    /// What each component is worth by attribution patching, for each item.
    fn estimated(&self, unit: &Unit, base: &[f64]) -> Result<Option<Vec<Vec<f64>>>> {
        let Ok(config) = &self.estimates else {
            return Ok(None);
        };
        let mut prepared = config.prepare(self.on, self.running)?;
        prepared.begin(&Quiet)?;
        let place: HashMap<&Cell, usize> = prepared.cells().iter().zip(0..).collect();
        let own = self.cells[..self.n()].iter();
        let at: Option<Vec<usize>> = own.map(|cell| place.get(cell).copied()).collect();
        let at =
            at.ok_or_else(|| Error::invalid("attribution patching has no row of some component"))?;
        let whole = Unit {
            items: unit.items.clone(),
            cells: 0..prepared.cells().len(),
        };
        let examples = prepared.measure(&whole, &Quiet)?;
        let worth = |(one, base): (&ExampleScores, &f64)| -> Option<Vec<f64>> {
            let value = |&cell: &usize| Some(base - one.value(cell)?);
            at.iter().map(value).collect()
        };
        Ok(examples.iter().zip(base).map(worth).collect())
    }
}

impl Prepared for Regressing<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        self.patching.bytes(length)
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let length = self.on.task.pairs()[unit.items[0]].clean.len();
        let items = unit.items.len();
        let variants = items * self.changing.len();
        let estimates = if self.estimates.is_ok() { 5.0 } else { 0.0 };
        Ok(Cost {
            variants,
            packed: variants as f64,
            bytes: items * self.bytes(length),
            held: regression::held(self.fitted.len(), self.n()),
            seconds: items as f64 * regression::seconds(self.fitted.len(), self.n()),
            ..Cost::passes((2.0 + estimates) * items as f64)
        })
    }

    fn begin(&mut self, progress: &dyn Progress) -> Result<()> {
        self.patching.begin(progress)
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let task = self.on.task;
        let contrast = self.patching.contrast(&unit.items)?;
        let estimated = self.estimated(unit, &contrast.base_metric)?;
        let seed = self.config.seed(task);
        let mut examples = Vec::with_capacity(unit.items.len());
        for (i, &item) in unit.items.iter().enumerate() {
            let whole = contrast.base_metric[i];
            let progress = InCells::new(progress, self.cells.len(), self.changing.len());
            let mut outcome: HashMap<&Mask, f64> = HashMap::new();
            for some in self.changing.chunks(AT_ONCE) {
                stop_if_asked(&progress)?;
                let variant = |mask: &Mask| Variant {
                    example: i,
                    edits: (self.removed(mask).into_iter())
                        .map(|site| Edit::new(site, contrast.op.clone()))
                        .collect(),
                };
                let variants: Vec<Variant> = some.iter().map(variant).collect();
                let measured = self.patching.changed(&contrast, &variants)?;
                progress.advance(some.len() as u64);
                outcome.extend(some.iter().zip(measured));
            }
            // A mask that removes nothing leaves the clean run.
            let outcomes: Vec<f64> = (self.masks())
                .map(|mask| outcome.get(mask).copied().unwrap_or(whole))
                .collect();
            let (fitted, rest) = outcomes.split_at(self.fitted.len());
            let (single, fresh) = rest.split_at(self.single.len());
            let x = regressors(&self.fitted);
            let (linear, penalty) = fit(&x, fitted);
            let alone: Vec<f64> = single.iter().map(|value| whole - value).collect();
            let by_chance = fit(&x, &shuffled(fitted, seed)).0.weights;
            let weights = |predictor: Predictor| match predictor {
                Predictor::Coar => Some(&linear.weights),
                Predictor::LeaveOneOut => Some(&alone),
                Predictor::Atp => estimated.as_ref().map(|all| &all[i]),
                Predictor::Shuffled => Some(&by_chance),
            };
            let mut rows: Vec<(usize, f64)> = linear.weights.iter().copied().enumerate().collect();
            for (rate, masks) in self.fresh.iter().enumerate() {
                let outcomes = &fresh[rate * self.config.fresh..][..self.config.fresh];
                if outcomes.iter().all(|outcome| *outcome == outcomes[0]) {
                    // Where nothing varies there is nothing to predict.
                    continue;
                }
                let x = regressors(masks);
                for (which, predictor) in Predictor::ALL.into_iter().enumerate() {
                    let Some(weights) = weights(predictor) else {
                        continue;
                    };
                    // An intercept moves no correlation.
                    let predicted = x.iter().map(|row| dot(row, weights));
                    let pairs: Vec<(f64, f64)> = predicted.zip(outcomes.iter().copied()).collect();
                    // What predicts one value for all of them predicts nothing.
                    let value = correlation(&pairs).unwrap_or(0.0);
                    rows.push((self.n() + rate * Predictor::ALL.len() + which, value));
                }
            }
            let mut one = unmeasured(task, item, whole, contrast.other_metric[i]);
            one.judged(contrast.judged(i));
            one.cells = rows.iter().map(|row| row.0 as u32).collect();
            one.values = rows.into_iter().map(|row| row.1).collect();
            one.facts.insert("penalty".into(), penalty);
            let used = linear.weights.iter().filter(|weight| **weight != 0.0);
            one.facts.insert("weights".into(), used.count() as f64);
            examples.push(one);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let name = self.config.kind.name();
        let fact = |fact: &str| {
            let facts = measured
                .examples
                .iter()
                .filter_map(|one| one.facts.get(fact));
            mean(&facts.copied().collect::<Vec<f64>>())
        };
        measured.notes.push(format!(
            "{} {name}, removed by `{}`: weights fitted to {} masks that keep {} of them, {:.0} in the mean not 0 (penalty {:.2e})",
            self.n(),
            self.config.removal,
            self.fitted.len(),
            self.config.keep,
            fact("weights"),
            fact("penalty"),
        ));
        if let Err(why) = &self.estimates {
            measured
                .notes
                .push(format!("no attribution patching beside it: {why}"));
        }
        let removed = self.config.removed(self.n());
        for (rate, (count, share)) in removed.into_iter().enumerate() {
            let values = |which: usize| -> Vec<f64> {
                let cell = self.n() + rate * Predictor::ALL.len() + which;
                let values = measured.examples.iter().filter_map(|one| one.value(cell));
                values.collect()
            };
            let of = |which: usize| -> Option<String> {
                let values = values(which);
                let predictor = Predictor::ALL[which].name();
                (!values.is_empty()).then(|| format!("{predictor} {:.3}", mean(&values)))
            };
            let found: Vec<String> = (0..Predictor::ALL.len()).filter_map(of).collect();
            measured.notes.push(format!(
                "correlation of what is predicted and what happens, on {} fresh masks without {count} of {} ({share}), {}",
                self.config.fresh,
                self.n(),
                match (values(0).len(), measured.examples.len()) {
                    (0, _) => "there is none: on no prompt does what happens vary".to_string(),
                    (1, 1) => format!("of one prompt: {}", found.join(", ")),
                    (n, all) if n == all => format!("the mean of {n} prompts: {}", found.join(", ")),
                    (n, all) => format!(
                        "the mean of {n} of {all} prompts (on the others nothing varies): {}",
                        found.join(", ")
                    ),
                },
            ));
        }
        measured.drop_unmeasured();
        Ok(())
    }
}
