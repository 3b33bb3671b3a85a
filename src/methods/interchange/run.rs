//! The run: what sources hold at each place, put into the runs of their bases.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::LazyLock;

use serde_json::json;

use super::changes::{Change, Held, How, Needed, Planned};
use super::config::{Decode, InterchangeConfig};
use super::design::{Design, Item};
use super::places::Place;
use crate::error::Result;
use crate::hooks::{Hook, Kind};
use crate::methods::captured::base_bytes;
use crate::methods::method::{Cost, Prepared, Running, Subject, Unit};
use crate::metric::{Metric, Target};
use crate::run::{BaseRun, Progress, Quiet, Readout, Sources, SweepOptions, Variant, sweep};
use crate::scores::statistics::{mean, wilson};
use crate::scores::{Cell, ExampleScores, Measured};
use crate::task::Task;

pub(super) const IIA: &str = "iia";
pub(super) const RANDOM: &str = "iia_random";
pub(super) const SHUFFLED: &str = "iia_shuffled";
const ALL: &str = "iia_all";
const ACCURACY: &str = "accuracy";
/// Rows of some variables that belong to no place.
const CONSTANT: &str = "constant";
const UNCHANGED: &str = "unchanged";
const N_PLACELESS: usize = 3;
/// A model that says less often what the program says does not run it, exchanged or not.
const LEAST_ACCURACY: f64 = 0.5;

/// 1 where the answer is likelier than everything that it is compared with.
static LIKELIEST: LazyLock<Metric> = LazyLock::new(|| {
    Metric::custom(IIA, "fraction", |logits: &[f32], target: &Target| {
        let at = |&token: &u32| logits[token as usize];
        let own = target
            .answers
            .iter()
            .map(at)
            .fold(f32::NEG_INFINITY, f32::max);
        f64::from(u8::from(target.wrong.iter().all(|wrong| at(wrong) < own)))
    })
});

/// A checked run in progress.
pub(super) struct Interchanging<'a> {
    on: Subject<'a>,
    config: &'a InterchangeConfig,
    running: &'a Running,
    design: Design<'a>,
    cells: Vec<Cell>,
    /// The cells of each set of variables.
    ranges: Vec<Range<usize>>,
    /// What all sources hold, where memory has room for it.
    held: Option<Held>,
}

impl<'a> Interchanging<'a> {
    pub fn new(
        on: Subject<'a>,
        config: &'a InterchangeConfig,
        running: &'a Running,
    ) -> Result<Self> {
        let design = Design::new(config, &on.model.spec, on.task)?;
        let (mut cells, mut ranges) = (Vec::new(), Vec::new());
        for set in &design.exchanged {
            let first = cells.len();
            let target = Some(set.name.clone());
            for places in &set.places {
                let joined = |of: &dyn Fn(&Place) -> String| {
                    let mut all: Vec<String> = places.iter().map(of).collect();
                    all.dedup();
                    all.join("+")
                };
                let place = Cell {
                    component: joined(&|place| place.hook.kind.name().into()),
                    layer: places.iter().map(|place| place.layer as u32).max(),
                    role: Some(joined(&|place| place.role.clone())),
                    target: target.clone(),
                    ..Cell::default()
                };
                cells.extend(
                    [None, Some(ALL), Some(RANDOM), Some(SHUFFLED)].map(|measure| Cell {
                        measure: measure.map(String::from),
                        ..place.clone()
                    }),
                );
            }
            let placeless = [
                (CONSTANT, None),
                (UNCHANGED, None),
                ("model", Some(ACCURACY)),
            ];
            cells.extend(placeless.map(|(component, measure)| Cell {
                component: component.into(),
                target: target.clone(),
                measure: measure.map(String::from),
                ..Cell::default()
            }));
            ranges.push(first..cells.len());
        }
        Ok(Interchanging {
            on,
            config,
            running,
            design,
            cells,
            ranges,
            held: None,
        })
    }

    /// Runs each source once for what it holds.
    fn hold(&self, needed: &Needed, progress: &dyn Progress) -> Result<Held> {
        let batch = self.running.batch;
        self.design.hold(self.on.model, needed, batch, progress)
    }

    fn readout(&self, items: &[&Item], label: impl Fn(&Item) -> usize) -> Readout {
        let target = |item: &&Item| {
            let label = label(item);
            let pair = self.design.prompts[item.base].pair;
            let others = self.design.labels.iter().enumerate();
            Target {
                answers: vec![self.design.labels[label].1],
                wrong: others
                    .filter(|(at, _)| *at != label)
                    .map(|(_, (_, token))| *token)
                    .collect(),
                after: pair.target.after,
                ..Target::default()
            }
        };
        Readout {
            metric: match self.config.decode {
                Decode::Outputs => *LIKELIEST,
                Decode::Vocabulary => Metric::TopK(1),
            },
            targets: items.iter().map(target).collect(),
            reference: None,
        }
    }

    /// The outcome that exchanges of some variables have most often, of those that change something.
    fn commonest(&self, of: usize) -> Option<usize> {
        let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
        for (_, item) in self.design.items_of(of).filter(|(_, item)| item.changes) {
            *counts.entry(item.outcome).or_default() += 1;
        }
        let most = counts.values().max()?;
        counts
            .iter()
            .find(|(_, n)| *n == most)
            .map(|(label, _)| *label)
    }

    fn kinds(&self, of: usize) -> Vec<Kind> {
        let places = self.design.exchanged[of].places.iter().flatten();
        let kinds: BTreeSet<Kind> = places.map(|place| place.hook.kind).collect();
        kinds.into_iter().collect()
    }

    /// The share of a pass that is left behind the first change.
    fn left(&self, base: usize, changes: &[Change]) -> f64 {
        let length = self.design.prompts[base].tokens().len();
        let layers = self.on.model.spec.n_layers;
        let layer = changes
            .iter()
            .map(|change| change.place.layer)
            .min()
            .unwrap_or(0);
        let pos = changes.iter().map(|change| change.pos).min().unwrap_or(0);
        ((layers - layer) * (length - pos)) as f64 / (layers * length) as f64
    }

    /// The values of a cell.
    fn of_cell<'m>(measured: &'m Measured, cell: usize) -> impl Iterator<Item = f64> + use<'m> {
        measured
            .examples
            .iter()
            .filter_map(move |one| one.value(cell))
    }

    /// Which exchanges were made, for whoever looks at single ones.
    fn exchanges(&self) -> serde_json::Value {
        let prompt = |at: &usize| {
            let prompt = &self.design.prompts[*at];
            json!([prompt.pair.index, prompt.side])
        };
        let first = first_example(self.on.task);
        let of = |(number, item): (usize, &Item)| {
            json!({
                "example": first + number,
                "variable": self.design.exchanged[item.of].name,
                "base": prompt(&item.base),
                "sources": item.sources.iter().map(prompt).collect::<Vec<_>>(),
                "output": self.design.labels[item.outcome].0,
                "changes": item.changes,
            })
        };
        self.design.items.iter().enumerate().map(of).collect()
    }
}

/// Numbers of exchanges follow those of the task's pairs, whose prompts they are made of.
fn first_example(task: &Task) -> usize {
    let last = task.pairs().iter().map(|pair| pair.index).max();
    last.map_or(0, |last| last + 1)
}

impl Prepared for Interchanging<'_> {
    fn cells(&self) -> &[Cell] {
        &self.cells
    }

    fn bytes(&self, length: usize) -> usize {
        let kinds = (0..self.ranges.len()).flat_map(|of| self.kinds(of));
        let widths = kinds.map(|kind| Hook::at(kind, 0).width(&self.on.model.spec));
        base_bytes(&self.on.model.spec, length, widths.max().unwrap_or(0))
    }

    /// Exchanges of one set of variables whose bases are of one length.
    fn units(&self, task: &Task, running: &Running) -> Vec<Unit> {
        let first = task.pairs().len();
        let mut units = Vec::new();
        for (of, cells) in self.ranges.iter().enumerate() {
            let mut by_length: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
            for (number, item) in self.design.items_of(of) {
                let length = self.design.prompts[item.base].tokens().len();
                by_length.entry(length).or_default().push(first + number);
            }
            for (length, items) in by_length {
                let room = running.planned_memory() / self.bytes(length).max(1);
                for items in items.chunks(room.clamp(1, running.batch.max(1))) {
                    units.push(Unit {
                        items: items.to_vec(),
                        cells: cells.clone(),
                    });
                }
            }
        }
        units
    }

    fn example(&self, task: &Task, item: usize) -> usize {
        first_example(task) + item - task.pairs().len()
    }

    fn cost(&self, unit: &Unit) -> Result<Cost> {
        let changes = self.design.all_changes(&self.on.model.spec, &unit.items);
        let left = |planned: &Planned| {
            let item = self.design.item(unit.items[planned.item]);
            self.left(item.base, &planned.changes)
        };
        let n = unit.items.len();
        // Sources run once for all exchanges.
        let shared = self.design.prompts.len() as f64 / self.design.items.len() as f64;
        let length = self.design.prompts[self.design.item(unit.items[0]).base]
            .tokens()
            .len();
        Ok(Cost {
            variants: changes.len(),
            packed: changes.iter().map(left).sum(),
            bytes: n * self.bytes(length),
            ..Cost::passes(n as f64 * (1.0 + shared))
        })
    }

    fn begin(&mut self, progress: &dyn Progress) -> Result<()> {
        let first = self.design.first_item;
        let all: Vec<usize> = (first..first + self.design.items.len()).collect();
        let needed = self.design.needed(&self.on.model.spec, &all);
        let wide = |(hook, _): &(Hook, usize)| 4 * hook.width(&self.on.model.spec);
        let bytes: usize = needed.values().flatten().map(wide).sum();
        if bytes <= self.running.memory_now() / 4 {
            self.held = Some(self.hold(&needed, progress)?);
        }
        Ok(())
    }

    fn measure(&self, unit: &Unit, progress: &dyn Progress) -> Result<Vec<ExampleScores>> {
        let Subject { model, task } = self.on;
        let items: Vec<&Item> = unit
            .items
            .iter()
            .map(|&item| self.design.item(item))
            .collect();
        let of = items[0].of;
        let own;
        let held = match &self.held {
            Some(held) => held,
            None => {
                let needed = self.design.needed(&model.spec, &unit.items);
                own = self.hold(&needed, progress)?;
                &own
            }
        };
        let prompts = items
            .iter()
            .map(|item| self.design.prompts[item.base].tokens().clone());
        let none = Sources::default;
        let (prompts, kinds) = (prompts.collect(), self.kinds(of));
        let base = BaseRun::new(model, prompts, vec![], vec![], none(), &kinds)?;
        let readout = self.readout(&items, |item| item.outcome);
        let as_it_is = self.readout(&items, |item| self.design.outputs[item.base]);
        let unchanged = base.metric(model, &readout)?;
        let accuracy = base.metric(model, &as_it_is)?;
        let all = self.design.all_changes(&model.spec, &unit.items);
        let mut variants = Vec::with_capacity(all.len());
        for planned in &all {
            let edit = |change: &Change| {
                let theirs = &held[&(change.source, change.place.hook, change.source_pos)];
                change.place.edit(&model.spec, change.pos, theirs)
            };
            let edits = planned.changes.iter().map(edit).collect::<Result<_>>()?;
            variants.push(Variant {
                example: planned.item,
                edits,
            });
        }
        let options = SweepOptions {
            memory: self.running.memory_now(),
            ..SweepOptions::default()
        };
        let changed = sweep(model, &base, &variants, &none(), &readout, &options, &Quiet)?;
        let commonest = self.commonest(of);
        let cells = &self.ranges[of];
        let mut values = vec![vec![None; cells.len()]; items.len()];
        for (planned, value) in all.iter().zip(changed) {
            let own = &mut values[planned.item][4 * planned.place..][..4];
            match planned.how {
                How::Exchanged => {
                    own[0] = items[planned.item].changes.then_some(value);
                    own[1] = Some(value);
                }
                How::Random => own[2] = Some(value),
                How::Shuffled => own[3] = Some(value),
            }
        }
        let placeless = cells.len() - N_PLACELESS;
        let mut examples = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            if item.changes {
                let is_commonest = Some(item.outcome) == commonest;
                values[i][placeless] = Some(f64::from(u8::from(is_commonest)));
                values[i][placeless + 1] = Some(unchanged[i]);
            }
            values[i][placeless + 2] = Some(accuracy[i]);
            let prompt = &self.design.prompts[item.base];
            let there = (cells.start as u32..).zip(&values[i]);
            examples.push(ExampleScores {
                example: self.example(task, unit.items[i]),
                clean: f64::NAN,
                corrupted: f64::NAN,
                tokens: task.texts(prompt.tokens()),
                roles: prompt.roles().clone(),
                cells: there
                    .filter(|(_, value)| value.is_some())
                    .map(|(cell, _)| cell)
                    .collect(),
                values: values[i].iter().copied().flatten().collect(),
                ..ExampleScores::default()
            });
        }
        progress.advance((items.len() * cells.len()) as u64);
        Ok(examples)
    }

    fn conclude(&self, measured: &mut Measured, _: &dyn Progress) -> Result<()> {
        let name = &self.config.program.name;
        measured.notes.push(format!(
            "program `{name}`: {} prompts; the model's answer is {}",
            self.design.prompts.len(),
            match self.config.decode {
                Decode::Outputs => format!(
                    "the likeliest of the {} that the program gives",
                    self.design.labels.len()
                ),
                Decode::Vocabulary => "its likeliest token".into(),
            }
        ));
        let share = |cell: usize| mean(&Self::of_cell(measured, cell).collect::<Vec<_>>());
        let (mut notes, mut warnings) = (Vec::new(), Vec::new());
        for (of, (set, cells)) in self.design.exchanged.iter().zip(&self.ranges).enumerate() {
            let first = cells.end - N_PLACELESS;
            let accuracy = share(first + 2);
            let n = self.design.items_of(of).count();
            let changing = self
                .design
                .items_of(of)
                .filter(|(_, item)| item.changes)
                .count();
            let mut note = format!(
                "`{}`: {n} exchanges, of which {changing} change what the program says; the model says what the program does in a share of \
                 {accuracy:.2} of the bases",
                set.name
            );
            if let Some(label) = self.commonest(of) {
                note += &format!(
                    "; where it changes, always `{}` is right in {:.2}, the model with nothing exchanged in {:.2}",
                    self.design.labels[label].0,
                    share(first),
                    share(first + 1)
                );
            }
            notes.push(note);
            if accuracy < LEAST_ACCURACY {
                warnings.push(format!(
                    "on {:.0}% of the bases of `{}` the model does not say what the program `{name}` says, so exchanges tell little; take a \
                     program, a task or a model that agree more",
                    100.0 * (1.0 - accuracy),
                    set.name
                ));
            }
        }
        let places = self.design.exchanged.iter().flat_map(|set| &set.places);
        let crowded = places.flatten().filter_map(|place| {
            let (taken, all) = place.crowded(&self.on.model.spec)?;
            Some(format!(
                "at `{}` {taken} of {all} are exchanged, so that a random part of as many has at least {} of them too: `{RANDOM}` is no place \
                 without the variable there",
                place.name(),
                2 * taken - all
            ))
        });
        let crowded: BTreeSet<String> = crowded.collect();
        notes.extend(crowded);
        warnings.extend(self.design.doubts.iter().cloned());
        let other = (self.config.directions_of.iter())
            .filter_map(|of| of.warning("directions that are exchanged are", self.on.model));
        warnings.extend(other.collect::<BTreeSet<String>>());
        for cell in 0..measured.cells.len() {
            let values: Vec<f64> = Self::of_cell(measured, cell).collect();
            let count = values.iter().filter(|value| **value > 0.5).count();
            if !values.is_empty() {
                let interval = wilson(count, values.len());
                measured.intervals.insert(cell, Some(interval));
            }
        }
        measured.notes.extend(notes);
        measured.warnings.extend(warnings);
        measured.found.insert("exchanges".into(), self.exchanges());
        measured.drop_unmeasured();
        Ok(())
    }
}
