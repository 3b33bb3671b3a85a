//! The run: for each place what is found there, exchanged between the runs of the pairs that did not find it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::Mutex;

use serde_json::json;

use super::config::{SubspaceConfig, SubspaceMethod};
use super::find::{Finder, Found, Learned};
use super::judge::{HeldOut, Untouched};
use super::places::{Classes, Place, position};
use super::save;
use super::space::Subspace;
use super::split::{Part, Series};
use crate::error::Result;
use crate::methods::method::{Cost, Prepared, Running, Subject, Unchanged, Unit, stop_if_asked};
use crate::run::Progress;
use crate::scores::{Cell, ExampleScores, Measured};
use crate::task::Task;

pub(super) const ODDS: &str = "odds";
pub(super) const IIA: &str = "iia";
pub(super) const SELECTIVITY: &str = "selectivity";
pub(super) const FLDD: &str = "fldd";
const CONTROL: &str = "control";
const PATCHED: &str = "patched";
const NORM: &str = "norm";
const LOSS_BEFORE: &str = "loss_before";
const LOSS_AFTER: &str = "loss_after";
const DIMS: &str = "dims";
const PROBE: &str = "probe";
const SHUFFLED: &str = "probe_shuffled";
const ISOTROPY: &str = "isoscore";
/// Of the place or of the training pairs, and so no matter of the pairs of the table.
const OF_THE_PLACE: [&str; 7] = [
    NORM,
    LOSS_BEFORE,
    LOSS_AFTER,
    DIMS,
    PROBE,
    SHUFFLED,
    ISOTROPY,
];
/// The logit difference of a pair's two runs, until the table is made.
const CLEAN: &str = "clean";
const CORRUPTED: &str = "corrupted";
/// A clean logit difference below this, in nats, is nothing to take a share of.
const LEAST_CLEAN: f64 = 0.05;
/// A training that lowers its loss by a smaller share than this found nothing.
const LEAST_GAIN: f64 = 0.01;

/// What is measured at a place: of a series, or of the place itself.
type Quantity = (Option<Series>, &'static str);

/// A checked run in progress.
pub(super) struct Exchanging<'a> {
    finder: Finder<'a>,
    quantities: Vec<Quantity>,
    cells: Vec<Cell>,
    ready: Option<(Learned, Vec<HeldOut>)>,
    /// By place, where they will be written.
    found: Mutex<BTreeMap<usize, Vec<Found>>>,
}

impl<'a> Exchanging<'a> {
    pub fn new(on: Subject<'a>, config: &'a SubspaceConfig, running: &'a Running) -> Result<Self> {
        let finder = Finder::new(on, config, running)?;
        let mut quantities: Vec<Quantity> = Vec::new();
        for &series in &finder.series {
            let mut measures = vec![ODDS, IIA];
            if config.control {
                measures.extend([CONTROL, SELECTIVITY]);
            }
            if config.split.is_some() {
                measures.extend([PATCHED, NORM]);
            }
            measures.extend(match (series.method, series.part) {
                (SubspaceMethod::Das, Part::Whole) => &[LOSS_BEFORE, LOSS_AFTER][..],
                (SubspaceMethod::BoundlessDas, _) => &[LOSS_BEFORE, LOSS_AFTER, DIMS],
                (SubspaceMethod::Logistic, Part::Whole) => &[PROBE, SHUFFLED],
                _ => &[],
            });
            quantities.extend(measures.into_iter().map(|measure| (Some(series), measure)));
        }
        quantities.push((None, ISOTROPY));
        let cell = |place: &Place, (series, measure): &Quantity| Cell {
            component: place.hook.kind.name().into(),
            layer: Some(place.layer as u32),
            role: Some(place.role.clone()),
            target: series.map(|series| series.to_string()),
            measure: (*measure != ODDS).then(|| (*measure).into()),
            ..Cell::default()
        };
        let mut cells = Vec::new();
        for place in &finder.places {
            cells.extend(quantities.iter().map(|quantity| cell(place, quantity)));
        }
        Ok(Exchanging {
            finder,
            quantities,
            cells,
            ready: None,
            found: Mutex::default(),
        })
    }

    fn place_of(&self, cells: &Range<usize>) -> usize {
        cells.start / self.quantities.len()
    }

    /// The cell of a quantity at a place.
    fn cell(&self, place: usize, quantity: Quantity) -> Option<usize> {
        let at = self.quantities.iter().position(|own| *own == quantity)?;
        Some(place * self.quantities.len() + at)
    }

    /// Writes the directions; those of parts that were measured elsewhere, or before, are found again.
    fn write(&self, progress: &dyn Progress) -> Result<()> {
        let (finder, config) = (&self.finder, self.finder.config);
        let Some(path) = &config.save else {
            return Ok(());
        };
        let mut found = self.found.lock().expect("no run panicked with it");
        if found.len() < finder.places.len() {
            let again;
            let learned = match &self.ready {
                Some((learned, _)) => learned,
                None => {
                    again = finder.learn(progress)?;
                    &again
                }
            };
            for at in 0..finder.places.len() {
                if let Entry::Vacant(missing) = found.entry(at) {
                    missing.insert(finder.find(learned, at, progress)?);
                }
            }
        }
        let mut named = Vec::new();
        for (place, found) in finder.places.iter().zip(found.values()) {
            let is_one = |of: &&Found| of.series.method != SubspaceMethod::Random;
            for of in found.iter().filter(is_one) {
                named.push((format!("{}.{}", place.name(), of.series), &of.spaces[0]));
            }
        }
        let Subject { model, task } = finder.on;
        let about = json!({
            "version": crate::BUILD,
            "model": model.origin.full_id(),
            "weight_hash": model.origin.weight_hash.get(),
            "task": task.name,
            "seed": task.seed,
        });
        save::write(path, &named, about.to_string())
    }

    /// What was looked at, in words; `other` is the share of runs that prefer the other answer by themselves.
    fn notes(&self, clean: f64, corrupted: f64, other: f64, n: usize) -> Vec<String> {
        let finder = &self.finder;
        let text = |tokens: &[u32]| {
            let texts = finder.on.task.texts(tokens);
            texts
                .iter()
                .map(|text| text.trim())
                .collect::<Vec<_>>()
                .join("/")
        };
        let mut notes = vec![format!(
            "found on {} pairs and judged on {n} others: their logit_diff is {clean:.3} on clean prompts and {corrupted:.3} on corrupted \
             ones, so a change of everything would have odds of {:.3}",
            finder.split.train.len(),
            clean - corrupted
        )];
        notes.push(format!(
            "before anything is exchanged, a share of {other:.2} of the runs prefers the other answer: compare `iia` with it"
        ));
        notes.extend(self.dimensions());
        if finder.split.shared > 0 {
            notes.push(format!(
                "{} more pairs share a prompt with a training pair, or are a pair that judges again or turned round; they judge nothing",
                finder.split.shared
            ));
        }
        notes.push(match &finder.classes {
            Classes::Answers([first, second]) => format!(
                "classes: prompts that ask for `{}` and for `{}`",
                text(first),
                text(second)
            ),
            Classes::Sides => {
                "classes: clean prompts and corrupted ones, since the task has more than two answers".into()
            }
        });
        if let Some([first, second]) = finder.arbitrary {
            notes.push(format!(
                "arbitrary labels: `{}` and `{}`",
                text(&[first]),
                text(&[second])
            ));
        }
        notes
    }

    /// How many dimensions each method exchanges, where they differ; all of the activation aside.
    fn dimensions(&self) -> Option<String> {
        let config = self.finder.config;
        let of = |method: &SubspaceMethod| match method {
            SubspaceMethod::Full => None,
            SubspaceMethod::BoundlessDas => Some(format!("at most {}", config.training.most_dims)),
            method if method.takes_dims() => Some(config.dims.to_string()),
            _ => Some("1".to_string()),
        };
        let all: Vec<(SubspaceMethod, String)> = (config.methods.iter())
            .filter_map(|method| Some((*method, of(method)?)))
            .collect();
        let differ = all.iter().any(|(_, dims)| *dims != all[0].1);
        let named: Vec<String> = (all.iter())
            .map(|(method, dims)| format!("`{method}` {dims}"))
            .collect();
        differ.then(|| format!("dimensions: {}", named.join(", ")))
    }

    /// Methods whose loss hardly fell somewhere, or that chose nothing there.
    fn untrained(&self, first: &ExampleScores) -> Vec<String> {
        let finder = &self.finder;
        let mut warnings = Vec::new();
        for &series in &finder.series {
            let value = |at: usize, measure: &'static str| {
                first.value(self.cell(at, (Some(series), measure))?)
            };
            let (mut none, mut stood) = (Vec::new(), Vec::new());
            for (at, place) in finder.places.iter().enumerate() {
                let losses = value(at, LOSS_BEFORE).zip(value(at, LOSS_AFTER));
                let hardly_fell =
                    losses.is_some_and(|(before, after)| after > (1.0 - LEAST_GAIN) * before);
                if value(at, DIMS) == Some(0.0) {
                    none.push(place.name());
                } else if hardly_fell {
                    stood.push(place.name());
                }
            }
            if let Some(one) = none.first() {
                warnings.push(format!(
                    "`{series}` chose no dimension at {} of {} places (`{one}` for one), so nothing is exchanged there: by its loss no \
                     dimension was worth its share; let it choose of more (`Training::most_dims`), or take more steps \
                     (`Training::steps`) or another place",
                    none.len(),
                    finder.places.len()
                ));
            }
            if let Some(one) = stood.first() {
                warnings.push(format!(
                    "`{series}` did not train at {} of {} places (`{one}` for one): its loss on the training pairs hardly fell, so what \
                     it found is no better than a start at random; take more steps (`Training::steps`), another rate \
                     (`Training::rate`) or another place",
                    stood.len(),
                    finder.places.len()
                ));
            }
        }
        warnings
    }

    /// How much of the clean logit difference each exchange takes, in hundredths: a ratio of means.
    fn add_fldd(&self, measured: &mut Measured, clean: f64) {
        let n = measured.examples.len() as f64;
        if clean < LEAST_CLEAN {
            measured.warnings.push(format!(
                "the logit_diff of clean prompts is {clean:.3} in the mean, and `fldd` is a share of it, so it says nothing here; look at \
                 the odds, or take a task that the model does"
            ));
        }
        let (mut cells, mut values) = (Vec::new(), Vec::new());
        for at in 0..self.finder.places.len() {
            for &series in &self.finder.series {
                let cell = self.cell(at, (Some(series), PATCHED)).expect("it is split");
                let each = measured.examples.iter().filter_map(|one| one.value(cell));
                values.push(Some(100.0 * (1.0 - each.sum::<f64>() / n / clean)));
                cells.push(Cell {
                    measure: Some(FLDD.into()),
                    ..self.cells[cell].clone()
                });
            }
        }
        let first = measured.append(cells, |_, _| values.clone());
        (first..measured.cells.len()).for_each(|cell| {
            measured.intervals.insert(cell, None);
        });
    }
}

impl Prepared for Exchanging<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        2 * self.finder.base_bytes(length)
    }

    /// One place is one unit: what is trained there is trained once.
    fn units(&self, _: &Task, _: &Running) -> Vec<Unit> {
        let n = self.quantities.len();
        let unit = |at: usize| Unit {
            items: self.finder.split.held_out.clone(),
            cells: at * n..(at + 1) * n,
        };
        (0..self.finder.places.len()).map(unit).collect()
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let (finder, config) = (&self.finder, self.finder.config);
        let place = &finder.places[self.place_of(&unit.cells)];
        let pair = &finder.on.task.pairs()[unit.items[0]];
        let (length, layers) = (pair.clean.len(), finder.on.model.spec.n_layers);
        let from = position(pair, 0, &place.role).unwrap_or(0);
        // The part of a pass that an edit there leaves to be run.
        let left = ((layers - place.layer) * (length - from)) as f64 / (layers * length) as f64;
        let readings = if config.control { 2 } else { 1 };
        let trained = config.methods.iter().filter(|method| method.is_trained());
        let trained = readings * trained.count();
        let variants = finder.series.iter().map(|series| match series.method {
            SubspaceMethod::Random => config.draws,
            _ => 1,
        });
        let variants = 2 * readings * variants.sum::<usize>();
        let (n_train, n_judge) = (finder.split.train.len(), finder.split.held_out.len());
        // Each step is four rows forward and backward; the loss before and after is that of all rows.
        let rows = trained * 4 * (config.training.steps + n_train);
        // All pairs share what finding takes, and all places the passes before.
        let before = 2 * (n_train + n_judge);
        let shared = 3.0 * left * rows as f64 + before as f64 / finder.places.len() as f64;
        let n = unit.items.len();
        Ok(Cost {
            variants: n * variants,
            packed: (n * variants) as f64 * left,
            bytes: n * self.bytes(length),
            ..Cost::passes(n as f64 * shared / n_judge as f64)
        })
    }

    fn begin(&mut self, progress: &dyn Progress) -> Result<()> {
        let learned = self.finder.learn(progress)?;
        stop_if_asked(progress)?;
        self.ready = Some((learned, self.finder.held_out()?));
        Ok(())
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let finder = &self.finder;
        let (learned, held_out) = self.ready.as_ref().expect("the loop begins first");
        let at = self.place_of(&unit.cells);
        let place = &finder.places[at];
        let found = finder.find(learned, at, progress)?;
        let isotropy = finder.isotropy(learned, at);
        let spaces: Vec<Vec<&Subspace>> =
            found.iter().map(|of| of.spaces.iter().collect()).collect();
        let controls: Vec<Vec<&Subspace>> = found.iter().map(Found::controls).collect();
        let width = place.hook.width(&finder.on.model.spec);
        let mut rows: BTreeMap<usize, (Vec<f64>, Untouched)> = BTreeMap::new();
        for batch in held_out {
            stop_if_asked(progress)?;
            let bases = finder.bases_of(batch)?;
            let items = &batch.items;
            let verdicts = finder.judge(place, items, &bases, &spaces, None)?;
            let control = match finder.arbitrary {
                None => Vec::new(),
                arbitrary => finder.judge(place, items, &bases, &controls, arbitrary)?,
            };
            let untouched = finder.untouched(items, &bases)?;
            for (i, &item) in items.iter().enumerate() {
                let value = |&(series, measure): &Quantity| {
                    let Some(series) = series else {
                        return isotropy;
                    };
                    let of = found.iter().position(|found| found.series == series);
                    let of = of.expect("a series of the table");
                    let (found, verdict) = (&found[of], verdicts[i][of]);
                    let control = || control[i][of].odds;
                    let [losses, probe] =
                        [found.losses, found.probe].map(|of| of.unwrap_or([f64::NAN; 2]));
                    match measure {
                        IIA => verdict.iia,
                        CONTROL => control(),
                        SELECTIVITY => verdict.odds - control(),
                        PATCHED => verdict.patched,
                        NORM => found.length,
                        LOSS_BEFORE => losses[0],
                        LOSS_AFTER => losses[1],
                        PROBE => probe[0],
                        SHUFFLED => probe[1],
                        DIMS => found.spaces[0].dims(width) as f64,
                        _ => verdict.odds,
                    }
                };
                let values = self.quantities.iter().map(value).collect();
                rows.insert(item, (values, untouched[i]));
            }
            progress.advance((items.len() * unit.cells.len()) as u64);
        }
        if finder.config.save.is_some() {
            let mut all = self.found.lock().expect("no run panicked with it");
            all.insert(at, found);
        }
        let values = unit.items.iter().map(|item| rows[item].0.clone());
        let mut examples = unit.examples(finder.on.task, values.collect(), |i| Unchanged {
            clean: f64::NAN,
            corrupted: f64::NAN,
            judged: rows[&unit.items[i]].1.judged,
        });
        for (one, item) in examples.iter_mut().zip(&unit.items) {
            let Untouched {
                clean, corrupted, ..
            } = rows[item].1;
            one.facts.insert(CLEAN.into(), clean);
            one.facts.insert(CORRUPTED.into(), corrupted);
        }
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, progress: &dyn Progress) -> Result<()> {
        let n = measured.examples.len();
        let facts = |name: &str| -> Vec<f64> {
            let of = |one: &ExampleScores| one.facts.get(name).copied().unwrap_or(f64::NAN);
            measured.examples.iter().map(of).collect()
        };
        let [clean, corrupted] = [CLEAN, CORRUPTED].map(facts);
        let mean = |of: &[f64]| of.iter().sum::<f64>() / n as f64;
        let keeps = corrupted
            .iter()
            .filter(|&&corrupted| corrupted > 0.0)
            .count();
        let misses = clean.iter().filter(|&&clean| clean < 0.0).count();
        let other = (keeps + misses) as f64 / (2 * n) as f64;
        measured
            .notes
            .extend(self.notes(mean(&clean), mean(&corrupted), other, n));
        if 2 * keeps > n {
            measured.warnings.push(format!(
                "{keeps} of {n} corrupted prompts ask for the answer still, so there is no other label to exchange; take a corruption that \
                 turns the answer into the wrong one"
            ));
        }
        measured
            .warnings
            .extend(self.untrained(&measured.examples[0]));
        for (at, cell) in self.cells.iter().enumerate() {
            let measure = cell.measure.as_deref().unwrap_or(ODDS);
            if OF_THE_PLACE.contains(&measure) {
                measured.intervals.insert(at, None);
            }
        }
        if self.finder.config.split.is_some() {
            self.add_fldd(measured, mean(&clean));
        }
        for one in &mut measured.examples {
            one.facts
                .retain(|name, _| name != CLEAN && name != CORRUPTED);
        }
        self.write(progress)
    }
}
